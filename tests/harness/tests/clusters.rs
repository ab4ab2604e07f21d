//! The harness itself: what it starts, kills and cleans up.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use counterx_harness::{Cluster, LeftRunning, StopMode, kill9, poll_until, run, run_dir};

const DEADLINE: Duration = Duration::from_secs(60);

fn plain() -> counterx_harness::ClusterBuilder {
    Cluster::builder().name("harness").preload(false)
}

#[test]
fn a_cluster_runs_sql_restarts_and_leaves_nothing() -> Result<()> {
    let mut cluster = plain().conf("work_mem", "1234kB").start()?;
    assert_eq!(cluster.psql("postgres", "SHOW work_mem;")?, "1234kB");
    assert_eq!(cluster.psql("postgres", "SELECT 1; SELECT 2;")?, "1\n2");
    let error = cluster
        .psql("postgres", "SELECT 1/0; SELECT 3;")
        .unwrap_err();
    assert!(error.to_string().contains("division by zero"), "{error}");

    cluster.psql("postgres", "CREATE DATABASE other;")?;
    let name: String = cluster
        .connect_db("other")?
        .query_one("SELECT current_database()::text", &[])?
        .get(0);
    assert_eq!(name, "other");

    cluster.reload(&[("work_mem", "2MB")])?;
    assert_eq!(cluster.psql("postgres", "SHOW work_mem;")?, "2MB");
    cluster.restart(StopMode::Fast)?;
    assert_eq!(cluster.psql("postgres", "SHOW work_mem;")?, "2MB");
    assert!(cluster.log().contains("database system is shut down"));

    let dirs = [cluster.directory().to_owned(), cluster.socket_dir().into()];
    assert!(dirs.iter().all(|dir| dir.exists()));
    drop(cluster);
    assert!(dirs.iter().all(|dir| !dir.exists()));
    Ok(())
}

#[test]
fn a_killed_postmaster_recovers() -> Result<()> {
    let mut cluster = plain().start()?;
    cluster.psql("postgres", "CREATE TABLE t AS SELECT 1 AS x;")?;
    // One backend that sleeps, and one that computes and so does not look for its postmaster.
    let mut busy = Vec::new();
    for sql in ["SELECT pg_sleep(600)", "DO 'BEGIN LOOP END LOOP; END'"] {
        let mut client = cluster.connect()?;
        busy.push(std::thread::spawn(move || client.batch_execute(sql)));
    }
    let mut client = cluster.connect()?;
    poll_until("two busy backends", DEADLINE, || {
        let count: i64 = client
            .query_one(
                "SELECT count(*) FROM pg_stat_activity
                 WHERE state = 'active' AND pid <> pg_backend_pid()
                   AND backend_type = 'client backend'",
                &[],
            )?
            .get(0);
        Ok(count == 2)
    })?;
    let data = cluster.data_dir();
    cluster.kill_postmaster()?;
    assert!(!data.join("postmaster.pid").exists());
    for thread in busy {
        assert!(thread.join().unwrap().is_err());
    }
    assert!(cluster.connect().is_err());
    assert!(cluster.kill_postmaster().is_err());

    let before = cluster.log_len();
    cluster.start()?;
    assert!(
        cluster
            .log_since(before)
            .contains("automatic recovery in progress")
    );
    assert_eq!(cluster.psql("postgres", "SELECT x FROM t;")?, "1");
    Ok(())
}

#[test]
fn a_killed_backend_makes_the_server_restart() -> Result<()> {
    let cluster = plain().start()?;
    let mut client = cluster.connect()?;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    kill9(pid)?;
    poll_until("the crash restart", DEADLINE, || {
        Ok(cluster.log().contains("all server processes terminated"))
    })?;
    poll_until("the server to be back", DEADLINE, || {
        Ok(cluster.connect().is_ok())
    })
}

#[test]
fn a_standby_follows_and_is_promoted() -> Result<()> {
    let primary = plain().start()?;
    let mut standby = plain().name("standby").standby_of(&primary).start()?;
    primary.psql("postgres", "CREATE TABLE t AS SELECT 7 AS x;")?;
    poll_until("the table on the standby", DEADLINE, || {
        let sql = "SELECT to_regclass('t') IS NOT NULL;";
        Ok(standby.psql("postgres", sql)? == "t")
    })?;
    assert!(
        standby
            .psql("postgres", "INSERT INTO t VALUES (8);")
            .is_err()
    );
    drop(primary);
    standby.promote()?;
    standby.psql("postgres", "INSERT INTO t VALUES (8);")?;
    assert_eq!(standby.psql("postgres", "SELECT sum(x) FROM t;")?, "15");
    Ok(())
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let error = plain().conf("shared_buffers", "many").start().unwrap_err();
    assert!(error.to_string().contains("shared_buffers"), "{error}");
}

#[test]
fn a_wait_that_fails_names_what_it_waited_for() {
    let error = poll_until("godot", Duration::ZERO, || Ok(false)).unwrap_err();
    assert!(error.to_string().contains("godot"), "{error}");
    assert!(kill9(0).is_err() && kill9(-1).is_err());
}

#[test]
fn a_dead_owner_leaves_no_server_behind() -> Result<()> {
    // The owner is `with-cluster`, killed while its command waits for the end of its input.
    let mut owner = std::process::Command::new(env!("CARGO_BIN_EXE_with-cluster"))
        .args(["--no-preload", "--", "sh", "-c"])
        .arg(r#"echo "$COUNTERX_DATA_DIR"; echo "$PGHOST"; cat"#)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        owner.stdout.take().expect("standard output is piped"),
    ));
    let data = lines.next().expect("a data directory")?;
    let sockets = lines.next().expect("a socket directory")?;
    assert!(Path::new(&data).exists());
    owner.kill()?;
    owner.wait()?;
    poll_until("the watcher to clean up", DEADLINE, || {
        Ok(!Path::new(&data).exists() && !Path::new(&sockets).exists())
    })
}

#[test]
fn with_cluster_passes_the_exit_status_on() -> Result<()> {
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_with-cluster"))
        .args(["--no-preload", "--conf", "work_mem=3MB", "--", "sh", "-c"])
        .arg(r#"test "$("$COUNTERX_PG_BIN/psql" -XAtc "SHOW work_mem")" = 3MB && exit 7"#)
        .status()?;
    assert_eq!(status.code(), Some(7));
    Ok(())
}

#[test]
fn a_cluster_left_running_is_found_and_removed() -> Result<()> {
    let directory = run_dir()?.join(format!("left-running-{}", std::process::id()));
    assert!(LeftRunning::find(&directory)?.is_none());
    let cluster = plain().directory(&directory).start()?;
    let socket_dir = cluster.socket_dir().to_owned();
    cluster.leave_running();
    let left = LeftRunning::find(&directory)?.expect("a cluster");
    assert!(left.is_running());
    let output = run(left.psql()?.args(["-XAtc", "SELECT 'here'"]))?;
    assert_eq!(output.stdout, b"here\n");
    left.clone().remove()?;
    assert!(!left.is_running() && !directory.exists() && !socket_dir.exists());
    Ok(())
}
