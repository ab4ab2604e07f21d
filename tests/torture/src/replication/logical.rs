//! Logical replication: user tables arrive, counters are each server's own.

use anyhow::{Context, Result, bail, ensure};
use counterx_cluster_tests::{
    DEADLINE, Mixed, bad_lines, create_database, folding_hard, footprint, mixed_under_watch,
    prepare_mixed, settle, turn_over,
};
use counterx_harness::{Cluster, poll_until};
use postgres::Client;

use super::for_a_while;
use crate::options::Options;
use crate::report::PartReport;

const DB: &str = "shop";

/// The subscriber's own counters have the same names as the publisher's, and an oracle of their own.
const OWN: &str = "
    CREATE TABLE own (name text NOT NULL, delta bigint NOT NULL);
    CREATE FUNCTION bump_own(name text, delta bigint) RETURNS void LANGUAGE sql AS $$
        INSERT INTO public.own VALUES ($1, $2);
        SELECT public.counter_incr($1, $2);
    $$;";

/// As the check of the oracle, for the subscriber's own.
const CHECK_OWN: &str = "
    SELECT coalesce(string_agg(format('%s: own %s, counters %s, counter_value %s',
                                      name, o.total, c.value, counter_value(name)), E'\\n'), '')
      FROM (SELECT name, sum(delta) AS total FROM own GROUP BY name) o
      FULL JOIN counters c USING (name)
     WHERE o.total IS DISTINCT FROM c.value OR counter_value(name) IS DISTINCT FROM o.total";

pub(super) fn run(options: &Options, report: &mut PartReport) {
    report.step("a publication of all tables and its subscriber", |report| {
        subscribe(options, report)
    });
}

fn subscribe(options: &Options, report: &mut PartReport) -> Result<()> {
    let publisher = folding_hard("publisher")
        .conf("wal_level", "logical")
        .start()?;
    // Of each table that has just been copied, the server keeps an origin for a moment.
    let subscriber = folding_hard("subscriber")
        .conf("max_replication_slots", "64")
        .start()?;
    let mut there = create_database(&publisher, DB)?;
    prepare_mixed(&mut there)?;
    let mut here = create_database(&subscriber, DB)?;
    // What a user would do: the same tables, and the extension, as the publication has its tables
    // and a subscription wants all of them to be there. Only what is made here is not copied.
    prepare_mixed(&mut here)?;
    here.batch_execute(
        "TRUNCATE oracle, basket, once; SELECT counter_drop(name) FROM counters;
         SELECT counter_type_drop(name) FROM counter_types;",
    )?;
    here.batch_execute(OWN)?;
    here.batch_execute("SELECT counter_type_create('stock', min => -1000000)")?;
    there.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES")?;
    for (slot, plugin) in [("decoding", "test_decoding"), ("output", "pgoutput")] {
        there.execute(
            "SELECT pg_create_logical_replication_slot($1, $2)",
            &[&slot, &plugin],
        )?;
    }
    // Something of everything is there to be copied at first.
    let mixed = Mixed {
        clients: 2,
        transactions: options.size(10, 40),
        survives: false,
        seed: options.seed_for("published"),
    };
    mixed_under_watch(&publisher.config(DB), mixed, |_| Ok(()))?;
    there.batch_execute("BEGIN; SELECT bump('late', 3); PREPARE TRANSACTION 'late'")?;
    there.batch_execute("COMMIT PREPARED 'late'")?;
    there.batch_execute(
        "SELECT counter_incr_once('a token', 'once'); INSERT INTO oracle VALUES ('once', 1);
         SELECT hold('stock:a', 1, '1 hour')",
    )?;
    count_own(&mut here, 50)?;
    let since = subscriber.log_len();
    here.batch_execute(&format!(
        "CREATE SUBSCRIPTION mine CONNECTION 'host={} port={} user=postgres dbname={DB}'
         PUBLICATION everything",
        publisher.socket_dir().display(),
        publisher.port()
    ))?;
    let before = (footprint(&mut there)?, footprint(&mut here)?);
    let mut looks = 0;
    for_a_while(options, "logical", 0.2, |mixed| {
        let end = mixed_under_watch(&publisher.config(DB), mixed, |control| {
            while !control.is_done() {
                count_own(&mut here, 5)?;
                check_own(&mut here)?;
                looks += 1;
            }
            Ok(())
        })?;
        report.tried("transactions of a publisher", end.transactions);
        Ok(())
    })?;
    // An early flush goes another way into the logs.
    there.batch_execute(
        "BEGIN; SET LOCAL counterx.pending_work_mem = '64kB';
         SELECT bump('many' || n, n) FROM generate_series(1, 3000) n; COMMIT",
    )?;
    // Each has emptied logs of its own.
    turn_over(&mut there)?;
    settle(&mut there)?;
    arrived(&publisher, &mut there, &mut here)
        .with_context(|| format!("{:#?}", bad_lines(&subscriber.log_since(since))))?;
    report.tried("looks at a subscriber's own counters", looks);

    count_own(&mut here, 300)?;
    settle(&mut here)?;
    check_own(&mut here)?;
    let after = (footprint(&mut there)?, footprint(&mut here)?);
    ensure!(
        after.0.folded > before.0.folded && after.1.folded > before.1.folded,
        "{before:?} {after:?}"
    );
    let sql = "SELECT (SELECT count(*) FROM counterx.token), (SELECT count(*) FROM counterx.hold),
                      (SELECT string_agg(name || min, ' ') FROM counter_types)";
    let row = here.query_one(sql, &[])?;
    ensure!(
        row.get::<_, i64>(0) == 0 && row.get::<_, i64>(1) == 0,
        "tokens or holds have arrived"
    );
    ensure!(
        row.get::<_, Option<String>>(2).as_deref() == Some("stock-1000000"),
        "types have arrived"
    );
    let log = subscriber.log_since(since);
    let bad = bad_lines(&log);
    ensure!(bad.is_empty(), "the subscriber complains: {bad:#?}");
    nothing_is_shipped(report, &mut there)
}

