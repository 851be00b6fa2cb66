//! What is sent: flows between the hosts of the lab, and the packets of each in an order that
//! makes sense, with things in between that do not.

mod associate;
mod talk;

use std::fmt;
use std::net::IpAddr;

use fw_common::datapath::tcp::flag;
use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

pub use associate::{Chunk, quoted as quoted_chunks};

use crate::lab::address;
use crate::packet::{Dressing, chunk, protocol};

/// Where a packet is put in and where it can come out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The wire at eth0.
    Outside,
    /// The wire at eth1.
    Other,
    /// The first container.
    Container1,
    /// The second container.
    Container2,
    /// The firewalled host itself.
    Server,
}

/// One end of a flow. The port of an echo is its identifier; other protocols have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub place: Place,
    /// One of its addresses.
    pub address: IpAddr,
    /// Port or identifier.
    pub port: u16,
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carried {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP or ICMPv6 echo.
    Echo,
    /// SCTP.
    Sctp,
    /// Another IP protocol.
    Other(u8),
}

/// Two ends that talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The protocol.
    pub carried: Carried,
    /// The end that opens.
    pub a: Endpoint,
    /// The other.
    pub b: Endpoint,
}

impl Flow {
    /// The IP protocol number, by family.
    pub fn protocol(&self) -> u8 {
        match self.carried {
            Carried::Tcp => protocol::TCP,
            Carried::Udp => protocol::UDP,
            Carried::Echo if self.a.address.is_ipv4() => protocol::ICMP,
            Carried::Echo => protocol::ICMPV6,
            Carried::Sctp => protocol::SCTP,
            Carried::Other(number) => number,
        }
    }

    /// Whether ICMPv6 errors about it are difference 15's.
    fn errors_differ(&self) -> bool {
        let one_address = self.a.address == self.b.address && !self.a.address.is_ipv4();
        let has_ports = matches!(self.carried, Carried::Tcp | Carried::Udp | Carried::Sctp);
        one_address && (!has_ports || self.a.port == self.b.port)
    }
}

/// Which of a flow's two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// From the end that opens.
    Forth,
    /// To it.
    Back,
}

impl Way {
    /// The other way.
    pub fn reversed(self) -> Self {
        match self {
            Self::Forth => Self::Back,
            Self::Back => Self::Forth,
        }
    }
}

/// One packet to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Index of the flow.
    pub flow: usize,
    /// The way that it goes.
    pub way: Way,
    /// What it is.
    pub what: What,
    /// Time to live.
    pub ttl: u8,
    /// Identification, unique within the sequence.
    pub id: u16,
    /// IP options or extension headers.
    pub dressing: Dressing,
    /// In fragments, if at all.
    pub fragment: Option<Fragments>,
}

/// How a datagram is sent in fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragments {
    /// Bytes of each; they begin at multiples of eight.
    pub size: usize,
    /// How many of the later ones come before the first.
    pub ahead: usize,
}

impl Step {
    /// Whether it is a TCP segment with SYN.
    pub fn has_syn(&self) -> bool {
        matches!(self.what, What::Segment { flags, .. } if flags & flag::SYN != 0)
    }

    /// Whether it is never INVALID, if it goes forth.
    fn is_never_invalid(&self) -> bool {
        match &self.what {
            What::Segment { .. } => self.is_syn(),
            What::Chunks { chunks, .. } => {
                matches!(&chunks[..], [only] if only.kind == chunk::INIT && only.lies.is_none())
            }
            What::Datagram { .. } | What::Error { .. } => true,
        }
    }

    /// Whether it is one that `--syn` means.
    pub fn is_syn(&self) -> bool {
        const ASKED: u8 = flag::SYN | flag::RST | flag::ACK | flag::FIN;
        matches!(self.what, What::Segment { flags, .. } if flags & ASKED == flag::SYN)
    }
}

