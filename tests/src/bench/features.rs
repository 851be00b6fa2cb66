//! What rules of a kind cost a packet: case 0's second table.

use fw_user::policy::model::Family;

use super::contender::Policy;
use super::policies;

/// Rules that the guide is given besides: each is asked about the packets of a flood, and matches none of
/// them unless its title says so.
pub struct Feature {
    /// What they are.
    pub title: &'static str,
    /// Where they are.
    rules: Rules,
}

enum Rules {
    /// There are none.
    Nothing,
    /// At the head of INPUT.
    Input(&'static str),
    /// A table of their own.
    Table(&'static str),
    /// The guide's last rule, which drops the flood.
    Last(&'static str),
}

use Rules::{Input, Last, Nothing, Table};

/// All of them. The first is the guide by itself: what a policy costs that uses none of them.
pub const FEATURES: [Feature; 20] = [
    feature("the guide alone", Nothing),
    feature(
        "one more rule, of an address",
        Input("-s 192.0.2.77/32 -j DROP"),
    ),
    feature("-m mark", Input("-m mark --mark 0x1 -j DROP")),
    feature("-m connmark", Input("-m connmark --mark 0x1 -j DROP")),
    feature("-m length", Input("-m length --length 1400:1500 -j DROP")),
    feature("-m ttl", Input("-m ttl --ttl-lt 2 -j DROP")),
    feature("-m dscp", Input("-m dscp --dscp 0x2e -j DROP")),
    feature(
        "-m mac",
        Input("-m mac --mac-source 02:00:00:00:00:77 -j DROP"),
    ),
    feature(
        "-m pkttype",
        Input("-m pkttype --pkt-type multicast -j DROP"),
    ),
    feature(
        "-m addrtype",
        Input("-m addrtype --src-type BROADCAST -j DROP"),
    ),
    feature("-m tcpmss", Input("-p tcp -m tcpmss --mss 1:500 -j DROP")),
    feature(
        "-m limit, which lets nothing through",
        Input("-p udp -m limit --limit 1/day --limit-burst 1 -j ACCEPT"),
    ),
    feature(
        "-m recent, address not in its list",
        Input("-m recent --name bench --rcheck --rsource -j DROP"),
    ),
    feature(
        "-m recent, which notes each address",
        Input("-m recent --name bench --set --rsource"),
    ),
    feature(
        "-m hashlimit by source",
        Input(
            "-p udp -m hashlimit --hashlimit-above 1000000/sec --hashlimit-burst 1000000 \
             --hashlimit-mode srcip --hashlimit-name bench -j DROP",
        ),
    ),
    feature(
        "table raw, one rule",
        Table(
            "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
               -A PREROUTING -s 192.0.2.77/32 -j DROP\nCOMMIT\n",
        ),
    ),
    feature(
        "table mangle, which marks each packet",
        Table(
            "*mangle\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n\
               :OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
               -A PREROUTING -j MARK --set-xmark 0x1/0xffffffff\nCOMMIT\n",
        ),
    ),
    feature(
        "LOG, at most once a day",
        Input("-p udp -m limit --limit 1/day --limit-burst 1 -j LOG"),
    ),
    feature(
        "REJECT instead of DROP, limited by the kernel's rate",
        Last("-j REJECT"),
    ),
    feature("LOG of each packet, nobody reading", Input("-p udp -j LOG")),
];

const fn feature(title: &'static str, rules: Rules) -> Feature {
    Feature { title, rules }
}

impl Feature {
    /// The guide with them, in its IPv4 half.
    pub fn policy(&self) -> Policy {
        let mut policy = policies::guide();
        for (family, text) in &mut policy.save {
            if *family != Family::Ipv4 {
                continue;
            }
            match self.rules {
                Nothing => {}
                Input(rule) => {
                    *text = text.replacen("-A INPUT", &format!("-A INPUT {rule}\n-A INPUT"), 1);
                }
                Last(target) => {
                    *text = text.replace("-A INPUT -j DROP", &format!("-A INPUT {target}"));
                }
                Table(table) => text.push_str(table),
            }
        }
        policy
    }
}
