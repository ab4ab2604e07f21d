//! contrib/monitoring: real exporters scrape clusters under load, and each alert fires when the fault is brought
//! about that it is for, and no other one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    BETWEEN, DEADLINE, Figures, Program, checkout, create_bare_database, firing, has_clock, lapse,
    monitoring, pause_folding, promtool, scrape_database, settle, shared, wait_for_blocked,
    wait_for_worker,
};
use counterx_harness::{Cluster, ClusterBuilder, pause, poll_until, resume, run};
use postgres::error::SqlState;
use postgres::{Client, NoTls};

/// Nothing but the fault is wrong: there are processes for all.
fn builder(name: &str) -> ClusterBuilder {
    Cluster::builder()
        .name(name)
        .conf("max_worker_processes", "64")
        .conf("counterx.max_workers", "32")
        .conf("counterx.max_committers", "8")
}

/// For faults of one database that others do not notice.
fn cluster() -> &'static Cluster {
    shared(|| builder("monitoring").start())
}

/// A database where something was counted and folded.
fn database(cluster: &Cluster, name: &str) -> Result<Client> {
    let mut client = create_bare_database(cluster, name)?;
    client.batch_execute("SELECT counter_incr('before')")?;
    settle(&mut client)?;
    Ok(client)
}

/// Scrapes a fault twice, and asks which alerts fire when it has lasted for so many minutes.
fn lasting(cluster: &Cluster, db: &str, minutes: u32, alerts: &[&str]) -> Result<()> {
    lasting_with(cluster, db, minutes, alerts, || Ok(()))
}

/// The same, with something that goes on: it happens between the two scrapes.
fn lasting_with(
    cluster: &Cluster,
    db: &str,
    minutes: u32,
    alerts: &[&str],
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let exporter = scrape_database(cluster, db)?;
    let first = exporter.scrape()?;
    meanwhile()?;
    // What is measured is what time does to the figures.
    thread::sleep(BETWEEN);
    let second = exporter.scrape()?;
    firing(cluster, &lapse(&first, &second, minutes)?, minutes, alerts)
        .with_context(|| exporter.log())
}

/// The metrics of the source, each with its kind.
fn metrics() -> Result<BTreeMap<String, String>> {
    let output = run(Command::new(checkout().join("scripts/monitoring")).arg("--list"))?;
    let text = String::from_utf8(output.stdout)?;
    let metrics = text.lines().filter_map(|line| line.split_once(' '));
    Ok(metrics
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect())
}

#[test]
fn definitions_are_what_the_source_says() -> Result<()> {
    run(Command::new(checkout().join("scripts/monitoring")).arg("--check"))?;
    Ok(())
}

#[test]
fn rules_are_sound_and_fire_in_promtools_tests() -> Result<()> {
    let rules = monitoring("alerts.yaml")?;
    let said = promtool(&[
        "check",
        "rules",
        "--lint-fatal",
        &rules.display().to_string(),
    ])?;
    ensure!(said.contains("30 rules found"), "{said}");
    promtool(&[
        "test",
        "rules",
        &monitoring("alerts.test.yaml")?.display().to_string(),
    ])?;
    Ok(())
}

/// The names of all alerts.
fn alerts() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(monitoring("alerts.yaml")?)?;
    let names = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    Ok(names.map(str::to_owned).collect())
}

/// Every alert has a symptom in the run book, in the section that it names, and the run book names no other one.
#[test]
fn each_alert_has_its_place_in_the_run_book() -> Result<()> {
    let page = fs::read_to_string(checkout().join("docs/operations.md"))?;
    let known = alerts()?;
    let rules = fs::read_to_string(monitoring("alerts.yaml")?)?;
    let tests = fs::read_to_string(monitoring("alerts.test.yaml")?)?;
    let mut placed = BTreeSet::new();
    let mut section = String::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.to_lowercase().replace(' ', "-");
        }
        for word in line.split('`').filter(|word| word.starts_with("Counterx")) {
            // What a session waits for has such names too.
            if ["CounterxRoom", "CounterxMain", "CounterxFold"].contains(&word)
                || word.starts_with("CounterxHit") && !known.contains(word)
            {
                continue;
            }
            ensure!(known.contains(word), "no alert is called {word}");
            let rule = rules
                .split("- alert: ")
                .find(|rule| rule.split_whitespace().next() == Some(word))
                .context("no rule")?;
            if line.starts_with('|') {
                let link = format!("docs/operations.md#{section}\n");
                ensure!(rule.contains(&link), "{word} does not lead to {section}");
                placed.insert(word.to_owned());
            }
        }
    }
    ensure!(placed == known, "{:?}", known.difference(&placed));
    for name in &known {
        ensure!(tests.contains(name), "{name} has no test with promtool");
    }
    Ok(())
}

