//! What a session does: one step is one message to the server.

use std::fmt::Write as _;

/// An isolation level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

impl Level {
    pub(crate) fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// A call, or a few, that change counters and the oracle alike.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// By `counter_incr`, or `counter_decr` where the delta is negative.
    Bump(String, i64),
    /// By `counter_incr_get`.
    Get(String, i64),
    /// In a block with an exception, which may come.
    Guarded(String, i64, bool),
    /// By `counter_incr_many`, with JSON or with arrays.
    Many(Vec<(String, i64)>, bool),
    /// By a trigger.
    Events(Vec<(String, i64)>),
    /// Set; or reset, without a value.
    Set(String, Option<i64>),
    Drop(String),
    /// Rename or merge.
    Move {
        into: String,
        from: String,
        merge: bool,
    },
    /// With a token; `get` asks for the value.
    Once {
        token: String,
        name: String,
        delta: i64,
        get: bool,
    },
    Try(String, i64),
    Take(String, i64),
    Hold {
        name: String,
        amount: i64,
        ttl: &'static str,
    },
    /// One of the holds that were there when the transaction began; all of it, or a part.
    Confirm {
        nth: usize,
        part: bool,
    },
    Release(usize),
    /// So many counters that what was done so far is written early; and drops them.
    Overflow(usize),
    /// Other traffic, which keeps the oracle by itself.
    Sql(String),
    /// Compares all there is.
    Look,
}

impl Op {
    /// The counters whose state the answer depends on.
    pub(crate) fn names(&self) -> Vec<&str> {
        match self {
            Self::Bump(name, _)
            | Self::Get(name, _)
            | Self::Guarded(name, _, _)
            | Self::Set(name, _)
            | Self::Drop(name)
            | Self::Once { name, .. }
            | Self::Try(name, _)
            | Self::Take(name, _)
            | Self::Hold { name, .. } => vec![name],
            Self::Many(deltas, _) | Self::Events(deltas) => {
                deltas.iter().map(|(name, _)| name.as_str()).collect()
            }
            Self::Move { into, from, .. } => vec![into, from],
            Self::Confirm { .. }
            | Self::Release(_)
            | Self::Overflow(_)
            | Self::Sql(_)
            | Self::Look => Vec::new(),
        }
    }

    /// What it locks to the end of its transaction: names of counters, and tokens.
    pub(crate) fn locks(&self) -> Vec<String> {
        match self {
            Self::Set(name, _) | Self::Drop(name) => vec![format!("counter {name}")],
            Self::Move { into, from, .. } => {
                vec![format!("counter {into}"), format!("counter {from}")]
            }
            Self::Once { token, .. } => vec![format!("token {token}")],
            _ => Vec::new(),
        }
    }

    /// May it wait for another session, as nothing that only adds does?
    pub(crate) fn may_wait(&self) -> bool {
        !matches!(
            self,
            Self::Bump(..)
                | Self::Get(..)
                | Self::Guarded(..)
                | Self::Many(..)
                | Self::Events(..)
                | Self::Try(..)
                | Self::Take(..)
                | Self::Hold { .. }
                | Self::Overflow(_)
                | Self::Look
        )
    }

    pub(crate) fn sql(&self) -> String {
        match self {
            Self::Bump(name, delta) => format!("SELECT exact_bump('{name}', {delta})"),
            Self::Get(name, delta) => format!("SELECT exact_get('{name}', {delta})"),
            Self::Guarded(name, delta, fails) => {
                format!("SELECT bump_guarded('{name}', {delta}, {fails})")
            }
            Self::Many(deltas, json) => {
                let (names, values) = arrays(deltas);
                format!("SELECT change_many({names}, {values}, {json})")
            }
            Self::Events(deltas) => {
                let mut sql = "INSERT INTO event VALUES ".to_owned();
                for (number, (name, delta)) in deltas.iter().enumerate() {
                    let comma = if number == 0 { "" } else { ", " };
                    let _ = write!(sql, "{comma}('{name}', {delta})");
                }
                sql
            }
            Self::Set(name, Some(value)) => format!("SELECT exact_set('{name}', {value})"),
            Self::Set(name, None) => format!("SELECT exact_set('{name}', NULL)"),
            Self::Drop(name) => format!("SELECT exact_drop('{name}')"),
            Self::Move { into, from, merge } => {
                format!("SELECT exact_move('{into}', '{from}', {merge})")
            }
            Self::Once {
                token,
                name,
                delta,
                get,
            } => {
                let get = if *get { "_get" } else { "" };
                format!("SELECT exact_once{get}('{token}', '{name}', {delta})")
            }
            Self::Try(name, delta) => format!("SELECT try('{name}', {delta})"),
            Self::Take(name, n) => format!("SELECT exact_take('{name}', {n})"),
            Self::Hold { name, amount, ttl } => {
                format!("SELECT exact_hold('{name}', {amount}, '{ttl}')")
            }
            // Which one it is only the session knows.
            Self::Confirm { .. } | Self::Release(_) => String::new(),
            Self::Overflow(number) => format!("SELECT overflow({number})"),
            Self::Sql(sql) => sql.clone(),
            Self::Look => "SELECT wrong()".to_owned(),
        }
    }
}

fn arrays(deltas: &[(String, i64)]) -> (String, String) {
    let names: Vec<String> = deltas.iter().map(|(name, _)| format!("'{name}'")).collect();
    let values: Vec<String> = deltas.iter().map(|(_, delta)| delta.to_string()).collect();
    (
        format!("ARRAY[{}]", names.join(", ")),
        format!("ARRAY[{}]::bigint[]", values.join(", ")),
    )
}

/// One step of a session. What does not apply when its turn comes is left out, so that any steps of
/// a history make a history.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Begins a transaction; `journal` also writes its row of the journal.
    Begin {
        level: Level,
        journal: bool,
    },
    /// Writes the journal's row, if that was not done at the beginning.
    Journal,
    Op(Op),
    /// Does this, and fails then.
    Fail(Op),
    Savepoint,
    /// To the savepoint of this depth, or the last one.
    RollbackTo(usize),
    Release(usize),
    /// Has what was done so far written before the end, by more counters than fit in memory.
    FlushEarly {
        keep: bool,
    },
    /// Opens a cursor over counters and oracle, and reads the first rows.
    Cursor {
        hold: bool,
    },
    /// Reads the cursor's other rows.
    Fetch,
    /// Opens a cursor whose rows are calls that change something, each when it is fetched. After the
    /// last one comes a row that fails, or none.
    Change {
        ops: Vec<Op>,
        fails: bool,
    },
    /// Fetches so many of its rows, or moves over them.
    Next {
        rows: usize,
        moves: bool,
    },
    /// The same in PL/pgSQL: the calls before this one are fetched, and stay; those from it on are
    /// undone when the row after them fails in a block with an exception.
    Block {
        ops: Vec<Op>,
        kept: usize,
    },
    Commit,
    Rollback,
    Prepare,
    /// Ends the transaction that was prepared.
    Finish {
        commit: bool,
    },
    /// In a transaction of its own, together with the row of the journal.
    Alone(Op),
    /// A procedure that commits and rolls back.
    Walk {
        name: String,
        steps: u64,
    },
}

/// The cursor's query: what both sides say of each counter, in one snapshot.
pub(crate) const CURSOR_SQL: &str = "SELECT b.name, b.value::text, counter_value(b.name)::text,
       (SELECT c.value::text FROM counters c WHERE c.name = b.name)
  FROM (SELECT name, sum(delta) AS value FROM oracle GROUP BY name) b ORDER BY b.name";
