//! Traffic of counters that have a history, and what has to be true of a history in every snapshot.
//!
//! - The value of a counter is that before its oldest bucket and all that is in the buckets since, in each unit;
//!   each row has the sum so far. All units tell of the same, and so do the events.
//! - What is sealed stays as it is: [`Seen`] remembers what was read once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use counterx_harness::poll_until;
use postgres::error::SqlState;
use postgres::{Client, Config, GenericClient, IsolationLevel, NoTls};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::changes::{changes_schema, changes_under_watch};
use crate::check::{Recovering, check, is_lost, sqlstate, watch_by};
use crate::control::Control;
use crate::load::{End, Load, one_by_one, together, under_watch};
use crate::server::DEADLINE;

/// A microsecond's resolution is more than any clock step of a test needs.
const SECOND: Duration = Duration::from_secs(1);

/// Has the server a clock that can be set? Debug builds have.
///
/// # Errors
/// Those of the server.
pub fn has_clock(client: &mut impl GenericClient) -> Result<bool> {
    // The library may not be loaded yet.
    client.query("SELECT count(*) FROM counter_sealed", &[])?;
    let sql = "SELECT current_setting('counterx.clock_ahead', true) IS NOT NULL";
    Ok(client.query_one(sql, &[])?.get(0))
}

/// How many seconds a session's clock has to be ahead to show this time.
///
/// # Errors
/// Those of the server.
pub fn seconds_until(client: &mut impl GenericClient, time: &str) -> Result<i64> {
    let sql = "SELECT ceil(extract(epoch FROM $1::text::timestamptz - clock_timestamp()))::bigint";
    Ok(client.query_one(sql, &[&time])?.get(0))
}

/// Sets the clock of a session.
///
/// # Errors
/// Those of the server.
pub fn set_clock(client: &mut impl GenericClient, time: &str) -> Result<()> {
    let ahead = seconds_until(client, time)?;
    Ok(client.batch_execute(&format!("SET counterx.clock_ahead = {ahead}"))?)
}

/// Sets the clock of a whole server, so many seconds ahead. This session goes by it then; each other process meets it
/// when it has a moment.
///
/// # Errors
/// Those of the server.
pub fn set_server_clock(client: &mut Client, ahead: i64) -> Result<()> {
    client.batch_execute(&format!("ALTER SYSTEM SET counterx.clock_ahead = {ahead}"))?;
    client.batch_execute("SELECT pg_reload_conf()")?;
    let sql = "SELECT current_setting('counterx.clock_ahead')::bigint = $1";
    poll_until("the clock", DEADLINE, || {
        Ok(client.query_one(sql, &[&ahead])?.get(0))
    })
}

/// Histories of the types that the loads count, of all units and in several zones.
pub fn histories() -> &'static str {
    "SELECT counter_history('counter', 'infinity', 'infinity', 'infinity', 'infinity', events => 'infinity');
     SELECT counter_history('long', NULL, '35 days', NULL, time_zone => 'Australia/Lord_Howe');
     SELECT counter_history('d', '7 days', '35 days', '800 days', events => '1 day', time_zone => 'Europe/Berlin');
     SELECT counter_history('p', '1 day', '1 day', '35 days', events => 'infinity', time_zone => 'Asia/Kathmandu');
     SELECT counter_history('n', '1 day', NULL, NULL, NULL);
     SELECT counter_history('hit', events => '7 days');
     SELECT counter_history('item');"
}

