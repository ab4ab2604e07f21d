//! History: buckets add up in every snapshot, and what is sealed stays, whatever happens.
//!
//! The clock that history goes by is set by debug builds alone; against a release build, which has none, most of
//! these tests have nothing to see.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Recovering, Refusal, Seen, buckets_agree, catch_up, check, compact,
    create_database, folding_hard, has_clock, histories, history_under_watch, is_lost,
    kill_and_recover, look_at_history, nothing_crashed, nothing_crashed_by_itself, patiently,
    prepare_history, refused, resolve_orphans, run_clock, seconds_until, seed, set_clock,
    set_server_clock, settle, shared, undisturbed, victim, wait_for_no_worker,
};
use counterx_harness::{Cluster, poll_until};
use postgres::error::SqlState;
use postgres::{Client, IsolationLevel, NoTls};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// What a paused process waits for: see the engine's `failpoint.rs`.
const PAUSE_KEY: i64 = 0x636e_7478;

/// One whose clock nobody sets but sessions, for themselves, and databases.
fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("history")
            .conf("max_prepared_transactions", "100")
            .conf("timezone", "UTC")
            .conf("counterx.worker_idle_timeout", "1s")
            .conf("wal_level", "logical")
            .start()
    })
}

/// A database in which nobody folds who is not told to. None: there is no clock to be set.
fn still(name: &str) -> Result<Option<Client>> {
    let mut client = create_database(cluster(), name)?;
    if !has_clock(&mut client)? {
        return Ok(None);
    }
    client.batch_execute(
        "CREATE FUNCTION known_names() RETURNS TABLE (name text) STABLE LANGUAGE sql AS $$ SELECT DISTINCT name FROM public.oracle $$",
    )?;
    client.batch_execute(&format!(
        "ALTER DATABASE {name} SET counterx.compaction = off"
    ))?;
    drop(client);
    Ok(Some(cluster().connect_db(name)?))
}

