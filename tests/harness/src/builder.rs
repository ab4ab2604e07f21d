//! What a cluster is to be like, and making it so.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::commands::{SUPERUSER, run};
use crate::paths::pg_bin_dir;

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
            socket_dir: primary.socket_dir().to_owned(),
            port: primary.port(),
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
        let mut cluster = Cluster::without_data(&self.name, bin_dir, self.directory.as_deref())?;
        self.create(&cluster)?;
        cluster.start_on_a_free_port()?;
        Ok(cluster)
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

fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''"))
}
