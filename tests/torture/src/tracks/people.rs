//! Who changes tracks and tables, at random.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    Control, Recovering, TRACKS, is_lost, is_no_look, patiently, sqlstate,
};
use postgres::error::SqlState;
use postgres::{Client, Config};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What was done, and how often.
pub(super) type Did = BTreeMap<&'static str, u64>;

pub(super) struct People {
    pub(super) config: Config,
    pub(super) seed: u64,
    /// Are connections lost?
    pub(super) survives: bool,
    /// Do tables become unlogged, and logged again?
    pub(super) rewrites: bool,
}

/// What one of them did: a word for the report.
type Act = Result<&'static str>;

impl People {
    /// Attaches tracks, ends them, and has them recounted.
    pub(super) fn change_tracks(&self, control: &Control) -> Result<Did> {
        self.work(control, 2, |client, rng| {
            let (table, type_name, how) = TRACKS[rng.random_range(0..TRACKS.len())];
            let sql = "SELECT EXISTS (SELECT FROM counterx.track WHERE type = $1)";
            let tracked: bool = client.query_one(sql, &[&type_name])?.get(0);
            let track =
                format!("SELECT counter_track('{table}', '{type_name}', {how}, adopt => true)");
            let untrack = format!("SELECT counter_untrack('{table}', '{type_name}')");
            if !tracked {
                client.batch_execute(&track)?;
                return Ok("tracks attached");
            }
            match rng.random_range(0..8) {
                0 | 1 => {
                    client.batch_execute(&untrack)?;
                    no_counters(client, type_name)?;
                    Ok("tracks ended")
                }
                2 => {
                    client.batch_execute(&format!(
                        "SELECT counter_untrack('{table}', '{type_name}', keep => true);
                         SELECT counter_incr('{type_name}:stray', 5)"
                    ))?;
                    Ok("tracks ended, their counters kept and changed")
                }
                3 => {
                    client.batch_execute(&format!("{untrack}; {track}"))?;
                    Ok("tracks ended and attached in one transaction")
                }
                4 => {
                    client.batch_execute(&format!(
                        "BEGIN; SAVEPOINT a; {untrack}; {track}; ROLLBACK TO a; {untrack}; ROLLBACK"
                    ))?;
                    Ok("tracks ended and attached, and that rolled back")
                }
                _ => recount(client, table, type_name),
            }
        })
    }

    /// Does all the other things to tables.
    pub(super) fn change_tables(&self, control: &Control) -> Result<Did> {
        let kinds = if self.rewrites { 9 } else { 8 };
        self.work(control, 3, |client, rng| {
            let (table, type_name, _) = TRACKS[rng.random_range(0..TRACKS.len())];
            match rng.random_range(0..kinds) {
                0 => switch(client, rng, table, type_name),
                1 => replace_function(client, rng),
                2 => {
                    let table = ["task", "comment", "item_0", "item_2"][rng.random_range(0..4)];
                    client.batch_execute(&format!("VACUUM FULL {table}"))?;
                    Ok("VACUUM FULL of a tracked table")
                }
                3..8 => partition(client, rng),
                _ => {
                    client.batch_execute("ALTER TABLE item_1 SET UNLOGGED")?;
                    client.batch_execute("ALTER TABLE item_1 SET LOGGED")?;
                    Ok("partitions made unlogged, and logged again")
                }
            }
        })
    }

    /// Afterwards all tables are tracked, and nothing keeps the tracks from becoming exact.
    pub(super) fn put_right(&self) -> Result<()> {
        let mut connection = Recovering::new(&self.config);
        let client = connection.client()?;
        let sql = "SELECT relpersistence = 'u' FROM pg_class WHERE oid = 'item_1'::regclass";
        if client.query_one(sql, &[])?.get(0) {
            patiently(client, "ALTER TABLE item_1 SET LOGGED")?;
        }
        for (table, type_name, how) in TRACKS {
            for event in EVENTS {
                if is_off(client, table, &format!("counterx_{type_name}_{event}"))? {
                    patiently(client, &enable(table, type_name, event))?;
                }
            }
            let sql = "SELECT EXISTS (SELECT FROM counterx.track WHERE type = $1)";
            if !client.query_one(sql, &[&type_name])?.get::<_, bool>(0) {
                patiently(
                    client,
                    &format!(
                        "SELECT counter_track('{table}', '{type_name}', {how}, adopt => true)"
                    ),
                )?;
            }
        }
        Ok(())
    }

