//! Databases, and questions about the engine's state that many tests ask.

use anyhow::{Context, Result};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, GenericClient};

use crate::server::DEADLINE;

/// The oracle and the functions that write it and the counters alike.
pub fn oracle_schema() -> &'static str {
    r#"
    CREATE TABLE oracle (name text COLLATE "C" NOT NULL, delta bigint NOT NULL);
    CREATE INDEX oracle_name ON oracle (name) INCLUDE (delta);
    CREATE FUNCTION bump(name text, delta bigint) RETURNS void LANGUAGE sql AS $$
        INSERT INTO public.oracle VALUES ($1, $2);
        SELECT public.counter_incr($1, $2);
    $$;
    CREATE FUNCTION bump_many(names text[], deltas bigint[]) RETURNS void LANGUAGE sql AS $$
        INSERT INTO public.oracle SELECT * FROM unnest($1, $2);
        SELECT public.counter_incr(n, d) FROM unnest($1, $2) AS t (n, d);
    $$;
    CREATE FUNCTION bump_guarded(name text, delta bigint, fail boolean) RETURNS void
    LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM public.bump(name, delta);
        BEGIN
            PERFORM public.bump(name, delta + 1);
            IF fail THEN
                PERFORM 1 / 0;
            END IF;
        EXCEPTION WHEN division_by_zero THEN
            PERFORM public.bump(name, -1);
        END;
    END $$;
    "#
}

/// Makes a database with the extension, an oracle and the functions that write both, and
/// connects to it.
///
/// # Errors
/// Those of the server.
pub fn create_database(cluster: &Cluster, name: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster, name)?;
    client.batch_execute(oracle_schema())?;
    Ok(client)
}

/// Makes a database with the extension and nothing else, and connects to it.
///
/// # Errors
/// Those of the server.
pub fn create_bare_database(cluster: &Cluster, name: &str) -> Result<Client> {
    cluster
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {name}"))?;
    let mut client = cluster.connect_db(name)?;
    client.batch_execute("CREATE EXTENSION counterx")?;
    Ok(client)
}

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

/// Waits until the database's worker has folded all there is.
///
/// # Errors
/// When it does not.
pub fn settle(client: &mut Client) -> Result<()> {
    let sql = "SELECT (SELECT coalesce(sum(pending_deltas), 0) FROM counterx.lanes) = 0
                  AND NOT EXISTS (SELECT FROM counterx.late)";
    let folded = poll_until("everything to be folded", DEADLINE, || {
        Ok(client.query_one(sql, &[])?.get::<_, bool>(0))
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

/// How many workers run in a database; all databases with `None`.
///
/// # Errors
/// Those of the server.
pub fn count_workers(client: &mut impl GenericClient, db: Option<&str>) -> Result<i64> {
    let sql = "SELECT count(*) FROM pg_stat_activity
                WHERE backend_type = 'counterx worker' AND ($1::text IS NULL OR datname = $1)";
    Ok(client.query_one(sql, &[&db])?.get(0))
}

/// Waits until a worker runs in the database and returns its pid.
///
/// # Errors
/// When none does.
pub fn wait_for_worker(client: &mut impl GenericClient, db: &str) -> Result<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
                WHERE backend_type = 'counterx worker' AND datname = $1";
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

/// A counter of each lane, found in the logs of a transaction that is flushed early and undone.
///
/// # Errors
/// Those of the server, and that a lane was not met.
pub fn names_in_lanes(client: &mut Client) -> Result<Vec<String>> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(
        "SET LOCAL counterx.pending_work_mem = '64kB';
         SELECT counter_incr('lane:' || n) FROM generate_series(1, 5000) n",
    )?;
    let mut names = Vec::new();
    for lane in 0..8 {
        let sql = format!(
            "SELECT min(name) FROM (SELECT name FROM counterx.log_{lane}_a
                                    UNION ALL SELECT name FROM counterx.log_{lane}_b) logs
              WHERE name LIKE 'lane:%'"
        );
        let name: Option<String> = transaction.query_one(&sql, &[])?.get(0);
        names.push(name.with_context(|| format!("no early flush into lane {lane}"))?);
    }
    transaction.rollback()?;
    Ok(names)
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

/// How many pages a query visits, by the server's own count. Other than its time, this does not
/// depend on what else the machine does.
///
/// # Errors
/// Those of the server, or its answer has another form.
pub fn pages(client: &mut impl GenericClient, sql: &str) -> Result<i64> {
    let sql = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT TEXT) {sql}");
    let rows = client.query(&sql, &[])?;
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    // The first line about buffers is that of the top node, which has all.
    let Some(line) = lines
        .iter()
        .take_while(|line| !line.starts_with("Planning"))
        .find(|line| line.trim_start().starts_with("Buffers: "))
    else {
        return Ok(0);
    };
    let mut pages = 0;
    for part in line.split(", ").flat_map(|part| part.split(' ')) {
        if let Some((what, count)) = part.split_once('=')
            && matches!(what, "hit" | "read")
        {
            pages += count
                .parse::<i64>()
                .with_context(|| format!("in \"{line}\""))?;
        }
    }
    Ok(pages)
}

/// The lines of a log that tell of something that went wrong.
pub fn bad_lines(log: &str) -> Vec<&str> {
    let marks = [
        " ERROR:",
        " FATAL:",
        " PANIC:",
        "was terminated by signal",
        "exited with exit code",
    ];
    log.lines()
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        .collect()
}
