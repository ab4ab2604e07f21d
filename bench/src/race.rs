//! A race: ways to count that take turns in short slices.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::job::Job;
use crate::peers::{Batch, Keys, Peer};
use crate::pgbench::Pgbench;
use crate::plot::{Bar, Plot};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

/// Seconds of each before it counts: files grow, and catalogs are read, for the first time.
const WARM_UP: u32 = 1;

/// One that takes part.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    /// Before the race.
    pub(crate) create: String,
    /// Before each round.
    pub(crate) reset: String,
    pub(crate) script: String,
    /// What a transaction adds to `total`.
    pub(crate) increments: u32,
    /// How many there were, as a bigint.
    pub(crate) total: Option<String>,
    pub(crate) clients: u32,
    /// Of the clients' sessions.
    pub(crate) settings: Vec<(&'static str, String)>,
    /// What is done each second meanwhile, and once after it.
    pub(crate) job: Option<String>,
}

impl Entry {
    pub(crate) fn new(peer: Peer, keys: Keys, batch: Batch, clients: u32) -> Self {
        Self {
            name: peer.name(),
            create: peer.create(keys),
            reset: peer.reset(keys),
            script: peer.script(keys, batch),
            increments: batch.size(),
            total: peer.total(keys),
            clients,
            settings: Vec::new(),
            job: peer.job(),
        }
    }

    /// Something that only these users write.
    pub(crate) fn custom(name: &str, script: &str, total: &str, clients: u32) -> Self {
        Self {
            name: name.to_owned(),
            create: String::new(),
            reset: String::new(),
            script: script.to_owned(),
            increments: 1,
            total: (!total.is_empty()).then(|| total.to_owned()),
            clients,
            settings: Vec::new(),
            job: None,
        }
    }

    /// Hits that nobody waits for.
    pub(crate) fn silent_hits(clients: u32) -> Self {
        let mut silent = Self::custom(
            "counter_hit, wait => false",
            "SELECT counter_hit('silent', wait => false);",
            "SELECT counter_value('silent')",
            clients,
        );
        // Who waits comes after those.
        silent.job = Some("SELECT counter_hit('silent', 0)".to_owned());
        silent
    }

    pub(crate) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    pub(crate) fn setting(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    pub(crate) fn asynchronous(self) -> Self {
        self.setting("synchronous_commit", "off")
    }
}

/// What came of a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// Increments per second.
    pub(crate) rate: f64,
    /// For each increment; of what folds it, too.
    pub(crate) wal_bytes: Option<f64>,
}

/// What came of a race.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Race {
    pub(crate) title: String,
    /// In the order of the entries. The others are compared to the first one.
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) rate: Series,
    pub(crate) wal_bytes: Option<Series>,
    /// The first one's rate, times this one's.
    pub(crate) ratio: Series,
}

impl Race {
    /// The row of that name.
    pub(crate) fn row(&self, name: &str) -> Result<&Row> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.name == name)
            .with_context(|| format!("\"{name}\" is not in the race \"{}\"", self.title))
    }

    /// The first one's rate, times that of `peer`.
    pub(crate) fn times(&self, peer: Peer) -> Result<Series> {
        Ok(self.row(&peer.name())?.ratio.clone())
    }

    /// A plot of the rates, the highest on top. Without `SELECT 1`: beside what writes nothing, all
    /// others look alike.
    pub(crate) fn plot(&self, name: &str, title: &str) -> Plot {
        let mut bars: Vec<Bar> = self
            .rows
            .iter()
            .filter(|row| row.name != Peer::SelectOne.name())
            .map(|row| Bar::new(&row.name, &row.rate))
            .collect();
        bars.sort_by(|a, b| b.value.total_cmp(&a.value));
        Plot::bars(name, title, "increments per second", bars)
    }
}

/// How long, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) rounds: u32,
    pub(crate) seconds: u32,
}

