//! One transaction after the other: what each call must answer then.

use std::collections::BTreeMap;

use super::plan::{Call, Kind, Plan};

/// What is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    /// The counters that exist.
    pub(super) counters: Vec<Option<i64>>,
    /// The holds from before the round, those that are there.
    pub(super) known: Vec<bool>,
    /// The holds of the round, of which nobody learns the ids: counter and amount, and how many.
    pub(super) fresh: BTreeMap<(usize, i64), u64>,
    pub(super) rows: Vec<i64>,
    /// The tokens that are used, with what a replay is told.
    pub(super) tokens: Vec<Option<String>>,
}

/// A call that was answered.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) call: Call,
    pub(super) answer: String,
}

/// What a guarded call answers when it meets a bound.
pub(super) const REFUSED: &str = "refused";
/// The same, when there is no such hold.
pub(super) const MISSING: &str = "missing";

impl State {
    /// At the beginning of a round.
    pub(super) fn new(plan: &Plan) -> Self {
        let mut state = Self {
            counters: plan
                .counters
                .iter()
                .map(|counter| {
                    let exists = counter.folded.is_some() || counter.pending.is_some();
                    exists.then(|| counter.value())
                })
                .collect(),
            known: vec![true; plan.holds.len()],
            fresh: BTreeMap::new(),
            rows: vec![0; plan.rows],
            tokens: vec![None; plan.tokens.len()],
        };
        for (place, token) in plan.tokens.iter().enumerate() {
            if token.used {
                let value = state.value(token.counter) + token.delta;
                state.counters[token.counter] = Some(value);
                state.tokens[place] = Some(replay(token.get, value));
            }
        }
        state
    }

    pub(super) fn value(&self, counter: usize) -> i64 {
        self.counters[counter].unwrap_or(0)
    }

    fn held(&self, plan: &Plan, counter: usize) -> i64 {
        self.holds(plan)
            .filter(|(of, _)| *of == counter)
            .map(|(_, amount)| amount)
            .sum()
    }

    fn holds<'s>(&'s self, plan: &'s Plan) -> impl Iterator<Item = (usize, i64)> + 's {
        let known = plan.holds.iter().zip(&self.known);
        let known = known.filter(|(_, there)| **there).map(|(hold, _)| *hold);
        let fresh = self.fresh.iter();
        known.chain(fresh.flat_map(|(hold, count)| (0..*count).map(|_| *hold)))
    }

    /// The holds as the query for them has it.
    pub(super) fn holds_text(&self, plan: &Plan) -> String {
        let mut holds: Vec<(usize, i64)> = self.holds(plan).collect();
        holds.sort_unstable();
        let texts: Vec<String> = holds
            .iter()
            .map(|(counter, amount)| format!("{counter}:{amount}"))
            .collect();
        texts.join(" ")
    }
}

fn replay(get: bool, value: i64) -> String {
    if get {
        value.to_string()
    } else {
        "false".to_owned()
    }
}

/// What a transaction has done to a counter: sums, and how far they went. What it has added, or set free,
/// counts for what it takes then, and not for what it has taken before.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Done {
    value: i64,
    /// Of what others see as free.
    free: i64,
    /// How low that was.
    lowest: i64,
    /// How high the value was.
    highest: i64,
}

impl Done {
    fn then(self, value: i64, free: i64) -> Self {
        let (value, free) = (self.value + value, self.free + free);
        Self {
            value,
            free,
            lowest: self.lowest.min(free),
            highest: self.highest.max(value),
        }
    }
}

/// A transaction that has the database to itself.
pub(super) struct Alone<'p> {
    plan: &'p Plan,
    /// What was committed when it began.
    base: State,
    pub(super) state: State,
    done: Vec<Done>,
}

impl<'p> Alone<'p> {
    pub(super) fn new(plan: &'p Plan, state: State) -> Self {
        Self {
            plan,
            base: state.clone(),
            done: vec![Done::default(); state.counters.len()],
            state,
        }
    }

