//! These matches at random.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::select;

use super::{Connlimit, Hashlimit, ListMatch, Question, Rate, Recent};
use crate::policy::match_table::hashlimit::{Burst, Speed, burst, seconds_of, speed};
use crate::policy::model::{Family, Match, Side};
use crate::policy::save::Word;
use crate::policy::source::Span;

/// A match that keeps a list. Lists of one name have one mask.
pub(crate) fn list_match(family: Family) -> impl Strategy<Value = Match> {
    prop_oneof![
        recent(family).prop_map(|recent| Match::List(ListMatch::Recent(recent))),
        hashlimit(family).prop_map(|limit| Match::List(ListMatch::Hashlimit(limit))),
        connlimit(family).prop_map(|limit| Match::List(ListMatch::Connlimit(limit))),
    ]
}

fn connlimit(family: Family) -> impl Strategy<Value = Connlimit> {
    let bits = 0..=Hashlimit::whole(family);
    (any::<[bool; 2]>(), 0..1_000_u32, bits).prop_map(|([above, source], limit, bits)| Connlimit {
        above,
        limit,
        bits,
        side: if source {
            Side::Source
        } else {
            Side::Destination
        },
        number: 0,
    })
}

/// Rates as iptables reads them, and prints them so that they are read as the same. The name says all, as
/// tables of one name have one limit.
fn hashlimit(family: Family) -> impl Strategy<Value = Hashlimit> {
    let whole = Hashlimit::whole(family);
    let unit = select(vec![1, 60, 3_600, 86_400_u32]);
    let packets = (unit, 1..5_000_u64, 1..10_000_u64).prop_map(|(unit, count, burst)| {
        let period = Rate::SECOND * u64::from(unit) / count;
        (Rate::Packets { period, burst }, unit)
    });
    let bytes = (1..5_000_u64, select(vec![1, 1 << 10, 1 << 20]), 0..9_u64).prop_map(
        |(count, factor, burst)| {
            let cost = Rate::cost_of(count * factor);
            (Rate::Bytes { cost, burst }, 1)
        },
    );
    let sizes = (
        prop_oneof![Just(0), 1..50_000_u32],
        prop_oneof![Just(0), 1..50_000_u32],
        prop_oneof![Just(Hashlimit::INTERVAL), 1..50_000_u32],
        proptest::option::of(1..5_000_000_u32),
    );
    let rest = (any::<bool>(), 0..16_u8, 0..=whole, 0..=whole);
    (prop_oneof![packets, bytes], sizes, rest).prop_filter_map(
        "iptables prints it exactly",
        move |(
            (rate, unit),
            (size, most, interval, lifetime),
            (above, mode, source, destination),
        )| {
            let mut limit = Hashlimit {
                above,
                rate,
                mode,
                source_bits: source,
                destination_bits: destination,
                name: "x".to_owned(),
                size,
                most,
                interval,
                lifetime: lifetime.unwrap_or_else(|| Hashlimit::usual_lifetime(rate, unit)),
            };
            let text = ListMatch::Hashlimit(limit.clone()).text(family);
            let after = |option: &str| {
                let mut words = text.split(' ').skip_while(|word| !word.starts_with(option));
                words.nth(1).map(|word| Word {
                    text: word.to_owned().into(),
                    span: Span::default(),
                })
            };
            let side = if above {
                "--hashlimit-above"
            } else {
                "--hashlimit-upto"
            };
            let burst = after("--hashlimit-burst").map(|word| burst(&word));
            let again = match (speed(&after(side)?).ok()?, rate, burst) {
                (Speed::Packets { period, .. }, Rate::Packets { burst, .. }, _) => {
                    Rate::Packets { period, burst }
                }
                (Speed::Bytes(cost), Rate::Bytes { .. }, None) => Rate::Bytes { cost, burst: 0 },
                (Speed::Bytes(cost), Rate::Bytes { .. }, Some(Ok(Burst(bytes))))
                    if Rate::bytes_of(cost) != 0 && bytes >= Rate::bytes_of(cost) =>
                {
                    Rate::Bytes {
                        cost,
                        burst: seconds_of(bytes, Rate::bytes_of(cost)),
                    }
                }
                _ => return None,
            };
            if again != rate || !limit.is_countable() {
                return None;
            }
            limit.name = format!(
                "{:x}",
                md(&format!("{limit:?}").replace("above: true", "above: false"))
            );
            Some(limit)
        },
    )
}

/// A number that tells texts apart.
fn md(text: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
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
    // A list of long entries is large.
    let hits = prop_oneof![30 => 0..=255_u32, 1 => 0..=4095_u32];
    let times = (0..100_000_u32, hits);
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
