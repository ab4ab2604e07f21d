//! Streams: `counter_stream_create` and its relatives.
//!
//! # How it works
//! A stream is a definition, and a cursor for each lane from its first bootstrap on. The first bootstrap, and that of a
//! stream that is lost, keeps all lanes from being folded until the end of its transaction: so the next fold of each
//! sees the cursor, and writes what has changed since. Any other one goes on where the cursor is.
//!
//! A consumer locks its cursors, reads by a snapshot that was taken then, and moves them, all in its own transaction.
//! Who consumes outside of the database looks without locking, acts, and then says how far he has come.
//!
//! # Invariants
//! - Cursors never go back.
//! - What is handed out without moving a cursor is committed.
//! - Where a consumer stands is said by the incarnation as well: each bootstrap has another one, so nobody goes on from
//!   a place of another start, another stream of the name, or another database. And by the era: a standby that
//!   was promoted may not have all that a consumer has seen.

use super::args::{self, Arguments, Text};
use crate::bounds::types;
use crate::fold::compaction;
use crate::pg::array;
use crate::pg::compat;
use crate::pg::error::{quoted, raise, report};
use crate::pg::function::version_1;
use crate::pg::ports;
use crate::pg::rows::Rows;
use crate::pg::snapshot::{self, LatestSnapshot};
use crate::pg::time;
use crate::pg::varlena::text_datum;
use crate::pg::wal;
use crate::read::stream as read;
use crate::store::as_owner::{AsOwner, Bytes};
use crate::store::catalog;
use crate::store::gate::{self, Lease};
use crate::store::state;
use crate::store::stream::{self, Cursor, Stream};
use crate::store::totals::{self, Order};
use crate::write::change;
use counterx_core::lane::{LANES, MAX_NAME_BYTES};
use counterx_core::names::NameRange;
use counterx_core::streams::{Change, Place, Position, shown};
use counterx_core::windows::Stored;
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys};
use std::ops::ControlFlow;

version_1!(
    pg_finfo_counterx_stream_create,
    pg_finfo_counterx_stream_drop,
    pg_finfo_counterx_stream_bootstrap,
    pg_finfo_counterx_stream_next,
    pg_finfo_counterx_stream_peek,
    pg_finfo_counterx_stream_ack,
    pg_finfo_counterx_stream_status
);

/// The name of a stream, or of an alert.
///
/// # Errors
/// Raises 22004 for NULL, 22023 for one that is empty or too long.
pub(super) fn valid_name<'a>(what: &str, name: Option<Text<'a>>) -> &'a [u8] {
    let Text(name) = args::required(what, name);
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) {
        raise(
            args::invalid(format!("invalid {what}"))
                .set_detail(format!("It has {} bytes.", name.len()))
                .set_hint(format!("A {what} has 1 to {MAX_NAME_BYTES} bytes.")),
        )
    }
    name
}

/// What names begin with, of counters that can be told of.
///
/// # Errors
/// Raises 22004 for NULL, 22023 for one that is too long, 0A000 where it would be counters that begin anew.
pub(super) fn valid_prefix<'a>(prefix: Option<Text<'a>>) -> &'a [u8] {
    let Text(prefix) = args::required("prefix", prefix);
    if prefix.len() > MAX_NAME_BYTES {
        raise(args::invalid("prefix is too long").set_hint(format!(
            "No counter has a name of more than {MAX_NAME_BYTES} bytes."
        )))
    }
    for window in types::all_windows() {
        let of = [window.type_name(), b":"].concat();
        if prefix.starts_with(&of) {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    format!(
                        "counters of type {} cannot be told of, as they begin anew with each window",
                        quoted(window.type_name())
                    ),
                )
                .set_hint("Give a prefix of other counters. A shorter one leaves these out."),
            )
        }
    }
    prefix
}

