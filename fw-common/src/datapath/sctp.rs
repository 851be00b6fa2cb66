//! SCTP's associations, as netfilter's `nf_conntrack_sctp_packet` tracks them
//! (net/netfilter/nf_conntrack_proto_sctp.c; RFC 9260). [`chunks`] reads what a packet says.

mod chunks;

pub use chunks::{Chunks, ReadChunks, chunk};

use super::tables::Tables;
use super::tcp::{IGNORED, INVALID, Outcome};
use crate::MapCell;
use crate::abi::blob::Timeout;
use crate::abi::flow::Flow;

/// States of an association; the numbers are netfilter's.
pub mod state {
    /// Nothing so far.
    pub const NONE: u8 = 0;
    /// Closed, or an INIT was seen.
    pub const CLOSED: u8 = 1;
    /// INIT ACK seen.
    pub const COOKIE_WAIT: u8 = 2;
    /// COOKIE ECHO seen.
    pub const COOKIE_ECHOED: u8 = 3;
    /// COOKIE ACK seen.
    pub const ESTABLISHED: u8 = 4;
    /// SHUTDOWN of the opener seen.
    pub const SHUTDOWN_SENT: u8 = 5;
    /// SHUTDOWN of the other side seen.
    pub const SHUTDOWN_RECD: u8 = 6;
    /// SHUTDOWN ACK seen.
    pub const SHUTDOWN_ACK_SENT: u8 = 7;
    /// HEARTBEAT seen where nothing was known: another way of an association.
    pub const HEARTBEAT_SENT: u8 = 8;
}

/// The names that `conntrack -L` prints, by number.
pub const STATE_NAMES: [&str; 9] = [
    "NONE",
    "CLOSED",
    "COOKIE_WAIT",
    "COOKIE_ECHOED",
    "ESTABLISHED",
    "SHUTDOWN_SENT",
    "SHUTDOWN_RECD",
    "SHUTDOWN_ACK_SENT",
    "HEARTBEAT_SENT",
];

/// The chunk cannot be in this state.
const NO_STATE: u8 = 15;

const fn row(states: [u8; 9]) -> u64 {
    let mut packed = 0u64;
    let mut place = 0;
    while place < 9 {
        packed |= (states[place] as u64) << (4 * place);
        place += 1;
    }
    packed
}

/// The next state: by direction, by type of chunk, by present state. Each row lists what becomes of the
/// states in the order of their numbers.
#[inline(always)]
fn next_state(reply: bool, kind: u32, present: u8) -> u8 {
    const V: u8 = NO_STATE;
    let row = match (reply, kind) {
        (false, chunk::INIT) => const { row([1, 1, 2, 3, 4, 1, 1, 7, 2]) },
        (false, chunk::INIT_ACK | chunk::ERROR) => const { row([1, 1, 2, 3, 4, 5, 6, 7, 1]) },
        (false, chunk::ABORT) => const { row([1; 9]) },
        (false, chunk::SHUTDOWN) => const { row([1, 1, 2, 3, 5, 5, 6, 7, 1]) },
        (false, chunk::SHUTDOWN_ACK) => const { row([7, 1, 2, 3, 4, 7, 7, 7, 7]) },
        (false, chunk::COOKIE_ECHO) => const { row([1, 1, 3, 3, 4, 5, 6, 7, 1]) },
        (false, chunk::COOKIE_ACK) => const { row([1, 1, 2, 4, 4, 5, 6, 7, 1]) },
        (false, chunk::SHUTDOWN_COMPLETE) => const { row([1, 1, 2, 3, 4, 5, 6, 1, 1]) },
        (false, chunk::HEARTBEAT) => const { row([8, 1, 2, 3, 4, 5, 6, 7, 8]) },
        (false, chunk::HEARTBEAT_ACK) => const { row([1, 1, 2, 3, 4, 5, 6, 7, 8]) },
        (true, chunk::INIT) => const { row([V, 1, 2, 3, 4, 5, 6, 7, V]) },
        (true, chunk::INIT_ACK) => const { row([V, 2, 2, 3, 4, 5, 6, 7, V]) },
        (true, chunk::ABORT) => const { row([V, 1, 1, 1, 1, 1, 1, 1, V]) },
        (true, chunk::SHUTDOWN) => const { row([V, 1, 2, 3, 6, 5, 6, 7, V]) },
        (true, chunk::SHUTDOWN_ACK) => const { row([V, 1, 2, 3, 4, 7, 7, 7, V]) },
        (true, chunk::ERROR) => const { row([V, 1, 2, 1, 4, 5, 6, 7, V]) },
        (true, chunk::COOKIE_ECHO) => const { row([V, 1, 3, 3, 4, 5, 6, 7, V]) },
        (true, chunk::COOKIE_ACK) => const { row([V, 1, 2, 4, 4, 5, 6, 7, V]) },
        (true, chunk::SHUTDOWN_COMPLETE) => const { row([V, 1, 2, 3, 4, 5, 6, 1, V]) },
        (true, chunk::HEARTBEAT) => const { row([V, 1, 2, 3, 4, 5, 6, 7, 8]) },
        (true, chunk::HEARTBEAT_ACK) => const { row([V, 1, 2, 3, 4, 5, 6, 7, 4]) },
        _ => return present,
    };
    (row >> (4 * (present as u32 & 0xf))) as u8 & 0xf
}

