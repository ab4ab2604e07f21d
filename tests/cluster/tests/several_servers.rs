//! `docs/recipes/several-servers.md`, on three servers that count and one that reads: each block where its
//! first line says, and what the page says of conditions, snapshots, and servers that are down; then values
//! that are carried over under load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use counterx_cluster_tests::{Block, DEADLINE, blocks, is_lost, page, run_blocks, seed, sqlstate};
use counterx_harness::{Cluster, StopMode, poll_until};
use postgres::Client;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

const PAGE: &str = "recipes/several-servers.md";
const DATABASE: &str = "shop";
const COUNTING: [&str; 3] = ["a", "b", "c"];
const READER: &str = "reader";

/// The servers by the names that the page has for them.
struct Servers(BTreeMap<&'static str, Cluster>);

impl Servers {
    fn start() -> Result<Self> {
        let mut all = BTreeMap::new();
        for name in COUNTING.into_iter().chain([READER]) {
            let cluster = Cluster::builder()
                .name(&format!("several-{name}"))
                .preload(name != READER)
                .conf("shared_buffers", "16MB")
                .conf("counterx.compaction_interval", "50ms")
                .start()?;
            cluster.psql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
            all.insert(name, cluster);
        }
        Ok(Self(all))
    }

    fn get(&self, name: &str) -> Result<&Cluster> {
        self.0
            .get(name)
            .with_context(|| format!("no server {name}"))
    }

    fn connect(&self, name: &str) -> Result<Client> {
        self.get(name)?.connect_db(DATABASE)
    }

    fn stop(&mut self, name: &str) -> Result<()> {
        let cluster = self.0.get_mut(name).context("no such server")?;
        cluster.stop(StopMode::Fast)
    }

    fn start_again(&mut self, name: &str) -> Result<()> {
        self.0.get_mut(name).context("no such server")?.start()
    }

    /// Where the first line of a block says that it runs.
    fn of(block: &Block) -> Result<Vec<&str>> {
        let first = block.sql.lines().next().unwrap_or_default();
        let servers = first
            .strip_prefix("-- on ")
            .with_context(|| format!("no place in: {}", block.sql))?;
        Ok(servers.split(", ").collect())
    }

    /// With the addresses of these servers instead of the page's.
    fn here(&self, sql: &str) -> Result<String> {
        let mut sql = sql.to_owned();
        for name in COUNTING {
            let cluster = self.get(name)?;
            let there = format!("host '{name}.example.com'");
            let here = format!(
                "host '{}', port '{}'",
                cluster.socket_dir().display(),
                cluster.port()
            );
            sql = sql.replace(&there, &here);
        }
        Ok(sql)
    }

    /// Runs a block everywhere that it says, and holds what it prints against the page.
    fn run(&self, block: &Block) -> Result<bool> {
        let mut compared = false;
        for name in Self::of(block)? {
            let here = Block {
                sql: self.here(&block.sql)?,
                output: block.output.clone(),
            };
            let printed = run_blocks(self.get(name)?, DATABASE, std::slice::from_ref(&here))
                .with_context(|| format!("on {name}: {}", block.sql))?;
            let printed = printed.first().context("nothing was printed")?;
            compared |= here.check(printed).with_context(|| format!("on {name}"))?;
        }
        Ok(compared)
    }
}

/// The only block of the page with this in it.
fn block_with(all: &[Block], has: &str) -> Result<Block> {
    let mut found = all.iter().filter(|block| block.sql.contains(has));
    match (found.next(), found.next()) {
        (Some(block), None) => Ok(block.clone()),
        (first, _) => bail!(
            "{} blocks with {has}",
            if first.is_some() { "several" } else { "no" }
        ),
    }
}

fn number(client: &mut Client, sql: &str) -> Result<i64> {
    Ok(client.query_one(sql, &[]).context(sql.to_owned())?.get(0))
}

fn text(client: &mut Client, sql: &str) -> Result<String> {
    Ok(client.query_one(sql, &[]).context(sql.to_owned())?.get(0))
}

#[test]
fn counters_of_several_servers_are_read_as_one_and_carried_over() -> Result<()> {
    let mut servers = Servers::start()?;
    let all = blocks(&page(PAGE)?);
    let mut compared = 0;
    for block in &all {
        compared += u32::from(servers.run(block)?);
    }
    ensure!(
        compared >= 8,
        "the page shows {compared} outputs: is the parser broken?"
    );

    conditions_are_sent_to_the_servers(&servers)?;
    one_snapshot_of_each_server(&servers)?;
    a_server_that_is_down(&mut servers)?;
    carried_over_under_load(&servers, &all)
}

fn conditions_are_sent_to_the_servers(servers: &Servers) -> Result<()> {
    let mut reader = servers.connect(READER)?;
    let mut plan = |sql: &str| -> Result<Vec<String>> {
        let rows = reader.query(&format!("EXPLAIN (VERBOSE, COSTS off) {sql}"), &[])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    for (condition, sent) in [
        ("name = 'likes:1'", "WHERE ((name = 'likes:1'))"),
        ("name LIKE 'likes:%'", "WHERE ((name ~~ 'likes:%'))"),
        (
            "name IN ('likes:1', 'likes:2')",
            "WHERE ((name = ANY ('{likes:1,likes:2}'::text[])))",
        ),
        (
            "name >= 'likes:' AND name < 'likes;'",
            "WHERE ((name >= 'likes:')) AND ((name < 'likes;'))",
        ),
    ] {
        let lines = plan(&format!(
            "SELECT name, value FROM counters WHERE {condition}"
        ))?;
        let at_once = lines
            .iter()
            .filter(|line| line.contains("Async Foreign Scan"));
        ensure!(
            at_once.count() == COUNTING.len(),
            "the servers do not work at the same time: {lines:#?}"
        );
        let remote = lines.iter().filter(|line| line.contains("Remote SQL:"));
        let sent: Vec<bool> = remote.map(|line| line.contains(sent)).collect();
        ensure!(sent == [true, true, true], "{condition}: {lines:#?}");
    }
    // Those that cannot have it are not asked.
    let lines =
        plan("SELECT value FROM counters_by_server WHERE server = 'b' AND name = 'likes:3'")?;
    let scans = lines.iter().filter(|line| line.contains("Foreign Scan"));
    let scans: Vec<&String> = scans.collect();
    ensure!(
        matches!(scans[..], [scan] if scan.contains("counters_b")),
        "{lines:#?}"
    );
    // And where it arrives it is a look-up.
    let mut a = servers.connect("a")?;
    let rows = a.query(
        "EXPLAIN (COSTS off) SELECT name, value FROM public.counters WHERE ((name = 'likes:1'))",
        &[],
    )?;
    let lines: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(
        lines
            .iter()
            .any(|line| line.contains("likes:1") && !line.contains("Filter")),
        "{lines:#?}"
    );
    Ok(())
}

fn one_snapshot_of_each_server(servers: &Servers) -> Result<()> {
    let mut reader = servers.connect(READER)?;
    let (mut a, mut b) = (servers.connect("a")?, servers.connect("b")?);
    let sum = "SELECT coalesce(sum(value), 0)::bigint FROM counters_by_server WHERE name = 'seen'";
    let of_a = format!("{sum} AND server = 'a'");
    let mut transaction = reader.transaction()?;
    let before: i64 = transaction.query_one(&of_a, &[])?.get(0);
    a.batch_execute("SELECT counter_incr('seen', 1)")?;
    b.batch_execute("SELECT counter_incr('seen', 10)")?;
    let again: i64 = transaction.query_one(&of_a, &[])?.get(0);
    let both: i64 = transaction.query_one(sum, &[])?.get(0);
    ensure!(
        (before, again, both) == (0, 0, 10),
        "{before}, {again}, {both}: the first read of a server is its snapshot"
    );
    transaction.commit()?;
    ensure!(number(&mut reader, sum)? == 11);
    Ok(())
}

fn a_server_that_is_down(servers: &mut Servers) -> Result<()> {
    let mut reader = servers.connect(READER)?;
    let sum = "SELECT sum(value)::bigint FROM counters WHERE name LIKE 'likes:%'";
    let others = "SELECT sum(value)::bigint FROM counters_by_server WHERE server <> 'b' AND name LIKE 'likes:%'";
    let (all, without) = (number(&mut reader, sum)?, number(&mut reader, others)?);
    servers.stop("b")?;
    // Also in a session that was connected to it.
    let mut fresh = servers.connect(READER)?;
    for client in [&mut reader, &mut fresh] {
        let Err(error) = number(client, sum) else {
            bail!("a sum without a server that is down");
        };
        let code = sqlstate(&error).map(|code| code.code().to_owned());
        ensure!(
            code.as_deref()
                .is_some_and(|code| code.starts_with("08") || code.starts_with("57P")),
            "{error:?}"
        );
        ensure!(number(client, others)? == without);
    }
    servers.start_again("b")?;
    for client in [&mut reader, &mut fresh] {
        ensure!(number(client, sum)? == all);
    }
    Ok(())
}

/// So many names, of which some move.
const NAMES: u64 = 40;
const CLIENTS: u64 = 6;
const TRANSACTIONS: u64 = 300;
const STOCK: i64 = 500;
/// Rounds of the mover that clients wait for.
const ROUNDS: u64 = 5;

/// What a client was told.
#[derive(Default)]
struct Book {
    counted: BTreeMap<String, i64>,
    sold: i64,
    /// How often it has counted on the server that came last.
    on_c: u64,
}

fn carried_over_under_load(servers: &Servers, all: &[Block]) -> Result<()> {
    let mut reader = servers.connect(READER)?;
    let names: Vec<String> = (0..NAMES).map(|n| format!("moving:{n}")).collect();
    let mut home = BTreeMap::new();
    for name in &names {
        let row = reader.query_one(
            "SELECT server_of($1, '{a,b}'), server_of($1, '{a,b,c}')",
            &[name],
        )?;
        home.insert(
            name.clone(),
            (row.get::<_, String>(0), row.get::<_, String>(1)),
        );
    }
    let moving: BTreeSet<&String> = (names.iter())
        .filter(|name| home[*name].0 != home[*name].1)
        .collect();
    ensure!(!moving.is_empty() && moving.len() < names.len());
    ensure!(
        moving.iter().all(|name| home[*name].1 == "c"),
        "a name has moved between old servers"
    );
    servers
        .connect("a")?
        .batch_execute(&format!("SELECT counter_incr('stock:pot', {STOCK})"))?;

    // Each client hears of the new server at another time.
    let progress = Progress::default();
    let (books, killed) = thread::scope(|scope| {
        let progress = &progress;
        let mover = scope.spawn(move || {
            let killed = move_while(servers, all, progress);
            progress.rounds.store(u64::MAX, Ordering::Relaxed);
            killed
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (names, home) = (&names, &home);
                scope.spawn(move || count_while(servers, number, names, home, progress))
            })
            .collect();
        let books: Result<Vec<Book>> = (clients.into_iter())
            .map(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect();
        progress.over.store(true, Ordering::Relaxed);
        let killed = mover.join().map_err(|_| anyhow!("the mover panicked"));
        (books, killed)
    });
    let (books, killed) = (books?, killed??);
    ensure!(killed > 0, "no step was cut off");
    ensure!(
        books.iter().all(|book| book.on_c > 0),
        "a client never came to c"
    );

    let mut expected: BTreeMap<&String, i64> = names.iter().map(|name| (name, 0)).collect();
    for (name, sum) in books.iter().flat_map(|book| &book.counted) {
        *expected.get_mut(name).context("an unknown name")? += sum;
    }
    for (name, expected) in expected {
        let sql =
            format!("SELECT coalesce(sum(value), 0)::bigint FROM counters WHERE name = '{name}'");
        let found = number(&mut reader, &sql)?;
        ensure!(
            found == expected,
            "{name}: {found}, and {expected} were counted"
        );
        let sql = format!(
            "SELECT coalesce(string_agg(server, ' ' ORDER BY server), '') FROM counters_by_server WHERE name = '{name}' AND value <> 0"
        );
        let place = text(&mut reader, &sql)?;
        ensure!(
            place == home[name].1 || (place.is_empty() && expected == 0),
            "{name} is on {place}, and not on {}",
            home[name].1
        );
    }
    let sold: i64 = books.iter().map(|book| book.sold).sum();
    let left = number(
        &mut reader,
        "SELECT sum(value)::bigint FROM counters WHERE name = 'stock:pot'",
    )?;
    ensure!(sold + left == STOCK, "{sold} sold, {left} left of {STOCK}");
    ensure!(sold > 0, "nothing was sold");
    Ok(())
}

/// What clients and the mover know of each other.
#[derive(Default)]
struct Progress {
    /// Transactions of clients.
    counted: AtomicU64,
    /// Rounds of the mover, who may be gone: then no more are to be waited for.
    rounds: AtomicU64,
    /// Nobody counts any more.
    over: AtomicBool,
}

/// One client, who counts and buys until it has done its part and the mover has been round a few times.
fn count_while(
    servers: &Servers,
    number: u64,
    names: &[String],
    home: &BTreeMap<String, (String, String)>,
    progress: &Progress,
) -> Result<Book> {
    let mut rng = StdRng::seed_from_u64(seed() + number);
    let mut connections = BTreeMap::new();
    for name in COUNTING {
        connections.insert(name, servers.connect(name)?);
    }
    let mut book = Book::default();
    let mut own = 0;
    while own < TRANSACTIONS || progress.rounds.load(Ordering::Relaxed) < ROUNDS {
        own += 1;
        let all = progress.counted.fetch_add(1, Ordering::Relaxed);
        let knows_c = own >= TRANSACTIONS || all > CLIENTS * TRANSACTIONS / 4 + number * 40;
        let name = names.choose(&mut rng).context("no names")?;
        let (of_two, of_three) = &home[name];
        let server = if knows_c { of_three } else { of_two };
        let connection = connections
            .get_mut(server.as_str())
            .context("no such server")?;
        let delta = rng.random_range(-5..50_i64);
        connection.execute("SELECT counter_incr($1, $2)", &[name, &delta])?;
        *book.counted.entry(name.clone()).or_default() += delta;
        book.on_c += u64::from(server == "c");
        // Stock is sold on either server.
        let shop = connections
            .get_mut(if knows_c { "c" } else { "a" })
            .context("no shop")?;
        let bought: bool = shop
            .query_one("SELECT counter_try_incr('stock:pot', -1)", &[])?
            .get(0);
        book.sold += i64::from(bought);
    }
    Ok(book)
}

/// Carries values over, by the page's own steps, as long as clients count, and then until nothing is left to
/// be carried. Steps are repeated, and cut off. Returns how many were.
fn move_while(servers: &Servers, all: &[Block], progress: &Progress) -> Result<u64> {
    let take = block_with(all, "server_of(name, '{a,b,c}') = 'c'")?;
    let add = block_with(all, "FROM leaving_b WHERE server = 'c'")?;
    let tidy = block_with(all, "DELETE FROM leaving_b")?;
    let take_stock = block_with(all, "'stock:cup', value FROM taken")?;
    let take_stock = Block {
        sql: take_stock.sql.replace("stock:cup", "stock:pot"),
        output: None,
    };
    let mut rng = StdRng::seed_from_u64(seed());
    let mut killed = 0;
    loop {
        // What clients have counted is there to be found in the round that begins now.
        let last = progress.over.load(Ordering::Relaxed);
        for step in [&take, &take_stock, &add, &tidy] {
            for _ in 0..rng.random_range(1..3) {
                if !last && rng.random_bool(0.5) {
                    killed += u64::from(cut_off(servers, step, &mut rng)?);
                }
                servers.run(step)?;
            }
        }
        progress.rounds.fetch_add(1, Ordering::Relaxed);
        if last {
            let mut left = 0;
            for name in ["a", "b"] {
                left += number(&mut servers.connect(name)?, "SELECT count(*) FROM leaving")?;
            }
            ensure!(left == 0, "{left} rows are still leaving");
            return Ok(killed);
        }
    }
}

/// Does a step in sessions that are ended in the midst of it, or just before or after. True: it was.
fn cut_off(servers: &Servers, step: &Block, rng: &mut StdRng) -> Result<bool> {
    let mut cut = false;
    for name in Servers::of(step)? {
        let mut victim = servers.connect(name)?;
        let mut killer = servers.connect(name)?;
        let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[])?.get(0);
        let pause = std::time::Duration::from_micros(rng.random_range(0..8000));
        let outcome = thread::scope(|scope| {
            let step = scope.spawn(|| -> Result<()> {
                // Statement by statement, as psql does.
                for statement in step.sql.split_inclusive(";\n") {
                    victim.batch_execute(statement)?;
                }
                Ok(())
            });
            // Not to wait for something, but to hit any moment of it.
            thread::sleep(pause);
            let killed = killer.query_one("SELECT pg_terminate_backend($1)", &[&pid]);
            (step.join(), killed)
        });
        let (step, killed) = outcome;
        killed?;
        match step.map_err(|_| anyhow!("the step panicked"))? {
            Ok(()) => {}
            Err(error) if is_lost(&error) => cut = true,
            Err(error) => return Err(error),
        }
        poll_until("the session to end", DEADLINE, || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
            Ok(killer.query_one(sql, &[&pid])?.get::<_, i64>(0) == 0)
        })?;
    }
    Ok(cut)
}
