//! Translating packets: the only code that changes them.

use super::checksum::Difference;
use super::header::{Headers, Icmp, Part, protocol};
use super::packet::Packet;
use super::quoted::{Quoted, read_quoted};
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use crate::abi::{Addr, ct};

/// Which end of a packet changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum End {
    /// The source.
    Source,
    /// The destination.
    Destination,
}

impl End {
    #[inline(always)]
    fn is_source(self) -> bool {
        self as u8 == End::Source as u8
    }

    #[inline(always)]
    fn other(self) -> Self {
        if self.is_source() {
            End::Destination
        } else {
            End::Source
        }
    }
}

/// An endpoint of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// Address.
    pub address: Addr,
    /// Port (ICMP: identifier).
    pub port: u16,
}

impl Endpoint {
    /// Becomes another endpoint. Word by word: for more at once, the compiler calls a function, whose
    /// loop the verifier goes through each time.
    #[inline(always)]
    pub fn set(&mut self, address: &Addr, port: u16) {
        let [a, b, c, d] = *address;
        self.address[0] = a;
        self.address[1] = b;
        self.address[2] = c;
        self.address[3] = d;
        self.port = port;
    }
}

/// Replaces one end of a packet; `headers` keeps up, so that rules see the new address.
#[inline(never)]
#[must_use]
pub fn rewrite<P: Packet>(
    packet: &mut P,
    headers: &mut Headers,
    end: End,
    new: &Endpoint,
) -> Option<()> {
    let old = outer_address(headers, end);
    let old_port = if end.is_source() {
        (headers.flow_ports >> 16) as u16
    } else {
        headers.flow_ports as u16
    };
    if is_piece_of_sctp(headers) && old_port != new.port {
        return None;
    }
    replace_address(packet, headers, end, &new.address)?;
    if headers.part as u8 == Part::Later as u8 {
        // The transport header is in the first fragment, and was changed there.
        match headers.key.protocol as u8 {
            protocol::TCP | protocol::UDP => set_port(headers, end, new.port),
            _ if has_identifier(headers, end) => set_flow_port(headers, end, new.port),
            _ => {}
        }
        return Some(());
    }
    let (l4, v6) = (headers.l4 as u32, headers.is_v6());
    let addresses = Difference::default().address(&old, &new.address);
    let ports = Difference::default().half(old_port, new.port);
    let port_at = if end.is_source() { l4 } else { l4 + 2 };
    match headers.key.protocol as u8 {
        protocol::TCP => {
            packet.replace_l4_sum(l4 + 16, addresses.sum(), true, false, v6)?;
            packet.replace_l4_sum(l4 + 16, ports.sum(), false, false, v6)?;
            packet.store(port_at, new.port.to_be_bytes())?;
            set_port(headers, end, new.port);
        }
        protocol::UDP => {
            packet.replace_l4_sum(l4 + 6, addresses.sum(), true, true, v6)?;
            packet.replace_l4_sum(l4 + 6, ports.sum(), false, true, v6)?;
            packet.store(port_at, new.port.to_be_bytes())?;
            set_port(headers, end, new.port);
        }
        // Its checksum covers no addresses (RFC 9260 6.8).
        protocol::SCTP if old_port != new.port => {
            let change = first_word(end, old_port, new.port);
            packet.replace_crc(l4 + 8, change, headers.l4_len as u32)?;
            packet.store(port_at, new.port.to_be_bytes())?;
            set_port(headers, end, new.port);
        }
        protocol::ICMP if !v6 && has_identifier(headers, end) => {
            packet.replace_l4_sum(l4 + 2, ports.sum(), false, false, v6)?;
            packet.store(l4 + 4, new.port.to_be_bytes())?;
            set_flow_port(headers, end, new.port);
        }
        protocol::ICMPV6 if v6 => {
            // Unlike ICMP's, its checksum covers the addresses (RFC 4443 2.3).
            packet.replace_l4_sum(l4 + 2, addresses.sum(), true, false, v6)?;
            if has_identifier(headers, end) {
                packet.replace_l4_sum(l4 + 2, ports.sum(), false, false, v6)?;
                packet.store(l4 + 4, new.port.to_be_bytes())?;
                set_flow_port(headers, end, new.port);
            }
        }
        _ => {}
    }
    Some(())
}

/// Whether the packet is a fragment of SCTP: how its checksum changes with a port depends on how long the
/// whole packet is.
#[inline(always)]
pub(super) fn is_piece_of_sctp(headers: &Headers) -> bool {
    headers.key.protocol as u8 == protocol::SCTP && headers.part as u8 != Part::Whole as u8
}

