//! `fwbpf status`: how the firewall is doing.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use fw_common::abi::device::Device;
use serde::Serialize;

use super::Failure;
use super::output::Output;
use super::require::about_ipsec;
use super::running::Running;
use super::trial::{Trial, TrialStatus};
use crate::compile::Settings;
use crate::host::Host;
use crate::kernel::attach::{Via, XdpMode};
use crate::kernel::fast_path::{FastPath, Places};
use crate::kernel::flows::{FlowTable, count};
use crate::kernel::state::{Fact, StateDir, current_netns};
use crate::kernel::{bypassed, probe, read};
use crate::policy::tracking::{KEYS, Key};

/// How pins spell that hook.
const XDP: &str = "xdp";

/// What `--json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The state directory.
    pub state_dir: String,
    /// The kernel's version.
    pub kernel: String,
    /// What the programs are attached to; nothing while there is no interface.
    pub hook: Option<Via>,
    /// What matters of the kernel's abilities, and whether they are there.
    pub features: Vec<probe::Finding>,
    /// The number of the running generation.
    pub generation: u32,
    /// When it was loaded, seconds since 1970.
    pub loaded_at: u64,
    /// The version of fwbpf that loaded it.
    pub loaded_by: String,
    /// The files that it came from.
    pub files: Vec<String>,
    /// Cells of the compiled policy, 64 bytes each.
    pub cells: usize,
    /// The `--xdp` of the last load.
    pub xdp: String,
    /// The `--fast-path` of the last load.
    pub fast_path: String,
    /// If the policy is not confirmed yet: how long that may take.
    pub trial: Option<TrialStatus>,
    /// The interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// How connections are tracked: settings by name, seconds and numbers (switches are 0 or 1).
    pub conntrack: BTreeMap<&'static str, u32>,
    /// The counters' table.
    pub counters: CounterStatus,
    /// The flow tables.
    pub tables: Vec<TableStatus>,
    /// Dropped packets by reason.
    pub drops: Vec<EventStatus>,
    /// Other events.
    pub events: Vec<EventStatus>,
    /// What is not as it should be, and why.
    pub degraded: Vec<String>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// The name.
    pub name: String,
    /// The index.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
    /// The hooks that the firewall is on.
    pub hooks: Vec<String>,
    /// Which way the firewall's XDP program runs: `native`, in the driver, or `generic`.
    pub xdp: Option<&'static str>,
    /// Where the fast path begins: `tc`, `xdp`.
    pub fast_path: Vec<&'static str>,
    /// Why it does not, or not at XDP.
    pub fast_path_why_not: Option<String>,
    /// Whether layer 3 does not see it: it is the port of this interface.
    pub port_of: Option<String>,
}

/// How full the counters' table is. Its size is chosen at the first load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CounterStatus {
    /// Counters of the running policy.
    pub used: usize,
    /// How many the running policy and the next one may have together.
    pub max: u32,
}

/// How full a flow table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TableStatus {
    /// The table.
    pub table: FlowTable,
    /// Entries; a translated flow has two.
    pub used: usize,
    /// How many fit.
    pub max: u32,
}

/// One event counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EventStatus {
    /// Its name.
    pub name: &'static str,
    /// What it means.
    pub text: &'static str,
    /// How often it happened.
    pub count: u64,
}

/// Runs the command.
pub fn run(state: &StateDir, output: &mut Output) -> Result<(), Failure> {
    let running = Running::open(state)?;
    let status = status(state, &running, &Host::read()?)?;
    if output.json {
        output.value(&status)
    } else {
        print(&status, output)
    }
}

