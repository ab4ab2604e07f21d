//! ALTER EXTENSION counterx UPDATE: what is installed by older versions becomes what a fresh installation
//! is, with all that was counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{DEADLINE, catch_up, compact, settle, shared, wait_for_blocked};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::Client;
use postgres::error::SqlState;

/// The versions that an installation can be of, oldest first. `scripts/build` puts their scripts, which
/// are in `sql/versions`, beside that of the newest.
const VERSIONS: &[&str] = &["0.1.0"];

/// What 0.1.0 has left in its tables, and what its view `counters` said of it.
const ROWS: &str = include_str!("../data/0.1.0.sql");
const VALUES: &str = include_str!("../data/0.1.0.values");

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("upgrade")
            .conf("counterx.compaction_interval", "50ms")
            .conf("max_prepared_transactions", "10")
            .conf("wal_level", "logical")
            .start()
    })
}

/// A database with the extension of a version, which may be the newest.
fn database(name: &str, version: Option<&str>, schema: &str) -> Result<Client> {
    cluster()
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {name}"))?;
    let mut client = cluster().connect_db(name)?;
    let version = version.map_or_else(String::new, |version| format!(" VERSION '{version}'"));
    client.batch_execute(&format!(
        "CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION counterx SCHEMA {schema}{version}"
    ))?;
    Ok(client)
}

/// A database as 0.1.0 has left it. Its functions are those of this library, which do not work there yet.
fn of_0_1_0(name: &str) -> Result<Client> {
    let mut client = database(name, Some("0.1.0"), "public")?;
    fill(&mut client)?;
    Ok(client)
}

/// As a dump of 0.1.0 is restored.
fn fill(client: &mut Client) -> Result<()> {
    client.batch_execute(ROWS).context("rows of 0.1.0")
}

