//! The cluster, the load beside what happens to it, and what is looked at afterwards.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use counterx_cluster_tests::{
    Control, DEADLINE, Load, Recovering, buckets_agree, check, create_database, folding_hard,
    is_busy, is_gone, is_lost, look_at_stream, names_in_lanes, prepare_bounded, prepare_windowed,
    resolve_orphans, streamed_schema, under_watch,
};
use counterx_harness::{Cluster, StopMode, poll_until, run};
use postgres::{Client, Config};

use super::disk::Tmpfs;

/// What a paused process waits for: see the engine's `failpoint.rs`.
const PAUSE_KEY: i64 = 0x636e_7478;

/// Of what the load counts, and of what is done at the points.
const HISTORIES: &str = "
    CREATE FUNCTION known_names() RETURNS TABLE (name text) STABLE LANGUAGE sql AS $$
        SELECT 'counter:' || n FROM generate_series(0, 9) n
    $$;
    SELECT counter_history('counter', events => 'infinity');
    SELECT counter_history('deed', '1 day', NULL, NULL);";

/// A stream of all counters, and a consumer of it; and one in which nothing happens. Either may be lost for want of room,
/// or as changes cannot be written. But what nobody had passed is not removed as if all had.
const STREAM: &str = "
    SELECT counter_stream_create('deeds', mode => 'every');
    SELECT counter_stream_create('quiet', 'nobody:');
    SELECT count(*) FROM counter_stream_bootstrap('quiet');
    CREATE FUNCTION follow() RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        unread text := (SELECT stream FROM counter_streams
                        WHERE reason = 'changes were removed before they were read' LIMIT 1);
    BEGIN
        IF unread IS NOT NULL THEN
            RAISE EXCEPTION 'stream % is lost for no reason', unread;
        END IF;
        IF (SELECT state FROM counter_streams WHERE stream = 'quiet') = 'lost' THEN
            PERFORM counter_stream_bootstrap('quiet');
        END IF;
        IF (SELECT state FROM counter_streams WHERE stream = 'deeds') = 'live' THEN
            PERFORM mirror_next('deeds', 1000000, NULL);
        ELSE
            PERFORM mirror_bootstrap('deeds');
        END IF;
    END $$;";

/// Reads all there is, or begins anew where something is missing.
pub(super) const FOLLOW: &str = "SELECT follow()";

pub(super) struct Rig {
    pub(super) cluster: Cluster,
    /// Gone only after the cluster.
    pub(super) mounts: Vec<Tmpfs>,
    pub(super) crashes: u64,
    pub(super) acked: u64,
    pub(super) checks: u64,
}

impl Rig {
    pub(super) fn start() -> Result<Self> {
        let cluster = folding_hard("crashes")
            // Each crash leaves some behind.
            .conf("max_prepared_transactions", "1000")
            .conf("counterx.worker_idle_timeout", "1s")
            // Of two tables of each of eight lanes.
            .conf("counterx.stream_max_size", "2MB")
            .conf("max_wal_size", "48MB")
            .conf("min_wal_size", "32MB")
            .start()?;
        Ok(Self {
            cluster,
            mounts: Vec::new(),
            crashes: 0,
            acked: 0,
            checks: 0,
        })
    }

    /// The disk that was mounted last.
    pub(super) fn disk(&self) -> Result<&Tmpfs> {
        self.mounts.last().context("nothing is mounted")
    }

    pub(super) fn has_failpoints(&self) -> Result<bool> {
        let mut client = self.cluster.connect()?;
        let sql = "SELECT current_setting('counterx.failpoint', true) IS NOT NULL";
        Ok(client.query_one(sql, &[])?.get(0))
    }

    pub(super) fn library_has_no_failpoints(&self) -> Result<()> {
        let printed = run(self.cluster.tool("pg_config").arg("--pkglibdir"))?;
        let directory = String::from_utf8(printed.stdout)?;
        let path = std::path::Path::new(directory.trim()).join("counterx.so");
        let library = fs::read(&path).with_context(|| format!("{}", path.display()))?;
        let word = b"failpoint";
        ensure!(
            !library.windows(word.len()).any(|bytes| bytes == word),
            "{} is a release build and has failpoints",
            path.display()
        );
        Ok(())
    }

