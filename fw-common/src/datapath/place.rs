//! A packet's place in its flow, as each hook finds it: by tracking it, or by the note that the hook before
//! has left.

use super::conntrack::{
    LookUp, NOTE_OPENS, NOTE_SEEN, Tracked, about, attach, follow, recall_ended, track,
};
use super::fragment::{Side, borrow, lend, note_ahead};
use super::header::{Icmp, Part};
use super::packet::Packet;
use super::reject::{NOTE_ANSWER, close};
use super::scratch::Scratch;
use super::stage::{Name, Stage};
use super::tables::Tables;
use super::transit::{find_error_on_way, find_on_way};
use super::tuple::Lookup;
use crate::abi::ct;

/// Finds the packet's place in its flow, with the help of the note that its argument is.
pub struct PlaceIn;

/// Results of [`PlaceIn`] and [`PlaceOut`]: a fragment whose first one was not seen.
pub(super) const LOST: u32 = 0;
/// The place is found.
pub(super) const PLACED: u32 = 1;
/// The fast path has sent the packet on.
pub(super) const SENT_ON: u32 = 2;

impl Stage for PlaceIn {
    const NAME: Name = Name::PlaceIn;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        note: u32,
    ) -> u32 {
        let note = note as u16;
        let aliases = scratch.has_nat();
        if scratch.headers.part as u8 == Part::Later as u8 {
            return place_later_in(packet, tables, scratch, aliases) as u32;
        }
        if scratch.untracked {
            scratch.tracked.set_without_flow(ct::UNTRACKED);
            // The kernel's ICMP error about it carries no flow.
            scratch.note_transit();
        } else if note != 0 {
            scratch.tracked.set_note(note);
            let headers = &scratch.headers;
            let alike = headers.flow_ports == 0 && headers.key.source == headers.key.destination;
            if alike || note as u8 & ct::UNTRACKED != 0 {
                // Which of two directions that look alike, only the note tells; the kernel's ICMP
                // error about the packet goes the other one. That about a packet which is not tracked
                // carries no flow.
                scratch.note_transit();
            }
        } else if track(packet, tables, scratch, aliases) {
            return SENT_ON;
        }
        lend(tables, scratch, Side::Ingress);
        PLACED
    }
}

/// A later fragment's place; false if its first one was not seen.
#[inline(never)]
fn place_later_in<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    aliases: bool,
) -> bool {
    let found = follow_first(packet, tables, scratch, aliases, Side::Ingress);
    // What a bridge hands over comes up through it once more.
    if !found && scratch.port == 0 {
        note_ahead(tables, &scratch.headers, Side::Ingress);
    }
    found
}

/// Gives a later fragment the place that its first one had at this side; false if that was not seen.
#[inline(always)]
fn follow_first<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    aliases: bool,
    side: Side,
) -> bool {
    let (headers, outcomes) = (&mut scratch.headers, &mut scratch.outcomes);
    let first = borrow(tables, headers, outcomes, side);
    if first.found {
        follow(packet, tables, scratch, aliases, first);
    }
    first.found
}

/// Finds the packet's place in its flow, with the help of the note that its argument is; its result
/// is 0 for a fragment whose first one was not seen.
pub struct PlaceOut;

/// Result of [`PlaceOut`]: the packet opens a flow and was translated on its way in, but nothing is
/// left that says from what.
pub(super) const FORGOTTEN: u32 = 3;
/// Result of [`PlaceOut`]: netfilter does not translate the flow any more that the packet resembles.
pub(super) const STANDS_IN: u32 = 4;

