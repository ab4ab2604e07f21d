//! The executor's callbacks.
//!
//! # Invariants
//! - Nothing is opened before the first row is asked for: a plan may be explained, or its node
//!   never be reached.
//! - What is open belongs to the resource owner of the query. [`end`] gives it back; where an
//!   error keeps the executor from calling that, the server does, and only our own memory is left:
//!   it goes with the query's memory context.

use crate::pg::compat;
use crate::pg::error::{raise, report};
use crate::pg::memory::MemoryArena;
use crate::pg::room;
use crate::pg::varlena::text_bytes;
use crate::query::fdw::condition::Kind;
use crate::query::listing::{Entry, Listing, Wanted};
use crate::query::shown;
use counterx_core::lane::MAX_NAME_BYTES;
use counterx_core::names::NameRange;
use counterx_core::windows::Shown;
use pgrx::{PgList, PgMemoryContexts, PgSqlErrorCode, pg_guard, pg_sys};
use std::ffi::CString;

/// A running scan.
struct Scan {
    conditions: Vec<(Kind, *mut pg_sys::ExprState)>,
    listing: Option<Listing>,
    /// As of the beginning: a cursor shows by its snapshot, and by the time of that.
    shown: Shown,
    /// What the listing allocates.
    arena: MemoryArena,
}

impl Scan {
    /// Ends the listing in good order.
    fn stop(&mut self) {
        self.listing = None;
        // SAFETY: the listing was all that used it.
        unsafe { self.arena.reset() };
    }
}

impl Drop for Scan {
    /// The query's memory goes. A listing that is still there was left by an error.
    fn drop(&mut self) {
        if let Some(listing) = self.listing.take() {
            listing.abandon();
        }
    }
}

/// The node's scan; none when the plan is only explained.
///
/// # Safety
/// `node` is a node of ours, and nobody else uses the result meanwhile.
unsafe fn scan_of<'a>(node: *mut pg_sys::ForeignScanState) -> Option<&'a mut Scan> {
    // SAFETY: set by begin() alone.
    unsafe { (*node).fdw_state.cast::<Scan>().as_mut() }
}

/// The kinds of the node's conditions, and their operands as the plan has them.
///
/// # Safety
/// `node` is a node of ours.
unsafe fn conditions_of(node: *mut pg_sys::ForeignScanState) -> (Vec<Kind>, PgList<pg_sys::Node>) {
    // SAFETY: make_plan() made the plan.
    unsafe {
        let plan = (*node).ss.ps.plan.cast::<pg_sys::ForeignScan>();
        let kinds = (*plan).fdw_private;
        let count = if kinds.is_null() { 0 } else { (*kinds).length };
        let kinds = (0..count)
            .map(|i| Kind::of_number(pg_sys::list_nth_int(kinds, i)).expect("a number of ours"))
            .collect();
        (kinds, PgList::from_pg((*plan).fdw_exprs))
    }
}

/// `BeginForeignScan`
#[pg_guard]
pub unsafe extern "C-unwind" fn begin(node: *mut pg_sys::ForeignScanState, flags: i32) {
    // SAFETY: the node is a new one of ours. The current memory context is the query's.
    unsafe {
        check_columns((*(*node).ss.ss_ScanTupleSlot).tts_tupleDescriptor);
        if flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 != 0 {
            return;
        }
        let (kinds, operands) = conditions_of(node);
        let operands = pg_sys::ExecInitExprList(operands.as_ptr(), &raw mut (*node).ss.ps);
        let operands = PgList::<pg_sys::ExprState>::from_pg(operands);
        let context = (*(*node).ss.ps.state).es_query_cxt;
        let scan = Scan {
            conditions: kinds.into_iter().zip(operands.iter_ptr()).collect(),
            listing: None,
            shown: shown::now(),
            arena: MemoryArena::below(context),
        };
        (*node).fdw_state = PgMemoryContexts::For(context)
            .leak_and_drop_on_delete(scan)
            .cast();
    }
}

/// A superuser could make other foreign tables of this wrapper: not with other columns.
///
/// # Safety
/// A live descriptor.
unsafe fn check_columns(columns: pg_sys::TupleDesc) {
    // SAFETY: the caller's promise.
    let types: Vec<pg_sys::Oid> = unsafe {
        (0..(*columns).natts)
            .map(|i| pg_sys::SPI_gettypeid(columns, i + 1))
            .collect()
    };
    if types != [pg_sys::TEXTOID, pg_sys::NUMERICOID] {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FDW_INVALID_DATA_TYPE_DESCRIPTORS,
                "a foreign table of the wrapper counterx must have the columns (name text, value numeric)",
            )
            .set_hint("Use the view counters."),
        );
    }
}

