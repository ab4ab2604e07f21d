//! A Redis server, and runs of redis-benchmark against it.
//!
//! The programs are Debian's, which `scripts/bench` unpacks; nothing is installed, and no service
//! starts. The server lives in the cluster's directory, listens on a Unix socket alone, and ends with
//! this process.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use counterx_harness::{Cluster, poll_until, run};

/// Starts the server, and ends it at the end of the input.
const KEEPER: &str = r#"
"$@" &
read -r _
kill $!
wait
"#;

const START_STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Seconds that a run of redis-benchmark may take.
const RUN_DEADLINE: u32 = 600;

/// A limit that renews itself: what is counted in a key that expires so many seconds after its first count.
const LIMIT: &str = "\
local n = redis.call('INCR', KEYS[1])
if n == 1 then redis.call('EXPIRE', KEYS[1], ARGV[2]) end
if n > tonumber(ARGV[1]) then return 0 end
return 1";

/// How a counter is counted.
#[derive(Clone, Debug)]
pub(crate) enum Counting {
    Incr,
    /// By the script of this hash, up to a maximum that is not reached, in windows that no run is as long as.
    Limit(String),
}

/// When Redis has what it acknowledges on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fsync {
    Always,
    EverySecond,
}

impl Fsync {
    fn name(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySecond => "everysec",
        }
    }
}

/// A running server, stopped when dropped.
pub(crate) struct Redis {
    directory: PathBuf,
    keeper: Child,
    input: Option<ChildStdin>,
    socket: PathBuf,
}

/// Where the programs are; none where they were not unpacked.
pub(crate) fn programs() -> Option<PathBuf> {
    let directory = PathBuf::from(env::var_os("COUNTERX_REDIS")?).join("usr/bin");
    directory.join("redis-server").exists().then_some(directory)
}

impl Redis {
    pub(crate) fn start(cluster: &Cluster, fsync: Fsync) -> Result<Self> {
        let directory = cluster.directory().join(format!("redis-{}", fsync.name()));
        // As the user that it runs as.
        let mut mkdir = Command::new("mkdir");
        mkdir.arg(&directory);
        cluster.set_user(&mut mkdir);
        run(&mut mkdir)?;
        let socket = cluster.socket_dir().join(format!("redis-{}", fsync.name()));
        let mut command = Command::new("sh");
        command
            .args(["-c", KEEPER, "sh"])
            .arg(program("redis-server")?)
            .args(["--port", "0", "--save", "", "--daemonize", "no"])
            .args(["--appendonly", "yes", "--appendfsync", fsync.name()])
            .arg("--unixsocket")
            .arg(&socket)
            .arg("--dir")
            .arg(&directory)
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        set_libraries(&mut command)?;
        cluster.set_user(&mut command);
        let mut keeper = command.spawn().context("could not start redis-server")?;
        let input = keeper.stdin.take();
        let redis = Self {
            directory,
            keeper,
            input,
            socket,
        };
        poll_until("redis-server to start", START_STOP_DEADLINE, || {
            Ok(redis.ask(&["PING"]).is_ok_and(|answer| answer == "PONG"))
        })?;
        Ok(redis)
    }

    pub(crate) fn version() -> Result<String> {
        let mut command = Command::new(program("redis-server")?);
        set_libraries(&mut command)?;
        let output = run(command.arg("--version"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split(' ').find(|word| word.starts_with("v="));
        Ok(version.unwrap_or("v=?").replace("v=", "Redis "))
    }

    /// An answer of redis-cli.
    fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(program("redis-cli")?);
        command.arg("-s").arg(&self.socket).args(words);
        set_libraries(&mut command)?;
        let output = run(&mut command)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// How much was counted.
    pub(crate) fn value(&self, key: &str) -> Result<i64> {
        let answer = self.ask(&["GET", key])?;
        if answer.is_empty() {
            return Ok(0);
        }
        answer.parse().context("Redis gave no number")
    }

    /// The script that keeps to a limit.
    pub(crate) fn limit(&self) -> Result<Counting> {
        Ok(Counting::Limit(self.ask(&["SCRIPT", "LOAD", LIMIT])?))
    }

    /// `INCR key` about so many times; returns how often that was per second.
    ///
    /// # Errors
    /// As of [`Redis::count`].
    pub(crate) fn incr(&self, key: &str, clients: u32, pipeline: u32, times: u32) -> Result<f64> {
        self.count(&Counting::Incr, key, clients, pipeline, times)
    }

    /// Counts about so many times; returns how often that was per second.
    ///
    /// # Errors
    /// The counter has not grown by as many.
    pub(crate) fn count(
        &self,
        how: &Counting,
        key: &str,
        clients: u32,
        pipeline: u32,
        times: u32,
    ) -> Result<f64> {
        // As many in each pipeline of each client.
        let times = times.next_multiple_of(clients * pipeline);
        let before = self.value(key)?;
        let mut command = Command::new("timeout");
        command
            .arg(RUN_DEADLINE.to_string())
            .arg(program("redis-benchmark")?)
            .arg("-s")
            .arg(&self.socket)
            .args(["-c", &clients.to_string()])
            .args(["-P", &pipeline.to_string()])
            .args(["-n", &times.to_string()])
            .arg("--csv")
            .current_dir(&self.directory);
        match how {
            Counting::Incr => command.args(["INCR", key]),
            Counting::Limit(hash) => {
                command.args(["EVALSHA", hash, "1", key, "1000000000000", "86400"])
            }
        };
        set_libraries(&mut command)?;
        let Output { stdout, .. } = run(&mut command)?;
        let text = String::from_utf8_lossy(&stdout);
        let grown = self.value(key)? - before;
        ensure!(
            grown == i64::from(times),
            "redis-benchmark was to count {times}, and {grown} were counted"
        );
        parse_rate(&text).with_context(|| format!("redis-benchmark said:\n{text}"))
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = poll_until("redis-server to stop", START_STOP_DEADLINE, || {
            Ok(self.keeper.try_wait()?.is_some())
        });
        if let Err(error) = ended {
            eprintln!("{error:#}");
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
        let _ = fs::remove_file(&self.socket);
    }
}

fn program(name: &str) -> Result<PathBuf> {
    let directory = programs().context("there is no Redis: run `scripts/bench`")?;
    Ok(directory.join(name))
}

/// The libraries that were unpacked beside it.
fn set_libraries(command: &mut Command) -> Result<()> {
    let root = env::var_os("COUNTERX_REDIS").context("COUNTERX_REDIS is not set")?;
    let libraries = PathBuf::from(root).join("lib");
    command.env("LD_LIBRARY_PATH", libraries);
    Ok(())
}

/// Reads `"INCR hot","123456.78",...`, after a line of names.
fn parse_rate(text: &str) -> Result<f64> {
    let line = text.lines().last().context("nothing")?;
    let field = line.split("\",\"").nth(1).context("too few fields")?;
    field.trim_matches('"').parse().context("no number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_read() {
        let text = "\"test\",\"rps\",\"avg_latency_ms\"\n\"INCR hot\",\"123456.79\",\"0.2\"\n";
        assert_eq!(parse_rate(text).unwrap(), 123_456.79);
        assert_eq!(parse_rate("\"x\",\"5.00\"").unwrap(), 5.0);
        assert!(parse_rate("").is_err());
        assert!(parse_rate("error").is_err());
    }
}
