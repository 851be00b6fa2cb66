//! A packet at a tc hook: an skb.
#![allow(
    unsafe_code,
    reason = "the file that owns pointer arithmetic and the helpers for skbs"
)]

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::Global;
use aya_ebpf::bindings::{
    __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS,
};
use aya_ebpf::helpers::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use fw_common::abi::event::Event;
use fw_common::abi::flow::Flow;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::header::protocol;
use fw_common::datapath::packet::{Destination, Owner, Packet, Route, Way};
use fw_common::datapath::reject::WayBack;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::stage::Stage;
use fw_common::datapath::tables::Tables;

use crate::answer;
use crate::fib::{WITH_SOURCE, fib_forwards, next_hop, path_mtu, path_to, way_to};
use crate::owner::owner_of;
use crate::stages::{call_skb, fwbpf_forward, fwbpf_replace_crc};

/// `BPF_F_IPV6`, newer than the bindings: the packet is IPv6, whose header has no checksum that
/// would cancel the change of an address out of a CHECKSUM_COMPLETE sum (kernel commit
/// ead7f9b8de65, 6.16 and stable trees). Zero where the kernel would refuse a flag that it does
/// not know: the loader finds out and sets this before the verifier sees it.
#[unsafe(no_mangle)]
static FLAG_IPV6_SUM: Global<u64> = Global::new(1 << 7);

/// `PACKET_HOST` and `PACKET_OTHERHOST` of linux/if_packet.h.
pub const PACKET_HOST: u32 = 0;
const PACKET_OTHERHOST: u32 = 3;

/// A packet at a tc hook.
pub struct SkbPacket(*mut __sk_buff);

impl SkbPacket {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(context: TcContext) -> Self {
        Self(context.skb.skb)
    }
}

impl SkbPacket {
    /// Wraps the context that a stage got.
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }
}

impl Packet for SkbPacket {
    #[inline(always)]
    fn forward<T: Tables>(
        &mut self,
        _tables: &T,
        scratch: &mut Scratch,
        flow: &Flow,
        reply: bool,
    ) -> bool {
        fwbpf_forward(self.0, scratch, flow, reply as u32) != 0
    }

    #[inline(always)]
    fn call<S: Stage, T: Tables>(
        &mut self,
        _tables: &T,
        scratch: &mut Scratch,
        argument: u32,
    ) -> u32 {
        call_skb(S::NAME, self.0, scratch, argument)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes exactly N bytes to the N that `bytes` has, or fails; only then
        // are they read.
        unsafe {
            let failed = bpf_skb_load_bytes(
                self.0.cast::<c_void>(),
                offset,
                bytes.as_mut_ptr().cast::<c_void>(),
                N as u32,
            );
            (failed == 0).then(|| bytes.assume_init())
        }
    }

    #[inline(always)]
    fn window<const N: usize>(&self) -> Option<&[u8; N]> {
        // SAFETY: `data` and `data_end` are the bounds of the bytes that the kernel lets programs
        // read in place; the verifier has seen to it that nothing beyond the compare is.
        unsafe {
            let data = (&raw const (*self.0).data).read_volatile() as usize;
            let end = (&raw const (*self.0).data_end).read_volatile() as usize;
            (data + N <= end).then(|| &*(data as *const [u8; N]))
        }
    }

    #[inline(always)]
    fn copy(&self, offset: u32, length: u32, room: &mut [u8; Event::PACKET]) -> u32 {
        if length == 0 {
            return 0;
        }
        // The verifier knows no other way to keep it from being more.
        let length = (length.wrapping_sub(1) & (Event::PACKET as u32 - 1)) + 1;
        // SAFETY: the helper writes at most as many bytes as there is room for.
        let failed = unsafe {
            bpf_skb_load_bytes(
                self.0.cast::<c_void>(),
                offset,
                room.as_mut_ptr().cast::<c_void>(),
                length,
            )
        };
        if failed == 0 { length } else { 0 }
    }

