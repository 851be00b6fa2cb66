//! The tracked flows, read out of the kernel's tables and put in words.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::MapData;
use fw_common::abi::Addr;
use fw_common::abi::flow::{Flow, FlowKey, FlowKey4};
use fw_common::abi::maps;
use fw_common::datapath::sctp;
use serde::Serialize;

use super::load::FlowWords;
use super::state::StateDir;
use super::sys::{self, Cursor};

/// One of the four flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowTable {
    /// Confirmed IPv4 flows.
    Flows4,
    /// Confirmed IPv6 flows.
    Flows6,
    /// IPv4 flows that outsiders opened and did not complete yet.
    Embryos4,
    /// The same for IPv6.
    Embryos6,
}

impl FlowTable {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Flows4, Self::Flows6, Self::Embryos4, Self::Embryos6];

    /// The map's name.
    pub fn map(self) -> &'static str {
        match self {
            Self::Flows4 => maps::FLOWS4,
            Self::Flows6 => maps::FLOWS6,
            Self::Embryos4 => maps::EMBRYOS4,
            Self::Embryos6 => maps::EMBRYOS6,
        }
    }

    /// How many entries fit.
    pub fn capacity(self) -> u32 {
        match self {
            Self::Flows4 => maps::FLOWS4_MAX,
            Self::Flows6 => maps::FLOWS6_MAX,
            Self::Embryos4 | Self::Embryos6 => maps::EMBRYOS_MAX,
        }
    }
}

/// Reads a flow table slice by slice, so that nobody has to hold all of it, and the kernel is
/// never kept busy for long.
#[derive(Debug)]
pub struct Slices {
    map: MapData,
    v4: bool,
    position: Position,
    slice: usize,
}

#[derive(Clone, Copy, Debug)]
enum Position {
    Start,
    At(Cursor),
    End,
}

/// A flow in words: what `fwbpf flows` prints and `--json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowView {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Protocol number.
    pub protocol: u8,
    /// `tcp`, `udp`, ... or the number.
    pub protocol_name: String,
    /// The state of TCP or SCTP.
    pub state: Option<&'static str>,
    /// Seconds until it ends unless a packet comes.
    pub timeout: u64,
    /// As the side that opened the flow names it.
    pub original: Tuple,
    /// As the reply names it: after translation.
    pub reply: Tuple,
    /// A packet came back.
    pub replied: bool,
    /// Traffic both ways is proven.
    pub assured: bool,
    /// The source is translated.
    pub masqueraded: bool,
    /// The destination is translated.
    pub redirected: bool,
    /// In the embryonic tier.
    pub embryo: bool,
    /// The mark that rules gave it (CONNMARK).
    pub mark: u32,
    /// The zone that it is in (CT).
    pub zone: u16,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tuple {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port (ICMP: identifier).
    pub source_port: u16,
    /// Destination port (ICMP: type and code).
    pub destination_port: u16,
}

impl Slices {
    /// Begins at the start of a table.
    pub fn open(state: &StateDir, table: FlowTable) -> Result<Self> {
        let map = MapData::from_pin(state.map(table.map()))
            .with_context(|| format!("cannot open the map {}", table.map()))?;
        Ok(Self {
            map,
            v4: matches!(table, FlowTable::Flows4 | FlowTable::Embryos4),
            position: Position::Start,
            slice: 1024,
        })
    }

    /// The next slice; empty slices are possible, nothing means the end.
    pub fn read_next(&mut self) -> Result<Option<Vec<(FlowKey, Flow)>>> {
        if self.v4 {
            self.read(|key: &FlowKey4| FlowKey::from(key))
        } else {
            self.read(|key: &FlowKey| *key)
        }
    }

    fn read<K: Pod + Default>(
        &mut self,
        whole_key: impl Fn(&K) -> FlowKey,
    ) -> Result<Option<Vec<(FlowKey, Flow)>>> {
        let from = match self.position {
            Position::Start => None,
            Position::At(cursor) => Some(cursor),
            Position::End => return Ok(None),
        };
        loop {
            let mut keys = vec![K::default(); self.slice];
            let mut values: Vec<FlowWords> = vec![FlowWords::default(); self.slice];
            match sys::lookup_batch(self.map.fd().as_fd(), from, &mut keys, &mut values) {
                Ok((count, next)) => {
                    self.position = next.map_or(Position::End, Position::At);
                    let flows = keys
                        .iter()
                        .zip(values)
                        .take(count)
                        .map(|(key, words)| (whole_key(key), Flow::from(words)))
                        .collect();
                    return Ok(Some(flows));
                }
                // One bucket holds more than a whole slice.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => self.slice *= 2,
                Err(error) => return Err(error).context("cannot read the flow table"),
            }
        }
    }
}

