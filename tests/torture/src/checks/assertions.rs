//! The suites and the load against a server with assertions: it stops at the first call that breaks
//! one of its own rules, where another would go on with whatever came of it.

use std::process::Command;

use super::storage;
use super::variant::Variant;
use crate::options::Options;
use crate::report::PartReport;

/// The tests of clusters that reach most of the code: each of the others is more of the same.
const CLUSTER_TESTS: [&str; 12] = [
    "bounded",
    "changes",
    "crash",
    "holds",
    "isolation",
    "lifecycle",
    "maintenance",
    "oracle",
    "snapshots",
    "tokens",
    "transactions",
    "two_phase",
];

pub(super) fn run(options: &Options, report: &mut PartReport, variant: &Variant) {
    report.step("building for a server with assertions", |_| {
        variant.build_extension()
    });
    let mut cluster_tests =
        String::from("cargo test --no-fail-fast --package counterx-cluster-tests");
    for test in CLUSTER_TESTS {
        cluster_tests.push_str(" --test ");
        cluster_tests.push_str(test);
    }
    let suites = [
        ("regression SQL with assertions", "scripts/regress regress"),
        (
            "isolation specs with assertions",
            "scripts/regress isolation",
        ),
        ("cluster tests with assertions", &cluster_tests),
    ];
    for (what, script) in suites {
        report.step(what, |report| {
            let mut command: Command = variant.command(script);
            variant.suite(options, report, what, &mut command)
        });
    }
    report.step(
        "checksums, amcheck and WAL under load, with assertions",
        |report| storage::run(options, report, Some(&variant.bin_dir())),
    );
}
