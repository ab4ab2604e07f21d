//! The committer: the process of one database that counts what sessions hand over.
//!
//! It takes what is there when the last batch has ended. What nobody waits for alone is not worth a commit
//! at once: it naps a little, unless somebody who waits comes, or half of the queue is in use.
//!
//! # How it ends
//! Idle for `counterx.worker_idle_timeout`; asked for by another database; because somebody wants the
//! database alone; or because the server says so. Only in the last case with hits in the queue, of those
//! who wait: they look for another committer, or the server ends them as well. A SIGTERM is heeded between
//! two batches, so that what nobody waits for is not lost when a server shuts down: no batch waits longer
//! than its `lock_timeout`.

use crate::figures::local;
use crate::hits::memory::{self, Assignment, Guard, Spot};
use crate::pg::compat;
use crate::pg::error::log;
use crate::pg::lock;
use crate::pg::ports;
use crate::process::batch::{self, Batches};
use crate::process::directory;
use crate::process::session;
use crate::settings;
use crate::write::pressure;
use counterx_core::hits::{Look, Place, Start};
use pgrx::bgworkers::{BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// What nobody waits for may lie for so long.
const NAP: Duration = Duration::from_millis(10);

/// What could not be counted is tried again after this.
const AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A committer looks around this often, and sleeps no longer.
const GLANCE_EVERY: Duration = Duration::from_millis(100);

/// The same without anything to do.
const GLANCE_EVERY_IDLE: Duration = Duration::from_secs(1);

/// While others want its place, a committer stays for so long.
const TURN: Duration = Duration::from_millis(250);

/// At the end of the server, what could not be counted is tried again for so long.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// So often others may run before it takes what there is: those whom it has just woken come again.
const YIELDS: usize = 4;

/// So long after a batch it looks for the next one before it sleeps.
const LINGER: Duration = Duration::from_micros(50);

/// When no process can be started, the log says so again after this time at the earliest.
const SAY_AGAIN_AFTER_US: i64 = 60_000_000;

thread_local! {
    /// When the log said that there are no slots.
    static SAID_AT: Cell<i64> = const { Cell::new(i64::MIN) };
    /// This process is the committer of its place.
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// The launcher starts what is wanted. Returns after how long it is to look again.
pub fn start_wanted() -> Duration {
    let mut pause = Duration::MAX;
    for spot in Spot::all() {
        let now = ports::now();
        let next = spot.lock().place().next_start(now);
        match next {
            Start::Nothing => {}
            Start::At(at) => {
                let until = u64::try_from(at - now).unwrap_or(0);
                pause = pause.min(Duration::from_micros(until));
            }
            Start::Now {
                start,
                database,
                again,
            } => {
                if again && session::is_database_gone(database) {
                    let _assignment = Assignment::lock();
                    let mut guard = spot.lock();
                    let (place, entries) = guard.parts();
                    place.abandon(entries, start);
                    drop(guard);
                    memory::tell_of_place();
                    continue;
                }
                if builder(spot, start, database).load_dynamic().is_ok() {
                    continue;
                }
                spot.lock().place().refused(start, now);
                pause = pause.min(AGAIN_AFTER);
                if now.saturating_sub(SAID_AT.get()) > SAY_AGAIN_AFTER_US {
                    log("counterx: no free background worker slot for a committer, will try again");
                    SAID_AT.set(now);
                }
            }
        }
    }
    pause
}

fn builder(spot: Spot, start: u32, database: u32) -> BackgroundWorkerBuilder {
    let argument = database as usize | spot.number() << 32 | (start as usize) << 40;
    BackgroundWorkerBuilder::new("counterx committer")
        .set_type("counterx committer")
        .set_library("counterx")
        .set_function("counterx_committer_main")
        .set_argument(Some(pg_sys::Datum::from(argument)))
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
}

/// What a committer is told when it is started.
#[derive(Clone, Copy)]
struct Order {
    database: u32,
    place: usize,
    start: u32,
}

impl Order {
    fn decode(argument: pg_sys::Datum) -> Self {
        let argument = argument.value();
        Self {
            database: argument as u32,
            place: argument >> 32 & 0xff,
            start: (argument >> 40) as u32 & Place::STARTS,
        }
    }
}

/// The committer's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn counterx_committer_main(arg: pg_sys::Datum) {
    // Until it is connected, which may wait for a lock.
    compat::set_signal_handler(pg_sys::SIGTERM, ports::die);
    compat::set_signal_handler(pg_sys::SIGHUP, ports::SignalHandlerForConfigReload);
    session::ignore_cancels();
    let order = Order::decode(arg);
    let Some(spot) = Spot::get(order.place) else {
        return;
    };
    // SAFETY: once, at the start of a background worker; as the bootstrap superuser.
    unsafe {
        pg_sys::before_shmem_exit(Some(on_exit), arg);
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            order.database.into(),
            pg_sys::InvalidOid,
            0,
        );
    }
    compat::set_signal_handler(pg_sys::SIGTERM, ports::SignalHandlerForShutdownRequest);
    session::own_settings(&[
        (c"lock_timeout", batch::LOCK_TIMEOUT),
        // One that is refused must not hold up the others.
        (c"counterx.escrow_wait", c"0"),
    ]);
    pressure::exempt();
    local::work_for_others();
    batch::register_callback();
    failpoint!("committer.ready");
    let expected = {
        let mut guard = spot.lock();
        let latch = memory::own_latch();
        let entered = (guard.place()).enter(order.database, order.start, latch, ports::now());
        ENTERED.set(entered);
        entered
    };
    if expected {
        spot.tell_of_room();
        Committer::new(spot).run();
    }
}

