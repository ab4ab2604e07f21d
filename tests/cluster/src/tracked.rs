//! Traffic on tracked tables: every way to change rows that there is, and checks that counters and rows agree.
//!
//! The rows are the oracle. In whichever snapshot, a group's counter is what `GROUP BY` says, and there is
//! one exactly for each group that has rows.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::poll_until;
use postgres::error::SqlState;
use postgres::{Client, Config, GenericClient, IsolationLevel};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::{Recovering, is_lost, sqlstate, watch_by};
use crate::control::Control;
use crate::load::{
    End, Load, Outcome, Watched, one_by_one, resolve_prepared, resolve_prepared_where, together,
};
use crate::server::DEADLINE;

/// The tables: plain ones with foreign keys between them, and a partitioned one, of which one partition has
/// other column numbers, and one has partitions itself.
pub const TRACKED_TABLES: &str = r"
    CREATE TABLE project (id integer PRIMARY KEY);
    CREATE TABLE owner (id integer PRIMARY KEY);
    CREATE TABLE task (
        id integer PRIMARY KEY,
        gone text,
        project integer REFERENCES project ON DELETE CASCADE ON UPDATE CASCADE,
        owner integer REFERENCES owner ON DELETE SET NULL,
        status text,
        amount numeric(12,2),
        paid boolean,
        note text
    );
    ALTER TABLE task DROP COLUMN gone;
    CREATE TABLE comment (
        task integer REFERENCES task ON DELETE CASCADE ON UPDATE CASCADE,
        kind text,
        half integer GENERATED ALWAYS AS (task / 150) STORED
    );
    CREATE INDEX ON comment (task);
    CREATE TABLE item (id integer, shard integer, status text, amount numeric, hits integer NOT NULL DEFAULT 0,
        PRIMARY KEY (id, shard)) PARTITION BY LIST (shard);
    CREATE TABLE item_0 PARTITION OF item FOR VALUES IN (0);
    CREATE TABLE item_1 (gone integer, hits integer NOT NULL DEFAULT 0, status text, amount numeric,
        shard integer NOT NULL, id integer NOT NULL);
    ALTER TABLE item_1 DROP COLUMN gone;
    ALTER TABLE item ATTACH PARTITION item_1 FOR VALUES IN (1);
    CREATE TABLE item_2 PARTITION OF item FOR VALUES IN (2, 3) PARTITION BY RANGE (id);
    CREATE TABLE item_2_low PARTITION OF item_2 FOR VALUES FROM (MINVALUE) TO (100);
    CREATE TABLE item_2_high PARTITION OF item_2 FOR VALUES FROM (100) TO (MAXVALUE);
    CREATE TABLE item_rest PARTITION OF item DEFAULT;

    -- A part of a name, as it is documented; and names that are too long for that.
    CREATE FUNCTION part(text) RETURNS text LANGUAGE sql IMMUTABLE AS
        $$ SELECT coalesce(replace(replace($1, '%', '%25'), ':', '%3A'), '%NULL') $$;
    CREATE FUNCTION named(expected text, hashed text) RETURNS text LANGUAGE sql IMMUTABLE AS
        $$ SELECT CASE WHEN octet_length(expected) > 255 THEN hashed ELSE expected END $$;
    -- A key that may become another one.
    CREATE FUNCTION bucket(id integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT id % 3 $$;
    -- Locked by who looks, and before that by who does what older snapshots see as well.
    CREATE TABLE quiet ();

    -- Keys that nobody has asked for in the statement.
    CREATE FUNCTION change_key() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.note = 'upper' THEN
            NEW.status := upper(NEW.status);
            NEW.note := NULL;
        ELSIF NEW.note = 'nothing' THEN
            RETURN NULL;
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER change_key BEFORE INSERT OR UPDATE ON task FOR EACH ROW EXECUTE FUNCTION change_key();

    CREATE FUNCTION guarded(statement text, fail boolean) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE statement;
        IF fail THEN
            PERFORM 1 / 0;
        END IF;
    EXCEPTION WHEN division_by_zero OR unique_violation OR foreign_key_violation THEN
        UPDATE public.task SET status = 'guarded' WHERE id = 7;
    END $$;

    CREATE FUNCTION touched(n integer, fail boolean) RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE public.item SET hits = hits + 1 WHERE id = n;
        UPDATE public.task SET status = 'touched', amount = amount + 1 WHERE id = n;
        RETURN n / (NOT fail)::int;
    END $$;

    INSERT INTO project SELECT generate_series(0, 5);
    INSERT INTO owner SELECT generate_series(0, 5);
    INSERT INTO task SELECT n, n % 5, n % 4, 'open', n / 4.0, n % 3 = 0 FROM generate_series(0, 99) n;
    INSERT INTO comment SELECT n, 'old' FROM generate_series(0, 99, 3) n;
    INSERT INTO item SELECT n, n % 6, 'old', n / 8.0, n % 2 FROM generate_series(0, 149) n;
";

/// The tracks: two of each of the large tables, with a filter and a sum.
pub const TRACKS: [(&str, &str, &str); 5] = [
    ("task", "tasks", "key => '{project, status}'"),
    (
        "task",
        "paid",
        "key => '{owner}', sum => 'amount', scale => 2, filter => 'paid'",
    ),
    ("comment", "comments", "key => '{half, kind}'"),
    ("item", "items", "key => '{shard, status}'"),
    (
        "item",
        "revenue",
        "key => ARRAY['lower(status)', 'bucket(id)'], sum => 'amount', scale => 4, filter => 'hits < 3'",
    ),
];

/// Names, numbers of rows and sums of all groups, as SQL has them.
const GROUPS: &str = "
    SELECT 'tasks' AS type,
           named(concat_ws(':', 'tasks', part(project::text), part(status)), counter_name('tasks', project, status)) AS name,
           count(*)::numeric AS value FROM task GROUP BY project, status
    UNION ALL
    SELECT 'paid', 'paid:' || part(owner::text), coalesce(sum(amount), 0) * 100
      FROM task WHERE paid GROUP BY owner
    UNION ALL
    SELECT 'comments',
           named(concat_ws(':', 'comments', part(half::text), part(kind)), counter_name('comments', half, kind)), count(*)
      FROM comment GROUP BY half, kind
    UNION ALL
    SELECT 'items', named(concat_ws(':', 'items', shard, part(status)), counter_name('items', shard, status)), count(*)
      FROM item GROUP BY shard, status
    UNION ALL
    SELECT 'revenue',
           named(concat_ws(':', 'revenue', part(lower(status)), bucket(id)), counter_name('revenue', lower(status), bucket(id))),
           coalesce(sum(amount), 0) * 10000
      FROM item WHERE hits < 3 GROUP BY lower(status), bucket(id)";

/// Makes the tables and tracks them, and makes the tracks exact.
///
/// # Errors
/// Those of the server.
pub fn track_all(client: &mut Client) -> Result<()> {
    client.batch_execute(TRACKED_TABLES)?;
    for (table, type_name, how) in TRACKS {
        track(client, table, type_name, how)?;
    }
    Ok(())
}

/// Tracks a table, and makes that exact; beside others who use it.
///
/// # Errors
/// Those of the server, and that it does not become exact.
pub fn track(client: &mut Client, table: &str, type_name: &str, how: &str) -> Result<()> {
    patiently(
        client,
        &format!("SELECT counter_track('{table}', '{type_name}', {how})"),
    )?;
    poll_until(&format!("{type_name} to be exact"), DEADLINE, || {
        // Where the process that counts rows is just noting something of the track, this one does not wait to do so.
        patiently(
            client,
            &format!("SELECT FROM counter_recount('{table}', '{type_name}')"),
        )?;
        let sql = "SELECT count(*) = 1 FROM counter_tracks WHERE type = $1 AND state = 'exact'";
        Ok(client.query_one(sql, &[&type_name])?.get(0))
    })
}

/// Runs a statement until nobody is in its way.
///
/// # Errors
/// Those of the server, and that somebody always is.
pub fn patiently(client: &mut Client, sql: &str) -> Result<()> {
    poll_until(sql, DEADLINE, || match client.batch_execute(sql) {
        Ok(()) => Ok(true),
        Err(error) if is_in_the_way(&error) => Ok(false),
        Err(error) => Err(error.into()),
    })
}

/// Was somebody else in the way, who will not be for long?
pub fn is_in_the_way(error: &postgres::Error) -> bool {
    matches!(
        error.code(),
        Some(&SqlState::T_R_DEADLOCK_DETECTED | &SqlState::LOCK_NOT_AVAILABLE)
    )
}

/// Compares all exact tracks with what SQL says of their rows, in one statement, so by one snapshot. Returns
/// how many groups there were.
///
/// # Errors
/// Those of the server, and what differs.
pub fn rows_agree(client: &mut impl GenericClient) -> Result<i64> {
    let sql = format!(
        "WITH exact AS MATERIALIZED (SELECT type FROM counter_tracks WHERE state = 'exact'),
         groups AS (SELECT g.* FROM ({GROUPS}) g JOIN exact USING (type)),
         listed AS (SELECT c.name, c.value FROM counters c JOIN exact e ON e.type = split_part(c.name, ':', 1)),
         compared AS (SELECT name, g.value AS rows, l.value AS counter, counter_value(name) AS point
                        FROM groups g FULL JOIN listed l USING (name))
         SELECT count(*),
                coalesce(string_agg(format('%s: rows %s, counters %s, counter_value %s', name, rows, counter, point),
                                    E'\\n' ORDER BY name)
                         FILTER (WHERE rows IS DISTINCT FROM counter OR rows IS DISTINCT FROM point), '')
           FROM compared"
    );
    let row = client.query_one(&sql, &[])?;
    let (compared, wrong): (i64, String) = (row.get(0), row.get(1));
    ensure!(wrong.is_empty(), "counters differ from the rows:\n{wrong}");
    Ok(compared)
}

/// Asks for the drift of all tracks of these tables.
///
/// # Errors
/// Those of the server, and where there is any.
pub fn no_drift(client: &mut impl GenericClient, tracks: &[(&str, &str)]) -> Result<()> {
    for (table, type_name) in tracks {
        let sql = format!("SELECT d::text FROM counter_drift('{table}', '{type_name}') d");
        let found = client.query(&sql, &[]).with_context(|| sql.clone())?;
        if !found.is_empty() {
            let all: Vec<String> = found.iter().map(|row| row.get(0)).collect();
            bail!("{type_name} drifts:\n{}", all.join("\n"));
        }
    }
    Ok(())
}

/// How tracked tables are loaded.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrackedLoad {
    /// Are tables emptied by TRUNCATE, too? A transaction with an older snapshot sees no rows any more then,
    /// and the counters as they were.
    pub truncates: bool,
    /// Do tracks come and go, so that only those that are not `revenue` can be asked for their drift?
    pub untracks: bool,
    /// Is there DDL of any kind, so that each of the tracks may be exact or not?
    pub ddl: bool,
}

