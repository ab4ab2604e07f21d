//! Randomised histories against an oracle.
//!
//! | module | what |
//! |---|---|
//! | [`schema`] | the oracle in the database: plain tables that are written in the same transactions |
//! | [`known`], [`session`] | the oracle outside of it: what a client can say of its own counters |
//! | [`step`], [`script`] | what sessions do |
//! | [`concurrent`], [`client`], [`wire`], [`upkeep`] | many clients at once, with maintenance, and connections that are cut in COMMIT |
//! | [`replays`] | histories that failed once |
//! | [`stepped`], [`shrink`] | one step at a time, the same for the same seed; and shorter ones that still fail |

mod client;
mod concurrent;
mod known;
mod replays;
mod schema;
mod script;
mod session;
mod shrink;
mod step;
mod stepped;
mod upkeep;
mod wire;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::options::Options;
use crate::report::PartReport;
use stepped::{History, Stage};

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    if let Some(seed) = options.history {
        report.step("one history", |report| {
            let mut stage = Stage::set_up(true)?;
            one(&mut stage, options, report, seed, true)
        });
        return Ok(());
    }
    let concurrent = options.size(Duration::from_secs(3), options.time() * 2 / 3);
    report.step(
        "clients at once, beside maintenance of all kinds",
        |report| concurrent::run(options, report, concurrent),
    );
    report.step("histories that failed once", |report| {
        for preloaded in [true, false] {
            let mut stage = Stage::set_up(preloaded)?;
            for (what, history) in replays::histories() {
                let run = stage.play(&history)?;
                report.tried("histories that failed once", 1);
                if let Some(failure) = run.failure {
                    let library = if preloaded {
                        ""
                    } else {
                        "without shared_preload_libraries: "
                    };
                    report.finding(
                        what,
                        format!("{library}{failure:#}\n{}", run.trace.join("\n")),
                    );
                }
            }
        }
        Ok(())
    });
    let stepped = options.size(Duration::from_secs(3), options.time() / 3);
    report.step("one step at a time, the same for the same seed", |report| {
        let mut stage = Stage::set_up(true)?;
        let mut rng = StdRng::seed_from_u64(options.seed_for("stepped histories"));
        let until = Instant::now() + stepped;
        let mut number = 0_u64;
        while number == 0 || Instant::now() < until {
            // Short enough to be typed.
            let seed = u64::from(rng.random::<u32>());
            one(&mut stage, options, report, seed, number.is_multiple_of(20))?;
            number += 1;
        }
        Ok(())
    });
    Ok(())
}

/// Plays the history of a seed; twice, when that is asked for, as it must be the same both times.
fn one(
    stage: &mut Stage,
    options: &Options,
    report: &mut PartReport,
    seed: u64,
    twice: bool,
) -> Result<()> {
    let history = History::of(seed, options.size(60, 120));
    let run = stage.play(&history)?;
    report.tried("histories, step by step", 1);
    report.tried("their steps", run.trace.len() as u64);
    report.tried("looks at all counters in a snapshot", run.looks);
    report.tried("steps that waited for another session", run.waits);
    report.tried(
        "answers about shared bounded counters, foreseen",
        run.predicted,
    );
    let directory = options.output.join("histories");
    let file = |name: &str, trace: &[String]| -> Result<()> {
        fs::create_dir_all(&directory)?;
        let path = directory.join(name);
        fs::write(&path, trace.join("\n") + "\n")
            .with_context(|| format!("could not write {}", path.display()))
    };
    let Some(failure) = run.failure else {
        if twice {
            let again = stage.play(&history)?;
            if let Some(failure) = again.failure {
                return Err(failure.context(format!("history {seed} failed the second time")));
            }
            file(&format!("{seed}.trace"), &run.trace)?;
            let differs = (run.trace.iter().zip(&again.trace)).find(|(one, other)| one != other);
            if let Some((one, other)) = differs {
                file(&format!("{seed}-again.trace"), &again.trace)?;
                bail!("history {seed} is not the same when it is played again:\n{one}\n{other}");
            }
            ensure!(
                run.trace.len() == again.trace.len(),
                "history {seed} has two lengths"
            );
            report.tried("histories played again, with the same answers", 1);
        }
        return Ok(());
    };
    file(&format!("{seed}.trace"), &run.trace)?;
    let form = if options.short { " SHORT=yes" } else { "" };
    let mut text = format!(
        "{failure:#}\nAgain: make torture PARTS=histories HISTORY={seed}{form}\n\
         All of it is in {}.\n",
        directory.join(format!("{seed}.trace")).display()
    );
    let time = options.size(Duration::from_secs(60), Duration::from_secs(180));
    match shrink::shrink(stage, &history, time)? {
        None => text.push_str("It did not fail the second time.\n"),
        Some((shortest, run)) => {
            text.push_str(&format!(
                "The shortest one that fails has {} steps, with functions of the oracle's \
                 (tests/torture/src/histories/schema.rs):\n{}\n{:#}\n",
                shortest.turns.len(),
                run.trace.join("\n"),
                run.failure.context("it has failed")?
            ));
        }
    }
    bail!(text)
}
