//! The settings of connection tracking, as the datapath reads them: the cells of timeouts, and bits of
//! the header.

use fw_common::abi::blob::{DEFAULT_TIMEOUTS, HeaderFields, TIMEOUTS, TIMEOUTS_LEN, Timeout};

use super::TableSet;
use crate::policy::tracking::{KEYS, Kind, Switch, Tracking};

/// All settings, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seconds, in the order of `fw_common::abi::blob::Timeout`.
    pub timeouts: [u32; TIMEOUTS_LEN],
    /// Bits of [`HeaderFields::features`].
    pub features: u32,
}

/// netfilter's default of `nf_conntrack_tcp_max_retrans`.
const DEFAULT_RETRANSMISSIONS: u32 = 3;

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeouts: DEFAULT_TIMEOUTS,
            features: DEFAULT_RETRANSMISSIONS << HeaderFields::TCP_RETRANSMISSIONS,
        }
    }
}

impl Settings {
    /// What the policy says, else what the host says of a setting by its name, else netfilter's default.
    pub fn of(policy: &Tracking, host: impl Fn(&str) -> Option<u32>) -> Self {
        let mut settings = Self::default();
        for (place, key) in KEYS.iter().enumerate() {
            if let Some(value) = policy.get(place).or_else(|| host(key.name)) {
                settings.set(key.kind, value);
            }
        }
        settings
    }

    /// The settings of a compiled policy.
    pub fn read(header: &HeaderFields, tables: &TableSet) -> Self {
        const OWN: u32 = HeaderFields::TCP_LIBERAL
            | HeaderFields::TCP_NOT_LOOSE
            | HeaderFields::TCP_ANY_RESET
            | 0xff << HeaderFields::TCP_RETRANSMISSIONS;
        let mut timeouts = DEFAULT_TIMEOUTS;
        let cells = tables.cells.iter().skip(TIMEOUTS as usize);
        for (own, cell) in timeouts.chunks_mut(Timeout::IN_CELL).zip(cells) {
            own.copy_from_slice(&cell.w);
        }
        Self {
            timeouts,
            features: header.features & OWN,
        }
    }

    /// A setting's value.
    pub fn get(&self, kind: Kind) -> u32 {
        match kind {
            Kind::Seconds(place) => self.timeouts[usize::from(place) % TIMEOUTS_LEN],
            Kind::Switch(switch) => {
                let (bit, negated) = bit(switch);
                u32::from((self.features & bit != 0) != negated)
            }
            Kind::Retransmissions => self.features >> HeaderFields::TCP_RETRANSMISSIONS,
        }
    }

    fn set(&mut self, kind: Kind, value: u32) {
        match kind {
            Kind::Seconds(place) => self.timeouts[usize::from(place) % TIMEOUTS_LEN] = value,
            Kind::Switch(switch) => {
                let (bit, negated) = bit(switch);
                self.features &= !bit;
                if (value != 0) != negated {
                    self.features |= bit;
                }
            }
            Kind::Retransmissions => {
                let shift = HeaderFields::TCP_RETRANSMISSIONS;
                self.features = self.features & !(0xff << shift) | value.min(0xff) << shift;
            }
        }
    }
}

/// A switch's bit, and whether it says the contrary.
fn bit(switch: Switch) -> (u32, bool) {
    match switch {
        Switch::Liberal => (HeaderFields::TCP_LIBERAL, false),
        Switch::Loose => (HeaderFields::TCP_NOT_LOOSE, true),
        Switch::AnyReset => (HeaderFields::TCP_ANY_RESET, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_comes_before_the_host_and_the_host_before_the_default() {
        let place = |name: &str| KEYS.iter().position(|key| key.name == name).unwrap();
        let mut policy = Tracking::default();
        policy.set(place("udp_timeout"), 7);
        policy.set(place("tcp_loose"), 0);
        let host = |name: &str| match name {
            "udp_timeout" => Some(99),
            "icmp_timeout" => Some(5),
            "tcp_be_liberal" | "tcp_loose" => Some(1),
            "tcp_max_retrans" => Some(9),
            _ => None,
        };
        let settings = Settings::of(&policy, host);
        let value = |name: &str| settings.get(KEYS[place(name)].kind);
        assert_eq!(value("udp_timeout"), 7);
        assert_eq!(value("icmp_timeout"), 5);
        assert_eq!(value("generic_timeout"), 600);
        assert_eq!(value("tcp_be_liberal"), 1);
        assert_eq!(value("tcp_loose"), 0);
        assert_eq!(value("tcp_max_retrans"), 9);
        assert_eq!(
            Settings::default(),
            Settings::of(&Tracking::default(), |_| None)
        );
    }
}
