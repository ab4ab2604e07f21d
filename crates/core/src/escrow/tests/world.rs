//! Some transactions and the account of the counter that they change, all of it in steps that can be
//! put into any order.

use proptest::prelude::*;

use super::super::*;
use crate::path::Change;

/// A transaction that goes through the steps of a call one at a time, so that those of others
/// come in between.
#[derive(Clone, Debug, Default)]
struct Xact {
    /// After each call that was granted: what there would be if it ended so.
    states: Vec<State>,
    call: Option<Call>,
    /// Its changes are visible, its reservations not yet released.
    visible: bool,
    /// It will not be allowed to commit: its changes were checked by bounds that are gone.
    doomed: bool,
}

/// What a transaction has done so far.
#[derive(Clone, Debug, Default)]
struct State {
    path: Path,
    value: i128,
    /// Holds that it has made.
    made: Vec<Hold>,
    /// Holds of others' sight that it has ended.
    ended: Vec<Hold>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hold {
    id: u64,
    amount: i64,
    until: i64,
}

fn held(holds: &[Hold], clock: i64) -> i128 {
    let left = holds.iter().filter(|hold| clock < hold.until);
    left.map(|hold| i128::from(hold.amount)).sum()
}

impl State {
    /// What it changes of what is free.
    fn free(&self, clock: i64) -> i128 {
        self.value - held(&self.made, clock) + held(&self.ended, clock)
    }
}

#[derive(Clone, Debug)]
struct Call {
    /// Looked up before anything.
    clock: i64,
    then: State,
    /// A hold keeps room for it until then.
    kept: Option<i64>,
    noted: Option<Noted>,
    /// Looked up after it was reserved.
    now: Option<i64>,
    /// What its snapshot has shown.
    seen: Option<Seen>,
}

/// What is done with a hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    Release,
    Confirm(i64),
    Extend(i64),
    Reduce(i64),
}

#[derive(Clone, Debug)]
pub(super) enum Act {
    Delta(usize, i64),
    Hold(usize, i64, i64),
    /// One that others see, or its own.
    With(usize, usize, How),
    Own(usize, usize, How),
    Reserve(usize),
    Look(usize),
    Read(usize),
    Decide(usize),
    /// Whatever is left of these four.
    Finish(usize),
    BecomeVisible(usize),
    Commit(usize),
    Abort(usize),
    UndoLast(usize),
    Redefine(i128),
    Tick,
}

const XACTS: usize = 4;

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        2 => Just(How::Release),
        2 => (1i64..4).prop_map(How::Confirm),
        1 => (1i64..6).prop_map(How::Extend),
        1 => (1i64..4).prop_map(How::Reduce),
    ]
}

pub(super) fn act() -> impl Strategy<Value = Act> {
    let xact = 0..XACTS;
    prop_oneof![
        8 => (xact.clone(), -4i64..5).prop_map(|(x, delta)| Act::Delta(x, delta)),
        3 => (xact.clone(), 1i64..4, 1i64..9).prop_map(|(x, amount, ttl)| Act::Hold(x, amount, ttl)),
        4 => (xact.clone(), 0usize..8, how()).prop_map(|(x, nth, how)| Act::With(x, nth, how)),
        2 => (xact.clone(), 0usize..8, how()).prop_map(|(x, nth, how)| Act::Own(x, nth, how)),
        8 => xact.clone().prop_map(Act::Reserve),
        6 => xact.clone().prop_map(Act::Look),
        6 => xact.clone().prop_map(Act::Read),
        8 => xact.clone().prop_map(Act::Decide),
        4 => xact.clone().prop_map(Act::BecomeVisible),
        6 => xact.clone().prop_map(Act::Commit),
        2 => xact.clone().prop_map(Act::Abort),
        3 => xact.prop_map(Act::UndoLast),
        1 => (0i128..9).prop_map(Act::Redefine),
        4 => Just(Act::Tick),
    ]
}

