//! Escrow: many transactions take from one bounded counter at once, and whichever of them commit,
//! no bound is broken. (P. E. O'Neil, "The Escrow Transactional Method", ACM TODS 11(4), 1986.)
//!
//! # How it works
//! An [`Account`] holds what the transactions in flight have reserved of one counter: what they
//! would take from it, and what they would add. They are never set off against each other, since
//! any of them may abort. A reservation is made first, and then checked against the value that a
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
    const NONE: Self = Self {
        takes: 0,
        adds: 0,
        backed: 0,
    };

    /// What a delta reserves. None: it is too large to be turned round.
    pub fn of(delta: i64) -> Option<Self> {
        Some(Self {
            takes: if delta < 0 { delta.checked_neg()? } else { 0 },
            adds: delta.max(0),
            backed: 0,
        })
    }

    /// What a delta reserves that a hold keeps room for.
    pub fn backed(delta: i64) -> Option<Self> {
        Self::of(delta).map(|all| Self {
            backed: all.takes,
            ..all
        })
    }

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

    /// Nothing.
    pub fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// What is reserved, and until when what backs a part of it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// All of it.
    pub amounts: Amounts,
    /// When the first of the holds behind it expires.
    pub backed_until: i64,
}

impl Standing {
    /// Nothing.
    pub const NONE: Self = Self {
        amounts: Amounts::NONE,
        backed_until: i64::MAX,
    };

    /// What it takes from what is free: a hold that has not expired at `clock` counts itself, or is
    /// confirmed and part of the value.
    fn takes_at(self, clock: i64) -> i128 {
        let backed = if clock < self.backed_until {
            self.amounts.backed
        } else {
            0
        };
        i128::from(self.amounts.takes) - i128::from(backed)
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

/// What was in flight when a reservation was made.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    /// All others' reservations.
    pub others: Standing,
    /// What had committed before.
    committed: Amounts,
    /// How often the account had forgotten what it knew.
    forgotten: u32,
}

impl Noted {
    /// Nobody else is there.
    pub const NOBODY: Self = Self {
        others: Standing::NONE,
        committed: Amounts::NONE,
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
    in_flight: Amounts,
    /// What has committed since the account was opened; wraps around.
    committed: Amounts,
    floor: Option<i64>,
    ceiling: Option<i64>,
    forgotten: u32,
    /// When the first hold expires that backs something in flight.
    backed_until: i64,
}

impl Account {
    /// Nothing is in flight, and nothing is known.
    pub const NEW: Self = Self {
        in_flight: Amounts::NONE,
        committed: Amounts::NONE,
        floor: None,
        ceiling: None,
        forgotten: 0,
        backed_until: i64::MAX,
    };

    /// What is reserved.
    pub fn in_flight(&self) -> Amounts {
        self.in_flight
    }

    /// Forgets what was learnt: somebody has changed the counter past the account. Who has read the
    /// value before may have missed that, and teaches nothing any more.
    pub fn forget(&mut self) {
        self.floor = None;
        self.ceiling = None;
        self.forgotten = self.forgotten.wrapping_add(1);
    }

    /// Reserves more for a transaction that has reserved `own` here before. None: out of range.
    pub fn reserve(&mut self, own: Amounts, more: Amounts) -> Option<Noted> {
        let noted = Noted {
            others: Standing {
                amounts: self.in_flight.minus(own),
                backed_until: self.backed_until,
            },
            committed: self.committed,
            forgotten: self.forgotten,
        };
        self.in_flight = self.in_flight.checked_add(more)?;
        Some(noted)
    }

    /// The same for what a hold keeps room for until then.
    pub fn reserve_backed(&mut self, own: Amounts, more: Amounts, until: i64) -> Option<Noted> {
        let noted = self.reserve(own, more)?;
        self.backed_until = self.backed_until.min(until);
        Some(noted)
    }