/// Counts on the subscriber, under names that the publisher has too.
fn count_own(client: &mut Client, times: i64) -> Result<()> {
    for n in 0..times {
        let name = format!("counter:{}", n % 7);
        client.execute("SELECT bump_own($1, $2)", &[&name, &(n - 3)])?;
        if n % 3 == 0 {
            client.execute("SELECT bump_own('stock:a', $1)", &[&-n])?;
        }
    }
    Ok(())
}

fn check_own(client: &mut Client) -> Result<()> {
    let wrong: String = client.query_one(CHECK_OWN, &[])?.get(0);
    ensure!(
        wrong.is_empty(),
        "the subscriber's counters are no longer its own:\n{wrong}"
    );
    Ok(())
}

/// Waits until the subscriber has all rows of the user's tables, and no more.
fn arrived(publisher: &Cluster, there: &mut Client, here: &mut Client) -> Result<()> {
    let end: String = there
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])?
        .get(0);
    publisher
        .connect()?
        .batch_execute("SET synchronous_commit = on; SELECT txid_current()")?;
    let synced = "SELECT (SELECT count(*) FROM pg_subscription_rel WHERE srsubstate <> 'r'),
                         (SELECT sum(apply_error_count + sync_error_count)::bigint
                            FROM pg_stat_subscription_stats)";
    poll_until("the subscriber to catch up", 2 * DEADLINE, || {
        let row = here.query_one(synced, &[])?;
        let errors: i64 = row.get(1);
        ensure!(errors == 0, "the subscription has failed {errors} times");
        let sql = "SELECT count(*) FROM pg_stat_replication
                    WHERE application_name = 'mine' AND replay_lsn >= $1::text::pg_lsn";
        Ok(row.get::<_, i64>(0) == 0 && there.query_one(sql, &[&end])?.get::<_, i64>(0) == 1)
    })
    .context("logical replication")?;
    for sql in [
        "SELECT md5(string_agg(o::text, ' ' ORDER BY name, delta)) FROM oracle o",
        "SELECT md5(string_agg(b::text, ' ' ORDER BY id)) FROM basket b",
        "SELECT md5(string_agg(o::text, ' ' ORDER BY token)) FROM once o",
    ] {
        let (sent, got): (Option<String>, Option<String>) = (
            there.query_one(sql, &[])?.get(0),
            here.query_one(sql, &[])?.get(0),
        );
        if sent != got {
            bail!("{sql}: {sent:?} was published, {got:?} has arrived");
        }
    }
    Ok(())
}

/// What the slots have of the engine's tables.
fn nothing_is_shipped(report: &mut PartReport, there: &mut Client) -> Result<()> {
    let rows = there.query(
        "SELECT data FROM pg_logical_slot_peek_changes('decoding', NULL, NULL)",
        &[],
    )?;
    let mut oracle = 0;
    for row in &rows {
        let line: String = row.get(0);
        oracle += u64::from(line.starts_with("table public.oracle: INSERT"));
        // That a row goes is decoded, but nothing of the row; so publications leave it out.
        let ours = ["log_", "late", "token", "hold"]
            .iter()
            .any(|table| line.starts_with(&format!("table counterx.{table}")));
        ensure!(
            !ours || line.contains("no-tuple-data"),
            "it is decoded: {line}"
        );
    }
    // A relation is described before its first row: 'R', its oid, its schema and its name.
    let sql = r"
        SELECT count(*) FILTER (WHERE kind = 'I'),
               coalesce(string_agg(DISTINCT name, ' ') FILTER (WHERE kind = 'R'), '')
          FROM (SELECT chr(get_byte(data, 0)) AS kind,
                       CASE WHEN get_byte(data, 0) = ascii('R')
                            THEN encode(substring(data FROM 6 FOR 30), 'escape') END AS name
                  FROM pg_logical_slot_peek_binary_changes('output', NULL, NULL,
                       'proto_version', '1', 'publication_names', 'everything')) messages";
    let row = there.query_one(sql, &[])?;
    let (inserts, relations): (i64, String) = (row.get(0), row.get(1));
    ensure!(
        oracle > 100 && inserts > 100,
        "{oracle} rows, {inserts} rows"
    );
    for table in ["log_", "late", "token", "hold"] {
        ensure!(
            !relations.contains(&format!("counterx\\000{table}")),
            "{table} is published: {relations}"
        );
    }
    report.tried("rows decoded", oracle);
    there.batch_execute(
        "SELECT pg_drop_replication_slot('decoding'), pg_drop_replication_slot('output')",
    )?;
    Ok(())
}
