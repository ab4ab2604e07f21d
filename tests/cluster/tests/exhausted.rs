//! Memory that cannot be had is an error of the session that asks for it. The server goes on, others
//! notice nothing, and so does the session itself once its transaction is rolled back.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{create_bare_database, settle, shared};
use counterx_harness::{Cluster, run};
use postgres::Client;
use postgres::error::SqlState;

fn cluster() -> &'static Cluster {
    shared(|| {
        Cluster::builder()
            .name("exhausted")
            .conf("counterx.pending_work_mem", "1GB")
            .conf("shared_buffers", "16MB")
            // What it loads may not find room either, which is not ours to mend.
            .conf("jit", "off")
            .start()
    })
}

/// A database with a few counters, and a session of it.
fn database(name: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster(), name)?;
    client.batch_execute("SELECT counter_incr('kept', 5)")?;
    Ok(client)
}

/// What became of something that may need more memory than there is.
#[derive(PartialEq)]
enum End {
    Done,
    Refused,
    /// The server had no memory to note whose a lock is. LockAcquireExtended() leaves a half-made entry in
    /// the session's table of locks then, which only the end of the transaction removes: to take the same
    /// lock after a rollback to a savepoint ends the process. That is the server's to mend.
    RefusedALock,
}

/// Eight owners of a lock, of sixteen bytes each.
const LOCAL_LOCK: &str = "Failed on request of size 128 in memory context \"TopMemoryContext\".";

/// A session whose process may grow by so many kB from here on.
struct Limited {
    client: Client,
    pid: i32,
}

impl Limited {
    fn connect(db: &str) -> Result<Self> {
        let mut client = cluster().connect_db(db)?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let mut session = Self { client, pid };
        // What the first calls load has nothing to do with what grows.
        session.client.batch_execute(
            "BEGIN; SELECT counter_incr('first'), counter_value('first'), counter_sum(); \
             SELECT * FROM counter_list(); SELECT * FROM counters; SELECT * FROM counter_top(); ROLLBACK",
        )?;
        ensure!(session.size()? > 0);
        Ok(session)
    }