/// `counter_stream_create(stream, prefix, mode, keep, notify, publish, consumer)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_create(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    change::check_may_write(c"counter_stream_create()");
    // SAFETY: called with (text, text, text, interval, boolean, boolean, name).
    let (name, prefix, mode, consumer, arguments) = unsafe {
        let arguments = Arguments::of(fcinfo);
        (
            valid_name("name of a stream", arguments.text(0)),
            valid_prefix(arguments.text(1)),
            args::required("mode", arguments.text(2)).0,
            arguments.name(6),
            arguments,
        )
    };
    if !matches!(mode, b"latest" | b"every") {
        raise(
            args::invalid(format!("there is no mode {}", quoted(mode)))
                .set_hint("Modes are latest, for what changes of a counter come to, and every, for each of them."),
        )
    }
    let keep = args::required("keep", arguments.get(3));
    // SAFETY: an interval.
    if !unsafe { time::is_positive(keep) && time::longest(keep) > 0 } {
        raise(
            args::invalid("keep must be positive")
                .set_hint("Give how long changes are to wait for the consumer, such as '1 day'."),
        )
    }
    let notify = args::required("notify", arguments.boolean(4));
    let publish = args::required("publish", arguments.boolean(5));
    let consumer = match consumer {
        Some(consumer) => {
            if role(&consumer).is_none() {
                raise(
                    report(
                        PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                        format!("role {} does not exist", quoted(&consumer)),
                    )
                    .set_hint("CREATE ROLE makes one. Its members may consume the stream."),
                )
            }
            consumer
        }
        None => current_user(),
    };
    // SAFETY: an interval.
    let keep: Option<pgrx::datum::Interval> = unsafe { pgrx::FromDatum::from_datum(keep, false) };
    let made = AsOwner::enter().run(
        "INSERT INTO counterx.stream (name, prefix, mode, keep, notify, publish, consumer, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, pg_catalog.statement_timestamp()) ON CONFLICT (name) DO NOTHING",
        &[
            Bytes(name).into(),
            Bytes(prefix).into(),
            Bytes(mode).into(),
            keep.into(),
            notify.into(),
            publish.into(),
            Bytes(&consumer).into(),
        ],
    );
    if made == 0 {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("stream {} already exists", quoted(name)),
            )
            .set_hint("counter_stream_drop() drops it."),
        )
    }
    true.into()
}

/// `counter_stream_drop(stream)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_drop(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let function = c"counter_stream_drop()";
    change::check_may_write(function);
    super::admin::check_not_one_snapshot(function, "Run it in a READ COMMITTED transaction.");
    // SAFETY: called with (text).
    let name = unsafe { valid_name("name of a stream", Arguments::of(fcinfo).text(0)) };
    let owner = AsOwner::enter();
    // Who makes an alert of the stream locks it, too.
    owner.run(
        "SELECT FROM ONLY counterx.stream WHERE name OPERATOR(pg_catalog.=) $1 FOR UPDATE",
        &[Bytes(name).into()],
    );
    let alerts: Vec<Option<Vec<u8>>> = owner.rows(
        "SELECT pg_catalog.textsend(a.name) FROM ONLY counterx.alert a WHERE a.stream OPERATOR(pg_catalog.=) $1 ORDER BY a.name LIMIT 1",
        &[Bytes(name).into()],
        |row| row.get::<Vec<u8>>(1),
    );
    if let Some(Some(alert)) = alerts.first() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
                format!(
                    "cannot drop stream {}, which alerts are told to",
                    quoted(name)
                ),
            )
            .set_detail(format!("One is {}.", quoted(alert)))
            .set_hint("counter_alert_drop() drops an alert."),
        )
    }
    // First, as who bootstraps it locks it.
    let dropped = owner.run(
        "DELETE FROM ONLY counterx.stream WHERE name OPERATOR(pg_catalog.=) $1",
        &[Bytes(name).into()],
    );
    owner.run(
        "DELETE FROM ONLY counterx.cursor WHERE stream OPERATOR(pg_catalog.=) $1",
        &[Bytes(name).into()],
    );
    (dropped > 0).into()
}

