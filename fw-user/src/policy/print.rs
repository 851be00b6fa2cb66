//! The model as iptables-save 1.8.9 (legacy) writes it, to the letter.
//!
//! Where iptables-save itself loses something (`! -i +`, `! --sport 0:65535` and
//! `--tcp-flags NONE SYN` come out of it as no match at all), the match is printed: what is
//! printed is read back as the same model. (But for rates of `limit` that iptables-save rounds:
//! `2409/minute` is printed as `40/sec` by both.)

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv6Addr};

use super::ids::{CounterId, TableName};
use super::model::{
    Chain, Conntrack, Counters, CtDirection, CtStates, Family, IcmpType, InterfacePattern, Limit,
    Log, Masquerade, Match, Multiport, Negatable, Nflog, Policy, PortRange, Ports, Prefix,
    Redirect, Rule, Side, Table, Target, Tcp, TcpFlags, Translation, WhichPort,
};
use super::names::protocol_name;

/// The tables of one IP version as `iptables-save` prints them, or as `iptables-save -c` does
/// when the counters are given. Empty if the policy says nothing about that IP version.
pub fn print_save(
    policy: &Policy,
    family: Family,
    counters: Option<&dyn Fn(CounterId) -> Counters>,
) -> String {
    let mut text = String::new();
    let Some(ruleset) = policy.ruleset(family) else {
        return text;
    };
    for (name, table) in ruleset.tables() {
        let read = |chain, rule| {
            counters.map(|read| {
                read(CounterId {
                    family,
                    table: name,
                    chain,
                    rule,
                })
            })
        };
        push_table(&mut text, family, name, table, &read);
    }
    text
}

/// A rule's text without `-A CHAIN`: `-s 192.0.2.2/32 -p tcp -m tcp --dport 22 -j ACCEPT`.
/// Empty for a rule without matches and target.
pub fn print_rule(rule: &Rule, family: Family) -> String {
    let mut words = Words::default();
    words.address("-s", rule.source);
    words.address("-d", rule.destination);
    words.interface("-i", rule.in_interface.as_ref());
    words.interface("-o", rule.out_interface.as_ref());
    if let Some(Negatable { not, value }) = rule.protocol {
        words.not(not);
        match protocol_name(value) {
            Some(name) => words.pair("-p", name),
            None => words.pair("-p", value),
        }
    }
    for each in &rule.matches {
        words.one_match(each, family);
    }
    words.target(&rule.target, family);
    words.0
}

/// A line of iptables-save for a rule: `-A INPUT -j ACCEPT`.
pub fn print_append(chain: &Chain, rule: &Rule, family: Family) -> String {
    let body = print_rule(rule, family);
    let space = if body.is_empty() { "" } else { " " };
    format!("-A {}{space}{body}", chain.name)
}

fn push_table(
    text: &mut String,
    family: Family,
    name: TableName,
    table: &Table,
    counters: &dyn Fn(usize, Option<usize>) -> Option<Counters>,
) {
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "*{name}");
    for (index, chain) in table.chains.iter().enumerate() {
        let (policy, count) = match &chain.policy {
            Some(policy) if policy.accept => ("ACCEPT", counters(index, None)),
            Some(_) => ("DROP", counters(index, None)),
            None => ("-", None),
        };
        let _ = writeln!(
            text,
            ":{} {policy} {}",
            chain.name,
            Brackets(count.unwrap_or_default())
        );
    }
    for (index, chain) in table.chains.iter().enumerate() {
        for (position, rule) in chain.rules.iter().enumerate() {
            if let Some(count) = counters(index, Some(position)) {
                let _ = write!(text, "{} ", Brackets(count));
            }
            let _ = writeln!(text, "{}", print_append(chain, rule, family));
        }
    }
    text.push_str("COMMIT\n");
}

/// `[packets:bytes]`.
struct Brackets(Counters);

impl fmt::Display for Brackets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}:{}]", self.0.packets, self.0.bytes)
    }
}

/// Words joined by single spaces.
#[derive(Default)]
struct Words(String);

impl Words {
    fn word(&mut self, word: impl fmt::Display) {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        let _ = write!(self.0, "{word}");
    }

    fn pair(&mut self, option: &str, value: impl fmt::Display) {
        self.word(option);
        self.word(value);
    }

    fn not(&mut self, not: bool) {
        if not {
            self.word("!");
        }
    }

