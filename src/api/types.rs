//! Counter types.

use super::args;
use super::args::Interval;
use super::args::Jsonb;
use super::args::SameVersion;
use super::args::Text;
use super::existing;
use crate::bounds::accounts::clock;
use crate::bounds::types;
use crate::bounds::windows;
use crate::pg::clock as server_clock;
use crate::pg::error::{beginning, quoted, raise, report};
use crate::pg::json::Member;
use crate::pg::lock::conflicting_xacts;
use crate::pg::ports;
use crate::pg::relation::{
    EXCLUSIVE, LockMode, Relation, SHARE_ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE,
};
use crate::pg::room;
use crate::pg::snapshot::LatestSnapshot;
use crate::pg::time;
use crate::pg::varlena::text_datum;
use crate::read::reader::{Lanes, Reader};
use crate::store::catalog;
use crate::store::gate;
use crate::store::history;
use crate::store::ours::AtWork;
use crate::store::shape;
use crate::store::totals::{self, Order};
use crate::transaction::pending;
use crate::write::change;
use crate::write::writing;
use counterx_core::escrow::Bounds;
use counterx_core::history::MINUTE;
use counterx_core::lane::LANES;
use counterx_core::names::NameRange;
use counterx_core::tally::Tally;
use counterx_core::windows::{BadLength, Kind, Length, MAX_WINDOWED_BYTES, Prefix, Stored};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use pgrx::{PgSqlErrorCode, pg_sys};
use std::ops::ControlFlow;

/// What can be said of a type. Missing: as it is. `Some(None)`: without.
#[derive(Default)]
struct Options {
    min: Option<Option<i64>>,
    max: Option<Option<i64>>,
    /// In the database's encoding.
    description: Option<Option<Vec<u8>>>,
    /// Months, days, microseconds.
    per: Option<Option<(i32, i32, i64)>>,
    time_zone: Option<Option<Vec<u8>>>,
    kept: Option<Option<i64>>,
    sliding: Option<bool>,
    count_refused: Option<bool>,
}

const OPTIONS_HINT: &str = "Options are min, max, description, per, time_zone, kept, sliding and count_refused, such as {\"max\": 100, \"min\": null}.";

fn invalid_options(message: &str) -> ErrorReport {
    let code = PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE;
    report(code, message).set_hint(OPTIONS_HINT)
}

/// An argument for an option that may be in the object.
///
/// # Errors
/// Raises 22023 where it is.
fn give<T>(option: &mut Option<T>, argument: Option<T>) {
    if argument.is_none() {
        return;
    }
    if option.is_some() {
        raise(invalid_options("option of a counter type is given twice"));
    }
    *option = argument;
}

impl Options {
    /// From arguments by name, where NULL is missing, and an object, where null is "without".
    ///
    /// # Errors
    /// Raises 22023 for what is no option, or is given twice.
    fn new(
        min: Option<i64>,
        max: Option<i64>,
        description: Option<Text>,
        options: Option<Jsonb>,
    ) -> Self {
        let mut all = Self::default();
        if let Some(options) = options {
            let object = options.for_each_member(|key, member| all.read(key, &member));
            if let Err(kind) = object {
                raise(
                    invalid_options("options of a counter type must be a JSON object")
                        .set_detail(format!("It is {kind}.")),
                )
            }
        }
        give(&mut all.min, min.map(Some));
        give(&mut all.max, max.map(Some));
        let description = description.map(|Text(description)| Some(room::copy(description)));
        give(&mut all.description, description);
        all
    }

    /// The same for what is said of windows.
    fn with_window(
        mut self,
        per: Option<Interval>,
        time_zone: Option<Text>,
        kept: Option<i64>,
        sliding: Option<bool>,
        count_refused: Option<bool>,
    ) -> Self {
        give(&mut self.per, per.map(|per| Some(per.parts())));
        let time_zone = time_zone.map(|Text(zone)| Some(room::copy(zone)));
        give(&mut self.time_zone, time_zone);
        give(&mut self.kept, kept.map(Some));
        give(&mut self.sliding, sliding);
        give(&mut self.count_refused, count_refused);
        self
    }