/// `counter_stream_bootstrap(stream)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_bootstrap(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    change::check_may_write(c"counter_stream_bootstrap()");
    // SAFETY: called with (text).
    let name = unsafe { valid_name("name of a stream", Arguments::of(fcinfo).text(0)) };
    gate::enter(0);
    let stream = lock_definition(name);
    let locked = lock_cursors(&stream, &ALL_LANES);
    if !is_live(&locked) {
        for lane in 0..LANES {
            if Lease::take(catalog::lane(lane)).is_none() {
                catalog::gone()
            }
        }
        compaction::note_folding();
        // Somebody may have started it meanwhile.
        lock_cursors(&stream, &ALL_LANES);
    }
    let shared = catalog::shared();
    let current = current_snapshot();
    let mut folds = [0; LANES];
    for (lane, folds) in folds.iter_mut().enumerate() {
        *folds = state::lane_state(&shared, lane, current.as_ptr()).folds;
        // What is missing in between was written for nobody, or is gone.
        let is_older = *folds < state::current(lane, &shared).folds && !is_live(&locked);
        if !is_older && Position::end_of(*folds).is_lost(stream::cell(lane).gone) {
            raise(
                report(
                    NOT_READY,
                    format!(
                        "stream {} cannot begin before lane {lane} is folded",
                        quoted(name)
                    ),
                )
                .set_detail("A fold that left out changes for streams has failed.")
                .set_hint("The server's log says why."),
            )
        }
        if is_older {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                    format!(
                        "stream {} cannot begin with what the transaction's snapshot has",
                        quoted(name)
                    ),
                )
                .set_hint("Retry the transaction, or use READ COMMITTED."),
            )
        }
    }
    let lanes: Vec<i32> = (0..LANES as i32).collect();
    AsOwner::enter().run(
        "WITH i AS MATERIALIZED (SELECT pg_catalog.gen_random_uuid() AS id) \
         INSERT INTO counterx.cursor (stream, lane, fold, seq, era, incarnation) \
         SELECT $1, n.lane, n.fold, $4, $5, i.id FROM unnest($2, $3) n (lane, fold), i \
         ON CONFLICT (stream, lane) DO UPDATE SET fold = excluded.fold, seq = excluded.seq, era = excluded.era, \
             incarnation = excluded.incarnation, lost_reason = NULL",
        &[
            Bytes(name).into(),
            lanes.into(),
            folds.to_vec().into(),
            i64::MAX.into(),
            wal::era().into(),
        ],
    );
    failpoint!("stream.bootstrapped");
    wal::flush();
    let mut range = NameRange::all();
    range.starting_with(&stream.prefix);
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    // SAFETY: the snapshot is active.
    let _ = unsafe {
        totals::visit(&range, Order::ByName, current.as_ptr(), |name, row| {
            if let Some(value) = shown(totals::tally(row))
                && Stored::of(name).is_none()
            {
                rows.put(|| [Some(text_datum(name)), bigint(value)]);
            }
            ControlFlow::Continue(())
        })
    };
    pg_sys::Datum::null()
}

/// `counter_stream_next(stream, max_rows, lanes)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_next(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    change::check_may_write(c"counter_stream_next()");
    // SAFETY: called with (text, integer, integer[]).
    let (name, limit, lanes) = unsafe { what_to_read(fcinfo) };
    gate::enter(0);
    let cursors = lock_cursors(&consumable(name), &lanes);
    // The one that these are of, which cannot be dropped now: another one may have had the name before.
    let stream = consumable(name);
    check_live(&stream, &cursors, &lanes);
    failpoint!("stream.cursor_locked");
    let current = current_snapshot();
    // SAFETY: the snapshot is active.
    let batch = unsafe { read::batch(&stream, &cursors, limit, current.as_ptr()) };
    let batch =
        batch.unwrap_or_else(|gone| raise_lost(&stream, stream::cell(gone.lane).why.reason()));
    let worth = batch.worth_moving();
    let (changes, ends) = batch.finish();
    failpoint!("stream.read");
    let moved: Vec<Cursor> = (cursors.into_iter())
        .filter(|cursor| worth[cursor.lane])
        .collect();
    move_to(&stream, &moved, &ends, None);
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    for (change, _) in changes {
        rows.put(|| columns(&change));
    }
    pg_sys::Datum::null()
}

