//! Shortcuts through the chains: noted once for all flows that go the same way.
//!
//! A flow holds the number of one for each direction, beside the word in `ACTIVE` under which it was noted. A
//! shortcut is never written again while that word is the running one, so that a flow whose word is the running
//! one finds under its number what was noted for it.

use crate::abi::flow::{Flow, SHORTCUT_SLOTS, Shortcut};
use crate::abi::maps::SHORTCUTS_MAX;

/// Where shortcuts are kept. Who sends no packet on past the stack has none.
pub trait Shortcuts {
    /// A shortcut by its number.
    #[inline(always)]
    fn shortcut(&self, _number: u32) -> Option<&Shortcut> {
        None
    }

    /// Replaces a shortcut's owner, all at once; whether it was what it was thought to be.
    #[inline(always)]
    fn swap_owner(&self, _shortcut: &Shortcut, _old: u64, _new: u64) -> bool {
        false
    }
}

/// A way through the chains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Course {
    /// As in [`Shortcut`].
    pub arrival: u32,
    /// As in [`Shortcut`].
    pub departure: u32,
    /// As in [`Shortcut`].
    pub facts: u32,
    /// As in [`Shortcut`].
    pub slots: [u32; SHORTCUT_SLOTS],
}

impl Course {
    /// The one that packets of a flow take in this direction under the running word in `ACTIVE`.
    #[inline(always)]
    pub fn of_flow<T: Shortcuts>(
        tables: &T,
        flow: &Flow,
        reply: bool,
        active: u32,
    ) -> Option<Self> {
        let numbers = flow.numbers();
        if numbers.active() != active {
            return None;
        }
        let shortcut = tables.shortcut(numbers.of(reply))?;
        let course = Self::read(shortcut);
        // Asked last: whoever writes it anew says so first.
        (shortcut.owner.get() == active as u64).then_some(course)
    }

    #[inline(always)]
    fn read(shortcut: &Shortcut) -> Self {
        Self {
            arrival: shortcut.arrival.get(),
            departure: shortcut.departure.get(),
            facts: shortcut.facts.get(),
            slots: [
                shortcut.slots[0].get(),
                shortcut.slots[1].get(),
                shortcut.slots[2].get(),
            ],
        }
    }

    #[inline(always)]
    fn write(&self, shortcut: &Shortcut) {
        shortcut.arrival.set(self.arrival);
        shortcut.departure.set(self.departure);
        shortcut.facts.set(self.facts);
        shortcut.slots[0].set(self.slots[0]);
        shortcut.slots[1].set(self.slots[1]);
        shortcut.slots[2].set(self.slots[2]);
    }

    /// Where it is looked for first.
    #[inline(always)]
    fn hash(&self) -> u32 {
        const FACTOR: u32 = 0x9e37_79b1;
        let mut hash = self.arrival.wrapping_mul(FACTOR) ^ self.departure;
        hash = hash.wrapping_mul(FACTOR) ^ self.facts;
        hash = hash.wrapping_mul(FACTOR) ^ self.slots[0];
        hash = hash.wrapping_mul(FACTOR) ^ self.slots[1];
        hash = hash.wrapping_mul(FACTOR) ^ self.slots[2];
        hash = hash.wrapping_mul(FACTOR);
        hash ^ hash >> 16
    }
}

/// Notes a course for the packets of a flow in one direction; not if there is no place for it.
#[inline(always)]
pub fn note<T: Shortcuts>(tables: &T, flow: &Flow, reply: bool, active: u32, course: &Course) {
    let mut number = 0;
    let mut turn = 0;
    while turn < PLACES {
        let place = course.hash().wrapping_add(turn) % SHORTCUTS_MAX;
        if place != 0 && holds(tables, place, active, course) {
            number = place;
            break;
        }
        turn += 1;
    }
    if number == 0 {
        return;
    }
    // Two CPUs that note a flow's two directions at once may lose one of them, which is noted again.
    let numbers = flow.numbers().with(active, reply, number);
    flow.shortcuts.set(numbers.0);
}

/// How many places a course may have.
const PLACES: u32 = 4;

/// Whether the shortcut in a place holds the course, which it does from now on if it is free.
#[inline(always)]
fn holds<T: Shortcuts>(tables: &T, place: u32, active: u32, course: &Course) -> bool {
    let Some(shortcut) = tables.shortcut(place) else {
        return false;
    };
    let (owner, active) = (shortcut.owner.get(), active as u64);
    if owner == active {
        return Course::read(shortcut) == *course;
    }
    // A packet that began under the word before must not take a place from those that hold.
    let is_newer = (owner as u32).wrapping_sub(active as u32) as i32 > 0;
    let claimed = Shortcut::CLAIMED | active;
    if owner & Shortcut::CLAIMED != 0
        || owner != 0 && is_newer
        || !tables.swap_owner(shortcut, owner, claimed)
    {
        return false;
    }
    course.write(shortcut);
    // All at once, so that what was written is seen before.
    tables.swap_owner(shortcut, claimed, active)
}

