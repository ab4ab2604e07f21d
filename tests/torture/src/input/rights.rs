//! Who may do what, and that nobody else can: plain roles call everything, and try everything on the
//! tables behind it.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::create_database;
use counterx_harness::Cluster;
use postgres::{Client, NoTls};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::errors::answer;
use super::functions::{self, Call, Function};
use super::values::Value;
use super::{fuzz, state};
use crate::options::Options;
use crate::report::PartReport;

const DENIED: &str = "42501";

/// What everybody may call after CREATE EXTENSION, as the reference says. All else is closed.
const OPEN: &[&str] = &[
    "counter_value",
    "counter_stream_bootstrap",
    "counter_stream_next",
    "counter_stream_peek",
    "counter_stream_ack",
    "counter_alerts_fired",
    "counter_window",
    "counter_windows",
    "counter_values",
    "counter_list",
    "counter_sum",
    "counter_rank",
    "counter_top",
    "counter_bottom",
    "counter_name",
    "counter_parts",
    "counter_groups",
    "counter_track_wait",
    "counter_key",
    "counter_available",
    "counter_buckets",
    "counter_at",
    "counter_at_boundary",
    "counter_rate",
    "counter_top_changed",
    "counter_events",
    "counter_incr",
    "counter_decr",
    "counter_incr_get",
    "counter_incr_many",
    "counter_incr_once",
    "counter_incr_once_get",
    "counter_hit",
    "counter_hit_many",
    "counter_try_hit",
    "counter_try_incr",
    "counter_try",
    "counter_take_up_to",
    "counter_hold",
    "counter_hold_confirm",
    "counter_hold_release",
    "counter_hold_extend",
    "counter_hold_reduce",
];

/// What the triggers of tracked tables, the view of the tracks and that of the seal call, whoever it is that makes them do so.
const OPEN_INSIDE: &[&str] = &[
    "count_row",
    "count_truncate",
    "rows_so_far",
    "sealed_until",
    "stream_status",
];

/// What may be tried on any relation.
const ON_RELATIONS: &[&str] = &[
    "SELECT * FROM {}",
    "SELECT count(*) FROM {}",
    "TABLE {}",
    "COPY {} TO STDOUT",
    "COMMENT ON TABLE {} IS 'mine'",
    "ALTER TABLE {} OWNER TO mallory",
    "GRANT ALL ON {} TO PUBLIC",
    "ALTER TABLE {} RENAME TO mine",
    "ALTER TABLE {} SET SCHEMA public",
    "DROP TABLE {}",
    "DROP TABLE {} CASCADE",
    "DELETE FROM {}",
    "TRUNCATE {}",
    "CREATE TABLE child () INHERITS ({})",
    "CREATE VIEW look AS SELECT * FROM {}; SELECT * FROM look",
    "EXPLAIN ANALYZE SELECT * FROM {}",
    "SELECT * FROM {} FOR UPDATE",
    "BEGIN; DECLARE c CURSOR FOR SELECT * FROM {}",
];

const ON_TABLES: &[&str] = &[
    "INSERT INTO {} DEFAULT VALUES",
    "INSERT INTO {} SELECT * FROM {}",
    "LOCK TABLE {}",
    "LOCK TABLE {} IN ACCESS SHARE MODE",
    "LOCK TABLE {} IN ROW EXCLUSIVE MODE",
    "ALTER TABLE {} ADD COLUMN x int",
    "ALTER TABLE {} DISABLE TRIGGER ALL",
    "ALTER TABLE {} ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE {} SET (autovacuum_enabled = on)",
    "CREATE INDEX ON {} ((1))",
    "REINDEX TABLE {}",
    "CLUSTER {}",
    "CREATE TRIGGER mine AFTER INSERT ON {} EXECUTE FUNCTION public.mine()",
    "CREATE RULE mine AS ON INSERT TO {} DO INSTEAD NOTHING",
    "CREATE POLICY mine ON {} USING (true)",
    "CREATE STATISTICS mine ON ctid, xmin FROM {}",
    "ALTER TABLE {} REPLICA IDENTITY FULL",
    "ALTER TABLE {} SET UNLOGGED",
    "CREATE PUBLICATION mine FOR TABLE {}",
];

const ON_SEQUENCES: &[&str] = &[
    "SELECT nextval('{}')",
    "SELECT setval('{}', 1000000)",
    "SELECT currval('{}')",
    "ALTER SEQUENCE {} RESTART WITH 5",
    "DROP SEQUENCE {}",
    "SELECT last_value FROM {}",
];

