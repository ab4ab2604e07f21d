//! What a worker does for streams: it tells consumers that there are changes, and keeps streams in order.
//!
//! # Note about hints
//! That there is something is told by a transaction of its own, after the fold: a commit that notifies waits for all
//! others that do, and a fold must wait for nobody. A hint that cannot be given in time is tried again. The queue of
//! notifications is the whole server's: where a listener holds it up, nothing is added to it. Whoever waits for hints
//! looks now and then all the same.
//!
//! Who folds by hand gives none. So a worker looks whether its lanes were folded by others, and tells all then that are
//! behind.
//!
//! # Note about several workers
//! The worker that has a lane tells of the folds of this lane, whoever has folded it, and keeps what streams have there
//! in order: nobody else needs its lease as often. Of a lane that it gets it tells all that are behind there, as the
//! worker before may have ended with something to tell. Alerts are told by the first worker, as firing is counted in
//! all lanes together.

use crate::fold::stream as fold;
use crate::fold::stream_upkeep;
use crate::pg::clock;
use crate::pg::error::{debug, log};
use crate::pg::lock::Stillness;
use crate::pg::scan::TableScan;
use crate::pg::snapshot::LatestSnapshot;
use crate::process::session;
use crate::store::as_owner::Bytes;
use crate::store::catalog;
use crate::store::columns::alert_lane;
use crate::store::state;
use crate::store::stream;
use crate::store::tables;
use counterx_core::lane::LANES;
use counterx_core::schedule::LaneClock;
use counterx_core::streams::Position;
use counterx_core::turns::Seat;
use pgrx::Spi;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

/// A stream is told so often at most, by each worker: with several, which seldom fold at the same moment, its consumers
/// look a few times more often, and are not late.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Who could not be told is told after this time.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How often a worker looks whether others have folded.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The same where there was neither a stream nor an alert. (A fold that finds one says so.)
const LOOK_EVERY_WITHOUT: Duration = Duration::from_secs(1);

/// It pauses so long when it cannot look.
const LOOK_AFTER_FAILURE: Duration = Duration::from_secs(5);

/// How often it looks for changes that are read, or not wanted any more.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// A new worker tells of alerts that have fired within this time before, in microseconds: perhaps nobody has.
const LATELY: i64 = 60 * 1_000_000;

/// What a worker remembers.
#[derive(Default)]
pub struct Streams {
    /// It is not the first worker of its database.
    is_further: bool,
    /// How many folds each lane has had, as far as it is known for whom. None: the lane is new to the worker, or
    /// another one's.
    folds: [Option<i64>; LANES],
    /// How often each alert has fired.
    fired: HashMap<i64, i64>,
    /// What is to be told.
    wanted: BTreeSet<Vec<u8>>,
    /// When that was told last.
    told: HashMap<Vec<u8>, Duration>,
    /// What could not be told is tried again then.
    again_at: Duration,
    looked: Duration,
    /// Why it could not look.
    failure: Option<String>,
    /// There is nothing that streams or alerts need, and none of them.
    unused: bool,
    /// When each lane is kept in order next: one that fails does not make the others wait.
    keeps: [LaneClock; LANES],
    has_kept: bool,
}

impl Streams {
    /// Of the worker that has this seat.
    pub fn of(seat: Seat) -> Self {
        Self {
            is_further: !seat.is_first(),
            ..Self::default()
        }
    }

    /// Does what is due, for the lanes that the worker `has`. Outside of any transaction.
    pub fn see_to(&mut self, now: Duration, has: impl Fn(usize) -> bool) {
        let hints = fold::take_hints();
        let has_folded = !hints.folds.is_empty();
        self.wanted
            .extend(hints.streams.iter().map(|name| name.to_vec()));
        for (lane, number) in hints.folds {
            // Others may have folded in between.
            if self.folds[lane] == Some(number - 1) {
                self.folds[lane] = Some(number);
            }
        }
        for lane in (0..LANES).filter(|&lane| !has(lane)) {
            self.folds[lane] = None;
        }
        let pause = match (&self.failure, self.unused) {
            (Some(_), _) => LOOK_AFTER_FAILURE,
            (None, true) => LOOK_EVERY_WITHOUT,
            (None, false) => LOOK_EVERY,
        };
        let at_once = has_folded && self.failure.is_none();
        if at_once || self.looked.is_zero() || now >= self.looked + pause {
            self.looked = now;
            let looked = session::transaction(c"looking at streams", || self.look(&has));
            let failure = looked.err();
            if let Some(message) = &failure
                && self.failure != failure
            {
                log(format!(
                    "counterx: the worker cannot look at streams: {message}"
                ));
            }
            self.failure = failure;
        }
        if self.unused {
            return;
        }
        self.tell(now);
        self.keep(now, &has);
    }

