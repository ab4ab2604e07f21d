//! Tokens: what makes an increment happen once, however often it is asked for.
//!
//! # How it works
//! A token is a row, inserted when it is first used, in the transaction that uses it: it commits or
//! rolls back with the increment. Who comes with the same token looks for the row as the server does
//! for a unique index: with a snapshot that shows rows of transactions under way, whose end is then
//! waited for. A lock on the token's hash makes "look, then insert" one step; it is given back at
//! once, as the row itself is found from then on. So a transaction may use any number of tokens.
//!
//! # Invariants
//! - A token's row is there for `counterx.token_ttl` at least. While it is there, it counts: an
//!   expired one that was not removed yet is a replay still.
//! - What is found is the latest state, not the transaction's snapshot: an increment that another
//!   transaction has made is not made again because this one cannot see it yet. Only a SERIALIZABLE
//!   transaction is told to retry then, since no order of the two would explain what it sees.
//! - Rows are removed by whoever holds ShareUpdateExclusiveLock on the table, and by nobody else.

use crate::figures::local::{Figure, count, count_if_committed};
use crate::pg::error::{quoted, raise, report};
use crate::pg::firing;
use crate::pg::insert::Inserter;
use crate::pg::lock::TokenLock;
use crate::pg::memory::MemoryScope;
use crate::pg::ports;
use crate::pg::relation::{Relation, SHARE_UPDATE_EXCLUSIVE};
use crate::pg::scan::{Direction, IndexScan, Key, Row};
use crate::pg::snapshot::{self, DirtySnapshot, LatestSnapshot};
use crate::pg::varlena::NameText;
use crate::settings;
use crate::store::catalog;
use crate::store::columns;
use crate::store::expired::Batch;
use crate::store::gate;
use crate::store::shape;
use crate::store::tables;
use counterx_core::lane::NameHash;
use pgrx::{PgSqlErrorCode, pg_sys};

/// What became of a claim.
pub enum Claim {
    /// The token was new; what the caller's function returned is kept with it.
    Taken(Option<i64>),
    /// It was used before, for the same; with what was kept then.
    Replay(Option<i64>),
}

/// What a token is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use<'a> {
    /// The counter.
    pub name: &'a [u8],
    /// What is added, or set aside.
    pub amount: i64,
    /// Is it set aside?
    pub hold: bool,
}

impl Use<'_> {
    fn describe(&self) -> String {
        let (amount, name) = (self.amount, quoted(self.name));
        if self.hold {
            format!("hold {amount} of counter {name}")
        } else {
            format!("add {amount} to counter {name}")
        }
    }
}

/// Claims a token. If it is new, `act` does what it is for.
///
/// # Errors
/// Raises 22023 when the token was used for something else, 40001 in a serializable transaction
/// that cannot see that it was used, 40P01 when two transactions wait for each other's tokens.
pub fn claim(token: &[u8], wanted: Use, act: impl FnOnce() -> Option<i64>) -> Claim {
    gate::enter(NameHash::of(wanted.name).lane());
    loop {
        let lock = TokenLock::take(token);
        failpoint!("token.locked");
        let busy = match find(token) {
            Found::Nothing => {
                let value = act();
                failpoint!("token.acted");
                insert(token, wanted, value);
                failpoint!("token.kept");
                lock.release();
                count(Figure::TokensUsed, 1);
                return Claim::Taken(value);
            }
            Found::Used(used) => {
                lock.release();
                used.check(token, wanted);
                count(Figure::TokensReplayed, 1);
                return Claim::Replay(used.value);
            }
            Found::Busy(xid) => xid,
        };
        lock.release();
        ports::wait_for_xact(busy);
    }
}

enum Found {
    Nothing,
    /// A transaction that is not over inserts or removes it.
    Busy(pg_sys::TransactionId),
    Used(Used),
}

struct Used {
    name: Vec<u8>,
    amount: i64,
    hold: bool,
    value: Option<i64>,
    visible: bool,
}

impl Used {
    fn read(row: &Row, visible: bool) -> Self {
        Self {
            name: row.text(columns::token::NAME).to_vec(),
            amount: row.int8(columns::token::DELTA),
            hold: (row.get(columns::token::HOLD)).is_some_and(|datum| datum.value() != 0),
            value: row
                .get(columns::token::VALUE)
                .map(|datum| datum.value() as i64),
            visible,
        }
    }

    fn check(&self, token: &[u8], wanted: Use) {
        if !self.visible {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    format!(
                        "could not serialize access due to concurrent use of token {}",
                        quoted(token)
                    ),
                )
                .set_hint("Retry the transaction."),
            );
        }
        let used = Use {
            name: &self.name,
            amount: self.amount,
            hold: self.hold,
        };
        if used != wanted {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    format!("token {} was used for something else", quoted(token)),
                )
                .set_detail(format!(
                    "It was used to {}, and now to {}.",
                    used.describe(),
                    wanted.describe()
                ))
                .set_hint("Use a new token for each call, and the same one only to repeat it."),
            );
        }
    }
}