    fn option<T>(&mut self, option: &str, value: &Option<Negatable<T>>)
    where
        T: fmt::Display,
    {
        if let Some(Negatable { not, value }) = value {
            self.not(*not);
            self.pair(option, value);
        }
    }

    fn address(&mut self, option: &str, value: Option<Negatable<Prefix>>) {
        // A zero mask matches everything, so iptables-save leaves it out unless inverted.
        if value.is_some_and(|prefix| prefix.not || !prefix.value.mask.is_unspecified()) {
            self.option(option, &value);
        }
    }

    fn interface(&mut self, option: &str, value: Option<&Negatable<InterfacePattern>>) {
        if let Some(Negatable { not, value }) = value
            && (*not || value.0 != "+")
        {
            self.not(*not);
            // A name with a blank is possible in a rule, though no interface bears one.
            let plain = value
                .0
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'"');
            if plain {
                self.pair(option, &value.0)
            } else {
                self.pair(option, Quoted(&value.0))
            }
        }
    }

    fn one_match(&mut self, each: &Match, family: Family) {
        match each {
            Match::Tcp(Tcp {
                ports,
                flags,
                option,
            }) => {
                self.pair("-m", "tcp");
                self.ports(ports);
                self.option("--tcp-option", option);
                self.option("--tcp-flags", flags);
            }
            Match::Udp(ports) => {
                self.pair("-m", "udp");
                self.ports(ports);
            }
            Match::Icmp(kind) => {
                let (name, option) = match family {
                    Family::Ipv4 => ("icmp", "--icmp-type"),
                    Family::Ipv6 => ("icmp6", "--icmpv6-type"),
                };
                self.pair("-m", name);
                self.option(option, kind);
            }
            Match::Multiport(Multiport { which, ports }) => {
                self.pair("-m", "multiport");
                self.not(ports.not);
                let option = match which {
                    WhichPort::Source => "--sports",
                    WhichPort::Destination => "--dports",
                    WhichPort::Either => "--ports",
                };
                let list: Vec<_> = ports.value.iter().map(PortRange::to_string).collect();
                self.pair(option, list.join(","));
            }
            Match::State(states) => {
                self.pair("-m", "state");
                self.option("--state", &Some(*states));
            }
            Match::Conntrack(Conntrack {
                states,
                direction,
                connection,
            }) => {
                self.pair("-m", "conntrack");
                self.option("--ctstate", states);
                if let Some(connection) = connection {
                    self.word(connection.text());
                }
                match direction {
                    Some(CtDirection::Original) => self.pair("--ctdir", "ORIGINAL"),
                    Some(CtDirection::Reply) => self.pair("--ctdir", "REPLY"),
                    None => {}
                }
            }
            Match::Limit(limit) => {
                self.pair("-m", "limit");
                self.pair("--limit", limit);
                if limit.burst != Limit::BURST {
                    self.pair("--limit-burst", limit.burst);
                }
            }
            Match::Set(set) => {
                self.pair("-m", "set");
                self.not(set.not);
                let sides: Vec<&str> = set.sides.iter().map(|side| side.name()).collect();
                self.pair("--match-set", &set.name);
                self.word(sides.join(","));
                if set.return_nomatch {
                    self.word("--return-nomatch");
                }
                if set.keep_counters {
                    self.word("! --update-counters");
                }
                if set.keep_subcounters {
                    self.word("! --update-subcounters");
                }
            }
            Match::Packet(packet) => self.word(packet.text(family)),
            Match::List(list) => self.word(list.text(family)),
            Match::Comment(text) => {
                self.pair("-m", "comment");
                self.text("--comment", text);
            }
        }
    }

    /// A text, in quotes where iptables-save puts it into quotes.
    fn text(&mut self, option: &str, text: &str) {
        let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        if !text.is_empty() && text.bytes().all(bare) {
            self.pair(option, text);
        } else {
            self.pair(option, Quoted(text));
        }
    }

    fn log(&mut self, log: &Log) {
        self.pair("-j", "LOG");
        if !log.prefix.is_empty() {
            self.text("--log-prefix", &log.prefix);
        }
        if log.level != Log::LEVEL {
            self.pair("--log-level", log.level);
        }
        let flags = [
            (log.tcp_sequence, "--log-tcp-sequence"),
            (log.tcp_options, "--log-tcp-options"),
            (log.ip_options, "--log-ip-options"),
            (log.owner, "--log-uid"),
            (log.mac_decode, "--log-macdecode"),
        ];
        for (_, name) in flags.into_iter().filter(|(set, _)| *set) {
            self.word(name);
        }
    }

    fn nflog(&mut self, nflog: &Nflog) {
        self.pair("-j", "NFLOG");
        if !nflog.prefix.is_empty() {
            self.text("--nflog-prefix", &nflog.prefix);
        }
        if nflog.group != 0 {
            self.pair("--nflog-group", nflog.group);
        }
        if let Some(range) = nflog.range.filter(|range| *range != 0) {
            self.pair("--nflog-range", range);
        }
        if let Some(size) = nflog.size {
            self.pair("--nflog-size", size);
        }
        if nflog.threshold != 0 {
            self.pair("--nflog-threshold", nflog.threshold);
        }
    }

    fn set(&mut self, option: &str, named: &Option<(String, Vec<Side>)>) {
        if let Some((name, sides)) = named {
            let sides: Vec<&str> = sides.iter().map(|side| side.name()).collect();
            self.pair(option, name);
            self.word(sides.join(","));
        }
    }

    fn ports(&mut self, ports: &Ports) {
        self.option("--sport", &ports.source);
        self.option("--dport", &ports.destination);
    }

    fn target(&mut self, target: &Target, family: Family) {
        match target {
            Target::Continue => {}
            Target::Accept => self.pair("-j", "ACCEPT"),
            Target::Drop => self.pair("-j", "DROP"),
            Target::Return => self.pair("-j", "RETURN"),
            Target::Jump(chain) => self.pair("-j", chain),
            Target::Goto(chain) => self.pair("-g", chain),
            Target::Masquerade(Masquerade {
                ports,
                random,
                random_fully,
            }) => {
                self.pair("-j", "MASQUERADE");
                if let Some(ports) = ports {
                    self.pair("--to-ports", Dashed(*ports));
                }
                self.flag("--random", *random);
                self.flag("--random-fully", *random_fully);
            }
            Target::Dnat(translation) => {
                self.pair("-j", "DNAT");
                self.translation("--to-destination", translation);
            }
            Target::Snat(translation) => {
                self.pair("-j", "SNAT");
                self.translation("--to-source", translation);
            }
            Target::Redirect(Redirect { ports, random }) => {
                self.pair("-j", "REDIRECT");
                if let Some(ports) = ports {
                    self.pair("--to-ports", Dashed(*ports));
                }
                self.flag("--random", *random);
            }
            Target::Netmap(network) => {
                self.pair("-j", "NETMAP");
                self.pair("--to", network);
            }
            Target::Reject(answer) => {
                self.pair("-j", "REJECT");
                self.pair("--reject-with", answer.name(family));
            }
            Target::Change(change) => self.word(change.text(family)),
            Target::Log(log) => self.log(log),
            Target::Nflog(nflog) => self.nflog(nflog),
            Target::Set(change) => {
                self.pair("-j", "SET");
                self.set("--add-set", &change.add);
                if change.exist {
                    self.word("--exist");
                }
                if let Some(seconds) = change.timeout {
                    self.pair("--timeout", seconds);
                }
                self.set("--del-set", &change.delete);
            }
        }
    }

    fn translation(&mut self, option: &str, translation: &Translation) {
        self.pair(option, translation);
        self.flag("--random", translation.random);
        self.flag("--random-fully", translation.random_fully);
        self.flag("--persistent", translation.persistent);
    }

    fn flag(&mut self, word: &str, set: bool) {
        if set {
            self.word(word);
        }
    }
}

