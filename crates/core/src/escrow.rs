//! Escrow: many transactions take from one bounded counter at once, and whichever of them commit,
//! no bound is broken. (P. E. O'Neil, "The Escrow Transactional Method", ACM TODS 11(4), 1986.)
//!
//! # How it works
//! An [`Account`] holds what the transactions in flight have reserved of one counter: what they
//! would take from it, and what they would add. Those of different transactions are never set off
//! against each other, since any of them may abort; what one transaction asks for in all is in
//! [`path`](crate::path). A reservation is made first, and then checked against the value that a
//! snapshot taken *after* it sees:
//!
//! > value - takes of all others that were noted with the reservation - own takes >= min
//!
//! Who has committed before that snapshot is part of the value; who has not is part of what was
//! noted, or has noted us. (The other order would oversell: a take that commits between the
//! snapshot and the note is in neither.) What was noted and has committed since is counted twice,
//! which errs on the safe side.
//!
//! # The floor
//! Reading the value for each take would be slow just for the counters that matter, so an account
//! remembers what it has learnt: a floor with the
//!
//! > Invariant: whatever the transactions in flight do, the value stays at `floor - takes` or above.
//!
//! - It is learnt from a value V: floor = V - the others' takes that were noted - takes that have
//!   committed since. Those that V does not include are in one of these, or in flight still.
//! - A take that commits moves from `takes` to `floor`. One that aborts leaves `takes` alone.
//! - Adds never raise a floor: one that has committed may be part of V already.
//!
//! So a take is granted without reading as long as `floor - takes >= min`. When that fails, the
//! value is read, and the floor with it. The ceiling is the same for adds and a maximum.
//!
//! What is on hold of a counter is out of reach for takes, and part of the value for adds: it makes
//! no room below a maximum. So floors come from what is free, ceilings from the whole value.

use crate::path::{Path, Step};

/// The limits of a counter. Both include 0, where every counter starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The least value.
    pub min: Option<i64>,
    /// The greatest value.
    pub max: Option<i64>,
}

impl Bounds {
    /// Is a value within the bounds?
    pub fn contain(&self, value: i128) -> bool {
        self.min.is_none_or(|min| value >= min.into())
            && self.max.is_none_or(|max| value <= max.into())
    }
}

/// What somebody has reserved, or wants to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// What may be subtracted: 0 or more.
    pub takes: i64,
    /// What may be added: 0 or more.
    pub adds: i64,
    /// The part of the takes that a hold keeps room for, as long as it has not expired.
    pub backed: i64,
}

impl Amounts {
    /// Nothing.
    pub const NONE: Self = Self {
        takes: 0,
        adds: 0,
        backed: 0,
    };

    /// Both sums. None: one is out of range.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        Some(Self {
            takes: self.takes.checked_add(other.takes)?,
            adds: self.adds.checked_add(other.adds)?,
            backed: self.backed.checked_add(other.backed)?,
        })
    }

    /// The same for sums that are known to be in range.
    pub fn plus(self, other: Self) -> Self {
        Self {
            takes: self.takes + other.takes,
            adds: self.adds + other.adds,
            backed: self.backed + other.backed,
        }
    }

    /// What is left without a part of it.
    pub fn minus(self, part: Self) -> Self {
        Self {
            takes: self.takes - part.takes,
            adds: self.adds - part.adds,
            backed: self.backed - part.backed,
        }
    }

    /// Is it nothing?
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// What is reserved, and until when what backs a part of it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// All of it, of however many transactions.
    pub amounts: Sums,
    /// When the first of the holds behind it expires.
    pub backed_until: i64,
}

impl Standing {
    /// Nothing.
    pub const NONE: Self = Self {
        amounts: Sums::NONE,
        backed_until: i64::MAX,
    };

    /// What it takes from what is free: a hold that has not expired at `clock` counts itself, or is
    /// confirmed and part of the value.
    pub fn takes_at(self, clock: i64) -> i128 {
        let backed = if clock < self.backed_until {
            self.amounts.backed
        } else {
            0
        };
        self.amounts.takes - backed
    }
}

/// How a reservation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its changes are visible.
    Committed,
    /// They never will be.
    Aborted,
}

/// What many transactions have reserved, or have committed since an account was opened. Wide enough to hold
/// all that can ever come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// All that is subtracted.
    pub takes: i128,
    /// All that is added.
    pub adds: i128,
    /// The part of the takes that holds keep room for.
    pub backed: i128,
}