    /// A database of its own with a load on it, until `meanwhile` has ended; then looks at what is
    /// left. Without `worker`, nobody folds but those who are told to.
    pub(super) fn under_load(
        &mut self,
        db: &str,
        seed: u64,
        worker: bool,
        meanwhile: impl FnOnce(&mut Scene) -> Result<()>,
    ) -> Result<()> {
        let mark = self.cluster.log_len();
        let compaction = if worker { "on" } else { "off" };
        self.cluster.reload(
            &[
                ("counterx.compaction", compaction),
                ("counterx.failpoint", ""),
            ][..self.settings()?],
        )?;
        let mut client = create_database(&self.cluster, db)?;
        prepare_bounded(&mut client)?;
        prepare_windowed(&mut client)?;
        let names = names_in_lanes(&mut client)?;
        client.batch_execute(HISTORIES)?;
        client.batch_execute(streamed_schema())?;
        client.batch_execute(STREAM)?;
        drop(client);
        let shrink_names = names.clone();
        let config = self.cluster.config(db);
        let load = Load {
            clients: 3,
            // As many as there is time for.
            transactions: 1_000_000,
            two_phase: true,
            survives: true,
            seed,
            ..Load::default()
        };
        let ledger = Ledger::default();
        let cluster = &mut self.cluster;
        let mut crashes = 0;
        let (ledger_config, scene_config) = (config.clone(), config.clone());
        let watched = under_watch(&config, &load, |control| {
            std::thread::scope(|scope| {
                let books = scope.spawn(|| ledger.keep(&ledger_config, control));
                let mut scene = Scene {
                    cluster,
                    config: scene_config,
                    control,
                    ledger: &ledger,
                    names,
                    worker,
                    crashes: 0,
                    unique: 0,
                };
                let result = meanwhile(&mut scene);
                crashes = scene.crashes;
                ledger.over.store(true, Ordering::Relaxed);
                let kept = books
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("the ledger panicked")));
                // What the ledger has met explains the rest.
                kept.and(result)
            })?;
            // Not a failure: it is how a load of that length is told to end.
            control.abort();
            Ok(())
        })
        .with_context(|| self.log_end(mark))?;
        self.crashes += crashes;
        self.acked += ledger.acked.load(Ordering::Relaxed).unsigned_abs();
        self.checks += watched.checks;
        let result = (|| {
            let mut connection = Recovering::new(&config);
            let client = connection.client()?;
            ledger.agrees(client)?;
            check(client)?;
            ensure!(
                client
                    .query_one(
                        "SELECT count(*) FROM pg_prepared_xacts WHERE database = $1",
                        &[&db]
                    )?
                    .get::<_, i64>(0)
                    == 0,
                "prepared transactions are left"
            );
            self.cluster.reload(&[("counterx.compaction", "on")])?;
            logs_shrink(client, &shrink_names)?;
            check(client)?;
            self.log_is_clean(mark)
        })();
        result.with_context(|| self.log_end(mark))
    }

    /// How many of the two settings above this build has.
    fn settings(&self) -> Result<usize> {
        Ok(if self.has_failpoints()? { 2 } else { 1 })
    }

    pub(super) fn log_end(&self, mark: u64) -> String {
        let log = self.cluster.log_since(mark);
        let dull = [
            // The load's own.
            "1/0",
            "division by zero",
            // Those who try to connect to a server that is down.
            "accepting connections",
            "Consistent recovery",
            "database system is",
            "checkpoint",
        ];
        let lines: Vec<_> = log
            .lines()
            .filter(|line| !dull.iter().any(|word| line.contains(word)))
            .collect();
        let lines = &lines[lines.len().saturating_sub(60)..];
        format!("the server's log ends:\n{}", lines.join("\n"))
    }

    /// Nothing crashes but what is made to, and no error tells of things that cannot be.
    pub(super) fn log_is_clean(&self, mark: u64) -> Result<()> {
        let log = self.cluster.log_since(mark);
        let odd: Vec<_> = log
            .lines()
            .filter(|line| {
                let signal = line.contains("by signal")
                    && !line.contains("by signal 9")
                    && !log.contains("No space left");
                let panic = line.contains(" PANIC:") && !log.contains("No space left");
                signal
                    || panic
                    || ["TRAP:", "panicked at", "concurrently updated"]
                        .iter()
                        .any(|mark| line.contains(mark))
            })
            .collect();
        ensure!(odd.is_empty(), "in the server's log:\n{}", odd.join("\n"));
        Ok(())
    }
}