/// A bit of everything.
fn use_all(client: &mut Client) -> Result<()> {
    client.batch_execute(
        "SELECT counter_type_create('stock', min => 0);
         SELECT counter_history('likes');
         CREATE TABLE task (id int PRIMARY KEY, status text);
         SELECT counter_track('task', 'tasks', '{status}')",
    )?;
    client.batch_execute("SELECT counter_track_wait('task', '1 min')")?;
    client.batch_execute("SELECT counter_stream_create('likes', 'likes:')")?;
    client.batch_execute("SELECT * FROM counter_stream_bootstrap('likes')")?;
    client.batch_execute("SELECT counter_incr('stock:a', 100)")?;
    client.batch_execute("INSERT INTO task VALUES (1, 'open')")?;
    for _ in 0..20 {
        client.batch_execute("SELECT counter_incr('likes:1'), counter_hit('likes:2')")?;
    }
    client.batch_execute("SELECT counter_incr_once('once', 'likes:1', 1)")?;
    client.batch_execute("SELECT counter_hold('stock:a', 5, '1 hour')")?;
    Ok(())
}

/// All that the source names is there, once, and is a number.
fn is_complete(figures: &Figures, metrics: &BTreeMap<String, String>) -> Result<()> {
    for metric in metrics.keys() {
        let values: Vec<f64> = figures.of(metric).collect();
        let expected = if metric.starts_with("counterx_lane_") {
            8
        } else {
            1
        };
        ensure!(values.len() == expected, "{metric}: {values:?}");
        ensure!(values.iter().all(|v| v.is_finite()), "{metric}: {values:?}");
    }
    for series in figures.series.keys() {
        let name = series.split('{').next().unwrap_or_default();
        ensure!(metrics.contains_key(name), "{series} is not in the source");
    }
    Ok(())
}

