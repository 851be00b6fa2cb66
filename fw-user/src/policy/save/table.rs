//! A table while its lines are being read, and what the kernel checks when it is whole.

use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;

use super::alike::Field;
use super::commands::Place;
use super::outgoing::Outgoing;
use super::rule::RuleDraft;
use crate::policy::error::{Problem, Report};
use crate::policy::ids::TableName;
use crate::policy::model::Match;
use crate::policy::model::{
    Chain, ChainPolicy, InterfacePattern, Negatable, Prefix, Rule, Table, Target,
};
use crate::policy::names::{TCP, UDP};
use crate::policy::source::Span;

/// A table of which not all lines have been read.
pub(crate) struct TableBuilder {
    pub name: TableName,
    /// By name, in the order of their declaration.
    chains: IndexMap<String, ChainBuilder, FxBuildHasher>,
}

struct ChainBuilder {
    policy: Option<ChainPolicy>,
    rules: Vec<Rule>,
    /// For each rule, the place that errors found later point to.
    targets: Vec<Span>,
}

impl ChainBuilder {
    fn new(policy: Option<ChainPolicy>) -> Self {
        Self {
            policy,
            rules: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Makes room for a line's rule, and in a long chain for those of the lines that follow.
    fn make_room(&mut self, name: &str, line: Span, report: &Report<'_>) {
        if self.rules.len() == self.rules.capacity() && self.rules.len() >= MANY {
            let more = lines_for(name, report, line.end);
            self.rules.reserve(1 + more);
            self.targets.reserve(1 + more);
        }
    }
}

/// From so many rules on, a chain's growth is worth a look at the lines that follow. A large policy's
/// rules take tens of megabytes: growing by doubling would take as much again, all of which the kernel
/// fills with zeros first.
const MANY: usize = 64;

/// How many of the lines in a row add to this chain, of those after the one that ends there.
fn lines_for(chain: &str, report: &Report<'_>, end: usize) -> usize {
    let text = &report.file().text;
    let adds = |start: &&usize| {
        let line = &text[**start..];
        let line = match line.strip_prefix('[') {
            Some(counted) => counted.split_once("] ").map_or("", |(_, rest)| rest),
            None => line,
        };
        line.strip_prefix("-A ")
            .and_then(|rest| rest.strip_prefix(chain))
            .is_some_and(|rest| rest.starts_with(' '))
    };
    report.line_starts(end).iter().take_while(adds).count()
}

impl TableBuilder {
    /// The built-in chains, empty and with policy ACCEPT.
    pub fn new(name: TableName) -> Self {
        let policy = ChainPolicy {
            accept: true,
            counters: None,
            origin: None,
        };
        let chain = |name: &&str| {
            let chain = ChainBuilder::new(Some(policy.clone()));
            ((*name).to_owned(), chain)
        };
        Self {
            name,
            chains: name.builtin_chains().iter().map(chain).collect(),
        }
    }

    /// A table with the same chains, and no rules in them.
    pub fn outline(&self) -> Self {
        let empty = |(name, chain): (&String, &ChainBuilder)| {
            (name.clone(), ChainBuilder::new(chain.policy.clone()))
        };
        Self {
            name: self.name,
            chains: self.chains.iter().map(empty).collect(),
        }
    }

    /// Appends the rules that were read into an outline of this table.
    pub fn append(&mut self, read: Self) {
        for (own, read) in self.chains.values_mut().zip(read.chains.into_values()) {
            own.rules.extend(read.rules);
            own.targets.extend(read.targets);
        }
    }

    /// As iptables-restore does when a table comes again: policies stay, all else goes.
    pub fn reopen(&mut self) {
        self.chains.retain(|_, chain| chain.policy.is_some());
        self.flush(None);
    }

    pub fn has_chain(&self, name: &str) -> bool {
        self.chains.contains_key(name)
    }

    pub fn is_builtin(&self, name: &str) -> bool {
        self.chains
            .get(name)
            .is_some_and(|chain| chain.policy.is_some())
    }

    /// The names of all chains.
    pub fn chains(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str)
    }

    /// Adds a user-defined chain that does not exist yet.
    pub fn add_chain(&mut self, name: &str) {
        self.chains.insert(name.to_owned(), ChainBuilder::new(None));
    }

    /// Sets a built-in chain's policy.
    pub fn set_policy(&mut self, name: &str, policy: ChainPolicy) {
        if let Some(chain) = self.chains.get_mut(name) {
            chain.policy = Some(policy);
        }
    }

    /// Removes the rules of one chain or of all.
    pub fn flush(&mut self, name: Option<&str>) {
        for (own, chain) in &mut self.chains {
            if name.is_none_or(|name| own == name) {
                chain.rules.clear();
                chain.targets.clear();
            }
        }
    }

    /// Removes a user-defined chain, or says why it cannot be removed.
    pub fn remove_chain(&mut self, name: &str) -> Result<(), &'static str> {
        let Some(chain) = self.chains.get(name) else {
            return Err("there is no such chain");
        };
        if chain.policy.is_some() {
            return Err("it is built in");
        }
        if !chain.rules.is_empty() {
            return Err("it still has rules");
        }
        if self.is_referenced(name) {
            return Err("rules still jump to it");
        }
        self.chains.shift_remove(name);
        Ok(())
    }

