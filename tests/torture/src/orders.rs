//! Random rounds of SERIALIZABLE transactions, each of which must have an order.
//!
//! A round is three or four transactions at once, over three counters with and without bounds, a few
//! holds and tokens, and the rows of a table. One thread takes the steps, so a seed brings a round
//! back. Each client notes what it was told. When all have ended, an order of those that have
//! committed is searched for in which a simple [`model`], one transaction after the other, gives each
//! answer and the end. If there is none, it is a finding. A transaction that has failed was not there; one
//! that only reads was.
//!
//! # Refusals
//! A refusal is an answer, and has to be explained by the order, as a grant has. But a bounded counter
//! refuses what *may* not be there, if others roll back or do not. So it is explained as well
//! when it is the reservations of others that are missing: those of transactions that were in flight
//! when the call was answered, and that do not come *before* it in the order. (What those before
//! have taken is part of the value there.) That much is missing and no more: a refusal with more
//! left than that is a finding, and so is a `counter_take_up_to` that takes less. What of a reservation
//! cannot be told from answers (a replayed token, a drop, a call that waits) is
//! taken to be anything that it can be.
//!
//! One round in five is of REPEATABLE READ, where [`repeatable`] says what holds.
//!
//! | module | what |
//! |---|---|
//! | [`plan`] | what a round does |
//! | [`stage`] | plays it |
//! | [`model`], [`repeatable`] | what must come of it |
//! | [`known`] | rounds that failed once |
//! | [`shrink`] | shorter ones that still fail |

mod known;
mod model;
mod plan;
mod repeatable;
mod shrink;
mod stage;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::measure::float;
use crate::options::Options;
use crate::report::{PartReport, Unit};
use plan::Plan;
use stage::{Run, Stage};

/// So many are shown, with the shortest round that fails; the others are counted.
const SHOWN: u64 = 5;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    let mut stage = Stage::set_up()?;
    if let Some(seed) = options.history {
        let plan = Plan::of(seed);
        let run = stage.play(&plan)?;
        println!("{}\n{}", Stage::preamble(), run.trace.join("\n"));
        if run.finding.is_some() {
            let text = show(&mut stage, &plan, run, Some(seed))?;
            report.finding("a round without an order", text);
        }
        report.tried("rounds", 1);
        return Ok(());
    }
    for (what, plan) in known::rounds() {
        let run = stage.play(&plan)?;
        report.tried("rounds that failed once", 1);
        if run.finding.is_some() {
            let text = show(&mut stage, &plan, run, None)?;
            report.finding(what, text);
        }
    }
    let time = options.size(Duration::from_secs(15), options.time());
    let mut rng = StdRng::seed_from_u64(options.seed_for("orders"));
    let started = Instant::now();
    let (mut rounds, mut found) = (0, 0);
    let mut errors: BTreeMap<String, u64> = BTreeMap::new();
    while rounds == 0 || started.elapsed() < time {
        // Short enough to be typed.
        let seed = u64::from(rng.random::<u32>());
        let plan = Plan::of(seed);
        let run = stage.play(&plan)?;
        rounds += 1;
        let level = if plan.serializable {
            "SERIALIZABLE"
        } else {
            "REPEATABLE READ"
        };
        let kind = format!("rounds, {level}, {}", plan.features.text());
        report.tried(&kind, 1);
        report.tried("transactions that committed", run.committed);
        report.tried("their answers", run.answers);
        report.tried("calls that waited for another transaction", run.waits);
        for (code, times) in &run.errors {
            *errors.entry(code.clone()).or_insert(0) += times;
        }
        if run.finding.is_some() {
            found += 1;
            report.tried(&format!("findings in {kind}"), 1);
            if found <= SHOWN {
                let text = show(&mut stage, &plan, run, Some(seed))?;
                report.finding("a round without an order", text);
            }
        }
    }
    for (code, times) in errors {
        report.tried(&format!("transactions that failed with {code}"), times);
    }
    report.figure(
        "rounds",
        float(rounds) / started.elapsed().as_secs_f64(),
        Unit::PerSecond,
    );
    Ok(())
}

/// What was found, as SQL, and as short as it gets.
fn show(stage: &mut Stage, plan: &Plan, run: Run, seed: Option<u64>) -> Result<String> {
    let mut text = run.finding.clone().unwrap_or_default();
    if let Some(seed) = seed {
        text.push_str(&format!(
            "\nAgain: make torture PARTS=orders HISTORY={seed}"
        ));
    }
    let shortest = match shrink::shrink(stage, plan, Duration::from_secs(10))? {
        Some((_, run)) => run,
        None => {
            text.push_str("\nIt did not fail the second time.");
            run
        }
    };
    text.push_str(&format!(
        "\nThe shortest round that fails, after tests/torture/src/orders/stage.rs has made its types:\n{}\n{}",
        shortest.trace.join("\n"),
        shortest.finding.unwrap_or_default()
    ));
    Ok(text)
}