/// What a query that returns texts returns.
fn texts(client: &mut Client, sql: &str) -> Result<Vec<String>> {
    let rows = client.query(sql, &[])?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The buckets of a counter.
fn buckets(client: &mut Client, name: &str, unit: &str) -> Result<Vec<String>> {
    texts(
        client,
        &format!(
            "SELECT concat_ws(' ', start AT TIME ZONE 'UTC', delta, adjusted, value) || CASE WHEN sealed THEN ' sealed' ELSE '' END
               FROM counter_buckets('{name}', '{unit}')"
        ),
    )
}

fn seal(client: &mut Client) -> Result<()> {
    Ok(client.batch_execute("SELECT counter_seal()")?)
}

fn sealed_until(client: &mut Client) -> Result<String> {
    Ok(client
        .query_one("SELECT sealed_until::text FROM counter_sealed", &[])?
        .get(0))
}

/// Waits until all histories have begun in all lanes.
fn wait_until_begun(client: &mut Client) -> Result<()> {
    poll_until("all histories to begin", DEADLINE, || {
        let sql = "SELECT count(*) > 0 AND bool_and(since IS NOT NULL) FROM counter_histories";
        Ok(client.query_one(sql, &[])?.get(0))
    })
}

#[test]
fn buckets_add_up_and_what_is_sealed_stays_in_every_snapshot_of_a_mixed_load() -> Result<()> {
    let cluster = folding_hard("history-load")
        .conf("max_prepared_transactions", "100")
        .start()?;
    let mut client = create_database(&cluster, "mixed")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    let config = cluster.config("mixed");
    // A month ends in UTC, a day in Berlin.
    let ahead = seconds_until(&mut client, "2027-02-28 22:45+00")?;
    set_server_clock(&mut client, ahead)?;
    client.batch_execute("SELECT bump('counter:0', 1000)")?;
    settle(&mut client)?;
    prepare_history(&mut client)?;
    client.batch_execute(histories())?;
    client.batch_execute("SELECT counter_seal()")?;
    wait_until_begun(&mut client)?;
    let seen = Seen::default();
    let load = Load {
        clients: 3,
        transactions: 200,
        names: 10,
        checkers: 2,
        ..Load::default()
    };
    let looks = history_under_watch(&config, &load, (&seen, true), |control| {
        std::thread::scope(|scope| {
            // Beside the worker.
            let by_hand = scope.spawn(|| -> Result<()> {
                let mut client = config.connect(NoTls)?;
                while !control.is_done() {
                    client.batch_execute("SELECT counterx.compact()")?;
                    client.batch_execute("SELECT counter_seal()")?;
                    std::thread::sleep(std::time::Duration::from_millis(300));
                }
                Ok(())
            });
            run_clock(&config, control, (ahead, 60))?;
            by_hand.join().expect("no panic")
        })
    })?;
    settle(&mut client)?;
    buckets_agree(&mut client, true)?;
    let mut rng = StdRng::seed_from_u64(seed());
    let beside = seen.reads();
    while seen.reads() < 100_000 {
        seen.look(&mut client, &mut rng)?;
    }
    seen.look_at_all(&mut client)?;
    ensure!(looks >= 4, "{looks} looks");
    ensure!(beside > 100, "{beside} reads beside the load");
    ensure!(seen.rows() > 200, "{} rows", seen.rows());
    nothing_crashed(&cluster.log()).context("in the log")
}

#[test]
fn prepared_transaction_counts_in_no_day_that_was_sealed() -> Result<()> {
    let Some(mut client) = still("midnight")? else {
        return Ok(());
    };
    set_clock(&mut client, "2027-03-01 23:58:10+00")?;
    client.batch_execute("SELECT counter_history('x', 'infinity', events => 'infinity')")?;
    seal(&mut client)?;
    client.batch_execute("SELECT bump('x:a', 5)")?;
    client.batch_execute("BEGIN; SELECT bump('x:a', 7); PREPARE TRANSACTION 'midnight 1'")?;
    client.batch_execute("BEGIN; SELECT bump('x:a', 70); PREPARE TRANSACTION 'midnight 2'")?;
    // The first one is in time.
    set_clock(&mut client, "2027-03-02 00:10:10+00")?;
    client.batch_execute("COMMIT PREPARED 'midnight 1'")?;
    client.batch_execute("SELECT bump('x:a', 1)")?;
    let first = ["2027-03-01 00:00:00 12 0 12", "2027-03-02 00:00:00 1 0 13"];
    ensure!(buckets(&mut client, "x:a", "day")? == first);
    seal(&mut client)?;
    let first = [
        "2027-03-01 00:00:00 12 0 12 sealed",
        "2027-03-02 00:00:00 1 0 13",
    ];
    ensure!(buckets(&mut client, "x:a", "day")? == first);
    client.batch_execute("COMMIT PREPARED 'midnight 2'")?;
    let after = [
        "2027-03-01 00:00:00 12 0 12 sealed",
        "2027-03-02 00:00:00 71 0 83",
    ];
    for _ in 0..2 {
        let days = buckets(&mut client, "x:a", "day")?;
        ensure!(days == after, "{days:?}");
        let minutes = buckets(&mut client, "x:a", "minute")?;
        let expected = [
            "2027-03-01 23:58:00 12 0 12 sealed",
            "2027-03-02 00:10:00 71 0 83",
        ];
        ensure!(minutes == expected, "{minutes:?}");
        buckets_agree(&mut client, true)?;
        compact(&mut client)?;
    }
    Ok(())
}

#[test]
fn clock_that_steps_back_or_leaps_loses_nothing_and_changes_nothing_sealed() -> Result<()> {
    let Some(mut client) = still("clocks")? else {
        return Ok(());
    };
    set_clock(&mut client, "2027-03-01 12:30:30+00")?;
    client.batch_execute("SELECT counter_history('x', 'infinity', events => 'infinity')")?;
    seal(&mut client)?;
    client.batch_execute("SELECT bump('x:a', 1)")?;
    seal(&mut client)?;
    let at_first = sealed_until(&mut client)?;
    // Back, by hours.
    set_clock(&mut client, "2027-03-01 09:00:00+00")?;
    for delta in [2, 4] {
        client.execute("SELECT bump('x:a', $1)", &[&i64::from(delta)])?;
        ensure!(buckets(&mut client, "x:a", "minute")?.len() == 1);
        seal(&mut client)?;
        ensure!(
            sealed_until(&mut client)? == at_first,
            "the seal has moved with a clock that went back"
        );
    }
    // Two hours ahead for a minute, and nobody says that it is right.
    set_clock(&mut client, "2027-03-01 14:40:10+00")?;
    client.batch_execute("SELECT bump('x:a', 8)")?;
    compact(&mut client)?;
    client.batch_execute("SELECT bump('x:a', 16)")?;
    compact(&mut client)?;
    ensure!(
        sealed_until(&mut client)? == at_first,
        "sealed by a clock that has leapt"
    );
    set_clock(&mut client, "2027-03-01 12:41:00+00")?;
    client.batch_execute("SELECT bump('x:a', 32)")?;
    let expected = [
        "2027-03-01 12:30:00 7 0 7 sealed",
        "2027-03-01 12:41:00 32 0 39",
        "2027-03-01 14:40:00 24 0 63",
    ];
    for round in 0..2 {
        let minutes = buckets(&mut client, "x:a", "minute")?;
        let unsealed =
            minutes[0].trim_end_matches(" sealed") == expected[0].trim_end_matches(" sealed");
        ensure!(unsealed && minutes[1..] == expected[1..], "{minutes:?}");
        ensure!(round == 0 || minutes[0] == expected[0], "{minutes:?}");
        buckets_agree(&mut client, true)?;
        set_clock(&mut client, "2027-03-01 12:41:10+00")?;
        seal(&mut client)?;
    }
    // The time comes.
    set_clock(&mut client, "2027-03-01 14:40:30+00")?;
    client.batch_execute("SELECT bump('x:a', 64); SELECT counter_set('x:a', 100)")?;
    client.batch_execute("INSERT INTO oracle SELECT 'x:a', 100 - sum(delta) FROM oracle")?;
    seal(&mut client)?;
    set_clock(&mut client, "2027-03-01 14:42:00+00")?;
    seal(&mut client)?;
    let minutes = buckets(&mut client, "x:a", "minute")?;
    let expected = [
        "2027-03-01 12:30:00 7 0 7 sealed",
        "2027-03-01 12:41:00 32 0 39 sealed",
        "2027-03-01 14:40:00 88 -27 100 sealed",
    ];
    ensure!(minutes == expected, "{minutes:?}");
    let at = "SELECT counter_at('x:a', '2027-03-01 12:40:59+00') || ' ' || counter_at('x:a', '2027-03-01 14:40:59+00')
                     || ' ' || counter_at('x:a', '2027-03-01 14:41+00')";
    ensure!(texts(&mut client, at)? == ["7 39 100"]);
    check(&mut client)?;
    buckets_agree(&mut client, true)?;
    Ok(())
}

/// Zones, days on which their clocks are set, and how many quarters of an hour and hours these have.
const DAYS: [(&str, &str, &str, usize, usize); 6] = [
    ("lh1", "Australia/Lord_Howe", "2026-10-04", 94, 24),
    ("berlin1", "Europe/Berlin", "2026-10-25", 100, 25),
    ("ny1", "America/New_York", "2026-11-01", 100, 25),
    ("ny2", "America/New_York", "2027-03-14", 92, 23),
    ("berlin2", "Europe/Berlin", "2027-03-28", 92, 23),
    ("lh2", "Australia/Lord_Howe", "2027-04-04", 98, 24),
];

#[test]
fn days_on_which_clocks_are_set_have_each_quarter_of_an_hour_once() -> Result<()> {
    let Some(mut client) = still("dst")? else {
        return Ok(());
    };
    for (of, zone, day, quarters, hours) in DAYS {
        let bounds = client.query_one(
            &format!(
                "SELECT extract(epoch FROM s)::bigint, extract(epoch FROM e)::bigint, floor(extract(epoch FROM clock_timestamp()))::bigint
                   FROM (SELECT timestamp '{day}' AT TIME ZONE '{zone}' AS s, (timestamp '{day}' + interval '1 day') AT TIME ZONE '{zone}' AS e) d"
            ),
            &[],
        )?;
        let (start, end, now): (i64, i64, i64) = (bounds.get(0), bounds.get(1), bounds.get(2));
        let set = |client: &mut Client, time: i64| -> Result<()> {
            Ok(client.batch_execute(&format!("SET counterx.clock_ahead = {}", time - now))?)
        };
        set(&mut client, start - 7200)?;
        client.batch_execute(&format!(
            "SELECT counter_history('{of}', 'infinity', 'infinity', 'infinity', 'infinity', time_zone => '{zone}')"
        ))?;
        seal(&mut client)?;
        let name = format!("{of}:a");
        let times: Vec<i64> = (start - 3600..end + 3600).step_by(900).collect();
        for (round, &time) in times.iter().enumerate() {
            // The test takes some seconds, and none of these is to end a quarter.
            set(&mut client, time + 60)?;
            client.execute("SELECT bump($1, 1)", &[&name])?;
            if round % 17 == 3 {
                compact(&mut client)?;
            } else if round % 29 == 5 {
                seal(&mut client)?;
            }
        }
        for folded in [false, true] {
            if folded {
                seal(&mut client)?;
            }
            let sql = format!(
                "SELECT delta::bigint FROM counter_buckets('{name}', 'day', timestamp '{day}' AT TIME ZONE '{zone}',
                                                           (timestamp '{day}' + interval '1 day') AT TIME ZONE '{zone}')"
            );
            let rows = client.query(&sql, &[])?;
            let days: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            ensure!(
                days == [quarters as i64],
                "{of}, folded {folded}: a day of {days:?} quarters, not {quarters}"
            );
            let sql = format!(
                "SELECT extract(epoch FROM start)::bigint, delta::bigint FROM counter_buckets('{name}', 'hour')"
            );
            let rows = client.query(&sql, &[])?;
            let found: Vec<(i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            // Each hour has what was counted from its start to that of the next one.
            for (place, (hour, delta)) in found.iter().enumerate() {
                let next = found.get(place + 1).map_or(i64::MAX, |next| next.0);
                let expected = (times.iter())
                    .filter(|time| (*hour..next).contains(&(**time + 60)))
                    .count();
                ensure!(
                    *delta == expected as i64,
                    "{of}, folded {folded}: the hour of {hour} has {delta}, not {expected}: {found:?}"
                );
            }
            let of_day = (found.iter()).filter(|(hour, _)| (start..end).contains(hour));
            ensure!(of_day.count() == hours, "{of}: {found:?}");
            let sql = format!(
                "SELECT count(*), sum(delta)::bigint, max(delta)::bigint FROM counter_buckets('{name}', 'minute')"
            );
            let row = client.query_one(&sql, &[])?;
            let (rows, sum, most): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            ensure!(
                (rows, sum, most) == (times.len() as i64, times.len() as i64, 1),
                "{of}: {rows} minutes, {sum}, {most}"
            );
            let filled = format!(
                "SELECT count(*) FROM counter_buckets('{name}', 'hour', timestamp '{day}' AT TIME ZONE '{zone}',
                        (timestamp '{day}' + interval '1 day') AT TIME ZONE '{zone}', fill => true)"
            );
            let filled: i64 = client.query_one(&filled, &[])?.get(0);
            ensure!(filled == hours as i64, "{of}: {filled} hours are filled");
        }
        buckets_agree(&mut client, true)?;
    }
    Ok(())
}

