//! A job that runs each second, as pg_cron would run it: psql in a new session each time.

use std::fs;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::{Cluster, pg_bin_dir, poll_until};

/// A pause of a second after each run, which the end of the input cuts short. Whoever holds the
/// input, this process, may die as well: then it ends too. A run that fails ends the job.
const LOOP: &str = r#"
while "$1" -XAtq -v ON_ERROR_STOP=1 -f "$2"; do
    read -r -t 1 _
    [ $? -gt 128 ] || exit 0
done
exit 1
"#;

/// How long the last run may take.
const END_DEADLINE: Duration = Duration::from_secs(120);

/// A running job, stopped when dropped.
pub(crate) struct Job {
    child: Child,
    input: Option<ChildStdin>,
}

impl Job {
    pub(crate) fn start(cluster: &Cluster, sql: &str) -> Result<Self> {
        let path = cluster.directory().join("job.sql");
        fs::write(&path, sql).with_context(|| format!("could not write {}", path.display()))?;
        let mut command = Command::new("bash");
        command
            .args(["-c", LOOP, "bash"])
            .arg(pg_bin_dir()?.join("psql"))
            .arg(path)
            .current_dir(cluster.directory())
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        cluster.set_environment(&mut command);
        cluster.set_user(&mut command);
        let mut child = command.spawn().context("could not start a loop of psql")?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// Lets the current run come to its end. An error if the job has ended before.
    pub(crate) fn stop(mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("could not look at psql")? {
            bail!("the job that runs each second has failed ({status})");
        }
        drop(self.input.take());
        let start = Instant::now();
        let mut status = None;
        poll_until("the job's last run", END_DEADLINE, || {
            status = self.child.try_wait().context("could not wait for psql")?;
            Ok(status.is_some())
        })?;
        ensure!(
            status.is_some_and(|status| status.success()),
            "the job's last run has failed after {:?}",
            start.elapsed()
        );
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // The loop notices; its psql ends with the server at the latest.
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
