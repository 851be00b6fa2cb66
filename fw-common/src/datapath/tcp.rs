//! The TCP state machine, as netfilter's `nf_conntrack_tcp_packet` behaves
//! (net/netfilter/nf_conntrack_proto_tcp.c). [`super::window`] has the windows.

mod segment;

pub(super) use segment::kind;
pub use segment::{Segment, flag};

use super::window::{self, Fit, before, option};
use crate::abi::blob::{HeaderFields, TIMEOUTS, Timeout};
use crate::abi::flow::{Flow, Sent};

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

/// The segment does not fit the state: INVALID.
const NO_STATE: u8 = 10;
/// The segment may be right while our state is stale: let it pass and remember it.
const IGNORE: u8 = 11;

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

/// [`Flow::tcp`], in one piece: BPF has few registers.
#[derive(Clone, Copy)]
pub(super) struct Word(u32);

impl Word {
    /// A SYN was let through in LAST_ACK: an ACK may be a challenge (RFC 5961 4.2).
    const EXPECT_CHALLENGE: u8 = 0x40;
    /// Both sides sent a SYN first.
    const SIMULTANEOUS: u8 = 0x80;
    /// Beside the kind of the last segment: it was a reply.
    const REPLY: u32 = 0x8000;
    /// Where retransmissions and flags are.
    const RETRANSMISSIONS: u32 = 16;
    const FLAGS: u32 = 24;

    #[inline(always)]
    fn new(state: u8, last_kind: u8) -> Self {
        Self(state as u32 | (last_kind as u32) << 8)
    }

    #[inline(always)]
    pub(super) fn state(self) -> u8 {
        self.0 as u8
    }

    #[inline(always)]
    fn last_kind(self) -> u8 {
        (self.0 >> 8) as u8 & 0x7f
    }

    #[inline(always)]
    pub(super) fn last_reply(self) -> bool {
        self.0 & Self::REPLY != 0
    }

    /// How often the last acknowledgement was sent again.
    #[inline(always)]
    pub(super) fn retransmissions(self) -> u8 {
        (self.0 >> Self::RETRANSMISSIONS) as u8
    }

    #[inline(always)]
    pub(super) fn set_retransmissions(&mut self, count: u8) {
        self.0 =
            self.0 & !(0xff << Self::RETRANSMISSIONS) | (count as u32) << Self::RETRANSMISSIONS;
    }

    /// Of the last SYN that was ignored: [`option`], and the flags above.
    #[inline(always)]
    fn flags(self) -> u8 {
        (self.0 >> Self::FLAGS) as u8
    }

    #[inline(always)]
    fn set_flags(&mut self, flags: u8) {
        self.0 = self.0 & !(0xff << Self::FLAGS) | (flags as u32) << Self::FLAGS;
    }

    #[inline(always)]
    fn set_last(&mut self, kind: u8, reply: bool) {
        let reply = if reply { Self::REPLY } else { 0 };
        self.0 = self.0 & !0xff00 | (kind as u32) << 8 | reply;
    }

    #[inline(always)]
    fn set_state(&mut self, state: u8) {
        self.0 = self.0 & !0xff | state as u32;
    }
}

/// The flow's TCP state, one of [`state`].
#[inline(always)]
pub fn state_of(flow: &Flow) -> u8 {
    flow.tcp.get() as u8
}

/// Whether a connection that only waits for its time to end makes way for one that wants its translated
/// source, whose SYN ends at this sequence number: that has gone on, so that the far side takes the new
/// connection's segments for later ones (`nf_nat_used_tuple_harder`, net/netfilter/nf_nat_core.c).
#[inline(always)]
pub fn makes_way(flow: &Flow, end: u32) -> bool {
    state_of(flow) >= state::TIME_WAIT
        && flow.status.get() & Flow::SNAT != 0
        && end.wrapping_sub(flow.sent[0].end.get()) as i32 > 0
}

/// Closes a flow that was sent a reset; false if it is closed already.
#[inline(always)]
pub fn close(flow: &Flow) -> bool {
    let mut word = Word(flow.tcp.get());
    if word.state() == state::CLOSE {
        return false;
    }
    word.set_state(state::CLOSE);
    flow.tcp.set(word.0);
    true
}

