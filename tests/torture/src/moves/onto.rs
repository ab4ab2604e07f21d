//! Restores onto databases that are in use, as nobody should, and somebody will: with the wrong dump,
//! twice, by halves, with triggers off, while others count.
//!
//! What a restore comes to there is not held against anything: it may fail, all of it or some tables.
//! What is promised is that it leaves counters that work:
//!
//! - a statement that is acknowledged afterwards is seen by everybody, at once and when it is folded;
//! - so is one beside the restore, of a counter that the dump has not;
//! - no bounded counter is seen beyond its bounds, and no more is sold than there was;
//! - every lane is folded again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::DEADLINE;
use counterx_harness::{Cluster, poll_until};
use postgres::Client;

use super::dump::dump;
use crate::options::Options;
use crate::report::{PartReport, causes};

/// So many counters of each kind that all lanes have some.
const COUNTERS: usize = 24;

/// What is on stock before.
const STOCK: i64 = 40;

/// Where the dump is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A database in which nothing was ever counted.
    Empty,
    /// One that has counted and folded more often than the target, and has deltas that wait, with some
    /// of the target's names.
    Ahead,
}

#[derive(Clone, Copy, Debug)]
struct Way {
    what: &'static str,
    source: Source,
    dump: &'static [&'static str],
    /// The arguments of each restore, one after the other.
    restore: &'static [&'static [&'static str]],
    /// Clients count and sell meanwhile.
    busy: bool,
}

const PSQL: &[&str] = &["psql"];
const STRICT: &[&str] = &["psql", "--single-transaction", "-v", "ON_ERROR_STOP=1"];
const PG_RESTORE: &[&str] = &["pg_restore"];

const WAYS: [Way; 12] = [
    Way {
        what: "data only, of an empty database",
        source: Source::Empty,
        dump: &["--data-only"],
        restore: &[STRICT],
        busy: false,
    },
    Way {
        what: "data only, of an empty database, beside clients",
        source: Source::Empty,
        dump: &["--data-only"],
        restore: &[PSQL],
        busy: true,
    },
    Way {
        what: "all of an empty database",
        source: Source::Empty,
        dump: &["--format=plain"],
        restore: &[PSQL],
        busy: false,
    },
    Way {
        what: "all of a database with counters",
        source: Source::Ahead,
        dump: &["--format=plain"],
        restore: &[PSQL],
        busy: false,
    },
    Way {
        what: "all of a database with counters, by pg_restore, beside clients",
        source: Source::Ahead,
        dump: &["--format=custom"],
        restore: &[PG_RESTORE],
        busy: true,
    },
    Way {
        what: "data only",
        source: Source::Ahead,
        dump: &["--data-only"],
        restore: &[PSQL],
        busy: false,
    },
    Way {
        what: "data only, beside clients",
        source: Source::Ahead,
        dump: &["--data-only"],
        restore: &[PSQL],
        busy: true,
    },
    Way {
        what: "data only, in one transaction, beside clients",
        source: Source::Ahead,
        dump: &["--data-only"],
        restore: &[STRICT],
        busy: true,
    },
    Way {
        what: "data only, with triggers off",
        source: Source::Ahead,
        dump: &["--data-only", "--disable-triggers"],
        restore: &[PSQL],
        busy: false,
    },
    Way {
        what: "data only, with triggers off, of an empty database, beside clients",
        source: Source::Empty,
        dump: &["--data-only", "--disable-triggers"],
        restore: &[PSQL],
        busy: true,
    },
    Way {
        what: "data only, twice",
        source: Source::Ahead,
        dump: &["--data-only"],
        restore: &[PSQL, PSQL],
        busy: false,
    },
    Way {
        what: "data only, as INSERTs, twice",
        source: Source::Ahead,
        dump: &["--data-only", "--inserts"],
        restore: &[PSQL, PSQL],
        busy: true,
    },
];