/// `IterateForeignScan`. The current memory context is that of the row.
#[pg_guard]
pub unsafe extern "C-unwind" fn iterate(
    node: *mut pg_sys::ForeignScanState,
) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the node is ours; check_columns() has seen the slot's two columns. Its values live
    // until the next call.
    unsafe {
        let slot = (*node).ss.ss_ScanTupleSlot;
        compat::clear_slot(slot);
        let Some(scan) = scan_of(node) else {
            return slot;
        };
        let listing = match &mut scan.listing {
            Some(listing) => listing,
            None => {
                let wanted = evaluate(&scan.conditions, (*node).ss.ps.ps_ExprContext);
                let snapshot = (*(*node).ss.ps.state).es_snapshot;
                scan.listing.insert(Listing::start(
                    scan.shown.clone(),
                    wanted,
                    snapshot,
                    &scan.arena,
                ))
            }
        };
        if let Some(Entry { name, value, .. }) = listing.next() {
            (*slot).tts_values.write(name);
            (*slot).tts_values.add(1).write(value);
            std::slice::from_raw_parts_mut((*slot).tts_isnull, 2).fill(false);
            pg_sys::ExecStoreVirtualTuple(slot);
        }
        slot
    }
}

/// The names that all conditions leave.
///
/// # Safety
/// The expressions belong to a running node, and so does the context.
unsafe fn evaluate(
    conditions: &[(Kind, *mut pg_sys::ExprState)],
    context: *mut pg_sys::ExprContext,
) -> Wanted {
    let mut range = NameRange::all();
    let mut any_of: Option<Vec<Vec<u8>>> = None;
    for &(kind, operand) in conditions {
        let mut is_null = false;
        // SAFETY: the caller's promise.
        let operand = unsafe { pg_sys::ExecEvalExprSwitchContext(operand, context, &mut is_null) };
        if is_null {
            // Nothing compares with NULL.
            return Wanted::Nothing;
        }
        if kind == Kind::AnyOf {
            // SAFETY: the operand of this kind is an array of texts.
            let mut names = unsafe { names_of_array(operand) };
            if let Some(others) = any_of {
                names.retain(|name| others.contains(name));
            }
            any_of = Some(names);
        } else {
            // SAFETY: the operand of all other kinds is a text.
            kind.narrow(&mut range, unsafe { name_of_text(operand) });
        }
    }
    Wanted::new(range, any_of)
}

/// # Safety
/// The datum is a text, or binary compatible with it.
unsafe fn name_of_text<'a>(datum: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the caller's promise; a detoasted copy lives in the current memory context.
    unsafe { text_bytes(pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr()).into()) }
}

/// # Safety
/// The datum is an array of texts, or binary compatible with it.
unsafe fn names_of_array(datum: pg_sys::Datum) -> Vec<Vec<u8>> {
    let (mut elements, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
    // SAFETY: the caller's promise; these are the length, passing and alignment of texts.
    unsafe {
        let array = pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        pg_sys::deconstruct_array(
            array,
            (*array).elemtype,
            -1,
            false,
            pg_sys::TYPALIGN_INT as _,
            &mut elements,
            &mut nulls,
            &mut count,
        );
        let texts = (0..count as usize)
            .filter(|&i| !*nulls.add(i))
            .map(|i| name_of_text(*elements.add(i)));
        // Nothing longer is a name.
        let names = texts.filter(|text| text.len() <= MAX_NAME_BYTES);
        room::collect(names.map(<[u8]>::to_vec))
    }
}

/// `ReScanForeignScan`: from the start, where parameters may have changed.
#[pg_guard]
pub unsafe extern "C-unwind" fn rescan(node: *mut pg_sys::ForeignScanState) {
    // SAFETY: the node is ours; its slot must not point to rows of the old scan.
    unsafe {
        compat::clear_slot((*node).ss.ss_ScanTupleSlot);
        if let Some(scan) = scan_of(node) {
            scan.stop();
        }
    }
}

/// `EndForeignScan`
#[pg_guard]
pub unsafe extern "C-unwind" fn end(node: *mut pg_sys::ForeignScanState) {
    // SAFETY: the node is ours.
    if let Some(scan) = unsafe { scan_of(node) } {
        scan.stop();
    }
}

/// `ExplainForeignScan`: one line that says what is read.
#[pg_guard]
pub unsafe extern "C-unwind" fn explain(
    node: *mut pg_sys::ForeignScanState,
    state: *mut pg_sys::ExplainState,
) {
    // SAFETY: the node is ours. EXPLAIN has shown the node's filter just before, which has all
    // conditions, and so has set the context for this node's expressions.
    unsafe {
        let (kinds, operands) = conditions_of(node);
        let qualified =
            (*state).verbose || (!(*state).rtable.is_null() && (*(*state).rtable).length > 1);
        // In the encoding of the database, whatever that is.
        let shown: Vec<Vec<u8>> = kinds
            .iter()
            .zip(operands.iter_ptr())
            .map(|(kind, operand)| {
                let text =
                    pg_sys::deparse_expression(operand, (*state).deparse_cxt, qualified, false);
                let text = std::ffi::CStr::from_ptr(text).to_bytes();
                let (open, close) = match kind {
                    Kind::AnyOf => ("(", "))"),
                    _ => ("", ")"),
                };
                let operator = kind.operator();
                [
                    format!("(name {operator} {open}").as_bytes(),
                    text,
                    close.as_bytes(),
                ]
                .concat()
            })
            .collect();
        let label = match kinds.iter().any(|kind| kind.is_lookup()) {
            true => c"Name Lookup",
            false => c"Name Range",
        };
        let text = if shown.is_empty() {
            b"all".to_vec()
        } else {
            shown.join(b" AND ".as_slice())
        };
        let text = CString::new(text).expect("a C string's text");
        pg_sys::ExplainPropertyText(label.as_ptr(), text.as_ptr(), state);
    }
}