/// What the counters of those rows are, once more.
fn expected_values() -> BTreeMap<String, String> {
    VALUES
        .lines()
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn values(client: &mut Client) -> Result<BTreeMap<String, String>> {
    let rows = client.query("SELECT name, value::text FROM counters", &[])?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Everything that the catalogs say of the extension's objects: a line each, without the numbers that are
/// different in each database.
const CATALOGS: &str = r#"
WITH member AS (
    SELECT d.classid, d.objid, pg_describe_object(d.classid, d.objid, 0) AS object
    FROM pg_depend d
    WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
      AND d.refobjid = (SELECT oid FROM pg_extension WHERE extname = 'counterx')
), relation AS (
    SELECT c.*, m.object FROM member m JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
)
SELECT concat(object, ' is a member') FROM member
UNION ALL
SELECT concat(object, ' comment: ', coalesce(obj_description(objid, classid::regclass::name), 'none')) FROM member
UNION ALL
SELECT concat(m.object, ' initial rights: ', i.objsubid, ' ', (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(i.initprivs) a), ' ', i.privtype)
FROM member m JOIN pg_init_privs i ON i.classoid = m.classid AND i.objoid = m.objid
UNION ALL
SELECT concat(object, ' kind ', relkind, ' persistence ', relpersistence, ' identity ', relreplident,
        ' owner ', relowner::regrole, ' security ', relrowsecurity, relforcerowsecurity,
        ' method ', coalesce((SELECT amname FROM pg_am WHERE oid = relam), '-'),
        ' options ', coalesce(reloptions::text, '-'), ' toast ', (reltoastrelid <> 0),
        ' checks ', relchecks, ' triggers ', relhastriggers, ' rules ', relhasrules,
        ' rights ', coalesce((SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(relacl) a), '-'))
FROM relation
UNION ALL
SELECT concat(object, ' column ', a.attnum, ' ', a.attname, ' ', format_type(a.atttypid, a.atttypmod),
        ' collation ', coalesce(a.attcollation::regcollation::text, '-'), ' not null ', a.attnotnull,
        ' storage ', a.attstorage, ' compression ', a.attcompression, ' dropped ', a.attisdropped,
        ' identity ', a.attidentity, ' generated ', a.attgenerated, ' local ', a.attislocal,
        ' default ', coalesce(pg_get_expr(d.adbin, d.adrelid), '-'),
        ' rights ', coalesce(a.attacl::text, '-'), ' comment ', coalesce(col_description(a.attrelid, a.attnum), '-'))
FROM relation JOIN pg_attribute a ON a.attrelid = relation.oid AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT concat(object, ' constraint ', c.conname, ' ', pg_get_constraintdef(c.oid), ' valid ', c.convalidated)
FROM relation JOIN pg_constraint c ON c.conrelid = relation.oid
UNION ALL
SELECT concat(object, ' index ', pg_get_indexdef(i.indexrelid), ' valid ', i.indisvalid, ' primary ', i.indisprimary,
        ' options ', coalesce(c.reloptions::text, '-'),
        ' storage ', (SELECT string_agg(a.attstorage, '' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = i.indexrelid))
FROM relation JOIN pg_index i ON i.indrelid = relation.oid JOIN pg_class c ON c.oid = i.indexrelid
UNION ALL
SELECT concat(object, ' trigger ', t.tgname, ' ', pg_get_triggerdef(t.oid), ' enabled ', t.tgenabled)
FROM relation JOIN pg_trigger t ON t.tgrelid = relation.oid
UNION ALL
SELECT concat(object, ' view ', pg_get_viewdef(oid)) FROM relation WHERE relkind = 'v'
UNION ALL
SELECT concat(object, ' sequence ', s.seqstart, ' ', s.seqincrement, ' ', s.seqmin, ' ', s.seqmax, ' ', s.seqcycle)
FROM relation JOIN pg_sequence s ON s.seqrelid = relation.oid
UNION ALL
SELECT concat(m.object, ' function ', pg_get_function_arguments(p.oid), ' returns ', coalesce(pg_get_function_result(p.oid), '-'),
        ' language ', (SELECT lanname FROM pg_language WHERE oid = p.prolang),
        ' kind ', p.prokind, ' definer ', p.prosecdef, ' leakproof ', p.proleakproof, ' strict ', p.proisstrict,
        ' set ', p.proretset, ' volatile ', p.provolatile, ' parallel ', p.proparallel,
        ' cost ', p.procost, ' rows ', p.prorows, ' support ', p.prosupport, ' calls ', p.prosrc, ' in ', p.probin,
        ' variadic ', p.provariadic, ' defaults ', p.pronargdefaults, ' types ', p.proargtypes::text,
        ' all ', coalesce(p.proallargtypes::text, '-'), ' modes ', coalesce(p.proargmodes::text, '-'), ' names ', coalesce(p.proargnames::text, '-'),
        ' config ', coalesce(p.proconfig::text, '-'), ' owner ', p.proowner::regrole,
        ' rights ', coalesce((SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(p.proacl) a), '-'))
FROM member m JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
UNION ALL
SELECT concat(m.object, ' schema owner ', n.nspowner::regrole, ' rights ', (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(n.nspacl) a))
FROM member m JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND n.oid = m.objid
UNION ALL
SELECT concat(m.object, ' server rights ', coalesce(s.srvacl::text, '-'), coalesce(s.srvoptions::text, '-'))
FROM member m JOIN pg_foreign_server s ON m.classid = 'pg_foreign_server'::regclass AND s.oid = m.objid
UNION ALL
SELECT concat(m.object, ' wrapper handler ', w.fdwhandler::regproc, ' rights ', coalesce(w.fdwacl::text, '-'))
FROM member m JOIN pg_foreign_data_wrapper w ON m.classid = 'pg_foreign_data_wrapper'::regclass AND w.oid = m.objid
UNION ALL
SELECT concat(m.object, ' depends on ', pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), ' ', d.deptype)
FROM member m JOIN pg_depend d ON d.classid = m.classid AND d.objid = m.objid AND d.refclassid <> 'pg_extension'::regclass
UNION ALL
SELECT concat(m.object, ' depends on role ', s.refobjid::regrole, ' ', s.deptype)
FROM member m JOIN pg_shdepend s ON s.classid = m.classid AND s.objid = m.objid AND s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
UNION ALL
SELECT concat('extension version ', extversion, ' schema ', extnamespace::regnamespace, ' relocatable ', extrelocatable, ' owner ', extowner::regrole)
FROM pg_extension WHERE extname = 'counterx'
UNION ALL
SELECT concat('dumped as number ', nr, ': ', pg_describe_object('pg_class'::regclass, tab, 0), ' ', condition)
FROM pg_extension, unnest(extconfig, extcondition) WITH ORDINALITY AS c (tab, condition, nr) WHERE extname = 'counterx'
UNION ALL
-- What nobody owns, as a script may have forgotten it.
SELECT concat('in the schema counterx, and no member: ', c.oid::regclass) FROM pg_class c
WHERE c.relnamespace = 'counterx'::regnamespace AND c.relkind IN ('r', 'v', 'S', 'f', 'm', 'p')
  AND NOT EXISTS (SELECT FROM relation r WHERE r.oid = c.oid)
UNION ALL
SELECT concat('no relation: ', r.object) FROM relation r WHERE r.relnamespace = 0
"#;

fn catalogs(client: &mut Client) -> Result<Vec<String>> {
    let rows = client.query(CATALOGS, &[])?;
    let mut lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    lines.sort();
    Ok(lines)
}

/// Lines of either that the other has not.
fn differences(fresh: &[String], updated: &[String]) -> String {
    let mut text = String::new();
    for line in fresh {
        if !updated.contains(line) {
            text += &format!("only in a fresh installation:   {line}\n");
        }
    }
    for line in updated {
        if !fresh.contains(line) {
            text += &format!("only in an updated one: {line}\n");
        }
    }
    text
}

/// Also what fails when an SQL object is changed in `sql/`, and the script of the update was forgotten.
#[test]
fn what_is_updated_is_what_a_fresh_installation_is() -> Result<()> {
    for schema in ["public", "counting"] {
        let mut fresh = database(&format!("fresh_{schema}"), None, schema)?;
        let fresh = catalogs(&mut fresh)?;
        // Not a comparison of nothing.
        ensure!(fresh.len() > 400, "only {} lines", fresh.len());
        for version in VERSIONS {
            let name = format!("updated_{schema}_{}", version.replace('.', "_"));
            let mut client = database(&name, Some(version), schema)?;
            ensure!(
                differences(&fresh, &catalogs(&mut client)?).lines().count() > 20,
                "version {version} was the newest already"
            );
            // Whichever superuser does it, all belongs to the extension's owner.
            client.batch_execute(&format!(
                "CREATE ROLE {name} SUPERUSER; SET ROLE {name}; ALTER EXTENSION counterx UPDATE"
            ))?;
            let role: String = client.query_one("SELECT current_user::text", &[])?.get(0);
            ensure!(role == name, "the update has left the role {role}");
            let differences = differences(&fresh, &catalogs(&mut client)?);
            ensure!(
                differences.is_empty(),
                "ALTER EXTENSION counterx UPDATE from {version} leaves other objects than CREATE EXTENSION: \
                 bring sql/counterx--*--*.sql in line with what has changed in sql/ or in functions\n{differences}"
            );
        }
    }
    Ok(())
}

fn is_older_version(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        error.code() == &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
            && error.message().contains("but its library is version")
            && error.hint() == Some("Run ALTER EXTENSION counterx UPDATE.")
    })
}

