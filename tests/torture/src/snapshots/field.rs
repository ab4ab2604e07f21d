//! The server, its counters, and the load that is measured.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, create_database, names_in_lanes, pages, settle, wait_for_worker,
};
use counterx_harness::Cluster;
use postgres::{Client, GenericClient};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::measure::{Times, busy_time, float, ratio};
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// Counters that are there, and that nobody changes.
const COLD: usize = 1000;

/// Sessions that count.
const WRITERS: u64 = 2;

/// A measure may grow to so much of what it was.
const LIMIT: f64 = 1.2;

/// So many pages more may any read visit at the end: indexes get deeper, and what is pending lies
/// here and there.
const PAGES_MORE: i64 = 24;

/// And so many for each counter that has dead totals, where a read goes through many: a few in vain,
/// and the counter's look-up. What is dead are hundreds of pages, or thousands.
const PAGES_A_COUNTER: i64 = 16;

/// The counters that are changed.
const HOT: i64 = 9;

/// A read that is measured.
pub(super) struct Read {
    pub(super) what: &'static str,
    pub(super) sql: &'static str,
    goes_through: Counters,
}

/// The counters whose totals a read goes through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counters {
    /// None: it looks up what it wants.
    None,
    Hot,
    All,
}

/// The reads that are measured. `page` is one of hot counters: those have dead totals.
pub(super) const READS: [Read; 6] = [
    Read {
        what: "counter_value of a hot counter",
        sql: "SELECT counter_value('lane:hot')",
        goes_through: Counters::None,
    },
    Read {
        what: "counter_value of a cold counter",
        sql: "SELECT counter_value('cold:500')",
        goes_through: Counters::None,
    },
    Read {
        what: "counter_list of the hot counters",
        sql: "SELECT count(*), sum(value) FROM counter_list('lane:', '', 20)",
        goes_through: Counters::Hot,
    },
    Read {
        what: "counter_top of all counters",
        sql: "SELECT count(*), sum(value) FROM counter_top(10)",
        goes_through: Counters::All,
    },
    Read {
        what: "the view counters",
        sql: "SELECT count(*), sum(value) FROM counters",
        goes_through: Counters::All,
    },
    Read {
        what: "the view counterx.workers",
        sql: "SELECT count(*), sum(folds) FROM counterx.workers",
        goes_through: Counters::None,
    },
];

/// One server, in which each story has a database of its own.
pub(super) struct Field {
    pub(super) cluster: Cluster,
    seed: u64,
}

impl Field {
    pub(super) fn start(options: &Options) -> Result<Self> {
        let cluster = Cluster::builder()
            .name("torture-snapshots")
            // As many folds as the worker can do.
            .conf("counterx.compaction_interval", "1ms")
            .conf("counterx.compaction_threshold", "1")
            .conf("counterx.log_max_size", options.size("64kB", "1MB"))
            .conf("counterx.worker_idle_timeout", "2s")
            .conf("shared_buffers", options.size("128MB", "1GB"))
            // No checkpoint in the midst of a measurement.
            .conf("max_wal_size", "8GB")
            .conf("checkpoint_timeout", "1h")
            .conf("autovacuum_naptime", "30s")
            .start()?;
        Ok(Self {
            cluster,
            seed: options.seed_for("snapshots"),
        })
    }

    /// A database with counters, all of them folded, the hot ones in all lanes.
    pub(super) fn story(&self, db: &str) -> Result<Story<'_>> {
        let mut client = create_database(&self.cluster, db)?;
        let mut hot = names_in_lanes(&mut client)?;
        // The one that reads ask for; in a lane that has another hot one.
        hot.push("lane:hot".to_owned());
        client.execute("SELECT counter_incr(n) FROM unnest($1::text[]) n", &[&hot])?;
        let sql = format!("SELECT counter_incr('cold:' || n, n) FROM generate_series(1, {COLD}) n");
        client.batch_execute(&sql)?;
        // What autovacuum does within a minute: without it nobody knows how many counters there are.
        settle(&mut client)?;
        client.batch_execute("VACUUM counterx.total")?;
        let cold = (1..=COLD).sum::<usize>();
        let ledger = (0..hot.len()).map(|_| AtomicI64::new(1)).collect();
        Ok(Story {
            db: db.to_owned(),
            field: self,
            hot,
            others: AtomicI64::new(i64::try_from(cold)?),
            ledger,
        })
    }

    pub(super) fn drop(&self, db: &str) -> Result<()> {
        let sql = format!("DROP DATABASE {db} WITH (FORCE)");
        Ok(self.cluster.connect()?.batch_execute(&sql)?)
    }
}

