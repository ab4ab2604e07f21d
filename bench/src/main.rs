//! Compares counterx with what people use today, by pgbench, side by side on one machine.
//!
//! # How it works
//! - Every section has a throw-away cluster of its own, all with the same settings, fsync and
//!   synchronous_commit on among them.
//! - What is compared takes turns in short slices. Of each round the ratios are computed, and of
//!   those the median: a machine that gets slower meanwhile is slower for all alike.
//! - Every slice is checked: the counter, or the table, must have grown by exactly what pgbench
//!   says it has done.
//! - The report is written after each section. A section that fails is in it as failed; the others
//!   go on.
//! - A goal that is not reached is a line in the report and not a failure. Only errors are.
//!
//! # What is not measured
//! A network. pgbench runs beside the server and takes its share of the processors.

mod goals;
mod job;
mod options;
mod peers;
mod pgbench;
mod plot;
mod proc;
mod publish;
mod race;
mod redis;
mod report;
mod sections;
mod server;
mod stats;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;

use options::Options;
use report::{Before, Measured, Report};
use server::{Server, load_average, now};

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match options.publish() {
        Some(directory) => {
            Report::read(&options.output).and_then(|report| publish::publish(&report, &directory))
        }
        None => run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("counterx-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let about = Server::start("about", options)?.about()?;
    let mut report = if options.append() && Report::is_in(&options.output) {
        let mut report = Report::read(&options.output)?;
        report.about = about;
        report
    } else {
        Report::new(about)
    };
    let start = Instant::now();
    let mut failed = Vec::new();
    for section in options.sections() {
        if options.resume && report.has(section) {
            println!("\n{}: in the report already", section.name());
            continue;
        }
        println!(
            "\n{}: {} (after {:.0} s)",
            section.name(),
            section.title(),
            start.elapsed().as_secs_f64()
        );
        let before = Before {
            start: Instant::now(),
            started: now(),
            load_average: load_average(),
        };
        let mut measured = sections::run(section, options).unwrap_or_else(|error| {
            eprintln!("  {} failed: {error:#}", section.name());
            failed.push(section.name());
            Measured::skipped(section, format!("it failed: {error:#}"))
        });
        measured.set_conditions(options, before);
        report.add(measured);
        // After each one, so that whatever ends a later one loses nothing.
        report.write(&options.output)?;
    }
    println!("\n{}", report.markdown());
    println!(
        "This report, its figures and its plots are in {}. It took {:.0} s.",
        options.output.display(),
        start.elapsed().as_secs_f64()
    );
    ensure!(
        failed.is_empty(),
        "these sections failed: {}",
        failed.join(", ")
    );
    Ok(())
}
