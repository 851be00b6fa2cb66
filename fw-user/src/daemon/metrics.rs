//! Everything that is counted, as Prometheus reads it.

use std::collections::HashMap;

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;

use crate::command::running::Running;
use crate::command::show::{comment, place};
use crate::command::status::{Status, status};
use crate::host::Host;
use crate::kernel::state::StateDir;
use crate::policy::ids::CounterId;
use crate::policy::model::{Family, Policy};

/// Answers scrapes for ever.
pub async fn serve(listener: TcpListener, state: StateDir) {
    let router = Router::new()
        .route("/metrics", get(scrape))
        .with_state(state);
    // It ends with the daemon; a connection that fails is its client's loss.
    let _ = axum::serve(listener, router).await;
}

async fn scrape(State(state): State<StateDir>) -> Response {
    match tokio::task::spawn_blocking(move || render(&state)).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// The metrics of the firewall in a state directory, or that there is none.
pub fn render(state: &StateDir) -> Result<String> {
    let registry = Registry::new();
    let running = Running::find(state)?;
    let loaded = IntGauge::new("fwbpf_loaded", "Whether a policy is in force.")?;
    loaded.set(running.is_some().into());
    registry.register(Box::new(loaded))?;
    if let Some(running) = running {
        rules(&registry, &running)?;
        condition(&registry, &status(state, &running, &Host::read()?)?)?;
    }
    Ok(TextEncoder::new().encode_to_string(&registry.gather())?)
}

fn rules(registry: &Registry, running: &Running) -> Result<()> {
    let policy = &running.meta.policy;
    let rule_labels = ["family", "table", "chain", "rule"];
    let rule_packets = counters(
        registry,
        "fwbpf_rule_packets_total",
        "Packets that matched a rule.",
        &rule_labels,
    )?;
    let rule_bytes = counters(
        registry,
        "fwbpf_rule_bytes_total",
        "Bytes of layer 3 that matched a rule.",
        &rule_labels,
    )?;
    let policy_labels = ["family", "table", "chain", "policy"];
    let policy_packets = counters(
        registry,
        "fwbpf_chain_policy_packets_total",
        "Packets that no rule decided, so that the chain's policy did.",
        &policy_labels,
    )?;
    let policy_bytes = counters(
        registry,
        "fwbpf_chain_policy_bytes_total",
        "Bytes of layer 3 that the chain's policy decided.",
        &policy_labels,
    )?;
    let mut names = Names::default();
    for (id, counted) in running.counters()? {
        let Some(chain) = policy.chain(id) else {
            continue;
        };
        let (packets, bytes, last) = match (&id.rule, &chain.policy) {
            (None, Some(policy)) => (
                &policy_packets,
                &policy_bytes,
                if policy.accept { "ACCEPT" } else { "DROP" }.to_owned(),
            ),
            _ => (&rule_packets, &rule_bytes, names.of(policy, id)),
        };
        let labels = [
            family_name(id.family),
            id.table.name(),
            chain.name.as_str(),
            last.as_str(),
        ];
        packets.with_label_values(&labels).inc_by(counted.packets);
        bytes.with_label_values(&labels).inc_by(counted.bytes);
    }
    Ok(())
}

fn condition(registry: &Registry, status: &Status) -> Result<()> {
    let drops = counters(
        registry,
        "fwbpf_dropped_packets_total",
        "Packets dropped, by reason.",
        &["reason"],
    )?;
    for drop in &status.drops {
        drops.with_label_values(&[drop.name]).inc_by(drop.count);
    }
    let events = counters(
        registry,
        "fwbpf_events_total",
        "Events that are worth knowing of but drop no packet of their own.",
        &["event"],
    )?;
    for event in &status.events {
        events.with_label_values(&[event.name]).inc_by(event.count);
    }
    let used = gauges(
        registry,
        "fwbpf_flow_entries",
        "Entries in a connection tracking table; a translated flow has two.",
        &["table"],
    )?;
    let max = gauges(
        registry,
        "fwbpf_flow_entries_max",
        "Entries that fit in a connection tracking table.",
        &["table"],
    )?;
    for table in &status.tables {
        let name = table.table.map().to_lowercase();
        used.with_label_values(&[&name])
            .set(i64::try_from(table.used)?);
        max.with_label_values(&[&name]).set(table.max.into());
    }
    let attached = gauges(
        registry,
        "fwbpf_interface_attached",
        "Whether the firewall is on an interface's ingress and egress.",
        &["interface"],
    )?;
    for interface in status.interfaces.iter().filter(|i| i.port_of.is_none()) {
        let both = ["ingress", "egress"]
            .iter()
            .all(|hook| interface.hooks.iter().any(|have| have == hook));
        attached
            .with_label_values(&[&interface.name])
            .set(both.into());
    }
    let generation = IntGauge::new("fwbpf_generation", "Number of the running generation.")?;
    generation.set(status.generation.into());
    registry.register(Box::new(generation))?;
    let loaded_at = IntGauge::new(
        "fwbpf_loaded_timestamp_seconds",
        "When the running policy was loaded, seconds since 1970.",
    )?;
    loaded_at.set(i64::try_from(status.loaded_at)?);
    registry.register(Box::new(loaded_at))?;
    let degraded = IntGauge::new(
        "fwbpf_degraded",
        "Number of things that `fwbpf status` lists as degraded.",
    )?;
    degraded.set(i64::try_from(status.degraded.len())?);
    registry.register(Box::new(degraded))?;
    Ok(())
}

/// Names rules by their comment, or else by file and line. A series must be unique, so a name that
/// repeats within a chain gets the place and then a number.
#[derive(Default)]
struct Names {
    seen: HashMap<(Family, &'static str, usize, String), u32>,
}

impl Names {
    fn of(&mut self, policy: &Policy, id: CounterId) -> String {
        let Some(rule) = policy.rule(id) else {
            return String::new();
        };
        let place = place(policy, rule.origin);
        let name = match comment(rule) {
            Some(comment) if self.is_first(id, comment) => return comment.to_owned(),
            Some(comment) => format!("{comment} ({place})"),
            None => place,
        };
        if self.is_first(id, &name) {
            return name;
        }
        // One line can be several rules: `-s a,b`.
        let key = (id.family, id.table.name(), id.chain, name.clone());
        let count = self.seen.entry(key).or_insert(1);
        *count += 1;
        format!("{name} #{count}")
    }

    fn is_first(&mut self, id: CounterId, name: &str) -> bool {
        let key = (id.family, id.table.name(), id.chain, name.to_owned());
        let first = !self.seen.contains_key(&key);
        if first {
            self.seen.insert(key, 1);
        }
        first
    }
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}
