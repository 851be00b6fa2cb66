//! IPv6's routing header, which `-m rt` asks about (net/ipv6/netfilter/ip6t_rt.c).

use core::ops::ControlFlow;

use super::packet::Packet;
use super::scratch::Scratch;
use super::tables::{Step, Tables};
use crate::abi::blob::fact;

/// Where the search is.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Search {
    at: u32,
    end: u32,
    kind: u32,
}

/// So many headers are looked at, as many as the packet may have.
const MOST: u32 = 8;
/// Bounds the place of a header, for the verifier.
const FARTHEST: u32 = 0xffff;
/// The routing header's number, and a fragment header's and an authentication header's.
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;

/// Notes the first routing header: its type, how many segments are left, and its length as it says it,
/// a byte each from the lowest.
#[inline(never)]
pub fn read<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) {
    if !scratch.headers.is_v6() {
        return;
    }
    let l3 = scratch.headers.l3 as u32;
    let Some([first]) = packet.load::<1>(l3 + 6) else {
        return;
    };
    scratch.routing = Search {
        at: l3 + 40,
        end: scratch.headers.l4 as u32,
        kind: first as u32,
    };
    tables.run(MOST, &mut Walk { packet, scratch });
}

struct Walk<'a, P> {
    packet: &'a P,
    scratch: &'a mut Scratch,
}

impl<P: Packet> Step for Walk<'_, P> {
    #[inline(always)]
    fn step(&mut self, _turn: u32) -> ControlFlow<()> {
        let search = &mut self.scratch.routing;
        let at = search.at & FARTHEST;
        if at >= search.end {
            return ControlFlow::Break(());
        }
        let Some([next, length, kind, left]) = self.packet.load::<4>(at) else {
            return ControlFlow::Break(());
        };
        if search.kind == ROUTING {
            let value = kind as u32 | (left as u32) << 8 | (length as u32) << 16;
            self.scratch.facts.set(fact::ROUTING, value);
            return ControlFlow::Break(());
        }
        search.at = at.wrapping_add(match search.kind {
            FRAGMENT => 8,
            AUTHENTICATION => (length as u32 + 2) * 4,
            _ => (length as u32 + 1) * 8,
        });
        search.kind = next as u32;
        ControlFlow::Continue(())
    }
}
