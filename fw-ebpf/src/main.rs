//! The kernel half of fwbpf: wrap the context, run the datapath, turn its verdict into the hook's
//! action. All logic is in `fw_common::datapath`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(
    internal_features,
    reason = "the target has no `core::sync::atomic`, so compare-and-exchange is the intrinsic"
)]
#![allow(
    missing_docs,
    reason = "the program macros make undocumented functions beside the documented ones"
)]

mod answer;
mod fib;
mod frame;
mod hints;
mod local;
mod maps;
mod owner;
mod recording;
mod shared_words;
mod skb;
mod stages;
mod sweep;
mod tables;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_REDIRECT};
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use fw_common::abi::maps::{SWEEP_HINTS, SWEEP_LISTS};
use fw_common::datapath::packet::Packet;
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tables::Tables;
use fw_common::datapath::{Verdict, early, egress, ingress};

use crate::frame::XdpPacket;
use crate::recording::RecordingTables;
use crate::skb::SkbPacket;
use crate::tables::BpfTables;

/// tcx or clsact ingress of every layer-3 interface, and of ports of bridges that have iptables see what they
/// switch. Attached first, so that nothing acts on what the firewall drops; what it accepts goes on to other
/// programs (TCX_NEXT is TC_ACT_UNSPEC).
#[classifier]
pub fn fwbpf_ingress(context: TcContext) -> i32 {
    let Some(scratch) = maps::scratch() else {
        return TC_ACT_SHOT;
    };
    let verdict = ingress(&mut SkbPacket::new(context), &BpfTables, scratch);
    tc_action(verdict, scratch)
}

/// tcx or clsact egress of the same interfaces. Attached last: it judges what really leaves.
#[classifier]
pub fn fwbpf_egress(context: TcContext) -> i32 {
    let Some(scratch) = maps::scratch() else {
        return TC_ACT_SHOT;
    };
    let verdict = egress(&mut SkbPacket::new(context), &BpfTables, scratch);
    tc_action(verdict, scratch)
}

/// XDP on interfaces whose driver runs it natively.
#[xdp]
pub fn fwbpf_xdp(context: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else {
        return XDP_PASS;
    };
    match early(&mut XdpPacket::new(context), &RecordingTables, scratch) {
        // XDP leaves what is refused to the tc programs.
        Verdict::Pass | Verdict::Answer => XDP_PASS,
        Verdict::Redirect => XDP_REDIRECT,
        Verdict::Drop(_) => XDP_DROP,
    }
}

/// Run by user space only: see [`sweep`].
#[classifier]
pub fn fwbpf_sweep(context: TcContext) -> i32 {
    let packet = SkbPacket::new(context);
    if packet.mark() == SWEEP_LISTS {
        return sweep::change_list(&packet, &BpfTables) as i32;
    }
    if packet.mark() == SWEEP_HINTS {
        sweep::forget_hints(&BpfTables);
        return 0;
    }
    sweep::sweep(&packet, &BpfTables) as i32
}

#[inline(always)]
fn tc_action(verdict: Verdict, scratch: &Scratch) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Redirect => skb::redirect(scratch.sending.route.device),
        Verdict::Answer => answer::send(&scratch.answer),
        Verdict::Drop(stat) => {
            BpfTables.count(stat);
            TC_ACT_SHOT
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could get here, as this does not end.
    loop {}
}

/// Helpers that the kernel exports to GPL programs only need this.
#[expect(unsafe_code, reason = "the loader finds the licence by its section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
