//! The traffic: clients that count and keep the oracle in the same transactions.

use std::fmt::Write as _;
use std::iter::Cycle;
use std::slice::Iter;

use anyhow::{Context, Result, anyhow, ensure};
use postgres::{Client, Config, NoTls};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::{Recovering, is_lost, watch};
use crate::control::Control;

/// The seed of every random choice: `COUNTERX_SEED` if set, else always the same.
///
/// # Panics
/// When the variable is no number.
pub fn seed() -> u64 {
    std::env::var("COUNTERX_SEED").map_or(15, |text| text.parse().expect("COUNTERX_SEED"))
}

/// A load: a fixed amount of work, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Load {
    /// Connections.
    pub clients: u64,
    /// Transactions of each.
    pub transactions: u64,
    /// Counters in play; the first ones are hot.
    pub names: usize,
    /// Whether clients also prepare transactions.
    pub two_phase: bool,
    /// Whether clients run into serialization failures on purpose: SERIALIZABLE beside the others.
    pub serializable: bool,
    /// Whether a lost connection is made anew (a test that kills) or a failure (any other).
    pub survives: bool,
    /// Checkers that look on.
    pub checkers: u64,
    /// The seed.
    pub seed: u64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            clients: 8,
            transactions: 150,
            names: 40,
            two_phase: false,
            serializable: false,
            survives: false,
            checkers: 1,
            seed: seed(),
        }
    }
}

/// How the transactions of a load ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Transactions that ended as their client meant them to (also: rolled back on purpose).
    pub done: u64,
    /// Transactions whose end the client did not learn.
    pub unknown: u64,
    /// Transactions refused with a serialization failure.
    pub refused: u64,
}

/// How one of them did.
pub(crate) enum End {
    Done,
    Unknown,
    Refused,
}

/// What a load and its checkers came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watched {
    /// The load's side.
    pub outcome: Outcome,
    /// How often a checker compared all counters, or one through both ways, in a snapshot.
    pub checks: u64,
}

/// Statements of an administrator, one after the other beside a load, and again from the first one.
pub struct Maintenance<'a> {
    client: Client,
    statements: Cycle<Iter<'a, String>>,
    done: u64,
}

impl<'a> Maintenance<'a> {
    /// Connects, and begins with the first one.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn of(statements: &'a [String], config: &Config) -> Result<Self> {
        Ok(Self {
            client: config.connect(NoTls)?,
            statements: statements.iter().cycle(),
            done: 0,
        })
    }

    /// Runs loads with different seeds until a few statements have been run beside them. Some wait for
    /// the transactions of others, and may take as long as a whole load.
    ///
    /// # Errors
    /// Those of the load, which gets its seed and what to do meanwhile, and of the statements.
    pub fn beside(
        &mut self,
        mut load: impl FnMut(u64, &mut dyn FnMut(&Control) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        const ENOUGH: u64 = 4;
        let mut seeds = seed()..;
        while self.done < ENOUGH {
            let seed = seeds.next().context("no seeds")?;
            load(seed, &mut |control| self.run(control))?;
        }
        Ok(())
    }

    fn run(&mut self, control: &Control) -> Result<()> {
        let before = self.done;
        while !control.is_done() {
            let statement = self.statements.next().context("no statements")?;
            self.client
                .batch_execute(statement)
                .with_context(|| statement.clone())?;
            self.done += 1;
        }
        ensure!(self.done > before, "the load was over at once");
        Ok(())
    }
}

