//! What the datapath asks of a packet.

use super::reject::WayBack;
use super::scratch::Scratch;
use super::stage::Stage;
use super::tables::Tables;
use crate::abi::event::Event;
use crate::abi::flow::Flow;
use crate::abi::{Addr, Family};

/// Result of [`Packet::path_to`]: the kernel sends nothing there.
pub const NO_PATH: u32 = 0;
/// The kernel does not say.
pub const PATH_UNKNOWN: u32 = u32::MAX;

/// What decides a packet's way.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// IP version.
    pub family: Family,
    /// Source address.
    pub source: Addr,
    /// Destination address, after translation.
    pub destination: Addr,
}

/// What the routing table is asked about a packet on its way through.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Index of the interface that it came in by.
    pub device: u32,
    /// IP version.
    pub family: Family,
    /// Source address, before translation.
    pub source: &'a Addr,
    /// Destination address, after translation.
    pub destination: &'a Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Ports, source in the high half.
    pub ports: u32,
    /// Type of service or traffic class.
    pub tos: u8,
    /// Length of the packet, or of all that an offload will make of it together.
    pub bytes: u32,
}

/// The next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Route {
    /// Index of the interface.
    pub device: u32,
    /// What an Ethernet frame to there begins with, as it lies in memory: the neighbour's link-layer address and
    /// the interface's.
    pub links: [u32; 3],
}

impl Route {
    /// Sets [`Route::links`], from halves of words as they lie in memory.
    #[inline(always)]
    pub fn set_links(&mut self, destination: [u16; 3], source: [u16; 3]) {
        let word = |first: u16, second: u16| {
            let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
            u32::from_ne_bytes([a, b, c, d])
        };
        self.links = [
            word(destination[0], destination[1]),
            word(destination[2], source[0]),
            word(source[1], source[2]),
        ];
    }

    /// The neighbour's link-layer address.
    #[inline(always)]
    pub fn destination(&self) -> [u8; 6] {
        let ([a, b, c, d], [e, f, ..]) = (self.links[0].to_ne_bytes(), self.links[1].to_ne_bytes());
        [a, b, c, d, e, f]
    }
}

/// A result of [`Packet::finish_sum`]: nothing was left to the card, or it is too much for a program.
pub const SUM_AS_IT_WAS: u32 = 0;
/// Another: it is finished.
pub const SUM_FINISHED: u32 = 1;
/// And the last.
pub const SUM_BROKEN: u32 = 2;

/// Who sends a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owner {
    /// There is a socket that it belongs to.
    pub exists: bool,
    /// The socket says whose it is.
    pub known: bool,
    /// It is a raw socket for one protocol.
    pub raw: bool,
    /// It is more than a request for a connection.
    pub full: bool,
    /// Who opened its file is certain, and with it the group.
    pub certain: bool,
    /// The user.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// Where its trail leads.
    pub place: u64,
}

/// A packet at a hook. The BPF programs implement it over an skb or an XDP frame, user space over
/// a byte slice. Offsets count from the beginning of the frame.
#[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
pub trait Packet {
    /// Copies `N` bytes out; nothing if the packet ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The first `N` bytes of the frame, if they can be read in place. A packet may lack them, or
    /// have them elsewhere: then [`Packet::load`] knows.
    fn window<const N: usize>(&self) -> Option<&[u8; N]>;

    /// Copies up to `length` bytes from `offset` to the beginning of the room; how many there were.
    fn copy(&self, offset: u32, length: u32, room: &mut [u8; Event::PACKET]) -> u32;

