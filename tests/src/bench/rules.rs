//! Rule sets of any size in four shapes, none of whose rules matches what the benchmark sends.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use fw_user::policy::model::Family;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::contender::Policy;
use super::policies;

/// What rules look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Prefixes that are not welcome.
    Blocklist,
    /// Hosts that may use a port each.
    HostPort,
    /// From this prefix to that, one port or a few in a row.
    Acl,
    /// Whatever grows in a firewall over years: wildcards, ranges, interfaces.
    Firewall,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Blocklist, Self::HostPort, Self::Acl, Self::Firewall];

    /// As tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocklist => "blocklist of prefixes",
            Self::HostPort => "host:port pairs",
            Self::Acl => "ACL-like",
            Self::Firewall => "firewall-like",
        }
    }
}

/// The guide with so many rules before the end of its INPUT chain.
pub fn policy(shape: Shape, family: Family, count: usize, seed: u64) -> Policy {
    let rules = generate(shape, count, seed);
    let mut lines = String::new();
    for rule in &rules {
        rule.iptables(family, &mut lines);
    }
    let mut policy = policies::guide();
    for (of, text) in &mut policy.save {
        if *of == family {
            *text = text.replace(LAST, &format!("{lines}{LAST}"));
        }
    }
    let (declarations, first) = nft(shape, family, &rules);
    policy.nft = match family {
        Family::Ipv4 => {
            policies::nft_guide(Family::Ipv4, &declarations, &first)
                + &policies::nft_guide(Family::Ipv6, "", "")
        }
        Family::Ipv6 => {
            policies::nft_guide(Family::Ipv4, "", "")
                + &policies::nft_guide(Family::Ipv6, &declarations, &first)
        }
    };
    policy
}

const LAST: &str = "-A INPUT -j DROP\n";

/// Some of an address space that the generator does not send from. For IPv6, the same bits behind
/// a prefix of 16.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    bits: u32,
    length: u8,
}

impl Prefix {
    /// The host that packets are for, or all of its network.
    const HOST: Self = Self {
        bits: 0,
        length: 32,
    };

    fn text(self, family: Family) -> String {
        let bits = self.bits;
        match family {
            Family::Ipv4 if bits == 0 => "198.51.100.10".into(),
            Family::Ipv6 if bits == 0 => "2001:db8:1::10".into(),
            Family::Ipv4 if self.length == 32 => Ipv4Addr::from(bits).to_string(),
            Family::Ipv4 => format!("{}/{}", Ipv4Addr::from(bits), self.length),
            Family::Ipv6 => {
                let (high, low) = ((bits >> 16) as u16, bits as u16);
                let host = u16::from(self.length == 32);
                let address = Ipv6Addr::new(0x2a00, high, low, 0, 0, 0, 0, host);
                if self.length == 32 {
                    address.to_string()
                } else {
                    format!("{address}/{}", self.length + 16)
                }
            }
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Rule {
    interface: Option<&'static str>,
    source: Option<Prefix>,
    destination: Option<Prefix>,
    tcp: Option<bool>,
    source_ports: Option<(u16, u16)>,
    ports: Option<(u16, u16)>,
    accept: bool,
}

impl Rule {
    fn protocol(&self) -> Option<&'static str> {
        self.tcp.map(|tcp| if tcp { "tcp" } else { "udp" })
    }

    fn verdict(&self) -> &'static str {
        if self.accept { "accept" } else { "drop" }
    }

    fn iptables(&self, family: Family, out: &mut String) {
        out.push_str("-A INPUT");
        if let Some(prefix) = self.source {
            let _ = write!(out, " -s {}", prefix.text(family));
        }
        if let Some(prefix) = self.destination {
            let _ = write!(out, " -d {}", prefix.text(family));
        }
        if let Some(interface) = self.interface {
            let _ = write!(out, " -i {interface}");
        }
        if let Some(protocol) = self.protocol() {
            let _ = write!(out, " -p {protocol}");
            if self.source_ports.is_some() || self.ports.is_some() {
                let _ = write!(out, " -m {protocol}");
            }
        }
        if let Some(ports) = self.source_ports {
            let _ = write!(out, " --sport {}", range(ports, ":"));
        }
        if let Some(ports) = self.ports {
            let _ = write!(out, " --dport {}", range(ports, ":"));
        }
        let _ = writeln!(out, " -j {}", self.verdict().to_uppercase());
    }

    fn nft(&self, family: Family, out: &mut String) {
        let ip = ip(family);
        out.push_str("        ");
        if let Some(interface) = self.interface {
            let _ = write!(out, "iifname {interface} ");
        }
        if let Some(prefix) = self.source {
            let _ = write!(out, "{ip} saddr {} ", prefix.text(family));
        }
        if let Some(prefix) = self.destination {
            let _ = write!(out, "{ip} daddr {} ", prefix.text(family));
        }
        if let Some(protocol) = self.protocol() {
            if self.source_ports.is_none() && self.ports.is_none() {
                let _ = write!(out, "meta l4proto {protocol} ");
            }
            if let Some(ports) = self.source_ports {
                let _ = write!(out, "{protocol} sport {} ", range(ports, "-"));
            }
            if let Some(ports) = self.ports {
                let _ = write!(out, "{protocol} dport {} ", range(ports, "-"));
            }
        }
        let _ = writeln!(out, "{}", self.verdict());
    }
}

fn range((low, high): (u16, u16), sign: &str) -> String {
    if low == high {
        low.to_string()
    } else {
        format!("{low}{sign}{high}")
    }
}

fn ip(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ip",
        Family::Ipv6 => "ip6",
    }
}

