//! Counters that begin anew, by a clock that the test sets: calls that stall while their window ends and is removed,
//! clocks that are set back, reads of every kind beside removal, standbys, and what there is beside.
//!
//! A session's clock is the one that all go by, once it has called: the clock in shared memory never goes back. So each
//! test has a server of its own. Windows last ten minutes here, as long as no test does.

use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use counterx_cluster_tests::{
    DEADLINE, Recovering, catch_up, compact, create_bare_database, folding_hard, has_clock,
    is_lost, nothing_crashed, nothing_crashed_by_itself, refused, sqlstate, undisturbed,
};
use counterx_harness::{Cluster, StopMode, poll_until, run};
use postgres::error::SqlState;
use postgres::{Client, IsolationLevel};

const DB: &str = "windows";

/// What a paused process waits for: see the engine's `failpoint.rs`.
const PAUSE_KEY: i64 = 0x636e_7478;

/// Seconds.
const WINDOW: i64 = 600;

const TYPES: &str = "
    SELECT counter_type_create('api', max => 3, per => '10 minutes');
    SELECT counter_type_create('slide', max => 4, per => '10 minutes', sliding => true);
    SELECT counter_type_create('kept', max => 3, per => '10 minutes', kept => 3);
    SELECT counter_type_create('free', per => '10 minutes');
    SELECT counter_type_create('stock', min => 0);
";

/// A server whose clock the test sets, and a database with some types. None in a release build.
struct Stage {
    cluster: Cluster,
    /// When window 0 begins, in seconds since 1970; that is the next one of the server's clock.
    origin: i64,
}

impl Stage {
    fn set_up(name: &str) -> Result<Option<Self>> {
        Self::of(
            folding_hard(name)
                .conf("counterx.compaction", "off")
                .conf("max_prepared_transactions", "10")
                .start()?,
        )
    }

    fn of(cluster: Cluster) -> Result<Option<Self>> {
        let mut client = create_bare_database(&cluster, DB)?;
        if !has_clock(&mut client)? {
            return Ok(None);
        }
        let origin = (epoch(&mut client)? / WINDOW + 1) * WINDOW;
        client.batch_execute(TYPES)?;
        Ok(Some(Self { cluster, origin }))
    }

    /// A session whose clock shows ten seconds past the beginning of this window.
    fn at(&self, window: i64) -> Result<Client> {
        let mut client = self.cluster.connect_db(DB)?;
        self.go(&mut client, window)?;
        Ok(client)
    }

    /// Sets a session's clock.
    fn go(&self, client: &mut Client, window: i64) -> Result<()> {
        let ahead = self.origin + window * WINDOW + 10 - epoch(client)?;
        Ok(client.batch_execute(&format!("SET counterx.clock_ahead = {ahead}"))?)
    }

    /// Starts the server again, with its clock so far ahead.
    fn restart(&mut self, mode: StopMode, ahead: i64) -> Result<()> {
        let setting = [("counterx.clock_ahead", &*ahead.to_string())];
        self.cluster.reload(&setting)?;
        self.cluster.restart(mode)
    }
}

fn epoch(client: &mut Client) -> Result<i64> {
    let sql = "SELECT floor(extract(epoch FROM clock_timestamp()))::bigint";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn attempt(client: &mut Client, name: &str) -> Result<bool> {
    Ok(client
        .query_one("SELECT counter_try_incr($1)", &[&name])?
        .get(0))
}

/// How often it is granted until it is refused.
fn take_all(client: &mut Client, name: &str) -> Result<i64> {
    let mut granted = 0;
    while attempt(client, name)? {
        granted += 1;
        ensure!(granted < 100, "there is no end to {name}");
    }
    Ok(granted)
}

fn value(client: &mut Client, name: &str) -> Result<i64> {
    Ok(client
        .query_one("SELECT counter_value($1)", &[&name])?
        .get(0))
}

/// The value of the running window, and when that began, in seconds.
fn window(client: &mut Client, name: &str) -> Result<(i64, i64)> {
    let sql = "SELECT value, extract(epoch FROM begins_at)::bigint FROM counter_window($1)";
    let row = client.query_one(sql, &[&name])?;
    Ok((row.get(0), row.get(1)))
}

/// What is stored of a type, of whatever windows: rows, and what they come to.
fn stored(client: &mut Client, type_name: &str) -> Result<(i64, i64)> {
    let sql = "SELECT count(*), coalesce(sum(value), 0)::bigint FROM counterx.total WHERE name ^@ ($1 || ':')";
    let row = client.query_one(sql, &[&type_name])?;
    Ok((row.get(0), row.get(1)))
}

/// Up to when windows may be gone, in seconds.
fn removed(client: &mut Client) -> Result<Option<i64>> {
    let sql = "SELECT extract(epoch FROM counterx.windows_removed())::bigint";
    Ok(client.query_one(sql, &[])?.get(0))
}

fn wait_for_pause(client: &mut Client) -> Result<()> {
    poll_until("somebody to pause", DEADLINE, || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        Ok(client.query_one(sql, &[])?.get::<_, i64>(0) == 1)
    })
}

