//! `-m physdev`: ports of a bridge.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::policy::model::{InterfacePattern, Negatable};

/// Which port of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortSide {
    /// The one that the packet came in by.
    In,
    /// The one that it leaves by.
    Out,
}

/// `-m physdev`; at least one part is present. Where a part is only an option, true stands for `!`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Physdev {
    /// `--physdev-is-in`.
    pub is_in: Option<bool>,
    /// `--physdev-in`.
    pub input: Option<Negatable<InterfacePattern>>,
    /// `--physdev-is-out`.
    pub is_out: Option<bool>,
    /// `--physdev-out`.
    pub output: Option<Negatable<InterfacePattern>>,
    /// `--physdev-is-bridged`.
    pub bridged: Option<bool>,
}

impl Physdev {
    /// What each option that is given asks for: the contrary, if it has a `!`.
    fn inversions(&self) -> [Option<bool>; 5] {
        let of = |named: &Option<Negatable<InterfacePattern>>| named.as_ref().map(|one| one.not);
        [
            self.is_in,
            of(&self.input),
            self.is_out,
            of(&self.output),
            self.bridged,
        ]
    }

    /// Whether it holds for packets that no bridge has handed to netfilter, as all are where
    /// `bridge-nf-call-iptables` is off: if every option is inverted (`physdev_mt`,
    /// net/netfilter/xt_physdev.c).
    pub fn holds_without_bridge(&self) -> bool {
        self.inversions().into_iter().flatten().all(|not| not)
    }

    /// What it asks of the ports that a packet came in by and leaves by, all of which has to hold, if packets that no
    /// bridge has handed to netfilter, and that leave by no port, fit no pattern. `physdev_mt` again: of what no bridge
    /// has handed over, it holds only if every option is inverted; and no `--physdev-out` holds of what a bridge has
    /// handed over that leaves by no port, inverted or not. Where all options are inverted and that is one, these two
    /// are no conjunction: it is then taken as if no bridge handed anything over (`command::require` sees to it).
    pub fn conditions(&self) -> Vec<(PortSide, Negatable<InterfacePattern>)> {
        let any = |not| Negatable {
            not,
            value: InterfacePattern("+".to_owned()),
        };
        let mut asked = Vec::new();
        let mut add = |side, port| {
            let new = (side, port);
            if !asked.contains(&new) {
                asked.push(new);
            }
        };
        if !self.holds_without_bridge() {
            add(PortSide::In, any(false));
            if self.output.as_ref().is_some_and(|output| output.not) {
                add(PortSide::Out, any(false));
            }
        }
        for (side, not) in [
            (PortSide::In, self.is_in),
            (PortSide::Out, self.is_out),
            (PortSide::Out, self.bridged),
        ] {
            if let Some(not) = not {
                add(side, any(not));
            }
        }
        for (side, port) in [(PortSide::In, &self.input), (PortSide::Out, &self.output)] {
            if let Some(port) = port {
                add(side, port.clone());
            }
        }
        asked
    }

    /// Whether all options are inverted, and one of them is about the port that the packet leaves by: what has none then
    /// depends on whether a bridge has handed the packet over.
    pub fn is_about_other_ports(&self) -> bool {
        self.output.is_some() && self.holds_without_bridge()
    }

    /// Whether the kernel takes it where OUTPUT leads to: nothing is known of the port there, unless
    /// only bridged packets are meant (`physdev_mt_check`).
    pub fn may_be_in_output(&self) -> bool {
        self.bridged == Some(false) || self.is_out.is_none() && self.output.is_none()
    }

    /// Writes the options as `physdev_save` does (extensions/libxt_physdev.c).
    pub(super) fn write(&self, f: &mut String) -> fmt::Result {
        let bang = |not: bool| if not { "! " } else { "" };
        let is = |f: &mut String, name: &str, asked: Option<bool>| match asked {
            Some(not) => write!(f, " {}--physdev-{name}", bang(not)),
            None => Ok(()),
        };
        let by =
            |f: &mut String, name: &str, asked: &Option<Negatable<InterfacePattern>>| match asked {
                Some(port) => write!(f, " {}--physdev-{name} {}", bang(port.not), port.value.0),
                None => Ok(()),
            };
        is(f, "is-in", self.is_in)?;
        by(f, "in", &self.input)?;
        is(f, "is-out", self.is_out)?;
        by(f, "out", &self.output)?;
        is(f, "is-bridged", self.bridged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `physdev_mt` (net/netfilter/xt_physdev.c): `ports` are those of a packet that a bridge has handed over, by which it
    /// came in and leaves.
    fn kernels(asked: &Physdev, ports: Option<(&str, Option<&str>)>) -> bool {
        let Some((input, output)) = ports else {
            return asked.inversions().into_iter().flatten().all(|not| not);
        };
        let is = |asked: Option<bool>, found: bool| asked.is_none_or(|not| found != not);
        let fits = |asked: &Option<Negatable<InterfacePattern>>, name: &str| {
            asked
                .as_ref()
                .is_none_or(|asked| asked.value.matches(name) != asked.not)
        };
        is(asked.bridged, output.is_some())
            && is(asked.is_in, true)
            && is(asked.is_out, output.is_some())
            && fits(&asked.input, input)
            && match output {
                Some(output) => fits(&asked.output, output),
                None => asked.output.is_none(),
            }
    }

    #[test]
    fn the_conditions_are_the_kernels() {
        let options = [None, Some(false), Some(true)];
        let name = |not: Option<bool>, name: &str| {
            not.map(|not| Negatable {
                not,
                value: InterfacePattern(name.to_owned()),
            })
        };
        let packets = [
            None,
            Some(("veth1", None)),
            Some(("veth2", None)),
            Some(("veth1", Some("veth2"))),
            Some(("veth2", Some("veth1"))),
        ];
        let mut tried = 0;
        for number in 0..3_usize.pow(5) {
            let option = |place: u32| options[number / 3_usize.pow(place) % 3];
            let asked = Physdev {
                is_in: option(0),
                input: name(option(1), "veth1"),
                is_out: option(2),
                output: name(option(3), "veth1"),
                bridged: option(4),
            };
            for ports in packets {
                // `load` refuses it where a bridge hands anything over.
                if asked == Physdev::default() || asked.is_about_other_ports() && ports.is_some() {
                    continue;
                }
                let holds = asked.conditions().iter().all(|(side, port)| {
                    let found = match side {
                        PortSide::In => ports.map(|(input, _)| input),
                        PortSide::Out => ports.and_then(|(_, output)| output),
                    };
                    found.is_some_and(|name| port.value.matches(name)) != port.not
                });
                assert_eq!(holds, kernels(&asked, ports), "{asked:?} {ports:?}");
                tried += 1;
            }
        }
        assert!(tried > 1000);
    }
}
