//! A cluster, from its first start to its end.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use postgres::{Client, NoTls};

use crate::commands::{SUPERUSER, checked, point_at, run};
use crate::paths::{
    SOCKET_PARENT, free_port, make_numbered_dir, make_private_dir, run_dir, server_owner,
};
use crate::polling::{POLL_PAUSE, START_STOP_DEADLINE, poll_until};
use crate::process::{Process, child_pid, children_of, kill9, wait_for_exit};
use crate::watcher::Watcher;

/// How long children of a killed postmaster may take to notice before they are killed as well.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Roll back what runs, write a checkpoint (SIGINT).
    Fast,
    /// Stop at once; the next start recovers from the WAL (SIGQUIT).
    Immediate,
}

/// A server owned by this process. Dropping it stops it (immediate) and removes its directory,
/// unless [`Cluster::keep`] was called or the thread is panicking, when the directory is left to
/// be looked at.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    bin_dir: PathBuf,
    owner: Option<User>,
    directory: PathBuf,
    socket_dir: PathBuf,
    port: u16,
    postmaster: Option<Child>,
    watcher: Option<Watcher>,
    keep: bool,
}

impl Cluster {
    /// The directories of a cluster, in `directory` or a new one, and the watcher over them; there
    /// is no data in it.
    pub(crate) fn without_data(
        name: &str,
        bin_dir: PathBuf,
        directory: Option<&Path>,
    ) -> Result<Self> {
        let owner = server_owner()?;
        let directory = match directory {
            Some(directory) => {
                make_private_dir(directory, owner.as_ref())?;
                directory.to_owned()
            }
            None => make_numbered_dir(&run_dir()?, name, owner.as_ref())?,
        };
        // A socket's path has room for 107 bytes only, and a checkout can lie deep.
        let socket_dir =
            match make_numbered_dir(Path::new(SOCKET_PARENT), "counterx", owner.as_ref()) {
                Ok(socket_dir) => socket_dir,
                Err(error) => {
                    let _ = fs::remove_dir_all(&directory);
                    return Err(error);
                }
            };
        let watcher = Watcher::start(&directory, &socket_dir)?;
        Ok(Self {
            name: name.to_owned(),
            bin_dir,
            owner,
            directory,
            socket_dir,
            port: free_port()?,
            postmaster: None,
            watcher: Some(watcher),
            keep: false,
        })
    }

    /// Starts it for the first time.
    pub(crate) fn start_on_a_free_port(&mut self) -> Result<()> {
        // Another process may have taken the port since it was found free.
        for _ in 0..5 {
            match self.start() {
                Err(_) if self.port_was_taken() => self.port = free_port()?,
                result => return result,
            }
        }
        bail!("found no free port for cluster \"{}\"", self.name)
    }

    /// A connection to the database `postgres`, as superuser.
    ///
    /// # Errors
    /// The server did not let us in.
    pub fn connect(&self) -> Result<Client> {
        self.connect_db("postgres")
    }

    /// A connection to `db`, as superuser.
    ///
    /// # Errors
    /// The server did not let us in.
    pub fn connect_db(&self, db: &str) -> Result<Client> {
        self.config(db).connect(NoTls).with_context(|| {
            format!(
                "could not connect to database \"{db}\" of cluster \"{}\"",
                self.name
            )
        })
    }

    /// The parameters of such a connection, for a caller who wants to add to them.
    #[must_use]
    pub fn config(&self, db: &str) -> postgres::Config {
        let mut config = postgres::Config::new();
        config
            .host_path(&self.socket_dir)
            .port(self.port)
            .user(SUPERUSER)
            .dbname(db)
            .connect_timeout(Duration::from_secs(30));
        config
    }

