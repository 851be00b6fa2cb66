//! LOG and NFLOG.

use serde::{Deserialize, Serialize};

/// `-j LOG`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// `--log-level`: a level of syslog, from 0 (emerg) to 7 (debug).
    pub level: u8,
    /// `--log-prefix`, empty if there is none; at most [`Log::PREFIX`] bytes.
    pub prefix: String,
    /// `--log-tcp-sequence`.
    pub tcp_sequence: bool,
    /// `--log-tcp-options`.
    pub tcp_options: bool,
    /// `--log-ip-options`.
    pub ip_options: bool,
    /// `--log-uid`.
    pub owner: bool,
    /// `--log-macdecode`.
    pub mac_decode: bool,
}

impl Log {
    /// The level of a rule that names none: warning.
    pub const LEVEL: u8 = 4;
    /// The longest prefix (`struct xt_log_info`, linux/netfilter/xt_LOG.h).
    pub const PREFIX: usize = 29;
    /// The levels' names, as iptables reads them.
    pub const LEVELS: [(&'static str, u8); 9] = [
        ("emerg", 0),
        ("alert", 1),
        ("crit", 2),
        ("error", 3),
        ("warning", 4),
        ("notice", 5),
        ("info", 6),
        ("debug", 7),
        ("panic", 0),
    ];
    /// A rule that names nothing.
    pub const PLAIN: Self = Self {
        level: Self::LEVEL,
        prefix: String::new(),
        tcp_sequence: false,
        tcp_options: false,
        ip_options: false,
        owner: false,
        mac_decode: false,
    };
}

/// `-j NFLOG`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nflog {
    /// `--nflog-group`.
    pub group: u16,
    /// `--nflog-prefix`, empty if there is none; at most [`Nflog::PREFIX`] bytes.
    pub prefix: String,
    /// `--nflog-range`, which never did anything.
    pub range: Option<u32>,
    /// `--nflog-size`: bytes of the packet that are asked for; all if it is missing.
    pub size: Option<u32>,
    /// `--nflog-threshold`: how many packets the kernel gathers before it wakes the listener.
    pub threshold: u16,
}

impl Nflog {
    /// The longest prefix (`struct xt_nflog_info`, linux/netfilter/xt_NFLOG.h).
    pub const PREFIX: usize = 63;
    /// A rule that names nothing.
    pub const PLAIN: Self = Self {
        group: 0,
        prefix: String::new(),
        range: None,
        size: None,
        threshold: 0,
    };
}
