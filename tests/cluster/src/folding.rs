//! How far the folding of a database has come, waiting for it, and who does it.

use anyhow::{Context, Result, ensure};
use counterx_harness::{poll_to_end, poll_until};
use postgres::{Client, GenericClient};

use crate::check::check;
use crate::server::DEADLINE;

/// How far a database's folding and recycling of space has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Sum of the lanes' folded epochs: grows with every fold that found something.
    pub folded: i64,
    /// Sum of the lanes' truncated-through epochs: grows with every log that was emptied.
    pub truncated: i64,
    /// The logs' files: TRUNCATE gives a new one.
    pub files: Vec<u32>,
    /// Bytes in all logs.
    pub log_bytes: i64,
    /// Deltas in the logs that no fold has taken, and late ones.
    pub pending: i64,
}

impl Footprint {
    /// Were there many folds since `before`? That may take longer than a load: see [`folds_often`].
    #[must_use]
    pub fn has_folded_often_since(&self, before: &Self) -> bool {
        self.folded > before.folded + 20
    }

    /// Was a log emptied since `before`? That may come later than the folds: see [`folds_and_empties`].
    #[must_use]
    pub fn has_emptied_since(&self, before: &Self) -> bool {
        self.truncated > before.truncated
    }
}

/// Measures a database.
///
/// # Errors
/// Those of the server.
pub fn footprint(client: &mut impl GenericClient) -> Result<Footprint> {
    let mut truncated = 0_i64;
    let mut files = Vec::new();
    let mut log_bytes = 0_i64;
    for lane in 0..8 {
        let sql = format!("SELECT truncated FROM counterx.gate_{lane}");
        truncated += client.query_one(&sql, &[])?.get::<_, i64>(0);
        for side in ["a", "b"] {
            let log = format!("counterx.log_{lane}_{side}");
            let row = client.query_one(
                "SELECT pg_relation_filenode($1::text::regclass), pg_relation_size($1::text::regclass)",
                &[&log],
            )?;
            files.push(row.get(0));
            log_bytes += row.get::<_, i64>(1);
        }
    }
    let row = client.query_one(
        "SELECT coalesce((SELECT sum(folded_epoch) FROM counterx.lanes), 0)::bigint,
                ((SELECT coalesce(sum(pending_deltas), 0) FROM counterx.lanes)
                 + (SELECT count(*) FROM counterx.late))::bigint",
        &[],
    )?;
    Ok(Footprint {
        folded: row.get(0),
        truncated,
        files,
        log_bytes,
        pending: row.get(1),
    })
}

/// Waits until the database's worker has folded all there is, as long as there is less and less of it: how long a
/// large backlog takes is the machine's.
///
/// # Errors
/// When it does not.
pub fn settle(client: &mut Client) -> Result<()> {
    let sql = "SELECT (SELECT coalesce(sum(pending_deltas), 0) FROM counterx.lanes)::bigint
                    + (SELECT count(*) FROM counterx.late)";
    let folded = poll_to_end("everything to be folded", DEADLINE, || {
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0).unsigned_abs())
    });
    if folded.is_ok() {
        return folded;
    }
    // What there is to say about why.
    let state: String = client
        .query_one(
            "SELECT concat_ws(E'\n', pg_catalog.current_database(),
                (SELECT string_agg(w::text, E'\n') FROM counterx.workers w),
                (SELECT string_agg(l::text, E'\n') FROM counterx.lanes l),
                (SELECT count(*) FROM counterx.late) || ' late',
                (SELECT string_agg(concat_ws(' ', a.pid, a.datname, a.backend_type, a.state, a.wait_event,
                        a.xact_start, pg_blocking_pids(a.pid)), E'\n') FROM pg_stat_activity a))",
            &[],
        )?
        .get(0);
    folded.context(state)
}

/// Counts once more, and waits until all is folded: the counters are right then.
///
/// # Errors
/// Those of the server, or the first difference.
pub fn count_and_settle(client: &mut Client) -> Result<()> {
    client.batch_execute("SELECT bump('last', 1)")?;
    settle(client)?;
    check(client)?;
    Ok(())
}

/// The same, and makes sure that something was folded since `before` was measured.
///
/// # Errors
/// As of [`count_and_settle`], and that nothing was.
pub fn folds_on(client: &mut Client, before: &Footprint) -> Result<Footprint> {
    count_and_settle(client)?;
    let after = footprint(client)?;
    ensure!(
        after.folded > before.folded,
        "nothing was folded: {before:?} {after:?}"
    );
    Ok(after)
}