/// Each function of the older objects says what to do, whatever arguments it has there.
#[test]
fn older_objects_are_refused_by_each_function() -> Result<()> {
    for version in VERSIONS {
        let name = format!("refused_{}", version.replace('.', "_"));
        let mut client = database(&name, Some(version), "public")?;
        // Nulls for all arguments without a default, and then for all.
        let calls = client.query(
            "SELECT format('SELECT * FROM %s(%s)', p.oid::regproc, (
                 SELECT string_agg('NULL::' || format_type(t, NULL), ', ' ORDER BY nr)
                 FROM unnest(p.proargtypes) WITH ORDINALITY AS a (t, nr)
                 WHERE nr <= p.pronargs - CASE WHEN whole THEN 0 ELSE p.pronargdefaults END))
             FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
             JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'counterx',
                 (VALUES (true), (false)) v (whole)
             WHERE p.prorettype NOT IN ('trigger'::regtype, 'fdw_handler'::regtype)",
            &[],
        )?;
        ensure!(calls.len() > 60, "only {} calls", calls.len());
        for call in calls {
            let call: String = call.get(0);
            let error = client.batch_execute(&call).err();
            let error = error.with_context(|| format!("{call} worked with version {version}"))?;
            // What it says of the arguments is as good.
            let is_argument = error.code() == Some(&SqlState::NULL_VALUE_NOT_ALLOWED);
            ensure!(is_argument || is_older_version(&error), "{call}: {error:?}");
        }
        for call in [
            "counter_top(3)",
            "counter_bottom(3, 'x')",
            "counter_list('x')",
        ] {
            let error = client.batch_execute(&format!("SELECT * FROM {call}")).err();
            let error = error.with_context(|| format!("{call} worked with version {version}"))?;
            ensure!(is_older_version(&error), "{call}: {error:?}");
        }
    }
    Ok(())
}

