//! Matches on what is in and about a packet besides addresses, ports and state.

use std::net::IpAddr;

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::super::traffic::{Endpoint, Place};
use super::{Spot, marks};
use crate::lab::mac;

/// One of these matches, for a rule that is about packets from one end to the other.
pub fn packet(
    random: &mut impl Rng,
    family: Family,
    spot: Spot,
    (from, to): (Endpoint, Endpoint),
) -> String {
    let not = if random.random_bool(0.25) { "! " } else { "" };
    match random.random_range(0..17) {
        16 => policy(random, spot),
        15 if family == Family::Ipv6 && random.random_bool(0.4) => frag(random),
        15 => physdev(random),
        0 | 1 => range(random, not, from, to),
        14 => text(random, not),
        2 if has_sender(spot) => link_source(random, not, from),
        2 | 3 => format!("-m length {not}--length {}", length(random)),
        4 => hops(random, not, family),
        5 => service(random, not),
        6 | 7 if family == Family::Ipv6 && random.random_bool(0.3) => routing(random, not),
        6 => {
            let kinds = ["unicast", "unicast", "broadcast", "multicast"];
            format!("-m pkttype {not}--pkt-type {}", one_of(random, &kinds))
        }
        7 => {
            let marks = ["0", "0x1", "0x0/0xff", "0x10/0xf0", "2/3"];
            format!("-m mark {not}--mark {}", one_of(random, &marks))
        }
        8 if has_owner(spot) => owner(random, not),
        8 => format!("-m cpu {not}--cpu 99"),
        9 | 10 => statistic(random, not),
        12 => marks::asked(random, not),
        11 => address_type(random, not, family),
        _ => time(random, not),
    }
}

/// Where bridges hand nothing to iptables, no packet has a port.
fn physdev(random: &mut impl Rng) -> String {
    let asked = [
        "! --physdev-is-bridged",
        "--physdev-is-bridged",
        "! --physdev-in eth0",
        "! --physdev-in veth+ ! --physdev-is-in",
        "! --physdev-is-in --physdev-is-bridged",
        "--physdev-in docker0 ! --physdev-is-bridged",
        "--physdev-in veth1",
        "--physdev-in veth+ --physdev-is-bridged",
        "! --physdev-in veth1 --physdev-is-in",
        "--physdev-out veth2 --physdev-is-bridged",
        "! --physdev-out veth+ --physdev-is-bridged",
        "--physdev-is-in",
        "--physdev-is-out --physdev-is-bridged",
    ];
    format!("-m physdev {}", one_of(random, &asked))
}

/// There is no IPsec here.
fn policy(random: &mut impl Rng, spot: Spot) -> String {
    let both = ["in", "out"];
    let ways: &[&str] = match spot {
        Spot::Prerouting | Spot::Input => &both[..1],
        Spot::Output | Spot::Postrouting | Spot::UserPostrouting => &both[1..],
        Spot::Forward => &both,
        // Reached from all sides.
        Spot::User => return physdev(random),
    };
    format!("-m policy --dir {} --pol none", one_of(random, ways))
}

/// Texts of more bytes than headers have by chance; payloads are made of the first of these.
fn text(random: &mut impl Rng, not: &str) -> String {
    let texts = [
        "--string FMT[bipw",
        "--string bip",
        "--string fmt[ --icase",
        "--string BIPW --icase",
        "--string fmt[",
        "--hex-string \"|0e151c23|\"",
        "--hex-string \"|1c 23|*18?F\"",
        "--hex-string \"|85 8c 93 9a a1 a8 af b6 bd c4|\"",
        "--hex-string \"|e5ecf3fa0108|\"",
        "--hex-string \"|e5ecf3fa0109|\"",
    ];
    let mut asked = format!("-m string {not}{}", one_of(random, &texts));
    asked += if random.random_bool(0.5) {
        " --algo bm"
    } else {
        " --algo kmp"
    };
    if random.random_bool(0.4) {
        asked += &format!(" --from {}", random.random_range(0..70));
    }
    if random.random_bool(0.4) {
        asked += &format!(" --to {}", random.random_range(70..300));
    }
    asked
}

fn routing(random: &mut impl Rng, not: &str) -> String {
    let asked = [
        "",
        "--rt-type 0",
        "--rt-type 253",
        "--rt-segsleft 0",
        "--rt-segsleft 1:255",
        "--rt-len 8",
        "--rt-len 24",
        "--rt-len 9",
    ];
    match one_of(random, &asked) {
        "" => "-m rt".into(),
        "--rt-type 0" if random.random_bool(0.5) => format!("-m rt --rt-type 0 {not}--rt-len 8"),
        asked => format!("-m rt {not}{asked}"),
    }
}

