//! What is read of a history: the same before and after folds, in each snapshot, from a dump, and on a standby.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Refusal, catch_up, compact, create_bare_database, create_database,
    folding_hard, settle, shared, sqlstate, under_watch,
};
use counterx_harness::{Cluster, poll_until, run};
use postgres::error::SqlState;
use postgres::{Client, GenericClient, IsolationLevel};

fn cluster() -> &'static Cluster {
    shared(|| folding_hard("history_reads").start())
}

/// Of each counter with a history and of each unit: the value before its oldest bucket and the sum of all, against the
/// counter's value; and what does not fit in between.
const DISAGREEING: &str = "
    WITH b AS (
        SELECT c.name, c.value AS total, u.unit, b.start, b.delta + b.adjusted AS net, b.value,
            b.value - b.delta - b.adjusted AS before, b.delta = b.ups - b.downs AS is_difference,
            lag(b.value) OVER w AS last, lead(b.start) OVER w IS NULL AS is_newest
        FROM counters c, (VALUES ('minute'), ('hour'), ('day')) u (unit), counter_buckets(c.name, u.unit) b
        WHERE c.name LIKE 'counter:%'
        WINDOW w AS (PARTITION BY c.name, u.unit ORDER BY b.start)
    )
    SELECT string_agg(b::text, E'\\n') FROM b
    WHERE NOT is_difference OR last <> before OR (is_newest AND value <> total)";

fn buckets_agree(client: &mut impl GenericClient) -> Result<()> {
    let wrong: Option<String> = client.query_one(DISAGREEING, &[])?.get(0);
    ensure!(
        wrong.is_none(),
        "buckets do not agree:\n{}",
        wrong.unwrap_or_default()
    );
    let events: Option<String> = client
        .query_one(
            "SELECT string_agg(c::text, E'\\n') FROM counters c,
                 LATERAL (SELECT sum(e.delta) AS sum, count(*) - count(DISTINCT e.at) AS same
                          FROM counter_events(c.name, NULL, 1000000) e) e,
                 LATERAL (SELECT sum(b.delta + b.adjusted) AS sum FROM counter_buckets(c.name, 'day') b) b
             WHERE c.name LIKE 'counter:%' AND (e.sum IS DISTINCT FROM b.sum OR e.same <> 0)",
            &[],
        )?
        .get(0);
    ensure!(
        events.is_none(),
        "events do not agree:\n{}",
        events.unwrap_or_default()
    );
    Ok(())
}

/// Writers of all kinds, a worker that folds all the time, and readers at each isolation level.
#[test]
fn buckets_add_up_to_the_value_in_each_snapshot() -> Result<()> {
    let mut client = create_database(cluster(), "adds_up")?;
    client
        .batch_execute("SELECT counter_history('counter', events => 'infinity'), counter_seal()")?;
    let load = Load {
        transactions: 150,
        two_phase: true,
        ..Load::default()
    };
    let mut looks = 0;
    under_watch(&cluster().config("adds_up"), &load, |control| {
        let mut reader = cluster().connect_db("adds_up")?;
        while !control.is_done() || looks < 10 {
            // One statement is one snapshot: each of the looks stands for itself.
            buckets_agree(&mut reader)?;
            for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
                let mut snapshot = reader.build_transaction().isolation_level(level).start()?;
                buckets_agree(&mut snapshot)?;
                snapshot.batch_execute(
                    "SELECT counter_incr('counter:0', 0), counter_set('counter:own', 7)",
                )?;
                buckets_agree(&mut snapshot)?;
                snapshot.rollback()?;
            }
            looks += 1;
        }
        Ok(())
    })?;
    settle(&mut client)?;
    buckets_agree(&mut client)?;
    let kept: i64 = client
        .query_one(
            "SELECT sum(changes)::bigint FROM counter_buckets('counter:0', 'day')",
            &[],
        )?
        .get(0);
    ensure!(kept > 0, "nothing was kept");
    Ok(())
}

/// Runs statements, each in a transaction of its own unless they say otherwise.
fn each(client: &mut Client, statements: &str) -> Result<()> {
    for statement in statements.split(';') {
        client
            .batch_execute(statement)
            .with_context(|| statement.to_owned())?;
    }
    Ok(())
}