/// Runs a load on the tables of [`track_all`] with its checkers, and `meanwhile` in the calling thread.
///
/// # Errors
/// The first thing that went wrong anywhere, with the seed.
pub fn tracked_under_watch(
    config: &Config,
    load: &Load,
    how: TrackedLoad,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<Watched> {
    let watched = together(
        load,
        |number, control| run_client(config, load, how, number, control),
        |control| {
            watch_by(config, control, load.survives, |client, round| {
                let looked = if how.ddl {
                    look_at_exact(client, &LEVELS, round)
                } else {
                    look(client, how, round)
                };
                match looked {
                    Err(error) if is_no_look(&error) => {
                        client.batch_execute("ROLLBACK")?;
                        Ok(0)
                    }
                    other => other,
                }
            })
        },
        meanwhile,
    )?;
    if load.two_phase {
        resolve_prepared(config)?;
    }
    Ok(watched)
}

fn look(client: &mut Client, how: TrackedLoad, round: u64) -> Result<u64> {
    let tracks: Vec<(&str, &str)> = TRACKS
        .iter()
        .filter(|(_, type_name, _)| !(how.untracks && *type_name == "revenue"))
        .map(|(table, type_name, _)| (*table, *type_name))
        .collect();
    if round.is_multiple_of(3) {
        rows_agree(client).context("by a statement's snapshot")?;
        no_drift(client, &tracks).context("by a statement's snapshot")?;
        return Ok(2);
    }
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    // Locks come before the snapshot: nothing is emptied any more that it sees.
    transaction.batch_execute("LOCK TABLE task, comment, item IN ACCESS SHARE MODE")?;
    rows_agree(&mut transaction).context("first look of a snapshot")?;
    no_drift(&mut transaction, &tracks).context("first look of a snapshot")?;
    // In between the snapshot ages by a fold or more.
    if round.is_multiple_of(2) {
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
    rows_agree(&mut transaction).context("second look of the same snapshot")?;
    no_drift(&mut transaction, &tracks).context("second look of the same snapshot")?;
    transaction.commit()?;
    Ok(4)
}

/// Waiting for a lock in the midst of TRUNCATEs, or about to be part of a cycle.
pub fn is_no_look(error: &anyhow::Error) -> bool {
    matches!(
        sqlstate(error),
        Some(
            &SqlState::T_R_DEADLOCK_DETECTED
                | &SqlState::T_R_SERIALIZATION_FAILURE
                | &SqlState::LOCK_NOT_AVAILABLE
        )
    )
}

/// All isolation levels.
pub const LEVELS: [IsolationLevel; 3] = [
    IsolationLevel::ReadCommitted,
    IsolationLevel::RepeatableRead,
    IsolationLevel::Serializable,
];

/// Looks at whichever tracks are exact, in a transaction of one of these levels, and returns how many there were.
///
/// # Errors
/// Those of the server, and what differs.
pub fn look_at_exact(client: &mut Client, levels: &[IsolationLevel], round: u64) -> Result<u64> {
    let level = levels[usize::try_from(round)? % levels.len()];
    let mut transaction = client.build_transaction().isolation_level(level).start()?;
    // Locks come before the snapshot: nothing is emptied, detached or defined in another way any more that it sees.
    transaction.batch_execute("LOCK TABLE quiet, task, comment, item IN ACCESS SHARE MODE")?;
    let mut looks = 0;
    for look in ["first look", "second look"] {
        let before = exact(&mut transaction)?;
        rows_agree(&mut transaction).context(look)?;
        for track in &before {
            let (table, type_name, _) = track;
            let drift = no_drift(&mut transaction, &[(table, type_name)]);
            // Where each statement has a snapshot of its own, it may have become stale meanwhile.
            if drift.is_err()
                && sqlstate_of(&drift).is_none()
                && !exact(&mut transaction)?.contains(track)
            {
                continue;
            }
            drift.with_context(|| format!("{look}, {level:?}, of {track:?}"))?;
            looks += 1;
        }
        // In between the snapshot ages by a fold or more.
        if round.is_multiple_of(2) {
            std::thread::sleep(std::time::Duration::from_millis(40));
        }
    }
    transaction.commit()?;
    Ok(looks)
}

fn sqlstate_of<T>(result: &Result<T>) -> Option<&SqlState> {
    result.as_ref().err().and_then(sqlstate)
}

/// Table, type and version of the tracks that are exact.
fn exact(client: &mut impl GenericClient) -> Result<Vec<(String, String, i64)>> {
    let sql = "SELECT quote_ident(table_schema) || '.' || quote_ident(table_name), type, version
                 FROM counterx.track WHERE state = 'exact' ORDER BY type";
    let rows = client.query(sql, &[])?;
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect())
}

/// Each track has its triggers, and each trigger its track.
///
/// # Errors
/// Those of the server, and which has not.
pub fn tracks_have_triggers(client: &mut impl GenericClient) -> Result<()> {
    let sql = r"
        WITH ours AS (
            SELECT convert_from(substring(g.tgargs FROM 1 FOR position('\x00'::bytea IN g.tgargs) - 1), 'UTF8') AS type,
                   count(*) FILTER (WHERE g.tgfoid = 'counterx.count_row()'::regprocedure AND g.tgparentid = 0) AS rows,
                   count(*) FILTER (WHERE g.tgfoid = 'counterx.count_truncate()'::regprocedure) AS truncates,
                   count(*) FILTER (WHERE g.tgenabled <> 'A') AS quiet
              FROM pg_trigger g
             WHERE g.tgfoid IN ('counterx.count_row()'::regprocedure, 'counterx.count_truncate()'::regprocedure)
             GROUP BY 1)
        SELECT coalesce(string_agg(format('%s: %s', type, o), ', '), '')
          FROM counterx.track t FULL JOIN ours o USING (type)
         WHERE t.type IS NULL OR o.rows IS DISTINCT FROM 3 OR o.truncates = 0 OR o.quiet > 0";
    let wrong: String = client.query_one(sql, &[])?.get(0);
    ensure!(wrong.is_empty(), "tracks and triggers: {wrong}");
    Ok(())
}

/// Refusals that a client brings about by what it does at random.
fn is_expected(error: &anyhow::Error) -> bool {
    matches!(
        sqlstate(error),
        Some(
            &SqlState::T_R_DEADLOCK_DETECTED
                | &SqlState::T_R_SERIALIZATION_FAILURE
                | &SqlState::UNIQUE_VIOLATION
                | &SqlState::FOREIGN_KEY_VIOLATION
                | &SqlState::CARDINALITY_VIOLATION
                | &SqlState::LOCK_NOT_AVAILABLE
                // A row for the partition of all others, for which there is one now.
                | &SqlState::CHECK_VIOLATION
                | &SqlState::DIVISION_BY_ZERO
        )
    )
}

fn run_client(
    config: &Config,
    load: &Load,
    how: TrackedLoad,
    number: u64,
    control: &Control,
) -> Result<Outcome> {
    let mut traffic = TrackedTraffic {
        rng: StdRng::seed_from_u64(load.seed.wrapping_mul(1_000).wrapping_add(number)),
        load,
        how,
        gid: String::new(),
    };
    let mut connection = Recovering::new(config);
    let mut has_lost_sight = false;
    one_by_one(load, number, control, |transaction| {
        let result = connection.client().and_then(|client| {
            if has_lost_sight {
                // What is in doubt keeps its rows locked: this client and others would wait for it for good.
                resolve_prepared_where(client, &format!("gid = '{}'", traffic.gid))?;
                has_lost_sight = false;
            }
            // The whole server's names, and other databases have the same load.
            let db = config.get_dbname().unwrap_or_default();
            traffic.gid = format!("tracked-{}-{number}-{transaction}-{db}", load.seed);
            traffic.transaction(client)
        });
        match result {
            Ok(()) => Ok(End::Done),
            Err(error) if load.survives && is_lost(&error) => {
                connection.forget();
                has_lost_sight = true;
                Ok(End::Unknown)
            }
            Err(error) if is_expected(&error) => {
                let ended = connection
                    .client()
                    .and_then(|client| Ok(client.batch_execute("ROLLBACK")?));
                match ended {
                    // It is rolled back all the same.
                    Err(error) if load.survives && is_lost(&error) => connection.forget(),
                    ended => ended?,
                }
                Ok(End::Refused)
            }
            Err(error) => Err(error),
        }
    })
}

/// One client's random choices.
struct TrackedTraffic<'a> {
    rng: StdRng,
    load: &'a Load,
    how: TrackedLoad,
    gid: String,
}