/// One statement, so one snapshot: how many rows of buckets there are, and what is wrong with which. `$1`: nothing
/// has expired, and all units of a type began with the same folds.
const BUCKETS_SQL: &str = "
    WITH series AS (SELECT type, unit, time_zone, since FROM counter_histories),
    names AS (
        SELECT name, split_part(name, ':', 1) AS type, counter_value(name) AS value
          FROM (SELECT name FROM counters UNION SELECT name FROM known_names()) all_names
         WHERE name LIKE '%:%' AND name !~ '^hit:many:.*[^7].$' AND split_part(name, ':', 1) IN (SELECT type FROM series)
    ),
    buckets AS MATERIALIZED (
        SELECT n.name, n.value AS total, s.unit, s.time_zone, b.*,
               row_number() OVER w AS place, sum(b.delta + b.adjusted) OVER w AS running,
               first_value(b.value - b.delta - b.adjusted) OVER w AS base,
               lead(b.start) OVER w IS NULL AS is_last
          FROM names n JOIN series s ON s.type = n.type AND s.unit <> 'event',
               LATERAL counter_buckets(n.name, s.unit) WITH ORDINALITY b
        WINDOW w AS (PARTITION BY n.name, s.unit ORDER BY b.start)
    ),
    events AS MATERIALIZED (
        SELECT n.name, e.*, lag(e.at) OVER (PARTITION BY n.name ORDER BY e.ordinality) AS earlier
          FROM names n JOIN series s ON s.type = n.type AND s.unit = 'event',
               LATERAL counter_events(n.name, max_rows => 1000000) WITH ORDINALITY e
    ),
    sums AS MATERIALIZED (
        SELECT name, unit, total, sum(delta) AS delta, sum(adjusted) AS adjusted, sum(ups) AS ups, sum(downs) AS downs,
               sum(changes) AS changes, min(base) AS base
          FROM buckets GROUP BY name, unit, total
        UNION ALL
        SELECT e.name, 'event', n.value, coalesce(sum(delta) FILTER (WHERE kind = 'increment'), 0),
               coalesce(sum(delta) FILTER (WHERE kind = 'adjustment'), 0),
               coalesce(sum(delta) FILTER (WHERE kind = 'increment' AND delta > 0), 0),
               coalesce(-sum(delta) FILTER (WHERE kind = 'increment' AND delta < 0), 0),
               count(*) FILTER (WHERE kind = 'increment'), NULL
          FROM events e JOIN names n USING (name) GROUP BY e.name, n.value
    ),
    wrong AS (
        SELECT format('%s %s: bucket %s', name, unit, b) AS what FROM buckets b
         WHERE value <> base + running OR delta <> ups - downs OR ups < 0 OR downs < 0 OR changes < 0
            OR place <> ordinality OR (is_last AND value <> total)
            OR (time_zone <> 'Australia/Lord_Howe' AND start <> date_trunc(unit, start, time_zone))
        UNION ALL
        SELECT format('event %s', e) FROM events e WHERE at <= earlier
        UNION ALL
        -- A row of zeros comes of changes that cancel each other out, so each unit has one.
        SELECT format('units disagree: %s', string_agg(s::text, ' '))
          FROM sums s WHERE $1 GROUP BY name
        HAVING count(DISTINCT (delta, adjusted, ups, downs, changes)) > 1 OR count(DISTINCT base) > 1
        UNION ALL
        SELECT format('finer buckets of %s %s disagree: %s, and %s', coarse.name, coarse.unit, coarse, fine)
          FROM (SELECT c.name, c.unit, c.time_zone, start, delta, adjusted, ups, downs, changes FROM buckets c
                 WHERE unit <> 'minute' AND time_zone <> 'Australia/Lord_Howe') coarse
          FULL JOIN (
            SELECT m.name, u.unit, date_trunc(u.unit, m.start, m.time_zone) AS start, sum(delta) AS delta,
                   sum(adjusted) AS adjusted, sum(ups) AS ups, sum(downs) AS downs, sum(changes) AS changes
              FROM buckets m JOIN names n USING (name) JOIN series u ON u.type = n.type
             WHERE m.unit = 'minute' AND m.time_zone <> 'Australia/Lord_Howe' AND u.unit NOT IN ('minute', 'event') GROUP BY 1, 2, 3
          ) fine USING (name, unit, start)
         WHERE $1 AND (coarse.delta, coarse.adjusted, coarse.ups, coarse.downs, coarse.changes)
               IS DISTINCT FROM (fine.delta, fine.adjusted, fine.ups, fine.downs, fine.changes)
    )
    SELECT (SELECT count(*) FROM buckets),
           (SELECT coalesce(string_agg(what, E'\\n'), '') FROM (SELECT what FROM wrong LIMIT 5) few),
           (SELECT coalesce(min(split_part(what, ' ', 1)), '') FROM wrong)";

