//! Other processes: what `/proc` tells of them, their end, and signals to them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::polling::POLL_PAUSE;

/// One process, told apart from a later one of the same number by when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    start_time: u64,
}

/// The fields of `/proc/PID/stat` that matter here.
struct Stat {
    state: char,
    parent: i32,
    start_time: u64,
}

impl Process {
    /// The process of that number, if there is one.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let start_time = read_stat(pid)?.start_time;
        Some(Self { pid, start_time })
    }

    /// Whether it was started with this argument.
    pub(crate) fn has_argument(&self, argument: &Path) -> bool {
        fs::read(format!("/proc/{}/cmdline", self.pid)).is_ok_and(|line| {
            line.split(|&byte| byte == 0)
                .any(|word| word == argument.as_os_str().as_bytes())
        })
    }

    /// Whether it still runs. A zombie does not: orphans end as zombies for good where nobody
    /// reaps them, as in a container with a simple init.
    pub(crate) fn is_alive(&self) -> bool {
        read_stat(self.pid).is_some_and(|stat| {
            stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X')
        })
    }
}

/// The processes whose parent is `parent`.
pub(crate) fn children_of(parent: i32) -> Result<Vec<Process>> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").context("could not read /proc")? {
        let name = entry.context("could not read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        if let Some(stat) = read_stat(pid)
            && stat.parent == parent
        {
            children.push(Process {
                pid,
                start_time: stat.start_time,
            });
        }
    }
    Ok(children)
}

pub(crate) fn child_pid(child: &Child) -> i32 {
    // Process ids are positive ints; std merely hands them out unsigned.
    child.id().cast_signed()
}

pub(crate) fn wait_for_exit(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + deadline;
    loop {
        let status = child.try_wait().context("could not wait for a process")?;
        if status.is_some() || Instant::now() > end {
            return Ok(status);
        }
        thread::sleep(POLL_PAUSE);
    }
}

/// Sends SIGKILL to one process.
///
/// # Errors
/// There is no such process, or it is not ours to kill.
pub fn kill9(pid: i32) -> Result<()> {
    signal(pid, Signal::SIGKILL)
}

/// Kills one that somebody chooses; whoever was chosen may have ended by itself just then, and another one is
/// chosen.
///
/// # Errors
/// As of [`kill9`], and those of `choose`.
pub fn kill9_chosen(mut choose: impl FnMut() -> Result<i32>) -> Result<()> {
    loop {
        let pid = choose()?;
        match kill9(pid) {
            Err(error) if error.downcast_ref() == Some(&Errno::ESRCH) => {}
            killed => return killed,
        }
    }
}

/// Stops one process with SIGSTOP, until [`resume`].
///
/// # Errors
/// As of [`kill9`].
pub fn pause(pid: i32) -> Result<()> {
    signal(pid, Signal::SIGSTOP)
}

/// Lets a process go on that [`pause`] has stopped.
///
/// # Errors
/// As of [`kill9`].
pub fn resume(pid: i32) -> Result<()> {
    signal(pid, Signal::SIGCONT)
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    // Zero, one and the negative numbers mean whole groups, init and everybody.
    ensure!(pid > 1, "{pid} is no process id to signal");
    kill(Pid::from_raw(pid), signal).with_context(|| format!("could not send {signal} to {pid}"))
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is the command's name in parentheses, and can hold both blanks and ')'.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        // Field 22 of the line is number 17 after these two.
        start_time: fields.nth(17)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_with_an_odd_name_is_understood() {
        let line = "42 (post gres) 1 S) Z 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 9 9";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.parent), ('Z', 7));
        assert_eq!(stat.start_time, 987_654);
    }

    #[test]
    fn a_child_is_found_and_a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        let children = children_of(std::process::id().cast_signed()).unwrap();
        let process = *children.iter().find(|process| process.pid == pid).unwrap();
        assert!(process.is_alive());
        // Its input ends, so does it; nobody has waited for it yet.
        drop(child.stdin.take());
        crate::polling::poll_until("cat to end", std::time::Duration::from_secs(30), || {
            Ok(!process.is_alive())
        })
        .unwrap();
        child.wait().unwrap();
    }
}
