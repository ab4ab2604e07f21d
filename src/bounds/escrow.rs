//! Bounded counters: what the transactions in flight have reserved of them.
//!
//! The rules are in `counterx_core::escrow`; this is where accounts live, and when reservations are
//! made and given back. What one transaction has done to a counter, and so has reserved, is a path of
//! `counterx_core::path`; what its snapshot has to do with it is in `levels`.
//!
//! # With shared memory
//! An account lies in shared memory while somebody uses it. An increment reserves, and is granted at
//! once if the account knows enough; else it reads the counter with a new snapshot, *after* having
//! reserved. What is only contended waits a little for others to end. Reservations are given back in
//! the callbacks that run when a transaction has become visible or has aborted, and when a
//! subtransaction aborts.
//!
//! # Without (the library is not in `shared_preload_libraries`)
//! A lock on the counter's name, kept to the end of the transaction, lets one in at a time. Whether
//! there is shared memory is a fact of the server, the same for all its processes, so the two ways
//! never meet.
//!
//! # Note about locking
//! Accounts are spread over partitions by their names' hashes. A partition's LWLock protects its
//! slots; it is held for a few dozen instructions, none of which can fail, and nothing is waited for
//! meanwhile. Who waits for others sleeps on the partition's condition variable, without the lock.
//! A process that dies with the lock takes the server through crash recovery, which makes all anew:
//! no transaction is in flight then. (Prepared ones have no reservations: see `write/callbacks.rs`.)

use crate::bounds::accounts::{self, Partition};
use crate::bounds::call::Call;
use crate::bounds::levels;
use crate::bounds::limits::{Denied, Limits, Shortage};
use crate::bounds::reservations::{self, RESERVATIONS};
use crate::bounds::seen;
use crate::bounds::windowed::Windowed;
use crate::bounds::windows::Place;
use crate::figures::local::{Figure, count};
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::BoundLock;
use crate::pg::ports;
use crate::read::reader;
use crate::transaction::restored;
use counterx_core::escrow::{self, Bounds, Noted};
use counterx_core::lane::NameHash;
use counterx_core::path::Change;
use counterx_core::windows::{Kind, Refused};
use pgrx::PgSqlErrorCode;
use std::rc::Rc;

/// Reserves what a delta needs, for the running (sub)transaction. To be called before the delta is
/// added to the map.
///
/// # Errors
/// [`Shortage`] when a bound could be broken. Raises 22003 for numbers out of range, 53400 when
/// there is no free account.
pub fn request(name: &[u8], delta: i64, limits: Limits) -> Result<(), Shortage> {
    request_changes(name, &[Change::delta(delta)], limits)
}

/// The same for deltas that come one after the other, and may be out of range in all.
///
/// # Errors
/// As of [`request`].
pub fn request_both(name: &[u8], deltas: [i64; 2], limits: Limits) -> Result<(), Shortage> {
    request_changes(name, &deltas.map(Change::delta), limits)
}

/// The same for a hold, which is to be inserted then.
///
/// # Errors
/// As of [`request`].
pub fn request_hold(name: &[u8], amount: i64, limits: Limits) -> Result<(), Shortage> {
    request_changes(name, &[Change::hold(amount)], limits)
}

/// What became of a request in a window.
pub enum InWindow {
    /// It counts there.
    Granted(Place),
    /// It does not.
    Refused(Shortage),
    /// It was refused, and counts there all the same.
    Counted(Place, Shortage),
}