/// Sessions count all the time: they are refused before the update and told what to do, and go on after it.
#[test]
fn an_update_under_load_keeps_all_that_was_counted() -> Result<()> {
    let mut client = of_0_1_0("under_load")?;
    let over = AtomicBool::new(false);
    let refused = AtomicU64::new(0);
    let counted: Vec<u64> = std::thread::scope(|scope| -> Result<Vec<u64>> {
        let sessions: Vec<_> = (0..3)
            .map(|session| {
                let (over, refused) = (&over, &refused);
                scope.spawn(move || -> Result<u64> {
                    let mut client = cluster().connect_db("under_load")?;
                    let sql =
                        format!("SELECT counter_incr('page:1'), counter_incr('new:{session}', 2)");
                    let mut counted = 0;
                    while !over.load(Ordering::Relaxed) {
                        match client.batch_execute(&sql) {
                            Ok(()) => counted += 1,
                            Err(error) if is_older_version(&error) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                ensure!(counted == 0, "refused after it had counted");
                                std::thread::sleep(Duration::from_millis(1));
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                    Ok(counted)
                })
            })
            .collect();
        let result = poll_until("sessions to be refused", DEADLINE, || {
            Ok(refused.load(Ordering::Relaxed) > 20 || sessions.iter().any(|s| s.is_finished()))
        })
        .and_then(|()| {
            client.batch_execute("ALTER EXTENSION counterx UPDATE")?;
            let before = expected_values();
            poll_until("sessions to count", DEADLINE, || {
                let now = values(&mut client)?;
                // At each moment: what was there, and what has come in since.
                for (name, value) in &before {
                    ensure!(
                        name == "page:1" || now.get(name) == Some(value),
                        "{name}: {:?} is not {value}",
                        now.get(name)
                    );
                }
                let sum: i64 = (0..3)
                    .filter_map(|n| now.get(&format!("new:{n}")))
                    .filter_map(|v| v.parse::<i64>().ok())
                    .sum();
                Ok(sum > 600 || sessions.iter().any(|s| s.is_finished()))
            })
        });
        over.store(true, Ordering::Relaxed);
        let counted = sessions
            .into_iter()
            .map(|session| session.join().map_err(|_| anyhow!("a session panicked"))?)
            .collect::<Result<Vec<u64>>>();
        result?;
        counted
    })?;
    let mut expected = expected_values();
    let total: u64 = counted.iter().sum();
    let first: u64 = expected["page:1"].parse()?;
    expected.insert("page:1".to_owned(), (first + total).to_string());
    for (session, counted) in counted.iter().enumerate() {
        ensure!(*counted > 0, "session {session} has not counted");
        expected.insert(format!("new:{session}"), (2 * counted).to_string());
    }
    for state in ["with what is pending", "folded"] {
        ensure!(
            values(&mut client)? == expected,
            "{state}: {:?} is not {expected:?}",
            values(&mut client)?
        );
        settle(&mut client)?;
        compact(&mut client)?;
    }
    Ok(())
}

/// Tokens, holds, types, ids and bounds are those of before.
#[test]
fn tokens_holds_and_types_go_on_after_an_update() -> Result<()> {
    let mut client = of_0_1_0("goes_on")?;
    client.batch_execute("ALTER EXTENSION counterx UPDATE")?;
    let mut expected = expected_values();
    for _ in 0..2 {
        let text: String = client
            .query_one(
                "SELECT string_agg(format('%s %s %s', name, min, max), ', ' ORDER BY name) FROM counter_types",
                &[],
            )?
            .get(0);
        ensure!(text == "free  , quota  50, stock 0 1000", "{text}");
        let row = client.query_one(
            "SELECT counter_incr_once('pay:13', 'paid', 10), counter_incr_once_get('get:1', 'paid', 5),
                 counter_hold('stock:2', 7, '30 days', 'order-2'),
                 (SELECT format('%s %s %s', value, held, available) FROM counter_available('stock:1')),
                 counter_try_incr('quota:a', 2), counter_try_incr('stock:1', -86)",
            &[],
        )?;
        let answers = (
            row.get::<_, bool>(0),
            row.get::<_, i64>(1),
            row.get::<_, i64>(2),
            row.get::<_, String>(3),
            row.get::<_, bool>(4),
            row.get::<_, bool>(5),
        );
        ensure!(
            answers == (false, 125, 3, "90 5 85".to_owned(), false, false),
            "{answers:?}"
        );
        ensure!(values(&mut client)? == expected);
        // Once more, when the worker has folded all of it. Who counts wakes it.
        client.batch_execute("SELECT counter_incr('wake')")?;
        settle(&mut client)?;
        let count = expected
            .get("wake")
            .map_or(Ok(0), |count| count.parse::<i64>())?;
        expected.insert("wake".to_owned(), (count + 1).to_string());
    }
    let id: i64 = client
        .query_one("SELECT counter_hold('stock:3', 1, '1 day')", &[])?
        .get(0);
    ensure!(id == 4, "the next hold has the id {id}");
    client.batch_execute(
        "SELECT counter_hold_confirm(2, 5), counter_hold_release(3), counter_hold_release(4),
             counter_incr('quota:a'), counter_incr('stock:1', -85), counter_drop('renamed')",
    )?;
    let refused = client.batch_execute("SELECT counter_incr('stock:1', -1)");
    let refused = refused.err().context("stock:1 went below zero")?;
    ensure!(
        refused.code() == Some(&SqlState::CHECK_VIOLATION),
        "{refused:?}"
    );
    Ok(())
}

/// Whoever could, can; nothing of it is lost in the next dump; and who uses a function is not in the way.
#[test]
fn rights_and_users_of_functions_stay_as_they_were() -> Result<()> {
    let mut client = of_0_1_0("rights")?;
    client.batch_execute(
        "CREATE ROLE upgrade_reader; CREATE ROLE upgrade_admin;
         REVOKE EXECUTE ON FUNCTION counter_top, counter_incr, counter_list FROM PUBLIC;
         GRANT EXECUTE ON FUNCTION counter_top, counter_incr, counter_list TO upgrade_reader;
         GRANT EXECUTE ON FUNCTION counter_set, counterx.compact TO upgrade_admin;
         GRANT USAGE ON SCHEMA counterx TO upgrade_admin;
         GRANT SELECT ON counterx.type TO upgrade_admin;
         CREATE TABLE visits (at timestamptz);
         CREATE RULE count AS ON INSERT TO visits DO ALSO SELECT counter_incr('visits');
         CREATE VIEW top AS SELECT * FROM counter_top(3);
         CREATE FUNCTION visit() RETURNS void LANGUAGE sql AS $$ SELECT counter_incr('visits') $$;
         CREATE VIEW one AS SELECT counter_value('page:2') AS page, * FROM counter_available('stock:1')",
    )?;
    for (user, drop) in [
        ("rule count on table visits", "RULE count ON visits"),
        ("view top", "VIEW top"),
    ] {
        let refused = client.batch_execute("ALTER EXTENSION counterx UPDATE");
        let refused = refused
            .err()
            .with_context(|| format!("it was updated beside the {user}"))?;
        let error = refused.as_db_error().context("no error of the server")?;
        ensure!(
            error.code() == &SqlState::DEPENDENT_OBJECTS_STILL_EXIST
                && error.detail().is_some_and(|detail| detail.contains(user))
                && error
                    .hint()
                    .is_some_and(|hint| hint.contains("ALTER EXTENSION counterx UPDATE")),
            "{error:?}"
        );
        client.batch_execute(&format!("DROP {drop}"))?;
    }
    // As pg_upgrade leaves those that are what a table has by default.
    client.batch_execute(
        "DELETE FROM pg_init_privs WHERE classoid = 'pg_class'::regclass
             AND objoid = ANY ('{counterx.type,counterx.hold_id}'::regclass[]);
         GRANT SELECT ON counterx.hold_id TO upgrade_admin",
    )?;
    client.batch_execute(
        "ALTER EXTENSION counterx UPDATE; CREATE VIEW top AS SELECT * FROM counter_top(3);
         TABLE one; SELECT visit(); SET ROLE upgrade_reader; SELECT counter_incr('visits');
         SELECT * FROM counter_top(1), counter_list(); RESET ROLE;
         SET ROLE upgrade_admin; SELECT counter_set('free:x', 1), counterx.compact(); TABLE counterx.type; RESET ROLE",
    )?;
    let count: i64 = client
        .query_one("SELECT counter_value('visits')", &[])?
        .get(0);
    ensure!(count == 2, "{count}");
    let dump = counterx_harness::run(cluster().tool("pg_dump").args(["--schema-only", "rights"]))?;
    let dump = String::from_utf8(dump.stdout)?;
    for grant in [
        "GRANT USAGE ON SCHEMA counterx TO upgrade_admin;",
        "GRANT SELECT ON TABLE counterx.type TO upgrade_admin;",
        "GRANT SELECT ON SEQUENCE counterx.hold_id TO upgrade_admin;",
        "FUNCTION public.counter_set(name text, value bigint) TO upgrade_admin;",
        "FUNCTION public.counter_top(n bigint, prefix text, after_value bigint, after_name text) TO upgrade_reader;",
    ] {
        ensure!(dump.contains(grant), "the dump has no {grant}\n{dump}");
    }
    ensure!(
        !dump.contains("TO pg_database_owner"),
        "the dump has what the extension itself grants"
    );
    Ok(())
}

/// What is committed while the update waits for its locks is there afterwards. A snapshot that is older than
/// the locks would not show it, so the update refuses to go by one.
#[test]
fn an_update_does_not_go_by_an_old_snapshot() -> Result<()> {
    let mut client = of_0_1_0("isolation")?;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        for begin in [
            format!("BEGIN ISOLATION LEVEL {level}"),
            format!(
                "SET default_transaction_isolation = '{}'",
                level.to_lowercase()
            ),
        ] {
            client.batch_execute(&begin)?;
            let refused = client.batch_execute("ALTER EXTENSION counterx UPDATE");
            client.batch_execute("ROLLBACK; RESET default_transaction_isolation")?;
            let refused = refused
                .err()
                .with_context(|| format!("it was updated after {begin}"))?;
            let error = refused.as_db_error().context("no error of the server")?;
            ensure!(
                error.code() == &SqlState::ACTIVE_SQL_TRANSACTION
                    && error
                        .hint()
                        .is_some_and(|hint| hint.contains("READ COMMITTED")),
                "{error:?}"
            );
        }
    }
    client.batch_execute(
        "BEGIN; INSERT INTO counterx.late VALUES (5, 'late:only', 1000, now(), NULL);
         PREPARE TRANSACTION 'meanwhile'",
    )?;
    let mut updater = cluster().connect_db("isolation")?;
    let pid: i32 = updater.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    std::thread::scope(|scope| -> Result<()> {
        let update = scope.spawn(move || updater.batch_execute("ALTER EXTENSION counterx UPDATE"));
        let waited = wait_for_blocked(&mut client, "the update", pid);
        client.batch_execute("COMMIT PREPARED 'meanwhile'")?;
        let updated = update.join().map_err(|_| anyhow!("it panicked"))?;
        waited?;
        Ok(updated?)
    })?;
    let mut expected = expected_values();
    let late: i64 = expected["late:only"].parse()?;
    expected.insert("late:only".to_owned(), (late + 1000).to_string());
    ensure!(values(&mut client)? == expected);
    Ok(())
}

/// Where the role cannot be set, and need not be, it is not.
#[test]
fn an_update_can_be_made_by_a_function_of_the_owner() -> Result<()> {
    let mut client = of_0_1_0("by_function")?;
    client.batch_execute(
        "CREATE FUNCTION update_counterx() RETURNS void LANGUAGE plpgsql SECURITY DEFINER
             AS 'BEGIN ALTER EXTENSION counterx UPDATE; END'",
    )?;
    client.batch_execute("SELECT update_counterx()")?;
    ensure!(values(&mut client)? == expected_values());
    Ok(())
}

/// Rows of 0.1.0 are taken for increments; those that are written from then on tell what they are.
#[test]
fn rows_of_before_an_update_are_increments() -> Result<()> {
    let mut client = of_0_1_0("kinds")?;
    client.batch_execute(
        "ALTER DATABASE kinds SET counterx.compaction = off;
         ALTER EXTENSION counterx UPDATE;
         CREATE FUNCTION kinds(names text) RETURNS text LANGUAGE plpgsql AS $$
         DECLARE
             log regclass;
             found text;
             kinds text := '';
         BEGIN
             FOR log IN SELECT oid FROM pg_class WHERE relnamespace = 'counterx'::regnamespace AND relname ~ '^(log_._.|late)$' LOOP
                 EXECUTE format('SELECT string_agg(coalesce(kind, %L), %L) FROM %s WHERE name ~ $1', '-', '', log)
                     INTO found USING names;
                 kinds := kinds || coalesce(found, '');
             END LOOP;
             RETURN kinds;
         END $$",
    )?;
    let mut client = cluster().connect_db("kinds")?;
    let mut kinds = |names: &str| -> Result<String> {
        Ok(client.query_one("SELECT kinds($1)", &[&names])?.get(0))
    };
    let before = kinds("")?;
    ensure!(
        !before.is_empty() && before.bytes().all(|kind| kind == b'-'),
        "{before}"
    );
    client.batch_execute(
        "SELECT counter_incr('new:1'), counter_set('new:2', 2);
         BEGIN; SELECT counter_set('new:3', 2); PREPARE TRANSACTION 'kinds'",
    )?;
    client.batch_execute("COMMIT PREPARED 'kinds'")?;
    let after: String = client.query_one("SELECT kinds('^new:')", &[])?.get(0);
    ensure!(
        after.len() == 3 && after.matches('a').count() == 2,
        "{after}"
    );
    Ok(())
}

/// What somebody has put into the schema `counterx` stays his.
#[test]
fn an_update_leaves_tables_of_others_alone() -> Result<()> {
    let mut client = of_0_1_0("others")?;
    client.batch_execute(
        "CREATE TABLE counterx.saved AS TABLE counterx.late;
         ALTER EXTENSION counterx UPDATE;
         DELETE FROM counterx.saved WHERE delta = 1; TRUNCATE counterx.saved; DROP EXTENSION counterx CASCADE",
    )?;
    Ok(())
}

/// A crash in mid-update is no update; after it, it is one.
#[test]
fn an_update_is_made_as_a_whole() -> Result<()> {
    let mut own = Cluster::builder().name("whole").start()?;
    own.connect()?.batch_execute("CREATE DATABASE whole")?;
    let mut client = own.connect_db("whole")?;
    client.batch_execute("CREATE EXTENSION counterx VERSION '0.1.0'")?;
    fill(&mut client)?;
    client
        .batch_execute("BEGIN; ALTER EXTENSION counterx UPDATE; SELECT counter_incr('page:1')")?;
    own.restart(StopMode::Immediate)?;
    let mut client = own.connect_db("whole")?;
    let error = client
        .batch_execute("SELECT counter_incr('page:1')")
        .err()
        .context("an update was made that nobody has committed")?;
    ensure!(is_older_version(&error), "{error:?}");
    client.batch_execute("BEGIN; ALTER EXTENSION counterx UPDATE; ROLLBACK")?;
    client.batch_execute(
        "BEGIN; ALTER EXTENSION counterx UPDATE; SELECT counter_incr('page:1'); COMMIT",
    )?;
    own.restart(StopMode::Immediate)?;
    let mut client = own.connect_db("whole")?;
    let mut expected = expected_values();
    expected.insert("page:1".to_owned(), "8".to_owned());
    ensure!(values(&mut client)? == expected);
    client.batch_execute("SELECT counter_incr('page:1')")?;
    expected.insert("page:1".to_owned(), "9".to_owned());
    settle(&mut client)?;
    ensure!(values(&mut client)? == expected);
    Ok(())
}

/// What was begun before the update does not see all of what it has moved.
#[test]
fn a_snapshot_of_before_an_update_is_refused() -> Result<()> {
    let mut client = of_0_1_0("snapshots")?;
    let mut old = cluster().connect_db("snapshots")?;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    client.batch_execute("ALTER EXTENSION counterx UPDATE")?;
    for sql in [
        "SELECT counter_value('late:only')",
        "SELECT * FROM counters",
        "SELECT counter_sum('page:')",
        "SELECT * FROM counter_top()",
        "SELECT counter_hold('stock:1', 1, '1 day')",
    ] {
        let error = old
            .batch_execute(&format!("SAVEPOINT s; {sql}"))
            .err()
            .with_context(|| format!("{sql} was answered for a snapshot of before the update"))?;
        ensure!(
            error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE),
            "{sql}: {error:?}"
        );
        old.batch_execute("ROLLBACK TO s")?;
    }
    old.batch_execute("ROLLBACK; SELECT 1")?;
    ensure!(values(&mut old)? == expected_values());
    Ok(())
}

