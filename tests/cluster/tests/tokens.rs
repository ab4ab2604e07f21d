//! Tokens: each is applied once, as soon as anybody was told that it is, and goes when its time is over.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Result, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, Outcome, Recovering, committing, compact, create_database, is_lost,
    kill_and_recover, seed, shared, sqlstate, together,
};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::error::SqlState;
use postgres::{Client, Config, IsolationLevel};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// A server whose tokens live as short as they can.
fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("tokens")
            .conf("counterx.compaction_interval", "20ms")
            .conf("counterx.token_ttl", "1s")
            .start()
    })
}

fn tokens(client: &mut Client) -> Result<i64> {
    let sql = "SELECT count(*) FROM counterx.token";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

fn once(client: &mut Client, token: &str) -> Result<bool> {
    let sql = "SELECT counter_incr_once($1, 'once')";
    Ok(client.query_one(sql, &[&token])?.get(0))
}

/// What clients were told by transactions whose commit was acknowledged.
#[derive(Default)]
struct Told {
    /// How often a token was said to be new.
    applied: BTreeMap<u64, u64>,
    /// The tokens that were said to be done.
    done: BTreeMap<u64, Vec<i64>>,
}

const TOKENS: u64 = 240;

/// One attempt. Even tokens ask whether they are new, odd ones for the value. None: undone.
fn attempt(client: &mut Client, token: u64, rng: &mut StdRng) -> Result<Option<Answer>> {
    let isolation = match rng.random_range(0..3) {
        0 => IsolationLevel::ReadCommitted,
        1 => IsolationLevel::RepeatableRead,
        _ => IsolationLevel::Serializable,
    };
    let mut transaction = client
        .build_transaction()
        .isolation_level(isolation)
        .start()?;
    let text = format!("token {token}");
    let undone = rng.random_bool(0.2);
    if undone && rng.random_bool(0.5) {
        // Undone by a savepoint alone: the commit leaves nothing of it.
        transaction.batch_execute(&format!(
            "SAVEPOINT s; SELECT counter_incr_once('{text}', 'even') WHERE {token} % 2 = 0;
             SELECT counter_incr_once_get('{text}', 'odd') WHERE {token} % 2 = 1; ROLLBACK TO s"
        ))?;
        transaction.commit()?;
        return Ok(None);
    }
    let answer = if token.is_multiple_of(2) {
        let sql = "SELECT counter_incr_once($1, 'even')";
        Answer::New(transaction.query_one(sql, &[&text])?.get(0))
    } else {
        let sql = "SELECT counter_incr_once_get($1, 'odd')";
        Answer::Value(transaction.query_one(sql, &[&text])?.get(0))
    };
    if undone {
        transaction.rollback()?;
        return Ok(None);
    }
    transaction.commit()?;
    Ok(Some(answer))
}

enum Answer {
    New(bool),
    Value(i64),
}

/// Each token is tried by three clients at any time, until it is acknowledged or given up by a
/// rollback; `worst` happens again and again meanwhile.
fn exactly_once(
    cluster: &mut Cluster,
    worst: impl Fn(&mut Cluster, u32) -> Result<()>,
) -> Result<()> {
    let mut client = create_database(cluster, "once")?;
    client.batch_execute("SELECT counter_incr('even', 0), counter_incr('odd', 0)")?;
    drop(client);
    let config = cluster.config("once");
    let told = Mutex::new(Told::default());
    let load = Load {
        clients: 9,
        transactions: TOKENS / 3,
        checkers: 0,
        survives: true,
        ..Load::default()
    };
    let work = |number: u64, control: &Control| run_client(&config, number, &told, control);
    let watched = together(
        &load,
        work,
        |_| Ok(0),
        |control| {
            for round in 1..=4 {
                control.wait_for_share(f64::from(round) / 5.0)?;
                worst(cluster, round)?;
            }
            Ok(())
        },
    )?;
    ensure!(watched.outcome.unknown > 0, "nobody noticed: {watched:?}");

    let mut connection = Recovering::new(&config);
    let client = connection.client()?;
    let there: Vec<u64> = client
        .query(
            "SELECT substr(token, 7)::bigint FROM counterx.token ORDER BY 1",
            &[],
        )?
        .iter()
        .map(|row| row.get::<_, i64>(0).cast_unsigned())
        .collect();
    let told = told.into_inner().unwrap_or_default();
    for token in told.done.keys() {
        ensure!(
            there.contains(token),
            "token {token} was acknowledged and is gone"
        );
    }
    for (token, times) in &told.applied {
        ensure!(*times <= 1, "token {token} was new {times} times");
    }
    for (token, values) in &told.done {
        ensure!(
            values.iter().all(|value| *value == values[0]),
            "token {token} returned {values:?}"
        );
    }
    for (name, rest) in [("even", 0), ("odd", 1)] {
        let applied = there.iter().filter(|&token| token % 2 == rest).count();
        let value = value(client, name)?;
        ensure!(
            value == i64::try_from(applied)?,
            "{name} is {value}, of {applied} tokens"
        );
    }
    ensure!(
        told.done.len() > 100,
        "only {} tokens got through",
        told.done.len()
    );
    // Once more, all of them: nothing happens.
    let sql = "SELECT count(*) FROM counterx.token WHERE name = 'even' AND counter_incr_once(token, name)";
    let again: i64 = client.query_one(sql, &[])?.get(0);
    ensure!(again == 0, "{again} tokens were new again");
    Ok(())
}

fn run_client(
    config: &Config,
    number: u64,
    told: &Mutex<Told>,
    control: &Control,
) -> Result<Outcome> {
    let mut rng = StdRng::seed_from_u64(seed().wrapping_mul(31).wrapping_add(number));
    let mut connection = Recovering::new(config);
    let mut outcome = Outcome::default();
    // Three clients have the same third of the tokens.
    let mut order: Vec<u64> = (0..TOKENS)
        .filter(|token| token % 3 == number % 3)
        .collect();
    order.shuffle(&mut rng);
    for token in order {
        // A client that was told nothing, or to retry, tries again.
        while !control.is_aborted() {
            let result = connection
                .client()
                .and_then(|client| attempt(client, token, &mut rng));
            match result {
                Ok(answer) => {
                    let mut told = told.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    match answer {
                        Some(Answer::New(new)) => {
                            *told.applied.entry(token).or_default() += u64::from(new);
                            told.done.entry(token).or_default();
                        }
                        Some(Answer::Value(value)) => {
                            told.done.entry(token).or_default().push(value);
                        }
                        None => {}
                    }
                    outcome.done += 1;
                    break;
                }
                Err(error) if is_lost(&error) => outcome.unknown += 1,
                Err(error) if sqlstate(&error) == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                    outcome.refused += 1;
                }
                Err(error) => {
                    control.abort();
                    return Err(error.context(format!("client {number}, token {token}")));
                }
            }
            connection.forget();
        }
        control.count();
    }
    Ok(outcome)
}

