//! What REPEATABLE READ promises, where no order has to explain anything.
//!
//! - What a transaction reads of a counter, or a row, is the same all the time, but for its own
//!   changes.
//! - No read of a bounded counter is beyond its bounds.
//! - At the end a counter has what it had, and what each committed transaction said to have changed:
//!   nothing is lost, counted twice, or drained twice. (In SERIALIZABLE too.)

use super::model::{MISSING, REFUSED, State, Told};
use super::plan::{Call, Plan};

/// A transaction's view of one counter.
#[derive(Clone, Copy, Default)]
struct View {
    /// What the snapshot has, once it was read.
    base: Option<i64>,
    /// What it has changed itself.
    net: i64,
    /// It has changed it by it does not say how much.
    unknown: bool,
}

/// What is wrong, if anything is. The transactions, and whether they have committed.
pub(super) fn wrong(
    plan: &Plan,
    start: &State,
    all: &[(bool, &[Told])],
    end: &State,
    serializable: bool,
) -> Option<String> {
    let mut sums: Vec<Option<i64>> = (0..plan.counters.len())
        .map(|counter| Some(start.value(counter)))
        .collect();
    for (client, (committed, told)) in all.iter().enumerate() {
        let mut views = vec![View::default(); plan.counters.len()];
        let mut rows = vec![View::default(); plan.rows];
        for (place, told) in told.iter().enumerate() {
            let wrong = learn(plan, &mut views, &mut rows, told);
            if let Some(wrong) = wrong
                && !serializable
            {
                return Some(format!(
                    "s{client}, {:?}, its call number {}: {wrong}",
                    told.call,
                    place + 1
                ));
            }
        }
        if *committed {
            for (sum, view) in sums.iter_mut().zip(views) {
                *sum = sum.filter(|_| !view.unknown).map(|sum| sum + view.net);
            }
        }
    }
    for (counter, sum) in sums.iter().enumerate() {
        let value = end.value(counter);
        if let Some(sum) = *sum
            && sum != value
        {
            return Some(format!(
                "counter {counter} is {value} at the end; with what was said to be changed it is {sum}"
            ));
        }
        let kind = plan.counters[counter].kind;
        if beyond(kind.min(), kind.max(), value) {
            return Some(format!("counter {counter} is {value} at the end"));
        }
    }
    None
}

fn beyond(min: Option<i64>, max: Option<i64>, value: i64) -> bool {
    min.is_some_and(|min| value < min) || max.is_some_and(|max| value > max)
}

fn learn(plan: &Plan, views: &mut [View], rows: &mut [View], told: &Told) -> Option<String> {
    let answer = told.answer.as_str();
    if [REFUSED, MISSING].contains(&answer) {
        return None;
    }
    let number = || {
        let first = answer.split('|').next().unwrap_or_default();
        first.parse::<i64>().unwrap_or(i64::MIN)
    };
    let read = |views: &mut [View], counter: usize| {
        let kind = plan.counters[counter].kind;
        views[counter].read(number()).or_else(|| {
            beyond(kind.min(), kind.max(), number())
                .then(|| format!("a bounded counter is seen to be {}", number()))
        })
    };
    match told.call {
        Call::Value(c) | Call::Available(c) => return read(views, c),
        Call::Get(c, delta) => {
            views[c].net += delta;
            return read(views, c);
        }
        Call::Incr(c, delta) => views[c].net += delta,
        Call::Try(c, delta) if answer == "true" => views[c].net += delta,
        Call::Take(c, _) => views[c].net -= number(),
        Call::Set(c, value) => {
            let wrong = read(views, c);
            views[c].net += value - number();
            return wrong;
        }
        Call::Reset(c) => {
            let wrong = read(views, c);
            views[c].net -= number();
            return wrong;
        }
        Call::Drop(c) if answer == "true" => match views[c].base {
            Some(base) => views[c].net = -base,
            None => views[c].unknown = true,
        },
        Call::Once(place) => {
            let token = plan.tokens[place];
            if token.get {
                // It may be a replay.
                views[token.counter].unknown = true;
            } else if answer == "true" {
                views[token.counter].net += token.delta;
            }
        }
        Call::Confirm(hold, part) => {
            let (counter, amount) = plan.holds[hold];
            views[counter].net -= part.unwrap_or(amount);
        }
        Call::Row(row) => return rows[row].read(number()),
        Call::Update(row, delta) => {
            rows[row].net += delta;
            return rows[row].read(number());
        }
        _ => {}
    }
    None
}

impl View {
    fn read(&mut self, value: i64) -> Option<String> {
        if self.unknown {
            return None;
        }
        let base = value - self.net;
        let before = *self.base.get_or_insert(base);
        (before != base).then(|| {
            format!(
                "{value} was read, and {} was due, by what was read before",
                before + self.net
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Counter, Features, Kind};
    use super::*;

    fn check(calls: &[(Call, &str)], value: i64) -> Option<String> {
        let plan = Plan {
            serializable: false,
            features: Features::Holds,
            counters: vec![Counter {
                kind: Kind::Floor,
                folded: None,
                pending: Some(2),
            }],
            holds: vec![],
            rows: 1,
            tokens: vec![],
            clients: 1,
            read_only: vec![false],
            turns: vec![],
        };
        let told: Vec<Told> = calls
            .iter()
            .map(|&(call, answer)| Told {
                call,
                answer: answer.to_owned(),
            })
            .collect();
        let start = State::new(&plan);
        let mut end = start.clone();
        end.counters[0] = Some(value);
        wrong(&plan, &start, &[(true, &told)], &end, false)
    }

    #[test]
    fn reads_are_constant_but_for_own_changes() {
        let value = |answer| (Call::Value(0), answer);
        assert_eq!(
            check(&[value("2"), (Call::Incr(0, 1), ""), value("3")], 3),
            None
        );
        assert!(check(&[value("2"), (Call::Incr(0, 1), ""), value("4")], 3).is_some());
        assert!(check(&[(Call::Incr(0, 1), "refused"), value("3")], 2).is_none());
        assert!(check(&[(Call::Try(0, -2), "true"), value("-1")], 0).is_some());
    }

    #[test]
    fn nothing_is_drained_twice() {
        assert_eq!(check(&[(Call::Reset(0), "2")], 0), None);
        assert!(check(&[(Call::Reset(0), "2")], 1).is_some());
        assert!(check(&[(Call::Take(0, 5), "2")], 1).is_some());
    }
}
