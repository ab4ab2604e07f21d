//! Plays rounds, one step at a time: the same plan gives the same answers.
//!
//! A session that has to wait for another is left waiting, and its further steps come when it can go
//! on. A call that may have to wait is left out when somebody waits for its session; so no two wait
//! for each other.

use std::collections::{BTreeMap, VecDeque};

use anyhow::{Context, Result, ensure};
use counterx_harness::Cluster;
use postgres::{Client, SimpleQueryMessage};

use super::model::{REFUSED, State, Told, explain};
use super::plan::{Call, Kind, Plan, Turn};
use super::repeatable;
use crate::actors::{self, Actor};

/// More clients than a round has are of no use.
const CLIENTS: usize = 4;

/// Errors that end a transaction, and that a round may meet.
const DUE: [&str; 5] = ["40001", "40P01", "23514", "42704", "55P03"];

/// The types, the table of rows, and a block that catches refusals.
fn schema() -> String {
    let mut sql = "CREATE TABLE shelf (round bigint, place integer, x bigint NOT NULL DEFAULT 0, PRIMARY KEY (round, place));
CREATE FUNCTION attempt(call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE answer text;
BEGIN
    EXECUTE 'SELECT ' || call INTO answer;
    RETURN answer;
EXCEPTION
    WHEN check_violation THEN RETURN 'refused';
    WHEN undefined_object THEN RETURN 'missing';
END $$;"
        .to_owned();
    for kind in Kind::ALL {
        let bound = |value: Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
        if kind != Kind::Plain {
            sql.push_str(&format!(
                "\nSELECT counter_type_create('{}', min => {}, max => {});",
                kind.prefix(),
                bound(kind.min()),
                bound(kind.max())
            ));
        }
    }
    sql
}

/// A database with sessions, for any number of rounds.
pub(super) struct Stage {
    cluster: Cluster,
    actors: Vec<Actor<Answer>>,
    admin: Client,
    rounds: u64,
}

/// All rows, a line each; or an error.
type Answer = Result<String, (String, String)>;

/// What became of a client's transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stand {
    NotBegun,
    Open,
    Failed,
    Committed,
    RolledBack,
}

/// One step that a session is to send.
#[derive(Clone, Copy)]
enum Step {
    Call(Call, bool),
    Commit,
    Rollback,
}

/// A client in a round.
struct Part {
    stand: Stand,
    queue: VecDeque<Step>,
    pending: Option<Pending>,
    told: Vec<Told>,
}

struct Pending {
    step: Step,
    sql: String,
    waited: bool,
    answer: Option<Answer>,
}

/// What a round came to.
#[derive(Default)]
pub(super) struct Run {
    /// As SQL, with what was answered.
    pub(super) trace: Vec<String>,
    pub(super) finding: Option<String>,
    pub(super) committed: u64,
    /// Calls that transactions which have committed were answered.
    pub(super) answers: u64,
    /// Errors of transactions, by code.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) waits: u64,
}

impl Stage {
    pub(super) fn set_up() -> Result<Self> {
        let cluster = Cluster::builder()
            .name("orders")
            .conf("counterx.compaction", "off")
            .conf("counterx.escrow_wait", "0")
            .conf("counterx.log_max_size", "64kB")
            .conf("synchronous_commit", "off")
            .start()?;
        let mut admin = cluster.connect()?;
        admin.batch_execute("CREATE EXTENSION counterx")?;
        admin.batch_execute(&schema())?;
        let actors = (0..CLIENTS)
            .map(|_| connect(&cluster))
            .collect::<Result<_>>()?;
        Ok(Self {
            cluster,
            actors,
            admin,
            rounds: 0,
        })
    }

    /// Plays a round, with names of its own.
    ///
    /// # Errors
    /// Of the preparations: what is wrong with the round is part of the result.
    pub(super) fn play(&mut self, plan: &Plan) -> Result<Run> {
        self.rounds += 1;
        if self.rounds.is_multiple_of(1_000) {
            self.admin
                .batch_execute("VACUUM counterx.hold, counterx.token, counterx.total, shelf")?;
        }
        let mut round = Round::new(self, plan)?;
        round.prepare()?;
        let failure = round.play().err();
        let mut run = std::mem::take(&mut round.run);
        run.finding = match failure {
            Some(failure) => Some(format!("{failure:#}")),
            None => round.judge(&mut run)?,
        };
        let ended = |part: &Part| ![Stand::Open, Stand::Failed].contains(&part.stand);
        let over = round
            .parts
            .iter()
            .all(|part| ended(part) && part.pending.is_none());
        if over {
            round.clear()?;
        } else {
            self.renew()?;
        }
        Ok(run)
    }

