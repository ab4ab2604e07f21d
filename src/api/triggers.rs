//! Trigger functions, by the server's own calling convention.
//!
//! Those that the bindings make raise an internal error when somebody calls them by hand.

use crate::api;
use crate::bounds::types;
use crate::pg::error::{raise, report};
use crate::pg::function::version_1;
use crate::store::catalog;
use crate::store::columns::{history, hold, late};
use crate::store::ours;
use pgrx::trigger_support::called_as_trigger;
use pgrx::{FromDatum, PgSqlErrorCode, pg_guard, pg_sys};

version_1!(
    pg_finfo_counterx_type_changed,
    pg_finfo_counterx_ignore_replicated,
    pg_finfo_counterx_guard,
    pg_finfo_counterx_restored
);

/// What the trigger manager hands over.
///
/// # Errors
/// Raises 39P01 when somebody else has called the function.
fn trigger_data(fcinfo: pg_sys::FunctionCallInfo, function: &str) -> *mut pg_sys::TriggerData {
    // SAFETY: what the server has called us with.
    if !unsafe { called_as_trigger(fcinfo) } {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                format!("counterx.{function}() can only be called as a trigger"),
            )
            .set_hint("It is a part of the extension, and nothing to call."),
        );
    }
    // SAFETY: as was just found out.
    unsafe { (*fcinfo).context.cast() }
}

/// The event and the relation of a trigger's call.
pub(super) struct Call {
    data: *mut pg_sys::TriggerData,
}

/// The first argument that a trigger was made with.
pub(super) struct FirstArgument(pub String);

impl Call {
    /// # Errors
    /// As of [`trigger_data`].
    pub(super) fn new(fcinfo: pg_sys::FunctionCallInfo, function: &str) -> Self {
        let data = trigger_data(fcinfo, function);
        Self { data }
    }

    fn is(&self, event: u32, mask: u32) -> bool {
        // SAFETY: what the trigger manager hands over lives as long as the call.
        unsafe { (*self.data).tg_event & mask == event }
    }

    fn is_for_row(&self) -> bool {
        self.is(pg_sys::TRIGGER_EVENT_ROW, pg_sys::TRIGGER_EVENT_ROW)
    }

    /// The trigger.
    pub(super) fn trigger(&self) -> &pg_sys::Trigger {
        // SAFETY: what the trigger manager hands over lives as long as the call.
        unsafe { &*(*self.data).tg_trigger }
    }

    /// What the trigger was made with.
    pub(super) fn first_argument(&self) -> Option<FirstArgument> {
        let trigger = self.trigger();
        // SAFETY: so many texts that end with a zero.
        (trigger.tgnargs > 0).then(|| unsafe {
            let text = core::ffi::CStr::from_ptr(*trigger.tgargs);
            FirstArgument(text.to_string_lossy().into_owned())
        })
    }

    /// The row as it was and as it is now, after the event: None where there is none.
    pub(super) fn slots(&self) -> [Option<*mut pg_sys::TupleTableSlot>; 2] {
        let is = |event| self.is(event, pg_sys::TRIGGER_EVENT_OPMASK);
        // SAFETY: what the trigger manager hands over lives as long as the call.
        let (row, new) = unsafe { ((*self.data).tg_trigslot, (*self.data).tg_newslot) };
        if is(pg_sys::TRIGGER_EVENT_INSERT) {
            [None, Some(row)]
        } else if is(pg_sys::TRIGGER_EVENT_DELETE) {
            [Some(row), None]
        } else {
            [Some(row), Some(new)]
        }
    }

    /// The relation.
    pub(super) fn relation(&self) -> pg_sys::Oid {
        // SAFETY: as above; an open relation.
        unsafe { (*(*self.data).tg_relation).rd_id }
    }

    /// The name of the relation.
    pub(super) fn table(&self) -> String {
        // SAFETY: as above; an open relation has its pg_class row, and a name ends with a zero.
        unsafe {
            let relation = (*self.data).tg_relation;
            let name = (*(*relation).rd_rel).relname.data.as_ptr();
            core::ffi::CStr::from_ptr(name)
                .to_string_lossy()
                .into_owned()
        }
    }

    /// What a BEFORE trigger of a row returns when it has nothing against it.
    fn row(&self) -> pg_sys::Datum {
        // SAFETY: as above. An update's new row is the second one.
        unsafe {
            let new = (*self.data).tg_newtuple;
            let tuple = if new.is_null() {
                (*self.data).tg_trigtuple
            } else {
                new
            };
            pg_sys::Datum::from(tuple)
        }
    }

    /// A text column of the row, from 1 on; None when it is null.
    fn text(&self, column: usize) -> Option<Vec<u8>> {
        // SAFETY: as above.
        self.text_of(column, unsafe { (*self.data).tg_trigtuple })
    }

    /// The same of the row as it is, and as it will be after an update.
    fn texts(&self, column: usize) -> [Option<Vec<u8>>; 2] {
        // SAFETY: what the trigger manager hands over lives as long as the call.
        let rows = unsafe { [(*self.data).tg_trigtuple, (*self.data).tg_newtuple] };
        rows.map(|row| {
            if row.is_null() {
                None
            } else {
                self.text_of(column, row)
            }
        })
    }

