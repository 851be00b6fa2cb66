//! What the datapath asks of its state.

use core::ops::ControlFlow;

use super::conntrack;
use super::scratch::Scratch;
use super::sctp::{self, Chunks};
use super::shortcut::Shortcuts;
use super::sources::{self, Sources};
use super::tcp::{self, Segment};
use super::translation;
use super::tuple::Lookup;
use crate::MapCell;
use crate::abi::blob::{Cell, Page, place};
use crate::abi::device::Device;
use crate::abi::event::Event;
use crate::abi::flow::{Flow, FlowKey, Fragment, FragmentKey, Hint};
use crate::abi::list::ListCell;
use crate::abi::set::{SetEntry, SetInfo, SetKey};
use crate::abi::stat::Stat;
use crate::abi::{Addr, Family};

/// The datapath's state: BPF maps in the kernel, collections in the simulator.
pub trait Tables: Shortcuts + Sized {
    /// A handle of one policy, held for a whole packet so that it is judged by one generation.
    type Generation: Copy;

    /// Which policy runs now: the word in `ACTIVE`.
    fn active(&self) -> u32;

    /// The policy in a place; nothing before the first load. User space leaves what was active
    /// alone until no program is left that may have asked for it.
    fn generation(&self, place: u32) -> Option<Self::Generation>;

    /// A page of the policy.
    fn page(&self, generation: Self::Generation, number: u32) -> Option<&Page>;

    /// The first page of the policy in a place: its header and its timeouts; nothing before the first load.
    #[inline(always)]
    fn front(&self, place: u32) -> Option<&Page> {
        self.page(self.generation(place)?, 0)
    }

    /// A cell of the policy.
    #[inline(always)]
    fn cell(&self, generation: Self::Generation, index: u32) -> Option<&Cell> {
        let (page, place) = place(index);
        self.page(generation, page).map(|page| &page[place])
    }

    /// Counts a packet on a rule or policy. A later fragment adds bytes but no packet.
    fn hit(&self, slot: u32, packets: u32, bytes: u32);

    /// Counts an event.
    fn count(&self, stat: Stat);

    /// The record of an interface.
    fn device(&self, index: u32) -> Option<&Device>;

    /// Whether an address is this host's, or a broadcast or multicast one.
    fn is_local(&self, family: Family, address: &Addr) -> bool;

    /// The [`address_kind`](crate::abi::device::address_kind) by the kernel's table of local addresses;
    /// 0 if it is not in there.
    fn local_kind(&self, family: Family, address: &Addr) -> u32;

    /// Index of the interface that an address of this host's is on; 0 if it is not known.
    fn local_device(&self, family: Family, address: &Addr) -> u32;

    /// Up to when a peer's share of ICMP errors is spent.
    fn spent(&self, peer: &Addr) -> u64;

    /// Notes that.
    fn spend(&self, peer: &Addr, time: u64);

    /// Finds a flow, in either tier.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;

    /// What the tables have of the keys of one hash, as [`Hint::word`] says it. It may say too much.
    #[inline(always)]
    fn hint(&self, _key: &FlowKey) -> u64 {
        Hint::SECOND
    }

    /// [`Tables::flow`] for whoever has the hint.
    #[inline(always)]
    fn hinted_flow(&self, key: &FlowKey, _hint: u64) -> Option<&Flow> {
        self.flow(key)
    }

    /// Adds a flow, if the key is free.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow, tier: Tier) -> Result<(), InsertError>;

    /// Moves a flow from the embryonic tier to the confirmed one; it stays where it is if that
    /// fails.
    fn promote_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;

    /// Says that an embryonic flow lives on until `expires`, if the tables have use for it.
    #[inline(always)]
    fn expect_embryo(&self, _key: &FlowKey, _expires: u64) {}

    /// Puts a flow into the confirmed tier in the stead of the one that is there under its key.
    fn replace_flow(&self, key: &FlowKey, flow: &Flow) -> Result<(), InsertError>;

    /// Gives back the place of a flow that went to the confirmed tier early, and is answered or removed.
    fn free_place(&self, key: &FlowKey);

    /// Removes a flow from whichever tier has it; whether the confirmed one had it.
    fn remove_flow(&self, key: &FlowKey) -> bool;

    /// What the first fragment of this datagram left.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;

    /// Notes the first fragment of a datagram.
    fn insert_fragment(&self, key: &FragmentKey, fragment: &Fragment);

    /// One of [`crate::abi::blob::MAX_DEPTH`] return addresses of the chain interpreter.
    fn frame(&self, depth: u32) -> Option<&MapCell<u64>>;

    /// The state of the limit in a cell, see [`super::limit`].
    fn limit(&self, generation: Self::Generation, cell: u32) -> u64;

    /// Replaces a limit's state; false if it is not what it was any more.
    fn replace_limit(&self, generation: Self::Generation, cell: u32, old: u64, new: u64) -> bool;

