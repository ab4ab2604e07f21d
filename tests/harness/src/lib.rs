//! Throw-away PostgreSQL clusters for tests, demo and benchmark.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let cluster = counterx_harness::Cluster::builder()
//!     .conf("counterx.compaction_interval", "100ms")
//!     .start()?;
//! let mut client = cluster.connect()?;
//! client.batch_execute("CREATE EXTENSION counterx")?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//! - The server comes from `$COUNTERX_PG_BIN`, a private copy of PostgreSQL that `make` prepares.
//! - A cluster lives in a directory of its own below `$COUNTERX_RUN_DIR` (`target/run` when that
//!   is not set), its sockets in a short directory of their own below `/tmp`.
//! - The postmaster is a direct child of this process, so that its end is seen and it is reaped:
//!   a killed postmaster which stays behind as a zombie makes its lock files look alive.
//! - PostgreSQL refuses to run as root. Root runs it as the user `postgres` instead.
//! - A watcher process holds the other end of a pipe to this one. When this process ends without
//!   having dropped its clusters (Ctrl-C, `kill -9`), the watcher stops the server and removes
//!   what it left.
//!
//! # What is not guaranteed
//! The base settings have `fsync = off`: a killed process loses nothing by that, a power cut would.

mod process;

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, geteuid};
use postgres::{Client, NoTls};

use process::Process;

/// The superuser of every cluster.
const SUPERUSER: &str = "postgres";

/// The operating system's user that runs the servers of root.
const SERVER_USER: &str = "postgres";

/// Where the directories of the Unix sockets are made.
const SOCKET_PARENT: &str = "/tmp";

/// How long a start, crash recovery included, or a stop may take before it counts as hung.
const START_STOP_DEADLINE: Duration = Duration::from_secs(120);

/// How long children of a killed postmaster may take to notice before they are killed as well.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// The pause inside a polling loop.
const POLL_PAUSE: Duration = Duration::from_millis(15);

/// Settings of every cluster, before those of [`ClusterBuilder::conf`].
const BASE_SETTINGS: &[(&str, &str)] = &[
    ("fsync", "off"),
    ("autovacuum_naptime", "5s"),
    ("max_prepared_transactions", "50"),
    ("wal_level", "replica"),
    ("max_connections", "120"),
    ("max_worker_processes", "32"),
    ("shared_buffers", "128MB"),
    ("log_min_messages", "info"),
    ("log_line_prefix", "%m [%p] %b %q%d "),
    ("listen_addresses", "127.0.0.1"),
];

/// What a watcher does: nothing until its standard input ends, which it does when the owner of the
/// cluster has died. Then it stops the server, if the lock file names a live process that really
/// runs this data directory, and removes the cluster.
const WATCHER: &str = r#"
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
ours() { [ -n "$pid" ] && tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qxF "$1/data"; }
if ours "$1"; then
    kill -QUIT "$pid"
    tries=0
    while ours "$1" && [ $tries -lt 200 ]; do sleep 0.05; tries=$((tries + 1)); done
    if ours "$1"; then kill -KILL "$pid"; fi
fi
rm -rf "$1" "$2"
"#;

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Roll back what runs, write a checkpoint (SIGINT).
    Fast,
    /// Stop at once; the next start recovers from the WAL (SIGQUIT).
    Immediate,
}

/// What a [`Cluster`] is to be like.
#[derive(Clone, Debug)]
#[must_use]
pub struct ClusterBuilder {
    name: String,
    directory: Option<PathBuf>,
    preload: bool,
    settings: Vec<(String, String)>,
    origin: Origin,
    bin_dir: Option<PathBuf>,
    initdb: Vec<String>,
}

/// Where the data directory comes from.
#[derive(Clone, Debug)]
enum Origin {
    /// initdb.
    New,
    /// A base backup of a running server, whose standby it becomes.
    Primary { socket_dir: PathBuf, port: u16 },
    /// A copy of a base backup; with WAL from an archive, or with what the backup brings along.
    Backup { directory: PathBuf, archive: bool },
}

