//! One request: reserve, look, be granted or give back. See `escrow.rs`.

use crate::bounds::accounts::{self, Partition};
use crate::bounds::limits::{Denied, Shortage};
use crate::bounds::reservations::{self, RESERVATIONS};
use crate::bounds::seen;
use crate::bounds::types;
use crate::bounds::windows::Place;
use crate::figures::local::{Figure, count, count_time};
use crate::pg::error::{quoted, raise, report};
use crate::pg::lock::BoundLock;
use crate::pg::ports;
use crate::pg::room;
use crate::settings;
use counterx_core::escrow::{self, Bounds, End, Noted, Seen, Verdict};
use counterx_core::lane::NameHash;
use counterx_core::path::{Change, Path, Step};
use counterx_core::windows::StoredName;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// One request.
pub struct Call<'a> {
    /// The counter.
    pub name: &'a [u8],
    /// Of the name.
    pub hash: NameHash,
    /// Its entry in the transaction's reservations.
    pub at: usize,
    /// Of the counter's type.
    pub generation: i64,
    /// From what the transaction has done to what it wants to have done.
    pub step: Step,
    /// In which window, and as what counter; the name is what that is stored as.
    window: Option<(&'a Place, &'a [u8])>,
}

/// What was found when it was reserved.
pub struct Reserved {
    /// The place of the account.
    pub slot: usize,
    /// What others had reserved.
    pub noted: Noted,
    /// How often somebody had reserved, with this one.
    pub reserved: u32,
    /// How often somebody had given back.
    pub given_back: u32,
    /// Is it granted by what the account knows?
    pub covered: bool,
    /// What it knows of the window before, where that counts still.
    before: Option<(i128, bool)>,
}

impl<'a> Call<'a> {
    /// Prepares one. Nothing can fail for want of memory after this.
    ///
    /// # Errors
    /// Raises 53200 where there is none, 22003 for numbers out of range.
    pub fn new(name: &'a [u8], changes: &[Change], generation: i64) -> Self {
        let hash = NameHash::of(name);
        let prepared = RESERVATIONS.with_borrow_mut(|all| {
            let at = all.prepare(hash, name, generation)?;
            Ok((at, all.paths.get(at)))
        });
        let (at, before) = room::granted(prepared);
        let after = (changes.iter()).try_fold(before, |path, change| path.then(*change));
        Self {
            name,
            hash,
            at,
            generation,
            step: Step {
                before,
                after: after.unwrap_or_else(|| out_of_range(name)),
            },
            window: None,
        }
    }

    /// The same of a counter that has a window.
    ///
    /// # Errors
    /// As of [`Call::new`].
    pub fn in_window(
        place: &'a Place,
        counter: &'a [u8],
        changes: &[Change],
        generation: i64,
    ) -> Self {
        Self {
            window: Some((place, counter)),
            ..Self::new(place.name(), changes, generation)
        }
    }

    /// Is the window over that it would count in?
    fn is_over(&self) -> bool {
        self.window.is_some_and(|(place, _)| place.is_left())
    }