/// Gathers the status.
pub fn status(state: &StateDir, running: &Running, host: &Host) -> Result<Status> {
    let interfaces = interfaces(state, running, host)?;
    let stats = read::stats(&running.maps)?;
    let (drops, events): (Vec<_>, Vec<_>) = stats.into_iter().partition(|(stat, _)| stat.is_drop());
    let event = |(stat, count): (fw_common::abi::stat::Stat, u64)| EventStatus {
        name: stat.name(),
        text: stat.text(),
        count,
    };
    let features = probe::all();
    Ok(Status {
        state_dir: state.path().display().to_string(),
        kernel: probe::kernel_version(),
        hook: Via::of(state)?,
        generation: running.header.generation,
        loaded_at: running.meta.loaded_at,
        loaded_by: running.meta.version.clone(),
        files: running.meta.policy.files.clone(),
        cells: running.tables.cells.len(),
        trial: Trial::of(state, running.header.generation).map(|trial| trial.status()),
        fast_path: FastPath::of(state, running.header.generation).name().into(),
        xdp: XdpMode::of(state, running.header.generation).name().into(),
        degraded: degraded(state, running, host, &interfaces, &features),
        features,
        interfaces,
        conntrack: settings_of(running),
        counters: CounterStatus {
            used: running.meta.slots.of.len(),
            max: running.maps.counters.len(),
        },
        tables: FlowTable::ALL
            .into_iter()
            .map(|table| {
                Ok(TableStatus {
                    table,
                    used: count(state, table)?,
                    max: table.capacity(),
                })
            })
            .collect::<Result<_>>()?,
        drops: drops.into_iter().map(event).collect(),
        events: events.into_iter().map(event).collect(),
    })
}

fn settings_of(running: &Running) -> BTreeMap<&'static str, u32> {
    let settings = Settings::read(&running.header, &running.tables);
    let value = |key: &Key| (key.name, settings.get(key.kind));
    KEYS.iter().map(value).collect()
}

/// Those settings that are not netfilter's defaults, in words.
fn own_settings(status: &Status) -> String {
    let default = Settings::default();
    let own = KEYS.iter().filter_map(|key| {
        let value = status.conntrack.get(key.name)?;
        (*value != default.get(key.kind)).then(|| format!("{} {value}", key.name))
    });
    let own: Vec<String> = own.collect();
    if own.is_empty() {
        return "Connections are tracked with netfilter's default timeouts and settings.".into();
    }
    format!(
        "Connections are tracked with netfilter's default timeouts and settings, but for: {}.",
        own.join(", ")
    )
}

fn interfaces(state: &StateDir, running: &Running, host: &Host) -> Result<Vec<InterfaceStatus>> {
    let links = state.links()?;
    let mode = FastPath::of(state, running.header.generation);
    let plan = match Via::of(state)? {
        Some(via) => Places::make(state, host, mode, via)?,
        None => Places::default(),
    };
    let layer3: Vec<u32> = host.layer3().map(|interface| interface.index).collect();
    let name_of = |index: u32| {
        host.interfaces
            .iter()
            .find(|interface| interface.index == index)
            .map_or_else(|| index.to_string(), |interface| interface.name.clone())
    };
    Ok(host
        .interfaces
        .iter()
        .map(|interface| {
            let hooks: Vec<String> = links
                .iter()
                .filter(|(index, _, _)| *index == interface.index)
                .map(|(_, hook, _)| hook.clone())
                .collect();
            let xdp = interface
                .xdp
                .filter(|_| hooks.iter().any(|hook| hook == XDP))
                .map(|xdp| if xdp.native { "native" } else { "generic" });
            let record = running.maps.devices.get(&interface.index, 0);
            let flags = record.map_or(0, |device| device.flags);
            let fast_path = [(Device::FAST, "tc"), (Device::FAST_XDP, "xdp")]
                .into_iter()
                .filter(|(flag, _)| flags & flag != 0)
                .map(|(_, name)| name)
                .collect();
            let place = plan.interfaces.get(&interface.index);
            InterfaceStatus {
                fast_path,
                fast_path_why_not: place.and_then(|place| place.why_not.clone()),
                name: interface.name.clone(),
                index: interface.index,
                up: interface.up,
                hooks,
                xdp,
                port_of: interface
                    .master
                    .filter(|_| !layer3.contains(&interface.index))
                    .map(name_of),
            }
        })
        .collect())
}

