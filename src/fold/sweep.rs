//! Rows of history that go one by one, as they lie between others that stay: those of histories that were dropped, which
//! only `history_lane` knows of still; of those that a restore has brought, what has expired; and what was to be kept
//! for ever and is not any more.
//!
//! Some pages are looked at in one transaction, with the leases of all lanes, so that no fold is at them; the next one
//! goes on from there.

use crate::fold::expiry;
use crate::fold::history_table::open_for_writing;
use crate::fold::way;
use crate::pg::error::{raise, report};
use crate::pg::scan::TableScan;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::store::catalog;
use crate::store::columns::{self, bucket};
use crate::store::expired::Batch;
use crate::store::gate::Lease;
use crate::store::history::{self, Series};
use crate::store::ours::AtWork;
use crate::store::tables;
use counterx_core::history::Class;
use counterx_core::lane::LANES;
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::{PgSqlErrorCode, Spi, pg_sys};

/// So many pages are looked at in one transaction: some ten milliseconds.
const PAGES: u32 = 2_000;

/// So many rows are deleted in one.
const ROWS: usize = 20_000;

/// How far somebody has got who goes through all tables.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// What has expired goes as well, not only what was dropped.
    expired: bool,
    /// The series that were dropped when it began.
    dropped: Option<Vec<i64>>,
    /// The table, and the page in it.
    table: usize,
    page: u32,
}

impl Sweep {
    /// One that has not begun.
    pub fn new(expired: bool) -> Self {
        Self {
            expired,
            ..Self::default()
        }
    }
}

/// Why rows of a table go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    Dropped,
    DroppedOrExpired,
}

/// Goes on for a while. In a READ COMMITTED transaction of its own; if that fails, the sweep begins anew.
pub fn step(sweep: &mut Sweep) -> Batch {
    // Known before it is looked who is there: one that is new is not taken for one that is gone.
    let noted = noted();
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active.
    let all = unsafe { history::series(&catalog::shared(), None, latest.as_ptr()) };
    let dropped = sweep.dropped.get_or_insert_with(|| {
        let is_gone = |id: &i64| all.iter().all(|series| series.id != *id);
        noted.into_iter().filter(is_gone).collect()
    });
    let is_open = all.iter().any(Series::has_open_class);
    let shortened = sweep.expired && all.iter().any(Series::was_for_ever);
    if dropped.is_empty() && !sweep.expired && !is_open {
        return Batch::Done;
    }
    for lane in 0..LANES {
        if Lease::try_take(catalog::lane(lane)).is_none() {
            return Batch::Busy;
        }
    }
    let times = expiry::times();
    if is_open && let Some(times) = times {
        close_classes(times.newest);
    }
    let has_expired = |id: i64, start: i64| {
        let known = all.iter().find(|series| series.id == id).zip(times);
        known.is_some_and(|(series, times)| {
            series.keep.is_some_and(|keep| {
                start.saturating_add(series.unit.longest()) <= keep.before(times.sealed)
            })
        })
    };
    let (mut pages, mut rows) = (PAGES, ROWS);
    let all_tables = tables_with(sweep.expired, shortened);
    while let Some(&(oid, reason)) = all_tables.get(sweep.table) {
        if reason == Reason::Dropped && dropped.is_empty() {
            sweep.table += 1;
            continue;
        }
        let goes = |id, start| {
            dropped.contains(&id) || (reason == Reason::DroppedOrExpired && has_expired(id, start))
        };
        let end = delete_from(oid, sweep.page, (&mut pages, &mut rows), goes);
        match end {
            None => (sweep.table, sweep.page) = (sweep.table + 1, 0),
            Some(page) => sweep.page = page,
        }
        if pages == 0 || rows == 0 {
            return Batch::More;
        }
    }
    forget(dropped);
    if shortened && let Some(times) = times {
        forget_former(&all, times.sealed);
    }
    Batch::Done
}

/// Is there anything of a history that was dropped?
pub fn is_wanted() -> bool {
    let Ok(shared) = catalog::try_shared() else {
        return false;
    };
    let noted = noted();
    if noted.is_empty() {
        return false;
    }
    // SAFETY: the snapshot is a static.
    let all = unsafe { history::series(&shared, None, snapshot::self_snapshot()) };
    noted
        .iter()
        .any(|id| all.iter().all(|series| series.id != *id))
}