/// Both servers have the new library already: counters are refused on both, until the update on the primary
/// has been replayed. Whichever of them is promoted in between can be updated then.
#[test]
fn a_standby_follows_an_update_or_is_promoted_before_it() -> Result<()> {
    for promoted_first in [false, true] {
        let primary = Cluster::builder().name("primary").start()?;
        primary
            .connect()?
            .batch_execute("CREATE DATABASE rolling")?;
        let mut client = primary.connect_db("rolling")?;
        client.batch_execute("CREATE EXTENSION counterx VERSION '0.1.0'")?;
        fill(&mut client)?;
        let mut standby = Cluster::builder()
            .name("standby")
            .standby_of(&primary)
            .start()?;
        let mut reader = standby.connect_db("rolling")?;
        let error = reader
            .batch_execute("SELECT counter_value('page:1')")
            .err()
            .context("a standby has read objects of 0.1.0")?;
        ensure!(is_older_version(&error), "{error:?}");
        if promoted_first {
            catch_up(&primary, &mut reader)?;
            standby.promote()?;
            reader.batch_execute("ALTER EXTENSION counterx UPDATE")?;
        } else {
            client.batch_execute("ALTER EXTENSION counterx UPDATE")?;
            catch_up(&primary, &mut reader)?;
            // The session that was refused, and a new one.
            ensure!(values(&mut reader)? == expected_values());
            ensure!(values(&mut standby.connect_db("rolling")?)? == expected_values());
            client.batch_execute("SELECT counter_incr('page:1', -7)")?;
            settle(&mut client)?;
            catch_up(&primary, &mut reader)?;
            let value: i64 = reader
                .query_one("SELECT counter_value('page:1')", &[])?
                .get(0);
            ensure!(value == 0, "page:1 is {value} on the standby");
            standby.promote()?;
            reader.batch_execute("SELECT counter_incr('page:1', 7)")?;
        }
        ensure!(values(&mut reader)? == expected_values());
        reader.batch_execute("SELECT counter_incr('page:1')")?;
        settle(&mut reader)?;
        let mut expected = expected_values();
        expected.insert("page:1".to_owned(), "8".to_owned());
        ensure!(values(&mut reader)? == expected);
    }
    Ok(())
}