/// What a [`Step`] sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A TCP segment.
    Segment {
        /// The flags.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Window, not scaled.
        window: u16,
        /// Options.
        options: Vec<u8>,
        /// Bytes of data.
        length: usize,
    },
    /// A packet of SCTP.
    Chunks {
        /// The tag that it bears.
        tag: u32,
        /// Its chunks.
        chunks: Vec<Chunk>,
    },
    /// A packet of the flow's protocol (an echo request forth, a reply back).
    Datagram {
        /// Bytes of data.
        length: usize,
    },
    /// An ICMP error about the flow's packets of the other way.
    Error {
        /// The router that reports it, if not the addressee of those packets.
        router: Option<IpAddr>,
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// Second half of the ICMP header.
        rest: [u8; 4],
        /// Whether the quoted source port is [`SKEW`] too high, so that the flow is unknown.
        skewed: bool,
    },
}

/// How far a wrong port is from the right one in ICMP errors.
pub const SKEW: u16 = 23_456;

/// Everything that one rule set is tried with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// The flows that the steps speak of.
    pub flows: Vec<Flow>,
    /// What is sent, in order.
    pub steps: Vec<Step>,
    /// Bridges hand iptables what they only switch, and the containers speak to each other.
    pub switched: bool,
}

/// Where packets go besides through the server.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    /// From the server to itself.
    pub loopback: bool,
    /// From container to container.
    pub switched: bool,
}

impl Ways {
    /// What the server routes, and what it sends itself.
    pub const ROUTED: Self = Self {
        loopback: true,
        switched: false,
    };
}

/// Ports at which something on the server listens and says nothing (see `side.rs`), so that the
/// flow is only what the test makes of it.
pub const SILENT_PORTS: [u16; 6] = [22, 80, 443, 8080, 40_000, 40_001];

/// Ports at which the server's kernel answers that nobody is there.
pub const CLOSED_PORTS: [u16; 3] = [25, 81, 53];

/// Ports of clients.
pub const CLIENT_PORTS: [u16; 4] = [40_000, 40_001, 1_023, 50_000];

impl Traffic {
    /// The ends of a step's packet, the sender first.
    pub fn ends(&self, step: &Step) -> [(IpAddr, u16); 2] {
        let Flow { a, b, .. } = self.flows[step.flow];
        let ends = [(a.address, a.port), (b.address, b.port)];
        match step.way {
            Way::Forth => ends,
            Way::Back => [ends[1], ends[0]],
        }
    }

    /// Traffic of `packets` packets.
    pub fn generate(random: &mut impl Rng, family: Family, packets: usize, ways: Ways) -> Self {
        let count = (packets / 8).max(2);
        let mut flows = Vec::<Flow>::with_capacity(count);
        while flows.len() < count {
            flows.push(flow(random, family, ways));
        }
        let mut unfinished = vec![None; flows.len()];
        let mut scripts: Vec<std::collections::VecDeque<(Way, What)>> = flows
            .iter()
            .zip(&mut unfinished)
            .map(|(flow, unfinished)| script(random, flow, unfinished).into())
            .collect();
        let mut steps = Vec::with_capacity(packets);
        while steps.len() < packets {
            let index = random.random_range(0..flows.len());
            let next = if random.random_bool(0.08) && !flows[index].errors_differ() {
                error(random, &flows[index])
            } else if let Some(next) = scripts[index].pop_front() {
                next
            } else {
                scripts[index] = script(random, &flows[index], &mut unfinished[index]).into();
                continue;
            };
            steps.push(dress(random, index, &flows[index], next, steps.len()));
        }
        let switched = ways.switched;
        Self {
            flows,
            steps,
            switched,
        }
    }

    /// Has nothing past its time that may be without a connection, or nothing at all.
    pub fn keep_alive(&mut self, all: bool) {
        for step in &mut self.steps {
            if all || step.way == Way::Back || !step.is_never_invalid() {
                step.ttl = step.ttl.max(2);
            }
        }
    }

    /// Sends no fragments.
    pub fn send_whole(&mut self) {
        for step in &mut self.steps {
            step.fragment = None;
        }
    }

