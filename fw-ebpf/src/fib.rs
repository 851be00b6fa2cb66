//! Questions to the kernel's routing tables.
#![allow(
    unsafe_code,
    reason = "the file that owns the records of bpf_fib_lookup"
)]

use core::ffi::c_void;
use core::mem::{MaybeUninit, offset_of};

use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED,
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT,
    bpf_fib_lookup as FibParams,
};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_fib_lookup};
use fw_common::abi::{Addr, Family};
use fw_common::datapath::packet::{Destination, NO_PATH, PATH_UNKNOWN, Route, Way};
use fw_common::datapath::reject::WayBack;

/// `AF_INET` and `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A question to the routing table, aligned for [`blank`].
#[repr(align(8))]
struct Question(FibParams);

/// Zeroes it word by word: a call of `memset` would be a frame more on the stack, just where it is
/// deepest.
#[inline(always)]
fn blank(question: &mut MaybeUninit<Question>) -> &mut FibParams {
    const WORDS: usize = 8;
    const { assert!(size_of::<Question>() == 8 * WORDS && size_of::<FibParams>() == 8 * WORDS) };
    let words = question.as_mut_ptr().cast::<u64>();
    // SAFETY: the record is so many aligned words, and plain integers, of which zero is a value.
    unsafe {
        words.write_volatile(0);
        words.add(1).write_volatile(0);
        words.add(2).write_volatile(0);
        words.add(3).write_volatile(0);
        words.add(4).write_volatile(0);
        words.add(5).write_volatile(0);
        words.add(6).write_volatile(0);
        words.add(7).write_volatile(0);
        &mut question.assume_init_mut().0
    }
}

/// Asks about a destination.
#[inline(always)]
fn aim(params: &mut FibParams, family: Family, address: &Addr) {
    match family {
        Family::V4 => {
            params.family = AF_INET;
            params.__bindgen_anon_4.ipv4_dst = address[0].to_be();
        }
        Family::V6 => {
            params.family = AF_INET6;
            params.__bindgen_anon_4.ipv6_dst = address.map(u32::to_be);
        }
    }
}

/// Asks the routing table for the next hop; what `BPF_FIB_LKUP_RET_*` says.
#[inline(never)]
pub fn next_hop(context: *mut c_void, way: &Way, bytes: u32, route: &mut Route) -> i64 {
    let mut question = MaybeUninit::<Question>::uninit();
    let params = blank(&mut question);
    params.ifindex = way.device;
    params.l4_protocol = way.protocol;
    params.sport = ((way.ports >> 16) as u16).to_be();
    params.dport = (way.ports as u16).to_be();
    params.__bindgen_anon_1.tot_len = bytes as u16;
    match way.family {
        Family::V4 => {
            params.family = AF_INET;
            params.__bindgen_anon_2.tos = way.tos;
            params.__bindgen_anon_3.ipv4_src = way.source[0].to_be();
            params.__bindgen_anon_4.ipv4_dst = way.destination[0].to_be();
        }
        Family::V6 => {
            params.family = AF_INET6;
            params.__bindgen_anon_2.flowinfo = ((way.tos as u32) << 20).to_be();
            params.__bindgen_anon_3.ipv6_src = way.source.map(u32::to_be);
            params.__bindgen_anon_4.ipv6_dst = way.destination.map(u32::to_be);
        }
    }
    // SAFETY: the context is the program's own, and `params` is as large as said.
    let result =
        unsafe { bpf_fib_lookup(context, &raw mut *params, size_of::<FibParams>() as i32, 0) };
    route.device = params.ifindex;
    route.set_links(halves(&params.dmac), halves(&params.smac));
    result
}

/// A link-layer address of a [`Question`] as it lies in memory. LLVM must not read more at once: the kernel takes no
/// word of the stack that is not aligned.
#[inline(always)]
fn halves(link: &[u8; 6]) -> [u16; 3] {
    const {
        assert!(
            offset_of!(FibParams, dmac).is_multiple_of(2)
                && offset_of!(FibParams, smac).is_multiple_of(2)
        )
    };
    let first = link.as_ptr().cast::<u16>();
    // SAFETY: three halves of words are six bytes, and both addresses of the record are aligned so, as it is.
    unsafe {
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
        ]
    }
}

/// `BPF_FIB_LOOKUP_SKIP_NEIGH` and `BPF_FIB_LOOKUP_SRC`. Kernels before 6.7 do not know the latter.
pub const WITH_SOURCE: u32 = 1 << 2 | 1 << 4;

/// Asks the routing table where an address is, for what comes from the interface in `way`, which
/// becomes the one that leads there; and for the address that the kernel itself would send from.
#[inline(never)]
pub fn way_to(
    context: *mut c_void,
    address: &Addr,
    family: Family,
    flags: u32,
    way: &mut WayBack,
) -> i64 {
    let mut question = MaybeUninit::<Question>::uninit();
    let params = blank(&mut question);
    params.ifindex = way.device;
    aim(params, family, address);
    // SAFETY: the context is the program's own, and `params` is as large as said; of the sources all
    // bytes were written.
    unsafe {
        let size = size_of::<FibParams>() as i32;
        let result = bpf_fib_lookup(context, &raw mut *params, size, flags);
        way.device = params.ifindex;
        way.source = match family {
            Family::V4 => [u32::from_be(params.__bindgen_anon_3.ipv4_src), 0, 0, 0],
            Family::V6 => params.__bindgen_anon_3.ipv6_src.map(u32::from_be),
        };
        result
    }
}

