//! A million calls in one statement, and triggers on many rows.

use anyhow::Result;

use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::peers::{Keys, Peer};
use crate::pgbench::{Pgbench, Protocol};
use crate::report::Measured;
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

const CALLS: i64 = 1_000_000;

/// What, how, what it has counted by now, and by how much that grows.
struct Statement {
    what: &'static str,
    sql: &'static str,
    total: &'static str,
    grows: i64,
}

const STATEMENTS: [Statement; 6] = [
    Statement {
        what: "a million calls of counter_incr, 1,000 names",
        sql: "SELECT count(counter_incr('bulk-' || i % 1000)) FROM generate_series(1, 1000000) AS i;",
        total: "SELECT counter_sum('bulk-')::bigint",
        grows: CALLS,
    },
    Statement {
        what: "INSERT ... SELECT of a million rows, no index",
        sql: "INSERT INTO plain_log SELECT 'bulk-' || i % 1000, 1 FROM generate_series(1, 1000000) AS i;",
        total: "SELECT count(*) FROM plain_log",
        grows: CALLS,
    },
    Statement {
        what: "the same million names, not counted",
        sql: "SELECT count('bulk-' || i % 1000) FROM generate_series(1, 1000000) AS i;",
        total: "SELECT 0::bigint",
        grows: 0,
    },
    Statement {
        what: "100,000 rows into a table whose statement trigger calls counter_incr once a name",
        sql: "INSERT INTO counted_items SELECT 'item-' || i % 1000, 1 FROM generate_series(1, 100000) AS i;",
        total: "SELECT counter_sum('item-')::bigint",
        grows: 100_000,
    },
    Statement {
        what: "the same, a statement trigger that upserts counts",
        sql: "INSERT INTO statement_items SELECT 'item-' || i % 1000, 1 FROM generate_series(1, 100000) AS i;",
        total: "SELECT coalesce(sum(n), 0)::bigint FROM statement_counts",
        grows: 100_000,
    },
    Statement {
        what: "the same, a row trigger that upserts a count",
        sql: "INSERT INTO row_items SELECT 'item-' || i % 1000, 1 FROM generate_series(1, 100000) AS i;",
        total: "SELECT coalesce(sum(n), 0)::bigint FROM row_counts",
        grows: 100_000,
    },
];

const COUNTED: &str = "
    CREATE TABLE counted_items (name text NOT NULL, delta bigint NOT NULL);
    CREATE FUNCTION count_items() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM counter_incr(name, n)
        FROM (SELECT name, count(*) AS n FROM new_items GROUP BY name) AS counts;
        RETURN NULL;
    END $$;
    CREATE TRIGGER count AFTER INSERT ON counted_items
        REFERENCING NEW TABLE AS new_items
        FOR EACH STATEMENT EXECUTE FUNCTION count_items();";

const TABLES: [Peer; 3] = [Peer::Insert, Peer::StatementTrigger, Peer::RowTrigger];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("bulk", options)?;
    server.execute(COUNTED)?;
    for peer in TABLES {
        server.execute(&peer.create(Keys::Hot))?;
    }
    let mut seconds = vec![Vec::new(); STATEMENTS.len()];
    server.execute("CHECKPOINT")?;
    for round in 0..options.rounds() {
        for peer in TABLES {
            server.execute(&peer.reset(Keys::Hot))?;
        }
        server.execute("TRUNCATE counted_items")?;
        for turn in turns(round, STATEMENTS.len()) {
            let Statement {
                what,
                sql,
                total,
                grows,
            } = STATEMENTS[turn];
            let before: i64 = server.one(total)?;
            let took = Pgbench::new(&server.cluster, 1, sql)
                .protocol(Protocol::Simple)
                .run_once()?;
            println!(
                "    round {}: {what}: {}",
                round + 1,
                Unit::Seconds.format(took)
            );
            seconds[turn].push(took);
            server.check(what, total, before + grows)?;
            server.fold()?;
        }
    }

    let figures = STATEMENTS
        .iter()
        .zip(seconds)
        .map(|(statement, seconds)| Series::new(statement.what, Unit::Seconds, seconds))
        .collect::<Result<Vec<_>>>()?;
    let [calls, insert, names, counted, statement, row] = &figures[..] else {
        unreachable!("as many figures as statements")
    };
    let mut measured = Measured::new(
        Section::Bulk,
        "One statement, one transaction, one client, in a new connection each time: with its \
         commit, as the client sees it. The third statement makes the names and does nothing with \
         them: so much of the others' time is not counting.",
    );
    // A ratio of speeds is that of times the other way round.
    let of_insert = insert.ratio_to(
        "a million calls, times the speed of INSERT ... SELECT",
        calls,
    )?;
    measured.goal(Goal::MillionOfInsert, of_insert.clone());
    measured.ratios = vec![
        of_insert,
        calls.ratio_to("a million calls, times the time of making the names", names)?,
        statement.ratio_to(
            "rows whose trigger calls counter_incr, times the speed of those whose statement trigger upserts",
            counted,
        )?,
        row.ratio_to(
            "the same, times the speed of those whose row trigger upserts",
            counted,
        )?,
    ];
    measured.figures = figures;
    Ok(measured)
}