    /// A member of the object.
    fn read(&mut self, key: &[u8], member: &Member) {
        let invalid = |detail: String| -> ! {
            raise(invalid_options("invalid options of a counter type").set_detail(detail))
        };
        let text = || match member {
            Member::Text(text) => Some(room::copy(text)),
            Member::Null => None,
            other => invalid(format!(
                "{} must be a string or null, and is {}.",
                quoted(key),
                other.kind()
            )),
        };
        let bound = || match member {
            Member::Whole(bound) => Some(*bound),
            Member::Null => None,
            other => invalid(format!(
                "{} must be a whole number in the range of a bigint, or null, and is {}.",
                quoted(key),
                other.kind()
            )),
        };
        let truth = || match member {
            Member::Bool(truth) => *truth,
            Member::Null => false,
            other => invalid(format!(
                "{} must be true or false, and is {}.",
                quoted(key),
                other.kind()
            )),
        };
        match key {
            b"min" => self.min = Some(bound()),
            b"max" => self.max = Some(bound()),
            b"description" => self.description = Some(text()),
            b"time_zone" => self.time_zone = Some(text()),
            b"kept" => self.kept = Some(bound()),
            b"sliding" => self.sliding = Some(truth()),
            b"count_refused" => self.count_refused = Some(truth()),
            b"per" => {
                self.per = Some(text().map(|per| {
                    // SAFETY: an interval.
                    unsafe { time::parts(args::interval(&per)) }
                }));
            }
            unknown => invalid(format!(
                "There is no option {}.",
                quoted(beginning(unknown, 64))
            )),
        }
    }
}

/// How often the counters of a type begin anew.
struct PerWindow {
    per: pgrx::datum::Interval,
    zone: Option<String>,
    kept: i32,
    sliding: bool,
    count_refused: bool,
}

/// The most windows before the running one that are kept.
const MOST_KEPT: i64 = 1000;

impl PerWindow {
    /// None: they do not.
    ///
    /// # Errors
    /// Raises 22023 for what no window can be.
    fn new(name: &str, options: &Options) -> Option<Self> {
        let zone = options.time_zone.as_ref().and_then(Option::as_deref);
        let kept = options.kept.flatten();
        let sliding = options.sliding.unwrap_or(false);
        let count_refused = options.count_refused.unwrap_or(false);
        let Some((months, days, micros)) = options.per.flatten() else {
            if zone.is_some() || kept.is_some() || sliding || count_refused {
                raise(
                    invalid_options(
                        "time_zone, kept, sliding and count_refused are for types with a window",
                    )
                    .set_detail("Without \"per\", the counters of a type do not begin anew."),
                );
            }
            return None;
        };
        let length = Length::of_interval(months, days, micros).unwrap_or_else(|why| {
            let detail = match why {
                BadLength::NotPositive => "It must be positive.",
                BadLength::NotWholeSeconds => "It must be a whole number of seconds.",
                BadLength::Uneven => "Windows of less than a day divide a day evenly, and begin at the same times each day.",
                BadLength::Several => "A window is one day or one month, or shorter than a day.",
            };
            raise(
                args::invalid(format!("windows of counter type \"{name}\" cannot be so long"))
                    .set_detail(detail)
                    .set_hint("Use '1 minute', '90 minutes', '1 hour', '1 day', '1 month', or what divides a day."),
            )
        });
        if zone.is_some() && !length.needs_zone() {
            raise(
                args::invalid("time_zone is for windows of a day or a month")
                    .set_detail("Shorter ones begin at the same moments in all time zones.")
                    .set_hint("Leave it out."),
            );
        }
        let kept = kept.unwrap_or(i64::from(sliding));
        if sliding && kept == 0 {
            raise(
                args::invalid("windows that slide need the one before the running one")
                    .set_hint("Let kept be 1 or more, or leave it out."),
            );
        }
        let Some(kept) = i32::try_from(kept)
            .ok()
            .filter(|_| (0..=MOST_KEPT).contains(&kept))
        else {
            raise(
                args::invalid(format!("kept must be a number from 0 to {MOST_KEPT}"))
                    .set_detail(format!("It is {kept}."))
                    .set_hint("So many windows before the running one are kept. A history keeps more, of another type."),
            )
        };
        if Prefix::new(name.as_bytes(), 0).is_none() {
            raise(
                args::invalid(format!(
                    "name of counter type \"{name}\" is too long for one with a window"
                ))
                .set_hint(format!(
                    "The names of its counters have {MAX_WINDOWED_BYTES} bytes at most."
                )),
            );
        }
        let per = pgrx::datum::Interval::new(months, days, micros);
        let zone = zone.map(|zone| String::from_utf8_lossy(args::zone(zone)).into_owned());
        Some(Self {
            per: per.expect("a length that a window can have"),
            zone,
            kept,
            sliding,
            count_refused,
        })
    }
}

