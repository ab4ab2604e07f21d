//! Killing a process of a server, in the middle of a load.

use anyhow::Result;
use counterx_harness::{kill9_chosen, poll_until};

use crate::check::Recovering;
use crate::server::DEADLINE;

/// A backend in the middle of its commit, if one can be met; a busy one at least.
///
/// # Errors
/// Those of the server, and that no backend of the database is busy.
pub fn committing(connection: &mut Recovering) -> Result<i32> {
    let sql = "SELECT pid FROM pg_stat_activity
                WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
                  AND datname = current_database() AND state = 'active'
                ORDER BY query = 'COMMIT' DESC LIMIT 1";
    victim(connection, "a busy backend", sql)
}

/// Waits until a query finds a process.
///
/// # Errors
/// Those of the server, and that it finds none.
pub fn victim(connection: &mut Recovering, what: &str, sql: &str) -> Result<i32> {
    let mut victim = 0;
    poll_until(what, DEADLINE, || {
        // One that is about to leave and its successor may both be there for a moment.
        let rows = connection.client()?.query(sql, &[])?;
        victim = rows.first().map_or(0, |row| row.get(0));
        Ok(victim != 0)
    })?;
    Ok(victim)
}

/// Kills a process that somebody chooses, and waits until the server has restarted by itself.
///
/// # Errors
/// There is none to choose, or the server does not notice, or does not come back.
pub fn kill_and_recover(
    connection: &mut Recovering,
    choose: impl Fn(&mut Recovering) -> Result<i32>,
) -> Result<()> {
    connection.client()?;
    kill9_chosen(|| choose(connection))?;
    // The postmaster disconnects everybody and recovers.
    poll_until("the server to notice", DEADLINE, || {
        Ok(connection.has_ended())
    })?;
    connection.forget();
    connection.client()?;
    Ok(())
}
