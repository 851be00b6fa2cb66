//! Answers of REJECT: the helpers that make one packet of another; and those that need to know whether a
//! checksum is left to the card.
#![allow(
    unsafe_code,
    reason = "the file that owns the helpers which change a packet's shape"
)]

use core::ffi::c_void;
use core::ptr::null_mut;

use aya_ebpf::bindings::{__sk_buff, BPF_CSUM_LEVEL_QUERY, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_csum_level, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
    bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use fw_common::abi::event::Event;
use fw_common::datapath::packet::{SUM_AS_IT_WAS, SUM_BROKEN, SUM_FINISHED};
use fw_common::datapath::reject::Answer;

/// `BPF_ADJ_ROOM_MAC`: room between the link layer's header and the network's.
const ROOM_BEHIND_LINK: u32 = 1;

/// Sends the packet, as the action of a tc program.
#[inline(always)]
pub fn send(answer: &Answer) -> i32 {
    // SAFETY: plain numbers, and no address: the kernel looks the next hop up.
    unsafe {
        if answer.to_neighbour {
            bpf_redirect_neigh(answer.device, null_mut(), 0, 0) as i32
        } else {
            bpf_redirect(answer.device, 0) as i32
        }
    }
}

/// Whether the card has found the transport checksum right (CHECKSUM_UNNECESSARY), or is to make it
/// (CHECKSUM_PARTIAL). The latter shows in that a change of what a sum covers leaves it alone
/// (`inet_proto_csum_replace4`, net/core/utils.c).
#[inline(never)]
pub fn is_sum_known(skb: *mut __sk_buff, spare: u32) -> bool {
    // SAFETY: plain numbers.
    if unsafe { bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY as u64) } >= 0 {
        return true;
    }
    is_unfinished(skb, spare)
}

#[inline(always)]
fn is_unfinished(skb: *mut __sk_buff, spare: u32) -> bool {
    let mut kept = [0u8; 2];
    let mut seen = [0u8; 2];
    // SAFETY: the helpers read and write the two bytes that they are given, and check the packet's
    // bounds themselves.
    unsafe {
        let context = skb.cast::<c_void>();
        if bpf_skb_load_bytes(context, spare, kept.as_mut_ptr().cast(), 2) != 0
            || bpf_skb_store_bytes(skb, spare, seen.as_ptr().cast(), 2, 0) != 0
            || bpf_l4_csum_replace(skb, spare, 0, 1, 2) != 0
            || bpf_skb_load_bytes(context, spare, seen.as_mut_ptr().cast(), 2) != 0
            || bpf_skb_store_bytes(skb, spare, kept.as_ptr().cast(), 2, 0) != 0
        {
            return false;
        }
    }
    u16::from_ne_bytes(seen) == 0
}

/// Changes the CRC at an offset, unless it is left to the card; false if the packet ends before.
#[inline(always)]
pub fn replace_crc(skb: *mut __sk_buff, at: u32, change: u32) -> bool {
    if is_unfinished(skb, at) {
        return true;
    }
    let mut field = [0u8; 4];
    // SAFETY: the helpers read and write the four bytes that they are given, and check the packet's bounds
    // themselves.
    unsafe {
        if bpf_skb_load_bytes(skb.cast::<c_void>(), at, field.as_mut_ptr().cast(), 4) != 0 {
            return false;
        }
        let updated = (u32::from_le_bytes(field) ^ change).to_le_bytes();
        bpf_skb_store_bytes(skb, at, updated.as_ptr().cast(), 4, 0) == 0
    }
}

/// Makes the frame longer or shorter.
#[inline(always)]
pub fn resize(skb: *mut __sk_buff, length: u32) -> bool {
    // SAFETY: plain numbers, of which the helper makes sure that they are possible.
    unsafe { bpf_skb_change_tail(skb, length, 0) == 0 }
}

/// Adds bytes to a sum. What is behind them in the last word is zeroed.
#[inline(always)]
pub fn add_up(
    skb: *mut __sk_buff,
    at: u32,
    length: u32,
    sum: &mut u32,
    room: &mut [u8; Event::PACKET],
) -> bool {
    const { assert!(Event::PACKET == 256) };
    let last = length.wrapping_sub(1) & 255;
    let word = last & 252;
    // The verifier wants the bound beside the use, and LLVM takes it for superfluous.
    let place = word as usize;
    room[place] = 0;
    room[place + 1] = 0;
    room[place + 2] = 0;
    room[place + 3] = 0;
    // SAFETY: at most as many bytes are read and written as there is room for.
    unsafe {
        let failed = bpf_skb_load_bytes(
            skb.cast::<c_void>(),
            at,
            room.as_mut_ptr().cast::<c_void>(),
            last + 1,
        );
        if failed != 0 {
            return false;
        }
        let result = bpf_csum_diff(null_mut(), 0, room.as_mut_ptr().cast(), word + 4, *sum);
        if result < 0 {
            return false;
        }
        *sum = result as u32;
    }
    true
}

