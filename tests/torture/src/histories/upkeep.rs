//! What an administrator does beside the traffic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use counterx_cluster_tests::{Control, sqlstate};
use counterx_harness::Cluster;
use postgres::Client;
use postgres::error::SqlState;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Which kind of work; each has a thread of its own, as work on tables waits for old snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Folds, settings, and backends.
    Engine,
    Tables,
}

/// Looks after a database until it is time to stop; returns what was done, and how often.
pub(crate) fn look_after(
    cluster: &Cluster,
    db: &str,
    seed: u64,
    work: Work,
    until: Instant,
    control: &Control,
) -> Result<BTreeMap<&'static str, u64>> {
    let mut upkeep = Upkeep {
        client: cluster.connect_db(db)?,
        db,
        work,
        rng: StdRng::seed_from_u64(seed ^ work as u64),
        done: BTreeMap::new(),
    };
    upkeep
        .client
        .batch_execute("SET application_name = 'upkeep'")?;
    let mut result = Ok(());
    while result.is_ok() && Instant::now() < until && !control.is_aborted() {
        result = upkeep.task();
        // It shares the machine with what it looks after.
        std::thread::sleep(Duration::from_millis(20));
    }
    if work == Work::Tables {
        return result.map(|()| upkeep.done);
    }
    // As it was: at the end everything is to be folded.
    upkeep.each(&[
        format!("ALTER DATABASE {db} RESET counterx.compaction"),
        "ALTER SYSTEM RESET ALL".to_owned(),
        "SELECT pg_reload_conf()".to_owned(),
    ])?;
    result.map(|()| upkeep.done)
}

struct Upkeep<'a> {
    client: Client,
    db: &'a str,
    work: Work,
    rng: StdRng,
    done: BTreeMap<&'static str, u64>,
}

impl Upkeep<'_> {
    fn each(&mut self, statements: &[String]) -> Result<()> {
        for sql in statements {
            self.client
                .batch_execute(sql)
                .with_context(|| sql.clone())?;
        }
        Ok(())
    }

    fn task(&mut self) -> Result<()> {
        let table = self.table();
        let db = self.db;
        let kinds = match self.work {
            Work::Engine => 0..12,
            Work::Tables => 12..23,
        };
        let (what, statements) = match self.rng.random_range(kinds) {
            0..3 => (
                "folds by hand",
                vec!["SELECT counterx.compact()".to_owned()],
            ),
            3 | 4 => {
                let off = self.rng.random_bool(0.5);
                let verb = if off {
                    "SET counterx.compaction = off"
                } else {
                    "RESET counterx.compaction"
                };
                (
                    "pauses of the worker, and their ends",
                    vec![format!("ALTER DATABASE {db} {verb}")],
                )
            }
            5 | 6 => {
                let (name, value) = match self.rng.random_range(0..3) {
                    0 => (
                        "compaction_interval",
                        ["1ms", "20ms", "300ms"][self.rng.random_range(0..3)],
                    ),
                    1 => (
                        "compaction_threshold",
                        ["1", "50", "5000"][self.rng.random_range(0..3)],
                    ),
                    _ => (
                        "log_max_size",
                        ["64kB", "128kB", "64MB"][self.rng.random_range(0..3)],
                    ),
                };
                (
                    "settings changed and reloaded",
                    vec![
                        format!("ALTER SYSTEM SET counterx.{name} = '{value}'"),
                        "SELECT pg_reload_conf()".to_owned(),
                    ],
                )
            }
            7 => ("logs filled", vec!["CALL fill('n:fill', 300)".to_owned()]),
            8 => {
                let max = self.rng.random_range(5..8);
                (
                    "bounds changed",
                    vec![format!("SELECT counter_type_alter('quota', max => {max})")],
                )
            }
            9..12 => (
                "backends terminated",
                vec![
                    "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
                      WHERE application_name LIKE 'client %' ORDER BY random() LIMIT 1) one"
                        .to_owned(),
                ],
            ),
            12 | 13 => ("VACUUM", vec![format!("VACUUM (ANALYZE) counterx.{table}")]),
            14 => (
                "VACUUM FREEZE",
                vec![format!("VACUUM (FREEZE) counterx.{table}")],
            ),
            15 | 16 => ("VACUUM FULL", vec![format!("VACUUM FULL counterx.{table}")]),
            17 => ("ANALYZE", vec![format!("ANALYZE counterx.{table}")]),
            18 => ("REINDEX", vec![format!("REINDEX TABLE counterx.{table}")]),
            19 => (
                "REINDEX CONCURRENTLY",
                vec![format!("REINDEX TABLE CONCURRENTLY counterx.{table}")],
            ),
            20 => {
                let index = match table.as_str() {
                    "late" => return Ok(()),
                    "token" | "hold" => format!("{table}_key"),
                    "total" | "state" => format!("{table}_pkey"),
                    log => format!("{log}_epoch_name"),
                };
                (
                    "CLUSTER",
                    vec![format!("CLUSTER counterx.{table} USING {index}")],
                )
            }
            21 => (
                "value index made",
                vec!["SELECT counterx.create_value_index()".to_owned()],
            ),
            _ => (
                "value index dropped",
                vec!["SELECT counterx.drop_value_index()".to_owned()],
            ),
        };
        match self.each(&statements) {
            Ok(()) => *self.done.entry(what).or_insert(0) += 1,
            // Somebody else was let through; or a counter is beyond the new bounds.
            Err(error)
                if sqlstate(&error).is_some_and(|code| {
                    [SqlState::T_R_DEADLOCK_DETECTED, SqlState::CHECK_VIOLATION].contains(code)
                }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn table(&mut self) -> String {
        match self.rng.random_range(0..6) {
            0 => "total".to_owned(),
            1 => "state".to_owned(),
            2 => ["late", "token", "hold"][self.rng.random_range(0..3)].to_owned(),
            _ => format!(
                "log_{}_{}",
                self.rng.random_range(0..8),
                ["a", "b"][self.rng.random_range(0..2)]
            ),
        }
    }
}
