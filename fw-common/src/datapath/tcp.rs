//! The TCP state machine, as netfilter's `nf_conntrack_proto_tcp.c` behaves.
//!
//! Every segment is taken to be in the window (`nf_conntrack_tcp_be_liberal`), except a reset,
//! whose sequence number is always checked (RFC 5961 3.2).

use crate::abi::blob::Timeout;
use crate::abi::flow::{Flow, Sent};

/// TCP header flags (RFC 9293 3.1).
pub mod flag {
    /// FIN.
    pub const FIN: u8 = 0x01;
    /// SYN.
    pub const SYN: u8 = 0x02;
    /// RST.
    pub const RST: u8 = 0x04;
    /// PSH.
    pub const PSH: u8 = 0x08;
    /// ACK.
    pub const ACK: u8 = 0x10;
    /// URG.
    pub const URG: u8 = 0x20;
    /// ECE and CWR.
    pub const ECN: u8 = 0xc0;
}

/// States; the numbers are netfilter's.
pub mod state {
    /// No flow yet.
    pub const NONE: u8 = 0;
    /// SYN seen.
    pub const SYN_SENT: u8 = 1;
    /// SYN-ACK seen.
    pub const SYN_RECV: u8 = 2;
    /// ACK seen.
    pub const ESTABLISHED: u8 = 3;
    /// FIN seen.
    pub const FIN_WAIT: u8 = 4;
    /// ACK after FIN seen.
    pub const CLOSE_WAIT: u8 = 5;
    /// FIN both ways seen.
    pub const LAST_ACK: u8 = 6;
    /// Last ACK seen.
    pub const TIME_WAIT: u8 = 7;
    /// RST seen.
    pub const CLOSE: u8 = 8;
    /// SYN both ways seen: simultaneous open.
    pub const SYN_SENT2: u8 = 9;
}

/// The names that `conntrack -L` prints, by number.
pub const STATE_NAMES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

/// What a segment is, for the state machine.
mod kind {
    pub const SYN: u8 = 0;
    pub const SYN_ACK: u8 = 1;
    pub const FIN: u8 = 2;
    pub const ACK: u8 = 3;
    pub const RST: u8 = 4;
    pub const NONE: u8 = 5;
}

/// The segment does not fit the state: INVALID.
const NO_STATE: u8 = 10;
/// The segment may be right while our state is stale: let it pass and remember it.
const IGNORE: u8 = 11;

/// The part of a segment that tracking needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Segment {
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Sequence number after the segment: data, SYN and FIN counted.
    pub end: u32,
    /// Window, unscaled.
    pub window: u16,
    /// Header flags.
    pub flags: u8,
}

impl Segment {
    /// From a header's first 20 bytes and the length of header and data together.
    #[inline(always)]
    pub fn new<const N: usize>(bytes: &[u8; N], at: usize, length: u32) -> Self {
        let header = &bytes[at..];
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let flags = header[13];
        let data = length.wrapping_sub((header[12] >> 4) as u32 * 4);
        let phantom = (flags & flag::SYN != 0) as u32 + (flags & flag::FIN != 0) as u32;
        Self {
            seq: word(4),
            ack: word(8),
            end: word(4).wrapping_add(data).wrapping_add(phantom),
            window: u16::from_be_bytes([header[14], header[15]]),
            flags,
        }
    }

    /// A segment of which only the flags are known.
    #[inline(always)]
    pub fn of_flags(flags: u8) -> Self {
        Self {
            seq: 0,
            ack: 0,
            end: 0,
            window: 0,
            flags,
        }
    }

    #[inline(always)]
    fn kind(&self) -> u8 {
        if self.flags & flag::RST != 0 {
            kind::RST
        } else if self.flags & flag::SYN != 0 {
            if self.flags & flag::ACK != 0 {
                kind::SYN_ACK
            } else {
                kind::SYN
            }
        } else if self.flags & flag::FIN != 0 {
            kind::FIN
        } else if self.flags & flag::ACK != 0 {
            kind::ACK
        } else {
            kind::NONE
        }
    }