/// The same, and waits until a log was emptied since `before` was measured: that comes after the folds, and
/// only when no snapshot needs the log any more, on a standby with feedback neither.
///
/// # Errors
/// As of [`folds_on`], and that none was.
pub fn folds_and_empties(client: &mut Client, before: &Footprint) -> Result<Footprint> {
    folds_on(client, before)?;
    let mut after = before.clone();
    let emptied = poll_until("a log to be emptied", DEADLINE, || {
        after = footprint(client)?;
        Ok(after.has_emptied_since(before))
    });
    emptied.with_context(|| format!("{before:?} {after:?}"))?;
    Ok(after)
}

/// Counts on, and waits until many folds have taken place since `before` was measured. On a quick machine
/// a load may be over after a few: how many there are in a time depends on the worker's interval, and on
/// its turns beside the workers of other databases. Everything is folded then.
///
/// # Errors
/// Those of the server, and that they do not.
pub fn folds_often(client: &mut Client, before: &Footprint) -> Result<Footprint> {
    let mut after = before.clone();
    let often = poll_until("many folds", DEADLINE, || {
        client.batch_execute("SELECT bump('last', 1)")?;
        settle(client)?;
        after = footprint(client)?;
        Ok(after.has_folded_often_since(before))
    });
    often.with_context(|| format!("{before:?} {after:?}"))?;
    Ok(after)
}

/// Switches folding off for a database, and waits until its worker has seen that. The setting is a new
/// session's: connect again to count under it.
///
/// # Errors
/// Those of the server, and that the worker goes on.
pub fn pause_folding(client: &mut Client, db: &str) -> Result<()> {
    client.batch_execute(&format!(
        "ALTER DATABASE {db} SET counterx.compaction = off"
    ))?;
    wait_for_pause(client)
}

/// Waits until the worker of the client's database has paused, or there is none.
///
/// # Errors
/// Those of the server, and that the worker goes on.
pub fn wait_for_pause(client: &mut impl GenericClient) -> Result<()> {
    poll_until("the worker to pause", DEADLINE, || {
        let sql = "SELECT bool_and(state IN ('paused', 'stopped')) FROM counterx.workers";
        Ok(client.query_one(sql, &[])?.get(0))
    })
}

/// How many workers run in a database; all databases with `None`.
///
/// # Errors
/// Those of the server.
pub fn count_workers(client: &mut impl GenericClient, db: Option<&str>) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity
                WHERE backend_type = 'counterx worker' AND ($1::text IS NULL OR datname = $1)";
    Ok(client.query_one(sql, &[&db])?.get(0))
}

/// Waits until a worker runs in the database and returns its pid. One that is about to leave and its successor may
/// both be there for a moment: then it is the successor's.
///
/// # Errors
/// When none does.
pub fn wait_for_worker(client: &mut impl GenericClient, db: &str) -> Result<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
                WHERE backend_type = 'counterx worker' AND datname = $1
                ORDER BY backend_start DESC LIMIT 1";
    let mut pid = None;
    poll_until("a worker", DEADLINE, || {
        pid = client.query_opt(sql, &[&db])?.map(|row| row.get(0));
        Ok(pid.is_some())
    })?;
    Ok(pid.unwrap_or_default())
}

/// Waits until no worker runs in the database.
///
/// # Errors
/// When one stays.
pub fn wait_for_no_worker(client: &mut impl GenericClient, db: &str) -> Result<()> {
    poll_until("the worker to leave", DEADLINE, || {
        Ok(count_workers(client, Some(db))? == 0)
    })
}

/// Folds by hand and by force: enough rounds that all epochs which are over get folded, whoever
/// else folds. Returns how many deltas this session folded.
///
/// # Errors
/// Those of the server.
pub fn compact(client: &mut Client) -> Result<i64> {
    let mut folded = 0;
    for _ in 0..3 {
        folded += client
            .query_one("SELECT counterx.compact()", &[])?
            .get::<_, i64>(0);
    }
    Ok(folded)
}

/// Counts, beside the oracle, until the worker has emptied a log.
///
/// # Errors
/// Those of the server, and that none gets emptied.
pub fn turn_over(client: &mut Client) -> Result<()> {
    let before = footprint(client)?.truncated;
    // Long rows of one lane: they fill the smallest log there can be.
    client.batch_execute(
        "DO $$ BEGIN
            FOR n IN 1 .. 300 LOOP PERFORM bump('turn:' || repeat('x', 240), 1); COMMIT; END LOOP;
         END $$",
    )?;
    poll_until("a log to be emptied", DEADLINE, || {
        client.batch_execute("SELECT bump('turn:' || repeat('x', 240), 1)")?;
        Ok(footprint(client)?.truncated > before)
    })
}
