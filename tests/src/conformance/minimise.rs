//! Shrinks what diverges: fewer packets and fewer rules that still do (Zeller's ddmin).

use anyhow::Result;

use super::compare::{Difference, Pair, Trial};

/// Replays allowed for one divergence; each loads both firewalls anew.
const REPLAYS: usize = 120;

/// The smallest trial found, and how it differs. Nothing if the trial does not differ when it is
/// run again.
pub fn minimise(pair: &mut Pair, trial: &Trial) -> Result<Option<(Trial, Difference)>> {
    let Some(difference) = pair.run(trial)? else {
        return Ok(None);
    };
    let mut search = Search {
        pair,
        best: (trial.clone(), difference),
        left: REPLAYS,
    };
    search.cut_tail();
    search.shrink(Part::Packets)?;
    search.shrink(Part::Rules)?;
    search.shrink(Part::Packets)?;
    Ok(Some(search.best))
}

#[derive(Clone, Copy)]
enum Part {
    Rules,
    Packets,
}

struct Search<'a> {
    pair: &'a mut Pair,
    best: (Trial, Difference),
    left: usize,
}

impl Search<'_> {
    /// Nothing after the first different delivery matters.
    fn cut_tail(&mut self) {
        if let Difference::Delivery { step, .. } = self.best.1 {
            self.best.0.traffic.steps.truncate(step + 1);
        }
    }

    fn shrink(&mut self, part: Part) -> Result<()> {
        let mut pieces = 2;
        loop {
            let length = length(&self.best.0, part);
            if length < 2 && !(matches!(part, Part::Rules) && length == 1) || self.left == 0 {
                return Ok(());
            }
            let chunk = length.div_ceil(pieces).max(1);
            let mut smaller = false;
            for start in (0..length).step_by(chunk) {
                let keep: Vec<usize> = (0..length)
                    .filter(|index| !(start..start + chunk).contains(index))
                    .collect();
                if self.still_differs(part, &keep)? {
                    smaller = true;
                    break;
                }
                if self.left == 0 {
                    return Ok(());
                }
            }
            if smaller {
                pieces = pieces.saturating_sub(1).max(2);
            } else if chunk == 1 {
                return Ok(());
            } else {
                pieces = (pieces * 2).min(length);
            }
        }
    }

    fn still_differs(&mut self, part: Part, keep: &[usize]) -> Result<bool> {
        self.left = self.left.saturating_sub(1);
        let mut trial = self.best.0.clone();
        match part {
            Part::Rules => trial.rules = trial.rules.only(keep),
            Part::Packets => {
                let steps = keep.iter().map(|&index| trial.traffic.steps[index].clone());
                trial.traffic.steps = steps.collect();
            }
        }
        let Some(difference) = self.pair.run(&trial)? else {
            return Ok(false);
        };
        // What a draw of ports makes of fewer packets is another matter.
        let drew = self.pair.reference.drew_ports() || self.pair.tested.drew_ports();
        if drew && self.pair.run(&trial)?.is_none() {
            return Ok(false);
        }
        if std::mem::discriminant(&difference) != std::mem::discriminant(&self.best.1) {
            // Another defect; it will be found by itself.
            return Ok(false);
        }
        self.best = (trial, difference);
        self.cut_tail();
        Ok(true)
    }
}

fn length(trial: &Trial, part: Part) -> usize {
    match part {
        Part::Rules => trial.rules.count(),
        Part::Packets => trial.traffic.steps.len(),
    }
}