    /// Whether the segment can open a flow.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        next_state(false, self.kind(), state::NONE) < NO_STATE
    }

    /// Whether the flags make sense together. ECN bits and PSH go with anything.
    #[inline(always)]
    pub fn flags_are_valid(&self) -> bool {
        let flags = self.flags & !(flag::ECN | flag::PSH);
        let without_urgent = flags & !flag::URG;
        match without_urgent {
            flag::SYN | flag::ACK => true,
            // FIN alone is not valid: every segment after the handshake acknowledges.
            0x11 => true,
            flag::RST | 0x12 | 0x14 => flags == without_urgent,
            _ => false,
        }
    }
}

/// `a` is before `b` in sequence space.
#[inline(always)]
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

const fn row(states: [u8; 10]) -> u64 {
    let mut packed = 0u64;
    let mut place = 0;
    while place < 10 {
        packed |= (states[place] as u64) << (4 * place);
        place += 1;
    }
    packed
}

/// The next state: by direction, by kind of segment, by present state. Each row lists what becomes
/// of NONE, SYN_SENT, SYN_RECV, ESTABLISHED, FIN_WAIT, CLOSE_WAIT, LAST_ACK, TIME_WAIT, CLOSE and
/// SYN_SENT2.
#[inline(always)]
fn next_state(reply: bool, segment: u8, present: u8) -> u8 {
    const G: u8 = IGNORE;
    const V: u8 = NO_STATE;
    // A close goes the same way from both ends.
    const FIN: u64 = row([V, V, 4, 4, 6, 6, 6, 7, 8, V]);
    const RST: u64 = row([V, 8, 8, 8, 8, 8, 8, 8, 8, 8]);
    let row = match (reply, segment) {
        // The client may reopen TIME_WAIT and CLOSE (RFC 9293 3.6.1); the server may reopen TIME_WAIT
        // with the roles switched.
        (false, kind::SYN) => const { row([1, 1, G, G, G, G, G, 1, 1, 9]) },
        (false, kind::SYN_ACK) => const { row([V, V, 2, V, V, V, V, V, V, 2]) },
        // A bare ACK without a flow is picked up as established (nf_conntrack_tcp_loose).
        (false, kind::ACK) => const { row([3, V, 3, 3, 5, 5, 7, 7, 8, V]) },
        (true, kind::SYN) => const { row([V, 9, V, V, V, V, V, 1, V, 9]) },
        (true, kind::SYN_ACK) => const { row([V, 2, G, G, G, G, G, G, G, 2]) },
        (true, kind::ACK) => const { row([V, G, 2, 3, 5, 5, 7, 7, 8, G]) },
        (_, kind::FIN) => FIN,
        (_, kind::RST) => RST,
        _ => return NO_STATE,
    };
    (row >> (4 * (present as u32 & 0xf))) as u8 & 0xf
}

/// The mutable part of a flow's TCP words, unpacked.
#[derive(Clone, Copy)]
struct Word {
    state: u8,
    last_kind: u8,
    last_reply: bool,
    flags: u8,
}

impl Word {
    /// A SYN was let through in LAST_ACK: an ACK may be a challenge (RFC 5961 4.2).
    const EXPECT_CHALLENGE: u8 = 1;
    /// Both sides sent a SYN first.
    const SIMULTANEOUS: u8 = 2;

    #[inline(always)]
    fn of(flow: &Flow) -> Self {
        let word = flow.tcp.get();
        Self {
            state: word as u8,
            last_kind: (word >> 8) as u8,
            last_reply: word >> 16 & 1 != 0,
            flags: (word >> 24) as u8,
        }
    }

    #[inline(always)]
    fn pack(self) -> u32 {
        self.state as u32
            | (self.last_kind as u32) << 8
            | (self.last_reply as u32) << 16
            | (self.flags as u32) << 24
    }
}

/// The flow's TCP state, one of [`state`].
#[inline(always)]
pub fn state_of(flow: &Flow) -> u8 {
    flow.tcp.get() as u8
}

/// Flags in [`Sent::flags`].
const MAX_ACK_SET: u32 = 1 << 8;
const CLOSE_INITIATED: u32 = 1 << 9;
const UNACKNOWLEDGED: u32 = 1 << 10;

/// What a segment does to its flow: a [`Timeout`] as a number, for which the flow lives on, or one
/// of the following.
pub type Outcome = u32;

/// Let through without a change.
pub const IGNORED: Outcome = 16;
/// INVALID.
pub const INVALID: Outcome = 17;
/// The flow ends with this segment.
pub const ENDED: Outcome = 18;
/// The flow is dead and this SYN opens a new one.
pub const REOPENED: Outcome = 19;

