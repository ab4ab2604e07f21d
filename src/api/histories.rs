//! Which types have a history: `counter_history` and its relatives.
//!
//! All of it is a change of the table `counterx.history`. Folds look at that by their own snapshots, so nobody is
//! waited for: a lane has a new unit from the end of its next fold on, and does not write to one that is gone. The
//! rows of that are left to be emptied with the others of their class, or to be removed by the worker.

use super::admin;
use super::args::{self, Text};
use super::types::{run, type_name};
use crate::bounds::types;
use crate::fold::compaction::{self, Due};
use crate::pg::clock;
use crate::pg::error::{quoted, raise, report};
use crate::pg::ports;
use crate::pg::relation::{Relation, SHARE_ROW_EXCLUSIVE};
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::time::{self, Calendar};
use crate::store::catalog;
use crate::store::gate;
use crate::store::history::{self, Series};
use crate::store::shape;
use crate::store::state;
use crate::write::change;
use crate::write::writing;
use counterx_core::history::{Class, DAY, HOUR, MINUTE, Unit};
use counterx_core::lane::LANES;
use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;

/// How long rows of a unit are to be kept.
struct Keep {
    unit: Unit,
    /// None: for ever.
    interval: Option<pg_sys::Datum>,
    class: Class,
}

#[pg_extern(sql = "
CREATE FUNCTION counter_history(type text, minute text DEFAULT '1 day', hour text DEFAULT '35 days', day text DEFAULT 'infinity', month text DEFAULT NULL, events text DEFAULT NULL, time_zone text DEFAULT 'UTC')
    RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
#[allow(clippy::too_many_arguments, reason = "those of the SQL function")]
fn counter_history(
    of: Option<Text>,
    minute: Option<Text>,
    hour: Option<Text>,
    day: Option<Text>,
    month: Option<Text>,
    events: Option<Text>,
    time_zone: Option<Text>,
) -> bool {
    change::check_may_write(c"counter_history()");
    admin::check_not_one_snapshot(
        c"counter_history()",
        "Run it in a READ COMMITTED transaction.",
    );
    let name = type_name(of);
    let zone = args::zone(args::required("time zone", time_zone).0);
    must_have_no_window(&name);
    let midnight = Calendar::new(Unit::Day, zone).start_of(clock::now());
    if midnight.rem_euclid(MINUTE) != 0 {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!(
                    "the minutes of time zone {} are not those of UTC",
                    quoted(zone)
                ),
            )
            .set_hint(
                "Use a zone whose offset is a whole number of minutes, as those with names are.",
            ),
        );
    }
    let units = [
        (Unit::Minute, minute),
        (Unit::Hour, hour),
        (Unit::Day, day),
        (Unit::Month, month),
        (Unit::Event, events),
    ];
    let wanted: Vec<Keep> = units
        .into_iter()
        .filter_map(|(unit, keep)| Some(Keep::read(unit, keep?.0)))
        .collect();
    if wanted.is_empty() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "a history needs one unit at least",
            )
            .set_hint("counter_history_drop() ends a history."),
        );
    }
    let known = lock(&name);
    // Who creates a type with one looks for histories under a lock that this one excludes.
    must_have_no_window(&name);
    if let Some(series) = known.iter().find(|series| *series.zone != *zone) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("cannot change the time zone of the history of type \"{name}\""),
            )
            .set_detail(format!(
                "Its buckets begin by the time zone {}.",
                String::from_utf8_lossy(&series.zone)
            ))
            .set_hint("counter_history_drop() ends it, and counter_history() begins another."),
        );
    }
    let mut new = Vec::new();
    for keep in &wanted {
        match known.iter().find(|series| series.unit == keep.unit) {
            Some(series) => change_keep(series, keep),
            None => new.push(insert(&name, zone, keep)),
        }
    }
    begin(&new);
    for series in &known {
        if wanted.iter().all(|keep| keep.unit != series.unit) {
            remove(series);
        }
    }
    true
}

#[pg_extern(sql = "
CREATE FUNCTION counter_history_drop(type text) RETURNS boolean
    LANGUAGE c VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', '@FUNCTION_NAME@';
")]
fn counter_history_drop(of: Option<Text>) -> bool {
    change::check_may_write(c"counter_history_drop()");
    admin::check_not_one_snapshot(
        c"counter_history_drop()",
        "Run it in a READ COMMITTED transaction.",
    );
    let name = type_name(of);
    let known = lock(&name);
    known.iter().for_each(remove);
    !known.is_empty()
}

/// A fold goes past the server's checks of rights, so EXECUTE is enough.
#[pg_extern(volatile, parallel_unsafe)]
fn counter_seal() -> Option<TimestampWithTimeZone> {
    admin::check_may_fold(c"counter_seal()");
    let shared = catalog::shared();
    if !history::may_be_any(&shared) {
        return None;
    }
    let mut due: Vec<Due> = (0..LANES).map(Due::seal).collect();
    due.iter_mut().for_each(Due::wait);
    compaction::note_folding();
    due.into_iter().for_each(|due| {
        due.fold();
    });
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let sealed = unsafe { state::sealed_until(&shared, latest.as_ptr()) };
    sealed.and_then(|time| TimestampWithTimeZone::try_from(time).ok())
}