/// What may be tried on the rest.
const ON_OTHERS: &[&str] = &[
    "DROP EXTENSION counterx",
    "ALTER EXTENSION counterx UPDATE",
    "ALTER EXTENSION counterx SET SCHEMA public",
    "ALTER EXTENSION counterx DROP VIEW public.counters",
    "CREATE TABLE counterx.mine (n int)",
    "DROP SCHEMA counterx CASCADE",
    "ALTER SCHEMA counterx OWNER TO mallory",
    "CREATE SERVER mine FOREIGN DATA WRAPPER counterx",
    "CREATE FOREIGN TABLE mine (name text, value numeric) SERVER counterx",
    "IMPORT FOREIGN SCHEMA public FROM SERVER counterx INTO public",
    "CREATE USER MAPPING FOR mallory SERVER counterx",
    "ALTER SERVER counterx OWNER TO mallory",
    "ALTER FOREIGN DATA WRAPPER counterx NO HANDLER",
    "CREATE FOREIGN DATA WRAPPER mine HANDLER counterx.fdw_handler",
    "CREATE OR REPLACE FUNCTION public.counter_value(name text) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'",
    "CREATE OR REPLACE VIEW public.counters AS SELECT 'x'::text COLLATE \"C\" AS name, 1::numeric AS value",
    "DROP FUNCTION public.counter_value(text)",
    "ALTER FUNCTION public.counter_value(text) STRICT",
    "CREATE FUNCTION public.mine2() RETURNS void LANGUAGE c AS 'counterx', 'counter_reset_wrapper'",
    "CREATE TABLE public.own (n int); CREATE TRIGGER t AFTER INSERT ON public.own EXECUTE FUNCTION counterx.type_changed()",
    "SELECT pg_extension_config_dump('counterx.total', '')",
    "LOAD 'counterx'",
    "ALTER SYSTEM SET counterx.token_ttl = '1s'",
    "SET counterx.compaction = off",
    "ALTER DATABASE rights SET counterx.compaction = off",
    "SELECT * FROM pg_catalog.pg_largeobject",
    "ALTER TRIGGER type_changed ON counterx.type RENAME TO x",
    "DROP TRIGGER type_changed ON counterx.type",
    "COMMENT ON EXTENSION counterx IS 'mine'",
    "SELECT pg_read_file('postgresql.conf')",
    "REASSIGN OWNED BY postgres TO mallory",
    "INSERT INTO public.counters VALUES ('x', 1)",
    "UPDATE public.counters SET value = 0",
    "DELETE FROM public.counters",
    "DELETE FROM public.counter_types",
    "DELETE FROM public.counter_holds",
    "UPDATE public.counter_holds SET amount = 0",
];

pub(super) fn run(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    let mut owner = create_database(cluster, "rights")?;
    owner.batch_execute(
        "CREATE ROLE mallory LOGIN; CREATE ROLE watcher LOGIN IN ROLE pg_monitor;
         CREATE ROLE writer NOLOGIN; CREATE ROLE aloof LOGIN NOINHERIT IN ROLE writer;
         GRANT ALL ON SCHEMA public TO PUBLIC;
         CREATE FUNCTION public.mine() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         SELECT counter_type_create('b', min => 0)",
    )?;
    owner.batch_execute("SELECT counter_incr('b:1', 10), counter_incr('a', 5)")?;
    owner.batch_execute(
        "SELECT counter_hold('b:1', 1, '1 day'); SELECT counter_incr_once('t', 'a')",
    )?;
    let functions = functions::all(&mut owner)?;
    let login =
        |user: &str| -> Result<Client> { Ok(cluster.config("rights").user(user).connect(NoTls)?) };
    let mut mallory = login("mallory")?;
    let before = state::read(&mut owner)?;

    for function in &functions {
        let open = match function.schema.as_str() {
            "public" => OPEN,
            _ => OPEN_INSIDE,
        }
        .contains(&function.name.as_str());
        ensure!(
            function.public == open,
            "{} is {} to everybody, and should not be",
            function.signature,
            if open { "closed" } else { "open" }
        );
    }
    let mut rng = StdRng::seed_from_u64(options.seed_for("rights"));
    let closed: Vec<&Function> = functions
        .iter()
        .filter(|function| !function.public)
        .collect();
    denied_calls(&mut mallory, &closed, options.size(2, 20), &mut rng, report)?;
    let tries = options.size(150, usize::MAX);
    internals(&mut owner, &mut mallory, tries, &mut rng, report)?;
    // To see the names of things gives nothing.
    owner.batch_execute("GRANT USAGE ON SCHEMA counterx TO mallory")?;
    internals(&mut owner, &mut mallory, tries, &mut rng, report)?;
    denied_calls(&mut mallory, &closed, 1, &mut rng, report)?;
    monitors(&mut owner, &mut login("watcher")?, report)?;
    unchanged(&mut owner, &before).context("after what a role without rights has tried")?;

    nobody_but(
        &mut owner,
        &mut mallory,
        &functions,
        options,
        &mut rng,
        report,
    )?;
    changing_roles(&mut owner, &mut login("aloof")?, &mut mallory)?;
    Ok(())
}