#[test]
fn token_is_applied_once_whatever_is_killed() -> Result<()> {
    // A commit takes a while, so that there are some to be met.
    let mut cluster = Cluster::builder()
        .name("tokens-once")
        .conf("counterx.compaction_interval", "20ms")
        .conf("deadlock_timeout", "20ms")
        .conf("fsync", "on")
        .conf("commit_delay", "5000")
        .conf("commit_siblings", "0")
        .start()?;
    exactly_once(&mut cluster, |cluster, round| {
        let mut connection = Recovering::new(&cluster.config("once"));
        match round {
            1 => {
                for _ in 0..20 {
                    let victim = committing(&mut connection)?;
                    let sql = "SELECT pg_terminate_backend($1)";
                    connection.client()?.query_one(sql, &[&victim])?;
                }
            }
            2 => kill_and_recover(&mut connection, committing)?,
            3 => {
                drop(connection);
                cluster.kill_postmaster()?;
                cluster.start()?;
            }
            _ => {
                drop(connection);
                cluster.restart(StopMode::Fast)?;
            }
        }
        Ok(())
    })
}

#[test]
fn expired_tokens_go_while_others_come_and_count_as_new_then() -> Result<()> {
    let mut client = create_database(cluster(), "expiry")?;
    let mut other = cluster().connect_db("expiry")?;
    // More than one batch.
    client.batch_execute(
        "SELECT count(*) FILTER (WHERE counter_incr_once('first ' || n, 'once'))
           FROM generate_series(1, 3500) n",
    )?;
    let mut applied = 3500;
    poll_until("the first tokens to go", DEADLINE, || {
        applied += i64::from(once(&mut other, &format!("more {applied}"))?);
        let sql = "SELECT count(*) FROM counterx.token WHERE token LIKE 'first %'";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })?;
    ensure!(applied > 3501, "nothing came meanwhile");
    ensure!(value(&mut client, "once")? == applied);
    poll_until("all tokens to go", DEADLINE, || {
        Ok(tokens(&mut client)? == 0)
    })?;
    ensure!(
        once(&mut other, "first 1")?,
        "a token that is gone is known still"
    );
    ensure!(!once(&mut client, "first 1")?, "a new token is not known");
    ensure!(value(&mut client, "once")? == applied + 1);
    Ok(())
}

