//! Traffic on counters that begin anew: everybody calls around the moments at which windows end, and books what he was
//! granted in the same transaction, with the time before and after the call.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use counterx_harness::poll_until;
use postgres::{Client, Config, GenericClient, IsolationLevel};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::bounded::is_refusal;
use crate::check::{Recovering, is_lost, watch_by};
use crate::control::Control;
use crate::load::{End, Load, Outcome, Watched, one_by_one, together};
use crate::server::DEADLINE;

/// Counters that only grow, so that what was granted can be added up.
pub const GROWING: [Growing; 5] = [
    Growing {
        name: "window.fixed:a",
        max: 20,
        length: SECOND,
        slides: false,
    },
    Growing {
        name: "window.slide:a",
        max: 20,
        length: 2 * SECOND,
        slides: true,
    },
    Growing {
        name: "window.narrow:a",
        max: 7,
        length: 2 * SECOND,
        slides: true,
    },
    Growing {
        name: "window.counts:a",
        max: 15,
        length: SECOND,
        slides: false,
    },
    Growing {
        name: "window.patient:a",
        max: 25,
        length: 2 * SECOND,
        slides: true,
    },
];

/// Those that may be lowered as well, and one without bounds; and one of which no window is kept.
const OTHERS: [&str; 4] = [
    "window.both:a",
    "window.both:b",
    "window.free:a",
    "window.gone:a",
];

/// Each counter is called for so many seconds, and then another one: so all windows of the last ones are kept.
const AGE: u64 = 300;

/// The counter of the moment that goes by this name here.
fn counter(name: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    format!("{name}{}", now.map_or(0, |now| now.as_secs() / AGE))
}

/// In microseconds.
const SECOND: i64 = 1_000_000;

/// As many windows are kept as a load can last.
const TYPES: &str = "
    SELECT counter_type_create('window.fixed', max => 20, per => '1 second', kept => 900);
    SELECT counter_type_create('window.slide', max => 20, per => '2 seconds', sliding => true, kept => 900);
    SELECT counter_type_create('window.narrow', max => 7, per => '2 seconds', sliding => true, kept => 900);
    SELECT counter_type_create('window.counts', max => 15, per => '1 second', count_refused => true, kept => 900);
    SELECT counter_type_create('window.patient', max => 25, per => '2 seconds', sliding => true, count_refused => true, kept => 900);
    SELECT counter_type_create('window.both', min => -3, max => 8, per => '1 second', kept => 900);
    SELECT counter_type_create('window.free', per => '2 seconds', kept => 900);
    SELECT counter_type_create('window.gone', max => 5, per => '1 second');
    CREATE TABLE granted (
        name text NOT NULL, delta bigint NOT NULL, asked timestamptz NOT NULL, told timestamptz NOT NULL,
        is_granted boolean NOT NULL DEFAULT true
    );
";