/// Holds all buckets and events against the values and against each other, in one snapshot. `whole`: nothing has
/// expired, and all units of a type began with the same folds. Returns how many buckets there are.
///
/// # Errors
/// Those of the server, or what is wrong.
pub fn buckets_agree(client: &mut impl GenericClient, whole: bool) -> Result<i64> {
    let row = client.query_one(BUCKETS_SQL, &[&whole])?;
    let (buckets, wrong): (i64, String) = (row.get(0), row.get(1));
    if !wrong.is_empty() {
        let state: String = client
            .query_one(
                "SELECT concat_ws(E'\\n', pg_current_snapshot(), current_setting('transaction_isolation'),
                    (SELECT string_agg(s::text, E'\\n') FROM counterx.state s),
                    (SELECT string_agg(s::text, E'\\n') FROM counterx.late s),
                    (SELECT string_agg(s::text, E'\\n') FROM counterx.expired s),
                    (SELECT string_agg(s::text, E'\\n') FROM counterx.history s))",
                &[],
            )?
            .get(0);
        bail!("{wrong}\n{state}");
    }
    Ok(buckets)
}

/// What was read of sealed buckets.
#[derive(Default)]
pub struct Seen {
    rows: Mutex<HashMap<(String, String, String), String>>,
    reads: AtomicU64,
}

