//! What the triggers of tracked tables call.

use super::triggers::{Call, FirstArgument};
use crate::bounds::types;
use crate::pg::error::{quoted, raise, report};
use crate::pg::function::version_1;
use crate::pg::key_text::KeyType;
use crate::pg::lock;
use crate::pg::memory::kept_in_call;
use crate::pg::ports;
use crate::pg::relation::{ROW_EXCLUSIVE, Relation};
use crate::pg::varlena::text_datum;
use crate::store::catalog;
use crate::store::ours;
use crate::track::fill;
use crate::track::row::Counting;
use crate::track::tables::{self, Catalogs, Counts, Patience};
use crate::track::watch;
use counterx_core::parts::{NameBuilder, TypeName};
use pgrx::{PgSqlErrorCode, pg_guard, pg_sys, warning};
use std::cell::RefCell;
use std::collections::BTreeSet;

version_1!(
    pg_finfo_counterx_count_row,
    pg_finfo_counterx_count_truncate,
    pg_finfo_counterx_key,
    pg_finfo_counterx_tracked_ddl,
    pg_finfo_counterx_track_restored
);

/// What a query knows of one trigger.
struct Known {
    counting: Counting,
    /// Is there such a track? A table that was restored into another database has the triggers alone.
    counts: Counts,
    /// The subtransaction that has the table locked for what is counted.
    locked_in: pg_sys::SubTransactionId,
}

/// What the server has locked for a query belongs to that: when a cursor fails in a subtransaction, its locks go
/// with it, also those under which it has changed rows before that stay changed. Whoever empties the table, or
/// counts its rows, would not wait for such a transaction.
fn keep_locked(known: &mut Known, table: pg_sys::Oid) {
    let here = ports::subtransaction();
    if known.locked_in != here {
        lock::keep_locked(table, ROW_EXCLUSIVE);
        if matches!(known.counts, Counts::NotLookedAt | Counts::NotWhole) {
            counts_too_early(known.counting.type_name());
        }
        known.locked_in = here;
    }
}

fn counts_too_early(type_name: &[u8]) {
    watch::counts_too_early(&Catalogs::enter(), &String::from_utf8_lossy(type_name));
}

/// After each change of a row that may change what its group comes to.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_count_row(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let call = Call::new(fcinfo, "count_row");
    // SAFETY: what the trigger manager hands over; it calls with the same `flinfo` for all rows of a query,
    // which ends with the memory context of that.
    unsafe {
        let known = kept_in_call::<Known>(fcinfo, |memory| {
            let counting = Counting::of_trigger(call.trigger(), memory);
            let counts = counts_in(call.relation(), counting.type_name());
            if counts == Counts::No {
                warn_once(&call.table(), counting.type_name());
            }
            Known {
                counting,
                counts,
                // None: their numbers begin with 1.
                locked_in: 0,
            }
        });
        if known.counts != Counts::No {
            keep_locked(known, call.relation());
            if known.counts == Counts::NotWhole {
                return pg_sys::Datum::null();
            }
            let [old, new] = call.slots();
            if let Some(old) = old {
                known.counting.count(old, false);
            }
            if let Some(new) = new {
                known.counting.count(new, true);
            }
        }
    }
    pg_sys::Datum::null()
}

fn counts_in(table: pg_sys::Oid, type_name: &[u8]) -> Counts {
    match types::is_tracked(type_name) {
        true => tables::counts_in(table, &String::from_utf8_lossy(type_name)),
        false => Counts::No,
    }
}

/// Once in a session: a table that was copied or restored alone may be a busy one.
fn warn_once(table: &str, type_name: &[u8]) {
    thread_local! {
        static WARNED: RefCell<BTreeSet<Vec<u8>>> = const { RefCell::new(BTreeSet::new()) };
    }
    if WARNED.with_borrow_mut(|warned| warned.insert(type_name.to_vec())) {
        warning!(
            "rows of table \"{table}\" are not counted: they are not those of the track of type {}",
            quoted(type_name)
        );
    }
}

/// Before a table, or partition, is emptied. It is locked.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_count_truncate(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    let call = Call::new(fcinfo, "count_truncate");
    if let Some(FirstArgument(type_name)) = call.first_argument()
        && let counts = counts_in(call.relation(), type_name.as_bytes())
        && counts != Counts::No
        && let Some(table) = Relation::open_for_read(call.relation())
    {
        if matches!(counts, Counts::NotLookedAt | Counts::NotWhole) {
            counts_too_early(type_name.as_bytes());
        }
        if counts == Counts::NotWhole {
            return pg_sys::Datum::null();
        }
        let catalogs = Catalogs::enter();
        fill::subtract_rows(&catalogs, &table, &type_name);
    }
    pg_sys::Datum::null()
}

/// `counter_key(weight, part, …)`: what two versions of a row differ in if their groups, or what they add to
/// them, differ. Its type is what the conditions of the triggers need; what it says is for nobody to read.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_key(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: called by the server; the function has as many arguments as it says, of these types.
    unsafe {
        let count = usize::from((*fcinfo).nargs.unsigned_abs());
        let types = kept_in_call::<Vec<KeyType>>(fcinfo, |_| {
            let of = |at| pg_sys::get_fn_expr_argtype((*fcinfo).flinfo, at as i32);
            (0..count)
                .map(|at| KeyType::of(of(at)).unwrap_or_else(|refused| raise(refused.report())))
                .collect()
        });
        let mut key = NameBuilder::default();
        if let Some(no_type) = TypeName::new(b"-") {
            key.begin(no_type);
        }
        for (key_type, argument) in types.iter().zip((*fcinfo).args.as_slice(count)) {
            match argument.isnull {
                true => key.null(),
                false => key_type.append(argument.value, &mut key),
            }
        }
        text_datum(key.finish())
    }
}

/// After each command of DDL. Nothing is looked at where no table is tracked.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_tracked_ddl(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: what the server calls event triggers with has this context; anything else has another one, or
    // none.
    let is_event = unsafe {
        let context = (*fcinfo).context;
        !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_EventTriggerData
    };
    if !is_event {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_E_R_I_E_EVENT_TRIGGER_PROTOCOL_VIOLATED,
                "counterx.tracked_ddl() can only be called as an event trigger",
            )
            .set_hint("It is a part of the extension, and nothing to call."),
        );
    }
    // What we do ourselves; and what is done while the extension is made, updated or dropped.
    if !ours::is_at_work() && catalog::try_shared().is_ok() && types::are_any_tracked() {
        let catalogs = Catalogs::enter();
        let created = catalogs.rows(
            "SELECT c.objid FROM pg_event_trigger_ddl_commands() c
              WHERE c.classid = 'pg_class'::regclass AND c.command_tag LIKE 'CREATE %TABLE%'",
            &[],
            |row| row.get::<pg_sys::Oid>(1),
        );
        let created: Vec<pg_sys::Oid> = created.into_iter().flatten().collect();
        watch::after_ddl(&catalogs, &created, Patience::Waits);
    }
    pg_sys::Datum::null()
}

/// After rows of `counterx.track` were brought by SQL.
#[unsafe(no_mangle)]
#[pg_guard]
#[doc(hidden)]
pub extern "C-unwind" fn counterx_track_restored(
    fcinfo: pg_sys::FunctionCallInfo,
) -> pg_sys::Datum {
    let _call = Call::new(fcinfo, "track_restored");
    if !ours::is_at_work() {
        watch::restored(&Catalogs::enter());
    }
    pg_sys::Datum::null()
}