/// A prepared transaction counts when it was prepared, or at the end of what was sealed meanwhile: the same before its
/// fold and after it.
#[test]
fn prepared_changes_are_where_their_fold_puts_them() -> Result<()> {
    let mut client = create_bare_database(cluster(), "prepared_reads")?;
    client.batch_execute(
        "ALTER DATABASE prepared_reads SET counterx.compaction = off;
         ALTER DATABASE prepared_reads SET timezone = 'UTC'",
    )?;
    let mut client = cluster().connect_db("prepared_reads")?;
    client.batch_execute("SELECT counter_history('p', events => '7 days'), counter_seal()")?;
    // Of a minute that has just begun, so that it does not end meanwhile.
    let ahead: i32 = client
        .query_one(
            "SELECT (7265 - extract(epoch FROM clock_timestamp()) % 60)::int",
            &[],
        )?
        .get(0);
    each(
        &mut client,
        &format!(
            "BEGIN; SELECT counter_incr('p:x', 5), counter_set('p:y', 3); PREPARE TRANSACTION 'early';
             SET counterx.clock_ahead = {ahead}; SELECT counter_seal();
             SELECT counter_incr('p:x', 1); COMMIT PREPARED 'early'"
        ),
    )?;
    let said = |client: &mut Client| -> Result<(String, String, String)> {
        let row = client.query_one(
            "SELECT (SELECT string_agg(concat_ws(' ', n, u, b.start, b.delta, b.adjusted, b.changes, b.value), E'\\n' ORDER BY n, u, b.start)
                     FROM unnest('{p:x,p:y}'::text[]) n, unnest('{minute,hour,day}'::text[]) u, counter_buckets(n, u) b),
                    (SELECT string_agg(concat_ws(' ', n, e.at, e.delta, e.kind), E'\\n' ORDER BY n, e.at)
                     FROM unnest('{p:x,p:y}'::text[]) n, counter_events(n) e),
                    (SELECT max(b.start) = date_trunc('minute', min(s.sealed_until))
                     FROM counter_buckets('p:x', 'minute') b, counter_sealed s)::text",
            &[],
        )?;
        Ok((row.get(0), row.get(1), row.get(2)))
    };
    let before = said(&mut client)?;
    ensure!(
        before.2 == "true",
        "it is not at the end of what is sealed: {before:?}"
    );
    compact(&mut client)?;
    let after = said(&mut client)?;
    ensure!(
        before.0 == after.0 && before.1 == after.1,
        "{before:?}\n{after:?}"
    );
    Ok(())
}

/// Everything that can be asked of the counters of type `d`, but what is sealed.
fn answers(client: &mut Client) -> Result<Vec<String>> {
    let rows = client.query(
        "WITH n AS (SELECT unnest(ARRAY['d:old', 'd:busy', 'd:quiet', 'd:set', 'd:late', 'd:gone', 'd:pending', 'd:none']) AS name),
         u AS (SELECT unnest(ARRAY['minute', 'hour', 'day', 'month']) AS unit),
         b AS (SELECT n.name, u.unit, b.* FROM n, u, counter_buckets(n.name, u.unit) b)
         SELECT concat_ws(' ', name, unit, start, delta, ups, downs, changes, adjusted, value) FROM b
         UNION ALL SELECT concat_ws(' ', n.name, 'event', e.at, e.delta, e.kind) FROM n, counter_events(n.name) e
         UNION ALL
         SELECT concat_ws(' ', n.name, 'at', t.start, counter_at_boundary(n.name, t.start), counter_at(n.name, t.start))
         FROM n, (SELECT DISTINCT start FROM b UNION SELECT start + interval '95 s' FROM b
                  UNION SELECT min(start) - interval '10 days' FROM b) t
         -- What is asked for later is the same then: no bucket ends between the two.
         WHERE t.start <= (SELECT max(start) FROM b WHERE unit = 'minute')
         UNION ALL SELECT concat_ws(' ', name, 'changed', delta) FROM counter_top_changed(100, 'd:', '21 days')
         UNION ALL SELECT concat_ws(' ', h.type, h.unit, h.keep, h.time_zone) FROM counter_histories h
         UNION ALL SELECT concat_ws(' ', name, value) FROM counters
         ORDER BY 1",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// A history of some weeks, of which some is folded, some is not, and some is not shown any more.
fn history_of_weeks(db: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster(), db)?;
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.compaction = off"
    ))?;
    drop(client);
    client = cluster().connect_db(db)?;
    let days = |days: i32| format!("SET counterx.clock_ahead = {}", days * 86_400);
    each(
        &mut client,
        &format!(
            "{};
             SELECT counter_incr('d:old', 100);
             SELECT counter_history('d', month => 'infinity', events => '14 days', time_zone => 'Europe/Berlin');
             SELECT counter_seal()",
            days(-40)
        ),
    )?;
    for day in [-39, -20, -5] {
        each(
            &mut client,
            &format!(
                "{};
                 SELECT counter_incr('d:busy', 10); SELECT counter_decr('d:busy', 3);
                 SELECT counter_incr('d:set', 2); SELECT counter_set('d:set', {});
                 SELECT counter_seal();
                 SELECT counter_incr('d:busy', 1)",
                days(day),
                100 - day
            ),
        )?;
        if day == -39 {
            each(
                &mut client,
                "SELECT counter_incr('d:quiet', 9), counter_incr('d:gone', 4), counter_incr('d:old')",
            )?;
        }
    }
    each(
        &mut client,
        &format!(
            "{}; SELECT counter_seal(); SELECT counter_incr('d:busy', 50), counter_incr('d:quiet', 1); SELECT counterx.compact();
             SELECT counter_incr('d:busy', 7), counter_incr('d:pending', 8), counter_reset('d:set');
             SELECT counter_drop('d:gone', purge => true);
             BEGIN; SELECT counter_incr('d:late', 6), counter_incr('d:busy', 1); PREPARE TRANSACTION '{db}';
             COMMIT PREPARED '{db}'",
            days(0)
        ),
    )?;
    Ok(client)
}