impl Sums {
    /// Nothing.
    pub const NONE: Self = Self {
        takes: 0,
        adds: 0,
        backed: 0,
    };

    /// All of it, and more.
    pub fn plus(self, more: Self) -> Self {
        Self {
            takes: self.takes + more.takes,
            adds: self.adds + more.adds,
            backed: self.backed + more.backed,
        }
    }

    /// What is left without a part of it, or has come since it was so much.
    pub fn minus(self, part: Self) -> Self {
        Self {
            takes: self.takes - part.takes,
            adds: self.adds - part.adds,
            backed: self.backed - part.backed,
        }
    }
}

impl From<Amounts> for Sums {
    fn from(amounts: Amounts) -> Self {
        Self {
            takes: amounts.takes.into(),
            adds: amounts.adds.into(),
            backed: amounts.backed.into(),
        }
    }
}

/// What was in flight when a reservation was made.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    /// All others' reservations.
    pub others: Standing,
    /// What had committed before.
    committed: Sums,
    /// How often the account had forgotten what it knew.
    forgotten: u32,
}

impl Noted {
    /// What others have reserved, or have committed after a snapshot: that much of takes and adds.
    pub fn unseen(takes: i64, adds: i64) -> Self {
        Self {
            others: Standing {
                amounts: Sums {
                    takes: takes.into(),
                    adds: adds.into(),
                    backed: 0,
                },
                backed_until: i64::MAX,
            },
            ..Self::NOBODY
        }
    }

    /// What had committed since the account was opened.
    pub fn committed(&self) -> Sums {
        self.committed
    }

    /// Nobody else is there.
    pub const NOBODY: Self = Self {
        others: Standing::NONE,
        committed: Sums::NONE,
        forgotten: 0,
    };
}

/// What a snapshot shows of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its value.
    pub value: i128,
    /// What is on hold of it: 0 or more.
    pub held: i128,
    /// The time at which holds that had expired were left out.
    pub clock: i64,
}

impl Seen {
    /// What others may take of it, down to 0.
    pub fn free(self) -> i128 {
        self.value - self.held
    }
}

/// What is in flight for one counter. Plain data.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Account {
    in_flight: Sums,
    /// What has committed since the account was opened.
    committed: Sums,
    floor: Option<i64>,
    ceiling: Option<i64>,
    forgotten: u32,
    /// When the first hold expires that backs something in flight.
    backed_until: i64,
}

impl Account {
    /// Nothing is in flight, and nothing is known.
    pub const NEW: Self = Self {
        in_flight: Sums::NONE,
        committed: Sums::NONE,
        floor: None,
        ceiling: None,
        forgotten: 0,
        backed_until: i64::MAX,
    };

    /// What is reserved.
    pub fn in_flight(&self) -> Sums {
        self.in_flight
    }

    /// Forgets what was learnt: somebody has changed the counter past the account. Who has read the
    /// value before may have missed that, and teaches nothing any more.
    pub fn forget(&mut self) {
        self.floor = None;
        self.ceiling = None;
        self.forgotten = self.forgotten.wrapping_add(1);
    }

    /// Has somebody changed the counter past the account since that was noted?
    pub fn has_forgotten_since(&self, noted: Noted) -> bool {
        noted.forgotten != self.forgotten
    }

    /// What is in flight, for one who has reserved `own`.
    pub fn note(&self, own: Amounts) -> Noted {
        Noted {
            others: Standing {
                amounts: self.in_flight.minus(own.into()),
                backed_until: self.backed_until,
            },
            committed: self.committed,
            forgotten: self.forgotten,
        }
    }

    /// Reserves more for a transaction that has reserved `own` here before.
    fn reserve(&mut self, own: Amounts, more: Amounts) -> Noted {
        let noted = self.note(own);
        self.in_flight = self.in_flight.plus(more.into());
        noted
    }

    /// Reserves what a transaction needs to go on. To be called before it looks whether what it
    /// leans on has expired.
    pub fn reserve_step(&mut self, step: &Step) -> Noted {
        let wanted = step.wanted();
        let noted = self.reserve(step.before.amounts(), wanted);
        if wanted.backed != 0 {
            self.backed_until = self.backed_until.min(step.after.backed_until());
        }
        noted
    }

    /// Ends a reservation.
    pub fn release(&mut self, amounts: Amounts, end: End) {
        self.in_flight = self.in_flight.minus(amounts.into());
        if self.in_flight.backed == 0 {
            self.backed_until = i64::MAX;
        }
        if end == End::Committed {
            self.committed = self.committed.plus(amounts.into());
            self.floor = self
                .floor
                .and_then(|floor| floor.checked_sub(amounts.takes));
            self.ceiling = self.ceiling.and_then(|ceil| ceil.checked_add(amounts.adds));
        }
    }