/// A range of ports with a dash, as the targets of nat have it.
struct Dashed(PortRange);

impl fmt::Display for Dashed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PortRange { first, last } = self.0;
        if first == last {
            write!(f, "{first}")
        } else {
            write!(f, "{first}-{last}")
        }
    }
}

/// `192.0.2.2-192.0.2.9:80-90/8080`, `[2001:db8::2]:80`.
impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((first, last)) = self.addresses {
            let brackets = first.is_ipv6() && self.ports.is_some();
            f.write_str(if brackets { "[" } else { "" })?;
            push_address(f, first)?;
            if first != last {
                f.write_char('-')?;
                push_address(f, last)?;
            }
            f.write_str(if brackets { "]" } else { "" })?;
        }
        if let Some(ports) = self.ports {
            write!(f, ":{}", Dashed(ports))?;
        }
        if let Some(base) = self.base_port {
            write!(f, "/{base}")?;
        }
        Ok(())
    }
}

impl Side {
    /// `src` or `dst`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "src",
            Self::Destination => "dst",
        }
    }
}

/// Text in double quotes, with a backslash before what iptables-save escapes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for letter in self.0.chars() {
            if matches!(letter, '"' | '\\' | '\'') {
                f.write_char('\\')?;
            }
            f.write_char(letter)?;
        }
        f.write_char('"')
    }
}

