//! Sessions that are played step by step: each is sent a statement when it is its turn, and may be
//! left waiting for another.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::DEADLINE;
use postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A session's connection, in a thread that sends what it is given.
pub(crate) struct Actor<A> {
    pub(crate) pid: i32,
    send: Sender<String>,
    answers: Receiver<A>,
}

/// What the server says: rows, or an error's code and message.
pub(crate) type Said = Result<Vec<SimpleQueryMessage>, (String, String)>;

impl<A: Send + 'static> Actor<A> {
    /// Connects. `answer` is what becomes of all that the server says.
    pub(crate) fn new(config: &Config, answer: fn(Said) -> A) -> Result<Self> {
        let mut client = config.connect(NoTls)?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let (send, to_send) = channel::<String>();
        let (answered, answers) = channel();
        // Ends when its sender is dropped, or a little later, when it is waiting for the server.
        std::thread::spawn(move || {
            for sql in to_send {
                let said = client
                    .simple_query(&sql)
                    .map_err(|error| match error.as_db_error() {
                        Some(db) => (db.code().code().to_owned(), db.message().to_owned()),
                        None => ("lost".to_owned(), error.to_string()),
                    });
                if said.is_err() {
                    // The server tells of an error before it gives up locks and reservations, and
                    // answers the next message after that.
                    let _ = client.simple_query("");
                }
                if answered.send(answer(said)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { pid, send, answers })
    }

    /// Has it send a statement.
    pub(crate) fn send(&self, sql: &str) -> Result<()> {
        self.send.send(sql.to_owned()).context("a session is gone")
    }
}

/// Waits until every session has been answered, or waits for another. Each comes with the place for
/// its answer.
pub(crate) fn settle<A>(
    checker: &mut Client,
    sent: &mut [(&Actor<A>, &mut Option<A>)],
) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let mut pause = Duration::from_micros(500);
    loop {
        let mut open = Vec::new();
        for (actor, answer) in sent.iter_mut().filter(|(_, answer)| answer.is_none()) {
            match actor.answers.recv_timeout(pause) {
                Ok(answered) => **answer = Some(answered),
                Err(RecvTimeoutError::Timeout) => open.push(actor.pid),
                Err(RecvTimeoutError::Disconnected) => bail!("a session is gone"),
            }
        }
        // A wait for one that goes on itself is soon over, and counts for nothing.
        if open.is_empty() || all_wait(checker, &open)? {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the sessions {open:?} neither end nor wait"
        );
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn all_wait(checker: &mut Client, pids: &[i32]) -> Result<bool> {
    let sql = "SELECT bool_and(cardinality(pg_blocking_pids(pid)) > 0) FROM unnest($1::int[]) pid";
    Ok(checker.query_one(sql, &[&pids])?.get(0))
}

/// Whether one of them waits for this session.
pub(crate) fn is_waited_for(checker: &mut Client, pid: i32, waiting: &[i32]) -> Result<bool> {
    if waiting.is_empty() {
        return Ok(false);
    }
    let sql = "SELECT bool_or($2 = ANY (pg_blocking_pids(pid))) FROM unnest($1::int[]) pid";
    Ok(checker.query_one(sql, &[&waiting, &pid])?.get(0))
}
