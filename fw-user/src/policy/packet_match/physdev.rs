//! `-m physdev`: ports of a bridge.

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::policy::model::{InterfacePattern, Negatable};

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