impl Keep {
    /// # Errors
    /// Raises 22007 for what is no interval, and 22023 for one that is too short or too long.
    fn read(unit: Unit, text: &[u8]) -> Self {
        let is_infinite = text.trim_ascii().eq_ignore_ascii_case(b"infinity");
        let interval = (!is_infinite).then(|| args::interval(text));
        let class = match interval {
            None => Class::of_keep(unit, None),
            Some(interval) => {
                // SAFETY: an interval.
                let (length, shortest) =
                    unsafe { (time::longest(interval), time::shortest(interval)) };
                let least = match unit {
                    Unit::Event | Unit::Minute => MINUTE,
                    Unit::Hour => HOUR,
                    Unit::Day => DAY,
                    Unit::Month => 28 * DAY,
                };
                // SAFETY: an interval.
                if shortest < least || !unsafe { time::is_positive(interval) } {
                    raise(
                        report(
                            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                            format!("{} is too short a time to keep {}", quoted(text), plural(unit)),
                        )
                        .set_hint("The least is a minute for minutes and events, an hour for hours, a day for days, and 28 days for months. NULL keeps none."),
                    );
                }
                Class::of_keep(unit, Some(length))
            }
        };
        let class = class.unwrap_or_else(|days| {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                    format!(
                        "{} is too long a time to keep {}",
                        quoted(text),
                        plural(unit)
                    ),
                )
                .set_hint(format!(
                    "Up to {days} days can be asked for, or 'infinity'."
                )),
            )
        });
        Self {
            unit,
            interval,
            class,
        }
    }
}

fn plural(unit: Unit) -> String {
    format!("{}s", unit.name())
}

/// # Errors
/// Raises 0A000 for a type with a window.
fn must_have_no_window(name: &str) {
    if types::window_of_type(name.as_bytes()).is_some() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("cannot keep a history of type \"{name}\", which has a window"),
            )
            .set_detail("Its counters begin anew with each window.")
            .set_hint("counter_windows() shows what they came to in windows that are kept. To keep more, count under the name of another type as well."),
        );
    }
}

/// Keeps others from changing what there is, to the end of the transaction, and returns what that is for a type.
fn lock(name: &str) -> Vec<Series> {
    // Before anything else, lanes ascending: histories begin with an epoch of each.
    (0..LANES).for_each(gate::enter);
    // Values are known from the next folds on, and what is not wanted any more is removed, though nobody counts.
    writing::wake_worker_at_commit();
    let shared = catalog::shared();
    match Relation::open_until_commit(shared.history, SHARE_ROW_EXCLUSIVE) {
        Some(table) => shape::check(&table),
        None => catalog::gone(),
    }
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    unsafe { history::series(&shared, Some(name.as_bytes()), latest.as_ptr()) }
}

impl Keep {
    fn interval(&self) -> Option<pgrx::datum::Interval> {
        // SAFETY: an interval.
        self.interval
            .and_then(|datum| unsafe { pgrx::FromDatum::from_datum(datum, false) })
    }
}

fn change_keep(series: &Series, keep: &Keep) {
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let sealed = unsafe { state::sealed_until(&catalog::shared(), latest.as_ptr()) };
    let complete = series.complete_at_change(sealed.unwrap_or_else(clock::now));
    drop(latest);
    run(
        "UPDATE ONLY counterx.history SET keep = $2, class = $3, complete = $4 \
         WHERE id OPERATOR(pg_catalog.=) $1 AND (keep IS DISTINCT FROM $2 OR class OPERATOR(pg_catalog.<>) $3)",
        &[
            series.id.into(),
            keep.interval().into(),
            (keep.class.number() as i32).into(),
            complete
                .and_then(|time| TimestampWithTimeZone::try_from(time).ok())
                .into(),
        ],
    );
    if keep.class != series.class {
        // The worker says which rows these are, when no fold writes there any more.
        run(
            "INSERT INTO counterx.history_class (history, class) VALUES ($1, $2) \
             ON CONFLICT (history, class) DO UPDATE SET until = NULL",
            &[series.id.into(), (series.class.number() as i32).into()],
        );
    }
}

/// Returns the new one's id.
fn insert(name: &str, zone: &[u8], keep: &Keep) -> i64 {
    let id = new_id();
    run(
        "INSERT INTO counterx.history (id, type, unit, keep, class, zone) VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            id.into(),
            name.into(),
            keep.unit.name().into(),
            keep.interval().into(),
            (keep.class.number() as i32).into(),
            String::from_utf8_lossy(zone).into_owned().into(),
        ],
    );
    id
}

/// These begin with an epoch that is published now. Whoever counts after this has committed has that one, or a later.
fn begin(new: &[i64]) {
    if new.is_empty() {
        return;
    }
    for lane in 0..LANES {
        let rels = catalog::lane(lane);
        let published = gate::publish(&rels, &gate::open(lane), false);
        for id in new {
            run(
                "INSERT INTO counterx.history_lane (history, lane, epoch, at) VALUES ($1, $2, $3, $4)",
                &[
                    (*id).into(),
                    (lane as i32).into(),
                    published.epoch.into(),
                    TimestampWithTimeZone::try_from(published.clock).ok().into(),
                ],
            );
        }
    }
}

fn remove(series: &Series) {
    // The worker finds by that what is to be deleted.
    run(
        "INSERT INTO counterx.history_lane (history, lane, epoch, at) VALUES ($1, 0, 0, pg_catalog.now()) \
         ON CONFLICT (history, lane) DO NOTHING",
        &[series.id.into()],
    );
    run(
        "DELETE FROM ONLY counterx.history WHERE id OPERATOR(pg_catalog.=) $1",
        &[series.id.into()],
    );
}

/// Looks at a row of `history` that comes by SQL.
///
/// # Errors
/// Raises 55006 for one that was dropped here, and whose rows are there still.
pub fn check_restored(id: i64) {
    if history::is_noted(id) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                "the history that is restored was dropped here, and its rows are not removed yet",
            )
            .set_hint("The worker removes them in a while. Restore it then."),
        )
    }
}

/// No two databases have the same one, but by a restore.
fn new_id() -> i64 {
    (ports::random() >> 1).cast_signed()
}