/// How many entries a flow table has. A translated flow has two.
pub fn count(state: &StateDir, table: FlowTable) -> Result<usize> {
    let mut slices = Slices::open(state, table)?;
    let mut count = 0;
    while let Some(slice) = slices.read_next()? {
        count += slice.len();
    }
    Ok(count)
}

/// All flows, each with its key.
pub fn views(state: &StateDir) -> Result<Vec<(FlowKey, FlowView)>> {
    let now = monotonic_now();
    let mut views = Vec::new();
    for table in FlowTable::ALL {
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            views.extend(slice.iter().filter_map(|(key, flow)| {
                let view = FlowView::new(key, flow, now)?;
                Some((*key, view))
            }));
        }
    }
    Ok(views)
}

/// The clock of [`Flow::expires`], nanoseconds.
pub fn monotonic_now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl FlowView {
    /// The view of a live flow; nothing for aliases, and for flows that have ended.
    pub fn new(key: &FlowKey, flow: &Flow, now: u64) -> Option<Self> {
        let status = flow.status.get();
        let expires = flow.expires.get();
        if status & (Flow::ALIAS | Flow::DYING) != 0 || expires <= now {
            return None;
        }
        let has = |flag| status & flag != 0;
        let v4 = key.is_v4();
        let low = (address(v4, key.low), key.low_port());
        let high = (address(v4, key.high), key.high_port());
        let (opener, other) = if has(Flow::LOW_OPENED) {
            (low, high)
        } else {
            (high, low)
        };
        let source = if has(Flow::SNAT) {
            let (source, port) = flow.translated_source();
            (address(v4, *source), port)
        } else {
            opener
        };
        let destination = if has(Flow::DNAT) {
            let (destination, port) = flow.translated_destination();
            (address(v4, destination), port)
        } else {
            other
        };
        let tuple = |source: (IpAddr, u16), destination: (IpAddr, u16)| Tuple {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
        };
        Some(Self {
            family: if v4 { "ipv4" } else { "ipv6" },
            protocol: key.protocol(),
            protocol_name: protocol_name(key.protocol()),
            state: state(key.protocol(), flow),
            timeout: (expires - now).div_ceil(1_000_000_000),
            original: tuple(opener, other),
            reply: tuple(destination, source),
            replied: has(Flow::SEEN_REPLY),
            assured: has(Flow::ASSURED),
            masqueraded: has(Flow::SNAT),
            redirected: has(Flow::DNAT),
            embryo: has(Flow::EMBRYO),
            mark: flow.mark.get(),
            zone: key.zone(),
        })
    }
}

/// As `conntrack -L` prints it.
impl fmt::Display for FlowView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<8} {} {} ",
            self.protocol_name, self.protocol, self.timeout
        )?;
        if let Some(state) = self.state {
            write!(f, "{state} ")?;
        }
        self.write_tuple(f, &self.original, false)?;
        if !self.replied {
            f.write_str("[UNREPLIED] ")?;
        }
        self.write_tuple(f, &self.reply, true)?;
        for (set, word) in [
            (self.assured, "[ASSURED]"),
            (self.masqueraded, "[MASQUERADED]"),
            (self.redirected, "[DNAT]"),
            (self.embryo, "[EMBRYO]"),
        ] {
            if set {
                write!(f, "{word} ")?;
            }
        }
        if self.mark != 0 {
            write!(f, "mark={} ", self.mark)?;
        }
        if self.zone != 0 {
            write!(f, "zone={} ", self.zone)?;
        }
        Ok(())
    }
}

impl FlowView {
    fn write_tuple(&self, f: &mut fmt::Formatter<'_>, tuple: &Tuple, reply: bool) -> fmt::Result {
        write!(f, "src={} dst={} ", tuple.source, tuple.destination)?;
        match self.protocol {
            6 | 17 | 33 | 132 | 136 => write!(
                f,
                "sport={} dport={} ",
                tuple.source_port, tuple.destination_port
            ),
            // The opener's port is the identifier, the other side's is the request's type and code.
            1 | 58 => {
                let (id, request) = if reply {
                    (tuple.destination_port, self.original.destination_port)
                } else {
                    (tuple.source_port, tuple.destination_port)
                };
                let (kind, code) = (request >> 8, request & 0xff);
                let kind = if reply { answer(kind) } else { kind };
                write!(f, "type={kind} code={code} id={id} ")
            }
            _ => Ok(()),
        }
    }
}

