//! Floor 2: what happens, in numbers: the cumulative columns of the view `counterx.stat`.
//!
//! May use [`crate::pg`]. Invariant: counting neither fails nor allocates, waits for nothing but an LWLock that is
//! held for a moment, and changes nothing else. Catalogs are read by those alone who look at the figures, and by workers.
//!
//! | module | what it does |
//! |---|---|
//! | [`local`] | what the running transaction has come to, and when others see it |
//! | [`memory`] | what all sessions share: the sums of each database |
//!
//! # How it works
//! A backend counts in variables of its own, and adds what it has to the sums of its database when its transaction
//! ends, whichever way: with one atomic addition for each figure that has changed, and no lock. Where the library
//! was not preloaded there are no sums, and nothing is kept.
//!
//! What was asked for and what was done counts whatever becomes of the transaction, as in the server's own
//! statistics: an increment that is rolled back was an increment, as an inserted row is one in
//! `pg_stat_user_tables.n_tup_ins`. What a rollback undoes ([`local::count_if_committed`])
//! counts when it is committed: folds, and what they have folded and removed; and all that the committer counts, which
//! tries again what it could not commit ([`local::work_for_others`]).

pub mod local;
pub mod memory;
