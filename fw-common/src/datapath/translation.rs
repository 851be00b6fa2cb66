//! What a rule of the nat table makes of a packet: DNAT, SNAT, REDIRECT and NETMAP.
//!
//! A destination is translated before routing, and must be settled at once; a source is chosen when
//! the flow is stored (`datapath::nat`), from what is wished for here. The choice follows netfilter's
//! `find_best_ips_proto` and `nf_nat_l4proto_unique_tuple` (net/netfilter/nf_nat_core.c); its hash is
//! seeded when the machine starts, so that no one can tell which of several addresses it takes.

use core::ops::ControlFlow;

use super::fragment::note_destination;
use super::header::{Headers, protocol};
use super::nat::{PUSHED, Wish, is_translatable};
use super::packet::Packet;
use super::rewrite::is_piece_of_sctp;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::{Step, Tables};
use super::tcp::{self, Segment};
use super::transit::is_alive;
use super::tuple::Lookup;
use crate::abi::blob::{Translation, target};
use crate::abi::device::Device;
use crate::abi::flow::{Flow, FlowKey};
use crate::abi::stat::Stat;
use crate::abi::{Addr, ct};

/// Does what the rule says that a nat chain ended with. Its result is 0 if [`Scratch::reason`] forbids
/// the packet.
pub struct Choose;

/// Argument of [`Choose`]: POSTROUTING.
pub const SOURCE: u32 = 0;
/// PREROUTING.
pub const DESTINATION: u32 = 1;
/// OUTPUT.
pub const OUTPUT: u32 = 2;
/// INPUT.
pub const INPUT: u32 = 3;
/// No rule's: behind the chains of PREROUTING and OUTPUT, an echo request whose identifier is taken gets
/// another one.
pub const IDENTIFIER: u32 = 4;

impl Stage for Choose {
    const NAME: Name = Name::Choose;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        place: u32,
    ) -> u32 {
        if place == IDENTIFIER {
            choose_identifier(tables, scratch);
            return 1;
        }
        let Some(generation) = tables.generation(scratch.place()) else {
            return 0;
        };
        let Some(cell) = tables.cell(generation, scratch.walk.argument) else {
            return 0;
        };
        let rule = Translation(cell);
        let result = if place == INPUT {
            // Another address would have to be routed to when this host answers, which it does before
            // any program sees the answer. The source keeps it.
            if rule.flags() & Translation::ADDRESSES == 0 {
                wish_for_source(scratch, rule);
            }
            Ok(())
        } else if place == SOURCE {
            set_range(scratch, rule, SOURCE);
            if stays_on_loopback(tables, scratch) {
                let source = &scratch.headers.key.source;
                scratch.draft.wish.set_address(source);
            } else {
                wish_for_source(scratch, rule);
            }
            Ok(())
        } else {
            set_range(scratch, rule, place);
            choose_destination(tables, scratch, rule, place)
        };
        match result {
            Ok(()) => 1,
            Err(reason) => {
                scratch.reason = reason;
                0
            }
        }
    }
}

/// On loopback a source becomes no address that is not this host's: answers would be routed to where
/// that is, and are on their way there before any program sees them.
#[inline(never)]
fn stays_on_loopback<T: Tables>(tables: &T, scratch: &Scratch) -> bool {
    scratch.device.flags & Device::LOOPBACK != 0
        && !tables.is_local(scratch.headers.family, &scratch.draft.wish.address)
}

/// Which addresses the rule allows.
#[inline(never)]
fn set_range(scratch: &mut Scratch, rule: Translation<'_>, place: u32) {
    let key = &scratch.headers.key;
    let own = if place == SOURCE {
        &key.source
    } else {
        &key.destination
    };
    let wish = &mut scratch.draft.wish;
    match scratch.walk.code {
        target::NETMAP => {
            let (network, mask) = (rule.first(), rule.last());
            for word in 0..4 {
                wish.first[word] = network[word] | own[word] & !mask[word];
            }
            wish.last = wish.first;
        }
        target::REDIRECT => {
            wish.first = if place == OUTPUT {
                loopback(&scratch.headers)
            } else {
                address_of(&scratch.device, &scratch.headers)
            };
            wish.last = wish.first;
        }
        _ if rule.flags() & Translation::ADDRESSES != 0 => {
            wish.first = rule.first();
            wish.last = rule.last();
        }
        _ => {
            wish.first = *own;
            wish.last = *own;
        }
    }
    pick(wish, key.source, key.destination, rule.flags());
}

#[inline(always)]
fn loopback(headers: &Headers) -> Addr {
    if headers.is_v6() {
        [0, 0, 0, 1]
    } else {
        [0x7f00_0001, 0, 0, 0]
    }
}

/// The address that REDIRECT takes: the first one of the input interface; for a packet to a
/// link-local or a loopback address, one of that scope, of which an interface has one
/// (net/netfilter/nf_nat_redirect.c).
#[inline(always)]
fn address_of(device: &Device, headers: &Headers) -> Addr {
    if !headers.is_v6() {
        return [first_of(device.own4[0], device.masquerade4), 0, 0, 0];
    }
    let destination = headers.key.destination;
    if destination[0] >> 22 == 0xfe80 >> 6 || destination == [0, 0, 0, 1] {
        return destination;
    }
    if device.own6[0] == [0; 4] {
        device.masquerade6
    } else {
        device.own6[0]
    }
}