pub(super) fn run(options: &Options, report: &mut PartReport, cluster: &Cluster) {
    report.step("restores onto what is in use", |report| {
        sources(cluster)?;
        for (number, way) in WAYS.iter().enumerate() {
            // The short form has time for the simplest one, and another by the seed.
            let other = 1 + options.seed % (WAYS.len() as u64 - 1);
            if options.short && number != 0 && number as u64 != other {
                report.skipped(
                    &format!("a restore onto what is in use: {}", way.what),
                    "the short form takes two, one of them by the seed",
                );
                continue;
            }
            // Each of them may show something of its own.
            let db = format!("onto_{number}");
            let result = onto(report, cluster, way, &db);
            drop_database(cluster, &db)?;
            if let Err(error) = result {
                report.finding(
                    &format!("a restore onto what is in use: {}", way.what),
                    causes(&error),
                );
            }
        }
        drop_database(cluster, "onto_empty")?;
        drop_database(cluster, "onto_ahead")
    });
}

fn drop_database(cluster: &Cluster, db: &str) -> Result<()> {
    let sql = format!("DROP DATABASE IF EXISTS {db} WITH (FORCE)");
    Ok(cluster.connect()?.batch_execute(&sql)?)
}

fn names(kind: &str) -> impl Iterator<Item = String> {
    (0..COUNTERS).map(move |number| format!("{kind}:{number}"))
}

fn database(cluster: &Cluster, db: &str) -> Result<Client> {
    cluster
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {db}"))?;
    let mut client = cluster.connect_db(db)?;
    client.batch_execute("CREATE EXTENSION counterx; CREATE TABLE event (id int)")?;
    Ok(client)
}

/// The databases that are dumped.
fn sources(cluster: &Cluster) -> Result<()> {
    database(cluster, "onto_empty")?;
    let mut client = database(cluster, "onto_ahead")?;
    client.batch_execute(
        "ALTER DATABASE onto_ahead SET counterx.compaction = off;
         SELECT counter_type_create('stock', min => 0)",
    )?;
    let mut client = cluster.connect_db("onto_ahead")?;
    for _ in 0..80 {
        client.batch_execute(
            "SELECT counter_incr('shared:' || n, n), counter_incr('theirs:' || n, n),
                    counter_incr('stock:' || n, 1)
               FROM generate_series(0, 23) n",
        )?;
        client.batch_execute("SELECT counterx.compact()")?;
    }
    client.batch_execute(
        "INSERT INTO event SELECT generate_series(1, 10);
         SELECT counter_incr('shared:' || n), counter_incr('theirs:' || n), counter_incr('fresh:' || n)
           FROM generate_series(0, 23) n;
         SELECT counter_hold('stock:1', 2, '1 day');
         SELECT counter_incr_once('a token', 'theirs:1')",
    )?;
    client.batch_execute(
        "BEGIN; SELECT counter_incr('theirs:2', 5); PREPARE TRANSACTION 'onto_ahead'",
    )?;
    Ok(client.batch_execute("COMMIT PREPARED 'onto_ahead'")?)
}

/// A database in use: it has counted, sold and folded.
fn target(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = database(cluster, db)?;
    client.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    client.batch_execute(&format!("SELECT counter_incr('stock:mug', {STOCK})"))?;
    client
        .batch_execute("SELECT counter_hold('stock:mug', 1, '1 day') FROM generate_series(1, 3)")?;
    for _ in 0..10 {
        client.batch_execute(
            "SELECT counter_incr('live:' || n), counter_incr('shared:' || n)
               FROM generate_series(0, 23) n",
        )?;
        client.batch_execute("SELECT counterx.compact()")?;
    }
    Ok(client)
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    let sql = "SELECT counter_value($1)";
    Ok(client.query_one(sql, &[&name])?.get(0))
}