#[test]
fn history_of_an_idle_database_begins_and_its_rows_go_though_nobody_counts() -> Result<()> {
    let mut client = create_database(cluster(), "idle")?;
    let id = "SELECT count(*) FROM counterx.history_lane";
    client.batch_execute("SELECT counter_history('x', 'infinity')")?;
    wait_until_begun(&mut client)?;
    client.batch_execute("SELECT bump('x:a', 5)")?;
    settle(&mut client)?;
    let sums = "SELECT sum(delta)::text FROM counter_buckets('x:a', 'minute')";
    ensure!(texts(&mut client, sums)? == ["5"]);
    wait_for_no_worker(&mut client, "idle")?;
    let dropped: bool = client
        .query_one("SELECT counter_history_drop('x')", &[])?
        .get(0);
    ensure!(dropped);
    refused(
        client.batch_execute(sums),
        &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    )?;
    poll_until(
        "the rows of a history that was dropped to go",
        DEADLINE,
        || {
            let left: i64 = client.query_one(id, &[])?.get(0);
            let sql = "SELECT count(*) FROM counterx.bucket_4_0";
            Ok(left == 0 && client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
        },
    )
}

#[test]
fn units_are_added_removed_and_kept_for_other_times() -> Result<()> {
    let Some(mut client) = still("units")? else {
        return Ok(());
    };
    set_clock(&mut client, "2027-03-01 10:00:10+00")?;
    let keeps = [
        "1 day", "7 days", "infinity", "2 days", "1 day", "800 days", "30 days",
    ];
    for (round, keep) in keeps.into_iter().enumerate() {
        client.batch_execute(&format!(
            "SELECT counter_history('x', minute => '{keep}', hour => '{keep}', day => 'infinity', events => '{keep}')"
        ))?;
        client.execute(
            "SELECT bump('x:a', $1), bump('x:b', -1)",
            &[&(round as i64)],
        )?;
        buckets_agree(&mut client, true).context("pending")?;
        if round % 2 == 0 {
            seal(&mut client)?;
        } else {
            compact(&mut client)?;
        }
        client.batch_execute("SELECT bump('x:a', 10)")?;
        set_clock(&mut client, &format!("2027-03-01 1{round}:15:00+00"))?;
        client.batch_execute("SELECT bump('x:a', 100)")?;
        buckets_agree(&mut client, true).with_context(|| format!("{keep} pending"))?;
        compact(&mut client)?;
        buckets_agree(&mut client, true).with_context(|| format!("{keep} folded"))?;
    }
    let sum = "SELECT sum(delta)::text FROM counter_buckets('x:a', 'minute')";
    ensure!(texts(&mut client, sum)? == ["791"]);
    // One that is removed and comes again knows nothing of before.
    client.batch_execute("SELECT counter_history('x', minute => NULL, hour => 'infinity')")?;
    refused(
        client.batch_execute(sum),
        &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    )?;
    refused(
        client.batch_execute("SELECT * FROM counter_events('x:a')"),
        &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
    )?;
    client.batch_execute("SELECT bump('x:a', 1)")?;
    client.batch_execute("SELECT counter_history('x', minute => 'infinity', hour => '1 day')")?;
    ensure!(
        texts(
            &mut client,
            "SELECT coalesce(sum(delta), 0)::text FROM counter_buckets('x:a', 'minute')"
        )? == ["0"]
    );
    client.batch_execute("SELECT bump('x:a', 2)")?;
    for _ in 0..2 {
        ensure!(
            texts(&mut client, sum)? == ["2"],
            "{:?}",
            texts(&mut client, sum)?
        );
        ensure!(
            texts(
                &mut client,
                "SELECT sum(delta)::text FROM counter_buckets('x:a', 'hour')"
            )? == ["794"]
        );
        buckets_agree(&mut client, false)?;
        compact(&mut client)?;
    }
    refused(
        client.batch_execute("SELECT counter_history('x', time_zone => 'Europe/Berlin')"),
        &SqlState::FEATURE_NOT_SUPPORTED,
    )?;
    for keep in ["801 days", "-1 day", "0"] {
        refused(
            client.batch_execute(&format!("SELECT counter_history('x', minute => '{keep}')")),
            &SqlState::INVALID_PARAMETER_VALUE,
        )?;
    }
    let drop = "SELECT concat_ws(' ', counter_history_drop('x'), counter_history_drop('x'), counter_value('x:a'))";
    ensure!(texts(&mut client, drop)? == ["t f 794"]);
    // Rows of what is gone go.
    client.batch_execute("ALTER DATABASE units RESET counterx.compaction")?;
    let mut client = cluster().connect_db("units")?;
    client.batch_execute("SELECT bump('x:a', 1)")?;
    poll_until("the rows of what is gone to go", DEADLINE, || {
        let sql = "SELECT (SELECT count(*) FROM counterx.history_lane) + (SELECT count(*) FROM counterx.bucket_4_0)
                        + (SELECT count(*) FROM counterx.bucket_3_0) + (SELECT count(*) FROM counterx.bucket_2_0)";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })
}

#[test]
fn purge_removes_what_was_and_nothing_of_what_comes() -> Result<()> {
    let Some(mut client) = still("purges")? else {
        return Ok(());
    };
    client.batch_execute("SELECT counter_history('x', 'infinity', events => 'infinity')")?;
    seal(&mut client)?;
    let count = |client: &mut Client, name: &str| -> Result<String> {
        let sql = format!(
            "SELECT concat_ws(' ', counter_value('{name}'), (SELECT sum(delta) FROM counter_buckets('{name}', 'minute')),
                    (SELECT sum(delta) FROM counter_events('{name}')))"
        );
        Ok(texts(client, &sql)?.remove(0))
    };
    let expect = |client: &mut Client, name: &str, expected: &str| -> Result<()> {
        for round in 0..2 {
            let found = count(client, name)?;
            ensure!(
                found == expected,
                "{name}, round {round}: {found}, not {expected}"
            );
            buckets_agree(client, true)?;
            compact(client)?;
        }
        Ok(())
    };
    // Undone in a savepoint.
    client.batch_execute("SELECT bump('x:a', 5)")?;
    client.batch_execute(
        "BEGIN; SELECT bump('x:a', 1); SAVEPOINT s; SELECT counter_drop('x:a', purge => true); SELECT counter_incr('x:a', 50);
         ROLLBACK TO s; SELECT bump('x:a', 2); COMMIT",
    )?;
    expect(&mut client, "x:a", "8 8 8")?;
    // One after the other.
    client.batch_execute("SELECT counter_drop('x:a', purge => true)")?;
    client.batch_execute("SELECT counter_incr('x:a', 5)")?;
    client.batch_execute("SELECT counter_incr('x:a', 6)")?;
    client.batch_execute("INSERT INTO oracle VALUES ('x:a', 3)")?;
    expect(&mut client, "x:a", "11 11 11")?;
    // The own ones after it, in one transaction.
    client.batch_execute(
        "BEGIN; SELECT counter_incr('x:a', 7); SELECT counter_drop('x:a', purge => true); SELECT counter_incr('x:a', 4); COMMIT",
    )?;
    expect(&mut client, "x:a", "4 4 4")?;
    // Written early, in a savepoint.
    client.batch_execute(
        "SET counterx.pending_work_mem = '64kB';
         BEGIN; SAVEPOINT s; SELECT counter_drop('x:a', purge => true); SELECT counter_incr('y:' || n) FROM generate_series(1, 3000) n;
         RELEASE s; SELECT counter_incr('x:a', 9); COMMIT; RESET counterx.pending_work_mem",
    )?;
    expect(&mut client, "x:a", "9 9 9")?;
    // Not prepared.
    let prepared = client.batch_execute(
        "BEGIN; SELECT counter_drop('x:a', purge => true); PREPARE TRANSACTION 'purge'",
    );
    refused(prepared, &SqlState::FEATURE_NOT_SUPPORTED)?;
    client.batch_execute("ROLLBACK")?;
    expect(&mut client, "x:a", "9 9 9")?;
    // One that was dropped before.
    client.batch_execute("SELECT counter_drop('x:a')")?;
    compact(&mut client)?;
    client.batch_execute("SELECT counter_drop('x:a', purge => true)")?;
    expect(&mut client, "x:a", "0")?;
    Ok(())
}

#[test]
fn purges_beside_others_who_count() -> Result<()> {
    let mut client = create_database(cluster(), "purging")?;
    client.batch_execute(
        "CREATE FUNCTION known_names() RETURNS TABLE (name text) STABLE LANGUAGE sql AS $$ SELECT 'x:' || n FROM generate_series(0, 2) n $$;
         SELECT counter_history('x', 'infinity', 'infinity', events => 'infinity')",
    )?;
    wait_until_begun(&mut client)?;
    let (over, counted) = (AtomicBool::new(false), AtomicI64::new(0));
    std::thread::scope(|scope| {
        let (over, counted) = (&over, &counted);
        let counting: Vec<_> = (0..3)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster().connect_db("purging")?;
                    for round in 0.. {
                        if over.load(Ordering::Relaxed) {
                            break;
                        }
                        let name = format!("x:{}", (round + number) % 3);
                        let sql = if round % 5 == 0 {
                            "SELECT counter_drop($1, purge => true)"
                        } else {
                            "SELECT counter_incr($1, 3)"
                        };
                        client.execute(sql, &[&name])?;
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let looked = (|| -> Result<()> {
            let mut looks = 0;
            // One that has ended has failed.
            while (looks < 10 || counted.load(Ordering::Relaxed) < 1200)
                && counting.iter().all(|client| !client.is_finished())
            {
                let mut transaction = (client.build_transaction())
                    .isolation_level(IsolationLevel::RepeatableRead)
                    .start()?;
                let first = buckets_agree(&mut transaction, true)?;
                std::thread::sleep(Duration::from_millis(30));
                let second = buckets_agree(&mut transaction, true)?;
                ensure!(first == second, "{first} buckets, then {second}");
                transaction.commit()?;
                looks += 1;
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        for client in counting {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        looked
    })?;
    settle(&mut client)?;
    buckets_agree(&mut client, true)?;
    for name in ["x:0", "x:1", "x:2"] {
        client.execute("SELECT counter_drop($1, purge => true)", &[&name])?;
        ensure!(buckets(&mut client, name, "minute")?.is_empty());
    }
    settle(&mut client)?;
    let rows: i64 = client
        .query_one("SELECT count(*) FROM counterx.bucket_4_0", &[])?
        .get(0);
    ensure!(rows == 0, "{rows} rows are left");
    Ok(())
}

/// What was begun before the call, or not committed, is not counted, but for what was in flight; all of what
/// begins after it is.
#[test]
fn history_that_begins_under_load_has_nothing_of_before_and_all_of_after() -> Result<()> {
    const CLIENTS: i64 = 4;
    let mut client = create_database(cluster(), "begins")?;
    let phase = AtomicU8::new(0);
    let counted = [const { AtomicI64::new(0) }; 3];
    std::thread::scope(|scope| -> Result<()> {
        let (phase, counted) = (&phase, &counted);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster().connect_db("begins")?;
                    loop {
                        let now = phase.load(Ordering::SeqCst);
                        if now == 3 {
                            return Ok(());
                        }
                        let delta = [1_i64, 1_000_000_000, 10_000][usize::from(now)];
                        let sql = format!("BEGIN; SELECT bump('x:{number}', {delta}); SELECT bump('x:all', {delta}); COMMIT");
                        client.batch_execute(&sql)?;
                        counted[usize::from(now)].fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let wait = |place: usize| {
            poll_until("some to be counted", DEADLINE, || {
                Ok(counted[place].load(Ordering::SeqCst) > 200)
            })
        };
        let result = (|| {
            wait(0)?;
            phase.store(1, Ordering::SeqCst);
            client.batch_execute(
                "SELECT counter_history('x', 'infinity', 'infinity', events => 'infinity')",
            )?;
            phase.store(2, Ordering::SeqCst);
            wait(2)
        })();
        phase.store(3, Ordering::SeqCst);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        result
    })?;
    wait_until_begun(&mut client)?;
    for folded in [false, true] {
        if folded {
            settle(&mut client)?;
        }
        let sql = "SELECT sum(delta)::bigint FROM counter_buckets('x:all', 'minute')";
        let sum: i64 = client.query_one(sql, &[])?.get(0);
        let (before, after) = (sum % 10_000, sum % 1_000_000_000 / 10_000);
        ensure!(before <= CLIENTS, "{before} of before were counted");
        let expected = counted[2].load(Ordering::SeqCst);
        ensure!(
            after == expected,
            "{after} of {expected} were counted after the call"
        );
        for unit in ["hour", "day"] {
            let sql = format!("SELECT sum(delta)::bigint FROM counter_buckets('x:all', '{unit}')");
            ensure!(
                client.query_one(&sql, &[])?.get::<_, i64>(0) == sum,
                "{unit}"
            );
        }
        let sql = "SELECT sum(delta)::bigint FROM counter_events('x:all', max_rows => 1000000)";
        ensure!(
            client.query_one(sql, &[])?.get::<_, i64>(0) == sum,
            "events"
        );
    }
    check(&mut client)?;
    Ok(())
}

/// Sets the clock of a database, for new sessions; its worker begins a new one by itself.
fn set_database_clock(db: &str, time: &str) -> Result<Client> {
    let mut client = cluster().connect_db(db)?;
    let ahead = seconds_until(&mut client, time)?;
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.clock_ahead = {ahead}"
    ))?;
    cluster().connect_db(db)
}

/// When the oldest row begins that the tables of the class of up to a day have, and how many of them have pages.
fn first_class(client: &mut Client) -> Result<(Option<String>, usize)> {
    let (mut oldest, mut tables): (Option<String>, usize) = (None, 0);
    for number in 0..6 {
        let sql = format!(
            "SELECT min(start AT TIME ZONE 'UTC')::text, pg_relation_size('counterx.bucket_0_{number}') > 0
               FROM counterx.bucket_0_{number}"
        );
        let row = client.query_one(&sql, &[])?;
        let first: Option<String> = row.get(0);
        tables += usize::from(row.get::<_, bool>(1));
        oldest = match (oldest, first) {
            (Some(known), Some(first)) => Some(known.min(first)),
            (known, first) => known.or(first),
        };
    }
    Ok((oldest, tables))
}

/// How many rows there are in these tables of before the fifth.
fn rows_before(client: &mut Client) -> Result<i64> {
    let tables: Vec<String> = (0..6)
        .map(|number| format!("SELECT start FROM counterx.bucket_0_{number}"))
        .collect();
    let sql = format!(
        "SELECT count(*) FROM ({}) t WHERE start < '2027-03-05 00:00+00'",
        tables.join(" UNION ALL ")
    );
    Ok(client.query_one(&sql, &[])?.get(0))
}

#[test]
fn what_has_expired_goes_with_its_table_and_an_old_snapshot_keeps_it() -> Result<()> {
    if still("expires")?.is_none() {
        return Ok(());
    }
    let mut client = set_database_clock("expires", "2027-03-01 00:30:00+00")?;
    client.batch_execute(
        "SELECT counter_history('x', '1 day', '7 days', 'infinity', events => '1 day')",
    )?;
    seal(&mut client)?;
    client.batch_execute("ALTER DATABASE expires RESET counterx.compaction")?;
    let look = "SELECT concat_ws(' ', unit, b.start, b.delta, b.value) FROM (VALUES ('minute'), ('hour'), ('day')) u (unit),
                       LATERAL counter_buckets('x:a', unit) b
                UNION ALL SELECT concat_ws(' ', 'event', at, delta) FROM counter_events('x:a')";
    let mut old = cluster().connect_db("expires")?;
    let mut known = Vec::new();
    for day in 1..=4 {
        for hour in ["04", "10", "16", "22"] {
            client = set_database_clock("expires", &format!("2027-03-0{day} {hour}:10:00+00"))?;
            client.batch_execute("SELECT bump('x:a', 1), bump('x:b', 2)")?;
            seal(&mut client)?;
            client.batch_execute("SELECT bump('x:a', 1)")?;
            buckets_agree(&mut client, false)?;
        }
        if day == 1 {
            old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
            known = texts(&mut old, look)?;
            ensure!(known.len() > 15, "{known:?}");
        }
    }
    // A worker has had its turn.
    client.batch_execute("SELECT bump('x:b', 2)")?;
    wait_for_no_worker(&mut client, "expires")?;
    let (oldest, _) = first_class(&mut client)?;
    ensure!(
        oldest.as_deref() == Some("2027-03-01 04:10:00"),
        "emptied beside a snapshot that sees it: {oldest:?}"
    );
    let again = texts(&mut old, look)?;
    ensure!(again == known, "{known:?}, then {again:?}");
    // Of the same minute, however long that took.
    set_clock(&mut client, "2027-03-04 22:10:20+00")?;
    let shown = buckets(&mut client, "x:a", "minute")?;
    ensure!(
        shown[0].starts_with("2027-03-03 22:10:00"),
        "what is older than a day is shown: {shown:?}"
    );
    let sql = "SELECT concat_ws(' ', counter_at('x:a', '2027-03-01 12:00+00'), counter_at_boundary('x:a', '2027-03-01 12:00+00') AT TIME ZONE 'UTC')";
    let at = texts(&mut client, sql)?;
    ensure!(at == ["4 2027-03-01 12:00:00"], "{at:?}");
    // From here on, a worker that looks in may empty the first one.
    let mut left = rows_before(&mut client)?;
    old.batch_execute("COMMIT")?;
    // Each table has a time in which nothing of it is wanted, before its next turn begins.
    for time in ["04 22", "05 04", "05 10", "05 16", "05 22", "06 04"] {
        client = set_database_clock("expires", &format!("2027-03-{time}:20:00+00"))?;
        seal(&mut client)?;
        let before = left;
        poll_until("a table to be emptied", DEADLINE, || {
            // A worker looks for it when it begins.
            client.batch_execute("SELECT bump('x:b', 2)")?;
            wait_for_no_worker(&mut client, "expires")?;
            left = rows_before(&mut client)?;
            Ok(left < before)
        })
        .with_context(|| format!("{time}: {before} rows"))?;
    }
    ensure!(left == 0, "{left} rows are left");
    buckets_agree(&mut client, false)?;
    check(&mut client)?;
    // Nothing was deleted for it.
    let deleted = "SELECT coalesce(sum(n_tup_del), 0)::bigint FROM pg_stat_all_tables WHERE relname LIKE 'bucket%'";
    ensure!(client.query_one(deleted, &[])?.get::<_, i64>(0) == 0);
    Ok(())
}

/// A worker has found that a table is not wanted any more; before it has locked it, the table's next turn begins.
#[test]
fn table_whose_next_turn_has_begun_meanwhile_is_not_emptied() -> Result<()> {
    if still("turns")?.is_none() {
        return Ok(());
    }
    let mut client = set_database_clock("turns", "2027-03-01 00:30:00+00")?;
    client.batch_execute("SELECT counter_history('x', '1 day', NULL, NULL)")?;
    client.batch_execute("SELECT bump('x:a', 1)")?;
    seal(&mut client)?;
    client = set_database_clock("turns", "2027-03-02 10:00:00+00")?;
    seal(&mut client)?;
    let mut holder = cluster().connect_db("turns")?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    client.batch_execute("ALTER DATABASE turns SET counterx.failpoint = 'expiry.found=pause'")?;
    client.batch_execute("ALTER DATABASE turns RESET counterx.compaction")?;
    let mut client = cluster().connect_db("turns")?;
    client.batch_execute("RESET counterx.failpoint")?;
    poll_until("a worker to find the table", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_stat_activity a JOIN pg_locks l USING (pid)
                    WHERE a.datname = 'turns' AND backend_type = 'counterx worker' AND locktype = 'advisory' AND NOT granted";
        let waits = client.query_one(sql, &[])?.get::<_, i64>(0) == 1;
        if !waits && counterx_cluster_tests::count_workers(&mut client, Some("turns"))? == 0 {
            client.batch_execute("SELECT bump('y', 1)")?;
        }
        Ok(waits)
    })?;
    set_clock(&mut client, "2027-03-02 13:00:10+00")?;
    client.batch_execute("SET counterx.failpoint = ''; SELECT bump('x:a', 7)")?;
    compact(&mut client)?;
    let (oldest, tables) = first_class(&mut client)?;
    ensure!(
        oldest.as_deref() == Some("2027-03-01 00:30:00") && tables == 1,
        "the two rows are not in one table: {oldest:?}, {tables}"
    );
    holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
    client.batch_execute("ALTER DATABASE turns RESET counterx.failpoint")?;
    wait_for_no_worker(&mut client, "turns")?;
    let minutes = buckets(&mut client, "x:a", "minute")?;
    ensure!(minutes == ["2027-03-02 13:00:00 7 0 8"], "{minutes:?}");
    check(&mut client)?;
    Ok(())
}

#[test]
fn worker_does_not_seal_by_a_clock_that_has_leapt() -> Result<()> {
    if still("leaps")?.is_none() {
        return Ok(());
    }
    let mark = cluster().log_len();
    let mut client = set_database_clock("leaps", "2027-03-01 10:00:10+00")?;
    client.batch_execute("SELECT counter_history('x', 'infinity', events => 'infinity')")?;
    seal(&mut client)?;
    client.batch_execute("ALTER DATABASE leaps RESET counterx.compaction")?;
    client.batch_execute("SELECT bump('x:a', 1)")?;
    client = set_database_clock("leaps", "2027-03-01 12:10:00+00")?;
    let before = sealed_until(&mut client)?;
    ensure!(before.starts_with("2027-03-01 10:00:"), "{before}");
    client.batch_execute("SELECT bump('x:a', 2)")?;
    settle(&mut client)?;
    poll_until("the log to tell of it", DEADLINE, || {
        Ok(cluster()
            .log_since(mark)
            .contains("counterx: history is not sealed: the clock is more than an hour past"))
    })?;
    // In the same minute, however long that took.
    set_clock(&mut client, "2027-03-01 12:10:20+00")?;
    client.batch_execute("SELECT bump('x:a', 4)")?;
    settle(&mut client)?;
    let after = sealed_until(&mut client)?;
    ensure!(after.starts_with("2027-03-01 10:0"), "{after}");
    client = set_database_clock("leaps", "2027-03-01 10:05:00+00")?;
    client.batch_execute("SELECT bump('x:a', 8)")?;
    poll_until("the worker to seal again", DEADLINE, || {
        Ok(sealed_until(&mut client)?.as_str() > "2027-03-01 10:05:")
    })?;
    let minutes = buckets(&mut client, "x:a", "minute")?;
    ensure!(
        minutes.last().map(String::as_str) == Some("2027-03-01 12:10:00 6 0 15"),
        "{minutes:?}"
    );
    buckets_agree(&mut client, true)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn tables_of_history_are_rewritten_under_load() -> Result<()> {
    let mut client = create_database(cluster(), "rewritten")?;
    prepare_history(&mut client)?;
    client.batch_execute(histories())?;
    wait_until_begun(&mut client)?;
    let mut statements = Vec::new();
    for table in [
        "bucket_4_0",
        "history_lane",
        "bucket_0_2",
        "history",
        "bucket_1_1",
    ] {
        statements.push(format!("VACUUM FULL counterx.{table}"));
        statements.push(format!("REINDEX TABLE counterx.{table}"));
        statements.push(format!("VACUUM (FREEZE) counterx.{table}"));
    }
    statements.push("CLUSTER counterx.bucket_4_0 USING bucket_4_0_pkey".to_owned());
    statements.push("REINDEX TABLE CONCURRENTLY counterx.bucket_4_0".to_owned());
    let config = cluster().config("rewritten");
    let seen = Seen::default();
    counterx_cluster_tests::Maintenance::of(&statements, &config)?.beside(|seed, meanwhile| {
        let load = Load {
            clients: 2,
            transactions: 60,
            names: 10,
            seed,
            ..Load::default()
        };
        history_under_watch(&config, &load, (&seen, true), meanwhile)?;
        Ok(())
    })?;
    settle(&mut client)?;
    buckets_agree(&mut client, true)?;
    Ok(())
}

#[test]
fn extension_with_histories_is_dropped_and_made_beside_who_counts() -> Result<()> {
    let mut client = create_database(cluster(), "dropped")?;
    let over = AtomicU8::new(0);
    let counted = AtomicI64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|number| {
                let (over, counted) = (&over, &counted);
                scope.spawn(move || -> Result<()> {
                    let mut client = cluster().connect_db("dropped")?;
                    while over.load(Ordering::Relaxed) == 0 {
                        let sql = format!(
                            "SELECT counter_incr('x:{number}', 1), (SELECT count(*) FROM counter_buckets('x:{number}', 'minute'))"
                        );
                        match client.batch_execute(&sql) {
                            Ok(()) => {
                                counted.fetch_add(1, Ordering::Relaxed);
                            }
                            // It is not there, or there is no history yet; or it went in the midst of that.
                            Err(error) => {
                                let error = anyhow::Error::from(error);
                                ensure!(!is_lost(&error), "{error:#}");
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let result = (|| {
            for _ in 0..4 {
                let before = counted.load(Ordering::Relaxed);
                client.batch_execute(
                    "SELECT counter_history('x', 'infinity', events => 'infinity')",
                )?;
                poll_until("some to be counted", DEADLINE, || {
                    Ok(counted.load(Ordering::Relaxed) > before + 30)
                })?;
                // Where it was made anew, its members are locked in another order than the clients lock them.
                patiently(&mut client, "DROP EXTENSION counterx")?;
                client.batch_execute("CREATE EXTENSION counterx")?;
            }
            anyhow::Ok(())
        })();
        over.store(1, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        result
    })?;
    // What is made anew knows nothing of before.
    client.batch_execute("TRUNCATE oracle; SELECT counter_drop(name) FROM counters")?;
    client.batch_execute("SELECT counter_history('x', 'infinity', events => 'infinity')")?;
    wait_until_begun(&mut client)?;
    client.batch_execute("SELECT bump('x:new', 5)")?;
    settle(&mut client)?;
    let sums = texts(
        &mut client,
        "SELECT sum(delta)::text FROM counter_buckets('x:new', 'minute')",
    )?;
    ensure!(sums == ["5"], "{sums:?}");
    nothing_crashed(&cluster().log())
}

#[test]
fn subscriber_to_all_tables_keeps_its_own_history() -> Result<()> {
    let mut there = create_database(cluster(), "historypub")?;
    let mut here = create_database(cluster(), "historysub")?;
    for client in [&mut there, &mut here] {
        client.batch_execute("CREATE TABLE goods (id int PRIMARY KEY)")?;
        client.batch_execute(
            "SELECT counter_history('x', '1 day', 'infinity', events => '7 days')",
        )?;
        wait_until_begun(client)?;
    }
    there.batch_execute("SELECT bump('x:a', 100)")?;
    here.batch_execute("SELECT bump('x:a', 3)")?;
    settle(&mut there)?;
    there.batch_execute("CREATE PUBLICATION history FOR ALL TABLES")?;
    there.batch_execute("SELECT pg_create_logical_replication_slot('history', 'pgoutput')")?;
    here.batch_execute(&format!(
        "CREATE SUBSCRIPTION history CONNECTION 'host={} port={} user=postgres dbname=historypub'
         PUBLICATION history WITH (create_slot = false)",
        cluster().socket_dir().display(),
        cluster().port()
    ))?;
    for round in 1..=3 {
        for _ in 0..5 {
            there.batch_execute("SELECT bump('x:a', 10)")?;
            settle(&mut there)?;
        }
        there.batch_execute("SELECT counter_drop('x:b', purge => true)")?;
        there.batch_execute("SELECT counter_history('y')")?;
        there.batch_execute("SELECT bump('x:b', 10)")?;
        settle(&mut there)?;
        seal(&mut there)?;
        there.batch_execute("SELECT counter_history_drop('y')")?;
        there.execute("INSERT INTO goods VALUES ($1)", &[&round])?;
        poll_until("the row to arrive", DEADLINE, || {
            let sql = "SELECT (apply_error_count + sync_error_count)::bigint FROM pg_stat_subscription_stats WHERE subname = 'history'";
            let errors: i64 = here.query_one(sql, &[])?.get(0);
            ensure!(errors == 0, "the subscription has failed {errors} times");
            let sql = "SELECT count(*) FROM goods WHERE id = $1";
            Ok(here.query_one(sql, &[&round])?.get::<_, i64>(0) == 1)
        })?;
        here.batch_execute("SELECT counter_incr('x:a', 1)")?;
        settle(&mut here)?;
    }
    let sql = "SELECT string_agg(concat_ws(' ', name, (SELECT sum(delta) FROM counter_buckets(name, 'minute')),
                     (SELECT sum(delta) FROM counter_events(name))), ', ' ORDER BY name) FROM unnest('{x:a,x:b}'::text[]) name";
    let own = texts(&mut here, sql)?;
    ensure!(own == ["x:a 6 6, x:b"], "{own:?}");
    let theirs = texts(&mut there, sql)?;
    ensure!(theirs == ["x:a 250 250, x:b 10 10"], "{theirs:?}");
    let rows = "SELECT count(*)::text || ' ' || (SELECT count(*) FROM counter_histories) FROM counterx.bucket_4_0 WHERE name = 'x:b'";
    let rows = texts(&mut here, rows)?;
    ensure!(rows == ["0 4"], "rows of another server: {rows:?}");
    here.batch_execute(
        "ALTER SUBSCRIPTION history DISABLE; ALTER SUBSCRIPTION history SET (slot_name = NONE)",
    )?;
    here.batch_execute("DROP SUBSCRIPTION history")?;
    let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active AND database = 'historypub'";
    poll_until("the slot to be free", DEADLINE, || {
        Ok(there.execute(sql, &[])? == 1)
    })
}

/// Does it again on another connection, where one is lost as the server restarts.
fn undeterred(connection: &mut Recovering, what: impl Fn(&mut Client) -> Result<()>) -> Result<()> {
    poll_until("the server to stay", DEADLINE, || {
        match connection.client().and_then(&what) {
            Ok(()) => Ok(true),
            Err(error) if is_lost(&error) => {
                connection.forget();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    })
}

/// Arms a point for whoever comes there first, and waits until somebody has.
fn crash_at(cluster: &mut Cluster, point: &str) -> Result<()> {
    let armed = format!("{point}=crash");
    cluster.reload(&[("counterx.failpoint", &format!("{armed} once"))])?;
    let file = (cluster.data_dir()).join(format!("counterx.failpoint.{armed}"));
    fs::write(&file, "")?;
    poll_until(&format!("somebody at {point}"), DEADLINE, || {
        Ok(!file.exists())
    })
}

#[test]
fn what_is_killed_in_mid_load_loses_nothing_and_changes_nothing_sealed() -> Result<()> {
    let mut cluster = folding_hard("history-kill")
        .conf("max_prepared_transactions", "100")
        .conf("counterx.worker_idle_timeout", "1s")
        .start()?;
    let mut client = create_database(&cluster, "killed")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    let config = cluster.config("killed");
    prepare_history(&mut client)?;
    client.batch_execute(histories())?;
    wait_until_begun(&mut client)?;
    let start = seconds_until(&mut client, "2027-02-28 23:40+00")?;
    seal_by_server_clock(&mut client, start)?;
    drop(client);
    let seen = Seen::default();
    let load = Load {
        clients: 2,
        // As many as there is time for.
        transactions: 1_000_000,
        names: 10,
        survives: true,
        ..Load::default()
    };
    history_under_watch(&config, &load, (&seen, true), |control| {
        let mut ahead = start;
        let mut connection = Recovering::new(&config);
        let result = (|| {
            for point in [
                "fold.history_written",
                "fold.totals_written",
                "fold.state_saved",
                "publish.begin",
                "publish.gate_written",
                "publish.writers_listed",
                "backend",
                "worker",
                "postmaster",
            ] {
                // Each crash comes with minutes of its own, some of which are sealed before.
                for _ in 0..3 {
                    ahead += 45;
                    undeterred(&mut connection, |client| set_server_clock(client, ahead))?;
                    std::thread::sleep(Duration::from_millis(60));
                }
                let (before, looks) = (seen.rows(), AtomicI64::new(ahead));
                poll_until("more to be sealed, and read", DEADLINE, || {
                    undeterred(&mut connection, |client| {
                        let round = looks.fetch_add(1, Ordering::Relaxed);
                        seen.look(client, &mut StdRng::seed_from_u64(round.unsigned_abs()))
                    })?;
                    Ok(seen.rows() > before)
                })
                .with_context(|| {
                    let sql = "SELECT concat_ws(E'\\n', clock_timestamp(), (SELECT string_agg(s::text, E'\\n') FROM counterx.state s),
                                  (SELECT string_agg(w::text, E'\\n') FROM counterx.workers w), (SELECT string_agg(concat_ws(' ', pid, state,
                                  wait_event, xact_start, pg_blocking_pids(pid), query), E'\\n') FROM pg_stat_activity))";
                    let state = config.connect(NoTls).map(|mut client| texts(&mut client, sql));
                    format!("before {point}: {state:?}")
                })?;
                match point {
                    "postmaster" => {
                        cluster.kill_postmaster()?;
                        cluster.start()?;
                    }
                    "backend" | "worker" => kill_and_recover(&mut connection, |connection| {
                        let which = if point == "worker" {
                            "counterx worker"
                        } else {
                            "client backend"
                        };
                        let sql = format!(
                            "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'killed'
                               AND backend_type = '{which}' ORDER BY state = 'active' DESC LIMIT 1"
                        );
                        victim(connection, which, &sql)
                    })?,
                    point => crash_at(&mut cluster, point)?,
                }
                connection.forget();
                undeterred(&mut connection, resolve_orphans)?;
            }
            anyhow::Ok(())
        })();
        // It is how a load of that length is told to end.
        control.abort();
        result
    })?;
    let mut client = cluster.connect_db("killed")?;
    resolve_orphans(&mut client)?;
    client.batch_execute("SELECT bump('counter:0', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    buckets_agree(&mut client, true)?;
    seen.look_at_all(&mut client)?;
    nothing_crashed_by_itself(&cluster.log())?;
    crash_while_it_expires(&mut cluster, &config)
}

/// Sets the clock of a server, and seals by it: a worker that meets it before that takes it for a leap.
fn seal_by_server_clock(client: &mut Client, ahead: i64) -> Result<()> {
    set_server_clock(client, ahead)?;
    let sql = "SELECT counter_seal() > clock_timestamp() + make_interval(secs => $1::int - 5)";
    poll_until("the seal to follow the clock", DEADLINE, || {
        Ok(client.query_one(sql, &[&i32::try_from(ahead)?])?.get(0))
    })
}

/// Whoever empties a table is killed at each step of that.
fn crash_while_it_expires(cluster: &mut Cluster, config: &postgres::Config) -> Result<()> {
    for (day, point) in [
        (5, "expiry.found"),
        (10, "expiry.locked"),
        (15, "expiry.cut"),
    ] {
        let mut client = config.connect(NoTls)?;
        // The minutes of a day, and hours that are kept for as long, of types that the load has counted.
        let sql = "SELECT count(*), coalesce(min(start)::text, '') FROM counterx.bucket_0_0";
        let ahead = seconds_until(&mut client, &format!("2027-03-{day} 04:10+00"))?;
        seal_by_server_clock(&mut client, ahead)?;
        client.batch_execute("SELECT bump('n:1', 1), bump('p:1', 1)")?;
        let before = client.query_one(sql, &[])?;
        let before: (i64, String) = (before.get(0), before.get(1));
        wait_for_no_worker(&mut client, "killed")?;
        // One segment after the other ends.
        cluster.reload(&[("counterx.failpoint", &format!("{point}=crash once"))])?;
        let file = (cluster.data_dir()).join(format!("counterx.failpoint.{point}=crash"));
        fs::write(&file, "")?;
        let mut connection = Recovering::new(config);
        let mut hours = 0;
        // Each look takes the life of a worker.
        poll_until(&format!("somebody at {point}"), DEADLINE * 3, || {
            hours += 6;
            undeterred(&mut connection, |client| {
                seal_by_server_clock(client, ahead + hours * 3600)?;
                client.batch_execute("SELECT bump('y', 1)")?;
                wait_for_no_worker(client, "killed")
            })?;
            Ok(!file.exists())
        })
        .with_context(|| format!("{before:?}"))?;
        undeterred(&mut connection, |client| {
            check(client)?;
            buckets_agree(client, false)?;
            client.batch_execute("SELECT bump('n:1', 1)")?;
            settle(client)?;
            buckets_agree(client, false)?;
            Ok(())
        })?;
    }
    nothing_crashed_by_itself(&cluster.log())
}

#[test]
fn standby_has_the_same_history_or_says_40001_and_goes_on_when_promoted() -> Result<()> {
    let primary = folding_hard("history-primary")
        .conf("max_prepared_transactions", "100")
        .conf("wal_keep_size", "512MB")
        .start()?;
    let mut client = create_database(&primary, "standby")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    prepare_history(&mut client)?;
    client.batch_execute(histories())?;
    wait_until_begun(&mut client)?;
    let ahead = seconds_until(&mut client, "2027-02-28 23:40+00")?;
    seal_by_server_clock(&mut client, ahead)?;
    let mut standby = Cluster::builder()
        .name("history-standby")
        .standby_of(&primary)
        .conf("max_prepared_transactions", "100")
        .conf("max_standby_streaming_delay", "20ms")
        .start()?;
    let (seen, there) = (Seen::default(), standby.config("standby"));
    let load = Load {
        clients: 2,
        transactions: 120,
        names: 10,
        ..Load::default()
    };
    let config = primary.config("standby");
    let mut looks = 0;
    history_under_watch(&config, &load, (&seen, true), |control| {
        std::thread::scope(|scope| {
            let clock = scope.spawn(|| run_clock(&config, control, (ahead, 45)));
            let mut connection = Recovering::new(&there);
            let mut round = 2;
            while !control.is_done() || (looks < 4 && !control.is_aborted()) {
                round += 2;
                let look = connection
                    .client()
                    .and_then(|client| look_at_history(client, &seen, round, true));
                match look {
                    Ok(_) => looks += 1,
                    Err(error) if Refusal::of(&error).is_some() => connection.forget(),
                    Err(error) => return Err(error.context("on the standby")),
                }
            }
            clock.join().expect("no panic")?;
            anyhow::Ok(())
        })
    })?;
    settle(&mut client)?;
    seen.look_at_all(&mut client).context("on the primary")?;
    let mut connection = Recovering::new(&there);
    catch_up(&primary, connection.client()?)?;
    undisturbed(&mut connection, |client| {
        buckets_agree(client, true)?;
        seen.look_at_all(client).context("on the standby")
    })?;
    ensure!(looks > 3, "{looks} looks at the standby");
    drop(connection);
    drop(client);
    drop(primary);
    // Its clock is hours behind what is sealed.
    standby.promote()?;
    let mut client = there.connect(NoTls)?;
    counterx_cluster_tests::resolve_prepared(&there)?;
    client.batch_execute("SELECT bump('counter:0', 5), bump('d:0', 1)")?;
    settle(&mut client)?;
    seal(&mut client)?;
    check(&mut client)?;
    buckets_agree(&mut client, true)?;
    seen.look_at_all(&mut client).context("when promoted")?;
    let end = seconds_until(&mut client, "2027-03-02 00:00+00")?;
    set_server_clock(&mut client, end)?;
    client.batch_execute("SELECT bump('counter:0', 5), bump('d:0', 1)")?;
    poll_until("the seal to move on", DEADLINE, || {
        seal(&mut client)?;
        Ok(texts(
            &mut client,
            "SELECT ((sealed_until AT TIME ZONE 'UTC')::date)::text FROM counter_sealed",
        )? == ["2027-03-02"])
    })?;
    buckets_agree(&mut client, false)?;
    nothing_crashed(&standby.log())
}