/// `192.0.2.0/24`, `2001:db8::/32`, `10.0.1.0/255.0.255.0`.
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ones, leading) = match self.mask {
            IpAddr::V4(mask) => (mask.to_bits().count_ones(), mask.to_bits().leading_ones()),
            IpAddr::V6(mask) => (mask.to_bits().count_ones(), mask.to_bits().leading_ones()),
        };
        push_address(f, self.address)?;
        f.write_char('/')?;
        if ones == leading {
            write!(f, "{ones}")
        } else {
            push_address(f, self.mask)
        }
    }
}

/// Writes an address as glibc's inet_ntop does, which differs from Rust's form in one case:
/// the last four bytes of an IPv4-compatible address (`::192.0.2.1`) are dotted.
fn push_address(f: &mut fmt::Formatter<'_>, address: IpAddr) -> fmt::Result {
    if let IpAddr::V6(v6) = address
        && is_ipv4_compatible(v6)
    {
        let [.., a, b, c, d] = v6.octets();
        return write!(f, "::{a}.{b}.{c}.{d}");
    }
    write!(f, "{address}")
}

fn is_ipv4_compatible(address: Ipv6Addr) -> bool {
    let [zeros @ .., seventh, _] = address.segments();
    zeros == [0; 6] && seventh != 0
}

/// `22`, `1024:65535`.
impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

/// `8`, `3/4`, `any`.
impl fmt::Display for IcmpType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            None => f.write_str("any"),
            Some(kind) if self.codes == (0, u8::MAX) => write!(f, "{kind}"),
            Some(kind) => write!(f, "{kind}/{}", self.codes.0),
        }
    }
}

/// `5/min`: the largest unit in which the rate is nearly whole, as `print_rate` finds it
/// (extensions/libxt_limit.c).
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [
            ("day", 86_400 * Limit::SECOND),
            ("hour", 3_600 * Limit::SECOND),
            ("min", 60 * Limit::SECOND),
            ("sec", Limit::SECOND),
        ];
        let period = self.period.max(1);
        let coarse = |(_, unit): &&(&str, u32)| period > *unit || unit / period < unit % period;
        let whole = UNITS[1..].iter().position(|unit| coarse(&unit));
        let (name, unit) = UNITS[whole.unwrap_or(UNITS.len() - 1)];
        write!(f, "{}/{name}", unit / period)
    }
}

/// The names of TCP's flags by bit (RFC 9293, 3.1).
pub(crate) const TCP_FLAGS: [(u8, &str); 6] = [
    (0x01, "FIN"),
    (0x02, "SYN"),
    (0x04, "RST"),
    (0x08, "PSH"),
    (0x10, "ACK"),
    (0x20, "URG"),
];

/// `FIN,SYN,RST,ACK SYN`.
impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        push_flags(f, self.mask)?;
        f.write_char(' ')?;
        push_flags(f, self.set)
    }
}

fn push_flags(f: &mut fmt::Formatter<'_>, bits: u8) -> fmt::Result {
    let names = names_of(bits, &TCP_FLAGS);
    f.write_str(if names.is_empty() { "NONE" } else { &names })
}

/// The names of connection states in the order in which iptables-save prints them.
pub(crate) const CT_STATES: [(u8, &str); 7] = [
    (CtStates::INVALID.0, "INVALID"),
    (CtStates::NEW.0, "NEW"),
    (CtStates::RELATED.0, "RELATED"),
    (CtStates::ESTABLISHED.0, "ESTABLISHED"),
    (CtStates::UNTRACKED.0, "UNTRACKED"),
    (CtStates::SNAT.0, "SNAT"),
    (CtStates::DNAT.0, "DNAT"),
];

/// `RELATED,ESTABLISHED`.
impl fmt::Display for CtStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&names_of(self.0, &CT_STATES))
    }
}

fn names_of(bits: u8, table: &[(u8, &str)]) -> String {
    let names: Vec<_> = table
        .iter()
        .filter(|(bit, _)| bits & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    names.join(",")
}
