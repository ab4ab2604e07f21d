//! Counters move: into dumps, other schemas, tablespaces and databases, and to other versions.
//!
//! | step | what it holds counterx to |
//! |---|---|
//! | [`dump`] | every format and way of pg_dump and pg_restore, from a database in mid-load |
//! | [`onto`] | restores onto databases that are in use: whatever comes of it, counters work |
//! | [`places`] | tablespaces, templates, new names: of databases, schemas and the engine's own tables |
//! | [`update`] | ALTER EXTENSION UPDATE: what sessions and worker do in between, and afterwards |
//! | [`upgrade`] | pg_upgrade to another major version |

mod dump;
mod onto;
mod places;
mod update;
mod upgrade;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    Mixed, check, create_database, folding_hard, folds_on, footprint, mixed_under_watch,
    pause_folding, prepare_mixed, settle,
};
use counterx_harness::Cluster;
use postgres::Client;

use crate::options::Options;
use crate::report::PartReport;

pub(crate) fn run(options: &Options, report: &mut PartReport) -> Result<()> {
    let cluster = folding_hard("moves").start()?;
    dump::run(options, report, &cluster);
    onto::run(options, report, &cluster);
    places::run(options, report, &cluster);
    drop(cluster);
    update::run(options, report);
    upgrade::run(options, report);
    Ok(())
}

/// What a round of traffic is.
fn traffic(options: &Options, what: &str) -> Mixed {
    Mixed {
        clients: options.size(1, 3),
        transactions: options.size(15, 80),
        survives: false,
        seed: options.seed_for(what),
    }
}

/// A database that has counted, with deltas that wait to be folded, in totals, logs and late ones,
/// with types, holds and tokens, and nobody who folds.
fn backlog(options: &Options, cluster: &Cluster, db: &str) -> Result<Client> {
    let mut client = create_database(cluster, db)?;
    prepare_mixed(&mut client)?;
    mixed_under_watch(&cluster.config(db), traffic(options, db), |_| Ok(()))?;
    settle(&mut client)?;
    pause_folding(&mut client, db)?;
    let mut client = cluster.connect_db(db)?;
    client.batch_execute(
        "SELECT bump('counter:' || n % 40, n) FROM generate_series(1, 200) n;
         SELECT hold('stock:a', 1, '1 day') FROM counter_available('stock:a') a
          WHERE a.available > 0;
         SELECT counter_incr_once('kept', 'once', 7);
         INSERT INTO oracle VALUES ('once', 7);",
    )?;
    client.batch_execute(&format!(
        "BEGIN; SELECT bump('late', 3); SELECT bump('counter:0', 5); PREPARE TRANSACTION '{db}'"
    ))?;
    client.batch_execute(&format!("COMMIT PREPARED '{db}'"))?;
    check(&mut client)?;
    ensure!(footprint(&mut client)?.pending > 0, "there is no backlog");
    Ok(client)
}

/// What a copy must have in common with its original.
fn fingerprint(client: &mut Client) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for sql in [
        "SELECT coalesce(string_agg(name || '=' || value, ' ' ORDER BY name), '') FROM counters",
        "SELECT coalesce(string_agg(name || coalesce(min::text, '-') || coalesce(max::text, '-'), ' ' ORDER BY name), '') FROM counter_types",
        "SELECT coalesce(string_agg(id || ' ' || name || amount || expires_at, ' ' ORDER BY id), '') FROM counter_holds",
        "SELECT coalesce(string_agg(token || name || delta, ' ' ORDER BY token), '') FROM counterx.token",
    ] {
        all.push(client.query_one(sql, &[])?.get(0));
    }
    Ok(all)
}

/// The copy has what its original had, token by token, and goes on: counts, folds, truncates.
fn is_sound(options: &Options, cluster: &Cluster, db: &str, expected: &[String]) -> Result<()> {
    let mut client = cluster.connect_db(db)?;
    check(&mut client).context("as it came")?;
    let found = fingerprint(&mut client)?;
    for (expected, found) in expected.iter().zip(&found) {
        ensure!(
            expected == found,
            "the copy has\n{found}\nthe original had\n{expected}"
        );
    }
    goes_on(options, cluster, db)
}

/// It counts and folds, and all is equal.
fn goes_on(options: &Options, cluster: &Cluster, db: &str) -> Result<()> {
    let mut client = cluster.connect_db(db)?;
    let replayed: bool = client
        .query_one("SELECT NOT counter_incr_once('kept', 'once', 7)", &[])?
        .get(0);
    ensure!(replayed, "a token that was used counts again");
    let before = footprint(&mut client)?;
    if options.short {
        client.batch_execute(
            "SELECT bump('counter:' || n % 40, n) FROM generate_series(1, 100) n;
             SELECT bump('stock:a', 2), take('stock:a', 1), change_set('n:1', 5)",
        )?;
    } else {
        let more = Mixed {
            transactions: 30,
            ..traffic(options, &format!("{db} more"))
        };
        mixed_under_watch(&cluster.config(db), more, |_| Ok(())).context("with more traffic")?;
    }
    folds_on(&mut client, &before)?;
    Ok(())
}
