//! What a simulator, or a kernel, holds at one moment, to be compared and printed.

use std::collections::BTreeMap;

use fw_common::MapCell;
use fw_common::abi::flow::{Flow, FlowKey, Fragment, FragmentKey};
use fw_common::datapath::header::protocol;

/// Everything that packets changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The flows of both tiers, and aliases.
    pub flows: BTreeMap<FlowKey, FlowState>,
    /// First fragments noted, sorted by address, identification and hook.
    pub fragments: Vec<(FragmentKey, Fragment)>,
    /// Packets and bytes by counter slot; slots never hit are left out.
    pub counters: BTreeMap<u32, [u64; 2]>,
    /// Events by their number; those that never happened are left out.
    pub stats: BTreeMap<u32, u64>,
}

/// A flow, and which table it is in.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowState {
    /// In the embryonic tier.
    pub embryo: bool,
    /// The record.
    pub flow: Flow,
}

impl State {
    /// The same with every time set to zero: two runs are equal but for the clock.
    #[must_use]
    pub fn timeless(mut self) -> Self {
        for (key, state) in &mut self.flows {
            state.flow.expires = MapCell::new(0);
            // The numbers stay; the word in `ACTIVE` is each side's own.
            let numbers = state.flow.numbers();
            let active = u64::from(numbers.active());
            state.flow.shortcuts.set(numbers.0 ^ active);
            if key.protocol() == protocol::UDP {
                state.flow.set_opened_at(0);
            }
        }
        for (_, fragment) in &mut self.fragments {
            fragment.expires = 0;
        }
        self
    }

    /// Brings the fragments in order; whoever fills them calls this.
    pub fn sort(&mut self) {
        self.fragments.sort_by_key(|(key, _)| {
            (
                key.source,
                key.destination,
                key.id,
                (key.protocol, key.hook, key.family),
            )
        });
    }
}
