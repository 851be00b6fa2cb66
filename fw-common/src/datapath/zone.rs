//! Zones: flows of two zones have nothing in common, though their endpoints be the same
//! (include/net/netfilter/nf_conntrack_zones.h).
//!
//! A rule of the table raw says in which zone a packet is looked up (CT, net/netfilter/xt_CT.c); the zone is
//! part of every name that a flow has, and so needs nobody's attention: whatever names a flow by the headers
//! of a packet names one of its zone ([`Headers::zone`](super::header::Headers::zone)). A packet in a flow
//! keeps the zone on its way from hook to hook, in its note. That has sixteen bits, and says most of what it
//! says by a bit each; of a packet in a zone it is packed, which leaves five for the zone's place among
//! those that the policy names ([`ZONES`]). No other note looks like a packed one.

use super::conntrack::{NO_FLOW, NOTE_ABOUT_UNTRACKED, NOTE_OPENS, NOTE_SEEN, NOTE_TRANSIT};
use super::facts::is_sent_by_the_kernel;
use super::header::protocol;
use super::packet::Packet;
use super::reject::{NOTE_ANSWER, NOTE_ONWARD};
use super::scratch::Scratch;
use super::tables::Tables;
use crate::abi::blob::{HeaderFields, ZONES};
use crate::abi::device::Device;
use crate::abi::{Family, ct};

/// The bits by which a packed note is known: [`NOTE_ONWARD`] without [`NOTE_ANSWER`], and a place.
const PACKED: u16 = NOTE_ONWARD;
/// Of an answer [`NOTE_SEEN`] is known, and its bit says that it is none.
const NO_ANSWER: u16 = NOTE_SEEN;
/// Where the zone's place is.
const PLACE: u32 = 8;
/// Its bits.
const PLACES: u16 = 31 << PLACE;

// Lower bits of a packed note: how the flow is translated (three), direction, transit (two), and two more. Of
// an answer, which is always RELATED, these say [`NOTE_OPENS`] and [`NOTE_ONWARD`], of others the state.
const DIRECTION: u32 = 3;
const TRANSIT: u32 = 4;
const STATE: u32 = 6;
/// A state: NEW, and [`NOTE_OPENS`].
const OPENS: u16 = 3;
const NAT: u32 = 5;

const _: () = assert!(ct::SNAT == 1 << NAT && ct::DNAT == 2 << NAT && ct::RENAMED == 4 << NAT);
const _: () = assert!(ct::NEW >> 1 == 0 && ct::ESTABLISHED >> 1 == 1 && ct::RELATED >> 1 == 2);

/// The note of a packet whose zone is at this place, packed. One without a flow is in no zone.
#[inline(never)]
pub fn pack(note: u16, place: u32) -> u16 {
    if place == 0 || note & NOTE_SEEN == 0 || note & (NO_FLOW as u16) << 8 != 0 {
        return note;
    }
    let opens = note & NOTE_OPENS != 0;
    let nat = note >> NAT & 7;
    let direction = (note >> 8 & 1) << DIRECTION;
    let transit = (note >> NOTE_TRANSIT & 3) << TRANSIT;
    let (kind, state) = if note & NOTE_ANSWER != 0 {
        let onward = (note & NOTE_ONWARD != 0) as u16;
        (0, onward << 1 | opens as u16)
    } else if opens {
        (NO_ANSWER, OPENS)
    } else {
        (NO_ANSWER, (note & 7) >> 1)
    };
    let place = (place as u16) << PLACE & PLACES;
    PACKED | kind | place | state << STATE | transit | direction | nat
}

/// Whether a note is packed.
#[inline(always)]
fn is_packed(note: u16) -> bool {
    note & (NOTE_ONWARD | NOTE_ANSWER) == PACKED && note & PLACES != 0
}

