//! What superusers and their tools do to the extension's own tables by DDL: each operation leaves all
//! right, or is refused with a SQLSTATE and a hint, and when it is undone all is right again.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use counterx_cluster_tests::{
    DEADLINE, check, compact, create_database, folding_hard, names_in_lanes, refused, settle,
    shared,
};
use counterx_harness::{Cluster, poll_until, run};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("ddl")
            .conf("counterx.compaction", "off")
            .start()
    })
}

/// What is due while an operation is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// All works, and is right.
    Works,
    /// Something is refused, and what is not is right.
    Refused,
    /// Folds are refused, and everything else goes on.
    FoldRefused,
}

use Due::{FoldRefused, Refused, Works};

struct Case {
    table: String,
    act: String,
    undo: String,
    due: Due,
}

/// A database with some of everything.
fn prepare(name: &str) -> Result<Client> {
    let mut client = create_database(cluster(), name)?;
    client.batch_execute(
        "CREATE FUNCTION once(token text, name text, delta bigint) RETURNS boolean LANGUAGE plpgsql AS $$
         BEGIN
             IF NOT public.counter_incr_once(token, name, delta) THEN RETURN false; END IF;
             INSERT INTO public.oracle VALUES (name, delta);
             RETURN true;
         END $$;
         CREATE TABLE keys (k bigint PRIMARY KEY, n numeric UNIQUE);
         CREATE TABLE heard (what text);
         CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             INSERT INTO public.heard VALUES (TG_OP || ' ' || TG_TABLE_NAME);
             RETURN NULL;
         END $$;
         CREATE ACCESS METHOD heap2 TYPE TABLE HANDLER heap_tableam_handler;
         SELECT counter_type_create('b', min => 0);
         SELECT bump('x', 1), bump('b:1', 1000000)",
    )?;
    compact(&mut client)?;
    client.batch_execute("SELECT bump('x', 1)")?;
    everything_works(&mut client).context("at first")?;
    Ok(client)
}

/// The log that counter x is written to.
fn log_of_x(client: &mut Client) -> Result<String> {
    for lane in 0..8 {
        let log = format!("log_{lane}_a");
        let sql = format!("SELECT count(*) FROM counterx.{log} WHERE name = 'x'");
        if client.query_one(&sql, &[])?.get::<_, i64>(0) > 0 {
            return Ok(log);
        }
    }
    bail!("counter x is in no log")
}

/// The server's own ways to say no, which have no hint.
const OF_THE_SERVER: [&str; 2] = ["23503", "23505"];

/// An error has to be one that a user can act on.
fn is_decent(error: &postgres::Error) -> Result<String> {
    let db = error
        .as_db_error()
        .ok_or_else(|| anyhow!("the connection is lost: {error}"))?;
    let code = db.code().code();
    ensure!(
        !code.starts_with("XX"),
        "internal error {code}: {}",
        db.message()
    );
    ensure!(
        OF_THE_SERVER.contains(&code) || db.hint().is_some_and(|hint| !hint.is_empty()),
        "{code} without a hint: {}",
        db.message()
    );
    Ok(format!("{code}: {}", db.message()))
}

static NUMBER: AtomicI64 = AtomicI64::new(0);