    /// Is somebody still to be told?
    pub fn has_hints(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Time until something is to be told.
    pub fn until_due(&self, now: Duration) -> Duration {
        let due = (self.wanted.iter())
            .map(|payload| self.told.get(payload))
            .map(|told| told.map_or(now, |told| *told + TELL_EVERY))
            .min();
        due.map_or(Duration::MAX, |due| {
            due.max(self.again_at).saturating_sub(now)
        })
    }

    fn look(&mut self, has: &impl Fn(usize) -> bool) {
        let Ok(shared) = catalog::try_shared() else {
            return;
        };
        self.unused = false;
        if !stream::may_be_any(&shared) {
            self.folds = [None; LANES];
            self.wanted.clear();
            self.unused = ((0..LANES).filter(|&lane| has(lane))).all(stream_upkeep::is_clean);
            return;
        }
        let folds: [Option<i64>; LANES] = std::array::from_fn(|lane| {
            let state = || state::newest(&shared, lane);
            has(lane).then(|| state().folds)
        });
        if self.folds != folds {
            let latest = LatestSnapshot::take();
            // SAFETY: the snapshot is active.
            let (streams, cursors) = unsafe {
                let streams = stream::streams(&shared, latest.as_ptr());
                (streams, stream::cursors(latest.as_ptr()))
            };
            let cells: [_; LANES] = std::array::from_fn(stream::cell);
            let behind: HashSet<&[u8]> = (cursors.iter())
                .filter(|cursor| {
                    cursor.is_live(cells[cursor.lane])
                        && folds[cursor.lane]
                            .is_some_and(|folds| cursor.position < Position::end_of(folds))
                })
                .map(|cursor| &*cursor.stream)
                .collect();
            let told =
                (streams.iter()).filter(|stream| stream.notify && behind.contains(&*stream.name));
            self.wanted.extend(told.map(|stream| stream.name.to_vec()));
            // Not before: all that may fail, and is then to be done again.
            self.folds = folds;
        }
        if !self.is_further {
            self.look_at_alerts();
        }
    }

    fn look_at_alerts(&mut self) {
        let table = tables::open(catalog::relation_of("alert_lane"));
        if table.blocks() == 0 {
            return;
        }
        let latest = LatestSnapshot::take();
        let mut fired: HashMap<i64, (i64, i64)> = HashMap::new();
        {
            // SAFETY: the snapshot is active.
            let mut scan = unsafe { TableScan::new(&table, latest.as_ptr()) };
            while let Some(row) = scan.next() {
                let (sum, last) = fired.entry(row.int8(alert_lane::ALERT)).or_default();
                *sum += row.int8(alert_lane::FIRED);
                *last = row.int8(alert_lane::LAST_FIRED_AT).max(*last);
            }
        }
        let is_new = |id: &i64, (sum, last): &(i64, i64)| match self.fired.get(id) {
            Some(known) => known != sum,
            None => *last > clock::now().saturating_sub(LATELY),
        };
        let new: Vec<i64> = (fired.iter())
            .filter(|(id, fired)| is_new(id, fired))
            .map(|(id, _)| *id)
            .collect();
        if !new.is_empty() {
            // SAFETY: the snapshot is active.
            let alerts = unsafe { stream::alerts(&catalog::shared(), latest.as_ptr()) };
            let told = (alerts.iter()).filter(|it| it.stream.is_none() && new.contains(&it.id));
            self.wanted
                .extend(told.map(|alert| [b"alert:", &*alert.name].concat()));
        }
        // Likewise.
        self.fired = fired.into_iter().map(|(id, (sum, _))| (id, sum)).collect();
    }

    fn tell(&mut self, now: Duration) {
        if self.wanted.is_empty() || self.until_due(now) > Duration::ZERO {
            return;
        }
        let is_due = |payload: &&Vec<u8>| {
            (self.told.get(*payload)).is_none_or(|told| *told + TELL_EVERY <= now)
        };
        let due: Vec<Vec<u8>> = self.wanted.iter().filter(is_due).cloned().collect();
        session::set(c"lock_timeout", c"100ms");
        let told = session::transaction(c"notifying", || {
            failpoint!("stream.hinting");
            notify(&due)
        });
        session::set(c"lock_timeout", c"0");
        match told {
            Ok(true) => {
                for payload in due {
                    self.wanted.remove(&payload);
                    self.told.insert(payload, now);
                }
                // What is not told for long is not remembered.
                self.told.retain(|_, told| *told + TELL_EVERY * 100 > now);
            }
            Ok(false) => self.again_at = now + AGAIN_AFTER,
            Err(message) => {
                self.again_at = now + AGAIN_AFTER;
                debug(format!(
                    "counterx: consumers of streams could not be notified: {message}"
                ));
            }
        }
    }

    fn keep(&mut self, now: Duration, has: &impl Fn(usize) -> bool) {
        let is_first = !self.has_kept;
        let is_due =
            |lane: &usize| has(*lane) && (is_first || self.keeps[*lane].due(now, KEEP_EVERY));
        let due: Vec<usize> = (0..LANES).filter(is_due).collect();
        // What the first worker does then takes a moment, and needs the leases of all lanes.
        if due.is_empty() || (self.is_further && Stillness::is_asked()) {
            return;
        }
        self.has_kept = true;
        for lane in due {
            let kept = session::transaction(c"keeping streams in order", || {
                stream_upkeep::keep(lane);
            });
            match kept {
                Ok(()) => self.keeps[lane].succeeded(now),
                Err(message) => {
                    self.keeps[lane].failed(now);
                    log(format!(
                        "counterx: keeping streams of lane {lane} in order failed: {message}"
                    ));
                }
            }
        }
    }
}

/// False: the queue of notifications is too full.
fn notify(payloads: &[Vec<u8>]) -> bool {
    const TOO_FULL: f64 = 0.5;
    let _latest = LatestSnapshot::take();
    let usage = Spi::get_one::<f64>("SELECT pg_catalog.pg_notification_queue_usage()");
    if usage.ok().flatten().is_some_and(|usage| usage > TOO_FULL) {
        return false;
    }
    let payloads: Vec<Bytes> = payloads.iter().map(|payload| Bytes(payload)).collect();
    let told = Spi::run_with_args(
        "SELECT pg_catalog.pg_notify('counterx', payload) FROM pg_catalog.unnest($1) payload",
        &[payloads.into()],
    );
    if let Err(error) = told {
        debug(format!("counterx: streams could not be notified: {error}"));
    }
    true
}