    fn kind(&self, counter: usize) -> Kind {
        self.plan.counters[counter].kind
    }

    /// How low it may go; None: as low as it likes.
    fn down(&self, counter: usize) -> Option<i64> {
        let min = self.kind(counter).min()?;
        Some(min - self.base.value(counter) + self.base.held(self.plan, counter))
    }

    /// What can be taken; None: any amount.
    fn available(&self, counter: usize) -> Option<i64> {
        let done = self.done[counter];
        // As low as it was once, it may be again.
        let down = self.down(counter)?.min(done.lowest);
        Some((done.free - down).max(0))
    }

    /// May it go so far? Only what goes further than it was is looked at.
    fn fits(&self, counter: usize, after: Done) -> bool {
        let before = self.done[counter];
        let up = self.kind(counter).max();
        let up = up.map(|max| max - self.base.value(counter));
        (after.lowest == before.lowest
            || self.down(counter).is_none_or(|down| after.lowest >= down))
            && (after.highest == before.highest || up.is_none_or(|up| after.highest <= up))
    }

    /// A change that was granted, or refused: could that be?
    fn decided(&mut self, counter: usize, delta: i64, granted: bool) -> bool {
        let after = self.done[counter].then(delta, delta);
        let fits = self.fits(counter, after);
        if granted {
            self.change(counter, delta);
        }
        fits == granted
    }

    fn change(&mut self, counter: usize, delta: i64) {
        self.done[counter] = self.done[counter].then(delta, delta);
        self.state.counters[counter] = Some(self.state.value(counter) + delta);
    }

    /// Could it be told this?
    pub(super) fn explains(&mut self, told: &Told) -> bool {
        let answer = told.answer.as_str();
        let is = |value: i64| answer == value.to_string();
        let refused = answer == REFUSED;
        match told.call {
            Call::Value(counter) => is(self.state.value(counter)),
            Call::Available(counter) => {
                let value = self.state.value(counter);
                let held = self.state.held(self.plan, counter);
                let available = match self.kind(counter).min() {
                    Some(min) => (value - held - min).to_string(),
                    None => "NULL".to_owned(),
                };
                answer == format!("{value}|{held}|{available}")
            }
            Call::Sum => {
                let sum: i64 = self.state.counters.iter().flatten().sum();
                let count = self.state.counters.iter().flatten().count();
                answer == format!("{sum}|{count}")
            }
            Call::Prefix(kind) => {
                let all = self.plan.counters.iter().zip(&self.state.counters);
                let sum = all
                    .filter(|(counter, _)| counter.kind == kind)
                    .filter_map(|(_, value)| *value)
                    .sum();
                is(sum)
            }
            Call::Holds => answer == self.state.holds_text(self.plan),
            Call::Row(row) => is(self.state.rows[row]),
            Call::Rows => is(self.state.rows.iter().sum()),
            Call::Update(row, delta) => {
                self.state.rows[row] += delta;
                is(self.state.rows[row])
            }
            Call::Incr(counter, delta) => self.decided(counter, delta, !refused),
            Call::Try(counter, delta) => self.decided(counter, delta, answer == "true"),
            Call::Get(counter, delta) => {
                self.decided(counter, delta, !refused) && (refused || is(self.state.value(counter)))
            }
            Call::Take(counter, n) => {
                let Ok(got) = answer.parse::<i64>() else {
                    return false;
                };
                let there = self.available(counter);
                if got > 0 {
                    self.change(counter, -got);
                }
                got == there.map_or(n, |there| there.min(n))
            }
            Call::Set(counter, value) => self.set(counter, value, answer),
            Call::Reset(counter) if self.state.counters[counter].is_none() => is(0),
            Call::Reset(counter) => self.set(counter, 0, answer),
            Call::Drop(counter) => match self.state.counters[counter] {
                None => answer == "false",
                Some(_) => self.drop_counter(counter, answer),
            },
            Call::Once(place) => {
                let token = self.plan.tokens[place];
                if let Some(replayed) = &self.state.tokens[place] {
                    return answer == replayed;
                }
                if !self.decided(token.counter, token.delta, !refused) {
                    return false;
                }
                if refused {
                    return true;
                }
                let value = self.state.value(token.counter);
                self.state.tokens[place] = Some(replay(token.get, value));
                if token.get {
                    is(value)
                } else {
                    answer == "true"
                }
            }
            Call::Hold(counter, amount) => {
                let after = self.done[counter].then(0, -amount);
                let fits = self.fits(counter, after);
                if refused {
                    return !fits;
                }
                self.done[counter] = after;
                *self.state.fresh.entry((counter, amount)).or_insert(0) += 1;
                fits
            }
            Call::Confirm(hold, part) => {
                if !self.state.known[hold] {
                    return answer == MISSING;
                }
                let (counter, amount) = self.plan.holds[hold];
                self.state.known[hold] = false;
                let part = part.unwrap_or(amount);
                // The hold has kept room for it.
                self.done[counter] = self.done[counter].then(0, amount);
                self.change(counter, -part);
                answer == "true"
            }
            Call::Release(hold) => {
                let there = std::mem::replace(&mut self.state.known[hold], false);
                if there {
                    let (counter, amount) = self.plan.holds[hold];
                    self.done[counter] = self.done[counter].then(0, amount);
                }
                answer == there.to_string()
            }
        }
    }

