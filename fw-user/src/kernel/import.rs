//! What the kernel tracks already, taken over when the first policy is loaded, so that moving from
//! iptables cuts nothing.
//!
//! It happens while the programs let everything pass because there is no policy yet: nobody else
//! writes the tables. Netfilter goes on translating what it knows until the last rule is gone that
//! needs tracking ([`Flow::FOREIGN`]). What is not known of a TCP connection is its windows: as of one that is picked
//! up in the middle, they are not held against anybody.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use aya::maps::MapError;
use fw_common::abi::Family;
use fw_common::abi::flow::{Flow, FlowKey, FlowKey4, Hint};
use fw_common::datapath::header::protocol;
use fw_common::datapath::tuple::Tuple;
use fw_common::datapath::{sctp, tcp};
use serde::Serialize;

use super::ctnetlink::{Entry, Side, entries, status, tracks_anything};
use super::flows::monotonic_now;
use super::load::{FlowWords, Maps};
use crate::addr;
use crate::host::Host;

/// What became of the connections that the kernel knew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Import {
    /// Taken over.
    pub taken: usize,
    /// Left: their destination is translated to this host itself, or this host has opened them.
    pub redirected: usize,
    /// Left: only one direction is in a zone, or they are of a protocol that is not translated here, or there is no room.
    pub others: usize,
}

/// Takes over what the kernel tracks; nothing if it tracks nothing.
pub fn take_over(maps: &mut Maps, host: &Host) -> Result<Option<Import>> {
    if !tracks_anything() {
        return Ok(None);
    }
    let entries = entries().context("cannot read the kernel's table of connections")?;
    let mut import = Import::default();
    let mut store = Store::default();
    let now = monotonic_now();
    for entry in entries {
        match Taken::of(&entry, host, now) {
            Ok(Some(taken)) => {
                if !store.put(maps, &taken)? {
                    import.others += 1;
                    continue;
                }
                import.taken += 1;
            }
            Ok(None) => {}
            Err(Left::Redirected) => import.redirected += 1,
            Err(Left::Other) => import.others += 1,
        }
    }
    store.write_hints(maps)?;
    Ok((import != Import::default()).then_some(import))
}

/// Why a connection is left.
enum Left {
    Redirected,
    Other,
}

/// A connection as the datapath has it.
struct Taken {
    /// Its endpoints, as its opener has them.
    tuple: Tuple,
    flow: Flow,
    /// What the far side sees, if either end is translated.
    alias: Option<Tuple>,
    /// What it is on its way through this host, if both are.
    way: Option<Tuple>,
}

impl Taken {
    /// Nothing for what is no connection any more.
    fn of(entry: &Entry, host: &Host, now: u64) -> Result<Option<Self>, Left> {
        const LIVES: u32 = status::CONFIRMED;
        let (Some(original), Some(reply)) = (entry.original, entry.reply) else {
            return Err(Left::Other);
        };
        if entry.status & (LIVES | status::DYING) != LIVES || entry.timeout == 0 {
            return Ok(None);
        }
        if original.zone != 0 || reply.zone != 0 {
            return Err(Left::Other);
        }
        let (from, to) = ends(&original);
        let (answers_from, answers_to) = match reply.icmp {
            // The answering side's port stands for what was asked.
            Some((id, ..)) => ((reply.source, to.1), (reply.destination, id)),
            None => (
                (reply.source, reply.source_port),
                (reply.destination, reply.destination_port),
            ),
        };
        let is_redirected = answers_from != to;
        if is_redirected && (is_own(host, from.0) || is_own(host, answers_from.0)) {
            // What this host sends has been translated before any program sees it, and what it gets
            // is, behind them.
            return Err(Left::Redirected);
        }
        let has_other_source = answers_to != from;
        let is_translated = is_redirected || has_other_source;
        let number = original.protocol;
        if is_translated && !protocol::is_translatable(number) {
            return Err(Left::Other);
        }
        let has = |bit| entry.status & bit != 0;
        let flag = |bit, flag| if has(bit) { flag } else { 0 };
        let mut flow = Flow::default();
        flow.expires
            .set(now + u64::from(entry.timeout) * 1_000_000_000);
        flow.mark.set(entry.mark);
        let mut bits =
            flag(status::SEEN_REPLY, Flow::SEEN_REPLY) | flag(status::ASSURED, Flow::ASSURED);
        if number == protocol::UDP {
            // Old enough for a stream, which ASSURED says.
            flow.set_opened_at(now.saturating_sub(3_000_000_000));
        }
        if number == protocol::TCP {
            tcp::adopt(&flow, entry.tcp_state);
        }
        if number == protocol::SCTP {
            sctp::adopt(&flow, entry.sctp.0, entry.sctp.1);
        }
        if is_redirected {
            // Until netfilter shows that it does so no more, it translates.
            bits |= Flow::DNAT | Flow::FOREIGN;
        }
        if has_other_source {
            bits |= Flow::SNAT;
            flow.nat_device = device_of(host, answers_to.0);
        } else if !is_redirected && !has(status::SEEN_REPLY) {
            bits |= Flow::EMBRYO;
        }
        flow.status.set(bits);
        Ok(Some(Self {
            tuple: tuple(from, to, number, entry.zone),
            flow,
            alias: is_translated.then(|| tuple(answers_to, answers_from, number, entry.zone)),
            way: (is_redirected && has_other_source)
                .then(|| tuple(from, answers_from, number, entry.zone)),
        }))
    }
}