/// A packed note as it was before, and the place of the zone.
#[inline(never)]
fn unpack(packed: u16) -> u32 {
    let state = packed >> STATE & 3;
    let mut note = NOTE_SEEN | (packed & 7) << NAT;
    note |= (packed >> DIRECTION & 1) << 8;
    note |= (packed >> TRANSIT & 3) << NOTE_TRANSIT;
    if packed & NO_ANSWER == 0 {
        note |= NOTE_ANSWER | ct::RELATED as u16;
        note |= if state & 1 != 0 { NOTE_OPENS } else { 0 };
        note |= if state & 2 != 0 { NOTE_ONWARD } else { 0 };
    } else if state == OPENS {
        note |= NOTE_OPENS | ct::NEW as u16;
    } else {
        note |= (ct::NEW as u16) << state;
    }
    note as u32 | ((packed & PLACES) as u32) << PLACE
}

/// Takes the zone's place out of a note.
#[inline(always)]
pub fn read_note(note: u16, scratch: &mut Scratch) -> u16 {
    scratch.zone_place = 0;
    if !is_packed(note) {
        return note;
    }
    let both = unpack(note);
    scratch.zone_place = both >> 16;
    both as u16
}

/// Leaves the note of the packet in hand.
#[inline(always)]
pub fn leave_note<P: Packet>(packet: &mut P, scratch: &Scratch, note: u16) {
    let place = scratch.zone_place;
    packet.set_note(if place == 0 { note } else { pack(note, place) });
}

/// The packet is in the zone whose place its note has told, if it has.
#[inline(always)]
pub fn take<T: Tables>(tables: &T, scratch: &mut Scratch) {
    if scratch.zone_place != 0 {
        find(tables, scratch);
    }
}

#[inline(never)]
fn find<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let place = scratch.zone_place;
    let cell = match tables.generation(scratch.place()) {
        Some(generation) => tables.cell(generation, ZONES),
        None => None,
    };
    let word = match cell {
        Some(cell) => cell.w[(place >> 1) as usize & 15],
        None => 0,
    };
    scratch.headers.zone = (word >> ((place & 1) * 16)) as u16;
}

/// The packet's place in its flow is found: one without a flow is in no zone.
#[inline(always)]
pub fn settle(scratch: &mut Scratch) {
    if scratch.zone_place != 0 && scratch.tracked.direction == NO_FLOW {
        scratch.zone_place = 0;
        scratch.headers.zone = 0;
    }
}

/// Keeps in mind in which zone a packet came in: an error that the kernel makes about it at once is in that,
/// too. Before a packet reaches a socket or a protocol that might answer it, the kernel takes its flow away
/// (`nf_reset_ct`, net/ipv4/udp.c and net/ipv4/ip_input.c).
#[inline(never)]
pub fn note_arrival(scratch: &mut Scratch, stays: u32) {
    scratch.arrived.set(&scratch.headers);
    scratch.arrived_place = scratch.zone_place;
    if scratch.tracked.direction == NO_FLOW || stays != 0 && is_taken(scratch.arrived.protocol) {
        // An error about it is tracked by itself.
        scratch.arrived.protocol = NOTHING;
    }
}

/// Whether there is a socket or a protocol for what this host gets of a protocol, in the kernel itself.
#[inline(always)]
pub fn is_taken(number: u8) -> bool {
    matches!(
        number,
        protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::ICMP | protocol::ICMPV6
    )
}

/// A protocol number that no quoted packet has (RFC 3692).
const NOTHING: u8 = 255;

/// An ICMP error that this host makes itself, and whose quoted packet is read, is in the zone of that, whatever
/// table raw says: it carries that one's flow before (`nf_ct_attach` in net/ipv4/icmp.c and net/ipv6/icmp.c). What a
/// process writes does not, whatever it quotes.
#[inline(always)]
pub fn take_of_quoted<P: Packet>(packet: &P, scratch: &mut Scratch) {
    if scratch.features & HeaderFields::ZONES == 0 || !scratch.made_here || scratch.answer.in_hand {
        return;
    }
    let (quoted, arrived) = (&scratch.quoted.tuple, &scratch.arrived);
    if quoted.ports == arrived.ports
        && quoted.protocol == arrived.protocol
        && quoted.source == arrived.source
        && quoted.destination == arrived.destination
        && is_sent_by_the_kernel(packet, scratch)
    {
        let arrived = &scratch.arrived;
        scratch.headers.zone = arrived.zone;
        scratch.zone_place = scratch.arrived_place;
    }
}