    /// Is all that is reserved known to be within the bounds? Takes count against the minimum, adds
    /// against the maximum; only those kinds that `wanted` has are looked at.
    pub fn is_covered(&self, bounds: Bounds, wanted: Amounts) -> bool {
        let covered = |wanted: i64, bound: Option<i64>, rest: Option<i128>| {
            let (false, Some(bound)) = (wanted == 0, bound) else {
                return true;
            };
            rest.is_some_and(|rest| rest >= bound.into())
        };
        let rest =
            |known: Option<i64>, in_flight: i128| known.map(|known| i128::from(known) - in_flight);
        // Upside down, a maximum is a minimum.
        let ceiling = self.ceiling.map(i64::saturating_neg);
        covered(
            wanted.takes,
            bounds.min,
            rest(self.floor, self.in_flight.takes),
        ) && covered(
            wanted.adds,
            bounds.max.map(i64::saturating_neg),
            rest(ceiling, self.in_flight.adds),
        )
    }

    /// Learns from what was seen with a snapshot taken after the reservation that `noted` comes from.
    pub fn learn(&mut self, noted: Noted, seen: Seen) {
        if self.has_forgotten_since(noted) {
            return;
        }
        let since = self.committed.minus(noted.committed);
        let others = noted.others.amounts;
        let floor = seen.free() - others.takes - since.takes;
        let ceiling = seen.value + others.adds + since.adds;
        // Rounded to the safe side where it is beyond a bigint; what is not representable is unknown.
        let floor = i64::try_from(floor.min(i64::MAX.into())).ok();
        let ceiling = i64::try_from(ceiling.max(i64::MIN.into())).ok();
        self.floor = self.floor.max(floor);
        self.ceiling = match (self.ceiling, ceiling) {
            (Some(known), Some(new)) => Some(known.min(new)),
            (known, new) => known.or(new),
        };
    }
}

/// What a transaction finds when it checks its reservation against a value that it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds, whatever the others do.
    Granted,
    /// It may hold, when some of the others have ended.
    Contended,
    /// It does not hold, even if all others abort.
    Refused,
}

/// What could be taken for certain, on top of what the transaction has done before, by what was seen
/// after `noted`. `now` is a time that was looked up after what was done was reserved. None: there is
/// no minimum.
pub fn available(bounds: Bounds, seen: Seen, own: &Path, now: i64, noted: Noted) -> Option<i64> {
    let distance = seen.free() - i128::from(bounds.min?) - noted.others.takes_at(seen.clock);
    // As low as it was once, the path may be again.
    let left = own.free_at(now) + distance.max(own.needed_at(now).into());
    Some(i64::try_from(left.max(0)).unwrap_or(i64::MAX))
}

/// Checks a step against what was seen after it was reserved. `now` is a time that was looked up after
/// that as well: see `holds.rs`.
pub fn check(bounds: Bounds, seen: Seen, step: &Step, now: i64, noted: Noted) -> Verdict {
    // What is asked for, in all, and what was granted of it before.
    let side = |before: i64, after: i64, others: i128, distance: Option<i128>| {
        let Some(distance) = distance.filter(|_| after > before) else {
            return Verdict::Granted;
        };
        let alone = i128::from(after);
        if alone + others <= distance {
            Verdict::Granted
        } else if alone <= distance {
            Verdict::Contended
        } else {
            Verdict::Refused
        }
    };
    let (before, after) = (&step.before, &step.after);
    let others = noted.others;
    let down = side(
        before.needed_at(now),
        after.needed_at(now),
        others.takes_at(seen.clock),
        // Where no more is taken than before, that stays so whatever has expired meanwhile.
        bounds
            .min
            .filter(|_| step.wanted().takes != 0)
            .map(|min| seen.free() - i128::from(min)),
    );
    let up = side(
        before.amounts().adds,
        after.amounts().adds,
        others.amounts.adds,
        bounds.max.map(|max| i128::from(max) - seen.value),
    );
    match (down, up) {
        (Verdict::Refused, _) | (_, Verdict::Refused) => Verdict::Refused,
        (Verdict::Contended, _) | (_, Verdict::Contended) => Verdict::Contended,
        _ => Verdict::Granted,
    }
}

#[cfg(test)]
mod tests;
