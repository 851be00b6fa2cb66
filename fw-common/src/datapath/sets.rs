//! The match `set`: whether a packet's addresses and ports are in a set.
//!
//! Which port a packet has is `get_port`'s answer (net/netfilter/ipset/ip_set_getport.c), the order
//! of look-ups and what `nomatch` does are `mtype_test_cidrs`'s (ip_set_hash_gen.h there) and
//! `ip_set_test`'s (ip_set_core.c).

use core::ops::ControlFlow;

use super::header::{Headers, Part, protocol};
use super::scratch::Scratch;
use super::tables::{Step, Tables};
use crate::abi::Addr;
use crate::abi::blob::{Cell, set_change};
use crate::abi::set::{LENGTHS, MASKS, NO_LENGTH, SetEntry, SetKey, TOP, shape};

/// The set that a rule asks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Question {
    place: u32,
    shape: u32,
    addresses: [Addr; 2],
    /// The lengths looked at now.
    lengths: [u8; 2],
    key: SetKey,
    entry: SetEntry,
    answer: u32,
}

/// No element contains the packet.
const ABSENT: u32 = 0;
/// An element does.
const PRESENT: u32 = 1;
/// One that says `nomatch` does.
const EXCEPTED: u32 = 2;

/// Look-ups that may be needed: one for each pair of lengths, and one turn more for each first one.
const TURNS: u32 = 130 * 130;

/// Whether the packet is in a set, for a rule that asks so.
#[inline(always)]
pub fn in_set<T: Tables>(tables: &T, scratch: &mut Scratch, place: u32, bits: u32) -> bool {
    let question = &mut scratch.question;
    question.place = place;
    question.shape = bits;
    question.answer = ABSENT;
    if bits & shape::NEVER != 0 || !question.ask(&scratch.headers) {
        return false;
    }
    if let Some(info) = tables.set_info(place) {
        question.lengths = [info.next[0][TOP as usize], TOP];
        tables.run(TURNS, &mut Probe { tables, scratch });
    }
    let wanted = if bits & shape::RETURN_NOMATCH != 0 {
        EXCEPTED
    } else {
        PRESENT
    };
    scratch.question.answer == wanted
}

impl Question {
    /// Takes what the set is asked about; false if the packet has nothing of the kind.
    #[inline(always)]
    pub fn ask(&mut self, headers: &Headers) -> bool {
        let bits = self.shape;
        let key = &headers.key;
        self.key.port = 0;
        self.key.protocol = 0;
        self.addresses = [[0; 4]; 2];
        if bits & shape::FIRST != 0 {
            self.addresses[0] = side(headers, bits & shape::FIRST_SOURCE != 0);
        }
        if bits & shape::SECOND != 0 {
            self.addresses[1] = side(headers, bits & shape::SECOND_SOURCE != 0);
        }
        if bits & shape::PORT == 0 {
            return true;
        }
        let number = key.protocol as u8;
        let port = if bits & shape::PORT_SOURCE != 0 {
            key.ports >> 16
        } else {
            key.ports
        };
        let port = match number {
            protocol::TCP | protocol::UDP => port,
            _ if bits & shape::ANY_TRANSPORT != 0 => return false,
            protocol::SCTP | protocol::UDPLITE => port,
            protocol::ICMP | protocol::ICMPV6 => key.ports >> 8 & 0xff00 | key.ports & 0xff,
            _ => 0,
        };
        self.key.port = port as u16;
        if bits & shape::ANY_TRANSPORT == 0 {
            self.key.protocol = number;
        }
        true
    }
}

