//! The figures of `counterx.stat` add up, whatever happens to those who count.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Outcome, Recovering, catch_up, check, create_bare_database, create_database,
    folding_hard, is_lost, kill_and_recover, pages, pause_folding, refused, settle, shared,
    together, victim,
};
use counterx_harness::{Cluster, poll_until};
use postgres::error::SqlState;
use postgres::{Client, IsolationLevel, NoTls};

fn cluster() -> &'static Cluster {
    shared(|| folding_hard("stat").start())
}

fn figure(client: &mut Client, column: &str) -> Result<Option<i64>> {
    let sql = format!("SELECT {column}::bigint FROM counterx.stat");
    Ok(client.query_one(&sql, &[])?.get(0))
}

/// What the clients of a load ask for and what is written, if none is interrupted.
fn expected(load: &Load) -> (i64, i64) {
    let of_one = (0..load.transactions).map(|transaction| {
        let (calls, commits) = transaction_of(transaction);
        // The same name twice.
        (calls, if commits { calls - 1 } else { 0 })
    });
    let clients = load.clients.cast_signed();
    of_one.fold((0, 0), |(asked, written), (calls, rows)| {
        (asked + clients * calls, written + clients * rows)
    })
}

/// How many increments a transaction has, and whether it commits.
fn transaction_of(number: u64) -> (i64, bool) {
    (2 + (number % 4).cast_signed(), !number.is_multiple_of(5))
}

fn run_transaction(client: &mut Client, number: u64) -> Result<()> {
    let (calls, commits) = transaction_of(number);
    let mut transaction = client.transaction()?;
    for call in 0..calls {
        let name = format!("n:{}", call.max(1));
        transaction.execute("SELECT bump($1, 1)", &[&name])?;
    }
    if commits {
        transaction.commit()?;
    } else {
        transaction.rollback()?;
    }
    Ok(())
}

#[test]
fn figures_add_up_under_load() -> Result<()> {
    let mut client = create_database(cluster(), "addup")?;
    let config = cluster().config("addup");
    let load = Load {
        clients: 6,
        transactions: 200,
        ..Load::default()
    };
    together(
        &load,
        |_, control| {
            let mut client = config.connect(NoTls)?;
            for number in 0..load.transactions {
                run_transaction(&mut client, number)?;
                control.count();
            }
            Ok(Outcome::default())
        },
        |control| {
            let mut client = config.connect(NoTls)?;
            let (mut looks, mut before) = (0, 0);
            while !control.is_done() {
                let now = figure(&mut client, "increments")?.unwrap_or(-1);
                ensure!(now >= before, "{before} increments, then {now}");
                before = now;
                looks += 1;
            }
            Ok(looks)
        },
        |_| Ok(()),
    )?;
    let (asked, written) = expected(&load);
    ensure!(figure(&mut client, "increments")? == Some(asked));
    ensure!(figure(&mut client, "rows_flushed")? == Some(written));
    settle(&mut client)?;
    check(&mut client)?;
    // That of the last fold is there a moment after what it has done.
    poll_until("the folds to be counted", DEADLINE, || {
        let row = client.query_one(
            "SELECT s.deltas_folded, s.pending, s.folds = w.folds AND s.deltas_folded = w.deltas_folded
               FROM counterx.stat s, counterx.workers w",
            &[],
        )?;
        let (folded, pending, same): (i64, i64, bool) = (row.get(0), row.get(1), row.get(2));
        ensure!(folded <= written, "{folded} deltas are folded of {written}");
        Ok(folded == written && pending == 0 && same)
    })?;
    poll_until("a log to be emptied", DEADLINE, || {
        let load = Load {
            transactions: 1,
            ..load
        };
        for number in 0..100 * load.transactions {
            run_transaction(&mut client, number)?;
        }
        Ok(figure(&mut client, "truncations")? > Some(0))
    })
}