    /// Removes every user-defined chain that is empty and that no rule jumps to, as `-X` does.
    pub fn remove_unused_chains(&mut self) {
        let names: Vec<String> = self.chains().map(str::to_owned).collect();
        for name in names {
            // Built-in and used chains stay: that is no error here.
            let _ = self.remove_chain(&name);
        }
    }

    fn is_referenced(&self, name: &str) -> bool {
        let rules = self.chains.values().flat_map(|chain| &chain.rules);
        rules.into_iter().any(|rule| called(rule) == Some(name))
    }

    /// How many rules a chain has.
    pub fn rule_count(&self, name: &str) -> usize {
        self.chains.get(name).map_or(0, |chain| chain.rules.len())
    }

    /// Puts the rules of one line into a chain: at its end, or before the rule of that index. Where it ends then.
    pub fn insert(
        &mut self,
        chain: &str,
        at: Option<usize>,
        draft: RuleDraft,
        line: Span,
        report: &Report<'_>,
    ) -> Option<Place> {
        let target = draft.target.as_ref().map_or(line, |(_, span)| *span);
        let (number, name, chain) = self.chains.get_full_mut(chain)?;
        chain.make_room(name, line, report);
        expand(draft, report.origin(line), |rule| {
            // iptables inserts the rules of a list one by one at the same place, which turns their
            // order around.
            match at {
                None => {
                    chain.rules.push(rule);
                    chain.targets.push(target);
                }
                Some(at) => {
                    let at = at.min(chain.rules.len());
                    chain.rules.insert(at, rule);
                    chain.targets.insert(at, target);
                }
            }
        });
        Some(Place {
            chain: number,
            rules: chain.rules.len(),
        })
    }

    /// Appends a chain's last rule once more, with another address; false if other rules were added meanwhile.
    pub fn repeat(
        &mut self,
        place: &mut Place,
        field: Field,
        address: Negatable<Prefix>,
        line: Span,
        target: Span,
        report: &Report<'_>,
    ) -> bool {
        let Some((name, chain)) = self.chains.get_index_mut(place.chain) else {
            return false;
        };
        if chain.rules.len() != place.rules {
            return false;
        }
        chain.make_room(name, line, report);
        let Some(mut rule) = chain.rules.last().cloned() else {
            return false;
        };
        let old = match field {
            Field::Source => &mut rule.source,
            Field::Destination => &mut rule.destination,
        };
        *old = restricts(&address).then_some(address);
        rule.origin = report.origin(line);
        chain.rules.push(rule);
        chain.targets.push(target);
        place.rules += 1;
        true
    }

    /// The finished table, after the checks that the kernel makes when a table is committed.
    pub fn finish(self, report: &mut Report<'_>) -> Table {
        self.check_calls(report);
        self.check_matches(report);
        let finished = |(name, chain): (String, ChainBuilder)| Chain {
            name,
            policy: chain.policy,
            rules: chain.rules,
        };
        let mut chains: Vec<Chain> = self.chains.into_iter().map(finished).collect();
        // Stable, so that the built-in chains keep the kernel's order.
        chains.sort_by(|one, other| match (&one.policy, &other.policy) {
            (None, None) => one.name.cmp(&other.name),
            _ => other.policy.is_some().cmp(&one.policy.is_some()),
        });
        Table { chains }
    }

