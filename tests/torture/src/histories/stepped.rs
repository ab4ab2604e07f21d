//! Histories that a seed brings back: several sessions, one step at a time.
//!
//! Which session does what, and when, is a function of the seed alone. Folds are steps too: the
//! worker is paused. A session that has to wait for another is left waiting, and its further steps
//! come when it can go on; so the same seed gives the same answers, and what fails can be made
//! shorter by leaving out steps until it no longer does.
//!
//! All ways to read are compared with the oracle after what can make a difference: in a new snapshot,
//! and in those of the sessions. As nobody else acts meanwhile, every answer is held against the oracle exactly.
//!
//! # Why no history hangs
//! What a session waits for is another one's lock, and that one goes on. No circle comes about: a
//! step that may have to wait is left out when somebody waits for its session. What sessions have left
//! prepared is ended over a connection of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{compact, nothing_is_kept, totals_are_clean};
use counterx_harness::Cluster;
use postgres::Client;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::client::rows;
use super::schema::{self, Exact};
use super::script::Script;
use super::session::{Answer, Fate, Session, is_bounded};
use super::step::{Level, Op, Step};
use crate::actors::{self, Actor};

/// A cluster for such histories.
pub(crate) struct Stage {
    cluster: Cluster,
    /// Without it, changes of a bounded counter wait for each other.
    preloaded: bool,
    databases: u64,
}

/// One move of a history.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    Session(usize, Step),
    /// A statement of the administrator's.
    Upkeep(String),
    /// The same, if no transaction is open: it would wait for the end of them all.
    Quiet(String),
}

/// The moves of a history, in their order.
#[derive(Clone, Debug)]
pub(crate) struct History {
    pub(crate) sessions: usize,
    pub(crate) turns: Vec<Turn>,
}

/// What a run came to.
pub(crate) struct Run {
    /// One line for each thing that was sent, with its answer.
    pub(crate) trace: Vec<String>,
    /// What was wrong.
    pub(crate) failure: Option<anyhow::Error>,
    pub(crate) looks: u64,
    /// How often a session had to wait for another.
    pub(crate) waits: u64,
    /// How many answers of shared bounded counters were foreseen.
    pub(crate) predicted: u64,
}

impl History {
    /// The history of a seed.
    pub(crate) fn of(seed: u64, length: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let sessions = rng.random_range(2..5);
        let mut scripts: Vec<Script> = (0..sessions)
            .map(|number| Script::new(seed, number, 7, shared))
            .collect();
        let mut queues = vec![VecDeque::new(); sessions];
        let mut prepared = vec![false; sessions];
        let mut turns = Vec::new();
        while turns.len() < length {
            if rng.random_bool(0.15) {
                let turn = upkeep(&mut rng);
                let fills = matches!(&turn, Turn::Upkeep(sql) if sql.starts_with("CALL"));
                turns.push(turn);
                if fills {
                    // To the other log.
                    turns.push(Turn::Upkeep("SELECT counterx.compact()".to_owned()));
                }
                continue;
            }
            let number = rng.random_range(0..sessions);
            if queues[number].is_empty() {
                queues[number].extend(scripts[number].transaction(prepared[number]));
            }
            if let Some(step) = queues[number].pop_front() {
                match step {
                    Step::Prepare => prepared[number] = true,
                    Step::Finish { .. } => prepared[number] = false,
                    _ => {}
                }
                turns.push(Turn::Session(number, step));
            }
        }
        Self { sessions, turns }
    }
}

