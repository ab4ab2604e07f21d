//! The server's own checks, and those of other tools, of what counterx does to them.
//!
//! | step | what looks |
//! |---|---|
//! | [`storage`] | data checksums, amcheck, and `wal_consistency_checking` on a standby, with crashes |
//! | [`assertions`] | a server with assertions: the test suites, and the step above |
//! | [`caches`] | the same server with `debug_discard_caches`: every look-up may find its caches empty |
//! | [`memory`] | valgrind, for the pure logic and for whole servers |
//!
//! All but the first need a PostgreSQL that is built for them, and minutes: that is the long form.

mod assertions;
mod caches;
mod memory;
mod storage;
mod variant;

use anyhow::Result;

use crate::options::Options;
use crate::report::PartReport;
use variant::Variant;

/// The server with assertions, as `scripts/build-postgres` knows it.
const ASSERT: &str = "15-assert";

/// What the long form does beyond the short one.
const LONG: [&str; 3] = [
    "the tests and the load against a server with assertions",
    "every function with the server's caches discarded all the time",
    "memory that is used wrongly, by valgrind",
];

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    report.step("checksums, amcheck and WAL under load", |report| {
        storage::run(options, report, None)
    });

    if options.short {
        for what in LONG {
            report.skipped(
                what,
                "it needs a PostgreSQL that is built for it, which the long form does",
            );
        }
    } else {
        match Variant::prepare(ASSERT) {
            Ok(variant) => {
                assertions::run(options, report, &variant);
                caches::run(options, report, &variant);
                memory::run(options, report, &variant);
            }
            Err(error) => {
                for what in LONG {
                    report.skipped(
                        what,
                        format!("PostgreSQL could not be built here: {error:#}"),
                    );
                }
            }
        }
    }
    for tool in ["AddressSanitizer", "Miri"] {
        report.skipped(
            tool,
            "it needs a nightly compiler, and counterx is built with the stable one",
        );
    }
    Ok(())
}