/// A load that is going on.
pub(super) struct Scene<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) config: Config,
    pub(super) control: &'a Control,
    ledger: &'a Ledger,
    /// A counter of each lane.
    pub(super) names: Vec<String>,
    worker: bool,
    crashes: u64,
    unique: u64,
}

impl Scene<'_> {
    pub(super) fn connect(&self) -> Result<Client> {
        let mut connection = Recovering::new(&self.config);
        connection.client()?;
        connection.into_client().context("just connected")
    }

    /// A number that this scene has not used yet.
    pub(super) fn unique(&mut self) -> u64 {
        self.unique += 1;
        self.unique
    }

    /// Crashes the server, and returns when it is back.
    pub(super) fn crash(&mut self, how: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut witness = self.connect()?;
        how(self)?;
        poll_until("the server to notice a crash", DEADLINE, || {
            Ok(witness.batch_execute("SELECT 1").is_err())
        })?;
        self.connect()?;
        self.crashes += 1;
        Ok(())
    }

    /// What must be so after whatever has happened.
    pub(super) fn all_is_well(&mut self) -> Result<()> {
        ensure!(!self.control.is_aborted(), "the load has failed");
        let mut client = self.connect()?;
        self.ledger.agrees(&mut client)?;
        check(&mut client)?;
        buckets_agree(&mut client, true)?;
        resolve_orphans(&mut client)?;
        follow(&mut client)?;
        lanes_fold(&mut client, &self.names, self.worker, None)
    }

    /// Commits go on.
    pub(super) fn writers_do_not_wait(&self) -> Result<()> {
        let before = self.ledger.acked.load(Ordering::Relaxed);
        poll_until("commits beside a paused process", DEADLINE, || {
            ensure!(!self.control.is_aborted(), "the load has failed");
            Ok(self.ledger.acked.load(Ordering::Relaxed) >= before + 50)
        })
    }

    /// Makes `point` pause whoever is there, until this is dropped.
    pub(super) fn hold_pause(&self) -> Result<Client> {
        let mut holder = self.connect()?;
        holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
        Ok(holder)
    }
}

/// A consumer has missed nothing. Where what it has read makes no sense with what it reads now, that fails.
pub(super) fn follow(client: &mut Client) -> Result<()> {
    poll_until("a stream to be read", DEADLINE, || {
        match client.batch_execute(FOLLOW) {
            Ok(()) => {}
            Err(error) => {
                let error = error.into();
                // It is lost since it was looked at, or somebody else is not gone yet.
                ensure!(is_gone(&error) || is_busy(&error), "{error:#}");
                return Ok(false);
            }
        }
        match look_at_stream(client, "deeds") {
            Ok(_) => Ok(true),
            Err(error) if is_gone(&error) || is_busy(&error) => Ok(false),
            Err(error) => Err(error),
        }
    })
}

/// As long as this connection lives, whoever comes by a pause in its database stands still.
pub(super) fn hold_pause_in(cluster: &Cluster, db: &str) -> Result<Client> {
    let mut holder = cluster.connect_db(db)?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    Ok(holder)
}

/// Somebody waits at a paused point.
pub(super) fn is_paused(client: &mut Client) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                AND objid = $1::bigint::oid AND database = (SELECT oid FROM pg_database
                                                 WHERE datname = current_database()))";
    Ok(client.query_one(sql, &[&PAUSE_KEY])?.get(0))
}

/// Commits that the server has acknowledged, and how many there can be at most.
#[derive(Default)]
struct Ledger {
    acked: AtomicI64,
    tried: AtomicI64,
    over: AtomicBool,
}