fn onto(report: &mut PartReport, cluster: &Cluster, way: &Way, db: &str) -> Result<()> {
    let source = match way.source {
        Source::Empty => "onto_empty",
        Source::Ahead => "onto_ahead",
    };
    let file = dump(cluster, source, db, way.dump)?;
    let mut client = target(cluster, db)?;
    let before: Vec<i64> = names("live")
        .map(|name| value(&mut client, &name))
        .collect::<Result<_>>()?;

    let book = Book::default();
    let over = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..if way.busy { 2 } else { 0 })
            .map(|client| {
                let (book, over, db) = (&book, &over, db);
                scope.spawn(move || beside(cluster, db, client, book, over))
            })
            .collect();
        let failed = if way.busy {
            // It goes on a little before and after, and its caches are warm.
            book.has(20).and_then(|()| restore(cluster, db, &file, way))
        } else {
            restore(cluster, db, &file, way)
        };
        let failed = failed.and_then(|failed| {
            if way.busy {
                book.has(20)?;
            }
            Ok(failed)
        });
        over.store(true, Ordering::Relaxed);
        let ended = clients.into_iter().try_for_each(|client| {
            client
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client panicked")))
        });
        failed.and_then(|failed| ended.map(|()| failed))
    })?;
    report.tried("restores onto databases in use", way.restore.len() as u64);
    report.tried("those that failed, in part or in all", failed);
    report.tried(
        "statements acknowledged beside such restores",
        book.acknowledged(),
    );
    report.tried(
        "statements refused beside such restores",
        book.refused.load(Ordering::Relaxed),
    );

    // Of counters that the dump has not.
    for ((name, before), counted) in names("live").zip(before).zip(&book.counted) {
        let (found, counted) = (value(&mut client, &name)?, counted.load(Ordering::Relaxed));
        ensure!(
            found == before + counted as i64,
            "{name} was {before}, {counted} were added beside the restore, and it is {found}"
        );
    }
    let (left, sold) = (
        value(&mut client, "stock:mug")?,
        book.sold.load(Ordering::Relaxed),
    );
    ensure!(
        left == STOCK - sold as i64,
        "of {STOCK} mugs {sold} were sold beside the restore, and {left} are left"
    );
    // Twice, so that the second time counts on what was folded after the restore.
    for time in ["after the restore", "after the restore, and a fold"] {
        goes_on(report, cluster, db, &mut client).context(time)?;
    }
    Ok(())
}

/// Restores, whatever comes of it. How many of the calls told of an error?
fn restore(cluster: &Cluster, db: &str, file: &Path, way: &Way) -> Result<u64> {
    let mut failed = 0;
    for arguments in way.restore {
        let mut command = cluster.tool(arguments[0]);
        command.args(&arguments[1..]).args(["-d", db]);
        if arguments[0] == "psql" {
            command.args(["-Xq", "-o", "/dev/null", "-f"]);
        }
        let output = command
            .arg(file)
            .output()
            .with_context(|| format!("could not run {}", arguments[0]))?;
        // psql says that all is well when it goes on after errors.
        failed += u64::from(!output.status.success() || !output.stderr.is_empty());
    }
    Ok(failed)
}

/// What was acknowledged beside a restore.
#[derive(Default)]
struct Book {
    counted: [AtomicU64; COUNTERS],
    sold: AtomicU64,
    /// Also what was answered by "no".
    asked: AtomicU64,
    refused: AtomicU64,
}

