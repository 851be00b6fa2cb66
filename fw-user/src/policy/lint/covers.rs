//! Whether one rule matches every packet that another does, as far as that can be told by
//! comparing them match by match: "no" may be wrong, "yes" never is.

use std::net::IpAddr;

use crate::policy::model::{
    Conntrack, CtStates, InterfacePattern, Match, Negatable, Ports, Prefix, Rule, TcpFlags,
    WhichPort,
};
use crate::policy::packet_match::PacketMatch;

/// Whether every packet that `narrow` matches is matched by `wide` too.
pub(super) fn covers(wide: &Rule, narrow: &Rule) -> bool {
    every(wide.source, narrow.source, prefix_covers)
        && every(wide.destination, narrow.destination, prefix_covers)
        && every(
            wide.in_interface.clone(),
            narrow.in_interface.clone(),
            interface_covers,
        )
        && every(
            wide.out_interface.clone(),
            narrow.out_interface.clone(),
            interface_covers,
        )
        && every(wide.protocol, narrow.protocol, |wide, narrow| {
            wide == narrow
        })
        && wide.matches.iter().all(|each| match_covers(each, narrow))
}

/// Compares two optional matches; no match at all is the widest.
fn every<T: PartialEq>(
    wide: Option<Negatable<T>>,
    narrow: Option<Negatable<T>>,
    covers: impl Fn(&T, &T) -> bool,
) -> bool {
    match (wide, narrow) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(wide), Some(narrow)) => match (wide.not, narrow.not) {
            (false, false) => covers(&wide.value, &narrow.value),
            // What is outside the larger set is outside the smaller one.
            (true, true) => covers(&narrow.value, &wide.value),
            _ => false,
        },
    }
}

fn prefix_covers(wide: &Prefix, narrow: &Prefix) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let (mask, inner) = (bits(wide.mask), bits(narrow.mask));
    mask & inner == mask && bits(narrow.address) & mask == bits(wide.address)
}

fn interface_covers(wide: &InterfacePattern, narrow: &InterfacePattern) -> bool {
    match (wide.0.strip_suffix('+'), narrow.0.strip_suffix('+')) {
        (Some(wide), Some(narrow)) => narrow.starts_with(wide),
        (Some(wide), None) => narrow.0.starts_with(wide),
        (None, Some(_)) => false,
        (None, None) => wide == narrow,
    }
}

/// Whether a match of the wide rule holds for all packets of the narrow one.
fn match_covers(wide: &Match, narrow: &Rule) -> bool {
    if matches!(wide, Match::Comment(_)) {
        return true;
    }
    narrow.matches.iter().any(|each| match (wide, each) {
        // What one limit has let through says nothing about what is left.
        (Match::Limit(_) | Match::Packet(PacketMatch::Statistic(_)) | Match::List(_), _) => false,
        (Match::Packet(wide), Match::Packet(narrow)) => wide == narrow,
        (Match::Tcp(wide), Match::Tcp(narrow)) => {
            ports_cover(&wide.ports, &narrow.ports)
                && every(wide.flags, narrow.flags, flags_cover)
                && (wide.option.is_none() || wide.option == narrow.option)
        }
        (Match::Udp(wide), Match::Udp(narrow)) => ports_cover(wide, narrow),
        (Match::Icmp(wide), Match::Icmp(narrow)) => every(*wide, *narrow, |wide, narrow| {
            wide.kind.is_none()
                || (wide.kind == narrow.kind
                    && wide.codes.0 <= narrow.codes.0
                    && narrow.codes.1 <= wide.codes.1)
        }),
        (Match::Multiport(wide), narrow) if !wide.ports.not => {
            let inside = |range: &crate::policy::model::PortRange| {
                wide.ports
                    .value
                    .iter()
                    .any(|wide| wide.first <= range.first && range.last <= wide.last)
            };
            match narrow {
                Match::Multiport(narrow) => {
                    wide.which == narrow.which
                        && !narrow.ports.not
                        && narrow.ports.value.iter().all(inside)
                }
                Match::Tcp(crate::policy::model::Tcp { ports, .. }) | Match::Udp(ports) => {
                    let of = |range: Option<Negatable<_>>| {
                        range.is_some_and(|range| !range.not && inside(&range.value))
                    };
                    match wide.which {
                        WhichPort::Source => of(ports.source),
                        WhichPort::Destination => of(ports.destination),
                        WhichPort::Either => of(ports.source) || of(ports.destination),
                    }
                }
                _ => false,
            }
        }
        _ => match (states_of(wide), states_of(each)) {
            (Some(wide), Some(narrow)) => every(
                Some(wide),
                Some(narrow),
                |wide: &CtStates, narrow: &CtStates| wide.0 & narrow.0 == narrow.0,
            ),
            _ => wide == each,
        },
    })
}

fn ports_cover(wide: &Ports, narrow: &Ports) -> bool {
    type Range = crate::policy::model::PortRange;
    let inside =
        |wide: &Range, narrow: &Range| wide.first <= narrow.first && narrow.last <= wide.last;
    every(wide.source, narrow.source, inside) && every(wide.destination, narrow.destination, inside)
}

fn flags_cover(wide: &TcpFlags, narrow: &TcpFlags) -> bool {
    wide.mask & narrow.mask == wide.mask && narrow.set & wide.mask == wide.set
}

/// The states that `-m state` or `-m conntrack` compares, if it compares nothing else.
pub(super) fn states_of(each: &Match) -> Option<Negatable<CtStates>> {
    match each {
        Match::State(states) => Some(*states),
        Match::Conntrack(Conntrack {
            states,
            direction: None,
            connection: None,
        }) => *states,
        _ => None,
    }
}
