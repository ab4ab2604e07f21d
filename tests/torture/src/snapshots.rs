//! Old snapshots and long transactions, while folds go on by the hundred thousand.
//!
//! The promise: an open transaction, however old, slows neither increments nor reads nor folds; what
//! it may cost is space, and that comes back when it ends. It is measured from the first to the last
//! of several windows of equally many folds, and once more without anybody who is old, as machines
//! have moods. How many pages a read visits is counted too: that depends on no mood, so there a
//! growth is a finding.

mod field;
mod old;
mod queue;
mod writers;

use anyhow::Result;

use crate::measure::busy_time;
use crate::options::Options;
use crate::report::PartReport;
use field::Field;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    if busy_time(std::process::id().cast_signed()).is_none() {
        let why = "this kernel keeps no /proc/PID/schedstat";
        report.skipped("how long processes are busy", why);
    }
    let field = Field::start(options)?;
    old::run(&field, options, report);
    writers::run(&field, options, report);
    queue::run(&field, options, report);
    Ok(())
}