/// The bounds that were, and are changed.
fn changed(bounds: Bounds, options: &Options) -> Bounds {
    valid(Bounds {
        min: options.min.unwrap_or(bounds.min),
        max: options.max.unwrap_or(bounds.max),
    })
}

/// A description for a query. NULL: none, or as it was.
fn new_description(options: &Options) -> DatumWithOid<'static> {
    match options.description.as_ref().and_then(Option::as_deref) {
        // SAFETY: a text.
        Some(text) => unsafe { DatumWithOid::new(text_datum(text), pg_sys::TEXTOID) },
        None => DatumWithOid::null_oid(pg_sys::TEXTOID),
    }
}

/// SECURITY DEFINER, as are the others here, so that EXECUTE alone is enough: the table belongs to
/// the extension's owner.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::too_many_arguments, reason = "those of the SQL function")]
fn counter_type_create(
    _same: SameVersion,
    name: Option<Text>,
    min: default!(Option<i64>, "NULL"),
    max: default!(Option<i64>, "NULL"),
    description: default!(Option<Text>, "NULL"),
    options: default!(Option<Jsonb>, "NULL"),
    per: default!(Option<Interval>, "NULL"),
    time_zone: default!(Option<Text>, "NULL"),
    kept: default!(Option<i64>, "NULL"),
    sliding: default!(Option<bool>, "NULL"),
    count_refused: default!(Option<bool>, "NULL"),
) -> bool {
    change::check_may_write(c"counter_type_create()");
    let name = type_name(name);
    let options = Options::new(min, max, description, options).with_window(
        per,
        time_zone,
        kept,
        sliding,
        count_refused,
    );
    let per_window = PerWindow::new(&name, &options);
    let bounds = changed(Bounds::default(), &options);
    if let Some(window) = &per_window {
        must_fit(bounds, window.sliding, window.count_refused);
    }
    lock_types(Looker::Definer);
    if find(&name).is_some() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("counter type \"{name}\" already exists"),
            )
            .set_hint("Change it with counter_type_alter()."),
        );
    }
    if per_window.is_some() {
        must_have_no_history(&name);
        must_have_no_counters(&name);
    } else {
        check_counters(&name, bounds, Looker::Definer);
    }
    let (kept, sliding, count_refused) = (per_window.as_ref()).map_or((0, false, false), |it| {
        (it.kept, it.sliding, it.count_refused)
    });
    let (per, zone) = per_window.map_or((None, None), |window| (Some(window.per), window.zone));
    run(
        "INSERT INTO counterx.type (name, min, max, description, generation, per, zone, kept, sliding, count_refused) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            name.as_str().into(),
            bounds.min.into(),
            bounds.max.into(),
            new_description(&options),
            new_generation().into(),
            per.into(),
            zone.into(),
            kept.into(),
            sliding.into(),
            count_refused.into(),
        ],
    );
    check_done(&name, Some(bounds));
    true
}

#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn counter_type_alter(
    name: Option<Text>,
    min: default!(Option<i64>, "NULL"),
    max: default!(Option<i64>, "NULL"),
    description: default!(Option<Text>, "NULL"),
    options: default!(Option<Jsonb>, "NULL"),
) -> bool {
    change::check_may_write(c"counter_type_alter()");
    let name = type_name(name);
    let options = Options::new(min, max, description, options);
    let of_window = options.per.is_some()
        || options.time_zone.is_some()
        || options.kept.is_some()
        || options.sliding.is_some()
        || options.count_refused.is_some();
    if of_window {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("cannot change the window of counter type \"{name}\""),
            )
            .set_detail("What was counted in one window says nothing of others.")
            .set_hint("counter_type_drop() removes the type with its counters, and counter_type_create() makes another."),
        );
    }
    lock_types(Looker::Definer);
    let old = must_be_changeable(&name);
    let new = changed(old, &options);
    if let Some(window) = types::window_of_type(name.as_bytes()) {
        let is_sliding = window.kind() == Kind::Sliding;
        must_fit(new, is_sliding, window.counts_refused());
    }
    let tighter = (new.min.is_some() && new.min > old.min)
        || (new.max.is_some() && old.max.is_none_or(|max| new.max < Some(max)));
    if tighter {
        check_counters(&name, new, Looker::Definer);
    }
    must_be_visible(&name);
    // Whoever has gone by the old bounds need not retry, unless they have become tighter.
    let generation = tighter.then(new_generation);
    run(
        "UPDATE ONLY counterx.type SET min = $2, max = $3, \
         description = CASE WHEN $4 THEN $5 ELSE description END, \
         generation = COALESCE($6, generation) WHERE name OPERATOR(pg_catalog.=) $1",
        &[
            name.as_str().into(),
            new.min.into(),
            new.max.into(),
            options.description.is_some().into(),
            new_description(&options),
            generation.into(),
        ],
    );
    check_done(&name, Some(new));
    true
}

