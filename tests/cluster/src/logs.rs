//! What a server's log tells of things that went wrong.

use anyhow::{Result, ensure};

/// The lines of a log that tell of something that went wrong.
pub fn bad_lines(log: &str) -> Vec<&str> {
    let marks = [
        " ERROR:",
        " FATAL:",
        " PANIC:",
        "was terminated by signal",
        "exited with exit code",
    ];
    log.lines()
        .filter(|line| marks.iter().any(|mark| line.contains(mark)))
        .collect()
}

/// # Errors
/// A process has crashed, or was killed.
pub fn nothing_crashed(log: &str) -> Result<()> {
    none(log, |line| line.contains("terminated by signal"))
}

/// For a test that kills: nobody but the test does. A crash of the engine's own would go unnoticed
/// among those.
///
/// # Errors
/// A process has crashed.
pub fn nothing_crashed_by_itself(log: &str) -> Result<()> {
    none(log, |line| {
        line.contains("terminated by signal") && !line.contains("by signal 9")
    })
}

fn none(log: &str, is_crash: impl Fn(&str) -> bool) -> Result<()> {
    let crashes: Vec<_> = bad_lines(log)
        .into_iter()
        .filter(|line| line.contains(" PANIC:") || is_crash(line))
        .collect();
    ensure!(crashes.is_empty(), "{crashes:#?}");
    Ok(())
}
