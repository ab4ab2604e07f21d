//! One server for all tests of a file.

use std::sync::OnceLock;
use std::time::Duration;

use counterx_harness::{Cluster, ClusterBuilder};

/// How long a test waits for something that must happen. Generous: it only bounds a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A cluster in which a short load sees hundreds of folds and a handful of truncations.
pub fn folding_hard(name: &str) -> ClusterBuilder {
    Cluster::builder()
        .name(name)
        .conf("counterx.compaction_interval", "20ms")
        .conf("counterx.compaction_threshold", "50")
        .conf("counterx.log_max_size", "64kB")
}

/// The server of this test binary, started by `start` for whichever test comes first. It is never
/// dropped: the harness's watcher takes it down when the process has ended.
///
/// # Panics
/// When the server does not start: no test of the file can say anything then.
pub fn shared(start: impl FnOnce() -> anyhow::Result<Cluster>) -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(|| match start() {
        Ok(cluster) => cluster,
        Err(error) => panic!("the server did not start: {error:#}"),
    })
}