#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, pg_temp)]
fn counter_type_drop(name: Option<Text>) -> bool {
    change::check_may_write(c"counter_type_drop()");
    let name = type_name(name);
    lock_types(Looker::Definer);
    must_be_changeable(&name);
    must_be_visible(&name);
    if types::window_of_type(name.as_bytes()).is_some() {
        drop_counters(&name);
    }
    run(
        "DELETE FROM ONLY counterx.type WHERE name OPERATOR(pg_catalog.=) $1",
        &[name.as_str().into()],
    );
    check_done(&name, None);
    true
}

/// # Errors
/// Raises 22023 for bounds that counters cannot have whose windows slide, or of which refused requests count.
fn must_fit(bounds: Bounds, is_sliding: bool, counts_refused: bool) {
    if bounds.min.is_none() && bounds.max.is_some() {
        return;
    }
    let (message, detail) = if is_sliding {
        (
            "counters whose windows slide have a maximum, and no minimum",
            "What was counted in the window before leaves less of the maximum; it cannot be given back.",
        )
    } else if counts_refused {
        (
            "counters of which a refused request counts have a maximum, and no minimum",
            "Whoever is refused at a minimum wants less of it, and not more.",
        )
    } else {
        return;
    };
    raise(
        args::invalid(message)
            .set_detail(detail)
            .set_hint("Give max alone."),
    );
}

/// What a counter with a window is stored as means nothing without the type. So its counters go with it, those of all
/// windows, and nobody counts meanwhile.
fn drop_counters(name: &str) {
    let range = counters_of(name);
    must_not_have_changed(&range, || {
        format!(
            "cannot drop the counters of type \"{name}\" in a transaction that has changed some"
        )
    });
    lock_counters(Looker::Definer);
    let counters = existing_now(&range);
    if counters.is_empty() {
        return;
    }
    let is_first = pending::is_empty();
    existing::drop_each(&counters, true);
    // As long as the type is there.
    match is_first {
        true => writing::write_drops(),
        false => writing::write_early(),
    }
    types::counters_of_type_are_gone(name.as_bytes());
}

/// The names of a type's counters, as they are given and as they are stored.
fn counters_of(name: &str) -> NameRange {
    let mut range = NameRange::all();
    range.starting_with(format!("{name}:").as_bytes());
    range
}

/// All counters of a range that there are at this moment, by the names that they are stored as.
fn existing_now(range: &NameRange) -> Vec<(Vec<u8>, Tally)> {
    let latest = LatestSnapshot::take();
    existing::in_range(range, Order::ByName, latest.as_ptr())
}

/// # Errors
/// Raises 55006 where something is on hold of the counters of a type, or was and is not removed yet.
fn must_have_no_holds(name: &str, range: &NameRange) {
    let latest = LatestSnapshot::take();
    let held = crate::bounds::holds::held_in(range, i64::MIN, latest.as_ptr());
    if let Some(counter) = held.keys().min() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("counter type \"{name}\" cannot have a window, as there are holds of it"),
            )
            .set_detail(format!("There is one of {}.", quoted(counter)))
            .set_hint("counter_hold_release() ends them; counter_holds shows them."),
        );
    }
}

/// # Errors
/// Raises 0A000 where the type has a history.
fn must_have_no_history(name: &str) {
    let shared = catalog::shared();
    // Who makes one locks it, before the gates as well, and looks for the type then.
    if Relation::open_until_commit(shared.history, SHARE_UPDATE_EXCLUSIVE).is_none() {
        catalog::gone()
    }
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active as long as `latest` lives.
    let series = unsafe { history::series(&shared, Some(name.as_bytes()), latest.as_ptr()) };
    if !series.is_empty() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("counter type \"{name}\" cannot have a window, as it has a history"),
            )
            .set_hint("counter_history_drop() ends the history."),
        );
    }
}

