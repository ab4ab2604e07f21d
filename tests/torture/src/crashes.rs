//! Crashes and full disks.
//!
//! One cluster goes through all of it, a step a database. Beside each step there is a load with the
//! oracle in the same transactions, a checker that compares all counters in one snapshot again and
//! again, and a ledger of commits that were acknowledged. After each crash, error or pause:
//!
//! - counters equal the oracle, and no acknowledged commit is missing;
//! - every lane folds what was written after it;
//! - what the interrupted session meant to do is done or not done, as it must be at that point, can be
//!   done again, and has nothing reserved.
//!
//! At the end of a step all that was prepared is resolved, all is folded, and both logs of each lane
//! are truncated again. `fsync` is off: what a power cut would lose is not what this is about, and a
//! killed process loses nothing by it.

mod disk;
mod hits;
mod kills;
mod points;
mod rig;
mod tracks;

use anyhow::Result;

use crate::options::Options;
use crate::report::{PartReport, Unit};
use rig::Rig;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    let mut rig = Rig::start()?;
    report.step("processes killed, servers stopped", |report| {
        kills::run(&mut rig, options, report)
    });
    if rig.has_failpoints()? {
        report.step("crash, error and pause at points of sessions", |report| {
            points::sessions(&mut rig, options, report)
        });
        report.step("crash, error and pause at points of the worker", |report| {
            points::worker(&mut rig, options, report)
        });
        report.step("crash, error and pause at points of hits", |report| {
            hits::run(&mut rig, options, report)
        });
        report.step("crash, error and pause at points of tracks", |report| {
            tracks::run(&mut rig, options, report)
        });
        if options.short {
            report.skipped(
                "crash, error and pause as a worker ends",
                "that takes too long for the short form",
            );
        } else {
            report.step("crash, error and pause as a worker ends", |report| {
                points::ending(&mut rig, report)
            });
        }
        report.skipped(
            "that a release build has no failpoints",
            "the build that is installed is a debug one; scripts/build looks at each release build",
        );
    } else {
        report.skipped(
            "crash, error and pause between any two steps",
            "the build that is installed is a release one, which has no failpoints",
        );
        report.step("a release build has no failpoints", |report| {
            report.tried("release build looked through for failpoints", 1);
            rig.library_has_no_failpoints()
        });
    }
    // The short form has time for one of them.
    let (tables, wal) = ("full disk under the tables", "full disk under the WAL");
    let one = options.seed_for("full disks") % 2;
    let why = "the short form tries one kind of full disk, by its seed";
    if options.short && one == 1 {
        report.skipped(tables, why);
    } else {
        report.step(tables, |report| disk::data(&mut rig, report));
    }
    if options.short && one == 0 {
        report.skipped(wal, why);
    } else {
        report.step(wal, |report| disk::wal(&mut rig, options, report));
    }
    let survived = |value: u64| f64::from(u32::try_from(value).unwrap_or(u32::MAX));
    report.figure("crashes survived", survived(rig.crashes), Unit::Count);
    report.figure("acknowledged commits", survived(rig.acked), Unit::Count);
    report.figure(
        "comparisons with the oracle",
        survived(rig.checks),
        Unit::Count,
    );
    Ok(())
}