/// Runs a load with its checkers, and `meanwhile` in the calling thread.
///
/// # Errors
/// The first thing that went wrong anywhere, with the seed.
pub fn under_watch(
    config: &Config,
    load: &Load,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<Watched> {
    let watched = together(
        load,
        |number, control| run_client(config, load, number, control),
        |control| watch(config, control, load.survives),
        meanwhile,
    )?;
    if load.two_phase {
        // Its own: another load may run in this database.
        let own = format!("gid LIKE '{}-%'", load.seed);
        resolve_prepared_where(&mut config.connect(NoTls)?, &own)?;
    }
    Ok(watched)
}

/// Runs the clients and checkers of a load, each in a thread of its own, and `meanwhile` in the
/// calling one. A client [counts](Control::count) its transactions.
///
/// # Errors
/// The first thing that went wrong anywhere, with the seed.
pub fn together(
    load: &Load,
    client: impl Fn(u64, &Control) -> Result<Outcome> + Sync,
    checker: impl Fn(&Control) -> Result<u64> + Sync,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<Watched> {
    let control = Control::of(load.clients * load.transactions);
    let mut watched = Watched::default();
    std::thread::scope(|scope| {
        let control = &control;
        let (client, checker) = (&client, &checker);
        let clients: Vec<_> = (0..load.clients)
            .map(|number| scope.spawn(move || client(number, control)))
            .collect();
        let checkers: Vec<_> = (0..load.checkers)
            .map(|_| scope.spawn(move || checker(control)))
            .collect();

        let mut result = meanwhile(control).context("beside the load");
        if result.is_err() {
            control.abort();
        }
        for client in clients {
            match client
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a client panicked")))
            {
                Ok(outcome) => {
                    watched.outcome.done += outcome.done;
                    watched.outcome.unknown += outcome.unknown;
                    watched.outcome.refused += outcome.refused;
                }
                Err(error) => {
                    control.abort();
                    result = first(result, error);
                }
            }
        }
        control.end();
        for checker in checkers {
            match checker
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a checker panicked")))
            {
                Ok(checks) => watched.checks += checks,
                Err(error) => result = first(result, error),
            }
        }
        result
    })
    .with_context(|| format!("COUNTERX_SEED={} {load:?}", load.seed))?;
    Ok(watched)
}

/// Keeps the earlier error, except that "the load has failed" says less than the failure itself.
fn first(result: Result<()>, error: anyhow::Error) -> Result<()> {
    match result {
        Err(known) if !format!("{known:#}").contains("the load has failed") => Err(known),
        _ => Err(error),
    }
}

/// Ends what a killed client left prepared; commit or rollback, the oracle's row goes the same way.
pub fn resolve_prepared(config: &Config) -> Result<()> {
    resolve_prepared_where(&mut config.connect(NoTls)?, "true")
}

/// The same for those prepared transactions that meet a condition.
///
/// # Errors
/// Those of the server.
pub fn resolve_prepared_where(client: &mut Client, condition: &str) -> Result<()> {
    let sql = format!(
        "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND {condition} ORDER BY 1"
    );
    for (number, row) in client.query(&sql, &[])?.into_iter().enumerate() {
        let verb = if number % 2 == 0 {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        client.batch_execute(&format!("{verb} PREPARED '{}'", row.get::<_, String>(0)))?;
    }
    Ok(())
}

/// Ends what was prepared before a crash: its clients have lost sight of it, and while it is there no
/// log can be truncated. The checkpointer starts anew before anybody can connect again.
///
/// # Errors
/// Those of the server.
pub fn resolve_orphans(client: &mut Client) -> Result<()> {
    let before = "prepared < (SELECT backend_start FROM pg_stat_activity
                                  WHERE backend_type = 'checkpointer')";
    resolve_prepared_where(client, before)
}

fn run_client(config: &Config, load: &Load, number: u64, control: &Control) -> Result<Outcome> {
    let mut traffic = Traffic {
        rng: StdRng::seed_from_u64(load.seed.wrapping_mul(1_000).wrapping_add(number)),
        load,
        number,
        transaction: 0,
    };
    let mut connection = Recovering::new(config);
    one_by_one(load, number, control, |transaction| {
        traffic.transaction = transaction;
        let result = connection
            .client()
            .and_then(|client| traffic.transaction(client));
        match result {
            Ok(()) => Ok(End::Done),
            Err(error) if load.survives && is_lost(&error) => {
                connection.forget();
                Ok(End::Unknown)
            }
            Err(error) if load.serializable && is_refusal(&error) => {
                connection.client()?.batch_execute("ROLLBACK")?;
                Ok(End::Refused)
            }
            Err(error) => Err(error),
        }
    })
}

/// Runs a client's transactions, one after the other, as long as nobody fails.
pub(crate) fn one_by_one(
    load: &Load,
    number: u64,
    control: &Control,
    mut run: impl FnMut(u64) -> Result<End>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for transaction in 0..load.transactions {
        if control.is_aborted() {
            break;
        }
        match run(transaction) {
            Ok(End::Done) => outcome.done += 1,
            Ok(End::Unknown) => outcome.unknown += 1,
            Ok(End::Refused) => outcome.refused += 1,
            Err(error) => {
                control.abort();
                return Err(error.context(format!("client {number}, transaction {transaction}")));
            }
        }
        control.count();
    }
    Ok(outcome)
}

fn is_refusal(error: &anyhow::Error) -> bool {
    crate::check::sqlstate(error) == Some(&postgres::error::SqlState::T_R_SERIALIZATION_FAILURE)
}

/// One client's random choices.
struct Traffic<'a> {
    rng: StdRng,
    load: &'a Load,
    number: u64,
    transaction: u64,
}

impl Traffic<'_> {
    fn transaction(&mut self, client: &mut Client) -> Result<()> {
        let kinds = if self.load.two_phase { 12 } else { 11 };
        match self.rng.random_range(0..kinds) {
            // A statement of its own, by the extended protocol.
            0..3 => {
                let (name, delta) = (self.name(), self.delta());
                client.execute("SELECT bump($1, $2)", &[&name, &delta])?;
            }
            3..5 => self.several_statements(client)?,
            5 => self.one_message(client)?,
            6 | 7 => self.batch(client)?,
            8..11 => self.savepoints(client)?,
            _ => self.prepare(client)?,
        }
        Ok(())
    }

    /// A few increments, one by one, with reads of what was just written.
    fn several_statements(&mut self, client: &mut Client) -> Result<()> {
        self.begin(client)?;
        for _ in 0..self.rng.random_range(1..5) {
            let (name, delta) = (self.name(), self.delta());
            client.execute("SELECT bump($1, $2)", &[&name, &delta])?;
            if self.rng.random_bool(0.3) {
                read_own(client, &name)?;
            }
        }
        self.end(client)
    }

    /// A whole transaction in one message.
    fn one_message(&mut self, client: &mut Client) -> Result<()> {
        let mut sql = format!("BEGIN ISOLATION LEVEL {};", self.isolation());
        for _ in 0..self.rng.random_range(1..6) {
            let _ = write!(sql, "SELECT bump('{}', {});", self.name(), self.delta());
        }
        sql.push_str(if self.rng.random_bool(0.8) {
            "COMMIT"
        } else {
            "ROLLBACK"
        });
        Ok(client.batch_execute(&sql)?)
    }

    /// Many names in one statement, some of them several times.
    fn batch(&mut self, client: &mut Client) -> Result<()> {
        let size = self.rng.random_range(2..60);
        let (names, deltas): (Vec<String>, Vec<i64>) =
            (0..size).map(|_| (self.name(), self.delta())).unzip();
        self.begin(client)?;
        client.execute("SELECT bump_many($1, $2)", &[&names, &deltas])?;
        if self.rng.random_bool(0.3) {
            read_own(client, &names[0])?;
        }
        self.end(client)
    }

    /// Increments between savepoints that are nested, released, rolled back to (also from further
    /// in, also twice), and statements that fail within them.
    fn savepoints(&mut self, client: &mut Client) -> Result<()> {
        let mut open: Vec<usize> = Vec::new();
        let mut next = 0;
        self.begin(client)?;
        for _ in 0..self.rng.random_range(4..14) {
            match self.rng.random_range(0..10) {
                0..3 => {
                    open.push(next);
                    client.batch_execute(&format!("SAVEPOINT s{next}"))?;
                    next += 1;
                }
                3 if !open.is_empty() => {
                    let level = self.rng.random_range(0..open.len());
                    client.batch_execute(&format!("ROLLBACK TO s{}", open[level]))?;
                    open.truncate(level + 1);
                }
                4 if !open.is_empty() => {
                    let level = self.rng.random_range(0..open.len());
                    client.batch_execute(&format!("RELEASE s{}", open[level]))?;
                    open.truncate(level);
                }
                5 if !open.is_empty() => {
                    let inner = open[open.len() - 1];
                    let sql = format!("SELECT bump('{}', {}), 1/0", self.name(), self.delta());
                    ensure!(
                        client.batch_execute(&sql).is_err(),
                        "a division by zero went well"
                    );
                    client.batch_execute(&format!("ROLLBACK TO s{inner}"))?;
                }
                6 => {
                    let (name, delta) = (self.name(), self.delta());
                    let fail = self.rng.random_bool(0.5);
                    client.execute("SELECT bump_guarded($1, $2, $3)", &[&name, &delta, &fail])?;
                }
                _ => {
                    let (name, delta) = (self.name(), self.delta());
                    client.execute("SELECT bump($1, $2)", &[&name, &delta])?;
                    if self.rng.random_bool(0.2) {
                        read_own(client, &name)?;
                    }
                }
            }
        }
        self.end(client)
    }

    /// Two-phase commit, with another transaction of the same backend in between.
    fn prepare(&mut self, client: &mut Client) -> Result<()> {
        let gid = format!(
            "{}-{}-{}-{}",
            self.load.seed,
            self.number,
            self.transaction,
            client
                .query_one("SELECT current_database()", &[])?
                .get::<_, String>(0)
        );
        let mut sql = "BEGIN;".to_owned();
        for _ in 0..self.rng.random_range(1..6) {
            let _ = write!(sql, "SELECT bump('{}', {});", self.name(), self.delta());
        }
        let _ = write!(sql, "PREPARE TRANSACTION '{gid}'");
        client.batch_execute(&sql)?;
        if self.rng.random_bool(0.5) {
            let (name, delta) = (self.name(), self.delta());
            client.execute("SELECT bump($1, $2)", &[&name, &delta])?;
        }
        let verb = if self.rng.random_bool(0.7) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        Ok(client.batch_execute(&format!("{verb} PREPARED '{gid}'"))?)
    }

    fn begin(&mut self, client: &mut Client) -> Result<()> {
        Ok(client.batch_execute(&format!("BEGIN ISOLATION LEVEL {}", self.isolation()))?)
    }

    fn isolation(&mut self) -> &'static str {
        match self
            .rng
            .random_range(0..if self.load.serializable { 3 } else { 2 })
        {
            0 => "READ COMMITTED",
            1 => "REPEATABLE READ",
            _ => "SERIALIZABLE",
        }
    }

    fn end(&mut self, client: &mut Client) -> Result<()> {
        let verb = if self.rng.random_bool(0.8) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        Ok(client.batch_execute(verb)?)
    }

    /// Half of all increments meet the first two counters.
    fn name(&mut self) -> String {
        let number = if self.rng.random_bool(0.5) {
            self.rng.random_range(0..2.min(self.load.names))
        } else {
            self.rng.random_range(0..self.load.names)
        };
        match number {
            3 => "ü".repeat(127),
            4 => format!("{}%\\_", "long:".repeat(50)),
            number => format!("counter:{number}"),
        }
    }

    fn delta(&mut self) -> i64 {
        match self.rng.random_range(0..20) {
            0 => self.rng.random_range(-1_000_000_000_000..1_000_000_000_000),
            1 => 0,
            2..6 => -self.rng.random_range(1..100),
            _ => self.rng.random_range(1..100),
        }
    }
}

/// A transaction sees its own increments at once, on top of what its snapshot shows.
fn read_own(client: &mut Client, name: &str) -> Result<()> {
    let sql = "SELECT counter_value($1)::text,
                      (SELECT coalesce(sum(delta), 0)::text FROM oracle WHERE name = $1)";
    let row = client.query_one(sql, &[&name])?;
    let (value, oracle): (String, String) = (row.get(0), row.get(1));
    ensure!(
        value == oracle,
        "{name} inside its transaction: counter {value}, oracle {oracle}"
    );
    Ok(())
}