/// The first segment of a flow, for which [`Segment::opens`] holds: its timeout.
#[inline(always)]
pub fn open(flow: &mut Flow, segment: &Segment) -> Outcome {
    let first = next_state(false, segment.kind(), state::NONE);
    let word = Word {
        state: first,
        last_kind: segment.kind(),
        last_reply: false,
        flags: 0,
    };
    flow.tcp.set(word.pack());
    flow.last_seq.set(segment.seq);
    flow.last_end.set(segment.end);
    flow.last_ack.set(segment.ack);
    flow.last_window.set(segment.window as u32);
    let sent = &flow.sent[0];
    sent.end.set(segment.end);
    sent.flags.set(0);
    if segment.flags & flag::ACK != 0 {
        // A flow picked up in the middle: nothing is known of what the other side has sent, so that
        // what this segment acknowledges cannot be judged and teaches nothing (`tcp_new`). Without
        // a reply seen, netfilter does not grant it the long timeout.
        return Timeout::Unacknowledged as u32;
    }
    timeout(first)
}

/// A further segment of a flow.
#[inline(always)]
pub fn advance(flow: &Flow, segment: &Segment, reply: bool) -> Outcome {
    let status = flow.status.get();
    let mut word = Word::of(flow);
    let old = word.state;
    let segment_kind = segment.kind();
    let (sender, receiver) = if reply {
        (&flow.sent[1], &flow.sent[0])
    } else {
        (&flow.sent[0], &flow.sent[1])
    };
    let mut from = old;
    let mut new = next_state(reply, segment_kind, old);
    match new {
        NO_STATE => return INVALID,
        state::SYN_SENT if old >= state::TIME_WAIT => {
            let closed = (sender.flags.get() | receiver.flags.get()) & CLOSE_INITIATED != 0;
            if closed || (word.last_reply == reply && word.last_kind == kind::RST) {
                return REOPENED;
            }
            return ignore(flow, segment, word, reply);
        }
        IGNORE => {
            // A SYN-ACK that answers a SYN which we ignored: the two ends agree, we were stale.
            if segment_kind == kind::SYN_ACK
                && word.last_kind == kind::SYN
                && word.last_reply != reply
                && segment.ack == flow.last_end.get()
            {
                from = state::SYN_SENT;
                new = state::SYN_RECV;
                receiver.end.set(flow.last_end.get());
                receiver.flags.set(0);
                sender.end.set(0);
                sender.flags.set(0);
            } else {
                return ignore(flow, segment, word, reply);
            }
        }
        state::TIME_WAIT
            if old == state::LAST_ACK
                && segment_kind == kind::ACK
                && word.last_reply != reply
                && word.last_kind == kind::SYN
                && word.flags & Word::EXPECT_CHALLENGE != 0 =>
        {
            word.flags &= !Word::EXPECT_CHALLENGE;
            flow.tcp.set(word.pack());
            return IGNORED;
        }
        state::SYN_SENT2 => word.flags |= Word::SIMULTANEOUS,
        state::SYN_RECV
            if reply && segment_kind == kind::ACK && word.flags & Word::SIMULTANEOUS != 0 =>
        {
            new = state::ESTABLISHED;
        }
        state::CLOSE if segment_kind == kind::RST => {
            match reset(flow, segment, word, receiver, reply) {
                Some(state) => new = state,
                None => return INVALID,
            }
        }
        _ => {}
    }
    note_window(flow, segment, segment_kind, sender, receiver);
    word.last_kind = segment_kind;
    word.last_reply = reply;
    word.state = new;
    if from != new && new == state::FIN_WAIT {
        sender.flags.set(sender.flags.get() | CLOSE_INITIATED);
    }
    flow.tcp.set(word.pack());

    let unacknowledged = (sender.flags.get() | receiver.flags.get()) & UNACKNOWLEDGED != 0;
    let mut lives = timeout(new);
    if segment_kind == kind::RST {
        lives = Timeout::Close as u32;
    } else if unacknowledged && new == state::ESTABLISHED {
        lives = Timeout::Unacknowledged as u32;
    }
    if status & Flow::SEEN_REPLY == 0 {
        // A reset is the only answer, or no answer came at all: nothing is worth keeping.
        if segment.flags & flag::RST != 0 {
            return ENDED;
        }
        if new == state::ESTABLISHED {
            lives = Timeout::Unacknowledged as u32;
        }
    } else if status & Flow::ASSURED == 0
        && (from == state::SYN_RECV || from == state::ESTABLISHED)
        && new == state::ESTABLISHED
    {
        flow.status.set(status | Flow::ASSURED);
    }
    lives
}

