//! The nat table. Rules that translate to given addresses name one each, as which of a range is taken
//! depends on a number that the kernel draws when it starts.

use std::net::IpAddr;

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::matches::one_of;
use super::{Spot, TableText, Writer};
use crate::conformance::traffic::{Carried, Flow, SILENT_PORTS};
use crate::lab::{address, mac};

/// The neighbours that packets to translated addresses go to, if no connection takes them: without
/// one, netfilter's FORWARD sees them and fwbpf's, which is behind the neighbour's answer, does not.
/// Device, link-layer address, address.
pub fn neighbours() -> Vec<(&'static str, [u8; 6], IpAddr)> {
    let v4 = |network: [u8; 3], last: u8| IpAddr::from([network[0], network[1], network[2], last]);
    let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 0, last]);
    let mut all = Vec::new();
    all.extend((16..24).map(|last| ("eth0", mac::OUTSIDE, v4([198, 51, 100], last))));
    all.extend((0x20..0x22).map(|last| ("eth0", mac::OUTSIDE, v6(last))));
    all.extend((0x40..0x50).map(|last| ("eth0", mac::OUTSIDE, v6(last))));
    all.extend((4..8).map(|last| ("docker0", mac::CONTAINER1, v4([172, 17, 0], last))));
    all
}

/// How rules name the protocol of a flow that has ports.
fn protocol_of(flow: Flow) -> Option<&'static str> {
    match flow.carried {
        Carried::Tcp => Some("tcp"),
        Carried::Udp => Some("udp"),
        Carried::Sctp => Some("sctp"),
        Carried::Echo | Carried::Other(_) => None,
    }
}

/// Addresses at eth0's wire that nobody has: what sources are translated to.
const POOL: [[&str; 2]; 3] = [
    ["198.51.100.20", "2001:db8:1::20"],
    ["198.51.100.21", "2001:db8:1::21"],
    address::SERVER,
];