    /// Sends each datagram's first fragment first.
    pub fn send_in_order(&mut self) {
        for step in &mut self.steps {
            if let Some(fragments) = &mut step.fragment {
                fragments.ahead = 0;
            }
        }
    }
}

/// The addresses at which a host can be spoken to.
pub fn addresses(place: Place, family: Family) -> Vec<IpAddr> {
    let pairs: &[[&str; 2]] = match place {
        Place::Outside => &[
            address::OUTSIDE,
            address::ADMIN,
            address::INTERNET,
            address::FORBIDDEN,
        ],
        Place::Other => &[address::OTHER],
        Place::Container1 => &[address::CONTAINER1],
        Place::Container2 => &[address::CONTAINER2],
        Place::Server => &[address::SERVER, address::BRIDGE, address::SERVER_OTHER],
    };
    pairs.iter().map(|pair| parse(pair, family)).collect()
}

fn parse(pair: &[&str; 2], family: Family) -> IpAddr {
    let text = match family {
        Family::Ipv4 => pair[0],
        Family::Ipv6 => pair[1],
    };
    text.parse().expect("the lab's addresses are written right")
}

fn flow(random: &mut impl Rng, family: Family, ways: Ways) -> Flow {
    use Place::{Container1, Container2, Other, Outside, Server};
    /// Which hosts talk; how often is by how often they are listed.
    const PAIRS: [(Place, Place); 21] = [
        // First, as they are left out at times.
        (Container1, Container2),
        (Container1, Container2),
        (Container1, Container2),
        (Container2, Container1),
        (Container2, Container1),
        (Outside, Server),
        (Outside, Server),
        (Outside, Server),
        (Server, Outside),
        (Server, Outside),
        (Container1, Outside),
        (Container1, Outside),
        (Container2, Outside),
        (Container2, Outside),
        (Outside, Container1),
        (Container1, Server),
        (Server, Container2),
        (Other, Server),
        (Other, Outside),
        (Container2, Other),
        // Last, as it is left out at times.
        (Server, Server),
    ];
    let first = if ways.switched { 0 } else { 5 };
    let last = PAIRS.len() - usize::from(!ways.loopback);
    let pairs = &PAIRS[first..last];
    let (from, to) = pairs[random.random_range(0..pairs.len())];
    let carried = match random.random_range(0..100) {
        0..40 => Carried::Tcp,
        40..65 => Carried::Udp,
        65..80 => Carried::Echo,
        80..93 => Carried::Sctp,
        _ => Carried::Other(*OTHER_PROTOCOLS.choose(random).expect("not empty")),
    };
    let server_port = |random: &mut _| -> u16 {
        let all: Vec<u16> = SILENT_PORTS.iter().chain(&CLOSED_PORTS).copied().collect();
        *all.choose(random).expect("not empty")
    };
    let mut a = Endpoint {
        place: from,
        address: pick(random, from, family),
        port: *CLIENT_PORTS.choose(random).expect("not empty"),
    };
    let mut b = Endpoint {
        place: to,
        address: pick(random, to, family),
        port: server_port(random),
    };
    if (from, to) == (Server, Server) && random.random_bool(0.7) {
        a.address = parse(&address::LOOPBACK, family);
        b.address = a.address;
    }
    match carried {
        Carried::Tcp | Carried::Udp | Carried::Sctp => {}
        Carried::Echo => b.port = a.port,
        Carried::Other(_) => (a.port, b.port) = (0, 0),
    }
    Flow { carried, a, b }
}

/// GRE, ESP, OSPF, and 99, for which the server has no taker at all.
pub const OTHER_PROTOCOLS: [u8; 4] = [protocol::GRE, protocol::ESP, protocol::OSPF, 99];

fn pick(random: &mut impl Rng, place: Place, family: Family) -> IpAddr {
    *addresses(place, family)
        .choose(random)
        .expect("every place has an address")
}

fn script(
    random: &mut impl Rng,
    flow: &Flow,
    unfinished: &mut Option<[u32; 2]>,
) -> Vec<(Way, What)> {
    match flow.carried {
        Carried::Tcp => talk::conversation(random, unfinished),
        Carried::Sctp => associate::association(random, unfinished),
        _ => exchange(random),
    }
}