impl ClusterBuilder {
    /// Whether `shared_preload_libraries = 'counterx'` is set. It is, unless told otherwise.
    pub fn preload(mut self, preload: bool) -> Self {
        self.preload = preload;
        self
    }

    /// Sets `name` to `value` in `postgresql.conf`. Of several values of one setting the last one
    /// counts.
    pub fn conf(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The first part of the directory's name, and the `cluster_name`.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Puts the cluster exactly there, instead of in a new directory. Must not exist yet.
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Makes the cluster a streaming standby of `primary`, from a base backup taken at its start.
    pub fn standby_of(mut self, primary: &Cluster) -> Self {
        self.origin = Origin::Primary {
            socket_dir: primary.socket_dir.clone(),
            port: primary.port,
        };
        self
    }

    /// Makes the cluster from a copy of what [`Cluster::base_backup`] has made. It starts with the
    /// WAL that the backup brings along.
    pub fn from_backup(mut self, directory: &Path) -> Self {
        self.origin = Origin::Backup {
            directory: directory.to_owned(),
            archive: false,
        };
        self
    }

    /// The same, but recovers with WAL that the setting `restore_command` fetches, up to the
    /// `recovery_target` that is set. [`Cluster::start`] may return before it has come so far.
    pub fn recover_from_backup(mut self, directory: &Path) -> Self {
        self.origin = Origin::Backup {
            directory: directory.to_owned(),
            archive: true,
        };
        self
    }

    /// The programs of another PostgreSQL than [`pg_bin_dir`] has.
    pub fn bin_dir(mut self, directory: &Path) -> Self {
        self.bin_dir = Some(directory.to_owned());
        self
    }

    /// A further argument of initdb.
    pub fn initdb(mut self, argument: &str) -> Self {
        self.initdb.push(argument.to_owned());
        self
    }

    /// Creates and starts the cluster; returns when it takes connections.
    ///
    /// # Errors
    /// No prepared PostgreSQL, or initdb, pg_basebackup or the server failed: with what they said.
    pub fn start(self) -> Result<Cluster> {
        let bin_dir = match &self.bin_dir {
            Some(bin_dir) => bin_dir.clone(),
            None => pg_bin_dir()?,
        };
        let owner = server_owner()?;
        let directory = match &self.directory {
            Some(directory) => {
                make_private_dir(directory, owner.as_ref())?;
                directory.clone()
            }
            None => make_numbered_dir(&run_dir()?, &self.name, owner.as_ref())?,
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
        let watcher = Command::new("sh")
            .args(["-c", WATCHER, "sh"])
            .args([&directory, &socket_dir])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Out of reach of a terminal's Ctrl-C, which is what it waits for.
            .process_group(0)
            .spawn()
            .context("could not start the cluster's watcher")?;
        let mut cluster = Cluster {
            name: self.name.clone(),
            bin_dir,
            owner,
            directory,
            socket_dir,
            port: free_port()?,
            postmaster: None,
            watcher: Some(watcher),
            keep: false,
        };
        self.create(&cluster)?;
        // Another process may have taken the port since it was found free.
        for _ in 0..5 {
            match cluster.start() {
                Err(_) if cluster.port_was_taken() => cluster.port = free_port()?,
                result => {
                    result?;
                    return Ok(cluster);
                }
            }
        }
        bail!("found no free port for cluster \"{}\"", self.name)
    }

    /// Fills the data directory.
    fn create(&self, cluster: &Cluster) -> Result<()> {
        let data = cluster.data_dir();
        let mut command = match &self.origin {
            Origin::New => cluster.tool("initdb"),
            Origin::Primary { .. } => cluster.tool("pg_basebackup"),
            Origin::Backup { .. } => cluster.as_owner("cp"),
        };
        match &self.origin {
            Origin::New => command
                .arg("--pgdata")
                .arg(&data)
                .args(["--auth=trust", "--no-sync", "--locale=C"])
                .args(["--encoding=UTF8", "--username", SUPERUSER])
                .args(&self.initdb),
            Origin::Primary { socket_dir, port } => command
                .arg("--pgdata")
                .arg(&data)
                .args(["--write-recovery-conf", "--wal-method=stream"])
                .args(["--checkpoint=fast", "--no-sync"])
                .arg("--host")
                .arg(socket_dir)
                .args(["--port", &port.to_string()]),
            Origin::Backup { directory, .. } => command.arg("-a").arg(directory).arg(&data),
        };
        run(&mut command)?;
        if let Origin::Backup { archive: true, .. } = &self.origin {
            run(cluster.as_owner("touch").arg(data.join("recovery.signal")))?;
        }

        // A copy has its original's file already; what is said here comes later and counts.
        let mut text = String::from("\n# Written by counterx-harness\n");
        if matches!(self.origin, Origin::New) {
            for (name, value) in BASE_SETTINGS {
                text.push_str(&setting_line(name, value));
            }
        }
        let libraries = if self.preload { "counterx" } else { "" };
        text.push_str(&setting_line("shared_preload_libraries", libraries));
        for (name, value) in &self.settings {
            text.push_str(&setting_line(name, value));
        }
        OpenOptions::new()
            .append(true)
            .open(data.join("postgresql.conf"))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .context("could not write postgresql.conf")
    }
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
    watcher: Option<Child>,
    keep: bool,
}

impl Cluster {
    /// A cluster with the library preloaded and no settings but the base ones.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            name: "cluster".to_owned(),
            directory: None,
            preload: true,
            settings: Vec::new(),
            origin: Origin::New,
            bin_dir: None,
            initdb: Vec::new(),
        }
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
    fn as_owner(&self, program: &str) -> Command {
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
        let children = process::children_of(pid)?;
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
        })
    }

    /// Leaves the directory behind when the cluster is dropped. The server is stopped all the same.
    pub fn keep(&mut self) {
        self.keep = true;
        self.dismiss_watcher();
    }

    /// Leaves the server running after the end of this process: see [`LeftRunning`].
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
        if let Some(mut watcher) = self.watcher.take() {
            // Killed while it still waits: its standard input ends only with its handle.
            let _ = watcher.kill();
            let _ = watcher.wait();
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

/// A server that [`Cluster::leave_running`] left to itself.
#[derive(Clone, Debug)]
pub struct LeftRunning {
    directory: PathBuf,
    process: Option<Process>,
    socket_dir: PathBuf,
    port: u16,
}

impl LeftRunning {
    /// Finds the cluster in `directory`, running or not; `None` when there is none.
    ///
    /// # Errors
    /// Its lock file can't be understood.
    pub fn find(directory: &Path) -> Result<Option<Self>> {
        if !directory.exists() {
            return Ok(None);
        }
        let data = directory.join("data");
        let mut found = Self {
            directory: directory.to_owned(),
            process: None,
            socket_dir: PathBuf::new(),
            port: 0,
        };
        let lock_file = data.join("postmaster.pid");
        if let Ok(text) = fs::read_to_string(&lock_file) {
            // pid, data directory, start time, port, socket directory, and more.
            let lines: Vec<&str> = text.lines().collect();
            let [pid, _, _, port, socket_dir, ..] = lines[..] else {
                bail!("{} has too few lines", lock_file.display());
            };
            // The number can be anybody's by now, when the server was killed.
            found.process =
                Process::find(pid.trim().parse()?).filter(|process| process.has_argument(&data));
            found.port = port.parse()?;
            found.socket_dir = PathBuf::from(socket_dir);
        }
        Ok(Some(found))
    }

    /// Whether the server runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.as_ref().is_some_and(Process::is_alive)
    }

    /// Such a `psql` as opens on the server.
    ///
    /// # Errors
    /// There is no psql.
    pub fn psql(&self) -> Result<Command> {
        let mut command = Command::new(pg_bin_dir()?.join("psql"));
        point_at(&mut command, &self.socket_dir, self.port);
        Ok(command)
    }

    /// Stops the server at once and removes all of it.
    ///
    /// # Errors
    /// It does not stop, or a file can't be removed.
    pub fn remove(self) -> Result<()> {
        if let Some(process) = self.process {
            // It may end by itself just now.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGQUIT);
            poll_until("the server to stop", START_STOP_DEADLINE, || {
                Ok(!process.is_alive())
            })?;
        }
        // Only what a harness has made: a lock file can name any other directory.
        if self.socket_dir.starts_with(SOCKET_PARENT) && self.socket_dir != Path::new(SOCKET_PARENT)
        {
            let _ = fs::remove_dir_all(&self.socket_dir);
        }
        fs::remove_dir_all(&self.directory)
            .with_context(|| format!("could not remove {}", self.directory.display()))
    }
}