/// Entries of one database, one after the other, in rounds. Each entry is created, and warmed up,
/// when it races for the first time in this cluster.
pub(crate) fn race(
    server: &mut Server,
    title: &str,
    pace: Pace,
    entries: &[Entry],
) -> Result<Race> {
    for entry in entries {
        if !entry.create.is_empty() && server.is_new(&entry.create) {
            server.execute(&entry.create)?;
            server.execute("VACUUM (ANALYZE)")?;
        }
        if server.is_new(&entry.script) {
            slice(server, entry, WARM_UP)?;
        }
    }
    server.execute("CHECKPOINT")?;
    let reset: BTreeSet<&str> = entries.iter().map(|entry| &*entry.reset).collect();
    let reset: String = reset.into_iter().collect();
    race_with(
        server,
        title,
        pace.rounds,
        entries,
        |server, entry, first| {
            if first {
                server.execute(&reset)?;
            }
            slice(server, entry, pace.seconds)
        },
    )
    .with_context(|| format!("the race \"{title}\""))
}

/// The same for whatever has a name: `turn` runs one of them, and is told when a round begins.
pub(crate) fn race_with<T: Named>(
    server: &mut Server,
    title: &str,
    rounds: u32,
    entries: &[T],
    mut turn: impl FnMut(&mut Server, &T, bool) -> Result<Turn>,
) -> Result<Race> {
    println!("  {title}");
    let mut all: Vec<Vec<Turn>> = vec![Vec::new(); entries.len()];
    for round in 0..rounds {
        for (place, number) in turns(round, entries.len()).into_iter().enumerate() {
            let entry = &entries[number];
            let done = turn(server, entry, place == 0).with_context(|| entry.name().to_owned())?;
            println!(
                "    round {}: {}: {}",
                round + 1,
                entry.name(),
                Unit::PerSecond.format(done.rate)
            );
            all[number].push(done);
        }
    }
    let mut rows: Vec<Row> = Vec::new();
    for (entry, turns) in entries.iter().zip(&all) {
        let name = entry.name().to_owned();
        let rates = turns.iter().map(|turn| turn.rate).collect();
        let rate = Series::new(&name, Unit::PerSecond, rates)?;
        let wal_bytes: Option<Vec<f64>> = turns.iter().map(|turn| turn.wal_bytes).collect();
        let wal_bytes = wal_bytes
            .map(|bytes| Series::new(format!("{name}: WAL"), Unit::Bytes, bytes))
            .transpose()?;
        let first = rows.first().map_or(&rate, |row| &row.rate);
        let what = format!("{title}: {}, times {name}", entries[0].name());
        let ratio = first.ratio_to(what, &rate)?;
        rows.push(Row {
            name,
            rate,
            wal_bytes,
            ratio,
        });
    }
    Ok(Race {
        title: title.to_owned(),
        rows,
    })
}

/// What a race can be made of.
pub(crate) trait Named {
    fn name(&self) -> &str;
}

impl Named for Entry {
    fn name(&self) -> &str {
        &self.name
    }
}

/// One turn, and whether all of it has arrived.
pub(crate) fn slice(server: &mut Server, entry: &Entry, seconds: u32) -> Result<Turn> {
    let before: i64 = match &entry.total {
        Some(total) => server.one(total)?,
        None => 0,
    };
    let start = server.wal_bytes()?;
    let job = entry
        .job
        .as_ref()
        .map(|sql| Job::start(&server.cluster, sql))
        .transpose()?;
    let outcome = Pgbench::new(&server.cluster, entry.clients, &entry.script)
        .settings(&entry.settings)
        .run(seconds)?;
    if let Some(job) = job {
        job.stop()?;
    }
    if let Some(sql) = &entry.job {
        server.execute(sql)?;
    }
    // What is folded later is this turn's too, and must not come out of the next one's time.
    server.fold()?;
    let wal_bytes = server.wal_bytes()? - start;
    let increments = outcome.transactions * i64::from(entry.increments);
    if let Some(total) = &entry.total {
        server.check(&entry.name, total, before + increments)?;
    }
    Ok(Turn {
        rate: outcome.rate * f64::from(entry.increments),
        wal_bytes: (increments > 0).then(|| wal_bytes as f64 / increments as f64),
    })
}