/// Whatever ends the process.
#[pg_guard]
unsafe extern "C-unwind" fn on_exit(_code: core::ffi::c_int, arg: pg_sys::Datum) {
    // An error under a lock, for want of memory say, leaves it held: not all minor releases of the server give
    // it back before this.
    // SAFETY: the process ends, and does nothing any more that a lock protects.
    unsafe { pg_sys::LWLockReleaseAll() };
    let order = Order::decode(arg);
    let Some(spot) = Spot::get(order.place) else {
        return;
    };
    if ENTERED.get() {
        give_up(spot, spot.lock());
    } else {
        spot.lock().place().failed(order.start, ports::now());
    }
    spot.tell_of_room();
    directory::look();
}

/// Ends with hits in the queue, or without knowing. Neither waits nor fails.
///
/// The place stays locked from when it is known that this process ends: a successor could have entered, and
/// what it has taken would be put back.
fn give_up(spot: Spot, mut guard: Guard) {
    let (place, entries) = guard.parts();
    batch::end(place, entries, memory::wake);
    if !place.queue.is_empty() {
        place.want(ports::now());
    }
    drop(guard);
    ENTERED.set(false);
    spot.tell_of_room();
    memory::tell_of_place();
}

fn is_told_to_end() -> bool {
    // SAFETY: a flag that a signal handler sets.
    unsafe { pg_sys::ShutdownRequestPending != 0 }
}

struct Committer {
    spot: Spot,
    batches: Batches,
    started: Instant,
    last_work: Instant,
    last_glance: Instant,
    /// When what nobody waits for is worth a commit.
    nap_until: Option<Instant>,
    /// When what could not be counted is tried again.
    again_at: Option<Instant>,
}

impl Committer {
    fn new(spot: Spot) -> Self {
        let now = Instant::now();
        Self {
            spot,
            batches: Batches::new(spot),
            started: now,
            last_work: now,
            last_glance: now,
            nap_until: None,
            again_at: None,
        }
    }