    /// What others lock who change the counter, where there are no accounts: one name for all its windows.
    fn lock_name(&self) -> Cow<'a, [u8]> {
        match self.window {
            Some((_, counter)) => Cow::Borrowed(counter),
            // Who sets it to a value gives the name that it is stored as.
            None => types::plain(self.name),
        }
    }

    /// Notes it as done.
    pub fn note(&self) {
        self.set(self.step.after);
    }

    fn set(&self, path: Path) {
        let level = ports::xact_nest_level();
        // SAFETY: marks the command as one that writes, so that the next one has another number.
        let command = unsafe { pg_sys::GetCurrentCommandId(true) };
        RESERVATIONS.with_borrow_mut(|all| {
            all.owns[self.at].command = command;
            all.paths.set(level, self.at, path);
        });
    }

    /// To be looked up after the reservation, by those who lean on a hold.
    fn now(&self, clock_before: i64) -> i64 {
        if self.step.after.backed_until() == i64::MAX {
            clock_before
        } else {
            accounts::clock()
        }
    }

    /// Why it is not granted.
    pub fn shortage(&self, bounds: Bounds, seen: Seen, now: i64, noted: Noted) -> Shortage {
        let own = &self.step.before;
        let others = if self.step.wanted().takes != 0 {
            noted.others.takes_at(seen.clock)
        } else {
            noted.others.amounts.adds
        };
        Shortage {
            value: seen.value + i128::from(own.value()),
            available: escrow::available(bounds, seen, own, now, noted),
            others: others != 0,
            held: seen.held > own.released_at(now).into(),
            before: 0,
            renewal: None,
        }
    }

    /// Without accounts: alone with the counter.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn request_alone(&self, bounds: Bounds) -> Result<Noted, Denied> {
        let lock = BoundLock::take(&self.lock_name());
        let clock = accounts::clock();
        // Others keep the lock on the name as long as they are in flight, in whatever window.
        let before = self.name_before().map_or(0, |name| {
            let own = reservations::own_path(NameHash::of(name.get()), name.get());
            seen::seen_by_others(name.get(), clock).value + i128::from(own.amounts().adds)
        });
        let bounds = self.limited(bounds, before);
        let seen = seen::seen_by_others(self.name, clock);
        let noted = Noted::NOBODY;
        let denied = if self.is_over() {
            Denied::Over
        } else if escrow::check(bounds, seen, &self.step, clock, noted) == Verdict::Granted {
            self.note();
            return Ok(noted);
        } else {
            Denied::Short(Shortage {
                before,
                ..self.shortage(bounds, seen, clock, noted)
            })
        };
        // Who has reserved nothing holds nobody up, least of all when he is prepared.
        lock.release();
        Err(denied)
    }

    /// With an account.
    ///
    /// # Errors
    /// [`Denied`]; raises 53400 when there is no free account.
    pub fn request_shared(&self, partition: Partition, bounds: Bounds) -> Result<Noted, Denied> {
        let mut deadline = None;
        let mut has_waited = false;
        loop {
            // Before the reservation: who confirms a hold that this reading finds expired has to
            // find it expired as well, unless he had reserved before, and is noted.
            let clock = accounts::clock();
            let reserved = self.reserve(partition, bounds);
            if reserved.covered {
                return self.unless_over(partition, &reserved);
            }
            // Should this fail, the abort of the subtransaction gives back what was reserved.
            failpoint!("escrow.reserved");
            // After it: who leans on a hold that was released is like one who confirms it.
            let now = self.now(clock);
            let before = self.look_before(partition, &reserved, clock);
            let bounds = self.limited(bounds, before);
            let seen = seen::seen_by_others(self.name, clock);
            let slot = reserved.slot;
            partition.lock().slots()[slot]
                .account
                .learn(reserved.noted, seen);
            let verdict = escrow::check(bounds, seen, &self.step, now, reserved.noted);
            if verdict == Verdict::Granted {
                return self.unless_over(partition, &reserved);
            }
            self.give_back(partition, &reserved);
            if self.is_over() {
                return Err(Denied::Over);
            }
            // What was on hold at the reading, and is not any more, is seen as free the next time.
            let until = self.step.after.backed_until();
            if clock < until && until <= now {
                continue;
            }
            let until = *deadline.get_or_insert_with(|| Instant::now() + settings::escrow_wait());
            let left = until.saturating_duration_since(Instant::now());
            if verdict == Verdict::Refused || left.is_zero() {
                return Err(Denied::Short(Shortage {
                    before,
                    ..self.shortage(bounds, seen, now, reserved.noted)
                }));
            }
            let known = reserved.given_back.wrapping_add(1);
            // In the next window all is there again.
            let until = self.window.map_or(until, |(place, _)| {
                let left = place.window().end.saturating_sub(accounts::window_clock());
                let left = u64::try_from(left).unwrap_or(0);
                until.min(Instant::now() + Duration::from_micros(left))
            });
            let since = Instant::now();
            if !std::mem::replace(&mut has_waited, true) {
                count(Figure::EscrowWaits, 1);
            }
            self.wait_for_room(partition, bounds, slot, known, until);
            count_time(Figure::EscrowWaitTime, since.elapsed());
            if self.is_over() {
                return Err(Denied::Over);
            }
        }
    }

    /// A request that was refused counts all the same. False: not in this window, which is over by now.
    pub fn count_refused(&self) -> bool {
        let Some(partition) = Partition::of(self.hash.get()) else {
            // Alone with the counter, to the end of the transaction.
            BoundLock::take(&self.lock_name());
            self.note();
            return true;
        };
        // By no bounds: nothing is asked. Others find it in flight, like any add.
        let reserved = self.reserve(partition, Bounds::default());
        if self.is_over() {
            self.give_back(partition, &reserved);
            return false;
        }
        true
    }

    /// The name that the counter has in the window before, if that counts still.
    pub fn name_before(&self) -> Option<StoredName> {
        let (place, counter) = self.window?;
        place.name_before(counter)
    }

    /// The bounds that are left where so much was counted in the window before.
    pub fn limited(&self, bounds: Bounds, before: i128) -> Bounds {
        self.window
            .map_or(bounds, |(place, _)| place.limited(bounds, before))
    }

    /// The same for what the account knows. None: it has to be looked up.
    fn limited_if_known(&self, bounds: Bounds, before: Option<(i128, bool)>) -> Option<Bounds> {
        match self.window.filter(|(place, _)| place.is_sliding()) {
            Some((place, _)) => before.map(|(before, _)| place.limited(bounds, before)),
            None => Some(bounds),
        }
    }

    /// What was counted in the window before, at most. To be called when it is reserved: nobody is granted anything
    /// there any more, who has not reserved by now.
    fn look_before(&self, partition: Partition, reserved: &Reserved, clock: i64) -> i128 {
        if let Some((before, true)) = reserved.before {
            return before;
        }
        let Some(name) = self.name_before() else {
            return 0;
        };
        let hash = NameHash::of(name.get());
        let in_flight = Partition::of(hash.get()).map_or(0, |partition| {
            let mut guard = partition.lock();
            let at = accounts::find_slot(&mut guard, hash, name.get());
            at.map_or(0, |at| guard.slots()[at].account.in_flight().adds)
        });
        failpoint!("window.noted");
        // After that: who has committed since may be counted twice, and is nobody's loss when he is looked at again.
        let value = seen::seen_by_others(name.get(), clock).value;
        let mut guard = partition.lock();
        let slot = &mut guard.slots()[reserved.slot];
        let most = value + in_flight;
        if slot.account.has_forgotten_since(reserved.noted) {
            return most;
        }
        slot.learn_before(most, in_flight == 0);
        slot.before().map_or(most, |(before, _)| before)
    }

    /// Granted, unless the window is over by now: whoever has gone by a time in the next one before this was reserved
    /// does not know of it.
    fn unless_over(&self, partition: Partition, reserved: &Reserved) -> Result<Noted, Denied> {
        if self.is_over() {
            self.give_back(partition, reserved);
            return Err(Denied::Over);
        }
        Ok(reserved.noted)
    }

    /// Waits until others have ended so that it is worth another try, or until that time.
    ///
    /// Looks without reserving. Many who tried again at once would find what each of them has reserved, give
    /// it back, wake the others by that, and go on so without anybody being granted what there is. Who
    /// reserves while nobody else does, is granted it.
    fn wait_for_room(
        &self,
        partition: Partition,
        bounds: Bounds,
        slot: usize,
        mut known: u32,
        until: Instant,
    ) {
        loop {
            {
                // Who ends after this wakes us; who has ended since we noted him is seen here.
                let waiter = partition.listen();
                while partition.lock().slots()[slot].given_back == known {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return;
                    }
                    waiter.wait(left);
                }
            }
            let noted = {
                let mut guard = partition.lock();
                let slot = &guard.slots()[slot];
                known = slot.given_back;
                slot.account.note(self.step.before.amounts())
            };
            let clock = accounts::clock();
            let seen = seen::seen_by_others(self.name, clock);
            let verdict = escrow::check(bounds, seen, &self.step, clock, noted);
            if verdict != Verdict::Contended || until <= Instant::now() {
                return;
            }
        }
    }

    /// Reserves, and notes it. Is it covered by what the account knows?
    pub fn reserve(&self, partition: Partition, bounds: Bounds) -> Reserved {
        let known = RESERVATIONS.with_borrow(|all| all.owns[self.at].slot);
        let mut guard = partition.lock();
        let Some(at) = known.or_else(|| accounts::take_slot(&mut guard, self.hash, self.name))
        else {
            drop(guard);
            no_slot()
        };
        if known.is_none() {
            guard.enter(at);
        }
        let slot = &mut guard.slots()[at];
        if slot.generation != self.generation {
            // Increments may have gone past the account while the counter had no bounds.
            slot.account.forget();
            slot.generation = self.generation;
            (slot.before, slot.before_is_final) = (-1, false);
        }
        let before = slot.before();
        let noted = slot.account.reserve_step(&self.step);
        slot.reserved = slot.reserved.wrapping_add(1);
        let reserved = Reserved {
            slot: at,
            noted,
            reserved: slot.reserved,
            given_back: slot.given_back,
            covered: (self.limited_if_known(bounds, before))
                .is_some_and(|bounds| slot.account.is_covered(bounds, self.step.wanted())),
            before,
        };
        drop(guard);
        RESERVATIONS.with_borrow_mut(|all| all.owns[self.at].slot = Some(at));
        self.note();
        reserved
    }

    /// Gives back what was not granted. Only those who have come since can have been kept by it.
    fn give_back(&self, partition: Partition, reserved: &Reserved) {
        self.set(self.step.before);
        let others_have_come = {
            let mut guard = partition.lock();
            let slot = &mut guard.slots()[reserved.slot];
            slot.release(self.step.wanted(), End::Aborted);
            slot.reserved != reserved.reserved
        };
        if others_have_come {
            partition.wake();
        }
    }
}

fn out_of_range(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!(
                "the changes of bounded counter {} in this transaction are out of range for type bigint",
                quoted(&types::plain(name))
            ),
        )
        .set_hint("Use smaller deltas."),
    )
}

fn no_slot() -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            "too many bounded counters are being changed at the same time",
        )
        .set_hint("Raise counterx.escrow_entries and restart the server, or change fewer bounded counters in one transaction."),
    )
}