#[test]
fn compact_removes_expired_tokens_where_no_worker_may() -> Result<()> {
    let mut client = create_database(cluster(), "nobody")?;
    client.batch_execute(
        "ALTER DATABASE nobody SET counterx.compaction = off;
         SELECT counter_incr_once('token ' || n, 'once') FROM generate_series(1, 2500) n",
    )?;
    ensure!(tokens(&mut client)? == 2500);
    poll_until("compact() to remove them", DEADLINE, || {
        compact(&mut client)?;
        Ok(tokens(&mut client)? == 0)
    })?;
    ensure!(value(&mut client, "once")? == 2500);
    Ok(())
}

/// Index entries of removed tokens stay as long as the snapshot does. They are not gone through again.
#[test]
fn old_snapshot_does_not_make_the_removal_look_at_the_same_tokens_again() -> Result<()> {
    const MANY: i64 = 3000;
    let mut client = create_database(cluster(), "oldsnapshot")?;
    // The looks of this test itself count as well.
    client.batch_execute(
        "SET enable_indexonlyscan = off; SET enable_indexscan = off; SET enable_bitmapscan = off",
    )?;
    let mut old = cluster().connect_db("oldsnapshot")?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    // In the snapshot's eyes there is no token; it keeps them all the same.
    let sql = "SELECT count(*), counter_value('once') FROM counterx.token";
    let row = snapshot.query_one(sql, &[])?;
    ensure!(row.get::<_, i64>(0) == 0 && row.get::<_, i64>(1) == 0);
    client.execute(
        "SELECT count(counter_incr_once('many ' || n, 'once')) FROM generate_series(1, $1::bigint) n",
        &[&MANY],
    )?;
    let read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'token_at'";
    for round in 0..4 {
        ensure!(once(&mut client, &format!("few {round}"))?);
        poll_until("all tokens to go", DEADLINE, || {
            Ok(tokens(&mut client)? == 0)
        })?;
    }
    let mut reads = 0;
    poll_until("the statistics", DEADLINE, || {
        reads = client.query_one(read, &[])?.get(0);
        Ok(reads >= MANY)
    })?;
    ensure!(
        reads < 2 * MANY,
        "{reads} index entries read for {MANY} tokens"
    );
    let row = snapshot.query_one(sql, &[])?;
    ensure!(row.get::<_, i64>(0) == 0 && row.get::<_, i64>(1) == 0);
    snapshot.commit()?;
    ensure!(value(&mut client, "once")? == MANY + 4);
    Ok(())
}

/// The token of a transaction that takes longer than tokens are kept is older than some that were
/// removed before it came.
#[test]
fn token_of_a_long_transaction_goes_as_well() -> Result<()> {
    let mut client = create_database(cluster(), "long")?;
    let mut other = cluster().connect_db("long")?;
    for prepared in [false, true] {
        client.batch_execute("BEGIN; SELECT counter_incr_once('long', 'once')")?;
        ensure!(once(&mut other, "short")?);
        poll_until("the later token to go", DEADLINE, || {
            Ok(tokens(&mut other)? == 0)
        })?;
        client.batch_execute(if prepared {
            "PREPARE TRANSACTION 'long'"
        } else {
            "COMMIT"
        })?;
        if prepared {
            client.batch_execute("COMMIT PREPARED 'long'")?;
        }
        // The worker comes by for others.
        ensure!(once(&mut other, "another")?);
        poll_until("the token of the long transaction to go", DEADLINE, || {
            Ok(tokens(&mut other)? == 0)
        })?;
    }
    Ok(())
}

#[test]
fn restart_forgets_no_token_and_removes_those_that_expired() -> Result<()> {
    let mut cluster = Cluster::builder()
        .name("tokens-restart")
        .conf("counterx.compaction_interval", "20ms")
        .start()?;
    let mut client = create_database(&cluster, "restart")?;
    client.batch_execute(
        "SELECT counter_incr_once('token ' || n, 'once') FROM generate_series(1, 500) n",
    )?;
    drop(client);
    cluster.restart(StopMode::Immediate)?;
    let mut client = cluster.connect_db("restart")?;
    ensure!(!once(&mut client, "token 1")? && tokens(&mut client)? == 500);
    cluster.reload(&[("counterx.token_ttl", "1s")])?;
    // Twice, as the removal itself may be lost with the server.
    for _ in 0..2 {
        // Whoever counts brings the worker back.
        client.batch_execute("SELECT counter_incr('other')")?;
        poll_until("all tokens to go", DEADLINE, || {
            Ok(tokens(&mut client)? == 0)
        })?;
        drop(client);
        cluster.restart(StopMode::Immediate)?;
        client = cluster.connect_db("restart")?;
        ensure!(value(&mut client, "once")? == 500);
    }
    client.batch_execute("SELECT counter_incr('other')")?;
    poll_until("all tokens to go", DEADLINE, || {
        Ok(tokens(&mut client)? == 0)
    })?;
    ensure!(once(&mut client, "token 1")?);
    Ok(())
}
