//! Sending the packet through the datapath, and putting what happens into steps.

use fw_common::MapCell;
use fw_common::abi::ct;
use fw_common::abi::flow::{Flow, FlowKey};
use fw_common::abi::stat::Stat;
use fw_common::datapath::conntrack::Tracked;
use fw_common::datapath::header::{Headers, Parsed, parse, protocol};
use fw_common::datapath::scratch::Scratch;
use fw_common::datapath::tables::{Tables, Tier};
use fw_common::datapath::tuple::Tuple;
use fw_common::datapath::{Verdict as PacketVerdict, egress, ingress, sctp, tcp};

use super::{Decider, ExplainError, Explanation, Machine, Question, State, Step, Verdict};
use crate::addr;
use crate::compile::Place;
use crate::policy::model::{Family, Reject, Target};
use crate::policy::{CounterId, TableName, print_rule};
use crate::sim::{Event, HostDevice, HostTables, SlicePacket, Traced};

/// Answers a question. The machine is left as it was.
pub fn explain(machine: &Machine, question: &Question) -> Result<Explanation, ExplainError> {
    if question.source.is_ipv6() != question.destination.is_ipv6() {
        let (source, destination) = (question.source, question.destination);
        return Err(ExplainError::Families(source, destination));
    }
    let tables = machine.tables.fork();
    let way = Way::of(&tables, question)?;
    let mut steps = Vec::new();
    prepare(&tables, &way, question, &mut steps)?;
    let packet = question.packet(way.first())?;
    let mut walk = Walk {
        machine,
        tables: Traced::new(&tables),
        steps,
        asked: question.state,
        hits: Vec::new(),
    };
    let verdict = walk.run(&way, packet)?;
    Ok(walk.conclude(verdict))
}

/// The hooks that a packet passes.
pub(super) enum Way {
    In {
        by: HostDevice,
        then: Option<HostDevice>,
    },
    Out {
        by: HostDevice,
    },
}

impl Way {
    pub(super) fn of(tables: &HostTables, question: &Question) -> Result<Self, ExplainError> {
        let device = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => match tables.host().device(name) {
                Some(device) => Ok(Some(device.clone())),
                None => Err(ExplainError::Interface(name.clone())),
            },
        };
        let out = device(&question.out_interface)?;
        match (device(&question.in_interface)?, out) {
            (Some(by), then) => Ok(Self::In { by, then }),
            (None, Some(by)) => Ok(Self::Out { by }),
            (None, None) => Err(ExplainError::NoInterface),
        }
    }

    /// The device that the packet meets first.
    pub(super) fn first(&self) -> &HostDevice {
        match self {
            Self::In { by, .. } | Self::Out { by } => by,
        }
    }
}

/// Makes the connections that the state asked for supposes.
fn prepare(
    tables: &HostTables,
    way: &Way,
    question: &Question,
    steps: &mut Vec<Step>,
) -> Result<(), ExplainError> {
    let wrong = |asked, why: &str| {
        Err(ExplainError::State {
            asked,
            why: why.to_owned(),
        })
    };
    match question.state {
        None | Some(State::New | State::Invalid | State::Untracked) => {}
        Some(State::Related) => {
            if !question.is_icmp() {
                return wrong(
                    State::Related,
                    "RELATED are ICMP errors about a connection; no helper opens others",
                );
            }
            let quoted = question.quoted();
            steps.push(Step::Assumed {
                what: format!(
                    "it is about a UDP datagram that {} sent to {}",
                    quoted.source, quoted.destination
                ),
            });
            if let Some(headers) = headers(tables, way.first(), &quoted.packet(way.first())?) {
                put_established(tables, &headers, false);
            }
        }
        Some(State::Established) => {
            let packet = question.packet(way.first())?;
            let Some(headers) = headers(tables, way.first(), &packet) else {
                return Ok(());
            };
            let (key, _) = Tuple::key_of(&headers, FlowKey::FIRST);
            if tables.flow(&key).is_some() {
                return Ok(());
            }
            let opener = if question.answers() {
                question.destination
            } else {
                question.source
            };
            steps.push(Step::Assumed {
                what: format!("{opener} opened the connection, and was answered"),
            });
            if !question.answers() {
                open(tables, way, &question.opening())?;
            }
            put_established(tables, &headers, question.answers());
        }
    }
    Ok(())
}