/// Has a session act, which stops at a point; does something meanwhile; and has it go on.
fn beside<T: Send>(
    stage: &Stage,
    mut stalled: Client,
    point: &str,
    act: impl FnOnce(&mut Client) -> Result<T> + Send,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<T> {
    let mut holder = stage.cluster.connect_db(DB)?;
    holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
    stalled.batch_execute(&format!("SET counterx.failpoint = '{point}=pause'"))?;
    thread::scope(|scope| {
        let acting = scope.spawn(move || act(&mut stalled));
        let done = wait_for_pause(&mut holder).and_then(|()| meanwhile());
        holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
        let acted = acting.join().map_err(|_| anyhow!("a session panicked"))?;
        done.context(format!("beside {point}"))?;
        acted.context(format!("at {point}"))
    })
}

/// Somebody has looked at the clock, has reserved perhaps, and stands still. His window ends, and is removed. He is
/// granted what there is in the next one.
#[test]
fn stalled_call_counts_where_it_is_granted() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-stalled")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    let mut number = 0;
    for (point, in_first) in [
        ("window.timed", false),
        ("escrow.reserved", false),
        // That is decided.
        ("escrow.granted", true),
    ] {
        for others in [2, 3] {
            number += 1;
            let name = format!("api:{number}");
            // The first call of a window knows nothing, and looks at everything.
            stage.go(&mut client, number)?;
            let stalled = stage.at(number)?;
            let granted = beside(
                &stage,
                stalled,
                point,
                |client| attempt(client, &name),
                || {
                    ensure!(attempt(&mut client, &name)? && attempt(&mut client, &name)?);
                    compact(&mut client)?;
                    stage.go(&mut client, number + 1)?;
                    ensure!(value(&mut client, &name)? == 0);
                    for _ in 0..others {
                        ensure!(attempt(&mut client, &name)?);
                    }
                    compact(&mut client)?;
                    // Those of the others, if they were folded in time: they are not removed yet.
                    let (_, sum) = stored(&mut client, "api")?;
                    ensure!(sum == others, "{sum} in all windows");
                    let gone = removed(&mut client)?;
                    ensure!(
                        gone == Some(stage.origin + (number + 1) * WINDOW),
                        "{gone:?}"
                    );
                    Ok(())
                },
            )?;
            ensure!(
                granted == (in_first || others == 2),
                "{point}, {others}: {granted}"
            );
            let now = value(&mut client, &name)?;
            let expected = others + i64::from(granted && !in_first);
            ensure!(now == expected, "{point}, {others}: {now}");
            ensure!(
                take_all(&mut client, &name)? == 3 - now,
                "{point}, {others}"
            );
            // What came late for a window that is gone, goes as well.
            compact(&mut client)?;
            compact(&mut client)?;
            let (rows, sum) = stored(&mut client, "api")?;
            ensure!((rows, sum) == (1, 3), "{point}, {others}: {rows} {sum}");
        }
    }
    nothing_crashed(&stage.cluster.log())
}

/// The same where the window before counts still.
#[test]
fn stalled_call_knows_what_counts_still() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-stalled-sliding")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    let mut number = 0;
    for point in ["window.timed", "escrow.reserved", "window.noted"] {
        number += 3;
        let name = format!("slide:{number}");
        stage.go(&mut client, number)?;
        let stalled = stage.at(number)?;
        let granted = beside(
            &stage,
            stalled,
            point,
            |client| attempt(client, &name),
            || {
                for _ in 0..3 {
                    ensure!(attempt(&mut client, &name)?);
                }
                stage.go(&mut client, number + 1)?;
                // Three count still, and what the stalled one has reserved: it may be granted.
                let mine = take_all(&mut client, &name)?;
                ensure!(
                    mine == i64::from(point == "window.timed"),
                    "{mine} at {point}"
                );
                Ok(())
            },
        )?;
        // Four in all, whoever had them.
        let now = value(&mut client, &name)?;
        ensure!(
            granted == (point != "window.timed") && now == 1,
            "{point}: {granted}, {now}"
        );
        ensure!(take_all(&mut client, &name)? == 0);
    }
    nothing_crashed(&stage.cluster.log())
}

/// A transaction that was granted something commits when its window is removed. Nobody sees that any more.
#[test]
fn what_is_committed_late_is_of_no_window() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-late")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    for (window, name, prepares) in [
        (1, "api:a", false),
        (3, "free:a", false),
        (5, "free:b", true),
    ] {
        let mut late = stage.at(window)?;
        stage.go(&mut client, window)?;
        client.batch_execute(&format!("SELECT counter_incr('{name}', 1)"))?;
        late.batch_execute(&format!("BEGIN; SELECT counter_incr('{name}', 2)"))?;
        if prepares {
            late.batch_execute("PREPARE TRANSACTION 'late'")?;
        }
        stage.go(&mut client, window + 1)?;
        client.batch_execute(&format!("SELECT counter_incr('{name}', 3)"))?;
        compact(&mut client)?;
        late.batch_execute(if prepares {
            "COMMIT PREPARED 'late'"
        } else {
            "COMMIT"
        })?;
        for _ in 0..3 {
            ensure!(value(&mut client, name)? == 3, "{name}");
            let sql = "SELECT count(*), sum(value)::bigint FROM counters WHERE name = $1";
            let row = client.query_one(sql, &[&name])?;
            ensure!(
                (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (1, 3),
                "{name}"
            );
            compact(&mut client)?;
        }
        let (type_name, _) = name.split_once(':').context("a type")?;
        let all = stored(&mut client, type_name)?;
        ensure!(all.1 == 3 && all.0 == 1, "{name}: {all:?}");
    }
    // Bounded ones are not prepared.
    let mut bounded = stage.at(7)?;
    bounded.batch_execute("BEGIN; SELECT counter_try_incr('api:p')")?;
    refused(
        bounded.batch_execute("PREPARE TRANSACTION 'bounded'"),
        &SqlState::FEATURE_NOT_SUPPORTED,
    )?;
    nothing_crashed(&stage.cluster.log())
}

/// The same of what takes a counter away, or sets it: of nothing that is left, nothing is less. Not even where the type is
/// dropped, and comes back without a window.
#[test]
fn what_is_dropped_late_leaves_nothing_behind() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-late-drop")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    let deeds = [
        "SELECT counter_drop('api:a'), counter_drop('free:a')",
        "SELECT counter_reset('api:a'), counter_reset('free:a')",
        "SELECT counter_set('api:a', 1), counter_set('free:a', 100)",
    ];
    let mut window = 0;
    for deed in deeds {
        for is_folded in [true, false] {
            window += 3;
            stage.go(&mut client, window)?;
            client.batch_execute("SELECT counter_incr('api:a', 3), counter_incr('free:a', 70)")?;
            if is_folded {
                compact(&mut client)?;
            }
            let mut late = stage.at(window)?;
            late.batch_execute(&format!("BEGIN; {deed}"))?;
            stage.go(&mut client, window + 1)?;
            client.batch_execute("SELECT counter_incr('api:a', 2), counter_incr('free:a', 5)")?;
            compact(&mut client)?;
            late.batch_execute("COMMIT")?;
            for _ in 0..3 {
                let sums = "SELECT counter_sum('api:')::bigint, counter_sum('free:')::bigint";
                let row = client.query_one(sums, &[])?;
                let sums: (i64, i64) = (row.get(0), row.get(1));
                ensure!(sums == (2, 5), "{deed}, {is_folded}: {sums:?}");
                compact(&mut client)?;
            }
            ensure!(stored(&mut client, "api")? == (1, 2), "{deed}, {is_folded}");
            ensure!(
                stored(&mut client, "free")? == (1, 5),
                "{deed}, {is_folded}"
            );
            ensure!(take_all(&mut client, "api:a")? == 1, "{deed}, {is_folded}");

            // What comes late may be there still when the type goes.
            late.batch_execute("SELECT counter_incr('free:b', 7)")?;
            late.batch_execute(&format!("BEGIN; {}", deed.replace(":a'", ":b'")))?;
            stage.go(&mut client, window + 2)?;
            compact(&mut client)?;
            late.batch_execute("COMMIT")?;
            for name in ["api", "free"] {
                client.batch_execute(&format!("SELECT counter_type_drop('{name}')"))?;
                client.batch_execute(&format!(
                    "SELECT counter_type_create('{name}', max => 1000)"
                ))?;
                for _ in 0..2 {
                    let sql = "SELECT counter_sum($1)::bigint, (SELECT count(*) FROM counters WHERE name ^@ $1)";
                    let row = client.query_one(sql, &[&format!("{name}:")])?;
                    let left: (i64, i64) = (row.get(0), row.get(1));
                    ensure!(left == (0, 0), "{name} after {deed}, {is_folded}: {left:?}");
                    compact(&mut client)?;
                }
                ensure!(
                    stored(&mut client, name)? == (0, 0),
                    "{name} after {deed}, {is_folded}"
                );
                client.batch_execute(&format!("SELECT counter_type_drop('{name}')"))?;
            }
            client.batch_execute(
                "SELECT counter_type_create('api', max => 3, per => '10 minutes'),
                        counter_type_create('free', per => '10 minutes')",
            )?;
        }
    }
    nothing_crashed(&stage.cluster.log())
}