    /// New sessions, after a round that broke off.
    fn renew(&mut self) -> Result<()> {
        for actor in &mut self.actors {
            let sql = "SELECT pg_terminate_backend($1, 10000)";
            self.admin.query_one(sql, &[&actor.pid])?;
            *actor = connect(&self.cluster)?;
        }
        Ok(())
    }

    /// What the SQL of a round needs.
    pub(super) fn preamble() -> String {
        format!("CREATE EXTENSION counterx;\n{}", schema())
    }
}

struct Round<'s> {
    stage: &'s mut Stage,
    plan: &'s Plan,
    number: u64,
    /// The ids of the holds from before.
    holds: Vec<i64>,
    parts: Vec<Part>,
    run: Run,
}

impl<'s> Round<'s> {
    fn new(stage: &'s mut Stage, plan: &'s Plan) -> Result<Self> {
        ensure!(
            plan.clients <= stage.actors.len(),
            "a plan with too many clients"
        );
        let parts = (0..plan.clients)
            .map(|_| Part {
                stand: Stand::NotBegun,
                queue: VecDeque::new(),
                pending: None,
                told: Vec::new(),
            })
            .collect();
        Ok(Self {
            number: stage.rounds,
            stage,
            plan,
            holds: Vec::new(),
            parts,
            run: Run::default(),
        })
    }

    fn name(&self, counter: usize) -> String {
        let kind = self.plan.counters[counter].kind;
        format!("{}:{}:{counter}", kind.prefix(), self.number)
    }

    fn names(&self) -> String {
        let names: Vec<String> = (0..self.plan.counters.len())
            .map(|counter| format!("'{}'", self.name(counter)))
            .collect();
        names.join(", ")
    }

    /// The counters, holds, rows and tokens, and a fold in between.
    fn prepare(&mut self) -> Result<()> {
        let incr =
            |name: String, delta: Option<i64>| Some(format!("counter_incr('{name}', {})", delta?));
        let mut before = Vec::new();
        let mut after = Vec::new();
        for (place, counter) in self.plan.counters.iter().enumerate() {
            before.extend(incr(self.name(place), counter.folded));
            after.extend(incr(self.name(place), counter.pending));
        }
        for (place, token) in self.plan.tokens.iter().enumerate() {
            if token.used {
                after.push(self.once(place));
            }
        }
        let mut statements = Vec::new();
        if !before.is_empty() {
            statements.push(format!("SELECT {}", before.join(", ")));
            statements.push("SELECT counterx.compact()".to_owned());
        }
        if !after.is_empty() {
            statements.push(format!("SELECT {}", after.join(", ")));
        }
        if self.plan.rows > 0 {
            statements.push(format!(
                "INSERT INTO shelf SELECT {}, generate_series(0, {})",
                self.number,
                self.plan.rows - 1
            ));
        }
        for statement in statements {
            self.stage.admin.simple_query(&statement)?;
            self.run.trace.push(format!("admin: {statement};"));
        }
        for &(counter, amount) in &self.plan.holds {
            let sql = format!(
                "SELECT counter_hold('{}', {amount}, '1 hour')",
                self.name(counter)
            );
            self.holds
                .push(self.stage.admin.query_one(&sql, &[])?.get(0));
            self.run.trace.push(format!("admin: {sql};"));
        }
        Ok(())
    }

    fn once(&self, place: usize) -> String {
        let token = self.plan.tokens[place];
        format!(
            "counter_incr_once{}('{}:{place}', '{}', {})",
            if token.get { "_get" } else { "" },
            self.number,
            self.name(token.counter),
            token.delta
        )
    }

