//! Queries that go by the latest snapshot, whatever snapshot the transaction is bound to.
//!
//! The bindings' own run with the transaction's snapshot as soon as it has a transaction id, and give it one
//! where they are to see its own changes.

use super::snapshot::LatestSnapshot;
use pgrx::datum::DatumWithOid;
use pgrx::{FromDatum, pg_sys};
use std::ffi::CString;

/// A row of a result, as long as that is read.
pub struct ResultRow {
    tuple: pg_sys::HeapTuple,
    columns: pg_sys::TupleDesc,
}

impl ResultRow {
    /// A column of this type, from 1 on; None: null.
    pub fn get<T: FromDatum>(&self, column: i32) -> Option<T> {
        let mut isnull = false;
        // SAFETY: a row of the running query's result, and the query has that column, of that type.
        unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.columns, column, &mut isnull);
            T::from_datum(datum, isnull)
        }
    }
}

/// Runs a query that changes nothing, and hands over its rows. It sees what others have committed and what the
/// transaction has done so far. False: the server has refused to run it at all.
///
/// # Errors
/// Those of the query.
pub fn for_each_row(
    query: &str,
    arguments: &[DatumWithOid],
    mut read: impl FnMut(&ResultRow),
) -> bool {
    let Ok(query) = CString::new(query) else {
        return false;
    };
    let mut types: Vec<pg_sys::Oid> = arguments.iter().map(DatumWithOid::oid).collect();
    let mut values: Vec<pg_sys::Datum> = Vec::new();
    let mut nulls: Vec<core::ffi::c_char> = Vec::new();
    for argument in arguments {
        let datum = argument.datum();
        nulls.push(if datum.is_none() { b'n' } else { b' ' } as core::ffi::c_char);
        values.push(datum.map_or(pg_sys::Datum::null(), |datum| datum.sans_lifetime()));
    }
    let _latest = LatestSnapshot::take();
    // SAFETY: connected for as long as the result is read; an error on the way has the server disconnect. The
    // arguments are of their types.
    unsafe {
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            return false;
        }
        let status = pg_sys::SPI_execute_with_args(
            query.as_ptr(),
            arguments.len() as i32,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            nulls.as_ptr(),
            true,
            0,
        );
        let table = pg_sys::SPI_tuptable;
        let done = status == pg_sys::SPI_OK_SELECT as i32 && !table.is_null();
        if done {
            for at in 0..(*table).numvals as usize {
                read(&ResultRow {
                    tuple: *(*table).vals.add(at),
                    columns: (*table).tupdesc,
                });
            }
        }
        pg_sys::SPI_finish();
        done
    }
}