/// A cursor shows the window of the moment at which it was declared, as its snapshot does.
#[test]
fn cursor_shows_the_window_that_it_was_declared_in() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-cursor")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    fill(&mut client, 0)?;
    let sql = "SELECT name || '=' || value FROM counters ORDER BY name COLLATE \"C\"";
    let texts =
        |rows: Vec<postgres::Row>| -> Vec<String> { rows.iter().map(|row| row.get(0)).collect() };
    let expected = texts(client.query(sql, &[])?);
    client.batch_execute(&format!("BEGIN; DECLARE c SCROLL CURSOR FOR {sql}"))?;
    let mut other = stage.at(5)?;
    fill(&mut other, 3)?;
    compact(&mut other)?;
    for _ in 0..2 {
        let found = texts(client.query("FETCH ALL FROM c", &[])?);
        ensure!(found == expected, "{expected:?}\nbecame\n{found:?}");
        client.batch_execute("MOVE ABSOLUTE 0 FROM c")?;
    }
    nothing_crashed(&stage.cluster.log())
}

/// Holds go by a clock of their own: one of windows that is ahead ends none, and one that is set back revives none.
#[test]
fn clock_of_windows_is_not_that_of_holds() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-holds")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    client.batch_execute("SET counterx.escrow_wait = 0; SELECT counter_incr('stock:a', 5)")?;
    let sql = "SELECT counter_hold('stock:a', 5, $1::text::interval)";
    let hold: i64 = client.query_one(sql, &[&"1 hour"])?.get(0);
    let mut taking = stage.at(20)?;
    taking.batch_execute("SET counterx.escrow_wait = 0")?;
    ensure!(attempt(&mut taking, "api:a")?);
    ensure!(!attempt_many(&mut taking, "stock:a", -5)?);
    client.execute("SELECT counter_hold_release($1)", &[&hold])?;
    let hold: i64 = client.query_one(sql, &[&"10 milliseconds"])?.get(0);
    taking.batch_execute("BEGIN")?;
    poll_until("the hold to expire", DEADLINE, || {
        attempt_many(&mut taking, "stock:a", -5)
    })?;
    client.batch_execute("SELECT counterx.reset_window_clock()")?;
    let confirmed = client.execute("SELECT counter_hold_confirm($1)", &[&hold]);
    taking.batch_execute("COMMIT")?;
    let now = value(&mut client, "stock:a")?;
    ensure!(now == 0 && confirmed.is_err(), "{now}, {confirmed:?}");
    nothing_crashed(&stage.cluster.log())
}

fn attempt_many(client: &mut Client, name: &str, delta: i64) -> Result<bool> {
    Ok(client
        .query_one("SELECT counter_try_incr($1, $2)", &[&name, &delta])?
        .get(0))
}

/// What was sold in a window that is removed is not sold again by a server whose clock is behind, however it went down.
#[test]
fn clock_that_was_set_back_sells_nothing_again() -> Result<()> {
    for (mode, name) in [
        (StopMode::Fast, "windows-back"),
        (StopMode::Immediate, "windows-back-crash"),
    ] {
        let Some(mut stage) = Stage::set_up(name)? else {
            return Ok(());
        };
        stage.restart(StopMode::Fast, 10 * WINDOW)?;
        let mut client = stage.at(20)?;
        ensure!(take_all(&mut client, "api:a")? == 3);
        stage.go(&mut client, 21)?;
        ensure!(attempt(&mut client, "api:a")? && attempt(&mut client, "api:a")?);
        ensure!(take_all(&mut client, "kept:a")? == 3);
        compact(&mut client)?;
        ensure!(stored(&mut client, "api")? == (1, 2));
        let begun = stage.origin + 21 * WINDOW;
        ensure!(removed(&mut client)? == Some(begun));
        drop(client);

        stage.restart(mode, 0)?;
        let mut client = stage.cluster.connect_db(DB)?;
        ensure!(window(&mut client, "api:a")? == (2, begun));
        ensure!(window(&mut client, "kept:a")? == (3, begun));
        ensure!(take_all(&mut client, "api:a")? == 1);
        ensure!(take_all(&mut client, "kept:a")? == 0);
        let sql = "SELECT extract(epoch FROM retry_at)::bigint FROM counter_try('api:a')";
        let retry: i64 = client.query_one(sql, &[])?.get(0);
        ensure!(retry == begun + WINDOW, "{retry}, not {begun}");
        for _ in 0..2 {
            compact(&mut client)?;
            ensure!(value(&mut client, "api:a")? == 3);
        }
        // Until somebody says that the clock is right.
        client.batch_execute("SELECT counterx.reset_window_clock()")?;
        let (now, begins) = window(&mut client, "api:a")?;
        ensure!(now == 0 && begins <= epoch(&mut client)?, "{now} {begins}");
        ensure!(take_all(&mut client, "api:a")? == 3);
        ensure!(take_all(&mut client, "kept:a")? == 3);
        drop(client);
        stage.restart(mode, 0)?;
        let mut client = stage.cluster.connect_db(DB)?;
        ensure!(take_all(&mut client, "api:a")? == 0 && take_all(&mut client, "kept:a")? == 0);
        nothing_crashed(&stage.cluster.log())?;
    }
    Ok(())
}

