//! Tracked tables: every way to change rows, beside all that happens to tables and tracks.
//!
//! The rows are the oracle. A track that is exact in a snapshot agrees with the rows of that snapshot: by what
//! `GROUP BY` says, and by `counter_drift()`. Checkers look at that at all isolation levels, and on a standby,
//! while
//!
//! - clients insert, copy, update, upsert, merge, delete, move rows between partitions, in savepoints, in cursors
//!   that fail as they are fetched, in prepared transactions, and empty tables;
//! - somebody attaches tracks, ends them, and has them recounted;
//! - somebody else switches triggers off and on, replaces functions of keys, makes, attaches, detaches and drops
//!   partitions, and rewrites tables;
//! - the worker folds, and the filler makes tracks exact, each of its steps a little slower than it need be;
//! - processes are killed.
//!
//! At the end all tracks have to become exact by themselves.

mod people;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, LEVELS, Load, Recovering, TRACKS, TrackedLoad, catch_up, committing,
    create_bare_database, folding_hard, is_no_look, kill_and_recover, look_at_exact, no_drift,
    nothing_crashed, nothing_crashed_by_itself, resolve_orphans, rows_agree, settle, track_all,
    tracked_under_watch, tracks_have_triggers, undisturbed,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::options::Options;
use crate::report::PartReport;
use people::{Did, People};

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    report.step("rows, tracks and tables that change", |report| {
        changing(options, report)
    });
    // The short form has time for one of them.
    let (kills, standby) = (
        "the same, as processes are killed",
        "the same, seen on a standby",
    );
    let why = "the short form takes one of two, by its seed";
    if options.short && options.seed.is_multiple_of(2) {
        report.skipped(kills, why);
    } else {
        report.step(kills, |report| killed(options, report));
    }
    if options.short && !options.seed.is_multiple_of(2) {
        report.skipped(standby, why);
    } else {
        report.step(standby, |report| replicated(options, report));
    }
    Ok(())
}

fn start(name: &str) -> Result<Cluster> {
    let mut cluster = folding_hard(name)
        // Transactions at random come into each other's way a lot.
        .conf("deadlock_timeout", "50ms")
        .conf("max_prepared_transactions", "100")
        .start()?;
    let mut client = cluster.connect()?;
    client.batch_execute("CREATE EXTENSION counterx")?;
    let sql = "SELECT current_setting('counterx.failpoint', true) IS NOT NULL";
    // A release build has none: it is as fast as it is.
    if client.query_one(sql, &[])?.get(0) {
        let slow = [
            "track.triggers_made",
            "untrack.forgotten",
            "empty.subtracted",
            "fill.snapshot_taken",
            "fill.counted",
            "fill.added",
            "fill.noted",
            "commit.flushed",
        ]
        .map(|point| format!("{point}=slow"));
        // Commits are slow for everybody, and what comes before a filler's snapshot is quick: it is to meet some
        // that are not done.
        cluster.reload(&[("counterx.failpoint", &slow.join(","))])?;
    }
    Ok(cluster)
}

/// Rounds until the time is over, each with a seed of its own and a database of its own.
fn rounds(
    options: &Options,
    what: &str,
    share: f64,
    mut round: impl FnMut(&str, &Load) -> Result<()>,
) -> Result<()> {
    let end = Instant::now() + options.time().mul_f64(share);
    let mut number = 0;
    loop {
        let name = format!("{what}_{number}");
        let load = Load {
            clients: options.size(4, 5),
            transactions: options.size(20, 100),
            two_phase: true,
            checkers: 2,
            seed: options.seed_for(&name),
            ..Load::default()
        };
        round(&name, &load).with_context(|| format!("round {number}"))?;
        number += 1;
        if options.short || Instant::now() >= end {
            return Ok(());
        }
    }
}

fn how(seed: u64) -> TrackedLoad {
    TrackedLoad {
        // An emptied table is counted soon, and in nobody's way: less of that finds more of the rest.
        truncates: seed.is_multiple_of(2),
        untracks: true,
        ddl: true,
    }
}

/// What people have done, for the report.
fn tell(report: &mut PartReport, did: &Did) {
    for (what, times) in did {
        report.tried(what, *times);
    }
}