/// Remembers a segment that may be right where our state is stale.
#[inline(always)]
fn ignore(flow: &Flow, segment: &Segment, mut word: Word, reply: bool) -> Outcome {
    word.last_kind = segment.kind();
    word.last_reply = reply;
    if word.last_kind == kind::SYN {
        word.flags = 0;
        if word.state == state::LAST_ACK {
            word.flags = Word::EXPECT_CHALLENGE;
        }
    }
    flow.last_seq.set(segment.seq);
    flow.last_end.set(segment.end);
    flow.last_window.set(segment.window as u32);
    flow.tcp.set(word.pack());
    IGNORED
}

/// The state after a reset, or nothing if its sequence number is impossible.
#[inline(always)]
fn reset(flow: &Flow, segment: &Segment, word: Word, receiver: &Sent, reply: bool) -> Option<u8> {
    // A closing flow's numbers may be those of an earlier use of its ports.
    let closing = matches!(
        word.state,
        state::FIN_WAIT | state::CLOSE_WAIT | state::LAST_ACK | state::TIME_WAIT | state::CLOSE
    );
    if closing || receiver.flags.get() & MAX_ACK_SET == 0 || word.last_kind == kind::SYN {
        return Some(state::CLOSE);
    }
    let established = word.state == state::ESTABLISHED && flow.status.get() & Flow::ASSURED != 0;
    if segment.seq == 0 && !established {
        return Some(state::CLOSE);
    }
    let expected = receiver.max_ack.get();
    if before(segment.seq, expected) {
        return None;
    }
    let follows_last = word.last_kind == kind::ACK
        && word.last_reply == reply
        && segment.seq == flow.last_end.get();
    if !established || segment.seq == expected || follows_last {
        return Some(state::CLOSE);
    }
    // Close, but not exact: the receiver will challenge it (RFC 5961 3.2), so stay.
    Some(word.state)
}

/// Keeps what the reset check and the timeouts need of the windows.
#[inline(always)]
fn note_window(flow: &Flow, segment: &Segment, segment_kind: u8, sender: &Sent, receiver: &Sent) {
    // The sender's first segment is where its numbers begin (`tcp_init_sender`).
    if sender.end.get() == 0 {
        sender.end.set(segment.end);
    }
    // An acknowledgement of what was never sent, or was not seen: out of the window. It passes all
    // the same, but teaches nothing (`tcp_in_window` under nf_conntrack_tcp_be_liberal).
    let sent = receiver.end.get();
    if segment.flags & flag::ACK != 0 && (sent == 0 || before(sent, segment.ack)) {
        return;
    }
    let mut flags = sender.flags.get();
    if before(sender.end.get(), segment.end) {
        sender.end.set(segment.end);
        flags |= UNACKNOWLEDGED;
    }
    if segment.flags & flag::ACK != 0 {
        if flags & MAX_ACK_SET == 0 || before(sender.max_ack.get(), segment.ack) {
            sender.max_ack.set(segment.ack);
            flags |= MAX_ACK_SET;
        }
        if segment.ack == receiver.end.get() {
            receiver.flags.set(receiver.flags.get() & !UNACKNOWLEDGED);
        }
    }
    sender.flags.set(flags);
    if segment_kind == kind::ACK {
        flow.last_seq.set(segment.seq);
        flow.last_ack.set(segment.ack);
        flow.last_end.set(segment.end);
        flow.last_window.set(segment.window as u32);
    }
}

/// The timeouts of the states come first, in the order of the states' numbers.
#[inline(always)]
fn timeout(state: u8) -> Outcome {
    (state as u32).wrapping_sub(1)
}

const _: () = assert!(
    Timeout::SynSent as u32 == state::SYN_SENT as u32 - 1
        && Timeout::SynSent2 as u32 == state::SYN_SENT2 as u32 - 1
);
