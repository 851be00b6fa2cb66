//! The kernel's settings that the firewall keeps to.

use fw_common::abi::blob::AnswerFields;

/// What this network namespace's sysctl `nf_conntrack_NAME` says, which connections are tracked by
/// unless the policy says otherwise; nothing where netfilter's tracking is not in the kernel.
pub fn conntrack_setting(name: &str) -> Option<u32> {
    setting(&format!("netfilter/nf_conntrack_{name}"))
}

/// What this network namespace's sysctl `net/NAME` says, if there is one.
pub(super) fn setting(name: &str) -> Option<u32> {
    let path = format!("/proc/sys/net/{name}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// How many ICMP errors the kernel would send, and with which hop counts
/// (Documentation/networking/ip-sysctl.rst).
///
/// IPv6's interval is shorter for peers that are reached by a short prefix, down to a sixteenth by the
/// default route (`icmpv6_xrlim_allow`, net/ipv6/icmp.c), which is taken here for all: programs
/// cannot ask by which prefix a peer is reached.
pub fn answer_settings() -> AnswerFields {
    const UNREACHABLE: u32 = 3;
    let default = AnswerFields::default();
    let per_second = setting("ipv4/icmp_msgs_per_sec").unwrap_or(1_000);
    let all = 1_000_000_000_u32
        .checked_div(per_second)
        .unwrap_or(u32::MAX);
    let mask = setting("ipv4/icmp_ratemask").unwrap_or(0x1818);
    let limited = [
        mask >> UNREACHABLE & 1 != 0,
        // A list of ranges of types; this is the default's part that has "unreachable".
        ratemask6_has_unreachable(),
    ];
    let peer = [
        setting("ipv4/icmp_ratelimit").unwrap_or(1_000),
        setting("ipv6/icmp/ratelimit").unwrap_or(1_000) >> 4,
    ];
    let hops = [
        setting("ipv4/ip_default_ttl"),
        setting("ipv6/conf/all/hop_limit"),
    ];
    let hops = hops.map(|hops| hops.and_then(|hops| u8::try_from(hops).ok()).unwrap_or(64));
    AnswerFields {
        peer: [0, 1].map(|family| if limited[family] { peer[family] } else { 0 }),
        all: [0, 1].map(|family| if limited[family] { all } else { 0 }),
        burst: setting("ipv4/icmp_msgs_burst").unwrap_or(default.burst),
        hops,
    }
}

/// `net.ipv6.icmp.ratemask` is a list of types and ranges of them; "unreachable" is type 1.
fn ratemask6_has_unreachable() -> bool {
    let text = std::fs::read_to_string("/proc/sys/net/ipv6/icmp/ratemask");
    text.map_or(true, |text| names_one(&text))
}

fn names_one(list: &str) -> bool {
    list.trim().split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!(
            (first.parse::<u8>(), last.parse::<u8>()),
            (Ok(first), Ok(last)) if (first..=last).contains(&1)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::names_one;

    #[test]
    fn the_list_of_icmpv6_types() {
        assert!(names_one("0-1,3-127\n"));
        assert!(names_one("1"));
        assert!(!names_one("0,3-127"));
        assert!(!names_one("\n"));
    }
}
