//! The matches and targets of iptables 1.8 that fwbpf does not have, and what to do instead.

use super::{BOTH, MatchRow, ONLY_V4, ONLY_V6, Support, TargetRow};
use crate::policy::model::Family;

const fn no(name: &'static str, families: &'static [Family], note: &'static str) -> MatchRow {
    MatchRow {
        name,
        aliases: &[],
        families,
        support: Support::No,
        note,
        reading: None,
    }
}

#[rustfmt::skip]
pub(crate) const MATCHES: &[MatchRow] = &[
    no("ah", ONLY_V6, "AH is an extension header, which is skipped: match the final header with `-p`."),
    no("bpf", BOTH, "Programs inside rules are not run: express the rule with `-s`, `-d`, `-p` and ports."),
    no("cgroup", BOTH, "Packets are not tied to processes: match ports or addresses."),
    no("cluster", BOTH, "There is no load sharing among machines: leave the rule out."),
    no("connbytes", BOTH, "Flows are not measured for rules: leave the rule out."),
    no("connlabel", BOTH, "Flows bear no labels: use `-m conntrack --ctstate`."),
    no("devgroup", BOTH, "Groups of interfaces are not known: use `-i` and `-o`, with `+` for many names."),
    no("dst", ONLY_V6, "IPv6's extension headers are skipped, not matched: match the final header with `-p`."),
    no("eui64", ONLY_V6, "EUI-64 addresses are not compared: match the prefix with `-s`."),
    no("hbh", ONLY_V6, "IPv6's extension headers are skipped, not matched: match the final header with `-p`."),
    no("helper", BOTH, "There are no connection tracking helpers: open the ports that the protocol needs."),
    no("ipcomp", BOTH, "SPIs are not looked at: match all of IPComp with `-p ipcomp`."),
    no("ipv6header", ONLY_V6, "IPv6's extension headers are skipped, not matched: match the final header with `-p`."),
    no("ipvs", BOTH, "IPVS is not known: match ports or addresses."),
    no("mh", ONLY_V6, "Types of mobility headers are not looked at: match `-p mh`."),
    no("nfacct", BOTH, "Every rule has counters of its own: `fwbpf show`."),
    no("osf", BOTH, "Operating systems are not guessed: leave the rule out."),
    no("quota", BOTH, "There are no quotas: leave the match out."),
    no("rateest", BOTH, "Rates are not estimated: leave the rule out."),
    no("realm", ONLY_V4, "Routing realms are not looked up: match addresses."),
    no("socket", BOTH, "Sockets are not looked up: match ports."),
    no("srh", ONLY_V6, "Segment routing headers are not looked at: match addresses."),
    no("u32", BOTH, "Bytes are not picked from packets: express the rule with `-s`, `-d`, `-p` and ports."),
    no("udplite", BOTH, "For UDP-Lite's ports write `-p udplite -m multiport --dports`."),
];

const fn none(name: &'static str, families: &'static [Family], note: &'static str) -> TargetRow {
    TargetRow {
        name,
        families,
        support: Support::No,
        note,
        start: None,
        tables: &[],
        options: &[],
    }
}

#[rustfmt::skip]
pub(crate) const TARGETS: &[TargetRow] = &[
    none("AUDIT", BOTH, "There is no audit record: read the rule's counters with `fwbpf show`."),
    none("CLASSIFY", BOTH, "Traffic classes are not set: use tc."),
    none("CLUSTERIP", ONLY_V4, "There is no load sharing among machines: leave the rule out."),
    none("CONNSECMARK", BOTH, "Security contexts are not labelled: leave the rule out."),
    none("DNPT", ONLY_V6, "Prefixes are not translated: route the prefix instead."),
    none("ECN", ONLY_V4, "ECN bits are not changed: use tc."),
    none("HMARK", BOTH, "Marks are not made of hashes: set one with `-j MARK`."),
    none("IDLETIMER", BOTH, "There are no timers: leave the rule out."),
    none("LED", BOTH, "No lamps are lit: leave the rule out."),
    none("NFQUEUE", BOTH, "Packets are not handed to programs: decide with ACCEPT or DROP."),
    none("QUEUE", BOTH, "Packets are not handed to programs: decide with ACCEPT or DROP."),
    none("RATEEST", BOTH, "Rates are not estimated: leave the rule out."),
    none("SECMARK", BOTH, "Security contexts are not labelled: leave the rule out."),
    none("SNPT", ONLY_V6, "Prefixes are not translated: use MASQUERADE."),
    none("SYNPROXY", BOTH, "The kernel's SYN cookies do it without a rule: `sysctl net.ipv4.tcp_syncookies=1`."),
    none("TCPOPTSTRIP", BOTH, "TCP's options are not changed: leave the rule out."),
    none("TEE", BOTH, "Packets are not copied: use tc's mirred."),
    none("TPROXY", BOTH, "Packets are not handed to local sockets: let the service listen on the port itself."),
    none("TRACE", BOTH, "Packets are not followed on their way, as each would have to be looked at again at every rule that it meets, and behind routing once more: `fwbpf explain` sends one through the same code, with the kernel's flows, and prints every step and the file and line that decides. `-j LOG` in TRACE's place says that such packets come."),
    none("ULOG", ONLY_V4, "It is gone from the kernel: use LOG or NFLOG."),
];
