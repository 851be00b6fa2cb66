//! `hashlimit`: a token bucket for each source, destination, port, or whatever a rule tells packets apart
//! by. The arithmetic is `hashlimit_mt_common`'s, as of revision 3 (net/netfilter/xt_hashlimit.c): credit
//! grows with time, up to a cap, and a packet that finds its cost there takes it.
//!
//! A bucket that nobody asked for its table's time is gone; in netfilter it goes when it is next looked
//! at every so often (`htable_gc`), here at once.

use super::{DROP, FAIL, HOLD, List};
use crate::abi::list::{KEY_REST, ListCell, hashlimit, head};
use crate::datapath::header::protocol;
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::Tables;

/// How many buckets may go whose time is over, for one that comes: in the end, all of them do.
const RECLAIMED: u32 = 2;

/// Whether there is credit left, which this takes.
#[inline(always)]
pub(super) fn ask<T: Tables>(tables: &T, scratch: &mut Scratch) -> u32 {
    let ports = ports(scratch);
    let bytes = scratch.headers.bytes;
    let key = &scratch.headers.key;
    let (source, destination) = (key.source, key.destination);
    let asked = &mut scratch.list;
    let mut list = List { tables, asked };
    let (Some(head), Some(terms)) = (list.cell(0), list.cell(1)) else {
        return DROP;
    };
    for word in 0..4 {
        list.asked.key[word] = source[word] & head[head::MASK + word].get();
        list.asked.key[4 + word] = destination[word] & terms[hashlimit::SECOND_MASK + word].get();
    }
    list.asked.key[KEY_REST] = ports & terms[hashlimit::PORTS].get();
    list.find();
    let now = (list.asked.now / 1_000_000) as u32;
    let lifetime = terms[hashlimit::LIFETIME].get();
    let mut at = list.asked.found;
    let mut full = at == 0;
    if full {
        list.reclaim(now, lifetime);
        at = list.insert();
        if at == 0 {
            return DROP;
        }
    } else {
        full = list.is_over(at, now, lifetime);
        list.touch(at);
    }
    let (Some(entry), Some(bucket)) = (list.cell(at), list.cell(at.wrapping_add(1))) else {
        return DROP;
    };
    let passed = now.wrapping_sub(entry[hashlimit::TIME].get()) as u64;
    entry[hashlimit::TIME].set(now);
    let of_bytes = terms[hashlimit::FLAGS].get() & hashlimit::BYTES != 0;
    let cap = get(terms, hashlimit::CAP);
    let most = if of_bytes { hashlimit::BYTES_CAP } else { cap };
    let mut cost = get(terms, hashlimit::COST);
    let mut refills = get(bucket, hashlimit::REFILLS);
    let mut credit = get(bucket, hashlimit::CREDIT);
    if full {
        credit = most;
        refills = cap;
    } else if passed != 0 {
        // Sums wrap as in the kernel.
        credit = credit.wrapping_add(if of_bytes {
            passed << hashlimit::BYTES_PER_MILLISECOND
        } else {
            passed << hashlimit::PER_MILLISECOND
        });
        if credit > most {
            credit = most;
        }
    }
    if of_bytes {
        // `hashlimit_byte_cost`: a burst is how often an empty bucket is filled at once.
        let chunks = (bytes >> hashlimit::CHUNK) as u64 + 1;
        cost = chunks.wrapping_mul(cost);
        if cost > hashlimit::BYTES_CAP {
            cost = hashlimit::BYTES_CAP;
        }
        if credit < cost && refills != 0 {
            refills = refills.wrapping_sub(1);
            credit = hashlimit::BYTES_CAP;
        }
    }
    let enough = credit >= cost;
    if enough {
        credit = credit.wrapping_sub(cost);
    }
    set(bucket, hashlimit::CREDIT, credit);
    set(bucket, hashlimit::REFILLS, refills);
    let above = list.asked.flags & hashlimit::ABOVE != 0;
    if enough != above { HOLD } else { FAIL }
}

/// The packet's ports, of the protocols that have some (`hashlimit_init_dst`).
#[inline(always)]
fn ports(scratch: &Scratch) -> u32 {
    match scratch.headers.key.protocol as u8 {
        protocol::TCP | protocol::UDP | protocol::DCCP | protocol::SCTP | protocol::UDPLITE => {
            scratch.headers.key.ports
        }
        _ => 0,
    }
}

#[inline(always)]
fn get(cell: &ListCell, word: usize) -> u64 {
    cell[word].get() as u64 | (cell[word + 1].get() as u64) << 32
}

#[inline(always)]
fn set(cell: &ListCell, word: usize, value: u64) {
    cell[word].set(value as u32);
    cell[word + 1].set((value >> 32) as u32);
}

impl<T: Tables> List<'_, T> {
    /// Whether nobody asked a bucket for so long that it is gone.
    #[inline(always)]
    fn is_over(&self, at: u32, now: u32, lifetime: u32) -> bool {
        now.wrapping_sub(self.get(at, hashlimit::TIME)) >= lifetime
    }

    /// Takes out buckets whose time is over: those that were asked longest ago are first.
    #[inline(always)]
    fn reclaim(&mut self, now: u32, lifetime: u32) {
        for _ in 0..RECLAIMED {
            let oldest = self.get(0, head::OLDEST);
            if oldest == 0 || !self.is_over(oldest, now, lifetime) {
                return;
            }
            self.remove(oldest);
        }
    }
}
