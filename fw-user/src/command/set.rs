//! `fwbpf set`: like `ipset list`, `add`, `del`, `test` and `flush`, on the sets that are in use.

use fw_common::abi::set::{SetEntry, SetKey};
use serde::Serialize;

use super::Failure;
use super::output::Output;
use super::running::Predecessor;
use crate::cli::{Set, SetCommand};
use crate::kernel::flows::monotonic_now;
use crate::kernel::load::Maps;
use crate::kernel::sets::LiveSet;
use crate::kernel::state::StateDir;
use crate::kernel::sync::touch;
use crate::policy::error::nearest;
use crate::policy::set::{MOST_SECONDS, SetDefinition, SetElement, parse_element, print_element};

/// A set, as `--json` prints it.
#[derive(Clone, Debug, Serialize)]
struct SetView {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    family: &'static str,
    capacity: u32,
    timeout: Option<u32>,
    elements: Vec<ElementView>,
}

#[derive(Clone, Debug, Serialize)]
struct ElementView {
    element: String,
    /// Seconds that are left; nothing if it stays.
    timeout: Option<u64>,
    nomatch: bool,
}

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Set, output: &mut Output) -> Result<(), Failure> {
    let not_loaded = || Failure::NotLoaded(state.clone());
    // Nobody replaces the policy, and with it the sets, meanwhile.
    if !state.exists() {
        return Err(not_loaded());
    }
    let _lock = state.lock()?;
    let running = Predecessor::find(state)?.ok_or_else(not_loaded)?;
    let mut maps = Maps::open(state)?.ok_or_else(not_loaded)?;
    let sets = &running.known.sets;
    match &arguments.command {
        SetCommand::List { name } => {
            let wanted: Vec<&SetDefinition> = match name {
                Some(name) => vec![find(sets, name)?],
                None => sets.iter().collect(),
            };
            list(&mut maps, &wanted, output)
        }
        SetCommand::Add {
            name,
            element,
            options,
        } => {
            let set = find(sets, name)?;
            let (timeout, nomatch) = add_options(options)?;
            let elements = elements(set, element, timeout, nomatch)?;
            let mut live = LiveSet::open(&mut maps, set)?;
            for element in &elements {
                live.add(element)?;
            }
            touch(&mut maps)?;
            say(output, "added", elements.len())
        }
        SetCommand::Del { name, element } => {
            let set = find(sets, name)?;
            let elements = elements(set, element, None, false)?;
            let mut live = LiveSet::open(&mut maps, set)?;
            let mut deleted = 0;
            for element in &elements {
                deleted += usize::from(live.delete(&element.key)?);
            }
            touch(&mut maps)?;
            if deleted == 0 {
                return Err(Failure::Absent(format!(
                    "{element} is not in the set {name}"
                )));
            }
            say(output, "deleted", deleted)
        }
        SetCommand::Test { name, element } => {
            let set = find(sets, name)?;
            let elements = elements(set, element, None, false)?;
            let live = LiveSet::open(&mut maps, set)?;
            let mut all = !elements.is_empty();
            for element in &elements {
                all &= contains(&live, &element.key)?;
            }
            if output.json {
                output.value(&serde_json::json!({ "contained": all }))?;
            }
            if !all {
                return Err(Failure::Absent(format!(
                    "{element} is not in the set {name}"
                )));
            }
            if !output.json {
                output.line(format_args!("{element} is in the set {name}"))?;
            }
            Ok(())
        }
        SetCommand::Flush { name } => {
            let wanted: Vec<&SetDefinition> = match name {
                Some(name) => vec![find(sets, name)?],
                None => sets.iter().collect(),
            };
            let mut deleted = 0;
            for set in wanted {
                deleted += LiveSet::open(&mut maps, set)?.flush()?;
            }
            touch(&mut maps)?;
            say(output, "deleted", deleted)
        }
    }
}

fn find<'a>(sets: &'a [SetDefinition], name: &str) -> Result<&'a SetDefinition, Failure> {
    sets.iter().find(|set| set.name == name).ok_or_else(|| {
        let near = nearest(name, sets.iter().map(|set| set.name.as_str()));
        Failure::Usage(match near {
            Some(near) => format!("the policy has no set `{name}`; did you mean `{near}`?"),
            None => {
                format!("the policy has no set `{name}`; `fwbpf set list` shows those that it has")
            }
        })
    })
}

