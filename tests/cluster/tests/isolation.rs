//! SERIALIZABLE transactions that read one counter and change another cannot both commit.

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Load, check, compact, count_and_settle, create_database, names_in_lanes, shared, under_watch,
};
use counterx_harness::Cluster;
use postgres::error::SqlState;
use postgres::{Client, IsolationLevel, Transaction};

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("isolation")
            .conf("counterx.compaction_interval", "20ms")
            .conf("counterx.log_max_size", "64kB")
            .start()
    })
}

/// How a transaction reads a counter.
const READS: [&str; 2] = [
    "SELECT counter_value($1)::text",
    "SELECT coalesce((SELECT value FROM counters WHERE name = $1), 0)::text",
];

fn serializable(client: &mut Client) -> Result<Transaction<'_>> {
    Ok(client
        .build_transaction()
        .isolation_level(IsolationLevel::Serializable)
        .start()?)
}

/// Two sessions: each reads one counter and then counts on the other. How many could commit?
fn skew(
    db: &str,
    read: &str,
    (x, y): (&str, &str),
    mut between: impl FnMut() -> Result<()>,
) -> Result<usize> {
    let (mut one, mut two) = (cluster().connect_db(db)?, cluster().connect_db(db)?);
    let mut ends = Vec::new();
    {
        let mut one = serializable(&mut one)?;
        let mut two = serializable(&mut two)?;
        one.query_one(read, &[&x])?;
        two.query_one(read, &[&y])?;
        between()?;
        let written = [
            one.execute("SELECT bump($1, 1)", &[&y]).map(drop),
            two.execute("SELECT bump($1, 1)", &[&x]).map(drop),
        ];
        between()?;
        let [first, second] = written;
        ends.push(first.and_then(|()| one.commit()));
        between()?;
        ends.push(second.and_then(|()| two.commit()));
    }
    let mut committed = 0;
    for end in ends {
        match end {
            Ok(()) => committed += 1,
            Err(error) if error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(committed)
}

fn skew_is_refused(db: &str, existing: bool, folding: bool) -> Result<()> {
    let mut client = create_database(cluster(), db)?;
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.compaction = off"
    ))?;
    let names = names_in_lanes(&mut client)?;
    let mut folder = cluster().connect_db(db)?;
    for read in READS {
        // Within one lane, across lanes, of counters that have totals, pending deltas or neither.
        for (pair, (x, y)) in [
            (names[0].clone(), names[1].clone()),
            (names[2].clone(), format!("{}!", names[2])),
        ]
        .into_iter()
        .enumerate()
        {
            let (x, y) = (format!("{x}{}", read.len()), format!("{y}{}", read.len()));
            if existing {
                client.execute("SELECT bump($1, 5)", &[&x])?;
                client.execute("SELECT bump($1, 5)", &[&y])?;
            }
            if folding {
                compact(&mut folder)?;
            }
            let committed = skew(db, read, (&x, &y), || {
                if folding {
                    compact(&mut folder)?;
                }
                Ok(())
            })?;
            ensure!(
                committed == 1,
                "{committed} of 2 committed: {read}, pair {pair}"
            );
            check(&mut client)?;
        }
    }
    Ok(())
}

#[test]
fn write_skew_on_pending_counters_is_refused() -> Result<()> {
    skew_is_refused("pending", true, false)
}

#[test]
fn write_skew_on_counters_that_do_not_exist_is_refused() -> Result<()> {
    skew_is_refused("absent", false, false)
}

#[test]
fn write_skew_with_folds_in_between_is_refused() -> Result<()> {
    skew_is_refused("folded", true, true)
}

/// The reader's locks on index pages are of no use when the writer writes to a log that the reader
/// found empty, or that became the active one only after it had looked.
fn skew_across_a_switch_is_refused(db: &str, switch_between: bool) -> Result<()> {
    for (number, read) in READS.into_iter().enumerate() {
        let db = format!("{db}{number}");
        let mut client = create_database(cluster(), &db)?;
        client.batch_execute(&format!(
            "ALTER DATABASE {db} SET counterx.compaction = off"
        ))?;
        let names = names_in_lanes(&mut client)?;
        let (x, y) = (names[3].as_str(), names[6].as_str());
        // Every log of the active side gets full: the next fold switches to the other one.
        client
            .batch_execute("SELECT counter_incr('fill:' || n) FROM generate_series(1, 20000) n")?;
        let mut folder = cluster().connect_db(&db)?;
        if !switch_between {
            compact(&mut folder)?;
        }
        let sides = "SELECT (SELECT gate % 2 FROM counterx.gate_3)
                            + (SELECT gate % 2 FROM counterx.gate_6)";
        let mut times = 0;
        let committed = skew(&db, read, (x, y), || {
            times += 1;
            if times == 1 {
                let before: i64 = folder.query_one(sides, &[])?.get(0);
                ensure!(
                    before == if switch_between { 0 } else { 2 },
                    "the sides are {before}"
                );
                if switch_between {
                    folder.query_one("SELECT counterx.compact()", &[])?;
                }
                let after: i64 = folder.query_one(sides, &[])?.get(0);
                ensure!(after == 2, "no switch");
            }
            Ok(())
        })?;
        ensure!(committed == 1, "{committed} of 2 committed: {read}");
    }
    Ok(())
}