/// Two who are after what is on hold, and expires.
pub(super) fn act_on_holds() -> impl Strategy<Value = Act> {
    let xact = 0usize..2;
    prop_oneof![
        4 => (xact.clone(), -4i64..0).prop_map(|(x, delta)| Act::Delta(x, delta)),
        4 => (xact.clone(), 0usize..2, how()).prop_map(|(x, nth, how)| Act::With(x, nth, how)),
        1 => (xact.clone(), 0usize..2, how()).prop_map(|(x, nth, how)| Act::Own(x, nth, how)),
        8 => xact.clone().prop_map(Act::Finish),
        2 => xact.clone().prop_map(Act::Reserve),
        2 => xact.clone().prop_map(Act::Look),
        2 => xact.clone().prop_map(Act::Read),
        2 => xact.clone().prop_map(Act::Decide),
        1 => xact.clone().prop_map(Act::BecomeVisible),
        1 => xact.clone().prop_map(Act::Commit),
        1 => xact.prop_map(Act::UndoLast),
        2 => Just(Act::Tick),
    ]
}

pub(super) struct World {
    bounds: Bounds,
    value: i128,
    holds: Vec<Hold>,
    clock: i64,
    last_id: u64,
    account: Account,
    xacts: [Xact; XACTS],
}

impl World {
    /// At clock 0, with two holds: how much each is of, and until when.
    pub(super) fn new(bounds: Bounds, value: i128, holds: [(i64, i64); 2]) -> Self {
        let hold = |id, (amount, until)| Hold { id, amount, until };
        Self {
            bounds,
            value,
            holds: vec![hold(0, holds[0]), hold(1, holds[1])],
            clock: 0,
            last_id: 1,
            account: Account::NEW,
            xacts: Default::default(),
        }
    }

    /// Does one after the other, and looks after each whether all is well.
    pub(super) fn go_through(&mut self, acts: Vec<Act>) -> Result<(), TestCaseError> {
        for act in acts {
            self.run(act)?;
            self.check()?;
        }
        Ok(())
    }

    fn seen(&self, clock: i64) -> Seen {
        Seen {
            value: self.value,
            held: held(&self.holds, clock),
            clock,
        }
    }

    fn open(&self) -> impl Iterator<Item = &Xact> {
        self.xacts
            .iter()
            .filter(|xact| !xact.visible && !xact.doomed)
    }

    /// Whichever transactions commit, all or a beginning of each, what is free stays above the
    /// minimum for ever, and the value below the maximum; and the account knows what it says.
    fn check(&self) -> Result<(), TestCaseError> {
        let in_flight = self.account.in_flight();
        for clock in self.clock..self.clock + 12 {
            let lowest = self.open().map(|xact| {
                let ends = xact.states.iter().map(|state| state.free(clock));
                ends.min().unwrap_or(0).min(0)
            });
            let lowest = self.seen(clock).free() + lowest.sum::<i128>();
            let min = self.bounds.min.map_or(i128::MIN, i128::from);
            prop_assert!(lowest >= min, "{lowest} is possible at {clock}");
            if let Some(floor) = self.account.floor {
                prop_assert!(i128::from(floor) - in_flight.takes <= lowest);
            }
        }
        let highest = self.open().map(|xact| {
            let ends = xact.states.iter().map(|state| state.value);
            ends.max().unwrap_or(0).max(0)
        });
        let highest = self.value + highest.sum::<i128>();
        let max = self.bounds.max.map_or(i128::MAX, i128::from);
        prop_assert!(highest <= max, "{highest} is possible");
        if let Some(ceiling) = self.account.ceiling {
            prop_assert!(i128::from(ceiling) + in_flight.adds >= highest);
        }
        Ok(())
    }

    fn may_call(&self, x: usize) -> bool {
        self.xacts[x].call.is_none() && !self.xacts[x].visible && !self.xacts[x].doomed
    }

    fn call(
        &mut self,
        x: usize,
        kept: Option<i64>,
        change: impl FnOnce(&mut State) -> Option<Path>,
    ) {
        let mut then = self.xacts[x].states.last().cloned().unwrap_or_default();
        then.path = change(&mut then).unwrap();
        self.xacts[x].call = Some(Call {
            clock: self.clock,
            then,
            kept,
            noted: None,
            now: None,
            seen: None,
        });
    }

