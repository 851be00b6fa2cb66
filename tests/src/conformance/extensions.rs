//! Matches and targets beyond the core, as the grammar writes them.

use rand::Rng;

/// A limit whose answers do not depend on when exactly the packets come: its bucket gets nothing back
/// while a trial runs.
pub fn limit(random: &mut impl Rng) -> String {
    let burst = match random.random_range(0..4) {
        0 => String::new(),
        _ => format!(" --limit-burst {}", random.random_range(1..30)),
    };
    let rate = match random.random_range(0..5) {
        0 => return format!("-m limit{burst}"),
        1 => "1/hour",
        2 => "3/ho",
        3 => "2/hour",
        _ => return "-m limit --limit 1/day --limit-burst 1".into(),
    };
    format!("-m limit --limit {rate}{burst}")
}