    fn run(&mut self) {
        loop {
            if is_told_to_end() {
                return self.end_at_once();
            }
            let now = Instant::now();
            if now - self.last_glance > GLANCE_EVERY {
                self.last_glance = now;
                // One that is never idle hears of new settings here.
                session::wait(Duration::from_millis(1));
                if lock::database_is_wanted() {
                    return self.leave();
                }
                if self.spot.lock().place().is_asked() && self.started.elapsed() > TURN {
                    return self.leave();
                }
            }
            let again = self.again_at.is_some_and(|at| now >= at);
            let naps = self.nap_until.is_none_or(|until| now < until);
            if !again {
                self.linger();
            }
            let look = self.spot.lock().place().queue.look(naps);
            match look {
                Look::Work => self.count(again),
                Look::Silent => {
                    let until = *self.nap_until.get_or_insert(now + NAP);
                    self.wait(until - now);
                }
                Look::Nothing if again => self.count(true),
                Look::Nothing => {
                    self.nap_until = None;
                    let idle = now - self.last_work;
                    let may_end = idle > settings::worker_idle_timeout();
                    if may_end && !self.batches.has_left() && self.try_end() {
                        return;
                    }
                    let pause = if idle < GLANCE_EVERY_IDLE {
                        GLANCE_EVERY
                    } else {
                        GLANCE_EVERY_IDLE
                    };
                    self.wait(pause);
                }
            }
        }
    }

    /// Gives a moment to those who were woken by the last batch, and others, before it sleeps: to be woken
    /// costs them, and a lone client twice the time that its next call takes to come.
    fn linger(&self) {
        while self.spot.seems_empty() && self.last_work.elapsed() < LINGER {
            std::thread::yield_now();
        }
    }

    fn wait(&self, pause: Duration) {
        let again = self
            .again_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        session::wait(again.map_or(pause, |again| pause.min(again)));
    }

    fn count(&mut self, again: bool) {
        for _ in 0..YIELDS {
            std::thread::yield_now();
        }
        pgrx::check_for_interrupts!();
        self.batches.count(again, false);
        let now = Instant::now();
        self.last_work = now;
        self.nap_until = Some(now + NAP);
        self.note_left();
    }

    fn note_left(&mut self) {
        self.again_at = match (self.batches.has_left(), self.again_at) {
            (false, _) => None,
            (true, Some(at)) if at > Instant::now() => Some(at),
            (true, _) => Some(Instant::now() + AGAIN_AFTER),
        };
    }

    /// Ends, if nothing is left.
    fn try_end(&self) -> bool {
        let ended = self.spot.lock().place().try_end(true);
        if ended {
            ENTERED.set(false);
            self.spot.tell_of_room();
            memory::tell_of_place();
        }
        ended
    }

    /// Makes room for another database, or for somebody who wants this one alone.
    fn leave(&mut self) {
        self.spot.lock().place().leave();
        failpoint!("committer.leaving");
        loop {
            self.batches.count(true, false);
            let _assignment = Assignment::lock();
            let mut guard = self.spot.lock();
            let place = guard.place();
            if self.batches.has_left() {
                break;
            }
            if place.try_end(true) {
                place.database = 0;
                drop(guard);
                ENTERED.set(false);
                self.spot.tell_of_room();
                return memory::tell_of_place();
            }
        }
        // The next one has to go on with what is left.
        give_up(self.spot, self.spot.lock());
    }

    /// The server ends, or somebody has ended this process.
    fn end_at_once(&mut self) {
        failpoint!("committer.leaving");
        let start = Instant::now();
        loop {
            self.batches.count(true, true);
            if self.batches.has_left() {
                if start.elapsed() > LAST_PATIENCE {
                    log(
                        "counterx: the committer ends with hits that could not be counted yet, and that nobody waits for",
                    );
                    return give_up(self.spot, self.spot.lock());
                }
                // Told to end, so the latch stays set.
                std::thread::sleep(NAP);
            } else {
                let mut guard = self.spot.lock();
                if guard.place().try_end(false) {
                    return give_up(self.spot, guard);
                }
            }
        }
    }
}
