//! What rules may ask besides addresses, ports and states: lengths, marks, owners, options, the time.
//!
//! [`Headers`](super::header::Headers) does not have it, and most policies do not ask. So it is
//! gathered once at a hook, and only what the policy asks for at all
//! ([`HeaderFields::FACTS`] and its siblings); rules then find it in the scratch space. None of it is
//! a property of the packet's flow, so that an answer that depends on it is never cached.

use core::ops::ControlFlow;

use super::connection;
use super::fragment::link_key;
use super::header::{Part, protocol};
use super::packet::Packet;
use super::reverse_path;
use super::routing;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::{Step, Tables};
use crate::abi::Addr;
use crate::abi::Family;
use crate::abi::blob::{HEADER, Header, HeaderFields, Predicate, condition, fact, time};
use crate::abi::device::Device;
use crate::abi::flow::Fragment;

/// What is known of a packet.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Facts {
    /// By [`fact`].
    pub values: [u32; fact::COUNT],
    /// Which of them the packet has, a bit each.
    pub known: u32,
    /// Whether its sender's link-layer address is known.
    pub has_link: u32,
    /// That address, four bytes and two.
    pub link: [u32; 2],
    /// Whether LOG may tell who sends: user and group are known, and the socket is no mere request.
    pub owner_is_told: u32,
    /// 1 if the packet leaves this host, is of its own, and belongs to no socket.
    pub has_no_socket: u32,
    /// The kinds of TCP options that it has, a bit each.
    options: [u32; 8],
    /// Where the options' walk is, and where it ends.
    at: u32,
    end: u32,
    /// Seconds since 1970.
    now: u64,
    minutes_west: i64,
}

impl Facts {
    /// Notes that TCP has an option now.
    #[inline(always)]
    pub fn note_option(&mut self, kind: u8) {
        self.options[kind as usize >> 5] |= 1 << (kind & 31);
    }

    /// Notes a fact.
    #[inline(always)]
    pub fn set(&mut self, number: u32, value: u32) {
        self.values[number as usize & (fact::COUNT - 1)] = value;
        self.known |= 1 << (number & 31);
    }
}

/// Gathers what the policy asks for; nothing, and that at once, if it asks for nothing.
#[inline(always)]
pub fn gather<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, side: u32) {
    if scratch.features & HeaderFields::FACTS != 0 {
        packet.call::<Gather, T>(tables, scratch, side);
    }
}

/// The destination has been translated: what depends on it is gathered anew.
#[inline(always)]
pub fn gather_anew<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch) {
    if scratch.features & HeaderFields::ADDRESS_KINDS != 0 {
        packet.call::<Gather, T>(tables, scratch, TRANSLATED);
    }
    connection::redirected(scratch);
}

/// Argument of [`gather`]: the frame is as it arrived.
pub const ARRIVING: u32 = 1;
/// The frame is about to leave.
pub const LEAVING: u32 = 0;
/// Only the kinds of addresses are asked for.
const TRANSLATED: u32 = 2;

/// The stage of [`gather`].
pub struct Gather;

impl Stage for Gather {
    const NAME: Name = Name::Gather;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        side: u32,
    ) -> u32 {
        let features = scratch.features;
        if features & HeaderFields::ADDRESS_KINDS != 0 {
            read_kinds(tables, scratch);
        }
        if side == TRANSLATED {
            return 0;
        }
        let (headers, facts) = (&scratch.headers, &mut scratch.facts);
        facts.known &= KINDS;
        facts.has_link = 0;
        facts.owner_is_told = 0;
        facts.has_no_socket = 0;
        facts.set(fact::LENGTH, headers.bytes);
        facts.set(fact::TOS, headers.tos as u32);
        let hops = headers.l3 as u32 + if headers.is_v6() { 7 } else { 8 };
        if let Some([hops]) = packet.load::<1>(hops) {
            facts.set(fact::HOPS, hops as u32);
        }
        facts.set(fact::MARK, packet.mark());
        facts.set(fact::PACKET_TYPE, packet.packet_type());
        facts.set(fact::CPU, tables.cpu());
        if side == LEAVING && scratch.made_here {
            // Resets of REJECT have none, errors one of the kernel's.
            let has_socket = if scratch.answer.in_hand {
                scratch.headers.key.protocol as u8 != protocol::TCP
            } else {
                packet.has_socket()
            };
            facts.has_no_socket = !has_socket as u32;
        }
        if side == ARRIVING {
            read_link(packet, scratch);
            if features & HeaderFields::REVERSE_PATHS != 0 {
                reverse_path::read(packet, tables, scratch);
            }
        } else if !scratch.made_here && features & HeaderFields::LINKS != 0 {
            recall_link(tables, scratch, packet.arrival_device());
        }
        if features & HeaderFields::OWNER != 0 && side == LEAVING && scratch.made_here {
            if scratch.answer.in_hand {
                scratch.owner.exists = scratch.facts.has_no_socket == 0;
                scratch.owner.known = false;
            } else {
                packet.owner(&mut scratch.owner);
            }
            note_owner(scratch);
        }
        if features & HeaderFields::TRANSPORT != 0
            && scratch.headers.part as u8 != Part::Later as u8
        {
            read_transport(packet, tables, scratch);
        }
        if features & HeaderFields::ROUTING != 0 {
            routing::read(packet, tables, scratch);
        }
        if features & HeaderFields::CLOCK != 0 {
            read_clock(tables, scratch);
        }
        0
    }
}