/// `counter_stream_peek(stream, max_rows, lanes)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_peek(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called with (text, integer, integer[]).
    let (name, limit, lanes) = unsafe { what_to_read(fcinfo) };
    let _gate = gate::open(0);
    let current = snapshot::active_or_latest();
    let stream = consumable_at(name, current.as_ptr());
    check_all_committed();
    // SAFETY: the snapshot is active.
    let all = unsafe { stream::cursors_of(&stream.name, current.as_ptr()) };
    let wanted = |cursor: &&Cursor| lanes.contains(&cursor.lane);
    let cursors: Vec<Cursor> = all.iter().filter(wanted).cloned().collect();
    // The snapshot may be older than what is said of what is gone.
    let is_outrun = |cursor: &&Cursor| {
        cursor.lost_reason.is_none() && cursor.position.is_lost(stream::cell(cursor.lane).gone)
    };
    if let Some(cursor) = cursors.iter().find(is_outrun) {
        raise_outrun(&stream, cursor.lane)
    }
    check_live(&stream, &cursors, &lanes);
    let Some(first) = all.first() else {
        raise_new(&stream)
    };
    check_era(&stream, first.era);
    let incarnation = uuid_text(first.incarnation);
    // SAFETY: as above.
    let batch = unsafe { read::batch(&stream, &cursors, limit, current.as_ptr()) };
    let batch = batch.unwrap_or_else(|gone| raise_outrun(&stream, gone.lane));
    let mut place = Place {
        incarnation,
        era: first.era,
        lanes: [Position::default(); LANES],
    };
    for cursor in &all {
        place.lanes[cursor.lane] = cursor.position;
    }
    let (changes, ends) = batch.finish();
    let set = |place: &mut Place, ends: &[Position; LANES]| {
        for &lane in &lanes {
            place.lanes[lane] = ends[lane];
        }
    };
    set(&mut place, &ends);
    let end = place.to_string();
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    for (change, ends) in changes {
        rows.put(|| {
            let [name, value, delta, kind, alert, at, lane, fold] = columns(&change);
            let text = if stream.is_every {
                set(&mut place, &ends);
                text_datum(place.to_string().as_bytes())
            } else {
                text_datum(end.as_bytes())
            };
            [name, value, delta, kind, alert, at, lane, fold, Some(text)]
        });
    }
    pg_sys::Datum::null()
}

/// `counter_stream_ack(stream, position)`
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_ack(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    change::check_may_write(c"counter_stream_ack()");
    // SAFETY: called with (text, text).
    let (name, text) = unsafe {
        let arguments = Arguments::of(fcinfo);
        let name = valid_name("name of a stream", arguments.text(0));
        (name, args::required("position", arguments.text(1)).0)
    };
    let place = (std::str::from_utf8(text).ok())
        .and_then(Place::parse)
        .unwrap_or_else(|| {
            raise(
                args::invalid("this is no position of a stream")
                    .set_hint("Give one that counter_stream_peek() has returned, as it is."),
            )
        });
    gate::enter(0);
    let cursors = lock_cursors(&consumable(name), &ALL_LANES);
    let stream = consumable(name);
    check_live(&stream, &cursors, &ALL_LANES);
    let is_other =
        (cursors.iter()).any(|cursor| uuid_text(cursor.incarnation) != place.incarnation);
    if is_other {
        raise_elsewhere(
            &stream,
            "The stream was begun anew since, or it is another one.",
        )
    }
    check_era(&stream, place.era);
    let shared = catalog::shared();
    for (lane, position) in place.lanes.iter().enumerate() {
        if position.fold > state::current(lane, &shared).folds {
            raise_elsewhere(&stream, "There is nothing there yet.")
        }
    }
    move_to(&stream, &cursors, &place.lanes, Some(place.era));
    true.into()
}

