//! Why packets were dropped, and other events worth a counter of their own.

macro_rules! stats {
    ($($(#[$doc:meta])* $variant:ident = $value:literal, $name:literal, $text:literal;)*) => {
        /// Index into the `STATS` map.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Stat {
            $($(#[$doc])* $variant = $value,)*
        }

        impl Stat {
            /// Every variant, in index order.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name as metrics and `--json` spell it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// Whether it counts dropped packets.
            pub const fn is_drop(self) -> bool {
                (self as u32) < Self::FlowTableFull as u32
            }
        }
    };
}

stats! {
    /// A rule or a policy said DROP.
    #[default]
    Policy = 0, "policy", "dropped by a rule or a chain's policy";
    /// The headers do not hold together.
    Malformed = 1, "malformed", "transport header cut short, too many extension headers, or nested priority tags";
    /// A later fragment whose first fragment was not seen (RFC 791 3.2 gives it no ports).
    FragmentWithoutFirst = 2, "fragment_without_first", "a later fragment to be forwarded came before its first fragment";
    /// No free port for masquerading.
    NoFreePort = 3, "no_free_port", "masquerading found no free source port";
    /// MASQUERADE matched, but the output interface has no address.
    NoMasqueradeAddress = 4, "no_masquerade_address", "the output interface has no address to masquerade with";
    /// Flow could not be stored in either tier.
    NoFlowEntry = 5, "no_flow_entry", "a new flow could not be stored";
    /// Chain evaluation did not come to an end within its bound.
    Unbounded = 6, "unbounded", "chain evaluation exceeded its bound";
    /// The packet could not be rewritten.
    Rewrite = 7, "rewrite", "the packet could not be rewritten";
    /// The interface has programs but no record.
    UnknownDevice = 8, "unknown_device", "the interface is not known to the firewall";
    /// A rule or a policy said DROP, and XDP did it before the network stack saw the packet: each
    /// dropped packet has one reason, so that the reasons add up to all drops.
    XdpDrop = 9, "policy_xdp", "dropped by a rule or a chain's policy, early, by XDP (not counted in `policy`)";
    /// A rule said REJECT.
    Rejected = 10, "rejected", "refused by REJECT, with an answer unless one of the two below says why not";
    /// REDIRECT matched, but the input interface has no address.
    NoRedirectAddress = 11, "no_redirect_address", "the input interface has no address to redirect to";
    /// Four flows from one source to one translated destination are on their way already.
    NoTransitName = 12, "no_transit_name", "too many flows of one source are translated to one destination, and again on their way out";
    /// This host's kernel answered a packet of a connection that it only forwards.
    TakenOver = 13, "taken_over", "this host answered in a connection that iptables had translated until then; fwbpf translates it from now on";
    /// A list's entries are all in use, or it could not be locked.
    List = 14, "list", "a rule that keeps lists (`recent`, `hashlimit`, `connlimit`) could not do so, for want of room";
    /// A bridge switched the frame from a port that no program was on yet, or would have had to send it back.
    BridgePort = 15, "bridge_port", "a frame that a bridge switches came by a port that had just appeared, or would have had to go back by the port that it came by";
    /// The confirmed tier was full; the flow is tracked in the embryonic tier.
    FlowTableFull = 16, "flow_table_full", "a flow stayed in the embryonic tier because the confirmed tier is full";
    /// A packet that the fast path sent on.
    FastPath = 17, "fast_path", "sent on by the fast path";
    /// A flow found to be past its time.
    Expired = 18, "expired", "a packet met a flow past its time";
    /// An event of LOG or NFLOG found no room in the ring buffer.
    EventLost = 19, "event_lost", "LOG or NFLOG met more packets than could be written down in time";
    /// An answer of REJECT was held back.
    AnswerLimited = 20, "answer_limited", "REJECT sent no ICMP error, by the kernel's limits (net.ipv4.icmp_ratelimit, icmp_msgs_per_sec and their like)";
    /// An answer of REJECT could not be made.
    AnswerLost = 21, "answer_lost", "REJECT could not make an answer of the packet";
    /// The kernel did not say which way answers to a packet would go.
    PathUnknown = 26, "path_unknown", "`-m rpfilter` took a packet's way for the right one, as the kernel did not tell it (net.ipv4.conf.lo.forwarding, or IPv6's, is 0)";
}

/// Length of the `STATS` map.
pub const STATS_MAX: u32 = 32;
