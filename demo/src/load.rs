//! The load: one thread reads, several count, this one watches.

use std::io::{IsTerminal, stdout};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_harness::Cluster;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use postgres::Client;

use crate::events::{self, Departure};
use crate::{group, per_second};

/// One event: all of its counters in one statement, one transaction and one round trip.
const COUNT_SQL: &str = "SELECT counter_incr(name) FROM unnest($1::text[]) AS name";

const PENDING_SQL: &str = "SELECT coalesce(sum(pending_deltas), 0)::bigint FROM counterx.lanes";

/// How often the backlog is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How often a line is printed where a bar cannot be drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

/// Departures read ahead of the connections.
const READ_AHEAD: usize = 4096;

/// What a run came to.
pub(crate) struct Load {
    pub(crate) events: u64,
    pub(crate) elapsed: Duration,
    /// The largest backlog that was seen, in deltas.
    pub(crate) most_pending: u64,
}

/// Counts all events through that many connections.
pub(crate) fn run(cluster: &Cluster, connections: usize, total: u64) -> Result<Load> {
    let mut watcher = cluster.connect()?;
    let clients = (0..connections)
        .map(|_| cluster.connect())
        .collect::<Result<Vec<_>>>()?;
    let (sender, receiver) = sync_channel(READ_AHEAD);
    // Of the connections' threads alone: the reader stops when the last of them has gone.
    let receiver = Arc::new(Mutex::new(receiver));
    let done = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let (alive, all_ended) = channel::<()>();

    let start = Instant::now();
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_all(&sender));
        let workers: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let (receiver, done, failed) = (Arc::clone(&receiver), &done, &failed);
                // The watch ends when the last of these is dropped.
                let alive = alive.clone();
                scope.spawn(move || {
                    let result = count_all(client, &receiver, done, failed);
                    if result.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                    drop((alive, receiver));
                    result
                })
            })
            .collect();
        drop((alive, receiver));

        let most_pending = watch(&mut watcher, &all_ended, &done, total, start);
        let elapsed = start.elapsed();
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow!("a counting thread panicked"))??;
        }
        reader
            .join()
            .map_err(|_| anyhow!("the reading thread panicked"))??;
        Ok(Load {
            events: done.load(Ordering::Relaxed),
            elapsed,
            most_pending: most_pending?,
        })
    })
}

/// Hands the departures out, to whichever connection is free, as long as there is one.
fn read_all(sender: &SyncSender<Departure>) -> Result<()> {
    for departure in events::read()? {
        if sender.send(departure?).is_err() {
            break;
        }
    }
    Ok(())
}

/// Counts departures until there are no more, or another connection has failed.
fn count_all(
    mut client: Client,
    receiver: &Mutex<Receiver<Departure>>,
    done: &AtomicU64,
    failed: &AtomicBool,
) -> Result<()> {
    let statement = client
        .prepare(COUNT_SQL)
        .context("could not prepare the increment")?;
    while !failed.load(Ordering::Relaxed) {
        let departure = receiver
            .lock()
            .map_err(|_| anyhow!("another connection's thread panicked"))?
            .recv();
        let Ok(departure) = departure else {
            break;
        };
        let names = departure.counters();
        let rows = client
            .execute(&statement, &[&names])
            .with_context(|| format!("could not count {departure:?}"))?;
        ensure!(
            rows == names.len() as u64,
            "{rows} increments were made, not {}",
            names.len()
        );
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Shows how far it is until all connections have ended; returns the largest backlog seen.
fn watch(
    client: &mut Client,
    all_ended: &Receiver<()>,
    done: &AtomicU64,
    total: u64,
    start: Instant,
) -> Result<u64> {
    let bar = stdout()
        .is_terminal()
        .then(|| -> Result<ProgressBar> {
            let style = ProgressStyle::with_template("{bar:32} {percent:>3}%  {msg}")?;
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stdout());
            Ok(bar.with_style(style))
        })
        .transpose()?;
    let mut most_pending = 0;
    let mut last_line = start;
    loop {
        let ended = match all_ended.recv_timeout(WATCH_INTERVAL) {
            Err(RecvTimeoutError::Timeout) => false,
            Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
        };
        let pending: i64 = client
            .query_one(PENDING_SQL, &[])
            .context("could not read counterx.lanes")?
            .get(0);
        let pending = u64::try_from(pending).context("the backlog is negative")?;
        most_pending = most_pending.max(pending);
        let events = done.load(Ordering::Relaxed);
        let message = format!(
            "{} of {} events, {}/s, {} deltas pending",
            group(events),
            group(total),
            per_second(events, start.elapsed()),
            group(pending)
        );
        if let Some(bar) = &bar {
            bar.set_position(events);
            bar.set_message(message);
            if ended {
                bar.finish();
            }
        } else if ended || last_line.elapsed() >= LINE_INTERVAL {
            println!("  {message}");
            last_line = Instant::now();
        }
        if ended {
            return Ok(most_pending);
        }
    }
}
