//! A large table is tracked while others write to it. A part of the section of tracked tables.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use postgres::Client;
use postgres::error::SqlState;

use super::tracks::{create_table, insert};
use crate::goals::Goal;
use crate::options::Options;
use crate::pgbench::{Latency, Logged, Pgbench};
use crate::report::{Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit};

/// Writes per second.
const RATE: u32 = 2000;

/// Calls of `counter_track` that may find the table in use for too long.
const CALLS: u32 = 20;

/// Snapshots that have to be compared, at least, of those in which the track is exact.
const SNAPSHOTS: u32 = 10;

/// Of what was inserted one write after another writes here: no two of them lock two rows.
const WRITES: &str = "\
\\set id random(1, ROWS)
\\set project random(0, 199)
\\set what random(1, 10)
\\if :what <= 5
INSERT INTO task (project_id, status, title) VALUES (:project, 'open', 'a task');
\\elif :what <= 9
UPDATE task SET status = CASE status WHEN 'open' THEN 'done' ELSE 'open' END WHERE id = :id;
\\else
DELETE FROM task WHERE id = :id;
\\endif
";

/// Whether the track is exact, rows of a group, and what its counter says: of one snapshot.
const COMPARE: &str = "
    SELECT t.state = 'exact', r.n, counter_value(counter_name('task', $1::integer, $2::text))
    FROM counter_tracks AS t,
         (SELECT count(*) AS n FROM task WHERE project_id = $1 AND status = $2) AS r
    WHERE t.type = 'task'";

const STATUS: [&str; 3] = ["open", "done", "closed"];

/// When what began, in seconds since 1970.
struct Times {
    /// The call of `counter_track`.
    call: f64,
    /// Its commit.
    tracked: f64,
    /// The first snapshot in which the track was exact.
    exact: f64,
    calls: u32,
    /// Of those in which it was exact.
    snapshots: u32,
}

pub(super) fn run(options: &Options, measured: &mut Measured) -> Result<()> {
    let rows = options.rows();
    let mut server = Server::start("attach", options)?;
    println!("    a table of {rows} rows is made");
    server.execute(&create_table("task"))?;
    server.execute(&insert("task", rows))?;
    server.execute("CREATE INDEX ON task (project_id, status)")?;
    server.execute("VACUUM (ANALYZE) task")?;
    server.execute("CHECKPOINT")?;

    let before = Duration::from_secs(options.size(3, 15));
    let seconds = options.size(20, 90);
    let script = WRITES.replace("ROWS", &rows.to_string());
    let writers = Pgbench::new(&server.cluster, options.clients, &script).rate(RATE);
    let mut client = server.cluster.connect()?;
    let (log, times) = thread::scope(|scope| {
        let writing = scope.spawn(|| writers.run_logged(seconds));
        // The load without the track, to compare with.
        thread::sleep(before);
        let times = track(&mut client, || writing.is_finished());
        let log = writing
            .join()
            .map_err(|_| anyhow::anyhow!("who ran pgbench has panicked"))?;
        Ok::<_, anyhow::Error>((log?, times?))
    })?;
    // Nobody writes any more.
    let drift: i64 = server.one("SELECT count(*) FROM counter_drift('task')")?;
    ensure!(drift == 0, "{drift} counters have drifted");
    let counted: i64 = server.one("SELECT counter_sum('task:')::bigint")?;
    server.check("the tracked table", "SELECT count(*) FROM task", counted)?;

    let reached = log.len() as f64 / f64::from(seconds);
    if reached < f64::from(RATE) * 0.95 {
        measured.how += &format!(
            " **This machine has not reached {RATE} writes per second**, but {}: the wait is that at this \
             rate.",
            Unit::PerSecond.format(reached)
        );
    }
    let mut table = Table::new(
        &format!(
            "a table of {} rows is tracked",
            Unit::Count.format(rows.into())
        ),
        &["writes", "number", "p50", "p99", "longest"],
    );
    let periods = [
        ("before", 0.0, times.call),
        (
            "while counter_track had to wait, and worked",
            times.call,
            times.tracked,
        ),
        ("while the rows were counted", times.tracked, times.exact),
        ("when the track was exact", times.exact, f64::INFINITY),
    ];
    for (what, from, to) in periods {
        let own: Vec<u64> = within(&log, from, to).collect();
        let Some(longest) = own.iter().max() else {
            table.rows.push(vec![what.to_owned(), "0".to_owned()]);
            continue;
        };
        let latency = Latency::of(own.iter().copied())?;
        let time = |microseconds| Unit::Microseconds.format(microseconds);
        table.rows.push(vec![
            what.to_owned(),
            Unit::Count.format(own.len() as f64),
            time(latency.p50),
            time(latency.p99),
            time(*longest as f64),
        ]);
    }
    measured.tables.push(table);
    let longest = within(&log, times.call, times.exact)
        .max()
        .context("nobody has written while the table was tracked")?;
    let one = |what: &str, unit, value| Series::new(what, unit, vec![value]);
    measured.goal(
        Goal::AttachWait,
        one(
            "the longest write while a table is tracked",
            Unit::Seconds,
            longest as f64 / 1e6,
        )?,
    );
    measured.figures.extend([
        one("writes per second", Unit::PerSecond, reached)?,
        one(
            "counter_track, with its commit",
            Unit::Seconds,
            times.tracked - times.call,
        )?,
        one(
            "calls of counter_track until one had the table",
            Unit::Count,
            times.calls.into(),
        )?,
        one(
            "from the commit until the track was exact",
            Unit::Seconds,
            times.exact - times.tracked,
        )?,
        one(
            "snapshots that were compared once the track was exact, all of them right",
            Unit::Count,
            times.snapshots.into(),
        )?,
    ]);
    Ok(())
}

