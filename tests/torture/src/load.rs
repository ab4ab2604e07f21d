//! Many connections, many names, many deltas; and the memory of every process meanwhile.

mod backlog;
mod crowd;
mod databases;
mod growth;
mod memory;
mod names;
mod zipf;

use anyhow::Result;

use crate::options::Options;
use crate::report::PartReport;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    crowd::run(options, report);
    databases::run(options, report);
    names::run(options, report);
    backlog::run(options, report);
    growth::run(options, report);
    Ok(())
}
