//! Comparing counters with the oracle.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use counterx_harness::poll_until;
use postgres::error::{Severity, SqlState};
use postgres::{Client, Config, GenericClient, IsolationLevel, NoTls};

use crate::control::Control;
use crate::server::DEADLINE;

/// One statement, so one snapshot: how many names were compared, and what is wrong with which.
/// Both ways to read a counter are held against the oracle, for every name that either side knows.
///
/// Hits are in no transaction of the oracle's: they have a [book](crate::Book), and names of their own. So have
/// the rows of a tracked table, and counters that begin anew, of [`crate::prepare_windowed`].
pub const CHECK_SQL: &str = "
    WITH books AS (SELECT name, sum(delta) AS total FROM oracle GROUP BY name),
    compared AS (
        SELECT name,
               coalesce(books.total, 0) AS oracle,
               coalesce(counters.value, 0) AS listed,
               counter_value(name) AS point
          FROM books FULL JOIN counters USING (name)
         WHERE NOT name ^@ 'hit:' AND NOT name ^@ 'item:' AND NOT name ^@ 'window.'
    )
    SELECT count(*),
           coalesce(string_agg(format('%s: oracle %s, counters %s, counter_value %s',
                                      name, oracle, listed, point), E'\\n' ORDER BY name)
                    FILTER (WHERE oracle <> listed OR oracle <> point), '')
      FROM compared";

/// Checks every counter in one snapshot and returns how many there were.
///
/// # Errors
/// The query's own error, or a list of the counters that differ from the oracle, with what the
/// engine's tables hold for the first of them.
pub fn check(client: &mut impl GenericClient) -> Result<i64> {
    let row = client.query_one(CHECK_SQL, &[])?;
    let (compared, wrong): (i64, String) = (row.get(0), row.get(1));
    if !wrong.is_empty() {
        let name = wrong.split(": oracle").next().unwrap_or_default();
        let tables = evidence(client, name).unwrap_or_else(|error| format!("{error:#}"));
        bail!("counters differ from the oracle:\n{wrong}\n{tables}");
    }
    Ok(compared)
}

/// Connects to `db` and checks every counter.
///
/// # Errors
/// Those of the connection and of [`check`].
pub fn check_database(config: &Config) -> Result<i64> {
    check(&mut config.connect(NoTls)?)
}

/// What the engine's tables hold for a counter; taken in the same snapshot where the caller's
/// transaction has one.
fn evidence(client: &mut impl GenericClient, name: &str) -> Result<String> {
    let mut lines = Vec::new();
    for (title, sql) in [
        (
            "snapshot",
            "SELECT pg_current_snapshot()::text WHERE $1 <> ''",
        ),
        (
            "total",
            "SELECT t::text FROM counterx.total t WHERE name = $1 ORDER BY gen DESC LIMIT 3",
        ),
        (
            "late",
            "SELECT l::text FROM counterx.late l WHERE name = $1",
        ),
        (
            "state",
            "SELECT s::text FROM counterx.state s WHERE $1 <> '' ORDER BY lane, gen DESC",
        ),
    ] {
        for row in client.query(sql, &[&name])? {
            lines.push(format!("{title} {}", row.get::<_, String>(0)));
        }
    }
    for lane in 0..8 {
        for side in ["a", "b"] {
            let log = format!("counterx.log_{lane}_{side}");
            let sql = format!(
                "SELECT epoch, count(*), sum(delta)::text FROM {log} WHERE name = $1 \
                 GROUP BY epoch ORDER BY epoch"
            );
            for row in client.query(&sql, &[&name])? {
                let (epoch, rows, sum): (i64, i64, String) = (row.get(0), row.get(1), row.get(2));
                lines.push(format!("{log} epoch {epoch}: {rows} rows, sum {sum}"));
            }
        }
    }
    Ok(lines.join("\n"))
}

/// The SQLSTATE behind an error, if the server sent one.
pub fn sqlstate(error: &anyhow::Error) -> Option<&SqlState> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<postgres::Error>()?.code())
}

/// Holds a result to be refused with this SQLSTATE, and returns the server's message.
///
/// # Errors
/// When it went well, or failed in another way.
pub fn refused<T>(result: Result<T, postgres::Error>, code: &SqlState) -> Result<String> {
    match result {
        Ok(_) => bail!("went well, but {} was due", code.code()),
        Err(error) => match error.as_db_error() {
            Some(db) if db.code() == code => Ok(db.message().to_owned()),
            _ => Err(anyhow::Error::from(error).context(format!("{} was due", code.code()))),
        },
    }
}

