//! Rounds: every contender in turn, again and again, so that what disturbs the machine for a
//! while disturbs all of them.

use anyhow::{Result, ensure};

use super::Settings;
use super::contender::{Arena, Contender};
use super::report::{Outcome, Row, Spread};
use super::station::Cost;

/// What one run of a contender found.
pub type Run<'a> = dyn FnMut(&mut Arena, u64) -> Result<Cost> + 'a;

/// Measures all arenas but those left out, `settings.rounds` times in turn. `run` sends so many
/// packets and checks that they met their fate. A contender that fails once is out, with its reason.
pub fn rounds(
    settings: &Settings,
    title: &str,
    arenas: &mut [(Contender, Result<Arena>)],
    left_out: &[(Contender, Outcome)],
    run: &mut Run<'_>,
) -> Result<Vec<Row>> {
    let mut runs: Vec<Vec<f64>> = vec![Vec::new(); arenas.len()];
    let mut failures: Vec<Option<Outcome>> = arenas
        .iter()
        .map(|(contender, arena)| match arena {
            Ok(_) => left_out
                .iter()
                .find(|(left_out, _)| left_out == contender)
                .map(|(_, outcome)| outcome.clone()),
            Err(error) => Some(Outcome::Failed(format!("{error:#}"))),
        })
        .collect();
    let mut packets = vec![0; arenas.len()];
    for (place, (_, arena)) in arenas.iter_mut().enumerate() {
        settings.check()?;
        let (Ok(arena), None) = (arena, &failures[place]) else {
            continue;
        };
        match warm(settings, arena, run) {
            Ok(count) => packets[place] = count,
            Err(error) => failures[place] = Some(Outcome::Failed(format!("{error:#}"))),
        }
    }
    for round in 0..settings.rounds {
        for (place, (contender, arena)) in arenas.iter_mut().enumerate() {
            settings.check()?;
            let (Ok(arena), None) = (arena, &failures[place]) else {
                continue;
            };
            settings.step(&format!(
                "{title}: round {} of {}, {}",
                round + 1,
                settings.rounds,
                contender.name()
            ));
            match run(arena, packets[place]) {
                Ok(cost) => runs[place].push(cost.nanoseconds()),
                Err(error) => failures[place] = Some(Outcome::Failed(format!("{error:#}"))),
            }
        }
    }
    let rows = arenas.iter().zip(runs).zip(failures);
    Ok(rows
        .map(|(((contender, _), runs), failure)| Row {
            contender: *contender,
            label: None,
            outcome: match (failure, Spread::of(runs)) {
                (Some(outcome), _) => outcome,
                (None, Some(spread)) => Outcome::Measured(spread),
                (None, None) => Outcome::NotRun("no round was asked for".into()),
            },
            remark: None,
        })
        .collect())
}

/// Fills caches, and finds out how many packets make a run of the wanted length.
fn warm(settings: &Settings, arena: &mut Arena, run: &mut Run<'_>) -> Result<u64> {
    const FIRST: u64 = 256;
    let first = run(arena, FIRST)?;
    let each = first.nanoseconds().max(50.0);
    let wanted = settings.run.as_nanos() as f64 / each;
    // The first packets are slower than what comes: once more, nearer to the real number.
    let second = run(arena, (wanted / 4.0) as u64 + FIRST)?;
    let each = second.nanoseconds().max(50.0);
    Ok(((settings.run.as_nanos() as f64 / each) as u64).max(FIRST))
}

/// Whether as many arrived as were sent. The generator is faster than some receivers: the veth
/// ring holds 256 packets and loses what comes beyond.
pub fn ensure_same(what: &str, sent: u64, counted: u64) -> Result<()> {
    ensure!(
        sent == counted,
        "{what}: {sent} packets were sent and {counted} counted"
    );
    Ok(())
}
