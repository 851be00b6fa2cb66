//! Case 9: memory.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::MapData;

use super::Settings;
use super::contender::{Arena, Contender};
use super::forward::establish;
use super::policies;
use super::report::{CaseReport, Outcome, Row, Spread, Table};

/// Flows that are opened to see what one takes of nf_conntrack's memory.
const FLOWS: u32 = 60_000;
/// The flows of the bigger example.
const MANY: f64 = 1_000_000.0;
const MEBI: f64 = 1_048_576.0;

/// A map of fwbpf's.
struct Size {
    name: String,
    bytes: f64,
    entries: f64,
}

/// Measures the case.
pub fn run(settings: &Settings) -> Result<CaseReport> {
    let mut notes = Vec::new();
    settings.step("memory of fwbpf's maps");
    let arena = Arena::new(Contender::FwbpfTcx, &settings.object, &policies::guide())?;
    let maps = maps(arena.loaded.state_dir().context("fwbpf has one")?)?;
    let each = |name: &str| {
        maps.iter()
            .find(|map| map.name == name)
            .map(|map| map.bytes / map.entries)
            .with_context(|| format!("there is no map {name}"))
    };
    let total: f64 = maps.iter().map(|map| map.bytes).sum();
    let (flow4, flow6) = (each("FLOWS4")?, each("FLOWS6")?);
    drop(arena);
    for map in maps.iter().filter(|map| map.bytes > MEBI) {
        notes.push(format!(
            "{}: {} entries, {:.1} MiB",
            map.name,
            map.entries,
            map.bytes / MEBI
        ));
    }

    settings.step("memory of nf_conntrack");
    let legacy = conntrack(settings)?;
    notes.push(
        "fwbpf allocates its tables when it starts; nf_conntrack's objects come and go, and what \
         one takes is the growth of the kernel's unreclaimable slabs over 60,000 masqueraded \
         flows, its hash table (allocated once) not among it. A masqueraded flow has two entries \
         in fwbpf's table, its own and the one that answers find"
            .into(),
    );
    let row = |contender, label: &str, value: f64| -> Result<Row> {
        Ok(Row {
            contender,
            label: Some(label.into()),
            outcome: Outcome::Measured(Spread::of(vec![value]).context("one number")?),
            remark: None,
        })
    };
    let fwbpf = Contender::FwbpfTcx;
    let table = |title: &str, unit, rows| Table {
        title: title.into(),
        unit,
        floor: None,
        rows,
    };
    let tables = vec![
        table(
            "a flow",
            "bytes",
            vec![
                row(fwbpf, "fwbpf, an entry for IPv4", flow4)?,
                row(fwbpf, "fwbpf, an entry for IPv6", flow6)?,
                row(fwbpf, "fwbpf, a masqueraded flow, IPv4", flow4 * 2.0)?,
                row(
                    Contender::IptablesLegacy,
                    "nf_conntrack, a masqueraded flow",
                    legacy,
                )?,
            ],
        ),
        table(
            "all",
            "MiB",
            vec![
                row(fwbpf, "fwbpf's maps by default", total / MEBI)?,
                row(
                    fwbpf,
                    "fwbpf, a million entries for IPv4",
                    flow4 * MANY / MEBI,
                )?,
                row(
                    fwbpf,
                    "fwbpf, a million entries for IPv6",
                    flow6 * MANY / MEBI,
                )?,
                row(
                    Contender::IptablesLegacy,
                    "nf_conntrack, a million flows",
                    legacy * MANY / MEBI,
                )?,
            ],
        ),
    ];
    Ok(CaseReport {
        case: 9,
        title: "memory",
        tables,
        bars: Vec::new(),
        notes,
    })
}

/// The pinned maps and what the kernel charges for them.
fn maps(state: &Path) -> Result<Vec<Size>> {
    let mut maps = Vec::new();
    for entry in fs::read_dir(state).with_context(|| format!("list {}", state.display()))? {
        let entry = entry?;
        let Ok(pin) = MapData::from_pin(entry.path()) else {
            continue;
        };
        let fd = pin.fd().as_fd().as_raw_fd();
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let number = |key| {
            let value = text.lines().find_map(|line| line.strip_prefix(key))?;
            value.trim().parse().ok()
        };
        // Programs and links can be opened in the same way; they have no entries.
        if let (Some(entries), Some(bytes)) = (number("max_entries:"), number("memlock:")) {
            maps.push(Size {
                name: entry.file_name().to_string_lossy().into_owned(),
                bytes,
                entries,
            });
        }
    }
    Ok(maps)
}

/// Bytes of the kernel's slabs for each masqueraded flow.
fn conntrack(settings: &Settings) -> Result<f64> {
    let mut arena = Arena::new(
        Contender::IptablesLegacy,
        &settings.object,
        &policies::guide(),
    )?;
    let before = unreclaimable()?;
    establish(&mut arena, FLOWS)?;
    let after = unreclaimable()?;
    Ok((after - before) / f64::from(FLOWS))
}

fn unreclaimable() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kibi: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix("SUnreclaim:"))
        .and_then(|rest| rest.split_whitespace().next())
        .context("/proc/meminfo has SUnreclaim")?
        .parse()?;
    Ok(kibi * 1024.0)
}
