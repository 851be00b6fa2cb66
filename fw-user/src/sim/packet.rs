//! A packet in a byte vector.

use std::sync::Arc;

use fw_common::abi::event::Event;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::crc32c;
use fw_common::datapath::packet::{
    Destination, Owner, Packet, Route, SUM_AS_IT_WAS, SUM_BROKEN, SUM_FINISHED, Way,
};
use fw_common::datapath::reject::WayBack;
use ipnet::IpNet;

use crate::addr;

/// A frame, and what the kernel would know about it besides its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePacket {
    /// The frame.
    pub bytes: Vec<u8>,
    /// EtherType.
    pub ethertype: u16,
    /// The interface that the hook is on.
    pub device: u32,
    /// The interface that the packet came in by; 0 if it was made on this host.
    pub arrival_device: u32,
    /// Addressed to another host's link-layer address.
    pub for_other_host: bool,
    /// The VLAN of the tag beside the frame; 0 if there is none.
    pub vlan: u16,
    /// The kernel has a route to the packet's destination, and forwards.
    pub forwardable: bool,
    /// What ingress left for egress.
    pub note: u16,
    /// The transport checksum is unfinished (CHECKSUM_PARTIAL): it covers the pseudo header only,
    /// and the network card will do the rest.
    pub partial_sum: bool,
    /// The mark that it bears.
    pub mark: u32,
    /// Whom the frame was sent to, as linux/if_packet.h counts.
    pub packet_type: u32,
    /// Whether a packet of this host's own belongs to a socket. IPv6's resets that the kernel sends do not.
    pub has_socket: bool,
    /// Who sends it.
    pub owner: Owner,
    /// Where the kernel would send an answer to it, if it knows.
    pub back: Option<WayBack>,
    /// The MTU of all ways.
    pub path_mtu: u32,
    /// The interface by which the kernel would send an answer ([`Packet::path_to`]).
    pub path_back: u32,
    /// The next hops that the fast path may send it to; without one it takes the slow way.
    pub next_hops: Arc<[NextHop]>,
}

/// A route, and the link-layer addresses at both ends of its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Where it leads.
    pub to: IpNet,
    /// Index of the interface; 0 if nobody is known there.
    pub device: u32,
    /// The neighbour's address.
    pub neighbour: [u8; 6],
    /// The interface's own.
    pub own: [u8; 6],
}

impl SlicePacket {
    /// A frame that begins with an Ethernet header, at ingress of an interface.
    pub fn ethernet(bytes: Vec<u8>, device: u32) -> Self {
        let ethertype = match bytes.get(12..14) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => 0,
        };
        Self {
            bytes,
            ethertype,
            device,
            arrival_device: device,
            for_other_host: false,
            vlan: 0,
            forwardable: true,
            note: 0,
            partial_sum: false,
            mark: 0,
            packet_type: 0,
            has_socket: true,
            owner: Owner::default(),
            back: None,
            path_mtu: 1500,
            path_back: device,
            next_hops: Arc::default(),
        }
    }

    /// An IP packet without a link-layer header, at ingress of an interface.
    pub fn raw_ip(bytes: Vec<u8>, device: u32) -> Self {
        let ethertype = match bytes.first().map(|byte| byte >> 4) {
            Some(4) => 0x0800,
            Some(6) => 0x86dd,
            _ => 0,
        };
        Self {
            ethertype,
            ..Self::ethernet(bytes, device)
        }
    }

    /// The same packet at egress of an interface; `arrival_device` stays.
    #[must_use]
    pub fn at_egress_of(mut self, device: u32) -> Self {
        self.device = device;
        self
    }

    /// The same packet as if made on this host.
    #[must_use]
    pub fn made_here(mut self) -> Self {
        self.arrival_device = 0;
        self
    }

    fn field<const N: usize>(&self, offset: u32) -> Option<&[u8; N]> {
        self.bytes.get(offset as usize..)?.first_chunk()
    }

    fn field_mut<const N: usize>(&mut self, offset: u32) -> Option<&mut [u8; N]> {
        self.bytes.get_mut(offset as usize..)?.first_chunk_mut()
    }
}

