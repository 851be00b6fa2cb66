//! Sets whose elements are of the traffic's addresses and ports, and rules that ask them.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use crate::conformance::traffic::{Carried, Endpoint, Flow};

/// The types that the kernel under test surely has.
const KINDS: [&str; 8] = [
    "hash:ip",
    "hash:net",
    "hash:ip,port",
    "hash:net,port",
    "hash:ip,port,ip",
    "hash:ip,port,net",
    "bitmap:ip",
    "bitmap:port",
];

/// Sets, as `ipset save` prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Their names.
    pub names: Vec<String>,
    /// The names of those that rules may change.
    changed: Vec<String>,
    /// The file.
    pub text: String,
}

impl Sets {
    /// Up to four sets.
    pub fn generate(random: &mut impl Rng, family: Family, flows: &[Flow]) -> Self {
        let mut sets = Self::default();
        for number in 0..random.random_range(1..5) {
            let kind = loop {
                let kind = *KINDS.choose(random).expect("not empty");
                // The kernel has bitmaps of IPv4's addresses only.
                if kind != "bitmap:ip" || family == Family::Ipv4 {
                    break kind;
                }
            };
            let name = format!("{}-{number}", family.name());
            sets.text += &set(random, &name, kind, family, flows);
            if !kind.contains("net") {
                sets.changed.push(name.clone());
            }
            sets.names.push(name);
        }
        sets
    }

    /// A match that asks one of them, or nothing if there are none.
    pub fn asked(&self, random: &mut impl Rng) -> Option<String> {
        let name = self.names.choose(random)?;
        let not = if random.random_bool(0.2) { "! " } else { "" };
        let sides = sides(random);
        let exceptions = if random.random_bool(0.1) {
            " --return-nomatch"
        } else {
            ""
        };
        let counters = if random.random_bool(0.05) {
            " ! --update-counters"
        } else {
            ""
        };
        Some(format!(
            "-m set {not}--match-set {name} {sides}{exceptions}{counters}"
        ))
    }

    /// A target that changes some of them, or nothing if there are none.
    pub fn change(&self, random: &mut impl Rng) -> Option<String> {
        let mut target = String::from("-j SET");
        let add = random.random_bool(0.8);
        if add {
            let name = self.changed.choose(random)?;
            target += &format!(" --add-set {name} {}", sides(random));
            if random.random_bool(0.4) {
                target += " --exist";
            }
            if random.random_bool(0.4) {
                let seconds = [0, 86_400].choose(random).expect("not empty");
                target += &format!(" --timeout {seconds}");
            }
        }
        if !add || random.random_bool(0.2) {
            let name = self.changed.choose(random)?;
            target += &format!(" --del-set {name} {}", sides(random));
        }
        Some(target)
    }
}

/// Sides of a packet, as a rule names them.
fn sides(random: &mut impl Rng) -> String {
    let side = |from: bool| if from { "src" } else { "dst" };
    let sides: Vec<&str> = (0..random.random_range(1..=3))
        .map(|_| side(random.random_bool(0.6)))
        .collect();
    sides.join(",")
}

fn set(random: &mut impl Rng, name: &str, kind: &str, family: Family, flows: &[Flow]) -> String {
    let of_ports = kind == "bitmap:port";
    let inet6 = family == Family::Ipv6;
    let mut text = format!("create {name} {kind}");
    if of_ports {
        text += " range 0-65535";
    } else if kind == "bitmap:ip" {
        text += " range 10.0.0.0/16";
    } else {
        text += if inet6 {
            " family inet6"
        } else {
            " family inet"
        };
        text += " hashsize 1024 maxelem 65536";
    }
    let mut netmask = None;
    if kind == "hash:ip" && random.random_bool(0.3) {
        let bits = if inet6 { 64 } else { 24 };
        text += &format!(" netmask {bits}");
        netmask = Some(bits);
    }
    // The longest time: nothing is over before the trial is.
    let timeout = random.random_bool(0.3);
    if timeout {
        text += " timeout 2147483";
    }
    text.push('\n');
    let mut elements: Vec<String> = Vec::new();
    for _ in 0..random.random_range(0..8) {
        let flow = flows.choose(random).expect("there are flows");
        let (one, other) = if random.random_bool(0.5) {
            (flow.a, flow.b)
        } else {
            (flow.b, flow.a)
        };
        let usable = |end: Endpoint| end.address.is_ipv6() == inet6;
        if !of_ports && (!usable(one) || !usable(other)) {
            continue;
        }
        let parts: Vec<String> = kind
            .split_once(':')
            .map_or("", |(_, parts)| parts)
            .split(',')
            .enumerate()
            .map(|(place, part)| {
                let end = if place < 2 { one } else { other };
                match part {
                    "ip" => end.address.to_string(),
                    "net" => prefix(random, end),
                    _ if of_ports => end.port.to_string(),
                    _ => port(random, flow.carried, end, family),
                }
            })
            .collect();
        let mut line = parts.join(",");
        if kind == "bitmap:ip" && !line.starts_with("10.0.") {
            continue;
        }
        // An element of zeroes is in no hash, and `::1` under a mask is one.
        if netmask.is_some() && line == "::1" {
            continue;
        }
        // ipset refuses an element that is there already, and one under a mask is easily.
        let key = if netmask.is_some() {
            String::new()
        } else {
            line.clone()
        };
        if elements.contains(&key) {
            continue;
        }
        elements.push(key);
        if timeout && random.random_bool(0.5) {
            line += &format!(
                " timeout {}",
                [0, 86_400].choose(random).expect("not empty")
            );
        }
        if kind.contains("net") && random.random_bool(0.25) {
            line += " nomatch";
        }
        text += &format!("add {name} {line}\n");
    }
    text
}

fn prefix(random: &mut impl Rng, end: Endpoint) -> String {
    let bits: u8 = match end.address {
        std::net::IpAddr::V4(_) => *[8, 16, 24, 24, 28, 31, 32]
            .choose(random)
            .expect("not empty"),
        std::net::IpAddr::V6(_) => *[16, 48, 64, 64, 120, 127, 128]
            .choose(random)
            .expect("not empty"),
    };
    let network = ipnet::IpNet::new(end.address, bits).expect("bits of an address");
    format!("{}/{bits}", network.network())
}

fn port(random: &mut impl Rng, carried: Carried, end: Endpoint, family: Family) -> String {
    let port = end.port;
    match carried {
        Carried::Tcp => format!("tcp:{port}"),
        Carried::Udp => format!("udp:{port}"),
        Carried::Sctp => format!("sctp:{port}"),
        Carried::Echo => {
            let kind = match (family, random.random_bool(0.5)) {
                (Family::Ipv4, true) => "icmp:8/0",
                (Family::Ipv4, false) => "icmp:0/0",
                (Family::Ipv6, true) => "icmpv6:128/0",
                (Family::Ipv6, false) => "icmpv6:129/0",
            };
            kind.to_owned()
        }
        Carried::Other(number) => format!("{number}:0"),
    }
}
