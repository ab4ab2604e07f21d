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

/// What another transaction in flight kept from others, of one counter, when a call was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    pub(super) client: usize,
    /// Takes: so many for certain, and at most so many.
    pub(super) takes: (i64, i64),
    /// The same of adds.
    pub(super) adds: (i64, i64),
}

/// A call that was answered.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) call: Call,
    pub(super) answer: String,
    /// By other transactions, of the call's counter.
    pub(super) reserved: Vec<Reserved>,
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

/// A transaction that has the database to itself.
pub(super) struct Alone<'p> {
    plan: &'p Plan,
    /// What was committed when it began: what it adds, it cannot take before it commits.
    base: State,
    pub(super) state: State,
    takes: Vec<i64>,
    adds: Vec<i64>,
    /// What it has set aside: takes that change no value.
    held: Vec<i64>,
    /// What it has confirmed: changes that are no takes.
    confirmed: Vec<i64>,
}

impl<'p> Alone<'p> {
    pub(super) fn new(plan: &'p Plan, state: State) -> Self {
        Self {
            plan,
            base: state.clone(),
            takes: vec![0; state.counters.len()],
            adds: vec![0; state.counters.len()],
            held: vec![0; state.counters.len()],
            confirmed: vec![0; state.counters.len()],
            state,
        }
    }

    fn kind(&self, counter: usize) -> Kind {
        self.plan.counters[counter].kind
    }

    /// What can be taken for certain; None: any amount.
    fn available(&self, counter: usize) -> Option<i64> {
        let min = self.kind(counter).min()?;
        let held = self.base.held(self.plan, counter);
        Some(self.base.value(counter) - held - min - self.takes[counter])
    }

    /// What can be added for certain; None: any amount.
    fn room(&self, counter: usize) -> Option<i64> {
        let max = self.kind(counter).max()?;
        Some(max - self.base.value(counter) - self.adds[counter])
    }

    /// May a change be granted?
    fn fits(&self, counter: usize, delta: i64) -> bool {
        if delta < 0 {
            self.available(counter).is_none_or(|there| there >= -delta)
        } else {
            delta == 0 || self.room(counter).is_none_or(|room| room >= delta)
        }
    }

    /// May it be refused, when others keep so much of it to themselves?
    fn lacks(&self, counter: usize, delta: i64, others: Others) -> bool {
        if delta < 0 {
            let there = self.available(counter);
            there.is_some_and(|there| there - others.takes.1 < -delta)
        } else {
            let room = self.room(counter);
            delta > 0 && room.is_some_and(|room| room - others.adds.1 < delta)
        }
    }

    fn change(&mut self, counter: usize, delta: i64) {
        self.state.counters[counter] = Some(self.state.value(counter) + delta);
        self.takes[counter] += (-delta).max(0);
        self.adds[counter] += delta.max(0);
    }

    /// A change that was granted, or refused: could that be?
    fn decided(&mut self, counter: usize, delta: i64, granted: bool, others: Others) -> bool {
        if !granted {
            return self.lacks(counter, delta, others);
        }
        let fits = self.fits(counter, delta);
        self.change(counter, delta);
        fits
    }

    /// Could it be told this, when the transactions before it are those?
    pub(super) fn explains(&mut self, told: &Told, before: &[usize]) -> bool {
        let others = Others::of(told, before);
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
            Call::Incr(counter, delta) => self.decided(counter, delta, !refused, others),
            Call::Try(counter, delta) => self.decided(counter, delta, answer == "true", others),
            Call::Get(counter, delta) => {
                self.decided(counter, delta, !refused, others)
                    && (refused || is(self.state.value(counter)))
            }
            Call::Take(counter, n) => {
                let Ok(got) = answer.parse::<i64>() else {
                    return false;
                };
                let available = self.available(counter);
                if got > 0 {
                    self.change(counter, -got);
                }
                match available {
                    None => got == n,
                    Some(there) if got == n => there >= n,
                    // It has told what there was.
                    Some(there) => {
                        let least = (there - others.takes.1).clamp(0, n);
                        let most = (there - others.takes.0).clamp(0, n);
                        (least..=most).contains(&got)
                    }
                }
            }
            Call::Set(counter, value) => self.set(counter, value, answer, others),
            Call::Reset(counter) if self.state.counters[counter].is_none() => is(0),
            Call::Reset(counter) => self.set(counter, 0, answer, others),
            Call::Drop(counter) => match self.state.counters[counter] {
                None => answer == "false",
                Some(_) => self.drop_counter(counter, answer, others),
            },
            Call::Once(place) => {
                let token = self.plan.tokens[place];
                if let Some(replayed) = &self.state.tokens[place] {
                    return answer == replayed;
                }
                if !self.decided(token.counter, token.delta, !refused, others) {
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
                if refused {
                    return self.lacks(counter, -amount, others);
                }
                let fits = self.fits(counter, -amount);
                self.takes[counter] += amount;
                self.held[counter] += amount;
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
                let value = self.state.value(counter) - part;
                self.confirmed[counter] += part;
                self.state.counters[counter] = Some(value);
                answer.is_empty()
            }
            Call::Release(hold) => {
                let there = std::mem::replace(&mut self.state.known[hold], false);
                answer == there.to_string()
            }
        }
    }

