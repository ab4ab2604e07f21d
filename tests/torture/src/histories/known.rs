//! What a client knows by itself: the second oracle, outside of the database.
//!
//! Each client has counters that nobody else changes, so it can say what each call must answer; and
//! of counters that all only add to, it knows what it has added.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use super::step::Op;

/// The state of a client's counters, as of one of its transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// Its own counters that exist.
    pub(crate) own: BTreeMap<String, i64>,
    /// The tokens that it has used, and what it was told then.
    tokens: BTreeMap<String, String>,
    /// Its holds, by id.
    holds: BTreeMap<i64, (String, i64)>,
    /// What this transaction has added to counters that everybody adds to.
    pub(crate) added: BTreeMap<String, i64>,
    /// What it has done to bounded counters that others use as well.
    pub(crate) reserved: BTreeMap<String, Reserved>,
    /// What it has locked, so that others wait.
    pub(crate) locks: BTreeSet<String>,
}

/// What a transaction has done to a bounded counter: the sum, and how low and how high it has been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) sum: i64,
    pub(crate) takes: i64,
    pub(crate) adds: i64,
}

impl Reserved {
    pub(crate) fn then(self, delta: i64) -> Self {
        let sum = self.sum + delta;
        Self {
            sum,
            takes: self.takes.max(-sum),
            adds: self.adds.max(sum),
        }
    }
}

impl Known {
    /// What a new transaction knows.
    pub(crate) fn begin(&self) -> Self {
        Self {
            added: BTreeMap::new(),
            reserved: BTreeMap::new(),
            locks: BTreeSet::new(),
            ..self.clone()
        }
    }

    /// One of the holds: its id and amount.
    pub(crate) fn hold(&self, nth: usize) -> Option<(i64, i64)> {
        let nth = nth % self.holds.len().max(1);
        self.holds
            .iter()
            .nth(nth)
            .map(|(&id, &(_, amount))| (id, amount))
    }

    fn value(&self, name: &str) -> i64 {
        self.own.get(name).copied().unwrap_or(0)
    }

    fn add(&mut self, name: &str, delta: i64, is_own: bool) {
        let map = if is_own {
            &mut self.own
        } else {
            &mut self.added
        };
        *map.entry(name.to_owned()).or_insert(0) += delta;
    }

    /// What can be taken for certain of an own counter with the minimum 0.
    fn available(&self, name: &str) -> i64 {
        let held: i64 = self
            .holds
            .values()
            .filter(|(counter, _)| counter == name)
            .map(|(_, amount)| amount)
            .sum();
        self.value(name) - held
    }

    /// Holds an answer against what is known, and goes on from there.
    pub(crate) fn learn(
        &mut self,
        op: &Op,
        answer: &str,
        before: &Self,
        is_own: impl Fn(&str) -> bool,
    ) -> Result<()> {
        if let Some((name, delta)) = granted(op, answer)
            && !is_own(name)
        {
            let reserved = self.reserved.entry(name.to_owned()).or_default();
            *reserved = reserved.then(delta);
        }
        let locks = match op {
            // Undone by an exception.
            Op::Move { .. } => answer == "moved",
            // A token that was used before is not locked; from the value it cannot be told.
            Op::Once { get, .. } => !get && answer == "true",
            _ => true,
        };
        if locks {
            self.locks.extend(op.locks());
        }
        let expected = match op {
            Op::Bump(name, delta) => {
                self.add(name, *delta, is_own(name));
                return Ok(());
            }
            Op::Get(name, delta) => {
                self.add(name, *delta, is_own(name));
                if !is_own(name) {
                    return Ok(());
                }
                self.value(name).to_string()
            }
            Op::Guarded(name, delta, fails) => {
                let sum = if *fails { delta - 1 } else { 2 * delta + 1 };
                self.add(name, sum, is_own(name));
                return Ok(());
            }
            Op::Many(deltas, _) | Op::Events(deltas) => {
                for (name, delta) in deltas {
                    self.add(name, *delta, is_own(name));
                }
                return Ok(());
            }
            _ if !op.names().iter().all(|name| is_own(name)) => return Ok(()),
            Op::Set(name, value) => {
                let old = self.value(name);
                if value.is_some() || self.own.contains_key(name) {
                    self.own.insert(name.clone(), value.unwrap_or(0));
                }
                old.to_string()
            }
            Op::Drop(name) => self.own.remove(name).is_some().to_string(),
            Op::Move { into, from, merge } => match self.own.get(from).copied() {
                None => "missing".to_owned(),
                Some(_) if !merge && self.own.contains_key(into) => "taken".to_owned(),
                Some(value) => {
                    self.own.remove(from);
                    self.add(into, value, true);
                    "moved".to_owned()
                }
            },
            Op::Once {
                token,
                name,
                delta,
                get,
            } => match self.tokens.get(token) {
                Some(first) if *get => first.clone(),
                Some(_) => "false".to_owned(),
                None => {
                    self.add(name, *delta, true);
                    let told = if *get {
                        self.value(name).to_string()
                    } else {
                        "true".to_owned()
                    };
                    self.tokens.insert(token.clone(), told.clone());
                    told
                }
            },
            Op::Try(name, delta) => {
                let granted = *delta >= 0 || self.available(name) >= -delta;
                if granted {
                    self.add(name, *delta, true);
                }
                if granted { "t" } else { "f" }.to_owned()
            }
            Op::Take(name, n) => {
                let got = self.available(name).clamp(0, *n);
                if got > 0 {
                    self.add(name, -got, true);
                }
                got.to_string()
            }
            Op::Hold {
                name,
                amount,
                ttl: _,
            } => {
                if self.available(name) < *amount {
                    "refused".to_owned()
                } else {
                    let Ok(id) = answer.parse() else {
                        bail!("{op:?} answered {answer}")
                    };
                    self.holds.insert(id, (name.clone(), *amount));
                    answer.to_owned()
                }
            }
            Op::Confirm { nth, part } => {
                let (id, amount) = before.hold(*nth).context("there is no hold")?;
                match self.holds.remove(&id) {
                    Some((name, _)) => {
                        self.add(&name, -confirmed(amount, *part), true);
                        "done".to_owned()
                    }
                    None => "missing".to_owned(),
                }
            }
            Op::Release(nth) => {
                let (id, _) = before.hold(*nth).context("there is no hold")?;
                let there = self.holds.remove(&id).is_some();
                if there { "t" } else { "f" }.to_owned()
            }
            Op::Overflow(_) | Op::Sql(_) | Op::Look => return Ok(()),
        };
        ensure!(
            answer == expected,
            "{op:?} answered {answer}, and {expected} was due; known were {self:?}"
        );
        Ok(())
    }
}

