//! TCP windows: whether a segment can be part of its connection, by what both sides have sent and
//! allowed (`tcp_in_window` in net/netfilter/nf_conntrack_proto_tcp.c, after "Real Stateful TCP
//! Packet Filtering in IP Filter" by Guido van Rooij).
//!
//! No lock is taken. Each word is read and written once; what two CPUs do to a flow at the same
//! moment may lose one of two updates. Segments of one direction meet on two CPUs only when a flow
//! moves from one receive queue to another; then [`Sent::end`] may fall behind by a segment until the
//! next one, and an acknowledgement of that one is INVALID once, as if the segment had taken another
//! way. Segments of opposite directions share `max_end` and `max_window` of either side: the one that
//! is lost is made up for by the next acknowledgement, which says the same again.

use super::packet::Packet;
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use super::tcp::{Segment, Word, flag, kind, state};
use crate::abi::blob::HeaderFields;
use crate::abi::flow::{Flow, Sent};

/// What is known of a side of a connection; the numbers are netfilter's (`IP_CT_TCP_FLAG_*`,
/// include/uapi/linux/netfilter/nf_conntrack_tcp.h).
pub mod option {
    /// It offered to scale its window.
    pub const WINDOW_SCALE: u8 = 0x01;
    /// It permitted selective acknowledgements.
    pub const SACK_PERMITTED: u8 = 0x02;
    /// It sent the first FIN.
    pub const CLOSE_INITIATED: u8 = 0x04;
    /// Its window is not held against it.
    pub const LIBERAL: u8 = 0x08;
    /// It has sent data that are not acknowledged.
    pub const UNACKNOWLEDGED: u8 = 0x10;
    /// [`crate::abi::flow::Sent::max_ack`] says something.
    pub const MAX_ACK_SET: u8 = 0x20;
}

/// `a` is before `b` in sequence space.
#[inline(always)]
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Sent {
    /// Where in [`Sent::flags`] the [`option`]s are; below them is the scale.
    pub const FLAGS: u32 = 8;

    /// Its [`option`]s.
    #[inline(always)]
    pub fn flags(&self) -> u8 {
        (self.flags.get() >> Self::FLAGS) as u8
    }

    #[inline(always)]
    fn scale(&self) -> u32 {
        self.flags.get() & MAX_SCALE
    }

    /// Sets [`option`]s and scale.
    #[inline(always)]
    pub fn set_flags(&self, flags: u8, scale: u8) {
        self.flags
            .set((flags as u32) << Self::FLAGS | scale as u32 & MAX_SCALE);
    }

    /// Adds an [`option`].
    #[inline(always)]
    pub fn add_flags(&self, flags: u8) {
        self.flags
            .set(self.flags.get() | (flags as u32) << Self::FLAGS);
    }

    /// Forgets all but that the window is not held against the side (`nf_ct_tcp_state_reset`).
    #[inline(always)]
    pub fn reset(&self) {
        self.end.set(0);
        self.max_end.set(0);
        self.max_window.set(0);
        self.max_ack.set(0);
        self.set_flags(self.flags() & option::LIBERAL, 0);
    }
}

const MAX_SCALE: u32 = 0x0f;

/// Where a segment is.
pub enum Fit {
    /// In the window, or so close that it is taken for it.
    Inside,
    /// Late: it passes and changes nothing.
    Ignored,
    /// Outside.
    Outside,
}

/// An acknowledgement may be so far behind, whatever the window.
const LATE: u32 = 66_000;

