//! Many rules in a row are read in pieces, side by side.
//!
//! Lines that append rules do not depend on each other: which chains there are does not change meanwhile.
//! A piece about which there is anything to say, or which names a host whose addresses have to be asked
//! for, is read once more in its turn, so that everything is said in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::thread::sched_getaffinity;

use super::table::TableBuilder;
use super::{FileReader, Open, lexer};
use crate::policy::error::Report;
use crate::policy::model::Family;
use crate::policy::source::{LineIndex, SourceFile, Span};

/// Fewer lines than this are not worth a thread.
const PIECE: usize = 1_000;

/// How the lines are called that a piece is made of, in iptables-save's own spelling.
const APPEND: &str = "-A ";

impl FileReader<'_, '_> {
    /// Reads the rules in a row that begin with a line, if they are many, and says where they end. If there
    /// are too few, it says how far it has looked.
    pub(super) fn row(&mut self, start: usize) -> Row {
        let file = self.report.file();
        let starts = self.report.line_starts(start);
        let appends = |start: &&usize| file.text[**start..].starts_with(APPEND);
        let count = starts.iter().take_while(appends).count();
        let at = |line: usize| starts.get(line).copied().unwrap_or(file.text.len());
        let Open::Known(table, _) = &self.open else {
            return Row::Short(at(count));
        };
        let threads = match count / PIECE {
            few @ (0 | 1) => few,
            most => cpus().min(most),
        };
        if threads < 2 {
            return Row::Short(at(count));
        }
        // Several for each thread, which may not have a CPU of its own all the time; but each has all the chains' names.
        let length = (count / (8 * threads))
            .max(PIECE / 2)
            .max(8 * table.chains().count());
        let pieces = count.div_ceil(length);
        let places: Vec<usize> = (0..=pieces)
            .map(|piece| at(count.min(piece * length)))
            .collect();
        let (family, index, strict) = (self.family, self.report.index(), self.report.strict());
        let outlines: Vec<_> = (1..threads)
            .map(|_| (table.outline(), self.report.lines().clone()))
            .collect();
        let (places, left) = (&places, &Left::of(pieces));
        let read = thread::scope(|scope| {
            let read = |(outline, lines): (TableBuilder, LineIndex)| {
                let mut read = Vec::new();
                while let Some(number) = left.last() {
                    let (start, end) = (places[number], places[number + 1]);
                    let mut report = Report::of_piece(file, index, strict, lines.until(end));
                    let table = piece(outline.outline(), family, &mut report, start, end);
                    read.push((number, table));
                }
                read
            };
            let others = outlines
                .into_iter()
                .map(|given| scope.spawn(move || read(given)));
            let others: Vec<_> = others.collect();
            while let Some(number) = left.first() {
                self.lines(file, places[number], places[number + 1]);
            }
            let mut read = BTreeMap::new();
            for other in others {
                let other = other.join();
                read.extend(other.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            read
        });
        for (number, table) in read {
            match (table, &mut self.open) {
                (Some(read), Open::Known(table, _)) => table.append(read),
                _ => self.lines(file, places[number], places[number + 1]),
            }
        }
        Row::Read(places[pieces])
    }

    fn lines(&mut self, file: &SourceFile, start: usize, end: usize) {
        for line in lexer::lines_between(&file.text, start, end) {
            self.line(line);
        }
    }
}

/// Numbers of pieces that nobody has begun to read. Whoever reads into the table itself takes the first, so that
/// its rules are in place; the others take the last.
struct Left(Mutex<Range<usize>>);

impl Left {
    fn of(pieces: usize) -> Self {
        Self(Mutex::new(0..pieces))
    }

    fn first(&self) -> Option<usize> {
        self.lock().next()
    }

    fn last(&self) -> Option<usize> {
        self.lock().next_back()
    }

    fn lock(&self) -> MutexGuard<'_, Range<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many CPUs there are for this process. (The standard library would look for limits of its control groups,
/// too, which takes as long as a few hundred rules.)
fn cpus() -> usize {
    sched_getaffinity(None).map_or(1, |cpus| cpus.count() as usize)
}

/// What there is of rules in a row.
pub(super) enum Row {
    /// They were read, up to here.
    Read(usize),
    /// They are few, up to here.
    Short(usize),
}

/// The rules of a piece, in an outline of their table; nothing if there is anything to say about them.
fn piece(
    outline: TableBuilder,
    family: Family,
    report: &mut Report<'_>,
    start: usize,
    end: usize,
) -> Option<TableBuilder> {
    let file = report.file();
    let mut reader = FileReader {
        open: Open::Known(outline, Span::default()),
        ..FileReader::new(family, report)
    };
    reader.lines(file, start, end);
    let silent = reader.report.errors.is_empty() && reader.report.warnings.is_empty();
    match reader.open {
        Open::Known(table, _) if silent => Some(table),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::policy::{LoadOptions, Loaded, load};

    /// A file with more rules than a few pieces have, in two chains, some of them with lists; `odd` is the line in the middle.
    fn read(odd: &str) -> (String, Result<Loaded, crate::policy::PolicyErrors>) {
        let mut text = String::from("*filter\n:INPUT ACCEPT [0:0]\n:own - [0:0]\n");
        for number in 0..6 * PIECE {
            let _ = match number % 3 {
                0 => writeln!(
                    text,
                    "-A INPUT -s 10.{}.{}.0/24 -j own",
                    number / 256,
                    number % 256
                ),
                1 => writeln!(text, "-A own -p tcp --dport {number} -j ACCEPT"),
                _ => writeln!(text, "-A own -s 192.0.2.1,192.0.2.{} -j DROP", number % 256),
            };
            if number == 4 * PIECE {
                let _ = writeln!(text, "{odd}");
            }
        }
        text.push_str("COMMIT\n");
        let file = SourceFile::new("rules.v4", text.as_str(), None);
        (text, load(&[file], LoadOptions::default()))
    }

    #[test]
    fn rules_stay_in_order() {
        let (text, loaded) = read("-A INPUT -j DROP");
        let policy = loaded.expect("it is sound").policy;
        let lines: Vec<&str> = text.lines().collect();
        let mut count = 0;
        for chain in policy.ipv4.expect("IPv4").filter.expect("filter").chains {
            let mut last = 0;
            for rule in &chain.rules {
                let line = rule.origin.line;
                assert!(line >= last, "{} line {line}", chain.name);
                let begins = format!("-A {} ", chain.name);
                assert!(lines[line as usize - 1].starts_with(&begins));
                last = line;
            }
            count += chain.rules.len();
        }
        assert_eq!(count, 8 * PIECE + 1);
    }

    #[test]
    fn what_is_wrong_within_a_piece_is_said_once() {
        let (_, loaded) = read("-A INPUT -s 10.0.0.0/33 -j DROP");
        let errors = loaded.expect_err("it is wrong").errors;
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].line as usize, 4 * PIECE + 5);
    }

    #[test]
    fn what_is_doubtful_within_a_piece_is_taken_and_said_once() {
        let (_, loaded) = read("-A INPUT --dport 25 -j DROP");
        let loaded = loaded.expect("it is doubtful");
        assert_eq!(loaded.warnings.len(), 1);
        let table = loaded.policy.ipv4.expect("IPv4").filter.expect("filter");
        let rules: usize = table.chains.iter().map(|chain| chain.rules.len()).sum();
        assert_eq!(rules, 8 * PIECE + 2);
    }
}
