//! The torture harness: drives counterx through all that a database meets in its life, holds it
//! against an oracle all the time, and reports what was tried, how often, and what was found.
//!
//! | part | what it does |
//! |---|---|
//! | [`histories`] | random sessions through the whole API, beside maintenance of all kinds |
//! | [`orders`] | random serializable transactions, each round of which must have an order |
//! | [`tracks`] | tracked tables against their rows, beside DDL, kills and tracks that come and go |
//! | [`crashes`] | `kill -9` of every process, full disks, a crash between any two steps of a fold |
//! | [`replication`] | standbys, promotion, base backups, recovery to a point in time, publications |
//! | [`snapshots`] | old snapshots and long writers, while folds go on by the hundred thousand |
//! | [`moves`] | dump, restore, upgrade, templates, tablespaces |
//! | [`load`] | many connections, many names, long backlogs; memory |
//! | [`input`] | odd input to every function, look-alike objects, roles without rights |
//! | [`checks`] | the server's own checks, and those of other tools |
//!
//! # How it works
//! - Every random choice comes from the seed, which the report names. What a client does is the same
//!   for the same seed; when it does it is up to the scheduler, but in the parts that say otherwise.
//! - A *finding* is a promise that was not kept. One is enough to fail the run.
//! - A *figure* with a limit is reported as met or not. It fails nothing: machines differ.
//! - What could not be tried here is in the report as well, with the reason.

mod actors;
mod measure;
mod options;
mod report;

mod checks;
mod crashes;
mod histories;
mod input;
mod load;
mod moves;
mod orders;
mod replication;
mod snapshots;
mod tracks;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;

use options::{Options, Part};
use report::{PartReport, Report};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when nothing was found.
fn run(options: &Options) -> Result<bool> {
    let mut report = Report::open(options)?;
    for part in options.parts() {
        println!("\n== {}: {}", part.name(), part.title());
        let mut about = PartReport::new(part, options);
        let started = Instant::now();
        let result = match part {
            Part::Histories => histories::run(options, &mut about),
            Part::Orders => orders::run(options, &mut about),
            Part::Tracks => tracks::run(options, &mut about),
            Part::Crashes => crashes::run(options, &mut about),
            Part::Replication => replication::run(options, &mut about),
            Part::Snapshots => snapshots::run(options, &mut about),
            Part::Moves => moves::run(options, &mut about),
            Part::Load => load::run(options, &mut about),
            Part::Input => input::run(options, &mut about),
            Part::Checks => checks::run(options, &mut about),
        };
        // A part that breaks off has not shown what it is for.
        if let Err(error) = result {
            about.finding("the part broke off", report::causes(&error));
        }
        about.seconds = started.elapsed().as_secs_f64();
        about.print();
        report.put(about);
        // After each one, so that what breaks a later one loses nothing.
        report.write()?;
    }
    println!(
        "\nThe report is {}, the same for programs {}.",
        report.markdown_path().display(),
        report.json_path().display()
    );
    Ok(report.is_clean(options))
}