/// What all sessions do to the same counters.
fn shared(rng: &mut StdRng, _level: Level) -> Op {
    let name = format!("s:{}", rng.random_range(0..2));
    let other = format!("s:{}", rng.random_range(0..2));
    let bounded = ["stock:a", "stock:b", "quota:a", "seats:a"][rng.random_range(0..4)].to_owned();
    match rng.random_range(0..24) {
        0 => Op::Bump(name, rng.random_range(-50..100)),
        1 => Op::Get(name, rng.random_range(-50..100)),
        2 | 3 => Op::Set(name, Some(rng.random_range(-50..100))),
        4 => Op::Set(name, None),
        5..8 => Op::Drop(name),
        8..10 if name != other => Op::Move {
            into: name,
            from: other,
            merge: rng.random_bool(0.5),
        },
        10..13 => {
            let token = rng.random_range(0..5_i64);
            Op::Once {
                token: format!("shared {token}"),
                name: format!("s:{}", token % 2),
                delta: token + 1,
                get: token % 2 == 0,
            }
        }
        13 | 14 => Op::Bump(bounded, rng.random_range(-2..3)),
        15..19 => Op::Try(bounded, rng.random_range(-4..5)),
        19 | 20 => Op::Take(bounded, rng.random_range(0..5)),
        21 => Op::Hold {
            name: "stock:a".to_owned(),
            amount: rng.random_range(1..4),
            ttl: ["1 hour", "1 microsecond"][rng.random_range(0..2)],
        },
        kind => {
            let call = if kind == 22 {
                "counter_hold_release(id)"
            } else {
                "confirm(id, false)"
            };
            let nth = rng.random_range(0..3);
            Op::Sql(format!(
                "SELECT {call} FROM (SELECT id FROM counter_holds WHERE name = 'stock:a'
                  ORDER BY id OFFSET {nth} LIMIT 1) some_hold"
            ))
        }
    }
}

fn upkeep(rng: &mut StdRng) -> Turn {
    let table = match rng.random_range(0..5) {
        0 => "total".to_owned(),
        1 => ["state", "late", "token", "hold"][rng.random_range(0..4)].to_owned(),
        _ => format!(
            "log_{}_{}",
            rng.random_range(0..8),
            ["a", "b"][rng.random_range(0..2)]
        ),
    };
    Turn::Upkeep(match rng.random_range(0..20) {
        0..9 => "SELECT counterx.compact()".to_owned(),
        // More than counterx.log_max_size, in one lane.
        9 | 10 => "CALL fill('u:1', 1100)".to_owned(),
        11 => format!("VACUUM (ANALYZE) counterx.{table}"),
        12 => format!("VACUUM (FREEZE) counterx.{table}"),
        13 => format!("VACUUM FULL counterx.{table}"),
        14 => format!("REINDEX TABLE counterx.{table}"),
        15 => "CLUSTER counterx.total USING total_pkey".to_owned(),
        16 => return Turn::Quiet(format!("REINDEX TABLE CONCURRENTLY counterx.{table}")),
        17 => "SELECT counterx.create_value_index()".to_owned(),
        18 => "SELECT counterx.drop_value_index()".to_owned(),
        _ => format!(
            "SELECT counter_type_alter('quota', max => {})",
            rng.random_range(5..8)
        ),
    })
}

impl Stage {
    pub(crate) fn set_up(preloaded: bool) -> Result<Self> {
        let cluster = Cluster::builder()
            .name("stepped")
            .preload(preloaded)
            .conf("counterx.compaction", "off")
            .conf("counterx.log_max_size", "64kB")
            .conf("autovacuum", "off")
            .conf("max_locks_per_transaction", "256")
            .start()?;
        cluster
            .connect()?
            .batch_execute("CREATE DATABASE template")?;
        schema::install(&mut cluster.connect_db("template")?, &Exact::Everything)?;
        Ok(Self {
            cluster,
            preloaded,
            databases: 0,
        })
    }

    /// Runs a history in a new database.
    ///
    /// # Errors
    /// Of the preparations alone: what is wrong with the history is part of the result.
    pub(crate) fn play(&mut self, history: &History) -> Result<Run> {
        self.databases += 1;
        let db = format!("history_{}", self.databases);
        let mut admin = self.cluster.connect()?;
        admin.batch_execute(&format!("CREATE DATABASE {db} TEMPLATE template"))?;
        let mut scene = Scene::open(&self.cluster, &db, history.sessions)?;
        scene.preloaded = self.preloaded;
        let failure = scene.play(history).err();
        let run = Run {
            trace: std::mem::take(&mut scene.trace),
            failure,
            looks: scene.looks,
            waits: scene.waits,
            predicted: scene.predicted,
        };
        drop(scene);
        // Of a history that broke off.
        let mut client = self.cluster.connect_db(&db)?;
        let sql = "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()";
        for row in client.query(sql, &[])? {
            client.batch_execute(&format!("ROLLBACK PREPARED '{}'", row.get::<_, &str>(0)))?;
        }
        drop(client);
        admin.batch_execute(&format!("DROP DATABASE {db} WITH (FORCE)"))?;
        Ok(run)
    }
}

