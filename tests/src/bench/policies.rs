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
        nft: nft_guide("", ""),
    }
}

/// The guide as nft would have it: sets and a verdict map where the guide has single rules, and
/// one named counter, which shows that packets met the fate that they should.
/// `declarations` and `first` are put before the rest of the table and of the input chain.
pub fn nft_guide(declarations: &str, first: &str) -> String {
    format!(
        "table inet guide {{
    counter flooded {{ }}
{declarations}    chain input {{
        type filter hook input priority filter; policy accept;
{first}        iif lo accept
        meta l4proto {{ icmp, ipv6-icmp }} accept
        ct state established,related accept
        ip saddr 192.0.2.2 accept
        ip6 saddr 2001:db8::2 accept
        tcp dport {{ 22, 80, 443 }} accept
        counter name flooded drop
    }}
    chain output {{
        type filter hook output priority filter; policy accept;
        oif lo accept
        ip daddr 192.0.2.2 accept
        ip6 daddr 2001:db8::2 accept
        tcp dport 25 drop
        ip daddr 10.0.0.0/8 drop
        ip6 daddr fc00::/7 drop
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
