//! The stages as the global functions that the verifier looks at one by one.
#![allow(
    unsafe_code,
    reason = "global functions are called as C calls them, with pointers that the verifier checks"
)]

use core::arch::asm;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use fw_common::abi::flow::{Flow, FlowKey};
use fw_common::datapath::classify::Traverse;
use fw_common::datapath::conntrack::{self, About, LookUp};
use fw_common::datapath::crc32c;
use fw_common::datapath::early::SendOn;
use fw_common::datapath::effect::{self, Act};
use fw_common::datapath::facts::Gather;
use fw_common::datapath::flow_mark::{FindMark, KeepMark};
use fw_common::datapath::forward::send;
use fw_common::datapath::gates::Meet;
use fw_common::datapath::limit;
use fw_common::datapath::lists;
use fw_common::datapath::nat::Open;
use fw_common::datapath::packet::Packet;
use fw_common::datapath::place::{MatchLabel, PlaceAgain, PlaceIn, PlaceOut};
use fw_common::datapath::reject::Respond;
use fw_common::datapath::rewrite::Translate;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::sctp::{self, Chunks, ReadChunks};
use fw_common::datapath::search::Find;
use fw_common::datapath::sources;
use fw_common::datapath::stage::{Name, Stage};
use fw_common::datapath::start::Begin;
use fw_common::datapath::tcp::{self, Segment};
use fw_common::datapath::transit::{FindOnWay, SettleName, TakeName};
use fw_common::datapath::translation::{self, Choose};
use fw_common::datapath::tuple::Lookup;
use fw_common::datapath::window::ReadOptions;

use crate::answer;
use crate::frame::XdpPacket;
use crate::maps;
use crate::recording::RecordingTables;
use crate::skb::SkbPacket;
use crate::tables::BpfTables;

/// Defines a stage's function: name, stage, what its packet wraps, tables.
///
/// The scratch space is no argument, though the caller lends its own: memory that a global function
/// gets is `mem` to the verifier, and Linux 6.1's does not take `mem` for a map's key or value
/// (`map_key_value_types`, kernel/bpf/verifier.c). So each function finds it in its map again, which
/// newer kernels inline.
macro_rules! stages {
    ($($name:ident: $stage:ty, $packet:ident($context:ty), $tables:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $name(
                context: *mut $context,
                argument: u32,
            ) -> u32 {
                let mut packet = $packet::of(context);
                // LLVM has callers pass nothing for what a function does not use. The verifier wants
                // all the same that there is a context and a number.
                let _ = packet.device();
                match maps::scratch() {
                    Some(scratch) => {
                        let argument = scratch.forget(argument);
                        <$stage>::run(&mut packet, &$tables, scratch, argument)
                    }
                    None => 0,
                }
            }
        )*
    };
}

stages! {
    fwbpf_begin: Begin, SkbPacket(__sk_buff), BpfTables;
    fwbpf_place_in: PlaceIn, SkbPacket(__sk_buff), BpfTables;
    fwbpf_place_out: PlaceOut, SkbPacket(__sk_buff), BpfTables;
    fwbpf_place_again: PlaceAgain, SkbPacket(__sk_buff), BpfTables;
    fwbpf_act: Act, SkbPacket(__sk_buff), BpfTables;
    fwbpf_traverse: Traverse, SkbPacket(__sk_buff), BpfTables;
    fwbpf_open: Open, SkbPacket(__sk_buff), BpfTables;
    fwbpf_translate: Translate, SkbPacket(__sk_buff), BpfTables;
    fwbpf_gather: Gather, SkbPacket(__sk_buff), BpfTables;
    fwbpf_meet: Meet, SkbPacket(__sk_buff), BpfTables;
    fwbpf_find: Find, SkbPacket(__sk_buff), BpfTables;
    fwbpf_find_mark: FindMark, SkbPacket(__sk_buff), BpfTables;
    fwbpf_keep_mark: KeepMark, SkbPacket(__sk_buff), BpfTables;
    fwbpf_options: ReadOptions, SkbPacket(__sk_buff), BpfTables;
    fwbpf_chunks: ReadChunks, SkbPacket(__sk_buff), BpfTables;
    fwbpf_respond: Respond, SkbPacket(__sk_buff), BpfTables;
    fwbpf_choose: Choose, SkbPacket(__sk_buff), BpfTables;
    fwbpf_look_up: LookUp, SkbPacket(__sk_buff), BpfTables;
    fwbpf_about: About, SkbPacket(__sk_buff), BpfTables;
    fwbpf_match_label: MatchLabel, SkbPacket(__sk_buff), BpfTables;
    fwbpf_find_on_way: FindOnWay, SkbPacket(__sk_buff), BpfTables;
    fwbpf_take_name: TakeName, SkbPacket(__sk_buff), BpfTables;
    fwbpf_settle_name: SettleName, SkbPacket(__sk_buff), BpfTables;
    fwbpf_xdp_begin: Begin, XdpPacket(xdp_md), RecordingTables;
    fwbpf_xdp_send_on: SendOn, XdpPacket(xdp_md), BpfTables;
    fwbpf_xdp_traverse: Traverse, XdpPacket(xdp_md), RecordingTables;
    fwbpf_xdp_about: About, XdpPacket(xdp_md), BpfTables;
    fwbpf_xdp_options: ReadOptions, XdpPacket(xdp_md), BpfTables;
}