/// A session, and its connection.
struct Player {
    session: Session,
    actor: Actor<Answer>,
    /// The step that has been sent and not been answered.
    sent: Option<Sent>,
    queue: VecDeque<(usize, Step)>,
}

struct Sent {
    turn: usize,
    step: Step,
    sql: String,
    /// What the answer must be, where that follows from what all sessions have reserved.
    expected: Option<String>,
    /// Another session that has locked what this step locks as well; and that.
    blocker: Option<(usize, String)>,
    may_wait: bool,
    waited: bool,
    answer: Option<Answer>,
}

/// A history in progress.
struct Scene {
    players: Vec<Player>,
    /// For looks, and for what is prepared.
    checker: Client,
    upkeep: Client,
    trace: Vec<String>,
    looks: u64,
    waits: u64,
    predicted: u64,
    /// Sessions may hear of new bounds later.
    bounds_changed: bool,
    preloaded: bool,
}

impl Scene {
    fn open(cluster: &Cluster, db: &str, sessions: usize) -> Result<Self> {
        let mut upkeep = cluster.connect_db(db)?;
        // Nothing else goes on meanwhile, so whatever is waited for is waited for in vain.
        upkeep.batch_execute("SET lock_timeout = '20ms'; SET synchronous_commit = off")?;
        let players = (0..sessions)
            .map(|number| Player::new(cluster, db, number))
            .collect::<Result<_>>()?;
        Ok(Self {
            players,
            checker: cluster.connect_db(db)?,
            upkeep,
            trace: Vec::new(),
            looks: 0,
            waits: 0,
            predicted: 0,
            bounds_changed: false,
            preloaded: true,
        })
    }

    fn play(&mut self, history: &History) -> Result<()> {
        for (number, turn) in history.turns.iter().enumerate() {
            self.turn(number, turn)
                .with_context(|| format!("step {number}: {turn:?}"))?;
            // What is not committed is seen by nobody else.
            let changes = match turn {
                Turn::Session(_, step) => matches!(
                    step,
                    Step::Commit | Step::Alone(_) | Step::Finish { .. } | Step::Walk { .. }
                ),
                Turn::Upkeep(_) | Turn::Quiet(_) => true,
            };
            if changes || number % 4 == 0 {
                self.look()
                    .with_context(|| format!("after step {number}"))?;
            }
            if matches!(turn, Turn::Upkeep(_) | Turn::Quiet(_)) || number % 4 == 2 {
                self.look_inside()
                    .with_context(|| format!("after step {number}"))?;
            }
        }
        self.close(history.turns.len())
            .context("when all sessions end")
    }

    fn turn(&mut self, number: usize, turn: &Turn) -> Result<()> {
        match turn {
            Turn::Session(who, Step::Finish { commit }) => self.finish(number, *who, *commit),
            Turn::Session(who, step) => {
                self.players[*who].queue.push_back((number, step.clone()));
                self.pump(*who)
            }
            Turn::Quiet(_) if self.players.iter().any(|a| a.session.transaction.is_some()) => {
                Ok(())
            }
            Turn::Quiet(sql) | Turn::Upkeep(sql) => {
                self.bounds_changed |= sql.contains("counter_type_alter");
                let result = match self.upkeep.simple_query(sql) {
                    Ok(_) => "done".to_owned(),
                    Err(error) => match error.as_db_error() {
                        // Somebody is in the way, or beyond the new bounds.
                        Some(db) if ["55P03", "23514"].contains(&db.code().code()) => {
                            db.code().code().to_owned()
                        }
                        _ => return Err(error.into()),
                    },
                };
                self.trace
                    .push(format!("{number:>3} upkeep: {sql} -- {result}"));
                Ok(())
            }
        }
    }

