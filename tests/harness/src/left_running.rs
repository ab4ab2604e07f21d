//! Servers that outlive the process which has started them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::commands::point_at;
use crate::paths::{SOCKET_PARENT, pg_bin_dir};
use crate::polling::{START_STOP_DEADLINE, poll_until};
use crate::process::Process;

/// A server that [`Cluster::leave_running`](crate::Cluster::leave_running) left to itself.
#[derive(Clone, Debug)]
pub struct LeftRunning {
    directory: PathBuf,
    process: Option<Process>,
    socket_dir: PathBuf,
    port: u16,
}

impl LeftRunning {
    /// Finds the cluster in `directory`, running or not; `None` when there is none.
    ///
    /// # Errors
    /// Its lock file can't be understood.
    pub fn find(directory: &Path) -> Result<Option<Self>> {
        if !directory.exists() {
            return Ok(None);
        }
        let data = directory.join("data");
        let mut found = Self {
            directory: directory.to_owned(),
            process: None,
            socket_dir: PathBuf::new(),
            port: 0,
        };
        let lock_file = data.join("postmaster.pid");
        if let Ok(text) = fs::read_to_string(&lock_file) {
            // pid, data directory, start time, port, socket directory, and more.
            let lines: Vec<&str> = text.lines().collect();
            let [pid, _, _, port, socket_dir, ..] = lines[..] else {
                bail!("{} has too few lines", lock_file.display());
            };
            // The number can be anybody's by now, when the server was killed.
            found.process =
                Process::find(pid.trim().parse()?).filter(|process| process.has_argument(&data));
            found.port = port.parse()?;
            found.socket_dir = PathBuf::from(socket_dir);
        }
        Ok(Some(found))
    }

    /// Whether the server runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_alive)
    }

    /// Such a `psql` as opens on the server.
    ///
    /// # Errors
    /// There is no psql.
    pub fn psql(&self) -> Result<Command> {
        let mut command = Command::new(pg_bin_dir()?.join("psql"));
        point_at(&mut command, &self.socket_dir, self.port);
        Ok(command)
    }

    /// Stops the server at once and removes all of it.
    ///
    /// # Errors
    /// It does not stop, or a file can't be removed.
    pub fn remove(self) -> Result<()> {
        if let Some(process) = self.process {
            // It may end by itself just now.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGQUIT);
            poll_until("the server to stop", START_STOP_DEADLINE, || {
                Ok(!process.is_alive())
            })?;
        }
        // Only what a harness has made: a lock file can name any other directory.
        if self.socket_dir.starts_with(SOCKET_PARENT) && self.socket_dir != Path::new(SOCKET_PARENT)
        {
            let _ = fs::remove_dir_all(&self.socket_dir);
        }
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("could not remove {}", self.directory.display()))
    }
}
