//! Hits, by a book that the clients keep: each hit is of counters of its own, so that what a client was told
//! of it can be held against what is there, one by one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::poll_until;
use postgres::{Client, Config};

use crate::check::{Recovering, is_lost};
use crate::server::DEADLINE;

/// What a client knows of a hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The call has returned.
    Counted,
    /// The same, of one that nobody waits for.
    Handed,
    /// An error that says so.
    NotCounted,
    /// The connection broke, or the error leaves it open.
    Unknown,
}

impl Told {
    /// What a failed call says of the hit.
    ///
    /// # Errors
    /// It is no error that a hit should have.
    pub fn of(error: &anyhow::Error) -> Result<Self> {
        if is_lost(error) {
            return Ok(Self::Unknown);
        }
        let error = (error.downcast_ref::<postgres::Error>())
            .and_then(postgres::Error::as_db_error)
            .with_context(|| format!("{error:#}"))?;
        Ok(match error.detail() {
            Some("The hit has been counted.") => Self::Counted,
            Some("The hit was handed to the committer, which may count it still.") => Self::Unknown,
            Some(detail) if detail.contains("is not counted") => Self::NotCounted,
            // What the committer's transaction has met, and a hit has met once more by itself.
            _ if ["40001", "40P01", "53100", "53200"].contains(&error.code().code()) => {
                Self::NotCounted
            }
            Some(detail) => bail!("{error}: {detail}"),
            // What the committer's own transaction has met twice.
            None if error.message().starts_with("failpoint committer.") => Self::NotCounted,
            // Before the call began, or when it was over; the client's own transaction comes by a point of
            // every commit.
            None => {
                let elsewhere = error.code().code() == "57014"
                    || ["failpoint hit.pushed", "failpoint commit.flushed"]
                        .contains(&error.message());
                ensure!(elsewhere, "an error that says nothing of the hit: {error}");
                Self::Unknown
            }
        })
    }
}

/// How a client hits.
#[derive(Clone, Copy)]
pub struct Way {
    /// Nobody waits.
    pub silent: bool,
    /// By `counter_hit_many`, if more than one.
    pub counters: usize,
    /// `statement_timeout`, in milliseconds.
    pub timeout: u32,
    /// Between two hits.
    pub pause: Duration,
}

impl Way {
    /// One counter at a time, with the answer.
    pub const WAITS: Self = Self {
        silent: false,
        counters: 1,
        timeout: 0,
        pause: Duration::ZERO,
    };
    /// Nobody waits. (Without a pause it would do nothing but wait for room.)
    pub const SILENT: Self = Self {
        silent: true,
        pause: Duration::from_micros(200),
        ..Self::WAITS
    };
    /// Has no time.
    pub const HURRIES: Self = Self {
        timeout: 1,
        ..Self::WAITS
    };
    /// Several counters at a time.
    pub const SEVERAL: Self = Self {
        counters: 3,
        ..Self::WAITS
    };
    /// The same, and nobody waits.
    pub const SEVERAL_SILENT: Self = Self {
        counters: 3,
        ..Self::SILENT
    };

    /// Whoever waits, and who does not, with one counter at a time and with several.
    pub const ALL: [Self; 4] = [
        Self::WAITS,
        Self::SEVERAL,
        Self::SILENT,
        Self::SEVERAL_SILENT,
    ];

    fn sql(self) -> &'static str {
        match (self.counters > 1, self.silent) {
            (false, false) => "SELECT counter_hit($1)",
            (false, true) => "SELECT counter_hit($1, 1, wait => false)",
            (true, false) => {
                "SELECT counter_hit_many(
                    (SELECT jsonb_object_agg($1::text || ':' || n, 1) FROM generate_series(1, 3) n))"
            }
            (true, true) => {
                "SELECT counter_hit_many(
                    (SELECT jsonb_object_agg($1::text || ':' || n, 1) FROM generate_series(1, 3) n),
                    wait => false)"
            }
        }
    }
}

struct Entry {
    name: String,
    counters: usize,
    told: Told,
}

/// What the clients were told of their hits.
#[derive(Default)]
pub struct Book {
    prefix: String,
    entries: Vec<Entry>,
}

impl Book {
    /// So many hits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Was there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Was some hit told this?
    #[must_use]
    pub fn has(&self, told: Told) -> bool {
        self.entries.iter().any(|entry| entry.told == told)
    }

