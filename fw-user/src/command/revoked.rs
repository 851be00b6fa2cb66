//! `fwbpf load --drop-revoked`: cuts the connections that the new policy would not let begin.
//!
//! Their records stay, marked ([`fw_common::abi::flow::Flow::REVOKED`]): if they were deleted, the next
//! segment that either end repeats would have the connection picked up again, as one that has just begun.
//! And so it can be undone, should the policy have been on trial.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use anyhow::{Result, anyhow};
use fw_common::abi::flow::{Flow, FlowKey};
use serde::Serialize;

use super::running::Running;
use crate::explain::{Judge, Opinion, Question};
use crate::host::{Host, routes};
use crate::kernel::flows::{FlowTable, FlowView, Slices, monotonic_now};
use crate::kernel::sets::LiveSet;
use crate::kernel::shortcuts::Shortcuts;
use crate::kernel::state::StateDir;
use crate::kernel::sweep::Sweeper;
use crate::policy::names::{ICMP, ICMPV6};
use crate::sim::HostSet;

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Revoked {
    /// Cut.
    pub cut: usize,
    /// Kept, though it is not certain that the policy would let them begin: that depends on what is not
    /// known any more.
    pub undecided: usize,
}

/// A connection, and where it goes through this host as far as its record tells.
struct Known {
    key: FlowKey,
    view: FlowView,
    /// By which interfaces what opened it came and went; 0 if that is not known.
    by: (u32, u32),
}

/// Cuts the connections that the running policy would not let begin.
pub fn cut_revoked(state: &StateDir, host: &Host) -> Result<Revoked> {
    let mut revoked = Revoked::default();
    let Some(mut running) = Running::find(state)? else {
        return Ok(revoked);
    };
    let policy = running.meta.policy;
    let mut sets = Vec::new();
    for set in &policy.sets {
        let live = LiveSet::open(&mut running.maps, set)?;
        sets.push((set.place, HostSet::new(live.info()?, live.elements()?)));
    }
    let seen = crate::sim::Host::from(host);
    let mut judge = Judge::new(&policy, &seen, &sets).map_err(|limit| anyhow!("{limit}"))?;
    let flows = known(state)?;
    let ends = flows.iter().flat_map(|Known { view, .. }| {
        [
            view.original.source,
            view.original.destination,
            view.reply.source,
        ]
    });
    let routes = routes(ends)?;
    let sweeper = Sweeper::open(state)?;
    for flow in &flows {
        let question = question(flow, &seen, host, &routes);
        let opinion = question.map_or(Opinion::Open, |question| judge.opinion(&question));
        match opinion {
            Opinion::Accepted => {}
            Opinion::Refused => revoked.cut += usize::from(sweeper.revoke(&flow.key)?),
            Opinion::Open => revoked.undecided += 1,
        }
    }
    Ok(revoked)
}

fn known(state: &StateDir) -> Result<Vec<Known>> {
    let now = monotonic_now();
    let shortcuts = Shortcuts::open(state)?;
    let mut all = Vec::new();
    for table in FlowTable::ALL {
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            for (key, flow) in &slice {
                if let Some(view) = FlowView::new(key, flow, now) {
                    all.push(Known {
                        key: *key,
                        view,
                        by: shortcuts.interfaces(flow)?,
                    });
                }
            }
        }
    }
    Ok(all)
}

/// The packet that opened a flow, on the way that it would take now; nothing if there is none.
fn question(
    flow: &Known,
    seen: &crate::sim::Host,
    host: &Host,
    routes: &HashMap<IpAddr, u32>,
) -> Option<Question> {
    let view = &flow.view;
    let (from, to) = (view.original.source, view.reply.source);
    let name = |index: u32| {
        let mut interfaces = host.interfaces.iter();
        let found = interfaces.find(|interface| interface.index == index)?;
        Some(found.name.clone())
    };
    let by = |noted: u32, address: IpAddr| {
        let noted = name(noted);
        noted.or_else(|| routes.get(&address).and_then(|index| name(*index)))
    };
    let (in_interface, out_interface) = if seen.is_local(from) {
        (None, Some(by(0, to)?))
    } else {
        let on = match seen.is_local(to) {
            // Unless the policy translates its destination no more.
            true if seen.is_local(view.original.destination) => None,
            true => by(0, view.original.destination),
            false => by(flow.by.1, to),
        };
        (Some(by(flow.by.0, from)?), on)
    };
    let [kind, code] = view.original.destination_port.to_be_bytes();
    let is_icmp = matches!(view.protocol, ICMP | ICMPV6);
    Some(Question {
        in_interface,
        out_interface,
        source: from,
        destination: view.original.destination,
        protocol: view.protocol,
        source_port: Some(view.original.source_port),
        destination_port: Some(view.original.destination_port),
        icmp: is_icmp.then_some((kind, code)),
        tcp_flags: None,
        state: None,
    })
}

/// The connections that are cut.
pub fn cut(state: &StateDir) -> Result<HashSet<FlowKey>> {
    let mut keys = HashSet::new();
    for table in FlowTable::ALL {
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            let cut =
                |flow: &Flow| flow.status.get() & (Flow::ALIAS | Flow::REVOKED) == Flow::REVOKED;
            keys.extend(
                slice
                    .iter()
                    .filter(|(_, flow)| cut(flow))
                    .map(|(key, _)| *key),
            );
        }
    }
    Ok(keys)
}

/// Has the connections go on that were cut, but for these.
pub fn restore(state: &StateDir, but: &HashSet<FlowKey>) -> Result<()> {
    let sweeper = Sweeper::open(state)?;
    for key in cut(state)?.difference(but) {
        sweeper.restore(key)?;
    }
    Ok(())
}