    /// Ends a hold that others see, one that nobody else is at.
    fn with(&mut self, x: usize, nth: usize, how: How) {
        let busy = |hold: &Hold| {
            let mut xacts = self.xacts.iter();
            xacts.any(|xact| {
                let call = xact.call.iter().map(|call| &call.then);
                xact.states
                    .iter()
                    .chain(call)
                    .any(|state| state.ended.contains(hold))
            })
        };
        let free: Vec<Hold> = self
            .holds
            .iter()
            .copied()
            .filter(|hold| !busy(hold))
            .collect();
        if free.is_empty() || !self.may_call(x) {
            return;
        }
        let hold = free[nth % free.len()];
        let clock = self.clock;
        let kept = (!matches!(how, How::Release)).then_some(hold.until);
        self.call(x, kept, |state| {
            let mut path = state.path;
            state.ended.push(hold);
            // One that has expired gives nothing back.
            if clock < hold.until {
                path = path.then(Change::release(hold.amount, hold.until))?;
            }
            match how {
                How::Release => Some(path),
                How::Confirm(part) => {
                    let amount = part.min(hold.amount);
                    state.value -= i128::from(amount);
                    path.then(Change::delta(-amount))
                }
                How::Extend(ttl) => {
                    let until = hold.until.max(clock + ttl);
                    state.made.push(Hold { until, ..hold });
                    path.then(Change::hold(hold.amount))
                }
                How::Reduce(part) => {
                    let amount = hold.amount - part.min(hold.amount);
                    state.made.push(Hold { amount, ..hold });
                    path.then(Change::hold(amount))
                }
            }
        });
        // Expired already when it was locked.
        if kept.is_some_and(|until| until <= clock) {
            self.xacts[x].call = None;
        }
    }

    fn own(&mut self, x: usize, nth: usize, how: How) {
        let made = self.xacts[x]
            .states
            .last()
            .map_or(0, |state| state.made.len());
        if made == 0 || !self.may_call(x) {
            return;
        }
        let clock = self.clock;
        let mut kept = None;
        self.call(x, None, |state| {
            let hold = state.made.remove(nth % made);
            kept = (!matches!(how, How::Release)).then_some(hold.until);
            match how {
                How::Release => state.path.then(Change::release_own(hold.amount)),
                How::Confirm(part) => {
                    let amount = part.min(hold.amount);
                    state.value -= i128::from(amount);
                    let path = state.path.then(Change::release_own(hold.amount))?;
                    path.then(Change::delta(-amount))
                }
                How::Extend(ttl) => {
                    let until = hold.until.max(clock + ttl);
                    state.made.push(Hold { until, ..hold });
                    Some(state.path)
                }
                How::Reduce(part) => {
                    let part = part.min(hold.amount);
                    let amount = hold.amount - part;
                    state.made.push(Hold { amount, ..hold });
                    state.path.then(Change::release_own(part))
                }
            }
        });
        if kept.is_some_and(|until| until <= clock) {
            self.xacts[x].call = None;
        } else if let Some(call) = &mut self.xacts[x].call {
            call.kept = kept;
        }
    }

    fn step(&self, x: usize) -> Option<Step> {
        let xact = &self.xacts[x];
        xact.call.as_ref().map(|call| Step {
            before: xact.states.last().map_or(Path::NEW, |state| state.path),
            after: call.then.path,
        })
    }

    fn grant(&mut self, x: usize) {
        let xact = &mut self.xacts[x];
        if let Some(call) = xact.call.take() {
            xact.states.push(call.then);
        }
    }

    fn give_back(&mut self, x: usize) {
        let step = self.step(x);
        if let (Some(step), Some(call)) = (step, self.xacts[x].call.take())
            && call.noted.is_some()
        {
            self.account.release(step.wanted(), End::Aborted);
        }
    }