/// Calls `f` until it says true, with a short pause in between.
///
/// # Errors
/// `f` failed, or `deadline` has passed: the error then says that it waited for `what`.
pub fn poll_until(
    what: &str,
    deadline: Duration,
    mut f: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        if f().with_context(|| format!("while waiting for {what}"))? {
            return Ok(());
        }
        ensure!(Instant::now() < end, "waited {deadline:?} for {what}");
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

/// The directory of the PostgreSQL programs that clusters are made with.
///
/// # Errors
/// `COUNTERX_PG_BIN` is not set or holds no server.
pub fn pg_bin_dir() -> Result<PathBuf> {
    let dir = env::var_os("COUNTERX_PG_BIN").map(PathBuf::from).context(
        "COUNTERX_PG_BIN is not set, so there is no PostgreSQL to test with: run the tests through \
         make (`make test`, see `make help`), or `. scripts/env` first",
    )?;
    ensure!(
        dir.join("postgres").is_file(),
        "there is no server in {}: run `make setup`",
        dir.display()
    );
    Ok(dir)
}

/// Where clusters live: `$COUNTERX_RUN_DIR`, or `target/run` of the checkout.
///
/// # Errors
/// It can't be made.
pub fn run_dir() -> Result<PathBuf> {
    let dir = env::var_os("COUNTERX_RUN_DIR").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .ancestors()
                .nth(2)
                .unwrap_or(Path::new("."))
                .join("target/run")
        },
        PathBuf::from,
    );
    fs::create_dir_all(&dir).with_context(|| format!("could not make {}", dir.display()))?;
    dir.canonicalize()
        .with_context(|| format!("could not resolve {}", dir.display()))
}

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

