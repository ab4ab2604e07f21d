//! Compares counterx with what one would do without it, by pgbench, side by side on one machine.
//!
//! # How it works
//! - Every section has a throw-away cluster of its own, with fsync and synchronous_commit on.
//! - What is compared takes turns in short slices. Of each round the ratios are computed, and of
//!   those the median: a machine that gets slower meanwhile is slower for all alike.
//! - Every slice is checked: the counter, or the table, must have grown by exactly what pgbench
//!   says it has done.
//! - A missed target is a line in the report and not a failure. Only errors are.
//!
//! # What is not measured
//! A network. pgbench runs beside the server and takes its share of the processors.

mod bounded;
mod bulk;
mod contenders;
mod hot;
mod million;
mod options;
mod pgbench;
mod read;
mod report;
mod server;
mod snapshot;
mod stats;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use options::{Options, Section};
use report::Report;
use server::Server;

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("counterx-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    let mut sections = options.sections.clone();
    sections.sort_unstable();
    sections.dedup();
    let about = Server::start("bench-about", options.clients)?.about()?;
    let mut report = Report::new(options, about);
    for section in sections {
        let options = &report.options;
        println!("\nSection {}: {}", section.letter(), section.title());
        let mut measured = match section {
            Section::A => hot::run(options),
            Section::B => bulk::run(options),
            Section::C => read::run(options),
            Section::D => snapshot::run(options),
            Section::E => million::run(options),
            Section::F => bounded::run(options),
        }
        .with_context(|| format!("section {} failed", section.letter()))?;
        measured.load_average = server::load_average();
        report.sections.push(measured);
        // After each one, so that an error in a later one loses nothing.
        report.write()?;
    }
    println!("\n{}", report.markdown());
    println!(
        "This report is {}, its figures are in {}.",
        report.markdown_path().display(),
        report.json_path().display()
    );
    Ok(())
}
