//! Making a round that fails shorter: whole clients are left out, then one step after the other.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::plan::{Plan, Turn};
use super::stage::{Run, Stage};

/// The shortest round found in that time that still fails, and its run. None: it did not fail again.
pub(super) fn shrink(
    stage: &mut Stage,
    plan: &Plan,
    time: Duration,
) -> Result<Option<(Plan, Run)>> {
    let until = Instant::now() + time;
    // Which conflict ends a transaction with 40001 is also a matter of what lies on one page.
    let mut best = (plan.clone(), stage.play(plan)?);
    for _ in 0..4 {
        if best.1.finding.is_some() {
            break;
        }
        best.1 = stage.play(plan)?;
    }
    if best.1.finding.is_none() {
        return Ok(None);
    }
    for client in 0..plan.clients {
        let rest = best.0.turns.iter().copied();
        let rest = rest.filter(|turn| of(turn) != Some(client)).collect();
        attempt(stage, &mut best, rest)?;
    }
    loop {
        let before = best.0.turns.len();
        let mut place = 0;
        while place < best.0.turns.len() {
            if Instant::now() >= until {
                return Ok(Some(best));
            }
            let mut rest = best.0.turns.clone();
            rest.remove(place);
            if !attempt(stage, &mut best, rest)? {
                place += 1;
            }
        }
        if best.0.turns.len() == before {
            return Ok(Some(best));
        }
    }
}

fn attempt(stage: &mut Stage, best: &mut (Plan, Run), turns: Vec<Turn>) -> Result<bool> {
    let shorter = Plan {
        turns,
        ..best.0.clone()
    };
    let run = stage.play(&shorter)?;
    let fails = run.finding.is_some();
    if fails {
        *best = (shorter, run);
    }
    Ok(fails)
}

fn of(turn: &Turn) -> Option<usize> {
    match turn {
        Turn::Call { client, .. } | Turn::Commit(client) | Turn::Rollback(client) => Some(*client),
        Turn::Compact => None,
    }
}
