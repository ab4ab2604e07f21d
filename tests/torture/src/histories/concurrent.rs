//! Many clients at once, each with its own script, while folds and maintenance of all kinds go on.
//!
//! What is checked:
//! - Checkers compare all ways to read with the oracle, again and again, each in one snapshot; one of
//!   them in snapshots that are seconds old.
//! - Each client knows what its calls must answer where nobody else interferes.
//! - Each transaction writes a row of a journal. What a client was told to be committed must be there,
//!   and what it was told to be rolled back must not; where it was told nothing, as its connection was
//!   cut, `pg_xact_status` says which of the two.
//! - Others hit at the same time, each time counters of its own, and keep a book of what they were told.
//! - Of counters that begin anew, no window gives more than its maximum, those that slide keep what they promise, and
//!   all that was granted is in some window.
//! - Consumers follow a stream of all counters, in transactions some of which they give up: what they have read and
//!   what is unread make the folded totals, in each snapshot.
//! - At the end the counters that all have only added to must be what the clients' own books say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    Book, BoundedLoad, BoundedTraffic, ChangesTraffic, Consumer, Control, DEADLINE, Load, Outcome,
    Told, Way, WindowedTraffic, agree, compact, folding_hard, footprint, hit_while, look_at_stream,
    nothing_is_kept, settle, streamed_schema, together, totals_are_clean, watch_by, windows_agree,
    windows_are_sound, within_bounds,
};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, Config, IsolationLevel};
use rand::RngExt;

use super::client::Connection;
use super::schema::{self, Exact};
use super::script::Script;
use super::session::Session;
use super::step::{Level, Op};
use super::upkeep::{Work, look_after};
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// The database of it all.
const DB: &str = "histories";

/// What the clients have counted.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) prepared: AtomicU64,
    /// The client did not learn the end, and pg_xact_status said "committed".
    pub(crate) found_committed: AtomicU64,
    /// The same, and "aborted".
    pub(crate) found_aborted: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) answers: AtomicU64,
}

