//! `CALL counter_add(...)`: an increment as a command of its own.
//!
//! Clients that tell reads from writes by a statement's first word take a SELECT for a read: they send it to
//! a standby, answer it from a cache, or refuse its result. A CALL has no result and is in no query, so it
//! is evaluated once each time that it is sent.

use super::args;
use super::args::Text;
use crate::pg::snapshot;
use crate::write::change;
use pgrx::prelude::*;

#[pg_extern(sql = "
CREATE PROCEDURE counter_add(name text, delta bigint DEFAULT 1)
    LANGUAGE c
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_add(name: Option<Text>, delta: Option<i64>) {
    change::check_may_write(c"counter_add()");
    // The server may have none set here, as a procedure could end the transaction. Bounded counters are
    // compared with it in SERIALIZABLE.
    let _snapshot = snapshot::active_or_transactions();
    change::add(args::name(name), args::delta(delta));
}
