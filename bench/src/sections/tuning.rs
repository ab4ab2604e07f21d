//! Settings of the server that matter for counters.

use std::time::Instant;

use anyhow::{Context, Result};
use counterx_harness::StopMode;

use crate::options::{Options, Section};
use crate::peers::{Batch, Keys, Peer};
use crate::race::{Entry, Pace, race, race_with, slice};
use crate::report::{Measured, Table};
use crate::server::Server;
use crate::stats::{Series, Unit, turns};

const DELAYS: [&str; 3] = ["0", "10", "100"];

/// Of `counterx.total`; the second one is the extension's own.
const FILL_FACTORS: [u32; 3] = [100, 80, 50];

/// Counters that each fold changes, and folds of a turn.
const CHANGED: u32 = 10_000;
const FOLDS: u32 = 10;

pub(crate) fn run(options: &Options) -> Result<Measured> {
    let mut measured = Measured::new(
        Section::Tuning,
        format!(
            "{} clients, one hot counter, but where it says otherwise. `commit_delay` and \
             `synchronous_commit` are set in the clients' sessions, `wal_compression` in the server, with a \
             checkpoint before each turn, so that all pages are written to the WAL as a whole once. The fill \
             factors are those of the table of totals, or of that which is updated.",
            options.clients
        ),
    );
    let mut server = Server::start("tuning", options)?;
    delays(&mut server, options, &mut measured)?;
    commits(&mut server, options, &mut measured)?;
    compression(&mut server, options, &mut measured)?;
    drop(server);
    fill_factors(options, &mut measured)?;
    Ok(measured)
}

fn pace(options: &Options) -> Pace {
    Pace {
        rounds: options.few_rounds(),
        seconds: options.short_seconds(),
    }
}

fn delays(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    for peer in [Peer::Counter, Peer::Insert] {
        let entries = DELAYS.map(|delay| {
            Entry::new(peer, Keys::Hot, Batch::One, options.clients)
                .named(format!("commit_delay = {delay}"))
                .setting("commit_delay", delay)
        });
        let title = format!("{}, {} clients, durable", peer.name(), options.clients);
        measured
            .races
            .push(race(server, &title, pace(options), &entries)?);
    }
    Ok(())
}

fn commits(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    let entry = || Entry::new(Peer::Counter, Keys::Hot, Batch::One, options.clients);
    let mut local = entry().named("off in this transaction");
    local.script =
        "SELECT set_config('synchronous_commit', 'off', true), counter_incr('hot');".to_owned();
    let entries = [
        entry().named("on"),
        local,
        entry().named("off in the session").asynchronous(),
    ];
    let race = race(server, "synchronous_commit", pace(options), &entries)?;
    measured.races.push(race);
    Ok(())
}

fn compression(server: &mut Server, options: &Options, measured: &mut Measured) -> Result<()> {
    const VALUES: &str = "SELECT enumvals FROM pg_settings WHERE name = 'wal_compression'";
    let values: Vec<String> = server.one(VALUES)?;
    // `on` is another name for pglz.
    let values: Vec<&str> = ["off", "pglz", "lz4", "zstd"]
        .into_iter()
        .filter(|value| values.iter().any(|known| known == value))
        .collect();
    for peer in [Peer::Counter, Peer::Update] {
        let create = peer.create(Keys::Uniform);
        if !create.is_empty() {
            server.execute(&create)?;
        }
        let entries: Vec<Entry> = values
            .iter()
            .map(|value| {
                Entry::new(peer, Keys::Uniform, Batch::One, options.clients)
                    .named(format!("wal_compression = {value}"))
            })
            .collect();
        let title = format!("{}, 10,000 counters", peer.name());
        let seconds = options.short_seconds();
        let turn = |server: &mut Server, entry: &Entry, _first| {
            let value = entry.name.rsplit(' ').next().unwrap_or("off");
            server.cluster.reload(&[("wal_compression", value)])?;
            server.execute("CHECKPOINT")?;
            slice(server, entry, seconds)
        };
        let race = race_with(server, &title, options.few_rounds(), &entries, turn)?;
        measured.races.push(race);
    }
    server.cluster.reload(&[("wal_compression", "off")])
}

