//! Look-alikes: whoever can create functions, operators, types and tables that are found before the
//! server's own, must not get one of them called by the extension; and names that are taken before
//! CREATE EXTENSION must make it fail, and not be trusted.
//!
//! # How it works
//! The schema `evil` has a copy of everything in `pg_catalog` that a query can name. Each counts in a
//! sequence that it was called, which no rollback undoes, and raises an error. The schema that the
//! extension is created in has operators that fit its queries better than the server's own, where
//! there are no perfect ones.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::settle;
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use super::errors::answer;
use super::functions::{self, Argument, Call, Function};
use super::values::{self, Value};
use crate::options::Options;
use crate::report::PartReport;

/// What an object of `evil` raises.
const CAUGHT: &str = "EVIL0";

const TRAP: &str = "
CREATE SCHEMA evil;
CREATE SEQUENCE evil.called;
CREATE FUNCTION evil.trap(what text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.nextval('evil.called'::pg_catalog.regclass);
    RAISE WARNING 'look-alike called: %', what;
    RAISE EXCEPTION 'look-alike called: %', what USING ERRCODE = 'EVIL0';
END $$;
CREATE TABLE evil.made (what text);";

/// A copy of each function and operator that plpgsql can copy. `$filter$` picks.
const FUNCTIONS: &str = r"
DO $do$
DECLARE
    f record;
BEGIN
    SET LOCAL check_function_bodies = off;
    SET LOCAL search_path = pg_catalog;
    FOR f IN
        SELECT p.proname, p.proretset, format_type(p.prorettype, NULL) AS result,
               (SELECT string_agg(format_type(t, NULL), ', ' ORDER BY o)
                  FROM unnest(p.proargtypes) WITH ORDINALITY u(t, o)) AS arguments
          FROM pg_proc p
         WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f'
           AND p.provariadic = 0
           AND NOT EXISTS (SELECT FROM unnest(array_append(p.proargtypes::oid[], p.prorettype)) t
                            JOIN pg_type y ON y.oid = t
                           WHERE y.typtype = 'p' AND y.typname NOT IN ('anyelement', 'anyarray', 'anynonarray', 'void'))
           AND ($filter$)
    LOOP
        BEGIN
            EXECUTE format($f$CREATE FUNCTION evil.%I(%s) RETURNS %s %s LANGUAGE plpgsql
                              AS $b$BEGIN PERFORM evil.trap(%L); END$b$$f$,
                           f.proname, f.arguments, CASE WHEN f.proretset THEN 'SETOF' ELSE '' END,
                           f.result, f.proname);
            INSERT INTO evil.made VALUES ('function');
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END LOOP;
    FOR f IN
        SELECT o.oprname, c.proname, format_type(nullif(o.oprleft, 0), NULL) AS l,
               format_type(o.oprright, NULL) AS r
          FROM pg_operator o JOIN pg_proc c ON c.oid = o.oprcode
         WHERE o.oprnamespace = 'pg_catalog'::regnamespace
    LOOP
        BEGIN
            EXECUTE format('CREATE OPERATOR evil.%s (%s RIGHTARG = %s, FUNCTION = evil.%I)',
                           f.oprname, 'LEFTARG = ' || f.l || ',', f.r, f.proname);
            INSERT INTO evil.made VALUES ('operator');
        EXCEPTION WHEN OTHERS THEN
            NULL;
        END;
    END LOOP;
END $do$";

const OTHERS: &str = r"
DO $do$
DECLARE
    t text;
    a text;
BEGIN
    SET LOCAL search_path = pg_catalog;
    FOREACH t IN ARRAY ARRAY['bigint', 'integer', 'numeric', 'text'] LOOP
        EXECUTE format($f$CREATE FUNCTION evil.step(state text, x %s) RETURNS text LANGUAGE plpgsql
                          AS 'BEGIN RETURN evil.trap(''an aggregate''); END'$f$, t);
        FOREACH a IN ARRAY ARRAY['sum', 'count', 'max', 'min', 'avg', 'array_agg', 'bool_or'] LOOP
            EXECUTE format('CREATE AGGREGATE evil.%I(%s) (SFUNC = evil.step, STYPE = text)', a, t);
            INSERT INTO evil.made VALUES ('aggregate');
        END LOOP;
    END LOOP;
    CREATE FUNCTION evil.step(state text) RETURNS text LANGUAGE plpgsql
        AS 'BEGIN RETURN evil.trap(''count(*)''); END';
    CREATE AGGREGATE evil.count(*) (SFUNC = evil.step, STYPE = text);
    CREATE FUNCTION evil.is_fine(x text) RETURNS boolean LANGUAGE plpgsql
        AS 'BEGIN RETURN evil.trap(''a domain'') IS NULL; END';
    FOREACH t IN ARRAY ARRAY['text', 'name', 'int8', 'int4', 'float8', 'numeric', 'bool', 'jsonb',
                             'regclass', 'regnamespace', 'regproc', 'oid', 'timestamptz', 'interval'] LOOP
        EXECUTE format('CREATE DOMAIN evil.%I AS pg_catalog.%I CHECK (evil.is_fine(VALUE::pg_catalog.text))', t, t);
        INSERT INTO evil.made VALUES ('type');
    END LOOP;
    FOR t IN
        SELECT DISTINCT relname FROM pg_class
         WHERE relkind IN ('r', 'v', 'f', 'S')
           AND (relnamespace IN ('counterx'::regnamespace, 'public'::regnamespace)
                OR relname IN ('pg_class', 'pg_proc', 'pg_locks', 'pg_database', 'pg_stat_activity',
                               'pg_extension', 'pg_namespace', 'pg_type', 'pg_db_role_setting', 'pg_depend'))
    LOOP
        EXECUTE format('CREATE VIEW evil.%I AS SELECT evil.trap(%L)', t, t);
        INSERT INTO evil.made VALUES ('relation');
    END LOOP;
END $do$";

/// Operators that fit better than the server's own, where those need a cast.
const BETTER: &str = r"
DO $do$
DECLARE
    o record;
BEGIN
    SET LOCAL search_path = pg_catalog;
    FOR o IN
        SELECT name, format_type(l.oid, NULL) AS l, format_type(r.oid, NULL) AS r
          FROM unnest($types$::regtype[]) l(oid), unnest($types$::regtype[]) r(oid),
               unnest($names$) name
         WHERE NOT EXISTS (SELECT FROM pg_operator p
                            WHERE p.oprname = name AND p.oprleft = l.oid AND p.oprright = r.oid)
    LOOP
        EXECUTE format($f$CREATE OR REPLACE FUNCTION public.better(%s, %s) RETURNS boolean LANGUAGE plpgsql
                          AS 'BEGIN RETURN evil.trap(''a better operator'') IS NULL; END'$f$, o.l, o.r);
        EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.better)',
                       o.name, o.l, o.r);
        INSERT INTO evil.made VALUES ('better operator');
    END LOOP;