    /// Ends what a session has prepared.
    fn finish(&mut self, number: usize, who: usize, commit: bool) -> Result<()> {
        let Some(sql) = self.players[who].session.finish_sql(commit) else {
            return Ok(());
        };
        self.checker.batch_execute(&sql)?;
        self.trace.push(format!("{number:>3} checker: {sql}"));
        self.players[who].session.finished(if commit {
            Fate::Committed
        } else {
            Fate::RolledBack
        })?;
        self.settle()
    }

    /// Sends what a session has to send, until it waits or has no more.
    fn pump(&mut self, who: usize) -> Result<()> {
        while self.players[who].sent.is_none() {
            let Some((turn, step)) = self.players[who].queue.pop_front() else {
                return Ok(());
            };
            let step = self.players[who].session.meant(&step).clone();
            let Some(sql) = self.players[who].session.sql(&step) else {
                continue;
            };
            let ops = self.players[who].session.ops_of(&step);
            let queues =
                |op: &Op| !self.preloaded && op.names().iter().any(|name| is_bounded(name));
            let may_wait = ops.iter().any(|op| op.may_wait() || queues(op));
            if may_wait && self.is_waited_for(who)? {
                self.trace
                    .push(format!("{turn:>3} s{who}: left out, as others wait: {sql}"));
                continue;
            }
            let expected = self.expected(who, &step)?;
            let blocker = self.blocker(who, &step);
            let player = &mut self.players[who];
            player.actor.send(&sql)?;
            player.sent = Some(Sent {
                turn,
                step,
                sql,
                expected,
                blocker,
                may_wait,
                waited: false,
                answer: None,
            });
            self.settle()?;
        }
        Ok(())
    }

    /// Waits until every session has been answered, or waits for another.
    fn settle(&mut self) -> Result<()> {
        let mut sent: Vec<_> = self
            .players
            .iter_mut()
            .filter_map(|player| Some((&player.actor, &mut player.sent.as_mut()?.answer)))
            .collect();
        actors::settle(&mut self.checker, &mut sent)?;
        for (who, player) in self.players.iter_mut().enumerate() {
            if let Some(sent) = &mut player.sent
                && sent.answer.is_none()
                && !sent.waited
            {
                sent.waited = true;
                self.waits += 1;
                self.trace
                    .push(format!("{:>3} s{who}: {} -- waits", sent.turn, sent.sql));
                ensure!(
                    sent.may_wait,
                    "s{who} waits, and nothing of the kind ever should: {}",
                    sent.sql
                );
            }
        }
        let mut free = Vec::new();
        for who in 0..self.players.len() {
            let answered = self.players[who].sent.take_if(|sent| sent.answer.is_some());
            if let Some(Sent {
                turn,
                step,
                sql,
                expected,
                blocker,
                waited,
                answer: Some(answer),
                ..
            }) = answered
            {
                let result = told(&step, &answer);
                self.trace
                    .push(format!("{turn:>3} s{who}: {sql} -- {result}"));
                self.players[who]
                    .session
                    .answered(&step, &answer)
                    .with_context(|| format!("s{who}: {sql}"))?;
                if let Some((other, lock)) = blocker {
                    ensure!(
                        waited,
                        "s{who} did not wait for s{other}, which has locked {lock}: {sql}"
                    );
                }
                if let Some(expected) = expected {
                    self.predicted += 1;
                    let answer = match &answer {
                        Answer::Refused { code, .. } => Some(code.as_str()),
                        Answer::Rows(rows) => rows.last().and_then(|row| row.first()?.as_deref()),
                    };
                    // Transactions with one snapshot may have to be retried instead, and take no more
                    // than that shows.
                    let less = self.players[who].session.has_one_snapshot()
                        && matches!(&step, Step::Op(Op::Take(..)))
                        && answer.and_then(|answer| answer.parse::<i64>().ok())
                            < expected.parse::<i64>().ok();
                    ensure!(
                        answer == Some(&expected) || answer == Some("40001") || less,
                        "s{who}: {sql}: {answer:?}, and {expected} follows from what is reserved"
                    );
                }
                if let (Step::Walk { .. }, Answer::Refused { code, message }) = (&step, &answer) {
                    bail!("s{who}: {sql}: {code}: {message}");
                }
                free.push(who);
            }
        }
        for who in free {
            self.pump(who)?;
        }
        Ok(())
    }

