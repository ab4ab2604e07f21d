//! Types whose history is kept beside those without: counting, folding, and reading.

use anyhow::{Context, Result, ensure};

use super::fold::{self, Came, EACH, RATE};
use crate::goals::Goal;
use crate::options::{Options, Section};
use crate::pgbench::Pgbench;
use crate::proc::cpu_seconds;
use crate::race::{Entry, Pace, race};
use crate::report::{Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Types of the same counters, and what is kept of them.
const TYPES: [(&str, &str, &str); 4] = [
    ("none", "no history", ""),
    (
        "one",
        "minutes",
        "SELECT counter_history('one', hour => NULL, day => NULL);",
    ),
    (
        "three",
        "minutes, hours and days",
        "SELECT counter_history('three');",
    ),
    (
        "events",
        "events",
        "SELECT counter_history('events', minute => NULL, hour => NULL, day => NULL, events => '1 day');",
    ),
];

/// What is folded, and how `:k` is drawn.
const LOADS: [(&str, Option<&str>); 2] = [
    ("ten hot counters", None),
    ("10,000 counters by lot", Some("random(1, 10000)")),
];

/// Minutes of a day, each of which has a row.
const MINUTES: u32 = 1440;

/// Rows of hours, all of one table.
const SIZED: u32 = 100_000;

/// A million counters; of a tenth of them something was counted in the last hours, ten times as often.
const COUNTERS: u32 = 1_000_000;
const CHANGED: u32 = 100_000;
const CHANGES: u32 = 1_000_000;

/// Times of an answer for each second of a slice, and at least.
const RUNS: u32 = 100;
const TOP_RUNS: u32 = 2;
const FEWEST_TOP_RUNS: u32 = 5;

/// Moves rows of the type from a table `made` to the tables of a class, as folds of the time would have left
/// them. The length of a segment is in seconds.
fn put(of: &str, unit: &str, class: u32, segment: u32) -> String {
    format!(
        "DO $$
         BEGIN
             FOR number IN 0..5 LOOP
                 EXECUTE format(
                     'INSERT INTO counterx.bucket_{class}_%s
                      SELECT h.id, m.start, m.delta, m.name, m.value, m.delta, 0, m.delta, 0
                      FROM made m, counterx.history h
                      WHERE h.type = ''{of}'' AND h.unit = ''{unit}''
                        AND extract(epoch FROM m.start - ''2000-01-01 00:00+00'')::bigint / {segment} %% 6 = %s
                      ORDER BY m.start, m.name', number, number);
             END LOOP;
         END $$;"
    )
}

/// Lets this superuser write where folds alone write.
const OPEN: &str = "DO $$
     DECLARE
         of regclass;
     BEGIN
         FOR of IN
             SELECT oid FROM pg_class
             WHERE relnamespace = 'counterx'::regnamespace AND relkind = 'r'
               AND (relname ^@ 'bucket_' OR relname IN ('history', 'history_lane'))
         LOOP
             EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', of);
         END LOOP;
     END $$";

/// History begins, of all that exists.
fn begin(server: &mut Server, sql: &str) -> Result<()> {
    server.execute(sql)?;
    server.execute("SELECT counter_seal()")
}

/// What is known of a type goes back by some days.
fn age(server: &mut Server, of: &str) -> Result<()> {
    server.execute(&format!(
        "UPDATE counterx.history_lane SET at = at - interval '2 days', since = since - interval '2 days'
         WHERE history IN (SELECT id FROM counterx.history WHERE type = '{of}');
         UPDATE counterx.history SET since = since - interval '2 days' WHERE type = '{of}'"
    ))
}

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let [counters, changed, changes] =
        [COUNTERS, CHANGED, CHANGES].map(|number| Unit::Count.format(number.into()));
    let mut measured = Measured::new(
        Section::History,
        format!(
            "First {} clients add to one counter, of a type without history and of types that have it. Then, as \
             in section fold, {RATE} transactions per second that change {EACH} counters each: the worker's \
             processor time for a delta. A counter that was counted in each of the last {MINUTES} minutes is \
             read by one client, with nothing pending and beside {RATE} \
             transactions per second that change ten other counters with history (`counter_value` beside the \
             same expression that `counter_at` gets as its time); and by a transaction that \
             is `REPEATABLE READ` and open while the newest bucket is changed thousands of times. At last \
             {counters} counters, of which {changed} were counted in the last 23 hours, {changes} times in \
             all, beside a table of events `(name, at)` that has these {changes} and an older one of each \
             counter, with an index on `at` and one on `(name, at)`: both answers are the same, and are \
             asked of one process each. Reads are measured in processor time of the backend. Rows of the past are put into the tables of buckets by SQL, as \
             folds would have left them.",
            options.clients,
        ),
    );
    let mut server = Server::start("history", options)?;
    server.execute(OPEN)?;
    for (_, _, sql) in TYPES {
        server.execute(sql)?;
    }
    begin(&mut server, "")?;
    counting(&mut server, options, &mut measured)?;
    folding(&mut server, options, &mut measured)?;
    size(&mut server, &mut measured)?;
    reading(&mut server, options, &mut measured)?;
    drop(server);
    let mut server = Server::start_with(
        "history-top",
        options,
        &[("max_parallel_workers_per_gather", "0")],
    )?;
    server.execute(OPEN)?;
    trending(&mut server, options, &mut measured)?;
    Ok(measured)
}

/// The rate of increments.
fn counting(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    // Each is put together, as pgbench would take what follows a colon for a variable.
    let entry = |of: &str, name: &str| {
        Entry::custom(
            name,
            &format!("SELECT counter_incr('{of}:' || 'hot');"),
            &format!("SELECT counter_value('{of}:hot')"),
            options.clients,
        )
    };
    // The others are compared to the first one.
    let [none, one, three, _] = TYPES.map(|(of, name, _)| entry(of, name));
    let pace = Pace {
        rounds: options.rounds(),
        seconds: options.seconds(),
    };
    let title = format!("counter_incr, {} clients, durable", options.clients);
    let race = race(server, &title, pace, &[one, none, three])?;
    let [_, none, _] = &race.rows[..] else {
        unreachable!("as many rows as entries")
    };
    measured.goal(Goal::HistoryIncrements, none.ratio.clone());
    let three = &race.row(TYPES[2].1)?.rate;
    let what = "counter_incr: minutes, hours and days, times the rate without history";
    measured.ratios.push(three.ratio_to(what, &none.rate)?);
    measured.races.push(race);
    Ok(())
}

/// The processor time of folds.
fn folding(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let seconds = options.seconds() * 2;
    let mut table = Table::new(
        "folding, medians",
        &[
            "",
            "increments reached",
            "worker's share of a processor",
            "worker's time for a delta",
            "times that without history",
            "WAL for an increment, in all",
        ],
    );
    for (load, draw) in LOADS {
        let mut all: [Vec<Came>; TYPES.len()] = Default::default();
        for round in 0..options.few_rounds() {
            for turn in turns(round, TYPES.len()) {
                let (of, what, _) = TYPES[turn];
                let script = fold::script(&format!("{of}:"), draw);
                let name = format!("{load}, {what}");
                all[turn].push(fold::turn(server, options, &name, &script, seconds)?);
            }
        }
        let series = |came: &[Came], what: &str, unit, of: fn(&Came) -> f64| {
            let values = came.iter().map(of).collect();
            Series::new(format!("{load}, {what}"), unit, values)
        };
        let times = |came: &[Came], what: &str| {
            let what = format!("{what}: worker's time for a delta");
            series(came, &what, Unit::Microseconds, |came| came.each)
        };
        let without = times(&all[0], TYPES[0].1)?;
        for ((of, what, _), came) in TYPES.into_iter().zip(&all) {
            let reached = series(came, what, Unit::PerSecond, |came| came.reached)?;
            let share = series(came, what, Unit::Share, |came| came.share)?;
            let wal = series(came, what, Unit::Bytes, |came| came.wal)?;
            let each = times(came, what)?;
            let ratio = each.ratio_to(format!("{}, times that without", each.what), &without)?;
            table.rows.push(vec![
                format!("{load}, {what}"),
                Unit::PerSecond.format(reached.median),
                Unit::Share.format(share.median),
                format!("{:.2} µs", each.median),
                Unit::Ratio.format(ratio.median),
                Unit::Bytes.format(wal.median),
            ]);
            if of == "one" && draw.is_none() {
                measured.goal(Goal::HistoryFold, ratio.clone());
            }
            if of != "none" {
                measured.ratios.push(ratio);
            }
            measured.figures.push(each);
        }
    }
    measured.tables.push(table);
    Ok(())
}

/// Bytes of a row, as folds write it.
fn size(server: &mut Server, measured: &mut Measured) -> Result<()> {
    // Nothing else is in tables of this class.
    begin(
        server,
        "SELECT counter_history('sized', minute => NULL, day => NULL, hour => '7 days')",
    )?;
    let bytes = |what: &str| {
        format!(
            "a row of a bucket, name of 13 characters, {what}: bytes of the table and its index"
        )
    };
    for what in ["after one fold", "after three more"] {
        for _ in 0..if what == "after one fold" { 1 } else { 3 } {
            server.execute(&format!(
                "SELECT count(counter_incr('sized:' || n)) FROM generate_series(1000001, {}) n",
                1_000_000 + SIZED
            ))?;
            server.fold()?;
        }
        let rows: f64 = server.one(
            "SELECT sum(pg_total_relation_size(format('counterx.bucket_1_%s', n)::regclass))::float8
                  / (SELECT count(*) FROM counters WHERE name ^@ 'sized:')
             FROM generate_series(0, 5) n",
        )?;
        let series = Series::new(bytes(what), Unit::Bytes, vec![rows])?;
        measured.figures.push(series);
    }
    // An hour may have ended meanwhile: then there is a row of two.
    let rows: i64 = server.one(
        "SELECT count(*) FROM (SELECT FROM counterx.bucket_1_0 UNION ALL SELECT FROM counterx.bucket_1_1
                               UNION ALL SELECT FROM counterx.bucket_1_2 UNION ALL SELECT FROM counterx.bucket_1_3
                               UNION ALL SELECT FROM counterx.bucket_1_4 UNION ALL SELECT FROM counterx.bucket_1_5) rows",
    )?;
    ensure!(
        rows == i64::from(SIZED),
        "there are {rows} rows, not {SIZED}: an hour has ended meanwhile"
    );
    Ok(())
}