    /// Set: the difference is a take or an add.
    fn set(&mut self, counter: usize, value: i64, answer: &str) -> bool {
        let old = self.state.value(counter);
        let refused = answer == REFUSED;
        let explained = self.decided(counter, value - old, !refused);
        explained && (refused || answer == old.to_string())
    }

    /// Dropped: all of the value is taken. What is set aside has to stay.
    fn drop_counter(&mut self, counter: usize, answer: &str) -> bool {
        let refused = answer == REFUSED;
        let explained = self.decided(counter, -self.state.value(counter), !refused);
        if refused {
            return explained;
        }
        self.state.counters[counter] = None;
        explained && answer == "true"
    }
}

/// An order of these transactions that explains all that they were told, and the end; and how far the
/// best one came, if there is none.
pub(super) fn explain(
    plan: &Plan,
    start: &State,
    committed: &[(usize, &[Told])],
    end: &State,
) -> Result<Vec<usize>, usize> {
    let mut best = 0;
    let mut before = Vec::new();
    let mut left = committed.to_vec();
    if search(plan, start, &mut left, &mut before, end, &mut best) {
        Ok(before)
    } else {
        Err(best)
    }
}

fn search(
    plan: &Plan,
    state: &State,
    left: &mut Vec<(usize, &[Told])>,
    before: &mut Vec<usize>,
    end: &State,
    best: &mut usize,
) -> bool {
    *best = (*best).max(before.len());
    if left.is_empty() {
        return state == end;
    }
    for place in 0..left.len() {
        let (client, told) = left.remove(place);
        let mut alone = Alone::new(plan, state.clone());
        if told.iter().all(|told| alone.explains(told)) {
            before.push(client);
            if search(plan, &alone.state, left, before, end, best) {
                return true;
            }
            before.pop();
        }
        left.insert(place, (client, told));
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Counter, Features, Token};
    use super::*;

    fn plan(value: i64) -> Plan {
        Plan {
            serializable: true,
            features: Features::Holds,
            counters: vec![Counter {
                kind: Kind::Floor,
                folded: None,
                pending: Some(value),
            }],
            holds: vec![],
            rows: 1,
            tokens: Vec::<Token>::new(),
            clients: 2,
            read_only: vec![false; 2],
            turns: Vec::new(),
        }
    }

    fn told(call: Call, answer: &str) -> Told {
        Told {
            call,
            answer: answer.to_owned(),
        }
    }

    /// Is there an order in which the two were told this, and the counter comes to that?
    fn holds(plan: &Plan, one: &[Told], other: &[Told], value: i64, row: i64) -> bool {
        let start = State::new(plan);
        let mut end = start.clone();
        end.counters[0] = Some(value);
        end.rows[0] = row;
        explain(plan, &start, &[(0, one), (1, other)], &end).is_ok()
    }

    #[test]
    fn an_order_is_found_where_there_is_one() {
        let plan = plan(1);
        let add = [told(Call::Incr(0, 1), "")];
        let take = [told(Call::Value(0), "2"), told(Call::Try(0, -2), "true")];
        assert!(holds(&plan, &take, &add, 0, 0));
        assert!(!holds(&plan, &take, &add, 1, 0));
        let too_much = [told(Call::Value(0), "1"), told(Call::Try(0, -2), "true")];
        assert!(!holds(&plan, &too_much, &add, 0, 0));
        // Write skew.
        let one = [told(Call::Value(0), "1"), told(Call::Update(0, 1), "1")];
        let other = [told(Call::Row(0), "0"), told(Call::Incr(0, 1), "")];
        assert!(holds(&plan, &one, &add, 2, 1));
        assert!(!holds(&plan, &one, &other, 2, 1));
    }

    #[test]
    fn a_refusal_needs_an_order_of_its_own() {
        let plan = plan(3);
        let take = [told(Call::Try(0, -2), "true")];
        let seen = |value| [told(Call::Value(0), value), told(Call::Try(0, -2), "false")];
        assert!(holds(&plan, &seen("1"), &take, 1, 0));
        // What others have in flight is no reason: a snapshot does not show it.
        assert!(!holds(&plan, &seen("3"), &take, 1, 0));
    }

    /// Can one transaction be told this?
    fn alone(plan: &Plan, calls: &[(Call, &str)]) -> bool {
        let mut alone = Alone::new(plan, State::new(plan));
        let mut calls = calls.iter();
        calls.all(|&(call, answer)| alone.explains(&told(call, answer)))
    }

    #[test]
    fn what_a_transaction_adds_it_can_take_then() {
        let incr = (Call::Incr(0, 2), "");
        let take = (Call::Try(0, -2), "true");
        let refused = (Call::Try(0, -1), "false");
        assert!(alone(&plan(0), &[refused, incr, take, refused]));
        assert!(alone(&plan(0), &[incr, (Call::Available(0), "2|0|2")]));
        assert!(alone(&plan(0), &[incr, (Call::Take(0, 3), "2")]));
        assert!(alone(&plan(0), &[incr, (Call::Reset(0), "2")]));
        assert!(!alone(&plan(0), &[incr, refused]));
        // An add of others may be taken back, one's own takes are there again.
        assert!(alone(&plan(2), &[take, incr, take, refused]));
    }

    #[test]
    fn what_is_released_can_be_taken_then() {
        let mut plan = plan(3);
        plan.holds = vec![(0, 2)];
        let release = (Call::Release(0), "true");
        let refused = (Call::Try(0, -2), "false");
        assert!(alone(
            &plan,
            &[refused, release, (Call::Try(0, -3), "true")]
        ));
        assert!(alone(
            &plan,
            &[
                (Call::Confirm(0, Some(1)), "true"),
                (Call::Try(0, -2), "true"),
                refused
            ]
        ));
        assert!(!alone(
            &plan,
            &[(Call::Confirm(0, None), "true"), (Call::Try(0, -2), "true")]
        ));
    }

    #[test]
    fn a_drop_takes_what_others_see_and_leaves_what_is_set_aside() {
        let plan = plan(3);
        let after = |calls: &[(Call, &str)]| alone(&plan, calls);
        assert!(after(&[(Call::Incr(0, 2), ""), (Call::Drop(0), "true")]));
        assert!(after(&[
            (Call::Take(0, 2), "2"),
            (Call::Drop(0), "true"),
            (Call::Drop(0), "false")
        ]));
        assert!(after(&[(Call::Hold(0, 2), "1"), (Call::Drop(0), REFUSED)]));
        assert!(!after(&[(Call::Hold(0, 2), "1"), (Call::Drop(0), "true")]));
    }
}