fn generate(shape: Shape, count: usize, seed: u64) -> Vec<Rule> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut blocks = Blocks { next: 0 };
    (0..count)
        .map(|_| match shape {
            Shape::Blocklist => Rule {
                source: Some(blocks.prefix(&mut random, 24)),
                ..Rule::default()
            },
            Shape::HostPort => Rule {
                source: Some(blocks.prefix(&mut random, 32)),
                tcp: Some(random.random()),
                ports: Some(exactly(port(&mut random))),
                accept: true,
                ..Rule::default()
            },
            Shape::Acl => Rule {
                source: Some(blocks.prefix(&mut random, 24)),
                destination: Some(if random.random_bool(0.5) {
                    Prefix::HOST
                } else {
                    anywhere(&mut random)
                }),
                tcp: Some(random.random()),
                ports: Some(if random.random_bool(0.8) {
                    exactly(port(&mut random))
                } else {
                    row(&mut random, 8)
                }),
                accept: true,
                ..Rule::default()
            },
            Shape::Firewall => grown(&mut random, &mut blocks),
        })
        .collect()
}

/// One of the rules that a firewall collects. Each misses the flood by one thing at least: the
/// prefix, the protocol, the port or the interface.
fn grown(random: &mut ChaCha8Rng, blocks: &mut Blocks) -> Rule {
    let accept = random.random();
    match random.random_range(0..10) {
        // A network may come in, whatever it wants.
        0..2 => Rule {
            source: Some(anywhere(random)),
            accept,
            ..Rule::default()
        },
        // A service for a network.
        2..5 => Rule {
            source: Some(blocks.prefix(random, 24)),
            tcp: Some(random.random()),
            ports: Some(row(random, 1_000)),
            accept,
            ..Rule::default()
        },
        // A service for all, TCP.
        5 => Rule {
            destination: Some(Prefix::HOST),
            tcp: Some(true),
            ports: Some(row(random, 100)),
            accept,
            ..Rule::default()
        },
        // Answers of old protocols.
        6 => Rule {
            source: Some(anywhere(random)),
            tcp: Some(random.random()),
            source_ports: Some(exactly(port(random))),
            ports: Some((1_024, 65_535)),
            accept,
            ..Rule::default()
        },
        // What is meant for others.
        7 => Rule {
            destination: Some(anywhere(random)),
            tcp: Some(random.random()),
            ports: Some(exactly(port(random))),
            accept,
            ..Rule::default()
        },
        // From inside.
        8 => Rule {
            interface: Some("docker0"),
            tcp: Some(random.random()),
            ports: Some(row(random, 50)),
            accept,
            ..Rule::default()
        },
        // Host to host.
        _ => Rule {
            source: Some(blocks.prefix(random, 32)),
            destination: Some(anywhere(random)),
            accept,
            ..Rule::default()
        },
    }
}