    /// What is known of the set in a place.
    fn set_info(&self, place: u32) -> Option<&SetInfo>;

    /// An element of the set in a place.
    fn set_entry(&self, place: u32, key: &SetKey) -> Option<SetEntry>;

    /// Adds an element to the set in a place, or replaces it, if there is room.
    fn put_set_entry(&self, place: u32, key: &SetKey, entry: &SetEntry);

    /// Deletes an element of the set in a place.
    fn remove_set_entry(&self, place: u32, key: &SetKey);

    /// A cell of the list in a place.
    fn list_cell(&self, place: u32, cell: u32) -> Option<&ListCell>;

    /// Takes the lock of the list in a place; false if somebody else has it.
    fn lock_list(&self, place: u32) -> bool;

    /// Gives it back.
    fn unlock_list(&self, place: u32);

    /// Asks the list that a rule names: [`super::lists::ask`], which a BPF program calls as a global
    /// function.
    #[inline(always)]
    fn ask_list(&self, scratch: &mut Scratch) -> u32 {
        super::lists::ask(self, scratch)
    }

    /// Asks a rule's deferred predicates: [`super::limit::deferred_hold`], which a BPF program calls
    /// as a global function.
    #[inline(always)]
    fn deferred_hold(&self, scratch: &mut Scratch) -> u32 {
        super::limit::deferred_hold(self, scratch)
    }

    /// Whether it is not certain yet that the packet ends here, so that nothing may happen that must
    /// not happen twice.
    #[inline(always)]
    fn holds_back(&self) -> bool {
        false
    }

    /// Sends an event to user space; false if there is no room for it.
    fn emit(&self, event: &Event) -> bool;

    /// The coarse monotonic clock, nanoseconds.
    fn now(&self) -> u64;

    /// The kernel's TAI clock, nanoseconds: it is set with the clock of the day, which programs cannot
    /// read, and is ahead of it by a number of seconds that the policy's header holds.
    fn tai(&self) -> u64;

    /// The CPU that this runs on.
    fn cpu(&self) -> u32;

    /// Random bits, for port choice.
    fn random(&self) -> u32;

    /// Moves a TCP flow on: [`tcp::advance`], which a BPF program calls as a global function, for
    /// the reason that [`super::stage::Stage`] gives.
    #[inline(always)]
    fn advance_tcp(&self, flow: &Flow, segment: &Segment, reply: bool) -> tcp::Outcome {
        tcp::advance(flow, segment, reply)
    }

    /// The same for SCTP: [`sctp::advance`].
    #[inline(always)]
    fn advance_sctp(&self, flow: &Flow, chunks: &Chunks, direction: u32) -> tcp::Outcome {
        sctp::advance(self, flow, chunks, direction)
    }

    /// And for one chunk: [`sctp::take`].
    #[inline(always)]
    fn take_chunk(&self, flow: &Flow, chunks: &Chunks, argument: u32) -> u32 {
        sctp::take(flow, chunks, argument)
    }

    /// [`conntrack::second`], which a BPF program calls as a global function. The look-up is the
    /// scratch space's.
    #[inline(always)]
    fn find_second(&self, lookup: &mut Lookup, aliases: bool, opened: u32, now: u64) -> u32 {
        conntrack::second(self, lookup, aliases, opened, now)
    }

    /// [`translation::name_is_taken`], which a BPF program calls as a global function. The look-up is the
    /// scratch space's.
    #[inline(always)]
    fn name_is_taken(&self, lookup: &mut Lookup, opened: u32) -> bool {
        translation::name_is_taken(self, lookup, opened)
    }

    /// Takes a flow that ends out of its source's list, and removes the name of its packets on their
    /// way: [`sources::unlink`], which a BPF program calls as a global function.
    #[inline(always)]
    fn unlink(&self, key: &FlowKey, flow: &Flow)
    where
        Self: Sized,
    {
        sources::unlink(self, key, flow, &mut Sources::default());
    }

    /// Runs `step` for 0, 1, .. `count - 1` until it breaks: `bpf_loop` in the kernel, `for` on
    /// the host.
    fn run<S: Step>(&self, count: u32, step: &mut S);
}

/// The body of a loop.
pub trait Step {
    /// One turn.
    fn step(&mut self, turn: u32) -> ControlFlow<()>;
}

/// Which table a flow goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The table of confirmed flows; the embryonic one if that is full.
    Confirmed,
    /// One of the places in the table of confirmed flows that are for outsiders' first flows, if the one
    /// for its key is free ([`Flow::EARLY`] is set then); else the embryonic one. Moving a flow from one
    /// table to the other costs as much as all that is done about some three packets besides.
    Early,
    /// The least-recently-used table of flows that outsiders opened and did not yet complete.
    Embryo,
}

/// Why a flow was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// There is no room.
    Full,
}
