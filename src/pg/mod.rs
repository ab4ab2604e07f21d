//! All contact with the server that is not plain SQL: wrappers that own a server resource and
//! give it back, and the few things that the bindings lack.

pub mod array;
pub mod cell;
pub mod compat;
pub mod compiled;
pub mod error;
pub mod expression;
pub mod firing;
pub mod function;
pub mod guc_scope;
pub mod index_only;
pub mod insert;
pub mod json;
pub mod key_text;
pub mod lock;
pub mod memory;
pub mod number;
pub mod owner;
pub mod parsed;
pub mod ports;
pub mod progress;
pub mod query;
pub mod raw;
pub mod relation;
pub mod room;
pub mod scan;
pub mod shared;
pub mod snapshot;
pub mod spot;
pub mod standby;
pub mod subtransaction;
pub mod time;
pub mod turns;
pub mod user;
pub mod varlena;
pub mod waiting;
