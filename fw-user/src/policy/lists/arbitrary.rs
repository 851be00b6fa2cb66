//! These matches at random.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::{ListMatch, Question, Recent};
use crate::policy::model::{Family, Match, Side};

/// A match that keeps a list. Lists of one name have one mask.
pub(crate) fn list_match(family: Family) -> impl Strategy<Value = Match> {
    recent(family).prop_map(|recent| Match::List(ListMatch::Recent(recent)))
}

fn recent(family: Family) -> impl Strategy<Value = Recent> {
    let whole: IpAddr = match family {
        Family::Ipv4 => Ipv4Addr::BROADCAST.into(),
        Family::Ipv6 => Ipv6Addr::from_bits(u128::MAX).into(),
    };
    let part: IpAddr = match family {
        Family::Ipv4 => Ipv4Addr::new(255, 255, 255, 0).into(),
        Family::Ipv6 => Ipv6Addr::from_bits(u128::MAX << 64).into(),
    };
    let part_name = match family {
        Family::Ipv4 => "networks4",
        Family::Ipv6 => "networks6",
    };
    let names = select(vec![
        ("DEFAULT", whole),
        ("SSH", whole),
        ("x.y-z", whole),
        (part_name, part),
    ]);
    let question = select(vec![
        Question::Set,
        Question::Check,
        Question::Update,
        Question::Remove,
    ]);
    let times = (0..100_000_u32, 0..=Recent::HITS_MAX);
    let flags = any::<[bool; 4]>();
    (names, question, times, flags).prop_map(
        |((name, mask), question, (seconds, hits), [not, reap, hops, source])| {
            let asks = matches!(question, Question::Check | Question::Update);
            Recent {
                not,
                question,
                seconds: if asks { seconds } else { 0 },
                reap: asks && reap && seconds != 0,
                hits: if asks { hits } else { 0 },
                hops: asks && hops,
                name: name.to_owned(),
                mask,
                side: if source {
                    Side::Source
                } else {
                    Side::Destination
                },
            }
        },
    )
}