/// `counterx.stream_status()`, behind the view `counter_streams`.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_stream_status(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let _gate = gate::open(0);
    let current = snapshot::active_or_latest();
    // SAFETY: the snapshot is active.
    let streams = unsafe { stream::streams(&catalog::shared(), current.as_ptr()) };
    // SAFETY: a table function of the columns that are put.
    let mut rows = unsafe { Rows::begin(fcinfo) };
    for stream in &streams {
        // SAFETY: as above.
        let mut cursors = unsafe { stream::cursors_of(&stream.name, current.as_ptr()) };
        let mut lost = cursors.iter().find_map(why_lost);
        if lost.is_some() {
            // By what is gone now. The snapshot may be older.
            let latest = LatestSnapshot::take();
            // SAFETY: the snapshot is active.
            cursors = unsafe { stream::cursors_of(&stream.name, latest.as_ptr()) };
            lost = cursors.iter().find_map(why_lost);
        }
        let state: &[u8] = match (&lost, cursors.len()) {
            (None, LANES) => b"live",
            (Some(_), _) => b"lost",
            (None, _) => b"new",
        };
        let is_live = state == b"live";
        let lags: Vec<read::Lag> = (cursors.iter())
            .filter(|_| is_live)
            // SAFETY: as above.
            .map(|cursor| unsafe { read::lag(stream, cursor, current.as_ptr()) })
            .collect();
        let folds = lags.iter().map(|lag| lag.folds).max();
        let oldest = lags.iter().filter_map(|lag| lag.oldest).min();
        let bytes: i64 = lags.iter().map(|lag| lag.bytes).sum();
        rows.put(|| {
            [
                Some(text_datum(&stream.name)),
                Some(text_datum(state)),
                lost.as_ref().map(|reason| text_datum(reason)),
                folds.map(Into::into),
                oldest.map(Into::into),
                is_live.then(|| bytes.into()),
            ]
        });
    }
    pg_sys::Datum::null()
}

const ALL_LANES: [usize; LANES] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Name, number of rows and lanes of those who read.
///
/// # Safety
/// The call has (text, integer, integer[]).
unsafe fn what_to_read<'a>(fcinfo: pg_sys::FunctionCallInfo) -> (&'a [u8], usize, Vec<usize>) {
    // SAFETY: the caller's promise.
    unsafe {
        let arguments = Arguments::of(fcinfo);
        let name = valid_name("name of a stream", arguments.text(0));
        let limit = arguments
            .get(1)
            .map(|datum| i64::from(datum.value() as i32));
        let limit = args::row_count("max_rows", limit);
        (name, limit, lanes(arguments.get(2)))
    }
}

/// # Errors
/// Raises 22023 for what is no lane.
///
/// # Safety
/// The datum is an integer[].
unsafe fn lanes(array: Option<pg_sys::Datum>) -> Vec<usize> {
    let Some(array) = array else {
        return ALL_LANES.to_vec();
    };
    // SAFETY: the caller's promise.
    let numbers = unsafe { array::integers(array) }.unwrap_or_default();
    let lane = |number: Option<i32>| {
        let lane = number.and_then(|number| usize::try_from(number).ok());
        lane.filter(|lane| *lane < LANES)
    };
    let lanes: Option<Vec<usize>> = numbers.into_iter().map(lane).collect();
    let mut lanes = lanes.filter(|lanes| !lanes.is_empty()).unwrap_or_else(|| {
        raise(
            args::invalid("lanes must be numbers of lanes").set_hint(format!(
                "Lanes are 0 to {}; NULL is all of them.",
                LANES - 1
            )),
        )
    });
    lanes.sort_unstable();
    lanes.dedup();
    lanes
}

/// What a command of the transaction would go by now.
fn current_snapshot() -> LatestSnapshot {
    if ports::isolation_uses_xact_snapshot() {
        LatestSnapshot::of_transaction()
    } else {
        LatestSnapshot::take()
    }
}

fn consumable(name: &[u8]) -> Stream {
    let current = current_snapshot();
    consumable_at(name, current.as_ptr())
}

/// The stream of a name, which the current user may consume.
///
/// # Errors
/// Raises 42704 where there is none, 42501 where he may not.
fn consumable_at(name: &[u8], snapshot: pg_sys::Snapshot) -> Stream {
    // SAFETY: the caller's snapshot is active.
    let Some(stream) = (unsafe { stream::stream(name, snapshot) }) else {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("stream {} does not exist", quoted(name)),
            )
            .set_hint(
                "counter_stream_create() creates one; SELECT * FROM counter_streams shows them.",
            ),
        )
    };
    // SAFETY: takes any ids.
    let may = unsafe {
        let user = pg_sys::GetUserId();
        role(&stream.consumer).is_some_and(|role| pg_sys::has_privs_of_role(user, role))
            || compat::owns_relation(catalog::shared().stream, user)
    };
    if !may {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for stream {}", quoted(name)),
            )
            .set_hint(format!(
                "Members of the role {} may consume it.",
                quoted(&stream.consumer)
            )),
        )
    }
    stream
}