    /// Ends a reservation.
    pub fn release(&mut self, amounts: Amounts, end: End) {
        self.in_flight = self.in_flight.minus(amounts);
        if self.in_flight.backed == 0 {
            self.backed_until = i64::MAX;
        }
        if end == End::Committed {
            self.committed.takes = self.committed.takes.wrapping_add(amounts.takes);
            self.committed.adds = self.committed.adds.wrapping_add(amounts.adds);
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
        let rest = |known: Option<i64>, in_flight: i64| {
            known.map(|known| i128::from(known) - i128::from(in_flight))
        };
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
        if noted.forgotten != self.forgotten {
            return;
        }
        let since = Amounts {
            takes: self.committed.takes.wrapping_sub(noted.committed.takes),
            adds: self.committed.adds.wrapping_sub(noted.committed.adds),
            backed: 0,
        };
        let others = noted.others.amounts;
        let floor = seen.free() - i128::from(others.takes) - i128::from(since.takes);
        let ceiling = seen.value + i128::from(others.adds) + i128::from(since.adds);
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

/// What could be taken for certain, on top of what the transaction has reserved before, by what was
/// seen after `noted`. None: there is no minimum.
pub fn available(bounds: Bounds, seen: Seen, own: Standing, noted: Noted) -> Option<i64> {
    let left = seen.free()
        - i128::from(bounds.min?)
        - own.takes_at(seen.clock)
        - noted.others.takes_at(seen.clock);
    Some(i64::try_from(left.max(0)).unwrap_or(i64::MAX))
}

/// Checks `wanted`, on top of what the transaction has reserved before (`own`), against what was seen
/// after the reservation was made.
pub fn check(bounds: Bounds, seen: Seen, own: Standing, wanted: Amounts, noted: Noted) -> Verdict {
    let side = |wanted: i64, own: i128, others: i128, distance: Option<i128>| {
        let Some(distance) = distance.filter(|_| wanted != 0) else {
            return Verdict::Granted;
        };
        let alone = own + i128::from(wanted);
        if alone + others <= distance {
            Verdict::Granted
        } else if alone <= distance {
            Verdict::Contended
        } else {
            Verdict::Refused
        }
    };
    let down = bounds.min.map(|min| seen.free() - i128::from(min));
    let up = bounds.max.map(|max| i128::from(max) - seen.value);
    let others = noted.others;
    let adds = |standing: Standing| i128::from(standing.amounts.adds);
    let takes = |standing: Standing| standing.takes_at(seen.clock);
    match (
        side(wanted.takes, takes(own), takes(others), down),
        side(wanted.adds, adds(own), adds(others), up),
    ) {
        (Verdict::Refused, _) | (_, Verdict::Refused) => Verdict::Refused,
        (Verdict::Contended, _) | (_, Verdict::Contended) => Verdict::Contended,
        _ => Verdict::Granted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A transaction that goes through the steps of a call one at a time, so that those of others
    /// come in between.
    #[derive(Clone, Debug, Default)]
    struct Xact {
        /// Granted so far, each call's.
        granted: Vec<(Kind, Amounts)>,
        call: Option<Call>,
        /// Its changes are visible, its reservations not yet released.
        visible: bool,
        /// It will not be allowed to commit: its changes were checked by bounds that are gone.
        doomed: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Delta,
        Hold,
        /// Of a hold that had been committed.
        Confirm,
    }

    #[derive(Clone, Copy, Debug)]
    struct Call {
        kind: Kind,
        wanted: Amounts,
        noted: Noted,
        /// What its snapshot has shown.
        seen: Option<Seen>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve(usize, i64),
        Hold(usize, i64),
        Confirm(usize),
        Release,
        Read(usize),
        Decide(usize),
        BecomeVisible(usize),
        Commit(usize),
        Abort(usize),
        UndoLast(usize),
        Redefine(i128),
    }

    const XACTS: usize = 4;

    fn step() -> impl Strategy<Value = Step> {
        let xact = 0..XACTS;
        prop_oneof![
            8 => (xact.clone(), -4i64..5).prop_map(|(x, delta)| Step::Reserve(x, delta)),
            2 => (xact.clone(), 1i64..4).prop_map(|(x, amount)| Step::Hold(x, amount)),
            2 => xact.clone().prop_map(Step::Confirm),
            1 => Just(Step::Release),
            6 => xact.clone().prop_map(Step::Read),
            8 => xact.clone().prop_map(Step::Decide),
            4 => xact.clone().prop_map(Step::BecomeVisible),
            6 => xact.clone().prop_map(Step::Commit),
            2 => xact.clone().prop_map(Step::Abort),
            2 => xact.prop_map(Step::UndoLast),
            1 => (0i128..9).prop_map(Step::Redefine),
        ]
    }

    fn sum(granted: &[(Kind, Amounts)]) -> Amounts {
        granted
            .iter()
            .fold(Amounts::default(), |sum, (_, more)| sum.plus(*more))
    }

    /// Holds of the model end, but do not expire.
    const NEVER: i64 = 100;
    const NOW: i64 = 50;

    fn standing(amounts: Amounts) -> Standing {
        Standing {
            amounts,
            backed_until: NEVER,
        }
    }

    fn seen(value: i128, held: i128) -> Seen {
        Seen {
            value,
            held,
            clock: NOW,
        }
    }

    struct World {
        bounds: Bounds,
        /// What a snapshot taken now would see.
        seen: Seen,
        account: Account,
        xacts: [Xact; XACTS],
    }

    impl World {
        fn open(&self, counts: impl Fn(Kind) -> bool) -> Amounts {
            let open = self.xacts.iter().filter(|x| !x.visible && !x.doomed);
            open.flat_map(|xact| &xact.granted)
                .filter(|(kind, _)| counts(*kind))
                .fold(Amounts::default(), |sum, (_, more)| sum.plus(*more))
        }

        /// Whichever transactions commit, the value stays within the bounds; and the account knows
        /// what it says.
        fn check(&self) -> Result<(), TestCaseError> {
            // What is confirmed was held before, or is held still.
            let open = self.open(|kind| kind != Kind::Confirm);
            let lowest = self.seen.free() - i128::from(open.takes);
            let highest = self.seen.value + i128::from(open.adds);
            prop_assert!(self.bounds.contain(lowest), "{lowest} is possible");
            prop_assert!(self.bounds.contain(highest), "{highest} is possible");
            let in_flight = self.account.in_flight();
            if let Some(floor) = self.account.floor {
                prop_assert!(i128::from(floor) - i128::from(in_flight.takes) <= lowest);
            }
            if let Some(ceiling) = self.account.ceiling {
                prop_assert!(i128::from(ceiling) + i128::from(in_flight.adds) >= highest);
            }
            Ok(())
        }

        fn reserve(&mut self, x: usize, kind: Kind, delta: i64) {
            let xact = &mut self.xacts[x];
            if xact.call.is_some() || xact.visible || delta == 0 {
                return;
            }
            let wanted = match kind {
                Kind::Confirm => Amounts::backed(delta).unwrap(),
                _ => Amounts::of(delta).unwrap(),
            };
            let own = sum(&xact.granted);
            let noted = match kind {
                Kind::Confirm => self.account.reserve_backed(own, wanted, NEVER),
                _ => self.account.reserve(own, wanted),
            }
            .unwrap();
            if kind == Kind::Confirm || self.account.is_covered(self.bounds, wanted) {
                xact.granted.push((kind, wanted));
            } else {
                xact.call = Some(Call {
                    kind,
                    wanted,
                    noted,
                    seen: None,
                });
            }
        }

        /// What is on hold and not being confirmed.
        fn holds_left(&self) -> i128 {
            let confirms = self.open(|kind| kind == Kind::Confirm);
            self.seen.held - i128::from(confirms.takes)
        }

        fn run(&mut self, step: Step) {
            let give_back = |account: &mut Account, xact: &mut Xact| {
                if let Some(call) = xact.call.take() {
                    account.release(call.wanted, End::Aborted);
                }
            };
            match step {
                Step::Reserve(x, delta) => self.reserve(x, Kind::Delta, delta),
                Step::Hold(x, amount) => self.reserve(x, Kind::Hold, -amount),
                Step::Confirm(x) => {
                    if self.holds_left() > 0 && !self.xacts[x].doomed {
                        self.reserve(x, Kind::Confirm, -1);
                    }
                }
                Step::Release => self.seen.held -= self.holds_left().min(1),
                Step::Read(x) => {
                    if let Some(call) = &mut self.xacts[x].call {
                        call.seen.get_or_insert(self.seen);
                    }
                }
                Step::Decide(x) => {
                    let xact = &mut self.xacts[x];
                    let Some(call) = xact.call else { return };
                    let Some(seen) = call.seen else { return };
                    self.account.learn(call.noted, seen);
                    let own = standing(sum(&xact.granted));
                    let verdict = check(self.bounds, seen, own, call.wanted, call.noted);
                    if verdict == Verdict::Granted {
                        xact.granted.push((call.kind, call.wanted));
                        xact.call = None;
                    } else {
                        give_back(&mut self.account, xact);
                    }
                }
                Step::BecomeVisible(x) => {
                    let xact = &mut self.xacts[x];
                    if xact.call.is_some() || xact.visible || xact.doomed {
                        return;
                    }
                    for (kind, amounts) in &xact.granted {
                        let (takes, adds) = (i128::from(amounts.takes), i128::from(amounts.adds));
                        match kind {
                            Kind::Delta => self.seen.value += adds - takes,
                            Kind::Hold => self.seen.held += takes,
                            Kind::Confirm => {
                                self.seen.value -= takes;
                                self.seen.held -= takes;
                            }
                        }
                    }
                    xact.visible = true;
                }
                Step::Commit(x) => {
                    let xact = &mut self.xacts[x];
                    if xact.visible {
                        for (_, amounts) in xact.granted.drain(..) {
                            self.account.release(amounts, End::Committed);
                        }
                        xact.visible = false;
                    }
                }
                Step::Abort(x) => {
                    let xact = &mut self.xacts[x];
                    if !xact.visible {
                        give_back(&mut self.account, xact);
                        for (_, amounts) in xact.granted.drain(..) {
                            self.account.release(amounts, End::Aborted);
                        }
                        xact.doomed = false;
                    }
                }
                Step::UndoLast(x) => {
                    let xact = &mut self.xacts[x];
                    if !xact.visible
                        && xact.call.is_none()
                        && let Some((_, amounts)) = xact.granted.pop()
                    {
                        self.account.release(amounts, End::Aborted);
                    }
                }
                // The bounds were away, the counter was changed past the account, and the bounds are
                // back. The first who comes by the new ones makes the account forget.
                Step::Redefine(value) => {
                    for xact in self.xacts.iter_mut().filter(|xact| !xact.visible) {
                        xact.doomed |= xact.call.is_some() || !xact.granted.is_empty();
                    }
                    self.seen = seen(value, 0);
                    self.account.forget();
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn no_outcome_breaks_a_bound(
            start in 0i128..9,
            held in 0i128..4,
            min in prop_oneof![Just(None), Just(Some(0i64)), Just(Some(-2))],
            max in prop_oneof![Just(None), Just(Some(8i64)), Just(Some(10))],
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut world = World {
                bounds: Bounds { min, max },
                seen: seen(start, held.min(start)),
                account: Account::NEW,
                xacts: Default::default(),
            };
            for step in steps {
                world.run(step);
                world.check()?;
            }
        }

        #[test]
        fn alone_everything_that_fits_is_granted(
            start in -5i128..5,
            delta in -6i64..6,
            earlier in -3i64..4,
        ) {
            let bounds = Bounds { min: Some(-5), max: Some(5) };
            let mut account = Account::NEW;
            let own = Amounts::of(earlier).unwrap();
            account.reserve(Amounts::default(), own).unwrap();
            let wanted = Amounts::of(delta).unwrap();
            let noted = account.reserve(own, wanted).unwrap();
            let verdict = check(bounds, seen(start, 0), standing(own), wanted, noted);
            let fits = (wanted.takes == 0 || start - i128::from(own.takes + wanted.takes) >= -5)
                && (wanted.adds == 0 || start + i128::from(own.adds + wanted.adds) <= 5);
            prop_assert_eq!(verdict, if fits { Verdict::Granted } else { Verdict::Refused });
        }
    }

    #[test]
    fn what_is_learnt_saves_reading() {
        let bounds = Bounds {
            min: Some(0),
            max: None,
        };
        let mut account = Account::NEW;
        let one = Amounts::of(-1).unwrap();
        let noted = account.reserve(Amounts::default(), one).unwrap();
        assert!(!account.is_covered(bounds, one));
        account.learn(noted, seen(3, 0));
        assert!(account.is_covered(bounds, one));
        account.release(one, End::Committed);
        for _ in 0..2 {
            account.reserve(Amounts::default(), one).unwrap();
            assert!(account.is_covered(bounds, one));
            account.release(one, End::Committed);
        }
        account.reserve(Amounts::default(), one).unwrap();
        assert!(!account.is_covered(bounds, one));
    }

    #[test]
    fn extreme_numbers_are_out_of_range_and_nothing_else() {
        assert_eq!(Amounts::of(i64::MIN), None);
        let mut account = Account::NEW;
        let all = Amounts::of(-i64::MAX).unwrap();
        assert!(account.reserve(Amounts::default(), all).is_some());
        assert!(account.reserve(all, all).is_none());
        assert_eq!(account.in_flight(), all);
        let noted = account.reserve(Amounts::default(), Amounts::default());
        for value in [i128::MAX / 4, i128::MIN / 4] {
            account.learn(noted.unwrap(), seen(value, 0));
        }
    }

    #[test]
    fn what_is_held_makes_no_room_below_the_maximum() {
        let bounds = Bounds {
            min: Some(0),
            max: Some(10),
        };
        let seen = seen(10, 3);
        let none = Amounts::default();
        let verdict = |delta: i64| {
            let mut account = Account::NEW;
            let wanted = Amounts::of(delta).unwrap();
            let noted = account.reserve(none, wanted).unwrap();
            account.learn(noted, seen);
            let verdict = check(bounds, seen, Standing::NONE, wanted, noted);
            assert_eq!(
                account.is_covered(bounds, wanted),
                verdict == Verdict::Granted
            );
            verdict
        };
        assert_eq!(verdict(1), Verdict::Refused);
        assert_eq!(verdict(-7), Verdict::Granted);
        assert_eq!(verdict(-8), Verdict::Refused);
    }

    #[test]
    fn who_has_read_before_the_account_forgot_teaches_nothing() {
        let mut account = Account::NEW;
        let none = Amounts::default();
        let noted = account.reserve(none, Amounts::of(-1).unwrap()).unwrap();
        account.forget();
        account.learn(noted, seen(10, 0));
        assert_eq!((account.floor, account.ceiling), (None, None));
    }

    #[test]
    fn what_a_hold_backs_counts_once_until_it_expires() {
        let bounds = Bounds {
            min: Some(0),
            max: None,
        };
        let mut account = Account::NEW;
        let confirmed = Amounts::backed(-5).unwrap();
        account
            .reserve_backed(Amounts::default(), confirmed, 60)
            .unwrap();
        let five = Amounts::of(-5).unwrap();
        let noted = account.reserve(Amounts::default(), five).unwrap();
        let verdict = |held, clock| {
            let seen = Seen {
                value: 10,
                held,
                clock,
            };
            check(bounds, seen, Standing::NONE, five, noted)
        };
        // The hold is there, or has been confirmed.
        assert_eq!(verdict(5, 59), Verdict::Granted);
        // It has expired, and is being confirmed by one who has looked at the clock before.
        assert_eq!(verdict(0, 60), Verdict::Granted);
        assert_eq!(verdict(1, 60), Verdict::Contended);
        account.release(confirmed, End::Aborted);
        assert_eq!(account.backed_until, i64::MAX);
    }
}