const FUNCTIONS: &str = "
    -- Was refused, and counts all the same?
    CREATE FUNCTION book_refused(name text, delta bigint, asked timestamptz) RETURNS void LANGUAGE sql AS $$
        INSERT INTO granted
        SELECT $1, $2, $3, clock_timestamp(), false
          FROM counter_types t WHERE t.name = split_part($1, ':', 1) AND t.count_refused
    $$;
    CREATE FUNCTION attempt(name text, delta bigint) RETURNS boolean LANGUAGE plpgsql AS $$
    DECLARE
        asked timestamptz := clock_timestamp();
        is_granted boolean := counter_try_incr(name, delta);
    BEGIN
        IF is_granted THEN
            INSERT INTO granted VALUES (name, delta, asked, clock_timestamp());
        ELSE
            PERFORM book_refused(name, delta, asked);
        END IF;
        RETURN is_granted;
    END $$;
    -- Null when it is granted.
    CREATE FUNCTION attempt_when(name text, delta bigint) RETURNS timestamptz LANGUAGE plpgsql AS $$
    DECLARE
        asked timestamptz := clock_timestamp();
        answer record;
    BEGIN
        SELECT * INTO answer FROM counter_try(name, delta);
        IF answer.granted THEN
            INSERT INTO granted VALUES (name, delta, asked, clock_timestamp());
            IF answer.retry_at IS NOT NULL THEN
                RAISE 'granted %, and is to come at %', name, answer.retry_at;
            END IF;
        ELSIF answer.retry_at IS NULL OR answer.retry_at < asked
              OR answer.retry_at > clock_timestamp() + interval '4 seconds' THEN
            RAISE 'asked for % at %, it is %, and is to come at %',
                name, asked, clock_timestamp(), answer.retry_at;
        ELSE
            PERFORM book_refused(name, delta, asked);
        END IF;
        RETURN answer.retry_at;
    END $$;
    CREATE FUNCTION force(name text, delta bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        asked timestamptz := clock_timestamp();
    BEGIN
        PERFORM counter_incr(name, delta);
        INSERT INTO granted VALUES (name, delta, asked, clock_timestamp());
    END $$;
    CREATE FUNCTION take_windowed(name text, n bigint) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        asked timestamptz := clock_timestamp();
        got bigint := counter_take_up_to(name, n);
    BEGIN
        IF got NOT BETWEEN 0 AND n THEN
            RAISE 'took % of %', got, n;
        END IF;
        INSERT INTO granted VALUES (name, -got, asked, clock_timestamp());
        RETURN got;
    END $$;
    -- Null: to be reset. What that comes to is not asked for, and not held against the maximum.
    CREATE FUNCTION set_windowed(name text, value bigint) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        asked timestamptz := clock_timestamp();
        old bigint := CASE WHEN value IS NULL THEN counter_reset(name) ELSE counter_set(name, value) END;
    BEGIN
        INSERT INTO granted VALUES (name, coalesce(value, 0) - old, asked, clock_timestamp(), false);
    END $$;
    CREATE FUNCTION force_guarded(name text, delta bigint, fail boolean) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM public.attempt(name, delta);
        BEGIN
            PERFORM public.force(name, delta);
            IF fail THEN
                PERFORM 1 / 0;
            END IF;
        EXCEPTION WHEN division_by_zero OR check_violation THEN
            NULL;
        END;
    END $$;
    CREATE FUNCTION all_windows(name text) RETURNS TABLE (value bigint, begins_at timestamptz) STABLE LANGUAGE sql AS $$
        SELECT w.value, w.begins_at FROM counter_window($1) w
        UNION ALL
        SELECT w.value, w.begins_at FROM counter_windows($1) w
    $$;
";

/// One statement, so one snapshot: which counters are not what was booked, or in which window they are out of bounds.
const WINDOWS_SQL: &str = "
    WITH booked AS MATERIALIZED (
        SELECT name, sum(delta) AS delta FROM granted GROUP BY name
        HAVING min(asked) > clock_timestamp() - interval '800 seconds'
    )
    SELECT coalesce(string_agg(format('%s: booked %s, counted %s, from %s to %s', b.name, b.delta, w.sum, w.least, w.most),
                               E'\\n'), '')
      FROM booked b JOIN counter_types t ON t.name = split_part(b.name, ':', 1),
           LATERAL (SELECT sum(value) AS sum, min(value) AS least, max(value) AS most FROM all_windows(b.name)) w
     WHERE t.kept > 0 AND (w.sum <> b.delta OR w.least < t.min OR (w.most > t.max AND NOT t.count_refused))";

/// A counter that only grows.
#[derive(Clone, Copy, Debug)]
pub struct Growing {
    /// Its name.
    pub name: &'static str,
    /// The maximum of its type.
    pub max: i64,
    /// How long its windows are, in microseconds.
    pub length: i64,
    /// Does what was counted in the window before count still?
    pub slides: bool,
}

/// A call that was granted and committed.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// How much.
    pub delta: i64,
    /// A time before it, in microseconds.
    pub asked: i64,
    /// A time after it.
    pub told: i64,
}

/// What was granted in a window, of calls of which it is known that they were in that one.
///
/// # Errors
/// It was more than the maximum.
pub fn windows_hold(growing: &Growing, calls: &[Granted]) -> Result<()> {
    let mut windows = BTreeMap::new();
    for call in calls {
        let window = call.asked.div_euclid(growing.length);
        if window == call.told.div_euclid(growing.length) {
            *windows.entry(window).or_insert(0) += call.delta;
        }
    }
    for (window, granted) in windows {
        ensure!(
            granted <= growing.max,
            "{}: {granted} in window {window}, not {}",
            growing.name,
            growing.max
        );
    }
    Ok(())
}

