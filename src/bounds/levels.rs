//! Transactions that go by one snapshot: REPEATABLE READ and SERIALIZABLE.
//!
//! The latest state decides whether a change is granted, and their snapshot may be older. What they see
//! has to go with what they are told.
//!
//! # REPEATABLE READ
//! What was granted has to be possible by the snapshot as well, or the transaction would see a counter
//! beyond its bounds: else 40001. A refusal stands.
//!
//! # SERIALIZABLE
//! There has to be an order of the transactions that explains all. Not the one in which they commit: a
//! transaction may have to come before another one that has committed earlier, since it does not see what
//! that one has written.
//!
//! *Granted*, if the bound holds with what the snapshot shows, and the takes of all others whom it does
//! not show, in flight or committed, and without what those have added: else 40001. So whatever order is
//! chosen, at each take there is enough. Of the takes up to some point of the order, look at the one that
//! was reserved last: all others were part of its snapshot, or were counted; and what that snapshot shows
//! as added comes before it in every order, as it was committed before the transaction began. So takes
//! commute, and none of them notes that it has looked at the counter.
//!
//! Others find what has committed in the logs: what a transaction has come to. That may be less than what
//! it was granted on the way, where it has given something back, or has rolled it back to a savepoint. Such a
//! transaction notes, before it commits, that it has read the counter. So it has its place before all whose
//! changes it does not see.
//!
//! *Refused*, if the snapshot refuses it, whoever else there is: that is to read the counter, and noted as
//! such, with all that the answer says. If the snapshot would grant it, it is 40001.

use crate::bounds::accounts::clock;
use crate::bounds::base::Base;
use crate::bounds::call::Call;
use crate::bounds::holds;
use crate::bounds::limits::Shortage;
use crate::bounds::reservations::{self, RESERVATIONS};
use crate::bounds::seen;
use crate::bounds::types;
use crate::pg::error::{quoted, raise, report};
use crate::pg::ports;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::read::reader;
use counterx_core::escrow::{self, Bounds, Noted, Seen, Verdict};
use counterx_core::lane::NameHash;
use counterx_core::path::{Path, Step};
use pgrx::PgSqlErrorCode;

impl Call<'_> {
    /// Does what was granted go with the transaction's snapshot?
    ///
    /// # Errors
    /// Raises 40001 when it does not.
    pub fn check_snapshot(&self, bounds: Bounds, noted: Noted, shared: bool) {
        if !ports::isolation_uses_xact_snapshot() {
            return;
        }
        let serializable = ports::isolation_is_serializable();
        let wanted = self.step.wanted();
        // What is not asked for now was checked when it was.
        let bounds = Bounds {
            min: bounds.min.filter(|_| wanted.takes != 0),
            max: bounds.max.filter(|_| wanted.adds != 0),
        };
        if bounds == Bounds::default() {
            return;
        }
        if serializable {
            let after = self.step.after.amounts();
            RESERVATIONS.with_borrow_mut(|all| {
                let granted = &mut all.owns[self.at].granted;
                if bounds.min.is_some() {
                    granted.takes = granted.takes.max(after.takes);
                }
                if bounds.max.is_some() {
                    granted.adds = granted.adds.max(after.adds);
                }
            });
        }
        let clock = clock();
        let all = Step {
            before: Path::NEW,
            after: self.step.after,
        };
        let bears = |base: &Base| {
            let others = if serializable {
                base.unseen(clock, noted)
            } else {
                Noted::NOBODY
            };
            escrow::check(bounds, base.seen, &all, clock, others) == Verdict::Granted
        };
        // Without an account nobody says what has come to it.
        let known = RESERVATIONS
            .with_borrow(|all| all.owns[self.at].base)
            .filter(|_| shared || !serializable);
        if known.as_ref().is_some_and(bears) {
            return;
        }
        let base = Base::look(self.name, clock, noted);
        RESERVATIONS.with_borrow_mut(|all| all.owns[self.at].base = Some(base));
        if !bears(&base) {
            contradiction(self.name);
        }
    }

    /// The bounds that are left for a window, as far as the snapshot of a serializable transaction shows the one
    /// before.
    pub fn limited_as_seen(&self, bounds: Bounds) -> Bounds {
        let Some(name) = self.name_before() else {
            return bounds;
        };
        if !ports::isolation_is_serializable() {
            return bounds;
        }
        let own = reservations::own_path(NameHash::of(name.get()), name.get());
        let seen = read_as_seen(name.get(), clock());
        self.limited(bounds, seen.value + i128::from(own.amounts().adds))
    }

    /// What a refusal says to a transaction with one snapshot.
    ///
    /// # Errors
    /// Raises 40001 when the snapshot of a serializable one refuses nothing.
    pub fn refusal_by_snapshot(&self, bounds: Bounds, latest: Shortage) -> Shortage {
        if !ports::isolation_uses_xact_snapshot() {
            return latest;
        }
        let clock = clock();
        let seen = read_as_seen(self.name, clock);
        if !ports::isolation_is_serializable() {
            // No more than the snapshot bears.
            let seen = self.shortage(bounds, seen, clock, Noted::NOBODY);
            return Shortage {
                available: latest.available.min(seen.available),
                ..latest
            };
        }
        if escrow::check(bounds, seen, &self.step, clock, Noted::NOBODY) == Verdict::Granted {
            contradiction(self.name);
        }
        self.shortage(bounds, seen, clock, Noted::NOBODY)
    }
}

/// A serializable transaction is about to end, and its snapshot is not the active one any more: notes
/// what it has read, in effect. See the module's documentation.
///
/// # Errors
/// Raises 40001 when there is no order with that.
pub fn note_reads() {
    if !ports::isolation_is_serializable() {
        return;
    }
    let names: Vec<Box<[u8]>> = RESERVATIONS.with_borrow(|all| {
        let owns = all.owns.iter().enumerate();
        let read = owns.filter(|(at, own)| !all.paths.get(*at).tells_of(own.granted));
        read.map(|(_, own)| own.name.clone()).collect()
    });
    if names.is_empty() {
        return;
    }
    let clock = clock();
    let _snapshot = LatestSnapshot::of_transaction();
    for name in names {
        read_as_seen(&name, clock);
    }
}

/// What the transaction's snapshot shows of what others have done. A serializable transaction notes
/// that it has read the counter and its holds.
pub fn read_as_seen(name: &[u8], clock: i64) -> Seen {
    let current = snapshot::active_or_latest();
    if ports::isolation_is_serializable() {
        reader::written_at(name, current.as_ptr());
        // SAFETY: the snapshot is active as long as `current` lives.
        unsafe { holds::held(name, clock, current.as_ptr()) };
    }
    // SAFETY: as above.
    unsafe { seen::seen_at(name, clock, current.as_ptr()) }
}

fn contradiction(name: &[u8]) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            format!(
                "could not serialize access due to concurrent change of counter {}",
                quoted(&types::plain(name))
            ),
        )
        .set_hint("Retry the transaction."),
    )
}