/// Whether a segment fits, and what it tells.
#[inline(always)]
pub(super) fn fit(
    flow: &Flow,
    segment: &Segment,
    segment_kind: u8,
    reply: bool,
    word: &mut Word,
) -> Fit {
    let (sender, receiver) = if reply {
        (&flow.sent[1], &flow.sent[0])
    } else {
        (&flow.sent[0], &flow.sent[1])
    };
    let (mut seq, mut end) = (segment.seq, segment.end);
    let mut ack = segment.ack;
    let mut sack = ack;
    if receiver.flags() & option::SACK_PERMITTED != 0 {
        sack = segment.sack;
    }
    let syn = segment.flags & flag::SYN != 0;
    let acknowledges = segment.flags & flag::ACK != 0;
    let opening = matches!(word.state(), state::SYN_SENT | state::SYN_RECV);

    if sender.max_window.get() == 0 {
        if syn {
            begin(sender, receiver, segment, reply);
            if !acknowledges {
                return Fit::Inside;
            }
        } else {
            // In the middle of a connection: its history is this segment.
            let width = ((segment.window as u32) << sender.scale()).max(1);
            sender.end.set(end);
            sender.max_window.set(width);
            sender.max_end.set(end.wrapping_add(width));
            if receiver.max_window.get() == 0 {
                receiver.end.set(sack);
                receiver.max_end.set(sack);
            } else if sack == receiver.end.get().wrapping_add(1) {
                // The answer to a keep-alive.
                receiver.end.set(sack);
            }
        }
    } else if syn && opening && before(sender.end.get(), end) {
        // It begins anew, with other numbers (RFC 9293 3.4.3).
        begin(sender, receiver, segment, reply);
        if reply && !acknowledges {
            return Fit::Inside;
        }
    }

    let received = receiver.end.get();
    // Some resets acknowledge zero.
    if !acknowledges || segment.flags & flag::RST != 0 && ack == 0 {
        ack = received;
        sack = received;
    }
    if segment.flags & flag::RST != 0 && seq == 0 && word.state() == state::SYN_SENT {
        // The answer to a SYN.
        seq = sender.end.get();
        end = seq;
    }

    let (allowed, theirs) = (sender.max_end.get(), receiver.max_window.get());
    let lowest = sender.end.get().wrapping_sub(theirs).wrapping_sub(1);
    let late = sender.max_window.get().max(LATE);
    let not_late = before(received.wrapping_sub(late).wrapping_sub(1), sack);
    let acknowledges_sent = before(sack, received.wrapping_add(1));
    if !before(seq, allowed.wrapping_add(1)) {
        let overshot = end.wrapping_sub(allowed).wrapping_add(1);
        if theirs != 0 && before(lowest, end) && not_late && overshot <= theirs && acknowledges_sent
        {
            // More than the receiver allowed, by less than a window: it may take it all the same, and
            // its acknowledgement has to fit then.
            sender.end.set(end);
            sender.add_flags(option::UNACKNOWLEDGED);
            return misfit(segment, sender, Fit::Ignored);
        }
        return misfit(segment, sender, Fit::Outside);
    }
    if !acknowledges_sent {
        return misfit(segment, sender, Fit::Outside);
    }
    if theirs != 0 && !before(lowest, end) || !not_late {
        return misfit(segment, sender, Fit::Ignored);
    }
    learn(segment, sender, receiver, end, ack, sack);
    if segment_kind == kind::ACK {
        count_retransmissions(flow, segment, seq, ack, end, reply, word);
    }
    Fit::Inside
}

/// What becomes of a segment that does not fit: nothing, where windows are not held against anybody
/// (`nf_tcp_log_invalid`).
#[inline(always)]
fn misfit(segment: &Segment, sender: &Sent, fit: Fit) -> Fit {
    if segment.settings & HeaderFields::TCP_LIBERAL != 0 || sender.flags() & option::LIBERAL != 0 {
        return Fit::Inside;
    }
    fit
}

/// A side's first segment, or the first of another attempt (`tcp_init_sender`).
#[inline(always)]
fn begin(sender: &Sent, receiver: &Sent, segment: &Segment, reply: bool) {
    sender.end.set(segment.end);
    sender.max_end.set(segment.end);
    sender.max_window.set((segment.window as u32).max(1));
    take_options(sender, segment);
    // Windows are scaled if both sides say so (RFC 7323 2.2).
    if reply && sender.flags() & receiver.flags() & option::WINDOW_SCALE == 0 {
        sender.set_flags(sender.flags(), 0);
        receiver.set_flags(receiver.flags(), 0);
    }
}