/// What a port changes in SCTP's first word, for [`Packet::replace_crc`].
#[inline(always)]
fn first_word(end: End, old: u16, new: u16) -> u32 {
    let change = (old ^ new).swap_bytes() as u32;
    if end.is_source() {
        change
    } else {
        change << 16
    }
}

/// In place of an offset: the port stays, only the checksum changes.
const KEEP: u32 = u32::MAX;

/// Translates an ICMP error: the outer header at `end`, and the quoted packet, which went the
/// other way, at its other end (RFC 5508 4, `nf_nat_icmp_reply_translation`).
#[inline(never)]
#[must_use]
pub fn rewrite_error<P: Packet>(
    packet: &mut P,
    headers: &mut Headers,
    quoted: &Quoted,
    end: End,
    new: &Endpoint,
) -> Option<()> {
    let v6 = headers.is_v6();
    let outer_old = outer_address(headers, end);
    let outer_new = if quoted.keeps_sender {
        outer_old
    } else {
        new.address
    };
    replace_address(packet, headers, end, &outer_new)?;

    let inner_end = end.other();
    let inner_l3 = quoted.l3 as u32;
    let inner_l4 = quoted.l4 as u32;
    let (inner_old, old_port) = if inner_end.is_source() {
        (quoted.tuple.source, (quoted.tuple.ports >> 16) as u16)
    } else {
        (quoted.tuple.destination, quoted.tuple.ports as u16)
    };
    let addresses = Difference::default().address(&inner_old, &new.address);
    // What the outer checksum has to make up for. The quoted IPv4 header changes by an address and
    // by its own checksum, which cancel out.
    let mut outer = Difference::default();
    if v6 {
        outer = outer.and(addresses);
    } else {
        let sum: [u8; 2] = packet.load(inner_l3 + 10)?;
        packet.store(inner_l3 + 10, addresses.apply(sum))?;
    }
    store_address(packet, headers, inner_l3, inner_end, &new.address)?;

    let ports = Difference::default().half(old_port, new.port);
    let port_at = match quoted.tuple.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP if inner_end.is_source() => inner_l4,
        protocol::TCP | protocol::UDP | protocol::SCTP => inner_l4 + 2,
        protocol::ICMP if !v6 && quoted.is_request == inner_end.is_source() => inner_l4 + 4,
        protocol::ICMPV6 if v6 && quoted.is_request == inner_end.is_source() => inner_l4 + 4,
        // ICMPv6's checksum covers the addresses all the same.
        protocol::ICMPV6 if v6 => KEEP,
        _ => 0,
    };
    if port_at != 0 {
        let mut ports = ports;
        if port_at == KEEP {
            ports = Difference::default();
        } else {
            packet.store(port_at, new.port.to_be_bytes())?;
        }
        outer = outer.and(ports);
        // The quoted transport checksum, where the quotation reaches that far.
        let ends = headers.l4 as u32 + headers.l4_len as u32;
        if quoted.tuple.protocol == protocol::SCTP {
            let sum_at = inner_l4 + 8;
            if old_port != new.port && sum_at + 4 <= ends {
                let change = first_word(inner_end, old_port, new.port);
                let old: [u8; 4] = packet.load(sum_at)?;
                packet.replace_crc(sum_at, change, quoted.l4_len as u32)?;
                let updated: [u8; 4] = packet.load(sum_at)?;
                outer = outer.word(u32::from_be_bytes(old), u32::from_be_bytes(updated));
            }
        } else {
            let (sum_at, covered) = match quoted.tuple.protocol {
                protocol::TCP => (inner_l4 + 16, addresses.and(ports)),
                protocol::UDP => (inner_l4 + 6, addresses.and(ports)),
                protocol::ICMP => (inner_l4 + 2, ports),
                _ => (inner_l4 + 2, addresses.and(ports)),
            };
            let whole = quoted.tuple.protocol != protocol::TCP || inner_l4 + 20 <= ends;
            if whole && sum_at + 2 <= ends {
                let old: [u8; 2] = packet.load(sum_at)?;
                if quoted.tuple.protocol != protocol::UDP || old != [0, 0] {
                    let mut updated = covered.apply(old);
                    if quoted.tuple.protocol == protocol::UDP && updated == [0, 0] {
                        updated = [0xff, 0xff];
                    }
                    packet.store(sum_at, updated)?;
                    outer = outer.half(u16::from_be_bytes(old), u16::from_be_bytes(updated));
                }
            }
        }
    }
    let sum_at = headers.l4 as u32 + 2;
    if v6 {
        let pseudo = Difference::default().address(&outer_old, &outer_new);
        packet.replace_l4_sum(sum_at, pseudo.sum(), true, false, v6)?;
    }
    packet.replace_l4_sum(sum_at, outer.sum(), false, false, v6)
}

