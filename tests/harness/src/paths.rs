//! Directories, ports, and the user whom both are for.

use std::env;
use std::fs::{self, DirBuilder};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{Uid, User, geteuid};

/// The operating system's user that runs the servers of root.
const SERVER_USER: &str = "postgres";

/// Where the directories of the Unix sockets are made.
pub(crate) const SOCKET_PARENT: &str = "/tmp";

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

/// The user whose servers root starts; `None` when we are an ordinary user ourselves.
pub(crate) fn server_owner() -> Result<Option<User>> {
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
pub(crate) fn make_private_dir(dir: &Path, owner: Option<&User>) -> Result<()> {
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
pub(crate) fn make_numbered_dir(
    parent: &Path,
    prefix: &str,
    owner: Option<&User>,
) -> Result<PathBuf> {
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
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
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
