//! The way out, as `docs/what-it-does-to-your-server.md` has it: under load, without losing a count.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    Block, DEADLINE, blocks, create_bare_database, folding_hard, nothing_crashed, page, run_blocks,
    seed, shared,
};
use counterx_harness::{Cluster, poll_until};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn cluster() -> &'static Cluster {
    shared(|| folding_hard("leaving").start())
}

fn way_out() -> Result<Block> {
    (blocks(&page("what-it-does-to-your-server.md")?).into_iter())
        .find(|block| block.sql.contains("DROP EXTENSION counterx"))
        .context("the page has no way out")
}

/// What one client was told: what it has counted, and by which errors it was refused.
#[derive(Default)]
struct Book {
    counted: BTreeMap<String, i64>,
    refused: BTreeMap<String, u64>,
}

fn count_until(db: &str, number: u64, over: &AtomicBool, counted: &AtomicU64) -> Result<Book> {
    let mut client = cluster().connect_db(db)?;
    let mut rng = StdRng::seed_from_u64(seed() + number);
    let mut book = Book::default();
    let mut round = 0;
    while !over.load(Ordering::Relaxed) {
        let name = format!("name:{}", rng.random_range(0..20));
        let delta = rng.random_range(-5..50_i64);
        round += 1;
        // A token keeps a lock on the counter's gate to the end, so DROP EXTENSION has to wait for it.
        let call = match number % 2 {
            0 => format!("counter_incr('{name}', {delta})"),
            _ => format!("counter_incr_once('token:{number}:{round}', '{name}', {delta})"),
        };
        // As text: no plan of the session's own outlives the functions.
        let result = client.batch_execute(&format!("BEGIN; SELECT {call}; COMMIT"));
        match result {
            Ok(()) => {
                *book.counted.entry(name).or_default() += delta;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let code = error
                    .code()
                    .context("the connection is gone")?
                    .code()
                    .to_owned();
                *book.refused.entry(format!("{code} {error:?}")).or_default() += 1;
                client.batch_execute("ROLLBACK")?;
            }
        }
    }
    Ok(book)
}

#[test]
fn leaving_under_load_loses_no_count() -> Result<()> {
    const CLIENTS: u64 = 6;
    let mut client = create_bare_database(cluster(), "leaving")?;
    let (over, counted) = (AtomicBool::new(false), AtomicU64::new(0));
    let books = thread::scope(|scope| {
        let (over, counted) = (&over, &counted);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || count_until("leaving", number, over, counted)))
            .collect();
        let more = |than: u64| {
            poll_until("clients to count", DEADLINE, || {
                Ok(counted.load(Ordering::Relaxed) > than)
            })
        };
        let left = (|| {
            more(500)?;
            run_blocks(cluster(), "leaving", &[way_out()?])?;
            more(counted.load(Ordering::Relaxed) + 500)
        })();
        over.store(true, Ordering::Relaxed);
        let books: Result<Vec<Book>> = (clients.into_iter())
            .map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect();
        left?;
        books
    })?;
    let mut expected: BTreeMap<&String, i64> = BTreeMap::new();
    for (name, sum) in books.iter().flat_map(|book| &book.counted) {
        *expected.entry(name).or_default() += sum;
    }
    let rows = client.query(
        "SELECT name, value::bigint FROM plain_counter WHERE name LIKE 'name:%'",
        &[],
    )?;
    let found: BTreeMap<String, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (name, expected) in &expected {
        ensure!(
            found.get(*name) == Some(expected),
            "{name}: {:?}, and {expected} were counted",
            found.get(*name)
        );
    }
    // Who was committing at that moment has lost the extension; who was calling, the function.
    for refused in books.iter().flat_map(|book| book.refused.keys()) {
        ensure!(
            refused.starts_with("42704") || refused.starts_with("42883"),
            "{refused}"
        );
    }
    let gone = "SELECT count(*) FROM pg_extension WHERE extname = 'counterx'";
    ensure!(client.query_one(gone, &[])?.get::<_, i64>(0) == 0);
    nothing_crashed(&cluster().log())
}

#[test]
fn leaving_beside_a_prepared_transaction_gives_up_and_has_done_nothing() -> Result<()> {
    let mut client = create_bare_database(cluster(), "staying")?;
    client.batch_execute("BEGIN; SELECT counter_incr('x', 3); PREPARE TRANSACTION 'staying'")?;
    let mut way_out = way_out()?;
    // Soon: that it gives up is what is tried, not after how long.
    way_out.sql = way_out.sql.replace("'5s'", "'200ms'");
    ensure!(
        way_out.sql.contains("'200ms'"),
        "the page has another lock_timeout"
    );
    let error = run_blocks(cluster(), "staying", &[way_out])
        .err()
        .context("it did not wait")?;
    ensure!(
        format!("{error:#}").contains("canceling statement due to lock timeout"),
        "{error:#}"
    );
    client.batch_execute("COMMIT PREPARED 'staying'")?;
    client.batch_execute("SELECT counter_incr('x', 4)")?;
    let value: i64 = client.query_one("SELECT counter_value('x')", &[])?.get(0);
    ensure!(value == 7);
    Ok(())
}