/// The target SET: adds an element that contains the packet, and deletes one. Like `mtype_add` and
/// `mtype_del` of sets without prefixes (ip_set_hash_gen.h, ip_set_bitmap_gen.h).
///
/// netfilter sees a datagram whole: what the first fragment does is not done again.
#[inline(always)]
pub fn change_sets<T: Tables>(tables: &T, scratch: &mut Scratch, cell: &Cell) {
    if scratch.headers.part as u8 == Part::Later as u8 {
        return;
    }
    let change = cell.w[0];
    if change & set_change::ADD != 0 && scratch.name_element(tables, cell.w[2], cell.w[4]) {
        let question = &mut scratch.question;
        let now = tables.now();
        let known = match tables.set_entry(question.place, &question.key) {
            Some(entry) => !entry.is_over(now),
            None => false,
        };
        let number = if question.shape & shape::FIRST != 0 {
            question.addresses[0][0]
        } else {
            question.key.port as u32
        };
        let within = number >= cell.w[8] && number <= cell.w[10];
        let wanted = within && (!known || change & set_change::EXIST != 0);
        if wanted && let Some(info) = tables.set_info(question.place) {
            question.entry = info.entry(change & set_change::TIMEOUT != 0, cell.w[6], now);
            tables.put_set_entry(question.place, &question.key, &question.entry);
        }
    }
    if change & set_change::DELETE != 0 && scratch.name_element(tables, cell.w[12], cell.w[14]) {
        let question = &scratch.question;
        tables.remove_set_entry(question.place, &question.key);
    }
}

impl Scratch {
    /// Writes the key of the element that contains the packet, in a set without prefixes. False if
    /// there can be none.
    #[inline(always)]
    fn name_element<T: Tables>(&mut self, tables: &T, place: u32, bits: u32) -> bool {
        let question = &mut self.question;
        question.place = place;
        question.shape = bits;
        if bits & shape::NEVER != 0 || !question.ask(&self.headers) {
            return false;
        }
        let Some(info) = tables.set_info(place) else {
            return false;
        };
        let (first, second) = (info.next[0][TOP as usize], info.next[1][TOP as usize]);
        if first as usize >= MASKS.len() || second as usize >= MASKS.len() {
            return false;
        }
        under(
            &mut question.key.first,
            &question.addresses[0],
            &MASKS[first as usize],
        );
        under(
            &mut question.key.second,
            &question.addresses[1],
            &MASKS[second as usize],
        );
        question.key.first_length = first;
        question.key.second_length = second;
        let is_null = question.key.first == [0; 4];
        !(is_null && bits & shape::NOT_NULL != 0)
    }
}

#[inline(always)]
fn side(headers: &Headers, source: bool) -> Addr {
    if source {
        headers.key.source
    } else {
        headers.key.destination
    }
}

struct Probe<'a, T: Tables> {
    tables: &'a T,
    scratch: &'a mut Scratch,
}

impl<T: Tables> Step for Probe<'_, T> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let question = &mut self.scratch.question;
        let Some(info) = self.tables.set_info(question.place) else {
            return ControlFlow::Break(());
        };
        let [first, second] = question.lengths;
        if first as usize >= MASKS.len() || second as usize >= LENGTHS {
            return ControlFlow::Break(());
        }
        let second = info.next[1][second as usize];
        if second == NO_LENGTH {
            question.lengths = [info.next[0][first as usize], TOP];
            return ControlFlow::Continue(());
        }
        question.lengths[1] = second;
        if second as usize >= MASKS.len() {
            return ControlFlow::Break(());
        }
        under(
            &mut question.key.first,
            &question.addresses[0],
            &MASKS[first as usize],
        );
        under(
            &mut question.key.second,
            &question.addresses[1],
            &MASKS[second as usize],
        );
        question.key.first_length = first;
        question.key.second_length = second;
        let Some(entry) = self.tables.set_entry(question.place, &question.key) else {
            return ControlFlow::Continue(());
        };
        if entry.is_over(self.tables.now()) {
            return ControlFlow::Continue(());
        }
        question.answer = if entry.flags & SetEntry::NOMATCH != 0 {
            EXCEPTED
        } else {
            PRESENT
        };
        ControlFlow::Break(())
    }
}

#[inline(always)]
fn under(to: &mut Addr, address: &Addr, mask: &Addr) {
    to[0] = address[0] & mask[0];
    to[1] = address[1] & mask[1];
    to[2] = address[2] & mask[2];
    to[3] = address[3] & mask[3];
}