/// What windows that slide promise: within any time up to a window, at most max × (1 + time / window). Of any two calls,
/// adds up all that were made between the beginning of one and the end of the other.
///
/// # Errors
/// It was more.
pub fn promise_holds(growing: &Growing, calls: &[Granted]) -> Result<()> {
    let mut calls = calls.to_vec();
    calls.sort_by_key(|call| call.told);
    for first in &calls {
        let mut sum = 0_i128;
        let between = (calls.iter()).filter(|call| call.asked >= first.asked);
        for call in between.take_while(|call| call.told - first.asked <= growing.length) {
            sum += i128::from(call.delta);
            let time = call.told - first.asked;
            let (max, length) = (i128::from(growing.max), i128::from(growing.length));
            ensure!(
                sum * length <= max * (length + i128::from(time)),
                "{}: {sum} within {time} us, from {} on",
                growing.name,
                first.asked
            );
        }
    }
    Ok(())
}

/// Makes the types and functions, in a database that has the extension.
///
/// # Errors
/// Those of the server.
pub fn prepare_windowed(client: &mut Client) -> Result<()> {
    client.batch_execute(TYPES)?;
    Ok(client.batch_execute(FUNCTIONS)?)
}

/// All that was granted, by counter.
///
/// # Errors
/// Those of the server.
pub fn granted(client: &mut impl GenericClient) -> Result<BTreeMap<String, Vec<Granted>>> {
    let sql = "SELECT name, delta, (extract(epoch FROM asked) * 1000000)::bigint,
                      (extract(epoch FROM told) * 1000000)::bigint
                 FROM granted WHERE is_granted";
    let mut all = BTreeMap::<_, Vec<Granted>>::new();
    for row in client.query(sql, &[])? {
        all.entry(row.get(0)).or_default().push(Granted {
            delta: row.get(1),
            asked: row.get(2),
            told: row.get(3),
        });
    }
    Ok(all)
}

/// In the caller's snapshot: all that was booked is in some window, and no window is out of bounds.
///
/// # Errors
/// Those of the server, or which counter is wrong.
pub fn windows_agree(client: &mut impl GenericClient) -> Result<()> {
    let wrong: String = client.query_one(WINDOWS_SQL, &[])?.get(0);
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}

/// One look, through one snapshot, at all windows twice.
///
/// # Errors
/// As of [`windows_agree`], and that something has changed.
pub fn look_at_windows(client: &mut Client) -> Result<()> {
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    windows_agree(&mut transaction)?;
    let all = "SELECT string_agg(what, ' ') FROM (
                   SELECT name || '=' || value FROM counters
                   UNION ALL SELECT 'listed ' || name || '=' || value FROM counter_list('')
                   UNION ALL SELECT 'top ' || name || '=' || value FROM counter_top(100)
                   UNION ALL SELECT 'sum ' || coalesce(counter_sum('')::text, '')
                   UNION ALL SELECT n || ' at ' || w::text FROM unnest($1::text[]) n, all_windows(n) w
                   UNION ALL SELECT n || ' is ' || counter_value(n) || counter_rank(n)::text FROM unnest($1::text[]) n
                ) looks (what)";
    let names: Vec<String> = names().map(counter).collect();
    let first: String = transaction.query_one(all, &[&names])?.get(0);
    // A window ends meanwhile, sometimes.
    std::thread::sleep(Duration::from_millis(100));
    let second: String = transaction.query_one(all, &[&names])?.get(0);
    ensure!(first == second, "a snapshot changed:\n{first}\n{second}");
    windows_agree(&mut transaction)?;
    Ok(transaction.commit()?)
}

fn names() -> impl Iterator<Item = &'static str> {
    GROWING.iter().map(|growing| growing.name).chain(OTHERS)
}