#[inline(always)]
fn first_of(own: u32, other: u32) -> u32 {
    if own == 0 { other } else { own }
}

/// Picks one address of the range. All packets of a client to a server get the same, and with
/// `--persistent` all of a client.
#[inline(always)]
fn pick(wish: &mut Wish, source: Addr, destination: Addr, flags: u32) {
    wish.address = wish.first;
    if wish.has_one_address() {
        return;
    }
    let mut hash = hash(&source);
    if flags & Translation::PERSISTENT == 0 {
        hash = hash.wrapping_add(mix(destination[0] ^ destination[3]));
    }
    let mut whole = false;
    for (word, own) in destination.iter().enumerate() {
        let (low, count) = if whole {
            (0, u32::MAX)
        } else {
            let low = wish.first[word];
            (low, wish.last[word].wrapping_sub(low).wrapping_add(1))
        };
        let share = (hash as u64).wrapping_mul(count as u64) >> 32;
        wish.address[word] = low.wrapping_add(share as u32);
        whole |= wish.address[word] != wish.last[word];
        if flags & Translation::PERSISTENT == 0 {
            hash ^= mix(*own);
        }
    }
}

#[inline(always)]
fn hash(address: &Addr) -> u32 {
    mix(mix(mix(mix(address[0]) ^ address[1]) ^ address[2]) ^ address[3])
}

#[inline(always)]
fn mix(word: u32) -> u32 {
    let product = ((word ^ 0x9e37_79b9) as u64).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (product >> 32) as u32
}

/// A source is not chosen before the flow is stored.
#[inline(always)]
fn wish_for_source(scratch: &mut Scratch, rule: Translation<'_>) {
    let wish = &mut scratch.draft.wish;
    wish.ports = if rule.flags() & Translation::PORTS != 0 {
        rule.ports()
    } else {
        0
    };
    wish.random = rule.flags() & Translation::RANDOM != 0;
    wish.embryo = false;
}

#[inline(always)]
fn choose_destination<T: Tables>(
    tables: &T,
    scratch: &mut Scratch,
    rule: Translation<'_>,
    place: u32,
) -> Result<(), Stat> {
    let headers = &scratch.headers;
    // A later fragment went where its first one did.
    if scratch.tracked.translates_destination() {
        scratch.tracked.ct |= ct::DNAT;
        return Ok(());
    }
    let address = scratch.draft.wish.address;
    let is_redirect = scratch.walk.code == target::REDIRECT;
    if is_redirect && address == [0; 4] {
        return Err(Stat::NoRedirectAddress);
    }
    if !is_translatable(headers) {
        return Err(Stat::Rewrite);
    }
    let moves = address != headers.key.destination;
    if place == OUTPUT
        && moves
        && (scratch.device.flags & Device::LOOPBACK == 0
            || !tables.is_local(headers.family, &address))
    {
        // The packet is routed already, and would have to go another way: it stays what it is.
        return Ok(());
    }
    let own_port = headers.flow_ports as u16;
    let mut port = own_port;
    if protocol::has_ports(headers.key.protocol as u8) && rule.flags() & Translation::PORTS != 0 {
        let lookup = &mut scratch.lookup;
        lookup.tuple.set(headers);
        lookup.tuple.destination = address;
        port = choose_port(tables, lookup, &scratch.segment, rule, own_port);
    }
    if !moves && port == own_port {
        return Ok(());
    }
    if is_piece_of_sctp(&scratch.headers) && port != own_port {
        return Err(Stat::Rewrite);
    }
    let tracked = &mut scratch.tracked;
    tracked.original.address = scratch.headers.key.destination;
    tracked.original.port = own_port;
    tracked.set_destination(&address, port);
    tracked.lacks_name = true;
    tracked.ct |= ct::DNAT;
    note_destination(tables, scratch);
    Ok(())
}

/// netfilter looks for an identifier together with the destination, with or without a rule, and takes the
/// destination for translated then; it tries the lowest first.
#[inline(always)]
fn choose_identifier<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let Scratch {
        headers,
        tracked,
        lookup,
        ..
    } = scratch;
    let own = (headers.flow_ports >> 16) as u16;
    lookup.tuple.set(headers);
    if tracked.translates_destination() {
        lookup.tuple.destination = tracked.destination.address;
    }
    let mut search = Search {
        tables,
        lookup,
        low: 0,
        count: 0x1_0000,
        offset: 0,
        port: own,
        of_source: true,
    };
    if !search.is_taken(own) {
        return;
    }
    tables.run(ATTEMPTS, &mut search);
    tracked.identifier = search.port;
    tracked.ct |= ct::DNAT | ct::RENAMED;
    if !tracked.translates_destination() {
        let (address, port) = (headers.key.destination, headers.flow_ports as u16);
        tracked.original.set(&address, port);
        tracked.set_destination(&address, port);
        tracked.lacks_name = true;
        note_destination(tables, scratch);
    }
}