impl<R: Rng> Writer<'_, R> {
    pub(super) fn nat(&mut self) -> TableText {
        let mut chains: Vec<(String, &'static str)> = Vec::new();
        for name in ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"] {
            let policy = if self.chance(0.03) { "DROP" } else { "ACCEPT" };
            chains.push((name.to_string(), policy));
        }
        let users: Vec<String> = (0..self.upto(2)).map(|n| format!("natuser{n}")).collect();
        let masquerading: Vec<String> = (0..self.upto(2)).map(|n| format!("post{n}")).collect();
        for user in users.iter().chain(&masquerading) {
            chains.push((user.clone(), "-"));
        }
        let mut rules = Vec::new();
        for (name, spot) in [
            ("PREROUTING", Spot::Prerouting),
            ("INPUT", Spot::Input),
            ("OUTPUT", Spot::Output),
        ] {
            for _ in 0..self.upto(3) {
                if self.chance(0.5) {
                    rules.push(match spot {
                        Spot::Prerouting => self.destination_rule(name),
                        Spot::Input => self.source_rule(name, spot),
                        _ => self.output_rule(),
                    });
                    continue;
                }
                let target = self.plain_target(&users);
                rules.push(self.rule(name, spot, &target));
            }
        }
        for _ in 0..self.upto(4) {
            if self.chance(0.3) {
                rules.push(self.source_rule("POSTROUTING", Spot::Postrouting));
                continue;
            }
            let rule = self.postrouting_rule("POSTROUTING", Spot::Postrouting, &masquerading);
            rules.push(rule);
        }
        if self.chance(0.7) {
            rules.push("-A POSTROUTING -o eth0 -j MASQUERADE".into());
        }
        for user in &users {
            let target = self.plain_target(&[]);
            rules.push(self.rule(user, Spot::User, &target));
        }
        for (index, user) in masquerading.iter().enumerate() {
            for _ in 0..1 + self.upto(2) {
                let rule =
                    self.postrouting_rule(user, Spot::UserPostrouting, &masquerading[index + 1..]);
                rules.push(rule);
            }
        }
        TableText {
            name: "nat",
            chains,
            rules,
        }
    }

    /// A target for nat chains where fwbpf only counts and accepts.
    pub(super) fn plain_target(&mut self, users: &[String]) -> String {
        match self.upto(6) {
            0 => "-j ACCEPT".into(),
            1 => "-j RETURN".into(),
            2 | 3 if !users.is_empty() => format!("-j {}", self.one_of(users)),
            _ => String::new(),
        }
    }

    pub(super) fn postrouting_rule(&mut self, chain: &str, spot: Spot, users: &[String]) -> String {
        let roll = self.upto(10);
        if roll < 4 {
            let mut target = "-j MASQUERADE".to_string();
            let mut protocol = None;
            if self.chance(0.4) {
                // The ports of the translated packet, well away from those that the flows use.
                let first = 20_000 + self.upto(1000) as u16;
                target += &if self.chance(0.3) {
                    format!(" --to-ports {first}")
                } else {
                    format!(
                        " --to-ports {first}-{}",
                        first + 3000 + self.upto(2000) as u16
                    )
                };
                protocol = Some(one_of(self.random, &["tcp", "udp", "sctp"]));
            }
            if self.chance(0.2) {
                target += " --random";
            }
            return self.rule_of(chain, spot, &target, protocol);
        }
        let target = self.plain_target(users);
        self.rule(chain, spot, &target)
    }

    /// A rule of PREROUTING, or of a chain that only PREROUTING calls.
    pub(super) fn destination_rule(&mut self, chain: &str) -> String {
        let flow = *self.flows.choose(self.random).expect("there are flows");
        let mut words = self.matches_of(chain, flow, "-d");
        let ports = protocol_of(flow).is_some();
        match self.upto(10) {
            0..6 => {
                let hosts = [
                    address::CONTAINER1,
                    address::CONTAINER2,
                    address::OTHER,
                    address::BRIDGE,
                    address::SERVER,
                    address::INTERNET,
                ];
                let host = self.host(&hosts);
                let to = if !ports || self.chance(0.3) {
                    host
                } else {
                    let ports = self.new_ports(flow);
                    match (self.upto(5), self.family) {
                        (0, _) => format!(":{ports}"),
                        (_, Family::Ipv4) => format!("{host}:{ports}"),
                        (_, Family::Ipv6) => format!("[{host}]:{ports}"),
                    }
                };
                words.push(format!("-j DNAT --to-destination {to}"));
                if self.chance(0.1) {
                    words.push("--persistent".into());
                }
            }
            6..9 => {
                words.push("-j REDIRECT".into());
                if ports && self.chance(0.8) {
                    let ports = self.new_ports(flow);
                    let ports = ports.split('/').next().unwrap_or_default();
                    words.push(format!("--to-ports {ports}"));
                }
            }
            _ => {
                let network = match self.family {
                    // .10 becomes .2, the first container.
                    Family::Ipv4 => "172.17.0.0/29",
                    Family::Ipv6 => "fd17::2/128",
                };
                words.push(format!("-j NETMAP --to {network}"));
            }
        }
        words.join(" ")
    }

    /// A rule of OUTPUT that leaves packets on their way.
    pub(super) fn output_rule(&mut self) -> String {
        let flow = *self.flows.choose(self.random).expect("there are flows");
        let mut words = vec!["-A OUTPUT".to_owned()];
        let protocol = one_of(self.random, &["tcp", "udp", "sctp"]);
        words.push(format!("-p {protocol}"));
        if self.chance(0.4) {
            words.push(format!("--dport {}", flow.b.port));
        }
        let port = self.one_silent_port();
        match self.upto(3) {
            0 => words.push(format!("-o lo -j REDIRECT --to-ports {port}")),
            1 => {
                let to = match self.family {
                    Family::Ipv4 => format!("127.0.0.1:{port}"),
                    Family::Ipv6 => format!("[::1]:{port}"),
                };
                words.push(format!("-o lo -j DNAT --to-destination {to}"));
            }
            _ => words.push(format!("-j DNAT --to-destination :{port}")),
        }
        words.join(" ")
    }

    /// A rule of POSTROUTING, or of INPUT, where the address stays.
    pub(super) fn source_rule(&mut self, chain: &str, spot: Spot) -> String {
        let flow = *self.flows.choose(self.random).expect("there are flows");
        let mut words = self.matches_of(chain, flow, "-s");
        if spot == Spot::Input {
            if protocol_of(flow).is_some() {
                // None that POSTROUTING's rules name (difference 10).
                let first = 26_000 + self.upto(1000) as u16;
                words.push(format!("-j SNAT --to-source :{first}-{}", first + 2900));
            }
            return words.join(" ");
        }
        // On loopback, nothing becomes an address that is not the server's (docs/conformance.md).
        let out = if spot == Spot::Postrouting && self.chance(0.5) {
            "-o eth0"
        } else {
            "! -o lo"
        };
        words.push(out.into());
        if self.chance(0.2) {
            let network = match self.family {
                Family::Ipv4 => "198.51.100.16/29",
                Family::Ipv6 => "2001:db8:1::40/124",
            };
            words.push(format!("-j NETMAP --to {network}"));
            return words.join(" ");
        }
        let host = self.host(&POOL);
        let mut to = host.clone();
        if protocol_of(flow).is_some() && self.chance(0.3) {
            // Not those of INPUT (difference 10).
            let first = 30_000 + self.upto(1000) as u16;
            let ports = if self.chance(0.3) {
                first.to_string()
            } else {
                format!("{first}-{}", first + 3000)
            };
            to = match self.family {
                Family::Ipv4 => format!("{host}:{ports}"),
                Family::Ipv6 => format!("[{host}]:{ports}"),
            };
        }
        words.push(format!("-j SNAT --to-source {to}"));
        if self.chance(0.15) {
            words.push("--random".into());
        }
        if self.chance(0.1) {
            words.push("--persistent".into());
        }
        words.join(" ")
    }

    /// Matches that fit the first packets of a flow.
    fn matches_of(&mut self, chain: &str, flow: Flow, end: &str) -> Vec<String> {
        let mut words = vec![format!("-A {chain}")];
        if self.chance(0.6) {
            let address = if end == "-s" {
                flow.a.address
            } else {
                flow.b.address
            };
            words.push(format!("{end} {address}"));
        }
        let Some(protocol) = protocol_of(flow) else {
            return words;
        };
        words.push(format!("-p {protocol}"));
        if self.chance(0.6) {
            words.push(format!("--dport {}", flow.b.port));
        }
        words
    }

    fn host(&mut self, hosts: &[[&str; 2]]) -> String {
        let pair = hosts.choose(self.random).expect("not empty");
        match self.family {
            Family::Ipv4 => pair[0].to_owned(),
            Family::Ipv6 => pair[1].to_owned(),
        }
    }

    fn one_silent_port(&mut self) -> u16 {
        *SILENT_PORTS.choose(self.random).expect("not empty")
    }

    /// A port or a range for a destination.
    fn new_ports(&mut self, flow: Flow) -> String {
        let port = self.one_silent_port();
        match self.upto(6) {
            0 => format!("{port}-{}", port + 2),
            1 => format!("{}-{}", flow.b.port.saturating_sub(1), flow.b.port + 1),
            2 => format!("{port}-{}/{}", port + 5, flow.b.port.max(1)),
            _ => port.to_string(),
        }
    }
}