impl Seen {
    /// How many rows were read that were sealed.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// How many different ones there are.
    pub fn rows(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String, String), String>> {
        (self.rows.lock()).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reads some counters, in a span of time that ends `back` before the seal, and holds it against what was read
    /// before.
    ///
    /// # Errors
    /// Those of the server, and that something has changed that was sealed.
    pub fn look(&self, client: &mut impl GenericClient, rng: &mut StdRng) -> Result<()> {
        let (back, length): (i32, i32) = (rng.random_range(0..30), rng.random_range(20..90));
        let sql = "
            SELECT n.name, h.unit, b.start::text, concat_ws(' ', b.delta, b.ups, b.downs, b.changes, b.adjusted, b.value)
              FROM known_names() n
              JOIN counter_histories h ON h.type = split_part(n.name, ':', 1) AND h.unit <> 'event'
              CROSS JOIN counter_sealed s,
              LATERAL counter_buckets(n.name, h.unit, s.sealed_until - make_interval(mins => $1::int + $2::int),
                                      s.sealed_until - make_interval(mins => $1::int), fill => true) b
             WHERE b.sealed AND abs(hashtext(n.name)) % 3 = $3";
        let part: i32 = rng.random_range(0..3);
        let rows = client.query(sql, &[&back, &length, &part])?;
        self.reads.fetch_add(rows.len() as u64, Ordering::Relaxed);
        let mut seen = self.lock();
        for row in rows {
            let key: (String, String, String) = (row.get(0), row.get(1), row.get(2));
            let now: String = row.get(3);
            let known = seen.entry(key.clone()).or_insert_with(|| now.clone());
            ensure!(
                *known == now,
                "a sealed bucket has changed: {key:?} was {known}, is {now}"
            );
        }
        Ok(())
    }

    /// Reads all again that was read before: it is still there, and what it was.
    ///
    /// # Errors
    /// Those of the server, and that something has changed.
    pub fn look_at_all(&self, client: &mut impl GenericClient) -> Result<()> {
        let seen = self.lock();
        let mut by_series: HashMap<(&str, &str), Vec<(&str, &str)>> = HashMap::new();
        for ((name, unit, start), row) in seen.iter() {
            let of = by_series.entry((name, unit)).or_default();
            of.push((start, row));
        }
        for ((name, unit), rows) in by_series {
            let first = rows.iter().map(|(start, _)| *start).min().unwrap_or("");
            let sql = "
                SELECT b.start::text, concat_ws(' ', b.delta, b.ups, b.downs, b.changes, b.adjusted, b.value)
                  FROM counter_buckets($1, $2, $3::text::timestamptz, fill => true) b WHERE b.sealed";
            let now: HashMap<String, String> = client
                .query(sql, &[&name, &unit, &first])?
                .iter()
                .map(|row| (row.get(0), row.get(1)))
                .collect();
            for (start, row) in rows {
                let found = now.get(start);
                ensure!(
                    found.is_some_and(|found| found == row),
                    "a sealed bucket has changed: {name} {unit} {start} was {row}, is {found:?}"
                );
                self.reads.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// One look, at an isolation level that depends on the round.
///
/// # Errors
/// Those of the server, and what is wrong.
pub fn look_at_history(client: &mut Client, seen: &Seen, round: u64, whole: bool) -> Result<u64> {
    let mut rng = StdRng::seed_from_u64(round);
    for _ in 0..4 {
        seen.look(client, &mut rng)?;
    }
    if round.is_multiple_of(4) {
        buckets_agree(client, whole)?;
        return Ok(1);
    }
    let is_serializable = round % 4 == 1;
    let level = if is_serializable {
        IsolationLevel::Serializable
    } else {
        IsolationLevel::RepeatableRead
    };
    match look_twice(client, seen, (&mut rng, round), (level, whole)) {
        // Readers that are serializable take part in conflicts.
        Err(error)
            if is_serializable
                && sqlstate(&error) == Some(&SqlState::T_R_SERIALIZATION_FAILURE) =>
        {
            Ok(0)
        }
        looks => looks,
    }
}

fn look_twice(
    client: &mut Client,
    seen: &Seen,
    (rng, round): (&mut StdRng, u64),
    (level, whole): (IsolationLevel, bool),
) -> Result<u64> {
    let mut transaction = (client.build_transaction())
        .isolation_level(level)
        .read_only(true)
        .start()?;
    let first = buckets_agree(&mut transaction, whole).context("first look of a snapshot")?;
    if round.is_multiple_of(2) {
        std::thread::sleep(Duration::from_millis(40));
    }
    seen.look(&mut transaction, rng)?;
    check(&mut transaction)?;
    let second = buckets_agree(&mut transaction, whole).context("second look")?;
    ensure!(
        first == second,
        "a snapshot has {first} buckets, then {second}"
    );
    transaction.commit()?;
    Ok(2)
}

/// What [`history_under_watch`] needs, in a database of [`crate::create_database`]. History is begun by
/// [`histories`].
///
/// # Errors
/// Those of the server.
pub fn prepare_history(client: &mut Client) -> Result<()> {
    client.batch_execute(changes_schema())?;
    client.batch_execute(
        "CREATE FUNCTION known_names() RETURNS TABLE (name text) STABLE LANGUAGE sql AS $$
             SELECT type || n FROM unnest('{counter:,d:,p:,n:,hit:,hit:many:,item:k}'::text[]) type, generate_series(0, 9) n
         $$;
         CREATE TABLE item (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, kind text NOT NULL);
         INSERT INTO item (kind) SELECT 'k' || n % 3 FROM generate_series(1, 30) n;
         SELECT counter_track('item', 'item', '{kind}');",
    )?;
    client.batch_execute("SELECT counter_track_wait('item', '1 min')")?;
    Ok(())
}

/// Plain increments, savepoints, prepared transactions, changes of every kind, hits, tracked rows, and transactions
/// that write early, with checkers that look at the history.
///
/// # Errors
/// The first thing that went wrong.
pub fn history_under_watch(
    config: &Config,
    load: &Load,
    (seen, whole): (&Seen, bool),
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<u64> {
    let plain = Load {
        checkers: 0,
        two_phase: true,
        // Who was refused goes on in the same connection.
        serializable: !load.survives,
        ..load.clone()
    };
    let changes = Load {
        names: 4,
        seed: load.seed.wrapping_add(1),
        ..plain.clone()
    };
    let others = Load {
        clients: 1,
        checkers: load.checkers,
        ..load.clone()
    };
    let over = AtomicBool::new(false);
    // Told to end, the first load has the others end.
    let until_over = |control: &Control| {
        while !control.is_done() {
            if over.load(Ordering::Relaxed) {
                control.abort();
            }
            std::thread::sleep(SECOND / 100);
        }
        Ok(())
    };
    let watched = std::thread::scope(|scope| {
        let changes = scope.spawn(|| changes_under_watch(config, &changes, until_over));
        let others = scope.spawn(|| {
            together(
                &others,
                |number, control| run_others(config, &others, number, control),
                |control| {
                    watch_by(config, control, load.survives, |client, round| {
                        look_at_history(client, seen, round, whole)
                    })
                },
                until_over,
            )
        });
        let plain = under_watch(config, &plain, meanwhile);
        if load.survives {
            over.store(true, Ordering::Relaxed);
        }
        let changes = changes.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
        let others = others.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
        plain?;
        changes?;
        others
    })?;
    Ok(watched.checks)
}

fn run_others(
    config: &Config,
    load: &Load,
    number: u64,
    control: &Control,
) -> Result<crate::Outcome> {
    let mut connection = Recovering::new(config);
    let mut rng = StdRng::seed_from_u64(load.seed.wrapping_add(number));
    one_by_one(load, number, control, |_| {
        let sql = other(&mut rng);
        let result = (connection.client()).and_then(|client| Ok(client.batch_execute(&sql)?));
        match result {
            Ok(()) => Ok(End::Done),
            Err(error) if load.survives && is_lost(&error) => {
                connection.forget();
                Ok(End::Unknown)
            }
            // The committer was killed, or its commit met a conflict.
            Err(error) if load.survives && sqlstate(&error).is_some() => {
                connection.forget();
                Ok(End::Refused)
            }
            Err(error) => Err(error),
        }
    })
}

fn other(rng: &mut StdRng) -> String {
    let kind = rng.random_range(0..4);
    match rng.random_range(0..6) {
        0 | 1 => format!(
            "SELECT counter_hit('hit:{kind}', {}), counter_hit('hit:x', -1)",
            rng.random_range(1..5)
        ),
        2 | 3 => format!(
            "INSERT INTO item (kind) SELECT 'k{kind}' FROM generate_series(1, 3);
             UPDATE item SET kind = 'k1' WHERE id IN (SELECT id FROM item WHERE kind = 'k{kind}' LIMIT 2)"
        ),
        4 => "DELETE FROM item WHERE id IN (SELECT id FROM item ORDER BY id LIMIT 2)".to_owned(),
        _ => {
            let end = ["ROLLBACK TO s", "RELEASE s"][rng.random_range(0..2)];
            format!(
                "BEGIN; SET LOCAL counterx.pending_work_mem = '64kB'; SELECT bump('counter:0', 3);
                 SAVEPOINT s;
                 SELECT counter_incr('hit:many:' || n, n % 7) FROM generate_series(1, 800) n;
                 SELECT bump('counter:{kind}', -5);
                 {end};
                 SELECT counter_incr('hit:many:7', 1); COMMIT"
            )
        }
    }
}

/// Moves the clock of a whole server on, a step every tenth of a second, as long as the load lasts. Backends meet
/// it at different times: a step is as far as their clocks are apart.
///
/// # Errors
/// Those of the server.
pub fn run_clock(config: &Config, control: &Control, (mut ahead, step): (i64, i64)) -> Result<i64> {
    let mut client = config.connect(NoTls)?;
    while !control.is_done() {
        ahead += step;
        set_server_clock(&mut client, ahead)?;
        std::thread::sleep(SECOND / 10);
    }
    Ok(ahead)
}