/// Without removal, a clock that is set back over a restart goes back to a window that is there: with all that was sold.
#[test]
fn window_that_is_gone_back_to_has_what_was_sold() -> Result<()> {
    let Some(mut stage) = Stage::set_up("windows-again")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    ensure!(attempt(&mut client, "kept:a")? && attempt(&mut client, "kept:a")?);
    stage.go(&mut client, 1)?;
    ensure!(take_all(&mut client, "kept:a")? == 3);
    drop(client);
    for mode in [StopMode::Fast, StopMode::Immediate] {
        stage.restart(mode, 0)?;
        let mut client = stage.at(0)?;
        let left = take_all(&mut client, "kept:a")?;
        ensure!(left == i64::from(mode == StopMode::Fast), "{left}");
        stage.go(&mut client, 1)?;
        ensure!(take_all(&mut client, "kept:a")? == 0);
    }
    Ok(())
}

/// A clock that leaps is not believed: what it says has ended is there when it is set right. Neither is one that somebody
/// else has gone by.
#[test]
fn clock_that_leaps_removes_nothing() -> Result<()> {
    // With a worker: where there is none, whoever calls compact() vouches for his clock.
    let Some(mut stage) = Stage::of(folding_hard("windows-leap").start()?)? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    ensure!(take_all(&mut client, "api:a")? == 3);
    compact(&mut client)?;
    ensure!(stored(&mut client, "api")? == (1, 3));
    let ahead = [("counterx.clock_ahead", &*(1000 * WINDOW).to_string())];
    stage.cluster.reload(&ahead)?;
    let mut other = stage.cluster.connect_db(DB)?;
    ensure!(take_all(&mut other, "api:a")? == 3);
    compact(&mut other)?;
    poll_until("the worker to say so", DEADLINE, || {
        let log = stage.cluster.log();
        Ok(log.contains("ended windows of counters are not removed"))
    })?;
    ensure!(stored(&mut other, "api")? == (2, 6));
    ensure!(removed(&mut other)?.is_none());
    // It is set right, but for what others have gone by. Who is refused is told so.
    stage.cluster.reload(&[("counterx.clock_ahead", "0")])?;
    let mut other = stage.cluster.connect_db(DB)?;
    other.batch_execute("SET counterx.compaction = off")?;
    for _ in 0..2 {
        let error = other.batch_execute("SELECT counter_incr('api:a')").err();
        let error = error.context("granted")?;
        let detail = error.as_db_error().and_then(|error| error.detail());
        ensure!(
            detail.is_some_and(|detail| detail.contains("ahead")),
            "{detail:?}"
        );
        // He vouches for his clock, and not for theirs.
        compact(&mut other)?;
        ensure!(stored(&mut other, "api")? == (2, 6));
        ensure!(removed(&mut other)?.is_none());
    }
    client.batch_execute("SELECT counterx.reset_window_clock()")?;
    stage.go(&mut client, 0)?;
    ensure!(value(&mut client, "api:a")? == 3);
    ensure!(take_all(&mut client, "api:a")? == 0);
    nothing_crashed(&stage.cluster.log())
}

/// All ways to look at counters, in one text.
const LOOKS: &str = "
    SELECT string_agg(what, E'\\n' ORDER BY what COLLATE \"C\") FROM (
        SELECT name || '=' || value FROM counters
        UNION ALL SELECT 'eq ' || name || '=' || value FROM counters WHERE name = 'kept:7'
        UNION ALL SELECT 'like ' || name || '=' || value FROM counters WHERE name LIKE 'kept:1%'
        UNION ALL SELECT 'any ' || name || '=' || value FROM counters WHERE name = ANY ('{kept:1,api:1,plain:1}')
        UNION ALL SELECT 'range ' || name || '=' || value FROM counters WHERE name >= 'api:5' AND name < 'plain:3'
        UNION ALL SELECT 'list ' || name || '=' || value FROM counter_list('kept:', 'kept:10', 50)
        UNION ALL SELECT 'all ' || name || '=' || value FROM counter_list('', NULL, 1000)
        UNION ALL SELECT 'values ' || name || '=' || value FROM counter_values(ARRAY['kept:1', 'slide:1', 'none:1'])
        UNION ALL SELECT 'sum ' || p || counter_sum(p) FROM unnest('{\"\",api:,kept:1,slide:,free:,plain:}'::text[]) p
        UNION ALL SELECT 'top ' || name || '=' || value FROM counter_top(7, 'kept:')
        UNION ALL SELECT 'bottom ' || name || '=' || value FROM counter_bottom(7)
        UNION ALL SELECT 'rank ' || coalesce(counter_rank('kept:3')::text, 'none')
        UNION ALL SELECT 'value ' || counter_value('api:2') || counter_value('slide:2') || counter_value('kept:2')
        UNION ALL SELECT 'window ' || w::text FROM counter_window('kept:2') w
        UNION ALL SELECT 'windows ' || w::text FROM counter_windows('kept:2') w
        UNION ALL SELECT 'windows ' || w::text FROM counter_windows('slide:2') w
    ) looks (what)";

fn look(client: &mut impl postgres::GenericClient) -> Result<String> {
    Ok(client.query_one(LOOKS, &[])?.get(0))
}

/// Counts something of all types in a window: most names not in all windows.
fn fill(client: &mut Client, window: i64) -> Result<()> {
    Ok(client.batch_execute(&format!(
        "SELECT counter_incr(t || ':' || n, CASE t WHEN 'slide' THEN 1 ELSE 1 + n % 3 END)
           FROM unnest('{{api,kept,slide,free,plain}}'::text[]) t, generate_series({window}, {window} + 20) n"
    ))?)
}

