//! The memory of a server's processes, watched beside a load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use counterx_harness::Cluster;

use crate::measure::{own_memory, processes};
use crate::report::{PartReport, Unit};

/// What the processes of one kind had, of their own, in MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// The greatest of those that were there first.
    pub(super) start: f64,
    pub(super) most: f64,
}

/// By kind of process.
pub(super) type Memories = BTreeMap<String, Memory>;

/// The kind of process that a title tells of.
fn kind(title: &str) -> String {
    let backend = ["[local]", "127.0.0.1"]
        .iter()
        .any(|mark| title.contains(mark));
    if backend {
        "client backend".to_owned()
    } else {
        // What follows is about this very one.
        let end = title.find([':', '(']).unwrap_or(title.len());
        title[..end].trim().to_owned()
    }
}

/// Watches all processes while `body` runs.
///
/// # Errors
/// Those of the body, and of `/proc`.
pub(super) fn watched<T>(
    cluster: &Cluster,
    body: impl FnOnce() -> Result<T>,
) -> Result<(T, Memories)> {
    let postmaster = cluster
        .postmaster_pid()
        .ok_or_else(|| anyhow!("the server is down"))?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut found = Memories::new();
            while !over.load(Ordering::Relaxed) {
                look(postmaster, &mut found)?;
                std::thread::sleep(Duration::from_millis(100));
            }
            look(postmaster, &mut found)?;
            Ok::<_, anyhow::Error>(found)
        });
        let result = body();
        over.store(true, Ordering::Relaxed);
        let found = watcher
            .join()
            .unwrap_or_else(|_| Err(anyhow!("the watcher panicked")))?;
        ensure!(found.len() > 3, "only these processes were seen: {found:?}");
        Ok((result?, found))
    })
}

fn look(postmaster: i32, found: &mut Memories) -> Result<()> {
    let mut now: BTreeMap<String, f64> = BTreeMap::new();
    for process in processes(postmaster)? {
        if let Some(memory) = own_memory(process.pid) {
            let most = now.entry(kind(&process.title)).or_default();
            *most = most.max(memory);
        }
    }
    for (kind, memory) in now {
        let known = found.entry(kind).or_insert(Memory {
            start: memory,
            most: memory,
        });
        known.most = known.most.max(memory);
    }
    Ok(())
}

/// What those may grow by that live as long as the server, in MiB.
const LIMIT: f64 = 16.0;

/// Reports the processes that matter here, and whether those that stay have grown.
pub(super) fn report(report: &mut PartReport, when: &str, memories: &Memories) {
    const STAY: [&str; 5] = [
        "postmaster",
        "checkpointer",
        "walwriter",
        "counterx launcher",
        "counterx worker",
    ];
    for (kind, memory) in memories {
        let what = format!("own memory of a {kind} {when}");
        if STAY.contains(&kind.as_str()) {
            report.figure(&format!("{what}, at most"), memory.most, Unit::Mebibytes);
            let what = format!("{what}, growth");
            report.limited(&what, memory.most - memory.start, Unit::Mebibytes, LIMIT);
        } else if kind == "client backend" {
            report.figure(&format!("{what}, at most"), memory.most, Unit::Mebibytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn titles_are_understood() {
        assert_eq!(kind("postgres load [local] SELECT"), "client backend");
        assert_eq!(kind("counterx worker"), "counterx worker");
        assert_eq!(kind("postmaster"), "postmaster");
        assert_eq!(kind("walwriter "), "walwriter");
    }
}