/// When all sessions have ended: all that was granted is within what is promised, all room of the running window can be
/// had, and who comes back when he was told to is granted what he wants.
///
/// # Errors
/// Those of the server, or what is wrong.
pub fn windows_are_sound(client: &mut Client) -> Result<()> {
    look_at_windows(client)?;
    client.batch_execute("SET counterx.escrow_wait = 0")?;
    for name in [
        "window.fixed:a",
        "window.both:a",
        "window.both:b",
        "window.gone:a",
    ] {
        let name = counter(name);
        let (mut fits, mut more) = (false, true);
        poll_until("a look within one window", DEADLINE, || {
            let mut transaction = client.transaction()?;
            let begins = "SELECT begins_at::text, value, (SELECT max FROM counter_types WHERE name = split_part($1, ':', 1))
                            FROM counter_window($1)";
            let row = transaction.query_one(begins, &[&name])?;
            let (before, room): (String, i64) =
                (row.get(0), row.get::<_, i64>(2) - row.get::<_, i64>(1));
            let sql = "SELECT counter_try_incr($1, $2), counter_try_incr($1, 1)";
            let row = transaction.query_one(sql, &[&name, &room])?;
            (fits, more) = (row.get(0), row.get(1));
            let after: String = transaction.query_one(begins, &[&name])?.get(0);
            transaction.rollback()?;
            Ok(before == after)
        })?;
        ensure!(fits && !more, "{name}: {fits}, {more}");
    }
    for growing in &GROWING {
        come_back(client, growing)?;
    }
    let granted = granted(client)?;
    for growing in &GROWING {
        let mut some = 0;
        for (_, calls) in granted
            .iter()
            .filter(|(name, _)| name.starts_with(growing.name))
        {
            some += calls.len();
            windows_hold(growing, calls)?;
            if growing.slides {
                promise_holds(growing, calls)?;
            }
        }
        ensure!(some > 0, "nothing was granted of {}", growing.name);
    }
    look_at_windows(client)
}

/// Takes all there is, and comes back when it was told to.
fn come_back(client: &mut Client, growing: &Growing) -> Result<()> {
    let name = counter(growing.name);
    let attempt = client.prepare("SELECT attempt_when($1, $2)::text")?;
    // Calls until one is refused, without a pause: else a slow client would find room in each window.
    let attempts = client.prepare(
        "SELECT told::text FROM (SELECT attempt_when($1, $2) AS told FROM generate_series(0, $3::bigint)) t
          WHERE told IS NOT NULL LIMIT 1",
    )?;
    for delta in [1, growing.max / 2, growing.max] {
        let mut told: Option<String> = None;
        poll_until("no room", DEADLINE, || {
            let row = client.query_opt(&attempts, &[&name, &delta, &growing.max])?;
            told = row.map(|row| row.get(0));
            Ok(told.is_some())
        })?;
        let told = told.context("no room")?;
        poll_until("the time to come back", DEADLINE, || {
            let sql = "SELECT clock_timestamp() >= $1::text::timestamptz";
            Ok(client.query_one(sql, &[&told])?.get(0))
        })?;
        let again: Option<String> = client.query_one(&attempt, &[&name, &delta])?.get(0);
        ensure!(
            again.is_none(),
            "{}: refused {delta} at {told}, until {again:?}",
            growing.name
        );
    }
    Ok(())
}

/// Runs a load on counters that begin anew with checkers beside it, and `meanwhile` in the calling thread; then looks
/// whether all is as promised.
///
/// # Errors
/// The first thing that went wrong, with the seed.
pub fn windowed_under_watch(
    config: &Config,
    load: &Load,
    meanwhile: impl FnOnce(&Control) -> Result<()>,
) -> Result<Watched> {
    let look = |client: &mut Client, _| look_at_windows(client).map(|()| 1);
    let watched = together(
        load,
        |number, control| run(config, load, number, control),
        |control| watch_by(config, control, load.survives, look),
        meanwhile,
    )?;
    let mut connection = Recovering::new(config);
    let sound = look_at_windows(connection.client()?)
        .and_then(|()| windows_are_sound(connection.client()?));
    sound.with_context(|| format!("when all have ended, COUNTERX_SEED={}", load.seed))?;
    Ok(watched)
}

fn run(config: &Config, load: &Load, number: u64, control: &Control) -> Result<Outcome> {
    let mut traffic = WindowedTraffic::new(load.seed, number);
    let mut connection = Recovering::new(config);
    one_by_one(load, number, control, |_| {
        traffic.wait_for_boundary();
        let result = connection
            .client()
            .and_then(|client| traffic.transaction(client));
        match result {
            Ok(()) => Ok(End::Done),
            Err(error) if load.survives && is_lost(&error) => {
                connection.forget();
                Ok(End::Unknown)
            }
            Err(error) if is_refusal(&error) => {
                // The connection may go just now.
                if connection.client()?.batch_execute("ROLLBACK").is_err() {
                    ensure!(load.survives, "no rollback after {error:#}");
                    connection.forget();
                }
                Ok(End::Refused)
            }
            Err(error) => Err(error),
        }
    })
}

/// One client's random choices.
pub struct WindowedTraffic {
    rng: StdRng,
}