/// Notes who sends.
#[inline(always)]
fn note_owner(scratch: &mut Scratch) {
    if !scratch.owner.exists {
        return;
    }
    let kernels = is_the_kernels(scratch.owner.raw, scratch);
    let (owner, facts) = (&scratch.owner, &mut scratch.facts);
    facts.set(fact::SOCKET, 1);
    if owner.known && (owner.certain || !kernels) {
        facts.set(fact::USER, owner.user);
        if owner.certain {
            facts.set(fact::GROUP, owner.group);
            facts.owner_is_told = owner.full as u32;
        }
    }
}

/// The facts that [`read_kinds`] finds; known or not is the same for all packets of a policy.
const KINDS: u32 = 1 << fact::SOURCE_KIND | 1 << fact::DESTINATION_KIND;

/// Of what kinds the addresses are.
#[inline(never)]
fn read_kinds<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let (key, facts) = (&scratch.headers.key, &mut scratch.facts);
    let source = kinds(tables, scratch.headers.family, &key.source);
    facts.set(fact::SOURCE_KIND, source);
    let destination = kinds(tables, scratch.headers.family, &key.destination);
    facts.set(fact::DESTINATION_KIND, destination);
}

/// The kinds of an address, a bit each. An IPv4 address has one (`__inet_dev_addr_type`,
/// net/ipv4/fib_frontend.c). An IPv6 address is unicast unless it is something else
/// (`__ipv6_addr_type`, net/ipv6/addrconf_core.c), and besides what the way to it is
/// (`match_lookup_rt6`, net/netfilter/xt_addrtype.c).
#[inline(never)]
fn kinds<T: Tables>(tables: &T, family: Family, address: &Addr) -> u32 {
    use crate::abi::device::address_kind::{BROADCAST, MULTICAST, UNICAST, UNSPECIFIED};
    const MAPPED: u32 = 0xffff;
    let [a, b, c, d] = *address;
    if family as u8 == Family::V4 as u8 {
        if a == 0 || a == u32::MAX {
            return 1 << BROADCAST;
        }
        if a >> 28 == 0xe {
            return 1 << MULTICAST;
        }
        return match tables.local_kind(family, address) {
            0 => 1 << UNICAST,
            kind => 1 << (kind & 7),
        };
    }
    if a >> 24 == 0xff {
        return 1 << MULTICAST;
    }
    if a | b | c | d == 0 {
        return 1 << UNSPECIFIED;
    }
    let general = if a | b == 0 && c == MAPPED {
        0
    } else {
        1 << UNICAST
    };
    match tables.local_kind(family, address) {
        0 => general,
        kind => general | 1 << (kind & 7),
    }
}

/// Whether a packet of a raw socket is one that the kernel sends by itself: its own sockets for
/// resets and ICMP are raw ones without an owner (`inet_ctl_sock_create`, net/ipv4/af_inet.c). What
/// users send by raw sockets of these protocols are requests, as ping's.
#[inline(always)]
fn is_the_kernels(raw: bool, scratch: &Scratch) -> bool {
    use super::header::Icmp;
    let headers = &scratch.headers;
    raw && match headers.key.protocol as u8 {
        protocol::TCP => true,
        protocol::ICMP | protocol::ICMPV6 => headers.icmp as u8 != Icmp::Request as u8,
        _ => false,
    }
}