/// Whether an ICMP error of this host's own that belongs to no flow tells nothing of one: where there are zones,
/// that about a port that nobody listens at may be about a flow of another zone, which it does not carry.
#[inline(always)]
pub fn says_nothing(scratch: &Scratch) -> bool {
    const PORT_UNREACHABLE: u32 = 3 << 16 | 3;
    scratch.features & HeaderFields::ZONES != 0 && scratch.headers.key.ports == PORT_UNREACHABLE
}

/// Whether a packet on loopback that has this note is tracked anew: one without a flow is, but only in another
/// zone that might be another's.
#[inline(always)]
pub fn is_tracked_anew(note: u16, scratch: &Scratch) -> bool {
    scratch.features & HeaderFields::ZONES != 0
        && note as u8 & ct::INVALID != 0
        && note & NOTE_ABOUT_UNTRACKED != NOTE_ABOUT_UNTRACKED
}

/// Whether there is no way for a packet on loopback that was tracked anew, and whose destination becomes another
/// address. netfilter has it routed once more, as if it came from elsewhere; over IPv4, the kernel drops it then, as
/// from elsewhere nothing of this host's own comes (`__fib_validate_source`, net/ipv4/fib_frontend.c). Over IPv6 it
/// goes on; but no program can have a packet routed that has been, and on loopback all have, to this host.
#[inline(always)]
pub fn is_lost<T: Tables>(tables: &T, scratch: &Scratch) -> bool {
    scratch.features & HeaderFields::ZONES != 0
        && scratch.device.flags & Device::LOOPBACK != 0
        && scratch.note == 0
        && leads_away(tables, scratch)
}

#[inline(never)]
fn leads_away<T: Tables>(tables: &T, scratch: &Scratch) -> bool {
    let address = &scratch.tracked.destination.address;
    *address != scratch.headers.key.destination
        && !(scratch.headers.is_v6() && tables.is_local(Family::V6, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::conntrack::NOTE_SENT_ON;

    #[test]
    fn notes_come_out_as_they_went_in() {
        const STATES: [u16; 4] = [
            ct::NEW as u16,
            ct::NEW as u16 | NOTE_OPENS,
            ct::ESTABLISHED as u16,
            ct::RELATED as u16,
        ];
        const ANSWERS: [u16; 4] = [0, NOTE_OPENS, NOTE_ONWARD, NOTE_OPENS | NOTE_ONWARD];
        let answers = ANSWERS.map(|bits| bits | NOTE_ANSWER | ct::RELATED as u16);
        for state in STATES.into_iter().chain(answers) {
            for rest in 0..64 {
                let (nat, direction, transit) = (rest & 7, rest >> 3 & 1, rest >> 4);
                let note =
                    NOTE_SEEN | state | nat << NAT | direction << 8 | transit << NOTE_TRANSIT;
                assert!(!is_packed(note), "{note:x}");
                assert_eq!(pack(note, 0), note);
                for place in 1..=31 {
                    let packed = pack(note, place);
                    assert!(is_packed(packed), "{note:x} {packed:x}");
                    assert_eq!(unpack(packed), place << 16 | note as u32, "{packed:x}");
                }
            }
        }
        for note in [0, NOTE_SENT_ON, NOTE_ANSWER, NOTE_ANSWER | NOTE_ONWARD] {
            assert!(!is_packed(note));
        }
        // Nor does what has no flow keep a zone.
        assert_eq!(
            pack(NOTE_ANSWER | NOTE_ONWARD, 5),
            NOTE_ANSWER | NOTE_ONWARD
        );
        let without = NOTE_SEEN | (NO_FLOW as u16) << 8 | ct::INVALID as u16;
        assert_eq!(pack(without, 5), without);
        assert!(!is_packed(without));
    }
}
