//! Starts a throw-away cluster, runs a command against it, and ends with its exit status.
//!
//! `with-cluster [--no-preload] [--conf NAME=VALUE]... [--name NAME] [--as-server-user] -- COMMAND
//! [ARGUMENT]...`
//!
//! The command finds the cluster through libpq's environment (PGHOST, PGPORT, PGUSER, PGDATABASE),
//! and its directories through `COUNTERX_DATA_DIR`, `COUNTERX_LOG` and `COUNTERX_PG_BIN`.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::{Cluster, pg_bin_dir};

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("with-cluster: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8> {
    let mut builder = Cluster::builder().name("with-cluster");
    let mut as_server_user = false;
    let mut arguments = env::args_os().skip(1);
    loop {
        let argument = arguments.next().context("no command given after --")?;
        match argument.to_str() {
            Some("--") => break,
            Some("--no-preload") => builder = builder.preload(false),
            Some("--as-server-user") => as_server_user = true,
            Some("--name") => builder = builder.name(&text(arguments.next(), "--name")?),
            Some("--conf") => {
                let setting = text(arguments.next(), "--conf")?;
                let (name, value) = setting
                    .split_once('=')
                    .with_context(|| format!("--conf {setting} is not NAME=VALUE"))?;
                builder = builder.conf(name, value);
            }
            _ => bail!(
                "unknown option {} (a command comes after --)",
                argument.display()
            ),
        }
    }
    let command: Vec<OsString> = arguments.collect();
    ensure!(!command.is_empty(), "no command given after --");

    let cluster = builder.start()?;
    let mut process = Command::new(&command[0]);
    process.args(&command[1..]);
    cluster.set_environment(&mut process);
    process
        .env("COUNTERX_DATA_DIR", cluster.data_dir())
        .env("COUNTERX_LOG", cluster.log_path())
        .env("COUNTERX_PG_BIN", pg_bin_dir()?);
    if as_server_user {
        cluster.set_user(&mut process);
    }
    let status = process
        .status()
        .with_context(|| format!("could not run {}", command[0].display()))?;
    // Like a shell: 128 and the signal's number for a command that was killed.
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(1);
    Ok(u8::try_from(code).unwrap_or(1))
}

fn text(argument: Option<OsString>, option: &str) -> Result<String> {
    argument
        .with_context(|| format!("{option} needs a value"))?
        .into_string()
        .map_err(|_| anyhow::anyhow!("the value of {option} is no UTF-8"))
}