    fn text_of(&self, column: usize, row: pg_sys::HeapTuple) -> Option<Vec<u8>> {
        // SAFETY: the row and its columns; a detoasted copy lives in the current memory context.
        unsafe {
            let mut isnull = false;
            let columns = (*(*self.data).tg_relation).rd_att;
            let datum = pg_sys::heap_getattr(row, column as i32, columns, &mut isnull);
            <&[u8]>::from_datum(datum, isnull).map(<[u8]>::to_vec)
        }
    }

    /// A bigint or "char" column of the row, from 1 on; None when it is null.
    fn number<T: FromDatum>(&self, column: usize) -> Option<T> {
        // SAFETY: as above.
        unsafe {
            let mut isnull = false;
            let columns = (*(*self.data).tg_relation).rd_att;
            let row = (*self.data).tg_trigtuple;
            let datum = pg_sys::heap_getattr(row, column as i32, columns, &mut isnull);
            T::from_datum(datum, isnull)
        }
    }
}

/// Does a row come from a subscription, and not from a call of ours that such a row has led to?
fn is_replicated() -> bool {
    // SAFETY: reads statics of the process.
    !ours::is_at_work() && unsafe { pg_sys::IsLogicalWorker() }
}

/// On the table of types, after each change of it: what sessions have in memory is outdated. Who changes
/// the table by hand, or restores it, is held to what the functions check.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_type_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let call = Call::new(fcinfo, "type_changed");
    types::changed_in(call.relation());
    // Objects of an older version take a dump of that version, to be updated then. Who has this library
    // counts nothing there.
    if !ours::is_at_work() && !catalog::is_of_older_version() {
        api::types::recheck_all();
    }
    pg_sys::Datum::null()
}

/// On the tables that restores fill, before each change of a row. A publication FOR ALL TABLES has them,
/// so a subscription brings the rows of another server. Those are not ours, and are left out.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_ignore_replicated(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    let call = Call::new(fcinfo, "ignore_replicated");
    if is_replicated() {
        return pg_sys::Datum::null();
    }
    if !ours::is_at_work()
        && call.is(pg_sys::TRIGGER_EVENT_INSERT, pg_sys::TRIGGER_EVENT_OPMASK)
        && call.table() == "history"
        && let Some(id) = call.number(history::ID)
    {
        api::histories::check_restored(id);
    }
    // What was asked for by them is not changed behind their backs: consumers would miss something.
    if !ours::is_at_work()
        && !call.is(pg_sys::TRIGGER_EVENT_INSERT, pg_sys::TRIGGER_EVENT_OPMASK)
        && matches!(&*call.table(), "stream" | "alert")
    {
        refuse(
            &call.table(),
            "counter_stream_drop() and counter_alert_drop() drop streams and alerts, and counter_stream_create() and counter_alert_create() create others.",
        )
    }
    call.row()
}

fn refuse(table: &str, hint: &str) -> ! {
    raise(
        report(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("table counterx.{table} is changed by counterx alone"),
        )
        .set_hint(hint.to_owned()),
    )
}

/// On the engine's own tables, before each change that comes by SQL: we write to them by other means.
/// What a subscription brings is left out; the rest is refused. On all tables, before a TRUNCATE.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_guard(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let call = Call::new(fcinfo, "guard");
    if ours::is_at_work() {
        return if call.is_for_row() {
            call.row()
        } else {
            pg_sys::Datum::null()
        };
    }
    if call.is_for_row() && is_replicated() {
        return pg_sys::Datum::null();
    }
    if matches!(&*call.table(), "token" | "hold" | "type") {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table counterx.{} cannot be truncated", call.table()),
            )
            .set_detail("A publication FOR ALL TABLES would have the tables of the subscribers emptied as well.")
            .set_hint("DELETE removes rows here and nowhere else."),
        )
    }
    refuse(
        &call.table(),
        "Change counters by calls such as counter_set() and counter_drop(). A dump of an older version is restored into that version, which ALTER EXTENSION counterx UPDATE then brings to this one.",
    )
}

/// On the tables that a restore fills: before each row of `late` and `hold`, and after all of them.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_restored(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let call = Call::new(fcinfo, "restored");
    if is_replicated() {
        return pg_sys::Datum::null();
    }
    let is_hold = call.table() == "hold";
    if call.is_for_row() {
        // What is NOT NULL says so by itself.
        if is_hold {
            for name in call.texts(hold::NAME).into_iter().flatten() {
                api::restore::check_hold(&name);
            }
        } else if let (Some(name), Some(delta)) = (call.text(late::NAME), call.number(late::DELTA))
        {
            let (uses, kind) = (call.number(late::USES), call.number(late::KIND));
            api::restore::check_row(&name, delta, uses, kind);
        }
        return call.row();
    }
    if is_hold {
        api::restore::after_holds();
    } else {
        api::restore::after_rows();
    }
    pg_sys::Datum::null()
}
