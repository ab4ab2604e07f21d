//! Floor 4: bounded counters. Types, what is reserved by transactions in flight, what is set aside.
//!
//! May use [`crate::read`], [`crate::settings`] and below. Invariant: nobody is granted what could take a
//! counter beyond its bounds, whichever of the transactions in flight commit.

pub mod accounts;
mod base;
mod call;
pub mod escrow;
pub mod holds;
pub mod levels;
pub mod limits;
pub mod reservations;
pub mod seen;
pub mod types;
pub mod unchanged;
pub mod windowed;
pub mod windows;