/// Defines the fast path's function, which needs no keys: it can have the scratch space passed.
macro_rules! forward {
    ($name:ident, $packet:ident($context:ty)) => {
        /// [`send`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(
            context: *mut $context,
            scratch: *mut Scratch,
            flow: *const Flow,
            reply: u32,
        ) -> u32 {
            let mut packet = $packet::of(context);
            // SAFETY: both pointers outlive the call, what changes of a flow is in cells, and the
            // caller lends its own scratch space. The verifier asks for the check of null.
            match unsafe { (scratch.as_mut(), flow.as_ref()) } {
                (Some(scratch), Some(flow)) => {
                    send(&mut packet, &BpfTables, scratch, flow, reply != 0) as u32
                }
                _ => 0,
            }
        }
    };
}

forward!(fwbpf_forward, SkbPacket(__sk_buff));
forward!(fwbpf_xdp_forward, XdpPacket(xdp_md));

/// [`tcp::advance`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fwbpf_advance_tcp(
    flow: *const Flow,
    segment: *const Segment,
    reply: u32,
) -> tcp::Outcome {
    // SAFETY: both pointers outlive the call, and what changes meanwhile is in cells.
    match unsafe { (flow.as_ref(), segment.as_ref()) } {
        (Some(flow), Some(segment)) => tcp::advance(flow, segment, reply != 0),
        _ => tcp::INVALID,
    }
}

/// [`sctp::advance`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fwbpf_advance_sctp(
    flow: *const Flow,
    chunks: *const Chunks,
    direction: u32,
) -> tcp::Outcome {
    // SAFETY: both pointers outlive the call, and what changes meanwhile is in cells.
    match unsafe { (flow.as_ref(), chunks.as_ref()) } {
        (Some(flow), Some(chunks)) => sctp::advance(&BpfTables, flow, chunks, direction),
        _ => tcp::INVALID,
    }
}

/// [`sctp::take`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fwbpf_take_chunk(flow: *const Flow, chunks: *const Chunks, argument: u32) -> u32 {
    // SAFETY: as above.
    match unsafe { (flow.as_ref(), chunks.as_ref()) } {
        (Some(flow), Some(chunks)) => sctp::take(flow, chunks, argument),
        _ => tcp::INVALID,
    }
}

/// [`Packet::replace_crc`]; 0 if the packet ends before.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fwbpf_replace_crc(
    skb: *mut __sk_buff,
    offset: u32,
    first_word: u32,
    length: u32,
) -> u32 {
    answer::replace_crc(skb, offset, crc32c::change_of(first_word, length)) as u32
}

/// Defines the function of what rules put off.
macro_rules! deferred {
    ($name:ident, $tables:expr) => {
        /// [`limit::deferred_hold`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name() -> u32 {
            match maps::scratch() {
                Some(scratch) => limit::deferred_hold(&$tables, scratch),
                None => limit::LATER,
            }
        }
    };
}

deferred!(fwbpf_deferred, BpfTables);
deferred!(fwbpf_xdp_deferred, RecordingTables);

/// [`lists::ask`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fwbpf_list() -> u32 {
    match maps::scratch() {
        Some(scratch) => lists::ask(&BpfTables, scratch),
        None => limit::LATER,
    }
}

/// [`sources::unlink`]. Its result says nothing; the verifier wants one.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fwbpf_unlink(key: *const FlowKey, flow: *const Flow) -> u32 {
    // SAFETY: both pointers outlive the call, and what changes of a flow is in cells.
    if let (Some(key), Some(flow), Some(room)) =
        unsafe { (key.as_ref(), flow.as_ref(), maps::links()) }
    {
        sources::unlink(&BpfTables, key, flow, room);
    }
    0
}

/// [`conntrack::second`]: who opened what goes from the look-up's source, [`ALIASES`], the time.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fwbpf_second(which: u32, now: u64) -> u32 {
    match maps::scratch() {
        Some(scratch) => {
            let which = scratch.forget(which);
            let aliases = which & ALIASES != 0;
            conntrack::second(&BpfTables, &mut scratch.lookup, aliases, which, now)
        }
        None => 0,
    }
}

/// Of [`fwbpf_second`]: aliases are looked up.
const ALIASES: u32 = 2;

/// [`translation::name_is_taken`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fwbpf_name_is_taken(opened: u32) -> u32 {
    match maps::scratch() {
        Some(scratch) => {
            let opened = scratch.forget(opened);
            translation::name_is_taken(&BpfTables, &scratch.lookup, opened) as u32
        }
        None => 1,
    }
}

