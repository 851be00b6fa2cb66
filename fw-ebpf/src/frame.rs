//! A frame at XDP.
#![allow(
    unsafe_code,
    reason = "the file that owns pointer arithmetic and the helpers for frames"
)]

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, xdp_md};
use aya_ebpf::helpers::{bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use aya_ebpf::programs::XdpContext;
use fw_common::abi::event::Event;
use fw_common::abi::flow::Flow;
use fw_common::abi::{Addr, Family};
use fw_common::datapath::checksum::Difference;
use fw_common::datapath::packet::{
    Destination, Owner, PATH_UNKNOWN, Packet, Route, SUM_AS_IT_WAS, Way,
};
use fw_common::datapath::reject::WayBack;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::stage::Stage;
use fw_common::datapath::tables::Tables;

use crate::fib::{fib_forwards, next_hop};
use crate::maps::XDP_DEVICES;
use crate::skb::PACKET_HOST;
use crate::stages::{call_xdp, fwbpf_xdp_forward};

/// A frame at XDP.
pub struct XdpPacket(*mut xdp_md);

impl XdpPacket {
    /// Wraps the context.
    #[inline(always)]
    pub fn new(context: XdpContext) -> Self {
        Self(context.as_ptr().cast::<xdp_md>())
    }
}

impl XdpPacket {
    /// Wraps the context that a stage got.
    #[inline(always)]
    pub fn of(xdp: *mut xdp_md) -> Self {
        Self(xdp)
    }
}

impl Packet for XdpPacket {
    #[inline(always)]
    fn forward<T: Tables>(
        &mut self,
        _tables: &T,
        scratch: &mut Scratch,
        flow: &Flow,
        reply: bool,
    ) -> bool {
        fwbpf_xdp_forward(self.0, scratch, flow, reply as u32) != 0
    }

    #[inline(always)]
    fn call<S: Stage, T: Tables>(
        &mut self,
        tables: &T,
        scratch: &mut Scratch,
        argument: u32,
    ) -> u32 {
        match call_xdp(S::NAME, self.0, scratch, argument) {
            Some(result) => result,
            None => S::run(self, tables, scratch, argument),
        }
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes exactly N bytes to the N that `bytes` has, or fails; only then
        // are they read. (Direct access would need each offset proven to the verifier, and LLVM
        // does not keep the pointer that it checked.)
        unsafe {
            let failed = bpf_xdp_load_bytes(
                self.0,
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

    /// Nothing is said of packets here.
    #[inline(always)]
    fn copy(&self, _offset: u32, _length: u32, _room: &mut [u8; Event::PACKET]) -> u32 {
        0
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

    /// What a device took off a frame is not known here, and hardware only gets whole frames.
    const SUMS_ARE_BYTES: bool = true;

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        // SAFETY: the helper reads the N bytes of `bytes` and checks the frame's bounds itself.
        let failed = unsafe {
            let bytes = bytes.as_ptr().cast_mut().cast::<c_void>();
            bpf_xdp_store_bytes(self.0, offset, bytes, N as u32)
        };
        (failed == 0).then_some(())
    }

    #[inline(always)]
    fn replace_l3_sum(&mut self, offset: u32, from: u32, to: u32) -> Option<()> {
        let difference = Difference::default().word(u32::from_be(from), u32::from_be(to));
        let sum = self.load::<2>(offset)?;
        self.store(offset, difference.apply(sum))
    }

    #[inline(always)]
    fn replace_l4_sum(
        &mut self,
        offset: u32,
        difference: u32,
        _pseudo: bool,
        udp: bool,
        _v6: bool,
    ) -> Option<()> {
        let sum = self.load::<2>(offset)?;
        if udp && sum == [0, 0] {
            return Some(());
        }
        let sum = match Difference::of_sum(difference).apply(sum) {
            [0, 0] if udp => [0xff, 0xff],
            sum => sum,
        };
        self.store(offset, sum)
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid for the program's life.
        unsafe { bpf_xdp_get_buff_len(self.0) as u32 }
    }

    #[inline(always)]
    fn has(&self, bytes: u32) -> bool {
        // SAFETY: as in `window`. What can be read in place is the whole of most frames, and there is no call.
        let here = unsafe {
            let data = (&raw const (*self.0).data).read_volatile();
            (&raw const (*self.0).data_end).read_volatile() - data
        };
        here >= bytes || self.len() >= bytes
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        match self.window::<14>() {
            Some(frame) => u16::from_be_bytes([frame[12], frame[13]]),
            None => 0,
        }
    }

    #[inline(always)]
    fn is_for_other_host(&self) -> bool {
        false
    }

    #[inline(always)]
    fn is_plain(&self, link: &[u8; 6]) -> bool {
        match self.window::<14>() {
            Some(&[a, b, c, d, e, f, ..]) => [a, b, c, d, e, f] == *link,
            None => false,
        }
    }

    #[inline(always)]
    fn is_of_vlan(&self) -> bool {
        // Its tag is in the frame still, where the EtherType is.
        false
    }

    /// Frames have none yet.
    #[inline(always)]
    fn mark(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn set_mark(&mut self, _mark: u32) {}

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (&raw const (*self.0).ingress_ifindex).read_volatile() }
    }

    #[inline(always)]
    fn arrival_device(&self) -> u32 {
        self.device()
    }

    fn route(&self, way: &Way, route: &mut Route) -> bool {
        if way.bytes > u16::MAX as u32 {
            return false;
        }
        let found = next_hop(self.0.cast::<c_void>(), way, way.bytes, route);
        // Only the frame that XDP_REDIRECT is returned for is sent there.
        found == BPF_FIB_LKUP_RET_SUCCESS as i64 && XDP_DEVICES.redirect(route.device, 0).is_ok()
    }

    #[inline(always)]
    fn is_forwardable(&self, destination: &Destination) -> bool {
        fib_forwards(self.0.cast::<c_void>(), self.device(), destination)
    }

    /// Policies that ask are not for this hook.
    #[inline(always)]
    fn path_to(&self, _: Family, _: Option<&Addr>, _: &Addr, _: u32) -> u32 {
        PATH_UNKNOWN
    }

    #[inline(always)]
    fn note(&self) -> u16 {
        0
    }

    #[inline(always)]
    fn set_note(&mut self, _note: u16) {}

    #[inline(always)]
    fn packet_type(&self) -> u32 {
        PACKET_HOST
    }

    #[inline(always)]
    fn has_socket(&self) -> bool {
        false
    }

    #[inline(always)]
    fn owner(&self, owner: &mut Owner) {
        owner.exists = false;
    }

    /// SCTP is not translated here.
    #[inline(always)]
    fn replace_crc(&mut self, _: u32, _: u32, _: u32) -> Option<()> {
        None
    }

    /// Nothing is answered here.
    #[inline(always)]
    fn is_sum_known(&mut self, _spare: u32) -> bool {
        true
    }

    #[inline(always)]
    fn add_up(&self, _: u32, _: u32, _: &mut u32, _: &mut [u8; Event::PACKET]) -> bool {
        false
    }

    #[inline(always)]
    fn make_room(&mut self, _: u32, _: u32, _: u32, _: u32, _: &mut [u8; Event::PACKET]) -> bool {
        false
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: u32, bytes: [u8; N]) -> Option<()> {
        self.store(offset, bytes)
    }

    #[inline(always)]
    fn finish_sum(&mut self, _: u32, _: u32, _: u32, _: u32, _: &mut [u8; Event::PACKET]) -> u32 {
        SUM_AS_IT_WAS
    }

    #[inline(always)]
    fn resize(&mut self, _: u32) -> bool {
        false
    }

    #[inline(always)]
    fn path_mtu(&self, _: Family, _: &Addr, _: bool) -> u32 {
        0
    }

    #[inline(always)]
    fn way_to(&self, _: &Addr, _: Family, _: u32, _: &mut WayBack) -> bool {
        false
    }
}