/// Lets the connection's first packet through the policy, so that it gets its translation. If the
/// policy drops it, an earlier policy may have let it pass: the caller makes the connection then.
fn open(tables: &HostTables, way: &Way, question: &Question) -> Result<(), ExplainError> {
    let mut packet = question.packet(way.first())?;
    let mut scratch = Scratch::default();
    match way {
        Way::Out { by } => {
            packet = packet.at_egress_of(by.index).made_here();
            egress(&mut packet, tables, &mut scratch);
        }
        Way::In { then, .. } => {
            let verdict = ingress(&mut packet, tables, &mut scratch);
            if let (PacketVerdict::Pass, Some(then)) = (verdict, then) {
                packet = packet.at_egress_of(then.index);
                egress(&mut packet, tables, &mut scratch);
            }
        }
    }
    Ok(())
}

/// The packet's connection as one that has gone on for a while.
fn put_established(tables: &HostTables, headers: &Headers, reply: bool) {
    let (key, from_low) = Tuple::key_of(headers, FlowKey::FIRST);
    let opened = match from_low != reply {
        true => Flow::LOW_OPENED,
        false => 0,
    };
    let mut flow = match tables.flow(&key) {
        Some(flow) => flow.clone(),
        None => {
            let flow = Flow::default();
            flow.status.set(opened);
            flow
        }
    };
    let status = flow.status.get() & !(Flow::EMBRYO | Flow::EARLY);
    flow.status.set(status | Flow::SEEN_REPLY | Flow::ASSURED);
    flow.expires = MapCell::new(u64::MAX);
    if headers.key.protocol as u8 == protocol::TCP {
        const LAST_WAS_ACK: u32 = 3 << 8;
        flow.tcp
            .set(u32::from(tcp::state::ESTABLISHED) | LAST_WAS_ACK);
    }
    if headers.key.protocol as u8 == protocol::SCTP {
        sctp::adopt(&flow, sctp::state::ESTABLISHED, [0; 2]);
    }
    tables.remove_flow(&key);
    tables.put_flow(&key, &flow, false);
}

fn headers(tables: &HostTables, device: &HostDevice, packet: &SlicePacket) -> Option<Headers> {
    let mut headers = Headers::default();
    let parsed = parse(packet, tables, device.l2_len, &mut headers);
    (parsed == Parsed::Headers).then_some(headers)
}

impl State {
    const ALL: [(Self, u8, &'static str); 5] = [
        (Self::New, ct::NEW, "NEW"),
        (Self::Established, ct::ESTABLISHED, "ESTABLISHED"),
        (Self::Related, ct::RELATED, "RELATED"),
        (Self::Invalid, ct::INVALID, "INVALID"),
        (Self::Untracked, ct::UNTRACKED, "UNTRACKED"),
    ];

    /// The state as rules spell it.
    pub fn name(self) -> &'static str {
        let same = |(state, ..): &&(Self, u8, &'static str)| *state == self;
        Self::ALL.iter().find(same).map_or("", |(.., name)| name)
    }

    /// The state of that name, in any case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(.., known)| known.eq_ignore_ascii_case(name))
            .map(|(state, ..)| *state)
    }

    fn of(label: u8) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|(_, bit, _)| label & bit != 0)
            .map(|(state, ..)| *state)
    }
}

/// A packet on its way.
struct Walk<'m> {
    machine: &'m Machine,
    tables: Traced<'m, HostTables>,
    steps: Vec<Step>,
    /// The state that the packet shall have, until the first hook says which it has.
    asked: Option<State>,
    hits: Vec<Decider>,
}

impl<'m> Walk<'m> {
    fn run(&mut self, way: &Way, mut packet: SlicePacket) -> Result<PacketVerdict, ExplainError> {
        match way {
            Way::Out { by } => {
                packet = packet.at_egress_of(by.index).made_here();
                let verdict = self.leave(by, &mut packet)?;
                if verdict == PacketVerdict::Pass && by.loopback {
                    // What is sent on loopback comes in again.
                    packet.arrival_device = by.index;
                    return self.arrive(by, &mut packet);
                }
                Ok(verdict)
            }
            Way::In { by, then } => {
                let verdict = self.arrive(by, &mut packet)?;
                let forwarded = packet.note != 0;
                match (verdict, forwarded, then) {
                    (PacketVerdict::Pass, true, Some(then)) => {
                        packet = packet.at_egress_of(then.index);
                        self.leave(then, &mut packet)
                    }
                    (PacketVerdict::Pass, true, None) => {
                        let destination = headers(&self.machine.tables, by, &packet)
                            .map(|headers| addr::from_abi(headers.family, headers.key.destination));
                        Err(ExplainError::WayOut(destination.unwrap_or([0; 4].into())))
                    }
                    (verdict, ..) => Ok(verdict),
                }
            }
        }
    }

