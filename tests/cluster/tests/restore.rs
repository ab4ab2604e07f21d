//! Restores onto what is in use. No statement that is acknowledged after any restore, in any order,
//! whatever its errors, is invisible; nothing is oversold; and the lanes are folded again.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Recovering, catch_up, create_database, footprint, names_in_lanes, refused, settle,
    shared,
};
use counterx_harness::{Cluster, poll_until, run};
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("restore")
            .conf("counterx.compaction_interval", "50ms")
            .start()
    })
}

/// A file with the dump of a database.
fn dump(db: &str, arguments: &[&str]) -> Result<String> {
    dump_of(cluster(), db, arguments)
}

fn dump_of(cluster: &Cluster, db: &str, arguments: &[&str]) -> Result<String> {
    let name = format!("{db}{}.dump", arguments.concat().replace(['/', ' '], ""));
    let file = cluster.directory().join(name);
    let file = file.to_str().context("odd path")?.to_owned();
    run(cluster
        .tool("pg_dump")
        .args(arguments)
        .args(["--file", &file, db]))?;
    Ok(file)
}

/// Lets psql go on after errors, and returns what it said.
fn restore(db: &str, file: &str, arguments: &[&str]) -> Result<String> {
    let output = cluster()
        .tool("psql")
        .args(["-Xq", "-d", db, "-f", file])
        .args(arguments)
        .output()?;
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

/// The counters of the oracle have its values; there are others as well.
fn check(client: &mut Client) -> Result<()> {
    let sql = "SELECT string_agg(name || '=' || counter_value(name) || ', not ' || value, ' ')
                 FROM (SELECT name, sum(delta) AS value FROM oracle GROUP BY name) o
                WHERE counter_value(name) <> value";
    let wrong: Option<String> = client.query_one(sql, &[])?.get(0);
    ensure!(wrong.is_none(), "{wrong:?}");
    Ok(())
}

/// A database that has counted, folded, and sold out but for one mug.
fn shop(db: &str) -> Result<Client> {
    let mut client = create_database(cluster(), db)?;
    client.batch_execute(
        "CREATE TABLE ev (id int);
         SELECT counter_type_create('stock', min => 0)",
    )?;
    for name in names_in_lanes(&mut client)? {
        client.execute("SELECT bump($1, 10)", &[&name])?;
    }
    client.batch_execute("SELECT counter_incr('stock:mug', 1), counter_incr('stock:cup', 2)")?;
    client.batch_execute(
        "SELECT counter_hold('stock:cup', 1, '1 hour'), counter_hold('stock:cup', 1, '1 hour')",
    )?;
    settle(&mut client)?;
    Ok(client)
}

/// The lanes go on: what is counted now is visible, and folded; one mug is sold once.
fn goes_on(db: &str) -> Result<()> {
    // Of a session that was never here, too.
    let mut client = cluster().connect_db(db)?;
    let names = names_in_lanes(&mut client)?;
    for name in &names {
        let before = value(&mut client, name)?;
        client.execute("SELECT bump($1, 1)", &[name])?;
        let after = value(&mut cluster().connect_db(db)?, name)?;
        ensure!(after == before + 1, "{name} is {after} after {before}");
    }
    let mut sold = 0;
    for _ in 0..7 {
        let row = client.query_one("SELECT counter_try_incr('stock:mug', -1)", &[])?;
        sold += i64::from(row.get::<_, bool>(0));
    }
    ensure!(sold == 1, "one mug was sold {sold} times");
    ensure!(value(&mut client, "stock:mug")? == 0);
    settle(&mut client)?;
    ensure!(value(&mut client, "stock:mug")? == 0);
    // The sequence of holds may have been set back.
    client.batch_execute("SELECT counter_incr('stock:cup', 2)")?;
    client.batch_execute(
        "SELECT counter_hold('stock:cup', 1, '1 hour'), counter_hold('stock:cup', 1, '1 hour')",
    )?;
    Ok(())
}

/// As `CREATE EXTENSION` and nothing else leaves it.
fn empty(db: &str) -> Result<()> {
    cluster()
        .connect()?
        .batch_execute(&format!("CREATE DATABASE {db}"))?;
    let sql = "CREATE EXTENSION counterx; CREATE TABLE ev (id int)";
    Ok(cluster().connect_db(db)?.batch_execute(sql)?)
}

#[test]
fn data_of_an_empty_database_restored_onto_one_in_use_changes_nothing() -> Result<()> {
    empty("emp")?;
    let file = dump("emp", &["--data-only"])?;
    let mut client = shop("onto_used")?;
    let errors = restore("onto_used", &file, &["-1", "-v", "ON_ERROR_STOP=1"])?;
    ensure!(errors.is_empty(), "{errors}");
    check(&mut client)?;
    goes_on("onto_used")?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn whole_dump_of_an_empty_database_restored_onto_one_in_use_changes_nothing() -> Result<()> {
    empty("emp_whole")?;
    let file = dump("emp_whole", &[])?;
    let mut client = shop("onto_used_whole")?;
    let errors = restore("onto_used_whole", &file, &[])?;
    ensure!(
        errors.contains("relation \"ev\" already exists"),
        "{errors}"
    );
    check(&mut client)?;
    goes_on("onto_used_whole")?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn dump_restored_a_second_time_is_refused_as_a_whole() -> Result<()> {
    let mut client = shop("twice")?;
    // Pending, and never folded.
    client.batch_execute("ALTER DATABASE twice SET counterx.compaction = off")?;
    let mut client_later = cluster().connect_db("twice")?;
    client_later.batch_execute("SELECT bump('pending', 5), bump('pending too', 6)")?;
    let file = dump("twice", &["--data-only"])?;
    for _ in 0..2 {
        let errors = restore("twice", &file, &[])?;
        ensure!(errors.contains("exists already"), "{errors}");
        ensure!(value(&mut client, "pending")? == 5);
    }
    client.batch_execute("ALTER DATABASE twice RESET counterx.compaction")?;
    goes_on("twice")?;
    Ok(())
}

/// A dump may come in parts, and with the triggers out of the way: then it is added.
#[test]
fn values_are_added_where_triggers_are_disabled() -> Result<()> {
    let mut client = shop("source")?;
    client.batch_execute("SELECT bump('only there', 4)")?;
    // The user's table has no key, so its rows are added like the counters' values.
    let file = dump("source", &["--data-only", "--disable-triggers"])?;
    let mut client = shop("disabled")?;
    let before = value(&mut client, "only there")?;
    let errors = restore("disabled", &file, &[])?;
    // Types have a key; nothing else is in the way.
    ensure!(errors.contains("type_pkey"), "{errors}");
    ensure!(value(&mut client, "only there")? == before + 4);
    check(&mut client)?;
    // Two mugs now, one of each database.
    ensure!(value(&mut client, "stock:mug")? == 2);
    ensure!(
        client
            .query_one("SELECT counter_try_incr('stock:mug', -1)", &[])?
            .get::<_, bool>(0)
    );
    goes_on("disabled")?;
    Ok(())
}

/// Rows of another database's engine, past the triggers that refuse them: as older dumps have them, or
/// as somebody does it by hand. Sessions that know the lanes already are not led astray.
#[test]
fn gates_are_lifted_above_what_was_brought_in_by_force() -> Result<()> {
    let mut warm = shop("force")?;
    let mut client = cluster().connect_db("force")?;
    let names = names_in_lanes(&mut client)?;
    client.batch_execute("ALTER DATABASE force SET counterx.compaction = off")?;
    // Deltas of epochs that are not there yet; and a state that says that they are folded.
    client.batch_execute(
        "ALTER TABLE counterx.log_3_a DISABLE TRIGGER ALL; ALTER TABLE counterx.state DISABLE TRIGGER ALL;",
    )?;
    client.execute(
        "INSERT INTO counterx.log_3_a SELECT gate / 2 + 1000, now(), 50, $1 FROM counterx.gate_3",
        &[&names[3]],
    )?;
    client.batch_execute(
        "UPDATE counterx.state SET folded_epoch = folded_epoch + 5000 WHERE lane = 4;
         ALTER TABLE counterx.log_3_a ENABLE TRIGGER ALL; ALTER TABLE counterx.state ENABLE TRIGGER ALL;",
    )?;
    client.execute("INSERT INTO oracle VALUES ($1, 50)", &[&names[3]])?;
    for client in [&mut warm, &mut cluster().connect_db("force")?] {
        for name in &names {
            client.execute("SELECT bump($1, 1)", &[name])?;
        }
        check(client)?;
    }
    client.batch_execute("ALTER DATABASE force RESET counterx.compaction")?;
    goes_on("force")?;
    check(&mut client)?;
    Ok(())
}

/// The owner of a database is no superuser, and makes the nightly dumps. Who installs the extension for
/// the copy is.
#[test]
fn owner_of_the_database_dumps_and_restores() -> Result<()> {
    let mut admin = cluster().connect()?;
    for sql in [
        "CREATE ROLE keeper LOGIN",
        "CREATE DATABASE kept OWNER keeper",
        "CREATE DATABASE kept_copy OWNER keeper",
    ] {
        admin.batch_execute(sql)?;
    }
    cluster().connect_db("kept")?.batch_execute(
        "CREATE EXTENSION counterx; SELECT counter_type_create('stock', min => 0)",
    )?;
    let as_keeper = |db: &str| -> Result<Client> {
        let mut config = cluster().config(db);
        Ok(config.user("keeper").connect(postgres::NoTls)?)
    };
    let mut keeper = as_keeper("kept")?;
    keeper.batch_execute(
        "CREATE TABLE mine (id int); INSERT INTO mine VALUES (1);
         SELECT counter_incr('likes:1', 5), counter_incr('stock:a', 3), counter_incr_once('t', 'likes:2', 6)",
    )?;
    keeper.batch_execute("SELECT counter_hold('stock:a', 1, '1 hour')")?;
    let file = dump("kept", &["--username=keeper", "--format=custom"])?;
    cluster()
        .connect_db("kept_copy")?
        .batch_execute("CREATE EXTENSION counterx")?;
    run(cluster().tool("pg_restore").args([
        "--exit-on-error",
        "--no-comments",
        "--username=keeper",
        "--dbname=kept_copy",
        &file,
    ]))?;
    let sql = "SELECT string_agg(name || '=' || value, ' ' ORDER BY name),
                      (SELECT string_agg(name || '=' || min, ' ') FROM counter_types),
                      (SELECT count(*) FROM counter_holds), (SELECT count(*) FROM mine),
                      counter_incr_once('t', 'likes:2', 6)
                 FROM counters";
    let mut copy = as_keeper("kept_copy")?;
    let row = copy.query_one(sql, &[])?;
    ensure!(row.get::<_, &str>(0) == "likes:1=5 likes:2=6 stock:a=3");
    ensure!(row.get::<_, &str>(1) == "stock=0");
    ensure!((row.get::<_, i64>(2), row.get::<_, i64>(3)) == (1, 1));
    ensure!(!row.get::<_, bool>(4), "the token was forgotten");
    let hold: i64 = copy
        .query_one("SELECT counter_hold('stock:a', 1, '1 hour')", &[])?
        .get(0);
    ensure!(hold == 2, "the second hold is {hold}");
    // That is all that the owner may do there.
    refused(
        copy.batch_execute("TRUNCATE counterx.late"),
        &SqlState::INSUFFICIENT_PRIVILEGE,
    )?;
    Ok(())
}

/// Lanes follow from the bytes of a name, which are others in another encoding.
#[test]
fn dump_is_right_in_a_database_of_another_encoding() -> Result<()> {
    let create = |db: &str, encoding: &str| {
        let sql =
            format!("CREATE DATABASE {db} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        cluster().connect()?.batch_execute(&sql)?;
        cluster().connect_db(db)
    };
    let mut latin = create("latin", "LATIN1")?;
    latin.batch_execute(
        "ALTER DATABASE latin SET counterx.compaction = off;
         CREATE EXTENSION counterx;
         SELECT counter_type_create('caf', min => 0)",
    )?;
    let mut latin = cluster().connect_db("latin")?;
    latin.batch_execute(
        "SELECT counter_incr('caf:' || chr(233) || n, n) FROM generate_series(1, 40) n;
         SELECT counterx.compact();
         SELECT counter_incr('caf:' || chr(233) || n, n) FROM generate_series(21, 60) n",
    )?;
    let expected = "SELECT count(*) FROM generate_series(1, 60) n
                     WHERE counter_value('caf:' || chr(233) || n) = CASE WHEN n BETWEEN 21 AND 40 THEN 2 * n ELSE n END";
    ensure!(latin.query_one(expected, &[])?.get::<_, i64>(0) == 60);
    let file = dump("latin", &[])?;
    let mut utf8 = create("utf8", "UTF8")?;
    let errors = restore("utf8", &file, &["-v", "ON_ERROR_STOP=1"])?;
    ensure!(errors.is_empty(), "{errors}");
    for fold in [false, true] {
        if fold {
            utf8.batch_execute("SELECT counterx.compact()")?;
        }
        let right: i64 = utf8.query_one(expected, &[])?.get(0);
        ensure!(right == 60, "{right} of 60 are right");
        let sold = "SELECT counter_try_incr('caf:' || chr(233) || 1, -2)";
        ensure!(!utf8.query_one(sold, &[])?.get::<_, bool>(0));
    }
    Ok(())
}

/// A dump's snapshot is older than its locks. On a standby, a fold and its truncation may be replayed in
/// between: such a dump fails, instead of leaving counters out.
#[test]
fn dump_of_a_standby_that_has_lost_what_it_needs_fails() -> Result<()> {
    let primary = Cluster::builder()
        .name("dumped-primary")
        .conf("counterx.compaction", "off")
        .conf("counterx.log_max_size", "64kB")
        .conf("autovacuum", "off")
        .conf("wal_level", "logical")
        .start()?;
    let mut client = create_database(&primary, "far")?;
    // Keeps the server's own tables from being cleaned up: a standby that replays that ends the snapshot.
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('keeps_catalogs', 'pgoutput')")?;
    client.batch_execute("SELECT bump('n:' || n, n) FROM generate_series(1, 16) n")?;
    let standby = Cluster::builder()
        .name("dumped-standby")
        .standby_of(&primary)
        .conf("hot_standby_feedback", "off")
        .conf("max_standby_streaming_delay", "2s")
        .start()?;
    let mut reader = Recovering::new(&standby.config("far"));
    poll_until("a dump that lacks what was truncated", DEADLINE, || {
        catch_up(&primary, reader.client()?)?;
        let mut snapshot = standby.connect_db("far")?;
        snapshot.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
        let id: String = snapshot
            .query_one("SELECT pg_export_snapshot()", &[])?
            .get(0);
        let snapshot_argument = format!("--snapshot={id}");
        let arguments = ["--data-only", snapshot_argument.as_str()];
        // What the snapshot sees is right as long as nothing was truncated.
        dump_of(&standby, "far", &arguments)?;
        truncate_a_log(&mut client)?;
        catch_up(&primary, reader.client()?)?;
        let error = dump_of(&standby, "far", &arguments)
            .err()
            .context("the dump left counters out")?;
        let error = format!("{error:#}");
        // Replay may have had to clean up something else that the snapshot still saw.
        let conflict = ["conflict with recovery", "invalid snapshot identifier"];
        let truncated = error.contains("truncated");
        ensure!(
            truncated || conflict.iter().any(|text| error.contains(text)),
            "another error: {error}"
        );
        Ok(truncated)
    })?;
    // The next one has a snapshot of its own.
    catch_up(&primary, reader.client()?)?;
    let file = dump_of(&standby, "far", &["--data-only"])?;
    let text = std::fs::read_to_string(file)?;
    ensure!(text.contains("n:16\t16\t"), "{text}");
    Ok(())
}

/// One log, and not much more than that is done: a standby waits where something is cleaned up that a
/// snapshot still sees.
fn truncate_a_log(client: &mut Client) -> Result<()> {
    let before = footprint(client)?.truncated;
    client.batch_execute(
        "DO $$ BEGIN
            FOR n IN 1 .. 400 LOOP PERFORM counter_incr('long' || repeat('.', 240)); COMMIT; END LOOP;
         END $$",
    )?;
    poll_until("a log to be truncated", DEADLINE, || {
        client.batch_execute("SELECT counterx.compact()")?;
        Ok(footprint(client)?.truncated > before)
    })
}
