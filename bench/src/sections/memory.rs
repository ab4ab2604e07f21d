//! Memory that is a process's own: that of the worker, and of sessions that count.

use anyhow::{Context, Result, ensure};
use counterx_harness::poll_until;
use std::time::Duration;

use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::Pgbench;
use crate::proc::own_bytes;
use crate::report::Measured;
use crate::server::Server;
use crate::stats::{Series, Unit};

/// Sessions by their process.
const SESSIONS: &str =
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench' ORDER BY pid";

const DEADLINE: Duration = Duration::from_secs(60);

/// A session that is asked for something, and how much memory it has after that.
const QUERIES: [(&str, &str); 5] = [
    ("a new session", "SELECT 1"),
    ("after an increment", "SELECT counter_incr('memory')"),
    (
        "after a million increments of 1,000 counters in a transaction",
        "SELECT count(counter_incr('memory-' || i % 1000)) FROM generate_series(1, 1000000) AS i",
    ),
    (
        "after an increment of each of a million counters in a transaction",
        "SELECT count(counter_incr('memory-' || i)) FROM generate_series(1, 1000000) AS i",
    ),
    (
        "after counter_sum of a million counters",
        "SELECT counter_sum('memory-')",
    ),
];

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut server = Server::start("memory", options)?;
    let mut measured = Measured::new(
        Section::Memory,
        format!(
            "RssAnon of `/proc`: memory that is a process's own, without files and shared memory, whether \
             it is in use or kept for the next time. First that of {} sessions of pgbench while they run, \
             and of the worker beside them; lowest and highest are of different sessions. Then that of \
             one session after one statement, in a new session each time.",
            options.clients
        ),
    );
    for (peer, keys, name) in [
        (Peer::SelectOne, Keys::Hot, "SELECT 1"),
        (Peer::Insert, Keys::Hot, "INSERT"),
        (Peer::Counter, Keys::Hot, "counter_incr, one counter"),
        (
            Peer::Counter,
            Keys::Uniform,
            "counter_incr, 10,000 counters",
        ),
    ] {
        let create = peer.create(keys);
        if !create.is_empty() {
            server.execute(&create)?;
        }
        let seconds = options.seconds() + 1;
        let script = peer.script(keys, Batch::One);
        let running = Pgbench::new(&server.cluster, options.clients, &script).start(seconds)?;
        let mut pids: Vec<i32> = Vec::new();
        poll_until("all sessions", DEADLINE, || {
            let rows = server.client.query(SESSIONS, &[])?;
            pids = rows.iter().map(|row| row.get(0)).collect();
            Ok(pids.len() == options.clients as usize)
        })?;
        // The last look before they end counts.
        let mut own = Vec::new();
        let mut running = running;
        while running.is_running()? {
            let now: Result<Vec<f64>> = pids.iter().map(|&pid| own_bytes(pid)).collect();
            match now {
                Ok(now) => own = now,
                // They end one after the other.
                Err(_) => break,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        running.finish()?;
        ensure!(!own.is_empty(), "no session has lived long enough");
        let what = format!("{name}: a session");
        measured.figures.push(Series::new(what, Unit::Bytes, own)?);
        if peer == Peer::Counter {
            let own = own_bytes(server.worker()?)?;
            let what = format!("{name}: the worker");
            measured
                .figures
                .push(Series::new(what, Unit::Bytes, vec![own])?);
        }
        server.settle()?;
    }
    for (what, sql) in QUERIES {
        let own = session(&server, sql).with_context(|| what.to_owned())?;
        measured
            .figures
            .push(Series::new(what, Unit::Bytes, vec![own])?);
        server.settle()?;
    }
    let own = own_bytes(server.worker()?)?;
    let what = "the worker, after it has folded a million counters";
    measured
        .figures
        .push(Series::new(what, Unit::Bytes, vec![own])?);
    for figure in &measured.figures {
        println!("    {}: {}", figure.what, Unit::Bytes.format(figure.median));
    }
    Ok(measured)
}

/// The memory of a new session after it has run a statement.
fn session(server: &Server, sql: &str) -> Result<f64> {
    let mut client = server.cluster.connect()?;
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    client.query_one(sql, &[])?;
    own_bytes(pid)
}