    /// The same for writing. Of the transport checksum only where [`Packet::SUMS_ARE_BYTES`].
    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]>;

    /// Whether a transport checksum is finished, and nothing beside the bytes depends on it.
    const SUMS_ARE_BYTES: bool;

    /// Overwrites `N` bytes.
    #[must_use]
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()>;

    /// Updates the IPv4 header checksum at `offset` for a 32-bit word that changed (RFC 1624). The
    /// words are as they lie in memory.
    #[must_use]
    fn replace_l3_sum(&mut self, offset: u32, from: u32, to: u32) -> Option<()>;

    /// Updates the transport checksum at `offset` by a [`super::checksum::Difference::sum`].
    /// `pseudo`: the words that changed are part of the pseudo header, so that an unfinished
    /// (CHECKSUM_PARTIAL) sum changes as well; other words leave an unfinished sum alone. `udp`: a
    /// sum of zero means "none" and stays; a result of zero becomes 0xffff (RFC 768).
    #[must_use]
    fn replace_l4_sum(
        &mut self,
        offset: u32,
        difference: u32,
        pseudo: bool,
        udp: bool,
        v6: bool,
    ) -> Option<()>;

    /// Updates the CRC of SCTP at `offset` for the first word of so many bytes, as
    /// [`super::crc32c::change_of`] has them. One that is left to the card stays what it is: zero, which
    /// becomes part of what the card adds up.
    #[must_use]
    fn replace_crc(&mut self, offset: u32, first_word: u32, length: u32) -> Option<()>;

    /// Bytes in the frame, link layer included.
    fn len(&self) -> u32;

    /// Whether there are at least so many.
    #[inline(always)]
    fn has(&self, bytes: u32) -> bool {
        self.len() >= bytes
    }

    /// The EtherType, host byte order.
    fn ethertype(&self) -> u16;

    /// Whether the frame is for another host (promiscuous mode): the stack will drop it.
    fn is_for_other_host(&self) -> bool;

    /// Whether the frame is what the stack would forward as it is: sent to the interface that it came
    /// in by, whose link-layer address `link` is, and without a tag beside its bytes.
    fn is_plain(&self, link: &[u8; 6]) -> bool;

    /// Whether the frame carries the tag of a VLAN other than 0 beside its bytes (`vlan_tci`): an
    /// interface on top of this one has judged it, or will. If there is none, the stack drops it.
    fn is_of_vlan(&self) -> bool;

    /// The mark (`skb->mark`).
    fn mark(&self) -> u32;

    /// Changes the mark.
    fn set_mark(&mut self, mark: u32);

    /// Index of the interface that the hook is on.
    fn device(&self) -> u32;

    /// Index of the layer-3 interface that the packet came in by; 0 if it was made on this host.
    fn arrival_device(&self) -> u32;

    /// Whether the kernel's routing table would send the packet on to another host. `false` means
    /// that it is for this host or cannot be delivered; `bpf_fib_lookup` does not tell these apart.
    fn is_forwardable(&self, destination: &Destination) -> bool;

    /// The interface by which the kernel would send to an address, from another one if there is one, with a
    /// type of service, if it came from this host; [`NO_PATH`] or [`PATH_UNKNOWN`].
    fn path_to(&self, family: Family, from: Option<&Addr>, to: &Addr, tos: u32) -> u32;

    /// The next hop of a packet that the kernel would forward, if its neighbour is known, the packet
    /// fits the way, and this hook can send it there; false if not.
    fn route(&self, way: &Way, route: &mut Route) -> bool;

    /// The note that ingress left for egress on this packet (the skb's `tc_index`); 0 if none.
    fn note(&self) -> u16;

    /// Leaves the note.
    fn set_note(&mut self, note: u16);

    /// Whom the frame was sent to, as linux/if_packet.h counts: this host, all, many. One to another host is only judged
    /// where a bridge hands it over, as if it were to this one (`br_nf_pre_routing`, net/bridge/br_netfilter_hooks.c).
    fn packet_type(&self) -> u32;

    /// Whether a packet belongs to a socket of this host's, be it one of the kernel's own.
    fn has_socket(&self) -> bool;

    /// Who sends a packet that this host made.
    fn owner(&self, owner: &mut Owner);

    /// Whether the transport checksum is known to be right: checked by the card, or left to one. Two
    /// bytes at `spare` that no such sum covers serve to find out.
    fn is_sum_known(&mut self, spare: u32) -> bool;

    /// Adds `length` bytes, at most as many as there is room for, to a sum
    /// ([`super::checksum::Difference::sum`]); false if the packet ends before.
    fn add_up(&self, at: u32, length: u32, sum: &mut u32, room: &mut [u8; Event::PACKET]) -> bool;

    /// Makes a new packet of this one: behind the link layer's header `front` bytes without meaning,
    /// and the first `keep` bytes of layer 3, whose transport header is at `l4`; without a mark, in
    /// one piece, with a finished sum. After a failure the packet is worth nothing.
    fn make_room(
        &mut self,
        l3: u32,
        l4: u32,
        front: u32,
        keep: u32,
        room: &mut [u8; Event::PACKET],
    ) -> bool;

    /// Overwrites `N` bytes of a packet with room made in it; what the stack knows of the sum of all
    /// its bytes follows.
    #[must_use]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()>;

    /// Finishes the transport checksum at `field`, if it was left to the card, and has the stack know:
    /// [`SUM_AS_IT_WAS`], [`SUM_FINISHED`], or [`SUM_BROKEN`] if the packet is worth nothing now. The IP
    /// packet begins at `l3` and ends before `end`.
    fn finish_sum(
        &mut self,
        l3: u32,
        l4: u32,
        end: u32,
        field: u32,
        room: &mut [u8; Event::PACKET],
    ) -> u32;

    /// Makes the frame longer or shorter, at its end; what is added is zero, and afterwards the stack
    /// knows of no sum over all bytes of one that grew.
    fn resize(&mut self, length: u32) -> bool;

    /// The MTU of the path to an address: behind the interface of this hook, or else of whichever way
    /// leads there, as much as can be if none does.
    fn path_mtu(&self, family: Family, address: &Addr, behind: bool) -> u32;

    /// Where the kernel would send what goes to an address, and comes from an interface; false if it
    /// does not say.
    fn way_to(&self, address: &Addr, family: Family, device: u32, way: &mut WayBack) -> bool;

    /// [`super::forward::send`].
    #[inline(always)]
    fn forward<T: Tables>(
        &mut self,
        tables: &T,
        scratch: &mut Scratch,
        flow: &Flow,
        reply: bool,
    ) -> bool
    where
        Self: Sized,
    {
        super::forward::send(self, tables, scratch, flow, reply)
    }

    /// Runs a stage.
    #[inline(always)]
    fn call<S: Stage, T: Tables>(&mut self, tables: &T, scratch: &mut Scratch, argument: u32) -> u32
    where
        Self: Sized,
    {
        S::run(self, tables, scratch, argument)
    }
}
