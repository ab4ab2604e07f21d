//! Making databases, and questions about them that many tests ask.

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

/// Waits until a session waits for a lock.
///
/// # Errors
/// Those of the server, and that it does not.
pub fn wait_for_blocked(client: &mut impl GenericClient, what: &str, pid: i32) -> Result<()> {
    poll_until(&format!("{what} to wait"), DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted";
        Ok(client.query_one(sql, &[&pid])?.get::<_, i64>(0) == 1)
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