    #[inline(always)]
    fn window_mut<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        // SAFETY: as in `window`; the kernel makes sure that no one else has the bytes of a packet
        // that a program writes in place.
        unsafe {
            let data = (&raw const (*self.0).data).read_volatile() as usize;
            let end = (&raw const (*self.0).data_end).read_volatile() as usize;
            (data + N <= end).then(|| &mut *(data as *mut [u8; N]))
        }
    }

    /// A sum may be unfinished (CHECKSUM_PARTIAL), and the skb may know one of all its bytes.
    const SUMS_ARE_BYTES: bool = false;

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        // SAFETY: the helper reads the N bytes of `bytes` and checks the packet's bounds itself.
        let failed = unsafe {
            bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast::<c_void>(), N as u32, 0)
        };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn replace_l3_sum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        // SAFETY: plain numbers; the helper checks the packet's bounds itself.
        let failed = unsafe { bpf_l3_csum_replace(self.0, offset, from as u64, to as u64, 4) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn replace_l4_sum(
        &mut self,
        offset: u32,
        difference: u32,
        pseudo: bool,
        udp: bool,
        v6: bool,
    ) -> Option<()> {
        let mut flags = 0;
        if pseudo {
            flags |= BPF_F_PSEUDO_HDR as u64;
            if v6 {
                flags |= FLAG_IPV6_SUM.load();
            }
        }
        if udp {
            flags |= BPF_F_MARK_MANGLED_0 as u64;
        }
        // SAFETY: plain numbers; a field size of zero in the flags makes `to` a difference.
        let failed = unsafe { bpf_l4_csum_replace(self.0, offset, 0, difference as u64, flags) };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn replace_crc(&mut self, offset: u32, first_word: u32, length: u32) -> Option<()> {
        (fwbpf_replace_crc(self.0, offset, first_word, length) != 0).then_some(())
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the program's life, and the verifier allows this load.
        unsafe { (&raw const (*self.0).len).read_volatile() }
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: as in `len`. The field holds a __be16.
        u16::from_be(unsafe { (&raw const (*self.0).protocol).read_volatile() } as u16)
    }

    #[inline(always)]
    fn is_for_other_host(&self) -> bool {
        // SAFETY: as in `len`.
        unsafe { (&raw const (*self.0).pkt_type).read_volatile() == PACKET_OTHERHOST }
    }

    #[inline(always)]
    fn is_plain(&self, _link: &[u8; 6]) -> bool {
        // SAFETY: as in `len`.
        unsafe {
            (&raw const (*self.0).pkt_type).read_volatile() == PACKET_HOST
                && (&raw const (*self.0).vlan_present).read_volatile() == 0
        }
    }

    #[inline(always)]
    fn is_of_vlan(&self) -> bool {
        const VLAN: u32 = 0x0fff;
        // SAFETY: as in `len`. Without a tag the field is zero.
        unsafe { (&raw const (*self.0).vlan_tci).read_volatile() & VLAN != 0 }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (&raw const (*self.0).mark).read_volatile() }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        // SAFETY: as in `len`; tc programs may write the mark.
        unsafe { (&raw mut (*self.0).mark).write_volatile(mark) }
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (&raw const (*self.0).ifindex).read_volatile() }
    }

    #[inline(always)]
    fn arrival_device(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (&raw const (*self.0).ingress_ifindex).read_volatile() }
    }

    #[inline(always)]
    fn is_forwardable(&self, destination: &Destination) -> bool {
        fib_forwards(self.0.cast::<c_void>(), self.device(), destination)
    }

    fn path_to(&self, family: Family, from: Option<&Addr>, to: &Addr, tos: u32) -> u32 {
        path_to(self.0.cast::<c_void>(), family, from, to, tos)
    }

    fn route(&self, way: &Way, route: &mut Route) -> bool {
        // SAFETY: as in `len`.
        let segment = unsafe { (&raw const (*self.0).gso_size).read_volatile() };
        let mut bytes = way.bytes;
        if segment != 0 {
            // Offloads will make packets of this length of it.
            let l3 = if way.family as u8 == Family::V4 as u8 {
                20
            } else {
                40
            };
            let l4 = if way.protocol == protocol::TCP {
                match self.load::<1>(14 + l3 + 12) {
                    Some([offset]) => (offset >> 4) as u32 * 4,
                    None => return false,
                }
            } else {
                8
            };
            bytes = segment.wrapping_add(l3).wrapping_add(l4);
        }
        if bytes == 0 || bytes > u16::MAX as u32 {
            return false;
        }
        let found = next_hop(self.0.cast::<c_void>(), way, bytes, route);
        found == BPF_FIB_LKUP_RET_SUCCESS as i64
    }

    #[inline(always)]
    fn note(&self) -> u16 {
        // SAFETY: as in `len`.
        unsafe { (&raw const (*self.0).tc_index).read_volatile() as u16 }
    }

    #[inline(always)]
    fn set_note(&mut self, note: u16) {
        // SAFETY: as in `len`; tc programs may write tc_index.
        unsafe { (&raw mut (*self.0).tc_index).write_volatile(note as u32) }
    }

    #[inline(always)]
    fn packet_type(&self) -> u32 {
        // SAFETY: as in `len`.
        match unsafe { (&raw const (*self.0).pkt_type).read_volatile() } {
            // Only frames that a bridge switches are judged though they are for others: netfilter has them
            // for this host, too (`br_nf_pre_routing`, net/bridge/br_netfilter_hooks.c).
            PACKET_OTHERHOST => PACKET_HOST,
            other => other,
        }
    }

    #[inline(always)]
    fn has_socket(&self) -> bool {
        // SAFETY: as in `len`.
        let socket = unsafe { (&raw const (*self.0).__bindgen_anon_2.sk).read_volatile() };
        !socket.is_null()
    }

    fn owner(&self, owner: &mut Owner) {
        owner_of(self.0, owner)
    }

    #[inline(always)]
    fn is_sum_known(&mut self, spare: u32) -> bool {
        answer::is_sum_known(self.0, spare)
    }

    #[inline(always)]
    fn add_up(&self, at: u32, length: u32, sum: &mut u32, room: &mut [u8; Event::PACKET]) -> bool {
        answer::add_up(self.0, at, length, sum, room)
    }

    #[inline(always)]
    fn make_room(
        &mut self,
        l3: u32,
        l4: u32,
        front: u32,
        keep: u32,
        room: &mut [u8; Event::PACKET],
    ) -> bool {
        answer::make_room(self.0, l3 | l4 << 16, front | keep << 16, room)
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        // SAFETY: as in `store`.
        let failed = unsafe {
            let bytes = bytes.as_ptr().cast::<c_void>();
            bpf_skb_store_bytes(self.0, offset, bytes, N as u32, BPF_F_RECOMPUTE_CSUM as u64)
        };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn finish_sum(
        &mut self,
        l3: u32,
        l4: u32,
        end: u32,
        field: u32,
        room: &mut [u8; Event::PACKET],
    ) -> u32 {
        answer::finish_sum(self.0, l3 | l4 << 16, end, field, room)
    }

    #[inline(always)]
    fn resize(&mut self, length: u32) -> bool {
        answer::resize(self.0, length)
    }

    #[inline(always)]
    fn path_mtu(&self, family: Family, address: &Addr, behind: bool) -> u32 {
        path_mtu(self.0, self.device(), family, address, behind)
    }

    fn way_to(&self, address: &Addr, family: Family, device: u32, way: &mut WayBack) -> bool {
        way.device = device;
        way.has_source = true;
        let mut found = way_to(self.0.cast::<c_void>(), address, family, WITH_SOURCE, way);
        if found < 0 {
            way.device = device;
            way.has_source = false;
            found = way_to(self.0.cast::<c_void>(), address, family, 0, way);
        }
        found == BPF_FIB_LKUP_RET_SUCCESS as i64 || found == BPF_FIB_LKUP_RET_NO_NEIGH as i64
    }
}

/// Sends the packet out of an interface, as the action of a tc program.
#[inline(always)]
pub fn redirect(device: u32) -> i32 {
    // SAFETY: plain numbers.
    unsafe { bpf_redirect(device, 0) as i32 }
}
