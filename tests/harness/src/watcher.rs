//! What becomes of a cluster whose owner dies.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// What a watcher does: nothing until its standard input ends, which it does when the owner of the
/// cluster has died. Then it stops the server, if the lock file names a live process that really
/// runs this data directory, and removes the cluster.
const SCRIPT: &str = r#"
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
ours() { [ -n "$pid" ] && tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF "$1/data"; }
if ours "$1"; then
    kill -QUIT "$pid"
    tries=0
    while ours "$1" && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
    if ours "$1"; then kill -KILL "$pid"; fi
fi
rm -rf "$1" "$2"
"#;

/// The process that does so.
#[derive(Debug)]
pub(crate) struct Watcher(Child);

impl Watcher {
    /// Starts one for the cluster in these directories.
    pub(crate) fn start(directory: &Path, socket_dir: &Path) -> Result<Self> {
        Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .args([directory, socket_dir])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of a terminal's Ctrl-C, which is what it waits for.
            .process_group(0)
            .spawn()
            .map(Self)
            .context("could not start the cluster's watcher")
    }

    /// Ends it, and nothing else.
    pub(crate) fn dismiss(mut self) {
        // Killed while it still waits: its standard input ends only with its handle.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
