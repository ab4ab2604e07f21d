//! Random calls of every function, in every kind of transaction, against the model.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use postgres::{Client, SimpleQueryMessage};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::errors::{Refusal, answer};
use super::functions::{Call, Function};
use super::model::{Expected, Model, Row};
use super::state::{self, State};
use super::{values, values::Value};
use crate::report::{PartReport, Unit};

/// Runs a statement, and tells by its result what came of it: an error is gone with the block that
/// caught it, and so must be all that the statement has done.
pub(super) const ATTEMPT: &str = "
CREATE FUNCTION public.attempt(statement text, OUT code text, OUT message text,
                               OUT detail text, OUT hint text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END $$";

/// How a call is made.
#[derive(Clone, Copy, Debug)]
enum Form {
    Plain,
    ByName,
    /// A prepared statement with a generic plan.
    Prepared,
    /// In a block that catches the error: no result is seen.
    Caught,
}

/// The statements of a call's kind of transaction.
const TRANSACTIONS: &[&str] = &[
    "BEGIN ISOLATION LEVEL READ COMMITTED",
    "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "BEGIN ISOLATION LEVEL SERIALIZABLE",
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
    "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
];

/// What came of a call.
enum Outcome {
    Rows(Vec<Row>),
    /// It succeeded, and its result was not looked at.
    Unseen,
    Refused(Refusal),
}

/// When to end.
pub(super) enum Until {
    Calls(u64),
    Time(Instant),
}

/// One session that calls functions at random.
pub(super) struct Fuzz<'a> {
    client: Client,
    functions: &'a [Function],
    /// Those that change counters in ways that the model knows; they get more of the calls.
    simple: Vec<&'a Function>,
    rng: StdRng,
    state: State,
    prepared: u64,
    calls: u64,
    refused: u64,
    modelled: u64,
    codes: BTreeMap<String, u64>,
}

impl<'a> Fuzz<'a> {
    pub(super) fn new(mut client: Client, functions: &'a [Function], seed: u64) -> Result<Self> {
        client.batch_execute(
            "SET statement_timeout = '120s'; SET plan_cache_mode = force_generic_plan",
        )?;
        let state = state::read(&mut client)?;
        let is_simple = |function: &&Function| {
            function.schema == "public"
                && !function.name.starts_with("counter_type_")
                && !function.name.starts_with("counter_hold")
        };
        Ok(Self {
            simple: functions.iter().filter(is_simple).collect(),
            client,
            functions,
            rng: StdRng::seed_from_u64(seed),
            state,
            prepared: 0,
            calls: 0,
            refused: 0,
            modelled: 0,
            codes: BTreeMap::new(),
        })
    }

    /// Goes on, and tells what was done.
    pub(super) fn run(mut self, until: &Until, report: &mut PartReport) -> Result<()> {
        self.every_argument_in_turn()?;
        let pid: i32 = self
            .client
            .query_one("SELECT pg_backend_pid()", &[])?
            .get(0);
        let mut first = None;
        let mut episodes = 0;
        let result = loop {
            let over = match until {
                Until::Calls(calls) => self.calls >= *calls,
                Until::Time(end) => Instant::now() >= *end,
            };
            if over {
                break Ok(());
            }
            if let Err(error) = self.episode() {
                break Err(error.context(format!("in episode {episodes}")));
            }
            episodes += 1;
            // By then every function was called, and all plans and caches are there.
            if episodes == 20 {
                first = anonymous_memory(pid);
            }
        };
        report.tried("random calls", self.calls);
        report.tried(
            "random calls with an outcome that the model foretold",
            self.modelled,
        );
        report.tried(
            "random calls that were refused, and changed nothing",
            self.refused,
        );
        report.tried("transactions of random calls", episodes);
        report.figure(
            "different SQLSTATEs met",
            self.codes.len() as f64,
            Unit::Count,
        );
        if let (Some(first), Some(last)) = (first, anonymous_memory(pid)) {
            let growth = (last - first).max(0.0);
            report.limited(
                "growth of the calling session",
                growth,
                Unit::Mebibytes,
                64.0,
            );
        }
        result
    }

    /// What the random calls may never meet: each argument in turn is one that must be refused, and
    /// the others are not the reason.
    fn every_argument_in_turn(&mut self) -> Result<()> {
        for function in self.functions {
            self.call_alone(&Call::nulls(function), Form::Plain)?;
            for (index, argument) in function.arguments.iter().enumerate() {
                for value in values::limits(&argument.type_name) {
                    let mut call = Call::usual(function);
                    call.arguments[index] = value;
                    self.call_alone(&call, Form::Plain)?;
                }
            }
        }
        Ok(())
    }

    /// Some calls of one kind.
    fn episode(&mut self) -> Result<()> {
        let calls = self.rng.random_range(1..12);
        if self.rng.random_ratio(2, 5) {
            for _ in 0..calls {
                let call = self.random_call();
                let form = self.random_form();
                self.call_alone(&call, form)?;
            }
        } else {
            self.transaction(calls)?;
        }
        // Prepared statements would pile up.
        if self.prepared > 100 {
            self.client.batch_execute("DEALLOCATE ALL")?;
            self.prepared = 0;
        }
        Ok(())
    }