/// Gives `command` the environment in which libpq finds one server and nothing of any other.
fn point_at(command: &mut Command, socket_dir: &Path, port: u16) {
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

fn checked(command: &Command, output: Output) -> Result<Output> {
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

/// The user whose servers root starts; `None` when we are an ordinary user ourselves.
fn server_owner() -> Result<Option<User>> {
    if geteuid() != Uid::from_raw(0) {
        return Ok(None);
    }
    let user = User::from_name(SERVER_USER).context("could not look up users")?;
    ensure!(
        user.is_some(),
        "PostgreSQL refuses to run as root, and there is no user \"{SERVER_USER}\" to run it as"
    );
    Ok(user)
}

/// Makes a directory that only the server's user can look into, as the server demands.
fn make_private_dir(dir: &Path, owner: Option<&User>) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .and_then(|()| match owner {
            Some(owner) => chown(dir, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())),
            None => Ok(()),
        })
        .with_context(|| format!("could not make {}", dir.display()))
}

/// Makes such a directory under a name that nobody has: `prefix-PID-NUMBER`.
fn make_numbered_dir(parent: &Path, prefix: &str, owner: Option<&User>) -> Result<PathBuf> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = parent.join(format!("{prefix}-{}-{number}", std::process::id()));
        // Left by an earlier process of the same number.
        if dir.symlink_metadata().is_err() {
            make_private_dir(&dir, owner)?;
            return Ok(dir);
        }
    }
}

/// A TCP port that nobody listens on, below those that outgoing connections are given.
fn free_port() -> Result<u16> {
    const FIRST: u16 = 20_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that run side by side start far from each other.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = FIRST + u16::try_from(offset)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("there is no free TCP port")
}

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''"))
}

fn child_pid(child: &Child) -> i32 {
    // Process ids are positive ints; std merely hands them out unsigned.
    child.id().cast_signed()
}

fn wait_for_exit(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + deadline;
    loop {
        let status = child.try_wait().context("could not wait for a process")?;
        if status.is_some() || Instant::now() > end {
            return Ok(status);
        }
        thread::sleep(POLL_PAUSE);
    }
}