/// Nothing has a fragment header when rules see it.
fn frag(random: &mut impl Rng) -> String {
    let asked = [
        "-m frag",
        "-m frag --fragid 1:4294967295",
        "-m frag ! --fragid 7",
        "-m frag --fragfirst --fragmore",
        "-m frag ! --fraglen 9",
    ];
    one_of(random, &asked).to_owned()
}

fn address_type(random: &mut impl Rng, not: &str, family: Family) -> String {
    let types: &[&str] = match family {
        Family::Ipv4 => &[
            "LOCAL",
            "LOCAL",
            "UNICAST",
            "BROADCAST",
            "MULTICAST",
            "UNICAST,MULTICAST",
            "LOCAL,BROADCAST",
            "ANYCAST,BLACKHOLE",
        ],
        Family::Ipv6 => &[
            "LOCAL",
            "LOCAL",
            "UNICAST",
            "MULTICAST",
            "UNICAST,LOCAL",
            "LOCAL,MULTICAST",
            "UNSPEC",
            "ANYCAST",
        ],
    };
    let one = one_of(random, types);
    match random.random_range(0..4) {
        0 => format!("-m addrtype {not}--src-type {one}"),
        1 => {
            let other = one_of(random, types);
            format!("-m addrtype {not}--src-type {one} --dst-type {other}")
        }
        _ => format!("-m addrtype {not}--dst-type {one}"),
    }
}

/// What only TCP has, behind `-p tcp`.
pub fn segment(random: &mut impl Rng) -> String {
    let not = if random.random_bool(0.25) { "! " } else { "" };
    match random.random_range(0..3) {
        0 => {
            // No-operation, MSS, SACK permitted, timestamps.
            let kinds = ["1", "2", "4", "8"];
            format!("-m tcp {not}--tcp-option {}", one_of(random, &kinds))
        }
        1 => {
            let sizes = ["1460", "1260:1400", ":1300", "1361:", "0:65535"];
            format!("-m tcpmss {not}--mss {}", one_of(random, &sizes))
        }
        _ => {
            let flag = one_of(random, &["--ecn-tcp-cwr", "--ecn-tcp-ece"]);
            format!("-m ecn {not}{flag}")
        }
    }
}

/// `-f`, for IPv4: it stands before all matches.
pub fn fragment(random: &mut impl Rng) -> &'static str {
    if random.random_bool(0.8) {
        "! -f"
    } else {
        "-f"
    }
}

/// Whether the sender's link-layer address may be asked for: the kernel refuses it elsewhere.
fn has_sender(spot: Spot) -> bool {
    matches!(spot, Spot::Input | Spot::Forward | Spot::Prerouting)
}

fn has_owner(spot: Spot) -> bool {
    matches!(
        spot,
        Spot::Output | Spot::Postrouting | Spot::UserPostrouting
    )
}

fn range(random: &mut impl Rng, not: &str, from: Endpoint, to: Endpoint) -> String {
    let mut around = |address: IpAddr| {
        let below = random.random_range(0..300);
        let above = random.random_range(0..300);
        let aside = if random.random_bool(0.2) { 400 } else { 0 };
        match address {
            IpAddr::V4(v4) => {
                let bits = v4.to_bits().saturating_add(aside);
                let first: IpAddr = std::net::Ipv4Addr::from(bits.saturating_sub(below)).into();
                let last: IpAddr = std::net::Ipv4Addr::from(bits.saturating_add(above)).into();
                (first, last)
            }
            IpAddr::V6(v6) => {
                // Across a word's end, too.
                let far = u128::from(above) << (32 * (below % 4));
                let bits = v6.to_bits().saturating_add(aside.into());
                let first: IpAddr =
                    std::net::Ipv6Addr::from(bits.saturating_sub(below.into())).into();
                let last: IpAddr = std::net::Ipv6Addr::from(bits.saturating_add(far)).into();
                (first, last)
            }
        }
    };
    let (first, last) = around(from.address);
    let (third, fourth) = around(to.address);
    match random.random_range(0..3) {
        0 => format!("-m iprange {not}--src-range {first}-{last}"),
        1 => format!("-m iprange {not}--dst-range {third}-{fourth}"),
        _ => format!("-m iprange {not}--src-range {first}-{last} --dst-range {third}-{fourth}"),
    }
}

