//! History: buckets add up in every snapshot, and what is sealed stays, whatever happens.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::{
    DEADLINE, Load, Seen, buckets_agree, compact, create_database, folding_hard, has_clock,
    histories, history_under_watch, nothing_crashed, prepare_history, run_clock, seconds_until,
    seed, set_server_clock, settle, shared,
};
use counterx_harness::{Cluster, poll_until};
use postgres::{Client, NoTls};
use rand::SeedableRng;
use rand::rngs::StdRng;

/// One whose clock nobody sets but sessions, for themselves.
fn cluster() -> &'static Cluster {
    shared(|| {
        folding_hard("history")
            .conf("max_prepared_transactions", "100")
            .start()
    })
}

/// Waits until all histories have begun in all lanes.
fn wait_until_begun(client: &mut Client) -> Result<()> {
    poll_until("all histories to begin", DEADLINE, || {
        let sql = "SELECT count(*) > 0 AND bool_and(since IS NOT NULL) FROM counter_histories";
        Ok(client.query_one(sql, &[])?.get(0))
    })
}

#[test]
fn buckets_add_up_and_what_is_sealed_stays_in_every_snapshot_of_a_mixed_load() -> Result<()> {
    let cluster = folding_hard("history-load")
        .conf("max_prepared_transactions", "100")
        .start()?;
    let mut client = create_database(&cluster, "mixed")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    let config = cluster.config("mixed");
    // A month ends in UTC, a day in Berlin.
    let ahead = seconds_until(&mut client, "2027-02-28 22:45+00")?;
    set_server_clock(&mut client, ahead)?;
    client.batch_execute("SELECT bump('counter:0', 1000)")?;
    settle(&mut client)?;
    prepare_history(&mut client)?;
    client.batch_execute(histories())?;
    client.batch_execute("SELECT counter_seal()")?;
    wait_until_begun(&mut client)?;
    let t0 = std::time::Instant::now();
    let seen = Seen::default();
    let load = Load {
        clients: 3,
        transactions: 200,
        names: 10,
        checkers: 2,
        ..Load::default()
    };
    let looks = history_under_watch(&config, &load, (&seen, true), |control| {
        std::thread::scope(|scope| {
            // Beside the worker.
            let by_hand = scope.spawn(|| -> Result<()> {
                let mut client = config.connect(NoTls)?;
                while !control.is_done() {
                    client.batch_execute("SELECT counterx.compact()")?;
                    client.batch_execute("SELECT counter_seal()")?;
                    std::thread::sleep(std::time::Duration::from_millis(300));
                }
                Ok(())
            });
            run_clock(&config, control, (ahead, 60))?;
            by_hand.join().expect("no panic")
        })
    })?;
    eprintln!("load {:?}", t0.elapsed());
    settle(&mut client)?;
    buckets_agree(&mut client, true)?;
    eprintln!("agree {:?}", t0.elapsed());
    let mut rng = StdRng::seed_from_u64(seed());
    let beside = seen.reads();
    while seen.reads() < 100_000 {
        seen.look(&mut client, &mut rng)?;
    }
    eprintln!("reads {:?}", t0.elapsed());
    seen.look_at_all(&mut client)?;
    eprintln!("all {:?}", t0.elapsed());
    ensure!(looks > 4, "{looks} looks");
    ensure!(beside > 1000, "{beside} reads beside the load");
    eprintln!("{looks} looks, {beside} reads, {} rows", seen.rows());
    ensure!(seen.rows() > 1000, "{} rows", seen.rows());
    nothing_crashed(&cluster.log()).context("in the log")
}