/// Datagrams both ways; now and then the answer comes first.
fn exchange(random: &mut impl Rng) -> Vec<(Way, What)> {
    let mut script = Vec::new();
    if random.random_bool(0.15) {
        script.push(Way::Back);
    }
    script.push(Way::Forth);
    for _ in 0..random.random_range(0..6) {
        script.push(if random.random_bool(0.55) {
            Way::Back
        } else {
            Way::Forth
        });
    }
    script
        .into_iter()
        .map(|way| {
            let length = random.random_range(0..120);
            (way, What::Datagram { length })
        })
        .collect()
}

fn error(random: &mut impl Rng, flow: &Flow) -> (Way, What) {
    let v4 = flow.a.address.is_ipv4();
    // Unreachable of several kinds, packet too big, time exceeded, parameter problem, and IPv4's
    // source quench.
    let kinds: &[(u8, u8)] = if v4 {
        &[(3, 0), (3, 1), (3, 3), (3, 4), (11, 0), (12, 0), (4, 0)]
    } else {
        &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 1)]
    };
    let (kind, code) = kinds[random.random_range(0..kinds.len())];
    let mtu = 1400u32.to_be_bytes();
    let rest = if (v4 && (kind, code) == (3, 4)) || (!v4 && kind == 2) {
        mtu
    } else {
        [0; 4]
    };
    let way = if random.random_bool(0.8) {
        Way::Back
    } else {
        Way::Forth
    };
    let sender = match way {
        Way::Forth => flow.a,
        Way::Back => flow.b,
    };
    let family = if v4 { Family::Ipv4 } else { Family::Ipv6 };
    let router = (sender.place == Place::Outside && random.random_bool(0.5))
        .then(|| parse(&address::OUTSIDE, family));
    let skewed = random.random_bool(0.2);
    (
        way,
        What::Error {
            router,
            kind,
            code,
            rest,
            skewed,
        },
    )
}

fn dress(
    random: &mut impl Rng,
    index: usize,
    flow: &Flow,
    (way, what): (Way, What),
    position: usize,
) -> Step {
    let (from, to) = match way {
        Way::Forth => (flow.a.place, flow.b.place),
        Way::Back => (flow.b.place, flow.a.place),
    };
    let ttl = if from != Place::Server && random.random_bool(0.02) {
        1
    } else {
        64
    };
    let is_error = matches!(what, What::Error { .. });
    let dressing = if !is_error && random.random_bool(0.04) {
        match random.random_range(0..4) {
            0 => Dressing::Routing(0),
            1 => Dressing::Routing(253),
            _ => Dressing::Options,
        }
    } else {
        Dressing::Plain
    };
    let mut step = Step {
        flow: index,
        way,
        what,
        ttl,
        id: position as u16 + 1,
        dressing,
        fragment: None,
    };
    if let What::Datagram { length } = &mut step.what
        && from != Place::Server
        && ttl > 1
        && random.random_bool(0.04)
    {
        *length = random.random_range(40..1000);
        let size = random.random_range(16..*length);
        // What is forwarded comes in order: fwbpf drops what comes before its first fragment.
        let ahead = if to == Place::Server && random.random_bool(0.5) {
            random.random_range(1..=length.div_ceil(size))
        } else {
            0
        };
        step.fragment = Some(Fragments { size, ahead });
        step.dressing = Dressing::Plain;
    }
    step
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Outside => "outside (eth0)",
            Self::Other => "other (eth1)",
            Self::Container1 => "container 1",
            Self::Container2 => "container 2",
            Self::Server => "the server",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_same_seed_makes_the_same_traffic() {
        let make = || {
            Traffic::generate(
                &mut ChaCha8Rng::seed_from_u64(3),
                Family::Ipv6,
                300,
                Ways::ROUTED,
            )
        };
        assert_eq!(make(), make());
        assert_eq!(make().steps.len(), 300);
        assert!(make().steps.iter().any(|step| step.fragment.is_some()));
    }
}
