//! A client of the concurrent histories: sends the steps of its session, loses its connection now and
//! then, and finds out what became of what it has lost sight of.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{DEADLINE, Recovering, is_lost};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::concurrent::Tally;
use super::session::{Answer, Fate, Session};
use super::step::{Op, Step};
use super::wire::{Cut, Wire};

/// A client with its session.
pub(crate) struct Connection<'a> {
    pub(crate) session: Session,
    cluster: &'a Cluster,
    tally: &'a Tally,
    config: Config,
    /// None: to be made anew.
    link: Option<Link>,
    /// For questions about what the other one has left.
    inquiries: Recovering,
}

struct Link {
    client: Client,
    wire: Option<Wire>,
    pid: i32,
}

/// What came of a message.
enum Sent {
    Answered(Answer),
    Lost,
}

impl<'a> Connection<'a> {
    pub(crate) fn new(
        cluster: &'a Cluster,
        db: &str,
        number: usize,
        tally: &'a Tally,
    ) -> Result<Self> {
        let mut config = cluster.config(db);
        config
            .application_name(&format!("client {number}"))
            // A session that hangs is a finding as well.
            .options("-c lock_timeout=10s -c statement_timeout=120s -c counterx.escrow_wait=5ms");
        Ok(Self {
            session: Session::new(number),
            cluster,
            tally,
            inquiries: Recovering::new(&cluster.config(db)),
            config,
            link: None,
        })
    }

    fn link(&mut self) -> Result<&mut Link> {
        if self.link.is_none() {
            let mut made = None;
            // Every other client has a wire that can be cut. A new backend may be terminated at once.
            poll_until("a connection", DEADLINE, || {
                match connect(
                    self.cluster,
                    &self.config,
                    self.session.number.is_multiple_of(2),
                ) {
                    Ok(link) => made = Some(link),
                    Err(error) if is_lost(&error) => {}
                    Err(error) => return Err(error),
                }
                Ok(made.is_some())
            })?;
            self.link = made;
        }
        self.link.as_mut().context("just connected")
    }

