//! What a case found: measurements, bars, and how they are printed.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table as TextTable, presets};
use serde::Serialize;

use super::contender::Contender;

/// Several runs of one contender.
#[derive(Clone, Debug, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

impl Spread {
    /// Of at least one run.
    pub fn of(mut runs: Vec<f64>) -> Option<Self> {
        runs.sort_by(f64::total_cmp);
        Some(Self {
            median: *runs.get(runs.len() / 2)?,
            min: *runs.first()?,
            max: *runs.last()?,
            runs: runs.len(),
        })
    }
}

/// What became of measuring one contender.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Numbers.
    Measured(Spread),
    /// It was left out, and why.
    NotRun(String),
    /// It cannot do this, or did the wrong thing.
    Failed(String),
}

/// A line of a table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Who.
    pub contender: Contender,
    /// What is measured, where it is not a contender's one way.
    pub label: Option<String>,
    /// What happened.
    pub outcome: Outcome,
    /// What makes its work another than the others'.
    pub remark: Option<String>,
}

impl Row {
    fn name(&self) -> String {
        self.label
            .clone()
            .unwrap_or_else(|| self.contender.name().into())
    }
}

/// One setting, all contenders.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The setting.
    pub title: String,
    /// What the numbers are: `ns/packet`.
    pub unit: &'static str,
    /// What is subtracted for "net"; the contender's median.
    pub floor: Option<Contender>,
    /// Lines.
    pub rows: Vec<Row>,
}

impl Table {
    /// A contender's median.
    pub fn median(&self, contender: Contender) -> Option<f64> {
        self.rows
            .iter()
            .find(|row| row.contender == contender)
            .and_then(|row| match &row.outcome {
                Outcome::Measured(spread) => Some(spread.median),
                Outcome::NotRun(_) | Outcome::Failed(_) => None,
            })
    }

    /// A contender's median less the floor's.
    pub fn net(&self, contender: Contender) -> Option<f64> {
        let floor = match self.floor {
            Some(floor) => self.median(floor)?,
            None => 0.0,
        };
        Some(self.median(contender)? - floor)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut table = TextTable::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        let mut header = vec![
            String::from("contender"),
            format!("median {}", self.unit),
            "min-max".into(),
        ];
        if self.floor.is_some() {
            header.push("net".into());
        }
        let peers = [
            (Contender::IptablesLegacy, "/ legacy"),
            (Contender::IptablesNft, "/ ipt-nft"),
            (Contender::Nft, "/ nft"),
            (Contender::NoFirewall, "/ none"),
            (Contender::FloorDrop, "/ drop floor"),
            (Contender::FloorForward, "/ forward floor"),
        ];
        let peers: Vec<_> = peers
            .into_iter()
            .filter(|(peer, _)| self.median(*peer).is_some_and(|median| median > 0.0))
            .collect();
        header.extend(peers.iter().map(|(_, title)| String::from(*title)));
        let columns = header.len();
        table.set_header(header);
        let mut reasons = String::new();
        for row in &self.rows {
            let mut name = row.name();
            if let Some(remark) = &row.remark {
                let _ = write!(name, " ({remark})");
            }
            let mut cells = vec![name];
            match &row.outcome {
                Outcome::Measured(spread) => {
                    cells.push(number(spread.median));
                    cells.push(format!("{}-{}", number(spread.min), number(spread.max)));
                    if self.floor.is_some() {
                        cells.push(self.net(row.contender).map_or("-".into(), number));
                    }
                    for (peer, _) in &peers {
                        cells.push(
                            self.median(*peer)
                                .map_or("-".into(), |peer| format!("{:.2}", spread.median / peer)),
                        );
                    }
                }
                Outcome::NotRun(why) => {
                    cells.push("not run".into());
                    let _ = writeln!(reasons, "not run: {}: {why}", row.name());
                }
                Outcome::Failed(why) => {
                    cells.push("FAILED".into());
                    let _ = writeln!(reasons, "FAILED: {}: {why}", row.name());
                }
            }
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1).take(columns) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!("{}\n{table}\n{reasons}", self.title)
    }
}

fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// What issue 3 demands, and what is.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
    /// The demand.
    pub claim: String,
    /// What was found, if it could be.
    pub value: Option<f64>,
    /// The limit.
    pub limit: f64,
    /// Whether more is better.
    pub at_least: bool,
}

impl Bar {
    /// `value` must not be above `limit`.
    pub fn at_most(claim: impl Into<String>, value: Option<f64>, limit: f64) -> Self {
        Self {
            claim: claim.into(),
            value,
            limit,
            at_least: false,
        }
    }

    /// `value` must not be below `limit`.
    pub fn at_least(claim: impl Into<String>, value: Option<f64>, limit: f64) -> Self {
        Self {
            at_least: true,
            ..Self::at_most(claim, value, limit)
        }
    }

    /// Whether it is met; `None` if it could not be measured.
    pub fn met(&self) -> Option<bool> {
        self.value.map(|value| {
            if self.at_least {
                value >= self.limit
            } else {
                value <= self.limit
            }
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let sign = if self.at_least { ">=" } else { "<=" };
        match (self.met(), self.value) {
            (Some(true), Some(value)) => {
                format!(
                    "bar: met      {}: {value:.3} {sign} {:.3}",
                    self.claim, self.limit
                )
            }
            (Some(false), Some(value)) => format!(
                "bar: NOT met  {}: {value:.3}, and {sign} {:.3} is asked",
                self.claim, self.limit
            ),
            _ => format!("bar: NOT met  {}: could not be measured", self.claim),
        }
    }
}

/// All of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Its number in issue 3.
    pub case: u8,
    /// Its title.
    pub title: &'static str,
    /// The settings.
    pub tables: Vec<Table>,
    /// The demands.
    pub bars: Vec<Bar>,
    /// What else has to be known.
    pub notes: Vec<String>,
}

impl CaseReport {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("\n== case {}: {}\n\n", self.case, self.title);
        for table in &self.tables {
            let _ = writeln!(text, "{}", table.text());
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        for bar in &self.bars {
            let _ = writeln!(text, "{}", bar.text());
        }
        text
    }
}