END $do$";

/// What depends on something that belongs neither to the extension nor to the server.
const FOREIGN: &str = "
WITH strange AS (
    SELECT 'pg_proc'::regclass AS class, p.oid FROM pg_proc p
     WHERE p.pronamespace IN ('evil'::regnamespace, 'public'::regnamespace)
    UNION ALL
    SELECT 'pg_operator'::regclass, o.oid FROM pg_operator o
     WHERE o.oprnamespace IN ('evil'::regnamespace, 'public'::regnamespace)
    UNION ALL
    SELECT 'pg_type'::regclass, t.oid FROM pg_type t
     WHERE t.typnamespace = 'evil'::regnamespace
    EXCEPT
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
)
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on '
       || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
  FROM pg_depend d
  JOIN strange s ON s.class = d.refclassid AND s.oid = d.refobjid
 WHERE (d.classid, d.objid) NOT IN (SELECT class, oid FROM strange)
   AND NOT EXISTS (SELECT FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
                    WHERE d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
                      AND c.relnamespace = 'evil'::regnamespace)
   AND NOT EXISTS (SELECT FROM pg_constraint k WHERE d.classid = 'pg_constraint'::regclass
                      AND k.oid = d.objid AND k.connamespace = 'evil'::regnamespace)";

pub(super) fn run(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    let mut client = prepare(cluster, options, report)?;
    // Sessions that come from now on, the worker's among them, find `evil` first.
    client.batch_execute("ALTER DATABASE lookalikes SET search_path = evil, pg_catalog, public")?;
    let functions = functions::all(&mut client)?;
    for function in functions
        .iter()
        .filter(|function| function.security_definer)
    {
        let path: String = client
            .query_one(
                "SELECT coalesce(array_to_string(proconfig, ' '), '') FROM pg_proc
                  WHERE oid = $1::text::regprocedure",
                &[&function.signature],
            )?
            .get(0);
        ensure!(
            path == "search_path=pg_catalog, pg_temp",
            "{} is SECURITY DEFINER, and has: {path}",
            function.signature
        );
    }
    let mut victim = cluster.connect_db("lookalikes")?;
    // What is temporary comes before everything else.
    victim.batch_execute(
        "CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (evil.is_fine(VALUE));
         CREATE TEMPORARY VIEW pg_class AS SELECT evil.trap('a temporary pg_class');
         CREATE TEMPORARY VIEW total AS SELECT evil.trap('a temporary total');
         CREATE TEMPORARY VIEW type AS SELECT evil.trap('a temporary type')",
    )?;
    let mut rng = StdRng::seed_from_u64(options.seed_for("lookalikes"));
    let mut calls = 0;
    for function in &functions {
        for _ in 0..options.size(4, 20) {
            let sql = format!("SELECT * FROM {}", hardened(function, &mut rng));
            if let Err(refusal) = answer(victim.batch_execute(&sql))? {
                ensure!(refusal.code != CAUGHT, "{sql}: {refusal:?}");
                refusal.check().context(sql)?;
            }
            calls += 1;
        }
    }
    report.tried("calls beside look-alikes", calls);
    for view in [
        "public.counters",
        "public.counter_types",
        "public.counter_holds",
        "counterx.lanes",
        "counterx.workers",
    ] {
        victim.batch_execute(&format!("SELECT * FROM {view}"))?;
    }
    victim.batch_execute(
        "SELECT name, value FROM public.counters WHERE name OPERATOR(pg_catalog.=) 'x';
         SELECT name FROM public.counters WHERE name OPERATOR(pg_catalog.^@) 'x';
         SELECT name FROM public.counters WHERE name OPERATOR(pg_catalog.~~) 'x%'",
    )?;
    // By the worker, whose path is evil, too.
    for _ in 0..3 {
        victim.batch_execute("SELECT public.counter_incr('worker')")?;
        settle(&mut client)?;
    }
    let errors: i64 = client
        .query_one(
            "SELECT count(*) FROM counterx.state WHERE last_error IS NOT NULL",
            &[],
        )?
        .get(0);
    ensure!(errors == 0, "the worker had errors");
    if !options.short {
        // It also removes what has expired, which it looks for every ten seconds.
        victim.batch_execute(
            "SELECT public.counter_incr_once('token', 'worker');
             UPDATE counterx.token SET at = at OPERATOR(pg_catalog.-) '60 days'::pg_catalog.interval",
        )?;
        poll_until(
            "the token to be removed",
            counterx_cluster_tests::DEADLINE,
            || {
                victim.batch_execute("SELECT public.counter_incr('worker')")?;
                let sql = "SELECT count(*) FROM counterx.token WHERE token = 'token'";
                Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
            },
        )?;
    }
    was_not_called(&mut client)?;
    // The trap is one.
    let caught = answer(victim.batch_execute("SELECT pg_catalog.length('x') = 1"))?;
    ensure!(
        caught.is_err_and(|refusal| refusal.code == CAUGHT),
        "the look-alikes are not found first: nothing was tried"
    );
    Ok(())
}

