//! `fwbpf explain`: what the firewall does with one packet, step by step.

use std::net::IpAddr;

use super::Failure;
use super::output::Output;
use super::running::Running;
use super::source::{adopt_sets, parse};
use crate::cli::Explain;
use crate::explain::{Machine, Question, State, explain};
use crate::host::Host;
use crate::kernel::flows::{FlowTable, Slices, monotonic_now};
use crate::kernel::lists::LiveList;
use crate::kernel::sets::LiveSet;
use crate::kernel::state::StateDir;
use crate::policy::model::Family;
use crate::policy::names::{Named, icmp_type, protocol_names, protocol_number};
use crate::sim::HostSet;

/// Runs the command.
pub fn run(state: &StateDir, arguments: &Explain, output: &mut Output) -> Result<(), Failure> {
    let question = question(arguments).map_err(Failure::Usage)?;
    let machine = if arguments.policy.is_empty() {
        live(state)?
    } else {
        offline(arguments, &question, output)?
    };
    let explanation =
        explain(&machine, &question).map_err(|error| Failure::Usage(error.to_string()))?;
    if output.json {
        output.value(&explanation)
    } else {
        output.line(explanation)
    }
}

fn offline(
    arguments: &Explain,
    question: &Question,
    output: &mut Output,
) -> Result<Machine, Failure> {
    let parsed = parse(&arguments.policy, None, false)?;
    let loaded = match parsed.and_then(|loaded| adopt_sets(loaded, &[])) {
        Ok(loaded) => loaded,
        Err(errors) => {
            output.say(errors.render(output.colours_on_stderr()));
            return Err(Failure::Refused);
        }
    };
    Machine::offline(loaded.policy, question).map_err(|limit| {
        output.refusal(limit);
        Failure::Refused
    })
}

fn live(state: &StateDir) -> Result<Machine, Failure> {
    let running = Running::open(state)?;
    let mut flows = Vec::new();
    for table in FlowTable::ALL {
        let embryo = matches!(table, FlowTable::Embryos4 | FlowTable::Embryos6);
        let mut slices = Slices::open(state, table)?;
        while let Some(slice) = slices.read_next()? {
            flows.extend(slice.into_iter().map(|(key, flow)| (key, flow, embryo)));
        }
    }
    let mut sets = Vec::new();
    let mut running = running;
    for set in &running.meta.policy.sets {
        let live = LiveSet::open(&mut running.maps, set)?;
        sets.push((set.place, HostSet::new(live.info()?, live.elements()?)));
    }
    let mut lists = Vec::new();
    for list in &running.meta.policy.lists {
        let cells = LiveList::open(state, &running.maps, list)?.cells()?;
        lists.push((list.place, cells));
    }
    Ok(Machine::live(
        running.meta,
        running.tables,
        &Host::read()?,
        flows,
        sets,
        &lists,
        monotonic_now(),
    ))
}

fn question(arguments: &Explain) -> Result<Question, String> {
    let family = match arguments.src {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    };
    Ok(Question {
        in_interface: arguments.in_interface.clone(),
        out_interface: arguments.out_interface.clone(),
        source: arguments.src,
        destination: arguments.dst,
        protocol: protocol(&arguments.proto, family)?,
        source_port: arguments.sport,
        destination_port: arguments.dport,
        icmp: arguments
            .icmp_type
            .as_deref()
            .map(|text| icmp(text, family))
            .transpose()?,
        tcp_flags: (!arguments.tcp_flags.is_empty())
            .then(|| tcp_flags(&arguments.tcp_flags))
            .transpose()?,
        state: arguments
            .ctstate
            .as_deref()
            .map(|name| {
                State::from_name(name).ok_or_else(|| {
                    format!(
                        "`{name}` is no connection state; there are NEW, ESTABLISHED, RELATED, \
                         INVALID and UNTRACKED"
                    )
                })
            })
            .transpose()?,
    })
}

fn protocol(text: &str, family: Family) -> Result<u8, String> {
    if text == "icmp" {
        // As people say it; IPv6's has its own number.
        return Ok(family.icmp());
    }
    text.parse()
        .ok()
        .or_else(|| protocol_number(text))
        .ok_or_else(|| {
            let names: Vec<&str> = protocol_names().collect();
            format!(
                "`{text}` is no protocol; give a number from 0 to 255 or one of {}",
                names.join(", ")
            )
        })
}

fn icmp(text: &str, family: Family) -> Result<(u8, u8), String> {
    let numbers = match text.split_once('/') {
        Some((kind, code)) => kind.parse().ok().zip(code.parse().ok()),
        None => text
            .parse()
            .ok()
            .map(|kind| (kind, 0))
            .or_else(|| match icmp_type(text, family) {
                Named::Type(named) => Some((named.kind?, named.codes.0)),
                Named::Ambiguous(..) | Named::Unknown => None,
            }),
    };
    numbers.ok_or_else(|| {
        format!(
            "`{text}` is no ICMP type; give a number, `type/code` or a name such as echo-request"
        )
    })
}

fn tcp_flags(names: &[String]) -> Result<u8, String> {
    // RFC 9293 3.1.
    const FLAGS: [(&str, u8); 7] = [
        ("FIN", 0x01),
        ("SYN", 0x02),
        ("RST", 0x04),
        ("PSH", 0x08),
        ("ACK", 0x10),
        ("URG", 0x20),
        ("NONE", 0),
    ];
    names.iter().try_fold(0, |flags, name| {
        FLAGS
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, bit)| flags | bit)
            .ok_or_else(|| {
                format!("`{name}` is no TCP flag; there are FIN, SYN, RST, PSH, ACK and URG")
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_in_words() {
        assert_eq!(protocol("tcp", Family::Ipv4), Ok(6));
        assert_eq!(protocol("icmp", Family::Ipv6), Ok(58));
        assert_eq!(protocol("47", Family::Ipv4), Ok(47));
        assert!(protocol("tpc", Family::Ipv4).is_err());
        assert_eq!(icmp("3/4", Family::Ipv4), Ok((3, 4)));
        assert_eq!(icmp("echo-request", Family::Ipv6), Ok((128, 0)));
        assert_eq!(tcp_flags(&["syn".into(), "ACK".into()]), Ok(0x12));
        assert!(tcp_flags(&["SYM".into()]).is_err());
    }
}