    /// Another session that has locked what a step locks as well; and that.
    fn blocker(&self, who: usize, step: &Step) -> Option<(usize, String)> {
        // Of several calls one before may be refused.
        let op = self.players[who].session.ops_of(step).first()?;
        op.locks().into_iter().find_map(|lock| {
            self.players
                .iter()
                .position(|player| player.session.number != who && player.session.has_locked(&lock))
                .map(|other| (other, lock))
        })
    }

    /// What a call on a bounded counter must answer: the bound has to hold whichever of the open
    /// transactions commit. (Not where there are holds, some of which their session is about to end.)
    fn expected(&mut self, who: usize, step: &Step) -> Result<Option<String>> {
        let (Step::Op(op) | Step::Alone(op)) = step else {
            return Ok(None);
        };
        if !self.preloaded {
            return Ok(None);
        }
        let (Op::Bump(name, _) | Op::Try(name, _) | Op::Take(name, _)) = op else {
            return Ok(None);
        };
        let known = ["stock:b", "seats:a"].contains(&name.as_str())
            || name == "quota:a" && !self.bounds_changed;
        if !known {
            return Ok(None);
        }
        let sql =
            "SELECT (SELECT coalesce(sum(delta), 0) FROM oracle WHERE name = $1)::bigint, min, max
                     FROM counter_types WHERE name = split_part($1, ':', 1)";
        let row = self.checker.query_one(sql, &[name])?;
        let (value, min, max): (i64, Option<i64>, Option<i64>) =
            (row.get(0), row.get(1), row.get(2));
        let (mut takes, mut adds) = (0, 0);
        for (other, player) in self.players.iter().enumerate() {
            if other != who {
                let reserved = player.session.reserved(name);
                takes += reserved.takes;
                adds += reserved.adds;
            }
        }
        // What it has had before, it may have again.
        let own = self.players[who].session.reserved(name);
        let fits = |delta: i64| {
            let then = own.then(delta);
            (then.takes == own.takes || min.is_none_or(|min| value - takes - then.takes >= min))
                && (then.adds == own.adds || max.is_none_or(|max| value + adds + then.adds <= max))
        };
        Ok(Some(match op {
            Op::Bump(_, delta) if fits(*delta) => "done".to_owned(),
            Op::Bump(..) => "23514".to_owned(),
            Op::Try(_, delta) => if fits(*delta) { "t" } else { "f" }.to_owned(),
            Op::Take(_, n) => min
                .map_or(*n, |min| {
                    (own.sum + (value - takes - min).max(own.takes)).clamp(0, *n)
                })
                .to_string(),
            _ => return Ok(None),
        }))
    }

    fn is_waited_for(&mut self, who: usize) -> Result<bool> {
        let waiting: Vec<i32> = self
            .players
            .iter()
            .filter(|player| player.sent.is_some())
            .map(|player| player.actor.pid)
            .collect();
        actors::is_waited_for(&mut self.checker, self.players[who].actor.pid, &waiting)
    }

    /// Compares everything in a new snapshot.
    fn look(&mut self) -> Result<()> {
        self.looks += 1;
        let wrong: String = self.checker.query_one("SELECT wrong()", &[])?.get(0);
        ensure!(wrong.is_empty(), "a new snapshot is wrong:\n{wrong}");
        Ok(())
    }

    /// Compares everything in the snapshots of the sessions. Not in serializable ones: to have read
    /// everything is to conflict with everybody.
    fn look_inside(&mut self) -> Result<()> {
        for who in 0..self.players.len() {
            let player = &self.players[who];
            let quiet = player.sent.is_none() && player.queue.is_empty();
            let looks = player
                .session
                .transaction
                .as_ref()
                .is_some_and(|transaction| {
                    !transaction.failed && transaction.level != Level::Serializable
                });
            if quiet && looks {
                self.looks += 1;
                self.players[who].queue.push_back((0, Step::Op(Op::Look)));
                // It adds nothing to what the reader wants to see.
                let before = self.trace.len();
                self.pump(who)?;
                self.trace.truncate(before);
            }
        }
        Ok(())
    }