const HOURS: &str = r#"SELECT * FROM counter_buckets('day:x', 'hour', "from" => date_trunc('hour', now(), 'UTC') - interval '23 hours')"#;
const OF_MINUTES: &str = "SELECT * FROM counter_buckets('day:x', 'minute')";
const VALUE: &str =
    "SELECT counter_value('day:x'), now() - floor(1400 * random()) * interval '1 minute'";
const AT: &str = "SELECT counter_at('day:x', now() - floor(1400 * random()) * interval '1 minute')";
const READS: [(&str, &str); 4] = [
    ("counter_value", VALUE),
    ("counter_at", AT),
    ("counter_buckets, 24 hours", HOURS),
    ("counter_buckets, 1,440 minutes", OF_MINUTES),
];

fn reading(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    server.execute(&format!("SELECT counter_incr('day:x', {MINUTES})"))?;
    server.fold()?;
    begin(server, "SELECT counter_history('day')")?;
    age(server, "day")?;
    let made = |by: &str, minutes: u32| {
        format!(
            "CREATE TABLE made AS
             SELECT 'day:x' AS name, start, {minutes} AS delta, {minutes} * row_number() OVER (ORDER BY start) AS value
             FROM generate_series(date_trunc('minute', now(), 'UTC') - interval '1439 minutes',
                                  date_trunc('minute', now(), 'UTC'), interval '1 minute') start;
             {by} DROP TABLE made;"
        )
    };
    server.execute(&made(&put("day", "minute", 0, 21_600), 1))?;
    let hours = "CREATE TABLE hours AS
             SELECT name, date_trunc('hour', start, 'UTC') AS start, sum(delta) AS delta, max(value) AS value
             FROM made GROUP BY 1, 2;
             DROP TABLE made; ALTER TABLE hours RENAME TO made;";
    server.execute(&made(
        &format!("{hours}{}", put("day", "hour", 2, 756_000)),
        1,
    ))?;
    server.execute("VACUUM (ANALYZE)")?;
    server.check(
        "the day's sum",
        "SELECT sum(delta)::bigint FROM counter_buckets('day:x', 'minute')",
        MINUTES.into(),
    )?;
    server.check(
        "the value of an hour ago",
        "SELECT counter_at('day:x', date_trunc('minute', now(), 'UTC') - interval '1 hour')
              + sum(delta)::bigint
         FROM counter_buckets('day:x', 'minute', \"from\" => date_trunc('minute', now(), 'UTC') - interval '1 hour')",
        MINUTES.into(),
    )?;
    let runs = RUNS * options.seconds();
    for busy in [false, true] {
        let beside = if busy { ", beside folds" } else { "" };
        let mut all: Vec<Vec<f64>> = vec![Vec::new(); READS.len()];
        for round in 0..options.few_rounds() {
            let load = fold::script("three:", None);
            let others = busy
                .then(|| {
                    Pgbench::new(&server.cluster, options.clients, &load)
                        .rate(RATE)
                        .start(1_000_000)
                })
                .transpose()?;
            if busy {
                server.wait_for_growth("SELECT counter_value('three:hot-0')", RATE)?;
            }
            let mut client = server.cluster.connect()?;
            for turn in turns(round, READS.len()) {
                all[turn].push(processor(&mut client, READS[turn].1, runs)?);
            }
            if let Some(others) = others {
                others.stop()?;
                server.wait_for_no_pgbench()?;
            }
            server.fold()?;
        }
        let mut series = Vec::new();
        for ((what, _), all) in READS.iter().zip(all) {
            let what = format!("{what}{beside}: processor time");
            series.push(Series::new(what, Unit::Microseconds, all)?);
        }
        let [value, at, hours, _] = &series[..] else {
            unreachable!("one of each read")
        };
        let ratio = at.ratio_to(format!("{}, times that of counter_value", at.what), value)?;
        if !busy {
            measured.goal(Goal::HistoryAt, ratio.clone());
            measured.goal(Goal::HistoryBuckets, hours.clone());
        }
        measured.ratios.push(ratio);
        measured.figures.extend(series);
    }
    beside_snapshot(server, options, measured)
}

/// Microseconds of the backend's processor that one run takes, the mean of many.
fn processor(client: &mut postgres::Client, sql: &str, runs: u32) -> Result<f64> {
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let statement = client.prepare(sql)?;
    // Caches are filled, and the plan is made, before.
    for _ in 0..10 {
        client.query(&statement, &[])?;
    }
    let start = cpu_seconds(pid)?;
    for _ in 0..runs {
        client.query(&statement, &[])?;
    }
    Ok((cpu_seconds(pid)? - start) * 1e6 / f64::from(runs))
}

/// The newest bucket is changed thousands of times, all of which an old snapshot keeps.
fn beside_snapshot(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let folds = options.size(1000, 5000);
    let mut old = server.cluster.connect()?;
    let mut new = server.cluster.connect()?;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    let runs = RUNS * options.seconds();
    let mean = |client: &mut postgres::Client| {
        let rows = client.query(HOURS, &[])?.len();
        ensure!(rows >= 24, "an hour is missing");
        processor(client, HOURS, runs)
    };
    let before = mean(&mut old)?;
    let each = "SELECT counter_incr('day:' || 'x');\nSELECT counterx.compact();";
    Pgbench::new(&server.cluster, 1, each).run_logged_times(folds)?;
    server.fold()?;
    let figures = [
        ("by an old snapshot, before", before),
        ("by it, after", mean(&mut old)?),
        ("by a new one, after", mean(&mut new)?),
    ];
    old.batch_execute("COMMIT")?;
    let mut end = server.cluster.connect()?;
    server.execute("VACUUM")?;
    let figures = figures.into_iter().chain([(
        "when the old one has gone, and after a VACUUM",
        mean(&mut end)?,
    )]);
    for (what, mean) in figures {
        println!("    {what}: {}", Unit::Microseconds.format(mean));
        measured.figures.push(Series::new(
            format!(
                "counter_buckets, 24 hours, processor time; the newest was changed {} times: {what}",
                Unit::Count.format(folds.into())
            ),
            Unit::Microseconds,
            vec![mean],
        )?);
    }
    Ok(())
}

/// What was most popular.
fn trending(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let step = COUNTERS / CHANGED;
    server.execute(&format!(
        "SELECT count(counter_incr('hits:' || n)) FROM generate_series(1, {COUNTERS}) n"
    ))?;
    server.fold()?;
    begin(server, "SELECT counter_history('hits', minute => NULL)")?;
    // A reader looks as far as folds have written.
    server.execute("SELECT counter_incr('hits:1')")?;
    server.fold()?;
    age(server, "hits")?;
    // Those counters that changed did so once at least, and the others of their changes are some's more than others'.
    server.execute(&format!(
        "CREATE TABLE event (name text COLLATE \"C\" NOT NULL, at timestamptz NOT NULL);
         INSERT INTO event SELECT 'hits:' || n, now() - interval '2 days' FROM generate_series(1, {COUNTERS}) n;
         INSERT INTO event
         SELECT 'hits:' || {step} * (CASE WHEN n <= {CHANGED} THEN n ELSE 1 + floor({CHANGED} * random() ^ 3) END)::integer,
                now() - interval '23 hours' * (1 - n / {CHANGES}.0)
         FROM generate_series(1, {CHANGES}) n;
         INSERT INTO event VALUES ('hits:1', now());
         CREATE INDEX ON event (at);
         CREATE INDEX ON event (name, at);
         CREATE TABLE made AS
         SELECT name, date_trunc('hour', at, 'UTC') AS start, count(*) AS delta,
                1 + sum(count(*)) OVER (PARTITION BY name ORDER BY date_trunc('hour', at, 'UTC')) AS value
         FROM event WHERE at > now() - interval '1 day' AND name <> 'hits:1' GROUP BY 1, 2;"
    ))?;
    server.execute(&put("hits", "hour", 2, 756_000))?;
    let rows: i64 = server.one("SELECT count(*) FROM made")?;
    server.execute("DROP TABLE made")?;
    server.execute("VACUUM (ANALYZE)")?;
    server.execute("CHECKPOINT")?;
    let counters = "SELECT name, delta FROM counter_top_changed(10, 'hits:', '1 day')";
    let table = "SELECT name, count(*) FROM event WHERE at > now() - interval '1 day' \
                 GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 10";
    server.check(
        "the first 10",
        &format!("SELECT count(*) FROM (({counters}) EXCEPT ({table})) AS different"),
        0,
    )?;
    server.check(
        "the first 10",
        &format!("SELECT count(*) FROM ({counters}) top"),
        10,
    )?;
    let runs = (TOP_RUNS * options.seconds()).max(FEWEST_TOP_RUNS);
    let mut client = server.cluster.connect()?;
    let asked = [counters, table];
    let mut all = [Vec::new(), Vec::new()];
    for round in 0..options.few_rounds() {
        for turn in turns(round, asked.len()) {
            all[turn].push(processor(&mut client, asked[turn], runs)?);
        }
    }
    let [changed, events] = all;
    let what = "counter_top_changed(10, 'hits:', '1 day'): processor time";
    let changed = Series::new(what, Unit::Microseconds, changed)?;
    let what = "the query of the table of events: processor time";
    let events = Series::new(what, Unit::Microseconds, events)?;
    let what = "counter_top_changed, times the processor time of the query of events";
    measured.ratios.push(changed.ratio_to(what, &events)?);
    measured.figures.extend([changed, events]);
    let sizes = [
        ("the table of events and its indexes", "SELECT pg_total_relation_size('event')::float8"),
        (
            "the buckets of these hours and their index",
            "SELECT sum(pg_total_relation_size(format('counterx.bucket_2_%s', n)::regclass))::float8
             FROM generate_series(0, 5) n",
        ),
    ];
    for (what, sql) in sizes {
        let bytes: f64 = server.one(sql).with_context(|| what.to_owned())?;
        measured
            .figures
            .push(Series::new(what, Unit::Bytes, vec![bytes])?);
    }
    let rows = Series::new(
        "rows of buckets of these hours",
        Unit::Count,
        vec![rows as f64],
    )?;
    measured.figures.push(rows);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_variables_of_pgbench() {
        for (of, ..) in TYPES {
            let script = fold::script(&format!("{of}:"), None);
            assert!(!script.replace(":'", "").contains(':'), "{script}");
        }
    }
}
