//! The machine that a question is asked of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_common::abi::blob::Cell;
use fw_common::abi::flow::{Flow, FlowKey};
use ipnet::IpNet;

use super::Question;
use crate::compile::{Limits, Meta, Pattern, Slots, TableSet, compile};
use crate::policy::CounterId;
use crate::policy::model::Policy;
use crate::sim::{Host, HostDevice, HostSet, HostTables};

/// A policy, compiled, on a host.
pub struct Machine {
    pub(super) policy: Policy,
    pub(super) slots: Slots,
    pub(super) tables: HostTables,
    /// The host is made up from the question: addresses that the question does not name are
    /// placeholders.
    pub(super) invented: bool,
}

/// The addresses that interfaces have which are made up from a question.
const MADE_UP: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);

impl Machine {
    /// Whether an address is that of an interface which is made up.
    pub(super) fn is_made_up(&self, address: IpAddr) -> bool {
        self.invented && (address == MADE_UP.0 || address == MADE_UP.1)
    }

    /// A policy from files, on a host about which only the question and the policy tell: it has the
    /// interfaces that they name; a packet that leaves by none is for the host itself.
    pub fn offline(policy: Policy, question: &Question) -> Result<Self, Limits> {
        let slots = Slots::fresh(&policy);
        let compiled = compile(&policy, &slots, 1, &[])?;
        let asked = [&question.in_interface, &question.out_interface];
        let mut names: Vec<&str> = vec!["lo"];
        for name in asked
            .into_iter()
            .flatten()
            .map(String::as_str)
            .chain(compiled.patterns.iter().filter_map(whole_name))
        {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let device = |(index, name): (usize, &&str)| HostDevice {
            loopback: *name == "lo",
            // Documentation addresses (RFC 5737, RFC 3849), never shown as if they were the host's.
            masquerade4: Some(MADE_UP.0),
            masquerade6: Some(MADE_UP.1),
            ..HostDevice::ethernet(index as u32 + 1, name)
        };
        let for_itself = question.out_interface.is_none();
        let host = Host {
            broadcast: Vec::new(),
            devices: names.iter().enumerate().map(device).collect(),
            local: for_itself
                .then(|| IpNet::from(question.destination))
                .into_iter()
                .collect(),
            ..Host::default()
        };
        let mut tables = HostTables::running(host, compiled);
        tables.put_sets(&policy);
        Ok(Self {
            policy,
            slots,
            tables,
            invented: true,
        })
    }

    /// The firewall that runs: its policy as the kernel holds it, the host, and the flows that it
    /// tracks, each with whether it is embryonic, and its sets and lists by place. `now` is the clock that flows expire by.
    pub fn live(
        meta: Meta,
        tables: TableSet,
        host: &crate::host::Host,
        flows: impl IntoIterator<Item = (FlowKey, Flow, bool)>,
        sets: Vec<(u32, HostSet)>,
        lists: &[(u32, Vec<Cell>)],
        now: u64,
    ) -> Self {
        let mut running = HostTables::running(Host::from(host), tables);
        running.set_now(now);
        for (key, flow, embryo) in flows {
            running.put_flow(&key, &flow, embryo);
        }
        for (place, set) in sets {
            running.put_set(place, set);
        }
        for (place, cells) in lists {
            running.put_list_cells(*place, cells);
        }
        Self {
            policy: meta.policy,
            slots: meta.slots,
            tables: running,
            invented: false,
        }
    }

    /// The counter of a slot.
    pub(super) fn counter(&self, slot: u32) -> Option<CounterId> {
        let place = self.slots.of.iter().position(|known| *known == slot)?;
        self.policy.counter_ids().nth(place)
    }
}

/// The pattern's name if it stands for one interface.
fn whole_name(pattern: &Pattern) -> Option<&str> {
    let name = pattern.name.0.as_str();
    (!pattern.of_ports && !name.ends_with('+')).then_some(name)
}