    /// Some matches are for some tables only, wherever they are reached from.
    fn check_matches(&self, report: &mut Report<'_>) {
        for chain in self.chains.values() {
            for (rule, target) in chain.rules.iter().zip(&chain.targets) {
                let misplaced = rule.matches.iter().find_map(|each| match each {
                    Match::Packet(packet) => (!packet.may_be_in(self.name)).then(|| packet.name()),
                    _ => None,
                });
                if let Some(name) = misplaced {
                    let message = format!("`{name}` in the table {}", self.name);
                    report.error(
                        Problem::wrong("wrong-table", *target, message)
                            .expected("the table raw or mangle"),
                    );
                }
            }
        }
    }

    /// Walks from each built-in chain to whatever it can reach, as mark_source_chains in
    /// net/ipv4/netfilter/ip_tables.c does: no chain may reach itself, and the targets of nat may be
    /// reached from their own hooks only. What lies behind a rule that always ends the chain is not
    /// looked at.
    fn check_calls(&self, report: &mut Report<'_>) {
        let mut reported = Vec::new();
        let mut outgoing = Outgoing::default();
        let built_in = |(_, (_, chain)): &(usize, (&String, &ChainBuilder))| chain.policy.is_some();
        for (index, (start, _)) in self.chains.iter().enumerate().filter(built_in) {
            let mut visited = vec![false; self.chains.len()];
            // The chains on the way here, each with the index of its next rule.
            let mut path = vec![(index, 0)];
            visited[index] = true;
            while let Some((chain, next)) = path.last_mut() {
                let chain_index = *chain;
                let ChainBuilder { rules, targets, .. } = &self.chains[chain_index];
                let (Some(rule), Some(target)) = (rules.get(*next), targets.get(*next)) else {
                    path.pop();
                    continue;
                };
                *next += 1;
                if let Some((name, hooks)) = rule.target.nat_chains() {
                    if !hooks.contains(&start.as_str()) && !reported.contains(target) {
                        reported.push(*target);
                        let hooks = hooks.join(" or ");
                        report.error(
                            Problem::wrong(
                                "wrong-chain",
                                *target,
                                format!("{name} can be reached from {start}"),
                            )
                            .expected(format!("a place that only {hooks} reaches"))
                            .help(format!(
                                "put the rule into {hooks}, or into a chain that only {hooks} calls"
                            )),
                        );
                    }
                    outgoing.visit(start, rule, *target);
                }
                let misplaced = rule.matches.iter().find_map(|each| match each {
                    Match::Packet(packet) => {
                        let hooks = packet.hooks()?;
                        (!hooks.contains(&start.as_str())).then_some((packet.name(), hooks))
                    }
                    _ => None,
                });
                let misplaced = misplaced.or_else(|| match &rule.target {
                    Target::Change(change) => {
                        let hooks = change.hooks()?;
                        let wrong = !hooks.contains(&start.as_str());
                        wrong.then_some(("--clamp-mss-to-pmtu", hooks))
                    }
                    _ => None,
                });
                if let Some((name, hooks)) = misplaced
                    && !reported.contains(target)
                {
                    reported.push(*target);
                    let message = format!("`{name}` can be reached from {start}");
                    report.error(Problem::wrong("wrong-chain", *target, message).expected(
                        match hooks {
                            [one] => format!("a place that only {one} reaches"),
                            several => {
                                format!("a place that only {} reach", several.join(", "))
                            }
                        },
                    ));
                }
                if always_ends(rule) {
                    path.pop();
                    continue;
                }
                let Some(callee) = called(rule).and_then(|name| self.chains.get_index_of(name))
                else {
                    continue;
                };
                if path.iter().any(|(chain, _)| *chain == callee) {
                    if !reported.contains(target) {
                        reported.push(*target);
                        let ring: Vec<_> = path
                            .iter()
                            .skip_while(|(chain, _)| *chain != callee)
                            .filter_map(|(chain, _)| self.name(*chain))
                            .collect();
                        let name = self.name(callee).unwrap_or_default();
                        report.error(
                            Problem::wrong(
                                "loop",
                                *target,
                                format!(
                                    "the chain `{name}` reaches itself: {} -> {name}",
                                    ring.join(" -> ")
                                ),
                            )
                            .expected("a chain that does not lead back here"),
                        );
                    }
                } else if !visited[callee] {
                    visited[callee] = true;
                    path.push((callee, 0));
                }
            }
        }
        outgoing.report(report);
    }