impl TrackedTraffic<'_> {
    fn transaction(&mut self, client: &mut Client) -> Result<()> {
        let kinds = if self.load.two_phase { 13 } else { 12 };
        match self.rng.random_range(0..kinds) {
            0..3 => self.one(client),
            3..6 => self.several(client),
            6..9 => self.savepoints(client),
            9 | 10 => self.extended(client),
            11 => self.cursor(client),
            _ => self.prepare(client),
        }
    }

    fn one(&mut self, client: &mut Client) -> Result<()> {
        let sql = self.statement();
        client.batch_execute(&sql).context(sql)
    }

    fn several(&mut self, client: &mut Client) -> Result<()> {
        let old = self.begin(client)?;
        for _ in 0..self.rng.random_range(1..5) {
            self.one(client)?;
            self.look_at_own(client, old)?;
        }
        if self.how.ddl && self.rng.random_bool(0.4) {
            // Others are to meet what is not committed.
            client.batch_execute("SELECT pg_sleep(0.05)")?;
        }
        self.end(client)
    }

    /// Statements that follow each other in one message, and functions that catch errors.
    fn extended(&mut self, client: &mut Client) -> Result<()> {
        let status = self.status();
        let id = self.id();
        // The fifth time on, by a plan that knows no values.
        for _ in 0..7 {
            client.execute(
                "UPDATE item SET status = $1, hits = hits + 1 WHERE id = $2",
                &[&status, &id],
            )?;
        }
        let (statement, fail) = (self.statement(), self.rng.random_bool(0.5));
        client.execute("SELECT guarded($1, $2)", &[&statement, &fail])?;
        Ok(())
    }

    fn savepoints(&mut self, client: &mut Client) -> Result<()> {
        let old = self.begin(client)?;
        let mut open: Vec<usize> = Vec::new();
        let mut next = 0;
        for _ in 0..self.rng.random_range(3..10) {
            match self.rng.random_range(0..8) {
                0..3 => {
                    open.push(next);
                    client.batch_execute(&format!("SAVEPOINT s{next}"))?;
                    next += 1;
                }
                3 | 4 if !open.is_empty() => {
                    let level = self.rng.random_range(0..open.len());
                    client.batch_execute(&format!("ROLLBACK TO s{}", open[level]))?;
                    open.truncate(level + 1);
                }
                5 if !open.is_empty() => {
                    let level = self.rng.random_range(0..open.len());
                    client.batch_execute(&format!("RELEASE s{}", open[level]))?;
                    open.truncate(level);
                }
                _ => {
                    let result = self.one(client);
                    match (result, open.last()) {
                        (Err(error), Some(inner)) if is_expected(&error) => {
                            client.batch_execute(&format!("ROLLBACK TO s{inner}"))?;
                        }
                        (result, _) => result?,
                    }
                }
            }
            self.look_at_own(client, old)?;
        }
        self.end(client)
    }

    /// A query that changes rows as it is fetched, and fails at last; or when the transaction commits, and all the
    /// rest of it is fetched.
    fn cursor(&mut self, client: &mut Client) -> Result<()> {
        let old = self.begin(client)?;
        let low = self.id();
        let fails = low + self.rng.random_range(2..10);
        let hold = ["", "WITH HOLD"][self.rng.random_range(0..2)];
        client.batch_execute(&format!(
            "CLOSE ALL;
             DECLARE touching NO SCROLL CURSOR {hold} FOR
                SELECT touched(n, n = {fails}) FROM generate_series({low}, {low} + 7) n;
             FETCH 2 FROM touching;
             SAVEPOINT touched"
        ))?;
        match client.batch_execute("FETCH 4 FROM touching") {
            Err(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {
                client.batch_execute("ROLLBACK TO touched")?;
            }
            fetched => fetched?,
        }
        self.look_at_own(client, old)?;
        self.one(client)?;
        self.end(client)
    }

    /// The server gets the rows from a program: a client that is refused in the midst of a COPY of its own
    /// does not learn why.
    fn copy(&mut self) -> String {
        let table = ["task", "item", "item_1"][self.rng.random_range(0..3)];
        let columns = match table {
            "task" => "id, project, status, amount, paid",
            _ => "id, shard, status, amount, hits",
        };
        let low = self.rng.random_range(300..4000) * 10;
        let mut lines = String::new();
        for id in low..low + self.rng.random_range(1..10) {
            let status = self.status();
            let _ = match table {
                "task" => write!(lines, r#" "{id},NIL,{status},{}.25,t""#, id % 7),
                "item" => write!(lines, r#" "{id},{},{status},{}.0625,1""#, id % 6, id % 5),
                _ => write!(lines, r#" "{id},1,{status},NIL,2""#),
            };
        }
        format!(
            r#"COPY {table} ({columns}) FROM PROGRAM 'printf "%s\n"{lines}' WITH (FORMAT csv, NULL 'NIL')"#
        )
    }

    fn prepare(&mut self, client: &mut Client) -> Result<()> {
        client.batch_execute("BEGIN")?;
        for _ in 0..self.rng.random_range(1..4) {
            self.one(client)?;
        }
        let gid = self.gid.clone();
        client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'"))?;
        let verb = if self.rng.random_bool(0.7) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        Ok(client.batch_execute(&format!("{verb} PREPARED '{gid}'"))?)
    }

    /// Returns whether the transaction is bound to one snapshot.
    fn begin(&mut self, client: &mut Client) -> Result<bool> {
        let level = self.rng.random_range(0..3);
        let name = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][level];
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {name}"))?;
        Ok(level > 0)
    }

    fn end(&mut self, client: &mut Client) -> Result<()> {
        let verb = if self.rng.random_bool(0.8) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        Ok(client.batch_execute(verb)?)
    }

    /// A transaction sees what it has done itself at once, in rows and counters. One with an older snapshot
    /// need not: a table may have been emptied since then, and a track that it still sees may be gone.
    fn look_at_own(&mut self, client: &mut Client, old: bool) -> Result<()> {
        let how = self.how;
        let may = !(how.ddl || old && (how.truncates || how.untracks));
        if self.rng.random_bool(0.25) && may {
            rows_agree(client).context("inside a transaction")?;
        }
        Ok(())
    }

    fn id(&mut self) -> i32 {
        self.rng.random_range(0..300)
    }

    fn status(&mut self) -> String {
        match self.rng.random_range(0..8) {
            // Longer than names are.
            7 => format!("long {}{}", "x".repeat(300), self.rng.random_range(0..2)),
            number => ["open", "Open", "done", "late", "", "50%", "a:b"][number].to_owned(),
        }
    }

    fn project(&mut self) -> String {
        match self.rng.random_range(0..8) {
            0 => "NULL".to_owned(),
            number => (number - 1).to_string(),
        }
    }

    fn quoted_status(&mut self) -> String {
        match self.rng.random_range(0..6) {
            0 => "NULL".to_owned(),
            _ => format!("'{}'", self.status()),
        }
    }

    fn amount(&mut self) -> String {
        match self.rng.random_range(0..5) {
            0 => "NULL".to_owned(),
            1 => format!("-{}.5", self.rng.random_range(0..50)),
            _ => format!(
                "{}.{:02}",
                self.rng.random_range(0..1000),
                self.rng.random_range(0..100)
            ),
        }
    }

    fn task_row(&mut self) -> String {
        let (id, project, status, amount) = (
            self.id(),
            self.project(),
            self.quoted_status(),
            self.amount(),
        );
        let owner = self.project();
        let paid = ["true", "false", "NULL"][self.rng.random_range(0..3)];
        let note = ["NULL", "'upper'", "'nothing'", "'x'"][self.rng.random_range(0..4)];
        format!("({id}, {project}, {owner}, {status}, {amount}, {paid}, {note})")
    }

    fn task_rows(&mut self) -> String {
        let count = self.rng.random_range(1..6);
        let rows: Vec<String> = (0..count).map(|_| self.task_row()).collect();
        format!(
            "task (id, project, owner, status, amount, paid, note) VALUES {}",
            rows.join(", ")
        )
    }

    fn item_rows(&mut self, shard: &str) -> String {
        let count = self.rng.random_range(1..6);
        let rows: Vec<String> = (0..count)
            .map(|_| {
                let (id, status, amount) = (self.id(), self.quoted_status(), self.amount());
                format!("({id}, {shard}, {status}, {amount}, {})", id % 5)
            })
            .collect();
        format!(
            "(id, shard, status, amount, hits) VALUES {}",
            rows.join(", ")
        )
    }

    /// A statement of one of all kinds.
    fn statement(&mut self) -> String {
        let (id, other, status) = (self.id(), self.id(), self.quoted_status());
        let (project, amount) = (self.project(), self.amount());
        let some = format!("id % 20 = {}", id % 20);
        let kinds = if self.how.truncates { 42 } else { 38 };
        match self.rng.random_range(0..kinds) {
            0 => format!("INSERT INTO {}", self.task_rows()),
            1 | 2 => format!("INSERT INTO {} ON CONFLICT DO NOTHING", self.task_rows()),
            3 => format!(
                "INSERT INTO {} ON CONFLICT (id) DO UPDATE SET status = EXCLUDED.status, amount = EXCLUDED.amount",
                self.task_rows()
            ),
            4 => format!(
                "INSERT INTO {} ON CONFLICT (id) DO UPDATE SET project = EXCLUDED.project, paid = NOT task.paid WHERE task.id % 3 > 0",
                self.task_rows()
            ),
            5 => format!("UPDATE task SET status = {status}, project = {project} WHERE {some}"),
            6 => format!("UPDATE task SET note = 'upper' WHERE {some}"),
            7 => format!("UPDATE task SET note = note || 'x' WHERE {some}"),
            8 => format!("UPDATE task SET paid = NOT paid WHERE {some}"),
            9 => format!("UPDATE task SET amount = amount + 1.25, owner = {project} WHERE {some}"),
            10 => format!("UPDATE task SET amount = {amount} WHERE id BETWEEN {id} AND {id} + 5"),
            11 | 12 => format!("DELETE FROM task WHERE {some}"),
            13 => format!(
                "MERGE INTO task t USING (SELECT n AS id, {status} AS status FROM generate_series({id}, {id} + 6) n) s ON t.id = s.id
                 WHEN MATCHED AND t.paid THEN DELETE
                 WHEN MATCHED THEN UPDATE SET status = s.status
                 WHEN NOT MATCHED AND s.id % 2 = 0 THEN INSERT (id, status, paid, amount) VALUES (s.id, s.status, true, 3.50)
                 WHEN NOT MATCHED THEN DO NOTHING"
            ),
            14 => format!(
                "MERGE INTO item t USING (SELECT n AS id, n % 6 AS shard FROM generate_series({id}, {id} + 9) n) s ON t.id = s.id
                 WHEN MATCHED AND t.hits > 2 THEN DELETE
                 WHEN MATCHED THEN UPDATE SET shard = (t.shard + 1) % 6, hits = t.hits + 1
                 WHEN NOT MATCHED THEN INSERT (id, shard, status, amount) VALUES (s.id, s.shard, {status}, 0.0625)"
            ),
            15 => format!(
                "WITH gone AS (DELETE FROM task WHERE {some} RETURNING *),
                      moved AS (INSERT INTO item (id, shard, status, amount)
                                SELECT id, id % 6, status, amount FROM gone ON CONFLICT DO NOTHING RETURNING id)
                 UPDATE task SET status = {status} WHERE id IN (SELECT id + 1 FROM moved)"
            ),
            16 => format!(
                "WITH a AS (INSERT INTO item {} ON CONFLICT DO NOTHING RETURNING id),
                      b AS (UPDATE item SET hits = hits + 1 WHERE id = {id} RETURNING id)
                 DELETE FROM item WHERE id = {other}",
                self.item_rows("0")
            ),
            17 => format!("DELETE FROM project WHERE id = {}", id % 7),
            18 | 19 => "INSERT INTO project SELECT generate_series(0, 6) ON CONFLICT DO NOTHING".to_owned(),
            20 => format!("UPDATE project SET id = 6 WHERE id = {}", id % 6),
            21 => format!("DELETE FROM owner WHERE id = {}", id % 7),
            22 => "INSERT INTO owner SELECT generate_series(0, 6) ON CONFLICT DO NOTHING".to_owned(),
            23 => format!("UPDATE task SET id = id + 1000 WHERE id = {id}"),
            24 | 25 => format!(
                "INSERT INTO comment (task, kind) SELECT t.id, {status} FROM task t WHERE {some}"
            ),
            26 => format!("UPDATE comment SET kind = {status} WHERE task = {id} OR task = {other}"),
            27 => format!(
                "INSERT INTO item {} ON CONFLICT (id, shard) DO UPDATE SET status = EXCLUDED.status, hits = 0",
                self.item_rows("1")
            ),
            28 => format!("UPDATE item SET shard = (shard + 1) % 6 WHERE {some}"),
            29 => format!("UPDATE item SET shard = shard, status = {status} WHERE id IN ({id}, {other})"),
            30 => format!("UPDATE item_2 SET id = id + 90, amount = {amount} WHERE id = {id}"),
            31 => format!(
                "INSERT INTO item_1 {} ON CONFLICT DO NOTHING",
                self.item_rows("1")
            ),
            32 => format!("UPDATE item_1 SET status = {status}, hits = hits + 1 WHERE {some}"),
            33 => format!("DELETE FROM item_2_low WHERE {some}"),
            34 => format!(
                "UPDATE item i SET amount = t.amount, status = t.status FROM task t WHERE t.id = i.id AND t.{some}"
            ),
            35 => format!(
                "DELETE FROM item i USING task t WHERE t.id = i.id AND i.id BETWEEN {id} AND {id} + 10"
            ),
            36 | 37 => self.copy(),
            38 => "TRUNCATE item".to_owned(),
            39 => ["TRUNCATE item_1", "TRUNCATE item_2"][id as usize % 2].to_owned(),
            40 => ["TRUNCATE comment", "TRUNCATE task, comment"][id as usize % 2].to_owned(),
            _ => ["TRUNCATE project CASCADE", "TRUNCATE owner, item CASCADE"][id as usize % 2].to_owned(),
        }
    }
}
