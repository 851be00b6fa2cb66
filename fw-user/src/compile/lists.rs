//! How rules ask lists.

use fw_common::abi::blob::Condition;

use crate::policy::lists::ListMatch;
use crate::policy::model::Policy;

/// The condition that a list says yes, and whether it is inverted.
pub(super) fn asked(list: &ListMatch, policy: &Policy) -> (bool, Condition) {
    match list {
        ListMatch::Recent(recent) => {
            // Whoever reads rules has gathered their lists; what has no place drops packets.
            let place = policy
                .list(&recent.name)
                .map_or(u32::MAX, |list| list.place);
            let condition = Condition::Recent {
                place,
                flags: recent.flags(),
                seconds: recent.seconds,
                hits: recent.hits,
            };
            (recent.not, condition)
        }
    }
}