#[test]
fn removal_changes_no_answer() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-reads")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    for now in 0..4 {
        stage.go(&mut client, now)?;
        fill(&mut client, now)?;
        if now != 2 {
            compact(&mut client)?;
        }
    }
    // One look, of whoever goes by one snapshot, and one in the middle of a cursor.
    let expected = look(&mut client)?;
    ensure!(expected.matches("windows (").count() >= 3, "{expected}");
    let mut readers = Vec::new();
    for level in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let mut reader = stage.at(3)?;
        reader.batch_execute(match level {
            IsolationLevel::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
            _ => "BEGIN ISOLATION LEVEL REPEATABLE READ",
        })?;
        ensure!(look(&mut reader)? == expected);
        readers.push(reader);
    }
    let cursors = [
        ("list", "SELECT name || '=' || value AS what FROM counters"),
        (
            "pages",
            "SELECT name || '=' || value AS what FROM counter_list('', NULL, 1000)",
        ),
        (
            "names",
            "SELECT name || '=' || value AS what FROM counters WHERE name LIKE 'kept:%'",
        ),
    ];
    let mut fetching = stage.at(3)?;
    fetching.batch_execute("BEGIN")?;
    let mut fetched = Vec::new();
    for (cursor, query) in cursors {
        let whole = format!("SELECT string_agg(what, ' ') FROM ({query}) q");
        let whole: String = client.query_one(&whole, &[])?.get(0);
        fetching.batch_execute(&format!("DECLARE {cursor} CURSOR FOR {query}"))?;
        let rows = fetching.query(&format!("FETCH 5 FROM {cursor}"), &[])?;
        let some: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        fetched.push((cursor, whole, some));
    }
    // All of that is gone for others.
    let mut other = stage.at(8)?;
    fill(&mut other, 100)?;
    let beside_it = look(&mut other)?;
    compact(&mut other)?;
    compact(&mut other)?;
    ensure!(removed(&mut other)? == Some(stage.origin + 8 * WINDOW));
    let sql =
        "SELECT count(*) FROM counterx.total t JOIN counter_types c ON t.name ^@ (c.name || ':')
                WHERE c.per IS NOT NULL";
    let left: i64 = other.query_one(sql, &[])?.get(0);
    ensure!(left == 4 * 21, "{left} rows are left");
    let found = look(&mut other)?;
    ensure!(found == beside_it, "{beside_it}\nbecame\n{found}");
    for mut reader in readers {
        let again = look(&mut reader)?;
        ensure!(again == expected, "{expected}\nbecame\n{again}");
        reader.batch_execute("COMMIT")?;
    }
    for (cursor, whole, mut some) in fetched {
        let rows = fetching.query(&format!("FETCH ALL FROM {cursor}"), &[])?;
        some.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        ensure!(
            some.join(" ") == whole,
            "{cursor}: {whole}\nbecame\n{some:?}"
        );
    }
    nothing_crashed(&stage.cluster.log())
}

/// It is written up to when windows are removed, and they are there still: reads, calls and commits go on. Whoever
/// removes may fail there, or crash.
#[test]
fn removal_that_stops_half_way_is_in_nobodys_way() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-half")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    fill(&mut client, 0)?;
    compact(&mut client)?;
    stage.go(&mut client, 5)?;
    fill(&mut client, 0)?;
    let expected = look(&mut client)?;
    let remover = stage.at(5)?;
    beside(
        &stage,
        remover,
        "windows.noted",
        |remover| Ok(remover.batch_execute("SELECT counterx.compact()")?),
        || {
            ensure!(look(&mut client)? == expected);
            ensure!(take_all(&mut client, "api:new")? == 3);
            ensure!(take_all(&mut client, "slide:new")? == 4);
            client
                .batch_execute("SELECT counter_incr('free:new', 7), counter_set('kept:new', 2)")?;
            ensure!(removed(&mut client)? == Some(stage.origin + 5 * WINDOW));
            Ok(())
        },
    )?;
    ensure!(value(&mut client, "free:new")? == 7 && value(&mut client, "kept:new")? == 2);
    client.batch_execute("SELECT counter_drop('free:new'), counter_drop('kept:new'), counter_drop('api:new'), counter_drop('slide:new')")?;
    compact(&mut client)?;
    let found = look(&mut client)?;
    ensure!(found == expected, "{expected}\nbecame\n{found}");

    stage.go(&mut client, 9)?;
    fill(&mut client, 0)?;
    compact_fails(&mut stage.at(9)?, "error")?;
    let expected = look(&mut client)?;
    ensure!(removed(&mut client)? == Some(stage.origin + 9 * WINDOW));
    compact_fails(&mut stage.at(9)?, "crash")?;
    let mut connection = Recovering::new(&stage.cluster.config(DB));
    poll_until("the server to notice a crash", DEADLINE, || {
        Ok(client.batch_execute("SELECT 1").is_err())
    })?;
    let client = connection.client()?;
    // What was noted may be lost, as nothing was removed by then.
    let noted = removed(client)?;
    ensure!(noted >= Some(stage.origin + 5 * WINDOW), "{noted:?}");
    stage.go(client, 9)?;
    ensure!(look(client)? == expected);
    compact(client)?;
    compact(client)?;
    ensure!(look(client)? == expected);
    ensure!(stored(client, "api")?.0 == 21);
    nothing_crashed_by_itself(&stage.cluster.log())
}

fn compact_fails(client: &mut Client, action: &str) -> Result<()> {
    client.batch_execute(&format!(
        "SET counterx.failpoint = 'windows.noted={action}'"
    ))?;
    let error = client
        .batch_execute("SELECT counterx.compact()")
        .err()
        .context("it went well")?;
    let error = anyhow::Error::from(error);
    ensure!(is_lost(&error) == (action == "crash"), "{error:?}");
    Ok(())
}