fn copy_of(db: &str, copy: &str, format: &str) -> Result<Client> {
    let file = cluster().directory().join(format!("{copy}.dump"));
    let file = file.to_str().context("odd path")?.to_owned();
    run(cluster()
        .tool("pg_dump")
        .args([&format!("--format={format}"), "--file", &file, db])
        .stdin(Stdio::null()))?;
    cluster()
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {copy}"))?;
    match format {
        "plain" => run(cluster().tool("psql").args([
            "-Xq",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            copy,
            "-f",
            &file,
        ]))?,
        _ => run(cluster().tool("pg_restore").args([
            "--exit-on-error",
            "--jobs=2",
            "-d",
            copy,
            &file,
        ]))?,
    };
    cluster().connect_db(copy)
}

fn same(expected: &[String], found: &[String]) -> Result<()> {
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .cloned()
            .collect()
    };
    ensure!(
        expected == found,
        "missing: {:#?}\nnot expected: {:#?}",
        only(expected, found),
        only(found, expected)
    );
    Ok(())
}

fn dump_has_the_history(db: &str, format: &str) -> Result<()> {
    let mut client = history_of_weeks(db)?;
    let expected = answers(&mut client)?;
    for kind in [
        "d:busy minute",
        "d:busy event",
        "d:quiet hour",
        "d:late at",
        "d:pending changed",
    ] {
        ensure!(
            expected.iter().any(|line| line.starts_with(kind)),
            "the original has no {kind}: {expected:#?}"
        );
    }
    let copy = format!("{db}_copy");
    let mut restored = copy_of(db, &copy, format)?;
    restored.batch_execute("SELECT counter_value('warm')")?;
    same(&expected, &answers(&mut restored)?)?;
    // Folded and sealed, the same; and what was counted elsewhere was not counted here.
    restored.batch_execute("SELECT counter_seal()")?;
    settle(&mut restored)?;
    same(&expected, &answers(&mut restored)?)?;
    let stays = |client: &mut Client| -> Result<bool> {
        Ok(client
            .query_one(
                "SELECT count(xid) = 0 AND bool_and(folded) FROM counter_events('d:busy')",
                &[],
            )?
            .get(0))
    };
    ensure!(stays(&mut restored)?, "the events are not as restored ones");

    // It goes on in the same buckets, folded and not.
    let sums = "SELECT b.delta::bigint, b.value::bigint, counter_value('d:busy'), count(*) OVER ()
                FROM counter_buckets('d:busy', 'month') b ORDER BY b.start DESC LIMIT 1";
    let before = restored.query_one(sums, &[])?;
    restored.batch_execute("SELECT counter_incr('d:busy', 1000), counter_incr('d:none', 1)")?;
    for fold in [false, true] {
        if fold {
            compact(&mut restored)?;
        }
        let after = restored.query_one(sums, &[])?;
        let (delta, value, total): (i64, i64, i64) = (after.get(0), after.get(1), after.get(2));
        ensure!(
            delta == before.get::<_, i64>(0) + 1000
                && value == before.get::<_, i64>(1) + 1000
                && value == total,
            "{before:?} {after:?}"
        );
        ensure!(
            after.get::<_, i64>(3) == before.get::<_, i64>(3),
            "another bucket"
        );
        let none: i64 = restored
            .query_one(
                "SELECT value::bigint FROM counter_buckets('d:none', 'day')",
                &[],
            )?
            .get(0);
        ensure!(none == 1);
    }
    // And is dumped again.
    let expected = answers(&mut restored)?;
    let mut again = copy_of(&copy, &format!("{db}_again"), format)?;
    same(&expected, &answers(&mut again)?)?;
    // A database that keeps it already takes no other one.
    let error = again.batch_execute(
        "INSERT INTO counterx.history SELECT id + 1, type, unit, keep, class, zone, since FROM counterx.history",
    );
    let error = anyhow::Error::from(error.err().context("a history was there twice")?);
    ensure!(
        sqlstate(&error) == Some(&SqlState::UNIQUE_VIOLATION),
        "{error:#}"
    );
    Ok(())
}