impl Stage for PlaceOut {
    const NAME: Name = Name::PlaceOut;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        note: u32,
    ) -> u32 {
        let note = note as u16;
        if scratch.headers.part as u8 == Part::Later as u8 {
            return place_later_out(packet, tables, scratch, note) as u32;
        }
        let error = scratch.headers.icmp as u8 == Icmp::Error as u8;
        let skips = scratch.untracked && !error;
        if scratch.forget(skips as u32) != 0 {
            scratch.tracked.set_without_flow(ct::UNTRACKED);
        } else if note & NOTE_SEEN == 0 {
            // What this host makes may answer a flow whose source was translated on its way in.
            track(packet, tables, scratch, scratch.aliases);
            if scratch.lookup.met == Lookup::STANDS_IN {
                return STANDS_IN;
            }
            // Asked again, so that tracking is not gone through once for each answer.
            let error = scratch.headers.icmp as u8 == Icmp::Error as u8;
            if scratch.made_here && error && note & NOTE_ANSWER == 0 {
                attach(packet, tables, scratch);
                // One that carries a flow is its, whatever table raw says (`notrack_tg`,
                // net/netfilter/xt_CT.c).
                if scratch.untracked && scratch.tracked.ct == ct::INVALID {
                    scratch.tracked.set_without_flow(ct::UNTRACKED);
                }
            }
        } else if scratch.headers.icmp as u8 == Icmp::Error as u8 {
            place_error(packet, tables, scratch, note);
        } else if !place_noted(packet, tables, scratch, note) {
            return FORGOTTEN;
        }
        lend(tables, scratch, Side::Egress);
        PLACED
    }
}

/// The place of a packet that comes up through a bridge, one of whose ports' programs has left the note that its
/// argument is, as FORWARD would find it; its result is 0 if nothing is left that says what it is.
pub struct PlaceAgain;

impl Stage for PlaceAgain {
    const NAME: Name = Name::PlaceAgain;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        note: u32,
    ) -> u32 {
        let note = note as u16;
        scratch.answer.in_hand = false;
        scratch.aliases = false;
        if scratch.headers.part as u8 == Part::Later as u8 {
            return place_later_out(packet, tables, scratch, note) as u32;
        }
        if scratch.headers.icmp as u8 == Icmp::Error as u8 {
            place_error(packet, tables, scratch, note);
        } else if !place_noted(packet, tables, scratch, note) {
            return LOST;
        }
        lend(tables, scratch, Side::Egress);
        PLACED
    }
}

/// A later fragment's place; false if its first one was not seen.
#[inline(never)]
fn place_later_out<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    note: u16,
) -> bool {
    let aliases = scratch.aliases;
    if !follow_first(packet, tables, scratch, aliases, Side::Egress) {
        return false;
    }
    if !scratch.made_here {
        scratch.tracked.translates &= Tracked::SOURCE;
    }
    if note as u8 & ct::DNAT != 0 {
        find_on_way(packet, tables, scratch, note);
        scratch.tracked.opens = false;
    }
    true
}

/// The place of an ICMP error that ingress has found already, or of one that answers a refused packet:
/// its source may have to be translated.
#[inline(never)]
fn place_error<P: Packet, T: Tables>(packet: &mut P, tables: &T, scratch: &mut Scratch, note: u16) {
    scratch.tracked.set_note(note);
    let answer = scratch.answer.in_hand;
    if !scratch.tracked.has_source_ahead() && !answer {
        return;
    }
    if is_about_an_unnamed_one(scratch, note) {
        recall_source(scratch);
        scratch.tracked.error = true;
        return;
    }
    let redirected = note as u8 & ct::DNAT != 0;
    let found = redirected && find_error_on_way(packet, tables, scratch, note);
    if found || redirected && !answer {
        return;
    }
    // What a refused packet's source becomes was still ahead of it.
    about(packet, tables, scratch, !answer || scratch.answer.looped);
    let found = (scratch.tracked.direction as u16) << 8 | scratch.tracked.ct as u16;
    if !answer {
        scratch.tracked.translates &= Tracked::SOURCE;
    }
    scratch.tracked.take_label(note);
    if answer {
        // What opens a flow is in none yet.
        if note & NOTE_OPENS != 0 {
            scratch.tracked.forget_record();
        }
        packet.call::<MatchLabel, T>(tables, scratch, found as u32);
    }
}

