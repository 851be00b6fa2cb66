//! Interface patterns: each distinct one is a bit in the word of every interface that fits it.

use fw_common::abi::blob::MAX_PATTERNS;

use super::{Limits, Place, chains};
use crate::policy::model::{InterfacePattern, Match, Policy, Rule};
use crate::policy::packet_match::PacketMatch;

/// A pattern, and what has the names that fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The names.
    pub name: InterfacePattern,
    /// Ports of bridges, not interfaces of layer 3.
    pub of_ports: bool,
}

/// The patterns of a policy, in the order of their first use. Pattern `i` is bit `i + 1`.
pub(super) struct Patterns(Vec<Pattern>);

impl Patterns {
    /// Collects the patterns that need a bit. `+` alone fits whatever the packet has, even no
    /// interface at all, and so is no condition; but not every packet has a port.
    pub fn of(policy: &Policy) -> Result<Self, Limits> {
        let mut list = Vec::new();
        for rule in chains::tables(policy)
            .flat_map(|(_, _, table)| &table.chains)
            .flat_map(|chain| &chain.rules)
        {
            for pattern in of_rule(rule) {
                if list.contains(&pattern) {
                    continue;
                }
                if list.len() == MAX_PATTERNS {
                    return Err(Limits::Patterns {
                        place: Place::of(policy, rule.origin),
                        pattern: pattern.name.0,
                    });
                }
                list.push(pattern);
            }
        }
        Ok(Self(list))
    }

    /// The pattern's bit; `None` if it stands for every interface.
    pub fn bit(&self, name: &InterfacePattern, of_ports: bool) -> Option<u8> {
        self.0
            .iter()
            .position(|known| known.of_ports == of_ports && known.name == *name)
            .map(|index| index as u8 + 1)
    }

    pub fn into_list(self) -> Vec<Pattern> {
        self.0
    }
}

fn of_rule(rule: &Rule) -> Vec<Pattern> {
    let of = |name: &InterfacePattern, of_ports| Pattern {
        name: name.clone(),
        of_ports,
    };
    let interfaces = rule.in_interface.iter().chain(&rule.out_interface);
    let interfaces = interfaces.filter(|asked| asked.value.0 != "+");
    let mut patterns: Vec<_> = interfaces.map(|asked| of(&asked.value, false)).collect();
    for each in &rule.matches {
        if let Match::Packet(PacketMatch::Physdev(physdev)) = each {
            let ports = physdev.conditions();
            patterns.extend(ports.iter().map(|(_, asked)| of(&asked.value, true)));
        }
    }
    patterns
}

/// The word of an interface, as the programs test it: a bit for each pattern that its name fits, or that of the port
/// that it is, and bit 0, which stands for any interface.
pub fn pattern_bits(patterns: &[Pattern], interface: &str, port: Option<&str>) -> u64 {
    (1..64).zip(patterns).fold(1, |bits, (bit, pattern)| {
        let name = if pattern.of_ports {
            port
        } else {
            Some(interface)
        };
        let fits = name.is_some_and(|name| pattern.name.matches(name));
        bits | u64::from(fits) << bit
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_zero_is_any_interface() {
        let pattern = |of_ports, name: &str| Pattern {
            name: InterfacePattern(name.into()),
            of_ports,
        };
        let [interface, port] = [false, true].map(|of_ports| move |name| pattern(of_ports, name));
        let patterns = [
            interface("eth0"),
            interface("docker+"),
            interface("eth+"),
            port("eth0"),
            port("+"),
        ];
        assert_eq!(pattern_bits(&patterns, "eth0", None), 0b00_1011);
        assert_eq!(pattern_bits(&patterns, "docker0", None), 0b00_0101);
        assert_eq!(pattern_bits(&patterns, "docker0", Some("eth0")), 0b11_0101);
        assert_eq!(pattern_bits(&patterns, "lo", None), 1);
    }
}