#[test]
fn write_skew_into_logs_that_were_empty_is_refused() -> Result<()> {
    skew_across_a_switch_is_refused("empty", false)
}

#[test]
fn write_skew_with_a_switch_of_logs_in_between_is_refused() -> Result<()> {
    skew_across_a_switch_is_refused("switched", true)
}

/// The reader reads after the writer has committed, in an older snapshot: the conflict comes from
/// the row that it must not see.
#[test]
fn write_skew_in_sequence_is_refused() -> Result<()> {
    let mut client = create_database(cluster(), "sequence")?;
    client.batch_execute("SELECT bump('x', 5); SELECT bump('y', 5)")?;
    for (round, read) in READS.into_iter().enumerate() {
        let (mut one, mut two) = (
            cluster().connect_db("sequence")?,
            cluster().connect_db("sequence")?,
        );
        let mut one = serializable(&mut one)?;
        one.query_one("SELECT count(*) FROM pg_class", &[])?;
        let mut two = serializable(&mut two)?;
        two.query_one(read, &[&"y"])?;
        two.execute("SELECT bump('x', 1)", &[])?;
        two.commit()?;
        if round == 0 {
            compact(&mut client)?;
        }
        let end = one
            .query_one(read, &[&"x"])
            .and_then(|_| one.execute("SELECT bump('y', 1)", &[]))
            .and_then(|_| one.commit());
        match end {
            Ok(()) => anyhow::bail!("both committed: {read}"),
            Err(error) => {
                ensure!(
                    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE),
                    "{error}"
                );
            }
        }
        check(&mut client)?;
    }
    Ok(())
}

#[test]
fn serializable_transactions_that_only_count_do_not_conflict() -> Result<()> {
    let mut client = create_database(cluster(), "blind")?;
    let (mut one, mut two) = (
        cluster().connect_db("blind")?,
        cluster().connect_db("blind")?,
    );
    for _ in 0..20 {
        let mut one = serializable(&mut one)?;
        let mut two = serializable(&mut two)?;
        for transaction in [&mut one, &mut two] {
            transaction.batch_execute("SELECT counter_incr('x'); SELECT counter_incr('y')")?;
        }
        one.commit()?;
        two.commit()?;
    }
    let value: i64 = client.query_one("SELECT counter_value('x')", &[])?.get(0);
    ensure!(value == 40, "{value}");
    Ok(())
}

/// The invariant x + y >= 0, kept by transactions that each look at both and take from one.
#[test]
fn invariant_that_serializable_transactions_keep_is_kept() -> Result<()> {
    let mut client = create_database(cluster(), "invariant")?;
    client.batch_execute("SELECT counter_incr('x', 30); SELECT counter_incr('y', 30)")?;
    std::thread::scope(|scope| {
        let takers: Vec<_> = (0..4)
            .map(|taker| {
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster().connect_db("invariant")?;
                    let from = if taker % 2 == 0 { "x" } else { "y" };
                    for _ in 0..60 {
                        let result = (|| {
                            let mut transaction = serializable(&mut client)?;
                            let sql = "SELECT counter_value('x') + counter_value('y')";
                            let sum: i64 = transaction.query_one(sql, &[])?.get(0);
                            if sum > 0 {
                                transaction.execute("SELECT counter_decr($1)", &[&from])?;
                            }
                            Ok(transaction.commit()?)
                        })();
                        if let Err(error) = result {
                            let code = counterx_cluster_tests::sqlstate(&error);
                            if code != Some(&SqlState::T_R_SERIALIZATION_FAILURE) {
                                return Err(error);
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        for taker in takers {
            taker
                .join()
                .map_err(|_| anyhow::anyhow!("a taker panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    let sum: i64 = client
        .query_one("SELECT counter_value('x') + counter_value('y')", &[])?
        .get(0);
    ensure!((0..60).contains(&sum), "x + y = {sum}");
    Ok(())
}

#[test]
fn serializable_load_is_exact() -> Result<()> {
    let mut client = create_database(cluster(), "load")?;
    let load = Load {
        transactions: 120,
        serializable: true,
        ..Load::default()
    };
    under_watch(&cluster().config("load"), &load, |_| Ok(()))?;
    count_and_settle(&mut client)
}