    /// One thing after the other, until the load is done.
    fn work(
        &self,
        control: &Control,
        salt: u64,
        mut act: impl FnMut(&mut Client, &mut StdRng) -> Act,
    ) -> Result<Did> {
        let mut rng = StdRng::seed_from_u64(self.seed ^ salt);
        let mut connection = Recovering::new(&self.config);
        let mut did = Did::new();
        while !control.is_done() {
            // Tracks are to be exact for a while in between.
            std::thread::sleep(Duration::from_millis(rng.random_range(0..100)));
            let acted = connection.client().and_then(|client| act(client, &mut rng));
            match acted {
                Ok(what) => *did.entry(what).or_default() += 1,
                Err(error) if self.survives && is_lost(&error) => connection.forget(),
                Err(error) if is_no_look(&error) || is_refused(&error) => {
                    *did.entry("changes of tracks and tables that had to make way")
                        .or_default() += 1;
                    if let Err(error) = connection.client()?.batch_execute("ROLLBACK") {
                        let error = error.into();
                        ensure!(self.survives && is_lost(&error), error);
                        connection.forget();
                    }
                }
                Err(error) => {
                    control.abort();
                    return Err(error);
                }
            }
        }
        Ok(did)
    }
}

/// A table cannot be tracked while one of its partitions is unlogged.
fn is_refused(error: &anyhow::Error) -> bool {
    sqlstate(error) == Some(&SqlState::FEATURE_NOT_SUPPORTED)
}

/// Of a track that is no more.
fn no_counters(client: &mut Client, type_name: &str) -> Result<()> {
    let sql = "SELECT count(*) FROM counters WHERE name ^@ $1";
    let left: i64 = client.query_one(sql, &[&format!("{type_name}:")])?.get(0);
    ensure!(
        left == 0,
        "{left} counters are left of the track {type_name}, which is no more"
    );
    Ok(())
}

fn recount(client: &mut Client, table: &str, type_name: &str) -> Act {
    let sql = format!("SELECT FROM counter_recount('{table}', '{type_name}')");
    match client.batch_execute(&sql) {
        // Somebody has switched off one of its triggers, or it is not tracked now.
        Err(error)
            if matches!(
                error.code(),
                Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE | &SqlState::UNDEFINED_OBJECT)
            ) =>
        {
            Ok("recounts refused, as triggers were off or gone")
        }
        other => {
            other?;
            Ok("tracks recounted")
        }
    }
}

const EVENTS: [&str; 4] = ["insert", "update", "delete", "truncate"];

/// Triggers of TRUNCATE are on partitions.
fn with_trigger(table: &str, event: &str) -> String {
    match (table, event) {
        ("item", "truncate") => "item_0".to_owned(),
        _ => table.to_owned(),
    }
}

fn enable(table: &str, type_name: &str, event: &str) -> String {
    let table = with_trigger(table, event);
    format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER counterx_{type_name}_{event}")
}

fn is_off(client: &mut Client, table: &str, trigger: &str) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT FROM pg_trigger
                               WHERE tgname = $1 AND tgenabled <> 'A'
                                 AND (tgrelid = to_regclass($2) OR tgrelid = 'item_0'::regclass))";
    Ok(client.query_one(sql, &[&trigger, &table])?.get(0))
}

