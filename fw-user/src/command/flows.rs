//! `fwbpf flows`: like `conntrack -L`, `-D` and `-F`.

use std::net::IpAddr;

use fw_common::abi::flow::FlowKey;
use fw_common::datapath::header::protocol;
use fw_common::datapath::{sctp, tcp};

use super::Failure;
use super::output::Output;
use crate::cli::{FlowFilter, Flows, Network};
use crate::kernel::flows::{FlowView, Tuple, views};
use crate::kernel::load::Maps;
use crate::kernel::state::StateDir;
use crate::kernel::sweep::{Sweeper, flush};
use crate::policy::model::Family;
use crate::policy::names::{protocol_names, protocol_number};

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Flows, output: &mut Output) -> Result<(), Failure> {
    let conditions = Conditions::of(&arguments.filter).map_err(Failure::Usage)?;
    if arguments.delete && arguments.filter == FlowFilter::default() {
        return Err(Failure::Usage(
            "say which flows to delete, for instance with --dst; `fwbpf flows --flush` ends all"
                .into(),
        ));
    }
    if arguments.flush && arguments.filter != FlowFilter::default() {
        return Err(Failure::Usage(
            "--flush ends all flows; with conditions it is `fwbpf flows --delete`".into(),
        ));
    }
    let maps = Maps::open(state)?;
    let running = maps.as_ref().map(Maps::running).transpose()?.flatten();
    if running.is_none() {
        return Err(Failure::NotLoaded(state.clone()));
    }
    if arguments.flush {
        let ended = flush(state)?;
        if output.json {
            return output.value(&serde_json::json!({ "ended": ended }));
        }
        output.say(format_args!("{ended} flows ended"));
        return Ok(());
    }
    let mut flows = views(state)?;
    flows.retain(|(_, flow)| conditions.hold(flow));
    if arguments.delete {
        flows = delete(state, flows)?;
    }
    let flows: Vec<FlowView> = flows.into_iter().map(|(_, flow)| flow).collect();
    if output.json {
        return if arguments.delete {
            output.value(&serde_json::json!({ "deleted": flows.len(), "flows": flows }))
        } else {
            output.value(&flows)
        };
    }
    for flow in &flows {
        output.line(flow.to_string().trim_end())?;
    }
    let deleted = if arguments.delete { " deleted" } else { "" };
    output.say(format_args!("{} flows{deleted}", flows.len()));
    Ok(())
}

/// Deletes flows; returns those that were there still.
fn delete(
    state: &StateDir,
    flows: Vec<(FlowKey, FlowView)>,
) -> anyhow::Result<Vec<(FlowKey, FlowView)>> {
    let sweeper = Sweeper::open(state)?;
    let mut deleted = Vec::new();
    for (key, flow) in flows {
        if sweeper.end(&key)? {
            deleted.push((key, flow));
        }
    }
    Ok(deleted)
}

/// A filter, understood.
struct Conditions<'a> {
    filter: &'a FlowFilter,
    family: Option<&'static str>,
    /// ICMP has two numbers.
    protocols: Option<Vec<u8>>,
    state: Option<&'static str>,
}

impl<'a> Conditions<'a> {
    fn of(filter: &'a FlowFilter) -> Result<Self, String> {
        let state = filter.state.as_deref().map(|name| {
            let mut known = tcp::STATE_NAMES.iter().chain(&sctp::STATE_NAMES[1..]);
            let known = known.find(|known| known.eq_ignore_ascii_case(name));
            known.copied().ok_or_else(|| {
                format!(
                    "`{name}` is no state of TCP or SCTP; there are {}, and {}",
                    tcp::STATE_NAMES.join(", "),
                    sctp::STATE_NAMES[1..].join(", ")
                )
            })
        });
        Ok(Self {
            filter,
            family: filter.family.chosen().map(|family| match family {
                Family::Ipv4 => "ipv4",
                Family::Ipv6 => "ipv6",
            }),
            protocols: filter.protocol.as_deref().map(protocols).transpose()?,
            state: state.transpose()?,
        })
    }