    fn sql(&self, call: Call, guarded: bool) -> String {
        let name = |counter| self.name(counter);
        let round = self.number;
        let expression = match call {
            Call::Value(c) => format!("counter_value('{}')", name(c)),
            Call::Available(c) => {
                return format!(
                    "SELECT value, held, available FROM counter_available('{}')",
                    name(c)
                );
            }
            Call::Sum => {
                return format!(
                    "SELECT coalesce(sum(value), 0), count(*) FROM counters WHERE name IN ({})",
                    self.names()
                );
            }
            Call::Prefix(kind) => format!("counter_sum('{}:{round}:')", kind.prefix()),
            Call::Holds => return self.holds_sql(),
            Call::Row(row) => {
                return format!("SELECT x FROM shelf WHERE round = {round} AND place = {row}");
            }
            Call::Rows => return format!("SELECT sum(x) FROM shelf WHERE round = {round}"),
            Call::Update(row, delta) => {
                return format!(
                    "UPDATE shelf SET x = x + {delta} WHERE round = {round} AND place = {row} RETURNING x"
                );
            }
            Call::Incr(c, delta) if delta < 0 => {
                format!("counter_decr('{}', {})", name(c), -delta)
            }
            Call::Incr(c, delta) => format!("counter_incr('{}', {delta})", name(c)),
            Call::Get(c, delta) => format!("counter_incr_get('{}', {delta})", name(c)),
            Call::Try(c, delta) => format!("counter_try_incr('{}', {delta})", name(c)),
            Call::Take(c, n) => format!("counter_take_up_to('{}', {n})", name(c)),
            Call::Set(c, value) => format!("counter_set('{}', {value})", name(c)),
            Call::Reset(c) => format!("counter_reset('{}')", name(c)),
            Call::Drop(c) => format!("counter_drop('{}')", name(c)),
            Call::Once(place) => self.once(place),
            Call::Hold(c, amount) => format!("counter_hold('{}', {amount}, '1 hour')", name(c)),
            Call::Confirm(hold, part) => {
                let part = part.map_or(String::new(), |part| format!(", {part}"));
                format!("counter_hold_confirm({}{part})", self.holds[hold])
            }
            Call::Release(hold) => format!("counter_hold_release({})", self.holds[hold]),
        };
        if guarded && !call.only_reads() {
            format!("SELECT attempt($${expression}$$)")
        } else {
            format!("SELECT {expression}::text")
        }
    }