/// What follows an element: its time, and whether it is an exception.
fn add_options(words: &[String]) -> Result<(Option<u32>, bool), Failure> {
    let (mut timeout, mut nomatch) = (None, false);
    let mut words = words.iter().map(String::as_str);
    while let Some(word) = words.next() {
        match word {
            "timeout" => {
                let seconds = words.next().and_then(|word| word.parse().ok());
                timeout = Some(
                    seconds
                        .filter(|seconds| *seconds <= MOST_SECONDS)
                        .ok_or_else(|| {
                            Failure::Usage(format!("`timeout` takes seconds, up to {MOST_SECONDS}"))
                        })?,
                );
            }
            "nomatch" => nomatch = true,
            _ => {
                return Err(Failure::Usage(format!(
                    "`{word}` is no option of an element; there are `timeout SECONDS` and `nomatch`"
                )));
            }
        }
    }
    Ok((timeout, nomatch))
}

fn elements(
    set: &SetDefinition,
    text: &str,
    timeout: Option<u32>,
    nomatch: bool,
) -> Result<Vec<SetElement>, Failure> {
    if timeout.is_some() && set.timeout.is_none() {
        return Err(Failure::Usage(format!(
            "elements of the set {} have no times: it was made without `timeout`",
            set.name
        )));
    }
    if nomatch && !set.kind.has_nomatch() {
        return Err(Failure::Usage(format!(
            "elements of {} cannot be excepted",
            set.kind.name()
        )));
    }
    let keys = parse_element(text, set)
        .map_err(|bad| Failure::Usage(format!("{}; expected {}", bad.message, bad.expected)))?;
    let element = |key| SetElement {
        key,
        timeout,
        nomatch,
    };
    Ok(keys.into_iter().map(element).collect())
}

/// Whether a packet would be found in the set: an element of prefixes contains what is longer
/// (`ipset test` does the same).
fn contains(live: &LiveSet<'_>, key: &SetKey) -> Result<bool, Failure> {
    let info = live.info()?;
    let whole = |length: u8| length == live.set.whole() || length == fw_common::abi::set::WHOLE;
    if !whole(key.first_length) || !whole(key.second_length) {
        return Ok(live
            .get(key)?
            .is_some_and(|entry| entry.flags & SetEntry::NOMATCH == 0));
    }
    for first in info.lengths(0) {
        for second in info.lengths(1) {
            let masked = SetKey {
                first: mask(key.first, first),
                second: mask(key.second, second),
                first_length: first,
                second_length: second,
                ..*key
            };
            if let Some(entry) = live.get(&masked)? {
                return Ok(entry.flags & SetEntry::NOMATCH == 0);
            }
        }
    }
    Ok(false)
}

fn mask(address: [u32; 4], length: u8) -> [u32; 4] {
    let mask = fw_common::abi::set::MASKS[usize::from(length.min(128))];
    std::array::from_fn(|word| address[word] & mask[word])
}

fn say(output: &mut Output, what: &'static str, count: usize) -> Result<(), Failure> {
    if output.json {
        return output.value(&serde_json::json!({ what: count }));
    }
    let elements = if count == 1 { "element" } else { "elements" };
    output.say(format_args!("{count} {elements} {what}"));
    Ok(())
}

fn list(maps: &mut Maps, sets: &[&SetDefinition], output: &mut Output) -> Result<(), Failure> {
    let now = monotonic_now();
    let mut views = Vec::new();
    for set in sets {
        let mut elements = LiveSet::open(maps, set)?.elements()?;
        elements.sort_unstable_by_key(|(key, _)| *key);
        let view = |(key, entry): &(SetKey, SetEntry)| ElementView {
            element: print_element(key, set),
            timeout: (entry.expires != 0)
                .then(|| entry.expires.saturating_sub(now) / 1_000_000_000),
            nomatch: entry.flags & SetEntry::NOMATCH != 0,
        };
        let elements: Vec<ElementView> = elements.iter().map(view).collect();
        if !output.json {
            // What `ipset restore` reads, and `fwbpf load`.
            let mut text = set.create_line();
            text.push('\n');
            for element in &elements {
                text.push_str(&format!("add {} {}", set.name, element.element));
                if let Some(seconds) = element.timeout.or(set.timeout.map(|_| 0)) {
                    text.push_str(&format!(" timeout {seconds}"));
                }
                if element.nomatch {
                    text.push_str(" nomatch");
                }
                text.push('\n');
            }
            output.text(&text)?;
        }
        views.push(SetView {
            name: set.name.clone(),
            kind: set.kind.name(),
            family: set.family.name(),
            capacity: set.capacity,
            timeout: set.timeout,
            elements,
        });
    }
    if output.json {
        return output.value(&views);
    }
    Ok(())
}
