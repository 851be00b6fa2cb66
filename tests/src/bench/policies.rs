//! The policies of the benchmark, in the language of each contender.

use fw_user::policy::model::Family;

use super::contender::Policy;
use crate::guide::{MASQUERADE_V6, RULES_V4, RULES_V6, corrected};

/// The guide's policy.
pub fn guide() -> Policy {
    Policy {
        save: vec![
            (Family::Ipv4, corrected(RULES_V4)),
            (Family::Ipv6, format!("{RULES_V6}{MASQUERADE_V6}")),
        ],
        nft: nft_guide(Family::Ipv4, "", "") + &nft_guide(Family::Ipv6, "", ""),
    }
}

/// The guide as nft would have it: sets and a verdict map where the guide has single rules, and
/// one named counter, which shows that packets met the fate that they should. A table for each
/// IP version: in one for both, every look at an address would ask for the version first.
/// `declarations` and `first` are put before the rest of the table and of the input chain.
pub fn nft_guide(family: Family, declarations: &str, first: &str) -> String {
    let (ip, icmp, admin, forbidden) = match family {
        Family::Ipv4 => ("ip", "icmp", "192.0.2.2", "10.0.0.0/8"),
        Family::Ipv6 => ("ip6", "ipv6-icmp", "2001:db8::2", "fc00::/7"),
    };
    format!(
        "table {ip} guide {{
    counter flooded {{ }}
{declarations}    chain input {{
        type filter hook input priority filter; policy accept;
{first}        iif lo accept
        meta l4proto {icmp} accept
        ct state established,related accept
        {ip} saddr {admin} accept
        tcp dport {{ 22, 80, 443 }} accept
        counter name flooded drop
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        oif lo accept
        {ip} daddr {admin} accept
        tcp dport 25 drop
        {ip} daddr {forbidden} drop
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname . oifname vmap {{ \"docker0\" . \"eth0\" : accept, \"eth0\" . \"docker0\" : accept }}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname \"eth0\" masquerade
    }}
}}
"
    )
}
