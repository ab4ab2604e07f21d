//! Odd input: every function of the extension is called with whatever its types allow, by whoever is
//! allowed to or not, in databases of every kind of encoding and with look-alikes of everything
//! around. It answers right or with an error for users; and an error has changed nothing.
//!
//! | file | what it tells |
//! |---|---|
//! | `functions` | which functions there are, from the catalog, and how they are called |
//! | `values` | odd values of each type |
//! | `model` | what the simple functions must answer |
//! | `state`, `errors` | all that can be changed; what an error may look like |
//! | `fuzz` | random calls against the model |
//! | `contexts` | calls in views, constraints, policies, triggers, parallel plans |
//! | `encodings` | databases of other encodings than UTF-8 |
//! | `lookalikes` | functions, operators, types and relations that want to be taken for others |
//! | `rights` | who may do what, and that nobody else can |
//! | `interrupts` | calls that are cancelled; the memory of a session of errors |
//!
//! The random calls are one session's, so a seed brings back each of them and its answer.

mod contexts;
mod encodings;
mod errors;
mod functions;
mod fuzz;
mod interrupts;
mod lookalikes;
mod model;
mod rights;
mod state;
mod values;

use std::time::Instant;

use anyhow::Result;
use counterx_cluster_tests::create_database;
use counterx_harness::Cluster;

use crate::options::Options;
use crate::report::PartReport;
use fuzz::{Fuzz, Until};

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    let cluster = Cluster::builder()
        .name("input")
        .conf("counterx.compaction_interval", "20ms")
        // With the codes of errors, and without the megabytes that led to them.
        .conf("log_line_prefix", "%m [%p] %e ")
        .conf("log_min_error_statement", "panic")
        .start()?;
    report.step("random calls", |report| {
        random_calls(&cluster, options, report)
    });
    report.step("calls in every place of a query", |report| {
        contexts::run(&cluster, report)
    });
    encodings::run(&cluster, options, report)?;
    report.step("look-alikes of everything around", |report| {
        lookalikes::run(&cluster, options, report)
    });
    report.step("an update beside look-alikes", |report| {
        lookalikes::updated(&cluster, options, report)
    });
    report.step(
        "names that are taken before the extension comes",
        |report| lookalikes::names_taken(&cluster, options, report),
    );
    report.step("roles without rights", |report| {
        rights::run(&cluster, options, report)
    });
    report.step("calls that are cancelled", |report| {
        interrupts::cancelled(&cluster, options, report)
    });
    report.step("memory of a session of errors", |report| {
        interrupts::leaks(&cluster, options, report)
    });
    report.step("the server's log", |_| errors::check_log(&cluster.log()));
    Ok(())
}

fn random_calls(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    let mut client = create_database(cluster, "fuzz")?;
    client.batch_execute(fuzz::ATTEMPT)?;
    let functions = functions::all(&mut client)?;
    report.tried("functions found in the catalog", functions.len() as u64);
    for argument in functions.iter().flat_map(|function| &function.arguments) {
        if !values::knows(&argument.type_name) {
            report.skipped(
                &format!("values of type {} other than NULL", argument.type_name),
                "nobody has said what is odd there",
            );
        }
    }
    let until = if options.short {
        Until::Calls(300)
    } else {
        Until::Time(Instant::now() + options.time() / 2)
    };
    Fuzz::new(client, &functions, options.seed_for("random calls"))?.run(&until, report)
}