/// The worker fails, or crashes, when it is about to remove what has ended. It does so the next time.
#[test]
fn worker_that_fails_or_crashes_half_way_removes_the_rest() -> Result<()> {
    let Some(mut stage) = Stage::of(folding_hard("windows-worker").start()?)? else {
        return Ok(());
    };
    let ahead = |stage: &mut Stage, window: i64| -> Result<String> {
        let mut client = stage.cluster.connect()?;
        let ahead = stage.origin + window * WINDOW + 10 - epoch(&mut client)?;
        Ok(ahead.to_string())
    };
    for (window, action) in [(1, "error"), (2, "crash")] {
        let mut client = stage.at(window)?;
        fill(&mut client, 0)?;
        drop(client);
        let armed = format!("windows.noted={action}");
        let file = stage
            .cluster
            .data_dir()
            .join(format!("counterx.failpoint.{armed}"));
        let failpoint = format!("{armed} once");
        stage
            .cluster
            .reload(&[("counterx.failpoint", &*failpoint)])?;
        std::fs::write(&file, "")?;
        // The worker comes there once, as soon as the clock is ahead; and may take this session with it.
        let clock = ahead(&mut stage, window + 2)?;
        let mut client = stage.cluster.connect()?;
        client.batch_execute(&format!("ALTER SYSTEM SET counterx.clock_ahead = {clock}"))?;
        if let Err(error) = client.batch_execute("SELECT pg_reload_conf()") {
            ensure!(action == "crash" && is_lost(&error.into()));
        }
        poll_until("the worker to come there", DEADLINE, || Ok(!file.exists()))?;
        let mut connection = Recovering::new(&stage.cluster.config(DB));
        let mut expected = None;
        poll_until("all that has ended to be removed", DEADLINE, || {
            // As long as the server goes down, nobody is answered.
            // After a crash, the worker comes when somebody counts.
            let looked = connection.client().and_then(|client| {
                client.batch_execute("SELECT counter_incr('plain:tick', 0)")?;
                let looked = look(client)?;
                let (rows, _) = stored(client, "api")?;
                Ok((looked, rows))
            });
            match looked {
                Ok((looked, rows)) => {
                    let first = expected.get_or_insert_with(|| looked.clone());
                    ensure!(*first == looked, "{first}\nbecame\n{looked}");
                    Ok(rows == 0)
                }
                Err(error) if action == "crash" && is_lost(&error) => {
                    connection.forget();
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        })?;
        let client = connection.client()?;
        ensure!(removed(client)? >= Some(stage.origin + (window + 1) * WINDOW));
        ensure!(take_all(client, "api:far")? == 3 && take_all(client, "slide:far")? == 4);
        client.batch_execute("SELECT counter_drop('plain:' || n) FROM generate_series(0, 20) n")?;
        // The clock goes on, and does not leap.
        stage.origin += 3 * WINDOW;
    }
    let log = stage.cluster.log();
    ensure!(log.contains("removing windows that have ended failed"));
    nothing_crashed_by_itself(&log)
}

/// A standby shows what the primary does, by its own clock; and by what the primary has removed, where that is later. So
/// does what it becomes.
#[test]
fn standby_goes_on_with_what_was_sold() -> Result<()> {
    let Some(stage) = Stage::of(
        folding_hard("windows-primary")
            .conf("counterx.compaction", "off")
            .conf("wal_keep_size", "256MB")
            .start()?,
    )?
    else {
        return Ok(());
    };
    let mut standby = Cluster::builder()
        .name("windows-standby")
        .standby_of(&stage.cluster)
        .conf("counterx.compaction", "off")
        .start()?;
    let mut client = stage.at(0)?;
    fill(&mut client, 0)?;
    ensure!(attempt(&mut client, "kept:mid")? && attempt(&mut client, "kept:mid")?);
    catch_up(&stage.cluster, &mut standby.connect()?)?;
    // In mid-window, some of it folded on the way.
    let mut here = Recovering::new(&standby.config(DB));
    let same = |client: &mut Client, here: &mut Recovering, window: i64| -> Result<()> {
        catch_up(&stage.cluster, here.client()?)?;
        let expected = look(client)?;
        let found = undisturbed(here, |here| {
            stage.go(here, window)?;
            look(here)
        })?;
        ensure!(found == expected, "{expected}\nis on the standby\n{found}");
        Ok(())
    };
    same(&mut client, &mut here, 0)?;
    compact(&mut client)?;
    same(&mut client, &mut here, 0)?;
    // A reader with a snapshot, beside removal on the primary.
    let mut reader = standby.connect_db(DB)?;
    stage.go(&mut reader, 0)?;
    reader.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    let expected = look(&mut reader)?;
    stage.go(&mut client, 5)?;
    fill(&mut client, 3)?;
    ensure!(attempt(&mut client, "kept:mid")? && attempt(&mut client, "kept:mid")?);
    ensure!(attempt(&mut client, "api:mid")?);
    // Not before the clock of the standby is there, as nothing is removed yet.
    catch_up(&stage.cluster, here.client()?)?;
    ensure!(window(here.client()?, "kept:mid")?.0 == 2);
    compact(&mut client)?;
    ensure!(removed(&mut client)? == Some(stage.origin + 5 * WINDOW));
    match look(&mut reader) {
        Ok(again) => ensure!(again == expected, "{expected}\nbecame\n{again}"),
        Err(error) => ensure!(
            sqlstate(&error).is_none_or(|code| *code == SqlState::T_R_SERIALIZATION_FAILURE),
            "{error:?}"
        ),
    }
    drop(reader);
    catch_up(&stage.cluster, here.client()?)?;
    // Its clock is far behind that.
    let mut behind = Recovering::new(&standby.config(DB));
    let expected = look(&mut client)?;
    let found = undisturbed(&mut behind, look)?;
    ensure!(found == expected, "{expected}\nis on the standby\n{found}");
    let before = window(behind.client()?, "kept:mid")?;
    ensure!(before == (2, stage.origin + 5 * WINDOW), "{before:?}");
    refused(
        behind
            .client()?
            .batch_execute("SELECT counter_try_incr('kept:mid')"),
        &SqlState::READ_ONLY_SQL_TRANSACTION,
    )?;
    standby.promote()?;
    // A session that was there before, and one that was not.
    for client in [behind.client()?, &mut standby.connect_db(DB)?] {
        ensure!(look(client)? == expected || value(client, "kept:mid")? == 3);
        ensure!(take_all(client, "kept:mid")? <= 1);
    }
    let mut client = standby.connect_db(DB)?;
    ensure!(value(&mut client, "kept:mid")? == 3);
    ensure!(take_all(&mut client, "api:mid")? == 2);
    ensure!(take_all(&mut client, "slide:3")? <= 4);
    compact(&mut client)?;
    ensure!(value(&mut client, "api:mid")? == 3 && value(&mut client, "kept:mid")? == 3);
    nothing_crashed(&standby.log())
}

const FORMATS: [(&str, &[&str]); 3] = [
    ("plain", &["--format=plain"]),
    ("custom", &["--format=custom"]),
    ("data", &["--data-only"]),
];

/// A dump has all windows that are there, and up to when others are gone: what was sold is sold where it is restored, also
/// by a clock that is behind.
#[test]
fn restored_windows_are_those_that_were_dumped() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-dump")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    // Some of it is folded, some waits, some is late; and some windows are gone.
    fill(&mut client, 0)?;
    compact(&mut client)?;
    for now in [4, 5] {
        stage.go(&mut client, now)?;
        fill(&mut client, 0)?;
        client.batch_execute(&format!(
            "SELECT counter_incr('kept:x', {}), counter_incr('slide:x', 1)",
            now - 3
        ))?;
        client
            .batch_execute("BEGIN; SELECT counter_incr('free:x', 5); PREPARE TRANSACTION 'late'")?;
        client.batch_execute("COMMIT PREPARED 'late'")?;
        if now == 4 {
            compact(&mut client)?;
        }
    }
    client.batch_execute("SELECT counter_incr('api:x', 2)")?;
    ensure!(removed(&mut client)? == Some(stage.origin + 4 * WINDOW));
    let expected = look(&mut client)?;
    let types = "SELECT string_agg(concat_ws(' ', name, min, max, per, kept, sliding, count_refused), ', ' ORDER BY name) FROM counter_types";
    let all_types: String = client.query_one(types, &[])?.get(0);
    ensure!(expected.matches("windows (").count() >= 2, "{expected}");

    for (format, arguments) in FORMATS {
        let file = stage.cluster.directory().join(format!("windows.{format}"));
        let file = file.to_str().context("odd path")?.to_owned();
        run(stage
            .cluster
            .tool("pg_dump")
            .args(arguments)
            .args(["--file", &file, DB]))?;
        for by_its_clock in [true, false] {
            let target = folding_hard(&format!("windows-{format}"))
                .conf("counterx.compaction", "off")
                .start()?;
            target
                .connect()?
                .batch_execute(&format!("CREATE DATABASE {DB}"))?;
            if format == "data" {
                target
                    .connect_db(DB)?
                    .batch_execute("CREATE EXTENSION counterx")?;
            }
            restore(&target, format, &file)?;
            let mut copy = target.connect_db(DB)?;
            let found: String = copy.query_one(types, &[])?.get(0);
            ensure!(found == all_types, "{format}: {all_types}\nbecame\n{found}");
            let gone = removed(&mut copy)?;
            ensure!(
                gone == Some(stage.origin + 4 * WINDOW),
                "{format}: {gone:?}"
            );
            if by_its_clock {
                stage.go(&mut copy, 5)?;
                for _ in 0..2 {
                    let found = look(&mut copy)?;
                    ensure!(found == expected, "{format}: {expected}\nbecame\n{found}");
                    compact(&mut copy)?;
                }
                ensure!(take_all(&mut copy, "api:x")? == 1);
                ensure!(take_all(&mut copy, "kept:x")? == 1);
                // One of the window before, as good as whole, and one of this.
                ensure!(take_all(&mut copy, "slide:x")? == 2);
                ensure!(value(&mut copy, "free:x")? == 5);
            } else {
                // Behind: nobody goes to a window that was removed. The one after it has what it had.
                ensure!(window(&mut copy, "api:x")? == (0, stage.origin + 4 * WINDOW));
                ensure!(window(&mut copy, "kept:x")? == (1, stage.origin + 4 * WINDOW));
                ensure!(take_all(&mut copy, "kept:x")? == 2);
                ensure!(window(&mut copy, "free:x")? == (5, stage.origin + 4 * WINDOW));
                copy.batch_execute("SELECT counterx.reset_window_clock()")?;
                ensure!(take_all(&mut copy, "kept:x")? == 3);
            }
            nothing_crashed(&target.log())?;
        }
    }
    ensure!(look(&mut client)? == expected);
    Ok(())
}

fn restore(target: &Cluster, format: &str, file: &str) -> Result<()> {
    match format {
        "custom" => {
            run(target
                .tool("pg_restore")
                .args(["--exit-on-error", "--jobs=2", "-d", DB, file]))
        }
        _ => run(target
            .tool("psql")
            .args(["-Xq", "-v", "ON_ERROR_STOP=1", "-d", DB, "-f", file])),
    }
    .map(drop)
}

/// The rows before their types, and the other way round.
#[test]
fn order_of_types_and_rows_in_a_restore_does_not_matter() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-order")? else {
        return Ok(());
    };
    let mut client = stage.at(1)?;
    fill(&mut client, 0)?;
    client.batch_execute("SELECT counter_incr('kept:x', 2)")?;
    let expected = look(&mut client)?;
    let file = stage.cluster.directory().join("order.archive");
    let file = file.to_str().context("odd path")?.to_owned();
    run(stage
        .cluster
        .tool("pg_dump")
        .args(["--format=custom", "--file", &file, DB]))?;
    let listed = run(stage.cluster.tool("pg_restore").args(["--list", &file]))?;
    let listed = String::from_utf8(listed.stdout)?;
    let (data, others): (Vec<&str>, Vec<&str>) = listed
        .lines()
        .partition(|line| line.contains(" TABLE DATA "));
    ensure!(data.len() > 1, "{listed}");
    for (number, turned) in [false, true].into_iter().enumerate() {
        let mut data = data.clone();
        data.sort_by_key(|line| line.contains(" counterx type ") == turned);
        ensure!(
            data.iter().any(|line| line.contains(" counterx type ")),
            "{listed}"
        );
        let order = stage.cluster.directory().join("order.list");
        let lines = others.iter().chain(&data).map(|line| format!("{line}\n"));
        std::fs::write(&order, lines.collect::<String>())?;
        let db = format!("copy{number}");
        stage
            .cluster
            .connect()?
            .batch_execute(&format!("CREATE DATABASE {db}"))?;
        run(stage
            .cluster
            .tool("pg_restore")
            .arg("--exit-on-error")
            .arg("-L")
            .arg(&order)
            .args(["-d", &db, &file]))?;
        let mut copy = stage.cluster.connect_db(&db)?;
        stage.go(&mut copy, 1)?;
        let found = look(&mut copy)?;
        ensure!(found == expected, "{turned}: {expected}\nbecame\n{found}");
        ensure!(take_all(&mut copy, "kept:x")? == 1);
    }
    Ok(())
}