    fn random_call(&mut self) -> Call<'a> {
        let function = if self.rng.random_ratio(3, 4) {
            self.simple.choose(&mut self.rng).copied()
        } else {
            self.functions.choose(&mut self.rng)
        };
        Call::random(function.expect("there are functions"), &mut self.rng)
    }

    fn random_form(&mut self) -> Form {
        [
            Form::Plain,
            Form::Plain,
            Form::ByName,
            Form::Prepared,
            Form::Caught,
        ]
        .choose(&mut self.rng)
        .copied()
        .unwrap_or(Form::Plain)
    }

    /// A call that is a transaction.
    fn call_alone(&mut self, call: &Call, form: Form) -> Result<()> {
        let mut model = self.state.model.clone();
        let expected = model.call(call);
        self.call(call, form, &expected, model, false)
    }

    fn transaction(&mut self, calls: u32) -> Result<()> {
        let begin = TRANSACTIONS
            .choose(&mut self.rng)
            .copied()
            .unwrap_or("BEGIN");
        self.client.batch_execute(begin)?;
        let begun = self.state.clone();
        self.state.model.before = Some(begun.model.counters.clone());
        self.state.model.read_only = begin.ends_with("READ ONLY");
        for _ in 0..calls {
            let call = self.random_call();
            let mut form = self.random_form();
            let savepoint = self.rng.random_ratio(4, 5);
            // An error would end the transaction.
            if !savepoint {
                form = Form::Caught;
            }
            if savepoint {
                self.client.batch_execute("SAVEPOINT s")?;
            }
            let before = self.state.clone();
            let mut model = self.state.model.clone();
            let expected = model.call(&call);
            self.call(&call, form, &expected, model, savepoint)
                .with_context(|| begin.to_owned())?;
            if savepoint && self.rng.random_ratio(1, 5) {
                self.client.batch_execute("ROLLBACK TO SAVEPOINT s")?;
                self.state = before;
                self.expect_state("a rollback to a savepoint")?;
            }
        }
        let commit = self.rng.random_ratio(3, 4);
        self.client
            .batch_execute(if commit { "COMMIT" } else { "ROLLBACK" })
            .with_context(|| format!("at the end of {begin}"))?;
        self.state.model.before = None;
        self.state.model.read_only = false;
        if !commit {
            self.state = begun;
        }
        self.expect_state("the end of a transaction")
    }

    /// Is the database as we think it is?
    fn expect_state(&mut self, after: &str) -> Result<()> {
        let mut found = state::read(&mut self.client)?;
        found.model.before.clone_from(&self.state.model.before);
        found.model.read_only = self.state.model.read_only;
        compare(&self.state, &found).with_context(|| format!("after {after}"))
    }

    /// Calls, and looks at what has come of it.
    fn call(
        &mut self,
        call: &Call,
        form: Form,
        expected: &Expected,
        model: Model,
        savepoint: bool,
    ) -> Result<()> {
        self.calls += 1;
        let describe = || {
            let mut sql = call.sql();
            let end = (0..=sql.len().min(1000))
                .rev()
                .find(|&at| sql.is_char_boundary(at));
            sql.truncate(end.unwrap_or(0));
            format!("call {form:?} {sql}\nexpected {expected:?}")
        };
        let outcome = self.make(call, form).with_context(describe)?;
        if savepoint && matches!(outcome, Outcome::Refused(_)) {
            self.client.batch_execute("ROLLBACK TO SAVEPOINT s")?;
        }
        self.judge(call, &outcome, expected, model)
            .with_context(describe)
    }

    fn judge(
        &mut self,
        call: &Call,
        outcome: &Outcome,
        expected: &Expected,
        mut model: Model,
    ) -> Result<()> {
        if !matches!(expected, Expected::Unknown) {
            self.modelled += 1;
        }
        let mut found = state::read(&mut self.client)?;
        found.model.before.clone_from(&self.state.model.before);
        found.model.read_only = self.state.model.read_only;
        if let Some(name) = found.out_of_bounds() {
            bail!("counter {name:?} is out of its bounds");
        }
        match (outcome, expected) {
            (Outcome::Refused(refusal), _) => {
                self.refused += 1;
                *self.codes.entry(refusal.code.clone()).or_default() += 1;
                refusal.check()?;
                check_names(call, refusal)?;
                match expected {
                    Expected::Rows(_) => bail!("refused: {refusal:?}"),
                    Expected::Refused(codes) => ensure!(
                        codes.contains(refusal.code.as_str()),
                        "refused with another code: {refusal:?}"
                    ),
                    Expected::NoValue | Expected::Unknown => {}
                }
                compare(&self.state, &found).context("an error has changed something")?;
            }
            (_, Expected::Refused(_) | Expected::NoValue) => bail!("not refused"),
            (_, Expected::Rows(expected)) => {
                if let Outcome::Rows(rows) = outcome {
                    ensure!(rows == expected, "the result is {rows:?}");
                }
                // Tokens are part of the rest: their times, for example.
                let rest = if model.tokens == self.state.model.tokens {
                    self.state.rest.clone()
                } else {
                    found.rest.clone()
                };
                // What nobody holds any more is no mistake of the call's.
                model.held.clone_from(&found.model.held);
                compare(&State { model, rest }, &found)?;
            }
            (_, Expected::Unknown) => {
                let name = &call.function.name;
                let changes_counters = name.starts_with("counter_hold_confirm")
                    || self.simple.iter().any(|function| function.name == *name);
                if name == "drop_all_counters" {
                    let left = (
                        &found.model.counters,
                        &found.model.tokens,
                        &found.model.held,
                    );
                    ensure!(
                        left.0.is_empty() && left.1.is_empty() && left.2.is_empty(),
                        "something is left: {left:?}"
                    );
                } else if !changes_counters || name == "counter_available" {
                    ensure!(
                        found.model.counters == self.state.model.counters,
                        "counters have changed: {:?}, {:?}",
                        self.state.model.counters,
                        found.model.counters
                    );
                }
            }
        }
        self.state = found;
        Ok(())
    }

    fn make(&mut self, call: &Call, form: Form) -> Result<Outcome> {
        let statement = format!("SELECT * FROM {}", call.sql());
        let sql = match form {
            Form::Plain => statement,
            Form::ByName => format!("SELECT * FROM {}", call.sql_by_name()),
            Form::Prepared if call.arguments.is_empty() => statement,
            Form::Prepared => {
                self.prepared += 1;
                let name = format!("p{}", self.prepared);
                let places: Vec<String> = (1..=call.arguments.len())
                    .map(|place| format!("${place}"))
                    .collect();
                self.client.batch_execute(&format!(
                    "PREPARE {name}({}) AS SELECT * FROM {}",
                    call.types().join(", "),
                    call.of(&places)
                ))?;
                format!("EXECUTE {name}({})", call.values().join(", "))
            }
            Form::Caught => {
                format!(
                    "SELECT * FROM public.attempt({})",
                    values::quote(&statement)
                )
            }
        };
        let rows = match answer(self.client.simple_query(&sql))? {
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
            Ok(messages) => rows(messages),
        };
        if !matches!(form, Form::Caught) {
            return Ok(Outcome::Rows(rows));
        }
        let Some([code, message, detail, hint]) = rows.first().map(Vec::as_slice) else {
            bail!("no diagnostics: {rows:?}");
        };
        let present = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        Ok(match code {
            None => Outcome::Unseen,
            Some(code) => Outcome::Refused(Refusal {
                code: code.clone(),
                message: message.clone().unwrap_or_default(),
                detail: present(detail),
                hint: present(hint),
                ours: false,
            }),
        })
    }
}

