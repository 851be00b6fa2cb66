//! Matches that remember addresses. Times are so long that nothing is forgotten while a trial runs.

use fw_user::policy::model::Family;
use rand::Rng;
use rand::seq::IndexedRandom;

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