/// How many ports of a range are tried (`nf_nat_l4proto_unique_tuple`).
const ATTEMPTS: u32 = 128;

#[inline(always)]
fn choose_port<T: Tables>(
    tables: &T,
    lookup: &mut Lookup,
    segment: &Segment,
    rule: Translation<'_>,
    own_port: u16,
) -> u16 {
    let (low, high) = (rule.ports() as u16, (rule.ports() >> 16) as u16);
    let flags = rule.flags();
    let keeps = flags & (Translation::OFFSET | Translation::RANDOM) == 0;
    if keeps && own_port == low && low == high {
        return low;
    }
    let count = (high as u32).wrapping_sub(low as u32).wrapping_add(1);
    let is_tcp = lookup.tuple.protocol == protocol::TCP;
    let mut search = Search {
        tables,
        lookup,
        low,
        count,
        offset: if flags & Translation::OFFSET != 0 {
            own_port.wrapping_sub(rule.base_port())
        } else if flags & Translation::RANDOM != 0 {
            tables.random() as u16
        } else {
            0
        },
        port: own_port,
        of_source: false,
    };
    if keeps && own_port >= low && own_port <= high && !search.is_taken(own_port) {
        return own_port;
    }
    let attempts = if count < ATTEMPTS { count } else { ATTEMPTS };
    let mut search = Pushing {
        search,
        pushes: is_tcp && segment.opens_anew(),
        end: segment.end,
        left: attempts,
    };
    tables.run(attempts, &mut search);
    search.search.port
}

struct Search<'a, T: Tables> {
    tables: &'a T,
    lookup: &'a mut Lookup,
    low: u16,
    count: u32,
    /// It begins anew behind 65,535, whatever the count (`off` in `nf_nat_l4proto_unique_tuple`).
    offset: u16,
    port: u16,
    /// It is the source's, and an identifier.
    of_source: bool,
}

impl<T: Tables> Step for Search<'_, T> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> ControlFlow<()> {
        if self.tries_next() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl<T: Tables> Search<'_, T> {
    /// Tries the next port; whether the search ends with it.
    #[inline(always)]
    fn tries_next(&mut self) -> bool {
        if self.count == 0 {
            return true;
        }
        let place = self.offset as u32 % self.count;
        self.offset = self.offset.wrapping_add(1);
        self.port = self.low.wrapping_add(place as u16);
        !self.is_taken(self.port)
    }

    /// Whether replies from that port would belong to another flow (`nf_nat_used_tuple`), whose name is
    /// [`Lookup::key`] then.
    #[inline(always)]
    fn is_taken(&mut self, port: u16) -> bool {
        let tuple = &mut self.lookup.tuple;
        tuple.ports = if self.of_source {
            tuple.ports & 0xffff | (port as u32) << 16
        } else {
            tuple.ports & 0xffff_0000 | port as u32
        };
        let opened = self.lookup.write_key(FlowKey::FIRST);
        if self.tables.name_is_taken(self.lookup, opened) {
            return true;
        }
        self.lookup.key.set_kind(FlowKey::SECOND);
        self.tables.name_is_taken(self.lookup, opened)
    }
}

/// Whether replies under the key that is looked up, for which `opened` is what [`Lookup::write_key`] said,
/// would belong to a flow.
#[inline(always)]
pub fn name_is_taken<T: Tables>(tables: &T, lookup: &Lookup, opened: u32) -> bool {
    let Some(flow) = tables.flow(&lookup.key) else {
        return false;
    };
    let status = flow.status.get();
    let opened_here = (status ^ opened) & Flow::LOW_OPENED == 0;
    if status & Flow::ALIAS != 0 {
        opened_here && is_alive(tables, flow)
    } else {
        status & Flow::DYING == 0 && (status & Flow::TRANSLATED == 0 || !opened_here)
    }
}

/// A search among whose last ports a connection makes way that only waits for its time to end.
struct Pushing<'a, T: Tables> {
    search: Search<'a, T>,
    /// The packet is a SYN, and its sequence numbers end there.
    pushes: bool,
    end: u32,
    /// How many ports are left to try.
    left: u32,
}

impl<T: Tables> Step for Pushing<'_, T> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> ControlFlow<()> {
        let last = self.left <= PUSHED;
        self.left = self.left.wrapping_sub(1);
        if self.search.tries_next() {
            return ControlFlow::Break(());
        }
        if last && self.pushes && push_out(self.search.tables, &self.search.lookup.key, self.end) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }
}

/// Ends the connection whose alias that is, if it makes way for one whose SYN ends there. Whoever comes upon
/// its names removes them: here is too little stack for that.
#[inline(never)]
fn push_out<T: Tables>(tables: &T, alias: &FlowKey, end: u32) -> bool {
    let Some(alias) = tables.flow(alias).filter(|alias| alias.is_alias()) else {
        return false;
    };
    let Some(flow) = tables.flow(&alias.other) else {
        return false;
    };
    let makes_way = tcp::makes_way(flow, end);
    if makes_way {
        flow.status.set(flow.status.get() | Flow::DYING);
    }
    makes_way
}