/// Switches a trigger off, or to another way to fire, and on again; what happens meanwhile is missed.
fn switch(client: &mut Client, rng: &mut StdRng, table: &str, type_name: &str) -> Act {
    let event = EVENTS[rng.random_range(0..EVENTS.len())];
    let on = with_trigger(table, event);
    let off = ["DISABLE", "ENABLE REPLICA"][rng.random_range(0..2)];
    let off = format!("ALTER TABLE {on} {off} TRIGGER counterx_{type_name}_{event}");
    match client.batch_execute(&off) {
        // The track may be gone.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
            return Ok("triggers that were to be switched off, and were not there");
        }
        other => other?,
    }
    std::thread::sleep(Duration::from_millis(rng.random_range(0..60)));
    match patiently(client, &enable(table, type_name, event)) {
        Err(error) if sqlstate(&error) == Some(&SqlState::UNDEFINED_OBJECT) => {}
        other => other?,
    }
    Ok("triggers switched off and on")
}

fn replace_function(client: &mut Client, rng: &mut StdRng) -> Act {
    let groups = rng.random_range(2..5);
    let body = match rng.random_range(0..2) {
        0 => format!("LANGUAGE sql IMMUTABLE AS $$ SELECT id % {groups} $$"),
        _ => format!("LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN id % {groups}; END $$"),
    };
    client.batch_execute(&format!(
        "LOCK TABLE quiet; CREATE OR REPLACE FUNCTION bucket(id integer) RETURNS integer {body}"
    ))?;
    // At once: who has begun with the old one goes on, and is not to be missed.
    if rng.random_bool(0.7) {
        recount(client, "item", "revenue")?;
    }
    Ok("functions of keys replaced")
}

/// A partition of its own for what is in that of all others: it comes with rows or without, and goes with them or
/// without.
fn partition(client: &mut Client, rng: &mut StdRng) -> Act {
    // It may be there, and on its own, when somebody was in the way.
    let sql = "SELECT to_regclass('item_5') IS NOT NULL,
                      EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('item_5') AND relispartition)";
    let row = client.query_one(sql, &[])?;
    let (there, attached): (bool, bool) = (row.get(0), row.get(1));
    let kind = rng.random_range(0..3);
    if !there {
        if kind == 0 {
            client.batch_execute(
                "BEGIN; LOCK TABLE item; DELETE FROM item WHERE shard = 5;
                 CREATE TABLE item_5 PARTITION OF item FOR VALUES IN (5); COMMIT",
            )?;
            return Ok("partitions created");
        }
        client.batch_execute(
            "BEGIN; LOCK TABLE item; CREATE TABLE item_5 (LIKE item INCLUDING ALL);
             WITH gone AS (DELETE FROM item WHERE shard = 5 RETURNING *)
             INSERT INTO item_5 SELECT * FROM gone;
             INSERT INTO item_5 SELECT n, 5, 'new', n FROM generate_series(1000, 1005) n ON CONFLICT DO NOTHING;
             ALTER TABLE item ATTACH PARTITION item_5 FOR VALUES IN (5); COMMIT",
        )?;
        return Ok("partitions attached");
    }
    if !attached {
        return attach_again(client);
    }
    match kind {
        0 => {
            client.batch_execute("DROP TABLE item_5")?;
            Ok("partitions dropped")
        }
        1 => {
            client.batch_execute(
                "BEGIN; ALTER TABLE item DETACH PARTITION item_5;
                 INSERT INTO item SELECT * FROM item_5; DROP TABLE item_5; COMMIT",
            )?;
            Ok("partitions detached, and their rows put back")
        }
        _ => {
            client.batch_execute("ALTER TABLE item DETACH PARTITION item_5")?;
            attach_again(client)
        }
    }
}

/// Its rows have changed while they were nobody's.
fn attach_again(client: &mut Client) -> Act {
    client
        .batch_execute("UPDATE item_5 SET status = 'away', amount = 1")
        .context("a table on its own")?;
    client.batch_execute(
        "BEGIN; LOCK TABLE item; DELETE FROM item WHERE shard = 5;
         ALTER TABLE item ATTACH PARTITION item_5 FOR VALUES IN (5); COMMIT",
    )?;
    Ok("partitions detached, changed and attached again")
}