#[test]
fn hits_add_up() -> Result<()> {
    let mut client = create_bare_database(cluster(), "hitsup")?;
    client.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    let config = cluster().config("hitsup");
    let load = Load {
        clients: 4,
        transactions: 60,
        checkers: 0,
        ..Load::default()
    };
    together(
        &load,
        |_, control| {
            let mut client = config.connect(NoTls)?;
            for _ in 0..load.transactions {
                client.query_one("SELECT counter_hit('h')", &[])?;
                client.query_one("SELECT counter_try_hit('stock:none', -1)", &[])?;
                control.count();
            }
            Ok(Outcome::default())
        },
        |_| Ok(0),
        |_| Ok(()),
    )?;
    let hits = (load.clients * load.transactions).cast_signed();
    poll_until("the hits to be counted", DEADLINE, || {
        let row = client.query_one(
            "SELECT hits_batched, hits_refused, hit_batches, hits_waiting FROM counterx.stat",
            &[],
        )?;
        let [batched, refused, batches, waiting] = [0, 1, 2, 3].map(|at| row.get::<_, i64>(at));
        ensure!(batched <= hits && refused <= hits && batches <= 2 * hits);
        Ok(batched == hits && refused == hits && batches > 0 && waiting == 0)
    })
}

/// What cannot be counted is tried again and again, and counts once.
#[test]
fn what_the_committer_tries_again_counts_once() -> Result<()> {
    const HITS: i64 = 20;
    let mut client = create_bare_database(cluster(), "again")?;
    let mut other = cluster().connect_db("again")?;
    client.batch_execute("SELECT counter_hit('h')")?;
    client.batch_execute("SELECT counterx.stat_reset()")?;
    // Whoever creates a type has all gates locked.
    let mut held_up = other.transaction()?;
    held_up.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    for _ in 0..HITS {
        client.batch_execute("SELECT counter_hit('h', wait => false)")?;
    }
    // A transaction of its own each time.
    let mut tries = HashSet::new();
    poll_until("the committer to try again", DEADLINE, || {
        let sql = "SELECT xact_start::text FROM pg_stat_activity
                    WHERE backend_type = 'counterx committer' AND datname = 'again' AND wait_event_type = 'Lock'";
        for row in client.query(sql, &[])? {
            tries.insert(row.get::<_, String>(0));
        }
        Ok(tries.len() > 3)
    })?;
    held_up.commit()?;
    poll_until("the hits to be counted", DEADLINE, || {
        Ok(figure(&mut client, "hits_batched")? == Some(HITS))
    })?;
    let increments = figure(&mut client, "increments")?;
    ensure!(increments == Some(HITS), "{increments:?}");
    // Of one counter and of several, and what the same batch may have counted beside it.
    let failed = client.batch_execute("SELECT counter_hit_many('{\"h\": 1, \"stock:1\": -1}')");
    refused(failed, &SqlState::CHECK_VIOLATION)?;
    let failed = client.batch_execute("SELECT counter_hit('stock:1', -1)");
    refused(failed, &SqlState::CHECK_VIOLATION)?;
    // That a lane is locked is nobody's bound.
    let mut held_up = other.transaction()?;
    held_up.batch_execute("SELECT counter_type_create('more', min => 0)")?;
    let failed = client.batch_execute("SELECT counter_hit('h')");
    refused(failed, &SqlState::LOCK_NOT_AVAILABLE)?;
    held_up.rollback()?;
    let row = client.query_one(
        "SELECT refused, hits_refused, increments, hits_failed FROM counterx.stat",
        &[],
    )?;
    let figures: [i64; 4] = [0, 1, 2, 3].map(|at| row.get(at));
    ensure!(figures == [2, 2, HITS, 1], "{figures:?}");
    Ok(())
}

