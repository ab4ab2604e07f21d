//! One REPEATABLE READ transaction that has read, and is idle from then on.

use std::time::Duration;

use anyhow::{Result, ensure};
use postgres::IsolationLevel;

use super::field::{
    Course, Field, Window, check_pages, page_counts, recovered, report_windows, settled,
};
use crate::options::Options;
use crate::report::PartReport;

fn course(options: &Options) -> Course {
    // At least 200,000 folds in all windows of the long form.
    let (windows, folds) = options.size((4, 400), (8, 26_000));
    Course {
        windows,
        folds,
        transactions: i64::MAX,
        // It bounds a failure, and a machine with other things to do.
        at_most: Duration::from_secs(options.size(20, 60)),
    }
}

pub(super) fn run(field: &Field, options: &Options, report: &mut PartReport) {
    let mut control = None;
    report.step("increments, reads and folds with nobody old", |report| {
        let windows = without(field, options, report)?;
        control = Some(windows);
        Ok(())
    });
    report.step("the same under an old snapshot", |report| {
        with(field, options, report, control.as_deref())
    });
}

fn without(field: &Field, options: &Options, report: &mut PartReport) -> Result<Vec<Window>> {
    let story = field.story("control")?;
    let mut client = story.connect()?;
    // Caches get warm.
    story.measure(Course {
        windows: 1,
        ..course(options)
    })?;
    let windows = story.measure(course(options))?;
    settled(&story, &mut client)?;
    report_windows(report, "nobody old", &windows, false, None);
    drop(client);
    field.drop("control")?;
    Ok(windows)
}

fn with(
    field: &Field,
    options: &Options,
    report: &mut PartReport,
    control: Option<&[Window]>,
) -> Result<()> {
    let story = field.story("old")?;
    let mut client = story.connect()?;
    story.measure(Course {
        windows: 1,
        ..course(options)
    })?;
    settled(&story, &mut client)?;
    story.report_space(report, "before the old snapshot")?;
    let pages_before = page_counts(&mut client)?;

    let mut old = story.connect()?;
    let mut snapshot = old
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .start()?;
    let truth = story.truth(&mut snapshot)?;
    story.check(&mut snapshot)?;
    let windows = story.measure(course(options))?;
    let folds: i64 = windows.iter().map(|window| window.folds).sum();
    let increments: i64 = windows.iter().map(|window| window.increments).sum();
    report.tried("folds under an old snapshot", u64::try_from(folds)?);
    report.tried(
        "increments under an old snapshot",
        u64::try_from(increments)?,
    );
    settled(&story, &mut client)?;
    report_windows(
        report,
        "under an old snapshot",
        &windows,
        !options.short,
        control,
    );
    story.report_space(report, "under an old snapshot")?;
    ensure!(
        folds >= course(options).folds,
        "only {folds} folds: nothing was shown"
    );
    ensure!(
        story.truth(&mut snapshot)? == truth,
        "the old snapshot's values have changed"
    );
    let pages_after = page_counts(&mut client)?;
    let slower = check_pages(&pages_before, &pages_after);
    snapshot.commit()?;
    recovered(&story, &mut client, log_bytes(options))?;
    story.report_space(report, "after the old snapshot")?;
    drop((client, old));
    field.drop("old")?;
    slower
}

/// What the logs shrink to: twice what each lane may have in one log, with its index.
pub(super) fn log_bytes(options: &Options) -> i64 {
    8 * 4 * options.size(64 << 10, 1 << 20)
}
