//! Consumers of streams, beside whatever load, and what has to be true of a stream in every snapshot.
//!
//! - What a consumer within the database has made of a stream, in the transactions that move its cursor, is the folded
//!   total as of that cursor: so [`look_at_stream`] adds to it what is unread, and has the totals of its snapshot.
//! - Each row's value is what the deltas of its counter add up to, when it is applied.
//! - [`Outside`] is a consumer that remembers positions, and not what it has acknowledged. What it saw at a position
//!   it never sees otherwise.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use counterx_harness::poll_until;
use postgres::error::SqlState;
use postgres::{Client, Config, GenericClient, IsolationLevel};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::check::{Recovering, is_lost, sqlstate};
use crate::control::Control;
use crate::server::DEADLINE;

/// What consumers within a database keep, and how.
pub fn streamed_schema() -> &'static str {
    r#"
    CREATE TABLE mirror (
        stream text NOT NULL, name text COLLATE "C" NOT NULL, value numeric NOT NULL,
        PRIMARY KEY (stream, name)
    );
    CREATE FUNCTION mirror_bootstrap(of text) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        names text[];
        totals numeric[];
    BEGIN
        -- First: from here on, no other consumer writes.
        SELECT array_agg(b.name), array_agg(b.value) INTO names, totals FROM public.counter_stream_bootstrap(of) b;
        DELETE FROM public.mirror m WHERE m.stream = of;
        INSERT INTO public.mirror SELECT of, n, v FROM unnest(names, totals) t (n, v);
        RETURN coalesce(cardinality(names), 0);
    END $$;
    CREATE FUNCTION mirror_next(of text, max_rows integer, of_lanes integer[]) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        r record;
        n bigint := 0;
        known numeric;
    BEGIN
        FOR r IN SELECT * FROM public.counter_stream_next(of, max_rows, of_lanes) LOOP
            n := n + 1;
            CONTINUE WHEN r.kind IN ('fired', 'rearmed');
            INSERT INTO public.mirror AS m VALUES (of, r.name, r.delta)
                ON CONFLICT (stream, name) DO UPDATE SET value = m.value + EXCLUDED.value
                RETURNING value INTO known;
            IF known IS DISTINCT FROM coalesce(r.value, 0) THEN
                RAISE EXCEPTION 'WRONG: deltas of % add up to %, and % says its row: %', r.name, known, r.value, r;
            END IF;
            IF of_lanes IS NOT NULL AND r.lane <> ALL (of_lanes) THEN
                RAISE EXCEPTION 'WRONG: a row of lane %, and not of %', r.lane, of_lanes;
            END IF;
        END LOOP;
        RETURN n;
    END $$;
    "#
}

/// One statement, so one snapshot: what is wrong with which counter. `$1` is the stream.
const STREAM_SQL: &str = "
    WITH folded AS (
        SELECT t.name, sum(t.value)::numeric AS value
          FROM counterx.total t JOIN counter_streams s ON s.stream = $1 AND starts_with(t.name, s.prefix)
         WHERE t.uses > 0 AND strpos(t.name, chr(1)) = 0
         GROUP BY t.name
    ),
    unread AS (
        SELECT name, sum(delta)::numeric AS delta
          FROM counter_stream_peek($1, 10000000) WHERE kind NOT IN ('fired', 'rearmed') GROUP BY name
    ),
    known AS (SELECT name, value FROM mirror WHERE stream = $1)
    SELECT count(*),
           coalesce(string_agg(format('%s: read %s, unread %s, folded %s', name, known.value, unread.delta, folded.value),
                               E'\\n' ORDER BY name)
                    FILTER (WHERE coalesce(known.value, 0) + coalesce(unread.delta, 0) <> coalesce(folded.value, 0)), '')
      FROM known FULL JOIN unread USING (name) FULL JOIN folded USING (name)";

/// What was read and what is unread make the folded totals, in one snapshot. Returns how many counters there are.
///
/// # Errors
/// Those of the server, or which counters differ.
pub fn look_at_stream(client: &mut impl GenericClient, stream: &str) -> Result<i64> {
    let row = client.query_one(STREAM_SQL, &[&stream])?;
    let (counters, wrong): (i64, String) = (row.get(0), row.get(1));
    if !wrong.is_empty() {
        let state: String = client
            .query_one(
                "SELECT concat_ws(E'\\n', pg_current_snapshot(),
                    (SELECT string_agg(c::text, E'\\n' ORDER BY lane) FROM counterx.cursor c WHERE stream = $1),
                    (SELECT string_agg(s::text, E'\\n' ORDER BY lane) FROM counterx.state s))",
                &[&stream],
            )?
            .get(0);
        bail!("stream {stream}:\n{wrong}\n{state}");
    }
    Ok(counters)
}

