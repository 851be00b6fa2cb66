//! How many ICMP errors are sent: to each, and to all together.

use crate::abi::blob::{AnswerFields, Cell};
use crate::abi::device::Device;
use crate::datapath::scratch::Scratch;
use crate::datapath::tables::Tables;

/// How many a peer may be sent at once (`XRLIM_BURST_FACTOR`, net/ipv4/inetpeer.c).
const BURST: u64 = 6;

/// Whether an error may be sent (`icmpv4_global_allow` and `icmpv4_xrlim_allow` in net/ipv4/icmp.c,
/// `icmpv6_global_allow` and `icmpv6_xrlim_allow` in net/ipv6/icmp.c). Two CPUs that ask at the same
/// moment may be told yes both.
#[inline(never)]
pub fn allow<T: Tables>(tables: &T, scratch: &Scratch, settings: &Cell) -> bool {
    if scratch.device.flags & Device::LOOPBACK != 0 {
        return true;
    }
    let v6 = scratch.headers.is_v6();
    // IPv6 takes what this host sends itself for loopback's, IPv4 does not (`nf_send_unreach6`).
    if scratch.made_here && v6 {
        return true;
    }
    let (peer, all) = AnswerFields::intervals(settings, scratch.headers.family);
    let now = tables.now();
    if all != 0 {
        let key = [0; 4];
        if !take(tables, &key, now, all, AnswerFields::burst(settings)) {
            return false;
        }
    }
    scratch.made_here || peer == 0 || take(tables, &scratch.headers.key.source, now, peer, BURST)
}

/// Takes a token from a bucket that is kept as the time up to which its tokens are spent.
#[inline(always)]
fn take<T: Tables>(tables: &T, key: &[u32; 4], now: u64, interval: u64, burst: u64) -> bool {
    let spent = tables.spent(key);
    let full = now.wrapping_sub(interval.wrapping_mul(burst));
    // What lies further back than a full bucket (or was never there) is a full bucket.
    let from = if spent.wrapping_sub(full) as i64 > 0 {
        spent
    } else {
        full
    };
    let to = from.wrapping_add(interval);
    if to.wrapping_sub(now) as i64 > 0 {
        return false;
    }
    tables.spend(key, to);
    true
}
