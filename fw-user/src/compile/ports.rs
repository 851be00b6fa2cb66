//! Port lists as disjoint ranges.

use crate::policy::model::PortRange;

/// Sorts the ranges and joins those that overlap or touch.
pub(super) fn join(ranges: &[PortRange]) -> Vec<(u16, u16)> {
    let mut sorted: Vec<_> = ranges
        .iter()
        .map(|range| (range.first, range.last))
        .collect();
    sorted.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match joined.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// What two ranges have in common.
pub(super) fn intersect(a: (u16, u16), b: (u16, u16)) -> Option<(u16, u16)> {
    let common = (a.0.max(b.0), a.1.min(b.1));
    (common.0 <= common.1).then_some(common)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u16, u16)]) -> Vec<PortRange> {
        list.iter()
            .map(|&(first, last)| PortRange { first, last })
            .collect()
    }

    #[test]
    fn neighbours_and_overlaps_are_joined() {
        assert_eq!(join(&ranges(&[(82, 90), (80, 80), (81, 81)])), [(80, 90)]);
        assert_eq!(
            join(&ranges(&[(1, 9), (3, 5), (11, 12)])),
            [(1, 9), (11, 12)]
        );
        assert_eq!(join(&ranges(&[(65535, 65535), (0, 65535)])), [(0, 65535)]);
        assert_eq!(join(&[]), []);
    }

    #[test]
    fn ranges_intersect_or_do_not() {
        assert_eq!(intersect((1, 100), (50, 200)), Some((50, 100)));
        assert_eq!(intersect((1, 49), (50, 200)), None);
    }
}
