//! Floor 2: what the running transaction remembers, in memory.
//!
//! May use [`crate::pg`] alone. Invariant: what a rolled-back subtransaction has noted is forgotten, and
//! after the end nothing is left; the functions that see to it neither allocate nor fail. Who calls them
//! when is said in [`crate::write::callbacks`].

pub mod notes;
pub mod pending;
pub mod restored;
