//! The documented behaviour of the simple functions, in plain Rust, for one session.
//!
//! It knows nothing of logs, lanes and folds: a counter is a number. What it does not know, which
//! are holds, types and bounds in a transaction that has changed the counter itself, it takes over
//! from the server after each call; then bounds are still checked, and what an error leaves behind.

use std::collections::{BTreeMap, BTreeSet};

use super::functions::Call;
use super::values::{Array, Delta, Value};

const NULL: &str = "22004";
const INVALID: &str = "22023";
const RANGE: &str = "22003";
const ARRAY: &str = "2202E";
const ROWS: &str = "2201W";
const MISSING: &str = "42704";
const EXISTS: &str = "42710";
const BOUND: &str = "23514";
const READ_ONLY: &str = "25006";

/// The longest name.
const MAX_BYTES: usize = 255;

pub(super) type Row = Vec<Option<String>>;

/// What a call must come to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expected {
    /// These rows.
    Rows(Vec<Row>),
    /// An error with one of these codes.
    Refused(BTreeSet<&'static str>),
    /// An argument is none: any error of the server's own.
    NoValue,
    /// A right answer, or an error with a good reason: the model does not know.
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) name: String,
    pub(super) delta: i64,
    pub(super) value: Option<i64>,
    pub(super) is_hold: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bounds {
    pub(super) min: Option<i64>,
    pub(super) max: Option<i64>,
}

/// All that users can see.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Model {
    pub(super) counters: BTreeMap<String, i128>,
    pub(super) tokens: BTreeMap<String, Token>,
    pub(super) types: BTreeMap<String, Bounds>,
    /// What is on hold of each counter, and has not expired.
    pub(super) held: BTreeMap<String, i128>,
    /// The counters when the transaction began, when there is one of several statements.
    pub(super) before: Option<BTreeMap<String, i128>>,
    pub(super) read_only: bool,
}

