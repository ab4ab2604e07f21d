//! A wire between a client and its server that can be cut in the very moment of a COMMIT.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use anyhow::{Context, Result};
use counterx_harness::Cluster;
use postgres::{Client, Config, NoTls};

/// Where the client's next message is to be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cut {
    /// Before it reaches the server.
    Before = 1,
    /// After it, and before the answer comes back.
    After = 2,
}

/// A connection that goes through such a wire.
pub(crate) struct Wire {
    cut: Arc<AtomicU8>,
}

impl Wire {
    /// Connects a client.
    pub(crate) fn connect(cluster: &Cluster, config: &Config) -> Result<(Client, Self)> {
        let socket = cluster
            .socket_dir()
            .join(format!(".s.PGSQL.{}", cluster.port()));
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port for a wire")?;
        let port = listener.local_addr()?.port();
        let cut = Arc::new(AtomicU8::new(0));
        let shared = Arc::clone(&cut);
        thread::spawn(move || {
            // An end of either side is the end of the connection, and the client will say so.
            let _ = carry(&listener, socket, &shared);
        });
        let mut config = config.clone();
        // The address is tried in the place of the socket's directory.
        config = rebuilt(&config, port);
        let client = config.connect(NoTls)?;
        Ok((client, Self { cut }))
    }

    /// Cuts the wire at the client's next message.
    pub(crate) fn cut_next(&self, cut: Cut) {
        self.cut.store(cut as u8, Ordering::SeqCst);
    }
}

/// The same parameters, for 127.0.0.1.
fn rebuilt(config: &Config, port: u16) -> Config {
    let mut new = Config::new();
    new.host("127.0.0.1").port(port);
    if let Some(user) = config.get_user() {
        new.user(user);
    }
    if let Some(db) = config.get_dbname() {
        new.dbname(db);
    }
    if let Some(name) = config.get_application_name() {
        new.application_name(name);
    }
    if let Some(options) = config.get_options() {
        new.options(options);
    }
    new
}

fn carry(listener: &TcpListener, socket: PathBuf, cut: &AtomicU8) -> Result<()> {
    let (mut client, _) = listener.accept()?;
    client.set_nodelay(true)?;
    let mut server = UnixStream::connect(socket)?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let result = forward(&mut client, &mut server, cut);
    // The client first: it must not see an answer to what was cut off.
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
    result
}

fn forward(client: &mut TcpStream, server: &mut UnixStream, cut: &AtomicU8) -> Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = client.read(&mut buffer)?;
        let mode = cut.load(Ordering::SeqCst);
        if read == 0 || mode == Cut::Before as u8 {
            return Ok(());
        }
        server.write_all(&buffer[..read])?;
        if mode == Cut::After as u8 {
            return Ok(());
        }
    }
}