fn fill_factors(options: &Options, measured: &mut Measured) -> Result<()> {
    let mut server = Server::start_with("fill", options, &[("counterx.compaction", "off")])?;
    let mut table = Table::new(
        &format!("{FOLDS} folds of {CHANGED} counters each, medians of the rounds"),
        &[
            "fill factor of the totals",
            "time of a fold",
            "WAL bytes for a counter",
            "in-place updates",
            "size after it",
        ],
    );
    let mut seconds = vec![Vec::new(); FILL_FACTORS.len()];
    let mut bytes = seconds.clone();
    let mut in_place = seconds.clone();
    let mut sizes = seconds.clone();
    for round in 0..options.few_rounds() {
        for turn in turns(round, FILL_FACTORS.len()) {
            let factor = FILL_FACTORS[turn];
            let one =
                folds(&mut server, factor).with_context(|| format!("fill factor {factor}"))?;
            println!(
                "    round {}: fill factor {factor}: a fold takes {}",
                round + 1,
                Unit::Seconds.format(one[0])
            );
            for (all, value) in [&mut seconds, &mut bytes, &mut in_place, &mut sizes]
                .into_iter()
                .zip(one)
            {
                all[turn].push(value);
            }
        }
    }
    for (turn, factor) in FILL_FACTORS.into_iter().enumerate() {
        let name = format!("fill factor {factor}");
        let series = |what: &str, unit, all: &[Vec<f64>]| {
            Series::new(format!("{name}: {what}"), unit, all[turn].clone())
        };
        let time = series("a fold", Unit::Seconds, &seconds)?;
        let wal = series("WAL for a counter", Unit::Bytes, &bytes)?;
        let share = series("in-place updates", Unit::Share, &in_place)?;
        let size = series("size", Unit::Bytes, &sizes)?;
        let mut row = vec![factor.to_string()];
        row.extend([&time, &wal, &share, &size].map(|one| one.unit.format(one.median)));
        table.rows.push(row);
        measured.figures.extend([time, wal, share, size]);
    }
    measured.tables.push(table);

    let updates = [100, 50].map(|factor| {
        let mut entry = Entry::new(Peer::Update, Keys::Uniform, Batch::One, options.clients)
            .named(format!("fillfactor = {factor}"));
        let own = |sql: String| sql.replace("updated", &format!("updated_{factor}"));
        entry.create = own(entry.create).replace(
            "NOT NULL);",
            &format!("NOT NULL) WITH (fillfactor = {factor});"),
        );
        entry.reset = own(entry.reset);
        entry.script = own(entry.script);
        entry.total = entry.total.map(own);
        entry
    });
    let title = "UPDATE of one of 10,000 rows";
    measured
        .races
        .push(race(&mut server, title, pace(options), &updates)?);
    server.cluster.stop(StopMode::Fast)
}

/// Seconds and WAL bytes of a fold for each counter, share of updates in place, and size of the
/// totals after some of them.
fn folds(server: &mut Server, factor: u32) -> Result<[f64; 4]> {
    const UPDATES: &str =
        "SELECT n_tup_upd FROM pg_stat_all_tables WHERE relid = 'counterx.total'::regclass";
    server.execute(&format!(
        "ALTER TABLE counterx.total SET (fillfactor = {factor})"
    ))?;
    let change =
        format!("SELECT count(counter_incr('page:' || i)) FROM generate_series(1, {CHANGED}) AS i");
    // There are all of them, and no page has been filled by another factor.
    server.execute(&change)?;
    server.one::<i64>("SELECT counterx.compact()")?;
    server.execute("VACUUM FULL counterx.total")?;
    server.execute("VACUUM (ANALYZE) counterx.total")?;
    server.execute("CHECKPOINT")?;
    let in_place = UPDATES.replace("upd", "hot_upd");
    let before = (stat(server, UPDATES)?, stat(server, &in_place)?);
    let (mut seconds, mut bytes) = (0.0, 0);
    for _ in 0..FOLDS {
        server.execute(&change)?;
        let wal = server.wal_bytes()?;
        let start = Instant::now();
        server.one::<i64>("SELECT counterx.compact()")?;
        seconds += start.elapsed().as_secs_f64();
        bytes += server.wal_bytes()? - wal;
    }
    let updates = stat(server, UPDATES)? - before.0;
    let updates_in_place = stat(server, &in_place)? - before.1;
    let size: i64 = server.one("SELECT pg_total_relation_size('counterx.total')")?;
    Ok([
        seconds / f64::from(FOLDS),
        bytes as f64 / f64::from(FOLDS * CHANGED),
        updates_in_place as f64 / updates.max(1) as f64,
        size as f64,
    ])
}

/// A number of the statistics, which this session may have told of already or not.
fn stat(server: &mut Server, sql: &str) -> Result<i64> {
    server.execute("SELECT pg_stat_force_next_flush()")?;
    server.one(sql)
}