impl Packet for SlicePacket {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.field(offset).copied()
    }

    fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        self.field(0)
    }

    fn copy(&self, offset: u32, length: u32, room: &mut [u8; Event::PACKET]) -> u32 {
        let length = length as usize;
        let Some(bytes) = self
            .bytes
            .get(offset as usize..)
            .and_then(|bytes| bytes.get(..length))
        else {
            return 0;
        };
        match room.get_mut(..length) {
            Some(room) => room.copy_from_slice(bytes),
            None => return 0,
        }
        length as u32
    }

    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        self.field_mut(0)
    }

    const SUMS_ARE_BYTES: bool = false;

    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        *self.field_mut(offset)? = bytes;
        Some(())
    }

    /// `bpf_l3_csum_replace` of four bytes.
    fn replace_l3_sum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        let field = self.field_mut(offset)?;
        let sum = !u16::from_ne_bytes(*field);
        let updated = u64::from(sum) + u64::from(!from) + u64::from(to);
        *field = (!fold(updated)).to_ne_bytes();
        Some(())
    }

    /// `bpf_l4_csum_replace` of a difference (net/core/filter.c), which is
    /// `inet_proto_csum_replace_by_diff` (net/core/utils.c) with UDP's zero put aside.
    fn replace_l4_sum(
        &mut self,
        offset: u32,
        difference: u32,
        pseudo: bool,
        udp: bool,
        _v6: bool,
    ) -> Option<()> {
        let partial = self.partial_sum;
        let field = self.field_mut(offset)?;
        let old = u16::from_ne_bytes(*field);
        if udp && old == 0 {
            return Some(());
        }
        let updated = match (partial, pseudo) {
            (false, _) => !fold(u64::from(difference) + u64::from(!old)),
            (true, true) => fold(u64::from(difference) + u64::from(old)),
            (true, false) => old,
        };
        let updated = if udp && updated == 0 { 0xffff } else { updated };
        *field = updated.to_ne_bytes();
        Some(())
    }

    fn replace_crc(&mut self, offset: u32, first_word: u32, length: u32) -> Option<()> {
        let partial = self.partial_sum;
        let field = self.field_mut(offset)?;
        if !partial {
            let updated = u32::from_le_bytes(*field) ^ crc32c::change_of(first_word, length);
            *field = updated.to_le_bytes();
        }
        Some(())
    }

    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn ethertype(&self) -> u16 {
        self.ethertype
    }

    fn is_for_other_host(&self) -> bool {
        self.for_other_host
    }

    fn is_of_vlan(&self) -> bool {
        self.vlan != 0
    }

    fn is_forwardable(&self, _destination: &Destination) -> bool {
        self.forwardable
    }

    fn path_to(&self, _: Family, _: Option<&Addr>, _: &Addr, _: u32) -> u32 {
        self.path_back
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn device(&self) -> u32 {
        self.device
    }

    fn arrival_device(&self) -> u32 {
        self.arrival_device
    }

    fn is_plain(&self, link: &[u8; 6]) -> bool {
        self.vlan == 0 && self.field(0) == Some(link)
    }

    fn route(&self, way: &Way, route: &mut Route) -> bool {
        let destination = addr::from_abi(way.family, *way.destination);
        let fitting = self.next_hops.iter();
        let longest = fitting
            .filter(|hop| hop.to.contains(&destination))
            .max_by_key(|hop| hop.to.prefix_len());
        let Some(hop) = longest.filter(|hop| hop.device != 0 && way.bytes <= self.path_mtu) else {
            return false;
        };
        route.device = hop.device;
        let halves = |link: [u8; 6]| {
            let (halves, _) = link.as_chunks();
            [0, 1, 2].map(|half| u16::from_ne_bytes(halves[half]))
        };
        route.set_links(halves(hop.neighbour), halves(hop.own));
        true
    }

    fn note(&self) -> u16 {
        self.note
    }

    fn set_note(&mut self, note: u16) {
        self.note = note;
    }

    fn packet_type(&self) -> u32 {
        self.packet_type
    }

    fn has_socket(&self) -> bool {
        self.has_socket
    }

    fn owner(&self, owner: &mut Owner) {
        *owner = self.owner;
    }

    fn is_sum_known(&mut self, _spare: u32) -> bool {
        self.partial_sum
    }

    fn add_up(&self, at: u32, length: u32, sum: &mut u32, _room: &mut [u8; Event::PACKET]) -> bool {
        let (at, length) = (at as usize, length as usize);
        let Some(bytes) = self.bytes.get(at..at + length) else {
            return false;
        };
        let words = bytes.chunks(2).map(|pair| {
            let second = pair.get(1).copied().unwrap_or_default();
            u64::from(u16::from_ne_bytes([pair[0], second]))
        });
        *sum = fold(u64::from(*sum) + words.sum::<u64>()).into();
        true
    }

    fn make_room(
        &mut self,
        l3: u32,
        _l4: u32,
        front: u32,
        keep: u32,
        _room: &mut [u8; Event::PACKET],
    ) -> bool {
        let (l3, front, keep) = (l3 as usize, front as usize, keep as usize);
        self.bytes.truncate(l3 + keep);
        if self.bytes.len() < l3 + keep {
            return false;
        }
        self.bytes.splice(l3..l3, std::iter::repeat_n(0, front));
        self.partial_sum = false;
        self.mark = 0;
        true
    }

    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.store(offset, bytes)
    }

    fn finish_sum(
        &mut self,
        _l3: u32,
        l4: u32,
        end: u32,
        field: u32,
        _room: &mut [u8; Event::PACKET],
    ) -> u32 {
        let mut sum = 0;
        if !self.partial_sum
            || !self.add_up(
                l4,
                end.saturating_sub(l4),
                &mut sum,
                &mut [0; Event::PACKET],
            )
        {
            return SUM_AS_IT_WAS;
        }
        let finished = match !(sum as u16) {
            0 => 0xffff,
            other => other,
        };
        match self.store(field, finished.to_ne_bytes()) {
            Some(()) => {
                self.partial_sum = false;
                SUM_FINISHED
            }
            None => SUM_BROKEN,
        }
    }

    fn resize(&mut self, length: u32) -> bool {
        self.bytes.resize(length as usize, 0);
        true
    }

    fn path_mtu(&self, _: Family, _: &Addr, _: bool) -> u32 {
        self.path_mtu
    }

    fn way_to(&self, _: &Addr, _: Family, _: u32, way: &mut WayBack) -> bool {
        *way = self.back.unwrap_or_default();
        self.back.is_some()
    }
}