/// Did this error end the connection, or keep it from coming about, because the server or the
/// backend went away?
pub fn is_lost(error: &anyhow::Error) -> bool {
    let Some(error) = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<postgres::Error>())
    else {
        return false;
    };
    // The server goes down, and the code says why.
    let severity = error.as_db_error().and_then(|db| db.parsed_severity());
    if severity == Some(Severity::Panic) {
        return true;
    }
    match error.code() {
        Some(code) => code.code().starts_with("57P0") || code.code().starts_with("08"),
        None => true,
    }
}

/// A connection that may break and is made anew.
pub struct Recovering {
    config: Config,
    client: Option<Client>,
}

impl Recovering {
    /// Nothing is connected before the first use.
    pub fn new(config: &Config) -> Self {
        Self {
            config: config.clone(),
            client: None,
        }
    }

    /// The connection, made anew if the last one is gone.
    ///
    /// # Errors
    /// When the server does not come back within the deadline.
    pub fn client(&mut self) -> Result<&mut Client> {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            self.client = None;
            let mut made = None;
            poll_until("the server to accept connections", DEADLINE, || {
                match self.config.connect(NoTls) {
                    Ok(client) => made = Some(client),
                    Err(error) => {
                        let error = anyhow::Error::from(error);
                        if !is_lost(&error) {
                            return Err(error);
                        }
                    }
                }
                Ok(made.is_some())
            })?;
            self.client = made;
        }
        self.client.as_mut().context("just connected")
    }

    /// Has the connection ended that there was? One that was made anew would not tell of it.
    pub fn has_ended(&mut self) -> bool {
        let Some(client) = &mut self.client else {
            return true;
        };
        // It may have been told so together with the answer to an earlier question.
        client.is_closed() || client.batch_execute("SELECT 1").is_err()
    }

    /// The connection itself, if there is one.
    pub fn into_client(self) -> Option<Client> {
        self.client
    }

    /// Drops the connection after an error.
    pub fn forget(&mut self) {
        self.client = None;
    }
}

/// Checks again and again until the load has ended, in transactions that look twice and at either
/// isolation level, and returns how many looks there were.
///
/// # Errors
/// The first difference; any error of the server, except a lost connection when the load
/// [survives](crate::Load::survives) those.
pub fn watch(config: &Config, control: &Control, survives: bool) -> Result<u64> {
    watch_by(config, control, survives, watch_once)
}

/// The same, by another way to look, which is told the number of its round.
///
/// # Errors
/// As of [`watch`].
pub fn watch_by(
    config: &Config,
    control: &Control,
    survives: bool,
    look: impl Fn(&mut Client, u64) -> Result<u64>,
) -> Result<u64> {
    let mut connection = Recovering::new(config);
    let mut checks = 0;
    let mut rounds = 0_u64;
    // One look comes after the load has ended: the last state counts, too.
    loop {
        let last = control.is_over();
        rounds += 1;
        match look(connection.client()?, rounds) {
            Ok(looks) => checks += looks,
            Err(error) if survives && is_lost(&error) => {
                connection.forget();
                if !last {
                    continue;
                }
            }
            Err(error) => {
                control.abort();
                return Err(error.context(format!("check {checks}")));
            }
        }
        if last {
            return Ok(checks);
        }
        // The checker shares the machine with the load that it watches.
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn watch_once(client: &mut Client, round: u64) -> Result<u64> {
    if round.is_multiple_of(3) {
        check(client)?;
        return Ok(1);
    }
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    check(&mut transaction).context("first look of a snapshot")?;
    // In between the snapshot ages by a fold or more.
    if round.is_multiple_of(2) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut looks = 1;
    let sql =
        "SELECT c.name, (SELECT coalesce(sum(delta), 0) FROM oracle o WHERE o.name = c.name)::text,
                      value::text, counter_value(name)::text
                 FROM counters c WHERE name = $1";
    // One whose sum is 0 may have been dropped.
    let some = "SELECT name FROM oracle GROUP BY name HAVING sum(delta) <> 0 ORDER BY name LIMIT 1";
    if let Some(row) = transaction.query_opt(some, &[])? {
        let name: String = row.get(0);
        let row = transaction.query_one(sql, &[&name])?;
        let (oracle, listed, point): (String, String, String) =
            (row.get(1), row.get(2), row.get(3));
        if oracle != listed || oracle != point {
            let tables = evidence(&mut transaction, &name)?;
            bail!("{name}: oracle {oracle}, counters {listed}, counter_value {point}\n{tables}");
        }
        looks += 1;
    }
    check(&mut transaction).context("second look of the same snapshot")?;
    transaction.commit()?;
    Ok(looks + 1)
}