/// The MTU of the path to an address; as much as can be if there is none.
///
/// The kernel is asked for a way for more bytes than any path carries: its answer says how many this
/// one does, before it looks for a neighbour (`bpf_ipv4_fib_lookup`, net/core/filter.c).
#[inline(never)]
pub fn path_mtu(
    skb: *mut __sk_buff,
    device: u32,
    family: Family,
    address: &Addr,
    behind: bool,
) -> u32 {
    /// `BPF_FIB_LOOKUP_OUTPUT`: through this interface.
    const OUTPUT: u32 = 1 << 1;
    let mut question = MaybeUninit::<Question>::uninit();
    let params = blank(&mut question);
    params.ifindex = device;
    params.__bindgen_anon_1.tot_len = u16::MAX;
    aim(params, family, address);
    let flags = if behind { OUTPUT } else { 0 };
    let context = skb.cast::<c_void>();
    // SAFETY: the context is the program's own, and `params` is as large as said; the field's bytes
    // are an integer whichever of its names they bear.
    unsafe {
        let size = size_of::<FibParams>() as i32;
        let found = bpf_fib_lookup(context, &raw mut *params, size, flags);
        if found == BPF_FIB_LKUP_RET_SUCCESS as i64 || found == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64
        {
            return params.__bindgen_anon_1.mtu_result as u32;
        }
        if !behind {
            return u32::MAX;
        }
        // A host that forwards nothing gets no answer: the interface's own.
        let mut mtu = 0;
        bpf_check_mtu(context, 0, &raw mut mtu, 0, 0);
        if mtu == 0 { u32::MAX } else { mtu }
    }
}

/// The interface by which the kernel would send to an address ([`fw_common::datapath::packet::Packet::path_to`]).
///
/// The helper looks for the way of what comes by an interface that forwards: it is asked about loopback's, as
/// which this host's own packets go by the routing rules (`fib_lookup` of a `flowi4_iif` of
/// `LOOPBACK_IFINDEX`).
#[inline(never)]
pub fn path_to(
    context: *mut c_void,
    family: Family,
    from: Option<&Addr>,
    to: &Addr,
    tos: u32,
) -> u32 {
    const LOOPBACK: u32 = 1;
    let mut question = MaybeUninit::<Question>::uninit();
    let params = blank(&mut question);
    params.ifindex = LOOPBACK;
    aim(params, family, to);
    if matches!(family, Family::V4) {
        params.__bindgen_anon_2.tos = tos as u8;
        if let Some(from) = from {
            params.__bindgen_anon_3.ipv4_src = from[0].to_be();
        }
    } else {
        params.__bindgen_anon_2.flowinfo = (tos << 20).to_be();
        if let Some(from) = from {
            params.__bindgen_anon_3.ipv6_src = from.map(u32::to_be);
        }
    }
    // SAFETY: the context is the program's own, and `params` is as large as said.
    let result =
        unsafe { bpf_fib_lookup(context, &raw mut *params, size_of::<FibParams>() as i32, 0) };
    if result == BPF_FIB_LKUP_RET_SUCCESS as i64
        || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64
        || result == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64
    {
        return params.ifindex;
    }
    if result < 0
        || result == BPF_FIB_LKUP_RET_FWD_DISABLED as i64
        || result == BPF_FIB_LKUP_RET_UNSUPP_LWT as i64
    {
        return PATH_UNKNOWN;
    }
    NO_PATH
}

/// Whether the kernel would forward what comes by the interface to a destination.
#[inline(never)]
pub fn fib_forwards(context: *mut c_void, device: u32, destination: &Destination) -> bool {
    let mut question = MaybeUninit::<Question>::uninit();
    let params = blank(&mut question);
    params.ifindex = device;
    match destination.family {
        Family::V4 => {
            params.family = AF_INET;
            params.__bindgen_anon_3.ipv4_src = destination.source[0].to_be();
            params.__bindgen_anon_4.ipv4_dst = destination.destination[0].to_be();
        }
        Family::V6 => {
            params.family = AF_INET6;
            params.__bindgen_anon_3.ipv6_src = destination.source.map(u32::to_be);
            params.__bindgen_anon_4.ipv6_dst = destination.destination.map(u32::to_be);
        }
    }
    // SAFETY: the context is the program's own, and `params` is as large as said.
    let result =
        unsafe { bpf_fib_lookup(context, &raw mut *params, size_of::<FibParams>() as i32, 0) };
    result == BPF_FIB_LKUP_RET_SUCCESS as i64
        || result == BPF_FIB_LKUP_RET_NO_NEIGH as i64
        || result == BPF_FIB_LKUP_RET_FRAG_NEEDED as i64
}