fn role(name: &[u8]) -> Option<pg_sys::Oid> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a look-up in the system cache.
    let role = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    (role != pg_sys::InvalidOid).then_some(role)
}

fn current_user() -> Vec<u8> {
    // SAFETY: the name of the current user, which exists.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), false);
        core::ffi::CStr::from_ptr(name).to_bytes().to_vec()
    }
}

/// Keeps the definition, which the current user may consume, from being dropped to the end of the transaction.
///
/// # Errors
/// As of [`consumable`].
fn lock_definition(name: &[u8]) -> Stream {
    loop {
        consumable(name);
        let locked = AsOwner::enter().run(
            "SELECT FROM ONLY counterx.stream WHERE name OPERATOR(pg_catalog.=) $1 FOR KEY SHARE",
            &[Bytes(name).into()],
        );
        // The one that was locked: another one may have had the name before. None: it was dropped meanwhile.
        if locked > 0 {
            return consumable(name);
        }
    }
}

/// Locks the stream's cursors in these lanes to the end of the transaction, and returns them. None: it was not started.
///
/// # Errors
/// Raises 55P03 where somebody else has locked one.
fn lock_cursors(stream: &Stream, lanes: &[usize]) -> Vec<Cursor> {
    let wanted: Vec<i32> = lanes.iter().map(|&lane| lane as i32).collect();
    let owner = AsOwner::enter();
    let locked: Vec<i32> = owner
        .rows(
            "SELECT c.lane FROM ONLY counterx.cursor c \
             WHERE c.stream OPERATOR(pg_catalog.=) $1 AND c.lane OPERATOR(pg_catalog.=) ANY ($2) \
             ORDER BY c.lane FOR NO KEY UPDATE SKIP LOCKED",
            &[Bytes(&stream.name).into(), wanted.into()],
            |row| row.get::<i32>(1),
        )
        .into_iter()
        .flatten()
        .collect();
    drop(owner);
    let current = current_snapshot();
    // SAFETY: the snapshot is active.
    let mut cursors = unsafe { stream::cursors_of(&stream.name, current.as_ptr()) };
    cursors.retain(|cursor| lanes.contains(&cursor.lane));
    if locked.len() < cursors.len() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
                format!(
                    "stream {} is being consumed by another transaction",
                    quoted(&stream.name)
                ),
            )
            .set_hint("Try again when that has ended. Several consumers can share a stream by lanes: counter_stream_next(stream, lanes => '{0,1,2,3}')."),
        )
    }
    cursors
}

fn why_lost(cursor: &Cursor) -> Option<Box<[u8]>> {
    let cell = stream::cell(cursor.lane);
    let is_gone = cursor.position.is_lost(cell.gone);
    let gone = is_gone.then(|| cell.why.reason().as_bytes().into());
    cursor.lost_reason.clone().or(gone)
}

fn is_live(cursors: &[Cursor]) -> bool {
    cursors.len() == LANES && cursors.iter().all(|cursor| why_lost(cursor).is_none())
}

/// # Errors
/// Raises 55000 where the stream was not started, or is lost.
fn check_live(stream: &Stream, cursors: &[Cursor], lanes: &[usize]) {
    if cursors.len() < lanes.len() {
        raise_new(stream)
    }
    if let Some(reason) = cursors.iter().find_map(why_lost) {
        raise_lost(stream, &String::from_utf8_lossy(&reason))
    }
}

/// What is handed out to be kept outside is what is so. A fold that is rolled back comes again with the same number, and
/// more in it: who has the position of the first one would not hear of that.
///
/// # Errors
/// Raises 25001 where the running transaction has folded.
fn check_all_committed() {
    if compaction::sees_own_fold() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
                "counter_stream_peek() cannot show a fold of its own transaction",
            )
            .set_detail(
                "Changes that are not committed are not to be acted on outside of the transaction.",
            )
            .set_hint(
                "Commit the transaction that has folded first, or use counter_stream_next().",
            ),
        )
    }
}

