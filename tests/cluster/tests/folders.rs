//! Several workers of one database: they come when one cannot keep up, share the lanes, and go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, Recovering, check, count_workers, create_database, footprint, kill_and_recover,
    nothing_crashed, patiently, seed, settle, victim, wait_for_no_worker, wait_for_worker,
};
use counterx_harness::{Cluster, ClusterBuilder, poll_until};
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Config, NoTls};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Each total that a fold writes takes its time: so one worker cannot keep up with a few clients.
const SLOW: (&str, &str) = ("counterx.failpoint", "fold.total_written=slow");

fn server(name: &str) -> ClusterBuilder {
    Cluster::builder()
        .name(name)
        .conf("max_worker_processes", "16")
        .conf("counterx.max_workers", "5")
        .conf("counterx.workers_per_database", "3")
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.log_max_size", "64kB")
        .conf(SLOW.0, SLOW.1)
}

/// Counts in all lanes of a database while `meanwhile` runs. Clients whose connection ends make another one.
fn counting<R>(config: &Config, meanwhile: impl FnOnce() -> Result<R>) -> Result<R> {
    const CLIENTS: u64 = 3;
    const PAUSE: Duration = Duration::from_millis(10);
    let (over, counted) = (AtomicBool::new(false), AtomicI64::new(0));
    let client = |number: u64| -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed() + number);
        let mut client: Option<Client> = None;
        while !over.load(Ordering::Relaxed) {
            let Some(connection) = &mut client else {
                // It may be in recovery.
                client = config.connect(NoTls).ok();
                thread::sleep(PAUSE);
                continue;
            };
            let first = rng.random_range(0..200);
            let sql = format!(
                "SELECT bump_many(array_agg('name ' || n), array_agg(n - 100)) FROM generate_series({first}, {first} + 9) n"
            );
            match connection.batch_execute(&sql) {
                Ok(()) => {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.code().is_none() || error.is_closed() => client = None,
                // Its server is about to end it, or the extension is gone for a moment.
                Err(error) => {
                    let code = error.code().map(|code| code.code().to_owned());
                    match code.as_deref() {
                        Some("57P01" | "57P02" | "57P03") => client = None,
                        Some("42883" | "42P01" | "55000") => {}
                        _ => return Err(error).context(sql),
                    }
                }
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    };
    let result = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let result = meanwhile();
        over.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        result
    })?;
    ensure!(counted.load(Ordering::Relaxed) > 0, "nothing was counted");
    Ok(result)
}

