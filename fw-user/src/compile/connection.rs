//! Lowering what [`crate::policy::connection`] asks of a packet's connection.

use fw_common::abi::blob::{Condition, PredicateFields};
use fw_common::abi::ct::asked::{EXPIRES, PORTS, PROTOCOL, STATUS};

use crate::addr;
use crate::policy::connection::Connection;
use crate::policy::model::Negatable;

/// The predicates. `without_flow` is what holds for a packet that has no connection: the match's state
/// alone decides about it, if the match has one.
pub(super) fn asked(connection: &Connection, without_flow: bool) -> Vec<PredicateFields> {
    let mut predicates = Vec::new();
    let mut value = |not, number, mask, range| {
        predicates.push(PredicateFields {
            not,
            condition: Condition::CtValue {
                number,
                mask,
                range,
                without_flow,
            },
        });
    };
    if let Some(Negatable { not, value: number }) = connection.protocol {
        value(not, PROTOCOL, u32::MAX, (number.into(), number.into()));
    }
    for (end, ports) in (PORTS..).zip(connection.ports) {
        if let Some(Negatable { not, value: ports }) = ports {
            value(not, end, u32::MAX, (ports.first.into(), ports.last.into()));
        }
    }
    if let Some(Negatable { not, value: bits }) = connection.status {
        value(not, STATUS, bits.into(), (1, u32::MAX));
    }
    if let Some(Negatable { not, value: range }) = connection.expires {
        value(not, EXPIRES, u32::MAX, range);
    }
    for (end, address) in (0..).zip(connection.addresses) {
        if let Some(Negatable { not, value }) = address {
            let (address, mask) = addr::masked(value.address, value.mask);
            predicates.push(PredicateFields {
                not,
                condition: Condition::CtAddress {
                    end,
                    address,
                    mask,
                    without_flow,
                },
            });
        }
    }
    predicates
}