/// The same for a delta to a counter of a type with a window. A refused one may count, where the type and the caller
/// have it so.
///
/// # Errors
/// Raises 22023 for a name that such a counter cannot have, and for a delta; else as of [`request`].
pub fn request_in_window(
    name: &[u8],
    delta: i64,
    limits: Limits,
    windowed: &Rc<Windowed>,
    may_count_refused: bool,
) -> InWindow {
    restored::check(name);
    check_sign(name, delta, windowed);
    if limits.bounds == Bounds::default() {
        // Nothing is reserved. That it is changed by this type is known from here on: see `unchanged.rs`.
        let place = Place::of(name, windowed);
        Call::new(place.name(), &[], limits.generation).note();
        return InWindow::Granted(place);
    }
    let counts_refused = may_count_refused && windowed.counts_refused();
    // Where one is let in at a time, the window is that of the moment at which he is.
    let lock = Partition::of(0).is_none().then(|| BoundLock::take(name));
    loop {
        let place = Place::of(name, windowed);
        failpoint!("window.timed");
        let changes = [Change::delta(delta)];
        let call = Call::in_window(&place, name, &changes, limits.generation);
        let shortage = match request_by(&call, limits.bounds) {
            Ok(()) => return InWindow::Granted(place),
            Err(Denied::Over) => continue,
            Err(Denied::Short(shortage)) => shortage,
        };
        let counted = if counts_refused { delta } else { 0 };
        let renewal = place.renewal(&refused(limits.bounds, delta, counted, &shortage));
        let shortage = Shortage {
            renewal: Some(renewal),
            ..shortage
        };
        if !counts_refused {
            if let Some(lock) = lock {
                lock.release();
            }
            return InWindow::Refused(shortage);
        }
        if call.count_refused() {
            return InWindow::Counted(place, shortage);
        }
    }
}

/// What was not granted, for who asks when it would be. So much of it has counted all the same. What others hold back may
/// be free at any time.
fn refused(bounds: Bounds, delta: i64, counted: i64, shortage: &Shortage) -> Refused {
    let used = shortage.value + i128::from(counted);
    let (max, wanted, used) = match delta < 0 {
        // A minimum, seen from below.
        true => (
            bounds.min.map(i64::saturating_neg),
            delta.saturating_neg(),
            -used,
        ),
        false => (bounds.max, delta, used),
    };
    Refused {
        max: max.unwrap_or(i64::MAX),
        wanted,
        used,
        previous: shortage.before,
    }
}

/// # Errors
/// Raises 22023 for a delta by which nothing of this type changes.
fn check_sign(name: &[u8], delta: i64, windowed: &Windowed) {
    let (why, hint) = match windowed.kind() {
        _ if delta >= 0 => return,
        Kind::Sliding => (
            "as its windows slide",
            "Use a type whose windows do not slide for what is given back.",
        ),
        Kind::Fixed if windowed.counts_refused() => (
            "as requests count that are refused",
            "Use a type without \"count_refused\" for what is given back.",
        ),
        Kind::Fixed => return,
    };
    raise(
        report(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("counter {} cannot be decreased, {why}", quoted(name)),
        )
        .set_hint(hint),
    );
}

fn request_changes(name: &[u8], changes: &[Change], limits: Limits) -> Result<(), Shortage> {
    restored::check(name);
    if limits.bounds == Bounds::default() {
        // Of a type that has a window alone. Nothing is reserved: see `request_in_window`.
        Call::new(name, &[], limits.generation).note();
        return Ok(());
    }
    let call = Call::new(name, changes, limits.generation);
    match request_by(&call, limits.bounds) {
        Ok(()) => Ok(()),
        Err(Denied::Short(shortage)) => Err(shortage),
        Err(Denied::Over) => unreachable!("there is no window"),
    }
}

fn request_by(call: &Call, bounds: Bounds) -> Result<(), Denied> {
    let partition = Partition::of(call.hash.get());
    if call.step.wanted().is_zero() {
        // That the counter is changed by these bounds is known from here on: see `unchanged.rs`.
        call.note();
        return Ok(());
    }
    let result = match partition {
        Some(partition) => call.request_shared(partition, bounds),
        None => call.request_alone(bounds),
    };
    match result {
        Ok(noted) => {
            failpoint!("escrow.granted");
            call.check_snapshot(bounds, noted, partition.is_some());
            Ok(())
        }
        Err(Denied::Short(shortage)) => {
            count(Figure::Refused, 1);
            let (bounds, before) = (call.limited_as_seen(bounds), shortage.before);
            Err(Denied::Short(Shortage {
                before,
                ..call.refusal_by_snapshot(bounds, shortage)
            }))
        }
        Err(Denied::Over) => Err(Denied::Over),
    }
}

