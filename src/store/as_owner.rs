//! Commands on our own tables, by whoever is allowed to have them run: as the extension's owner.

use crate::pg::error::{raise, report};
use crate::pg::guc_scope::GucScope;
use crate::pg::relation::{ACCESS_SHARE, Relation};
use crate::pg::user::ActingAs;
use crate::pg::varlena::text_datum;
use crate::store::catalog;
use crate::store::gate;
use crate::store::ours::AtWork;
use pgrx::datum::DatumWithOid;
use pgrx::spi::SpiHeapTupleData;
use pgrx::{IntoDatum, PgSqlErrorCode, Spi, pg_sys};

/// An argument that is a text in the database's encoding.
pub struct Bytes<'a>(pub &'a [u8]);

impl IntoDatum for Bytes<'_> {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        Some(text_datum(self.0))
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::TEXTOID
    }
}

/// What runs while this lives runs as the extension's owner, whatever the session's settings are.
pub struct AsOwner {
    // Given back in this order.
    _work: AtWork,
    _settings: GucScope,
    _owner: ActingAs,
}

impl AsOwner {
    /// From now on.
    pub fn enter() -> Self {
        // Before anything else, as everybody does.
        gate::enter(0);
        Self::under_lease()
    }

    /// The same for who holds a lane's lease: who drops the extension waits for that, and may have the first gate.
    pub fn under_lease() -> Self {
        Self::of(catalog::shared().stream)
    }

    /// The same as the owner of this table of ours, which is kept from being dropped.
    ///
    /// # Errors
    /// Raises an error when it is gone.
    pub fn of(table: pg_sys::Oid) -> Self {
        let table =
            Relation::open_until_commit(table, ACCESS_SHARE).unwrap_or_else(|| catalog::gone());
        let owner = ActingAs::owner_of(&table);
        Self {
            _settings: GucScope::enter(&[
                (c"search_path", c"pg_catalog, pg_temp"),
                (c"row_security", c"off"),
            ]),
            _work: AtWork::begin(),
            _owner: owner,
        }
    }

    /// Runs a command by the snapshot that a command of the transaction would get now. Returns the rows that it
    /// returns, as `read` takes them, or none; and how many it has changed.
    ///
    /// # Errors
    /// Those of the command.
    pub fn rows<T>(
        &self,
        command: &str,
        arguments: &[DatumWithOid],
        mut read: impl FnMut(&SpiHeapTupleData) -> Result<T, pgrx::spi::Error>,
    ) -> Vec<T> {
        let found: Result<Vec<T>, pgrx::spi::Error> = Spi::connect_mut(|client| {
            let table = client.update(command, None, arguments)?;
            table.into_iter().map(|row| read(&row)).collect()
        });
        found.unwrap_or_else(|error| {
            raise(report(
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!("counterx could not work on its own tables: {error}"),
            ))
        })
    }

    /// Runs a command. Returns how many rows it has changed.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, command: &str, arguments: &[DatumWithOid]) -> usize {
        let done = Spi::connect_mut(|client| {
            client
                .update(command, None, arguments)
                .map(|table| table.len())
        });
        done.unwrap_or_else(|error| {
            raise(report(
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!("counterx could not change its own tables: {error}"),
            ))
        })
    }
}