/// Does everything, and says what was refused. What goes through must be right.
fn exercise(client: &mut Client) -> Result<Vec<(&'static str, String)>> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut refusals = Vec::new();
    let steps: [(&'static str, String); 13] = [
        ("count", "SELECT bump('x', 3), bump('b:1', 1)".to_owned()),
        (
            "prepare",
            format!("BEGIN; SELECT bump('x', 5); PREPARE TRANSACTION 'p{number}';;COMMIT PREPARED 'p{number}'"),
        ),
        (
            "serializable",
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT counter_incr_get('y', 0), bump('x', 1); COMMIT"
                .to_owned(),
        ),
        ("check", String::new()),
        ("fold", "SELECT counterx.compact()".to_owned()),
        ("check", String::new()),
        (
            "token",
            format!(
                "DO $$ BEGIN
                    ASSERT once('t{number}', 'x', 7);
                    ASSERT NOT once('t{number}', 'x', 7);
                 END $$"
            ),
        ),
        (
            "hold",
            "DO $$ DECLARE id bigint; free numeric; BEGIN
                free := available FROM counter_available('b:1');
                id := counter_hold('b:1', 4, '1h');
                ASSERT (SELECT available FROM counter_available('b:1')) = free - 4;
                PERFORM counter_hold_confirm(id);
                INSERT INTO oracle VALUES ('b:1', -4);
                id := counter_hold('b:1', 4, '1h');
                ASSERT counter_hold_release(id);
                ASSERT (SELECT available FROM counter_available('b:1')) = free - 4;
             END $$"
                .to_owned(),
        ),
        (
            "type",
            "SELECT counter_type_create('tmp', min => -1)".to_owned(),
        ),
        (
            "bound",
            "DO $$ BEGIN
                ASSERT NOT EXISTS (SELECT FROM counter_types WHERE name = 'tmp' AND min = -1)
                    OR NOT counter_try_incr('tmp:1', -2);
             END $$"
                .to_owned(),
        ),
        (
            "drop type",
            "DO $$ BEGIN
                IF EXISTS (SELECT FROM counter_types WHERE name = 'tmp') THEN
                    PERFORM counter_type_drop('tmp');
                END IF;
             END $$"
                .to_owned(),
        ),
        (
            "ranks",
            "SELECT counter_top(3), counter_list(), counter_sum('x')".to_owned(),
        ),
        ("check", String::new()),
    ];
    for (step, sql) in steps {
        let refusal = if step == "check" {
            match check(client) {
                Ok(_) => None,
                Err(error) => match error.downcast_ref::<postgres::Error>() {
                    Some(error) => Some(is_decent(error)?),
                    None => return Err(error),
                },
            }
        } else {
            let result = sql
                .split(";;")
                .try_for_each(|sql| client.batch_execute(sql));
            match result {
                Ok(()) => None,
                Err(error) => Some(is_decent(&error).with_context(|| step.to_owned())?),
            }
        };
        if let Some(refusal) = refusal {
            client.batch_execute("ROLLBACK")?;
            refusals.push((step, refusal));
        }
    }
    Ok(refusals)
}

fn everything_works(client: &mut Client) -> Result<()> {
    let refusals = exercise(client)?;
    ensure!(refusals.is_empty(), "{refusals:?}");
    Ok(())
}

impl Case {
    fn run(&self, warm: &mut Client) -> Result<()> {
        for act in self.act.split(";;") {
            warm.batch_execute(act).context("the operation itself")?;
        }
        let refusals = exercise(warm)?;
        match self.due {
            Works => ensure!(refusals.is_empty(), "refused: {refusals:?}"),
            Refused => ensure!(!refusals.is_empty(), "nothing was refused"),
            FoldRefused => ensure!(
                !refusals.is_empty() && refusals.iter().all(|(step, _)| *step == "fold"),
                "{refusals:?}"
            ),
        }
        for undo in self.undo.split(";;") {
            warm.batch_execute(undo).context("undoing it")?;
        }
        everything_works(warm).context("after it was undone")
    }
}

/// A table: a bigint column that is NOT NULL, one that may be null, whether it has names, an index.
struct Table {
    name: String,
    number: &'static str,
    nullable: Option<&'static str>,
    named: bool,
    index: Option<String>,
}

fn tables(log: &str) -> Vec<Table> {
    let table = |name: &str, number, nullable, named, index: Option<&str>| Table {
        name: name.to_owned(),
        number,
        nullable,
        named,
        index: index.map(str::to_owned),
    };
    vec![
        table(
            log,
            "delta",
            Some("uses"),
            true,
            Some(&format!("{log}_epoch_name")),
        ),
        table("late", "delta", Some("uses"), true, None),
        table("token", "delta", Some("value"), true, Some("token_key")),
        table("hold", "amount", None, true, Some("hold_key")),
        table("total", "uses", None, true, Some("total_pkey")),
        table(
            "state",
            "folds",
            Some("last_fold_us"),
            false,
            Some("state_pkey"),
        ),
        table("type", "generation", Some("min"), true, Some("type_pkey")),
    ]
}

fn cases(log: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for table in tables(log) {
        let Table {
            ref name, number, ..
        } = table;
        let t = format!("counterx.{name}");
        let mut case = |due: Due, act: String, undo: String| {
            cases.push(Case {
                table: name.clone(),
                act,
                undo,
                due,
            });
        };
        let folds = matches!(&name[..], "total" | "state");
        let at_calls = matches!(&name[..], "token" | "hold");
        let is_type = name == "type";
        let alter = |action: &str| format!("ALTER TABLE {t} {action}");

        // Columns.
        for added in [
            "int",
            "int DEFAULT 5 NOT NULL",
            "timestamptz DEFAULT now()",
            "int GENERATED ALWAYS AS (1) STORED",
            "bigint GENERATED BY DEFAULT AS IDENTITY",
        ] {
            case(
                Refused,
                alter(&format!("ADD COLUMN extra {added}")),
                alter("DROP COLUMN extra"),
            );
        }
        case(
            Works,
            format!(
                "{};;{}",
                alter("ADD COLUMN e text DEFAULT 'e'"),
                alter("DROP COLUMN e")
            ),
            format!("VACUUM FULL {t}"),
        );
        case(
            Refused,
            alter(&format!("RENAME COLUMN {number} TO other")),
            alter(&format!("RENAME COLUMN other TO {number}")),
        );
        // A view of ours depends on the columns of holds and on some of types.
        if name != "hold" {
            case(
                Refused,
                alter(&format!("ALTER COLUMN {number} TYPE numeric")),
                alter(&format!("ALTER COLUMN {number} TYPE bigint")),
            );
        }
        if table.named && !matches!(&name[..], "hold" | "type") {
            case(
                Refused,
                alter("ALTER COLUMN name TYPE text COLLATE \"POSIX\""),
                alter("ALTER COLUMN name TYPE text COLLATE \"C\""),
            );
            case(
                Refused,
                alter("ALTER COLUMN name TYPE varchar(300) COLLATE \"C\""),
                alter("ALTER COLUMN name TYPE text COLLATE \"C\""),
            );
        }
        case(
            Works,
            alter(&format!("ALTER COLUMN {number} DROP NOT NULL")),
            alter(&format!("ALTER COLUMN {number} SET NOT NULL")),
        );
        if let Some(nullable) = table.nullable
            && !is_type
        {
            // Logs and tokens have nulls there. For a test the rule is all that counts.
            let set_to = |value: &str| {
                format!(
                    "UPDATE pg_attribute SET attnotnull = {value} WHERE attrelid = '{t}'::regclass AND attname = '{nullable}'"
                )
            };
            case(Refused, set_to("true"), set_to("false"));
        }
        case(
            Works,
            alter(&format!("ALTER COLUMN {number} SET DEFAULT 7")),
            alter(&format!("ALTER COLUMN {number} DROP DEFAULT")),
        );
        case(
            Works,
            alter(&format!(
                "ALTER COLUMN {number} SET STATISTICS 10, ALTER COLUMN {number} SET (n_distinct = 5)"
            )),
            alter(&format!(
                "ALTER COLUMN {number} SET STATISTICS -1, ALTER COLUMN {number} RESET (n_distinct)"
            )),
        );
        if !folds && !is_type || name == "state" {
            case(
                Works,
                alter(&format!(
                    "ALTER COLUMN {number} ADD GENERATED ALWAYS AS IDENTITY"
                )),
                alter(&format!("ALTER COLUMN {number} DROP IDENTITY")),
            );
        }
        if table.named {
            // A rewrite gives logs a TOAST table, for good.
            case(
                Works,
                format!(
                    "{};;VACUUM FULL {t}",
                    alter("ALTER COLUMN name SET STORAGE EXTENDED")
                ),
                format!(
                    "{};;VACUUM FULL {t}",
                    alter("ALTER COLUMN name SET STORAGE PLAIN")
                ),
            );
            case(
                Works,
                alter(
                    "ALTER COLUMN name SET STORAGE EXTERNAL, ALTER COLUMN name SET COMPRESSION pglz",
                ),
                alter(
                    "ALTER COLUMN name SET STORAGE EXTENDED, ALTER COLUMN name SET COMPRESSION default",
                ),
            );
        }

        // The table.
        case(Refused, alter("SET UNLOGGED"), alter("SET LOGGED"));
        case(
            Refused,
            alter("SET ACCESS METHOD heap2"),
            alter("SET ACCESS METHOD heap"),
        );
        case(
            Refused,
            alter("RENAME TO elsewhere"),
            format!("ALTER TABLE counterx.elsewhere RENAME TO {name}"),
        );
        case(
            Refused,
            alter("SET SCHEMA public"),
            format!("ALTER TABLE public.{name} SET SCHEMA counterx"),
        );
        case(
            Works,
            alter("OWNER TO other_owner"),
            alter("OWNER TO postgres"),
        );
        case(
            Works,
            alter(
                "SET (fillfactor = 50, toast_tuple_target = 128, user_catalog_table = true, parallel_workers = 2)",
            ),
            alter("RESET (fillfactor, toast_tuple_target, user_catalog_table, parallel_workers)"),
        );
        case(
            Works,
            alter("SET TABLESPACE pg_default"),
            alter("SET WITHOUT OIDS"),
        );
        case(
            Works,
            alter("REPLICA IDENTITY FULL"),
            alter("REPLICA IDENTITY DEFAULT"),
        );
        if at_calls {
            case(
                Works,
                alter(&format!("REPLICA IDENTITY USING INDEX {name}_key")),
                alter("REPLICA IDENTITY NOTHING"),
            );
        }
        if let Some(index) = &table.index {
            case(
                Works,
                alter(&format!("CLUSTER ON {index}")),
                alter("SET WITHOUT CLUSTER"),
            );
            case(
                Works,
                format!("REINDEX TABLE {t}"),
                format!("REINDEX TABLE CONCURRENTLY {t}"),
            );
        }
        case(
            Works,
            format!("CREATE TABLE kid () INHERITS ({t})"),
            "DROP TABLE kid".to_owned(),
        );
        case(
            Works,
            format!("CREATE TABLE parent ();;{}", alter("INHERIT parent")),
            format!("{};;DROP TABLE parent", alter("NO INHERIT parent")),
        );
        case(
            Works,
            format!(
                "CREATE TABLE whole (LIKE {t}) PARTITION BY RANGE ({number});;
                 ALTER TABLE whole ATTACH PARTITION {t} DEFAULT"
            ),
            format!("ALTER TABLE whole DETACH PARTITION {t};;DROP TABLE whole"),
        );
        case(
            Works,
            format!("CREATE STATISTICS stats ON {number}, ({number} + 1) FROM {t};;ANALYZE {t}"),
            "DROP STATISTICS stats".to_owned(),
        );

        // Constraints, policies, rules.
        case(
            Works,
            alter(&format!(
                "ADD CONSTRAINT c CHECK ({number} > -100000000000) NOT VALID;;{}",
                alter("VALIDATE CONSTRAINT c")
            )),
            alter("DROP CONSTRAINT c"),
        );
        // What is written past the executor is not held against a foreign key.
        if !is_type {
            let due = match (folds, at_calls) {
                (true, _) => FoldRefused,
                (_, true) => Refused,
                _ => Works,
            };
            case(
                due,
                alter(&format!(
                    "ADD CONSTRAINT f FOREIGN KEY ({number}) REFERENCES public.keys NOT VALID"
                )),
                alter("DROP CONSTRAINT f"),
            );
        }
        case(
            Works,
            format!(
                "CREATE POLICY p ON {t} USING (false);;{};;{}",
                alter("ENABLE ROW LEVEL SECURITY"),
                alter("FORCE ROW LEVEL SECURITY")
            ),
            format!(
                "{};;{};;DROP POLICY p ON {t}",
                alter("DISABLE ROW LEVEL SECURITY"),
                alter("NO FORCE ROW LEVEL SECURITY")
            ),
        );
        for event in ["INSERT", "UPDATE", "DELETE"] {
            let due = if is_type && event != "UPDATE" {
                Refused
            } else {
                Works
            };
            case(
                due,
                format!("CREATE RULE r AS ON {event} TO {t} DO INSTEAD NOTHING"),
                format!("DROP RULE r ON {t};;DELETE FROM counterx.type WHERE name = 'tmp'"),
            );
        }

        // Triggers.
        let left_alone = if folds { FoldRefused } else { Works };
        case(
            left_alone,
            format!(
                "CREATE TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.hear()"
            ),
            format!("DROP TRIGGER a ON {t}"),
        );
        case(
            Works,
            format!(
                "CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.hear();;{}",
                alter("DISABLE TRIGGER a")
            ),
            format!("DROP TRIGGER a ON {t}"),
        );
        case(
            if at_calls || is_type {
                Refused
            } else {
                left_alone
            },
            format!(
                "CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON {t} FOR EACH ROW EXECUTE FUNCTION public.hear()"
            ),
            format!("DROP TRIGGER a ON {t}"),
        );
        case(
            if at_calls { Refused } else { left_alone },
            format!(
                "CREATE TRIGGER a AFTER INSERT ON {t} REFERENCING NEW TABLE AS n FOR EACH STATEMENT EXECUTE FUNCTION public.hear()"
            ),
            format!("DROP TRIGGER a ON {t}"),
        );
        case(
            left_alone,
            format!(
                "CREATE CONSTRAINT TRIGGER a AFTER INSERT OR DELETE ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.hear();;{}",
                alter("ENABLE ALWAYS TRIGGER a")
            ),
            format!("DROP TRIGGER a ON {t}"),
        );
        case(
            Works,
            alter("DISABLE TRIGGER USER"),
            alter("ENABLE TRIGGER USER"),
        );

        // Indexes.
        for plain in ["btree", "hash", "brin"] {
            case(
                Works,
                format!("CREATE INDEX i ON {t} USING {plain} ({number})"),
                "DROP INDEX counterx.i".to_owned(),
            );
        }
        case(
            Works,
            format!("CREATE INDEX CONCURRENTLY i ON {t} ({number}) INCLUDE ({number})"),
            "DROP INDEX CONCURRENTLY counterx.i".to_owned(),
        );
        for special in [
            format!("({number}) WHERE {number} > 0"),
            format!("(({number} + 1))"),
        ] {
            let due = match (folds, is_type) {
                (true, _) => FoldRefused,
                (_, true) => Works,
                _ => Refused,
            };
            case(
                due,
                format!("CREATE INDEX i ON {t} {special}"),
                "DROP INDEX counterx.i".to_owned(),
            );
        }
        if name == "hold" || folds {
            let (key, due) = match &name[..] {
                "hold" => ("id", Refused),
                "total" => ("name", FoldRefused),
                _ => ("lane", FoldRefused),
            };
            case(
                due,
                alter(&format!(
                    "ADD CONSTRAINT e EXCLUDE USING btree ({key} WITH =)"
                )),
                alter("DROP CONSTRAINT e"),
            );
        }
        if folds {
            let (key, columns) = if name == "total" {
                ("name", "text")
            } else {
                ("lane", "int")
            };
            case(
                FoldRefused,
                format!(
                    "CREATE TABLE refs (k {columns} , g bigint, FOREIGN KEY (k, g) REFERENCES {t})"
                ),
                "DROP TABLE refs".to_owned(),
            );
            case(
                Refused,
                alter(&format!("DROP CONSTRAINT {name}_pkey")),
                alter(&format!("ADD PRIMARY KEY ({key}, gen)")),
            );
        }
        if at_calls {
            let key = if name == "token" { "token" } else { "id" };
            case(
                Refused,
                format!("DROP INDEX counterx.{name}_key"),
                format!("CREATE UNIQUE INDEX {name}_key ON {t} ({key})"),
            );
        }
        if is_type {
            case(
                Works,
                alter("DISABLE TRIGGER type_changed"),
                alter("ENABLE ALWAYS TRIGGER type_changed"),
            );
        }
    }
    cases.push(Case {
        table: "the log's index".to_owned(),
        act: format!("DROP INDEX counterx.{log}_epoch_name"),
        undo: format!("CREATE INDEX {log}_epoch_name ON counterx.{log} (epoch, name)"),
        due: Refused,
    });
    cases.push(Case {
        table: "anchor".to_owned(),
        act:
            "ALTER TABLE counterx.anchor ADD COLUMN a int;;ALTER TABLE counterx.anchor SET UNLOGGED"
                .to_owned(),
        undo: "ALTER TABLE counterx.anchor SET LOGGED;;TRUNCATE counterx.anchor".to_owned(),
        due: Works,
    });
    cases
}

#[test]
fn every_operation_on_our_tables_leaves_all_right_or_is_refused() -> Result<()> {
    let mut client = prepare("operations")?;
    client.batch_execute("CREATE ROLE other_owner; GRANT ALL ON SCHEMA counterx TO other_owner")?;
    let log = log_of_x(&mut client)?;
    let mut wrong = Vec::new();
    let all = cases(&log);
    for case in &all {
        if let Err(error) = case.run(&mut client) {
            wrong.push(format!("{}: {}: {error:#}", case.table, case.act));
            // Whatever it was, the next one begins anew.
            for undo in case.undo.split(";;") {
                let _ = client.batch_execute("ROLLBACK");
                if client.is_closed() {
                    client = cluster().connect_db("operations")?;
                }
                let _ = client.batch_execute(undo);
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
    let heard =
        "SELECT count(DISTINCT what) FROM heard WHERE what ~ '(INSERT|DELETE) hold|INSERT token'";
    ensure!(
        client.query_one(heard, &[])?.get::<_, i64>(0) == 3,
        "triggers were not fired"
    );
    Ok(())
}

/// Sessions that have heard of the extension notice when another version of its objects is installed, by
/// what each update script ends with.
#[test]
fn warm_sessions_notice_an_update_of_the_extension() -> Result<()> {
    let mut warm = create_database(cluster(), "updated")?;
    let mut other = cluster().connect_db("updated")?;
    warm.batch_execute("SELECT counter_incr('x'), counter_value('x')")?;
    let is = "SELECT extversion FROM pg_extension WHERE extname = 'counterx'";
    let version: String = other.query_one(is, &[])?.get(0);
    for (installed, works) in [("0.0.9", false), (&version, true)] {
        other.batch_execute(&format!(
            "UPDATE pg_extension SET extversion = '{installed}' WHERE extname = 'counterx';
             ALTER TABLE counterx.anchor SET (autovacuum_enabled = off)"
        ))?;
        let result = warm.batch_execute("SELECT counter_incr('x')");
        if works {
            result?;
        } else {
            let message = refused(result, &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)?;
            ensure!(message.contains("version 0.0.9"), "{message}");
        }
    }
    Ok(())
}

/// One line in the log, and the reason where operators look.
#[test]
fn worker_says_once_why_lanes_are_left_alone() -> Result<()> {
    let cluster = folding_hard("left-alone").start()?;
    let mut client = create_database(&cluster, "kept")?;
    client.batch_execute(
        "CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    )?;
    let folded = "SELECT coalesce(sum(folds), 0)::bigint FROM counterx.fold_status()";
    for table in ["total", "state"] {
        client.batch_execute("SELECT bump('n' || n, 1) FROM generate_series(1, 100) n")?;
        compact(&mut client)?;
        client.batch_execute(&format!(
            "CREATE TRIGGER heard AFTER UPDATE ON counterx.{table} FOR EACH ROW EXECUTE FUNCTION hear()"
        ))?;
        let before: i64 = client.query_one(folded, &[])?.get(0);
        let since = cluster.log_len();
        poll_until("the reason to be shown", DEADLINE, || {
            client.batch_execute("SELECT bump('n' || n, 1) FROM generate_series(1, 100) n")?;
            let sql = "SELECT last_error FROM counterx.workers";
            let error: Option<String> = client.query_one(sql, &[])?.get(0);
            let reason = format!("0A000: table counterx.{table} has the trigger \"heard\"");
            Ok(error.is_some_and(|error| error.starts_with(&reason))
                && cluster
                    .log_since(since)
                    .contains("all lanes are left alone"))
        })?;
        // All lanes have been tried by then, some more than once.
        let result = client.batch_execute("SELECT counterx.compact()");
        refused(result, &SqlState::FEATURE_NOT_SUPPORTED)?;
        ensure!(
            client.query_one(folded, &[])?.get::<_, i64>(0) == before,
            "something was folded"
        );
        check(&mut client)?;
        let said = cluster.log_since(since);
        let lines = said
            .lines()
            .filter(|line| line.contains("lanes are left alone"))
            .count();
        ensure!(lines == 1, "said {lines} times:\n{said}");
        client.batch_execute(&format!("DROP TRIGGER heard ON counterx.{table}"))?;
        compact(&mut client)?;
        ensure!(
            client.query_one(folded, &[])?.get::<_, i64>(0) > before,
            "nothing was folded"
        );
        check(&mut client)?;
        // By the worker as well, which has its pauses.
        poll_until("the worker to fold", DEADLINE.saturating_mul(2), || {
            client.batch_execute("SELECT bump('n' || n, 1) FROM generate_series(1, 100) n")?;
            let sql = "SELECT bool_and(folded_epoch > epoch - 5) FROM counterx.lanes";
            Ok(client.query_one(sql, &[])?.get::<_, bool>(0))
        })?;
    }
    Ok(())
}

/// One lane whose log cannot be read does not keep the worker from the others, nor from making room for other
/// databases, nor anybody from dropping the database.
#[test]
fn worker_goes_on_where_one_lane_cannot_be_read() -> Result<()> {
    let cluster = folding_hard("one-lane")
        .conf("counterx.max_workers", "1")
        .start()?;
    let mut client = create_database(&cluster, "broken")?;
    let names = names_in_lanes(&mut client)?;
    let mut other = create_database(&cluster, "other")?;
    client.execute("SELECT bump($1, 1)", &[&names[3]])?;
    // Up to the first switch this one is written to.
    let log = "log_3_a";
    client.batch_execute(&format!("DROP INDEX counterx.{log}_epoch_name"))?;
    let folds =
        "SELECT coalesce(sum(folds), 0)::bigint FROM counterx.fold_status() WHERE lane <> 3";
    let before: i64 = client.query_one(folds, &[])?.get(0);
    // What is committed there keeps it busy, and the other one is to have its turn all the same.
    poll_until("the other lanes to be folded", DEADLINE, || {
        for (lane, name) in names.iter().enumerate() {
            if lane != 3 {
                client.execute("SELECT bump($1, 1)", &[name])?;
            }
        }
        other.batch_execute("SELECT bump('x', 1)")?;
        let sql = "SELECT last_error FROM counterx.workers";
        let error: Option<String> = client.query_one(sql, &[])?.get(0);
        let after: i64 = client.query_one(folds, &[])?.get(0);
        Ok(after > before + 14 && error.is_some())
    })?;
    settle(&mut other)?;
    client.batch_execute(&format!(
        "CREATE INDEX {log}_epoch_name ON counterx.{log} (epoch, name)"
    ))?;
    poll_until("the lane to be folded", DEADLINE.saturating_mul(2), || {
        client.execute("SELECT bump($1, 1)", &[&names[3]])?;
        let sql = "SELECT folded_epoch > epoch - 5 FROM counterx.lanes WHERE lane = 3";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    check(&mut client)?;
    client.execute("SELECT bump($1, 1)", &[&names[3]])?;
    client.batch_execute(&format!("DROP INDEX counterx.{log}_epoch_name"))?;
    drop(client);
    let mut admin = cluster.connect()?;
    poll_until("the database to be dropped", DEADLINE, || {
        match admin.batch_execute("DROP DATABASE broken") {
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => Ok(false),
            done => Ok(done.map(|()| true)?),
        }
    })?;
    Ok(())
}

/// What clients do while tables are repacked: each call beside a row of an ordinary table.
const REPACKED_LOAD: &str = r"
    CREATE TABLE used (token text, amount bigint);
    CREATE TABLE held (id bigint, name text, amount bigint);
    CREATE FUNCTION once(token text, name text, delta bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT public.counter_incr_once(token, name, delta) THEN RETURN false; END IF;
        INSERT INTO public.oracle VALUES (name, delta);
        INSERT INTO public.used VALUES (token, delta);
        RETURN true;
    END $$;
    CREATE FUNCTION hold(name text, amount bigint, confirm boolean) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        id bigint := public.counter_hold(name, amount, '1h');
    BEGIN
        IF confirm THEN
            PERFORM public.counter_hold_confirm(id);
            INSERT INTO public.oracle VALUES (name, -amount);
        ELSE
            INSERT INTO public.held VALUES (id, name, amount);
        END IF;
    END $$;
    CREATE FUNCTION release() RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        old record;
    BEGIN
        DELETE FROM public.held WHERE ctid = (SELECT ctid FROM public.held LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING * INTO old;
        IF old.id IS NOT NULL AND NOT public.counter_hold_release(old.id) THEN
            RAISE 'hold % is lost', old.id;
        END IF;
    END $$;
    SELECT counter_type_create('b', min => 0);
    SELECT bump('b:' || n, 1000000) FROM generate_series(1, 3) n;
";

fn repacked_client(config: &postgres::Config, number: u64, done: &AtomicBool) -> Result<u64> {
    let mut client = config.connect(NoTls)?;
    let mut round = 0;
    while !done.load(Ordering::Relaxed) {
        round += 1;
        let token = format!("{number}:{round}");
        let name = format!("n{}", round % 30);
        client.query("SELECT bump($1, 3), bump('hot', 1)", &[&name])?;
        let sql = "SELECT once($1, 'tokens', 7)";
        ensure!(
            client.query_one(sql, &[&token])?.get::<_, bool>(0),
            "{token} was used before"
        );
        // One of long ago, and this one.
        for used in [round / 2, round] {
            if used > 0 {
                let again = client.query_one(sql, &[&format!("{number}:{used}")])?;
                ensure!(
                    !again.get::<_, bool>(0),
                    "token {number}:{used} was used twice"
                );
            }
        }
        let name = format!("b:{}", round % 3 + 1);
        let confirm = round % 3 != 0;
        client.query("SELECT hold($1, 2, $2)", &[&name, &confirm])?;
        if round % 5 == 0 {
            client.query("SELECT release()", &[])?;
            let gid = format!("p{number}-{round}");
            client.batch_execute(&format!(
                "BEGIN; SELECT bump('prepared', 1); PREPARE TRANSACTION '{gid}'"
            ))?;
            client.batch_execute(&format!("COMMIT PREPARED '{gid}'"))?;
        }
    }
    Ok(round)
}

/// Everything against the ordinary tables.
fn nothing_is_lost(client: &mut Client) -> Result<()> {
    check(client)?;
    let row = client.query_one(
        "SELECT (SELECT count(*) FROM used u FULL JOIN counterx.token t USING (token)
                  WHERE u.amount IS DISTINCT FROM t.delta),
                (SELECT count(*) FROM held h FULL JOIN counter_holds c USING (id)
                  WHERE h.name IS DISTINCT FROM c.name OR h.amount IS DISTINCT FROM c.amount),
                (SELECT count(*) FROM used), (SELECT count(*) FROM held)",
        &[],
    )?;
    let [tokens, holds, used, held] = [0, 1, 2, 3].map(|at| row.get::<_, i64>(at));
    ensure!(tokens == 0, "{tokens} of {used} tokens are wrong");
    ensure!(holds == 0, "{holds} of {held} holds are wrong");
    Ok(())
}

/// pg_repack copies a table and applies what its trigger has noted meanwhile: what is written past that
/// trigger is lost, and folded twice.
#[test]
fn pg_repack_of_the_whole_database_under_load_loses_nothing() -> Result<()> {
    let cluster = folding_hard("repacked").start()?;
    if fs::metadata(cluster.bin_dir().join("pg_repack")).is_err() {
        eprintln!("no pg_repack for this PostgreSQL: nothing is tried");
        return Ok(());
    }
    let mut client = create_database(&cluster, "repacked")?;
    client.batch_execute("CREATE EXTENSION pg_repack")?;
    client.batch_execute(REPACKED_LOAD)?;
    compact(&mut client)?;
    let files =
        "SELECT array_agg(pg_relation_filenode(c.oid)::bigint ORDER BY c.relname) FROM pg_class c
                  WHERE c.relnamespace = 'counterx'::regnamespace
                    AND c.relname IN ('total', 'state', 'token', 'hold', 'type')";
    let config = cluster.config("repacked");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (config, done) = (&config, &done);
        let clients: Vec<_> = (0..4)
            .map(|number| scope.spawn(move || repacked_client(config, number, done)))
            .collect();
        let repacked = (|| {
            for _ in 0..4 {
                let before: Vec<i64> = client.query_one(files, &[])?.get(0);
                let output = run(cluster.tool("pg_repack").args(["--dbname", "repacked"]))?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(!said.contains("ERROR"), "{said}");
                let after: Vec<i64> = client.query_one(files, &[])?.get(0);
                ensure!(
                    before.len() == 5 && before.iter().all(|file| !after.contains(file)),
                    "not all tables were repacked:\n{said}"
                );
                compact(&mut client)?;
                nothing_is_lost(&mut client)?;
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        for client in clients {
            let rounds = client.join().map_err(|_| anyhow!("a client panicked"))??;
            ensure!(rounds > 20, "a client came to {rounds} rounds");
        }
        repacked
    })?;
    compact(&mut client)?;
    nothing_is_lost(&mut client)
}

/// A hold is looked at, and removed some time later: its row may have been moved in between.
#[test]
fn hold_that_is_confirmed_is_the_one_that_goes_wherever_its_row_was_moved() -> Result<()> {
    // What a paused process waits for: see the engine's `failpoint.rs`.
    const PAUSE_KEY: i64 = 0x636e_7478;
    let mut client = create_database(cluster(), "moved")?;
    let has = "SELECT current_setting('counterx.failpoint', true) IS NOT NULL";
    if !client.query_one(has, &[])?.get::<_, bool>(0) {
        return Ok(());
    }
    for sql in [
        "SELECT counter_type_create('b', min => 0)",
        "SELECT counter_incr('b:1', 100)",
        "SELECT counter_hold('b:1', n, '1h') FROM generate_series(1, 3) n",
        "SELECT counter_hold_release(1)",
    ] {
        client.batch_execute(sql)?;
    }
    let mut holder = cluster().connect_db("moved")?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    let mut confirming = cluster().connect_db("moved")?;
    confirming.batch_execute("SET counterx.failpoint = 'hold.reserved=pause'")?;
    thread::scope(|scope| {
        let confirmed =
            scope.spawn(move || confirming.batch_execute("SELECT counter_hold_confirm(2)"));
        poll_until("the call to stop", DEADLINE, || {
            let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = 'moved'
                        AND wait_event_type = 'Lock' AND query LIKE '%confirm(2)')";
            Ok(client.query_one(sql, &[])?.get::<_, bool>(0))
        })?;
        client.batch_execute("VACUUM FULL counterx.hold")?;
        holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
        confirmed
            .join()
            .map_err(|_| anyhow!("a client panicked"))??;
        anyhow::Ok(())
    })?;
    let sql = "SELECT array_agg(id ORDER BY id), counter_value('b:1') FROM counter_holds";
    let row = client.query_one(sql, &[])?;
    let (ids, value): (Vec<i64>, i64) = (row.get(0), row.get(1));
    ensure!(ids == [3] && value == 98, "holds {ids:?}, value {value}");
    Ok(())
}