/// Errors that are found before anything is done: any of them may be the one that is raised.
#[derive(Default)]
struct Mistakes(BTreeSet<&'static str>);

impl Mistakes {
    fn of(code: &'static str) -> Expected {
        Expected::Refused(BTreeSet::from([code]))
    }

    fn add(&mut self, code: &'static str) {
        self.0.insert(code);
    }

    fn length(&mut self, text: &str) {
        if text.is_empty() || text.len() > MAX_BYTES {
            self.add(INVALID);
        }
    }

    /// A name or a token.
    fn name(&mut self, value: Option<&Value>) -> String {
        let text = value.and_then(Value::text);
        match &text {
            None => self.add(NULL),
            Some(text) => self.length(text),
        }
        text.unwrap_or_default()
    }

    fn number(&mut self, value: Option<&Value>, default: Option<i64>) -> i64 {
        match value {
            Some(Value::Number(number)) => *number,
            None => default.unwrap_or_default(),
            Some(_) => {
                self.add(NULL);
                0
            }
        }
    }

    fn prefix(&mut self, value: Option<&Value>) -> String {
        match value {
            None => String::new(),
            Some(value) => value.text().unwrap_or_else(|| {
                self.add(NULL);
                String::new()
            }),
        }
    }

    fn rows(&mut self, value: Option<&Value>, default: i64) -> usize {
        let number = self.number(value, Some(default));
        usize::try_from(number).unwrap_or_else(|_| {
            self.add(ROWS);
            0
        })
    }

    /// The elements; none of a missing array.
    fn array<T: Clone>(&mut self, array: Option<&Array<T>>) -> Vec<T> {
        let Some(array) = array else {
            return Vec::new();
        };
        if array.dimensions > 1 && !array.elements.is_empty() {
            self.add(ARRAY);
        }
        if array.elements.iter().any(Option::is_none) {
            self.add(NULL);
        }
        array.elements.iter().flatten().cloned().collect()
    }

    fn names(&mut self, value: Option<&Value>) -> Vec<String> {
        let names = self.array(match value {
            Some(Value::Names(names)) => Some(names),
            _ => None,
        });
        names.iter().for_each(|name| self.length(name));
        names
    }
}

fn row(value: impl ToString) -> Expected {
    Expected::Rows(vec![vec![Some(value.to_string())]])
}

fn row_or_null(value: Option<i64>) -> Expected {
    Expected::Rows(vec![vec![value.map(|value| value.to_string())]])
}

fn boolean(value: bool) -> Expected {
    row(if value { "t" } else { "f" })
}

/// A function that has nothing else to tell.
fn done() -> Expected {
    boolean(true)
}

/// A change that was made, or why it was not.
type Change<T> = Result<T, Expected>;

impl Model {
    /// Makes the call; when it is refused, nothing has changed.
    pub(super) fn call(&mut self, call: &Call) -> Expected {
        let is_refused = |value: &Value| matches!(value, Value::Refused(_));
        if call.arguments.iter().any(is_refused) {
            return Expected::NoValue;
        }
        let saved = self.clone();
        let result = self.attempt(call).unwrap_or_else(|refusal| refusal);
        if !matches!(result, Expected::Rows(_)) {
            *self = saved;
        }
        result
    }

    /// The value of a counter.
    fn value(&self, name: &str) -> i128 {
        self.counters.get(name).copied().unwrap_or_default()
    }

    fn bounds(&self, name: &str) -> Option<Bounds> {
        let (type_name, _) = name.split_once(':')?;
        let bounds = self.types.get(type_name).copied()?;
        (bounds != Bounds::default()).then_some(bounds)
    }

    /// Adds, as an increment does: within the range of what one transaction may add.
    fn add(&mut self, name: &str, delta: i64) -> Change<()> {
        if let Some(bounds) = self.bounds(name) {
            if self.before.is_some() {
                return Err(Expected::Unknown);
            }
            let value = self.value(name) + i128::from(delta);
            let held = self.held.get(name).copied().unwrap_or_default();
            let too_low = delta < 0 && bounds.min.is_some_and(|min| value - held < min.into());
            let too_high = delta > 0 && bounds.max.is_some_and(|max| value > max.into());
            if too_low || too_high {
                return Err(Mistakes::of(BOUND));
            }
        }
        self.store(name, self.value(name) + i128::from(delta))
    }

    /// Gives a counter a value, if one transaction may change it so much.
    fn store(&mut self, name: &str, value: i128) -> Change<()> {
        let sum = value - self.written(name);
        if i64::try_from(sum).is_err() {
            return Err(Mistakes::of(RANGE));
        }
        self.counters.insert(name.to_owned(), value);
        Ok(())
    }

    /// What the transaction has found.
    fn written(&self, name: &str) -> i128 {
        let before = self.before.as_ref().unwrap_or(&self.counters);
        before.get(name).copied().unwrap_or_default()
    }

    fn remove(&mut self, name: &str) -> Change<()> {
        if self.bounds(name).is_some() {
            if self.before.is_some() {
                return Err(Expected::Unknown);
            }
            let taken = i64::try_from(-self.value(name)).map_err(|_| Mistakes::of(RANGE))?;
            self.add(name, taken)?;
        }
        self.settle_beyond(name, 0);
        self.counters.remove(name);
        Ok(())
    }

    /// Changes by the value may be of more than one delta, which are then written, as all else is that
    /// the transaction has: what it may add begins anew.
    fn settle_beyond(&mut self, name: &str, value: i128) {
        if i64::try_from(value - self.written(name)).is_err()
            && let Some(before) = &mut self.before
        {
            *before = self.counters.clone();
            before.insert(name.to_owned(), value);
        }
    }

    fn change(&mut self, name: &str, change: i128) -> Change<()> {
        if self.bounds(name).is_some() {
            let change = i64::try_from(change).map_err(|_| Mistakes::of(RANGE))?;
            return self.add(name, change);
        }
        let value = self.value(name) + change;
        self.settle_beyond(name, value);
        self.counters.insert(name.to_owned(), value);
        Ok(())
    }

    fn set(&mut self, name: &str, value: i64) -> Change<Option<i64>> {
        let old = self.value(name);
        self.change(name, i128::from(value) - old)?;
        Ok(i64::try_from(old).ok())
    }

    fn move_value(&mut self, from: &str, to: &str) -> Change<()> {
        let value = self.value(from);
        self.remove(from)?;
        self.change(to, value)
    }

    /// In a list. What does not fit is null.
    fn listed(value: i128) -> Option<String> {
        i64::try_from(value).ok().map(|value| value.to_string())
    }

    fn small(value: i128) -> Change<i64> {
        i64::try_from(value).map_err(|_| Mistakes::of(RANGE))
    }

    /// Those with a prefix, by name.
    fn having(&self, prefix: &str) -> Vec<(&str, i128)> {
        self.counters
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), *value))
            .collect()
    }

    fn once(&mut self, token: &str, name: &str, delta: i64, get: bool) -> Change<Expected> {
        if let Some(used) = self.tokens.get(token) {
            let same = used.name == name && used.delta == delta && !used.is_hold;
            return match used.value {
                _ if !same => Err(Mistakes::of(INVALID)),
                None if get => Err(Mistakes::of(INVALID)),
                Some(value) if get => Ok(row(value)),
                _ => Ok(boolean(false)),
            };
        }
        self.add(name, delta)?;
        let value = if get {
            Some(Self::small(self.value(name))?)
        } else {
            None
        };
        let used = Token {
            name: name.to_owned(),
            delta,
            value,
            is_hold: false,
        };
        self.tokens.insert(token.to_owned(), used);
        Ok(value.map_or_else(|| boolean(true), row))
    }

    #[allow(clippy::too_many_lines, reason = "a table of all functions")]
    fn attempt(&mut self, call: &Call) -> Change<Expected> {
        let mut mistakes = Mistakes::default();
        let argument = |index| call.argument(index);
        let writes = !matches!(
            call.function.name.as_str(),
            "counter_value"
                | "counter_values"
                | "counter_list"
                | "counter_sum"
                | "counter_rank"
                | "counter_top"
                | "counter_bottom"
        );
        let read_only = self.read_only && writes;
        // After all arguments were looked at.
        macro_rules! check {
            () => {
                if read_only {
                    mistakes.add(READ_ONLY);
                }
                if !mistakes.0.is_empty() {
                    return Err(Expected::Refused(mistakes.0));
                }
            };
        }
        match call.function.name.as_str() {
            function @ ("counter_incr" | "counter_decr" | "counter_incr_get"
            | "counter_try_incr") => {
                let name = mistakes.name(argument(0));
                let mut delta = mistakes.number(argument(1), Some(1));
                if function == "counter_decr" {
                    delta = delta.checked_neg().unwrap_or_else(|| {
                        mistakes.add(RANGE);
                        0
                    });
                }
                check!();
                match (function, self.add(&name, delta)) {
                    ("counter_try_incr", Err(refusal)) if refusal == Mistakes::of(BOUND) => {
                        Ok(boolean(false))
                    }
                    (_, Err(refusal)) => Err(refusal),
                    ("counter_try_incr", Ok(())) => Ok(boolean(true)),
                    ("counter_incr_get", Ok(())) => Self::small(self.value(&name)).map(row),
                    (_, Ok(())) => Ok(done()),
                }
            }
            "counter_incr_many" if call.function.arguments.len() == 2 => {
                let names = mistakes.names(argument(0));
                let deltas = mistakes.array(match argument(1) {
                    Some(Value::Numbers(deltas)) => Some(deltas),
                    _ => None,
                });
                if names.len() != deltas.len() {
                    mistakes.add(ARRAY);
                }
                check!();
                self.add_all(names.iter().map(String::as_str).zip(deltas))
            }
            "counter_incr_many" => {
                // The last one of equal keys is what jsonb keeps.
                let members: BTreeMap<_, _> = match argument(0) {
                    Some(Value::Object(members)) => members
                        .iter()
                        .map(|(key, member)| (key.as_str(), member.delta))
                        .collect(),
                    Some(Value::Null) | None => BTreeMap::new(),
                    Some(_) => return Err(Expected::Unknown),
                };
                for (key, delta) in &members {
                    mistakes.length(key);
                    match delta {
                        Delta::Whole(_) => {}
                        Delta::TooLarge => mistakes.add(RANGE),
                        Delta::NotWhole => mistakes.add(INVALID),
                    }
                }
                check!();
                self.add_all(members.into_iter().map(|(key, delta)| match delta {
                    Delta::Whole(delta) => (key, delta),
                    _ => (key, 0),
                }))
            }
            function @ ("counter_incr_once" | "counter_incr_once_get") => {
                let token = mistakes.name(argument(0));
                let name = mistakes.name(argument(1));
                let delta = mistakes.number(argument(2), Some(1));
                check!();
                self.once(&token, &name, delta, function == "counter_incr_once_get")
            }
            "counter_take_up_to" => {
                let name = mistakes.name(argument(0));
                let wanted = mistakes.number(argument(1), None);
                if wanted < 0 {
                    mistakes.add(INVALID);
                }
                check!();
                let mut taken = wanted;
                if let Some(min) = self.bounds(&name).and_then(|bounds| bounds.min) {
                    let held = self.held.get(&name).copied().unwrap_or_default();
                    let free = self.value(&name) - held - i128::from(min);
                    taken = i64::try_from(free.clamp(0, wanted.into())).unwrap_or(wanted);
                }
                // A bounded counter of which nothing is taken may be in any state.
                if self.bounds(&name).is_some() && self.before.is_some() {
                    return Err(Expected::Unknown);
                }
                if taken > 0 {
                    self.add(&name, -taken)?;
                }
                Ok(row(taken))
            }
            "counter_set" => {
                let name = mistakes.name(argument(0));
                let value = mistakes.number(argument(1), None);
                check!();
                self.set(&name, value).map(row_or_null)
            }
            "counter_reset" => {
                let name = mistakes.name(argument(0));
                check!();
                if !self.counters.contains_key(&name) {
                    return Ok(row(0));
                }
                self.set(&name, 0).map(row_or_null)
            }
            "counter_drop" => {
                let name = mistakes.name(argument(0));
                // Whether its history goes.
                if argument(1) == Some(&Value::Null) {
                    mistakes.add(NULL);
                }
                check!();
                let existed = self.counters.contains_key(&name);
                if existed {
                    self.remove(&name)?;
                }
                Ok(boolean(existed))
            }
            function @ ("counter_rename" | "counter_merge") => {
                let (first, second) = (mistakes.name(argument(0)), mistakes.name(argument(1)));
                if first == second {
                    mistakes.add(INVALID);
                }
                check!();
                let merge = function == "counter_merge";
                let (from, to) = if merge {
                    (second, first)
                } else {
                    (first, second)
                };
                if !self.counters.contains_key(&from) {
                    return Err(Mistakes::of(MISSING));
                }
                if !merge && self.counters.contains_key(&to) {
                    return Err(Mistakes::of(EXISTS));
                }
                self.move_value(&from, &to)?;
                Ok(done())
            }
            "counter_value" => {
                let name = mistakes.name(argument(0));
                check!();
                Self::small(self.value(&name)).map(row)
            }
            "counter_values" => {
                let names = mistakes.names(argument(0));
                check!();
                let rows = names.into_iter().map(|name| {
                    let value = Self::listed(self.value(&name));
                    vec![Some(name), value]
                });
                Ok(Expected::Rows(rows.collect()))
            }
            "counter_list" => {
                let prefix = mistakes.prefix(argument(0));
                let after = argument(1).and_then(Value::text);
                let limit = mistakes.rows(argument(2), 100);
                check!();
                let page = self.having(&prefix).into_iter();
                let page =
                    page.filter(|(name, _)| after.as_deref().is_none_or(|after| *name > after));
                let rows = page
                    .take(limit)
                    .map(|(name, value)| vec![Some(name.to_owned()), Self::listed(value)]);
                Ok(Expected::Rows(rows.collect()))
            }
            "counter_sum" => {
                let prefix = mistakes.prefix(argument(0));
                check!();
                let sum: i128 = self.having(&prefix).iter().map(|(_, value)| value).sum();
                Ok(row(sum))
            }
            "counter_rank" => {
                let name = mistakes.name(argument(0));
                let prefix = mistakes.prefix(argument(1));
                check!();
                let all = self.having(&prefix);
                let found = all.iter().find(|(known, _)| *known == name);
                let rank = found.map(|(_, value)| {
                    let greater = all.iter().filter(|(_, other)| other > value);
                    (greater.count() + 1).to_string()
                });
                Ok(Expected::Rows(vec![vec![rank]]))
            }
            function @ ("counter_top" | "counter_bottom") => {
                let limit = mistakes.rows(argument(0), 10);
                let prefix = mistakes.prefix(argument(1));
                let at_value = match argument(2) {
                    Some(Value::Number(number)) => Some(i128::from(*number)),
                    _ => None,
                };
                let at_name = argument(3).and_then(Value::text);
                check!();
                let at_value = at_value.or_else(|| at_name.as_ref().map(|name| self.value(name)));
                let bottom = function == "counter_bottom";
                let comes_after = |name: &str, value: i128| {
                    let Some(at_value) = at_value else {
                        return true;
                    };
                    let beyond = if bottom {
                        value > at_value
                    } else {
                        value < at_value
                    };
                    let level = at_name.as_deref().is_some_and(|at_name| {
                        if bottom {
                            name < at_name
                        } else {
                            name > at_name
                        }
                    });
                    beyond || (value == at_value && level)
                };
                let mut all = self.having(&prefix);
                all.sort_by_key(|&(name, value)| (std::cmp::Reverse(value), name));
                if bottom {
                    all.reverse();
                }
                let mut rows = Vec::new();
                let mut rank = 0;
                for (index, &(name, value)) in all.iter().enumerate() {
                    if index == 0 || all[index - 1].1 != value {
                        rank = index + 1;
                    }
                    if rows.len() == limit || !comes_after(name, value) {
                        continue;
                    }
                    rows.push(vec![
                        Some(rank.to_string()),
                        Some(name.to_owned()),
                        Self::listed(value),
                    ]);
                }
                Ok(Expected::Rows(rows))
            }
            _ => Err(Expected::Unknown),
        }
    }

    fn add_all<'a>(&mut self, all: impl Iterator<Item = (&'a str, i64)>) -> Change<Expected> {
        let all: Vec<(&str, i64)> = all.collect();
        let bounded = all.iter().filter(|(name, _)| self.bounds(name).is_some());
        // Each is checked by itself, and not by what the call has added before.
        if bounded.count() > 1 {
            return Err(Expected::Unknown);
        }
        // The sum has to be in range all the time: in one statement, that is one transaction.
        let outside = self.before.is_none();
        if outside {
            self.before = Some(self.counters.clone());
        }
        let held_back: Vec<&(&str, i64)> = all
            .iter()
            .filter(|(name, _)| self.bounds(name).is_some())
            .collect();
        let mut result = Ok(());
        for (name, delta) in &all {
            if self.bounds(name).is_none() {
                result = result.and_then(|()| self.add(name, *delta));
            }
        }
        if outside {
            self.before = None;
        }
        for (name, delta) in held_back {
            result = match (result, self.add(name, *delta)) {
                // Whichever comes first.
                (Err(_), Err(_)) => Err(Expected::Unknown),
                (Err(refusal), _) | (_, Err(refusal)) => Err(refusal),
                (Ok(()), Ok(())) => Ok(()),
            };
        }
        result.map(|()| done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(counters: &[(&str, i128)]) -> Model {
        Model {
            counters: counters
                .iter()
                .map(|&(name, value)| (name.to_owned(), value))
                .collect(),
            ..Model::default()
        }
    }

    #[test]
    fn bounds_and_holds_limit_what_can_be_taken() {
        let mut model = model(&[("stock:a", 5), ("stock", 5)]);
        let bounds = Bounds {
            min: Some(0),
            max: Some(6),
        };
        model.types.insert("stock".to_owned(), bounds);
        model.held.insert("stock:a".to_owned(), 2);
        assert_eq!(model.add("stock:a", -4), Err(Mistakes::of(BOUND)));
        assert_eq!(model.add("stock:a", 2), Err(Mistakes::of(BOUND)));
        assert_eq!(model.add("stock:a", -3), Ok(()));
        assert_eq!(model.add("stock", -100), Ok(()));
        model.before = Some(model.counters.clone());
        assert_eq!(model.add("stock:a", 1), Err(Expected::Unknown));
    }

    #[test]
    fn changes_by_the_value_have_no_limit() {
        let mut model = model(&[("a", 3 * i128::from(i64::MAX))]);
        model.before = Some(model.counters.clone());
        assert_eq!(model.set("a", 5), Ok(None));
        assert_eq!(model.set("a", 0), Ok(Some(5)));
        assert_eq!(model.add("a", i64::MAX), Ok(()));
    }

    #[test]
    fn a_transaction_adds_no_more_than_a_bigint() {
        let mut model = model(&[("a", i128::from(i64::MAX))]);
        // In transactions of their own.
        assert_eq!(model.add("a", i64::MAX), Ok(()));
        model.before = Some(model.counters.clone());
        assert_eq!(model.add("a", i64::MAX), Ok(()));
        assert_eq!(model.add("a", 1), Err(Mistakes::of(RANGE)));
    }
}