/// What a SYN's options say of its sender. One without options says nothing (`tcp_options`).
#[inline(always)]
pub fn take_options(sender: &Sent, segment: &Segment) {
    if segment.words > HEADER_WORDS {
        let kept = sender.flags() & option::LIBERAL;
        sender.set_flags(kept | segment.options, segment.scale);
    }
}

/// What a segment in the window says of both sides.
#[inline(always)]
fn learn(segment: &Segment, sender: &Sent, receiver: &Sent, end: u32, ack: u32, sack: u32) {
    let mut width = segment.window as u32;
    if segment.flags & flag::SYN == 0 {
        width <<= sender.scale();
    }
    let offered = width.wrapping_add(sack.wrapping_sub(ack));
    if sender.max_window.get() < offered {
        sender.max_window.set(offered);
    }
    let (old, mut flags) = (sender.flags(), sender.flags());
    if before(sender.end.get(), end) {
        sender.end.set(end);
        flags |= option::UNACKNOWLEDGED;
    }
    if segment.flags & flag::ACK != 0
        && (flags & option::MAX_ACK_SET == 0 || before(sender.max_ack.get(), ack))
    {
        sender.max_ack.set(ack);
        flags |= option::MAX_ACK_SET;
    }
    if flags != old {
        sender.add_flags(flags);
    }

    let beyond = end.wrapping_sub(sender.max_end.get());
    if receiver.max_window.get() != 0 && (beyond as i32) > 0 {
        receiver
            .max_window
            .set(receiver.max_window.get().wrapping_add(beyond));
    }
    let allowed = sack.wrapping_add(width);
    if before(receiver.max_end.get().wrapping_sub(1), allowed) {
        receiver
            .max_end
            .set(allowed.wrapping_add((width == 0) as u32));
    }
    let theirs = receiver.flags();
    if ack == receiver.end.get() && theirs & option::UNACKNOWLEDGED != 0 {
        receiver.set_flags(theirs & !option::UNACKNOWLEDGED, receiver.scale() as u8);
    }
}

/// Counts how often an acknowledgement comes again: a connection whose data nobody acknowledges ends
/// sooner.
#[inline(always)]
fn count_retransmissions(
    flow: &Flow,
    segment: &Segment,
    seq: u32,
    ack: u32,
    end: u32,
    reply: bool,
    word: &mut Word,
) {
    let last_window = flow.last_window.get();
    if word.last_reply() == reply
        && flow.last_seq.get() == seq
        && flow.last_ack.get() == ack
        && flow.last_end.get() == end
        && last_window as u16 == segment.window
    {
        word.set_retransmissions(word.retransmissions().wrapping_add(1));
        return;
    }
    word.set_retransmissions(0);
    flow.last_seq.set(seq);
    flow.last_ack.set(ack);
    flow.last_end.set(end);
    flow.last_window
        .set(last_window & 0xffff_0000 | segment.window as u32);
}

/// Words in a header without options.
pub const HEADER_WORDS: u8 = 5;

/// The words of a header that has timestamps as its only option, and the first of their words
/// (RFC 7323, appendix A).
const TIMESTAMP_WORDS: u8 = HEADER_WORDS + 3;
const TIMESTAMPS: [u8; 4] = [1, 1, 8, 10];

/// Reads a segment's options where they matter: a SYN's, and selective acknowledgements of a side that
/// was permitted to send them. The usual segment has none, or timestamps only.
#[inline(always)]
pub fn read_options<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    permitted: bool,
) {
    let segment = &scratch.segment;
    if segment.words <= HEADER_WORDS
        || segment.flags & flag::SYN == 0
            && (!permitted || segment.words == TIMESTAMP_WORDS && has_timestamps(packet, scratch))
    {
        return;
    }
    packet.call::<ReadOptions, T>(tables, scratch, 0);
}