/// All tables of rows, and which of them go.
fn tables_with(expired: bool, shortened: bool) -> Vec<(pg_sys::Oid, Reason)> {
    let reason = |expired| match expired {
        true => Reason::DroppedOrExpired,
        false => Reason::Dropped,
    };
    let mut all = vec![(history::restored(), reason(expired))];
    for class in (0..Class::ALL).filter_map(Class::of_number) {
        let reason = reason(shortened && class == Class::FOR_EVER);
        all.extend((0..class.tables()).map(|number| {
            let name = history::table_name(class, number);
            (catalog::relation_of(&name), reason)
        }));
    }
    all
}

/// Deletes rows of a table from a page on, and returns where to go on; None: it has no more pages.
fn delete_from(
    oid: pg_sys::Oid,
    first: u32,
    (pages, rows): (&mut u32, &mut usize),
    goes: impl Fn(i64, i64) -> bool,
) -> Option<u32> {
    let blocks = tables::open(oid).blocks();
    if first >= blocks {
        return None;
    }
    let count = (*pages).min(blocks - first);
    let table = open_for_writing(oid);
    // SAFETY: the snapshot is a static.
    let mut scan =
        unsafe { TableScan::of_pages(&table, snapshot::self_snapshot(), (first, count)) };
    while let Some(row) = scan.next() {
        way::make_way();
        pgrx::check_for_interrupts!();
        if !goes(row.int8(bucket::HISTORY), row.int8(bucket::START)) {
            continue;
        }
        let mut tid = row.tid();
        // SAFETY: a visible row, which only the holder of its lane's lease changes: we have all.
        unsafe { pg_sys::simple_heap_delete(table.as_ptr(), &mut tid) };
        *rows -= 1;
        if *rows == 0 {
            // The rest of the page comes again.
            // SAFETY: takes any address.
            return Some(unsafe { pgrx::itemptr::item_pointer_get_block_number_no_check(tid) });
        }
    }
    *pages -= count;
    let next = first + count;
    (next < blocks).then_some(next)
}

/// The ids of all series that lanes have noted.
fn noted() -> Vec<i64> {
    let mut ids = Vec::new();
    let table = tables::open(catalog::relation_of("history_lane"));
    if table.blocks() == 0 {
        return ids;
    }
    // SAFETY: the snapshot is a static.
    let mut scan = unsafe { TableScan::new(&table, snapshot::self_snapshot()) };
    while let Some(row) = scan.next() {
        ids.push(row.int8(columns::history_lane::HISTORY));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Nothing is left of these.
fn forget(dropped: &[i64]) {
    if dropped.is_empty() {
        return;
    }
    for table in ["history_lane", "history_class"] {
        change(
            &format!(
                "DELETE FROM ONLY counterx.{table} WHERE history OPERATOR(pg_catalog.=) ANY ($1)"
            ),
            &[dropped.to_vec().into()],
        );
    }
}

/// What was to be kept for ever and is not any more is gone, where it was all so old.
fn forget_former(all: &[Series], sealed: i64) {
    for series in all.iter().filter(|series| series.was_for_ever()) {
        let Some(keep) = series.keep else {
            continue;
        };
        let until = TimestampWithTimeZone::try_from(keep.before(sealed)).ok();
        change(
            "DELETE FROM ONLY counterx.history_class \
             WHERE history OPERATOR(pg_catalog.=) $1 AND class OPERATOR(pg_catalog.=) $2 AND until OPERATOR(pg_catalog.<=) $3",
            &[
                series.id.into(),
                (Class::FOR_EVER.number() as i32).into(),
                until.into(),
            ],
        );
    }
}

/// No fold is at it, and the next ones write where they shall: what was written elsewhere begins then at the latest.
fn close_classes(newest: i64) {
    let until = TimestampWithTimeZone::try_from(newest.saturating_add(1)).ok();
    change(
        "UPDATE ONLY counterx.history_class c SET until = $1 \
         WHERE c.until IS NULL AND EXISTS (SELECT FROM ONLY counterx.history h \
             WHERE h.id OPERATOR(pg_catalog.=) c.history AND h.class OPERATOR(pg_catalog.<>) c.class)",
        &[until.into()],
    );
}

fn change(command: &str, arguments: &[DatumWithOid]) {
    let _at_work = AtWork::begin();
    if let Err(error) = Spi::run_with_args(command, arguments) {
        raise(report(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("counterx could not change its tables of histories: {error}"),
        ))
    }
}
