//! Questions about standbys, and what their readers may meet.

use anyhow::Result;
use counterx_harness::{Cluster, poll_until};
use postgres::Client;
use postgres::error::SqlState;

use crate::check::{is_lost, sqlstate};
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

/// What a reader on a standby may meet instead of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// 40001 of ours: deltas that the snapshot needs are gone from the logs, or about to go.
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
                if message.contains("counter deltas that this snapshot") {
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
