//! Calls that are cancelled at any moment have done all or nothing; and errors cost no memory.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{DEADLINE, create_database};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, NoTls};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::errors::answer;
use super::fuzz::anonymous_memory;
use crate::options::Options;
use crate::report::{PartReport, Unit};

const CANCELLED: &str = "57014";

/// Counters that a call has to do with.
const COUNTERS: i64 = 4_000;

/// What a call does to the sum of all, when it succeeds, and the call.
const CALLS: &[(i64, &str)] = &[
    (
        COUNTERS,
        "SELECT counter_incr_many(array_agg('h:' || n), array_agg(1)) FROM generate_series(1, 4000) n",
    ),
    (
        COUNTERS,
        "SELECT counter_incr_many(jsonb_object_agg('h:' || n, 1)) FROM generate_series(1, 4000) n",
    ),
    (
        -COUNTERS,
        "SELECT count(counter_decr('h:' || n)) FROM generate_series(1, 4000) n",
    ),
    (
        COUNTERS,
        "SELECT count(counter_incr_get('h:' || n % 3)) FROM generate_series(1, 4000) n",
    ),
    (
        0,
        "SELECT count(*) FROM counter_list('h:', max_rows => 100000)",
    ),
    (0, "SELECT count(*) FROM counters"),
    (0, "SELECT * FROM counter_top(5)"),
    (0, "SELECT counter_sum()"),
    (
        0,
        "SELECT count(*) FROM counter_values((SELECT array_agg('h:' || n) FROM generate_series(1, 4000) n))",
    ),
    (0, "SELECT counterx.compact()"),
    (
        0,
        "SELECT counter_type_create('h', min => -1000000); SELECT counter_type_drop('h')",
    ),
    (
        0,
        "SELECT counterx.create_value_index(); SELECT counterx.drop_value_index()",
    ),
    (
        200,
        "BEGIN; SELECT count(counter_incr_once('t:' || n || random(), 'h:1')) FROM generate_series(1, 200) n; COMMIT",
    ),
    (-100, "SELECT counter_take_up_to('b:1', 100)"),
    (0, "SELECT counter_merge('h:2', 'h:1')"),
];

pub(super) fn cancelled(
    cluster: &Cluster,
    options: &Options,
    report: &mut PartReport,
) -> Result<()> {
    let mut client = create_database(cluster, "cancelled")?;
    let mut rng = StdRng::seed_from_u64(options.seed_for("cancelled"));
    client.batch_execute(
        "SELECT counter_type_create('b', min => 0); SELECT counter_incr('b:1', 1000000000)",
    )?;
    client.batch_execute(CALLS[0].1)?;
    let end = Instant::now()
        + if options.short {
            Duration::from_millis(1000)
        } else {
            options.time() / 10
        };
    let mut sum = read_sum(&mut client)?;
    let (mut calls, mut ended) = (0, 0);
    while Instant::now() < end {
        let &(change, sql) = CALLS.choose(&mut rng).context("no calls")?;
        let after = Duration::from_micros(rng.random_range(100..30_000));
        let outcome = if rng.random_ratio(1, 2) {
            let ms = after.as_millis().max(1);
            client.batch_execute(&format!("SET statement_timeout = {ms}"))?;
            let outcome = answer(client.batch_execute(sql));
            // An open transaction block ends first.
            client.batch_execute("ROLLBACK; SET statement_timeout = 0")?;
            outcome?
        } else {
            let token = client.cancel_token();
            let canceller = std::thread::spawn(move || {
                std::thread::sleep(after);
                token.cancel_query(NoTls)
            });
            let outcome = answer(client.batch_execute(sql));
            if canceller.join().is_err() {
                bail!("the canceller has panicked");
            }
            patiently(|| client.batch_execute("ROLLBACK"))?;
            outcome?
        };
        calls += 1;
        let now = read_sum(&mut client)?;
        match outcome {
            Ok(()) => ensure!(now == sum + change, "{sql}: {sum} became {now}"),
            Err(refusal) => {
                let known = [CANCELLED, "42704", "42710"].contains(&refusal.code.as_str());
                ensure!(known, "{sql}: {refusal:?}");
                ended += u64::from(refusal.code == CANCELLED);
                ensure!(
                    now == sum,
                    "{sql} was cancelled, and yet {sum} became {now}"
                );
            }
        }
        sum = now;
        // What the two statements of one call leave, when the second is cancelled.
        tidy(&mut client)?;
    }
    report.tried("calls to be cancelled at a random moment", calls);
    report.tried("calls that were", ended);
    ensure!(ended > 0, "none of {calls} calls was cancelled");
    Ok(())
}