    fn holds_sql(&self) -> String {
        format!(
            "SELECT coalesce(string_agg(split_part(name, ':', 3) || ':' || amount, ' '
                ORDER BY split_part(name, ':', 3)::int, amount), '')
               FROM counter_holds WHERE name IN ({})",
            self.names()
        )
        .replace("\n               ", " ")
        .replace("\n                ", " ")
    }

    fn play(&mut self) -> Result<()> {
        for turn in &self.plan.turns {
            match *turn {
                Turn::Compact => {
                    self.stage.admin.simple_query("SELECT counterx.compact()")?;
                    let line = "admin: SELECT counterx.compact();";
                    self.run.trace.push(line.to_owned());
                }
                Turn::Call {
                    client,
                    call,
                    guarded,
                } => self.step(client, Step::Call(call, guarded))?,
                Turn::Commit(client) => self.step(client, Step::Commit)?,
                Turn::Rollback(client) => self.step(client, Step::Rollback)?,
            }
        }
        // Who waits goes on when the others have ended.
        for _ in 0..self.parts.len() {
            for client in 0..self.parts.len() {
                let open = [Stand::Open, Stand::Failed].contains(&self.parts[client].stand);
                if open && self.parts[client].pending.is_none() {
                    self.step(client, Step::Commit)?;
                }
            }
            self.settle()?;
        }
        for (client, part) in self.parts.iter().enumerate() {
            let over = ![Stand::Open, Stand::Failed].contains(&part.stand);
            ensure!(over && part.pending.is_none(), "s{client} does not end");
        }
        Ok(())
    }

    fn step(&mut self, client: usize, step: Step) -> Result<()> {
        self.parts[client].queue.push_back(step);
        self.pump(client)
    }

    /// Sends what a client has to send, until it waits or has no more.
    fn pump(&mut self, client: usize) -> Result<()> {
        while self.parts[client].pending.is_none() {
            let Some(step) = self.parts[client].queue.pop_front() else {
                return Ok(());
            };
            let sql = match (self.parts[client].stand, step) {
                (Stand::NotBegun | Stand::Open, Step::Call(call, guarded)) => {
                    if call.may_wait() && self.is_waited_for(client)? {
                        continue;
                    }
                    let sql = self.sql(call, guarded);
                    if self.parts[client].stand == Stand::Open {
                        sql
                    } else {
                        self.parts[client].stand = Stand::Open;
                        format!("{}; {sql}", self.begin(client))
                    }
                }
                (Stand::Open, Step::Commit) => "COMMIT".to_owned(),
                (Stand::Open, Step::Rollback) | (Stand::Failed, Step::Commit | Step::Rollback) => {
                    "ROLLBACK".to_owned()
                }
                _ => continue,
            };
            self.stage.actors[client].send(&sql)?;
            self.parts[client].pending = Some(Pending {
                step,
                sql,
                waited: false,
                answer: None,
            });
            self.settle()?;
        }
        Ok(())
    }

    fn begin(&self, client: usize) -> String {
        let level = if self.plan.serializable {
            "SERIALIZABLE"
        } else {
            "REPEATABLE READ"
        };
        let read_only = if self.plan.read_only[client] {
            " READ ONLY"
        } else {
            ""
        };
        format!("BEGIN ISOLATION LEVEL {level}{read_only}")
    }

    /// Waits until every client has been answered, or waits for another.
    fn settle(&mut self) -> Result<()> {
        let mut sent: Vec<_> = self
            .parts
            .iter_mut()
            .zip(&self.stage.actors)
            .filter_map(|(part, actor)| Some((actor, &mut part.pending.as_mut()?.answer)))
            .collect();
        actors::settle(&mut self.stage.admin, &mut sent)?;
        let mut free = Vec::new();
        for client in 0..self.parts.len() {
            let Some(pending) = &mut self.parts[client].pending else {
                continue;
            };
            if pending.answer.is_some() {
                if let Some(pending) = self.parts[client].pending.take() {
                    self.answered(client, pending)?;
                }
                free.push(client);
            } else if !pending.waited {
                pending.waited = true;
                self.run.waits += 1;
                let line = format!("s{client}: {}; -- waits", pending.sql);
                self.run.trace.push(line);
            }
        }
        for client in free {
            self.pump(client)?;
        }
        Ok(())
    }

    fn answered(&mut self, client: usize, pending: Pending) -> Result<()> {
        let answer = pending.answer.context("answered")?;
        let (Ok(text) | Err((_, text))) = &answer;
        let code = answer.as_ref().err().map(|(code, _)| code.as_str());
        let code = code.map_or(String::new(), |code| format!("{code}: "));
        self.run
            .trace
            .push(format!("s{client}: {}; -- {code}{text}", pending.sql));
        match (&answer, pending.step) {
            (Err((code, message)), step) => {
                ensure!(
                    DUE.contains(&code.as_str()),
                    "s{client}: an error of its own kind: {code}: {message}"
                );
                *self.run.errors.entry(code.clone()).or_insert(0) += 1;
                self.parts[client].stand = match step {
                    Step::Call(..) => Stand::Failed,
                    Step::Commit | Step::Rollback => Stand::RolledBack,
                };
            }
            (Ok(answer), Step::Call(call, _)) => {
                let told = Told {
                    call,
                    answer: answer.clone(),
                };
                self.parts[client].told.push(told);
            }
            (Ok(_), Step::Commit | Step::Rollback) => {
                // The answer to a COMMIT that comes to a ROLLBACK is no error, but does not come up here:
                // one that has failed is rolled back.
                let committed = pending.sql == "COMMIT";
                self.parts[client].stand = if committed {
                    Stand::Committed
                } else {
                    Stand::RolledBack
                };
            }
        }
        Ok(())
    }

    fn is_waited_for(&mut self, client: usize) -> Result<bool> {
        let waiting: Vec<i32> = self
            .parts
            .iter()
            .zip(&self.stage.actors)
            .filter(|(part, _)| part.pending.is_some())
            .map(|(_, actor)| actor.pid)
            .collect();
        let pid = self.stage.actors[client].pid;
        actors::is_waited_for(&mut self.stage.admin, pid, &waiting)
    }

    /// What is there when all have ended.
    fn end(&mut self) -> Result<State> {
        let mut state = State::new(self.plan);
        let listed = format!(
            "SELECT split_part(name, ':', 3)::bigint, value::bigint FROM counters WHERE name IN ({})",
            self.names()
        );
        state.counters = vec![None; self.plan.counters.len()];
        for row in self.stage.admin.query(&listed, &[])? {
            state.counters[usize::try_from(row.get::<_, i64>(0))?] = Some(row.get(1));
        }
        let rows = format!(
            "SELECT x FROM shelf WHERE round = {} ORDER BY place",
            self.number
        );
        let rows = self.stage.admin.query(&rows, &[])?;
        state.rows = rows.iter().map(|row| row.get(0)).collect();
        state.known = vec![false; self.plan.holds.len()];
        state.fresh.clear();
        let holds = format!(
            "SELECT id, split_part(name, ':', 3)::bigint, amount FROM counter_holds WHERE name IN ({})",
            self.names()
        );
        for row in self.stage.admin.query(&holds, &[])? {
            let (id, counter, amount): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            match self.holds.iter().position(|known| *known == id) {
                Some(place) => state.known[place] = true,
                None => {
                    *state
                        .fresh
                        .entry((usize::try_from(counter)?, amount))
                        .or_insert(0) += 1;
                }
            }
        }
        Ok(state)
    }

    /// Is there an order that explains it all?
    fn judge(&mut self, run: &mut Run) -> Result<Option<String>> {
        let start = State::new(self.plan);
        let mut end = self.end()?;
        let committed: Vec<(usize, &[Told])> = self
            .parts
            .iter()
            .enumerate()
            .filter(|(_, part)| part.stand == Stand::Committed)
            .map(|(client, part)| (client, part.told.as_slice()))
            .collect();
        run.committed = committed.len() as u64;
        run.answers = committed.iter().map(|(_, told)| told.len() as u64).sum();
        let all: Vec<(bool, &[Told])> = self
            .parts
            .iter()
            .map(|part| (part.stand == Stand::Committed, part.told.as_slice()))
            .collect();
        if let Some(wrong) =
            repeatable::wrong(self.plan, &start, &all, &end, self.plan.serializable)
        {
            return Ok(Some(wrong));
        }
        if !self.plan.serializable {
            return Ok(None);
        }
        // Who used a token has noticed; the tables have no more to say about it.
        end.tokens = used(self.plan, &start, &committed);
        Ok(match explain(self.plan, &start, &committed, &end) {
            Ok(_) => None,
            Err(best) => {
                let (ids, count): (Vec<usize>, usize) = (
                    committed.iter().map(|(client, _)| *client).collect(),
                    committed.len(),
                );
                Some(format!(
                    "no order of the transactions of {ids:?} explains what they were told, and the \
                     end: {:?}, rows {:?}, holds {:?}; the best one explains {best} of {count}",
                    end.counters,
                    end.rows,
                    end.holds_text(self.plan)
                ))
            }
        })
    }

    /// Leaves nothing that makes later rounds slower.
    fn clear(&mut self) -> Result<()> {
        if self.plan.holds.is_empty()
            && !self.plan.turns.iter().any(|turn| {
                matches!(
                    turn,
                    Turn::Call {
                        call: Call::Hold(..),
                        ..
                    }
                )
            })
        {
            return Ok(());
        }
        let sql = format!(
            "SELECT counter_hold_release(id) FROM counter_holds WHERE name IN ({})",
            self.names()
        );
        self.stage.admin.simple_query(&sql)?;
        Ok(())
    }
}

/// The tokens that are used at the end, as transactions that have committed were told.
fn used(plan: &Plan, start: &State, committed: &[(usize, &[Told])]) -> Vec<Option<String>> {
    let mut tokens = start.tokens.clone();
    for told in committed.iter().flat_map(|(_, told)| told.iter()) {
        if let Call::Once(place) = told.call
            && told.answer != REFUSED
        {
            tokens[place] = Some(if plan.tokens[place].get {
                told.answer.clone()
            } else {
                "false".to_owned()
            });
        }
    }
    tokens
}

fn connect(cluster: &Cluster) -> Result<Actor<Answer>> {
    Actor::new(&cluster.config("postgres"), |said| {
        said.map(|messages| text(&messages))
    })
}

/// The rows, their columns with bars between them.
fn text(messages: &[SimpleQueryMessage]) -> String {
    let mut lines = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let columns: Vec<&str> = (0..row.len())
                .map(|column| row.get(column).unwrap_or("NULL"))
                .collect();
            lines.push(columns.join("|"));
        }
    }
    lines.join(" ")
}