#[test]
fn after_a_crash_figures_begin_anew() -> Result<()> {
    let cluster = folding_hard("statkill").start()?;
    let mut client = create_database(&cluster, "statkill")?;
    let since = "SELECT stats_reset::text FROM counterx.stat";
    for number in 0..50 {
        run_transaction(&mut client, number)?;
    }
    let before: String = client.query_one(since, &[])?.get(0);
    drop(client);
    let config = cluster.config("statkill");
    let mut connection = Recovering::new(&config);
    kill_and_recover(&mut connection, |connection| {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'counterx worker'";
        connection.client()?.batch_execute("SELECT bump('x', 1)")?;
        victim(connection, "a worker", sql)
    })?;
    // The postmaster may close connections once more.
    poll_until("a session", DEADLINE, || {
        let tried = connection
            .client()
            .and_then(|client| Ok(client.batch_execute("SELECT bump('y', 2), bump('z', 1)")?));
        match tried {
            Ok(()) => Ok(true),
            Err(error) if is_lost(&error) => {
                connection.forget();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    })?;
    let client = connection.client()?;
    let after: String = client.query_one(since, &[])?.get(0);
    ensure!(after > before, "{before}, {after}");
    ensure!(figure(client, "increments")? == Some(2));
    settle(client)?;
    check(client)?;
    Ok(())
}

#[test]
fn more_databases_than_there_is_room_for() -> Result<()> {
    const LINE: &str = "no room for the figures of another database";
    let cluster = folding_hard("statroom")
        .conf("counterx.stat_databases", "2")
        .start()?;
    let since = cluster.log_len();
    for name in ["one", "two"] {
        let mut client = create_database(&cluster, name)?;
        client.batch_execute("SELECT bump('x', 1)")?;
        ensure!(figure(&mut client, "increments")? == Some(1), "{name}");
    }
    ensure!(!cluster.log_since(since).contains(LINE));
    let mut clients = Vec::new();
    for name in ["three", "four"] {
        let mut client = create_database(&cluster, name)?;
        client.batch_execute("SELECT bump('x', 1)")?;
        ensure!(figure(&mut client, "increments")?.is_none(), "{name}");
        ensure!(figure(&mut client, "hits_waiting")? == Some(0), "{name}");
        let row = client.query_one(
            "SELECT stats_reset IS NULL AND fold_time IS NULL AND pending IS NOT NULL FROM counterx.stat",
            &[],
        )?;
        ensure!(row.get::<_, bool>(0), "{name}");
        let reset = client.query_one("SELECT counterx.stat_reset()", &[]);
        refused(reset, &SqlState::CONFIGURATION_LIMIT_EXCEEDED)?;
        settle(&mut client)?;
        check(&mut client)?;
        clients.push(client);
    }
    let lines = cluster.log_since(since).matches(LINE).count();
    ensure!(lines == 1, "{lines} lines");
    let mut stays = cluster.connect_db("four")?;
    stays.batch_execute("SELECT bump('x', 5)")?;
    // What a database leaves that is dropped, another one takes, and nothing of its numbers.
    drop(clients);
    let mut admin = cluster.connect()?;
    // The first of those that wait for room gets it.
    admin.batch_execute("DROP DATABASE three WITH (FORCE)")?;
    admin.batch_execute("DROP DATABASE one WITH (FORCE)")?;
    let mut client = cluster.connect_db("four")?;
    client.batch_execute("SELECT bump('x', 1), bump('y', 1)")?;
    let increments = figure(&mut client, "increments")?;
    ensure!(increments == Some(2), "{increments:?}");
    let mut other = cluster.connect_db("two")?;
    ensure!(figure(&mut other, "increments")? == Some(1));
    // A session that was there before hears of it with one of its next commits, and has forgotten nothing.
    let mut calls = 1;
    poll_until("a session to find the room", DEADLINE, || {
        stays.batch_execute("SELECT bump('x', 5)")?;
        calls += 1;
        Ok(figure(&mut client, "increments")? >= Some(2 + calls))
    })?;
    ensure!(figure(&mut client, "increments")? == Some(2 + calls));
    Ok(())
}

#[test]
fn without_preload_there_is_what_there_is_now() -> Result<()> {
    let cluster = folding_hard("statbare").preload(false).start()?;
    let mut client = create_database(&cluster, "bare")?;
    pause_folding(&mut client, "bare")?;
    let mut client = cluster.connect_db("bare")?;
    client.batch_execute("SELECT bump('x', 1); SELECT bump('y', 1)")?;
    let row = client.query_one(
        "SELECT num_nonnulls(stats_reset, increments, rows_flushed, early_flushes, hit_batches, hits_batched,
                hits_waiting, hits_refused, hits_failed, folds, deltas_folded, fold_time, truncations, refused, escrow_waits,
                escrow_wait_time, tokens_used, tokens_replayed, tokens_expired, holds_expired,
                serialization_conflicts, back_pressure_waits, back_pressure_wait_time, back_pressure_refused),
                pending, oldest_pending <= clock_timestamp(), log_bytes > 0, workers >= 0
           FROM counterx.stat",
        &[],
    )?;
    ensure!(row.get::<_, i32>(0) == 0);
    ensure!(row.get::<_, i64>(1) == 2);
    ensure!(row.get::<_, bool>(2) && row.get::<_, bool>(3) && row.get::<_, bool>(4));
    let reset = client.query_one("SELECT counterx.stat_reset()", &[]);
    refused(reset, &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)?;
    Ok(())
}

/// How much of a backlog it visits does not depend on how much there is.
#[test]
fn a_look_takes_few_pages_of_a_backlog() -> Result<()> {
    let mut client = create_bare_database(cluster(), "backlog")?;
    pause_folding(&mut client, "backlog")?;
    let mut client = cluster().connect_db("backlog")?;
    for round in 0..8 {
        client.batch_execute(&format!(
            "SELECT count(counter_incr('n:' || i || ':{round}')) FROM generate_series(1, 50000) i"
        ))?;
    }
    let look = "SELECT * FROM counterx.stat";
    // A session's first look reads catalogs as well, and another one where others have changed a lot of them: what it
    // knew is forgotten then.
    client.query(look, &[])?;
    let mut visited = 0;
    poll_until("a look of few pages", DEADLINE, || {
        visited = pages(&mut client, look)?;
        Ok(visited < 3000)
    })
    .with_context(|| format!("{visited} pages"))?;
    let all: i64 = client
        .query_one("SELECT log_bytes / 8192 FROM counterx.stat", &[])?
        .get(0);
    ensure!(all > 2 * visited, "{visited} of {all}");
    let pending = figure(&mut client, "pending")?.unwrap_or_default();
    ensure!((300_000..550_000).contains(&pending), "{pending} of 400000");
    // What was written first is the oldest.
    let row = client.query_one(
        "SELECT oldest_pending < stats_reset + interval '1 hour', oldest_pending IS NOT NULL FROM counterx.stat",
        &[],
    )?;
    ensure!(row.get::<_, bool>(0) && row.get::<_, bool>(1));
    client.batch_execute("SELECT counterx.compact()")?;
    ensure!(figure(&mut client, "pending")? == Some(0));
    Ok(())
}

/// The leaves of an index have ten times as many rows of a counter that many transactions change as of such that are
/// changed once.
#[test]
fn pending_is_near_where_some_are_hot() -> Result<()> {
    let mut client = create_bare_database(cluster(), "hot")?;
    pause_folding(&mut client, "hot")?;
    let mut client = cluster().connect_db("hot")?;
    client.batch_execute("SET synchronous_commit = off")?;
    let hot = |client: &mut Client, name: &str, times: u32| {
        client.batch_execute(&format!(
            "DO $$ BEGIN FOR n IN 1 .. {times} LOOP PERFORM counter_incr('{name}'); COMMIT; END LOOP; END $$"
        ))
    };
    let once = |client: &mut Client, prefix: &str, names: u32| {
        client.batch_execute(&format!(
            "SELECT count(counter_incr('{prefix}' || lpad(n::text, 9, '0'))) FROM generate_series(1, {names}) n"
        ))
    };
    let compare = |client: &mut Client, what: &str| -> Result<()> {
        let is = figure(client, "pending")?.unwrap_or_default();
        let sql = "SELECT sum(pending_deltas)::bigint FROM counterx.lanes";
        let should: i64 = client.query_one(sql, &[])?.get(0);
        ensure!(
            (is - should).abs() < should / 5,
            "{what}: {is} of {should} are pending"
        );
        Ok(())
    };
    hot(&mut client, "a", 10_000)?;
    compare(&mut client, "hot")?;
    once(&mut client, "m", 80_000)?;
    compare(&mut client, "hot before others")?;
    client.batch_execute("SELECT counterx.compact()")?;
    once(&mut client, "b", 8_000)?;
    hot(&mut client, "z", 30_000)?;
    compare(&mut client, "hot after others")?;
    // A page of downlinks is full after some two hundred leaves.
    once(&mut client, "m", 240_000)?;
    compare(
        &mut client,
        "hot between others, on pages of several levels",
    )
}

/// Nor on how many relations others have.
#[test]
fn a_look_does_not_go_through_all_relations() -> Result<()> {
    let mut client = create_bare_database(cluster(), "relations")?;
    let look = "SELECT * FROM counterx.stat";
    let visited = |client: &mut Client| {
        // A session's first look, and one after new relations, reads catalogs as well.
        client.query(look, &[])?;
        client.query(look, &[])?;
        pages(client, look)
    };
    let before = visited(&mut client)?;
    for batch in 0..8 {
        client.batch_execute(&format!(
            "DO $$ BEGIN FOR n IN 1 .. 1000 LOOP EXECUTE format('CREATE TYPE t_{batch}_%s AS ()', n); END LOOP; END $$"
        ))?;
    }
    client.batch_execute("ANALYZE pg_class, pg_depend, pg_extension")?;
    let relations: i64 = client
        .query_one("SELECT pg_relation_size('pg_class') / 8192", &[])?
        .get(0);
    let after = visited(&mut client)?;
    ensure!(
        after < before + relations / 4,
        "{before} pages, {after} beside {relations} pages of relations"
    );
    Ok(())
}

#[test]
fn standby_shows_what_it_has() -> Result<()> {
    let primary = Cluster::builder().name("statprimary").start()?;
    let mut client = create_bare_database(&primary, "there")?;
    pause_folding(&mut client, "there")?;
    client.batch_execute("SELECT counter_incr('x'); SELECT counter_incr('x')")?;
    let standby = Cluster::builder()
        .name("statstandby")
        .standby_of(&primary)
        .start()?;
    catch_up(&primary, &mut standby.connect()?)?;
    let mut client = standby.connect_db("there")?;
    let row = client.query_one(
        "SELECT increments, pending, oldest_pending IS NOT NULL, workers FROM counterx.stat",
        &[],
    )?;
    ensure!(row.get::<_, i64>(0) == 0);
    ensure!(row.get::<_, i64>(1) >= 1);
    ensure!(row.get::<_, bool>(2) && row.get::<_, i32>(3) == 0);
    client.batch_execute("SELECT counterx.stat_reset()")?;
    Ok(())
}

/// Of a backlog of one epoch, whatever the names.
#[test]
fn oldest_is_what_was_written_first() -> Result<()> {
    let mut client = create_bare_database(cluster(), "oldest")?;
    pause_folding(&mut client, "oldest")?;
    let mut client = cluster().connect_db("oldest")?;
    // Enough for a few pages in each lane; those that stand first in the order of names come last.
    client
        .batch_execute("SELECT count(counter_incr('z:' || i)) FROM generate_series(1, 2000) i")?;
    let between: String = client
        .query_one("SELECT clock_timestamp()::text", &[])?
        .get(0);
    for round in 0..4 {
        client.batch_execute(&format!(
            "SELECT count(counter_incr('a:{round}:' || i)) FROM generate_series(1, 5000) i"
        ))?;
    }
    let row = client.query_one(
        "SELECT oldest_pending < $1::text::timestamptz, oldest_pending > stats_reset - interval '1 minute' FROM counterx.stat",
        &[&between],
    )?;
    ensure!(row.get::<_, Option<bool>>(0) == Some(true));
    ensure!(row.get::<_, Option<bool>>(1) == Some(true));
    // What is folded stands before it, and says nothing.
    client.batch_execute("SELECT counterx.compact()")?;
    client.batch_execute("SELECT counter_incr('a')")?;
    let newer = client.query_one(
        "SELECT oldest_pending > $1::text::timestamptz FROM counterx.stat",
        &[&between],
    )?;
    ensure!(newer.get::<_, Option<bool>>(0) == Some(true));
    Ok(())
}

/// An index of a log that is gone takes away what it would tell, and nothing else.
#[test]
fn what_is_known_is_shown_where_an_index_is_missing() -> Result<()> {
    let mut client = create_bare_database(cluster(), "unhealthy")?;
    pause_folding(&mut client, "unhealthy")?;
    let mut client = cluster().connect_db("unhealthy")?;
    client.batch_execute("SELECT count(counter_incr('n:' || i)) FROM generate_series(1, 100) i")?;
    let indexes = client.query(
        "SELECT indexrelid::regclass::text FROM pg_index
          WHERE indrelid::regclass::text LIKE 'counterx.log\\_%'",
        &[],
    )?;
    for index in &indexes {
        client.batch_execute(&format!("DROP INDEX {}", index.get::<_, String>(0)))?;
    }
    let row = client.query_one(
        "SELECT increments, pending, oldest_pending IS NULL FROM counterx.stat",
        &[],
    )?;
    let (increments, pending): (i64, Option<i64>) = (row.get(0), row.get(1));
    ensure!(
        increments == 100 && pending.is_none() && row.get::<_, bool>(2),
        "{increments} increments, {pending:?} pending"
    );
    Ok(())
}

#[test]
fn conflict_counts_once() -> Result<()> {
    let mut client = create_database(cluster(), "conflict")?;
    let mut other = cluster().connect_db("conflict")?;
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    transaction.query_one("SELECT counter_value('x')", &[])?;
    other.batch_execute("SELECT bump('x', 1)")?;
    let set = transaction.query_one("SELECT counter_set('x', 5)", &[]);
    refused(set, &SqlState::T_R_SERIALIZATION_FAILURE)?;
    transaction.rollback()?;
    let conflicts = figure(&mut other, "serialization_conflicts")?;
    ensure!(conflicts == Some(1), "{conflicts:?}");
    Ok(())
}

/// One after the other becomes other than it was, and none but what is said.
#[test]
fn each_figure_stands_in_its_own_column() -> Result<()> {
    let mut client = create_bare_database(cluster(), "columns")?;
    pause_folding(&mut client, "columns")?;
    let mut client = cluster().connect_db("columns")?;
    let mut other = cluster().connect_db("columns")?;
    client.batch_execute(
        "SELECT counter_type_create('stock', min => 0); SELECT counter_set('stock:a', 5)",
    )?;
    let figures = |client: &mut Client| -> Result<[i64; 8]> {
        let row = client.query_one(
            "SELECT refused, escrow_waits, (escrow_wait_time > 0)::int::bigint, tokens_used, tokens_replayed,
                    tokens_expired, holds_expired, serialization_conflicts
               FROM counterx.stat",
            &[],
        )?;
        Ok([0, 1, 2, 3, 4, 5, 6, 7].map(|at| row.get(at)))
    };
    client.batch_execute("SELECT counterx.stat_reset()")?;
    ensure!(figures(&mut client)? == [0; 8]);
    // Somebody may give back what is wanted, and does not.
    let mut taken = other.transaction()?;
    taken.batch_execute("SELECT counter_decr('stock:a', 5)")?;
    client.batch_execute("SELECT counter_try_incr('stock:a', -1)")?;
    taken.rollback()?;
    ensure!(figures(&mut client)? == [1, 1, 1, 0, 0, 0, 0, 0]);
    client.batch_execute("SELECT counter_incr_once('t', 'x')")?;
    ensure!(figures(&mut client)? == [1, 1, 1, 1, 0, 0, 0, 0]);
    client.batch_execute("SELECT counter_incr_once('t', 'x')")?;
    ensure!(figures(&mut client)? == [1, 1, 1, 1, 1, 0, 0, 0]);
    client.batch_execute("UPDATE counterx.token SET at = at - interval '1 year'")?;
    client.batch_execute("BEGIN; SELECT counterx.compact(); ROLLBACK")?;
    ensure!(figures(&mut client)? == [1, 1, 1, 1, 1, 0, 0, 0]);
    client.batch_execute("SELECT counterx.compact()")?;
    ensure!(figures(&mut client)? == [1, 1, 1, 1, 1, 1, 0, 0]);
    client.batch_execute("SELECT counter_hold('stock:a', 1, '1 hour')")?;
    client.batch_execute("UPDATE counterx.hold SET expires_at = now() - interval '2 days'")?;
    client.batch_execute("SELECT counterx.compact()")?;
    ensure!(figures(&mut client)? == [1, 1, 1, 1, 1, 1, 1, 0]);
    Ok(())
}
