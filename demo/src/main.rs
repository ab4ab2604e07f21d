//! Counts a third of a million real events through eight connections while the background worker
//! folds, then compares every counter with a plain SQL count of the same data.
//!
//! `counterx-demo` makes a cluster, fills it and leaves it running; `counterx-demo psql` opens psql
//! on it, `counterx-demo stop` removes it.

mod check;
mod events;
mod load;

use std::env;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use counterx_harness::{Cluster, LeftRunning, run_dir};

use check::Sizes;

/// Connections that count at the same time.
const CONNECTIONS: usize = 8;

/// Settings worth knowing when reading the numbers.
const SETTINGS_SQL: &str = "
    SELECT name || ' = ' || current_setting(name) FROM pg_settings
    WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'wal_level')
       OR name LIKE 'counterx.%'
    ORDER BY name";

fn main() -> ExitCode {
    let verb = env::args().skip(1).collect::<Vec<_>>().join(" ");
    let result = match verb.as_str() {
        "" => run(),
        "psql" => open_psql(),
        "stop" => stop(),
        _ => Err(anyhow::anyhow!("usage: counterx-demo [psql | stop]")),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("counterx-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn directory() -> Result<PathBuf> {
    Ok(run_dir()?.join("demo"))
}

fn run() -> Result<ExitCode> {
    let directory = directory()?;
    if let Some(earlier) = LeftRunning::find(&directory)? {
        println!("Removing the cluster of an earlier demo");
        earlier.remove()?;
    }
    println!("Creating a cluster in {}", directory.display());
    let cluster = Cluster::builder()
        .name("demo")
        .directory(&directory)
        // As a real server has it: every commit waits for the disk.
        .conf("fsync", "on")
        // Small, so that a run this short empties its logs a few times.
        .conf("counterx.log_max_size", "4MB")
        .start()?;
    let mut client = cluster.connect()?;
    client
        .batch_execute("CREATE EXTENSION counterx")
        .context("could not create the extension")?;
    let settings: Vec<String> = client
        .query(SETTINGS_SQL, &[])?
        .iter()
        .map(|row| row.get(0))
        .collect();
    println!("Settings: {}", settings.join(", "));

    let events = events::count()?;
    println!(
        "Counting {} departures through {CONNECTIONS} connections, one transaction each",
        group(events)
    );
    let load = load::run(&cluster, CONNECTIONS, events)?;
    println!(
        "{} events in {:.1} s: {} events/s, at most {} deltas pending\n",
        group(load.events),
        load.elapsed.as_secs_f64(),
        per_second(load.events, load.elapsed),
        group(load.most_pending),
    );

    println!("Loading the same file into a plain table, and counting that with SQL");
    let rows = check::load_plain_table(&mut client)?;
    if rows != events || load.events != events {
        bail!(
            "{events} events in the file, {} were counted, {rows} are in the plain table",
            load.events
        );
    }
    let before = Sizes::measure(&mut client)?;
    let comparison = check::compare(&mut client)?;
    println!("{}", comparison.table());

    let folded: i64 = client
        .query_one("SELECT counterx.compact()", &[])
        .context("could not compact")?
        .get(0);
    let after = Sizes::measure(&mut client)?;
    println!("{}", check::sizes_table(&before, &after));
    println!("counterx.compact() folded {folded} deltas that the worker had not folded yet.");
    let compacted = check::compare(&mut client)?;

    let code = verdict(comparison.differences(), compacted.differences());
    drop(client);
    cluster.leave_running();
    println!(
        "\nThe cluster is left running in {}.\n  \
         make demo-psql   opens psql on it: try SELECT * FROM counters; and SELECT * FROM counterx.lanes;\n  \
         make demo-stop   stops and removes it",
        directory.display()
    );
    Ok(code)
}

/// Says how the comparisons before and after the compaction ended.
fn verdict(before: usize, after: usize) -> ExitCode {
    if before == 0 && after == 0 {
        println!(
            "Every counter equals its SQL count, before and after compaction, through the view \
             counters and through counter_value()."
        );
        return ExitCode::SUCCESS;
    }
    println!("COUNTERS DIFFER FROM THE SQL COUNT: {before} before compaction, {after} after it.");
    ExitCode::FAILURE
}

fn open_psql() -> Result<ExitCode> {
    match LeftRunning::find(&directory()?)? {
        // Returns only when it fails: psql takes this process's place.
        Some(cluster) if cluster.is_running() => {
            Err(cluster.psql()?.exec()).context("could not run psql")
        }
        _ => bail!("no demo is running: make demo starts one"),
    }
}

fn stop() -> Result<ExitCode> {
    match LeftRunning::find(&directory()?)? {
        Some(cluster) => {
            cluster.remove()?;
            println!("The demo's cluster is stopped and removed.");
        }
        None => println!("There is no demo to stop."),
    }
    Ok(ExitCode::SUCCESS)
}

/// A number with its thousands set off.
fn group(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Events per second, for people to read.
fn per_second(events: u64, elapsed: Duration) -> String {
    let millis = elapsed.as_millis().max(1);
    let rate = u128::from(events) * 1000 / millis;
    group(u64::try_from(rate).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_off() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (336_776, "336,776"),
        ] {
            assert_eq!(group(number), text);
        }
        assert_eq!(group(1_234_567), "1,234,567");
    }

    #[test]
    fn a_rate_counts_whole_seconds_right() {
        assert_eq!(per_second(3000, Duration::from_millis(1500)), "2,000");
    }
}
