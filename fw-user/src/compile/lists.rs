//! How rules ask lists.

use fw_common::abi::blob::Condition;
use fw_common::abi::list::{connlimit, hashlimit};

use super::scope::Scope;
use crate::policy::lists::ListMatch;
use crate::policy::model::Side;

/// The condition that a list says yes, and whether it is inverted.
pub(super) fn asked(list: &ListMatch, scope: &Scope<'_>) -> (bool, Condition) {
    let place = scope.policy.list_place(list, scope.family);
    match list {
        ListMatch::Recent(recent) => {
            let condition = Condition::Recent {
                place,
                flags: recent.flags(),
                seconds: recent.seconds,
                hits: recent.hits,
            };
            (recent.not, condition)
        }
        ListMatch::Connlimit(limit) => {
            let destination = limit.side == Side::Destination;
            let condition = Condition::Connlimit {
                place,
                flags: if destination {
                    connlimit::DESTINATION
                } else {
                    0
                },
                limit: limit.limit,
            };
            (!limit.above, condition)
        }
        ListMatch::Hashlimit(limit) => {
            let flags = if limit.above { hashlimit::ABOVE } else { 0 };
            (false, Condition::Hashlimit { place, flags })
        }
    }
}