/// Runs people's work beside a load, and `meanwhile` in the calling thread.
fn beside_people(
    report: &mut PartReport,
    people: &People,
    control: &Control,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let tracks = scope.spawn(|| people.change_tracks(control));
        let tables = scope.spawn(|| people.change_tables(control));
        let mut result = meanwhile();
        if result.is_err() {
            control.abort();
        }
        for person in [tracks, tables] {
            match person.join().unwrap_or_else(|_| Err(anyhow!("panicked"))) {
                Ok(did) => tell(report, &did),
                Err(error) => result = Err(error),
            }
        }
        result
    })?;
    people.put_right()
}

fn changing(options: &Options, report: &mut PartReport) -> Result<()> {
    let cluster = start("torture-tracks")?;
    rounds(options, "changing", 0.4, |db, load| {
        let mut client = create_bare_database(&cluster, db)?;
        track_all(&mut client)?;
        let config = cluster.config(db);
        let people = People {
            config: config.clone(),
            seed: load.seed,
            survives: false,
            rewrites: true,
        };
        let watched = tracked_under_watch(&config, load, how(load.seed), |control| {
            beside_people(report, &people, control, || wait_for_end(control))
        })?;
        report.tried("transactions on tracked tables", watched.outcome.done);
        report.tried("looks at tracks that are exact", watched.checks);
        ensure!(watched.checks > 0, "nobody looked: {watched:?}");
        all_becomes_exact(&mut client)
    })?;
    nothing_crashed(&cluster.log())
}

fn wait_for_end(control: &Control) -> Result<()> {
    poll_until("the load", 4 * DEADLINE, || Ok(control.is_done()))
}

/// Nobody is at work any more.
fn all_becomes_exact(client: &mut Client) -> Result<()> {
    for table in ["task", "comment", "item"] {
        let sql = format!(
            "SELECT counter_track_wait('{table}', '{} s')",
            DEADLINE.as_secs()
        );
        let exact: bool = client.query_one(&sql, &[])?.get(0);
        if !exact {
            let sql = "SELECT t::text FROM counter_tracks t";
            let all = client.query(sql, &[])?;
            let all: Vec<String> = all.iter().map(|row| row.get(0)).collect();
            anyhow::bail!("{table} does not become exact:\n{}", all.join("\n"));
        }
    }
    // The load may have emptied everything.
    client.batch_execute(
        "INSERT INTO task (id, status) VALUES (-1, 'last'), (-2, 'very last');
         INSERT INTO comment VALUES (-1, 'last');
         INSERT INTO item (id, shard, status) VALUES (-1, 0, 'last'), (-1, 1, 'last'), (-1, 5, NULL)",
    )?;
    let all: Vec<(&str, &str)> = TRACKS.iter().map(|track| (track.0, track.1)).collect();
    for _ in 0..2 {
        ensure!(rows_agree(client)? > 5, "groups are missing");
        no_drift(client, &all)?;
        settle(client)?;
    }
    tracks_have_triggers(client)
}

#[derive(Clone, Copy)]
enum Victim {
    Backend,
    Worker,
    Filler,
    /// It ends, and the server goes on.
    EndedFiller,
    Server,
}

const VICTIMS: [(Victim, &str); 5] = [
    (Victim::Backend, "backend killed beside changing tracks"),
    (Victim::Worker, "worker killed beside changing tracks"),
    (Victim::Filler, "filler killed beside changing tracks"),
    (Victim::EndedFiller, "filler ended beside changing tracks"),
    (Victim::Server, "server killed beside changing tracks"),
];

