//! Section B: a million calls in one statement.

use anyhow::Result;

use crate::contenders::{CREATE, RESET};
use crate::options::{Options, Section};
use crate::pgbench::{Pgbench, Protocol};
use crate::report::{Measured, Target, Wanted};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

const CALLS: i64 = 1_000_000;

/// Seconds.
const TARGET: f64 = 0.5;

/// What, how, and what it has counted by now. The last one counts nothing.
const STATEMENTS: [(&str, &str, &str); 3] = [
    (
        "a million calls of counter_incr, 1,000 names",
        "SELECT count(counter_incr('bulk-' || i % 1000)) FROM generate_series(1, 1000000) AS i;",
        "SELECT sum(counter_value('bulk-' || i))::bigint FROM generate_series(0, 999) AS i",
    ),
    (
        "INSERT ... SELECT of a million rows, no index",
        "INSERT INTO plain_log SELECT 'bulk-' || i % 1000, 1 FROM generate_series(1, 1000000) AS i;",
        "SELECT count(*) FROM plain_log",
    ),
    (
        "the same million names, not counted",
        "SELECT count('bulk-' || i % 1000) FROM generate_series(1, 1000000) AS i;",
        "SELECT 0::bigint",
    ),
];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("bench-bulk", options.clients)?;
    server.execute(CREATE)?;
    let mut seconds = vec![Vec::new(); STATEMENTS.len()];
    server.execute("CHECKPOINT")?;
    for round in 0..options.rounds {
        server.execute(RESET)?;
        for turn in turns(round, STATEMENTS.len()) {
            let (what, statement, total) = STATEMENTS[turn];
            let before: i64 = server.one(total)?;
            let took = Pgbench::new(&server.cluster, 1, statement)
                .protocol(Protocol::Simple)
                .run_once()?;
            println!(
                "  round {}: {what}: {}",
                round + 1,
                Unit::Seconds.format(took)
            );
            seconds[turn].push(took);
            let counts = total != STATEMENTS[2].2;
            server.check(what, total, before + if counts { CALLS } else { 0 })?;
            server.settle()?;
        }
    }

    let figures = STATEMENTS
        .iter()
        .zip(seconds)
        .map(|((what, ..), seconds)| Series::new(*what, Unit::Seconds, seconds))
        .collect::<Result<Vec<_>>>()?;
    let mut measured = Measured::new(
        Section::B,
        "One statement, one transaction, one client, in a new connection each time: with its \
         commit, as the client sees it. The third statement makes the names and does nothing with \
         them: so much of the others' time is not counting.",
    );
    measured.ratios = vec![
        figures[0].ratio_to(
            "a million calls, of the time of INSERT ... SELECT",
            &figures[1],
        )?,
        figures[0].ratio_to(
            "a million calls, times the time of making the names",
            &figures[2],
        )?,
    ];
    measured.targets = vec![Target::new(figures[0].clone(), Wanted::AtMost(TARGET))];
    measured.figures = figures;
    Ok(measured)
}