fn tidy(client: &mut Client) -> Result<()> {
    patiently(|| {
        client.batch_execute(
            "SELECT counter_type_drop(name) FROM counter_types WHERE name = 'h';
             SELECT counterx.drop_value_index()",
        )
    })
}

fn read_sum(client: &mut Client) -> Result<i64> {
    patiently(|| {
        let row = client.query_one("SELECT counter_sum()::bigint", &[])?;
        Ok(row.get(0))
    })
}

/// Once more, when a cancellation that came too late for its own statement has met this one.
fn patiently<T>(mut statement: impl FnMut() -> Result<T, postgres::Error>) -> Result<T> {
    let mut value = None;
    poll_until("a statement that nobody cancels", DEADLINE, || {
        match answer(statement())? {
            Ok(answer) => value = Some(answer),
            Err(refusal) => ensure!(refusal.code == CANCELLED, "{refusal:?}"),
        }
        Ok(value.is_some())
    })?;
    value.context("no value")
}

/// Calls that fail in as many ways as there are places to fail in.
const FAILING: &[&str] = &[
    "SELECT counter_incr('')",
    "SELECT counter_incr(repeat('x', 100000))",
    "SELECT counter_incr_many(array_agg('k' || n), array_agg(1)) FROM generate_series(1, 501) n WHERE counter_incr_get('') > 0",
    "SELECT counter_incr_many(ARRAY(SELECT 'k' || n FROM generate_series(1, 500) n) || NULL::text, NULL)",
    "SELECT counter_incr_many('{\"a\": 1, \"b\": [1, 2, 3]}')",
    "SELECT counter_incr('max', 1)",
    "SELECT * FROM counter_list('', max_rows => -1)",
    "SELECT * FROM counter_top(10) WHERE value / 0 = 1",
    "SELECT count(*) FROM counters WHERE value / 0 = 1",
    "SELECT counter_set('max', NULL)",
    "SELECT counter_rename('none', 'other')",
    "SELECT counter_incr_once('t', 'k1', 2)",
    "SELECT counter_type_create('b')",
    "SELECT counter_type_create('c', options => '{\"x\": 1}')",
    "SELECT counter_incr('b:1', -1)",
    "SELECT counter_hold('b:1', 1, '1 day')",
    "SELECT counter_hold_confirm(0)",
];

pub(super) fn leaks(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    let mut client = create_database(cluster, "leaks")?;
    client.batch_execute(
        "SELECT counter_incr_once('t', 'k1', 1); SELECT counter_type_create('b', min => 0)",
    )?;
    client.batch_execute("SELECT counter_incr('max', 9223372036854775807)")?;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    // The first rounds fill caches.
    fail(&mut client, options.size(3, 20))?;
    let Some(first) = anonymous_memory(pid) else {
        report.skipped(
            "memory of a session of errors",
            "/proc has no RssAnon of the server's",
        );
        return Ok(());
    };
    let rounds = options.size(20, 300);
    fail(&mut client, rounds)?;
    let last = anonymous_memory(pid).context("the session has gone")?;
    report.tried("errors in one session", rounds * FAILING.len() as u64);
    report.limited(
        "growth of a session by errors",
        last - first,
        Unit::Mebibytes,
        8.0,
    );
    ensure!(
        last - first < 64.0,
        "a session has grown from {first} to {last} MiB by errors"
    );
    Ok(())
}

fn fail(client: &mut Client, rounds: u64) -> Result<()> {
    client.batch_execute("SELECT counter_incr('max', 0)")?;
    for _ in 0..rounds {
        for sql in FAILING {
            // In a transaction that has to be undone as well, and so that none succeeds by and by.
            let in_transaction = format!(
                "BEGIN; SELECT counter_incr('max', 9223372036854775807); SAVEPOINT s; {sql}"
            );
            let outcome = answer(client.batch_execute(&in_transaction))?;
            client.batch_execute("ROLLBACK")?;
            if let Err(refusal) = outcome {
                refusal.check()?;
            } else {
                bail!("{sql} did not fail");
            }
        }
    }
    Ok(())
}
