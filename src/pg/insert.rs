//! Inserting rows without the executor: into the heap, and into each index.

use super::error::{raise, report};
use super::ports;
use super::raw;
use super::relation::{ROW_EXCLUSIVE, Relation};
use pgrx::{PgSqlErrorCode, pg_sys};

/// A table, open for insertions to the end of the transaction.
///
/// For tables whose indexes are plain btrees: no expressions, predicates or exclusion constraints.
pub struct Inserter {
    table: Relation,
    indexes: Vec<Index>,
    command: pg_sys::CommandId,
}

impl Inserter {
    /// Opens the table and its indexes. None: it does not exist.
    ///
    /// # Errors
    /// Raises 0A000 when somebody has given the table an index of another kind.
    pub fn open(table: pg_sys::Oid) -> Option<Self> {
        let table = Relation::open_until_commit(table, ROW_EXCLUSIVE)?;
        let indexes = table
            .index_oids()
            .into_iter()
            .filter_map(|oid| Relation::open_until_commit(oid, ROW_EXCLUSIVE))
            .filter_map(Index::open)
            .collect();
        Some(Self {
            table,
            indexes,
            command: ports::writing_command(),
        })
    }

    /// The table.
    pub fn table(&self) -> &Relation {
        &self.table
    }

    /// Inserts a row. Publications do not ship it.
    ///
    /// # Safety
    /// The table has these columns, and those that were dropped; and no TOAST table that the values would
    /// need.
    pub unsafe fn insert<const N: usize>(
        &mut self,
        values: [Option<pg_sys::Datum>; N],
    ) -> pg_sys::ItemPointerData {
        // A publication FOR ALL TABLES must not ship the row.
        // SAFETY: the caller's promise.
        unsafe { self.insert_with(values, pg_sys::HEAP_INSERT_NO_LOGICAL as i32) }
    }

    /// The same of a row that is announced to logical decoding.
    ///
    /// # Safety
    /// As of [`Self::insert`].
    pub unsafe fn insert_announced<const N: usize>(&mut self, values: [Option<pg_sys::Datum>; N]) {
        // SAFETY: the caller's promise.
        unsafe { self.insert_with(values, 0) };
    }

    /// # Safety
    /// As of [`Self::insert`].
    unsafe fn insert_with<const N: usize>(
        &mut self,
        values: [Option<pg_sys::Datum>; N],
        options: i32,
    ) -> pg_sys::ItemPointerData {
        let nulls = values.map(|value| value.is_none());
        let datums = values.map(|value| value.unwrap_or(pg_sys::Datum::from(0)));
        let (table, columns) = (self.table.as_ptr(), self.table.tuple_desc());
        let as_made = self.table.columns() == N;
        let spare = if as_made {
            None
        } else {
            // SAFETY: the caller's promise.
            Some(unsafe { form_row(&self.table, &datums, &nulls) })
        };
        // SAFETY: the caller's promise; the tuple is ours to free. One guard for all: nothing here has
        // to be dropped.
        let mut tid = unsafe {
            pg_sys::ffi::pg_guard_ffi_boundary(|| {
                let tuple = spare.unwrap_or_else(|| {
                    raw::heap_form_tuple(columns, datums.as_ptr(), nulls.as_ptr())
                });
                raw::heap_insert(table, tuple, self.command, options, std::ptr::null_mut());
                let tid = (*tuple).t_self;
                raw::heap_freetuple(tuple);
                tid
            })
        };
        failpoint!("insert.in_heap");
        for index in &mut self.indexes {
            index.insert(&self.table, &datums, &nulls, &mut tid);
        }
        tid
    }
}

/// An index without expressions, predicate or exclusion constraint.
pub fn is_plain_index(index: &Relation) -> bool {
    // SAFETY: an open index has its pg_index row and tuple.
    unsafe {
        let tuple = (*index.as_ptr()).rd_indextuple;
        ports::column_is_null(tuple, pg_sys::Anum_pg_index_indexprs)
            && ports::column_is_null(tuple, pg_sys::Anum_pg_index_indpred)
            && !(*(*index.as_ptr()).rd_index).indisexclusion
    }
}