impl Ledger {
    fn keep(&self, config: &Config, control: &Control) -> Result<()> {
        let mut connection = Recovering::new(config);
        while !self.over.load(Ordering::Relaxed) && !control.is_aborted() {
            let client = connection.client()?;
            self.tried.fetch_add(1, Ordering::Relaxed);
            match client.batch_execute("SELECT bump('ledger', 1)") {
                Ok(()) => {
                    self.acked.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let error = anyhow::Error::from(error);
                    if !is_lost(&error) {
                        control.abort();
                        return Err(error.context("the ledger"));
                    }
                    connection.forget();
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    fn agrees(&self, client: &mut Client) -> Result<()> {
        let acked = self.acked.load(Ordering::Relaxed);
        let value: i64 = client
            .query_one("SELECT counter_value('ledger')", &[])?
            .get(0);
        let tried = self.tried.load(Ordering::Relaxed);
        ensure!(
            (acked..=tried).contains(&value),
            "{acked} commits were acknowledged and {tried} tried, and {value} are there"
        );
        Ok(())
    }
}

/// What is written now to these counters gets folded; one lane may be left out.
pub(super) fn lanes_fold(
    client: &mut Client,
    names: &[String],
    worker: bool,
    but: Option<i32>,
) -> Result<()> {
    let sql = "SELECT lane, epoch FROM counterx.lanes WHERE lane IS DISTINCT FROM $1";
    let before: Vec<(i32, i64)> = client
        .query(sql, &[&but])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    client.execute(
        "SELECT bump(name, 1) FROM unnest($1::text[]) name",
        &[&names],
    )?;
    let (lanes, epochs): (Vec<i32>, Vec<i64>) = before.into_iter().unzip();
    let mut stuck = Vec::new();
    poll_until("every lane to be folded", DEADLINE, || {
        if !worker {
            client.batch_execute("SELECT counterx.compact()")?;
        }
        let sql = "SELECT l.lane FROM counterx.lanes l
                     JOIN unnest($1::int[], $2::bigint[]) AS b (lane, epoch) USING (lane)
                    WHERE l.folded_epoch < b.epoch";
        stuck = client.query(sql, &[&lanes, &epochs])?;
        Ok(stuck.is_empty())
    })
    .with_context(|| {
        let stuck: Vec<i32> = stuck.iter().map(|row| row.get(0)).collect();
        format!("stuck lanes: {stuck:?}")
    })
}

/// Fills the active logs of all lanes.
pub(super) fn fill(client: &mut Client, names: &[String]) -> Result<(), postgres::Error> {
    let sql = "SELECT bump(name || repeat('x', 200) || n, 1)
                 FROM unnest($1::text[]) name, generate_series(1, 60) n";
    client.execute(sql, &[&names])?;
    Ok(())
}

/// Both logs of each lane are emptied again, and one of them stays empty.
pub(super) fn logs_shrink(client: &mut Client, names: &[String]) -> Result<()> {
    let sql = "SELECT pg_relation_filenode(oid)::bigint, pg_relation_size(oid) FROM pg_class
                WHERE relname ~ '^log_._[ab]$' ORDER BY relname";
    let files = |client: &mut Client| -> Result<Vec<(i64, i64)>> {
        let rows = client.query(sql, &[])?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let before = files(client)?;
    ensure!(before.len() == 16, "there are {} logs", before.len());
    let mut now = Vec::new();
    let shrunk = poll_until("both logs of each lane to be emptied", DEADLINE, || {
        fill(client, names)?;
        counterx_cluster_tests::settle(client)?;
        now = files(client)?;
        Ok(before
            .iter()
            .zip(&now)
            .all(|(before, now)| before.0 != now.0))
    });
    shrunk.with_context(|| format!("files and sizes before {before:?}, now {now:?}"))?;
    counterx_cluster_tests::settle(client)?;
    // An idle worker ends after a while; a commit starts another.
    poll_until("one log of each lane to stay empty", DEADLINE, || {
        client.execute(
            "SELECT bump(name, 1) FROM unnest($1::text[]) name",
            &[&names],
        )?;
        now = files(client)?;
        Ok(now.chunks(2).all(|lane| lane.iter().any(|log| log.1 == 0)))
    })
    .with_context(|| format!("{now:?}"))
}

/// Stops or kills the whole server and starts it again.
pub(super) fn restart(cluster: &mut Cluster, how: Restart) -> Result<()> {
    match how {
        Restart::Killed => {
            cluster.kill_postmaster()?;
            cluster.start()
        }
        Restart::Immediate => cluster.restart(StopMode::Immediate),
        Restart::Fast => cluster.restart(StopMode::Fast),
    }
}

#[derive(Clone, Copy)]
pub(super) enum Restart {
    Killed,
    Immediate,
    Fast,
}

/// Holds a result to be an error whose message has these words.
pub(super) fn fails_with(result: Result<(), postgres::Error>, words: &str) -> Result<()> {
    match result {
        Ok(()) => bail!("went well, but should have failed with: {words}"),
        Err(error) => {
            let said = error.as_db_error().map_or("", |db| db.message());
            ensure!(
                said.contains(words),
                "failed with {error:?} instead of: {words}"
            );
            Ok(())
        }
    }
}