fn link_source(random: &mut impl Rng, not: &str, from: Endpoint) -> String {
    let address = match from.place {
        Place::Outside => mac::OUTSIDE,
        Place::Other => mac::OTHER,
        Place::Container1 => mac::CONTAINER1,
        Place::Container2 => mac::CONTAINER2,
        Place::Server => mac::SERVER,
    };
    let [a, b, c, d, e, f] = address;
    let f = if random.random_bool(0.8) { f } else { f ^ 1 };
    format!("-m mac {not}--mac-source {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

fn length(random: &mut impl Rng) -> String {
    let first = random.random_range(20..200);
    match random.random_range(0..4) {
        0 => format!("{first}"),
        1 => format!(":{first}"),
        2 => format!("{first}:"),
        _ => format!("{first}:{}", first + random.random_range(0..200)),
    }
}

fn hops(random: &mut impl Rng, not: &str, family: Family) -> String {
    let name = match family {
        Family::Ipv4 => "ttl",
        Family::Ipv6 => "hl",
    };
    let value = one_of(random, &["1", "63", "63", "64", "64", "0", "255"]);
    match random.random_range(0..3) {
        0 => format!("-m {name} {not}--{name}-eq {value}"),
        1 => format!("-m {name} --{name}-lt {value}"),
        _ => format!("-m {name} --{name}-gt {value}"),
    }
}

fn service(random: &mut impl Rng, not: &str) -> String {
    match random.random_range(0..4) {
        0 => {
            let values = ["0", "0x2e", "4", "0x0a"];
            format!("-m dscp {not}--dscp {}", one_of(random, &values))
        }
        1 => {
            let classes = ["EF", "BE", "AF11", "CS7"];
            format!("-m dscp {not}--dscp-class {}", one_of(random, &classes))
        }
        2 => {
            let values = [
                "0x10",
                "Normal-Service",
                "0x00/0x03",
                "0xb8/0xfc",
                "0xff/0x0f",
            ];
            format!("-m tos {not}--tos {}", one_of(random, &values))
        }
        _ => {
            let value = one_of(random, &["0", "1", "2", "3"]);
            format!("-m ecn {not}--ecn-ip-ect {value}")
        }
    }
}

fn owner(random: &mut impl Rng, not: &str) -> String {
    let users = ["0", "0-1000", "1-4294967294", "1000", "root"];
    let user = one_of(random, &users);
    match random.random_range(0..4) {
        0 => format!("-m owner {not}--socket-exists"),
        1 => format!("-m owner --socket-exists {not}--uid-owner {user}"),
        2 => format!("-m owner --uid-owner 0-70000 {not}--gid-owner {user}"),
        _ => format!("-m owner {not}--uid-owner {user}"),
    }
}

/// Chances whose outcome is certain, and counts, which are.
fn statistic(random: &mut impl Rng, not: &str) -> String {
    if random.random_bool(0.2) {
        let probability = one_of(random, &["0", "1"]);
        return format!("-m statistic --mode random {not}--probability {probability}");
    }
    let every = random.random_range(1..6);
    let packet = random.random_range(0..every);
    format!("-m statistic --mode nth {not}--every {every} --packet {packet}")
}

fn time(random: &mut impl Rng, not: &str) -> String {
    let hour = random.random_range(0..24);
    let minute = random.random_range(0..60);
    let later = (hour + random.random_range(1..23)) % 24;
    let zone = if random.random_bool(0.3) {
        " --kerneltz"
    } else {
        ""
    };
    let daytime = format!("--timestart {hour}:{minute:02} --timestop {later}:{minute:02}:30");
    let contiguous = if later < hour && random.random_bool(0.5) {
        " --contiguous"
    } else {
        ""
    };
    let days: Vec<String> = (1..=31)
        .filter(|_| random.random_bool(0.5))
        .map(|day| day.to_string())
        .collect();
    let days = if days.is_empty() {
        "1".to_owned()
    } else {
        days.join(",")
    };
    match random.random_range(0..5) {
        0 => format!("-m time {daytime}{contiguous}{zone}"),
        1 => format!("-m time {not}--weekdays Mon,We,5,Sunday{zone}"),
        2 => format!("-m time {not}--monthdays {days}{zone}"),
        3 => format!(
            "-m time {daytime} {not}--weekdays Tue,Thu,Sat{contiguous} {not}--monthdays {days}"
        ),
        _ => {
            let stop = one_of(random, &["2030-06-01T12:30:59", "2025", "2037-12"]);
            format!("-m time --datestart 2020-02-29 --datestop {stop}{zone}")
        }
    }
}

pub fn one_of<'a>(random: &mut impl Rng, all: &[&'a str]) -> &'a str {
    all.choose(random).expect("not empty")
}