/// What a segment does to its flow: for how long it lives on, or one of the following. A life is a
/// [`Timeout`] as a number, and reasons for which it may be a shorter one ([`lifetime`]).
pub type Outcome = u32;

/// Let through without a change.
pub const IGNORED: Outcome = 1 << 16;
/// INVALID.
pub const INVALID: Outcome = IGNORED + 1;
/// INVALID, and the end of a connection of which we have lost track: it shall not live on for days.
pub const LOST_TRACK: Outcome = IGNORED + 2;
/// The flow ends with this segment.
pub const ENDED: Outcome = IGNORED + 3;
/// The flow is dead and this SYN opens a new one.
pub const REOPENED: Outcome = IGNORED + 4;

/// The same acknowledgement came too often.
const RETRANSMITTED: Outcome = 1 << 5;
/// The segment is a reset.
const RESET: Outcome = 1 << 6;
/// There are data that nobody has acknowledged.
const UNACKNOWLEDGED: Outcome = 1 << 7;
/// Nobody may send: the last window was zero.
const NO_WINDOW: Outcome = 1 << 8;
/// Established, as far as one side tells.
const ONE_SIDED: Outcome = 1 << 9;

/// In which cell of timeouts the timeout of a life is.
#[inline(always)]
pub fn timeout_cell(outcome: Outcome) -> usize {
    (TIMEOUTS + (outcome >> 4 & 1)) as usize
}

/// For how many seconds a flow lives, from the policy's timeouts: the cell of its own one, which is
/// that of all of TCP's if it is one of these.
#[inline(always)]
pub fn lifetime(timeouts: &[u32; 16], outcome: Outcome) -> u32 {
    let own = timeouts[outcome as usize & 15];
    if outcome >> 5 == 0 {
        return own;
    }
    let (again, open) = (
        timeouts[Timeout::Retransmission as usize],
        timeouts[Timeout::Unacknowledged as usize],
    );
    let seconds = if outcome & RETRANSMITTED != 0 && own > again {
        again
    } else if outcome & RESET != 0 {
        timeouts[Timeout::Close as usize]
    } else if outcome & UNACKNOWLEDGED != 0 && own > open {
        open
    } else if outcome & NO_WINDOW != 0 && own > again {
        again
    } else {
        own
    };
    if outcome & ONE_SIDED != 0 && seconds > open {
        return open;
    }
    seconds
}

/// Prepares a flow that has no state yet for its first segment, for which [`Segment::opens`] holds;
/// then it is moved on by that segment as by any other (`tcp_new`).
#[inline(always)]
pub fn open(flow: &Flow, segment: &Segment) {
    flow.tcp.set(Word::new(state::NONE, kind::NONE).0);
    let (first, other) = (&flow.sent[0], &flow.sent[1]);
    let width = (segment.window as u32).max(1);
    first.end.set(segment.end);
    first.max_window.set(width);
    if segment.flags & flag::SYN != 0 {
        first.max_end.set(segment.end);
        window::take_options(first, segment);
    } else {
        // Picked up in the middle: scales are not known, so windows are not held against anybody.
        first.max_end.set(segment.end.wrapping_add(width));
        let flags = (option::SACK_PERMITTED | option::LIBERAL) as u32;
        first.flags.set(flags << Sent::FLAGS);
        other.flags.set(flags << Sent::FLAGS);
    }
}

/// Makes a flow one that was tracked by somebody else, who knows its state but does not tell the windows:
/// as of one that is picked up in the middle, they are not held against anybody.
pub fn adopt(flow: &Flow, state: u8) {
    flow.tcp.set(Word::new(state, kind::NONE).0);
    flow.last_window.set(u16::MAX as u32);
    let flags = (option::SACK_PERMITTED | option::LIBERAL) as u32;
    for sent in &flow.sent {
        sent.flags.set(flags << Sent::FLAGS);
    }
}