/// Keeps everybody from counting until the end of the transaction.
///
/// # Errors
/// Raises 55006 where there is a counter of the type, 25001 when this transaction has changed some.
fn must_have_no_counters(name: &str) {
    let range = counters_of(name);
    must_not_have_changed(&range, || {
        format!(
            "cannot give a window to the counters of type \"{name}\" in a transaction that has changed some"
        )
    });
    lock_counters(Looker::Definer);
    must_have_no_holds(name, &range);
    if let Some((counter, _)) = existing_now(&range)
        .iter()
        .find(|(_, tally)| tally.exists())
    {
        raise_has_counters(name, counter, "use another name");
    }
}

fn raise_has_counters(name: &str, counter: &[u8], instead: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
            format!("counter type \"{name}\" cannot have a window, as there are counters of it"),
        )
        .set_detail(format!("There is {}.", quoted(counter)))
        .set_hint(format!(
            "Drop them with counter_drop() first, or {instead}."
        )),
    )
}

/// # Errors
/// Raises 25001 when this transaction has changed counters of a range, with this message.
fn must_not_have_changed(range: &NameRange, message: impl FnOnce() -> String) {
    let mut own = pending::has_flushed_changes();
    pending::for_each_pending(|name, _| own |= range.contains(name));
    if own {
        raise(
            report(PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION, message())
                .set_hint("Define the type in a transaction of its own."),
        );
    }
}

/// Tells other sessions, whatever has become of the table's own trigger; and looks whether a trigger, a
/// rule or a policy of others has kept the change from being made.
///
/// # Errors
/// Raises 55000 then.
fn check_done(name: &str, wanted: Option<Bounds>) {
    types::changed();
    if find(name) != wanted {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the change of counter type \"{name}\" was not made as it was asked for"),
            )
            .set_detail(
                "A trigger or a rule that was put on the table counterx.type stands in the way.",
            )
            .set_hint("\\d counterx.type shows it: drop it."),
        );
    }
}

/// The name of a type.
pub fn type_name(name: Option<Text>) -> String {
    // ASCII, so it is the same in every encoding.
    String::from_utf8_lossy(args::type_name(name)).into_owned()
}

/// Every counter starts at 0, so 0 has to be allowed.
fn valid(bounds: Bounds) -> Bounds {
    if !bounds.contain(0) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "bounds of a counter type must include 0",
            )
            .set_detail("Every counter starts at 0.")
            .set_hint("Use a minimum of 0 or less and a maximum of 0 or more."),
        );
    }
    bounds
}

/// Who looks at all counters of a type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Looker {
    /// Who changes types. Nobody may be about to write by what they were.
    Definer,
    /// Who has restored values or holds. Others who restore some hold their table already, look at all
    /// after this one, and are not waited for: two of them would wait for each other.
    Restorer,
}

/// Definitions change one at a time.
pub fn lock_types(looker: Looker) {
    gate::enter(0);
    let mode = match looker {
        Looker::Definer => SHARE_ROW_EXCLUSIVE,
        // One at a time as well, but beside a restore of types, which looks at all after this one.
        Looker::Restorer => SHARE_UPDATE_EXCLUSIVE,
    };
    match Relation::open_until_commit(catalog::shared().types, mode) {
        Some(table) => shape::check(&table),
        None => catalog::gone(),
    }
}

/// A number that no definition of a type has had.
pub fn new_generation() -> i64 {
    // SAFETY: reads the clock.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// As it is now that the types are locked: a query would go by a snapshot that may be older, that of the
/// whole transaction in REPEATABLE READ, and miss the change that the lock was waited for.
fn find(name: &str) -> Option<Bounds> {
    // SAFETY: what the transaction has done so far shall be seen.
    unsafe { pg_sys::CommandCounterIncrement() };
    types::latest_bounds(name.as_bytes())
}

/// A command that changes a type goes by the transaction's snapshot, and does nothing where that does not
/// show the type yet.
///
/// # Errors
/// Raises 40001 then.
fn must_be_visible(name: &str) {
    if !ports::isolation_uses_xact_snapshot() {
        return;
    }
    let visible = Spi::get_one_with_args::<bool>(
        "SELECT EXISTS (SELECT FROM ONLY counterx.type WHERE name OPERATOR(pg_catalog.=) $1)",
        &[name.into()],
    );
    match visible {
        Ok(Some(true)) => {}
        Ok(_) => types::raise_changed_type(name),
        Err(error) => internal(&error),
    }
}

/// # Errors
/// Raises 42704 when there is no such type, 0A000 when it is that of a tracked table.
fn must_be_changeable(name: &str) -> Bounds {
    let bounds = must_exist(name);
    if types::is_tracked(name.as_bytes()) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("type \"{name}\" is that of a tracked table"),
            )
            .set_detail("It has no bounds, and is there as long as the table is tracked.")
            .set_hint("counter_untrack() ends the track."),
        )
    }
    bounds
}