/// Runs it for so long.
pub(crate) fn run(options: &Options, report: &mut PartReport, time: Duration) -> Result<()> {
    let cluster = folding_hard("histories")
        // Commits that take their time: rows that are written and not visible yet.
        .conf("fsync", "on")
        .conf("commit_delay", "3000")
        .conf("commit_siblings", "0")
        .conf("deadlock_timeout", "100ms")
        .conf("max_locks_per_transaction", "256")
        .conf("track_commit_timestamp", "on")
        .start()?;
    cluster
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {DB}"))?;
    let mut admin = cluster.connect_db(DB)?;
    schema::install(&mut admin, &Exact::OwnCounters)?;
    admin.batch_execute(streamed_schema())?;
    admin.batch_execute("SELECT counter_stream_create('all', mode => 'every')")?;
    admin.batch_execute("SELECT mirror_bootstrap('all')")?;
    let before = footprint(&mut admin)?;

    let load = Load {
        clients: options.size(6, 10),
        transactions: u64::MAX / 1_000,
        names: 5,
        two_phase: true,
        serializable: true,
        survives: true,
        checkers: options.size(2, 3),
        seed: options.seed_for("concurrent histories"),
    };
    let mut watcher = cluster.config(DB);
    watcher.options("-c statement_timeout=120s");
    let until = Instant::now() + time;
    let tally = Tally::default();
    let sessions: Mutex<Vec<Session>> = Mutex::new(Vec::new());
    let mut upkept = BTreeMap::new();
    let mut book = Book::default();
    let turn = AtomicU64::new(0);
    let consumed = AtomicU64::new(0);
    let watched = together(
        &load,
        |number, control| {
            let session = run_client(&cluster, &load, number, until, control, &tally)?;
            sessions
                .lock()
                .map_err(|_| anyhow::anyhow!("a client panicked"))?
                .push(session);
            Ok(Outcome::default())
        },
        |control| {
            // The first one takes its time.
            let patience = match turn.fetch_add(1, Ordering::Relaxed) {
                0 => options.size(Duration::from_millis(700), Duration::from_secs(3)),
                _ => Duration::ZERO,
            };
            watch_by(&watcher, control, false, |client, round| {
                look(client, round, patience, control)
            })
        },
        |control| {
            let by = |work| look_after(&cluster, DB, load.seed, work, until, control);
            let stop = AtomicBool::new(false);
            let (tables, hits, engine, consumers) = std::thread::scope(|scope| {
                let tables = scope.spawn(|| by(Work::Tables));
                let hits = scope.spawn(|| hit(&cluster.config(DB), until, control));
                let consumers = [1, 2].map(|number| Consumer {
                    bootstraps: number == 2,
                    ..Consumer::of("all", load.seed.wrapping_mul(10).wrapping_add(number))
                });
                let (config, stop) = (&watcher, &stop);
                let consumers = consumers
                    .map(|consumer| scope.spawn(move || consumer.run(config, control, stop)));
                let engine = by(Work::Engine);
                let (tables, hits) = (tables.join(), hits.join());
                stop.store(true, Ordering::Relaxed);
                (
                    tables,
                    hits,
                    engine,
                    consumers.map(|consumer| consumer.join()),
                )
            });
            for consumer in consumers {
                let came = consumer.map_err(|_| anyhow::anyhow!("a consumer panicked"))??;
                consumed.fetch_add(came.commits, Ordering::Relaxed);
            }
            book = hits.map_err(|_| anyhow::anyhow!("a hitter panicked"))??;
            upkept = tables.map_err(|_| anyhow::anyhow!("upkeep panicked"))??;
            upkept.extend(engine?);
            Ok(())
        },
    )?;
    let sessions = sessions
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a client panicked"))?;

    look_at_stream(&mut admin, "all")?;
    ensure!(consumed.load(Ordering::Relaxed) > 0, "nothing was consumed");
    report.tried("reads of a stream", consumed.load(Ordering::Relaxed));
    journal_agrees(&mut admin, &sessions).context("the journal and what clients were told")?;
    books_agree(&mut admin, &sessions).context("the clients' books")?;
    book.audit_all(&mut admin).context("what hits were told")?;
    ensure!(
        book.has(Told::Counted) && book.has(Told::Handed),
        "no hit was counted"
    );
    report.tried("hits", book.len() as u64);
    // Whatever has been, space is got back: if no log was truncated before, one is now.
    poll_until("a log to be truncated", DEADLINE, || {
        let done = footprint(&mut admin)?.truncated > before.truncated;
        if !done {
            admin.batch_execute("CALL fill('n:fill', 500)")?;
            compact(&mut admin)?;
        }
        Ok(done)
    })?;
    settle(&mut admin)?;
    compact(&mut admin)?;
    books_agree(&mut admin, &sessions).context("the clients' books, when all is folded")?;
    totals_are_clean(&mut admin)?;
    nothing_is_kept(&mut admin)?;
    let mut transaction = admin
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    agree(&mut transaction)?;
    transaction.commit()?;
    let booked = "SELECT count(*) FROM granted";
    let calls: i64 = admin.query_one(booked, &[])?.get(0);
    ensure!(
        calls > 0,
        "no call of a counter that begins anew was committed"
    );
    report.tried(
        "calls of counters that begin anew, committed",
        u64::try_from(calls)?,
    );
    windows_are_sound(&mut admin).context("counters that begin anew")?;
    let count = |value: &AtomicU64| value.load(Ordering::Relaxed);
    report.tried("concurrent clients", load.clients);
    report.tried(
        "answers held against what the client knew",
        count(&tally.answers),
    );
    let committed: usize = sessions
        .iter()
        .map(|session| session.committed().len())
        .sum();
    let ended: usize = sessions.iter().map(Session::ended).sum();
    report.tried("transactions committed", committed as u64);
    report.tried(
        "transactions rolled back, or refused",
        (ended - committed) as u64,
    );
    report.figure(
        "transactions ended, with all that goes on beside them",
        ended as f64 / time.as_secs_f64(),
        Unit::PerSecond,
    );
    report.tried("transactions prepared", count(&tally.prepared));
    report.tried("connections cut in COMMIT and the like", count(&tally.cut));
    report.tried("connections lost in all", count(&tally.lost));
    report.tried(
        "ends not learnt, and found out to be commits",
        count(&tally.found_committed),
    );
    report.tried(
        "ends not learnt, and found out to be rollbacks",
        count(&tally.found_aborted),
    );
    report.tried("looks of checkers, each in one snapshot", watched.checks);
    for (what, times) in upkept {
        report.tried(&format!("beside it: {what}"), times);
    }
    Ok(())
}

/// Hits beside all of it, in all ways. Each is of counters of its own, so not too many.
fn hit(config: &Config, until: Instant, control: &Control) -> Result<Book> {
    let pause = Duration::from_millis(50);
    let ways = [
        Way::WAITS,
        Way::SILENT,
        Way::HURRIES,
        Way::SEVERAL,
        Way::SEVERAL_SILENT,
    ]
    .map(|way| Way { pause, ..way });
    hit_while(config, "hit:", &ways, |_| {
        while Instant::now() < until && !control.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })
    .inspect_err(|_| control.abort())
}