    fn hold(&self, flow: &FlowView) -> bool {
        let filter = self.filter;
        let (original, reply) = (&flow.original, &flow.reply);
        let has_ports = matches!(
            flow.protocol,
            protocol::TCP | protocol::UDP | protocol::UDPLITE | protocol::SCTP | protocol::DCCP
        );
        let port = |wanted: Option<u16>, port| wanted.is_none_or(|it| has_ports && it == port);
        self.family.is_none_or(|family| family == flow.family)
            && self
                .protocols
                .as_ref()
                .is_none_or(|numbers| numbers.contains(&flow.protocol))
            && self.state.is_none_or(|state| flow.state == Some(state))
            && filter.zone.is_none_or(|zone| flow.zone == zone)
            && is_in(filter.source, original.source)
            && is_in(filter.destination, original.destination)
            && is_in(filter.reply_source, reply.source)
            && is_in(filter.reply_destination, reply.destination)
            && filter.address.is_none_or(|network| {
                let ends = |tuple: &Tuple| [tuple.source, tuple.destination];
                let mut ends = [ends(original), ends(reply)].into_iter().flatten();
                ends.any(|end| network.0.contains(&end))
            })
            && port(filter.source_port, original.source_port)
            && port(filter.destination_port, original.destination_port)
            && port(filter.reply_source_port, reply.source_port)
            && port(filter.reply_destination_port, reply.destination_port)
    }
}

fn is_in(network: Option<Network>, address: IpAddr) -> bool {
    network.is_none_or(|network| network.0.contains(&address))
}

fn protocols(text: &str) -> Result<Vec<u8>, String> {
    if text == "icmp" {
        // As people say it; IPv6's has its own number.
        return Ok(vec![protocol::ICMP, protocol::ICMPV6]);
    }
    let number = text.parse().ok().or_else(|| protocol_number(text));
    number.map(|number| vec![number]).ok_or_else(|| {
        let names: Vec<&str> = protocol_names().collect();
        format!(
            "`{text}` is no protocol; give a number from 0 to 255 or one of {}",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn filter(arguments: &str) -> FlowFilter {
        let words = ["fwbpf", "flows"].into_iter();
        let parsed = Cli::try_parse_from(words.chain(arguments.split_whitespace()));
        match parsed.expect("right arguments").command {
            Command::Flows(flows) => flows.filter,
            other => panic!("{other:?}"),
        }
    }

    /// 10.0.0.5 port 40000 to 203.0.113.9 port 22, masqueraded as 198.51.100.10 port 40001.
    fn flow() -> FlowView {
        let tuple = |source: &str, source_port, destination: &str, destination_port| Tuple {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            source_port,
            destination_port,
        };
        FlowView {
            family: "ipv4",
            protocol: 6,
            protocol_name: "tcp".into(),
            state: Some("ESTABLISHED"),
            timeout: 100,
            original: tuple("10.0.0.5", 40_000, "203.0.113.9", 22),
            reply: tuple("203.0.113.9", 22, "198.51.100.10", 40_001),
            replied: true,
            assured: true,
            masqueraded: true,
            redirected: false,
            embryo: false,
            mark: 0,
            zone: 0,
        }
    }

    #[test]
    fn all_conditions_must_hold() {
        let holds = |arguments: &str| {
            let filter = filter(arguments);
            Conditions::of(&filter).expect("right words").hold(&flow())
        };
        for right in [
            "",
            "--delete --proto tcp --src 10.0.0.5 --dport 22",
            "-D -p 6 -s 10.0.0.0/8 -d 203.0.113.9 --sport 40000",
            "--orig-src 10.0.0.5 --orig-port-dst 22",
            "-r 203.0.113.0/24 -q 198.51.100.10 --reply-port-dst 40001 --reply-port-src 22",
            "--address 198.51.100.10 --state established",
            "--address 10.0.0.0/8 -4",
            "--zone 0",
        ] {
            assert!(holds(right), "{right}");
        }
        for wrong in [
            "--proto udp",
            "--proto icmp",
            "--src 10.0.0.6",
            "--src 203.0.113.9",
            "--dst 203.0.113.9 --dport 23",
            "--reply-dst 10.0.0.5",
            "--reply-port-dst 40000",
            "--address 192.0.2.0/24",
            "--state TIME_WAIT",
            "-w 5",
            "--ipv6",
            "--address ::/0",
        ] {
            assert!(!holds(wrong), "{wrong}");
        }
    }

    #[test]
    fn icmp_is_of_either_version_and_has_no_ports() {
        let ping = FlowView {
            protocol: 58,
            state: None,
            ..flow()
        };
        let holds = |arguments: &str| {
            let filter = filter(arguments);
            Conditions::of(&filter).expect("right words").hold(&ping)
        };
        assert!(holds("--proto icmp"));
        assert!(!holds("--sport 40000"));
        assert!(!holds("--state ESTABLISHED"));
    }

    #[test]
    fn wrong_words_are_refused() {
        assert!(Conditions::of(&filter("--proto tpc")).is_err());
        assert!(Conditions::of(&filter("--state OPEN")).is_err());
        for wrong in ["--src example.org", "-D --flush"] {
            let words = ["fwbpf", "flows"].into_iter().chain(wrong.split(' '));
            assert!(Cli::try_parse_from(words).is_err(), "{wrong}");
        }
    }
}