/// Whether the kernel sends a packet by a socket of its own.
#[inline(always)]
pub(super) fn is_sent_by_the_kernel<P: Packet>(packet: &P, scratch: &mut Scratch) -> bool {
    packet.owner(&mut scratch.owner);
    is_the_kernels(scratch.owner.raw, scratch)
}

/// The sender's link-layer address, on Ethernet (`mac_mt`, net/netfilter/xt_mac.c).
#[inline(never)]
fn read_link<P: Packet>(packet: &P, scratch: &mut Scratch) {
    const ETHERNET: u32 = 14;
    let device = &scratch.device;
    if device.l2_len != ETHERNET || device.flags & Device::LOOPBACK != 0 {
        return;
    }
    if let Some([a, b, c, d, e, f]) = packet.load::<6>(6) {
        let facts = &mut scratch.facts;
        facts.link[0] = u32::from_be_bytes([a, b, c, d]);
        facts.link[1] = u32::from_be_bytes([0, 0, e, f]);
        facts.has_link = 1;
    }
}

/// Notes the sender's link-layer address for FORWARD, where the frame has another already. It is
/// noted by the sender's IP address and the interface: of two hosts that send under one address at
/// the same moment, one may be taken for the other.
#[inline(never)]
pub fn keep_link<T: Tables>(tables: &T, scratch: &Scratch, device: u32) {
    let facts = &scratch.facts;
    if facts.has_link == 0 {
        return;
    }
    let key = link_key(&scratch.headers, device);
    if let Some(known) = tables.fragment(&key)
        && known.ports == facts.link[0]
        && known.flow_ports == facts.link[1]
    {
        return;
    }
    let note = Fragment {
        ports: facts.link[0],
        flow_ports: facts.link[1],
        ..Fragment::default()
    };
    tables.insert_fragment(&key, &note);
}

#[inline(never)]
fn recall_link<T: Tables>(tables: &T, scratch: &mut Scratch, device: u32) {
    if let Some(note) = tables.fragment(&link_key(&scratch.headers, device)) {
        scratch.facts.link = [note.ports, note.flow_ports];
        scratch.facts.has_link = 1;
    }
}

#[inline(never)]
fn read_transport<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) {
    const ESP: u8 = 50;
    const AH: u8 = 51;
    let (headers, facts) = (&scratch.headers, &mut scratch.facts);
    let l4 = headers.l4 as u32;
    match headers.key.protocol as u8 {
        protocol::TCP => {
            facts.options = [0; 8];
            let Some([offset]) = packet.load::<1>(l4 + 12) else {
                return;
            };
            facts.at = l4 + 20;
            facts.end = l4 + (offset >> 4) as u32 * 4;
            // As many as there is room for between the header and its longest end.
            tables.run(40, &mut Options { packet, facts });
        }
        protocol::DCCP => {
            if let Some([kind]) = packet.load::<1>(l4 + 8) {
                facts.set(fact::DCCP, 1 << (kind >> 1 & 15));
            }
        }
        ESP => {
            if let Some(spi) = packet.load::<4>(l4) {
                facts.set(fact::SPI, u32::from_be_bytes(spi));
            }
        }
        AH => {
            if let Some(spi) = packet.load::<4>(l4 + 4) {
                facts.set(fact::SPI, u32::from_be_bytes(spi));
            }
        }
        _ => {}
    }
}

/// Walks over TCP's options as `tcp_find_option` and `tcpmss_mt` do (net/netfilter/xt_tcpudp.c,
/// xt_tcpmss.c): what is below 2 is one byte, and a length of zero counts as one.
struct Options<'a, P> {
    packet: &'a P,
    facts: &'a mut Facts,
}

impl<P: Packet> Step for Options<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        const MSS: u8 = 2;
        let at = self.facts.at & 0x3fff;
        if at >= self.facts.end {
            return ControlFlow::Break(());
        }
        let Some([kind]) = self.packet.load::<1>(at) else {
            return ControlFlow::Break(());
        };
        self.facts.options[kind as usize >> 5] |= 1 << (kind & 31);
        let mut length = 1;
        if kind >= 2 {
            if let Some([written]) = self.packet.load::<1>(at + 1)
                && written != 0
            {
                length = written as u32;
            }
            if kind == MSS
                && length == 4
                && self.facts.end.wrapping_sub(at) >= 4
                && self.facts.known & 1 << fact::SEGMENT == 0
                && let Some(size) = self.packet.load::<2>(at + 2)
            {
                self.facts
                    .set(fact::SEGMENT, u16::from_be_bytes(size) as u32);
            }
        }
        self.facts.at = at + length;
        ControlFlow::Continue(())
    }
}

