//! `fwbpf recent`: what `-m recent` remembers, shown and changed as through /proc/net/xt_recent.

use serde::Serialize;

use super::Failure;
use super::output::Output;
use super::running::Predecessor;
use crate::cli::{Recent, RecentCommand};
use crate::kernel::flows::monotonic_now;
use crate::kernel::lists::{ListEntry, LiveList};
use crate::kernel::load::Maps;
use crate::kernel::state::StateDir;
use crate::policy::error::nearest;
use crate::policy::lists::ListDefinition;

/// A list, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
struct ListView<'a> {
    name: &'a str,
    capacity: u32,
    entries: Vec<EntryView>,
}

#[derive(Clone, Debug, Serialize)]
struct EntryView {
    address: String,
    /// The hop limit of the last packet; nothing if no rule asks for it.
    ttl: Option<u8>,
    /// How many seconds ago packets came, the last one first.
    seconds_ago: Vec<f64>,
}

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Recent, output: &mut Output) -> Result<(), Failure> {
    let not_loaded = || Failure::NotLoaded(state.clone());
    // Nobody replaces the policy, and with it the lists, meanwhile.
    if !state.exists() {
        return Err(not_loaded());
    }
    let _lock = state.lock()?;
    let running = Predecessor::find(state)?.ok_or_else(not_loaded)?;
    let maps = Maps::open(state)?.ok_or_else(not_loaded)?;
    let mut lists = running.known.lists;
    lists.retain(ListDefinition::is_recent);
    let lists = &lists;
    match &arguments.command {
        RecentCommand::List { name } => {
            let mut views = Vec::new();
            for list in chosen(lists, name.as_deref())? {
                let entries = LiveList::open(state, &maps, list)?.entries()?;
                let now = monotonic_now();
                views.push(ListView {
                    name: &list.name,
                    capacity: list.shape().capacity,
                    entries: entries.iter().map(|entry| view(entry, now)).collect(),
                });
            }
            print(&views, output)
        }
        RecentCommand::Add { name, address } => {
            let list = find(lists, name)?;
            let known = LiveList::open(state, &maps, list)?.add(*address)?;
            say(output, if known { "noted again" } else { "added" }, 1)
        }
        RecentCommand::Del { name, address } => {
            let list = find(lists, name)?;
            if !LiveList::open(state, &maps, list)?.delete(*address)? {
                return Err(Failure::Absent(format!(
                    "{address} is not in the list {name}"
                )));
            }
            say(output, "deleted", 1)
        }
        RecentCommand::Flush { name } => {
            let mut deleted = 0;
            for list in chosen(lists, name.as_deref())? {
                let live = LiveList::open(state, &maps, list)?;
                for entry in live.entries()? {
                    deleted += usize::from(live.delete(entry.address)?);
                }
            }
            say(output, "deleted", deleted)
        }
    }
}

fn chosen<'a>(
    lists: &'a [ListDefinition],
    name: Option<&str>,
) -> Result<Vec<&'a ListDefinition>, Failure> {
    match name {
        Some(name) => Ok(vec![find(lists, name)?]),
        None => Ok(lists.iter().collect()),
    }
}

fn find<'a>(lists: &'a [ListDefinition], name: &str) -> Result<&'a ListDefinition, Failure> {
    lists.iter().find(|list| list.name == name).ok_or_else(|| {
        let near = nearest(name, lists.iter().map(|list| list.name.as_str()));
        Failure::Usage(match near {
            Some(near) => format!("no rule names a list `{name}`; did you mean `{near}`?"),
            None => {
                format!(
                    "no rule names a list `{name}`; `fwbpf recent list` shows those that there are"
                )
            }
        })
    })
}

fn view(entry: &ListEntry, now: u64) -> EntryView {
    let seconds = |time: &u64| {
        let milliseconds = now.saturating_sub(*time) / 1_000_000;
        milliseconds as f64 / 1000.0
    };
    EntryView {
        address: entry.address.to_string(),
        ttl: (entry.hops != 0).then_some(entry.hops),
        seconds_ago: entry.times.iter().rev().map(seconds).collect(),
    }
}

fn print(views: &[ListView<'_>], output: &mut Output) -> Result<(), Failure> {
    if output.json {
        return output.value(&views);
    }
    for list in views {
        let (name, count, capacity) = (list.name, list.entries.len(), list.capacity);
        output.line(format_args!("{name}: {count} of {capacity} addresses"))?;
        for entry in &list.entries {
            let ago: Vec<String> = entry
                .seconds_ago
                .iter()
                .map(|seconds| format!("{seconds:.1}"))
                .collect();
            let hops = entry
                .ttl
                .map_or(String::new(), |hops| format!(" ttl {hops},"));
            output.line(format_args!(
                "  {}{hops} seen {} seconds ago",
                entry.address,
                ago.join(", ")
            ))?;
        }
    }
    Ok(())
}

fn say(output: &mut Output, what: &'static str, count: usize) -> Result<(), Failure> {
    if output.json {
        return output.value(&serde_json::json!({ what: count }));
    }
    let addresses = if count == 1 { "address" } else { "addresses" };
    output.say(format_args!("{count} {addresses} {what}"));
    Ok(())
}