/// The calls that were under way at some time between the two: microseconds of each.
pub(super) fn within(log: &[Logged], from: f64, to: f64) -> impl Iterator<Item = u64> {
    log.iter().filter_map(move |call| {
        let own = call
            .microseconds
            .saturating_sub(call.lag.unwrap_or_default());
        let start = call.end - own as f64 / 1e6;
        (call.end >= from && start < to).then_some(own)
    })
}

/// Tracks the table, and compares snapshots until the writers have ended.
fn track(client: &mut Client, has_ended: impl Fn() -> bool) -> Result<Times> {
    let call = seconds_since_1970()?;
    let mut calls = 0;
    loop {
        ensure!(!has_ended(), "the writers have ended too early");
        calls += 1;
        let sql = "SELECT counter_track('task', type => 'task', key => '{project_id, status}')";
        match client.query_one(sql, &[]) {
            Ok(_) => break,
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && calls < CALLS => {}
            Err(error) => return Err(error).context("could not track the table"),
        }
    }
    let tracked = seconds_since_1970()?;
    let mut exact = None;
    let (mut snapshots, mut number) = (0, 0_usize);
    let statement = client.prepare(COMPARE)?;
    while !has_ended() {
        number += 1;
        let project = (number * 7 % 200) as i32;
        let status = STATUS[number % STATUS.len()];
        let row = client.query_one(&statement, &[&project, &status])?;
        let (is_exact, rows, counted): (bool, i64, i64) = (row.get(0), row.get(1), row.get(2));
        if is_exact {
            exact = match exact {
                None => Some(seconds_since_1970()?),
                known => known,
            };
            snapshots += 1;
            ensure!(
                rows == counted,
                "{rows} rows of {project}, {status}, and {counted} were counted"
            );
        } else if exact.is_some() {
            bail!("the track was exact, and is not any more");
        }
    }
    let exact = exact.context("the track was not exact when the writers ended")?;
    ensure!(
        snapshots >= SNAPSHOTS,
        "only {snapshots} snapshots were compared"
    );
    println!(
        "    tracked after {:.3} s and {calls} calls, exact {:.1} s later; {snapshots} snapshots compared",
        tracked - call,
        exact - tracked
    );
    Ok(Times {
        call,
        tracked,
        exact,
        calls,
        snapshots,
    })
}

pub(super) fn seconds_since_1970() -> Result<f64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(since.context("the clock is before 1970")?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_belong_to_all_periods_that_they_reach_into() {
        let write = |end, microseconds, lag| Logged {
            script: 0,
            end,
            microseconds,
            lag,
        };
        let log = [
            write(10.0, 500_000, None),
            // Late by half a second, and then quick.
            write(10.5, 500_100, Some(500_000)),
            write(12.0, 3_000_000, None),
        ];
        let own = |from, to| within(&log, from, to).collect::<Vec<u64>>();
        assert_eq!(own(0.0, 9.4), [3_000_000]);
        assert_eq!(own(9.9, 10.2), [500_000, 3_000_000]);
        assert_eq!(own(10.4, 11.0), [100, 3_000_000]);
    }
}
