//! What restores leave behind, mended by the worker.
//!
//! All triggers of ours are ENABLE ALWAYS: they say what a subscription must not bring, and tell sessions
//! of types that have changed, whatever `session_replication_role` is. `pg_restore --disable-triggers` ends
//! with ENABLE TRIGGER ALL for each table that it has filled, and that makes ordinary triggers of them.
//!
//! Triggers that are disabled are left alone: while such a restore is under way, that is what it needs.

use crate::pg::error::{log, raise, report};
use crate::pg::relation::SHARE_ROW_EXCLUSIVE;
use crate::pg::snapshot::LatestSnapshot;
use crate::process::session::transaction;
use pgrx::prelude::*;
use pgrx::spi::SpiError;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often the worker looks.
const EVERY: Duration = Duration::from_secs(10);

/// When it tries again where it found a table locked.
const SOON: Duration = Duration::from_secs(1);

thread_local! {
    static NEXT: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// What came of a look at the triggers.
#[derive(Default)]
struct Found {
    /// On these tables they were not as they should be, and are now.
    mended: Vec<String>,
    /// Somebody has a table locked.
    busy: bool,
}

/// Looks whether the triggers are as the install script has made them, if it is time to, and makes them so.
/// Outside of any transaction.
pub fn triggers_now_and_then() {
    let now = Instant::now();
    if NEXT.get().is_some_and(|next| now < next) {
        return;
    }
    let found = transaction(c"looking at triggers", mend_triggers).unwrap_or_else(|message| {
        log(format!(
            "counterx: the triggers could not be made ENABLE ALWAYS: {message}"
        ));
        Found::default()
    });
    if !found.mended.is_empty() {
        log(format!(
            "counterx: triggers on {} were not ENABLE ALWAYS, as pg_restore --disable-triggers leaves them; they are again",
            found.mended.join(", ")
        ));
    }
    NEXT.set(Some(now + if found.busy { SOON } else { EVERY }));
}

/// A trigger that is enabled, and not ENABLE ALWAYS.
struct Odd {
    table: pg_sys::Oid,
    table_name: String,
    command: String,
}

fn mend_triggers() -> Found {
    // SQL needs one around it.
    let _latest = LatestSnapshot::take();
    let odd = odd_triggers().unwrap_or_else(|error| failed(&error));
    let mut found = Found::default();
    for trigger in odd {
        // Waiting would hold up all who want to write behind us, for as long as we do.
        // SAFETY: a lock on an OID that may not exist (any more) is harmless.
        if !unsafe { pg_sys::ConditionalLockRelationOid(trigger.table, SHARE_ROW_EXCLUSIVE) } {
            found.busy = true;
            continue;
        }
        Spi::run(&trigger.command).unwrap_or_else(|error| failed(&error));
        if found.mended.last() != Some(&trigger.table_name) {
            found.mended.push(trigger.table_name);
        }
    }
    found
}

fn failed(error: &SpiError) -> ! {
    raise(report(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        error.to_string(),
    ))
}

/// In the order of the tables, as everybody locks them.
fn odd_triggers() -> Result<Vec<Odd>, SpiError> {
    Spi::connect(|client| {
        let rows = client.select(
            "SELECT c.oid, c.oid::pg_catalog.regclass::pg_catalog.text, \
                    pg_catalog.format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', c.oid::pg_catalog.regclass, t.tgname) \
             FROM pg_catalog.pg_trigger t \
             JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) t.tgrelid \
             JOIN pg_catalog.pg_depend d \
               ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
              AND d.objid OPERATOR(pg_catalog.=) t.tgfoid \
              AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass \
              AND d.deptype OPERATOR(pg_catalog.=) 'e' \
             JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
             WHERE e.extname OPERATOR(pg_catalog.=) 'counterx' \
               AND c.relnamespace OPERATOR(pg_catalog.=) 'counterx'::pg_catalog.regnamespace \
               AND NOT t.tgisinternal \
               AND t.tgenabled OPERATOR(pg_catalog.=) ANY ('{O,R}') \
             ORDER BY c.oid, t.oid",
            None,
            &[],
        )?;
        let mut odd = Vec::new();
        for row in rows {
            let (Some(table), Some(table_name), Some(command)) =
                (row.get(1)?, row.get(2)?, row.get(3)?)
            else {
                continue;
            };
            odd.push(Odd {
                table,
                table_name,
                command,
            });
        }
        Ok(odd)
    })
}