/// Onto a database that has types of the same names, with other windows or none, and has counted: what is restored may
/// fail. Afterwards no window gives more than its maximum, and what is acknowledged is there.
#[test]
fn restore_onto_what_is_in_use_leaves_windows_that_work() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-onto")? else {
        return Ok(());
    };
    let mut client = stage.at(1)?;
    fill(&mut client, 0)?;
    client.batch_execute("SELECT counter_incr('kept:x', 2), counter_incr('api:x', 2)")?;
    for (number, (format, arguments)) in FORMATS.iter().enumerate() {
        let file = stage.cluster.directory().join(format!("onto.{format}"));
        let file = file.to_str().context("odd path")?.to_owned();
        run(stage
            .cluster
            .tool("pg_dump")
            .args(*arguments)
            .args(["--file", &file, DB]))?;
        for (kind, types) in [
            TYPES,
            "SELECT counter_type_create('api', max => 3, per => '1 minute');
             SELECT counter_type_create('kept', max => 3)",
            "SELECT 1",
        ]
        .into_iter()
        .enumerate()
        {
            let db = format!("onto_{number}_{kind}");
            drop(create_bare_database(&stage.cluster, &db)?);
            let mut target = stage.cluster.connect_db(&db)?;
            stage.go(&mut target, 1)?;
            target.batch_execute(types)?;
            target.batch_execute(
                "SELECT counter_try_incr('api:x'), counter_try_incr('kept:x'), counter_incr('plain:y', 4)",
            )?;
            // Whatever it says: some of it fails.
            let program = if *format == "custom" {
                "pg_restore"
            } else {
                "psql"
            };
            let mut command = stage.cluster.tool(program);
            match program {
                "psql" => command.args(["-Xq", "-d", &db, "-f", &file]),
                _ => command.args(["-d", &db, &file]),
            };
            command.output()?;
            for mut client in [target, stage.cluster.connect_db(&db)?] {
                stage.go(&mut client, 1)?;
                for name in ["api:x", "kept:x", "plain:y", "api:new", "slide:new"] {
                    let context = || format!("{db}: {name}");
                    let sql = "SELECT max FROM counter_types WHERE name = split_part($1, ':', 1)";
                    let max: Option<i64> =
                        client.query_opt(sql, &[&name])?.and_then(|row| row.get(0));
                    for _ in 0..5 {
                        let before = value(&mut client, name).with_context(context)?;
                        let granted = attempt(&mut client, name).with_context(context)?;
                        let after = value(&mut client, name).with_context(context)?;
                        ensure!(
                            after == before + i64::from(granted)
                                && max.is_none_or(|max| after <= max || !granted),
                            "{db}: {name} is {after} after {before}, {granted}, {max:?}"
                        );
                    }
                }
                compact(&mut client)?;
                client.batch_execute("SELECT count(*), counter_sum('') FROM counters")?;
            }
        }
    }
    nothing_crashed(&stage.cluster.log())
}

