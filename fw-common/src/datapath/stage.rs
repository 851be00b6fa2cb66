//! Stages: parts of a packet's way that the kernel's verifier looks at one by one.

use super::packet::Packet;
use super::scratch::Scratch;
use super::tables::Tables;

/// A part of a packet's way that reads and leaves all its state in the scratch space.
///
/// A BPF program calls a stage as a global function: the verifier looks at it once, knowing nothing
/// of what was before, and at its callers knowing nothing of what it did
/// (`btf_check_subprog_call` and `do_check_subprogs`, kernel/bpf/verifier.c). So the instructions
/// that it looks at are the sum of the stages', not their product.
pub trait Stage {
    /// Which one it is.
    const NAME: Name;

    /// Runs it.
    fn run<P: Packet, T: Tables>(
        packet: &mut P,
        tables: &T,
        scratch: &mut Scratch,
        argument: u32,
    ) -> u32;
}

/// The stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// [`super::start::Begin`].
    Begin,
    /// [`super::place::PlaceIn`].
    PlaceIn,
    /// [`super::place::PlaceOut`].
    PlaceOut,
    /// [`super::place::PlaceAgain`].
    PlaceAgain,
    /// [`super::classify::Traverse`].
    Traverse,
    /// [`super::effect::Act`].
    Act,
    /// [`super::nat::Open`].
    Open,
    /// [`super::early::SendOn`].
    SendOn,
    /// [`super::rewrite::Translate`].
    Translate,
    /// [`super::facts::Gather`].
    Gather,
    /// [`super::reject::Respond`].
    Respond,
    /// [`super::window::ReadOptions`].
    ReadOptions,
    /// [`super::sctp::ReadChunks`].
    ReadChunks,
    /// [`super::gates::Meet`].
    Meet,
    /// [`super::search::Find`].
    Find,
    /// [`super::flow_mark::FindMark`].
    FindMark,
    /// [`super::flow_mark::KeepMark`].
    KeepMark,
    /// [`super::translation::Choose`].
    Choose,
    /// [`super::conntrack::LookUp`].
    LookUp,
    /// [`super::conntrack::About`].
    About,
    /// [`super::place::MatchLabel`].
    MatchLabel,
    /// [`super::transit::FindOnWay`].
    FindOnWay,
    /// [`super::transit::TakeName`].
    TakeName,
    /// [`super::transit::SettleName`].
    SettleName,
}