/// In [`Flow::tcp`], above the state: which sides have sent an INIT that no COOKIE ACK has answered yet.
const INIT: [u32; 2] = [1 << 12, 1 << 13];
/// A HEARTBEAT came with another verification tag than was expected, from the opener or ([`FROM_REPLY`])
/// the other side.
const STRAY_HEARTBEAT: u32 = 1 << 14;
const FROM_REPLY: u32 = 1 << 15;
/// Where the state is. (The lowest byte is TCP's.)
const STATE: u32 = 8;

/// The association's state, one of [`state`].
#[inline(always)]
pub fn state_of(flow: &Flow) -> u8 {
    (flow.tcp.get() >> STATE) as u8 & 0xf
}

/// Makes a flow an association that was tracked by somebody else, who knows its state and tags.
pub fn adopt(flow: &Flow, state: u8, tags: [u32; 2]) {
    flow.tcp.set((state as u32 & 0xf) << STATE);
    flow.last_seq.set(tags[0]);
    flow.last_end.set(tags[1]);
}

/// Directions of [`advance`]: the packet opens the flow, which has no state yet.
pub const OPENS: u32 = 2;

/// A packet of a flow: for how long it lives on, [`IGNORED`], which lets the packet through and changes
/// nothing of that, or [`INVALID`]. (What a packet says in front of what is wrong with it counts, as there.)
#[inline(always)]
pub fn advance<T: Tables>(tables: &T, flow: &Flow, chunks: &Chunks, direction: u32) -> Outcome {
    let kinds = chunks.kinds.get();
    if kinds & Chunks::BROKEN != 0 {
        return INVALID;
    }
    let reply = direction == 1;
    // The tag that the sender's packets have to bear, and the other side's.
    let (own, other) = if reply {
        (&flow.last_end, &flow.last_seq)
    } else {
        (&flow.last_seq, &flow.last_end)
    };
    if direction == OPENS {
        flow.tcp.set(0);
        own.set(0);
        other.set(0);
        if kinds & NEVER_FIRST != 0 || !begin(chunks, own, other) {
            return INVALID;
        }
    }
    // RFC 9260 8.5; of the others, each chunk says what it needs.
    if kinds & HAVE_TAGS_OF_THEIR_OWN == 0 && chunks.tag.get() != own.get() {
        return INVALID;
    }
    let from = if reply { FROM_REPLY_SIDE } else { 0 };
    chunks.ignored.set(0);
    let mut number = 0;
    while number < Chunks::MOST {
        if number >= chunks.used.get() {
            break;
        }
        if tables.take_chunk(flow, chunks, number | from) == MISFITS {
            return INVALID;
        }
        number += 1;
    }
    if chunks.ignored.get() != 0 && direction != OPENS {
        return IGNORED;
    }
    Timeout::SctpClosed as u32 - 1 + state_of(flow) as u32
}

const fn bit(kind: u32) -> u32 {
    1 << kind
}

/// What a first packet cannot have (RFC 9260 8.4): these, and anything that does not change a state.
const NEVER_FIRST: u32 =
    bit(chunk::ABORT) | bit(chunk::SHUTDOWN_COMPLETE) | bit(chunk::COOKIE_ACK) | Chunks::OTHERS;

/// RFC 9260 8.5.1.
const HAVE_TAGS_OF_THEIR_OWN: u32 = bit(chunk::INIT)
    | bit(chunk::SHUTDOWN_COMPLETE)
    | bit(chunk::COOKIE_ECHO)
    | bit(chunk::ABORT)
    | bit(chunk::SHUTDOWN_ACK)
    | bit(chunk::HEARTBEAT)
    | bit(chunk::HEARTBEAT_ACK);

/// What a flow's first packet says of its tags (`sctp_new`); false if it cannot open one.
#[inline(always)]
fn begin(chunks: &Chunks, own: &MapCell<u32>, other: &MapCell<u32>) -> bool {
    let tag = chunks.tag.get();
    let mut number = 0;
    while number < Chunks::MOST {
        if number >= chunks.used.get() {
            break;
        }
        let chunk = &chunks.list[number as usize % Chunks::MOST as usize];
        match chunk.kind() {
            chunk::INIT if tag != 0 || !chunk.has_tag() => return false,
            chunk::INIT => other.set(chunk.tag.get()),
            // Another path of an association: what its answers bear is not known yet.
            chunk::HEARTBEAT => own.set(tag),
            // Who does not know of it answers with the same (RFC 9260 8.4, 5).
            chunk::SHUTDOWN_ACK => other.set(tag),
            _ => {}
        }
        number += 1;
    }
    true
}