/// As the documentation has it: in this order no row arrives that the subscriber has no table for. Before,
/// between and after, the subscription brings what it is there for, and no counters.
#[test]
fn a_subscriber_is_updated_before_its_publisher() -> Result<()> {
    let mut there = of_0_1_0("publisher")?;
    let mut here = database("subscriber", Some("0.1.0"), "public")?;
    for client in [&mut there, &mut here] {
        client.batch_execute("CREATE TABLE goods (id int PRIMARY KEY)")?;
    }
    here.batch_execute("INSERT INTO counterx.late VALUES (0, 'own', 5, now(), NULL)")?;
    there.batch_execute("CREATE PUBLICATION updated FOR ALL TABLES")?;
    there.batch_execute("SELECT pg_create_logical_replication_slot('updated', 'pgoutput')")?;
    here.batch_execute(&format!(
        "CREATE SUBSCRIPTION updated CONNECTION 'host={} port={} user=postgres dbname=publisher'
         PUBLICATION updated WITH (create_slot = false)",
        cluster().socket_dir().display(),
        cluster().port()
    ))?;
    const UPDATE: &str = "ALTER EXTENSION counterx UPDATE";
    let steps = [
        (0, "SELECT 1"),
        (1, UPDATE),
        (0, UPDATE),
        (1, "ALTER SUBSCRIPTION updated REFRESH PUBLICATION"),
        (
            0,
            "SELECT counter_incr('page:1'), counter_type_create('new')",
        ),
    ];
    for (id, (side, step)) in (1..).zip(steps) {
        [&mut there, &mut here][side].batch_execute(step)?;
        there.execute("INSERT INTO goods VALUES ($1)", &[&id])?;
        poll_until("a row to arrive", DEADLINE, || {
            let row = here.query_one(
                "SELECT (SELECT apply_error_count + sync_error_count FROM pg_stat_subscription_stats
                         WHERE subname = 'updated'),
                        (SELECT bool_and(srsubstate = 'r') FROM pg_subscription_rel),
                        EXISTS (SELECT FROM goods WHERE id = $1)",
                &[&id],
            )?;
            let errors: i64 = row.get(0);
            ensure!(errors == 0, "the subscription has failed after \"{step}\"");
            Ok(row.get::<_, bool>(1) && row.get::<_, bool>(2))
        })?;
    }
    let own = values(&mut here)?;
    ensure!(
        own == BTreeMap::from([("own".to_owned(), "5".to_owned())]),
        "{own:?}"
    );
    let mut expected = expected_values();
    expected.insert("page:1".to_owned(), "8".to_owned());
    ensure!(values(&mut there)? == expected);
    here.batch_execute("ALTER SUBSCRIPTION updated DISABLE")?;
    here.batch_execute("ALTER SUBSCRIPTION updated SET (slot_name = NONE)")?;
    here.batch_execute("DROP SUBSCRIPTION updated")?;
    poll_until("the slot to be free", DEADLINE, || {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
                   WHERE slot_name = 'updated' AND NOT active";
        Ok(there.execute(sql, &[])? == 1)
    })
}

