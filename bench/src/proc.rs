//! What `/proc` tells of a server's processes.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks per second of the times in `/proc`: USER_HZ, which is 100 wherever PostgreSQL runs
/// on Linux, whatever the kernel's own clock.
const TICKS: f64 = 100.0;

/// Seconds of processor time that the process has used, in user and in kernel mode.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
    parse_cpu(&text).with_context(|| format!("{path} says: {text}"))
}

/// Bytes of memory that are the process's own: neither files nor shared memory.
pub(crate) fn own_bytes(pid: i32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {path}"))?;
    parse_own(&text).with_context(|| format!("{path} does not tell RssAnon"))
}

fn parse_cpu(text: &str) -> Option<f64> {
    // The second field is the command's name in parentheses, and can hold both blanks and ')'.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    // Fields 14 and 15 of the line are numbers 11 and 12 after the first two.
    let user: f64 = fields.nth(11)?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

fn parse_own(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read() {
        let line = "42 (post gres) 1 S) S 7 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 1 0 9 9";
        assert_eq!(parse_cpu(line), Some(2.0));
        assert_eq!(parse_cpu("42 (x) S 1"), None);
        assert!(cpu_seconds(std::process::id().cast_signed()).is_ok());
    }

    #[test]
    fn memory_is_read() {
        assert_eq!(
            parse_own("Name:\tx\nRssAnon:\t    2048 kB\n"),
            Some(2_097_152.0)
        );
        assert_eq!(parse_own("Name:\tx\n"), None);
        assert!(own_bytes(std::process::id().cast_signed()).is_ok());
    }
}