/// One's-complement sum of the 16-bit words.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 over bytes in network order.
    fn checksum(bytes: &[u8]) -> [u8; 2] {
        let word = |pair: &[u8]| u64::from(u16::from_be_bytes([pair[0], pair[1]]));
        (!fold(bytes.chunks(2).map(word).sum())).to_be_bytes()
    }

    fn packet(bytes: &[u8]) -> SlicePacket {
        SlicePacket::ethernet(bytes.to_vec(), 1)
    }

    /// What `fw_common`'s checksum differences hold: `!old + new` of words in memory order.
    fn difference(from: [u8; 4], to: [u8; 4]) -> u32 {
        let sum = u64::from(!u32::from_ne_bytes(from)) + u64::from(u32::from_ne_bytes(to));
        fold(sum).into()
    }

    const FROM: [u8; 4] = [192, 168, 0, 1];
    const TO: [u8; 4] = [10, 0, 255, 254];

    #[test]
    fn the_header_sum_follows_a_changed_word() {
        let words = |address: [u8; 4]| [&[0x45, 0, 0, 60, 0x40, 6], &address[..]].concat();
        let mut frame = packet(&[&checksum(&words(FROM))[..], &words(FROM)].concat());
        frame
            .replace_l3_sum(0, u32::from_ne_bytes(FROM), u32::from_ne_bytes(TO))
            .expect("within the frame");
        assert_eq!(frame.bytes[..2], checksum(&words(TO)));
    }

    #[test]
    fn the_transport_sum_follows_and_an_unfinished_one_follows_only_the_pseudo_header() {
        let words = |address: [u8; 4]| [&[0, 17, 0, 8], &address[..]].concat();
        let change = difference(FROM, TO);
        let mut frame = packet(&checksum(&words(FROM)));
        frame
            .replace_l4_sum(0, change, true, true, false)
            .expect("within the frame");
        assert_eq!(frame.bytes, checksum(&words(TO)));

        // The stack leaves the sum of the pseudo header there, not complemented.
        let unfinished = |address| checksum(&words(address)).map(|byte| !byte);
        let mut frame = packet(&unfinished(FROM));
        frame.partial_sum = true;
        frame
            .replace_l4_sum(0, change, false, false, false)
            .expect("within the frame");
        assert_eq!(frame.bytes, unfinished(FROM));
        frame
            .replace_l4_sum(0, change, true, false, false)
            .expect("within the frame");
        assert_eq!(frame.bytes, unfinished(TO));
    }

    #[test]
    fn udp_without_a_sum_stays_without_and_zero_becomes_ones() {
        let mut frame = packet(&[0, 0]);
        assert_eq!(frame.replace_l4_sum(0, 7, false, true, false), Some(()));
        assert_eq!(frame.bytes, [0, 0]);
        let mut frame = packet(&[0x12, 0x34]);
        // The change that brings the words' sum to 0xffff, whose complement is zero.
        let change = u16::from_ne_bytes([0x12, 0x34]);
        assert_eq!(
            frame.replace_l4_sum(0, change.into(), false, true, false),
            Some(())
        );
        assert_eq!(frame.bytes, [0xff, 0xff]);
    }

    #[test]
    fn nothing_beyond_the_frame_is_read_or_written() {
        let mut frame = packet(&[1, 2, 3]);
        assert_eq!(frame.load::<2>(1), Some([2, 3]));
        assert_eq!(frame.load::<2>(2), None);
        assert_eq!(frame.store(2, [9, 9]), None);
        assert_eq!(frame.load::<1>(u32::MAX), None);
        assert_eq!(frame.bytes, [1, 2, 3]);
    }
}