/// Sessions that have a newer or an older idea of the installation than what is there: they say so.
#[test]
fn library_and_objects_of_other_versions_are_told_apart() -> Result<()> {
    let mut client = database("versions", None, "public")?;
    client.batch_execute("SELECT counter_incr('n')")?;
    // As a session sees an update that it has no library for, warm and new.
    for set_to in ["0.1.0", "0.10.0", "1.0.0-beta"] {
        let mut warm = cluster().connect_db("versions")?;
        warm.batch_execute("SELECT counter_incr('n')")?;
        warm.batch_execute("BEGIN; SELECT counter_incr('n')")?;
        client.batch_execute(&format!(
            "BEGIN; UPDATE pg_extension SET extversion = '{set_to}' WHERE extname = 'counterx';
             ALTER TABLE counterx.anchor SET (autovacuum_enabled = off); COMMIT"
        ))?;
        // What it has counted, and not committed yet, is refused as a whole.
        let mut errors = vec![warm.batch_execute("COMMIT")];
        let mut new = cluster().connect_db("versions")?;
        for sql in [
            "SELECT counter_incr('n')",
            "SELECT counter_value('n')",
            "SELECT * FROM counters",
            "SELECT counter_incr_once('t', 'n')",
            "SELECT counter_type_create('t')",
            "SELECT counterx.compact()",
            "SELECT * FROM counterx.lanes",
        ] {
            errors.push(warm.batch_execute(sql));
            errors.push(new.batch_execute(sql));
        }
        for session in [&mut warm, &mut new] {
            let row =
                session.query_one("SELECT library, objects, hint FROM counterx.version()", &[])?;
            let said: (String, String, String) = (row.get(0), row.get(1), row.get(2));
            let hint = match set_to {
                "0.1.0" => "Run ALTER EXTENSION counterx UPDATE.",
                _ => {
                    "The library is older than the SQL objects of this database: install the newer one."
                }
            };
            let expected = (env!("CARGO_PKG_VERSION"), set_to, hint);
            ensure!((&*said.0, &*said.1, &*said.2) == expected, "{said:?}");
        }
        for (number, result) in errors.into_iter().enumerate() {
            let error = result
                .err()
                .with_context(|| format!("call {number} worked with version {set_to}"))?;
            let error = error.as_db_error().context("no error of the server")?;
            let hint = error.hint().unwrap_or_default();
            ensure!(
                error.code() == &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
                    && error.message().contains(set_to)
                    && error.message().contains(env!("CARGO_PKG_VERSION"))
                    && hint.contains(if set_to == "0.1.0" {
                        "ALTER EXTENSION counterx UPDATE"
                    } else {
                        "reconnect"
                    }),
                "call {number} with version {set_to}: {error:?}"
            );
        }
        client.batch_execute(&format!(
            "BEGIN; UPDATE pg_extension SET extversion = '{}' WHERE extname = 'counterx';
             ALTER TABLE counterx.anchor SET (autovacuum_enabled = off); COMMIT",
            env!("CARGO_PKG_VERSION")
        ))?;
        for session in [&mut warm, &mut new] {
            session.batch_execute("SELECT counter_value('n')")?;
        }
    }
    let count: i64 = client.query_one("SELECT counter_value('n')", &[])?.get(0);
    // Once before, and once for each round: what was refused at commit is not there.
    ensure!(count == 4, "{count}");
    Ok(())
}

