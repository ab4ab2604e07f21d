//! Making a history that fails shorter.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::stepped::{History, Run, Stage, Turn};

/// The shortest history found in that time that still fails, and its run: whole sessions are left
/// out, then ever smaller pieces (delta debugging, A. Zeller). None: it did not fail again.
pub(crate) fn shrink(
    stage: &mut Stage,
    history: &History,
    time: Duration,
) -> Result<Option<(History, Run)>> {
    let until = Instant::now() + time;
    let mut best = history.clone();
    let run = stage.play(&best)?;
    if run.failure.is_none() {
        return Ok(None);
    }
    let mut best_run = run;
    let mut attempt = |best: &mut History, best_run: &mut Run, turns: Vec<Turn>| -> Result<bool> {
        let shorter = History {
            sessions: best.sessions,
            turns,
        };
        let run = stage.play(&shorter)?;
        let fails = run.failure.is_some();
        if fails {
            *best = shorter;
            *best_run = run;
        }
        Ok(fails)
    };
    for session in 0..history.sessions {
        let rest: Vec<Turn> = best
            .turns
            .iter()
            .filter(|turn| !matches!(turn, Turn::Session(who, _) if *who == session))
            .cloned()
            .collect();
        if rest.len() < best.turns.len() && Instant::now() < until {
            attempt(&mut best, &mut best_run, rest)?;
        }
    }
    let mut size = best.turns.len().div_ceil(2);
    loop {
        let mut from = 0;
        let mut shorter = false;
        while from < best.turns.len() {
            if Instant::now() >= until {
                return Ok(Some((best, best_run)));
            }
            let mut rest = best.turns.clone();
            rest.drain(from..(from + size).min(best.turns.len()));
            if attempt(&mut best, &mut best_run, rest)? {
                shorter = true;
            } else {
                from += size;
            }
        }
        if size > 1 {
            size = size.div_ceil(2);
        } else if !shorter {
            return Ok(Some((best, best_run)));
        }
    }
}