/// Makes a row of these values. Columns beyond them, which were dropped, are null.
///
/// # Safety
/// The values fit the table's columns.
pub unsafe fn form_row<const N: usize>(
    table: &Relation,
    values: &[pg_sys::Datum; N],
    nulls: &[bool; N],
) -> pg_sys::HeapTuple {
    let columns = table.tuple_desc();
    if table.columns() == N {
        // SAFETY: the caller's promise.
        return unsafe {
            pg_sys::heap_form_tuple(
                columns,
                values.as_ptr().cast_mut(),
                nulls.as_ptr().cast_mut(),
            )
        };
    }
    let (mut values, mut nulls) = (values.to_vec(), nulls.to_vec());
    values.resize(table.columns(), pg_sys::Datum::from(0));
    nulls.resize(table.columns(), true);
    // SAFETY: the caller's promise.
    unsafe { pg_sys::heap_form_tuple(columns, values.as_mut_ptr(), nulls.as_mut_ptr()) }
}

/// An index of the table; there is one more while REINDEX CONCURRENTLY builds it: that one has to
/// get what is inserted meanwhile.
struct Index {
    index: Relation,
    info: pg_sys::IndexInfo,
}

impl Index {
    /// None: it is not ready for insertions.
    fn open(index: Relation) -> Option<Self> {
        // SAFETY: an open index has its pg_index row.
        let form = unsafe { &*(*index.as_ptr()).rd_index };
        if !is_plain_index(&index) {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "tables of counterx cannot have partial, expression or exclusion indexes",
                )
                .set_hint("Drop the index that was added to a table of the schema counterx."),
            );
        }
        if !form.indisready {
            return None;
        }
        // What BuildIndexInfo() makes of a plain index, with less ado.
        let mut info = pg_sys::IndexInfo {
            type_: pg_sys::NodeTag::T_IndexInfo,
            ii_NumIndexAttrs: i32::from(form.indnatts),
            ii_NumIndexKeyAttrs: i32::from(form.indnkeyatts),
            ii_Unique: form.indisunique,
            ii_ReadyForInserts: true,
            // SAFETY: an open index has its pg_class row; reads a variable of the process.
            ii_Am: unsafe { (*(*index.as_ptr()).rd_rel).relam },
            // SAFETY: as above.
            ii_Context: unsafe { pg_sys::CurrentMemoryContext },
            ..Default::default()
        };
        // SAFETY: the array has indnatts entries.
        let columns = unsafe { form.indkey.values.as_slice(form.indnatts as usize) };
        info.ii_IndexAttrNumbers[..columns.len()].copy_from_slice(columns);
        Some(Self { index, info })
    }

    fn insert<const N: usize>(
        &mut self,
        table: &Relation,
        values: &[pg_sys::Datum; N],
        nulls: &[bool; N],
        tid: &mut pg_sys::ItemPointerData,
    ) {
        let mut keys = [pg_sys::Datum::from(0); pg_sys::INDEX_MAX_KEYS as usize];
        let mut key_nulls = [false; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: a plain index of this table: its columns are some of the row's.
        unsafe {
            let info = &mut self.info;
            let columns = &(&info.ii_IndexAttrNumbers)[..info.ii_NumIndexAttrs as usize];
            for (at, &column) in columns.iter().enumerate() {
                keys[at] = values[column as usize - 1];
                key_nulls[at] = nulls[column as usize - 1];
            }
            let unique = if info.ii_Unique {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
            } else {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
            };
            pg_sys::index_insert(
                self.index.as_ptr(),
                keys.as_mut_ptr(),
                key_nulls.as_mut_ptr(),
                tid,
                table.as_ptr(),
                unique,
                false,
                info,
            );
        }
    }
}