fn find(token: &[u8]) -> Found {
    let table = tables::open(catalog::shared().token);
    let index = tables::index_of(&table, &columns::token::KEY);
    let text = NameText::new(token);
    let mut dirty = DirtySnapshot::new();
    // SAFETY: the snapshot outlives the scan.
    let mut scan = unsafe { IndexScan::new(&table, &index, dirty.as_ptr(), 1) };
    scan.seek(&[Key::text_eq(1, text.datum())]);
    let Some(row) = scan.next(Direction::Forward) else {
        return Found::Nothing;
    };
    if let Some(xid) = dirty.in_progress() {
        return Found::Busy(xid);
    }
    let visible = !ports::isolation_is_serializable()
        || ports::is_own_xid(row.xmin())
        || is_visible(&table, &index, &text);
    Found::Used(Used::read(&row, visible))
}

/// Does the transaction's own snapshot see the token?
fn is_visible(table: &Relation, index: &Relation, token: &NameText) -> bool {
    snapshot::active().is_some_and(|snapshot| {
        // SAFETY: the active snapshot stays so.
        let mut scan = unsafe { IndexScan::new(table, index, snapshot, 1) };
        scan.seek(&[Key::text_eq(1, token.datum())]);
        scan.next(Direction::Forward).is_some()
    })
}

fn insert(token: &[u8], wanted: Use, value: Option<i64>) {
    // SAFETY: nothing allocated in the scope leaves it.
    let _scope = unsafe { MemoryScope::enter(pg_sys::CurrentMemoryContext) };
    let Some(mut table) = Inserter::open(catalog::shared().token) else {
        catalog::gone()
    };
    let fires = shape::fires_triggers(table.table());
    let (token, name) = (NameText::new(token), NameText::new(wanted.name));
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    // SAFETY: the columns of sql/tables.sql.
    unsafe {
        let tid = table.insert([
            Some(token.datum()),
            Some(name.datum()),
            Some(wanted.amount.into()),
            value.map(Into::into),
            Some(now.into()),
            wanted.hold.then(|| true.into()),
        ]);
        if fires {
            firing::after_insert(table.table(), tid);
        }
    }
}

/// Where the removal of expired tokens has come to: all up to this time are removed. So the index
/// entries of what was removed, which an old snapshot keeps, are not visited again and again.
///
/// It stops short of the first token of a transaction under way: that one may be there to stay. And
/// it is forgotten after an hour, as older tokens may come from a restore, or from a clock that was
/// set back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress(Option<Reached>);

#[derive(Clone, Copy, Debug)]
struct Reached {
    /// All up to this time are removed.
    at: i64,
    /// When the removal began at the first token.
    began: i64,
}

/// In microseconds.
const FORGET_PROGRESS_AFTER: i64 = 3_600_000_000;

/// Removes expired tokens, at most `limit`, oldest first. Waits for nobody.
///
/// The caller is in a READ COMMITTED transaction, and forgets the progress when that fails.
pub fn remove_expired(limit: usize, progress: &mut Progress) -> Batch {
    let shared = catalog::shared();
    let Some(table) = Relation::open_if_free(shared.token, SHARE_UPDATE_EXCLUSIVE) else {
        return Batch::Busy;
    };
    let fires = shape::fires_triggers(&table);
    if table.blocks() == 0 {
        return Batch::Done;
    }
    let index = tables::index_of(&table, &columns::token::BY_AGE);
    // What the scan below finds stays where it is as long as there is a snapshot.
    let _latest = LatestSnapshot::take();
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let expired_at = now.saturating_sub(settings::token_ttl().as_micros() as i64);
    let known = progress.0.filter(|known| {
        let age = now.saturating_sub(known.began);
        (0..FORGET_PROGRESS_AFTER).contains(&age)
    });
    let after = known.map_or(i64::MIN + 1, |known| known.at);
    let mut expired = Vec::new();
    let mut reached = after;
    let mut under_way = None;
    {
        let mut dirty = DirtySnapshot::new();
        // SAFETY: the snapshot outlives the scan.
        let mut scan = unsafe { IndexScan::new(&table, &index, dirty.as_ptr(), 2) };
        scan.seek(&[
            Key::timestamptz_ge(1, after),
            Key::timestamptz_le(1, expired_at),
        ]);
        while expired.len() < limit
            && let Some(row) = scan.next(Direction::Forward)
        {
            pgrx::check_for_interrupts!();
            reached = row.int8(columns::token::AT);
            if dirty.in_progress().is_some() || ports::is_own_xid(row.xmin()) {
                under_way.get_or_insert(reached);
            } else {
                expired.push(row.tid());
            }
        }
    }
    for tid in &mut expired {
        // SAFETY: a visible row; only the holder of the lock removes any, and nobody updates one.
        unsafe {
            pg_sys::simple_heap_delete(table.as_ptr(), tid);
            if fires {
                firing::after_delete(&table, *tid);
            }
        }
    }
    count_if_committed(Figure::TokensExpired, expired.len() as u64);
    progress.0 = Some(Reached {
        at: under_way.unwrap_or(reached),
        began: known.map_or(now, |known| known.began),
    });
    if expired.len() < limit {
        Batch::Done
    } else {
        Batch::More
    }
}