/// The same, in a transaction that looks twice; false: rows that its snapshot needs were removed meanwhile.
///
/// # Errors
/// As of [`look_at_stream`].
pub fn look_at_stream_twice(client: &mut Client, stream: &str) -> Result<bool> {
    let mut transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()?;
    let mut looks = Vec::new();
    for _ in 0..2 {
        match look_at_stream(&mut transaction, stream) {
            Ok(counters) => looks.push(counters),
            // A snapshot can be older than what is kept for it.
            Err(error) if is_gone(&error) || is_busy(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    ensure!(looks[0] == looks[1], "a snapshot has changed: {looks:?}");
    transaction.commit()?;
    Ok(true)
}

/// 55000: the stream is lost, or a snapshot is too old for it.
pub fn is_gone(error: &anyhow::Error) -> bool {
    sqlstate(error) == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
}

/// Somebody else reads the stream, or has come first.
pub fn is_busy(error: &anyhow::Error) -> bool {
    sqlstate(error).is_some_and(|code| {
        [
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
        ]
        .contains(code)
    })
}

/// What a consumer is like.
#[derive(Clone, Debug)]
pub struct Consumer {
    /// The stream.
    pub stream: String,
    /// Of these lanes alone.
    pub lanes: Option<Vec<i32>>,
    /// Does it prepare transactions?
    pub two_phase: bool,
    /// Does it ask for bootstraps as well?
    pub bootstraps: bool,
    /// Is a lost connection made anew?
    pub survives: bool,
    /// The seed.
    pub seed: u64,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Consumed {
    /// Rows of transactions that committed.
    pub rows: i64,
    /// Transactions that did.
    pub commits: u64,
    /// Those that were given up, by whatever way.
    pub given_up: u64,
    /// Those that met another one.
    pub busy: u64,
    /// Those whose connection was lost.
    pub lost: u64,
}

impl Consumer {
    /// One of all lanes, that is alone.
    pub fn of(stream: &str, seed: u64) -> Self {
        Self {
            stream: stream.to_owned(),
            lanes: None,
            two_phase: true,
            bootstraps: false,
            survives: false,
            seed,
        }
    }

    /// Reads on until it is told to stop, and gives up now and then in the midst of it.
    ///
    /// # Errors
    /// Those of the server that none of this explains, and wrong rows.
    pub fn run(&self, config: &Config, control: &Control, stop: &AtomicBool) -> Result<Consumed> {
        let result = self.consume(config, control, stop);
        if result.is_err() {
            control.abort();
        }
        result.with_context(|| format!("{self:?}"))
    }

    fn consume(&self, config: &Config, control: &Control, stop: &AtomicBool) -> Result<Consumed> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let mut connection = Recovering::new(config);
        let mut consumed = Consumed::default();
        let mut serial = 0;
        while !stop.load(Ordering::Relaxed) && !control.is_aborted() {
            serial += 1;
            // The whole server's names, and other databases have the same consumers.
            let db = config.get_dbname().unwrap_or_default();
            let gid = format!("consumer-{}-{}-{serial}-{db}", self.stream, self.seed);
            let result =
                (connection.client()).and_then(|client| self.transaction(client, &mut rng, &gid));
            match result {
                Ok(Some(rows)) => {
                    consumed.rows += rows;
                    consumed.commits += 1;
                    // It shares the machine with what it reads of.
                    if rows == 0 {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                }
                Ok(None) => {
                    consumed.given_up += 1;
                    // Its client goes away in the midst of it.
                    if rng.random_bool(0.3) {
                        connection.forget();
                    }
                }
                Err(error) if is_busy(&error) => {
                    consumed.busy += 1;
                    // The server may be gone meanwhile.
                    let rolled_back = connection
                        .client()
                        .is_ok_and(|client| client.batch_execute("ROLLBACK").is_ok());
                    if !rolled_back {
                        connection.forget();
                    }
                }
                Err(error) if self.survives && is_lost(&error) => {
                    consumed.lost += 1;
                    connection.forget();
                    self.resolve(&mut connection)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(consumed)
    }

    /// None: it was given up. A transaction may be left open.
    fn transaction(&self, client: &mut Client, rng: &mut StdRng, gid: &str) -> Result<Option<i64>> {
        let max_rows: i32 = match rng.random_range(0..4) {
            0 => rng.random_range(1..5),
            1 => rng.random_range(1..50),
            _ => 1000,
        };
        let next = "SELECT mirror_next($1, $2, $3)";
        let parameters: [&(dyn postgres::types::ToSql + Sync); 3] =
            [&self.stream, &max_rows, &self.lanes];
        let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][rng.random_range(0..3)];
        let way = rng.random_range(0..13);
        if way < 3 {
            return Ok(Some(client.query_one(next, &parameters)?.get(0)));
        }
        client.batch_execute(&format!("ROLLBACK; BEGIN ISOLATION LEVEL {level}"))?;
        let mut rows: i64 = 0;
        match way {
            3 | 4 => rows = client.query_one(next, &parameters)?.get(0),
            // Twice in one transaction.
            5 => {
                for _ in 0..2 {
                    rows += client.query_one(next, &parameters)?.get::<_, i64>(0);
                }
            }
            6 => {
                client.batch_execute("SAVEPOINT s")?;
                client.query_one(next, &parameters)?;
                client.batch_execute("ROLLBACK TO s")?;
                rows = client.query_one(next, &parameters)?.get(0);
            }
            7 => {
                client.batch_execute("SAVEPOINT s")?;
                rows += client.query_one(next, &parameters)?.get::<_, i64>(0);
                client.batch_execute("SAVEPOINT t")?;
                client.query_one(next, &parameters)?;
                client.batch_execute("ROLLBACK TO t; RELEASE s")?;
            }
            8 => {
                client.query_one(next, &parameters)?;
                client.batch_execute("ROLLBACK")?;
                return Ok(None);
            }
            // Of a cursor, of which one row is fetched.
            9 => {
                let lanes = self.lanes_sql();
                client.batch_execute(&format!(
                    "DECLARE c CURSOR FOR SELECT * FROM counter_stream_next('{}', {max_rows}, {lanes}); FETCH 1 FROM c",
                    self.stream
                ))?;
                client.batch_execute("ROLLBACK")?;
                return Ok(None);
            }
            // The connection goes away, or fails.
            10 => {
                client.query_one(next, &parameters)?;
                return Ok(None);
            }
            11 if self.bootstraps => {
                client.query_one("SELECT mirror_bootstrap($1)", &[&self.stream])?;
            }
            _ if self.two_phase => {
                rows = client.query_one(next, &parameters)?.get(0);
                client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'"))?;
                let commits = rng.random_bool(0.7);
                let verb = if commits { "COMMIT" } else { "ROLLBACK" };
                client.batch_execute(&format!("{verb} PREPARED '{gid}'"))?;
                return Ok(commits.then_some(rows));
            }
            _ => rows = client.query_one(next, &parameters)?.get(0),
        }
        client.batch_execute("COMMIT")?;
        Ok(Some(rows))
    }

    fn lanes_sql(&self) -> String {
        match &self.lanes {
            None => "NULL".to_owned(),
            Some(lanes) => {
                let lanes: Vec<_> = lanes.iter().map(i32::to_string).collect();
                format!("'{{{}}}'", lanes.join(","))
            }
        }
    }

    /// Ends what it has left prepared, which keeps the cursor locked.
    fn resolve(&self, connection: &mut Recovering) -> Result<()> {
        let like = format!("consumer-{}-{}-%", self.stream, self.seed);
        loop {
            let result = connection.client().and_then(|client| {
                let sql = "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE $1 AND database = current_database()";
                for row in client.query(sql, &[&like])? {
                    let gid: String = row.get(0);
                    client.batch_execute(&format!("COMMIT PREPARED '{gid}'"))?;
                }
                Ok(())
            });
            match result {
                Err(error) if is_lost(&error) => connection.forget(),
                result => return result,
            }
        }
    }
}

/// Reads all there is, until nothing is left; retries where others read.
///
/// # Errors
/// Those of the server, and that it does not end.
pub fn drain(client: &mut Client, stream: &str) -> Result<i64> {
    let mut all = 0;
    poll_until("a stream to be read to its end", DEADLINE, || match client
        .query_one("SELECT mirror_next($1, 1000, NULL)", &[&stream])
    {
        Ok(row) => {
            let rows: i64 = row.get(0);
            all += rows;
            Ok(rows == 0)
        }
        Err(error) => {
            let error = error.into();
            if is_busy(&error) {
                Ok(false)
            } else {
                Err(error)
            }
        }
    })?;
    Ok(all)
}

/// Where each of the lanes is.
type Places = [(i64, i64); 8];

/// What a position says: of which start of the stream, of which timeline, and where its lanes are.
///
/// # Errors
/// It has another form.
pub fn parse_position(text: &str) -> Result<(String, i64, Places)> {
    let parts: Vec<_> = text.split(':').collect();
    ensure!(parts.len() == 3, "the position {text}");
    let mut places = [(0, 0); 8];
    let lanes: Vec<_> = parts[2].split(',').collect();
    ensure!(lanes.len() == places.len(), "the position {text}");
    for (place, lane) in places.iter_mut().zip(lanes) {
        *place = match lane.split_once('.') {
            Some((fold, seq)) => (fold.parse()?, seq.parse()?),
            None => (lane.parse()?, i64::MAX),
        };
    }
    Ok((parts[0].to_owned(), parts[1].parse()?, places))
}

/// A consumer outside of the database, of a stream in mode `every`: a row that it knows by its position is not
/// applied again.
#[derive(Default)]
pub struct Outside {
    stream: String,
    /// What it has made of it.
    pub values: BTreeMap<String, i128>,
    places: Places,
    /// What was at a place, whoever saw it; of this start and timeline.
    seen: HashMap<(String, i64, usize, (i64, i64)), String>,
    /// The end of what it has applied.
    position: Option<String>,
    /// Rows that it knew already.
    pub known: u64,
    /// Rows that it did not.
    pub new: u64,
}

impl Outside {
    /// Of a stream.
    pub fn of(stream: &str) -> Self {
        Self {
            stream: stream.to_owned(),
            ..Self::default()
        }
    }

    /// Begins anew.
    ///
    /// # Errors
    /// Those of the server.
    pub fn bootstrap(&mut self, client: &mut Client) -> Result<()> {
        let sql = "SELECT name, value::text FROM counter_stream_bootstrap($1)";
        let mut values = BTreeMap::new();
        for row in client.query(sql, &[&self.stream])? {
            values.insert(row.get(0), row.get::<_, String>(1).parse()?);
        }
        self.values = values;
        self.places = Places::default();
        self.position = None;
        Ok(())
    }

    /// Peeks, and applies what is new. Returns how many rows there were.
    ///
    /// # Errors
    /// Those of the server; a row whose value is not what its deltas make, or that was another one before.
    pub fn peek(&mut self, client: &mut impl GenericClient, max_rows: i32) -> Result<usize> {
        let sql = "SELECT name, delta::text, coalesce(value, 0)::text, kind, lane, fold, position
                     FROM counter_stream_peek($1, $2)";
        let rows = client.query(sql, &[&self.stream, &max_rows])?;
        for row in &rows {
            let (name, kind, position): (String, String, String) =
                (row.get(0), row.get(3), row.get(6));
            let (delta, value): (String, String) = (row.get(1), row.get(2));
            let (lane, fold): (i32, i64) = (row.get(4), row.get(5));
            let lane = usize::try_from(lane)?;
            let (start, timeline, places) = parse_position(&position)?;
            let place = places[lane];
            ensure!(place.0 == fold, "fold {fold} of lane {lane} at {position}");
            let what = format!("{name} {delta} {value} {kind}");
            let at = (start, timeline, lane, place);
            let before = self.seen.entry(at).or_insert_with(|| what.clone());
            ensure!(*before == what, "{position} was {before}, and is {what}");
            self.position = Some(position.clone());
            if place <= self.places[lane] {
                self.known += 1;
                continue;
            }
            self.places[lane] = place;
            self.new += 1;
            if kind == "fired" || kind == "rearmed" {
                continue;
            }
            let known = self.values.entry(name).or_default();
            *known += delta.parse::<i128>()?;
            ensure!(
                *known == value.parse::<i128>()?,
                "deltas make {known}, and {what} is at {position}"
            );
        }
        Ok(rows.len())
    }

    /// Acknowledges all that it has applied.
    ///
    /// # Errors
    /// Those of the server.
    pub fn acknowledge(&mut self, client: &mut impl GenericClient) -> Result<()> {
        if let Some(position) = &self.position {
            client.query_one(
                "SELECT counter_stream_ack($1, $2)::text",
                &[&self.stream, position],
            )?;
        }
        Ok(())
    }

    /// The end of what it has applied.
    pub fn position(&self) -> Option<&str> {
        self.position.as_deref()
    }

    /// Goes on until it is told to stop; forgets to acknowledge now and then.
    ///
    /// # Errors
    /// As of [`Outside::peek`].
    pub fn run(
        &mut self,
        config: &Config,
        control: &Control,
        stop: &AtomicBool,
        (seed, survives): (u64, bool),
    ) -> Result<()> {
        let result = self.go(config, control, stop, (seed, survives));
        if result.is_err() {
            control.abort();
        }
        result.with_context(|| format!("the consumer of {} outside", self.stream))
    }

    fn go(
        &mut self,
        config: &Config,
        control: &Control,
        stop: &AtomicBool,
        (seed, survives): (u64, bool),
    ) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut connection = Recovering::new(config);
        while !stop.load(Ordering::Relaxed) && !control.is_aborted() {
            let result = connection.client().and_then(|client| {
                let max_rows = if rng.random_bool(0.5) {
                    1000
                } else {
                    rng.random_range(1..30)
                };
                let rows = self.peek(client, max_rows)?;
                // What came first comes once more.
                if self.known > 0 && rng.random_bool(0.6) {
                    self.acknowledge(client)?;
                }
                Ok(rows)
            });
            match result {
                Ok(0) => std::thread::sleep(std::time::Duration::from_millis(5)),
                Ok(_) => {}
                Err(error) if is_busy(&error) => {}
                Err(error) if survives && is_lost(&error) => connection.forget(),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads to the end, and holds what it has made against the folded totals under a prefix, of which nobody writes.
    ///
    /// # Errors
    /// Those of the server, and what differs.
    pub fn ends_right(&mut self, client: &mut Client, prefix: &str) -> Result<()> {
        poll_until("the consumer outside to read all", DEADLINE, || {
            let result = self.peek(client, 1000).and_then(|rows| {
                self.acknowledge(client)?;
                Ok(rows)
            });
            match result {
                Err(error) if is_busy(&error) => Ok(false),
                rows => Ok(rows? == 0),
            }
        })?;
        let sql = "SELECT name, value::text FROM counter_list($1, NULL, 1000000)";
        let mut folded: BTreeMap<String, i128> = BTreeMap::new();
        for row in client.query(sql, &[&prefix])? {
            folded.insert(row.get(0), row.get::<_, String>(1).parse()?);
        }
        let is_something = |(_, value): &(&String, &i128)| **value != 0;
        let here: Vec<_> = self.values.iter().filter(is_something).collect();
        let there: Vec<_> = folded.iter().filter(is_something).collect();
        ensure!(here == there, "outside {here:?}, counters {there:?}");
        Ok(())
    }
}

/// Runs consumers beside what the calling thread does, until that is done.
///
/// # Errors
/// The first thing that went wrong.
pub fn consume_beside(
    config: &Config,
    control: &Control,
    consumers: &[Consumer],
    outside: Option<&mut Outside>,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<Vec<Consumed>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        let survives = consumers.iter().any(|consumer| consumer.survives);
        let threads: Vec<_> = consumers
            .iter()
            .map(|consumer| scope.spawn(move || consumer.run(config, control, stop)))
            .collect();
        let outside = outside
            .map(|outside| scope.spawn(move || outside.run(config, control, stop, (7, survives))));
        let mut result = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in threads {
            match thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a consumer panicked")))
            {
                Ok(consumed) => all.push(consumed),
                // It explains what the others say.
                Err(error) => result = Err(error),
            }
        }
        if let Some(thread) = outside
            && let Err(error) = thread.join().unwrap_or_else(|_| Err(anyhow!("panicked")))
        {
            result = Err(error);
        }
        result.map(|()| all)
    })
}