/// An error about a counter says which one.
fn check_names(call: &Call, refusal: &Refusal) -> Result<()> {
    if !refusal.ours || !matches!(refusal.code.as_str(), "22003" | "23514" | "42704" | "42710") {
        return Ok(());
    }
    let mut names: Vec<String> = Vec::new();
    for value in &call.arguments {
        match value {
            Value::Names(array) => names.extend(array.elements.iter().flatten().cloned()),
            Value::Object(members) => names.extend(members.iter().map(|(key, _)| key.clone())),
            _ => names.extend(value.text()),
        }
    }
    let is_named = names.is_empty()
        || refusal.message.starts_with("hold ")
        // That is said before anything is looked up.
        || refusal.message.starts_with("counter delta ")
        || names.iter().any(|name| refusal.quotes(name));
    // What begins with a prefix is named as well.
    let is_list = call.function.returns == "record";
    ensure!(is_named || is_list, "the counter is not named: {refusal:?}");
    Ok(())
}

/// The rows of the last query.
pub(super) fn rows(messages: Vec<SimpleQueryMessage>) -> Vec<Row> {
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(
            (0..row.len())
                .map(|index| row.get(index).map(ToOwned::to_owned))
                .collect(),
        ),
        _ => None,
    });
    rows.collect()
}

/// Says what differs, and not all there is.
pub(super) fn compare(expected: &State, found: &State) -> Result<()> {
    let (wanted, have) = (&expected.model.counters, &found.model.counters);
    let names = wanted.keys().chain(have.keys());
    for name in names {
        ensure!(
            wanted.get(name) == have.get(name),
            "counter {name:?} is {:?}, and should be {:?}",
            have.get(name),
            wanted.get(name)
        );
    }
    let differ = |what: &str, same: bool| -> Result<()> {
        ensure!(same, "{what} differ: {found:?}, expected {expected:?}");
        Ok(())
    };
    differ("tokens", expected.model.tokens == found.model.tokens)?;
    differ("types", expected.model.types == found.model.types)?;
    differ("holds", expected.model.held == found.model.held)?;
    ensure!(
        expected.rest == found.rest,
        "a type, a hold, a token, a relation, a function or a right has changed"
    );
    Ok(())
}

/// Memory of a process that nobody shares, in MiB; none where it cannot be known.
pub(super) fn anonymous_memory(pid: i32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1024.0)
}