const NOT_READY: PgSqlErrorCode = PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE;

const BEGIN_ANEW: &str =
    "counter_stream_bootstrap() begins it anew, and returns what all counters are.";

fn raise_new(stream: &Stream) -> ! {
    raise(
        report(
            NOT_READY,
            format!("stream {} was not started", quoted(&stream.name)),
        )
        .set_hint("counter_stream_bootstrap() starts it, and returns what all counters are."),
    )
}

fn raise_lost(stream: &Stream, reason: &str) -> ! {
    raise(
        report(
            NOT_READY,
            format!("stream {} is lost: {reason}", quoted(&stream.name)),
        )
        .set_hint(BEGIN_ANEW),
    )
}

fn raise_elsewhere(stream: &Stream, detail: &str) -> ! {
    raise(
        report(
            NOT_READY,
            format!("the position is none of stream {}", quoted(&stream.name)),
        )
        .set_detail(detail.to_owned())
        .set_hint(BEGIN_ANEW),
    )
}

/// What the snapshot needs is gone. It may be older than the cursors are.
fn raise_outrun(stream: &Stream, lane: usize) -> ! {
    let latest = LatestSnapshot::take();
    // SAFETY: the snapshot is active.
    let cursors = unsafe { stream::cursors_of(&stream.name, latest.as_ptr()) };
    if is_live(&cursors) {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "changes that this snapshot needs were read and removed meanwhile",
            )
            .set_hint("Retry the transaction."),
        )
    }
    raise_lost(stream, stream::cell(lane).why.reason())
}

/// # Errors
/// Raises 55000 where it was said in another life of this database.
fn check_era(stream: &Stream, era: i64) {
    if era != wal::era() {
        raise(
            report(
                NOT_READY,
                format!(
                    "stream {} was consumed in another life of this database",
                    quoted(&stream.name)
                ),
            )
            .set_detail("A standby was promoted, a backup restored, the database copied or the server upgraded since: what consumers have seen may not be here.")
            .set_hint(BEGIN_ANEW),
        )
    }
}

fn uuid_text(bytes: [u8; 16]) -> String {
    pgrx::Uuid::from_bytes(bytes).to_string()
}

/// Moves locked cursors forward.
fn move_to(stream: &Stream, cursors: &[Cursor], to: &[Position; LANES], era: Option<i64>) {
    let moved = |cursor: &&Cursor| {
        to[cursor.lane] > cursor.position || era.is_some_and(|era| era != cursor.era)
    };
    let (mut lanes, mut folds, mut seqs) = (Vec::new(), Vec::new(), Vec::new());
    for cursor in cursors.iter().filter(moved) {
        let position = to[cursor.lane].max(cursor.position);
        lanes.push(cursor.lane as i32);
        folds.push(position.fold);
        seqs.push(position.seq);
    }
    if lanes.is_empty() {
        return;
    }
    AsOwner::enter().run(
        "UPDATE ONLY counterx.cursor c SET fold = n.fold, seq = n.seq, era = COALESCE($5, c.era) \
         FROM unnest($2, $3, $4) n (lane, fold, seq) \
         WHERE c.stream OPERATOR(pg_catalog.=) $1 AND c.lane OPERATOR(pg_catalog.=) n.lane",
        &[
            Bytes(&stream.name).into(),
            lanes.into(),
            folds.into(),
            seqs.into(),
            era.into(),
        ],
    );
}

/// A number among others: null where it is none of a bigint, as in `counter_list()`.
fn bigint(value: i128) -> Option<pg_sys::Datum> {
    i64::try_from(value).ok().map(Into::into)
}

/// name, value, delta, kind, alert, at, lane, fold
fn columns(change: &Change) -> [Option<pg_sys::Datum>; 8] {
    [
        Some(text_datum(&change.name)),
        bigint(change.value),
        bigint(change.delta),
        Some(text_datum(change.kind.name().as_bytes())),
        change.alert.as_deref().map(text_datum),
        Some(change.at.into()),
        Some((change.lane as i32).into()),
        Some(change.position.fold.into()),
    ]
}
