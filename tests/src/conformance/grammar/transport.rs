//! Protocols, their ports, flags and types.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::Writer;
use crate::conformance::traffic::{Carried, Endpoint};

impl<R: Rng> Writer<'_, R> {
    pub(super) fn protocol(
        &mut self,
        words: &mut Vec<String>,
        carried: Carried,
        from: Endpoint,
        to: Endpoint,
    ) {
        if self.chance(0.1) {
            let name = *["tcp", "udp", "17", "gre", "sctp"]
                .choose(self.random)
                .expect("not empty");
            words.push(format!("! -p {name}"));
            return;
        }
        match carried {
            Carried::Tcp | Carried::Udp | Carried::Sctp => {
                let (name, number) = match carried {
                    Carried::Tcp => ("tcp", "6"),
                    Carried::Udp => ("udp", "17"),
                    _ => ("sctp", "132"),
                };
                words.push(format!(
                    "-p {}",
                    if self.chance(0.8) { name } else { number }
                ));
                if self.chance(0.75) {
                    self.transport(words, name, from, to);
                }
            }
            Carried::Echo => self.icmp(words),
            Carried::Other(number) => {
                let text = match number {
                    47 if self.chance(0.5) => "gre".into(),
                    50 if self.chance(0.5) => "esp".into(),
                    89 if self.chance(0.5) => "ospf".into(),
                    number => number.to_string(),
                };
                words.push(format!("-p {text}"));
            }
        }
    }

    pub(super) fn transport(
        &mut self,
        words: &mut Vec<String>,
        name: &str,
        from: Endpoint,
        to: Endpoint,
    ) {
        if self.chance(0.25) {
            words.push(self.multiport(from, to));
            return;
        }
        if self.chance(0.1) {
            words.push(format!("-m {name}"));
        }
        if self.chance(0.3) {
            words.push(self.port_match("--sport", from.port));
        }
        if self.chance(0.7) {
            words.push(self.port_match("--dport", to.port));
        }
        if name == "tcp" && self.chance(0.3) {
            let not = self.not(0.25);
            let flags = *[
                "--syn",
                "--tcp-flags SYN,ACK SYN",
                "--tcp-flags ALL NONE",
                "--tcp-flags RST RST",
                "--tcp-flags FIN,SYN FIN,SYN",
                "--tcp-flags ACK,PSH ACK",
                "--tcp-flags ALL FIN,PSH,URG",
                "--tcp-flags SYN,RST,ACK,FIN SYN,ACK",
            ]
            .choose(self.random)
            .expect("not empty");
            words.push(format!("{not}{flags}"));
        }
    }

    pub(super) fn port_match(&mut self, flag: &str, port: u16) -> String {
        let ports = self.ports(port, ':');
        // iptables-save prints nothing for `! --sport 0:65535`, though the rule never matches:
        // difference 8.
        let not = if ports == "0:65535" {
            String::new()
        } else {
            self.not(0.15)
        };
        format!("{not}{flag} {ports}")
    }

    pub(super) fn multiport(&mut self, from: Endpoint, to: Endpoint) -> String {
        let (flag, hit) = match self.upto(5) {
            0 => ("--sports", from.port),
            1 => ("--ports", from.port),
            2 => ("--ports", to.port),
            _ => ("--dports", to.port),
        };
        let not = self.not(0.15);
        let mut list = Vec::new();
        for _ in 0..self.upto(4) {
            let port = self.random.random_range(1..65_000);
            list.push(if self.chance(0.3) {
                format!("{port}:{}", port + 1 + self.upto(500) as u16)
            } else {
                port.to_string()
            });
        }
        let at = self.upto(list.len() + 1);
        let port = self.ports(hit.max(1), ':');
        list.insert(at, port);
        format!("-m multiport {not}{flag} {}", list.join(","))
    }

    /// The port, or a range around it, or one beside it.
    pub(super) fn ports(&mut self, port: u16, separator: char) -> String {
        let wide = 1 + self.upto(2000) as u16;
        match self.upto(10) {
            0..6 => port.to_string(),
            6 => format!(
                "{}{separator}{}",
                port.saturating_sub(wide),
                port.saturating_add(wide)
            ),
            7 => format!("{}{separator}65535", port.saturating_sub(wide)),
            8 => format!("0{separator}{port}"),
            _ => port.saturating_add(1).to_string(),
        }
    }

    pub(super) fn icmp(&mut self, words: &mut Vec<String>) {
        let not = self.not(0.15);
        let (protocol, module, flag, types): (&[&str], _, _, &[&str]) = match self.family {
            Family::Ipv4 => (
                &["icmp", "1"],
                "icmp",
                "--icmp-type",
                &[
                    "echo-request",
                    "8",
                    "echo-reply",
                    "0",
                    "3",
                    "3/3",
                    "destination-unreachable",
                    "time-exceeded",
                    "fragmentation-needed",
                    "any",
                    "11/0",
                ],
            ),
            Family::Ipv6 => (
                &["icmpv6", "ipv6-icmp", "58"],
                "icmp6",
                "--icmpv6-type",
                &[
                    "echo-request",
                    "128",
                    "echo-reply",
                    "129",
                    "1",
                    "1/4",
                    "destination-unreachable",
                    "packet-too-big",
                    "time-exceeded",
                    "3/0",
                ],
            ),
        };
        words.push(format!(
            "-p {}",
            protocol.choose(self.random).expect("not empty")
        ));
        if self.chance(0.7) {
            let kind = types.choose(self.random).expect("not empty");
            words.push(format!("-m {module} {not}{flag} {kind}"));
        }
    }
}
