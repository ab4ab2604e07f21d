//! Throw-away PostgreSQL clusters for tests, demo and benchmark.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = counterx_harness::Cluster::builder()
//!     .conf("counterx.compaction_interval", "100ms")
//!     .start()?;
//! let mut client = cluster.connect()?;
//! client.batch_execute("CREATE EXTENSION counterx")?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! - The server comes from `$COUNTERX_PG_BIN`, a private copy of PostgreSQL that `make` prepares.
//! - A cluster lives in a directory of its own below `$COUNTERX_RUN_DIR` (`target/run` when that
//!   is not set), its sockets in a short directory of their own below `/tmp`.
//! - The postmaster is a direct child of this process, so that its end is seen and it is reaped:
//!   a killed postmaster which stays behind as a zombie makes its lock files look alive.
//! - PostgreSQL refuses to run as root. Root runs it as the user `postgres` instead.
//! - A watcher process holds the other end of a pipe to this one. When this process ends without
//!   having dropped its clusters (Ctrl-C, `kill -9`), the watcher stops the server and removes
//!   what it left.
//!
//! # What is not guaranteed
//! The base settings have `fsync = off`: a killed process loses nothing by that, a power cut would.

mod builder;
mod cluster;
mod commands;
mod left_running;
mod paths;
mod polling;
mod process;
mod watcher;

pub use builder::ClusterBuilder;
pub use cluster::{Cluster, StopMode};
pub use commands::run;
pub use left_running::LeftRunning;
pub use paths::{free_port, pg_bin_dir, run_dir};
pub use polling::{poll_to_end, poll_until};
pub use process::{kill9, kill9_chosen, pause, resume};
