//! Matches that remember addresses. Times are so long that nothing is forgotten while a trial runs.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

/// `-m hashlimit`, of a rule that names a protocol with ports or none. All rules of one table have one
/// limit, which its name tells. Nothing comes back while a trial runs, or all of it at once, and tables
/// are so small that they are full now and then.
pub fn hashlimit(random: &mut impl Rng, family: Family, ports: bool) -> String {
    let side = *["upto", "above"].choose(random).expect("not empty");
    let kind = random.random_range(0..4);
    let (rate, burst) = match kind {
        0 => ("1/hour", " --hashlimit-burst 3"),
        1 => ("2/day", ""),
        // So much that it never ends.
        2 => ("1000000/sec", " --hashlimit-burst 1000000"),
        _ => ("1/day", " --hashlimit-burst 1"),
    };
    let modes: &[&str] = if ports {
        &[
            "srcip,dstport",
            "srcport,dstport",
            "srcip,srcport,dstip,dstport",
        ]
    } else {
        &["", "srcip", "dstip", "srcip,dstip"]
    };
    let mode_number = random.random_range(0..modes.len());
    let mode = match modes[mode_number] {
        "" => String::new(),
        mode => format!(" --hashlimit-mode {mode}"),
    };
    let (source, destination) = match (random.random_range(0..4), family) {
        (0, Family::Ipv4) => (" --hashlimit-srcmask 24", " --hashlimit-dstmask 7"),
        (0, Family::Ipv6) => (" --hashlimit-srcmask 64", " --hashlimit-dstmask 121"),
        (1, _) => (" --hashlimit-srcmask 0", ""),
        _ => ("", ""),
    };
    let size = *[2, 64].choose(random).expect("not empty");
    format!(
        "-m hashlimit --hashlimit-{side} {rate}{burst}{mode} --hashlimit-name h{kind}-{ports}-{mode_number}-{}-{size}-{}          --hashlimit-htable-size 1 --hashlimit-htable-max {size} --hashlimit-htable-expire 86400000{source}{destination}",
        source.len() + destination.len(),
        family.name(),
    )
}

/// `-m recent`. All rules of one list have one mask, which its name tells.
pub fn recent(random: &mut impl Rng, family: Family) -> String {
    let mut text = String::from("-m recent");
    if random.random_bool(0.2) {
        text += " !";
    }
    let question = *["set", "set", "rcheck", "update", "update", "remove"]
        .choose(random)
        .expect("not empty");
    text += &format!(" --{question}");
    if matches!(question, "rcheck" | "update") {
        if random.random_bool(0.5) {
            text += " --seconds 86400";
            if random.random_bool(0.3) {
                text += " --reap";
            }
        }
        if random.random_bool(0.6) {
            // More than the 32 that are kept, where all rules ask for fewer.
            let most = *[4, 4, 12, 40].choose(random).expect("not empty");
            text += &format!(" --hitcount {}", random.random_range(1..=most));
        }
        if random.random_bool(0.2) {
            text += " --rttl";
        }
    }
    let masks = match family {
        Family::Ipv4 => ["255.255.255.0", "255.0.255.255"],
        Family::Ipv6 => ["ffff:ffff:ffff:ffff::", "ffff::ffff"],
    };
    match random.random_range(0..6) {
        0..2 => {}
        2 | 3 => text += " --name other",
        4 => text += &format!(" --name networks-{} --mask {}", family.name(), masks[0]),
        _ => text += &format!(" --name odd-{} --mask {}", family.name(), masks[1]),
    }
    match random.random_range(0..4) {
        0 => text += " --rsource",
        1 => text += " --rdest",
        _ => {}
    }
    text
}

/// A whole rule with `-m connlimit`, but for its chain.
pub fn connlimit(random: &mut impl Rng, family: Family) -> String {
    let mut one_of = |words: &[&str]| (*words.choose(random).expect("not empty")).to_owned();
    // Difference 20.
    let who = one_of(&[
        "-p tcp -m tcp --syn",
        "-p tcp --syn -m conntrack --ctstate NEW",
    ]);
    let not = one_of(&["", "", "! "]);
    let side = one_of(&["upto", "above"]);
    let limit = one_of(&["0", "1", "2", "3", "5"]);
    let mask = match family {
        Family::Ipv4 => one_of(&["", " --connlimit-mask 24", " --connlimit-mask 0"]),
        Family::Ipv6 => one_of(&["", " --connlimit-mask 64", " --connlimit-mask 0"]),
    };
    let end = one_of(&["", "", " --connlimit-saddr", " --connlimit-daddr"]);
    let target = one_of(&["", "", " -j ACCEPT", " -j DROP"]);
    format!("{who} -m connlimit {not}--connlimit-{side} {limit}{mask}{end}{target}")
}