#[inline(never)]
fn read_clock<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let Some(generation) = tables.generation(scratch.place()) else {
        return;
    };
    let Some(header) = tables.cell(generation, HEADER) else {
        return;
    };
    let header = Header(header);
    let seconds = tables.tai() / 1_000_000_000;
    scratch.facts.now = seconds.wrapping_sub(header.tai_offset() as i64 as u64);
    scratch.facts.minutes_west = header.minutes_west() as i64;
}

/// Whether a predicate about facts holds, its `not` included.
#[inline(always)]
pub fn holds(predicate: Predicate<'_>, scratch: &Scratch) -> bool {
    let w = &predicate.0.w;
    let facts = &scratch.facts;
    match predicate.kind() {
        condition::FACT => {
            let number = w[1] & (fact::COUNT as u32 - 1);
            if facts.known >> number & 1 == 0 {
                return w[5] != 0;
            }
            let value = facts.values[number as usize] & w[2];
            (value >= w[3] && value <= w[4]) != predicate.not()
        }
        condition::LINK_SOURCE => {
            let same = (facts.link[0] ^ w[1]) | (facts.link[1] ^ w[2]) == 0;
            facts.has_link != 0 && same != predicate.not()
        }
        condition::TCP_OPTION => {
            let kind = w[1] & 0xff;
            (facts.options[kind as usize >> 5] >> (kind & 31) & 1 != 0) != predicate.not()
        }
        condition::TIME => is_time(w, facts) != predicate.not(),
        _ => false,
    }
}

/// As `time_mt` finds it (net/netfilter/xt_time.c).
#[inline(never)]
fn is_time(w: &[u32; 16], facts: &Facts) -> bool {
    const DAY: u64 = 86_400;
    const ALL_MONTHDAYS: u32 = 0xffff_fffe;
    let mut now = facts.now;
    if w[1] & time::LOCAL != 0 {
        now = now.wrapping_sub((60 * facts.minutes_west) as u64);
    }
    if now < w[2] as u64 || now > w[3] as u64 {
        return false;
    }
    let (start, stop) = (w[4], w[5]);
    let second = (now % DAY) as u32;
    if start < stop {
        if second < start || second > stop {
            return false;
        }
    } else {
        if second < start && second > stop {
            return false;
        }
        if w[1] & time::CONTIGUOUS != 0 && second <= stop {
            now = now.wrapping_sub(DAY);
        }
    }
    let days = now / DAY;
    // 1970 began with a Thursday.
    let weekday = (days + 3) % 7 + 1;
    if w[6] >> weekday & 1 == 0 {
        return false;
    }
    w[7] == ALL_MONTHDAYS || w[7] >> monthday(days) & 1 != 0
}

/// The day of the month, from 1, of a day since 1970. Years are taken to begin in March, so that
/// leap days come last; months then have 31 and 30 days by turns, as `5 * day + 2` over 153 counts
/// them (H. Hinnant, chrono-compatible low-level date algorithms, `civil_from_days`).
#[inline(always)]
fn monthday(days: u64) -> u64 {
    const ERA: u64 = 146_097;
    let of_era = (days + 719_468) % ERA;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / (ERA - 1)) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    of_year - (153 * month + 2) / 5 + 1
}

#[cfg(test)]
mod tests {
    use super::monthday;

    #[test]
    fn days_of_the_month_are_the_calendar_s() {
        let lengths = |leap: bool| {
            [
                31,
                28 + u64::from(leap),
                31,
                30,
                31,
                30,
                31,
                31,
                30,
                31,
                30,
                31,
            ]
        };
        let mut day = 0;
        for year in 1970..2107u64 {
            let leap =
                year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
            for length in lengths(leap) {
                for expected in 1..=length {
                    assert_eq!(monthday(day), expected, "day {day}, {year}");
                    day += 1;
                }
            }
        }
    }
}