/// [`translation::name_is_taken`], as a global function.
#[inline(always)]
pub fn call_name_is_taken(lookup: &mut Lookup, opened: u32) -> u32 {
    lend(lookup);
    fwbpf_name_is_taken(opened)
}

/// Lends the scratch space, or what of it is in hand, to the global function that is called next, which
/// finds it in its map: the compiler, which takes a `&mut` that it does not see passed on for untouched,
/// learns that somebody else has the pointer.
#[inline(always)]
fn lend<S>(scratch: &mut S) {
    // SAFETY: it does nothing. (No instruction at all would give two lines of the source the same
    // place in the program, which the kernel refuses.)
    unsafe { asm!("{0} = {0}", in(reg) &raw mut *scratch) }
}

/// [`conntrack::second`], as a global function.
#[inline(always)]
pub fn call_second(lookup: &mut Lookup, aliases: bool, opened: u32, now: u64) -> u32 {
    lend(lookup);
    fwbpf_second(opened | aliases as u32 * ALIASES, now)
}

/// [`limit::deferred_hold`], as a global function.
#[inline(always)]
pub fn call_deferred(scratch: &mut Scratch) -> u32 {
    lend(scratch);
    fwbpf_deferred()
}

/// [`lists::ask`], as a global function.
#[inline(always)]
pub fn call_list(scratch: &mut Scratch) -> u32 {
    lend(scratch);
    fwbpf_list()
}

/// [`limit::deferred_hold`] at XDP.
#[inline(always)]
pub fn call_xdp_deferred(scratch: &mut Scratch) -> u32 {
    lend(scratch);
    fwbpf_xdp_deferred()
}

/// Calls a stage from a tc program.
#[inline(always)]
pub fn call_skb(name: Name, skb: *mut __sk_buff, scratch: &mut Scratch, argument: u32) -> u32 {
    lend(scratch);
    match name {
        Name::Begin => fwbpf_begin(skb, argument),
        Name::PlaceIn => fwbpf_place_in(skb, argument),
        Name::PlaceOut => fwbpf_place_out(skb, argument),
        Name::PlaceAgain => fwbpf_place_again(skb, argument),
        Name::Act => fwbpf_act(skb, argument),
        Name::Traverse => fwbpf_traverse(skb, argument),
        // Tracking does it.
        Name::SendOn => 0,
        Name::Open => fwbpf_open(skb, argument),
        Name::Translate => fwbpf_translate(skb, argument),
        Name::Gather => fwbpf_gather(skb, argument),
        Name::ReadOptions => fwbpf_options(skb, argument),
        Name::ReadChunks => fwbpf_chunks(skb, argument),
        Name::Respond => fwbpf_respond(skb, argument),
        Name::Meet => fwbpf_meet(skb, argument),
        Name::Find => fwbpf_find(skb, argument),
        Name::FindMark => fwbpf_find_mark(skb, argument),
        Name::KeepMark => fwbpf_keep_mark(skb, argument),
        Name::Choose => fwbpf_choose(skb, argument),
        Name::LookUp => fwbpf_look_up(skb, argument),
        Name::MatchLabel => fwbpf_match_label(skb, argument),
        Name::About => fwbpf_about(skb, argument),
        Name::FindOnWay => fwbpf_find_on_way(skb, argument),
        Name::TakeName => fwbpf_take_name(skb, argument),
        Name::SettleName => fwbpf_settle_name(skb, argument),
    }
}

/// Calls one of the stages that XDP has; nothing for others.
#[inline(always)]
pub fn call_xdp(name: Name, xdp: *mut xdp_md, scratch: &mut Scratch, argument: u32) -> Option<u32> {
    lend(scratch);
    match name {
        Name::Begin => Some(fwbpf_xdp_begin(xdp, argument)),
        Name::SendOn => Some(fwbpf_xdp_send_on(xdp, argument)),
        Name::Traverse => Some(fwbpf_xdp_traverse(xdp, argument)),
        // Whether the packet ends here is not certain yet.
        Name::Act => Some(effect::LATER),
        Name::ReadOptions => Some(fwbpf_xdp_options(xdp, argument)),
        Name::About => Some(fwbpf_xdp_about(xdp, argument)),
        // The tc programs search.
        Name::Find => Some(limit::LATER),
        // The tc programs answer.
        Name::Respond => Some(0),
        Name::PlaceIn
        | Name::PlaceOut
        | Name::PlaceAgain
        | Name::Open
        | Name::Translate
        | Name::Gather
        | Name::Meet
        | Name::FindMark
        | Name::KeepMark
        | Name::Choose
        | Name::LookUp
        | Name::MatchLabel
        | Name::FindOnWay
        | Name::TakeName
        | Name::SettleName
        | Name::ReadChunks => None,
    }
}