fn degraded(
    state: &StateDir,
    running: &Running,
    host: &Host,
    interfaces: &[InterfaceStatus],
    features: &[probe::Finding],
) -> Vec<String> {
    let mut degraded: Vec<String> = features
        .iter()
        .filter(|finding| !finding.present)
        .map(ToString::to_string)
        .collect();
    if let (Some(owner), Ok(here)) = (state.fact(Fact::Netns), current_netns())
        && owner != here
    {
        degraded.push(format!(
            "the firewall is in another network namespace ({owner}; this is {here}); the \
             interfaces listed are this one's"
        ));
    }
    // What cannot be asked is not known to be well.
    if about_ipsec(&running.meta.policy).is_some() && bypassed::has_ipsec().unwrap_or(true) {
        degraded.push(
            "rules with `-m policy --pol none` hold for all packets, and since the last load IPsec is in \
             use here (`ip xfrm policy`, `ip xfrm state`)"
                .to_owned(),
        );
    }
    for interface in host.guarded() {
        let guarded = interfaces.iter().any(|status| {
            status.index == interface.index
                && ["ingress", "egress"]
                    .iter()
                    .all(|hook| status.hooks.iter().any(|have| have == hook))
        });
        if interface.l2_len().is_none() {
            degraded.push(format!(
                "{} is not filtered: its link layer (ARPHRD {}) is neither Ethernet nor plain IP",
                interface.name, interface.link_layer
            ));
        } else if !guarded {
            degraded.push(format!(
                "{} is not filtered: it appeared after the last load; `fwbpf daemon` attaches to \
                 new interfaces, or load again",
                interface.name
            ));
        }
    }
    for pattern in &running.tables.patterns {
        let (mut layer3, mut ports) = (host.layer3(), host.ports());
        let fits = match pattern.of_ports {
            true => ports.any(|(port, _)| pattern.name.matches(&port.name)),
            false => layer3.any(|interface| pattern.name.matches(&interface.name)),
        };
        if !fits {
            let what = if pattern.of_ports {
                "port of a bridge that has iptables see what it switches"
            } else {
                "interface"
            };
            degraded.push(format!(
                "the policy names `{}`, and no {what} fits that now",
                pattern.name.0
            ));
        }
    }
    degraded
}

/// The hooks in words: `egress, ingress, xdp (native)`.
fn hooks(interface: &InterfaceStatus) -> String {
    let words: Vec<String> = interface
        .hooks
        .iter()
        .map(|hook| match interface.xdp {
            Some(mode) if hook == XDP => format!("{hook} ({mode})"),
            _ => hook.clone(),
        })
        .collect();
    words.join(", ")
}

fn print(status: &Status, output: &mut Output) -> Result<(), Failure> {
    let loaded =
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(status.loaded_at));
    output.line(format_args!(
        "Generation {} of {}, loaded {loaded} by fwbpf {} ({} cells, {} of {} counters), kernel {}, --xdp {}, --fast-path {}",
        status.generation,
        status.files.join(", "),
        status.loaded_by,
        status.cells,
        status.counters.used,
        status.counters.max,
        status.kernel,
        status.xdp,
        status.fast_path,
    ))?;

    if let Some(trial) = status.trial {
        output.line(if trial.guarded {
            format!(
                "On trial: unless `fwbpf confirm` is run within {} seconds, what was before comes back.",
                trial.seconds_left
            )
        } else {
            "On trial, but the process is gone that would bring back what was before: \
             run `fwbpf confirm`, or load the policy before."
                .into()
        })?;
    }

    output.line(own_settings(status))?;

    output.line("")?;
    output.heading("Interfaces")?;
    let rows = status.interfaces.iter().map(|interface| {
        vec![
            interface.name.clone(),
            if interface.up { "up" } else { "down" }.into(),
            match &interface.port_of {
                Some(master) if interface.hooks.is_empty() => format!("port of {master}"),
                Some(master) => format!("{} (port of {master})", hooks(interface)),
                None if interface.hooks.is_empty() => "not filtered".into(),
                None => hooks(interface),
            },
            interface.fast_path.join(", "),
            interface.fast_path_why_not.clone().unwrap_or_default(),
        ]
    });
    let columns = ["interface", "", "hooks", "fast path", "why not"];
    output.table(&columns, rows, &[])?;

    output.line("")?;
    output.heading("Connection tracking")?;
    let rows = status.tables.iter().map(|table| {
        vec![
            table.table.map().to_lowercase(),
            table.used.to_string(),
            table.max.to_string(),
            format!("{:.1} %", 100.0 * table.used as f64 / f64::from(table.max)),
        ]
    });
    output.table(&["table", "used", "max", "full"], rows, &[1, 2, 3])?;

    output.line("")?;
    output.heading("Dropped packets and other events")?;
    let rows = status.drops.iter().chain(&status.events).map(|event| {
        vec![
            event.count.to_string(),
            event.name.into(),
            event.text.into(),
        ]
    });
    output.table(&["count", "reason", "meaning"], rows, &[0])?;

    if !status.degraded.is_empty() {
        output.line("")?;
        output.heading("Degraded")?;
        for line in &status.degraded {
            output.line(format_args!("  {line}"))?;
        }
    }
    Ok(())
}