fn unchanged(owner: &mut Client, before: &state::State) -> Result<()> {
    let mut found = state::read(owner)?;
    // The rights to the schema were given on purpose.
    found.rest.clone_from(&before.rest);
    fuzz::compare(before, &found)
}

/// All of them are refused for want of a right, whatever the arguments.
fn denied_calls(
    client: &mut Client,
    functions: &[&Function],
    times: u64,
    rng: &mut StdRng,
    report: &mut PartReport,
) -> Result<()> {
    for function in functions {
        for _ in 0..times {
            let mut call = Call::random(function, rng);
            // A bad value would be noticed before; and where a null has an answer by itself, the planner has it.
            call.arguments.iter_mut().for_each(|value| {
                *value = match function.strict {
                    true => Value::Other("'1'".to_owned()),
                    false => Value::Null,
                };
            });
            let sql = format!("SELECT {}", call.sql());
            let outcome = answer(client.batch_execute(&sql))?;
            let refusal = outcome
                .err()
                .with_context(|| format!("not refused: {sql}"))?;
            ensure!(refusal.code == DENIED, "{sql}: {refusal:?}");
            report.tried("calls without the right to", 1);
        }
    }
    Ok(())
}

/// Everything on everything behind the functions; so many of these attempts.
fn internals(
    owner: &mut Client,
    mallory: &mut Client,
    at_most: usize,
    rng: &mut StdRng,
    report: &mut PartReport,
) -> Result<()> {
    let relations = owner.query(
        "SELECT oid::regclass::text, relkind::text FROM pg_class
          WHERE relnamespace = 'counterx'::regnamespace AND relkind IN ('r', 'S', 'v', 'f') ORDER BY 1",
        &[],
    )?;
    let before = state::read(owner)?;
    let mut attempts: Vec<String> = ON_OTHERS.iter().map(|&sql| sql.to_owned()).collect();
    for row in relations {
        let (relation, kind): (String, String) = (row.get(0), row.get(1));
        let more: &[&str] = match kind.as_str() {
            "r" => ON_TABLES,
            "S" => ON_SEQUENCES,
            _ => &[],
        };
        let templates = ON_RELATIONS.iter().chain(more);
        attempts.extend(templates.map(|template| template.replace("{}", &relation)));
    }
    let chosen: Vec<&String> = attempts.sample(rng, at_most.min(attempts.len())).collect();
    for sql in chosen {
        mallory.batch_execute("BEGIN")?;
        let outcome = answer(mallory.batch_execute(sql.strip_prefix("BEGIN; ").unwrap_or(sql)))?;
        mallory.batch_execute("ROLLBACK")?;
        let refusal = outcome
            .err()
            .with_context(|| format!("a plain role may: {sql}"))?;
        refusal.check().context(sql.clone())?;
        // What is refused for another reason is refused for the superuser as well.
        let other = [
            "42809", "42601", "0A000", "42703", "55000", "25001", "25P01", "42P16", "57P03",
            "42710", "42P01", "42883",
        ];
        ensure!(
            refusal.code == DENIED || other.contains(&refusal.code.as_str()),
            "{sql}: {refusal:?}"
        );
        report.tried("attempts of a plain role on what is behind", 1);
        if refusal.code == DENIED {
            report.tried("of these, refused for want of a right", 1);
        }
    }
    // VACUUM and ANALYZE are no errors: they warn, and skip what one does not own.
    mallory
        .batch_execute("VACUUM counterx.total")
        .or_else(|error| {
            if error.code().is_some_and(|code| code.code() == DENIED) {
                Ok(())
            } else {
                Err(error)
            }
        })?;
    let after = state::read(owner)?;
    fuzz::compare(&before, &after)
}