    fn run(&mut self, act: Act) -> Result<(), TestCaseError> {
        match act {
            Act::Delta(x, delta) if self.may_call(x) => self.call(x, None, |state| {
                state.value += i128::from(delta);
                state.path.then(Change::delta(delta))
            }),
            Act::Hold(x, amount, ttl) if self.may_call(x) => {
                self.last_id += 1;
                let (id, until) = (self.last_id, self.clock + ttl);
                self.call(x, None, |state| {
                    state.made.push(Hold { id, amount, until });
                    state.path.then(Change::hold(amount))
                });
            }
            Act::Delta(..) | Act::Hold(..) => {}
            Act::With(x, nth, how) => self.with(x, nth, how),
            Act::Own(x, nth, how) => self.own(x, nth, how),
            Act::Reserve(x) => {
                let Some(step) = self.step(x) else {
                    return Ok(());
                };
                let Some(call) = &mut self.xacts[x].call else {
                    return Ok(());
                };
                if call.noted.is_some() || self.xacts[x].doomed {
                    return Ok(());
                }
                if step.wanted().is_zero() && call.kept.is_none() {
                    self.grant(x);
                    return Ok(());
                }
                call.noted = Some(self.account.reserve_step(&step));
                if call.kept.is_none() && self.account.is_covered(self.bounds, step.wanted()) {
                    self.grant(x);
                }
            }
            Act::Look(x) => {
                let clock = self.clock;
                let Some(call) = &mut self.xacts[x].call else {
                    return Ok(());
                };
                if call.noted.is_none() || call.now.is_some() {
                    return Ok(());
                }
                call.now = Some(clock);
                match call.kept {
                    Some(until) if clock < until => self.grant(x),
                    Some(_) => self.give_back(x),
                    None => {}
                }
            }
            Act::Read(x) => {
                let Some(call) = &self.xacts[x].call else {
                    return Ok(());
                };
                if call.noted.is_some() && call.seen.is_none() {
                    let seen = self.seen(call.clock);
                    self.xacts[x].call.as_mut().unwrap().seen = Some(seen);
                }
            }
            Act::Decide(x) => {
                let Some(step) = self.step(x) else {
                    return Ok(());
                };
                let Some(Call {
                    noted: Some(noted),
                    seen: Some(seen),
                    now: Some(now),
                    ..
                }) = self.xacts[x].call
                else {
                    return Ok(());
                };
                self.account.learn(noted, seen);
                let verdict = check(self.bounds, seen, &step, now, noted);
                // What is said to be available is what would be granted.
                let less = step.before.free_at(now) - step.after.free_at(now);
                if let Some(available) = available(self.bounds, seen, &step.before, now, noted)
                    && less > 0
                    && step.after.backed_until() == step.before.backed_until()
                    && verdict != Verdict::Granted
                {
                    prop_assert!(less > available.into(), "{available} of {less}");
                }
                if verdict == Verdict::Granted {
                    self.grant(x);
                } else {
                    self.give_back(x);
                }
            }
            Act::Finish(x) => {
                for act in [Act::Reserve, Act::Look, Act::Read, Act::Decide] {
                    self.run(act(x))?;
                }
            }
            Act::BecomeVisible(x) => {
                let xact = &mut self.xacts[x];
                if xact.call.is_some() || xact.visible || xact.doomed {
                    return Ok(());
                }
                if let Some(state) = xact.states.last() {
                    self.value += state.value;
                    self.holds.retain(|hold| !state.ended.contains(hold));
                    self.holds.extend(&state.made);
                }
                xact.visible = true;
            }
            Act::Commit(x) => {
                let xact = &mut self.xacts[x];
                if xact.visible {
                    let state = xact.states.last().cloned().unwrap_or_default();
                    self.account.release(state.path.amounts(), End::Committed);
                    *xact = Xact::default();
                }
            }
            Act::Abort(x) => {
                if !self.xacts[x].visible {
                    self.give_back(x);
                    let state = self.xacts[x].states.last().cloned().unwrap_or_default();
                    self.account.release(state.path.amounts(), End::Aborted);
                    self.xacts[x] = Xact::default();
                }
            }
            Act::UndoLast(x) => {
                let xact = &mut self.xacts[x];
                if !xact.visible
                    && xact.call.is_none()
                    && let Some(state) = xact.states.pop()
                {
                    let before = xact.states.last().map_or(Path::NEW, |state| state.path);
                    let amounts = state.path.amounts().minus(before.amounts());
                    self.account.release(amounts, End::Aborted);
                }
            }
            // The bounds were away, the counter was changed past the account, and the bounds are
            // back. The first who comes by the new ones makes the account forget.
            Act::Redefine(value) => {
                for xact in self.xacts.iter_mut().filter(|xact| !xact.visible) {
                    xact.doomed |= xact.call.is_some() || !xact.states.is_empty();
                }
                self.value = value;
                self.holds.clear();
                self.account.forget();
            }
            Act::Tick => self.clock += 1,
        }
        Ok(())
    }
}