fn prepare(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<Client> {
    cluster
        .connect()?
        .batch_execute("CREATE DATABASE lookalikes")?;
    let mut client = cluster.connect_db("lookalikes")?;
    make(&mut client, options)?;
    client.batch_execute("SET search_path = evil, public; CREATE EXTENSION counterx SCHEMA public; SET search_path = pg_catalog")?;
    client.batch_execute(OTHERS)?;
    for row in client.query(
        "SELECT what, count(*) FROM evil.made GROUP BY what ORDER BY what",
        &[],
    )? {
        let what = format!("look-alikes: {}s", row.get::<_, String>(0));
        report.tried(&what, u64::try_from(row.get::<_, i64>(1))?);
    }
    was_not_called(&mut client).context("CREATE EXTENSION")?;
    nothing_foreign(&mut client)?;
    Ok(client)
}

/// The script of an update meets them as well.
pub(super) fn updated(cluster: &Cluster, options: &Options, report: &mut PartReport) -> Result<()> {
    let since = "0.1.0";
    cluster
        .connect()?
        .batch_execute("CREATE DATABASE updated")?;
    let mut client = cluster.connect_db("updated")?;
    client.batch_execute(&format!(
        "CREATE EXTENSION counterx SCHEMA public VERSION '{since}'"
    ))?;
    make(&mut client, options)?;
    client.batch_execute(OTHERS)?;
    client.batch_execute(
        "SET search_path = evil, public; ALTER EXTENSION counterx UPDATE; SET search_path = pg_catalog",
    )?;
    was_not_called(&mut client).context("ALTER EXTENSION UPDATE")?;
    nothing_foreign(&mut client)?;
    client.batch_execute("SELECT public.counter_incr('x', 3)")?;
    let value = "SELECT public.counter_value('x')";
    ensure!(client.query_one(value, &[])?.get::<_, i64>(0) == 3);
    report.tried("updates beside look-alikes", 1);
    Ok(())
}

/// All but what has the names of relations, and those that come after them.
fn make(client: &mut Client, options: &Options) -> Result<()> {
    client.batch_execute(TRAP)?;
    // In the short form those that are not about geometry, networks and the like.
    let filter = options.size(
        "p.pronargs <= 3 AND p.proargtypes::oid[] <@ '{text, name, bigint, integer, smallint, numeric,
         float8, oid, regclass, \"\\\"char\\\"\", jsonb, interval, timestamptz, boolean, anyarray, anyelement}'::regtype[]::oid[]",
        "true",
    );
    client.batch_execute(&FUNCTIONS.replace("$filter$", filter))?;
    let types = options.size(
        "'{bigint,integer,float8,numeric,text,name,\"\\\"char\\\"\",oid,interval}'",
        "'{bigint,integer,smallint,float8,numeric,text,name,\"\\\"char\\\"\",\"\\\"char\\\"[]\",oid,regclass,regnamespace,interval,timestamptz,boolean,jsonb,text[]}'",
    );
    let names = "ARRAY['=', '<>', '<', '<=', '>', '>=', '+', '-', '*', '/', '||', '^@', '~~']";
    client.batch_execute(&BETTER.replace("$types$", types).replace("$names$", names))?;
    Ok(())
}

fn nothing_foreign(client: &mut Client) -> Result<()> {
    let foreign = client.query(FOREIGN, &[])?;
    let foreign: Vec<String> = foreign.iter().map(|row| row.get(0)).collect();
    ensure!(foreign.is_empty(), "{}", foreign.join("\n"));
    Ok(())
}

fn was_not_called(client: &mut Client) -> Result<()> {
    let called: bool = client
        .query_one("SELECT is_called FROM evil.called", &[])?
        .get(0);
    ensure!(
        !called,
        "a look-alike was called: the server's log has a warning that says which one"
    );
    Ok(())
}

/// A random call in which nothing is looked up by a name without its schema.
fn hardened(function: &Function, rng: &mut StdRng) -> String {
    let mut call = Call::random(function, rng);
    for (value, argument) in call.arguments.iter_mut().zip(&function.arguments) {
        let sound = |value: &Value| {
            !matches!(
                value,
                Value::Repeated(..) | Value::Refused(_) | Value::Other(_)
            )
        };
        for _ in 0..20 {
            if sound(value) || is_other(argument) {
                break;
            }
            *value = values::any(&argument.type_name, &argument.name, &function.name, rng);
        }
        // Most calls should come through.
        let likely = match argument.type_name.as_str() {
            "text" if argument.name == "name" && function.name.contains("type") => {
                Value::Text("b".into())
            }
            "text" => Value::Text(
                ["b:1", "b:2", "a"]
                    .choose(rng)
                    .copied()
                    .unwrap_or("a")
                    .into(),
            ),
            "bigint" => Value::Number(1),
            "interval" => Value::Other("'1 hour'".into()),
            _ => value.clone(),
        };
        if !sound(value) || rng_is_even(rng) {
            *value = likely;
        }
        if !sound(value) && !is_other(argument) {
            *value = Value::Null;
        }
    }
    let types = function
        .arguments
        .iter()
        .map(|argument| match argument.type_name.as_str() {
            name @ ("text" | "text[]" | "name" | "jsonb" | "regclass") => {
                format!("pg_catalog.{name}")
            }
            // Part of the grammar.
            name => name.to_owned(),
        });
    let values: Vec<String> = call
        .arguments
        .iter()
        .zip(types)
        .map(|(value, type_name)| {
            value
                .sql(&type_name)
                .replace("::jsonb", "::pg_catalog.jsonb")
        })
        .collect();
    call.of(&values)
}

/// Is its value written as SQL that looks nothing up?
fn is_other(argument: &Argument) -> bool {
    matches!(
        argument.type_name.as_str(),
        "interval" | "boolean" | "timestamp with time zone"
    )
}

fn rng_is_even(rng: &mut StdRng) -> bool {
    rand::RngExt::random_ratio(rng, 1, 2)
}

/// Somebody has made what the extension is going to make: CREATE EXTENSION fails, and leaves nothing.
pub(super) fn names_taken(
    cluster: &Cluster,
    options: &Options,
    report: &mut PartReport,
) -> Result<()> {
    let mut client = counterx_cluster_tests::create_database(cluster, "taken")?;
    let functions = functions::all(&mut client)?;
    client.batch_execute(
        "DROP EXTENSION counterx;
         CREATE ROLE taker; GRANT CREATE ON DATABASE taken TO taker; GRANT CREATE ON SCHEMA public TO taker",
    )?;
    let mut takers: Vec<(String, String)> = vec![
        ("SET ROLE taker; CREATE SCHEMA counterx".into(), "DROP SCHEMA counterx CASCADE".into()),
        (
            "CREATE SCHEMA counterx AUTHORIZATION taker; SET ROLE taker; CREATE TABLE counterx.total (name text, gen bigint, value numeric, uses bigint)".into(),
            "DROP SCHEMA counterx CASCADE".into(),
        ),
        ("CREATE FOREIGN DATA WRAPPER counterx".into(), "DROP FOREIGN DATA WRAPPER counterx".into()),
        ("CREATE FOREIGN DATA WRAPPER w; CREATE SERVER counterx FOREIGN DATA WRAPPER w".into(), "DROP FOREIGN DATA WRAPPER w CASCADE".into()),
    ];
    for view in ["counters", "counter_types", "counter_holds"] {
        takers.push((
            format!("SET ROLE taker; CREATE VIEW public.{view} AS SELECT 'x'::text COLLATE \"C\" AS name, 1::numeric AS value"),
            format!("DROP VIEW public.{view}"),
        ));
        takers.push((
            format!("SET ROLE taker; CREATE TABLE public.{view} (name text, value numeric)"),
            format!("DROP TABLE public.{view}"),
        ));
    }
    let mut functions: Vec<&Function> = functions
        .iter()
        // A function of arguments of any type is written in C, and so is nobody's who is not trusted.
        .filter(|function| function.schema == "public" && !function.variadic)
        .collect();
    let mut rng = StdRng::seed_from_u64(options.seed_for("taken"));
    if options.short {
        functions = functions.sample(&mut rng, 4).copied().collect();
    }
    for function in functions {
        let types: Vec<&str> = function
            .arguments
            .iter()
            .map(|argument| argument.type_name.as_str())
            .collect();
        let signature = format!("public.{}({})", function.name, types.join(", "));
        takers.push((
            format!("SET ROLE taker; CREATE FUNCTION {signature} RETURNS text LANGUAGE sql AS 'SELECT NULL::text'"),
            format!("DROP FUNCTION {signature}"),
        ));
    }
    for (take, give_back) in &takers {
        client.batch_execute(&format!("{take}; RESET ROLE"))?;
        let outcome = answer(client.batch_execute("CREATE EXTENSION counterx"))?;
        let refusal = outcome
            .err()
            .with_context(|| format!("CREATE EXTENSION trusts: {take}"))?;
        ensure!(
            [
                "42P06", "42P07", "42723", "42710", "55000", "42501", "42809"
            ]
            .contains(&refusal.code.as_str()),
            "{take}: {refusal:?}"
        );
        client.batch_execute(give_back)?;
    }
    report.tried("names taken before CREATE EXTENSION", takers.len() as u64);
    client.batch_execute("CREATE EXTENSION counterx; SELECT counter_incr('x')")?;
    Ok(())
}