    /// The directory of the server's Unix socket, which serves as a libpq `host`.
    #[must_use]
    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// The port, of the Unix socket and on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The cluster's own directory, with `data` and `log` in it. The server's user can write to it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// The server's log, which goes on over restarts. It goes with the cluster, except that
    /// `$COUNTERX_LOG_DIR` keeps the logs of all clusters, for whoever looks at them afterwards.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        match (env::var_os("COUNTERX_LOG_DIR"), self.directory.file_name()) {
            (Some(kept), Some(name)) => Path::new(&kept).join(name).with_extension("log"),
            _ => self.directory.join("log"),
        }
    }

    /// All that the server has logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log_since(0)
    }

    /// What was logged after the log was `offset` bytes long.
    #[must_use]
    pub fn log_since(&self, offset: u64) -> String {
        let mut bytes = Vec::new();
        // A log that cannot be read is an empty one: this is called to explain other errors.
        let _ = File::open(self.log_path()).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            file.read_to_end(&mut bytes)
        });
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The log's length in bytes.
    #[must_use]
    pub fn log_len(&self) -> u64 {
        fs::metadata(self.log_path()).map_or(0, |meta| meta.len())
    }

    /// The postmaster's process id; `None` when the server is down.
    #[must_use]
    pub fn postmaster_pid(&self) -> Option<i32> {
        self.postmaster.as_ref().map(child_pid)
    }

    /// Runs `sql`, which may be many statements, each a transaction of its own, with
    /// `psql -XAtq -v ON_ERROR_STOP=1` and returns what it printed, less the last newline.
    ///
    /// # Errors
    /// psql failed: with its standard error.
    pub fn psql(&self, db: &str, sql: &str) -> Result<String> {
        let mut command = self.tool("psql");
        command
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", "-d", db])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("could not start psql")?;
        let mut stdin = child.stdin.take().context("psql has no standard input")?;
        let output = thread::scope(|scope| {
            // In a thread: psql stops reading when nobody takes what it prints. That it ended
            // early, and the pipe broke, is told by its status.
            scope.spawn(move || {
                let _ = stdin.write_all(sql.as_bytes());
            });
            child.wait_with_output()
        })
        .context("could not wait for psql")?;
        let output = checked(&command, output)?;
        let mut text = String::from_utf8(output.stdout).context("psql printed no UTF-8")?;
        if text.ends_with('\n') {
            text.pop();
        }
        Ok(text)
    }

    /// Makes a directory beside the data that the server's user can write to.
    ///
    /// # Errors
    /// It is there already, or can't be made.
    pub fn make_dir(&self, name: &str) -> Result<PathBuf> {
        let directory = self.directory.join(name);
        make_private_dir(&directory, self.owner.as_ref())?;
        Ok(directory)
    }

    /// Takes a base backup of the running server, with the WAL that it needs, into a new directory
    /// beside the data.
    ///
    /// # Errors
    /// pg_basebackup failed: with what it said.
    pub fn base_backup(&self, name: &str) -> Result<PathBuf> {
        let directory = self.directory.join(name);
        run(self
            .tool("pg_basebackup")
            .arg("--pgdata")
            .arg(&directory)
            .args(["--wal-method=stream", "--checkpoint=fast", "--no-sync"]))?;
        Ok(directory)
    }

    /// Where the PostgreSQL programs are.
    #[must_use]
    pub fn bin_dir(&self) -> &Path {
        &self.bin_dir
    }

    /// Any program, as the server's user and in the cluster's directory.
    pub(crate) fn as_owner(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory);
        self.set_user(&mut command);
        command
    }

    /// A PostgreSQL program, such as `pg_dump`: as the user that it may run as, in the cluster's
    /// directory, with host, port and user in its environment.
    #[must_use]
    pub fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin_dir.join(program));
        self.set_environment(&mut command);
        command.current_dir(&self.directory);
        self.set_user(&mut command);
        command
    }

    /// The server's program; under another one, such as valgrind, when `$COUNTERX_SERVER_UNDER` has
    /// that one's command line.
    fn server(&self) -> Command {
        let under = env::var("COUNTERX_SERVER_UNDER").unwrap_or_default();
        let mut words = under.split_whitespace();
        let Some(program) = words.next() else {
            return self.tool("postgres");
        };
        let mut command = Command::new(program);
        command.args(words).arg(self.bin_dir.join("postgres"));
        self.set_environment(&mut command);
        command.current_dir(&self.directory);
        self.set_user(&mut command);
        command
    }

    /// Gives `command` the environment in which libpq finds this cluster, and nothing of any
    /// other.
    pub fn set_environment(&self, command: &mut Command) {
        point_at(command, &self.socket_dir, self.port);
    }

    /// Makes `command` run as the server's user.
    pub fn set_user(&self, command: &mut Command) {
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
    }

    /// Stops the server and waits for its end. Nothing happens when it is down.
    ///
    /// # Errors
    /// It did not stop in two minutes.
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let Some(mut postmaster) = self.postmaster.take() else {
            return Ok(());
        };
        let signal = match mode {
            StopMode::Fast => Signal::SIGINT,
            StopMode::Immediate => Signal::SIGQUIT,
        };
        // One that has died by itself is not reaped yet, so the signal cannot meet a stranger.
        kill(Pid::from_raw(child_pid(&postmaster)), signal)
            .context("could not signal the postmaster")?;
        match wait_for_exit(&mut postmaster, START_STOP_DEADLINE)? {
            Some(_) => Ok(()),
            None => {
                self.postmaster = Some(postmaster);
                bail!(
                    "cluster \"{}\" did not stop ({mode:?}) in {START_STOP_DEADLINE:?}; its log \
                     ends:\n{}",
                    self.name,
                    self.log_tail()
                )
            }
        }
    }

    /// Starts a server that is down, and waits until it takes connections; after a crash that is
    /// when it has recovered.
    ///
    /// # Errors
    /// It is running already, or it did not come up: with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        ensure!(
            self.postmaster.is_none(),
            "cluster \"{}\" is running already",
            self.name
        );
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o644)
            .open(self.log_path())
            .context("could not open the server's log")?;
        let mut command = self.server();
        // On the command line, as a base backup brings along its primary's configuration.
        command
            .arg("-D")
            .arg(self.data_dir())
            .args(["-c", &format!("port={}", self.port)])
            .arg("-c")
            .arg(format!(
                "unix_socket_directories={}",
                self.socket_dir.display()
            ))
            .args(["-c", &format!("cluster_name={}", self.name)])
            .args(["-c", "logging_collector=off", "-c", "lc_messages=C"])
            // As it may be anywhere: no error of the extension's has a backtrace in its detail for it.
            .env("RUST_BACKTRACE", "1")
            .env_remove("RUST_LIB_BACKTRACE")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("could not share the log")?)
            .stderr(log)
            // A terminal's Ctrl-C would make it shut down under the test's feet.
            .process_group(0);
        let mut postmaster = command.spawn().context("could not start postgres")?;
        let deadline = Instant::now() + START_STOP_DEADLINE;
        loop {
            if let Some(status) = postmaster
                .try_wait()
                .context("could not wait for postgres")?
            {
                bail!(
                    "cluster \"{}\" did not start ({status}); its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            match self.connect() {
                Ok(_) => break,
                Err(error) if Instant::now() > deadline => {
                    let _ = kill(Pid::from_raw(child_pid(&postmaster)), Signal::SIGQUIT);
                    let _ = postmaster.wait();
                    bail!(
                        "cluster \"{}\" took no connections in {START_STOP_DEADLINE:?} \
                         ({error:#}); its log ends:\n{}",
                        self.name,
                        self.log_tail()
                    );
                }
                Err(_) => thread::sleep(POLL_PAUSE),
            }
        }
        self.postmaster = Some(postmaster);
        Ok(())
    }

    /// Stops and starts.
    ///
    /// # Errors
    /// Those of [`Cluster::stop`] and [`Cluster::start`].
    pub fn restart(&mut self, mode: StopMode) -> Result<()> {
        self.stop(mode)?;
        self.start()
    }

    /// Kills the postmaster with SIGKILL, and returns when none of its children is left and the
    /// lock files are gone. [`Cluster::start`] then recovers.
    ///
    /// # Errors
    /// It is down, or a process cannot be killed.
    pub fn kill_postmaster(&mut self) -> Result<()> {
        let Some(mut postmaster) = self.postmaster.take() else {
            bail!("cluster \"{}\" is not running", self.name);
        };
        let pid = child_pid(&postmaster);
        // Stopped first, it can start no child that the list misses.
        kill(Pid::from_raw(pid), Signal::SIGSTOP).context("could not stop the postmaster")?;
        let children = children_of(pid)?;
        kill9(pid)?;
        postmaster
            .wait()
            .context("could not wait for the postmaster")?;
        let gone = || Ok(!children.iter().any(Process::is_alive));
        if poll_until("the postmaster's children to notice", ORPHAN_GRACE, gone).is_err() {
            // A backend that computes looks for its postmaster only when it next waits.
            for child in children.iter().filter(|child| child.is_alive()) {
                // It may end by itself just now.
                let _ = kill9(child.pid);
            }
            poll_until("killed backends to end", START_STOP_DEADLINE, gone)?;
        }
        self.remove_lock_files()
    }

    /// Ends recovery on a standby; returns when it takes writes.
    ///
    /// # Errors
    /// It is no standby, or it took longer than a minute.
    pub fn promote(&mut self) -> Result<()> {
        let row = self
            .connect()?
            .query_one("SELECT pg_promote(true, 60)", &[])
            .context("could not promote")?;
        ensure!(
            row.get::<_, bool>(0),
            "cluster \"{}\" was not promoted",
            self.name
        );
        Ok(())
    }

    /// `ALTER SYSTEM SET` for each, then a reload. On return the postmaster has read the new
    /// values and passed the signal on; a busy backend takes them up when it is next idle.
    ///
    /// # Errors
    /// The server refused a setting, or did not reload.
    pub fn reload(&mut self, settings: &[(&str, &str)]) -> Result<()> {
        let mut client = self.connect()?;
        if settings
            .iter()
            .any(|(name, _)| name.starts_with("counterx."))
        {
            // Without preload this session does not know the names yet.
            client.batch_execute("LOAD 'counterx'")?;
        }
        for (name, value) in settings {
            let value = value.replace('\'', "''");
            client
                .batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'"))
                .with_context(|| format!("could not set {name}"))?;
        }
        // This session's load time moves when the postmaster, which reads first, has told it.
        let load_time = "SELECT pg_conf_load_time()::text";
        let before: String = client.query_one(load_time, &[])?.get(0);
        client.execute("SELECT pg_reload_conf()", &[])?;
        poll_until("the reload", Duration::from_secs(30), || {
            let now: String = client.query_one(load_time, &[])?.get(0);
            Ok(now != before)
        })?;
        // The postmaster tells its children one after the other, and takes a connection when it is through: from
        // here on no session goes by the settings as they were, whichever is used next.
        self.connect()?;
        Ok(())
    }

    /// Leaves the directory behind when the cluster is dropped. The server is stopped all the same.
    pub fn keep(&mut self) {
        self.keep = true;
        self.dismiss_watcher();
    }

    /// Leaves the server running after the end of this process: see [`LeftRunning`](crate::LeftRunning).
    pub fn leave_running(mut self) {
        self.dismiss_watcher();
        self.postmaster = None;
        self.keep = true;
    }

    /// The last lines of the log.
    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Whether the server did not start because of the port.
    fn port_was_taken(&self) -> bool {
        self.log_tail().contains("Address already in use")
    }

    /// The lock files of a server that was killed name a process id which can be anybody's by now.
    fn remove_lock_files(&self) -> Result<()> {
        let socket = self.socket_dir.join(format!(".s.PGSQL.{}", self.port));
        let mut lock = socket.clone().into_os_string();
        lock.push(".lock");
        for path in [
            self.data_dir().join("postmaster.pid"),
            socket,
            PathBuf::from(lock),
        ] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("could not remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn dismiss_watcher(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.dismiss();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop(StopMode::Immediate) {
            eprintln!("{error:#}");
            let _ = self.kill_postmaster();
        }
        self.dismiss_watcher();
        if thread::panicking() {
            eprintln!(
                "cluster \"{}\" is left in {}; its log ends:\n{}",
                self.name,
                self.directory.display(),
                self.log_tail()
            );
        } else if !self.keep {
            let _ = fs::remove_dir_all(&self.directory);
        }
        if self.postmaster.is_none() && !self.keep {
            let _ = fs::remove_dir_all(&self.socket_dir);
        }
    }
}