/// An ICMP error that answers a refused packet, and has its label: the argument is that of the flow that was
/// found, which may be another one, or none.
pub struct MatchLabel;

impl Stage for MatchLabel {
    const NAME: Name = Name::MatchLabel;

    #[inline(always)]
    fn run<P: Packet, T: Tables>(
        _packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        found: u32,
    ) -> u32 {
        let (direction, label) = ((found >> 8) as u8, found as u8);
        // What it answers may resemble another flow, which goes the other way, or is translated otherwise.
        let nat = (label ^ scratch.tracked.ct) & (ct::SNAT | ct::DNAT | ct::RENAMED);
        if direction != scratch.tracked.direction || nat != 0 {
            scratch.tracked.translates = 0;
            scratch.tracked.forget_record();
            if scratch.answer.looped {
                recall_ended(tables, scratch);
            }
        }
        let label = scratch.tracked.ct;
        scratch.tracked.keep_labelled(label);
        recall_outside(scratch);
        scratch.tracked.error = true;
        0
    }
}

/// The place of a packet that ingress has found already, or of a reset that answers a refused one;
/// false if it opens a flow and was translated, but nothing says any more from what.
#[inline(never)]
fn place_noted<P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    scratch: &mut Scratch,
    note: u16,
) -> bool {
    scratch.tracked.set_note(note);
    let opens = note & NOTE_OPENS != 0;
    let answer = scratch.answer.in_hand;
    let redirected = note as u8 & ct::DNAT != 0;
    let unnamed = is_about_an_unnamed_one(scratch, note);
    let found = redirected && !unnamed && find_on_way(packet, tables, scratch, note);
    if redirected && !found && !answer && opens {
        return false;
    }
    if unnamed {
        recall_source(scratch);
    } else if !found && (answer || !redirected) {
        // As with errors.
        let aliases = answer && scratch.answer.looped && scratch.tracked.direction == 1;
        let aliases = scratch.forget(aliases as u32) != 0;
        packet.call::<LookUp, T>(tables, scratch, aliases as u32);
        if !answer {
            scratch.tracked.translates &= Tracked::SOURCE;
        }
    }
    // Only what ingress took for a flow's first packet opens one: a packet that ended its flow is
    // without a flow here, and opens none.
    scratch.tracked.opens &= opens;
    if answer {
        // It meets nat's chain, but opens nothing.
        scratch.tracked.opens = false;
        scratch.tracked.replayed = opens;
        scratch.tracked.keep_labelled(note as u8);
        // What opens a flow is in none yet: another one would be closed. Of one that bears no name it is closed already.
        if !opens && !unnamed {
            close(tables, scratch);
        }
        recall_outside(scratch);
    }
    true
}

/// Whether the packet in hand answers one of this host's own, or to this host, whose flow is not to be looked for:
/// one that would have opened a flow, which is not stored, or one whose destination was translated just now, which
/// bears no name of its flow. Whatever bears its names is another.
#[inline(always)]
fn is_about_an_unnamed_one(scratch: &Scratch, note: u16) -> bool {
    let answer = &scratch.answer;
    let translated = !answer.looped
        && scratch.tracked.has_source_ahead()
        && scratch.headers.key.destination == answer.refused[0];
    answer.in_hand && answer.on_the_spot && (translated || note & NOTE_OPENS != 0)
}

/// An answer about a packet whose flow is not stored, or has ended with it, and whose destination was
/// translated: what that was before is still known, as answers are made on the spot.
#[inline(always)]
fn recall_outside(scratch: &mut Scratch) {
    let tuple = &scratch.lookup.tuple;
    if !scratch.tracked.translates_source()
        && tuple.source == scratch.answer.refused[1]
        && tuple.destination == scratch.answer.refused[0]
    {
        recall_source(scratch);
    }
}

/// See [`recall_outside`].
#[inline(never)]
fn recall_source(scratch: &mut Scratch) {
    if scratch.tracked.has_source_ahead() {
        let end = scratch.outside;
        scratch.tracked.set_source(&end.address, end.port);
    }
}
