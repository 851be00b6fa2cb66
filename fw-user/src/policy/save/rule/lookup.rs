//! What an option's name stands for, looked up as getopt_long does.

use super::{LoadedMatch, Reader};
use crate::policy::match_table::{
    MatchDraft, OptionRow, TargetDraft, all_matches, all_targets, find_match,
};
use crate::policy::names::protocol_name;
use crate::policy::save::lexer::Word;
use crate::policy::save::options::{Core, long_names};

/// What an option's name stands for.
pub(super) enum Found {
    Core(Core),
    OfMatch(usize, &'static OptionRow<MatchDraft>),
    OfTarget(&'static OptionRow<TargetDraft>),
    Ambiguous(Vec<&'static str>),
    Nothing,
}

impl<'a> Reader<'a, '_, '_> {
    /// Looks a long option up as getopt_long does: the exact name, else an unambiguous beginning.
    pub(super) fn find(&self, name: &str) -> Found {
        if let Some((_, exact)) = self.options(name).find(|(long, _)| *long == name) {
            return exact;
        }
        if self.foreign {
            // Options of an unsupported match are not to be taken for abbreviations.
            return Found::Nothing;
        }
        let begins = |(long, _): &(&'static str, Found)| long.starts_with(name);
        let mut beginning: Vec<_> = self.options(name).filter(begins).collect();
        let names: Vec<_> = beginning.iter().map(|(long, _)| *long).collect();
        match beginning.len() {
            0 => Found::Nothing,
            _ if same_option(&beginning) => beginning.swap_remove(0).1,
            _ => Found::Ambiguous(names),
        }
    }

    /// Every option that may stand here.
    fn options(&self, name: &str) -> impl Iterator<Item = (&'static str, Found)> {
        let own = long_names().map(|(long, core)| (long, Found::Core(core)));
        // What was named last has the option: of several uses of a match the last one, and the target
        // if it stands behind them all (`xtables_merge_options`, libxtables/xtables.c).
        let target_at = self.target.as_ref().map_or(0, |(_, _, span)| span.start);
        let of_matches = move |behind_target: bool| {
            let matches = self.matches.iter().enumerate().rev();
            let matches =
                matches.filter(move |(_, loaded)| (loaded.span.start > target_at) == behind_target);
            matches.flat_map(move |(index, loaded)| {
                loaded.reading.options.iter().flat_map(move |row| {
                    // Abbreviations that iptables 1.8 has as names of their own.
                    let singular = (loaded.name == "multiport")
                        .then(|| row.names[0].strip_suffix('s'))
                        .flatten()
                        .filter(|singular| *singular == name);
                    let names = row.names.iter().copied().chain(singular);
                    names.map(move |long| (long, Found::OfMatch(index, row)))
                })
            })
        };
        let target = self.target.iter().flat_map(|(row, _, _)| row.options);
        let of_target = target.flat_map(|option| {
            let names = option.names.iter();
            names.map(move |long| (*long, Found::OfTarget(option)))
        });
        own.chain(of_matches(true))
            .chain(of_target)
            .chain(of_matches(false))
    }

    /// Loads the match that belongs to the protocol (`-p tcp --dport`), if that was not done yet.
    pub(super) fn load_implicit(&mut self, word: &Word<'_>) -> bool {
        let Some(protocol) = self.rule.protocol else {
            return false;
        };
        if self.implicit_used {
            return false;
        }
        let Some(row) = protocol_name(protocol.value)
            .and_then(|name| find_match(name, self.family))
            .filter(|row| row.families.contains(&self.family))
        else {
            return false;
        };
        let Some(reading) = &row.reading else {
            return false;
        };
        self.implicit_used = true;
        self.matches.push(LoadedMatch {
            reading,
            name: row.name,
            draft: (reading.start)(),
            span: word.span,
            before_protocol: false,
        });
        true
    }
}

pub(super) fn same_option(found: &[(&'static str, Found)]) -> bool {
    found.windows(2).all(|pair| match (&pair[0].1, &pair[1].1) {
        (Found::Core(one), Found::Core(other)) => one == other,
        (Found::OfMatch(_, one), Found::OfMatch(_, other)) => one.names == other.names,
        (Found::OfTarget(one), Found::OfTarget(other)) => std::ptr::eq(*one, *other),
        _ => false,
    })
}

pub(super) fn all_option_names() -> impl Iterator<Item = &'static str> {
    let of_matches = all_matches().filter_map(|row| row.reading.as_ref());
    let of_matches =
        of_matches.flat_map(|reading| reading.options.iter().flat_map(|row| row.names));
    let of_targets = all_targets().flat_map(|row| row.options.iter().flat_map(|row| row.names));
    of_matches
        .chain(of_targets)
        .copied()
        .chain(long_names().map(|(name, _)| name))
}

/// The options that name a port and need `-p tcp` or `-p udp`.
pub(super) fn orphan_name(name: &str) -> Option<&'static str> {
    ["sport", "source-port", "dport", "destination-port"]
        .into_iter()
        .find(|known| *known == name)
}