    /// Set: the difference is a take or an add.
    fn set(&mut self, counter: usize, value: i64, answer: &str, others: Others) -> bool {
        let old = self.state.value(counter);
        let refused = answer == REFUSED;
        let explained = self.decided(counter, value - old, !refused, others);
        explained && (refused || answer == old.to_string())
    }

    /// Dropped: what the transaction has added is gone with it, and what others see is taken, as far as
    /// it has not taken that already. What it has set aside it has to leave.
    fn drop_counter(&mut self, counter: usize, answer: &str, others: Others) -> bool {
        let value = self.base.value(counter);
        let changed = self.takes[counter] - self.held[counter] + self.confirmed[counter];
        let more = if value > 0 {
            (changed - value).min(0)
        } else {
            (-value - self.adds[counter]).max(0)
        };
        if answer == REFUSED {
            return self.lacks(counter, more, others);
        }
        let fits = self.fits(counter, more);
        self.change(counter, more);
        self.state.counters[counter] = None;
        fits && answer == "true"
    }
}

/// What transactions that do not come before had reserved.
#[derive(Clone, Copy)]
struct Others {
    takes: (i64, i64),
    adds: (i64, i64),
}

impl Others {
    fn of(told: &Told, before: &[usize]) -> Self {
        let mut others = Self {
            takes: (0, 0),
            adds: (0, 0),
        };
        let later = told.reserved.iter();
        for reserved in later.filter(|reserved| !before.contains(&reserved.client)) {
            others.takes.0 += reserved.takes.0;
            others.takes.1 += reserved.takes.1;
            others.adds.0 += reserved.adds.0;
            others.adds.1 += reserved.adds.1;
        }
        others
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
        if told.iter().all(|told| alone.explains(told, before)) {
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
            reserved: Vec::new(),
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
    fn what_others_have_reserved_explains_a_refusal_before_them_alone() {
        let plan = plan(3);
        let take = [told(Call::Try(0, -2), "true")];
        let mut refused = [told(Call::Value(0), "3"), told(Call::Try(0, -2), "false")];
        assert!(!holds(&plan, &refused, &take, 1, 0));
        refused[1].reserved = vec![Reserved {
            client: 1,
            takes: (2, 2),
            adds: (0, 0),
        }];
        assert!(holds(&plan, &refused, &take, 1, 0));
        // It has seen the other one; so that one's take is no further reason.
        refused[0].answer = "1".to_owned();
        refused[1].call = Call::Try(0, -1);
        assert!(!holds(&plan, &refused, &take, 1, 0));
    }

    #[test]
    fn what_a_transaction_adds_it_cannot_take() {
        let plan = plan(0);
        let start = State::new(&plan);
        let mut alone = Alone::new(&plan, start);
        assert!(alone.explains(&told(Call::Incr(0, 2), ""), &[]));
        assert!(alone.explains(&told(Call::Try(0, -1), "false"), &[]));
        assert!(alone.explains(&told(Call::Available(0), "2|0|2"), &[]));
        assert!(alone.explains(&told(Call::Take(0, 2), "0"), &[]));
        assert!(!alone.explains(&told(Call::Reset(0), "2"), &[]));
    }

    #[test]
    fn a_drop_takes_what_others_see_and_leaves_what_is_set_aside() {
        let plan = plan(3);
        let after = |calls: &[(Call, &str)]| {
            let mut alone = Alone::new(&plan, State::new(&plan));
            calls
                .iter()
                .all(|&(call, answer)| alone.explains(&told(call, answer), &[]))
        };
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