#[test]
fn a_plain_dump_has_the_history() -> Result<()> {
    dump_has_the_history("weeks", "plain")
}

#[test]
fn a_custom_dump_has_the_history() -> Result<()> {
    dump_has_the_history("weekstoo", "custom")
}

/// A snapshot of a standby, whose rows the primary has expired and emptied.
#[test]
fn snapshot_older_than_replayed_retention_says_40001() -> Result<()> {
    let primary = Cluster::builder()
        .name("keeps")
        .conf("autovacuum", "off")
        .start()?;
    let standby = Cluster::builder()
        .name("reads")
        .standby_of(&primary)
        .conf("hot_standby_feedback", "off")
        .conf("max_standby_streaming_delay", "-1")
        .start()?;
    let mut client = create_bare_database(&primary, "keeps")?;
    // In the midst of the 6 hours that a table has its turn.
    let off: i32 = client
        .query_one(
            "SELECT (3 * 3600 - extract(epoch FROM now()) % (6 * 3600))::int",
            &[],
        )?
        .get(0);
    let set_ahead = |client: &mut Client, seconds: i32| -> Result<()> {
        let ahead = off + seconds;
        client.batch_execute(&format!("ALTER SYSTEM SET counterx.clock_ahead = {ahead}"))?;
        client.batch_execute("SELECT pg_reload_conf()")?;
        poll_until("the new time", DEADLINE, || {
            let sql = "SELECT current_setting('counterx.clock_ahead')::int = $1";
            Ok(client.query_one(sql, &[&ahead])?.get(0))
        })
    };
    set_ahead(&mut client, 0)?;
    each(
        &mut client,
        "SELECT counter_history('h', hour => NULL, day => NULL); SELECT counter_seal();
         SELECT counter_incr('h:x', 5); SELECT counter_seal(); CREATE TABLE other (n int)",
    )?;
    // Else the replay of a page that is cleaned up waits for the snapshot, before it comes to the emptying.
    client.batch_execute("VACUUM")?;
    let mut reader = standby.connect()?;
    catch_up(&primary, &mut reader)?;
    let mut reader = standby.connect_db("keeps")?;
    reader.batch_execute("SELECT counter_value('warm')")?;
    let value = "SELECT value::bigint FROM counter_buckets('h:x', 'minute')";
    ensure!(reader.query_one(value, &[])?.get::<_, i64>(0) == 5);
    let mut snapshot = reader
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    snapshot.query_one("SELECT count(*) FROM other", &[])?;

    // A table is emptied when all of its rows have expired, and before its turn comes again: after 33 hours from the
    // beginning of its 6 hours, and before 36.
    let rows = "SELECT sum(pg_relation_size(c.oid))::bigint FROM pg_class c
                WHERE c.relnamespace = 'counterx'::regnamespace AND c.relname LIKE 'bucket\\_0\\_%' AND c.relkind = 'r'";
    ensure!(client.query_one(rows, &[])?.get::<_, i64>(0) > 0);
    set_ahead(&mut client, 63 * 1800)?;
    client.batch_execute("SELECT counter_seal()")?;
    // A worker looks for what has expired when it begins; and it is emptied when all know of it.
    for (what, sql) in [
        (
            "rows to expire",
            "SELECT count(*) > 0 FROM counterx.expired".to_owned(),
        ),
        ("rows to be emptied", format!("SELECT 0 = ({rows})")),
    ] {
        client.batch_execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity
             WHERE backend_type = 'counterx worker' AND datname = 'keeps'",
        )?;
        client.batch_execute("SELECT counter_incr('other')")?;
        poll_until(what, DEADLINE, || Ok(client.query_one(&sql, &[])?.get(0)))?;
    }
    let mut other = standby.connect_db("keeps")?;
    poll_until("the emptying on the standby", DEADLINE, || {
        Ok(other.query_one(rows, &[])?.get::<_, i64>(0) == 0)
    })?;
    let error = anyhow::Error::from(
        snapshot
            .query(value, &[])
            .err()
            .context("rows that are gone were not missed")?,
    );
    ensure!(
        sqlstate(&error) == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
            && Refusal::of(&error) == Some(Refusal::Truncated),
        "{error:#}"
    );
    drop(snapshot);
    ensure!(
        reader.query(value, &[])?.is_empty(),
        "what has expired is shown"
    );
    ensure!(
        reader
            .query_one("SELECT counter_value('h:x')", &[])?
            .get::<_, i64>(0)
            == 5
    );
    Ok(())
}