impl WindowedTraffic {
    /// The traffic of the client of this number.
    pub fn new(seed: u64, number: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(number)),
        }
    }

    /// Half of the transactions begin when a window is about to end.
    pub fn wait_for_boundary(&mut self) {
        if self.rng.random_bool(0.5) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let past = Duration::from_nanos(now.map_or(0, |now| now.subsec_nanos().into()));
            let ahead = Duration::from_millis(self.rng.random_range(0..30));
            std::thread::sleep(Duration::from_secs(1).saturating_sub(past + ahead));
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
            match self.rng.random_range(0..12) {
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
                    let sql = format!("SELECT attempt('{}', 1), 1 / 0", self.name());
                    match client.batch_execute(&sql) {
                        Ok(()) => bail!("a division by zero went well"),
                        Err(error)
                            if error.code()
                                == Some(&postgres::error::SqlState::DIVISION_BY_ZERO) => {}
                        Err(error) => return Err(error.into()),
                    }
                    client.batch_execute("ROLLBACK TO s")?;
                }
                // Over the end of a window.
                4 => std::thread::sleep(Duration::from_millis(self.rng.random_range(0..40))),
                _ => client.batch_execute(&self.change())?,
            }
        }
        let verb = if self.rng.random_bool(0.75) {
            "COMMIT"
        } else {
            "ROLLBACK"
        };
        Ok(client.batch_execute(verb)?)
    }

    /// A statement that calls a counter and books what was granted.
    pub fn change(&mut self) -> String {
        let name = self.name();
        let lowers = OTHERS.iter().any(|other| name.starts_with(other));
        let delta = match lowers {
            true => self.rng.random_range(-2..4),
            false => self.rng.random_range(0..4),
        };
        match self.rng.random_range(0..8) {
            0..3 => format!("SELECT attempt('{name}', {delta})"),
            3 | 4 if !name.starts_with("window.free") => {
                format!("SELECT attempt_when('{name}', {delta})")
            }
            5 if name.starts_with("window.both") && self.rng.random_bool(0.5) => {
                format!("SELECT take_windowed('{name}', {})", delta.max(0))
            }
            5 if lowers => {
                let value = self.rng.random_range(-1..5);
                let value = if value < 0 {
                    "NULL".to_owned()
                } else {
                    value.to_string()
                };
                format!("SELECT set_windowed('{name}', {value})")
            }
            6 => format!(
                "SELECT force_guarded('{name}', {delta}, {})",
                self.rng.random_bool(0.5)
            ),
            _ => format!("SELECT force('{name}', {delta})"),
        }
    }

    fn name(&mut self) -> String {
        let number = self.rng.random_range(0..GROWING.len() + OTHERS.len());
        counter(names().nth(number).unwrap_or("window.fixed:a"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLIDES: Growing = Growing {
        name: "x",
        max: 10,
        length: 100,
        slides: true,
    };

    fn call(delta: i64, asked: i64, told: i64) -> Granted {
        Granted { delta, asked, told }
    }

    #[test]
    fn more_than_the_maximum_is_found() {
        assert!(windows_hold(&SLIDES, &[call(6, 1, 2), call(5, 98, 99)]).is_err());
        assert!(windows_hold(&SLIDES, &[call(6, 1, 2), call(4, 98, 99)]).is_ok());
        // It may be in either.
        assert!(windows_hold(&SLIDES, &[call(6, 1, 2), call(5, 99, 100)]).is_ok());
    }

    #[test]
    fn more_than_promised_is_found() {
        assert!(promise_holds(&SLIDES, &[call(10, 50, 50), call(2, 69, 70)]).is_ok());
        assert!(promise_holds(&SLIDES, &[call(10, 50, 50), call(3, 69, 70)]).is_err());
        assert!(promise_holds(&SLIDES, &[call(3, 50, 70), call(10, 69, 69)]).is_err());
        // As calls take their time, it may have been longer.
        assert!(promise_holds(&SLIDES, &[call(10, 50, 50), call(3, 69, 80)]).is_ok());
        assert!(promise_holds(&SLIDES, &[call(11, 50, 50)]).is_err());
        assert!(promise_holds(&SLIDES, &[call(10, 50, 50), call(10, 149, 150)]).is_ok());
        assert!(promise_holds(&SLIDES, &[call(10, 0, 0), call(10, 101, 101)]).is_ok());
    }
}
