//! Marks of flows, and TCPMSS.

use rand::Rng;

use super::Spot;
use super::matches::one_of;

/// CONNMARK.
pub fn change(random: &mut impl Rng) -> String {
    let how = one_of(
        random,
        &[
            "--set-mark 0x1",
            "--set-mark 0x10/0xf0",
            "--set-xmark 0x3/0x1",
            "--and-mark 0xf0",
            "--or-mark 0x2",
            "--xor-mark 0x11",
            "--save-mark",
            "--save-mark",
            "--save-mark --mask 0xf",
            "--save-mark --nfmask 0xf --ctmask 0xf0",
            "--restore-mark",
            "--restore-mark",
            "--restore-mark --mask 0xf0",
            "--restore-mark --nfmask 0xf0 --ctmask 0xf",
        ],
    );
    let shift = match random.random_range(0..12) {
        0 => " --left-shift-mark 4",
        1 => " --right-shift-mark 1",
        _ => "",
    };
    format!("-j CONNMARK {how}{shift}")
}

/// `-m connmark`.
pub fn asked(random: &mut impl Rng, not: &str) -> String {
    let marks = ["0", "0x1", "0x0/0xff", "0x10/0xf0", "2/3", "0x1/0x1"];
    format!("-m connmark {not}--mark {}", one_of(random, &marks))
}

/// TCPMSS, with the match that it needs, for a rule of TCP.
pub fn segment_size(random: &mut impl Rng, spot: Spot) -> String {
    // Difference 16.
    let size = if matches!(spot, Spot::Forward) && random.random_bool(0.4) {
        "--clamp-mss-to-pmtu"
    } else {
        let sizes = ["536", "1000", "1220", "1360", "1400", "9000", "0"];
        &format!("--set-mss {}", one_of(random, &sizes))
    };
    let flags = one_of(random, &["SYN,RST SYN", "SYN SYN", "SYN,ACK SYN"]);
    format!("-m tcp --tcp-flags {flags} -j TCPMSS {size}")
}
