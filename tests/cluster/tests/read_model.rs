//! `docs/recipes/read-model.md` beside loads: the table that its functions keep, with consumers that roll back,
//! are killed and meet each other, and a stream that is lost; and what `pg_recvlogical` prints when it is called
//! as the page has it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, Outcome, blocks, compact, create_bare_database, folding_hard, is_lost,
    page, shared, together,
};
use counterx_harness::{Cluster, poll_until, run};
use postgres::Client;
use postgres::error::SqlState;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const PAGE: &str = "recipes/read-model.md";

fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("read-model")
            .conf("wal_level", "logical")
            .start()
    })
}

const PROJECTS: i64 = 12;

fn work(db: &str, load: &Load, number: u64, control: &Control) -> Result<Outcome> {
    tasks(db, load, number, control).inspect_err(|_| control.abort())
}

/// Transactions that let tasks come, and be done; some roll back.
fn tasks(db: &str, load: &Load, number: u64, control: &Control) -> Result<Outcome> {
    let mut random = StdRng::seed_from_u64(load.seed + number);
    let mut client = cluster().connect_db(db)?;
    let mut outcome = Outcome::default();
    for _ in 0..load.transactions {
        if control.is_aborted() {
            break;
        }
        let mut transaction = client.transaction()?;
        for _ in 0..random.random_range(1..4) {
            let project = random.random_range(0..PROJECTS);
            let (open, done) = [(3, 0), (-1, 1)][random.random_range(0..2)];
            transaction.execute(
                "SELECT counter_incr_many(ARRAY[counter_name('tasks', $1::bigint, 'open'), counter_name('tasks', $1, 'done')], ARRAY[$2::bigint, $3])",
                &[&project, &i64::from(open), &i64::from(done)],
            )?;
        }
        if random.random_bool(0.1) {
            transaction.rollback()?;
        } else {
            transaction.commit()?;
        }
        outcome.done += 1;
        control.count();
    }
    Ok(outcome)
}

/// A consumer, until the load is over. Returns how many steps it took.
fn follow(db: &str, load: &Load, control: &Control) -> Result<u64> {
    let mut random = StdRng::seed_from_u64(load.seed);
    let mut steps = 0;
    'connection: while !control.is_over() {
        let mut client = cluster().connect_db(db)?;
        while !control.is_over() {
            let roll_back = random.random_bool(0.2);
            let end = (|| -> Result<(), postgres::Error> {
                let mut transaction = client.transaction()?;
                transaction.query("SELECT progress_step()", &[])?;
                if roll_back {
                    transaction.rollback()
                } else {
                    transaction.commit()
                }
            })();
            match end {
                Ok(()) => steps += 1,
                // The other one is at it.
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {}
                Err(error) => {
                    let error = error.into();
                    if is_lost(&error) {
                        continue 'connection;
                    }
                    return Err(error).context("a step");
                }
            }
        }
    }
    Ok(steps)
}

/// Projects that differ between the table and the counters, after the table has caught up.
fn differences(client: &mut Client) -> Result<Vec<String>> {
    compact(client)?;
    poll_until("the table to catch up", DEADLINE, || {
        let rows: i64 = client.query_one("SELECT progress_step()", &[])?.get(0);
        Ok(rows == 0)
    })?;
    let sql = "SELECT format('%s: %s %s, counted %s %s', project, p.open, p.done, c.open, c.done)
         FROM project_progress p FULL JOIN (
             SELECT (counter_parts(name))[1]::bigint AS project,
                    coalesce(sum(value) FILTER (WHERE name LIKE '%:open'), 0) AS open,
                    coalesce(sum(value) FILTER (WHERE name LIKE '%:done'), 0) AS done
             FROM counters WHERE name LIKE 'tasks:%' GROUP BY 1
         ) c USING (project)
         WHERE (coalesce(p.open, 0), coalesce(p.done, 0)) <> (coalesce(c.open, 0), coalesce(c.done, 0))";
    Ok((client.query(sql, &[])?.iter())
        .map(|row| row.get(0))
        .collect())
}

#[test]
fn table_is_in_step() -> Result<()> {
    let db = "in_step";
    let mut client = create_bare_database(cluster(), db)?;
    let page = blocks(&page(PAGE)?);
    for block in &page[..2] {
        client.batch_execute(&block.sql)?;
    }
    let load = Load {
        clients: 4,
        transactions: 300,
        // Two consumers.
        checkers: 2,
        ..Load::default()
    };
    let watched = together(
        &load,
        |number, control| work(db, &load, number, control),
        |control| follow(db, &load, control),
        |control| {
            control.wait_for_share(0.3)?;
            client.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = current_database() AND query LIKE '%progress_step%' AND pid <> pg_backend_pid()",
                &[],
            )?;
            control.wait_for_share(0.5)?;
            // The stream is lost, and begins again by itself.
            client.execute("SELECT counterx.drop_all_counters()", &[])?;
            Ok(())
        },
    )?;
    ensure!(watched.checks > 0, "nobody followed");
    // The load may have been over when all was dropped.
    client.execute(
        "SELECT counter_incr(counter_name('tasks', 1::bigint, 'open'), 3)",
        &[],
    )?;
    let different = differences(&mut client)?;
    ensure!(different.is_empty(), "{different:#?}");
    // It can fail.
    client.execute("UPDATE project_progress SET open = open + 1 WHERE project = (SELECT min(project) FROM project_progress)", &[])?;
    ensure!(differences(&mut client)?.len() == 1);
    Ok(())
}

