//! Questions about standbys, and what their readers may meet.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;

use crate::check::{Recovering, check, is_lost, sqlstate};
use crate::server::DEADLINE;

/// Waits until the standby has replayed all that the primary has written.
///
/// # Errors
/// When it does not.
pub fn catch_up(primary: &Cluster, standby: &mut Client) -> Result<()> {
    let mut primary = primary.connect()?;
    let end: String = primary
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?
        .get(0);
    // Asynchronous commits are written by and by.
    primary.batch_execute("SET synchronous_commit = local; SELECT txid_current()")?;
    poll_until("the standby to catch up", DEADLINE, || {
        let sql = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        Ok(standby.query_one(sql, &[&end])?.get(0))
    })
}

/// Waits until commits wait for `synchronous_standby_names`, none of which is there. Who commits may have heard of the
/// setting before the checkpointer has, and nobody waits until then.
///
/// # Errors
/// Those of the server, and that they do not.
pub fn wait_for_commits_to_wait(cluster: &Cluster) -> Result<()> {
    let mut committer = cluster.connect()?;
    let pid: i32 = committer.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    let mut watcher = cluster.connect()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let committing = scope.spawn(|| -> Result<()> {
            while !is_over.load(Ordering::Relaxed) {
                committer.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')")?;
            }
            Ok(())
        });
        let waits = poll_until("commits to wait for a standby", DEADLINE, || {
            let sql = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1";
            let waits: Option<bool> = watcher.query_one(sql, &[&pid])?.get(0);
            Ok(waits == Some(true))
        });
        is_over.store(true, Ordering::Relaxed);
        // The transaction is over all the same.
        watcher.execute("SELECT pg_cancel_backend($1)", &[&pid])?;
        committing
            .join()
            .map_err(|_| anyhow!("a client panicked"))??;
        waits
    })
}

/// Looks at a standby again and again until recovery does not get in the way.
///
/// # Errors
/// Any other error of the look, and that it is disturbed for ever.
pub fn undisturbed<T>(
    connection: &mut Recovering,
    mut look: impl FnMut(&mut Client) -> Result<T>,
) -> Result<T> {
    let mut seen = None;
    poll_until("an undisturbed look", DEADLINE, || {
        match connection.client().and_then(&mut look) {
            Ok(found) => {
                seen = Some(found);
                Ok(true)
            }
            Err(error) if Refusal::of(&error).is_some() => {
                connection.forget();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    })?;
    seen.context("nothing was seen")
}

/// When all has ended: the standby's counters are right, and add up to what the primary's do.
///
/// # Errors
/// Those of the servers, or what differs.
pub fn same_at_last(primary: &Cluster, standby: &Cluster, db: &str) -> Result<()> {
    let mut connection = Recovering::new(&standby.config(db));
    catch_up(primary, connection.client()?)?;
    let compared = undisturbed(&mut connection, check)?;
    ensure!(compared > 0, "there are no counters on the standby");
    let total = "SELECT sum(value)::text FROM counters";
    let here: String = connection.client()?.query_one(total, &[])?.get(0);
    let there: String = primary.connect_db(db)?.query_one(total, &[])?.get(0);
    ensure!(here == there, "standby {here}, primary {there}");
    Ok(())
}

/// What a reader on a standby may meet instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// 40001 of ours: deltas that the snapshot needs are gone from the logs, or about to go; or history is.
    Truncated,
    /// 40001 of the server: recovery has cancelled the statement, or ended an idle transaction's
    /// session.
    Recovery,
    /// 40P01 of the server: recovery and the statement waited for each other.
    Deadlock,
    /// The session was ended while its transaction was idle; its client learns no more than that.
    /// That it was recovery, and no crash, is in the server's log.
    Lost,
}

impl Refusal {
    /// None: this error is none that a reader may meet.
    pub fn of(error: &anyhow::Error) -> Option<Self> {
        let message = format!("{error:#}");
        match sqlstate(error) {
            Some(code) if *code == SqlState::T_R_SERIALIZATION_FAILURE => {
                if message.contains("counter deltas that this snapshot")
                    || message.contains("history that this snapshot")
                {
                    Some(Self::Truncated)
                } else {
                    // Nobody else has a reason for it: readers take no part in serialization here.
                    message
                        .contains("conflict with recovery")
                        .then_some(Self::Recovery)
                }
            }
            Some(code) if *code == SqlState::T_R_DEADLOCK_DETECTED => Some(Self::Deadlock),
            Some(_) => None,
            None => is_lost(error).then_some(Self::Lost),
        }
    }
}