    fn arrive(
        &mut self,
        device: &HostDevice,
        packet: &mut SlicePacket,
    ) -> Result<PacketVerdict, ExplainError> {
        self.steps.push(Step::Arrives {
            interface: device.name.clone(),
        });
        self.pass(device, packet, ingress)
    }

    fn leave(
        &mut self,
        device: &HostDevice,
        packet: &mut SlicePacket,
    ) -> Result<PacketVerdict, ExplainError> {
        self.steps.push(Step::Leaves {
            interface: device.name.clone(),
            made_here: packet.arrival_device == 0,
        });
        self.pass(device, packet, egress)
    }

    /// Runs a hook, and turns what it did into steps.
    fn pass(
        &mut self,
        device: &HostDevice,
        packet: &mut SlicePacket,
        hook: impl Fn(&mut SlicePacket, &Traced<'m, HostTables>, &mut Scratch) -> PacketVerdict,
    ) -> Result<PacketVerdict, ExplainError> {
        let mut scratch = Scratch::default();
        let before = headers(&self.machine.tables, device, packet);
        let verdict = hook(packet, &self.tables, &mut scratch);
        self.say_state(&scratch.tracked)?;
        let after = headers(&self.machine.tables, device, packet);
        let mut translations = self.translations(before, after);
        for event in self.tables.take() {
            match event {
                Event::Hit { slot, .. } => self.hit(slot),
                Event::Local { address, local } => {
                    // Destinations change before they are looked at, sources last of all.
                    self.steps.append(&mut translations);
                    self.steps.push(Step::Destination { address, local });
                }
                Event::Insert {
                    key: _,
                    flow,
                    tier,
                    result: Ok(()),
                } if !flow.is_alias() => {
                    self.steps.push(Step::Remembered {
                        embryo: tier != Tier::Confirmed,
                    });
                }
                Event::Insert { .. }
                | Event::Count(_)
                | Event::Flow { .. }
                | Event::Promote { .. }
                | Event::Remove(_)
                | Event::Fragment { .. }
                | Event::InsertFragment(_) => {}
            }
        }
        self.steps.append(&mut translations);
        Ok(verdict)
    }

    /// Says what connection tracking made of the packet at the first hook; later ones follow it.
    fn say_state(&mut self, tracked: &Tracked) -> Result<(), ExplainError> {
        let said = |step: &Step| matches!(step, Step::Tracked { .. });
        let Some(state) = State::of(tracked.ct) else {
            return Ok(());
        };
        if self.steps.iter().any(said) {
            return Ok(());
        }
        if let Some(asked) = self.asked
            && asked != state
        {
            return Err(ExplainError::State {
                asked,
                why: format!("connection tracking calls it {state}"),
            });
        }
        self.steps.push(Step::Tracked {
            state,
            original: match tracked.direction {
                0 => Some(true),
                1 => Some(false),
                _ => None,
            },
            translated: tracked.ct & (ct::SNAT | ct::RENAMED) != 0,
            // Of a packet that opens one, the rules that come decide.
            redirected: tracked.ct & ct::DNAT != 0 && !tracked.opens,
        });
        Ok(())
    }

    fn translations(&self, before: Option<Headers>, after: Option<Headers>) -> Vec<Step> {
        let (Some(before), Some(after)) = (before, after) else {
            return Vec::new();
        };
        let translation = |end| {
            let (from, to) = (endpoint(&before, end), endpoint(&after, end));
            let made_up = self
                .machine
                .is_made_up(addr::from_abi(after.family, after.key.source));
            let to = if made_up && end == "source" && from != to {
                format!("the interface's address, port {}", port(&after, end))
            } else {
                to
            };
            (from != to).then_some(Step::Translated { end, from, to })
        };
        ["source", "destination"]
            .into_iter()
            .filter_map(translation)
            .collect()
    }

    fn hit(&mut self, slot: u32) {
        let Some(id) = self.machine.counter(slot) else {
            return;
        };
        let rule = self.decider(id);
        let action = match self.machine.policy.rule(id) {
            Some(rule) => action(&rule.target, id.family),
            None => {
                let chain = self.machine.policy.chain(id);
                let policy = chain.and_then(|chain| chain.policy.as_ref());
                match policy.is_some_and(|policy| policy.accept) {
                    true => "ACCEPT".to_owned(),
                    false => "DROP".to_owned(),
                }
            }
        };
        self.hits.push(rule.clone());
        self.steps.push(Step::Hit { rule, action });
    }

    fn decider(&self, id: CounterId) -> Decider {
        let policy = &self.machine.policy;
        let chain = policy.chain(id);
        let rule = policy.rule(id);
        let origin = match rule {
            Some(rule) => Some(rule.origin),
            None => chain
                .and_then(|chain| chain.policy.as_ref())
                .and_then(|policy| policy.origin),
        };
        Decider {
            family: id.family,
            table: id.table,
            chain: chain.map_or_else(String::new, |chain| chain.name.clone()),
            rule: rule.map(|rule| print_rule(rule, id.family)),
            place: origin.map(|origin| Place::of(policy, origin).to_string()),
        }
    }

    fn conclude(mut self, verdict: PacketVerdict) -> Explanation {
        let (verdict, reason, decided_by) = match verdict {
            // nat's chains translate; whether a packet passes is the filter table's decision.
            PacketVerdict::Pass | PacketVerdict::Redirect => {
                let is_filter = |hit: &Decider| hit.table == TableName::Filter;
                let decider = self.hits.iter().rposition(is_filter);
                let decider = decider.map(|place| self.hits.swap_remove(place));
                (Verdict::Accept, None, decider)
            }
            PacketVerdict::Drop(Stat::Policy) => {
                (Verdict::Drop, Some(Stat::Policy.name()), self.hits.pop())
            }
            PacketVerdict::Answer | PacketVerdict::Drop(Stat::Rejected) => {
                let reason = Some(Stat::Rejected.name());
                (Verdict::Drop, reason, self.hits.pop())
            }
            PacketVerdict::Drop(stat) => (Verdict::Drop, Some(stat.name()), None),
        };
        Explanation {
            steps: self.steps,
            verdict,
            reason,
            decided_by,
        }
    }
}

fn action(target: &Target, family: Family) -> String {
    match target {
        Target::Continue => "counts".to_owned(),
        Target::Accept => "ACCEPT".to_owned(),
        Target::Drop => "DROP".to_owned(),
        Target::Return => "RETURN".to_owned(),
        Target::Jump(chain) => format!("goes through chain {chain}"),
        Target::Goto(chain) => format!("goes on in chain {chain}"),
        Target::Reject(Reject::TcpReset) => "REJECT with a TCP reset".to_owned(),
        Target::Reject(answer) => format!("REJECT with {}", answer.name(family)),
        Target::Masquerade(_) => "MASQUERADE".to_owned(),
        Target::Change(change) => change.text(family).trim_start_matches("-j ").to_owned(),
        Target::Log(log) => format!("LOG \"{}\"", log.prefix.trim_end()),
        Target::Nflog(nflog) => format!("NFLOG to group {}", nflog.group),
        Target::Set(change) => {
            let add = change
                .add
                .iter()
                .map(|(name, _)| format!("adds to the set {name}"));
            let delete = change
                .delete
                .iter()
                .map(|(name, _)| format!("deletes from the set {name}"));
            add.chain(delete).collect::<Vec<_>>().join(", ")
        }
        Target::Dnat(translation) => format!("DNAT to {translation}"),
        Target::Snat(translation) => format!("SNAT to {translation}"),
        Target::Redirect(_) => "REDIRECT".to_owned(),
        Target::Netmap(network) => format!("NETMAP to {network}"),
    }
}

fn endpoint(headers: &Headers, end: &str) -> String {
    let address = match end {
        "source" => headers.key.source,
        _ => headers.key.destination,
    };
    let address = addr::from_abi(headers.family, address);
    format!("{address}, port {}", port(headers, end))
}

/// The port, or an ICMP query's identifier.
fn port(headers: &Headers, end: &str) -> u16 {
    match end {
        "source" => (headers.flow_ports >> 16) as u16,
        _ => headers.flow_ports as u16,
    }
}
