//! What parts measure with: times of calls, the memory of processes, pages that a read visits.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long calls took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Does it, and keeps how long it took.
    pub(crate) fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = call();
        self.0.push(started.elapsed());
        result
    }

    pub(crate) fn add(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of the calls took at most, in milliseconds; 0 without calls.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (sorted.len() as f64 * share) as usize;
        let last = sorted.len().saturating_sub(1);
        sorted
            .get(place.min(last))
            .map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }
}

/// A count, for figures and ratios.
#[expect(
    clippy::cast_precision_loss,
    reason = "figures have a few digits, counts far less than 2^52"
)]
pub(crate) fn float(count: i64) -> f64 {
    count as f64
}

/// One figure in terms of another; 1 when there is nothing to compare.
pub(crate) fn ratio(end: f64, start: f64) -> f64 {
    if start > 0.0 && end > 0.0 {
        end / start
    } else {
        1.0
    }
}

/// A server's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// As its title says: `checkpointer`, `counterx worker`, `postgres postgres [local] idle`, ...
    pub(crate) title: String,
}

/// All processes of a server, the postmaster first.
///
/// # Errors
/// `/proc` cannot be read.
pub(crate) fn processes(postmaster: i32) -> Result<Vec<Process>> {
    let mut found = vec![Process {
        pid: postmaster,
        title: "postmaster".to_owned(),
    }];
    for entry in fs::read_dir("/proc").context("could not read /proc")? {
        let name = entry.context("could not read /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while we look.
        if status(pid, "PPid") == Some(i64::from(postmaster)) {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let title = line.trim_matches(['\0', ' ']);
            // `postgres: cluster_name: what it is`.
            let title = title.splitn(3, ": ").last().unwrap_or_default();
            found.push(Process {
                pid,
                title: title.to_owned(),
            });
        }
    }
    Ok(found)
}

/// The memory of its own that a process has, in MiB: shared buffers do not count. None: it is gone.
pub(crate) fn own_memory(pid: i32) -> Option<f64> {
    status(pid, "RssAnon").map(|kib| float(kib) / 1024.0)
}

/// The time that a process has had a processor, so far. Other than the time on the clock, it hardly
/// depends on what else the machine does. None: it is gone, or the kernel does not say.
pub(crate) fn busy_time(pid: i32) -> Option<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    let nanoseconds = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Duration::from_nanos(nanoseconds))
}

/// A number of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| {
        line.strip_prefix(field)
            .is_some_and(|rest| rest.starts_with(':'))
    })?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_times() {
        let mut times = Times::default();
        assert!(times.p50().abs() < f64::EPSILON);
        for millis in (0..100).rev() {
            times.add(Duration::from_millis(millis));
        }
        assert!((times.p50() - 50.0).abs() < 1e-9);
        assert!((times.p99() - 99.0).abs() < 1e-9);
        assert!((times.quantile(1.0) - 99.0).abs() < 1e-9);
        assert_eq!(times.len(), 100);
    }

    #[test]
    fn own_memory_is_seen_to_grow() {
        let pid = std::process::id().cast_signed();
        let before = own_memory(pid).unwrap();
        let block = vec![1_u8; 64 << 20];
        let after = own_memory(pid).unwrap();
        assert!(after > before + 48.0, "{before} {after} {}", block[12345]);
        assert_eq!(own_memory(-1), None);
    }

    #[test]
    fn busy_time_grows_with_work() {
        let pid = std::process::id().cast_signed();
        if let Some(before) = busy_time(pid) {
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(50) {
                std::hint::spin_loop();
            }
            assert!(busy_time(pid).unwrap() >= before);
        }
        assert_eq!(busy_time(-1), None);
    }

    #[test]
    fn nothing_to_compare_is_no_change() {
        assert!((ratio(0.0, 5.0) - 1.0).abs() < 1e-9);
        assert!((ratio(6.0, 5.0) - 1.2).abs() < 1e-9);
    }
}