fn must_exist(name: &str) -> Bounds {
    find(name).unwrap_or_else(|| {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("counter type \"{name}\" does not exist"),
            )
            .set_hint("SELECT * FROM counter_types shows them."),
        )
    })
}

/// Runs a command of our own on our own tables.
pub fn run(command: &str, arguments: &[pgrx::datum::DatumWithOid]) {
    let _at_work = AtWork::begin();
    if let Err(error) = Spi::run_with_args(command, arguments) {
        internal(&error)
    }
}

fn internal(error: &dyn std::fmt::Display) -> ! {
    raise(report(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("counterx could not change its table of types: {error}"),
    ))
}

/// Keeps everybody from changing counters until the end of the transaction: see the note in `bounds/types.rs`.
fn lock_counters(looker: Looker) {
    let shared = catalog::shared();
    let gates = (0..LANES).map(|lane| (catalog::lane(lane).gate, SHARE_ROW_EXCLUSIVE));
    let table = |table| Some((table, SHARE_ROW_EXCLUSIVE));
    // Holds first: who is about to commit one does not need it, and may need a gate. Who writes holds or late
    // deltas locks the anchor as well, unless by a restore.
    let (first, last) = match looker {
        Looker::Definer => (table(shared.hold), table(shared.late)),
        Looker::Restorer => (Some((shared.anchor, EXCLUSIVE)), None),
    };
    let relations: Vec<(pg_sys::Oid, LockMode)> =
        first.into_iter().chain(gates).chain(last).collect();
    // Transactions that were prepared, or have written early, may hold these for long. They are
    // waited for without holding up others; those that are just committing, with the locks below.
    for &(relation, mode) in &relations {
        for xact in conflicting_xacts(relation, mode) {
            xact.wait();
        }
    }
    for (relation, mode) in relations {
        if Relation::open_until_commit(relation, mode).is_none() {
            catalog::gone()
        }
    }
}

/// Types were changed by hand or restored: holds the counters to all of them.
///
/// # Errors
/// As of [`check_counters`].
pub fn recheck_all() {
    // SAFETY: what the command has changed shall be seen.
    unsafe { pg_sys::CommandCounterIncrement() };
    take_over_removed();
    recheck_as(&types::latest_names(), Looker::Definer);
}

/// What was counted in windows that are removed where a dump comes from is not to be counted again here, where the clock
/// may be behind.
fn take_over_removed() {
    let removed = Spi::get_one::<TimestampWithTimeZone>(
        "SELECT pg_catalog.max(removed_until) FROM ONLY counterx.type",
    );
    match removed {
        Ok(None) => {}
        Ok(Some(removed)) => {
            let removed = pg_sys::TimestampTz::from(removed);
            warn_if_ahead(removed);
            windows::note_removed(removed);
            run(
                "UPDATE ONLY counterx.type SET removed_until = NULL WHERE removed_until IS NOT NULL",
                &[],
            );
        }
        Err(error) => internal(&error),
    }
}

/// Windows up to some time are gone where a dump comes from.
fn warn_if_ahead(removed: i64) {
    if removed.saturating_sub(server_clock::now()) <= MINUTE {
        return;
    }
    report(
        PgSqlErrorCode::ERRCODE_WARNING,
        "windows of counters go by a time that is ahead of the server's clock",
    )
    .set_detail(format!(
        "Where the types come from, windows up to {} were removed.",
        time::text(removed)
    ))
    .set_hint(
        "If that clock was wrong, counterx.reset_window_clock() has windows go by the server's.",
    )
    .report(PgLogLevel::WARNING);
}

/// Counters of these types, or what is on hold of them, were changed past the accounts, by this transaction.
/// Whoever has gone by what was before is told to retry, and the accounts forget what they know.
///
/// # Errors
/// As of [`check_counters`].
pub fn recheck(names: &[String]) {
    recheck_as(names, Looker::Restorer);
}

