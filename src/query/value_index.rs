//! The value index: an index on folded values that whoever ranks counters often may want.
//!
//! It is not there by default, since it costs each fold an index entry for every counter that has
//! changed. Only folds write totals, so building it lets increments and reads go on; folding waits.
//! Any index of its shape is used (see [`find`]), also one that was built by hand with CREATE INDEX
//! CONCURRENTLY.

use crate::pg::error::{raise, report};
use crate::pg::index_only::IndexOnlyScan;
use crate::pg::relation::{ACCESS_EXCLUSIVE, LockMode, Relation, SHARE_ROW_EXCLUSIVE};
use crate::store::catalog;
use crate::store::columns;
use crate::store::tables;
use pgrx::{PgSqlErrorCode, Spi, pg_sys};

/// The table of totals and its value index, if there is one that the running transaction may use:
/// a btree (value DESC, name).
pub fn find() -> Option<(Relation, Relation)> {
    let table = tables::open(catalog::shared().total);
    let index = table.open_index(&columns::total::BY_VALUE)?;
    index.is_usable_now().then_some((table, index))
}

/// The columns of the index.
pub mod column {
    pub const VALUE: usize = 0;
    pub const NAME: usize = 1;
    pub const COLUMNS: usize = 2;
}

/// A walk along the index, which looks at as few totals as it can.
///
/// # Safety
/// The relations are those of [`find`]. The snapshot is an MVCC one and lives as long as the walk.
pub unsafe fn walk(
    table: &Relation,
    index: &Relation,
    snapshot: pg_sys::Snapshot,
) -> IndexOnlyScan<{ column::COLUMNS }> {
    // SAFETY: the caller's promise. Names are at most 255 bytes long, and numerics of whole numbers are
    // short: never compressed, never out of line.
    unsafe { IndexOnlyScan::start(table, index, snapshot) }
}

const NAME: &str = "total_value_name";

/// Creates it. False: there is one.
pub fn create() -> bool {
    if exists() {
        return false;
    }
    // Of two at the same time the second waits here, and finds what the first has made.
    lock(SHARE_ROW_EXCLUSIVE);
    if exists() {
        return false;
    }
    // One that nobody can use: left invalid by a CREATE INDEX CONCURRENTLY that failed.
    drop_ours();
    run(&format!(
        "CREATE INDEX {NAME} ON counterx.total (value DESC, name)"
    ));
    run(&format!(
        "COMMENT ON INDEX counterx.{NAME} IS 'made by counterx.create_value_index(), for counter_top() and counter_bottom()'"
    ));
    true
}

/// Drops it. False: there is none.
pub fn remove() -> bool {
    if !exists() && !catalog::has_relation(NAME) {
        return false;
    }
    // As DROP INDEX will, but before looking: it may be gone when the lock is granted.
    lock(ACCESS_EXCLUSIVE);
    let existed = exists();
    drop_ours();
    if existed && exists() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the table counterx.total has a value index that counterx.create_value_index() did not make",
            )
            .set_hint("Look for it with \\d counterx.total, and drop it with DROP INDEX."),
        );
    }
    existed
}

/// Locks the table of totals to the end of the transaction.
fn lock(mode: LockMode) {
    if Relation::open_until_commit(catalog::shared().total, mode).is_none() {
        catalog::gone();
    }
}

fn drop_ours() {
    if catalog::has_relation(NAME) {
        run(&format!("DROP INDEX counterx.{NAME}"));
    }
}

fn exists() -> bool {
    let table = tables::open(catalog::shared().total);
    table.open_index(&columns::total::BY_VALUE).is_some()
}

fn run(command: &str) {
    if let Err(error) = Spi::run(command) {
        raise(report(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("counterx could not run \"{command}\": {error}"),
        ));
    }
}