/// A counter is changed by a type of this generation, and nobody asks for more. For who keeps others from changing the
/// type, and knows that the transaction has not changed the counter before.
pub fn note_gone_by(name: &[u8], generation: i64) {
    let call = Call::new(name, &[], generation);
    call.note();
    // Whatever the transaction has written early before: nothing of this one.
    RESERVATIONS.with_borrow_mut(|all| all.owns[call.at].generation = Some(generation));
}

/// A hold that others see is gone, or one that the transaction has made itself. Reserves nothing.
pub fn note_release(name: &[u8], change: Change, generation: i64) {
    Call::new(name, &[change], generation).note();
}

/// Reserves what is done with a hold, which keeps room for it: its end, and what comes instead.
///
/// To be called before the caller looks whether the hold has expired: see `holds.rs`.
pub fn reserve_held(name: &[u8], changes: &[Change], generation: i64) {
    restored::check(name);
    let call = Call::new(name, changes, generation);
    match Partition::of(call.hash.get()) {
        _ if call.step.wanted().is_zero() => call.note(),
        Some(partition) => {
            call.reserve(partition, Bounds::default());
        }
        None => {
            BoundLock::take(name);
            call.note();
        }
    }
}

/// What the running transaction could take now. None: there is no minimum.
///
/// One that goes by one snapshot can take no more than that shows; and a serializable one is told nothing
/// else.
pub fn available(name: &[u8], bounds: Bounds) -> Option<i64> {
    let by_snapshot = ports::isolation_uses_xact_snapshot().then(|| seen_available(name, bounds));
    match by_snapshot {
        Some(available) if ports::isolation_is_serializable() => available,
        Some(available) => available.min(latest_available(name, bounds)),
        None => latest_available(name, bounds),
    }
}

fn seen_available(name: &[u8], bounds: Bounds) -> Option<i64> {
    let own = reservations::own_path(NameHash::of(name), name);
    let clock = accounts::clock();
    let seen = levels::read_as_seen(name, clock);
    escrow::available(bounds, seen, &own, clock, Noted::NOBODY)
}

fn latest_available(name: &[u8], bounds: Bounds) -> Option<i64> {
    let hash = NameHash::of(name);
    let own = reservations::own_path(hash, name);
    let clock = accounts::clock();
    // As in a request: who commits before the reading is part of it, others are in here.
    let noted = Partition::of(hash.get()).and_then(|partition| {
        let mut guard = partition.lock();
        let at = accounts::find_slot(&mut guard, hash, name)?;
        Some(guard.slots()[at].account.note(own.amounts()))
    });
    let seen = seen::seen_by_others(name, clock);
    escrow::available(bounds, seen, &own, clock, noted.unwrap_or(Noted::NOBODY))
}

/// What the running transaction could take if no other one took anything. None: there is no minimum.
pub fn most(name: &[u8], bounds: Bounds) -> Option<i64> {
    if ports::isolation_is_serializable() {
        return seen_available(name, bounds);
    }
    let clock = accounts::clock();
    let seen = seen::seen_by_others(name, clock);
    let own = reservations::own_path(NameHash::of(name), name);
    escrow::available(bounds, seen, &own, clock, Noted::NOBODY)
}

/// Would the value, as the running transaction would leave it now, stay above its minimum if so much
/// more were taken? What a hold has kept room for does, unless a clock was set back past its end.
pub fn has_room(name: &[u8], amount: i64, bounds: Bounds) -> bool {
    let value = reader::latest_quietly(name);
    bounds
        .min
        .is_none_or(|min| value - i128::from(amount) >= i128::from(min))
}
