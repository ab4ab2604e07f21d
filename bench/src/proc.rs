//! What `/proc` tells of a server's processes.

use std::fs;

use anyhow::{Context, Result};

/// Seconds of processor time that the process has used, in user and in kernel mode. It has one thread.
pub(crate) fn cpu_seconds(pid: i32) -> Result<f64> {
    // Counts nanoseconds, where `stat` counts hundredths of a second.
    let path = format!("/proc/{pid}/schedstat");
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
    let nanoseconds: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
    Some(nanoseconds / 1e9)
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
        assert_eq!(parse_cpu("2500000000 77 12\n"), Some(2.5));
        assert_eq!(parse_cpu(""), None);
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