    /// Ends all that is open, folds all there is, and holds the end against all books.
    fn close(&mut self, number: usize) -> Result<()> {
        for player in &mut self.players {
            player.queue.clear();
        }
        // Who waits goes on when the others have ended; so in as many rounds as there are sessions.
        for _ in 0..=self.players.len() {
            for who in 0..self.players.len() {
                self.finish(number, who, true)?;
                if self.players[who].sent.is_none()
                    && self.players[who].session.transaction.is_some()
                {
                    self.players[who].queue.push_back((number, Step::Rollback));
                    self.pump(who)?;
                }
            }
        }
        for (who, player) in self.players.iter().enumerate() {
            ensure!(
                player.sent.is_none() && player.session.transaction.is_none(),
                "s{who} has not ended"
            );
        }
        self.look()?;
        self.books_agree()?;
        compact(&mut self.checker)?;
        self.look().context("when all is folded")?;
        self.books_agree().context("when all is folded")?;
        totals_are_clean(&mut self.checker)?;
        nothing_is_kept(&mut self.checker)
    }

    fn books_agree(&mut self) -> Result<()> {
        let mut books: BTreeMap<String, i64> = BTreeMap::new();
        for player in &self.players {
            books.extend(player.session.own().clone());
        }
        let sql =
            "SELECT name, value::bigint FROM counters WHERE name ^@ 'own:' OR name ^@ 'stock:own:'";
        let counters: BTreeMap<String, i64> = self
            .checker
            .query(sql, &[])?
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        ensure!(
            books == counters,
            "known are {books:?}, the counters are {counters:?}"
        );
        let mut journal = BTreeSet::new();
        for row in self
            .checker
            .query("SELECT client, serial FROM journal", &[])?
        {
            let (client, serial): (i32, i64) = (row.get(0), row.get(1));
            journal.insert((usize::try_from(client)?, u64::try_from(serial)?));
        }
        let committed: BTreeSet<(usize, u64)> = self
            .players
            .iter()
            .flat_map(|player| {
                let number = player.session.number;
                let serials = player.session.committed();
                serials.into_iter().map(move |serial| (number, serial))
            })
            .collect();
        ensure!(
            journal == committed,
            "the journal has {journal:?}, committed are {committed:?}"
        );
        Ok(())
    }
}

impl Player {
    fn new(cluster: &Cluster, db: &str, number: usize) -> Result<Self> {
        let mut config = cluster.config(db);
        config.options("-c counterx.escrow_wait=0");
        let actor = Actor::new(&config, |said| match said {
            Ok(messages) => Answer::Rows(rows(&messages)),
            Err((code, message)) => Answer::Refused { code, message },
        })?;
        Ok(Self {
            session: Session::new(number),
            actor,
            sent: None,
            queue: VecDeque::new(),
        })
    }
}

/// An answer, for the trace. Xids are left out: they are not a matter of the seed.
fn told(step: &Step, answer: &Answer) -> String {
    match answer {
        Answer::Refused { code, message } => format!("{code}: {message}"),
        Answer::Rows(rows) => {
            let rows = match step {
                Step::Begin { .. } | Step::Journal => &[],
                Step::Alone(_) => &rows[rows.len().min(1)..],
                _ => rows.as_slice(),
            };
            let mut text = String::new();
            for row in rows {
                let values: Vec<&str> = row
                    .iter()
                    .map(|value| value.as_deref().unwrap_or("NULL"))
                    .collect();
                let _ = write!(
                    text,
                    "{}({})",
                    if text.is_empty() { "" } else { ", " },
                    values.join(", ")
                );
            }
            if text.is_empty() {
                "ok".to_owned()
            } else {
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_a_matter_of_its_seed() {
        let history = |seed| format!("{:?}", History::of(seed, 80));
        assert_eq!(history(7), history(7));
        assert_ne!(history(7), history(8));
    }
}
