//! Traffic on bounded counters: takes, adds, holds, with savepoints and rollbacks, and the oracle in
//! the same transactions.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use postgres::error::SqlState;
use postgres::{Client, Config, IsolationLevel};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::{Recovering, check, is_lost, sqlstate};

/// The types and counters in play. Few, so that everybody meets everybody.
const TYPES: &str = "
    SELECT counter_type_create('stock', min => 0);
    SELECT counter_type_create('seats', max => 10);
    SELECT counter_type_create('quota', min => -5, max => 5);
    CREATE TABLE basket (id bigint PRIMARY KEY, name text NOT NULL, amount bigint NOT NULL);
";
const NAMES: [&str; 6] = [
    "stock:a", "stock:b", "seats:a", "quota:a", "quota:b", "plain",
];

/// What is done to the counters, in the words of the oracle.
const FUNCTIONS: &str = "
    CREATE FUNCTION book(name text, delta bigint) RETURNS void LANGUAGE sql AS $$
        INSERT INTO public.oracle VALUES ($1, $2);
    $$;
    CREATE FUNCTION try(name text, delta bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT public.counter_try_incr(name, delta) THEN
            RETURN false;
        END IF;
        PERFORM public.book(name, delta);
        RETURN true;
    END $$;
    CREATE FUNCTION take(name text, n bigint) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        got bigint := public.counter_take_up_to(name, n);
    BEGIN
        IF got NOT BETWEEN 0 AND n THEN
            RAISE 'took % of %', got, n;
        END IF;
        PERFORM public.book(name, -got);
        RETURN got;
    END $$;
    CREATE FUNCTION guarded(name text, delta bigint, fail boolean) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM public.bump(name, delta);
        BEGIN
            PERFORM public.bump(name, delta);
            IF fail THEN
                PERFORM 1 / 0;
            END IF;
        EXCEPTION WHEN division_by_zero OR check_violation THEN
            PERFORM public.bump(name, 0);
        END;
    END $$;
    CREATE FUNCTION hold(name text, amount bigint, ttl interval) RETURNS void LANGUAGE sql AS $$
        INSERT INTO public.basket VALUES (public.counter_hold($1, $2, $3), $1, $2);
    $$;
    CREATE FUNCTION confirm(hold bigint, part boolean) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        amount bigint;
        name text;
    BEGIN
        -- It may be reduced meanwhile.
        SELECT h.name, CASE WHEN part THEN (h.amount + 1) / 2 ELSE h.amount END
          INTO name, amount FROM public.counter_holds h WHERE h.id = hold;
        PERFORM public.counter_hold_confirm(hold, amount);
        PERFORM public.book(name, -amount);
    END $$;
";

/// One statement, so one snapshot: which counters are out of bounds.
const BOUNDS_SQL: &str = "
    SELECT coalesce(string_agg(format('%s is %s', c.name, c.value), ', '), '')
      FROM counters c JOIN counter_types t ON split_part(c.name, ':', 1) = t.name
     WHERE (c.value < t.min OR c.value > t.max) AND NOT c.name ^@ 'window.'";

/// Makes the types and functions, in a database of [`crate::create_database`].
///
/// # Errors
/// Those of the server.
pub fn prepare_bounded(client: &mut Client) -> Result<()> {
    client.batch_execute(TYPES)?;
    client.batch_execute(FUNCTIONS)?;
    Ok(client.batch_execute("SELECT bump('stock:a', 20), bump('stock:b', 5)")?)
}

/// A load on bounded counters.
#[derive(Clone, Copy, Debug)]
pub struct BoundedLoad {
    /// Connections.
    pub clients: u64,
    /// Transactions of each.
    pub transactions: u64,
    /// Whether connections are lost on purpose.
    pub survives: bool,
    /// Whether holds are made.
    pub holds: bool,
    /// The seed.
    pub seed: u64,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct BoundedEnd {
    /// Transactions that went to their end.
    pub done: AtomicU64,
    /// Those that were refused something by an error.
    pub refused: AtomicU64,
    /// Those that lost their connection.
    pub lost: AtomicU64,
    /// Looks of the checker.
    pub looks: AtomicU64,
    over: AtomicBool,
    failed: AtomicBool,
}

impl BoundedEnd {
    /// Has this share of the transactions ended? Also when the load has failed.
    pub fn reached(&self, load: &BoundedLoad, percent: u64) -> bool {
        let ended = self.done.load(Ordering::Relaxed)
            + self.refused.load(Ordering::Relaxed)
            + self.lost.load(Ordering::Relaxed);
        self.failed.load(Ordering::Relaxed)
            || ended * 100 >= load.clients * load.transactions * percent
    }
}

/// Runs a load with a checker beside it, and `meanwhile` in the calling thread. At the end, all that
/// is there can be taken, and all room be filled.
///
/// # Errors
/// The first thing that went wrong, with the seed.
pub fn bounded_under_watch(
    config: &Config,
    load: BoundedLoad,
    meanwhile: impl FnOnce(&BoundedEnd) -> Result<()>,
) -> Result<BoundedEnd> {
    let end = BoundedEnd::default();
    std::thread::scope(|scope| {
        let end = &end;
        let clients: Vec<_> = (0..load.clients)
            .map(|number| scope.spawn(move || run(config, load, number, end)))
            .collect();
        let checker = scope.spawn(move || watch(config, load, end));
        let mut result = meanwhile(end);
        for client in clients {
            let ended = client.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
            result = result.and(ended);
        }
        end.over.store(true, Ordering::Relaxed);
        let checked = checker.join().unwrap_or_else(|_| Err(anyhow!("panicked")));
        // What a checker has seen comes first: it explains the rest.
        checked.and(result)
    })
    .with_context(|| format!("COUNTERX_SEED={} {load:?}", load.seed))?;
    nothing_is_kept(Recovering::new(config).client()?).context("when all have ended")?;
    Ok(end)
}

/// Holds all bounded counters to be within the bounds of their types.
///
/// # Errors
/// Those of the server, or which ones are not.
pub fn within_bounds(client: &mut impl postgres::GenericClient) -> Result<()> {
    let wrong: String = client.query_one(BOUNDS_SQL, &[])?.get(0);
    ensure!(wrong.is_empty(), "out of bounds: {wrong}");
    Ok(())
}

fn look(client: &mut impl postgres::GenericClient) -> Result<()> {
    within_bounds(client)?;
    check(client)?;
    Ok(())
}

fn watch(config: &Config, load: BoundedLoad, end: &BoundedEnd) -> Result<()> {
    let mut connection = Recovering::new(config);
    loop {
        let last = end.over.load(Ordering::Relaxed);
        let looked = connection.client().and_then(|client| {
            let mut transaction = client
                .build_transaction()
                .isolation_level(IsolationLevel::RepeatableRead)
                .read_only(true)
                .start()?;
            look(&mut transaction)?;
            Ok(transaction.commit()?)
        });
        match looked {
            Ok(()) => {
                end.looks.fetch_add(1, Ordering::Relaxed);
                if last {
                    return Ok(());
                }
            }
            Err(error) if load.survives && is_lost(&error) => connection.forget(),
            Err(error) => {
                end.failed.store(true, Ordering::Relaxed);
                return Err(error);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends all holds, and makes sure that nobody has anything reserved any more: all that is there can be
/// taken, and all room be filled. What is taken to see that is rolled back: somebody may be looking, on
/// a standby for example. For when all sessions have ended their transactions.
///
/// # Errors
/// Those of the server, or what is kept.
pub fn nothing_is_kept(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "SET counterx.escrow_wait = 0; SELECT counter_hold_release(id) FROM counter_holds",
    )?;
    let sql = "SELECT c.name, c.value::bigint, t.min, t.max
                 FROM counters c JOIN counter_types t ON split_part(c.name, ':', 1) = t.name
                WHERE NOT c.name ^@ 'window.'";
    for row in client.query(sql, &[])? {
        let (name, value): (String, i64) = (row.get(0), row.get(1));
        let (min, max): (Option<i64>, Option<i64>) = (row.get(2), row.get(3));
        if let Some(min) = min {
            let mut transaction = client.transaction()?;
            let sql = "SELECT counter_take_up_to($1, 1000000)";
            let got: i64 = transaction.query_one(sql, &[&name])?.get(0);
            ensure!(got == value - min, "{name}: got {got} of {value}");
            transaction.rollback()?;
        }
        if let Some(max) = max {
            let room = max - value;
            let mut transaction = client.transaction()?;
            let sql = "SELECT counter_try_incr($1, $2), counter_try_incr($1, 1)";
            let row = transaction.query_one(sql, &[&name, &room])?;
            let (fits, more): (bool, bool) = (row.get(0), row.get(1));
            ensure!(fits && !more, "{name}: {value}, {room}: {fits}, {more}");
            transaction.rollback()?;
        }
    }
    look(client)
}

fn run(config: &Config, load: BoundedLoad, number: u64, end: &BoundedEnd) -> Result<()> {
    let mut traffic = BoundedTraffic::new(load, number);
    let mut connection = Recovering::new(config);
    for transaction in 0..load.transactions {
        if end.failed.load(Ordering::Relaxed) {
            break;
        }
        let result = connection
            .client()
            .and_then(|client| traffic.transaction(client));
        let count = match result {
            Ok(()) => &end.done,
            Err(error) if load.survives && is_lost(&error) => {
                connection.forget();
                &end.lost
            }
            Err(error) if is_refusal(&error) => {
                // The connection may go just now.
                if connection.client()?.batch_execute("ROLLBACK").is_err() {
                    ensure!(load.survives, "no rollback after {error:#}");
                    connection.forget();
                }
                &end.refused
            }
            Err(error) => {
                end.failed.store(true, Ordering::Relaxed);
                return Err(error.context(format!("client {number}, transaction {transaction}")));
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Out of bounds, a hold that has expired, is gone or holds less, a deadlock, a conflict.
pub(crate) fn is_refusal(error: &anyhow::Error) -> bool {
    sqlstate(error).is_some_and(|code| {
        [
            SqlState::CHECK_VIOLATION,
            SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE,
            SqlState::UNDEFINED_OBJECT,
            SqlState::INVALID_PARAMETER_VALUE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::T_R_SERIALIZATION_FAILURE,
        ]
        .contains(code)
    })
}

/// One client's random choices.
pub struct BoundedTraffic {
    rng: StdRng,
    load: BoundedLoad,
}

impl BoundedTraffic {
    /// The traffic of the client of this number.
    pub fn new(load: BoundedLoad, number: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(load.seed.wrapping_mul(1_000).wrapping_add(number)),
            load,
        }
    }

    fn transaction(&mut self, client: &mut Client) -> Result<()> {
        let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
            [self.rng.random_range(0..10_usize).saturating_sub(7)];
        let wait = ["0", "5ms", "50ms"][self.rng.random_range(0..3)];
        client.batch_execute(&format!(
            "BEGIN ISOLATION LEVEL {level}; SET LOCAL counterx.escrow_wait = '{wait}'"
        ))?;
        let mut open = 0;
        for _ in 0..self.rng.random_range(1..6) {
            match self.rng.random_range(0..10) {
                0 => {
                    open += 1;
                    client.batch_execute("SAVEPOINT s")?;
                }
                1 if open > 0 => client.batch_execute("ROLLBACK TO s")?,
                2 if open > 0 => {
                    open -= 1;
                    client.batch_execute("RELEASE s")?;
                }
                3 if open > 0 => {
                    let sql = format!("SELECT try('{}', -1), 1 / 0", self.name());
                    match client.batch_execute(&sql) {
                        Ok(()) => bail!("a division by zero went well"),
                        Err(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {}
                        Err(error) => return Err(error.into()),
                    }
                    client.batch_execute("ROLLBACK TO s")?;
                }
                _ => client.batch_execute(&self.change())?,
            }
        }
        // With what it has done itself, too.
        if self.rng.random_bool(0.2) {
            within_bounds(client)?;
        }
        let verb = if self.rng.random_bool(0.67) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        Ok(client.batch_execute(verb)?)
    }

    /// A statement that changes a bounded counter, or tries to, and the oracle alike.
    pub fn change(&mut self) -> String {
        let name = self.name();
        let kinds = if self.load.holds { 12 } else { 8 };
        match self.rng.random_range(0..kinds) {
            0..3 => format!("SELECT try('{name}', {})", self.rng.random_range(-3..4)),
            3 | 4 => format!("SELECT take('{name}', {})", self.rng.random_range(0..5)),
            5 => {
                let (delta, fail) = (self.rng.random_range(-2..3), self.rng.random_bool(0.5));
                format!("SELECT guarded('{name}', {delta}, {fail})")
            }
            6 | 7 => format!("SELECT bump('{name}', {})", self.rng.random_range(-2..3)),
            8 | 9 => {
                let amount = self.rng.random_range(1..4);
                let ttl =
                    ["3 milliseconds", "30 milliseconds", "1 hour"][self.rng.random_range(0..3)];
                format!("SELECT hold('stock:a', {amount}, '{ttl}')")
            }
            kind => {
                let call = if kind == 10 {
                    format!("confirm(id, {})", self.rng.random_bool(0.3))
                } else {
                    "counter_hold_release(id)".to_owned()
                };
                let nth = self.rng.random_range(0..3);
                format!(
                    "SELECT {call} FROM (SELECT id FROM counter_holds WHERE name = 'stock:a'
                      ORDER BY id DESC OFFSET {nth} LIMIT 1) some_hold"
                )
            }
        }
    }

    fn name(&mut self) -> &'static str {
        NAMES[self.rng.random_range(0..NAMES.len())]
    }
}
