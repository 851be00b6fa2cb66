//! `-m conntrack` about a packet's connection: its tuples, its status and how long it lives on.

use std::net::IpAddr;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::Writer;
use super::matches::one_of;
use crate::conformance::traffic::{Carried, Flow};
use crate::lab::address;
use crate::packet::protocol;

/// The ends of the two tuples, as options call them.
const ENDS: [&str; 4] = ["ctorigsrc", "ctorigdst", "ctreplsrc", "ctrepldst"];

impl<R: Rng> Writer<'_, R> {
    /// One or two of these questions, with a state beside them or without.
    pub(super) fn connection(&mut self, flow: Flow) -> String {
        let mut words = vec!["-m conntrack".to_owned()];
        if self.chance(0.3) {
            let states = [
                "NEW",
                "ESTABLISHED",
                "NEW,ESTABLISHED",
                "RELATED",
                "INVALID",
            ];
            let not = self.not(0.2);
            words.push(format!("{not}--ctstate {}", one_of(self.random, &states)));
        }
        if self.chance(0.25) {
            words.push(self.age_or_status(flow));
        } else {
            let first = self.upto(4);
            words.push(self.end_of(first, flow));
            if self.chance(0.3) {
                let second = (first + 1 + self.upto(3)) % 4;
                words.push(self.end_of(second, flow));
            }
            if self.chance(0.2) {
                let not = self.not(0.3);
                words.push(format!("{not}--ctproto {}", flow.protocol()));
            }
        }
        if self.chance(0.15) {
            let direction = one_of(self.random, &["ORIGINAL", "REPLY"]);
            words.push(format!("--ctdir {direction}"));
        }
        // A state may be asked once in a match.
        let asked = |word: &&String| word.contains("--ctstate");
        if words.iter().filter(asked).count() > 1 {
            words.remove(1);
        }
        words.join(" ")
    }

    /// An end of the flow, or what it may have been translated to.
    fn end_of(&mut self, end: usize, flow: Flow) -> String {
        let option = ENDS[end];
        // Replies go from the end that the opener's packets reach, to where they seem to come from.
        let own = match end {
            0 | 3 => flow.a,
            _ => flow.b,
        };
        if self.chance(0.35) {
            let not = self.not(0.2);
            let port = match (flow.carried, end) {
                (Carried::Tcp | Carried::Udp | Carried::Sctp | Carried::Other(_), _) => own.port,
                // The identifier in either tuple's source; the type, and the code, in its destination.
                (Carried::Echo, 0 | 2) => flow.a.port,
                (Carried::Echo, 1) => {
                    if own.address.is_ipv4() {
                        8 << 8
                    } else {
                        128 << 8
                    }
                }
                (Carried::Echo, _) => {
                    if own.address.is_ipv4() {
                        0
                    } else {
                        129 << 8
                    }
                }
            };
            let ports = match self.upto(4) {
                0 => "1024:65535".to_owned(),
                1 => "20000:25000".to_owned(),
                _ => self.ports(port, ':'),
            };
            return format!("{not}--{option}port {ports}");
        }
        let mut address = own.address;
        if end >= 2 && self.chance(0.3) {
            address = self.translated(address.is_ipv4());
        }
        let text = self.address(&format!("--{option}"), address, false);
        // A mask that is no length, iptables 1.8 leaves out.
        match text.split_once('/') {
            Some((whole, mask)) if mask.contains(['.', ':']) => whole.to_owned(),
            _ => text,
        }
    }

    /// An address that rules may translate to.
    fn translated(&mut self, v4: bool) -> IpAddr {
        let [first, second] = *[
            address::SERVER,
            address::SERVER_OTHER,
            address::CONTAINER1,
            address::CONTAINER2,
            address::BRIDGE,
            ["198.51.100.20", "2001:db8:1::20"],
        ]
        .choose(self.random)
        .expect("not empty");
        let text = if v4 { first } else { second };
        text.parse().expect("an address")
    }

    /// Nothing that depends on how long the trial takes: UDP becomes ASSURED two seconds after its first
    /// packet, and lives longer then; and no bound is right below a timeout.
    fn age_or_status(&mut self, flow: Flow) -> String {
        let not = self.not(0.25);
        // Whose connections have lives of their own.
        let own = match flow.carried {
            Carried::Tcp => Some("tcp"),
            Carried::Sctp => Some("sctp"),
            Carried::Other(protocol::GRE) => Some("47"),
            _ => None,
        };
        match (self.upto(3), own) {
            (0, _) => {
                let ranges: &[&str] = match own {
                    Some("tcp") => &[
                        "0:15",
                        "15:40",
                        "40:90",
                        "90:200",
                        "200:400",
                        "1000:500000",
                        "400:",
                    ],
                    Some("sctp") => &["60:180", "190:", "60:", "0:4"],
                    Some(_) => &["5:40", "100:250", "60:", "500:700", "0:4"],
                    None => &["5:700", "0:4", "1000:"],
                };
                let protocol = own.map_or_else(String::new, |own| format!(" --ctproto {own}"));
                // What is not stored yet has an age by the kernel's uptime.
                format!(
                    "--ctstate ESTABLISHED{protocol} {not}--ctexpire {}",
                    one_of(self.random, ranges)
                )
            }
            (1, Some(own)) => {
                let lists = ["ASSURED", "ASSURED,EXPECTED", "SEEN_REPLY,ASSURED"];
                format!(
                    "--ctproto {own} {not}--ctstatus {}",
                    one_of(self.random, &lists)
                )
            }
            _ => {
                let lists = [
                    "NONE",
                    "EXPECTED",
                    "SEEN_REPLY",
                    "SEEN_REPLY",
                    "CONFIRMED",
                    "CONFIRMED",
                    "SEEN_REPLY,CONFIRMED",
                    "EXPECTED,CONFIRMED",
                ];
                format!("{not}--ctstatus {}", one_of(self.random, &lists))
            }
        }
    }
}