/// The ICMP type that answers a query: echo, timestamp, information, address mask (RFC 792,
/// RFC 950), and ICMPv6's echo and node information (RFC 4443, RFC 4620).
fn answer(query: u16) -> u16 {
    match query {
        8 => 0,
        13 | 15 | 17 | 128 | 139 => query + 1,
        other => other,
    }
}

fn address(v4: bool, words: Addr) -> IpAddr {
    if v4 {
        IpAddr::V4(Ipv4Addr::from(words[0]))
    } else {
        let bits = words
            .iter()
            .fold(0, |bits: u128, word| bits << 32 | u128::from(*word));
        IpAddr::V6(Ipv6Addr::from(bits))
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        47 => "gre".into(),
        50 => "esp".into(),
        51 => "ah".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        136 => "udplite".into(),
        other => other.to_string(),
    }
}

/// The state of a flow whose protocol has some.
fn state(protocol: u8, flow: &Flow) -> Option<&'static str> {
    match protocol {
        6 => Some(tcp_state(flow.tcp.get() as u8)),
        132 => sctp::STATE_NAMES
            .get(usize::from(sctp::state_of(flow)))
            .copied(),
        _ => None,
    }
}

/// The names of netfilter's `enum tcp_conntrack`, whose numbers the datapath uses.
fn tcp_state(number: u8) -> &'static str {
    match number {
        1 => "SYN_SENT",
        2 => "SYN_RECV",
        3 => "ESTABLISHED",
        4 => "FIN_WAIT",
        5 => "CLOSE_WAIT",
        6 => "LAST_ACK",
        7 => "TIME_WAIT",
        8 => "CLOSE",
        9 => "SYN_SENT2",
        _ => "NONE",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masqueraded() -> (FlowKey, Flow) {
        let key = FlowKey {
            low: [0xac11_0002, 0, 0, 0],
            high: [0xcb00_7105, 0, 0, 0],
            ports: FlowKey::ports_of(40000, 443),
            rest: FlowKey::rest_of(6, 0, 0),
        };
        let flow = Flow {
            other: FlowKey {
                low: [0xc633_640a, 0, 0, 0],
                ports: FlowKey::ports_of(40001, 443),
                ..key
            },
            ..Flow::default()
        };
        flow.expires.set(100_500_000_000);
        flow.tcp.set(3);
        flow.status.set(
            Flow::LOW_OPENED | Flow::SEEN_REPLY | Flow::ASSURED | Flow::SNAT | Flow::OTHER_LOW,
        );
        (key, flow)
    }

    #[test]
    fn a_masqueraded_flow_reads_like_conntrack() {
        let (key, flow) = masqueraded();
        let view = FlowView::new(&key, &flow, 0).unwrap();
        assert_eq!(
            view.to_string().trim_end(),
            "tcp      6 101 ESTABLISHED src=172.17.0.2 dst=203.0.113.5 sport=40000 dport=443 \
             src=203.0.113.5 dst=198.51.100.10 sport=443 dport=40001 [ASSURED] [MASQUERADED]"
        );
    }

    #[test]
    fn aliases_and_ended_flows_are_not_shown() {
        let (key, flow) = masqueraded();
        assert_eq!(FlowView::new(&key, &flow, 100_500_000_000), None);
        flow.status.set(Flow::ALIAS);
        assert_eq!(FlowView::new(&key, &flow, 0), None);
    }

    #[test]
    fn a_ping_is_answered_by_a_reply() {
        let (mut key, flow) = masqueraded();
        key.rest = FlowKey::rest_of(1, 0, 0);
        key.ports = FlowKey::ports_of(40000, 8 << 8);
        let text = FlowView::new(&key, &flow, 0).unwrap().to_string();
        assert!(
            text.contains("dst=203.0.113.5 type=8 code=0 id=40000"),
            "{text}"
        );
        assert!(
            text.contains("dst=198.51.100.10 type=0 code=0 id=40001"),
            "{text}"
        );
    }

    #[test]
    fn the_opener_may_be_the_higher_endpoint() {
        let (mut key, flow) = masqueraded();
        flow.status.set(0);
        key.rest = FlowKey::rest_of(17, 0, 0);
        let view = FlowView::new(&key, &flow, 0).unwrap();
        assert_eq!(view.original.source_port, 443);
        assert!(view.to_string().contains("[UNREPLIED]"));
    }
}