#[test]
fn exporter_scrapes_all_of_a_cluster_under_load() -> Result<()> {
    let cluster = builder("scraped").start()?;
    let mut client = database(&cluster, "scraped")?;
    use_all(&mut client)?;
    let metrics = metrics()?;
    let exporter = scrape_database(&cluster, "scraped")?;
    let first = exporter.scrape()?;
    let counting = |number: u32| -> Result<()> {
        let mut client = cluster.config("scraped").connect(NoTls)?;
        for n in 0..300 {
            client.batch_execute(&format!(
                "SELECT counter_incr('likes:{}', 2), counter_try_incr('stock:a', -1)",
                (n * number) % 50
            ))?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (1..=4).map(|n| scope.spawn(move || counting(n))).collect();
        while clients.iter().any(|client| !client.is_finished()) {
            is_complete(&exporter.scrape()?, &metrics)?;
        }
        for client in clients {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    settle(&mut client)?;
    // Sessions report what they have counted at the ends of their transactions, and those are over.
    let last = exporter.scrape()?;
    let counted = last.value("counterx_stat_increments_total")?
        - first.value("counterx_stat_increments_total")?;
    ensure!(counted >= 1200.0, "{counted} increments");
    ensure!(last.value("counterx_stat_refused_total")? >= 1000.0);
    ensure!(last.value("counterx_stat_tokens_used_total")? == 1.0);
    ensure!(last.value("counterx_stat_hits_batched_total")? >= 20.0);
    ensure!(last.value("counterx_pending_deltas")? < 100.0);
    for (name, kind) in &metrics {
        if kind == "counter" {
            let mut pairs = first.of(name).zip(last.of(name));
            ensure!(pairs.all(|(before, after)| before <= after), "{name} falls");
        }
    }
    ensure!(
        exporter
            .get("/metrics")?
            .contains("pg_exporter_last_scrape_error 0")
    );
    // Nothing is wrong, and stays so.
    let still = (last.series.iter()).map(|(name, value)| (name.clone(), format!("{value}x180")));
    firing(&cluster, &still.collect(), 180, &[])
}

/// Without preloading there are no cumulative figures, and none is made up.
#[test]
fn exporter_leaves_out_what_is_not_known_without_preloading() -> Result<()> {
    let cluster = builder("not-preloaded").preload(false).start()?;
    database(&cluster, "plain")?;
    let figures = scrape_database(&cluster, "plain")?.scrape()?;
    ensure!(figures.value("counterx_preloaded")? == 0.0);
    ensure!(figures.value("counterx_log_bytes")? > 0.0);
    let values: Vec<_> = figures
        .series
        .iter()
        .filter(|(_, v)| !v.is_finite())
        .collect();
    ensure!(values.is_empty(), "{values:?}");
    for name in figures.series.keys() {
        let unknown = ["counterx_stat_", "counterx_hit_", "counterx_escrow_"];
        ensure!(
            !unknown.iter().any(|start| name.starts_with(start)),
            "{name}"
        );
    }
    Ok(())
}

/// sql_exporter has the same metrics; as the README relabels them, under the same names.
#[test]
fn prometheus_takes_both_exporters_and_draws_the_dashboard() -> Result<()> {
    let cluster = builder("prometheus").start()?;
    let mut client = database(&cluster, "shop")?;
    use_all(&mut client)?;
    let postgres_exporter = scrape_database(&cluster, "shop")?;
    let jobs = fs::read_to_string(monitoring("sql_exporter.yaml")?)?;
    let address = "postgres://counterx_exporter@localhost/shop?sslmode=disable";
    ensure!(
        jobs.contains(address),
        "sql_exporter.yaml connects elsewhere"
    );
    let jobs = jobs
        .replace(
            address,
            &format!(
                "postgres://counterx_exporter@/shop?host={}&port={}&sslmode=disable",
                cluster.socket_dir().display(),
                cluster.port()
            ),
        )
        .replace("interval: \"15s\"", "interval: \"1s\"");
    let config = cluster.directory().join("sql_exporter.yaml");
    fs::write(&config, jobs)?;
    let sql_exporter = Program::start(&cluster, "prometheus-sql-exporter", |command, port| {
        command
            .args(["-config.file", &config.display().to_string()])
            .args(["-web.listen-address", &format!("127.0.0.1:{port}")]);
    })?;

    // As the README says, but for the addresses and the intervals.
    let readme = fs::read_to_string(monitoring("README.md")?)?;
    let scrapes = readme
        .split("```yaml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .find(|block| block.contains("scrape_configs:"))
        .context("no configuration in the README")?;
    ensure!(scrapes.contains("localhost:9187") && scrapes.contains("localhost:9237"));
    // It stands in a list.
    let scrapes = scrapes
        .replace("\n   ", "\n")
        .trim_start()
        .replace("localhost:9187", &postgres_exporter.address())
        .replace("localhost:9237", &sql_exporter.address())
        .replace(
            "/etc/prometheus/counterx-alerts.yaml",
            &monitoring("alerts.yaml")?.display().to_string(),
        );
    let config = cluster.directory().join("prometheus.yaml");
    fs::write(
        &config,
        format!("global: {{scrape_interval: 5s, evaluation_interval: 1s}}\n{scrapes}"),
    )?;
    let data = cluster.directory().join("prometheus");
    promtool(&["check", "config", &config.display().to_string()])?;
    let prometheus = Program::start(&cluster, "prometheus", |command, port| {
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    })?;

    poll_until("Prometheus to be ready", DEADLINE, || {
        Ok(prometheus.get("/-/ready").is_ok())
    })?;
    // The server reads JSON.
    let ask = |client: &mut Client, path: &str, sql: &str| -> Result<Vec<String>> {
        let answer = prometheus.get(path)?;
        let rows = client.query(&format!("SELECT x::text FROM ({sql}) q(x)"), &[&answer])?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    let of_job = |client: &mut Client, job: &str| -> Result<BTreeSet<String>> {
        let path =
            format!("/api/v1/query?query=%7Bjob%3D%22{job}%22%2C__name__%3D~%22counterx.*%22%7D");
        let sql =
            "SELECT jsonb_path_query($1::text::jsonb, '$.data.result[*].metric.__name__') #>> '{}'";
        Ok(ask(client, &path, sql)?.into_iter().collect())
    };
    let expected: BTreeSet<String> = metrics()?.into_keys().collect();
    poll_until("both exporters to be scraped", DEADLINE, || {
        Ok(of_job(&mut client, "counterx")? == expected
            && of_job(&mut client, "counterx_sql")? == expected)
    })
    .with_context(|| format!("{:?}", of_job(&mut client, "counterx_sql")))?;

    poll_until("all rules to be evaluated", DEADLINE, || {
        let sql =
            "SELECT jsonb_path_query($1::text::jsonb, '$.data.groups[*].rules[*]') ->> 'health'";
        let health = ask(&mut client, "/api/v1/rules", sql)?;
        ensure!(health.iter().all(|health| health != "err"), "a rule fails");
        Ok(health.len() == alerts()?.len() && health.iter().all(|health| health == "ok"))
    })?;

    // Each panel of the dashboard shows something.
    let dashboard = fs::read_to_string(monitoring("dashboard.json")?)?;
    let queries: Vec<String> = client
        .query(
            "SELECT DISTINCT jsonb_path_query($1::text::jsonb, 'strict $.panels[*].**.expr') #>> '{}'",
            &[&dashboard],
        )?
        .iter()
        .map(|row| row.get(0))
        .collect();
    ensure!(queries.len() > 20, "{queries:?}");
    for query in &queries {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with("counterx_")) {
            ensure!(expected.contains(word), "{word} in {query}");
        }
        let asked = query
            .replace("$datname", "shop")
            .replace("$instance", ".+")
            .replace("$__rate_interval", "30s");
        ensure!(
            !asked.contains('$'),
            "a variable that is not known: {query}"
        );
        let path = format!("/api/v1/query?query={}", percent(&asked));
        let sql = "SELECT jsonb_path_query($1::text::jsonb, '$.data.result[*].value[1]')";
        poll_until(&format!("values of {query}"), DEADLINE, || {
            Ok(!ask(&mut client, &path, sql)?.is_empty())
        })?;
    }
    // What one can choose from.
    let sql = "SELECT jsonb_path_exists($1::text::jsonb, '$.templating.list[*] ? (@.query starts with \"label_values(counterx_workers\" && @.name == \"datname\")')";
    ensure!(client.query_one(sql, &[&dashboard])?.get::<_, bool>(0));

    // sql_exporter shows old figures where it gets no new ones, and that can be seen.
    let asked_at = |client: &mut Client| -> Result<String> {
        let path = format!(
            "/api/v1/query?query={}",
            percent("counterx_asked_at_seconds{job=\"counterx_sql\"}")
        );
        let sql = "SELECT jsonb_path_query($1::text::jsonb, '$.data.result[*].value[1]') #>> '{}'";
        let mut values = ask(client, &path, sql)?;
        ensure!(values.len() == 1, "{values:?}");
        values.pop().context("no value")
    };
    let first = asked_at(&mut client)?;
    poll_until("the exporter to ask again", DEADLINE, || {
        Ok(asked_at(&mut client)? != first)
    })?;
    client.batch_execute("DROP EXTENSION counterx CASCADE")?;
    let mut last = asked_at(&mut client)?;
    poll_until("the exporter to fail", DEADLINE, || {
        let before = std::mem::replace(&mut last, asked_at(&mut client)?);
        // As long as between two scrapes of Prometheus, and some more.
        thread::sleep(Duration::from_secs(6));
        Ok(before == last)
    })?;
    ensure!(last != first);
    Ok(())
}

/// For an address.
fn percent(text: &str) -> String {
    let byte = |byte: &u8| format!("%{byte:02X}");
    text.as_bytes().iter().map(byte).collect()
}

#[test]
fn figures_that_are_missing_are_noticed() -> Result<()> {
    let mut client = database(cluster(), "missing")?;
    client.batch_execute("DROP EXTENSION counterx")?;
    lasting(cluster(), "missing", 30, &["FiguresMissing"])
}

#[test]
fn update_that_is_incomplete_is_noticed() -> Result<()> {
    let mut client = database(cluster(), "incomplete")?;
    // As if the files had been replaced.
    client
        .batch_execute("UPDATE pg_extension SET extversion = '0.1.0' WHERE extname = 'counterx'")?;
    let fires = ["UpdateIncomplete", "FiguresMissing"];
    lasting(cluster(), "incomplete", 60, &fires)
}

/// Objects of 0.1.0 lack what most queries call.
#[test]
fn update_that_was_forgotten_is_noticed() -> Result<()> {
    let cluster = cluster();
    cluster.psql("postgres", "CREATE DATABASE forgotten")?;
    let mut client = cluster.connect_db("forgotten")?;
    client.batch_execute("CREATE EXTENSION counterx VERSION '0.1.0'")?;
    let fires = ["UpdateIncomplete", "FiguresMissing"];
    lasting(cluster, "forgotten", 60, &fires)
}

#[test]
fn folding_that_is_paused_is_noticed() -> Result<()> {
    let mut client = database(cluster(), "paused")?;
    pause_folding(&mut client, "paused")?;
    client.batch_execute("SELECT counter_incr('more')")?;
    lasting(cluster(), "paused", 60, &["FoldingPaused"])?;
    client.batch_execute("ALTER DATABASE paused RESET counterx.compaction")?;
    settle(&mut client)?;
    lasting(cluster(), "paused", 60, &[])
}

#[test]
fn writer_that_stays_open_is_noticed() -> Result<()> {
    let mut client = database(cluster(), "writer")?;
    client.batch_execute(
        "SET counterx.pending_work_mem = '64kB'; BEGIN;
         SELECT count(counter_incr('early:' || n)) FROM generate_series(1, 5000) n",
    )?;
    lasting(cluster(), "writer", 60, &["WriterOpen"])?;
    client.batch_execute("COMMIT")?;
    settle(&mut client)?;
    lasting(cluster(), "writer", 60, &[])
}

#[test]
fn folds_that_fail_and_back_pressure_are_noticed() -> Result<()> {
    let mut client = database(cluster(), "failing")?;
    client.batch_execute(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
         CREATE TRIGGER ours AFTER INSERT ON counterx.total FOR EACH STATEMENT EXECUTE FUNCTION nothing()",
    )?;
    client.batch_execute(
        "SELECT count(counter_incr('more:' || n)) FROM generate_series(1, 1000) n",
    )?;
    let failing = "SELECT count(*) = 8 FROM counterx.fold_status() WHERE last_error_at > last_fold_at OR last_fold_at IS NULL";
    poll_until("folds to fail", DEADLINE, || {
        Ok(client.query_one(failing, &[])?.get(0))
    })?;
    lasting(cluster(), "failing", 30, &["FoldsFail"])?;
    client.batch_execute(
        "ALTER DATABASE failing SET counterx.max_pending = 10;
         ALTER DATABASE failing SET counterx.max_pending_action = 'wait';
         ALTER DATABASE failing SET counterx.max_pending_wait = '50ms'",
    )?;
    lasting_with(
        cluster(),
        "failing",
        30,
        &["FoldsFail", "BackPressure"],
        || {
            let mut waiting = cluster().connect_db("failing")?;
            let refused = waiting.batch_execute("SELECT counter_incr('more:1')");
            let code = refused.err().and_then(|error| error.code().cloned());
            ensure!(
                code == Some(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
                "{code:?}"
            );
            Ok(())
        },
    )?;
    client.batch_execute("DROP TRIGGER ours ON counterx.total")?;
    settle(&mut client)?;
    lasting(cluster(), "failing", 60, &[])
}

#[test]
fn logs_that_an_old_snapshot_keeps_are_noticed() -> Result<()> {
    let cluster = builder("old-snapshot")
        .conf("counterx.log_max_size", "64kB")
        .conf("counterx.compaction_interval", "50ms")
        .start()?;
    let mut client = database(&cluster, "old")?;
    let mut old = cluster.connect_db("old")?;
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")?;
    let count = "SELECT count(counter_incr('many:' || n)) FROM generate_series(1, 5000) n";
    poll_until("logs to grow", DEADLINE, || {
        client.batch_execute(count)?;
        settle(&mut client)?;
        let sql = "SELECT log_bytes > 20 * 65536 FROM counterx.stat";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    lasting(&cluster, "old", 60, &["LogsNotEmptied"])?;
    old.batch_execute("COMMIT")?;
    poll_until("logs to be emptied", DEADLINE, || {
        client.batch_execute("SELECT counter_incr('many:1')")?;
        let sql = "SELECT log_bytes < 20 * 65536 FROM counterx.stat";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    settle(&mut client)?;
    lasting(&cluster, "old", 60, &[])
}

#[test]
fn sessions_that_wait_are_noticed() -> Result<()> {
    let mut client = database(cluster(), "waiting")?;
    client.batch_execute("BEGIN; SELECT counter_set('likes', 1)")?;
    let mut waiter = cluster().connect_db("waiting")?;
    let pid: i32 = waiter.query_one("SELECT pg_backend_pid()", &[])?.get(0);
    thread::scope(|scope| {
        let waiting = scope.spawn(move || waiter.batch_execute("SELECT counter_set('likes', 2)"));
        let mut observer = cluster().connect_db("waiting")?;
        let seen = wait_for_blocked(&mut observer, "a session", pid)
            .and_then(|()| lasting(cluster(), "waiting", 30, &["LockWaits"]));
        client.batch_execute("COMMIT")?;
        waiting.join().map_err(|_| anyhow!("it panicked"))??;
        seen
    })?;
    client.batch_execute("BEGIN; SELECT counter_incr('likes'); PREPARE TRANSACTION 'monitored'")?;
    let seen = lasting(cluster(), "waiting", 90, &["PreparedOpen"]);
    client.batch_execute("ROLLBACK PREPARED 'monitored'")?;
    seen
}

#[test]
fn tracks_that_are_not_exact_are_noticed() -> Result<()> {
    let mut client = database(cluster(), "tracks")?;
    client.batch_execute(
        "CREATE TABLE share (a int); INSERT INTO share VALUES (0);
         CREATE TABLE used (a int); INSERT INTO used VALUES (0)",
    )?;
    client.batch_execute("SELECT counter_track('share', 'shares', '{(10 / a)}')")?;
    let failing = "SELECT last_error IS NOT NULL FROM counter_tracks WHERE type = 'shares'";
    poll_until("the track to fail", DEADLINE, || {
        Ok(client.query_one(failing, &[])?.get(0))
    })?;
    lasting(cluster(), "tracks", 60, &["TrackFails"])?;
    client.batch_execute("SELECT counter_untrack('share')")?;

    client.batch_execute(
        "CREATE FUNCTION key_of(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1'",
    )?;
    client.batch_execute("SELECT counter_track('used', 'uses', '{key_of(a)}')")?;
    client.batch_execute("SELECT counter_track_wait('used', '1 min')")?;
    let mut user = cluster().connect_db("tracks")?;
    user.batch_execute("BEGIN; INSERT INTO used VALUES (1)")?;
    client.batch_execute(
        "CREATE OR REPLACE FUNCTION key_of(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'",
    )?;
    let waits = "SELECT waiting_for IS NOT NULL FROM counter_tracks WHERE type = 'uses'";
    poll_until("the track to wait", DEADLINE, || {
        Ok(client.query_one(waits, &[])?.get(0))
    })?;
    lasting(cluster(), "tracks", 60, &["TrackWaits"])?;
    user.batch_execute("COMMIT")?;
    client.batch_execute("SELECT counter_track_wait('used', '1 min')")?;
    settle(&mut client)?;
    lasting(cluster(), "tracks", 60, &[])
}

#[test]
fn history_that_is_not_sealed_is_noticed() -> Result<()> {
    let mut client = database(cluster(), "unsealed")?;
    client.batch_execute("SELECT counter_history('likes'); SELECT counter_incr('likes:1')")?;
    client.batch_execute("SELECT counter_seal()")?;
    pause_folding(&mut client, "unsealed")?;
    let fires = ["FoldingPaused", "HistoryBehind"];
    lasting(cluster(), "unsealed", 60, &fires)?;

    let mut client = database(cluster(), "unbegun")?;
    pause_folding(&mut client, "unbegun")?;
    client.batch_execute("SELECT counter_history('likes')")?;
    let fires = ["FoldingPaused", "HistoryNotBegun"];
    lasting(cluster(), "unbegun", 60, &fires)
}

#[test]
fn history_that_is_sealed_ahead_of_the_clock_is_noticed() -> Result<()> {
    let cluster = builder("clock").start()?;
    let mut client = database(&cluster, "ahead")?;
    if !has_clock(&mut client)? {
        return Ok(());
    }
    client.batch_execute("SELECT counter_history('likes'); SELECT counter_incr('likes:1')")?;
    client.batch_execute("SET counterx.clock_ahead = 10800; SELECT counter_seal()")?;
    lasting(&cluster, "ahead", 60, &["HistoryAhead"])
}

#[test]
fn consumers_that_do_not_come_are_noticed() -> Result<()> {
    let mut client = database(cluster(), "unread")?;
    client.batch_execute("SELECT counter_stream_create('page', 'likes:', keep => '20 min')")?;
    client.batch_execute("SELECT * FROM counter_stream_bootstrap('page')")?;
    lasting(cluster(), "unread", 60, &[])?;
    client.batch_execute("SELECT counter_incr('likes:1')")?;
    settle(&mut client)?;
    lasting(cluster(), "unread", 18, &["StreamLags"])?;
    client.batch_execute("SELECT * FROM counter_stream_next('page')")?;
    lasting(cluster(), "unread", 60, &[])?;

    client.batch_execute("SELECT counter_stream_create('gone', 'views:', keep => '1 s')")?;
    client.batch_execute("SELECT * FROM counter_stream_bootstrap('gone')")?;
    client.batch_execute("SELECT counter_incr('views:1')")?;
    poll_until("the stream to be lost", DEADLINE, || {
        let sql = "SELECT state = 'lost' FROM counter_streams WHERE stream = 'gone'";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    lasting(cluster(), "unread", 60, &["StreamLost"])?;
    client.batch_execute("SELECT * FROM counter_stream_bootstrap('gone')")?;
    lasting(cluster(), "unread", 60, &[])
}

#[test]
fn tokens_and_holds_that_stay_are_noticed() -> Result<()> {
    let cluster = builder("upkeep")
        .conf("counterx.compaction", "off")
        .conf("counterx.token_ttl", "1s")
        .start()?;
    let mut client = create_bare_database(&cluster, "upkeep")?;
    client.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    client.batch_execute("SELECT counter_incr_once('token', 'stock:a', 10)")?;
    client.batch_execute("SELECT counter_hold('stock:a', 1, '1 s')")?;
    client.batch_execute("SELECT counter_hold('stock:a', 1, '60 days')")?;
    poll_until("a hold to expire", DEADLINE, || {
        let sql = "SELECT bool_or(expired) FROM counter_holds";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    let fires = [
        "FoldingPaused",
        "HoldLasts",
        "HoldsNotRemoved",
        "TokensNotRemoved",
    ];
    lasting(&cluster, "upkeep", 27 * 60, &fires)?;
    client.batch_execute("CALL counterx.compact_in_steps()")?;
    let fires = ["FoldingPaused", "HoldLasts", "HoldsNotRemoved"];
    lasting(&cluster, "upkeep", 27 * 60, &fires)
}

#[test]
fn want_of_processes_is_noticed() -> Result<()> {
    // Those of the launcher and of the server's own.
    let cluster = Cluster::builder()
        .name("no-slots")
        .conf("max_worker_processes", "2")
        .start()?;
    let mut client = create_bare_database(&cluster, "unfolded")?;
    client.batch_execute("SELECT counter_incr('likes')")?;
    let refuse = || -> Result<()> {
        let mut hitting = cluster.connect_db("unfolded")?;
        let refused = hitting.batch_execute("SELECT counter_hit('likes')");
        let code = refused.err().and_then(|error| error.code().cloned());
        ensure!(
            code == Some(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
            "{code:?}"
        );
        Ok(())
    };
    lasting(&cluster, "unfolded", 60, &["NoWorker"])?;
    lasting_with(
        &cluster,
        "unfolded",
        60,
        &["HitsRefused", "NoWorker"],
        refuse,
    )?;
    client.batch_execute("SELECT counterx.compact()")?;
    lasting(&cluster, "unfolded", 60, &[])?;
    client.batch_execute("CREATE TABLE task (status text); INSERT INTO task VALUES ('open')")?;
    client.batch_execute("SELECT counter_track('task', 'tasks', '{status}')")?;
    lasting(&cluster, "unfolded", 60, &["TrackStale"])
}

/// A process that is stopped, until this goes.
struct Stopped(i32);

impl Stopped {
    fn stop(pid: i32) -> Result<Self> {
        pause(pid)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may be gone.
        let _ = resume(self.0);
    }
}

#[test]
fn worker_and_committer_that_do_nothing_are_noticed() -> Result<()> {
    let cluster = builder("stopped")
        .conf("counterx.hit_queue_size", "16")
        .start()?;
    let mut client = database(&cluster, "stopped")?;
    let worker = Stopped::stop(wait_for_worker(&mut client, "stopped")?)?;
    let more = |from: i32| {
        format!(
            "SELECT count(counter_incr('many:' || n)) FROM generate_series({from}, {from} + 99999) n"
        )
    };
    client.batch_execute(&more(1))?;
    client.batch_execute(&more(100_001))?;
    lasting(&cluster, "stopped", 60, &["FoldingBehind"])?;
    let fires = ["BacklogGrows", "FoldingBehind"];
    lasting_with(&cluster, "stopped", 60, &fires, || {
        Ok(client.batch_execute(&more(200_001))?)
    })?;
    drop(worker);
    settle(&mut client)?;
    lasting(&cluster, "stopped", 60, &[])?;

    client.batch_execute("SELECT counter_hit('likes')")?;
    let committer = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'counterx committer'";
    let committer = Stopped::stop(client.query_one(committer, &[])?.get(0))?;
    client.batch_execute("SELECT counter_hit('likes', 1, false)")?;
    lasting(&cluster, "stopped", 60, &["HitsStuck"])?;
    // Three quarters of the queue, as much as hits that nobody waits for may take.
    for _ in 0..11 {
        client.batch_execute("SELECT counter_hit('likes', 1, false)")?;
    }
    lasting(&cluster, "stopped", 60, &["HitQueueFull", "HitsStuck"])?;
    drop(committer);
    poll_until("hits to be counted", DEADLINE, || {
        let sql = "SELECT hits_waiting = 0 FROM counterx.stat";
        Ok(client.query_one(sql, &[])?.get(0))
    })?;
    settle(&mut client)?;
    lasting(&cluster, "stopped", 60, &[])
}

#[test]
fn bounded_counters_without_room_are_noticed() -> Result<()> {
    let cluster = builder("escrow")
        .conf("counterx.escrow_entries", "16")
        .start()?;
    let mut client = database(&cluster, "escrow")?;
    client.batch_execute("SELECT counter_type_create('stock', min => 0)")?;
    client.batch_execute("BEGIN; SELECT counter_incr('stock:0', 5)")?;
    lasting(&cluster, "escrow", 60, &["ReservationsHeld"])?;
    client.batch_execute("SELECT counter_incr('stock:' || n, 5) FROM generate_series(1, 15) n")?;
    lasting(&cluster, "escrow", 60, &["EscrowFull", "ReservationsHeld"])?;
    let mut other = cluster.connect_db("escrow")?;
    let full = other.batch_execute("SELECT counter_incr('stock:16', 5)");
    let code = full.err().and_then(|error| error.code().cloned());
    ensure!(
        code == Some(SqlState::CONFIGURATION_LIMIT_EXCEEDED),
        "{code:?}"
    );
    client.batch_execute("ROLLBACK")?;
    settle(&mut client)?;
    lasting(&cluster, "escrow", 60, &[])?;
    let used: i64 = client
        .query_one("SELECT used FROM counterx.escrow_status()", &[])?
        .get(0);
    ensure!(used == 0, "{used} are in use");
    Ok(())
}

/// A series as it was scraped again and again, a scrape for each minute.
fn recorded(scrapes: &[Figures]) -> BTreeMap<String, String> {
    let mut series: BTreeMap<String, String> = BTreeMap::new();
    for figures in scrapes {
        for (name, value) in &figures.series {
            let values = series.entry(name.clone()).or_default();
            values.push_str(&format!("{value} "));
        }
    }
    series
}

#[test]
fn databases_that_take_turns_are_noticed() -> Result<()> {
    let cluster = Cluster::builder()
        .name("turns-noticed")
        .conf("max_worker_processes", "32")
        .conf("counterx.max_workers", "1")
        .start()?;
    let names = ["turn_a", "turn_b", "turn_c", "turn_d"];
    let mut clients = Vec::new();
    for name in names {
        clients.push(create_bare_database(&cluster, name)?);
    }
    let exporter = scrape_database(&cluster, names[0])?;
    let mut scrapes: Vec<Figures> = Vec::new();
    let mut last = Instant::now();
    let over = AtomicBool::new(false);
    // All count without an end: else there is nothing to be folded when a worker has just been there.
    let count = |mut client: Client| -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            client.batch_execute(
                "SELECT count(counter_incr('likes:' || n)) FROM generate_series(1, 20) n",
            )?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    };
    let seen = thread::scope(|scope| {
        let counting: Vec<_> = (clients.into_iter())
            .map(|client| scope.spawn(|| count(client)))
            .collect();
        // How the turns and the scrapes fall is chance, and so it is looked at as long as need be. A turn takes a
        // second or so, and a real scrape comes at any moment of it.
        let seen = poll_until("the alert", 4 * DEADLINE, || {
            if last.elapsed() < Duration::from_millis(700) {
                return Ok(false);
            }
            last = Instant::now();
            scrapes.push(exporter.scrape()?);
            let enough = scrapes.len().checked_sub(40);
            Ok(enough.is_some_and(|first| {
                let series = recorded(&scrapes[first..]);
                firing(&cluster, &series, 39, &["WorkersTakeTurns"]).is_ok()
            }))
        });
        over.store(true, Ordering::Relaxed);
        for client in counting {
            client.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        seen
    });
    seen.with_context(|| format!("{:?}", recorded(&scrapes)))
}

/// A small file system, until this goes.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Only root may mount.
#[test]
fn disk_that_is_full_is_noticed() -> Result<()> {
    let mut cluster = builder("full").start()?;
    let directory = cluster.make_dir("small")?;
    let mounting = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs"])
        .arg(&directory)
        .output();
    if !mounting.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a file system cannot be mounted here");
        return Ok(());
    }
    let mounted = Mounted(directory.clone());
    let seen = full_disk(&cluster, &directory);
    // Its files are in the way of the file system's end.
    cluster.stop(counterx_harness::StopMode::Immediate)?;
    drop(mounted);
    seen
}

fn full_disk(cluster: &Cluster, directory: &std::path::Path) -> Result<()> {
    let mut client = database(cluster, "no_room")?;
    let place = directory.join("space");
    let mut command = Command::new("mkdir");
    cluster.set_user(&mut command);
    run(command.arg(&place))?;
    client.batch_execute(&format!(
        "CREATE TABLESPACE small LOCATION '{}'",
        place.display()
    ))?;
    client.batch_execute("ALTER TABLE counterx.total SET TABLESPACE small")?;
    let filler = directory.join("filler");
    // dd ends with an error: there is no more room.
    let filled = Command::new("dd")
        .args(["if=/dev/zero", "bs=4k"])
        .arg(format!("of={}", filler.display()))
        .output()?;
    ensure!(!filled.status.success(), "the disk is not full");
    client.batch_execute(
        "SELECT count(counter_incr('many:' || n)) FROM generate_series(1, 20000) n",
    )?;
    let failing = "SELECT count(*) > 0 FROM counterx.fold_status() WHERE last_error LIKE '53100:%'";
    poll_until("folds to fail", DEADLINE, || {
        Ok(client.query_one(failing, &[])?.get(0))
    })?;
    lasting(cluster, "no_room", 30, &["DiskFull"])?;
    // With room again, folding goes on by itself.
    fs::remove_file(&filler)?;
    settle(&mut client)?;
    lasting(cluster, "no_room", 30, &[])
}