fn recheck_as(names: &[String], looker: Looker) {
    if names.is_empty() {
        return;
    }
    lock_types(looker);
    for name in names {
        let Some(bounds) = find(name) else { continue };
        if looker == Looker::Definer {
            check_window(name);
        }
        if bounds == Bounds::default() {
            continue;
        }
        check_counters(name, bounds, looker);
        must_be_visible(name);
        run(
            "UPDATE ONLY counterx.type SET generation = $2 WHERE name OPERATOR(pg_catalog.=) $1",
            &[name.as_str().into(), new_generation().into()],
        );
    }
}

/// A type was restored, or changed by hand. Its window must be one, and its counters be those of windows.
///
/// # Errors
/// Raises 22023, or 55006.
fn check_window(name: &str) {
    let has_window = types::window_of_type(name.as_bytes()).is_some();
    let is_said = Spi::get_one_with_args::<bool>(
        "SELECT EXISTS (SELECT FROM ONLY counterx.type WHERE name OPERATOR(pg_catalog.=) $1 AND per IS NOT NULL)",
        &[name.into()],
    );
    match is_said {
        Ok(said) if said == Some(true) && !has_window => raise(
            args::invalid(format!(
                "counter type \"{name}\" has a window that cannot be"
            ))
            .set_hint("Windows are of a day, of a month, or divide a day evenly."),
        ),
        Ok(_) => {}
        Err(error) => internal(&error),
    }
    if !has_window {
        return;
    }
    let range = counters_of(name);
    lock_counters(Looker::Definer);
    must_have_no_holds(name, &range);
    let is_other = |name: &[u8]| Stored::of(name).is_none();
    if let Some((counter, _)) = existing_now(&range).iter().find(|(name, _)| is_other(name)) {
        raise_has_counters(name, counter, "restore into another database");
    }
}

/// Checks that all counters of a type are within bounds, now and until the end of the transaction:
/// see the note in `bounds/types.rs`.
///
/// # Errors
/// Raises 23514 and names counters that are not, 25001 when this transaction has changed some.
fn check_counters(name: &str, bounds: Bounds, looker: Looker) {
    if bounds == Bounds::default() {
        return;
    }
    const SHOWN: usize = 5;
    let mut range = counters_of(name);
    must_not_have_changed(&range, || {
        format!(
            "cannot bound the counters of type \"{name}\" in a transaction that has changed some"
        )
    });
    lock_counters(looker);
    if types::window_of_type(name.as_bytes()).is_some_and(|window| window.counts_refused()) {
        // They go beyond it.
        return;
    }
    // What has ended is nobody's to count in any more.
    if let Some(running) = windows::running(name.as_bytes()) {
        range.at_least(running.get());
    }
    let latest = LatestSnapshot::take();
    let mut reader = Reader::open(Lanes::All, latest.as_ptr());
    let mut counters = reader.pending_in(&range);
    let held = crate::bounds::holds::held_in(&range, clock(), latest.as_ptr());
    let mut outside = Vec::new();
    let mut look = |name: &[u8], tally: Tally| {
        let free = tally.value - held.get(name).copied().unwrap_or(0);
        if tally.exists() && !(bounds.contain(tally.value) && bounds.contain(free.min(tally.value)))
        {
            room::push(&mut outside, (name.to_vec(), free));
        }
    };
    // SAFETY: the snapshot is active as long as `latest` lives.
    let _all = unsafe {
        totals::visit(&range, Order::ByName, latest.as_ptr(), |name, row| {
            look(name, totals::tally(row) + counters.take(name));
            ControlFlow::Continue(())
        })
    };
    let mut never_folded = room::collect(counters);
    never_folded.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (name, tally) in never_folded {
        look(&name, tally);
    }
    reader.finish();
    if outside.is_empty() {
        return;
    }
    let shown: Vec<String> = outside
        .iter()
        .take(SHOWN)
        .map(|(name, value)| format!("{}: {value}", quoted(&types::plain(name))))
        .collect();
    let more = match outside.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    raise(
        report(
            PgSqlErrorCode::ERRCODE_CHECK_VIOLATION,
            format!("counters of type \"{name}\" are out of these bounds"),
        )
        .set_detail(format!("{}{more}.", shown.join(", ")))
        .set_hint("Change these counters first, with counter_set() for example."),
    )
}
