//! Randomised histories against an oracle.
//!
//! | module | what |
//! |---|---|
//! | [`schema`] | the oracle in the database: plain tables that are written in the same transactions |
//! | [`known`], [`session`] | the oracle outside of it: what a client can say of its own counters |
//! | [`step`], [`script`] | what sessions do |
//! | [`concurrent`], [`client`], [`wire`], [`upkeep`] | many clients at once, with maintenance, and connections that are cut in COMMIT |

mod client;
mod concurrent;
mod known;
mod schema;
mod script;
mod session;
mod step;
mod upkeep;
mod wire;

use std::time::Duration;

use anyhow::Result;

use crate::options::Options;
use crate::report::PartReport;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    let concurrent = options.size(Duration::from_secs(4), options.time() * 2 / 3);
    report.step(
        "clients at once, beside maintenance of all kinds",
        |report| concurrent::run(options, report, concurrent),
    );
    Ok(())
}