type End = (IpAddr, u16);

/// Both ends, as the datapath has them: a query's are its identifier, and its type and code.
fn ends(side: &Side) -> (End, End) {
    match side.icmp {
        Some((id, kind, code)) => (
            (side.source, id),
            (side.destination, u16::from_be_bytes([kind, code])),
        ),
        None => (
            (side.source, side.source_port),
            (side.destination, side.destination_port),
        ),
    }
}

fn tuple(from: End, to: End, number: u8, zone: u16) -> Tuple {
    Tuple {
        source: addr::to_abi(from.0),
        destination: addr::to_abi(to.0),
        ports: u32::from(from.1) << 16 | u32::from(to.1),
        protocol: number,
        family: if from.0.is_ipv4() {
            Family::V4
        } else {
            Family::V6
        },
        zone,
    }
}

/// Whether an address is this host's own.
fn is_own(host: &Host, address: IpAddr) -> bool {
    address.is_loopback() || device_of(host, address) != 0
}

/// The interface that has an address, or none.
fn device_of(host: &Host, address: IpAddr) -> u32 {
    let has = |interface: &&crate::host::Interface| {
        let mut addresses = interface.addresses.iter();
        addresses.any(|known| known.address == address)
    };
    host.interfaces
        .iter()
        .find(has)
        .map_or(0, |interface| interface.index)
}

/// What was written.
#[derive(Default)]
struct Store {
    keys: HashSet<FlowKey>,
    /// By hash: how many confirmed names there are, until when embryonic flows live, and what is to be said
    /// besides.
    hints: HashMap<u32, (u32, u64, u64)>,
}

impl Store {
    /// Writes a flow and its other names; false if there is no room for them.
    fn put(&mut self, maps: &mut Maps, taken: &Taken) -> Result<bool> {
        let mut key = FlowKey::default();
        let opened = |from_low| if from_low { Flow::LOW_OPENED } else { 0 };
        let from_low = taken.tuple.fill_key(FlowKey::FIRST, &mut key);
        if self.keys.contains(&key) {
            key.set_kind(FlowKey::SECOND);
        }
        let mut flow = taken.flow.clone();
        flow.status.set(flow.status.get() | opened(from_low));
        if let Some(tuple) = &taken.alias {
            let mut name = FlowKey::default();
            let from_low = tuple.fill_key(FlowKey::FIRST, &mut name);
            if self.keys.contains(&name) {
                name.set_kind(FlowKey::SECOND);
            }
            let mut alias = flow.clone();
            alias.status.set(Flow::ALIAS | opened(from_low));
            alias.other = key;
            flow.other = name;
            let low = if from_low { Flow::OTHER_LOW } else { 0 };
            flow.status.set(flow.status.get() | low);
            if !self.insert(maps, &name, &alias, false)? {
                return Ok(false);
            }
        }
        if let Some(tuple) = &taken.way {
            let mut name = FlowKey::default();
            tuple.fill_key(FlowKey::TRANSIT, &mut name);
            while self.keys.contains(&name) {
                name.set_kind(name.kind() + 1);
            }
            if name.kind() >= FlowKey::TRANSIT + FlowKey::TRANSITS {
                return Ok(false);
            }
            let number = name.kind() - FlowKey::TRANSIT;
            flow.status
                .set(flow.status.get() | Flow::transit_status(number));
            let mut way = flow.clone();
            way.status
                .set(Flow::ALIAS | flow.status.get() & Flow::LOW_OPENED);
            way.other = key;
            if !self.insert(maps, &name, &way, false)? {
                return Ok(false);
            }
        }
        let embryo = flow.status.get() & Flow::EMBRYO != 0;
        self.insert(maps, &key, &flow, embryo)
    }

