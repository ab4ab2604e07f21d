//! A session: where it stands, and what it may expect.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

use super::known::{Known, Reserved, confirmed};
use super::step::{CURSOR_SQL, Level, Op, Step};

/// What the server has answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// All rows of all statements, NULLs as `None`.
    Rows(Vec<Vec<Option<String>>>),
    Refused {
        code: String,
        message: String,
    },
}

/// How a transaction of a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    RolledBack,
}

/// A transaction in progress, or prepared.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    pub(crate) serial: u64,
    pub(crate) level: Level,
    /// Its row of the journal is written.
    pub(crate) journalled: bool,
    /// Known when the journal's row is written.
    pub(crate) xid: Option<String>,
    pub(crate) failed: bool,
    /// It leaves the client's own counters alone: another transaction is prepared, and what that one has
    /// done to them is not decided yet.
    own_off: bool,
    /// It may not be possible to prepare it, as it may have changed bounded counters ...
    unpreparable: bool,
    /// ... and it is not, as it has written early, and that was not undone.
    flushed: bool,
    now: Known,
    /// What was known, whether the journal's row was written, and whether something was written early.
    savepoints: Vec<(Known, bool, bool)>,
}

/// A cursor whose rows are calls.
#[derive(Clone, Debug)]
struct Changing {
    ops: Vec<Op>,
    fails: bool,
    /// So many were fetched. What is undone is not fetched again.
    fetched: usize,
    /// How many savepoints there were when it was opened; of those that are still there.
    depth: usize,
}

/// A client's state.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) number: usize,
    known: Known,
    /// Its last serial number.
    serial: u64,
    pub(crate) transaction: Option<Transaction>,
    pub(crate) prepared: Option<Transaction>,
    /// Whether the cursor outlives its transaction. Each one has a number of its own.
    cursor: Option<bool>,
    cursors: u64,
    changing: Option<Changing>,
    /// What became of its transactions, by serial number.
    fates: BTreeMap<u64, Fate>,
    /// What all its committed transactions have added to counters that everybody adds to.
    pub(crate) added: BTreeMap<String, i64>,
}