    fn name(&self, index: usize) -> Option<&str> {
        let (name, _) = self.chains.get_index(index)?;
        Some(name)
    }
}

/// The chain that a rule jumps or goes to.
pub(crate) fn called(rule: &Rule) -> Option<&str> {
    match &rule.target {
        Target::Jump(name) | Target::Goto(name) => Some(name),
        Target::Continue
        | Target::Accept
        | Target::Drop
        | Target::Return
        | Target::Reject(_)
        | Target::Masquerade(_)
        | Target::Log(_)
        | Target::Change(_)
        | Target::Nflog(_)
        | Target::Set(_)
        | Target::Dnat(_)
        | Target::Snat(_)
        | Target::Redirect(_)
        | Target::Netmap(_) => None,
    }
}

/// Whether a rule matches every packet and leaves its chain.
pub(crate) fn always_ends(rule: &Rule) -> bool {
    is_unconditional(rule)
        && matches!(
            rule.target,
            Target::Accept | Target::Drop | Target::Return | Target::Reject(_)
        )
}

/// Whether a rule matches every packet, by what it says (`-m comment` counts as a match, as it
/// does in the kernel).
pub(crate) fn is_unconditional(rule: &Rule) -> bool {
    let Rule {
        source,
        destination,
        in_interface,
        out_interface,
        protocol,
        matches,
        ..
    } = rule;
    source.is_none()
        && destination.is_none()
        && in_interface.is_none()
        && out_interface.is_none()
        && protocol.is_none()
        && matches.is_empty()
}

/// The rules of one line: one for each pair of source and destination, as iptables makes them,
/// and for ports without a protocol one each for TCP and UDP.
fn expand(draft: RuleDraft, origin: crate::policy::model::Origin, mut give: impl FnMut(Rule)) {
    let interface = |value: Option<(Negatable<InterfacePattern>, Span)>| {
        let (value, _) = value?;
        // `+` matches every interface.
        (value.not || value.value.0 != "+").then_some(value)
    };
    let mut rule = Rule {
        source: None,
        destination: None,
        in_interface: interface(draft.in_interface),
        out_interface: interface(draft.out_interface),
        protocol: draft.protocol,
        matches: draft.matches,
        target: draft.target.map_or(Target::Continue, |(target, _)| target),
        counters: draft.counters,
        origin,
    };
    let (sources, destinations) = (List(draft.sources), List(draft.destinations));
    if let (1, 1, false) = (sources.len(), destinations.len(), draft.both_transports) {
        // Nearly all rules.
        rule.source = sources.get(0);
        rule.destination = destinations.get(0);
        return give(rule);
    }
    for source in 0..sources.len() {
        for destination in 0..destinations.len() {
            rule.source = sources.get(source);
            rule.destination = destinations.get(destination);
            if draft.both_transports {
                give(with_transport(&rule, TCP));
                give(with_transport(&rule, UDP));
            } else {
                give(rule.clone());
            }
        }
    }
}

/// What `-s` or `-d` says; without it, one that says nothing.
struct List(Option<Negatable<Vec<Prefix>>>);

impl List {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(1, |list| list.value.len())
    }

    fn get(&self, index: usize) -> Option<Negatable<Prefix>> {
        let Negatable { not, value } = self.0.as_ref()?;
        let address = Negatable {
            not: *not,
            value: *value.get(index)?,
        };
        restricts(&address).then_some(address)
    }
}

/// Whether an address says anything: a zero mask matches everything; inverted it matches nothing, and is kept.
fn restricts(address: &Negatable<Prefix>) -> bool {
    address.not || !address.value.mask.is_unspecified()
}

fn with_transport(rule: &Rule, protocol: u8) -> Rule {
    let ports = |found: &Match| match found {
        Match::Tcp(tcp) if protocol == UDP => Match::Udp(tcp.ports),
        other => other.clone(),
    };
    Rule {
        protocol: Some(Negatable {
            not: false,
            value: protocol,
        }),
        matches: rule.matches.iter().map(ports).collect(),
        ..rule.clone()
    }
}