fn killed(options: &Options, report: &mut PartReport) -> Result<()> {
    let mut cluster = start("torture-tracks-killed")?;
    rounds(options, "killed", 0.4, |db, load| {
        let mut client = create_bare_database(&cluster, db)?;
        track_all(&mut client)?;
        drop(client);
        let config = cluster.config(db);
        let load = Load {
            survives: true,
            ..load.clone()
        };
        let people = People {
            config: config.clone(),
            seed: load.seed,
            survives: true,
            rewrites: true,
        };
        let mut rng = StdRng::seed_from_u64(load.seed ^ 1);
        let kills = options.size(1, 3);
        let mut killed = Vec::new();
        let watched = tracked_under_watch(&config, &load, how(load.seed), |control| {
            beside_people(report, &people, control, || {
                let mut connection = Recovering::new(&config);
                for kill in 1..=kills {
                    control.wait_for_share(f64::from(kill) / f64::from(kills + 1))?;
                    let (victim, what) = VICTIMS[rng.random_range(0..VICTIMS.len())];
                    bring_down(&mut cluster, &mut connection, victim).context(what)?;
                    killed.push(what);
                    // What they have locked would be locked for ever.
                    resolve_orphans(connection.client()?)?;
                }
                wait_for_end(control)
            })
        });
        for what in killed {
            report.tried(what, 1);
        }
        let watched = watched?;
        report.tried("transactions on tracked tables", watched.outcome.done);
        report.tried("looks at tracks that are exact", watched.checks);
        let mut connection = Recovering::new(&config);
        all_becomes_exact(connection.client()?)
    })?;
    nothing_crashed_by_itself(&cluster.log())
}

fn bring_down(cluster: &mut Cluster, connection: &mut Recovering, victim: Victim) -> Result<()> {
    let of_kind = |kind: &'static str| {
        move |connection: &mut Recovering| -> Result<i32> {
            let sql = format!(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = '{kind}' AND datname = current_database()"
            );
            counterx_cluster_tests::victim(connection, kind, &sql)
        }
    };
    match victim {
        Victim::Backend => kill_and_recover(connection, committing),
        Victim::Worker => kill_and_recover(connection, of_kind("counterx worker")),
        Victim::Filler => kill_and_recover(connection, of_kind("counterx filler")),
        Victim::EndedFiller => {
            let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE backend_type = 'counterx filler' AND datname = current_database()";
            poll_until("a filler", DEADLINE, || {
                let ended: i64 = connection.client()?.query_one(sql, &[])?.get(0);
                Ok(ended > 0)
            })
        }
        Victim::Server => {
            cluster.kill_postmaster()?;
            connection.forget();
            cluster.start()
        }
    }
}

fn replicated(options: &Options, report: &mut PartReport) -> Result<()> {
    let primary = start("torture-tracks-primary")?;
    let standby = Cluster::builder()
        .name("torture-tracks-standby")
        .standby_of(&primary)
        .conf("hot_standby_feedback", "on")
        .conf("wal_receiver_status_interval", "1s")
        .start()?;
    rounds(options, "replicated", 0.2, |db, load| {
        let mut client = create_bare_database(&primary, db)?;
        track_all(&mut client)?;
        catch_up(&primary, &mut standby.connect()?)?;
        let config = primary.config(db);
        let people = People {
            config: config.clone(),
            seed: load.seed,
            survives: false,
            // A standby shows no unlogged table.
            rewrites: false,
        };
        let mut connection = Recovering::new(&standby.config(db));
        let (mut looks, mut round) = (0, 0);
        let mut look = |looks: &mut u64| {
            round += 1;
            undisturbed(&mut connection, |client| {
                // There is no SERIALIZABLE.
                match look_at_exact(client, &LEVELS[..2], round) {
                    Ok(more) => *looks += more,
                    Err(error) if is_no_look(&error) => client.batch_execute("ROLLBACK")?,
                    Err(error) => return Err(error.context("on the standby")),
                }
                Ok(())
            })
        };
        let watched = tracked_under_watch(&config, load, how(load.seed), |control| {
            beside_people(report, &people, control, || {
                while !control.is_done() {
                    look(&mut looks)?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        })?;
        report.tried("transactions on tracked tables", watched.outcome.done);
        report.tried("looks at tracks that are exact", watched.checks);
        all_becomes_exact(&mut client)?;
        catch_up(&primary, &mut standby.connect()?)?;
        let before = looks;
        look(&mut looks)?;
        ensure!(
            looks == before + 10,
            "not all tracks are exact on the standby"
        );
        report.tried("looks at tracks that are exact on a standby", looks);
        Ok(())
    })?;
    nothing_crashed(&primary.log())?;
    nothing_crashed(&standby.log())
}