const _: () = assert!(SHORTCUTS_MAX.is_power_of_two() && SHORTCUTS_MAX <= 1 << 16);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    struct Places(Vec<Shortcut>);

    impl Places {
        fn new() -> Self {
            Self((0..SHORTCUTS_MAX).map(|_| Shortcut::default()).collect())
        }
    }

    impl Shortcuts for Places {
        fn shortcut(&self, number: u32) -> Option<&Shortcut> {
            self.0.get(number as usize)
        }

        fn swap_owner(&self, shortcut: &Shortcut, old: u64, new: u64) -> bool {
            let same = shortcut.owner.get() == old;
            if same {
                shortcut.owner.set(new);
            }
            same
        }
    }

    const fn course(arrival: u32) -> Course {
        Course {
            arrival,
            departure: 2,
            facts: 3,
            slots: [4, 5, 6],
        }
    }

    #[test]
    fn each_direction_finds_its_own_and_flows_share() {
        let places = Places::new();
        let (one, other) = (Flow::default(), Flow::default());
        note(&places, &one, false, 5, &course(7));
        assert_eq!(Course::of_flow(&places, &one, true, 5), None);
        note(&places, &one, true, 5, &course(8));
        note(&places, &other, false, 5, &course(8));
        assert_eq!(Course::of_flow(&places, &one, false, 5), Some(course(7)));
        assert_eq!(Course::of_flow(&places, &one, true, 5), Some(course(8)));
        assert_eq!(Course::of_flow(&places, &other, false, 5), Some(course(8)));
        assert_eq!(one.numbers().of(true), other.numbers().of(false));
        let used = places.0.iter().filter(|place| place.owner.get() != 0);
        assert_eq!(used.count(), 2);
    }

    #[test]
    fn what_was_noted_under_another_policy_is_void() {
        let places = Places::new();
        let (old, new) = (Flow::default(), Flow::default());
        note(&places, &old, false, 5, &course(7));
        note(&places, &old, true, 5, &course(8));
        assert_eq!(Course::of_flow(&places, &old, false, 9), None);
        // The places are written anew, and the old flow does not take what is there for its own.
        note(&places, &new, false, 9, &course(7));
        assert_eq!(old.numbers().of(false), new.numbers().of(false));
        assert_eq!(Course::of_flow(&places, &old, false, 5), None);
        assert_eq!(Course::of_flow(&places, &old, false, 9), None);
        note(&places, &old, true, 9, &course(8));
        assert_eq!(Course::of_flow(&places, &old, false, 9), None);
        assert_eq!(Course::of_flow(&places, &old, true, 9), Some(course(8)));
    }

    /// A packet that began before the policy was replaced may note its course after others have noted theirs.
    #[test]
    fn a_late_packet_takes_nothing_from_those_of_the_new_policy() {
        let places = Places::new();
        let (late, new) = (Flow::default(), Flow::default());
        note(&places, &new, false, 9, &course(7));
        note(&places, &late, false, 5, &course(7));
        assert_eq!(Course::of_flow(&places, &new, false, 9), Some(course(7)));
        // Nor do two words in `ACTIVE` mix in one flow.
        note(&places, &new, true, 5, &course(8));
        assert_eq!(Course::of_flow(&places, &new, false, 9), None);
        assert_eq!(Course::of_flow(&places, &new, true, 9), None);
        note(&places, &new, false, 9, &course(7));
        assert_eq!(new.numbers().of(true), 0);
    }

    #[test]
    fn a_course_without_a_free_place_is_not_noted() {
        let places = Places::new();
        let full = Flow::default();
        for number in 1..=SHORTCUTS_MAX * 2 {
            let flow = Flow::default();
            note(&places, &flow, false, 5, &course(number));
            let found = Course::of_flow(&places, &flow, false, 5);
            assert!(found.is_none_or(|found| found == course(number)));
        }
        let used = places.0.iter().filter(|place| place.owner.get() == 5);
        assert!(used.count() as u32 > SHORTCUTS_MAX / 2);
        // While somebody writes a place, nobody else does.
        for place in &places.0 {
            place.owner.set(Shortcut::CLAIMED | 9);
        }
        note(&places, &full, false, 9, &course(1));
        assert_eq!(Course::of_flow(&places, &full, false, 9), None);
        assert_eq!(full, Flow::default());
    }
}
