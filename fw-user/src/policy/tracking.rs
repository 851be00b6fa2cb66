//! How connections are tracked, as far as a policy says: policy.toml's `[conntrack]`, whose keys are
//! the kernel's sysctls without `nf_conntrack_` (Documentation/networking/nf_conntrack-sysctl.rst).

use serde::{Deserialize, Serialize};

/// What a policy says of tracking. What it leaves out, the kernel's sysctls say when it is loaded, and
/// where there are none, netfilter's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// Settings by their places in [`KEYS`], in that order.
    pub settings: Vec<(u8, u32)>,
}

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name, `nf_conntrack_` before it left out.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
}

/// What a setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Seconds; the place among the timeouts (`fw_common::abi::blob::Timeout`).
    Seconds(u8),
    /// On or off.
    Switch(Switch),
    /// How many retransmissions make a TCP flow's life shorter: 0 to 255.
    Retransmissions,
}

/// A switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Segments out of the window are not INVALID.
    Liberal,
    /// Connections are picked up in the middle.
    Loose,
    /// Resets need not be in the window.
    AnyReset,
}

/// All settings.
pub const KEYS: [Key; 29] = [
    seconds("tcp_timeout_syn_sent", 0),
    seconds("tcp_timeout_syn_recv", 1),
    seconds("tcp_timeout_established", 2),
    seconds("tcp_timeout_fin_wait", 3),
    seconds("tcp_timeout_close_wait", 4),
    seconds("tcp_timeout_last_ack", 5),
    seconds("tcp_timeout_time_wait", 6),
    seconds("tcp_timeout_close", 7),
    seconds("tcp_timeout_max_retrans", 9),
    seconds("tcp_timeout_unacknowledged", 10),
    seconds("udp_timeout", 11),
    seconds("udp_timeout_stream", 12),
    seconds("icmp_timeout", 13),
    seconds("icmpv6_timeout", 14),
    seconds("gre_timeout", 16),
    seconds("gre_timeout_stream", 17),
    seconds("sctp_timeout_closed", 18),
    seconds("sctp_timeout_cookie_wait", 19),
    seconds("sctp_timeout_cookie_echoed", 20),
    seconds("sctp_timeout_established", 21),
    seconds("sctp_timeout_shutdown_sent", 22),
    seconds("sctp_timeout_shutdown_recd", 23),
    seconds("sctp_timeout_shutdown_ack_sent", 24),
    seconds("sctp_timeout_heartbeat_sent", 25),
    seconds("generic_timeout", 15),
    switch("tcp_be_liberal", Switch::Liberal),
    switch("tcp_loose", Switch::Loose),
    switch("tcp_ignore_invalid_rst", Switch::AnyReset),
    Key {
        name: "tcp_max_retrans",
        kind: Kind::Retransmissions,
    },
];

const fn seconds(name: &'static str, place: u8) -> Key {
    Key {
        name,
        kind: Kind::Seconds(place),
    }
}

const fn switch(name: &'static str, switch: Switch) -> Key {
    Key {
        name,
        kind: Kind::Switch(switch),
    }
}

impl Tracking {
    /// What the policy says of the setting in this place of [`KEYS`].
    pub fn get(&self, place: usize) -> Option<u32> {
        let found = self
            .settings
            .iter()
            .find(|(key, _)| usize::from(*key) == place);
        found.map(|(_, value)| *value)
    }

    /// Sets the setting in this place.
    pub fn set(&mut self, place: usize, value: u32) {
        self.settings.retain(|(key, _)| usize::from(*key) != place);
        self.settings.push((place as u8, value));
        self.settings.sort_unstable();
    }
}