/// [`fw_common::datapath::packet::Packet::finish_sum`]; the first two offsets are in one number, as for
/// [`make_room`], which has the stack forget that anything was left to the card.
///
/// The field holds the sum of the pseudo header: the sum of all bytes, the field among them, is the one
/// that is missing (`skb_checksum_help`, net/core/dev.c).
#[inline(never)]
pub fn finish_sum(
    skb: *mut __sk_buff,
    offsets: u32,
    end: u32,
    field: u32,
    room: &mut [u8; Event::PACKET],
) -> u32 {
    /// As many as there is room for go at once.
    const CHUNK: u32 = Event::PACKET as u32;
    const CHUNKS: u32 = MOST / CHUNK;
    let (l3, l4) = (offsets & 0xffff, offsets >> 16);
    // SAFETY: the context is valid, and the verifier allows these loads.
    let (segment, mark) = unsafe {
        (
            (&raw const (*skb).gso_size).read_volatile(),
            (&raw const (*skb).mark).read_volatile(),
        )
    };
    let keep = end.wrapping_sub(l3);
    if segment != 0 || keep > MOST || l4 > DEEPEST || !is_unfinished(skb, l3 + 4) {
        return SUM_AS_IT_WAS;
    }
    let (mut at, mut sum) = (l4, 0);
    for _ in 0..CHUNKS {
        let left = end.wrapping_sub(at);
        if left == 0 || left > MOST {
            break;
        }
        let length = if left < CHUNK { left } else { CHUNK };
        if !add_up(skb, at, length, &mut sum, room) {
            return SUM_AS_IT_WAS;
        }
        at = at.wrapping_add(length);
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    let finished = match !(folded as u16) {
        0 => 0xffff_u16,
        other => other,
    };
    // SAFETY: the helper reads the two bytes and checks the packet's bounds itself; programs may write
    // the mark.
    unsafe {
        let bytes = (&raw const finished).cast::<c_void>();
        if bpf_skb_store_bytes(skb, field, bytes, 2, 0) != 0
            || !make_room(skb, offsets, keep << 16, room)
        {
            return SUM_BROKEN;
        }
        (&raw mut (*skb).mark).write_volatile(mark);
    }
    SUM_FINISHED
}

/// The longest packet that [`make_room`] takes, and the deepest transport header.
const MOST: u32 = 1280;
const DEEPEST: u32 = 240;

/// [`fw_common::datapath::packet::Packet::make_room`]; the numbers go in pairs, the first in the low
/// half, as functions take five arguments.
///
/// A sum that is left to the card (CHECKSUM_PARTIAL) would be written into the answer. What takes it
/// off is that the place from which it counts comes to lie before the packet's beginning
/// (`skb_postpull_rcsum`, include/linux/skbuff.h). So the beginning is taken away, with four bytes of
/// the transport's header, and put back. Older kernels look before they move the beginning: for them
/// the last four bytes are taken by themselves.
#[inline(never)]
pub fn make_room(
    skb: *mut __sk_buff,
    offsets: u32,
    lengths: u32,
    room: &mut [u8; Event::PACKET],
) -> bool {
    /// As much must stay of a packet (`bpf_skb_adjust_room`, net/core/filter.c).
    const LEAST: u32 = 40;
    let (l3, l4) = (offsets & 0xffff, offsets >> 16);
    let (front, keep) = (lengths & 0xffff, lengths >> 16);
    if l4 > DEEPEST || l3 > l4 || front > 64 || keep > MOST {
        return false;
    }
    let taken = l4 + 8;
    let reset = keep == 0;
    let length = if reset {
        l3 + front + taken
    } else if keep < taken + LEAST {
        l3 + taken + LEAST
    } else {
        l3 + keep
    };
    // SAFETY: plain numbers, and at most as many bytes as there is room for; the helpers check the
    // packet's bounds themselves. The mark is one of the fields that programs may write.
    unsafe {
        (&raw mut (*skb).mark).write_volatile(0);
        if bpf_skb_change_tail(skb, length, 0) != 0
            || !reset && !load(skb, l3, taken, room)
            || bpf_skb_adjust_room(skb, -(l4 as i32 + 4), ROOM_BEHIND_LINK, 0) != 0
            || bpf_skb_adjust_room(skb, -4, ROOM_BEHIND_LINK, 0) != 0
        {
            return false;
        }
        if reset {
            return !is_unfinished(skb, l3 + 4);
        }
        bpf_skb_adjust_room(skb, (taken + front) as i32, ROOM_BEHIND_LINK, 0) == 0
            && store(skb, l3 + front, taken, room)
            && bpf_skb_change_tail(skb, l3 + front + keep, 0) == 0
            && !is_unfinished(skb, l3 + 4)
    }
}

#[inline(always)]
fn load(skb: *mut __sk_buff, at: u32, length: u32, room: &mut [u8; Event::PACKET]) -> bool {
    let length = (length.wrapping_sub(1) & 255) + 1;
    // SAFETY: at most as many bytes are written as there is room for.
    unsafe {
        let room = room.as_mut_ptr().cast::<c_void>();
        bpf_skb_load_bytes(skb.cast::<c_void>(), at, room, length) == 0
    }
}

#[inline(always)]
fn store(skb: *mut __sk_buff, at: u32, length: u32, room: &[u8; Event::PACKET]) -> bool {
    let length = (length.wrapping_sub(1) & 255) + 1;
    // SAFETY: at most as many bytes are read as there are.
    unsafe {
        let room = room.as_ptr().cast::<c_void>();
        bpf_skb_store_bytes(skb, at, room, length, BPF_F_RECOMPUTE_CSUM as u64) == 0
    }
}