    /// The size of the process, in kB.
    fn size(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmSize:"))
            .context("no VmSize")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    fn limit(&self, more: u64) -> Result<()> {
        self.set_limit(&((self.size()? + more) * 1024).to_string())
    }

    fn unlimit(&self) -> Result<()> {
        self.set_limit("unlimited")
    }

    fn set_limit(&self, bytes: &str) -> Result<()> {
        let mut command = Command::new("prlimit");
        cluster().set_user(&mut command);
        run(command.args([
            format!("--pid={}", self.pid),
            format!("--as={bytes}:unlimited"),
        ]))?;
        Ok(())
    }

    /// Runs something that needs more than there is.
    fn refused(&mut self, sql: &str) -> Result<()> {
        match self.client.batch_execute(sql) {
            Err(error) if error.code() == Some(&SqlState::OUT_OF_MEMORY) => Ok(()),
            Err(error) => Err(error).context(format!("not refused as it should be: {sql}")),
            Ok(()) => bail!("not refused: {sql}"),
        }
    }

    /// Runs something that may need more than there is.
    fn may_be_refused(&mut self, sql: &str) -> Result<End> {
        match self.client.batch_execute(sql) {
            Ok(()) => Ok(End::Done),
            Err(error) if error.code() == Some(&SqlState::OUT_OF_MEMORY) => {
                let detail = error.as_db_error().and_then(|error| error.detail());
                Ok(match detail {
                    Some(LOCAL_LOCK) => End::RefusedALock,
                    _ => End::Refused,
                })
            }
            // The server's own way to say it, of the pattern of a CHECK constraint.
            Err(error) if format!("{error:?}").contains("out of memory") => Ok(End::Refused),
            Err(error) => Err(error).context(sql.to_owned()),
        }
    }
}

/// Nothing of a crash is in the log, and this is the server of before.
fn server_is_up(others: &mut Client) -> Result<()> {
    let one: i32 = others.query_one("SELECT 1", &[])?.get(0);
    ensure!(one == 1);
    let log = cluster().log();
    for sign in ["was terminated by signal", "memory allocation of", "PANIC"] {
        ensure!(!log.contains(sign), "the log has {sign:?}");
    }
    Ok(())
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

fn count(client: &mut Client) -> Result<i64> {
    let sql = "SELECT count(*) FROM counters";
    Ok(client.query_one(sql, &[])?.get(0))
}

const MANY: &str = "SELECT count(counter_incr('many:' || n)) FROM generate_series(1, 5000000) n";

#[test]
fn increments_without_end_are_refused_whenever_memory_ends() -> Result<()> {
    let mut others = database("increments")?;
    let mut session = Limited::connect("increments")?;
    // From where nothing of ours has a place to where its tables have doubled many times.
    let mut more = 600;
    while more < 60_000 {
        session.limit(more)?;
        session
            .client
            .batch_execute("BEGIN; SELECT counter_incr('kept', 1)")?;
        session.refused(MANY)?;
        session.client.batch_execute("ROLLBACK")?;
        server_is_up(&mut others)?;
        // The same with a savepoint: what was before it stays.
        session
            .client
            .batch_execute("BEGIN; SELECT counter_incr('kept', 1); SAVEPOINT s")?;
        session.refused(MANY)?;
        session.unlimit()?;
        session
            .client
            .batch_execute("ROLLBACK TO s; SELECT counter_incr('kept', 2); COMMIT")?;
        server_is_up(&mut others)?;
        more *= 2;
    }
    let kept = value(&mut session.client, "kept")?;
    ensure!((kept - 5) % 3 == 0 && kept > 8, "kept is {kept}");
    settle(&mut others)?;
    ensure!(value(&mut others, "kept")? == kept);
    ensure!(count(&mut others)? == 1);
    Ok(())
}

#[test]
fn commits_that_need_more_memory_roll_back() -> Result<()> {
    let mut others = database("commits")?;
    let mut session = Limited::connect("commits")?;
    let mut refused = 0;
    let mut expected = 1;
    for names in [20_000, 100_000] {
        for more in [0, 100, 700, 3_000, 8_000] {
            let first = format!("{names}:{more}:1");
            session.client.batch_execute(&format!(
                "BEGIN; SELECT count(counter_incr('{names}:{more}:' || n)) FROM generate_series(1, {names}) n"
            ))?;
            session.limit(more)?;
            let failed = session.may_be_refused("COMMIT")? != End::Done;
            session.unlimit()?;
            server_is_up(&mut others)?;
            ensure!(value(&mut others, &first)? == i64::from(!failed));
            if !failed {
                expected += names;
            }
            refused += u32::from(failed);
            ensure!(count(&mut others)? == expected, "after {names} names");
        }
    }
    ensure!(refused > 0, "no commit was refused: the test shows nothing");
    Ok(())
}

#[test]
fn reads_of_many_counters_are_refused() -> Result<()> {
    let mut others = database("reads")?;
    others.batch_execute(
        "SELECT count(counter_incr('many:' || n, n)) FROM generate_series(1, 20000) n; SELECT counterx.compact()",
    )?;
    let array = "(SELECT array_agg('many:' || n) FROM generate_series(1, 20000) n)";
    let reads = [
        "SELECT count(*) FROM counter_list('many:', NULL, 1000000)".to_owned(),
        "SELECT count(*) FROM counter_top(1000000)".to_owned(),
        "SELECT count(*) FROM counter_bottom(1000000, 'many:')".to_owned(),
        "SELECT count(*) FROM counters".to_owned(),
        "SELECT count(*) FROM counters WHERE name LIKE 'many:%'".to_owned(),
        // None of them is one: the server compares those with all of the array.
        format!("SELECT count(*) FROM counters WHERE name = ANY (({array})::text[])").replace("many:", "none:"),
        format!("SELECT count(*) FROM counter_values({array})"),
        format!("SELECT counter_incr_many({array}, (SELECT array_agg(n) FROM generate_series(1, 20000) n))"),
        "SELECT counter_incr_many((SELECT jsonb_object_agg('many:' || n, n) FROM generate_series(1, 20000) n))".to_owned(),
        "SELECT counter_sum('many:')".to_owned(),
        "SELECT counter_type_create('many', min => 0)".to_owned(),
        "SELECT * FROM counter_list(repeat('x', 50000000))".to_owned(),
        "SELECT * FROM counter_list('', repeat('x', 50000000))".to_owned(),
        "SELECT * FROM counters WHERE name LIKE repeat('x', 50000000)".to_owned(),
        "SELECT * FROM counters WHERE name = ANY (ARRAY[repeat('x', 50000000), 'a'])".to_owned(),
        "SELECT counter_type_create('long', description => repeat('x', 50000000))".to_owned(),
    ];
    let mut refused = 0;
    for pending in [0, 20_000] {
        for read in &reads {
            // A new one each time: the process keeps the memory that it had once.
            let mut session = Limited::connect("reads")?;
            session.client.batch_execute(&format!(
                "BEGIN; SELECT count(counter_incr('new:' || n)) FROM generate_series(1, {pending}) n; SAVEPOINT s"
            ))?;
            for more in [0, 600, 3_000, 12_000] {
                session.limit(more)?;
                let end = session.may_be_refused(read)?;
                refused += u32::from(end != End::Done);
                // The server's own part of going back needs a little as well.
                session.unlimit()?;
                if end == End::RefusedALock {
                    session.client.batch_execute("ROLLBACK")?;
                    server_is_up(&mut others).context(read.clone())?;
                    ensure!(value(&mut session.client, "many:7")? == 7);
                    break;
                }
                session.client.batch_execute("ROLLBACK TO s")?;
                server_is_up(&mut others).context(read.clone())?;
                ensure!(value(&mut session.client, "many:7")? == 7);
                ensure!(value(&mut session.client, "new:7")? == i64::from(pending > 7));
            }
        }
    }
    // There are 16 of them. Some need little.
    ensure!(refused > 50, "refused only {refused} times");
    Ok(())
}