/// A type is dropped, or all of the extension, while windows are removed, and the other way round. Nobody fails but by a
/// deadlock.
#[test]
fn types_and_the_extension_are_dropped_beside_removal() -> Result<()> {
    let Some(stage) = Stage::set_up("windows-drop")? else {
        return Ok(());
    };
    let mut client = stage.at(0)?;
    fill(&mut client, 0)?;
    let mut now = 0;
    for drop_sql in ["SELECT counter_type_drop('api')", "DROP EXTENSION counterx"] {
        let is_type = drop_sql.starts_with("SELECT");
        // Who removes is first.
        let ended_window = |client: &mut Client, now: &mut i64| -> Result<()> {
            compact(client)?;
            *now += 5;
            stage.go(client, *now)?;
            fill(client, *now)
        };
        ended_window(&mut client, &mut now)?;
        let mut holder = stage.cluster.connect_db(DB)?;
        holder.execute("SELECT pg_advisory_lock($1)", &[&PAUSE_KEY])?;
        let mut remover = stage.at(now)?;
        remover.batch_execute("SET counterx.failpoint = 'windows.noted=pause'")?;
        thread::scope(|scope| {
            let removing = scope.spawn(|| remover.batch_execute("SELECT counterx.compact()"));
            wait_for_pause(&mut holder)?;
            let mut dropper = stage.at(now)?;
            let dropping = scope.spawn(move || dropper.batch_execute(drop_sql));
            poll_until("somebody to wait for who removes", DEADLINE, || {
                let sql = "SELECT count(*) FROM pg_stat_activity
                            WHERE query = $1 AND cardinality(pg_blocking_pids(pid)) > 0";
                Ok(holder.query_one(sql, &[&drop_sql])?.get::<_, i64>(0) == 1)
            })?;
            holder.execute("SELECT pg_advisory_unlock($1)", &[&PAUSE_KEY])?;
            for thread in [removing, dropping] {
                let ended = thread.join().map_err(|_| anyhow!("a session panicked"))?;
                ended.or_else(only_deadlock)?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        // Who drops is first, and may change his mind.
        if is_type {
            is_gone(&mut client, "api")?;
        }
        remake(&mut client, is_type)?;
        for end in ["ROLLBACK", "COMMIT"] {
            ended_window(&mut client, &mut now)?;
            let expected = look(&mut client)?;
            let mut dropper = stage.at(now)?;
            dropper.batch_execute(&format!("BEGIN; {drop_sql}"))?;
            let mut remover = stage.at(now)?;
            thread::scope(|scope| {
                let removing = scope.spawn(|| remover.batch_execute("SELECT counterx.compact()"));
                poll_until("who removes to wait, or to have done", DEADLINE, || {
                    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT counterx.compact()'
                                  AND cardinality(pg_blocking_pids(pid)) > 0";
                    Ok(removing.is_finished() || holder.query_one(sql, &[])?.get::<_, i64>(0) == 1)
                })?;
                dropper.batch_execute(end)?;
                let ended = removing.join().map_err(|_| anyhow!("a session panicked"))?;
                match ended {
                    // It is gone, and says so.
                    Err(error) if !is_type && end == "COMMIT" => {
                        ensure!(error.code().is_some(), "{error:?}");
                        Ok(())
                    }
                    ended => ended.or_else(only_deadlock),
                }
            })?;
            if end == "ROLLBACK" {
                let found = look(&mut client)?;
                ensure!(found == expected, "{expected}\nbecame\n{found}");
            } else if is_type {
                is_gone(&mut client, "api")?;
            }
        }
        remake(&mut client, is_type)?;
    }
    nothing_crashed(&stage.cluster.log())
}

fn only_deadlock(error: postgres::Error) -> Result<()> {
    match error.code() {
        Some(&SqlState::T_R_DEADLOCK_DETECTED) => Ok(()),
        _ => Err(error.into()),
    }
}

/// Nothing is stored of a type that was dropped, neither of windows that had ended.
fn is_gone(client: &mut Client, type_name: &str) -> Result<()> {
    let sql = "SELECT count(*) FROM counter_types WHERE name = $1";
    let types: i64 = client.query_one(sql, &[&type_name])?.get(0);
    ensure!(types == 0, "{type_name} is there");
    for _ in 0..2 {
        compact(client)?;
    }
    let rows = stored(client, type_name)?;
    ensure!(rows == (0, 0), "{type_name}: {rows:?}");
    Ok(())
}

/// Makes anew what was dropped, or would have been but for a deadlock.
fn remake(client: &mut Client, is_type: bool) -> Result<()> {
    if is_type {
        client.batch_execute("SELECT counter_type_create('api', max => 3, per => '10 minutes')")?;
    } else {
        client.batch_execute("DROP EXTENSION IF EXISTS counterx; CREATE EXTENSION counterx")?;
        client.batch_execute(TYPES)?;
    }
    ensure!(take_all(client, "api:remade")? == 3);
    Ok(())
}