impl Book {
    fn acknowledged(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits for so many more statements.
    fn has(&self, more: u64) -> Result<()> {
        let ended = || self.acknowledged() + self.refused.load(Ordering::Relaxed);
        let enough = ended() + more;
        poll_until("clients beside a restore", DEADLINE, || {
            Ok(ended() >= enough)
        })
    }
}

/// A client that counts and sells while there is a restore. It may be refused, as tables may be locked
/// or half there; what it is told it has to be able to rely on.
fn beside(
    cluster: &Cluster,
    db: &str,
    number: usize,
    book: &Book,
    over: &AtomicBool,
) -> Result<()> {
    let mut client = cluster.connect_db(db)?;
    let mut turn = number;
    while !over.load(Ordering::Relaxed) {
        turn += 1;
        let counter = turn % COUNTERS;
        let result = if turn.is_multiple_of(5) {
            let sql = "SELECT counter_try_incr('stock:mug', -1), counter_value('stock:mug')";
            client.query_one(sql, &[]).map(|row| {
                book.sold
                    .fetch_add(u64::from(row.get::<_, bool>(0)), Ordering::Relaxed);
                row.get::<_, i64>(1)
            })
        } else {
            let sql = "SELECT counter_incr($1)::text";
            client
                .query_one(sql, &[&format!("live:{counter}")])
                .map(|_| {
                    book.counted[counter].fetch_add(1, Ordering::Relaxed);
                    0
                })
        };
        match result {
            Ok(seen) => {
                book.asked.fetch_add(1, Ordering::Relaxed);
                ensure!(seen >= 0, "{seen} mugs are seen beside the restore");
            }
            Err(error) => {
                error.as_db_error().context("a connection was lost")?;
                book.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    Ok(())
}

/// Counts, sells and folds, and holds all that was acknowledged against what is seen.
fn goes_on(
    report: &mut PartReport,
    cluster: &Cluster,
    db: &str,
    client: &mut Client,
) -> Result<()> {
    let kinds = ["live", "shared", "theirs", "fresh", "new"];
    let plain: Vec<String> = kinds.iter().flat_map(|kind| names(kind)).collect();
    let mut expected = Vec::new();
    for name in &plain {
        expected.push(value(client, name)?);
    }
    for round in 1..=2_i64 {
        for (name, expected) in plain.iter().zip(&mut expected) {
            client.query_one("SELECT counter_incr($1, $2)::text", &[name, &round])?;
            *expected += round;
            let found = value(client, name)?;
            ensure!(
                found == *expected,
                "{name} is {found} after an increment by {round}, and {expected} was due"
            );
        }
        report.tried("statements after such restores", plain.len() as u64);
    }
    // What is there of each is sold by two at once, and one that is not there.
    for name in ["stock:mug", "stock:1", "stock:23", "stock:new"] {
        client.query_one("SELECT counter_incr($1, 2)::text", &[&name])?;
        sell_out(cluster, db, client, name)?;
    }
    // A hold is made and confirmed, and a token is used once.
    let sql = "SELECT counter_incr('stock:mug', 1)::text, counter_value('stock:mug')";
    let there: i64 = client.query_one(sql, &[])?.get(1);
    let sql = "SELECT counter_hold('stock:mug', 1, '1 day')";
    let hold: i64 = client.query_one(sql, &[]).context("a hold")?.get(0);
    client.query_one("SELECT counter_hold_confirm($1)::text", &[&hold])?;
    let left = value(client, "stock:mug")?;
    ensure!(
        left == there - 1,
        "{there} mugs were there, one was held and confirmed, and {left} are left"
    );
    let sql = "SELECT counter_incr_once($1, 'live:5')";
    let token = format!("token {}", expected[5]);
    for used in [false, true] {
        let added: bool = client.query_one(sql, &[&token])?.get(0);
        ensure!(
            added != used,
            "a token was used {}",
            if used { "twice" } else { "before" }
        );
    }
    expected[5] += 1;
    // A change by value starts from what it says.
    let old: i64 = client
        .query_one("SELECT counter_set('live:3', 70)", &[])?
        .get(0);
    ensure!(old == expected[3], "live:3 was {old} for counter_set");
    expected[3] = 70;
    all_seen(client, &plain, &expected).context("before all is folded")?;
    let pending = "SELECT coalesce(sum(pending_deltas), 0)::bigint FROM counterx.lanes";
    poll_until("all lanes to be folded", DEADLINE, || {
        Ok(client.query_one(pending, &[])?.get::<_, i64>(0) == 0)
    })?;
    all_seen(client, &plain, &expected).context("when all is folded")
}

fn all_seen(client: &mut Client, names: &[String], expected: &[i64]) -> Result<()> {
    let listed = "SELECT coalesce((SELECT value FROM counters WHERE name = $1), 0)::bigint";
    for (name, expected) in names.iter().zip(expected) {
        let (found, listed) = (
            value(client, name)?,
            client.query_one(listed, &[name])?.get::<_, i64>(0),
        );
        ensure!(
            found == *expected && listed == *expected,
            "{name} is {found}, in the view counters {listed}, and {expected} was due"
        );
    }
    Ok(())
}

/// Sells until there is no more, from two sessions in turn: not one more than there was, and nothing is
/// seen below 0.
fn sell_out(cluster: &Cluster, db: &str, client: &mut Client, name: &str) -> Result<()> {
    let mut other = cluster.connect_db(db)?;
    let sql = "SELECT value, available FROM counter_available($1)";
    let row = client.query_one(sql, &[&name])?;
    let (there, available): (i64, i64) = (row.get(0), row.get(1));
    ensure!(available >= 0, "{available} are available of {name}");
    let mut sold = 0;
    while sold <= there {
        let seller = if sold % 2 == 0 {
            &mut *client
        } else {
            &mut other
        };
        let sql = "SELECT counter_try_incr($1, -1)";
        if !seller.query_one(sql, &[&name])?.get::<_, bool>(0) {
            break;
        }
        sold += 1;
        let left = value(client, name)?;
        ensure!(
            left == there - sold && left >= 0,
            "{sold} of {there} {name} were sold, and {left} are left"
        );
    }
    ensure!(
        sold == available,
        "{available} {name} were available, and {sold} were sold"
    );
    Ok(())
}
