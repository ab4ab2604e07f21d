//! Every function while the server's caches are thrown away at each chance: what was kept over a call
//! that may do that points to memory which is overwritten by then.

use super::variant::Variant;
use crate::options::Options;
use crate::report::PartReport;

pub(super) fn run(options: &Options, report: &mut PartReport, variant: &Variant) {
    let what = "regression SQL with caches discarded";
    report.step(what, |report| {
        let mut command = variant.command("scripts/regress regress");
        command
            .env("COUNTERX_CONF", "debug_discard_caches=1")
            .env("COUNTERX_TEST_LIMIT", "1800");
        variant.suite(options, report, what, &mut command)
    });
}