/// The shell commands of the page, block by block.
fn commands() -> Result<Vec<String>> {
    let text = page(PAGE)?;
    let after = text.split("\n```sh\n").skip(1);
    after
        .map(|rest| {
            let (block, _) = rest.split_once("\n```\n").context("an open block")?;
            Ok(block.to_owned())
        })
        .collect()
}

/// bash, as the server's user, with PostgreSQL's programs in its path.
fn bash(script: &str) -> Command {
    let cluster = cluster();
    let mut command = Command::new("bash");
    cluster.set_environment(&mut command);
    cluster.set_user(&mut command);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{}:{path}", cluster.bin_dir().display()))
        .current_dir(cluster.directory())
        .args(["-e", "-c", script]);
    command
}

/// Ends with the test, whatever becomes of that.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What follows `column[type]:` in a line of `test_decoding`.
fn column<'a>(line: &'a str, column: &str) -> Result<&'a str> {
    let (_, rest) = (line.split_once(&format!(" {column}[")))
        .with_context(|| format!("no {column} in {line}"))?;
    let (_, value) = rest.split_once("]:").context("no value")?;
    if let Some(text) = value.strip_prefix('\'') {
        return Ok(text.split_once('\'').context("an open string")?.0);
    }
    Ok(value.split(' ').next().unwrap_or_default())
}

/// What was decoded of each counter: the sum of the deltas, and the last value.
fn decoded(text: &str) -> Result<BTreeMap<String, (i64, i64)>> {
    let mut all = BTreeMap::new();
    // The last line may not be there as a whole.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    for line in whole.lines() {
        // Others are the extension's own, as the page says.
        if !line.starts_with("table counterx.change_") {
            continue;
        }
        let name = column(line, "name")?;
        ensure!(
            name.starts_with("tasks:") && line.contains(": INSERT: "),
            "this is published: {line}"
        );
        let (sum, last) = all.entry(name.to_owned()).or_insert((0, 0));
        *sum += column(line, "delta")?.parse::<i64>()?;
        *last = column(line, "value")?.parse()?;
    }
    Ok(all)
}

fn values(client: &mut Client, prefix: &str) -> Result<BTreeMap<String, i64>> {
    let sql = "SELECT name, value FROM counter_list($1, max_rows => 1000)";
    Ok((client.query(sql, &[&prefix])?.iter())
        .map(|row| (row.get(0), row.get(1)))
        .collect())
}

#[test]
fn decoded_rows_add_up_to_what_was_counted() -> Result<()> {
    // As the page calls it.
    let db = "shop";
    let mut client = create_bare_database(cluster(), db)?;
    let commands = commands()?;
    let [begin, decode] = &commands[..] else {
        bail!("the page has other commands: {commands:?}");
    };
    // Not published, beside it.
    client.batch_execute(
        "SELECT counter_stream_create('quiet', prefix => 'other:');
         SELECT counter_incr('tasks:1:open', 5)",
    )?;
    client.batch_execute("SELECT * FROM counter_stream_bootstrap('quiet')")?;
    compact(&mut client)?;
    let before = values(&mut client, "tasks:")?;

    run(&mut bash(begin))?;
    let file = cluster().directory().join("decoded");
    let mut receive = bash(&format!("exec {decode}"));
    receive.stdout(File::create(&file)?);
    let receiving = Running(receive.spawn()?);

    let load = Load {
        clients: 2,
        transactions: 200,
        checkers: 0,
        ..Load::default()
    };
    let mut beside = cluster().connect_db(db)?;
    together(
        &load,
        |number, control| work(db, &load, number, control),
        |_| Ok(0),
        |control| {
            control.at_each_third(|| {
                beside.execute("SELECT counter_incr('other:1')", &[])?;
                Ok(())
            })
        },
    )?;
    compact(&mut client)?;
    let after = values(&mut client, "tasks:")?;
    ensure!(after.len() > 5, "{after:?}");
    poll_until("all to be decoded", DEADLINE, || {
        let decoded = decoded(&fs::read_to_string(&file)?)?;
        Ok(after.iter().all(|(name, value)| {
            decoded.get(name).map_or_else(
                // Not changed since.
                || before.get(name) == Some(value),
                |(sum, last)| {
                    last == value && before.get(name).copied().unwrap_or(0) + sum == *value
                },
            )
        }))
    })?;
    let state: String = client
        .query_one(
            "SELECT state FROM counter_streams WHERE stream = 'feed'",
            &[],
        )?
        .get(0);
    ensure!(state == "live", "{state}");

    drop(receiving);
    poll_until("the slot to be free", DEADLINE, || {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'counts' AND NOT active";
        match client.query(sql, &[]) {
            Ok(rows) => Ok(rows.len() == 1),
            Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })
}