fn look(client: &mut Client, round: u64, patience: Duration, control: &Control) -> Result<u64> {
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    let first = agree(&mut transaction).context("first look of a snapshot")?;
    within_bounds(&mut transaction)?;
    windows_agree(&mut transaction)?;
    let pause = Duration::from_millis(if round.is_multiple_of(2) { 30 } else { 0 });
    if !patience.is_zero() {
        // Until it is old, or all is over: several folds and changes of the log later.
        let until = Instant::now() + patience;
        while Instant::now() < until && !control.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
    } else {
        std::thread::sleep(pause);
    }
    let wrong: String = transaction.query_one("SELECT wrong()", &[])?.get(0);
    ensure!(wrong.is_empty(), "second look of a snapshot:\n{wrong}");
    let last = agree(&mut transaction).context("last look of a snapshot")?;
    ensure!(first == last, "a snapshot changed: {first:?} {last:?}");
    transaction.commit()?;
    Ok(3)
}

fn run_client(
    cluster: &Cluster,
    load: &Load,
    number: u64,
    until: Instant,
    control: &Control,
    tally: &Tally,
) -> Result<Session> {
    let mut changes = ChangesTraffic::new(load, number);
    let mut bounded = BoundedTraffic::new(
        BoundedLoad {
            clients: load.clients,
            transactions: load.transactions,
            survives: true,
            holds: true,
            seed: load.seed,
        },
        number,
    );
    let mut windowed = WindowedTraffic::new(load.seed, number);
    let shared = move |rng: &mut rand::rngs::StdRng, level: Level| {
        Op::Sql(match rng.random_range(0..5) {
            0 | 1 => changes.change(level != Level::ReadCommitted),
            2 | 3 => bounded.change(),
            _ => windowed.change(),
        })
    };
    let number = usize::try_from(number)?;
    let mut script = Script::new(load.seed, number, 4, shared);
    let mut connection = Connection::new(cluster, DB, number, tally)?;
    while Instant::now() < until && !control.is_aborted() {
        let prepared = connection.session.prepared.is_some();
        for step in script.transaction(prepared) {
            let dice = script.below(100);
            connection
                .step(&step, dice)
                .with_context(|| {
                    format!(
                        "client {number}, after its transaction {}",
                        connection.session.last_serial()
                    )
                })
                .inspect_err(|_| control.abort())?;
        }
        control.count();
    }
    connection.finish().inspect_err(|_| control.abort())?;
    Ok(connection.session)
}

/// What was committed is in the journal, and nothing else.
fn journal_agrees(admin: &mut Client, sessions: &[Session]) -> Result<()> {
    let mut rows: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for row in admin.query("SELECT client, serial FROM journal", &[])? {
        let (client, serial): (i32, i64) = (row.get(0), row.get(1));
        rows.entry(usize::try_from(client)?)
            .or_default()
            .insert(u64::try_from(serial)?);
    }
    for session in sessions {
        let there = rows.remove(&session.number).unwrap_or_default();
        let committed = session.committed();
        let lost: Vec<_> = committed.difference(&there).collect();
        let undead: Vec<_> = there.difference(&committed).collect();
        ensure!(
            lost.is_empty() && undead.is_empty(),
            "client {}: committed and not there: {lost:?}; there and not committed: {undead:?}",
            session.number
        );
    }
    ensure!(rows.is_empty(), "rows of nobody: {rows:?}");
    Ok(())
}

/// The counters are what the clients' own books say.
fn books_agree(admin: &mut Client, sessions: &[Session]) -> Result<()> {
    let mut books: BTreeMap<String, i64> = BTreeMap::new();
    for session in sessions {
        books.extend(session.own().clone());
        for (name, delta) in &session.added {
            *books.entry(name.clone()).or_insert(0) += delta;
        }
    }
    let counters: BTreeMap<String, i64> = admin
        .query(
            "SELECT name, value::bigint FROM counters
              WHERE name ^@ 'u:' OR name ^@ 'own:' OR name ^@ 'stock:own:'",
            &[],
        )?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    ensure!(
        books == counters,
        "the clients' books say {books:?}, the counters are {counters:?}"
    );
    ensure!(books.len() > sessions.len(), "hardly a counter: {books:?}");
    Ok(())
}
