//! Floor 2: what is on disk. Where our tables are, their columns, how they are opened, and what a row says.
//!
//! May use [`crate::pg`] alone. Invariant: every table of ours is opened here or by a path that comes
//! here, so that what others have done to it by DDL is found before a row of it is touched; and gates are
//! opened before anything else.

pub mod as_owner;
pub mod backlog;
pub mod catalog;
pub mod columns;
pub mod expired;
pub mod gate;
pub mod history;
pub mod ours;
pub mod pending;
pub mod shape;
pub mod since;
pub mod state;
pub mod stream;
pub mod tables;
pub mod totals;