/// Whether the identifier of an ICMP query is what stands for a port at this end: it is the asking
/// one's.
#[inline(always)]
fn has_identifier(headers: &Headers, end: End) -> bool {
    if end.is_source() {
        headers.icmp as u8 == Icmp::Request as u8
    } else {
        headers.icmp as u8 == Icmp::Reply as u8
    }
}

#[inline(always)]
fn outer_address(headers: &Headers, end: End) -> Addr {
    if end.is_source() {
        headers.key.source
    } else {
        headers.key.destination
    }
}

#[inline(always)]
fn replace_address<P: Packet>(
    packet: &mut P,
    headers: &mut Headers,
    end: End,
    new: &Addr,
) -> Option<()> {
    let l3 = headers.l3 as u32;
    if !headers.is_v6() {
        let old = outer_address(headers, end);
        packet.replace_l3_sum(l3 + 10, old[0].to_be(), new[0].to_be())?;
    }
    store_address(packet, headers, l3, end, new)?;
    if end.is_source() {
        headers.key.source = *new;
    } else {
        headers.key.destination = *new;
    }
    Some(())
}

#[inline(always)]
fn store_address<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    l3: u32,
    end: End,
    new: &Addr,
) -> Option<()> {
    if headers.is_v6() {
        let at = l3 + if end.is_source() { 8 } else { 24 };
        packet.store(at, new[0].to_be_bytes())?;
        packet.store(at + 4, new[1].to_be_bytes())?;
        packet.store(at + 8, new[2].to_be_bytes())?;
        packet.store(at + 12, new[3].to_be_bytes())
    } else {
        let at = l3 + if end.is_source() { 12 } else { 16 };
        packet.store(at, new[0].to_be_bytes())
    }
}

#[inline(always)]
fn set_port(headers: &mut Headers, end: End, port: u16) {
    set_flow_port(headers, end, port);
    headers.key.ports = headers.flow_ports;
}

#[inline(always)]
fn set_flow_port(headers: &mut Headers, end: End, port: u16) {
    headers.flow_ports = if end.is_source() {
        headers.flow_ports & 0xffff | (port as u32) << 16
    } else {
        headers.flow_ports & 0xffff_0000 | port as u32
    };
}

/// Gives a packet, or an ICMP error about one, the endpoint that tracking found for it.
#[inline(always)]
pub(super) fn translate<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    end: End,
) -> Option<()> {
    (packet.call::<Translate, T>(tables, scratch, end as u32) != 0).then_some(())
}

/// The stage of [`translate`].
pub struct Translate;

impl Stage for Translate {
    const NAME: Name = Name::Translate;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        end: u32,
    ) -> u32 {
        let end = if end == End::Source as u32 {
            End::Source
        } else {
            End::Destination
        };
        let endpoint = if end as u8 == End::Source as u8 {
            &scratch.tracked.source
        } else {
            &scratch.tracked.destination
        };
        if !scratch.tracked.error {
            return rewrite(packet, &mut scratch.headers, end, endpoint).is_some() as u32;
        }
        if !read_quoted(packet, tables, &scratch.headers, &mut scratch.quoted) {
            return 0;
        }
        // netfilter takes the source of such an echo for untranslated.
        scratch.quoted.keeps_sender = end as u8 == End::Source as u8
            && scratch.tracked.ct & ct::RENAMED != 0
            && scratch.tracked.direction == 0;
        rewrite_error(packet, &mut scratch.headers, &scratch.quoted, end, endpoint).is_some() as u32
    }
}

/// Whether a redirect is about a translated flow, or one that may yet be: it would have its receiver
/// take a shortcut that leads nowhere (`nf_nat_icmp_reply_translation` and its like for IPv6,
/// net/netfilter/nf_nat_proto.c).
#[inline(always)]
pub(super) fn is_refused_redirect(scratch: &Scratch) -> bool {
    let (headers, tracked) = (&scratch.headers, &scratch.tracked);
    headers.icmp as u8 == Icmp::Error as u8
        && headers.is_redirect()
        && tracked.ct & (ct::SNAT | ct::DNAT) | tracked.unsettled as u8 != 0
        && scratch.has_nat()
}
