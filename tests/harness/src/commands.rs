//! Running programs, and telling libpq's where their server is.

use std::env;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, anyhow};

/// The superuser of every cluster.
pub(crate) const SUPERUSER: &str = "postgres";

/// Runs a command to its end.
///
/// # Errors
/// It did not start, or it failed: with what it printed.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("could not start {command:?}"))?;
    checked(command, output)
}

pub(crate) fn checked(command: &Command, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    Err(anyhow!(
        "{} failed ({}):\n{}{}",
        command.get_program().to_string_lossy(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Gives `command` the environment in which libpq finds one server and nothing of any other.
pub(crate) fn point_at(command: &mut Command, socket_dir: &Path, port: u16) {
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PG") && !text.starts_with("PGRX") {
            command.env_remove(&name);
        }
    }
    command
        .env("PGHOST", socket_dir)
        .env("PGPORT", port.to_string())
        .env("PGUSER", SUPERUSER)
        .env("PGDATABASE", "postgres");
}
