//! Hits at each point of their callers and of the committer. The clients keep a book: each hit is of a counter
//! of its own, so what a client was told of it can be held against what is there, one by one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{DEADLINE, Recovering, create_bare_database, is_lost};
use counterx_harness::poll_until;
use postgres::Config;

use super::points::{Action, arm, can, go, has_fired};
use super::rig::{Rig, hold_pause_in, is_paused};
use crate::options::Options;
use crate::report::PartReport;

/// Points that only hits come by.
pub(super) const POINTS: [&str; 7] = [
    "hit.pushed",
    "committer.ready",
    "committer.taken",
    "committer.added",
    "committer.committed",
    "committer.answered",
    "committer.leaving",
];

/// Clients; the last one does not wait.
const CLIENTS: usize = 4;

const DB: &str = "hits";

/// What a client knows of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Counted,
    /// By a call that does not wait.
    Handed,
    NotCounted,
    Unknown,
}

type Book = Vec<(String, Told)>;

fn told(error: &anyhow::Error) -> Result<Told> {
    if is_lost(error) {
        return Ok(Told::Unknown);
    }
    let error = (error.downcast_ref::<postgres::Error>())
        .and_then(postgres::Error::as_db_error)
        .with_context(|| format!("{error:#}"))?;
    match error.detail() {
        Some("The hit has been counted.") => Ok(Told::Counted),
        Some(detail) if detail.contains("is not counted") => Ok(Told::NotCounted),
        _ if error.message() == "failpoint hit.pushed" => Ok(Told::Unknown),
        // What the committer's own transaction has met twice.
        _ if error.message().starts_with("failpoint committer.") => Ok(Told::NotCounted),
        _ => bail!("{error}, {:?}", error.detail()),
    }
}

/// Hits until it is over, and says what was told.
fn hit(
    config: &Config,
    series: &str,
    silent: bool,
    over: &AtomicBool,
    hits: &AtomicU64,
) -> Result<Book> {
    let mut connection = Recovering::new(config);
    let sql = match silent {
        true => "SELECT counter_hit($1, 1, wait => false)",
        false => "SELECT counter_hit($1)",
    };
    let mut book = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let name = format!("{series}:{}", book.len());
        let done = connection
            .client()
            .and_then(|client| Ok(client.query_one(sql, &[&name])?));
        let entry = match done {
            Ok(_) if silent => Told::Handed,
            Ok(_) => Told::Counted,
            Err(error) => {
                if is_lost(&error) {
                    connection.forget();
                }
                told(&error)?
            }
        };
        book.push((name, entry));
        hits.fetch_add(1, Ordering::Relaxed);
        // There are the other parts' loads as well.
        thread::sleep(Duration::from_micros(500));
    }
    Ok(book)
}

/// Holds the book against the counters. False: some that nobody waited for are not there.
fn audit(config: &Config, book: &Book) -> Result<bool> {
    let mut connection = Recovering::new(config);
    let client = connection.client()?;
    let names: Vec<&str> = book.iter().map(|(name, _)| name.as_str()).collect();
    let sql =
        "SELECT value FROM counter_values($1) WITH ORDINALITY AS v (name, value, at) ORDER BY at";
    let rows = client.query(sql, &[&names])?;
    ensure!(rows.len() == book.len());
    let mut all = true;
    for (row, (name, told)) in rows.iter().zip(book) {
        let value: i64 = row.get(0);
        let right = match told {
            Told::Counted => value == 1,
            Told::NotCounted => value == 0,
            Told::Unknown | Told::Handed => value == 0 || value == 1,
        };
        ensure!(right, "{name} was told {told:?}, and its value is {value}");
        all &= *told != Told::Handed || value == 1;
    }
    Ok(all)
}

pub(super) fn run(rig: &mut Rig, options: &Options, report: &mut PartReport) -> Result<()> {
    create_bare_database(&rig.cluster, DB)?;
    let all: Vec<_> = POINTS
        .iter()
        .flat_map(|&point| Action::ALL.map(|action| (point, action)))
        .filter(|(point, action)| can(point, *action))
        .collect();
    let seed = options.seed_for("points of hits");
    let mut number = 0;
    let result = go(all, 3, seed, options, |point, action| {
        number += 1;
        step(rig, number, point, action)
            .with_context(|| format!("{} at {point}", action.word()))?;
        report.tried(&format!("{} at a point of hits", action.word()), 1);
        Ok(())
    });
    rig.cluster.reload(&[("counterx.failpoint", "")])?;
    result
}

fn step(rig: &mut Rig, number: usize, point: &str, action: Action) -> Result<()> {
    let config = rig.cluster.config(DB);
    let (over, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    let book = thread::scope(|scope| -> Result<Book> {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (config, over, hits) = (&config, &over, &hits);
                let series = format!("book:{number}:{client}");
                scope.spawn(move || hit(config, &series, client + 1 == CLIENTS, over, hits))
            })
            .collect();
        let result = meanwhile(rig, &config, &hits, point, action);
        over.store(true, Ordering::Relaxed);
        let mut book = Vec::new();
        for client in clients {
            book.extend(client.join().expect("a client panicked")?);
        }
        result.map(|()| book)
    })?;
    ensure!(
        book.iter().any(|(_, told)| *told == Told::Counted),
        "nobody was counted"
    );
    let crash = action == Action::Crash;
    poll_until("what nobody waited for", DEADLINE, || {
        Ok(audit(&config, &book)? || crash)
    })
}

fn meanwhile(
    rig: &mut Rig,
    config: &Config,
    hits: &AtomicU64,
    point: &str,
    action: Action,
) -> Result<()> {
    let more = |more: u64| {
        let target = hits.load(Ordering::Relaxed) + more;
        poll_until("clients to go on", DEADLINE, || {
            Ok(hits.load(Ordering::Relaxed) >= target)
        })
    };
    more(20)?;
    let holder = match action {
        Action::Pause => Some(hold_pause_in(&rig.cluster, DB)?),
        Action::Crash | Action::Error => None,
    };
    arm(&mut rig.cluster, &[(point, action)])?;
    poll_until("somebody to come by", DEADLINE, || {
        if has_fired(&rig.cluster, point, action) {
            return Ok(true);
        }
        // Its successor comes by, or it does on its way out. The server may go down at any moment.
        let ends = ["committer.ready", "committer.leaving"].contains(&point);
        if ends && let Ok(mut client) = config.connect(postgres::NoTls) {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                        WHERE backend_type = 'counterx committer' AND datname = current_database()";
            let _ = client.batch_execute(sql);
        }
        Ok(false)
    })?;
    if action == Action::Crash {
        rig.crashes += 1;
    }
    if let Some(mut holder) = holder {
        poll_until("somebody to pause", DEADLINE, || is_paused(&mut holder))?;
    }
    more(20)
}
