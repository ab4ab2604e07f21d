//! Transactions that have counted and do not end: idle, prepared and left, or so big that they have
//! written early.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use counterx_harness::poll_until;
use postgres::Client;

use super::field::{
    Course, Field, READS, check_pages, page_counts, recovered, report_windows, settled,
};
use super::old::log_bytes;
use crate::measure::float;
use crate::options::Options;
use crate::report::{PartReport, Unit};

/// What the transaction that does not end adds to a hot counter.
const KEPT: i64 = 1_000_000;

fn course(options: &Options) -> Course {
    Course {
        windows: 4,
        folds: options.size(60, 10_000),
        transactions: i64::MAX,
        at_most: Duration::from_secs(options.size(20, 60)),
    }
}

pub(super) fn run(field: &Field, options: &Options, report: &mut PartReport) {
    report.step("a writer that is idle in its transaction", |report| {
        // The row makes it hold back the horizon of what can be vacuumed, as any writer does.
        let begin = |client: &mut Client, name: &str| {
            Ok(client.batch_execute(&format!(
                "BEGIN; INSERT INTO oracle VALUES ('idle', 0); SELECT counter_incr('{name}', {KEPT})"
            ))?)
        };
        let end = |client: &mut Client| Ok(client.batch_execute("COMMIT")?);
        outlived(field, options, report, ("idle", "beside an idle writer"), begin, end)
    });
    report.step("a prepared transaction that was left", |report| {
        let begin = |client: &mut Client, name: &str| {
            Ok(client.batch_execute(&format!(
                "BEGIN; SELECT counter_incr('{name}', {KEPT}); PREPARE TRANSACTION 'left'"
            ))?)
        };
        let end = |client: &mut Client| Ok(client.batch_execute("COMMIT PREPARED 'left'")?);
        let who = ("prepared", "beside a prepared transaction");
        outlived(field, options, report, who, begin, end)
    });
    report.step("a long writer that has written early", |report| {
        early(field, options, report)
    });
}

/// Increments, reads and folds beside a transaction that must not be in anybody's way.
fn outlived(
    field: &Field,
    options: &Options,
    report: &mut PartReport,
    (db, who): (&str, &str),
    begin: impl Fn(&mut Client, &str) -> Result<()>,
    end: impl Fn(&mut Client) -> Result<()>,
) -> Result<()> {
    let story = field.story(db)?;
    let mut client = story.connect()?;
    let mut writer = story.connect()?;
    story.measure(Course {
        windows: 1,
        ..course(options)
    })?;
    settled(&story, &mut client)?;
    let pages_before = page_counts(&mut client)?;

    begin(&mut writer, story.hot(0))?;
    // Logs get deeper, and lists go by the index: that is so from the first thousands of folds on, and
    // bounded by the pages that are checked below. What is compared is whether it goes on.
    story.measure(Course {
        windows: 1,
        ..course(options)
    })?;
    let windows = story.measure(course(options))?;
    let folds: i64 = windows.iter().map(|window| window.folds).sum();
    report.tried(&format!("folds {who}"), u64::try_from(folds)?);
    report_windows(report, who, &windows, !options.short, None);
    // What is not committed does not count, and all else is folded.
    settled(&story, &mut client)?;
    ensure!(
        folds >= course(options).folds,
        "only {folds} folds: nothing was shown"
    );
    let slower = check_pages(&pages_before, &page_counts(&mut client)?);
    end(&mut writer)?;
    story.credit(0, KEPT);
    story.check(&mut client)?;
    recovered(&story, &mut client, log_bytes(options))?;
    drop((client, writer));
    field.drop(db)?;
    slower
}

/// It holds its lanes' epochs: nothing of what comes after is folded until it ends. Reads visit what
/// is pending of their counters, and are right.
fn early(field: &Field, options: &Options, report: &mut PartReport) -> Result<()> {
    const NAMES: i64 = 4000;
    let course = Course {
        windows: 4,
        folds: i64::MAX,
        transactions: options.size(60, 5_000),
        at_most: Duration::from_secs(options.size(20, 60)),
    };
    let who = "beside a writer that has written early";
    let story = field.story("early")?;
    let mut client = story.connect()?;
    story.measure(course)?;
    settled(&story, &mut client)?;
    let pages_before = page_counts(&mut client)?;

    let mut writer = story.connect()?;
    writer.batch_execute("SET counterx.pending_work_mem = '64kB'; BEGIN")?;
    let sql = format!("SELECT counter_incr('early:' || n) FROM generate_series(1, {NAMES}) n");
    writer.batch_execute(&sql)?;
    held(&mut client)?;
    let windows = story.measure(course)?;
    let transactions: i64 = windows.iter().map(|window| window.transactions).sum();
    report.tried(&format!("transactions {who}"), u64::try_from(transactions)?);
    story.check(&mut client)?;
    let pages_meanwhile = page_counts(&mut client)?;
    for ((read, before), meanwhile) in READS.iter().zip(pages_before).zip(pages_meanwhile) {
        let what = format!("pages that {} visits, {who}", read.what);
        report.figure(&what, float(meanwhile), Unit::Count);
        // All nine hot counters are pending; a counter's reads visit its own deltas alone.
        let may = match read.what {
            "counter_value of a cold counter" => 0,
            "counter_value of a hot counter" => 2 * transactions,
            _ => 2 * 9 * transactions + NAMES,
        };
        let ok = meanwhile <= before + may + 100;
        ensure!(ok, "{what}: {meanwhile}, and {before} before");
    }
    for (place, read) in READS.iter().enumerate() {
        let what = format!(
            "{}, median, {who}, with {transactions} deltas of it",
            read.what
        );
        let last = windows.last().context("no window")?;
        report.figure(&what, last.reads[place].p50(), Unit::Milliseconds);
    }

    let started = Instant::now();
    writer.batch_execute("COMMIT")?;
    story.credit_other(NAMES);
    story.check(&mut client)?;
    settled(&story, &mut client)?;
    let what = "until all was folded after the early writer's end";
    report.figure(what, started.elapsed().as_secs_f64(), Unit::Seconds);
    recovered(&story, &mut client, log_bytes(options))?;
    // More counters are there now.
    let pages_after = page_counts(&mut client)?;
    let more: Vec<i64> = pages_before.iter().map(|before| before + NAMES).collect();
    check_pages(&more, &pages_after)?;
    // What looks up what it wants does not care.
    check_pages(&pages_before[..2], &pages_after[..2])?;
    drop((client, writer));
    field.drop("early")
}

/// Waits until folding waits: what was finished when the writer came is folded.
fn held(client: &mut Client) -> Result<()> {
    let sql = "SELECT sum(folded_epoch)::bigint FROM counterx.lanes";
    let mut last = -1;
    let mut same = 0;
    poll_until("folding to wait", Duration::from_secs(60), || {
        let now: i64 = client.query_one(sql, &[])?.get(0);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        Ok(same > 5)
    })
}