    /// Does one step, whatever becomes of the connection. The dice say whether it is cut.
    pub(crate) fn step(&mut self, step: &Step, dice: u32) -> Result<()> {
        let step = self.session.meant(step);
        let Some(sql) = self.session.sql(step) else {
            return Ok(());
        };
        let copied = match step {
            Step::Op(Op::Events(deltas)) if dice < 50 => Some(deltas.as_slice()),
            _ => None,
        };
        let link = self.link()?;
        let ends = matches!(
            step,
            Step::Commit | Step::Prepare | Step::Finish { .. } | Step::Alone(_) | Step::Walk { .. }
        );
        let cut = match (&link.wire, dice) {
            (Some(wire), 0..4) if ends => {
                wire.cut_next(if dice < 3 { Cut::After } else { Cut::Before });
                true
            }
            _ => false,
        };
        let sent = match copied {
            Some(deltas) => copy(&mut link.client, deltas),
            None => send(&mut link.client, &sql),
        }
        .with_context(|| format!("{step:?}"))?;
        match sent {
            Sent::Answered(answer) => {
                self.count(&self.tally.answers);
                self.session
                    .answered(step, &answer)
                    .with_context(|| format!("{sql}\nanswered {answer:?}"))?;
                if let (Answer::Refused { .. }, Step::Walk { name, steps }) = (&answer, step) {
                    self.walked(name, *steps)?;
                }
                if matches!((step, &answer), (Step::Prepare, Answer::Rows(_))) {
                    self.count(&self.tally.prepared);
                }
            }
            Sent::Lost => {
                if cut {
                    self.count(&self.tally.cut);
                }
                self.count(&self.tally.lost);
                self.find_out(step)
                    .with_context(|| format!("after the connection was lost in: {sql}"))?;
            }
        }
        Ok(())
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection went away in the middle of a step. What was it that happened?
    fn find_out(&mut self, step: &Step) -> Result<()> {
        let pid = self.link.take().map_or(0, |link| link.pid);
        self.session.disconnected();
        match (step, &self.session.transaction) {
            (Step::Finish { .. }, None) => self.find_out_finish(),
            (Step::Alone(op), None) => {
                self.wait_for_end(pid)?;
                let serial = self.session.last_serial() + 1;
                let fate = if self.journal(serial, 1)?.contains(&serial) {
                    Fate::Committed
                } else {
                    Fate::RolledBack
                };
                self.found(fate);
                self.session.ended_alone(op, fate)
            }
            (Step::Walk { name, steps }, None) => {
                self.wait_for_end(pid)?;
                self.walked(name, *steps)
            }
            (_, None) => Ok(()),
            (_, Some(transaction)) => {
                let (xid, serial) = (transaction.xid.clone(), transaction.serial);
                let may_commit = matches!(step, Step::Commit) && !transaction.failed;
                let may_prepare = matches!(step, Step::Prepare) && !transaction.failed;
                let Some(xid) = xid else {
                    // It has written nothing that it could have been told of.
                    ensure!(!may_commit, "a commit without a row in the journal");
                    self.wait_for_end(pid)?;
                    ensure!(
                        self.journal(serial, 1)?.is_empty(),
                        "a row of {serial} in the journal"
                    );
                    return self.session.end(Fate::RolledBack);
                };
                let Some(fate) = self.fate_of(&xid, may_prepare.then_some(serial))? else {
                    self.session.prepared = self.session.transaction.take();
                    return Ok(());
                };
                ensure!(
                    fate == Fate::RolledBack || may_commit,
                    "transaction {xid} has committed unasked"
                );
                let there = self.journal(serial, 1)?.contains(&serial);
                ensure!(
                    there == (fate == Fate::Committed),
                    "transaction {xid} is {fate:?}, its row of the journal there: {there}"
                );
                if may_commit || may_prepare {
                    self.found(fate);
                }
                self.session.end(fate)
            }
        }
    }

    fn found(&self, fate: Fate) {
        self.count(match fate {
            Fate::Committed => &self.tally.found_committed,
            Fate::RolledBack => &self.tally.found_aborted,
        });
    }

    /// How a transaction has ended, by its xid; None: it is prepared.
    fn fate_of(&mut self, xid: &str, prepared: Option<u64>) -> Result<Option<Fate>> {
        let gid = prepared.map(|serial| self.session.gid(serial));
        let sql = format!(
            "SELECT coalesce(pg_xact_status('{xid}'), 'none'),
                    EXISTS (SELECT FROM pg_prepared_xacts WHERE gid = '{}')",
            gid.as_deref().unwrap_or_default()
        );
        let mut fate = None;
        poll_until("the end of a transaction", DEADLINE, || {
            let row = self.inquiries.client()?.query_one(&sql, &[])?;
            let (status, is_prepared): (String, bool) = (row.get(0), row.get(1));
            fate = match status.as_str() {
                "committed" => Some(Some(Fate::Committed)),
                "aborted" => Some(Some(Fate::RolledBack)),
                "in progress" if is_prepared => Some(None),
                "in progress" => None,
                other => bail!("transaction {xid} is {other}"),
            };
            Ok(fate.is_some())
        })?;
        fate.context("polled for")
    }

    /// Whether COMMIT PREPARED or ROLLBACK PREPARED arrived: if not, it is done now.
    fn find_out_finish(&mut self) -> Result<()> {
        let prepared = self
            .session
            .prepared
            .as_ref()
            .context("nothing is prepared")?;
        let (serial, xid) = (prepared.serial, prepared.xid.clone().context("no xid")?);
        let gid = self.session.gid(serial);
        poll_until("the end of a prepared transaction", DEADLINE, || {
            let client = self.inquiries.client()?;
            let sql = "SELECT FROM pg_prepared_xacts WHERE gid = $1";
            if client.query_opt(sql, &[&gid])?.is_none() {
                return Ok(true);
            }
            // It fails as long as the lost session is at it.
            let _ = client.batch_execute(&format!("COMMIT PREPARED '{gid}'"));
            Ok(false)
        })?;
        let fate = self.fate_of(&xid, None)?.context("still prepared")?;
        self.found(fate);
        let there = self.journal(serial, 1)?.contains(&serial);
        ensure!(
            there == (fate == Fate::Committed),
            "transaction {xid} is {fate:?}, its row of the journal there: {there}"
        );
        self.session.finished(fate)
    }

    /// A procedure was interrupted: the journal says how far it came.
    fn walked(&mut self, name: &str, steps: u64) -> Result<()> {
        let first = self.session.last_serial() + 1;
        let there = self.journal(first, steps)?;
        let ended = there.last().map_or(0, |last| last - first + 1);
        let expected: BTreeSet<u64> = (0..ended)
            .filter(|step| step % 3 != 2)
            .map(|step| first + step)
            .collect();
        ensure!(
            there == expected,
            "a procedure's transactions: {there:?}, not {expected:?}"
        );
        self.session.walked(name, steps, ended);
        Ok(())
    }

    fn journal(&mut self, first: u64, count: u64) -> Result<BTreeSet<u64>> {
        let sql = format!(
            "SELECT serial FROM journal WHERE client = {} AND serial BETWEEN {first} AND {}",
            self.session.number,
            first + count - 1
        );
        let rows = self.inquiries.client()?.query(&sql, &[])?;
        rows.iter()
            .map(|row| Ok(u64::try_from(row.get::<_, i64>(0))?))
            .collect()
    }

    /// Waits until a backend has gone, and with it all that it did.
    fn wait_for_end(&mut self, pid: i32) -> Result<()> {
        let sql = "SELECT FROM pg_stat_activity WHERE pid = $1";
        poll_until("a lost backend to go", DEADLINE, || {
            Ok(self.inquiries.client()?.query_opt(sql, &[&pid])?.is_none())
        })
    }

    /// Ends what is prepared.
    pub(crate) fn finish(&mut self) -> Result<()> {
        while self.session.prepared.is_some() {
            self.step(&Step::Finish { commit: true }, 99)?;
        }
        Ok(())
    }
}

fn connect(cluster: &Cluster, config: &Config, wired: bool) -> Result<Link> {
    let (mut client, wire) = if wired {
        let (client, wire) = Wire::connect(cluster, config)?;
        (client, Some(wire))
    } else {
        (config.connect(NoTls)?, None)
    };
    let pid = client.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    Ok(Link { client, wire, pid })
}

/// Sends a message by the simple protocol.
fn send(client: &mut Client, sql: &str) -> Result<Sent> {
    sent(client.simple_query(sql).map(|messages| rows(&messages)))
}

/// All rows of an answer.
pub(crate) fn rows(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(
                (0..row.len())
                    .map(|column| row.get(column).map(str::to_owned))
                    .collect(),
            ),
            _ => None,
        })
        .collect()
}

/// The same rows as an INSERT, by COPY.
fn copy(client: &mut Client, deltas: &[(String, i64)]) -> Result<Sent> {
    let mut text = String::new();
    for (name, delta) in deltas {
        text.push_str(&format!("{name}\t{delta}\n"));
    }
    let copied = client
        .copy_in("COPY event FROM STDIN")
        .and_then(|mut writer| {
            // What went wrong is said at the end.
            let _ = writer.write_all(text.as_bytes());
            writer.finish()
        });
    sent(copied.map(|_| Vec::new()))
}

fn sent(result: Result<Vec<Vec<Option<String>>>, postgres::Error>) -> Result<Sent> {
    match result {
        Ok(rows) => Ok(Sent::Answered(Answer::Rows(rows))),
        Err(error) => {
            if let Some(db) = error.as_db_error()
                && !db.code().code().starts_with("57P0")
            {
                return Ok(Sent::Answered(Answer::Refused {
                    code: db.code().code().to_owned(),
                    message: format!("{} {}", db.message(), db.where_().unwrap_or_default()),
                }));
            }
            let error = anyhow::Error::from(error);
            if is_lost(&error) {
                Ok(Sent::Lost)
            } else {
                Err(error)
            }
        }
    }
}
