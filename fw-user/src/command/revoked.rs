//! `fwbpf load --drop-revoked`: ends the flows that the new policy would not let begin.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Result, anyhow};

use super::running::Running;
use crate::explain::{Judge, Question};
use crate::host::{Host, routes};
use crate::kernel::flows::{FlowView, views};
use crate::kernel::sets::LiveSet;
use crate::kernel::state::StateDir;
use crate::kernel::sweep::Sweeper;
use crate::policy::names::ICMP;
use crate::policy::names::ICMPV6;
use crate::sim::HostSet;

/// Ends the flows that the running policy would not let begin; how many.
pub fn end_revoked(state: &StateDir, host: &Host) -> Result<usize> {
    let Some(mut running) = Running::find(state)? else {
        return Ok(0);
    };
    let policy = running.meta.policy;
    let mut sets = Vec::new();
    for set in &policy.sets {
        let live = LiveSet::open(&mut running.maps, set)?;
        sets.push((set.place, HostSet::new(live.info()?, live.elements()?)));
    }
    let mut judge = Judge::new(&policy, host.into(), sets).map_err(|limit| anyhow!("{limit}"))?;
    let flows = views(state)?;
    let ends = flows
        .iter()
        .flat_map(|(_, flow)| [flow.original.source, flow.reply.source]);
    let routes = routes(ends)?;
    let sweeper = Sweeper::open(state)?;
    let mut ended = 0;
    for (key, flow) in &flows {
        let Some(question) = question(flow, &judge, host, &routes) else {
            continue;
        };
        // If it cannot be asked, it cannot be known.
        if judge.refuses(&question).unwrap_or(false) && sweeper.end(key)? {
            ended += 1;
        }
    }
    Ok(ended)
}

/// The packet that opened a flow, on the way that it would take now; nothing if there is none.
fn question(
    flow: &FlowView,
    judge: &Judge,
    host: &Host,
    routes: &HashMap<IpAddr, u32>,
) -> Option<Question> {
    let (from, to) = (flow.original.source, flow.reply.source);
    let name = |index: u32| {
        let mut interfaces = host.interfaces.iter();
        let found = interfaces.find(|interface| interface.index == index)?;
        Some(found.name.clone())
    };
    let by = |address: IpAddr| routes.get(&address).and_then(|index| name(*index));
    let (in_interface, out_interface) =
        match (judge.host().is_local(from), judge.host().is_local(to)) {
            (true, _) => (None, Some(by(to)?)),
            (false, true) => (Some(by(from)?), None),
            (false, false) => (Some(by(from)?), Some(by(to)?)),
        };
    let [kind, code] = flow.original.destination_port.to_be_bytes();
    let is_icmp = matches!(flow.protocol, ICMP | ICMPV6);
    Some(Question {
        in_interface,
        out_interface,
        source: from,
        destination: flow.original.destination,
        protocol: flow.protocol,
        source_port: Some(flow.original.source_port),
        destination_port: Some(flow.original.destination_port),
        icmp: is_icmp.then_some((kind, code)),
        tcp_flags: None,
        state: None,
    })
}