/// By how much a call has changed a counter that may be bounded.
fn granted<'o>(op: &'o Op, answer: &str) -> Option<(&'o str, i64)> {
    match op {
        Op::Bump(name, delta) => Some((name, *delta)),
        Op::Try(name, delta) if answer == "t" => Some((name, *delta)),
        Op::Take(name, _) => Some((name, -answer.parse::<i64>().ok()?)),
        _ => None,
    }
}

/// What is confirmed of a hold: all of it, or a part.
pub(crate) fn confirmed(amount: i64, part: bool) -> i64 {
    if part { (amount + 1) / 2 } else { amount }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learn(now: &mut Known, before: &Known, op: &Op, answer: &str) -> bool {
        now.learn(op, answer, before, |name| {
            name.starts_with("own") || name.starts_with("stock")
        })
        .is_ok()
    }

    #[test]
    fn wrong_answers_are_noticed() {
        let before = Known::default();
        let mut now = before.begin();
        assert!(learn(
            &mut now,
            &before,
            &Op::Bump("own:a".to_owned(), 5),
            "done"
        ));
        assert!(learn(
            &mut now,
            &before,
            &Op::Set("own:a".to_owned(), Some(2)),
            "5"
        ));
        assert!(!learn(
            &mut now,
            &before,
            &Op::Get("own:a".to_owned(), 1),
            "2"
        ));
        assert!(learn(
            &mut now.clone(),
            &before,
            &Op::Drop("own:a".to_owned()),
            "true"
        ));
        assert!(!learn(
            &mut now.clone(),
            &before,
            &Op::Drop("own:a".to_owned()),
            "false"
        ));
        assert!(!learn(
            &mut now.clone(),
            &before,
            &Op::Drop("own:b".to_owned()),
            "true"
        ));
        // What others change as well has no answer that is known.
        assert!(learn(
            &mut now,
            &before,
            &Op::Get("u:0".to_owned(), 1),
            "17"
        ));
        assert_eq!(now.added.get("u:0"), Some(&1));
    }

    #[test]
    fn what_a_transaction_has_added_or_set_free_can_be_taken() {
        let stock = || "stock:a".to_owned();
        let nothing = Known::default();
        let mut now = nothing.begin();
        assert!(learn(&mut now, &nothing, &Op::Bump(stock(), 5), "done"));
        assert!(learn(
            &mut now.clone(),
            &nothing,
            &Op::Take(stock(), 9),
            "5"
        ));
        assert!(!learn(
            &mut now.clone(),
            &nothing,
            &Op::Take(stock(), 3),
            "0"
        ));

        let before = now.begin();
        let mut now = before.begin();
        let hold = Op::Hold {
            name: stock(),
            amount: 2,
            ttl: "1 hour",
        };
        assert!(learn(&mut now, &before, &hold, "1"));
        assert!(!learn(
            &mut now.clone(),
            &before,
            &Op::Take(stock(), 9),
            "5"
        ));
        assert!(learn(&mut now, &before, &Op::Take(stock(), 9), "3"));

        // A hold that was confirmed in part gives the rest back.
        let before = now.begin();
        let mut now = before.begin();
        assert!(learn(
            &mut now,
            &before,
            &Op::Confirm { nth: 0, part: true },
            "done"
        ));
        assert!(learn(&mut now, &before, &Op::Take(stock(), 9), "1"));
    }
}