/// Whether the first option are timestamps, aligned as all senders align them.
#[inline(always)]
fn has_timestamps<P: Packet>(packet: &P, scratch: &Scratch) -> bool {
    use super::header::L4_V4;
    const AT: usize = L4_V4 + 20;
    if scratch.headers.l4 as usize == L4_V4
        && let Some(frame) = packet.window::<{ AT + 4 }>()
    {
        return [frame[AT], frame[AT + 1], frame[AT + 2], frame[AT + 3]] == TIMESTAMPS;
    }
    packet.load::<4>(scratch.headers.l4 as u32 + 20) == Some(TIMESTAMPS)
}

/// Reads the options of the segment in the scratch space.
pub struct ReadOptions;

impl Stage for ReadOptions {
    const NAME: Name = Name::ReadOptions;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(packet: &mut P, _: &T, scratch: &mut Scratch, _: u32) -> u32 {
        let at = scratch.headers.l4 as u32 + 20;
        let words = scratch.segment.words.wrapping_sub(HEADER_WORDS) as u32;
        let mut number = 0;
        while number < MAX_WORDS {
            if number >= words {
                break;
            }
            let Some(word) = packet.load::<4>(at + 4 * number) else {
                break;
            };
            scratch.options[number as usize & 15] = word;
            number += 1;
        }
        scratch.options_left.set(4 * number);
        scratch.options_at.set(0);
        let mut turn = 0;
        while turn < 4 * MAX_WORDS {
            if !take_option(scratch) {
                break;
            }
            turn += 1;
        }
        0
    }
}

/// Words of options, at most.
const MAX_WORDS: u32 = 10;

/// Takes the next option; false if there is none, or what is left makes no sense.
#[inline(always)]
fn take_option(scratch: &mut Scratch) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const SCALE: u8 = 3;
    const SACK_PERMITTED: u8 = 4;
    const SACK: u8 = 5;
    let (at, left) = (scratch.options_at.get(), scratch.options_left.get());
    if left == 0 {
        return false;
    }
    let kind = byte(scratch, at);
    if kind == END {
        return false;
    }
    let mut length = 1;
    if kind != NOTHING {
        length = byte(scratch, at + 1) as u32;
        if left < 2 || length < 2 || length > left {
            return false;
        }
    }
    scratch.options_at.set(at + length);
    scratch.options_left.set(left - length);
    match (kind, length) {
        (SCALE, 3) => {
            // RFC 7323 2.3.
            scratch.segment.scale = byte(scratch, at + 2).min(14);
            scratch.segment.options |= option::WINDOW_SCALE;
        }
        (SACK_PERMITTED, 2) => scratch.segment.options |= option::SACK_PERMITTED,
        // The first one of whole blocks counts (`tcp_sack`).
        (SACK, 10 | 18 | 26 | 34) if !scratch.segment.sacked => {
            scratch.segment.sacked = true;
            let mut block = 0;
            while block < 4 {
                if block * BLOCK + 2 < length {
                    take_edge(scratch, at + 2 + block * BLOCK + BLOCK / 2);
                }
                block += 1;
            }
        }
        _ => {}
    }
    true
}

/// Bytes of a block in a selective acknowledgement: its left edge and its right one.
const BLOCK: u32 = 8;

/// Takes the right edge of a block.
#[inline(always)]
fn take_edge(scratch: &mut Scratch, at: u32) {
    let edge = u32::from_be_bytes([
        byte(scratch, at),
        byte(scratch, at + 1),
        byte(scratch, at + 2),
        byte(scratch, at + 3),
    ]);
    if before(scratch.segment.sack, edge) {
        scratch.segment.sack = edge;
    }
}

/// A byte of the options.
#[inline(always)]
fn byte(scratch: &Scratch, at: u32) -> u8 {
    scratch.options[(at as usize / 4) & 15][at as usize & 3]
}