    fn insert(
        &mut self,
        maps: &mut Maps,
        key: &FlowKey,
        flow: &Flow,
        embryo: bool,
    ) -> Result<bool> {
        const NO_EXIST: u64 = 1;
        let words = FlowWords::from(flow);
        let written = match (key.is_v4(), embryo) {
            (true, false) => maps.flows4.insert(FlowKey4::from(key), words, NO_EXIST),
            (true, true) => maps.embryos4.insert(FlowKey4::from(key), words, NO_EXIST),
            (false, false) => maps.flows6.insert(key, words, NO_EXIST),
            (false, true) => maps.embryos6.insert(key, words, NO_EXIST),
        };
        match written {
            Ok(()) => {}
            Err(MapError::SyscallError(error))
                if matches!(
                    error.io_error.raw_os_error(),
                    Some(libc::EEXIST | libc::E2BIG | libc::ENOMEM)
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error).context("cannot write the flow table"),
        }
        self.keys.insert(*key);
        let (count, until, more) = self.hints.entry(key.hint()).or_default();
        *more |= Hint::of_kind(key.kind());
        if embryo {
            *until = (*until).max(flow.expires.get());
        } else {
            *count += 1;
        }
        Ok(true)
    }

    fn write_hints(&self, maps: &mut Maps) -> Result<()> {
        for (hash, (count, until, more)) in &self.hints {
            let old = maps.hints.get(hash, 0).context("cannot read a hint")?;
            let hint = Hint::default();
            hint.word.set((old + u64::from(*count)) | more);
            let word = hint.word.get() + hint.until(*until);
            maps.hints
                .set(*hash, word, 0)
                .context("cannot write a hint")?;
            let (place, bit) = (hash / u64::BITS, 1 << (hash % u64::BITS));
            let bits = maps.hinted.get(&place, 0).context("cannot read a hint")?;
            maps.hinted
                .set(place, bits | bit, 0)
                .context("cannot write a hint")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Address, Interface};
    use fw_common::datapath::tcp::state;

    fn side(source: &str, ports: [u16; 2], destination: &str) -> Option<Side> {
        Some(Side {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol: 6,
            source_port: ports[0],
            destination_port: ports[1],
            icmp: None,
            zone: 0,
        })
    }

    fn host() -> Host {
        Host {
            interfaces: vec![Interface {
                index: 7,
                addresses: vec![Address {
                    address: "198.51.100.10".parse().expect("an address"),
                    prefix_len: 24,
                    global: true,
                    link: false,
                    secondary: false,
                    deprecated: false,
                    tentative: false,
                }],
                ..Interface::default()
            }],
            ..Host::default()
        }
    }

    fn masqueraded() -> Entry {
        Entry {
            original: side("10.0.0.5", [40_000, 22], "203.0.113.9"),
            reply: side("203.0.113.9", [22, 40_001], "198.51.100.10"),
            status: status::CONFIRMED | status::SEEN_REPLY | status::ASSURED,
            timeout: 1000,
            tcp_state: state::ESTABLISHED,
            ..Entry::default()
        }
    }

    #[test]
    fn a_masqueraded_connection_keeps_its_port() {
        let taken = Taken::of(&masqueraded(), &host(), 5_000_000_000);
        let Ok(Some(taken)) = taken else {
            panic!("it is left");
        };
        let flow = &taken.flow;
        assert_eq!(flow.expires.get(), 1_005_000_000_000);
        assert_eq!(
            flow.status.get(),
            Flow::SNAT | Flow::SEEN_REPLY | Flow::ASSURED
        );
        assert_eq!(flow.nat_device, 7);
        assert_eq!(tcp::state_of(flow), state::ESTABLISHED);
        let alias = taken.alias.expect("it is translated");
        assert_eq!(alias.source, [0xc633_640a, 0, 0, 0]);
        assert_eq!(alias.ports, 40_001 << 16 | 22);
        assert_eq!(alias.destination, taken.tuple.destination);
    }

    #[test]
    fn a_connection_keeps_its_zone() {
        let zoned = Entry {
            zone: 5,
            ..masqueraded()
        };
        let Ok(Some(taken)) = Taken::of(&zoned, &host(), 0) else {
            panic!("it is left");
        };
        assert_eq!(taken.tuple.zone, 5);
        assert_eq!(taken.alias.expect("it is translated").zone, 5);
    }

    #[test]
    fn a_published_port_s_connection_has_all_its_names() {
        let published = Entry {
            original: side("203.0.113.9", [40_000, 8080], "198.51.100.10"),
            reply: side("10.0.0.9", [80, 40_000], "203.0.113.9"),
            ..masqueraded()
        };
        let Ok(Some(taken)) = Taken::of(&published, &host(), 0) else {
            panic!("it is left");
        };
        let bits = Flow::DNAT | Flow::FOREIGN | Flow::SEEN_REPLY | Flow::ASSURED;
        assert_eq!(taken.flow.status.get(), bits);
        let alias = taken.alias.expect("it is translated");
        assert_eq!(alias.ports, 40_000 << 16 | 80);
        assert_eq!(alias.source, taken.tuple.source);
        assert!(taken.way.is_none());
        // From the container beside.
        let hairpin = Entry {
            original: side("10.0.0.5", [40_000, 8080], "198.51.100.10"),
            reply: side("10.0.0.9", [80, 1234], "10.0.0.1"),
            ..masqueraded()
        };
        let Ok(Some(taken)) = Taken::of(&hairpin, &host(), 0) else {
            panic!("it is left");
        };
        assert_eq!(taken.flow.status.get(), bits | Flow::SNAT);
        let (alias, way) = (taken.alias.expect("a name"), taken.way.expect("another"));
        assert_eq!(
            (alias.ports, way.ports),
            (1234 << 16 | 80, 40_000 << 16 | 80)
        );
        assert_eq!(way.source, taken.tuple.source);
        assert_eq!(way.destination, alias.destination);
    }

    #[test]
    fn what_is_not_taken_over() {
        let left = |entry: &Entry| Taken::of(entry, &host(), 0).err();
        let redirected = Entry {
            reply: side("198.51.100.10", [3128, 40_000], "10.0.0.5"),
            ..masqueraded()
        };
        assert!(matches!(left(&redirected), Some(Left::Redirected)));
        let own = Entry {
            original: side("198.51.100.10", [40_000, 22], "203.0.113.9"),
            reply: side("10.0.0.9", [22, 40_000], "198.51.100.10"),
            ..masqueraded()
        };
        assert!(matches!(left(&own), Some(Left::Redirected)));
        let one_way = Side {
            zone: 5,
            ..masqueraded().original.expect("a tuple")
        };
        let one_way = Entry {
            original: Some(one_way),
            ..masqueraded()
        };
        assert!(matches!(left(&one_way), Some(Left::Other)));
        let dying = Entry {
            status: status::CONFIRMED | status::DYING,
            ..masqueraded()
        };
        assert!(matches!(Taken::of(&dying, &host(), 0), Ok(None)));
    }

    #[test]
    fn a_ping_that_nobody_answered_is_embryonic() {
        let ping = |source: &str, destination: &str, kind| {
            side(source, [0, 0], destination).map(|side| Side {
                protocol: 1,
                icmp: Some((77, kind, 0)),
                ..side
            })
        };
        let entry = Entry {
            original: ping("203.0.113.9", "198.51.100.10", 8),
            reply: ping("198.51.100.10", "203.0.113.9", 0),
            status: status::CONFIRMED,
            timeout: 30,
            ..Entry::default()
        };
        let Ok(Some(taken)) = Taken::of(&entry, &host(), 0) else {
            panic!("it is left");
        };
        assert_eq!(taken.flow.status.get(), Flow::EMBRYO);
        assert_eq!(taken.tuple.ports, 77 << 16 | 8 << 8);
        assert!(taken.alias.is_none());
    }
}