/// Who may monitor sees how folding goes, and nothing else.
fn monitors(owner: &mut Client, watcher: &mut Client, report: &mut PartReport) -> Result<()> {
    watcher.batch_execute(
        "SELECT * FROM counterx.lanes; SELECT * FROM counterx.workers; SELECT * FROM counterx.locks; SELECT * FROM counterx.upkeep; SELECT * FROM counterx.stat; SELECT * FROM counterx.lane_status(); SELECT * FROM counterx.escrow_status()",
    )?;
    let rows = owner.query(
        "SELECT oid::regclass::text FROM pg_class
          WHERE relnamespace = 'counterx'::regnamespace AND relkind IN ('r', 'S', 'v', 'f')
            AND relname NOT IN ('lanes', 'workers', 'locks', 'upkeep', 'stat')",
        &[],
    )?;
    for row in rows {
        let sql = format!("SELECT * FROM {}", row.get::<_, String>(0));
        let outcome = answer(watcher.batch_execute(&sql))?;
        let refused = outcome.err().is_some_and(|refusal| refusal.code == DENIED);
        ensure!(refused, "pg_monitor may: {sql}");
        report.tried("reads that pg_monitor has no right to", 1);
    }
    Ok(())
}

/// Without any right nothing can be called; with a right to one function, that one alone.
fn nobody_but(
    owner: &mut Client,
    mallory: &mut Client,
    functions: &[Function],
    options: &Options,
    rng: &mut StdRng,
    report: &mut PartReport,
) -> Result<()> {
    for function in functions {
        owner.batch_execute(&format!(
            "REVOKE EXECUTE ON FUNCTION {} FROM PUBLIC",
            function.signature
        ))?;
    }
    owner.batch_execute("REVOKE ALL ON counters, counter_types, counter_holds FROM PUBLIC")?;
    let before = state::read(owner)?;
    let all: Vec<&Function> = functions.iter().collect();
    denied_calls(mallory, &all, 1, rng, report)?;
    for view in ["counters", "counter_types", "counter_holds"] {
        let outcome = answer(mallory.batch_execute(&format!("SELECT * FROM {view}")))?;
        ensure!(
            outcome.err().is_some_and(|refusal| refusal.code == DENIED),
            "{view} is open"
        );
    }
    let count = options.size(3, all.len());
    let granted: Vec<&Function> = all.sample(rng, count).copied().collect();
    for function in granted {
        let signature = &function.signature;
        owner.batch_execute(&format!("GRANT EXECUTE ON FUNCTION {signature} TO mallory"))?;
        let sql = format!("SELECT * FROM {}", Call::nulls(function).sql());
        mallory.batch_execute("BEGIN")?;
        if let Err(refusal) = answer(mallory.batch_execute(&sql))? {
            ensure!(
                refusal.code != DENIED,
                "granted, and yet {sql}: {refusal:?}"
            );
        }
        mallory.batch_execute("ROLLBACK")?;
        let others: Vec<&Function> = all
            .iter()
            .copied()
            .filter(|other| other.signature != *signature)
            .collect();
        denied_calls(mallory, &others, 1, rng, report)?;
        owner.batch_execute(&format!(
            "REVOKE EXECUTE ON FUNCTION {signature} FROM mallory"
        ))?;
    }
    let after = state::read(owner)?;
    fuzz::compare(&before, &after)
}

/// What was allowed when it was called is written at commit, whoever one is by then.
fn changing_roles(owner: &mut Client, aloof: &mut Client, mallory: &mut Client) -> Result<()> {
    owner.batch_execute(
        "GRANT EXECUTE ON FUNCTION counter_incr(text, bigint), counter_incr_once(text, text, bigint),
                                   counter_value(text) TO writer;
         CREATE FUNCTION for_all() RETURNS bigint LANGUAGE sql SECURITY DEFINER
             SET search_path = public, pg_temp
             AS $$ SELECT counter_incr('roles'); SELECT counter_value('roles') $$;
         GRANT EXECUTE ON FUNCTION for_all() TO mallory",
    )?;
    let outcome = answer(aloof.batch_execute("SELECT counter_incr('roles')"))?;
    ensure!(
        outcome.err().is_some_and(|refusal| refusal.code == DENIED),
        "NOINHERIT inherits"
    );
    aloof.batch_execute(
        "BEGIN; SET ROLE writer; SELECT counter_incr('roles'); SAVEPOINT s; SELECT counter_incr('roles', 100);
         ROLLBACK TO s; RESET ROLE; COMMIT",
    )?;
    owner.batch_execute(
        "BEGIN; SELECT counter_incr('roles'); SELECT counter_incr_once('roles', 'roles');
         SET LOCAL counterx.pending_work_mem = '64kB';
         SELECT count(counter_incr('early:' || n)) FROM generate_series(1, 3000) n;
         SET ROLE mallory; COMMIT; RESET ROLE",
    )?;
    mallory.batch_execute("SELECT for_all()")?;
    mallory.batch_execute("BEGIN; SELECT for_all(); ROLLBACK")?;
    let roles: i64 = owner
        .query_one("SELECT counter_value('roles')", &[])?
        .get(0);
    ensure!(
        roles == 4,
        "four increments by four roles, and it is {roles}"
    );
    Ok(())
}
