//! Floor 5: hits, increments that count by themselves. A session hands its delta to the *committer* of its
//! database, a process that adds up what many sessions hand over, commits it in one ordinary transaction,
//! and wakes them. Only with the library in `shared_preload_libraries`.
//!
//! May use [`crate::bounds`], [`crate::store`] and below. Invariant: a hit that was handed over is in one commit,
//! or its caller has an error that says what is known of it, and nobody waits for ever.
//!
//! | module | what it does |
//! |---|---|
//! | [`caller`] | a session's side: handing over, waiting, giving up |
//! | [`memory`] | what sessions and committers share |
//! | [`failure`] | errors that are handed back |
//!
//! The committer itself is `process/committer.rs`, its transactions `process/batch.rs`.
//!
//! The protocol is `counterx_core::hits`, whose tests go through all interleavings.
//!
//! # The committer is an ordinary client
//! It calls what the SQL functions call, and commits. So types, bounds, the flush, folds and standbys work
//! as for everybody, and nothing of the engine knows that there are hits.
//!
//! # Note about locking
//! A place belongs to one database at a time. Its LWLock protects the place and its entries; it is held for
//! a few dozen instructions, or once for a batch, none of which can fail, and nothing is waited for
//! meanwhile. One more LWLock, taken before those, keeps places from changing hands.
//!
//! # Note about waiting
//! A session waits for the committer by its latch, which the deadlock detector does not see. So the
//! committer must not wait for long for what that session may hold: its `lock_timeout` is short, and who
//! holds a lock on a gate himself is refused ([`caller`]). The committer does not wait for synchronous
//! standbys either: who wants that does it himself, with the position that the answer has.
//!
//! A session that is woken, or not, looks again every second.

pub mod caller;
pub mod failure;
pub mod memory;