/// A database, and what its counters must be.
pub(super) struct Story<'a> {
    pub(super) db: String,
    field: &'a Field,
    hot: Vec<String>,
    /// What the other counters come to.
    others: AtomicI64,
    /// What was added to each hot counter, by commits that came back.
    ledger: Vec<AtomicI64>,
}

/// What is to be measured.
#[derive(Clone, Copy)]
pub(super) struct Course {
    pub(super) windows: usize,
    /// Each window ends after so many folds, or so many transactions of the writers.
    pub(super) folds: i64,
    pub(super) transactions: i64,
    /// ... or then, should that come first.
    pub(super) at_most: Duration,
}

/// What was measured in one window.
#[derive(Default)]
pub(super) struct Window {
    seconds: f64,
    pub(super) transactions: i64,
    pub(super) increments: i64,
    pub(super) folds: i64,
    /// As the folds say it themselves.
    fold_times: Times,
    /// What the worker was busy for in all.
    worker: Duration,
    pub(super) reads: [Times; READS.len()],
    /// What the session that reads was busy for.
    busy: [Times; READS.len()],
    pub(super) pages: [i64; READS.len()],
}

impl Story<'_> {
    pub(super) fn connect(&self) -> Result<Client> {
        self.field.cluster.connect_db(&self.db)
    }

    /// Adds to a hot counter what somebody else has counted.
    pub(super) fn credit(&self, counter: usize, delta: i64) {
        self.ledger[counter].fetch_add(delta, Ordering::Relaxed);
    }

    /// The same for a counter that is none of the hot ones.
    pub(super) fn credit_other(&self, delta: i64) {
        self.others.fetch_add(delta, Ordering::Relaxed);
    }

    pub(super) fn hot(&self, counter: usize) -> &str {
        &self.hot[counter]
    }

    /// Counts from several sessions and reads from one, window after window.
    pub(super) fn measure(&self, course: Course) -> Result<Vec<Window>> {
        let over = AtomicBool::new(false);
        let transactions = AtomicI64::new(0);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| {
                    let (over, transactions) = (&over, &transactions);
                    scope.spawn(move || {
                        let result = self.write(number, over, transactions);
                        // The others need not wait for what does not come.
                        if result.is_err() {
                            over.store(true, Ordering::Relaxed);
                        }
                        result
                    })
                })
                .collect();
            let windows: Result<Vec<Window>> = (0..course.windows)
                .map(|_| self.window(course, &over, &transactions))
                .collect();
            over.store(true, Ordering::Relaxed);
            for writer in writers {
                writer
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a writer panicked")))?;
            }
            windows
        })
    }

    fn write(&self, number: u64, over: &AtomicBool, transactions: &AtomicI64) -> Result<()> {
        let mut client = self.connect()?;
        let mut rng = StdRng::seed_from_u64(self.field.seed.wrapping_add(number));
        let sql = "SELECT counter_incr(n, d) FROM unnest($1::text[], $2::bigint[]) AS t (n, d)";
        let statement = client.prepare(sql)?;
        while !over.load(Ordering::Relaxed) {
            let deltas: Vec<i64> = self.hot.iter().map(|_| rng.random_range(1..10)).collect();
            client.execute(&statement, &[&self.hot, &deltas])?;
            for (counter, delta) in deltas.iter().enumerate() {
                self.credit(counter, *delta);
            }
            transactions.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn window(
        &self,
        course: Course,
        over: &AtomicBool,
        transactions: &AtomicI64,
    ) -> Result<Window> {
        let mut client = self.connect()?;
        let mut window = Window::default();
        let statements = READS
            .iter()
            .map(|read| client.prepare(read.sql))
            .collect::<Result<Vec<_>, _>>()?;
        let mut states = States::default();
        let folds_before = states.look(&mut client, &mut Times::default())?;
        let done_before = transactions.load(Ordering::Relaxed);
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let worker = wait_for_worker(&mut client, &self.db)?;
        let worker_before = busy_time(worker).unwrap_or_default();
        let started = Instant::now();
        loop {
            for (place, statement) in statements.iter().enumerate() {
                let before = busy_time(pid).unwrap_or_default();
                window.reads[place].time(|| client.query_one(statement, &[]))?;
                let after = busy_time(pid).unwrap_or_default();
                window.busy[place].add(after.saturating_sub(before));
            }
            window.folds = states.look(&mut client, &mut window.fold_times)? - folds_before;
            window.transactions = transactions.load(Ordering::Relaxed) - done_before;
            ensure!(!over.load(Ordering::Relaxed), "a writer has failed");
            if window.folds >= course.folds
                || window.transactions >= course.transactions
                || started.elapsed() >= course.at_most
            {
                break;
            }
            // The reader is not what is to be measured most of the time.
            std::thread::sleep(Duration::from_millis(2));
        }
        window.seconds = started.elapsed().as_secs_f64();
        let worker = busy_time(worker).unwrap_or_default();
        window.worker = worker.saturating_sub(worker_before);
        window.increments = window.transactions * i64::try_from(self.hot.len())?;
        window.pages = page_counts(&mut client)?;
        Ok(window)
    }

    /// Every counter is what the ledger says. Nobody counts meanwhile.
    pub(super) fn check(&self, client: &mut impl GenericClient) -> Result<()> {
        let sql = "SELECT n, counter_value(n), (SELECT value::bigint FROM counters WHERE name = n)
                     FROM unnest($1::text[]) n";
        for (row, due) in client.query(sql, &[&self.hot])?.iter().zip(&self.ledger) {
            let (name, point, listed): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let due = due.load(Ordering::Relaxed);
            ensure!(
                point == due && listed == due,
                "{name}: {due} were counted, counter_value says {point}, counters {listed}"
            );
        }
        let hot = self.ledger.iter().map(|due| due.load(Ordering::Relaxed));
        let all = self.others.load(Ordering::Relaxed) + hot.sum::<i64>();
        let sql = "SELECT (SELECT sum(value)::bigint FROM counters), counter_sum('')::bigint,
                          (SELECT sum(value)::bigint FROM counter_top(9000)),
                          (SELECT sum(value)::bigint FROM counter_list('', '', 9000))";
        let row = client.query_one(sql, &[])?;
        for (column, what) in ["counters", "counter_sum", "counter_top", "counter_list"]
            .iter()
            .enumerate()
        {
            let sum: i64 = row.get(column);
            ensure!(
                sum == all,
                "{all} were counted in all, {what} comes to {sum}"
            );
        }
        Ok(())
    }

    /// All that a snapshot says of the counters, in all the ways to ask.
    pub(super) fn truth(&self, client: &mut impl GenericClient) -> Result<String> {
        let sql = "SELECT string_agg(format('%s=%s/%s', name, value, counter_value(name)), ' ' ORDER BY name)
                          || counter_sum('')::text
                          || (SELECT string_agg(t::text, ' ' ORDER BY rank, name) FROM counter_top(20) t)
                          || (SELECT string_agg(l::text, ' ' ORDER BY name) FROM counter_list('lane:', '', 20) l)
                     FROM counters";
        Ok(client.query_one(sql, &[])?.get(0))
    }

    /// Sizes and dead rows, as figures.
    pub(super) fn report_space(&self, report: &mut PartReport, when: &str) -> Result<()> {
        let mut client = self.connect()?;
        let sql = "SELECT pg_total_relation_size('counterx.total'), pg_total_relation_size('counterx.state'),
                          (SELECT sum(log_bytes)::bigint FROM counterx.lanes)";
        let row = client.query_one(sql, &[])?;
        for (column, what) in ["total", "state", "logs"].iter().enumerate() {
            let size = float(row.get(column)) / f64::from(1 << 20);
            report.figure(&format!("size of {what} {when}"), size, Unit::Mebibytes);
        }
        // What versions there are, by those who are not visible: statistics may lag behind.
        client.batch_execute("CREATE EXTENSION IF NOT EXISTS pgstattuple")?;
        for table in ["total", "state"] {
            let sql =
                format!("SELECT dead_tuple_count FROM pgstattuple('counterx.{table}'::regclass)");
            let dead = float(client.query_one(&sql, &[])?.get(0));
            report.figure(&format!("dead rows of {table} {when}"), dead, Unit::Count);
        }
        Ok(())
    }
}

/// Follows the lanes' states as folds write them.
#[derive(Default)]
struct States {
    seen: [i64; 8],
}

impl States {
    /// How many folds there were; `times` gets the times of those that came since the last look.
    fn look(&mut self, client: &mut Client, times: &mut Times) -> Result<i64> {
        let sql = "SELECT lane, folds, last_fold_us FROM counterx.fold_status()";
        let mut sum = 0;
        for row in client.query(sql, &[])? {
            let (lane, folds, micros): (i32, i64, i64) = (row.get(0), row.get(1), row.get(2));
            let seen = &mut self.seen[usize::try_from(lane)?];
            if folds != *seen {
                times.add(Duration::from_micros(u64::try_from(micros)?));
            }
            *seen = folds;
            sum += folds;
        }
        Ok(sum)
    }
}

/// Pages that each read visits; the median of several times.
pub(super) fn page_counts(client: &mut Client) -> Result<[i64; READS.len()]> {
    let mut found = [0; READS.len()];
    for (read, found) in READS.iter().zip(&mut found) {
        let mut counts = Vec::new();
        for _ in 0..9 {
            counts.push(pages(client, read.sql).context(read.what)?);
        }
        counts.sort_unstable();
        *found = counts[counts.len() / 2];
    }
    Ok(found)
}

/// How the measures of a run's last window compare with those of its first: as figures, or, when
/// they are to stay as they are, with the limit. With another run to compare with, what they were at
/// the start as well, and how much of their growth is not in that one too.
pub(super) fn report_windows(
    report: &mut PartReport,
    who: &str,
    windows: &[Window],
    limited: bool,
    control: Option<&[Window]>,
) {
    let [first, .., last] = windows else { return };
    let mut compare = |what: &str, unit: Unit, measure: &dyn Fn(&Window) -> f64| {
        // Of what is done in a second, less is worse.
        let growth = |first: &Window, last: &Window| match unit {
            Unit::PerSecond => ratio(measure(first), measure(last)),
            _ => ratio(measure(last), measure(first)),
        };
        let grown = growth(first, last);
        let order = match unit {
            Unit::PerSecond => "start / end",
            _ => "end / start",
        };
        if control.is_some() {
            report.figure(
                &format!("{what}, {who}, at the start"),
                measure(first),
                unit,
            );
        }
        let ratio_of = format!("{what}, {who}, {order}");
        if limited {
            report.limited(&ratio_of, grown, Unit::Ratio, LIMIT);
        } else {
            report.figure(&ratio_of, grown, Unit::Ratio);
        }
        if let Some([control_first, .., control_last]) = control {
            let of_control = growth(control_first, control_last);
            let what = format!("{ratio_of}, over that of nobody old");
            report.figure(&what, ratio(grown, of_control), Unit::Ratio);
        }
    };
    compare("increments", Unit::PerSecond, &|window| {
        float(window.increments) / window.seconds
    });
    compare("folds", Unit::PerSecond, &|window| {
        float(window.folds) / window.seconds
    });
    compare("a fold, median", Unit::Milliseconds, &|window| {
        window.fold_times.p50()
    });
    compare("worker busy for a fold", Unit::Milliseconds, &|window| {
        window.worker.as_secs_f64() * 1000.0 / float(window.folds.max(1))
    });
    for (place, read) in READS.iter().enumerate() {
        let what = format!("{}, median", read.what);
        compare(&what, Unit::Milliseconds, &|window| {
            window.reads[place].p50()
        });
        let what = format!("{}, median of what the session is busy", read.what);
        compare(&what, Unit::Milliseconds, &|window| {
            window.busy[place].p50()
        });
        let what = format!("{}, p99", read.what);
        compare(&what, Unit::Milliseconds, &|window| {
            window.reads[place].p99()
        });
    }
    for (place, read) in READS.iter().enumerate() {
        let what = format!("pages that {} visits", read.what);
        compare(&what, Unit::Count, &|window| float(window.pages[place]));
    }
}

/// Reads visit about as many pages as before: no dead rows. What goes through all counters reads the
/// table as long as it is small, and then at most a page for each counter.
pub(super) fn check_pages(before: &[i64], after: &[i64]) -> Result<()> {
    let all = i64::try_from(COLD)? + HOT;
    for ((read, before), after) in READS.iter().zip(before).zip(after) {
        let may = PAGES_MORE
            + match read.goes_through {
                Counters::None => 0,
                Counters::Hot => HOT * PAGES_A_COUNTER,
                Counters::All => HOT * PAGES_A_COUNTER + all,
            };
        ensure!(
            *after <= before + may,
            "{} visits {after} pages, and visited {before} before",
            read.what
        );
    }
    Ok(())
}

/// Folded all, all lanes go on.
pub(super) fn settled(story: &Story, client: &mut Client) -> Result<()> {
    settle(client).context("a lane is stuck")?;
    story.check(client)
}

/// Logs shrink as the lanes are used; totals get rid of what is dead.
pub(super) fn recovered(story: &Story, client: &mut Client, log_bytes_at_most: i64) -> Result<()> {
    counterx_harness::poll_until("the logs to shrink", DEADLINE, || {
        let names = &story.hot;
        client.execute(
            "SELECT counter_incr(n, 1) FROM unnest($1::text[]) n",
            &[names],
        )?;
        for counter in 0..names.len() {
            story.credit(counter, 1);
        }
        let sql = "SELECT sum(log_bytes)::bigint FROM counterx.lanes";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) <= log_bytes_at_most)
    })?;
    settle(client)?;
    counterx_harness::poll_until("the dead totals to go", DEADLINE, || {
        for table in ["total", "state"] {
            client.batch_execute(&format!("VACUUM counterx.{table}"))?;
        }
        let sql = "SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables
                    WHERE relid IN ('counterx.total'::regclass, 'counterx.state'::regclass)";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 0)
    })?;
    story.check(client)
}