/// The same where the update has put other tables in the place of those that a transaction has counted with,
/// as that from 0.1.0 does, and the transaction waits for it at its commit.
#[test]
fn a_transaction_that_an_update_overtakes_hears_of_it() -> Result<()> {
    let mut client = database("overtaken", None, "public")?;
    for call in ["counter_incr('n')", "counter_incr_once('t', 'n')"] {
        let mut counting = cluster().connect_db("overtaken")?;
        let pid: i32 = counting.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        counting.batch_execute(&format!("SELECT {call}; ROLLBACK"))?;
        client.batch_execute(
            "BEGIN; UPDATE pg_extension SET extversion = '1.0.0' WHERE extname = 'counterx';
             DO $$ BEGIN
                 FOR lane IN 0 .. 7 LOOP
                     EXECUTE format('ALTER EXTENSION counterx DROP TABLE counterx.gate_%s', lane);
                     EXECUTE format('DROP TABLE counterx.gate_%s', lane);
                 END LOOP;
             END $$;
             ALTER TABLE counterx.anchor SET (autovacuum_enabled = off)",
        )?;
        let error = std::thread::scope(|scope| -> Result<_> {
            let sql = format!("SELECT {call}");
            let counted = scope.spawn(move || counting.batch_execute(&sql));
            let waited = wait_for_blocked(&mut cluster().connect()?, "the commit", pid);
            client.batch_execute("COMMIT")?;
            let counted = counted.join().map_err(|_| anyhow!("it panicked"))?;
            waited?;
            counted.err().context("it was committed")
        })?;
        let error = error.as_db_error().context("no error of the server")?;
        ensure!(
            error.code() == &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE
                && error.message().contains("1.0.0")
                && error.hint().is_some_and(|hint| hint.contains("reconnect")),
            "{error:?}"
        );
        client.batch_execute("DROP EXTENSION counterx; CREATE EXTENSION counterx")?;
    }
    Ok(())
}