/// Result of [`take`]: the packet is INVALID.
const MISFITS: u32 = 1;
/// Any other.
const TAKEN: u32 = 0;
/// Beside the chunk's number, for [`take`]: the packet is a reply.
const FROM_REPLY_SIDE: u32 = 1 << 8;

/// Takes one of the chunks of a packet of a flow. It is for itself what [`advance`] does for each, as a BPF
/// program calls it as a global function: the verifier would explore all that follows for each outcome of each.
#[inline(always)]
pub fn take(flow: &Flow, chunks: &Chunks, argument: u32) -> u32 {
    let chunk = &chunks.list[argument as usize % Chunks::MOST as usize];
    let reply = argument & FROM_REPLY_SIDE != 0;
    let (own, other) = if reply {
        (&flow.last_end, &flow.last_seq)
    } else {
        (&flow.last_seq, &flow.last_end)
    };
    let ignored = chunks.ignored.get() != 0;
    let (tag, kind) = (chunks.tag.get(), chunk.kind());
    let mut word = flow.tcp.get();
    let (from_own, from_other) = if reply {
        (INIT[1], INIT[0])
    } else {
        (INIT[0], INIT[1])
    };
    let beside_data = chunks.kinds.get() & bit(chunk::DATA) != 0 || ignored;
    match kind {
        chunk::INIT if tag != 0 => return MISFITS,
        chunk::ABORT | chunk::SHUTDOWN_COMPLETE => {
            // With the T bit, the sender had no tag but its own.
            let expected = if chunk.is_reflected() { other } else { own };
            if tag != expected.get() {
                return MISFITS;
            }
        }
        chunk::COOKIE_ECHO if tag != own.get() => return MISFITS,
        chunk::COOKIE_ACK => word &= !(from_own | from_other),
        chunk::HEARTBEAT if own.get() == 0 => own.set(tag),
        chunk::HEARTBEAT if tag != own.get() => {
            if beside_data {
                return MISFITS;
            }
            let side = if reply { FROM_REPLY } else { 0 };
            flow.tcp.set(word & !FROM_REPLY | STRAY_HEARTBEAT | side);
            // The other side may answer it; until then it keeps nothing alive.
            chunks.ignored.set(1);
            return TAKEN;
        }
        chunk::HEARTBEAT_ACK if own.get() == 0 => own.set(tag),
        chunk::HEARTBEAT_ACK if tag != own.get() => {
            // It answers one that came with another tag, too: the path leads to another association.
            let of_own_side = (word & FROM_REPLY != 0) == reply;
            if beside_data || word & STRAY_HEARTBEAT == 0 || of_own_side {
                return MISFITS;
            }
            word &= !STRAY_HEARTBEAT;
            own.set(tag);
            other.set(0);
        }
        chunk::HEARTBEAT | chunk::HEARTBEAT_ACK => word &= !STRAY_HEARTBEAT,
        _ => {}
    }
    flow.tcp.set(word);
    let old = (word >> STATE) as u8 & 0xf;
    let new = next_state(reply, kind, old);
    if new == NO_STATE {
        return MISFITS;
    }
    if kind == chunk::INIT {
        if !chunk.has_tag() {
            return MISFITS;
        }
        // One that tells what is known already is late, or was sent again, and begins nothing (kernel
        // commit 576a5d2bad48, 7.1 and stable trees).
        if old == state::NONE || other.get() != chunk.tag.get() {
            if word & from_own != 0 {
                word &= !from_other;
            }
            word |= from_own;
        }
        other.set(chunk.tag.get());
        // One that is sent again keeps nothing alive.
        if old == state::CLOSED && new == state::CLOSED {
            chunks.ignored.set(1);
        }
    } else if kind == chunk::INIT_ACK {
        if !chunk.has_tag() {
            return MISFITS;
        }
        let (known, told) = (other.get(), chunk.tag.get());
        if word & from_other == 0 && known != 0 && known != told {
            return MISFITS;
        }
        // Both sides have begun: only one beginning goes on.
        if word & from_own != 0 && word & from_other != 0 && known != told {
            return MISFITS;
        }
        other.set(told);
    }
    flow.tcp.set(word & !(0xf << STATE) | (new as u32) << STATE);
    if old != new && new == state::ESTABLISHED {
        flow.status.set(flow.status.get() | Flow::ASSURED);
    }
    TAKEN
}