/// A segment of a flow.
#[inline(always)]
pub fn advance(flow: &Flow, segment: &Segment, reply: bool) -> Outcome {
    let mut word = Word(flow.tcp.get());
    let old = word.state();
    let segment_kind = segment.kind();
    let (sender, receiver) = if reply {
        (&flow.sent[1], &flow.sent[0])
    } else {
        (&flow.sent[0], &flow.sent[1])
    };
    let mut from = old;
    let mut new = next_state(reply, segment_kind, old);
    let mut fits = false;
    match new {
        NO_STATE => return INVALID,
        state::SYN_SENT if old >= state::TIME_WAIT => {
            let closed = (sender.flags() | receiver.flags()) & option::CLOSE_INITIATED != 0;
            if closed || (word.last_reply() == reply && word.last_kind() == kind::RST) {
                return REOPENED;
            }
            return ignore(flow, segment, word, reply);
        }
        IGNORE => {
            // A SYN-ACK that answers a SYN which we ignored: the two ends agree, we were stale.
            if segment_kind != kind::SYN_ACK
                || word.last_kind() != kind::SYN
                || word.last_reply() == reply
                || segment.ack != flow.last_end.get()
            {
                return ignore(flow, segment, word, reply);
            }
            from = state::SYN_SENT;
            new = state::SYN_RECV;
            word.set_flags(word.flags() & !Word::EXPECT_CHALLENGE);
            let last_window = flow.last_window.get();
            receiver.end.set(flow.last_end.get());
            receiver.max_end.set(flow.last_end.get());
            receiver.max_window.set((last_window & 0xffff).max(1));
            receiver.set_flags(word.flags(), (last_window >> 16) as u8);
            sender.reset();
        }
        state::TIME_WAIT
            if old == state::LAST_ACK
                && segment_kind == kind::ACK
                && word.last_reply() != reply
                && word.last_kind() == kind::SYN
                && word.flags() & Word::EXPECT_CHALLENGE != 0 =>
        {
            word.set_flags(word.flags() & !Word::EXPECT_CHALLENGE);
            flow.tcp.set(word.0);
            return IGNORED;
        }
        state::SYN_SENT2 => word.set_flags(word.flags() | Word::SIMULTANEOUS),
        state::SYN_RECV
            if reply && segment_kind == kind::ACK && word.flags() & Word::SIMULTANEOUS != 0 =>
        {
            new = state::ESTABLISHED;
        }
        state::CLOSE if segment_kind == kind::RST => {
            match reset(flow, segment, word, receiver, reply) {
                Reset::Invalid => return INVALID,
                Reset::Fits => fits = true,
                Reset::Closes => {}
                Reset::Unproven => fits = answers_what_we_ignored(flow, segment, word, reply),
                Reset::Stays => {
                    new = old;
                    fits = answers_what_we_ignored(flow, segment, word, reply);
                }
            }
        }
        _ => {}
    }
    if !fits {
        match window::fit(flow, segment, segment_kind, reply, &mut word) {
            Fit::Inside => {}
            Fit::Ignored => {
                flow.tcp.set(word.0);
                return IGNORED;
            }
            Fit::Outside => return outside(flow, segment_kind, word, reply),
        }
    }
    word.set_last(segment_kind, reply);
    word.set_state(new);
    if from != new && new == state::FIN_WAIT {
        sender.add_flags(option::CLOSE_INITIATED);
    }
    flow.tcp.set(word.0);

    let mut lives = timeout(new);
    if word.retransmissions() as u32 >= segment.settings >> HeaderFields::TCP_RETRANSMISSIONS {
        lives |= RETRANSMITTED;
    }
    if segment_kind == kind::RST {
        lives |= RESET;
    }
    if (sender.flags() | receiver.flags()) & option::UNACKNOWLEDGED != 0 {
        lives |= UNACKNOWLEDGED;
    }
    if flow.last_window.get() & 0xffff == 0 {
        lives |= NO_WINDOW;
    }
    let status = flow.status.get();
    if status & Flow::SEEN_REPLY == 0 {
        // A reset is the only answer, or no answer came at all: nothing is worth keeping.
        if segment_kind == kind::RST {
            return ENDED;
        }
        // A client that repeats its SYN must not keep the entry for ever.
        if segment_kind == kind::SYN && from == state::SYN_SENT {
            return IGNORED;
        }
        if new == state::ESTABLISHED {
            lives |= ONE_SIDED;
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
    let kind = segment.kind();
    word.set_last(kind, reply);
    let mut scale = (flow.last_window.get() >> 16) as u8;
    if kind == kind::SYN && !reply {
        let challenge = if word.state() == state::LAST_ACK {
            Word::EXPECT_CHALLENGE
        } else {
            0
        };
        word.set_flags(segment.options | challenge);
        scale = segment.scale;
    }
    // Perhaps the answer to a SYN by a host that has another connection in mind.
    if word.state() == state::SYN_SENT && kind == kind::ACK && reply {
        flow.last_ack.set(segment.ack);
    }
    flow.last_seq.set(segment.seq);
    flow.last_end.set(segment.end);
    flow.last_window
        .set(segment.window as u32 | (scale as u32) << 16);
    flow.tcp.set(word.0);
    IGNORED
}

/// A segment outside of the window: a flow whose end we took for that lives on, but not for days
/// (`nf_tcp_handle_invalid`).
#[inline(always)]
fn outside(flow: &Flow, segment_kind: u8, mut word: Word, reply: bool) -> Outcome {
    let ends = |kind: u8| matches!(kind, kind::RST | kind::FIN);
    let mut outcome = INVALID;
    if flow.status.get() & Flow::ASSURED != 0 && ends(segment_kind) {
        if word.last_reply() != reply && ends(word.last_kind()) {
            outcome = LOST_TRACK;
        } else {
            word.set_last(segment_kind, reply);
        }
    }
    flow.tcp.set(word.0);
    outcome
}

/// What a reset is.
enum Reset {
    /// Its sequence number is impossible.
    Invalid,
    /// The window does not matter.
    Fits,
    /// The connection closes, if it is in the window.
    Closes,
    /// The same, but nothing is known that its sequence number could be held against.
    Unproven,
    /// In the window it may be, but is not exact: the receiver will challenge it (RFC 5961 3.2).
    Stays,
}

#[inline(always)]
fn reset(flow: &Flow, segment: &Segment, word: Word, receiver: &Sent, reply: bool) -> Reset {
    // A closing flow's numbers may be those of an earlier use of its ports (`tcp_can_early_drop`).
    let closing = matches!(
        word.state(),
        state::FIN_WAIT | state::CLOSE_WAIT | state::LAST_ACK | state::TIME_WAIT | state::CLOSE
    );
    if closing {
        return Reset::Fits;
    }
    if receiver.flags() & option::MAX_ACK_SET == 0 || word.last_kind() == kind::SYN {
        return Reset::Unproven;
    }
    let established = word.state() == state::ESTABLISHED && flow.status.get() & Flow::ASSURED != 0;
    if segment.seq == 0 && !established {
        return Reset::Closes;
    }
    let expected = receiver.max_ack.get();
    if before(segment.seq, expected) && segment.settings & HeaderFields::TCP_ANY_RESET == 0 {
        return Reset::Invalid;
    }
    let follows_last = word.last_kind() == kind::ACK
        && word.last_reply() == reply
        && segment.seq == flow.last_end.get();
    if !established || segment.seq == expected || follows_last {
        return Reset::Closes;
    }
    Reset::Stays
}

/// Whether a reset answers a SYN or an acknowledgement that we let through though it did not fit: the
/// two ends know better, and the window is not asked. (That the SYN has to be the other side's is how
/// Linux 6.18 behaves.)
#[inline(always)]
fn answers_what_we_ignored(flow: &Flow, segment: &Segment, word: Word, reply: bool) -> bool {
    let status = flow.status.get();
    let last = word.last_kind();
    let answers = word.last_reply() != reply;
    let ignored = status & Flow::SEEN_REPLY != 0 && last == kind::SYN && answers
        || status & Flow::ASSURED == 0 && last == kind::ACK;
    ignored && segment.ack == flow.last_end.get()
        || word.state() == state::SYN_SENT
            && last == kind::ACK
            && word.last_reply()
            && segment.seq == flow.last_ack.get()
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