/// Which process has each lane, as far as one has.
fn owners(client: &mut Client) -> Result<Vec<i32>> {
    let sql = "SELECT pid FROM pg_locks
                WHERE locktype = 'userlock' AND classid = x'636e746c'::int::oid AND objsubid = 0 AND granted
                  AND mode = 'ExclusiveLock'
                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                ORDER BY objid";
    Ok(client
        .query(sql, &[])?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

/// Waits until so many workers have all lanes among them.
fn wait_for_workers(client: &mut Client, workers: usize) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    let found = poll_until("workers to share all lanes", 2 * DEADLINE, || {
        let owners = owners(client)?;
        pids.clone_from(&owners);
        pids.sort_unstable();
        pids.dedup();
        Ok(owners.len() == 8 && pids.len() == workers)
    });
    found.with_context(|| format!("{workers} workers, not {pids:?}"))?;
    Ok(pids)
}

/// The pid of the first worker, and those of the others.
fn by_number(client: &mut Client) -> Result<(Option<i32>, Vec<i32>)> {
    let (mut first, mut others) = (None, Vec::new());
    for row in client.query("SELECT pid, number FROM counterx.workers", &[])? {
        match row.get::<_, Option<i32>>(1) {
            Some(0) => first = row.get(0),
            Some(_) => others.push(row.get(0)),
            None => {}
        }
    }
    Ok((first, others))
}

fn come_and_go(name: &str, preload: bool) -> Result<()> {
    let mut cluster = server(name).preload(preload).start()?;
    let mut client = create_database(&cluster, "shared")?;
    let config = cluster.config("shared");
    let (first, others) = counting(&config, || {
        let pids = wait_for_workers(&mut client, 3)?;
        let (first, others) = by_number(&mut client)?;
        let first = first.context("there is no first worker")?;
        let mut all = others.clone();
        all.push(first);
        all.sort_unstable();
        ensure!(all == pids, "{all:?} in the view, {pids:?} have lanes");
        // Each folds.
        let mut seen = Vec::new();
        poll_until("each to fold", DEADLINE, || {
            let sql = "SELECT DISTINCT folder_pid FROM counterx.lanes WHERE folder_pid IS NOT NULL";
            for row in client.query(sql, &[])? {
                let pid: i32 = row.get(0);
                if pids.contains(&pid) && !seen.contains(&pid) {
                    seen.push(pid);
                }
            }
            Ok(seen.len() == pids.len())
        })?;
        Ok((first, others))
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    settle(&mut client)?;
    check(&mut client)?;
    // Those that are not needed go, one after the other, and the first one has all lanes.
    ensure!(others.len() == 2);
    ensure!(wait_for_workers(&mut client, 1)? == [first]);
    // Who has no lanes any more may be there for a moment.
    poll_until("the others to be gone", DEADLINE, || {
        Ok(count_workers(&mut client, Some("shared"))? == 1)
    })?;
    ensure!(wait_for_worker(&mut client, "shared")? == first);
    client.batch_execute("SELECT bump('name 1', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    // Nothing failed.
    let sql = "SELECT last_error FROM counterx.workers";
    let error: Option<String> = client.query_one(sql, &[])?.get(0);
    ensure!(error.is_none(), "{error:?}");
    nothing_crashed(&cluster.log())?;
    Ok(())
}

#[test]
fn further_workers_come_and_go() -> Result<()> {
    come_and_go("folders", true)
}

#[test]
fn further_workers_come_and_go_without_preload() -> Result<()> {
    come_and_go("foldersnopreload", false)
}

/// One that comes to a large backlog folds its share of it, though the first one has begun all lanes before.
#[test]
fn who_comes_to_a_backlog_folds_its_share() -> Result<()> {
    const COUNTERS: usize = 800;
    let mut cluster = server("foldersbacklog")
        .conf("counterx.workers_per_database", "2")
        .conf("counterx.compaction", "off")
        .start()?;
    let mut client = create_database(&cluster, "backlog")?;
    client.batch_execute(&format!(
        "SELECT bump_many(array_agg('name ' || n), array_agg(n)) FROM generate_series(1, {COUNTERS}) n"
    ))?;
    cluster.reload(&[("counterx.compaction", "on")])?;
    // A hundred counters of each lane take two seconds: whoever is at it is seen.
    let mut seen = BTreeSet::new();
    poll_until("the backlog to be folded", 2 * DEADLINE, || {
        let sql = "SELECT l.lane, w.number FROM counterx.lanes l JOIN counterx.workers w ON w.pid = l.folder_pid
                    WHERE l.pending_deltas > 0";
        for row in client.query(sql, &[])? {
            if let Some(number) = row.get::<_, Option<i32>>(1) {
                seen.insert((row.get::<_, i32>(0), number));
            }
        }
        let sql = "SELECT sum(pending_deltas) = 0 FROM counterx.lanes";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    let by_further = seen.iter().filter(|(_, number)| *number == 1).count();
    ensure!(by_further >= 2, "lanes and who folded them: {seen:?}");
    cluster.reload(&[(SLOW.0, "")])?;
    check(&mut client)?;
    Ok(())
}

/// The consumer of a stream, and what it was told of each counter: its value, and what all deltas come to.
struct Follower {
    client: Client,
    stream: &'static str,
    known: BTreeMap<String, (i64, i64)>,
}

impl Follower {
    const PAGE: usize = 1000;

    fn begin(mut client: Client, stream: &'static str, arguments: &str) -> Result<Self> {
        client.batch_execute(&format!(
            "SELECT counter_stream_create('{stream}'{arguments})"
        ))?;
        let sql = format!("SELECT name, value FROM counter_stream_bootstrap('{stream}')");
        let rows = client.query(&sql, &[])?;
        let known = (rows.iter())
            .map(|row| (row.get(0), (row.get(1), row.get(1))))
            .collect();
        Ok(Self {
            client,
            stream,
            known,
        })
    }

    /// Reads what there is. Beside others who count there may always be more.
    fn read(&mut self) -> Result<()> {
        while self.read_page()? == Self::PAGE {}
        Ok(())
    }

    /// Returns how many rows there were.
    fn read_page(&mut self) -> Result<usize> {
        let sql = format!(
            "SELECT name, value, delta FROM counter_stream_next('{}', {})",
            self.stream,
            Self::PAGE
        );
        let rows = self.client.query(&sql, &[])?;
        for row in &rows {
            let (value, sum) = self.known.entry(row.get(0)).or_default();
            *value = row.get(1);
            *sum += row.get::<_, i64>(2);
        }
        Ok(rows.len())
    }

    /// Reads the rest. Nothing is missing, and nothing was told twice.
    fn ends_right(mut self) -> Result<()> {
        while self.read_page()? > 0 {}
        let rows = self
            .client
            .query("SELECT name, value::bigint FROM counters", &[])?;
        ensure!(!rows.is_empty());
        for row in &rows {
            let (name, value): (String, i64) = (row.get(0), row.get(1));
            let known = self.known.remove(&name).unwrap_or_default();
            ensure!(known == (value, value), "{name} is {value}, not {known:?}");
        }
        let rest: Vec<_> = self
            .known
            .iter()
            .filter(|(_, known)| **known != (0, 0))
            .collect();
        ensure!(rest.is_empty(), "{rest:?}");
        Ok(())
    }
}

/// What was hinted, each time, until it is so.
fn hints(listener: &mut Client, is_enough: impl Fn(&[String]) -> bool) -> Result<Vec<String>> {
    let mut heard = Vec::new();
    poll_until("hints", DEADLINE, || {
        let mut notifications = listener.notifications();
        let mut waiting = notifications.timeout_iter(Duration::from_millis(100));
        while let Some(notification) = waiting.next()? {
            heard.push(notification.payload().to_owned());
        }
        Ok(is_enough(&heard))
    })
    .with_context(|| format!("{heard:?}"))?;
    Ok(heard)
}

/// Who has a lane tells of it: consumers hear of all lanes, of changes that were folded by hand as well, and not of
/// each change from each worker. What was read, and what nobody reads, is removed in all lanes.
#[test]
fn streams_are_seen_to_in_the_lanes_of_all_workers() -> Result<()> {
    const COUNTERS: usize = 24;
    let mut cluster = server("foldersstreams").start()?;
    let mut client = create_database(&cluster, "streams")?;
    // One for each counter: so it is seen who was told of which.
    for n in 0..COUNTERS {
        client.batch_execute(&format!(
            "SELECT counter_stream_create('s{n}', 'seen:{n}.'); SELECT * FROM counter_stream_bootstrap('s{n}')"
        ))?;
    }
    client.batch_execute("SELECT counter_alert_create('many', 'seen:', above => 0)")?;
    let change =
        format!("SELECT bump('seen:' || n || '.', 1) FROM generate_series(0, {COUNTERS} - 1) n");
    let is_all = |heard: &[String]| {
        let streams: BTreeSet<_> = heard
            .iter()
            .filter(|heard| heard.starts_with('s'))
            .collect();
        streams.len() == COUNTERS
    };
    let config = cluster.config("streams");
    let mut all = Follower::begin(
        cluster.connect_db("streams")?,
        "all",
        ", mode => 'every', notify => false",
    )?;
    counting(&config, || {
        wait_for_workers(&mut client, 3)?;
        let mut listener = config.connect(NoTls)?;
        listener.batch_execute("LISTEN counterx")?;
        client.batch_execute(&change)?;
        hints(&mut listener, |heard| {
            is_all(heard) && heard.iter().any(|heard| heard == "alert:many")
        })?;
        // Who has got a lane tells all once that are behind there.
        wait_for_folds(&mut client, 2)?;
        hints(&mut listener, |_| true)?;
        // All go on folding what is none of these streams'. All are behind, and nothing is new to them. (Where a lane
        // has changed hands, it is.)
        poll_until("each to keep its lanes", 4 * DEADLINE, || {
            let before = owners(&mut client)?;
            wait_for_folds(&mut client, 6)?;
            let mut heard = hints(&mut listener, |_| true)?;
            heard.retain(|heard| heard.starts_with('s'));
            let is_same = before.len() == 8 && owners(&mut client)? == before;
            ensure!(
                !is_same || heard.len() < 2 * COUNTERS,
                "{} hints: {heard:?}",
                heard.len()
            );
            Ok(is_same)
        })?;
        // Who folds by hand tells nobody.
        for _ in 0..5 {
            client.batch_execute(&change)?;
            client.batch_execute("SELECT counterx.compact()")?;
            hints(&mut listener, is_all)?;
        }
        // A consumer that comes holds up nothing in any lane, and one that does not is lost.
        client.batch_execute("SELECT counter_stream_create('gone', 'name ', keep => '1 s')")?;
        client.batch_execute("SELECT * FROM counter_stream_bootstrap('gone')")?;
        poll_until("it to be lost", DEADLINE, || {
            all.read()?;
            let sql = "SELECT state = 'lost' FROM counter_streams WHERE stream = 'gone'";
            Ok(client.query_one(sql, &[])?.get(0))
        })?;
        for n in 0..COUNTERS {
            // The worker may just move its place past what is not its own.
            let next = format!("SELECT * FROM counter_stream_next('s{n}')");
            patiently(&mut client, &next)?;
        }
        let gone = |client: &mut Client| -> Result<Vec<i64>> {
            let sql = "SELECT gone_0, gone_1, gone_2, gone_3, gone_4, gone_5, gone_6, gone_7 FROM counterx.stream_cell";
            let row = client.query_one(sql, &[])?;
            Ok((0..8).map(|lane| row.get(lane)).collect())
        };
        let before = gone(&mut client)?;
        poll_until("changes of all lanes to be removed", 2 * DEADLINE, || {
            all.read()?;
            let now = gone(&mut client)?;
            Ok(before.iter().zip(&now).all(|(before, now)| now > before))
        })
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    settle(&mut client)?;
    check(&mut client)?;
    all.ends_right()
}

/// Who waits for room in a lane is seen by whoever has it.
#[test]
fn writers_that_are_held_up_get_a_fold_from_the_worker_of_the_lane() -> Result<()> {
    let mut cluster = server("folderspressure").start()?;
    let mut client = create_database(&cluster, "pressure")?;
    counting(&cluster.config("pressure"), || {
        wait_for_workers(&mut client, 3).map(drop)
    })?;
    // Nobody folds by himself for an hour. What others have them fold is slow: so further workers, which would go when
    // they have had next to nothing to do for ten seconds, stay.
    cluster.reload(&[
        ("counterx.compaction_interval", "1h"),
        ("counterx.compaction_threshold", "2147483647"),
    ])?;
    client.batch_execute(
        "SET counterx.max_pending = 20; SET counterx.max_pending_action = wait; SET counterx.max_pending_wait = '60s'",
    )?;
    for _ in 0..5 {
        client.batch_execute("SELECT bump('held up ' || n, 1) FROM generate_series(1, 200) n")?;
    }
    // They still are: nobody has waited for their lanes to go to the first one.
    let there: BTreeSet<i32> = owners(&mut client)?.into_iter().collect();
    ensure!(there.len() == 3, "{there:?}");
    cluster.reload(&[(SLOW.0, "")])?;
    let sql = "SELECT back_pressure_waits FROM counterx.stat";
    poll_until("waits to be counted", DEADLINE, || {
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) > 0)
    })?;
    // The first one is ended again and again, and comes again for who waits.
    for _ in 0..5 {
        if let (Some(first), _) = by_number(&mut client)? {
            client.execute("SELECT pg_terminate_backend($1)", &[&first])?;
        }
        client.batch_execute("SELECT bump('held up ' || n, 1) FROM generate_series(1, 200) n")?;
    }
    check(&mut client)?;
    Ok(())
}

/// Workers are ended at random: the others have their lanes, and all is counted once.
fn ended_at_random(name: &str, preload: bool) -> Result<()> {
    const TIMES: usize = 12;
    let mut cluster = server(name).preload(preload).start()?;
    let mut client = create_database(&cluster, "random")?;
    let config = cluster.config("random");
    let mut rng = StdRng::seed_from_u64(seed());
    let mut follower = Follower::begin(cluster.connect_db("random")?, "all", ", mode => 'every'")?;
    counting(&config, || {
        wait_for_workers(&mut client, 3)?;
        for round in 0..TIMES {
            follower.read()?;
            let (first, others) = by_number(&mut client)?;
            let mut all: Vec<i32> = others.into_iter().chain(first).collect();
            if all.len() < 2 {
                poll_until("another worker", 2 * DEADLINE, || {
                    let (first, others) = by_number(&mut client)?;
                    all = others.into_iter().chain(first).collect();
                    Ok(all.len() >= 2)
                })?;
            }
            let pid = all[rng.random_range(0..all.len())];
            client.execute("SELECT pg_terminate_backend($1)", &[&pid])?;
            // Those that are there take over; it need not have come back.
            poll_until("its lanes to be taken over", DEADLINE, || {
                let owners = owners(&mut client)?;
                Ok(owners.len() == 8 && !owners.contains(&pid))
            })
            .with_context(|| format!("round {round}"))?;
            let before = folded_epochs(&mut client)?;
            poll_until("each lane to be folded", DEADLINE, || {
                let now = folded_epochs(&mut client)?;
                Ok(before.iter().zip(&now).all(|(before, now)| now > before))
            })
            .with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    client.batch_execute("SELECT bump('name 1', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    follower.ends_right()?;
    let log = cluster.log();
    ensure!(!log.contains("deadlock"), "{log}");
    Ok(())
}

/// Waits until each lane was folded so often.
fn wait_for_folds(client: &mut Client, times: i64) -> Result<()> {
    let mut folds = || -> Result<Vec<i64>> {
        let sql = "SELECT folds FROM counterx.fold_status() ORDER BY lane";
        let rows = client.query(sql, &[])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    let before = folds()?;
    poll_until("each lane to be folded some times", 2 * DEADLINE, || {
        let now = folds()?;
        Ok(before
            .iter()
            .zip(&now)
            .all(|(before, now)| *now >= before + times))
    })
}

fn folded_epochs(client: &mut Client) -> Result<Vec<i64>> {
    let sql = "SELECT coalesce(folded_epoch, 0) FROM counterx.lanes ORDER BY lane";
    Ok(client
        .query(sql, &[])?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

#[test]
fn workers_that_are_ended_at_random_lose_nothing() -> Result<()> {
    ended_at_random("foldersrandom", true)
}

#[test]
fn workers_that_are_ended_at_random_lose_nothing_without_preload() -> Result<()> {
    ended_at_random("foldersrandomnopreload", false)
}

/// Killed, a worker takes the whole server with it, in the midst of what the others do.
#[test]
fn workers_that_are_killed_lose_nothing() -> Result<()> {
    let mut cluster = server("folderskilled").start()?;
    let mut client = create_database(&cluster, "killed")?;
    let config = cluster.config("killed");
    counting(&config, || {
        wait_for_workers(&mut client, 3)?;
        for number in [1, 0, 2] {
            let mut connection = Recovering::new(&config);
            kill_and_recover(&mut connection, |connection| {
                let sql = format!("SELECT pid FROM counterx.workers WHERE number = {number}");
                victim(connection, "a worker of this number", &sql)
            })?;
            check(connection.client()?)?;
        }
        Ok(())
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    let mut client = cluster.connect_db("killed")?;
    client.batch_execute("SELECT bump('name 1', 1)")?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

fn settings_change(name: &str, preload: bool) -> Result<()> {
    let mut cluster = server(name).preload(preload).start()?;
    let mut client = create_database(&cluster, "changing")?;
    let config = cluster.config("changing");
    counting(&config, || {
        wait_for_workers(&mut client, 3)?;
        // Those that come again do so the later the more often they have not sufficed.
        for (setting, value, workers) in [
            ("counterx.workers_per_database", "1", 1),
            ("counterx.workers_per_database", "2", 2),
            ("counterx.max_workers", "1", 1),
        ] {
            cluster.reload(&[(setting, value)])?;
            wait_for_workers(&mut client, workers).with_context(|| format!("{setting} {value}"))?;
        }
        cluster.reload(&[("counterx.max_workers", "2")])?;
        wait_for_workers(&mut client, 2)?;
        // Paused, nobody folds, and the further one goes.
        client.batch_execute("ALTER DATABASE changing SET counterx.compaction = off")?;
        poll_until("the first one alone to stay", DEADLINE, || {
            let row = client.query("SELECT state, number FROM counterx.workers", &[])?;
            Ok(row.len() == 1
                && row[0].get::<_, Option<i32>>(1) == Some(0)
                && row[0].get::<_, &str>(0) == "paused")
        })?;
        client.batch_execute("ALTER DATABASE changing RESET counterx.compaction")?;
        cluster.reload(&[("counterx.max_workers", "5")])?;
        wait_for_workers(&mut client, 2)?;
        Ok(())
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn settings_may_change_at_run_time() -> Result<()> {
    settings_change("folderssettings", true)
}

#[test]
fn settings_may_change_at_run_time_without_preload() -> Result<()> {
    settings_change("folderssettingsnopreload", false)
}

fn others_get_their_turn(name: &str, preload: bool) -> Result<()> {
    let mut cluster = server(name)
        .preload(preload)
        .conf("counterx.max_workers", "3")
        .start()?;
    let mut client = create_database(&cluster, "greedy")?;
    let mut others = Vec::new();
    for name in ["one", "two"] {
        others.push((name, create_database(&cluster, name)?));
    }
    let config = cluster.config("greedy");
    counting(&config, || {
        let pids = wait_for_workers(&mut client, 3)?;
        let (first, _) = by_number(&mut client)?;
        for (left, (name, other)) in others.iter_mut().enumerate() {
            let before = footprint(other)?;
            poll_until("another database to get a worker", DEADLINE, || {
                other.batch_execute("SELECT bump('x', 1)")?;
                Ok(count_workers(other, Some(name))? > 0)
            })?;
            settle(other)?;
            ensure!(footprint(other)?.folded > before.folded, "{name}");
            // Not for long, perhaps: where the others have done what they came for, it may have their turns again. Without
            // a launcher, whoever sees first that somebody waits makes room, and that is one who idles, mostly.
            poll_until("those that are further to go", 2 * DEADLINE, || {
                let (stays, further) = by_number(&mut client)?;
                ensure!(
                    !preload || stays.is_none() || stays == first,
                    "the first of {pids:?} is {stays:?}"
                );
                Ok(stays.is_some() && further.len() <= 1 - left)
            })?;
        }
        Ok(())
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    settle(&mut client)?;
    check(&mut client)?;
    for (_, other) in &mut others {
        check(other)?;
    }
    Ok(())
}

#[test]
fn other_databases_get_their_turn() -> Result<()> {
    others_get_their_turn("foldersturns", true)
}

#[test]
fn other_databases_get_their_turn_without_preload() -> Result<()> {
    others_get_their_turn("foldersturnsnopreload", false)
}

/// The server gives others five seconds to leave: a session of the test that has just ended, and workers.
fn alone(admin: &mut Client, sql: &str) -> Result<()> {
    poll_until(sql, DEADLINE / 2, || match admin.batch_execute(sql) {
        Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => Ok(false),
        done => Ok(done.map(|()| true)?),
    })
}

/// Who wants the database alone, or the extension gone, gets that.
fn dropped(name: &str, preload: bool) -> Result<()> {
    let mut cluster = server(name).preload(preload).start()?;
    let mut client = create_database(&cluster, "before")?;
    counting(&cluster.config("before"), || {
        wait_for_workers(&mut client, 3)?;
        Ok(())
    })?;
    drop(client);
    let mut admin = cluster.connect()?;
    alone(&mut admin, "ALTER DATABASE before RENAME TO renamed")?;
    let mut client = cluster.connect_db("renamed")?;
    check(&mut client)?;
    counting(&cluster.config("renamed"), || {
        wait_for_workers(&mut client, 3)?;
        // Clients write to the oracle first: who wants both begins with it as well.
        client.batch_execute(
            "BEGIN; LOCK TABLE oracle; DROP EXTENSION counterx; TRUNCATE oracle; COMMIT",
        )?;
        wait_for_no_worker(&mut client, "renamed")?;
        client.batch_execute(
            "BEGIN; LOCK TABLE oracle; CREATE EXTENSION counterx; TRUNCATE oracle; COMMIT",
        )?;
        wait_for_workers(&mut client, 3)?;
        Ok(())
    })?;
    check(&mut client)?;
    drop(client);
    alone(&mut admin, "DROP DATABASE renamed")?;
    cluster.reload(&[(SLOW.0, "")])?;
    // Its turns are free.
    let mut client = create_database(&cluster, "next")?;
    client.batch_execute("SELECT bump('x', 1)")?;
    settle(&mut client)?;
    poll_until("nobody else to be there", DEADLINE, || {
        Ok(count_workers(&mut client, None)? == 1)
    })?;
    check(&mut client)?;
    Ok(())
}

#[test]
fn databases_and_the_extension_are_dropped_beside_them() -> Result<()> {
    dropped("foldersdropped", true)
}

#[test]
fn databases_and_the_extension_are_dropped_beside_them_without_preload() -> Result<()> {
    dropped("foldersdroppednopreload", false)
}

/// History that was dropped goes only while nobody folds: others hold still for it, though they have enough to do.
#[test]
fn the_first_one_removes_what_is_gone_beside_others_who_fold() -> Result<()> {
    let mut cluster = server("foldersstill").start()?;
    let mut client = create_database(&cluster, "still")?;
    let rows = |client: &mut Client| -> Result<i64> {
        let sql = "SELECT (SELECT count(*) FROM counterx.bucket_4_0) + (SELECT count(*) FROM counterx.history_lane)";
        Ok(client.query_one(sql, &[])?.get(0))
    };
    client.batch_execute("SELECT counter_history('x', 'infinity')")?;
    poll_until("a history to begin", DEADLINE, || {
        client.batch_execute("SELECT bump('x:a', 1)")?;
        let sql = "SELECT count(*) FROM counterx.bucket_4_0 WHERE name = 'x:a'";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) > 0)
    })?;
    let config = cluster.config("still");
    counting(&config, || {
        wait_for_workers(&mut client, 3)?;
        client.batch_execute("SELECT counter_history_drop('x')")?;
        poll_until("the rows of what was dropped to go", DEADLINE, || {
            Ok(rows(&mut client)? == 0)
        })?;
        // And they go on.
        let before = folded_epochs(&mut client)?;
        poll_until("each lane to be folded", DEADLINE, || {
            let now = folded_epochs(&mut client)?;
            Ok(before.iter().zip(&now).all(|(before, now)| now > before))
        })
    })?;
    cluster.reload(&[(SLOW.0, "")])?;
    settle(&mut client)?;
    check(&mut client)?;
    Ok(())
}
