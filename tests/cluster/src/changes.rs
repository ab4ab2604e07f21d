//! Traffic of all the ways to change a counter, and checks of all the ways to read one.
//!
//! The oracle stays what it is: what a transaction has done to a counter, it writes down beside it.
//! What a set, reset, drop, rename or merge has done is only known by what the call returned, or,
//! in a transaction that is bound to one snapshot, by the value before. A wrong answer that is
//! written down faithfully would go unseen, so the functions below hold each answer against the
//! oracle first, and there are counters of which more is known:
//!
//! - `d:`: only positive deltas, and never set or reset to 0. Such a counter exists exactly while its
//!   value is positive, in every snapshot. `d:tmp:CLIENT:` are touched by one client alone, so that
//!   what was moved there is known exactly.
//! - `p:`: only positive deltas; reset and set to positive values. Never negative, in any snapshot:
//!   two resets that took the same increment would make it so.
//! - `n:`: anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use postgres::error::SqlState;
use postgres::{Client, Config, GenericClient, IsolationLevel, NoTls};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::{Recovering, check, is_lost, sqlstate, watch_by};
use crate::control::Control;
use crate::load::{End, Load, Outcome, Watched, one_by_one, resolve_prepared_where, together};

/// What the changes of a counter are called and written down with; beside
/// [`oracle_schema`](crate::oracle_schema).
pub fn changes_schema() -> &'static str {
    r#"
    CREATE TABLE once (token text PRIMARY KEY, value bigint);
    CREATE FUNCTION held(what text, name text, holds boolean, got text, expected text) RETURNS void
    LANGUAGE plpgsql AS $$
    BEGIN
        IF holds IS NOT TRUE THEN
            RAISE EXCEPTION 'WRONG: % of %: got %, expected %', what, name, got, expected;
        END IF;
    END $$;
    CREATE FUNCTION booked(name text) RETURNS bigint LANGUAGE sql AS $$
        SELECT coalesce(sum(o.delta), 0)::bigint FROM public.oracle o WHERE o.name = $1
    $$;
    CREATE FUNCTION one_snapshot() RETURNS boolean LANGUAGE sql AS $$
        SELECT current_setting('transaction_isolation') <> 'read committed'
    $$;

    -- Sets or resets; the old value lies between what was there before and after.
    CREATE FUNCTION change_set(name text, value bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        old bigint;
        before bigint := booked(name);
        after bigint;
    BEGIN
        old := CASE WHEN value IS NULL THEN counter_reset(name) ELSE counter_set(name, value) END;
        IF one_snapshot() THEN
            PERFORM held('old value', name, old = before, old::text, before::text);
        END IF;
        INSERT INTO oracle VALUES (name, coalesce(value, 0) - old);
        IF one_snapshot() THEN
            PERFORM held('new value', name, counter_value(name) = coalesce(value, 0),
                         counter_value(name)::text, value::text);
        END IF;
        IF NOT name LIKE 'n:%' THEN
            PERFORM held('old value', name, old >= 0, old::text, 'no negative one');
            -- Nobody else sets it now: it can only grow.
            before := booked(name);
            old := counter_reset(name);
            after := booked(name);
            PERFORM held('old value', name, old BETWEEN before AND after, old::text,
                         format('%s to %s', before, after));
            INSERT INTO oracle VALUES (name, -old);
            PERFORM counter_incr(name, old);
            INSERT INTO oracle VALUES (name, old);
        END IF;
    END $$;

    -- In one snapshot alone: there the value before is what is dropped.
    CREATE FUNCTION change_drop(name text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        before bigint := booked(name);
        existed boolean := counter_drop(name);
    BEGIN
        INSERT INTO oracle VALUES (name, -before);
        IF name LIKE 'd:%' THEN
            PERFORM held('drop', name, existed = (before > 0), existed::text, before::text);
        END IF;
        PERFORM held('dropped value', name, counter_value(name) = 0, counter_value(name)::text, '0');
        PERFORM held('dropped counter', name, NOT EXISTS (SELECT FROM counters c WHERE c.name = $1),
                     'one', 'none');
    END $$;

    -- Moves a counter to a new name that nobody else uses.
    CREATE FUNCTION change_take(name text, private text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        before bigint := booked(name);
        taken bigint;
        free text;
    BEGIN
        SELECT n INTO free FROM (SELECT private || i AS n FROM generate_series(1, 4) i) t
         WHERE booked(n) = 0 LIMIT 1;
        IF free IS NULL THEN
            RETURN;
        END IF;
        PERFORM counter_rename(name, free);
        taken := counter_value(free);
        IF one_snapshot() THEN
            PERFORM held('renamed value', name, taken = before, taken::text, before::text);
        END IF;
        PERFORM held('renamed value', name, taken > 0, taken::text, 'a positive one');
        INSERT INTO oracle VALUES (name, -taken), (free, taken);
    END $$;

    -- Moves such a counter into another one, or drops it.
    CREATE FUNCTION change_put(into_name text, private text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        mine text;
        amount bigint;
        existed boolean;
    BEGIN
        SELECT n, booked(n) INTO mine, amount
          FROM (SELECT private || i AS n FROM generate_series(1, 4) i) t
         WHERE booked(n) <> 0 LIMIT 1;
        IF mine IS NULL THEN
            RETURN;
        END IF;
        PERFORM held('private value', mine, counter_value(mine) = amount,
                     counter_value(mine)::text, amount::text);
        INSERT INTO oracle VALUES (mine, -amount);
        IF into_name IS NULL THEN
            existed := counter_drop(mine);
            PERFORM held('private drop', mine, existed, 'false', 'true');
        ELSE
            PERFORM counter_merge(into_name, mine);
            INSERT INTO oracle VALUES (into_name, amount);
        END IF;
        PERFORM held('private value', mine, counter_value(mine) = 0, counter_value(mine)::text, '0');
    END $$;

    -- In one snapshot alone.
    CREATE FUNCTION change_merge(into_name text, from_name text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        expected bigint := booked(into_name) + booked(from_name);
        moved bigint := booked(from_name);
    BEGIN
        PERFORM counter_merge(into_name, from_name);
        INSERT INTO oracle VALUES (from_name, -moved), (into_name, moved);
        PERFORM held('merged value', into_name, counter_value(into_name) = expected,
                     counter_value(into_name)::text, expected::text);
    END $$;

    CREATE FUNCTION change_once(token text, name text, delta bigint) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF counter_incr_once(token, name, delta) THEN
            -- A second time would fail here.
            INSERT INTO once VALUES (token);
            INSERT INTO oracle VALUES (name, delta);
        ELSIF NOT one_snapshot() THEN
            PERFORM held('token', token, EXISTS (SELECT FROM once o WHERE o.token = $1), 'a replay', 'none');
        END IF;
    END $$;
    CREATE FUNCTION change_once_get(token text, name text, delta bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        got bigint := counter_incr_once_get(token, name, delta);
        first bigint;
    BEGIN
        -- In one snapshot, a conflict with a row that is not visible is 40001.
        INSERT INTO once VALUES (token, got) ON CONFLICT DO NOTHING;
        IF FOUND THEN
            INSERT INTO oracle VALUES (name, delta);
        ELSE
            first := (SELECT o.value FROM once o WHERE o.token = $1);
            PERFORM held('replay', token, got = first, got::text, first::text);
        END IF;
    END $$;
    CREATE FUNCTION change_many(names text[], deltas bigint[], as_json boolean) RETURNS void
    LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO oracle SELECT * FROM unnest(names, deltas);
        IF as_json THEN
            PERFORM counter_incr_many((SELECT jsonb_object_agg(n, s) FROM
                (SELECT n, sum(d) AS s FROM unnest(names, deltas) t (n, d) GROUP BY n) sums));
        ELSE
            PERFORM counter_incr_many(names, deltas);
        END IF;
    END $$;
    "#
}

/// Runs a load of changes with its checkers, and `meanwhile` in the calling thread. The load's
/// `names` are the number of shared counters of each kind.
///
/// # Errors
/// The first thing that went wrong anywhere, with the seed.
pub fn changes_under_watch(
    config: &Config,
    load: &Load,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<Watched> {
    let watched = together(
        load,
        |number, control| run_client(config, load, number, control),
        |control| watch_by(config, control, load.survives, look),
        meanwhile,
    )?;
    if load.two_phase {
        // Its own: another load may run in this database.
        let own = format!("gid LIKE 'changes-%:{}:%'", load.seed);
        resolve_prepared_where(&mut config.connect(NoTls)?, &own)?;
    }
    Ok(watched)
}

fn look(client: &mut Client, round: u64) -> Result<u64> {
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    let first = agree(&mut transaction).context("first look of a snapshot")?;
    // In between the snapshot ages by a fold or more.
    if round.is_multiple_of(2) {
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
    let second = agree(&mut transaction).context("second look of the same snapshot")?;
    ensure!(first == second, "a snapshot changed: {first:?} {second:?}");
    transaction.commit()?;
    Ok(2)
}

type Counters = BTreeMap<String, i64>;

/// Holds all ways to read counters against each other and against the oracle. In a transaction that
/// is bound to one snapshot, or at rest.
///
/// # Errors
/// Those of the server, or what differs.
pub fn agree(client: &mut impl GenericClient) -> Result<Counters> {
    check(client)?;
    let counters: Counters = client
        .query("SELECT name, value::bigint FROM counters", &[])?
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    for (name, &value) in &counters {
        ensure!(
            value > 0 || !name.starts_with("d:"),
            "{name} exists with value {value}"
        );
        ensure!(value >= 0 || !name.starts_with("p:"), "{name} is {value}");
    }

    // Asked for in another order than theirs, and among some that do not exist.
    let mut names: Vec<&str> = counters.keys().rev().map(String::as_str).collect();
    names.insert(names.len() / 2, "no such counter");
    names.push(names[0]);
    let found: Vec<(String, i64)> = pairs(client, "SELECT * FROM counter_values($1)", &[&names])?;
    let expected: Vec<(String, i64)> = names
        .iter()
        .map(|&name| (name.to_owned(), counters.get(name).copied().unwrap_or(0)))
        .collect();
    ensure!(
        found == expected,
        "counter_values: {found:?}, counters {expected:?}"
    );

    for prefix in ["", "d:", "d:tmp:", "p:", "n:", "n:1"] {
        let those: Vec<(String, i64)> = counters
            .iter()
            .filter(|(name, _)| name.starts_with(prefix))
            .map(|(name, &value)| (name.clone(), value))
            .collect();
        agree_on_prefix(client, prefix, &those).with_context(|| format!("prefix '{prefix}'"))?;
    }
    Ok(counters)
}

fn pairs(
    client: &mut impl GenericClient,
    sql: &str,
    parameters: &[&(dyn postgres::types::ToSql + Sync)],
) -> Result<Vec<(String, i64)>> {
    let rows = client.query(sql, parameters)?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn agree_on_prefix(
    client: &mut impl GenericClient,
    prefix: &str,
    counters: &[(String, i64)],
) -> Result<()> {
    let sum: String = client
        .query_one("SELECT counter_sum($1)::text", &[&prefix])?
        .get(0);
    let expected: i64 = counters.iter().map(|(_, value)| value).sum();
    ensure!(
        sum == expected.to_string(),
        "sum {sum}, counters {expected}"
    );

    let small = if counters.len() > 100 { 99 } else { 3 };
    for size in [small, 1000_i64] {
        let mut listed = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let sql = "SELECT * FROM counter_list($1, $2, $3)";
            let page = pairs(client, sql, &[&prefix, &after, &size])?;
            let full = i64::try_from(page.len())? == size;
            after = page.last().map(|(name, _)| name.clone());
            listed.extend(page);
            if !full {
                break;
            }
        }
        ensure!(
            listed == counters,
            "counter_list by {size}: {listed:?}, counters {counters:?}"
        );
    }

    let mut sorted = counters.to_vec();
    sorted.sort_by_key(|(_, value)| -value);
    for function in ["counter_top", "counter_bottom"] {
        // From the end, and after a counter in the middle.
        let middle = sorted.get(sorted.len() / 2);
        for (n, after) in [1_i64, 4, 1000]
            .map(|n| (n, None))
            .into_iter()
            .chain([(4, middle)])
        {
            let sql = format!("SELECT rank, name, value FROM {function}($1, $2, $3, $4)");
            let (value, name) = (after.map(|at| at.1), after.map(|at| &at.0));
            let ranked: Vec<(i64, String, i64)> = client
                .query(&sql, &[&n, &prefix, &value, &name])?
                .iter()
                .map(|row| (row.get(0), row.get(1), row.get(2)))
                .collect();
            let expected: Vec<(i64, String, i64)> = sorted
                .iter()
                .skip(after.map_or(0, |_| sorted.len() / 2 + 1))
                .take(usize::try_from(n)?)
                .map(|(name, value)| {
                    let before = sorted.iter().position(|(_, other)| other == value);
                    let rank = before.unwrap_or_default() + 1;
                    (rank as i64, name.clone(), *value)
                })
                .collect();
            ensure!(
                ranked == expected,
                "{function}({n}, after {after:?}): {ranked:?}, counters {expected:?}"
            );
        }
        if function == "counter_top"
            && let Some((name, value)) = middle
        {
            let sql = "SELECT counter_rank($1, $2)";
            let rank: Option<i64> = client.query_one(sql, &[name, &prefix])?.get(0);
            let greater = sorted.iter().filter(|(_, other)| other > value).count();
            ensure!(
                rank == Some(greater as i64 + 1),
                "counter_rank({name}): {rank:?}, counters {sorted:?}"
            );
        }
        sorted.reverse();
    }
    Ok(())
}

fn run_client(config: &Config, load: &Load, number: u64, control: &Control) -> Result<Outcome> {
    let mut traffic = ChangesTraffic::new(load, number);
    let mut connection = Recovering::new(config);
    one_by_one(load, number, control, |_| {
        let result = connection
            .client()
            .and_then(|client| traffic.transaction(client));
        match result {
            Ok(()) => Ok(End::Done),
            Err(error) if load.survives && is_lost(&error) => {
                connection.forget();
                // What it has left prepared would keep its counters locked.
                traffic.resolve(&mut connection)?;
                Ok(End::Unknown)
            }
            Err(error) if is_refusal(&error) => {
                connection.forget();
                Ok(End::Refused)
            }
            Err(error) => Err(error),
        }
    })
}

/// Somebody else came first; or there was nothing to rename or merge.
fn is_refusal(error: &anyhow::Error) -> bool {
    sqlstate(error).is_some_and(|code| {
        [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::UNDEFINED_OBJECT,
        ]
        .contains(code)
    })
}

/// One client's random choices.
pub struct ChangesTraffic<'a> {
    rng: StdRng,
    load: &'a Load,
    number: u64,
    serial: u64,
}

impl<'a> ChangesTraffic<'a> {
    /// The traffic of the client of this number.
    pub fn new(load: &'a Load, number: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(load.seed.wrapping_mul(7_000).wrapping_add(number)),
            load,
            number,
            serial: 0,
        }
    }

    fn transaction(&mut self, client: &mut Client) -> Result<()> {
        let isolation = match self.rng.random_range(0..10) {
            0..6 => "READ COMMITTED",
            6..9 => "REPEATABLE READ",
            _ => "SERIALIZABLE",
        };
        let one_snapshot = isolation != "READ COMMITTED";
        if self.rng.random_bool(0.3) && !one_snapshot {
            let sql = self.change(false);
            client.batch_execute(&sql)?;
            return Ok(());
        }
        let mut flushed = false;
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {isolation}"))?;
        for _ in 0..self.rng.random_range(1..5) {
            let sql = self.change(one_snapshot);
            match self.rng.random_range(0..10) {
                // Undone, and perhaps done again.
                0 => client.batch_execute(&format!("SAVEPOINT s; {sql}; ROLLBACK TO s"))?,
                1 => client.batch_execute(&format!("SAVEPOINT s; {sql}; RELEASE s"))?,
                2 => {
                    client.batch_execute(&format!("SAVEPOINT s; {sql}; ROLLBACK TO s; {sql}"))?;
                }
                3 => {
                    let other = self.change(one_snapshot);
                    client.batch_execute(&format!(
                        "SAVEPOINT s; {sql}; SAVEPOINT t; {other}; RELEASE t; ROLLBACK TO s; {other}"
                    ))?;
                }
                _ => client.batch_execute(&sql)?,
            }
            if self.rng.random_bool(0.03) {
                flushed = true;
                self.flush_early(client)?;
            }
        }
        if isolation == "REPEATABLE READ" && self.rng.random_bool(0.1) {
            agree(client).context("inside a transaction that has changed counters")?;
        }
        match self.rng.random_range(0..20) {
            0..3 => client.batch_execute("ROLLBACK")?,
            3..5 if self.load.two_phase && !flushed => {
                // The whole server's names, and other databases have the same load.
                let db: String = client.query_one("SELECT current_database()", &[])?.get(0);
                let gid = format!("{}:{}:{}:{db}", self.prefix(), self.load.seed, self.serial);
                client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'"))?;
                let verb = if self.rng.random_bool(0.8) {
                    "COMMIT"
                } else {
                    "ROLLBACK"
                };
                client.batch_execute(&format!("{verb} PREPARED '{gid}'"))?;
            }
            _ => client.batch_execute("COMMIT")?,
        }
        Ok(())
    }

    /// Has what the transaction did so far written before its end, inside of a subtransaction, by
    /// more counters than fit its memory (long names fill it soonest); those go again, either way.
    fn flush_early(&mut self, client: &mut Client) -> Result<()> {
        let fillers = format!(
            "rpad('n:filler:{}:' || i, 200, 'x')) FROM generate_series(1, 300) i",
            self.number
        );
        let end = if self.rng.random_bool(0.5) {
            "ROLLBACK TO f".to_owned()
        } else {
            format!("SELECT counter_drop({fillers}; RELEASE f")
        };
        let sql = format!(
            "SAVEPOINT f; SET LOCAL counterx.pending_work_mem = '64kB';
             SELECT counter_incr({fillers}; {end}"
        );
        Ok(client.batch_execute(&sql)?)
    }

    /// Ends what this client has left prepared.
    fn resolve(&mut self, connection: &mut Recovering) -> Result<()> {
        let sql =
            "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1 AND database = current_database()";
        let like = format!("{}:%", self.prefix());
        loop {
            let client = connection.client()?;
            let result = (|| -> Result<()> {
                for row in client.query(sql, &[&like])? {
                    client
                        .batch_execute(&format!("COMMIT PREPARED '{}'", row.get::<_, String>(0)))?;
                }
                Ok(())
            })();
            match result {
                Err(error) if is_lost(&error) => connection.forget(),
                result => return result,
            }
        }
    }

    fn prefix(&self) -> String {
        format!("changes-{}", self.number)
    }

    /// A statement, or several, that change counters and the oracle alike. Some changes can only be
    /// written down by a transaction that is bound to one snapshot.
    pub fn change(&mut self, one_snapshot: bool) -> String {
        self.serial += 1;
        let private = format!("d:tmp:{}:", self.number);
        match self.rng.random_range(0..22) {
            0..4 => {
                let (name, delta) = self.increment();
                format!("SELECT bump('{name}', {delta})")
            }
            4 => {
                let (name, delta) = (self.name("n:"), self.rng.random_range(1..100));
                format!(
                    "INSERT INTO oracle VALUES ('{name}', -{delta}); SELECT counter_decr('{name}', {delta})"
                )
            }
            5 | 6 => {
                let mut names = String::new();
                let mut deltas = String::new();
                for _ in 0..self.rng.random_range(1..12) {
                    let (name, delta) = self.increment();
                    let _ = write!(names, "{}{name}", if names.is_empty() { "" } else { "," });
                    let _ = write!(
                        deltas,
                        "{}{delta}",
                        if deltas.is_empty() { "" } else { "," }
                    );
                }
                let as_json = self.rng.random_bool(0.5);
                format!("SELECT change_many('{{{names}}}', '{{{deltas}}}', {as_json})")
            }
            7..9 => {
                let token = self.rng.random_range(0..self.load.clients * 20);
                let name = format!("p:{}", token % self.load.names as u64);
                format!(
                    "SELECT change_once('once {token}', '{name}', {})",
                    token + 1
                )
            }
            9..11 => {
                let token = self.rng.random_range(0..self.load.clients * 20);
                let name = format!("d:{}", token % self.load.names as u64);
                format!(
                    "SELECT change_once_get('get {token}', '{name}', {})",
                    token + 1
                )
            }
            11..13 => {
                let kind = ["p:", "n:"][self.rng.random_range(0..2)];
                format!("SELECT change_set('{}', NULL)", self.name(kind))
            }
            13..15 => {
                let kind = ["p:", "n:", "d:"][self.rng.random_range(0..3)];
                let value = self.rng.random_range(1..1000);
                let sign = if kind == "n:" { -1 } else { 1 };
                format!("SELECT change_set('{}', {})", self.name(kind), value * sign)
            }
            15..17 => format!("SELECT change_take('{}', '{private}')", self.name("d:")),
            17..19 if one_snapshot => {
                let kind = ["p:", "n:", "d:"][self.rng.random_range(0..3)];
                format!("SELECT change_drop('{}')", self.name(kind))
            }
            19 if one_snapshot && self.load.names > 1 => {
                let (into, from) = (self.name("d:"), self.name("d:"));
                if into == from {
                    format!("SELECT change_drop('{into}')")
                } else {
                    format!("SELECT change_merge('{into}', '{from}')")
                }
            }
            20 => format!("SELECT change_put(NULL, '{private}')"),
            _ => format!("SELECT change_put('{}', '{private}')", self.name("d:")),
        }
    }

    fn increment(&mut self) -> (String, i64) {
        let kind = ["p:", "n:", "d:"][self.rng.random_range(0..3)];
        let delta = self.rng.random_range(1..100);
        let negative = kind == "n:" && self.rng.random_bool(0.3);
        (self.name(kind), if negative { -delta } else { delta })
    }

    fn name(&mut self, kind: &str) -> String {
        format!("{kind}{}", self.rng.random_range(0..self.load.names))
    }
}

/// What the engine's tables must be like when all is folded: totals exist for counters that do, and
/// for no others.
///
/// # Errors
/// Those of the server, or what differs.
pub fn totals_are_clean(client: &mut impl GenericClient) -> Result<()> {
    let sql = "SELECT coalesce(string_agg(t::text, ' '), '') FROM counterx.total t
                WHERE uses <= 0
                   OR (NOT t.name ^@ 'window.' AND NOT EXISTS (SELECT FROM counters c WHERE c.name = t.name))";
    let odd: String = client.query_one(sql, &[])?.get(0);
    ensure!(odd.is_empty(), "totals without a counter: {odd}");
    let sql = "SELECT coalesce(string_agg(name, ' '), '') FROM
                (SELECT name FROM counterx.total GROUP BY name HAVING count(*) > 1) several";
    let odd: String = client.query_one(sql, &[])?.get(0);
    ensure!(odd.is_empty(), "several totals: {odd}");
    Ok(())
}