impl Session {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            known: Known::default(),
            serial: 0,
            transaction: None,
            prepared: None,
            cursor: None,
            cursors: 0,
            changing: None,
            fates: BTreeMap::new(),
            added: BTreeMap::new(),
        }
    }

    /// The serial number of its last transaction that has begun.
    pub(crate) fn last_serial(&self) -> u64 {
        self.serial
    }

    /// The serial numbers of its transactions that have committed.
    pub(crate) fn committed(&self) -> BTreeSet<u64> {
        self.fates
            .iter()
            .filter(|(_, fate)| **fate == Fate::Committed)
            .map(|(&serial, _)| serial)
            .collect()
    }

    /// What it has done to a bounded counter, and keeps from others. What has failed is given back at
    /// once, not at its ROLLBACK.
    pub(crate) fn reserved(&self, name: &str) -> Reserved {
        self.in_force()
            .and_then(|known| known.reserved.get(name).copied())
            .unwrap_or_default()
    }

    /// Does it go by one snapshot?
    pub(crate) fn has_one_snapshot(&self) -> bool {
        let level = self.transaction.as_ref().map(|open| open.level);
        level.is_some_and(|level| level != Level::ReadCommitted)
    }

    /// Does it make others wait for this, with the open transaction or the prepared one?
    pub(crate) fn has_locked(&self, lock: &str) -> bool {
        let prepared = self.prepared.as_ref().map(|prepared| &prepared.now);
        self.in_force()
            .into_iter()
            .chain(prepared)
            .any(|known| known.locks.contains(lock))
    }

    /// What the open transaction has done, as far as it is not undone.
    fn in_force(&self) -> Option<&Known> {
        let transaction = self.transaction.as_ref()?;
        if transaction.failed {
            transaction.savepoints.last().map(|(known, ..)| known)
        } else {
            Some(&transaction.now)
        }
    }

    /// How many of its transactions have ended.
    pub(crate) fn ended(&self) -> usize {
        self.fates.len()
    }

    /// Its own counters, as of its last transaction.
    pub(crate) fn own(&self) -> &BTreeMap<String, i64> {
        &self.known.own
    }

    pub(crate) fn is_own(&self, name: &str) -> bool {
        own_prefixes(self.number)
            .iter()
            .any(|prefix| name.starts_with(prefix))
    }

    /// The id that a prepared transaction gets.
    pub(crate) fn gid(&self, serial: u64) -> String {
        format!("client-{}-{serial}", self.number)
    }

    fn journal(&self, serial: u64) -> String {
        format!(
            "INSERT INTO journal (client, serial) VALUES ({}, {serial}) RETURNING xid::text",
            self.number
        )
    }

    /// Ends the prepared transaction, if there is one.
    pub(crate) fn finish_sql(&self, commit: bool) -> Option<String> {
        let prepared = self.prepared.as_ref()?;
        let verb = if commit { "COMMIT" } else { "ROLLBACK" };
        Some(format!("{verb} PREPARED '{}'", self.gid(prepared.serial)))
    }

    fn fetch(&self) -> String {
        format!("FETCH ALL FROM c{0}; CLOSE c{0}", self.cursors)
    }

    fn call(&self, op: &Op) -> String {
        let hold = |nth: usize| self.known.hold(nth).unwrap_or_default();
        match op {
            Op::Confirm { nth, part } => {
                let (id, amount) = hold(*nth);
                format!("SELECT exact_confirm({id}, {})", confirmed(amount, *part))
            }
            Op::Release(nth) => format!("SELECT counter_hold_release({})", hold(*nth).0),
            Op::Look => match &self.transaction {
                Some(transaction) if !transaction.own_off => {
                    let [own, stock] = own_prefixes(self.number);
                    format!(
                        "SELECT wrong() || '|' || coalesce(string_agg(name || '=' || value, ' ' ORDER BY name), '')
                           FROM counters WHERE name ^@ '{own}' OR name ^@ '{stock}'"
                    )
                }
                _ => Op::Look.sql(),
            },
            op => op.sql(),
        }
    }

    /// A query whose rows are these calls; if it is to fail, one row more.
    fn calls(&self, ops: &[Op], fails: bool) -> String {
        let mut cases = String::new();
        for (number, op) in ops.iter().enumerate() {
            let call = self.call(op);
            let call = call.strip_prefix("SELECT ").unwrap_or(&call);
            // A boolean's text is not what a client is sent.
            let call = match op {
                Op::Try(..) | Op::Release(_) => format!("left({call}::text, 1)"),
                _ => format!("{call}::text"),
            };
            cases.push_str(&format!(" WHEN {} THEN {call}", number + 1));
        }
        let rows = ops.len() + usize::from(fails);
        let end = ops.len() + 1;
        format!(
            "SELECT CASE i{cases} ELSE (1 / (i - {end}))::text END FROM generate_series(1, {rows}) i"
        )
    }

    /// The calls that a step makes, in their order.
    pub(crate) fn ops_of<'s>(&'s self, step: &'s Step) -> &'s [Op] {
        match step {
            Step::Op(op) | Step::Alone(op) | Step::Fail(op) => std::slice::from_ref(op),
            Step::Block { ops, .. } => ops,
            Step::Next { rows, .. } => self.changing.as_ref().map_or(&[], |changing| {
                let rest = &changing.ops[changing.fetched..];
                &rest[..(*rows).min(rest.len())]
            }),
            _ => &[],
        }
    }

    /// Will it come to the row that fails?
    fn comes_to_fail(&self, step: &Step) -> bool {
        match (step, &self.changing) {
            (Step::Next { rows, .. }, Some(changing)) => {
                changing.fails && changing.fetched + rows > changing.ops.len()
            }
            _ => false,
        }
    }

    /// Is this a call that the session may make now? What a prepared transaction has done to its own
    /// counters is not decided yet.
    fn may(&self, op: &Op) -> bool {
        if let Op::Confirm { nth, .. } | Op::Release(nth) = op
            && self.known.hold(*nth).is_none()
        {
            return false;
        }
        let mine = op.names().iter().any(|name| self.is_own(name))
            || matches!(op, Op::Confirm { .. } | Op::Release(_));
        let off = match &self.transaction {
            Some(transaction) => transaction.own_off,
            None => self.prepared.is_some(),
        };
        // What is locked by the prepared transaction would be waited for for ever.
        !(off && mine || self.prepared.is_some() && op.may_wait())
    }

    /// What a step comes to now: only one transaction is prepared at a time, and none that has a
    /// cursor.
    pub(crate) fn meant<'s>(&self, step: &'s Step) -> &'s Step {
        match step {
            Step::Prepare
                if self.prepared.is_some() || self.cursor.is_some() || self.changing.is_some() =>
            {
                &Step::Commit
            }
            step => step,
        }
    }

    /// What to send for a step; None: it does not apply now.
    pub(crate) fn sql(&self, step: &Step) -> Option<String> {
        let Some(transaction) = &self.transaction else {
            return match step {
                Step::Begin { level, journal } => {
                    let mut sql = format!("BEGIN ISOLATION LEVEL {}", level.sql());
                    if *journal {
                        sql = format!("{sql}; {}", self.journal(self.serial + 1));
                    }
                    Some(sql)
                }
                Step::Op(Op::Look) => Some(Op::Look.sql()),
                Step::Alone(op) if self.may(op) => Some(format!(
                    "{}; {}",
                    self.journal(self.serial + 1),
                    self.call(op)
                )),
                Step::Fetch if self.cursor == Some(true) => Some(self.fetch()),
                Step::Finish { commit } => self.finish_sql(*commit),
                Step::Walk { name, steps } => Some(format!(
                    "CALL walk({}, {}, {steps}, '{name}')",
                    self.number,
                    self.serial + 1
                )),
                _ => None,
            };
        };
        let depth = transaction.savepoints.len();
        if transaction.failed {
            return match step {
                Step::RollbackTo(_) if depth > 0 => Some(format!("ROLLBACK TO s{depth}")),
                Step::Commit => Some("COMMIT".to_owned()),
                Step::Rollback | Step::Prepare => Some("ROLLBACK".to_owned()),
                _ => None,
            };
        }
        match step {
            Step::Journal if !transaction.journalled => Some(self.journal(transaction.serial)),
            Step::Op(op) | Step::Alone(op) if self.may(op) => Some(self.call(op)),
            Step::Fail(op) if depth > 0 && self.may(op) => {
                Some(format!("{}; SELECT 1 / 0", self.call(op)))
            }
            Step::Savepoint => Some(format!("SAVEPOINT s{}", depth + 1)),
            Step::RollbackTo(to) if depth > 0 => {
                Some(format!("ROLLBACK TO s{}", (*to).clamp(1, depth)))
            }
            Step::Release(to) if depth > 0 => Some(format!("RELEASE s{}", (*to).clamp(1, depth))),
            Step::FlushEarly { keep } => {
                // Written early, and gone again either way. Long names fill the memory soonest.
                let each = |call: &str| {
                    format!(
                        "SELECT count({call}(rpad('n:filler:{}:' || i, 200, 'x'))) FROM generate_series(1, 300) i",
                        self.number
                    )
                };
                let end = if *keep {
                    format!("{}; RELEASE f", each("counter_drop"))
                } else {
                    "ROLLBACK TO f; RELEASE f".to_owned()
                };
                Some(format!(
                    "SAVEPOINT f; SET LOCAL counterx.pending_work_mem = '64kB'; {}; {end}",
                    each("counter_incr")
                ))
            }
            Step::Cursor { hold } if self.cursor.is_none() => {
                let (with, fetch) = if *hold {
                    (" WITH HOLD", String::new())
                } else {
                    ("", format!("; FETCH 3 FROM c{}", self.cursors + 1))
                };
                Some(format!(
                    "DECLARE c{} CURSOR{with} FOR {CURSOR_SQL}{fetch}",
                    self.cursors + 1
                ))
            }
            Step::Fetch if self.cursor == Some(false) => Some(self.fetch()),
            Step::Change { ops, fails }
                if self.cursor.is_none() && ops.iter().all(|op| self.may(op)) =>
            {
                Some(format!(
                    "DECLARE c{} CURSOR FOR {}",
                    self.cursors + 1,
                    self.calls(ops, *fails)
                ))
            }
            // It fails in a savepoint alone, as all that was done would be undone otherwise.
            Step::Next { rows, moves } => {
                let changing = self.changing.as_ref()?;
                let fails = self.comes_to_fail(step);
                let ops = self.ops_of(step);
                if fails && depth <= changing.depth || ops.is_empty() && !fails {
                    return None;
                }
                let verb = if *moves && ops.iter().all(op_is_blind) {
                    "MOVE"
                } else {
                    "FETCH"
                };
                Some(format!("{verb} {rows} FROM c{}", self.cursors))
            }
            Step::Block { ops, kept } if ops.iter().all(|op| self.may(op)) => Some(format!(
                "SELECT fetch_guarded($rows${}$rows$, {kept})",
                self.calls(ops, true)
            )),
            Step::Commit => Some("COMMIT".to_owned()),
            Step::Rollback => Some("ROLLBACK".to_owned()),
            Step::Prepare if self.prepared.is_none() && self.cursor.is_none() => Some(format!(
                "PREPARE TRANSACTION '{}'",
                self.gid(transaction.serial)
            )),
            _ => None,
        }
    }

    /// Goes on from an answer, which must be one that was due.
    pub(crate) fn answered(&mut self, step: &Step, answer: &Answer) -> Result<()> {
        match answer {
            Answer::Rows(rows) => self.went_well(step, rows),
            Answer::Refused { code, message } => self.refused(step, code, message),
        }
    }

    fn went_well(&mut self, step: &Step, rows: &[Vec<Option<String>>]) -> Result<()> {
        let last = rows
            .last()
            .and_then(|row| row.first())
            .cloned()
            .flatten()
            .unwrap_or_default();
        match step {
            Step::Begin { level, journal } => {
                self.serial += 1;
                self.transaction = Some(Transaction {
                    level: *level,
                    journalled: *journal,
                    xid: journal.then_some(last),
                    ..self.implicit()
                });
            }
            Step::Journal => {
                let transaction = self.open()?;
                transaction.journalled = true;
                transaction.xid = Some(last);
            }
            Step::Op(op) | Step::Alone(op)
                if self.transaction.is_some() || matches!(op, Op::Look) =>
            {
                self.learn(op, &last)?;
            }
            Step::Alone(op) => {
                self.serial += 1;
                self.transaction = Some(self.implicit());
                self.learn(op, &last)?;
                self.end(Fate::Committed)?;
            }
            Step::Op(_) => bail!("a call outside of a transaction"),
            Step::Fail(_) => bail!("a division by zero went well"),
            Step::Savepoint => {
                let transaction = self.open()?;
                let now = transaction.now.clone();
                let state = (now, transaction.journalled, transaction.flushed);
                transaction.savepoints.push(state);
            }
            Step::RollbackTo(to) => {
                let transaction = self.open()?;
                let depth = transaction.savepoints.len();
                let to = if transaction.failed {
                    depth
                } else {
                    (*to).clamp(1, depth)
                };
                transaction.savepoints.truncate(to);
                (transaction.now, transaction.journalled, transaction.flushed) =
                    transaction.savepoints[to - 1].clone();
                transaction.failed = false;
                self.cursor = None;
                self.changing.take_if(|changing| changing.depth >= to);
            }
            Step::Release(to) => {
                let transaction = self.open()?;
                let depth = transaction.savepoints.len();
                let left = (*to).clamp(1, depth) - 1;
                transaction.savepoints.truncate(left);
                if let Some(changing) = &mut self.changing {
                    changing.depth = changing.depth.min(left);
                }
            }
            Step::FlushEarly { keep } => {
                let transaction = self.open()?;
                transaction.unpreparable = true;
                transaction.flushed |= keep;
            }
            Step::Cursor { hold } => {
                self.cursors += 1;
                self.cursor = Some(*hold);
                agreed(rows)?;
            }
            Step::Fetch => {
                self.cursor = None;
                agreed(rows)?;
            }
            Step::Change { ops, fails } => {
                self.cursors += 1;
                self.changing = Some(Changing {
                    ops: ops.clone(),
                    fails: *fails,
                    fetched: 0,
                    depth: self.open()?.savepoints.len(),
                });
            }
            Step::Next { .. } => {
                ensure!(!self.comes_to_fail(step), "a division by zero went well");
                let ops = self.ops_of(step).to_vec();
                // None of those that were moved over has anything to say.
                ensure!(
                    rows.len() == ops.len() || rows.is_empty() && ops.iter().all(op_is_blind),
                    "{} rows for {} calls",
                    rows.len(),
                    ops.len()
                );
                for (number, op) in ops.iter().enumerate() {
                    let answer = rows.get(number).and_then(|row| row.first()?.as_deref());
                    self.learn(op, answer.unwrap_or_default())?;
                }
                if let Some(changing) = &mut self.changing {
                    changing.fetched += ops.len();
                }
            }
            Step::Block { ops, kept } => {
                let answers: Vec<&str> = last.split('~').collect();
                for (op, answer) in ops[..*kept].iter().zip(answers) {
                    self.learn(op, answer)?;
                }
                // What was undone may have been of bounded counters, too. What it has written early is gone.
                let overflows = (ops[..*kept].iter()).any(|op| matches!(op, Op::Overflow(_)));
                let transaction = self.open()?;
                transaction.unpreparable = true;
                transaction.flushed |= overflows;
            }
            Step::Commit => {
                let failed = self.open()?.failed;
                self.end(if failed {
                    Fate::RolledBack
                } else {
                    Fate::Committed
                })?;
            }
            Step::Rollback => self.end(Fate::RolledBack)?,
            Step::Prepare => {
                let transaction = self.open()?;
                if transaction.failed {
                    return self.end(Fate::RolledBack);
                }
                ensure!(
                    !transaction.flushed,
                    "it was prepared, and has written early"
                );
                self.prepared = self.transaction.take();
            }
            Step::Finish { commit } => self.finished(if *commit {
                Fate::Committed
            } else {
                Fate::RolledBack
            })?,
            Step::Walk { name, steps } => self.walked(name, *steps, *steps),
        }
        Ok(())
    }

    fn implicit(&self) -> Transaction {
        Transaction {
            serial: self.serial,
            level: Level::ReadCommitted,
            journalled: true,
            xid: None,
            failed: false,
            own_off: self.prepared.is_some(),
            unpreparable: false,
            flushed: false,
            now: self.known.begin(),
            savepoints: Vec::new(),
        }
    }

    /// What a procedure of so many transactions has done when the first `ended` of them have ended.
    pub(crate) fn walked(&mut self, name: &str, steps: u64, ended: u64) {
        for step in 0..steps {
            let commits = step < ended && step % 3 != 2;
            let fate = if commits {
                Fate::Committed
            } else {
                Fate::RolledBack
            };
            self.fates.insert(self.serial + 1 + step, fate);
            if commits {
                *self.added.entry(name.to_owned()).or_insert(0) += step as i64 + 1;
            }
        }
        self.serial += steps;
    }

    /// The transaction of an [`Step::Alone`] whose answer was lost has committed, or not.
    pub(crate) fn ended_alone(&mut self, op: &Op, fate: Fate) -> Result<()> {
        self.serial += 1;
        if fate == Fate::Committed && self.may(op) {
            ensure!(op_is_blind(op), "the answer to {op:?} is lost");
            self.transaction = Some(self.implicit());
            self.learn(op, "")?;
            return self.end(fate);
        }
        self.fates.insert(self.serial, fate);
        Ok(())
    }

    fn learn(&mut self, op: &Op, answer: &str) -> Result<()> {
        if matches!(op, Op::Look) {
            let (wrong, own) = answer.rsplit_once('|').unwrap_or((answer, ""));
            ensure!(
                wrong.is_empty(),
                "counters differ from the oracle:\n{wrong}"
            );
            if let Some(transaction) = &self.transaction
                && !transaction.own_off
            {
                let known: Vec<String> = transaction
                    .now
                    .own
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect();
                ensure!(
                    own == known.join(" "),
                    "the client's own counters are {own}, and {} was due",
                    known.join(" ")
                );
            }
        }
        let prefixes = own_prefixes(self.number);
        let is_own = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let Some(transaction) = &mut self.transaction else {
            return Ok(());
        };
        let bounded = op.names().iter().any(|name| is_bounded(name))
            || matches!(op, Op::Confirm { .. } | Op::Sql(_));
        let overflows = matches!(op, Op::Overflow(_));
        transaction.unpreparable |= bounded || overflows;
        transaction.flushed |= overflows;
        transaction.now.learn(op, answer, &self.known, is_own)
    }

    fn open(&mut self) -> Result<&mut Transaction> {
        self.transaction.as_mut().context("no transaction is open")
    }

    /// The open transaction has ended.
    pub(crate) fn end(&mut self, fate: Fate) -> Result<()> {
        let transaction = self.transaction.take().context("no transaction is open")?;
        if fate == Fate::RolledBack || self.cursor == Some(false) {
            self.cursor = None;
        }
        self.changing = None;
        self.settle(transaction, fate);
        Ok(())
    }

    /// The prepared transaction has ended.
    pub(crate) fn finished(&mut self, fate: Fate) -> Result<()> {
        let prepared = self.prepared.take().context("nothing is prepared")?;
        self.settle(prepared, fate);
        Ok(())
    }

    fn settle(&mut self, mut transaction: Transaction, fate: Fate) {
        // Without a row in the journal there is nothing to look for.
        if transaction.journalled || fate == Fate::RolledBack {
            self.fates.insert(transaction.serial, fate);
        }
        if fate == Fate::Committed {
            for (name, delta) in std::mem::take(&mut transaction.now.added) {
                *self.added.entry(name).or_insert(0) += delta;
            }
            if !transaction.own_off {
                self.known = transaction.now.begin();
            }
        }
    }

    /// The connection is gone: what was not committed, or prepared, never was.
    pub(crate) fn disconnected(&mut self) {
        self.cursor = None;
        self.changing = None;
    }

    fn refused(&mut self, step: &Step, code: &str, message: &str) -> Result<()> {
        self.must_be_due(step, code)
            .with_context(|| format!("{step:?} was refused: {code}: {message}"))?;
        match step {
            Step::Commit | Step::Prepare | Step::Rollback => self.end(Fate::RolledBack)?,
            Step::Alone(_) if self.transaction.is_none() => {
                self.serial += 1;
                self.fates.insert(self.serial, Fate::RolledBack);
            }
            Step::Begin { .. } => {
                // The BEGIN itself went well.
                self.went_well(step, &[])?;
                let transaction = self.open()?;
                transaction.failed = true;
                transaction.journalled = false;
            }
            // Whoever can look at the journal says how far it came.
            Step::Finish { .. } | Step::Walk { .. } => {}
            _ => {
                self.cursor = None;
                let overflows = self
                    .ops_of(step)
                    .iter()
                    .any(|op| matches!(op, Op::Overflow(_)));
                if let Some(transaction) = &mut self.transaction {
                    transaction.unpreparable |= overflows;
                }
                // What fails in a cursor's row is the end of the cursor.
                self.changing.take_if(|_| matches!(step, Step::Next { .. }));
                self.cursors +=
                    u64::from(matches!(step, Step::Cursor { .. } | Step::Change { .. }));
                if let Some(transaction) = &mut self.transaction {
                    transaction.failed = true;
                }
            }
        }
        Ok(())
    }

    /// Which errors a step may meet.
    fn must_be_due(&self, step: &Step, code: &str) -> Result<()> {
        let level = self
            .transaction
            .as_ref()
            .map_or(Level::ReadCommitted, |transaction| transaction.level);
        let shared =
            |op: &Op| matches!(op, Op::Sql(_)) || op.names().iter().any(|name| !self.is_own(name));
        let due = match (code, step) {
            // A deadlock, or a lock that was waited for too long, behind maintenance.
            ("40P01" | "55P03", _) => true,
            ("40001", _) if level == Level::Serializable => true,
            // A change of what has changed since the snapshot.
            ("40001", Step::Op(op) | Step::Fail(op)) if level == Level::RepeatableRead => {
                shared(op)
            }
            // The bounds of a type were tightened.
            ("40001", Step::Commit) => self.transaction.as_ref().is_some_and(|t| t.unpreparable),
            ("40001", Step::Alone(op)) => shared(op),
            ("23514", Step::Op(op) | Step::Fail(op) | Step::Alone(op)) => {
                matches!(op, Op::Sql(_)) || op.names().iter().any(|name| is_bounded(name))
            }
            ("55000" | "42704", Step::Op(op) | Step::Fail(op) | Step::Alone(op)) => {
                matches!(op, Op::Sql(_))
            }
            ("22012", Step::Fail(_)) => true,
            ("22012", Step::Next { .. }) => self.comes_to_fail(step),
            (_, Step::Next { .. } | Step::Block { .. }) => self
                .ops_of(step)
                .iter()
                .any(|op| self.must_be_due(&Step::Op(op.clone()), code).is_ok()),
            ("0A000", Step::Prepare) => self.transaction.as_ref().is_some_and(|t| t.unpreparable),
            _ => false,
        };
        ensure!(due, "nothing of the kind was due at {level:?}");
        Ok(())
    }
}

/// Does the client know what this does without having been answered?
pub(crate) fn op_is_blind(op: &Op) -> bool {
    matches!(
        op,
        Op::Bump(..)
            | Op::Guarded(..)
            | Op::Many(..)
            | Op::Events(..)
            | Op::Overflow(_)
            | Op::Sql(_)
    )
}

/// What the names of a client's own counters begin with.
pub(crate) fn own_prefixes(number: usize) -> [String; 2] {
    [format!("own:{number}:"), format!("stock:own:{number}:")]
}

/// Does its type have bounds?
pub(crate) fn is_bounded(name: &str) -> bool {
    ["stock:", "seats:", "quota:"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// The rows of [`CURSOR_SQL`], or of the messages around it: both sides say the same.
fn agreed(rows: &[Vec<Option<String>>]) -> Result<()> {
    for row in rows {
        let [Some(name), Some(oracle), Some(value), listed] = row.as_slice() else {
            bail!("a cursor's row: {row:?}");
        };
        let listed = listed.as_deref().unwrap_or("0");
        ensure!(
            oracle == value && oracle == listed,
            "{name} by a cursor: oracle {oracle}, counter_value {value}, counters {listed}"
        );
    }
    Ok(())
}