    /// Holds the book against the counters, all in one snapshot. Returns how many of those that nobody waits
    /// for are not there.
    ///
    /// # Errors
    /// The first hit that is not what its client was told, or has been counted in part; a counter more.
    pub fn audit(&self, client: &mut Client) -> Result<usize> {
        let mut names = Vec::new();
        for Entry { name, counters, .. } in &self.entries {
            match counters {
                1 => names.push(name.clone()),
                _ => names.extend((1..=*counters).map(|n| format!("{name}:{n}"))),
            }
        }
        let rows = client.query(
            "SELECT value, counted
               FROM counter_values($1) WITH ORDINALITY AS v (name, value, at),
                    (SELECT counter_sum($2)::bigint AS counted OFFSET 0) AS s
              ORDER BY at",
            &[&names, &self.prefix],
        )?;
        ensure!(rows.len() == names.len());
        let mut values = rows.iter().map(|row| row.get::<_, i64>(0));
        let mut missing = 0;
        for entry in &self.entries {
            let Entry { name, told, .. } = entry;
            let all: Vec<i64> = values.by_ref().take(entry.counters).collect();
            let value = all[0];
            ensure!(
                all.iter().all(|&other| other == value),
                "{name} has been counted in part: {all:?}"
            );
            let right = match told {
                Told::Counted => value == 1,
                Told::NotCounted => value == 0,
                Told::Unknown => value == 0 || value == 1,
                Told::Handed => {
                    missing += usize::from(value == 0);
                    value == 0 || value == 1
                }
            };
            ensure!(right, "{name} was told {told:?}, and its value is {value}");
        }
        let counted: i64 = rows.first().map_or(0, |row| row.get(1));
        let sum: i64 = rows.iter().map(|row| row.get::<_, i64>(0)).sum();
        ensure!(counted == sum, "{counted} are counted, {sum} are known");
        Ok(missing)
    }

    /// The same where nothing may be lost. What could not be counted at once comes a little later.
    ///
    /// # Errors
    /// As of [`Book::audit`], and that some were lost.
    pub fn audit_all(&self, client: &mut Client) -> Result<()> {
        poll_until("all that was handed over to be counted", DEADLINE, || {
            Ok(self.audit(client)? == 0)
        })
    }
}

/// Hits in these ways, each from a session of its own, while `events` happen, and returns what was told.
/// Their counters' names begin with `prefix`, and nobody else's do.
///
/// # Errors
/// Those of `events`; an error that no hit should have.
pub fn hit_while(
    config: &Config,
    prefix: &str,
    ways: &[Way],
    events: impl FnOnce(&AtomicU64) -> Result<()>,
) -> Result<Book> {
    let done = AtomicBool::new(false);
    let hits = AtomicU64::new(0);
    let mut book = Book {
        prefix: prefix.to_owned(),
        entries: Vec::new(),
    };
    thread::scope(|scope| {
        let (done, hits) = (&done, &hits);
        let clients: Vec<_> = (ways.iter().enumerate())
            .map(|(client, &way)| {
                let series = format!("{prefix}{client}");
                scope.spawn(move || one_client(config, &series, way, done, hits))
            })
            .collect();
        let result = wait_for_hits(hits, 50).and_then(|()| events(hits));
        let result = result.and_then(|()| wait_for_hits(hits, 50));
        done.store(true, Ordering::Relaxed);
        for client in clients {
            book.entries
                .extend(client.join().expect("a client panicked")?);
        }
        result
    })?;
    Ok(book)
}

/// Waits until so many hits more were made.
///
/// # Errors
/// They were not.
pub fn wait_for_hits(hits: &AtomicU64, more: u64) -> Result<()> {
    let target = hits.load(Ordering::Relaxed) + more;
    poll_until("clients to go on", DEADLINE, || {
        Ok(hits.load(Ordering::Relaxed) >= target)
    })
}

fn one_client(
    config: &Config,
    series: &str,
    way: Way,
    done: &AtomicBool,
    hits: &AtomicU64,
) -> Result<Vec<Entry>> {
    let mut connection = Recovering::new(config);
    let mut entries = Vec::new();
    let run = |connection: &mut Recovering, name: &str| -> Result<()> {
        let session = connection.client()?;
        if way.timeout > 0 {
            session.batch_execute(&format!("SET statement_timeout = {}", way.timeout))?;
        }
        session.query_one(way.sql(), &[&name])?;
        Ok(())
    };
    while !done.load(Ordering::Relaxed) {
        let name = format!("{series}:{}", entries.len());
        let told = match run(&mut connection, &name) {
            Ok(()) if way.silent => Told::Handed,
            Ok(()) => Told::Counted,
            Err(error) => {
                if is_lost(&error) {
                    connection.forget();
                }
                Told::of(&error)?
            }
        };
        hits.fetch_add(1, Ordering::Relaxed);
        entries.push(Entry {
            name,
            counters: way.counters,
            told,
        });
        thread::sleep(way.pause);
    }
    Ok(entries)
}