/// Prefixes that do not overlap, which nft's sets demand: each has a block of 256 addresses.
struct Blocks {
    next: u32,
}

impl Blocks {
    /// From 20.0.0.0 on, far from what the generator sends from.
    const FIRST: u32 = 20 << 24;
    /// 20.0.0.0 to 83.255.255.0.
    const COUNT: u32 = 1 << 22;

    fn prefix(&mut self, random: &mut ChaCha8Rng, shortest: u8) -> Prefix {
        // An odd factor: every block once, neighbours far apart.
        let block = self.next.wrapping_mul(2_654_435_761) % Self::COUNT;
        self.next += 1;
        let length = random.random_range(shortest..=32);
        let within = random.random_range(0..256) & mask(length);
        Prefix {
            bits: Self::FIRST + (block << 8) + within,
            length,
        }
    }
}

fn anywhere(random: &mut ChaCha8Rng) -> Prefix {
    let length = random.random_range(12..=32);
    // 100.0.0.0 to 163.255.255.255: neither the host nor what the generator sends from.
    let bits = random.random_range(100 << 24..164 << 24);
    Prefix {
        bits: bits & mask(length),
        length,
    }
}

fn mask(length: u8) -> u32 {
    u32::MAX << (32 - u32::from(length))
}

/// Below those that the flood is sent to and from.
fn port(random: &mut ChaCha8Rng) -> u16 {
    random.random_range(1..4_000)
}

fn exactly(port: u16) -> (u16, u16) {
    (port, port)
}

fn row(random: &mut ChaCha8Rng, longest: u16) -> (u16, u16) {
    let low = port(random);
    (low, low + random.random_range(0..longest))
}

/// nft's best form: what goes before the chains, and what goes into the input chain.
fn nft(shape: Shape, family: Family, rules: &[Rule]) -> (String, String) {
    let ip = ip(family);
    let mut elements = String::new();
    let (key, flags, test) = match shape {
        Shape::Blocklist => (format!("{ip} saddr"), "flags interval; auto-merge;", "drop"),
        Shape::HostPort => (
            format!("{ip} saddr . meta l4proto . th dport"),
            "",
            "accept",
        ),
        Shape::Acl => (
            format!("{ip} saddr . {ip} daddr . meta l4proto . th dport"),
            "flags interval;",
            "accept",
        ),
        // No set takes ranges that overlap and mean different things: rule after rule.
        Shape::Firewall => {
            let mut lines = String::new();
            for rule in rules {
                rule.nft(family, &mut lines);
            }
            return (String::new(), lines);
        }
    };
    for rule in rules {
        let fields = [
            rule.source.map(|prefix| prefix.text(family)),
            rule.destination.map(|prefix| prefix.text(family)),
            rule.protocol().map(String::from),
            rule.ports.map(|ports| range(ports, "-")),
        ];
        let fields: Vec<String> = fields.into_iter().flatten().collect();
        let _ = writeln!(elements, "            {},", fields.join(" . "));
    }
    (
        format!(
            "    set many {{\n        typeof {key}\n        {flags}\n        elements = {{\n{elements}        }}\n    }}\n"
        ),
        format!("        {key} @many {test}\n"),
    )
}
