//! Noticing what makes counters and rows differ without a trigger that fires.
//!
//! After each command of DDL, the event trigger compares what the tracks stand on with what it was: the
//! triggers of a table and its partitions, which partitions there are, functions and enums that the definition
//! uses, expressions of generated columns. It is not the end of a row of commands that counts but each one:
//! a trigger that was disabled and enabled again has missed rows in between.
//!
//! What a restore brings is of another database. It is looked at for the first time when all triggers are
//! there.

use crate::pg::error::{log, raise, report};
use crate::pg::ports;
use crate::track::tables::{self, Catalogs, Patience, Track};
use crate::write::writing;
use pgrx::datum::DatumWithOid;
use pgrx::{PgSqlErrorCode, pg_sys};

/// What a track stands on, as JSON; `$1` is its table, `$2` its type.
const LOOK: &str = "
    WITH RECURSIVE part(oid) AS (
        SELECT $1::oid
        UNION ALL
        SELECT i.inhrelid
        FROM part t JOIN pg_inherits i ON i.inhparent = t.oid
        JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
        WHERE NOT i.inhdetachpending
    ), ours AS (
        SELECT g.oid, g.tgrelid, g.tgtype, g.tgenabled, g.tgqual
        FROM pg_trigger g JOIN part p ON p.oid = g.tgrelid
        WHERE g.tgfoid IN ('counterx.count_row()'::regprocedure, 'counterx.count_truncate()'::regprocedure)
          AND substring(g.tgargs FROM 1 FOR octet_length(convert_to($2, 'SQL_ASCII')) + 1)
              = convert_to($2, 'SQL_ASCII') || '\\x00'::bytea
    ), used AS (
        SELECT DISTINCT d.refclassid, d.refobjid, d.refobjsubid
        FROM pg_depend d JOIN ours g ON g.oid = d.objid AND d.classid = 'pg_trigger'::regclass
    ), code AS (
        SELECT u.refobjid AS oid FROM used u WHERE u.refclassid = 'pg_proc'::regclass
        UNION
        SELECT o.oprcode FROM used u JOIN pg_operator o ON o.oid = u.refobjid WHERE u.refclassid = 'pg_operator'::regclass
    ), used_column AS (
        -- Those of the table: what is copied to partitions depends on none, whose columns have the same names.
        SELECT a.attname, a.atttypid FROM used u
        JOIN pg_attribute a ON u.refclassid = 'pg_class'::regclass AND a.attrelid = u.refobjid AND a.attnum = u.refobjsubid
    ), kind(oid) AS (
        SELECT n.oid FROM (
            SELECT u.atttypid AS oid FROM used_column u
            UNION
            SELECT u.refobjid FROM used u WHERE u.refclassid = 'pg_type'::regclass
            UNION
            SELECT f.prorettype FROM code c JOIN pg_proc f ON f.oid = c.oid
        ) n
        UNION
        -- Domains over others, and elements of arrays.
        SELECT v.oid FROM kind k JOIN pg_type y ON y.oid = k.oid, LATERAL (VALUES (y.typbasetype), (y.typelem)) v(oid)
        WHERE v.oid <> 0
    )
    SELECT jsonb_build_object(
        'root', $1,
        'version', current_setting('server_version_num')::integer / 10000,
        'tables', (
            SELECT jsonb_object_agg(c.oid::text, concat_ws(' ', c.relpersistence, c.relkind,
                (SELECT count(*) FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid AND NOT k.relispartition WHERE i.inhparent = c.oid),
                (SELECT string_agg(concat_ws(' ', g.tgtype, g.tgenabled, hashtextextended(g.tgqual::text, 0)), ',' ORDER BY g.tgtype)
                   FROM ours g WHERE g.tgrelid = c.oid),
                (SELECT string_agg(hashtextextended(d.adbin::text, 0)::text, ',' ORDER BY a.attnum)
                   FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                  WHERE a.attrelid = c.oid AND a.attgenerated <> ''
                    AND a.attname IN (SELECT u.attname FROM used_column u))))
            FROM pg_class c JOIN part p ON p.oid = c.oid),
        'functions', (
            SELECT hashtextextended(string_agg(concat_ws(' ', f.oid, f.prolang, f.proisstrict, f.provolatile, f.prosrc, f.probin, coalesce(f.proconfig::text, '-'), coalesce(f.proargdefaults::text, '-'), f.prosqlbody::text), ',' ORDER BY f.oid), 0)::text
            FROM code c JOIN pg_proc f ON f.oid = c.oid),
        'labels', (
            SELECT coalesce(jsonb_object_agg(e.oid::text, e.enumlabel), '{}')
            FROM pg_enum e WHERE e.enumtypid IN (SELECT k.oid FROM kind k)))";

/// Why a track that stood on `$1` may be wrong on `$2`; `$3` are partitions that have just been made, and are
/// empty. NULL: it is not.
const JUDGE: &str = "
    SELECT CASE
        WHEN o.looked -> 'version' <> n.looked -> 'version' THEN 'the server was upgraded, and what was changed since cannot be told'
        WHEN t.gone IS NOT NULL THEN 'a partition was detached or dropped'
        WHEN t.came IS NOT NULL THEN format('partition %s was attached', t.came::regclass)
        WHEN t.differs IS NOT NULL THEN format('the triggers, the persistence or a generated column of %s were changed', t.differs::regclass)
        WHEN o.looked ->> 'functions' <> n.looked ->> 'functions' THEN 'a function of the definition was changed'
        WHEN EXISTS (SELECT FROM jsonb_each_text(o.looked -> 'labels') a
                     LEFT JOIN jsonb_each_text(n.looked -> 'labels') b USING (key)
                     WHERE a.value IS DISTINCT FROM b.value) THEN 'a label of an enum was renamed'
    END
    FROM (SELECT $1::jsonb AS looked) o, (SELECT $2::jsonb AS looked) n,
    LATERAL (
        SELECT min(o_key::oid) FILTER (WHERE n_key IS NULL) AS gone,
               min(n_key::oid) FILTER (WHERE o_key IS NULL AND n_key::oid <> ALL ($3::oid[])) AS came,
               min(n_key::oid) FILTER (WHERE o_value <> n_value) AS differs
        FROM (SELECT a.key AS o_key, a.value AS o_value, b.key AS n_key, b.value AS n_value
              FROM jsonb_each_text(o.looked -> 'tables') a
              FULL JOIN jsonb_each_text(n.looked -> 'tables') b USING (key)) both_sides
    ) t";

fn one<T: pgrx::FromDatum + pgrx::IntoDatum>(
    catalogs: &Catalogs,
    query: &str,
    arguments: &[DatumWithOid],
) -> Option<T> {
    let rows = catalogs.rows(query, arguments, |row| row.get::<T>(1));
    rows.into_iter().flatten().next()
}

/// Notes what a track stands on now.
pub fn note(catalogs: &Catalogs, table: pg_sys::Oid, type_name: &str) {
    // Which table it is, sessions remember: see `tables::counts_in()`.
    crate::bounds::types::changed();
    let noted = catalogs.run(
        &format!("UPDATE ONLY counterx.track SET looked = ({LOOK}) WHERE type = $2"),
        &[table.into(), type_name.into()],
    );
    check_is_seen(noted, type_name);
}

/// A track that is younger than the transaction's snapshot cannot be changed by it.
///
/// # Errors
/// Raises 40001.
fn check_is_seen(changed: usize, type_name: &str) {
    if changed == 0 && ports::isolation_uses_xact_snapshot() {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                format!(
                    "could not serialize access due to a concurrent change of the track of type \"{type_name}\""
                ),
            )
            .set_hint("Retry the transaction."),
        )
    }
}

/// By the worker: has DDL watched where that was switched off, by hand, or by a restore that switches triggers off.
/// What was missed is seen by what the tracks stand on now. False when somebody had locked what was to be changed:
/// the worker folds, and waits for nobody, so it has to come again.
pub fn see_to(catalogs: &Catalogs) -> bool {
    let comes_again = Patience::ComesAgain;
    let look = || after_ddl(catalogs, &[], comes_again);
    let is_watched = tables::watch_ddl_after_a_look(catalogs, look);
    let is_looked_anew = look_anew_after_upgrade(catalogs, comes_again);
    let is_looked_at = look_at_restored(catalogs, comes_again);
    is_watched && is_looked_anew && is_looked_at
}

/// What was restored by several sessions may have got its last triggers in two that did not see each other.
fn look_at_restored(catalogs: &Catalogs, patience: Patience) -> bool {
    let any = "SELECT EXISTS (SELECT FROM ONLY counterx.track t WHERE t.looked IS NULL)";
    if one(catalogs, any, &[]) != Some(true) {
        return true;
    }
    let mut is_all = true;
    for track in tables::tracks(catalogs, None, None) {
        if let Some(table) = track.table.filter(|_| !track.is_known) {
            is_all &= look_at(catalogs, table, &track, patience);
        }
    }
    is_all
}

/// A track that was restored is as good as it was, from when on all its triggers are there. They come one by one,
/// after its rows. One that was switched off before has missed some.
fn look_at(catalogs: &Catalogs, table: pg_sys::Oid, track: &Track, patience: Patience) -> bool {
    let type_name = track.type_name.as_str();
    let is_whole = tables::trouble(catalogs, table, type_name).is_none();
    let why = match is_whole {
        true => None,
        false if track.state == "stale" => return true,
        false => match tables::switched_off(catalogs, table, type_name) {
            None => return true,
            why => why,
        },
    };
    if !tables::may_change(catalogs, type_name, patience) {
        return false;
    }
    match why {
        None => {
            was_exact_elsewhere(catalogs, type_name);
            note(catalogs, table, type_name);
        }
        Some(why) => {
            spoil(catalogs, type_name, &why);
        }
    }
    true
}

/// Rows of a track that was restored are changed before it was looked at. Those that a dump has come before the
/// triggers, and counters have them. But where several sessions restore, the triggers of a partitioned table may come
/// before the rows of a partition. Such rows are not counted: counters of which there is something already could not be
/// restored any more. The last triggers of all, those of TRUNCATE, come after the rows, so from then on rows are counted.
/// In both cases nobody can tell what else was changed in between.
///
/// # Errors
/// Raises 40001 where the transaction's snapshot is older than the track.
pub fn counts_too_early(catalogs: &Catalogs, type_name: &str) {
    const WHY: &str =
        "rows were changed before it was looked at for the first time after it was restored";
    const IN_DOUBT: &str = "SELECT EXISTS (SELECT FROM ONLY counterx.track t
                                           WHERE t.type = $1 AND t.looked IS NULL AND t.state <> 'stale')";
    let changed = spoil(catalogs, type_name, WHY);
    if changed == 0 && one(catalogs, IN_DOUBT, &[type_name.into()]) == Some(true) {
        check_is_seen(changed, type_name);
    }
}

/// A track that was restored, and was not looked at, is wrong. It is counted when it has been looked at: that is when
/// nothing of it is missing any more, and nobody is about to restore it.
///
/// Returns how many rows of `counterx.track` that has changed.
fn spoil(catalogs: &Catalogs, type_name: &str, why: &str) -> usize {
    let changed = catalogs.run(
        "UPDATE ONLY counterx.track SET state = 'stale', since = clock_timestamp(), reason = $2, version = version + 1,
                rows_seen = NULL
          WHERE type = $1 AND looked IS NULL AND state <> 'stale'",
        &[type_name.into(), why.into()],
    );
    if changed > 0 {
        log(format!(
            "counterx: the track of type \"{type_name}\" is stale: {why}"
        ));
        writing::wake_worker_at_commit();
    }
    changed
}

/// Nobody has counted the rows of a track that was restored, here: its counters may have been anybody's until just
/// now, see `Others`, and be on their way still.
fn was_exact_elsewhere(catalogs: &Catalogs, type_name: &str) {
    catalogs.run(
        "UPDATE ONLY counterx.track SET rows_seen = NULL,
                state = CASE state WHEN 'attached' THEN 'stale' ELSE state END,
                reason = CASE state WHEN 'attached' THEN 'it was restored before its rows had been counted' ELSE reason END
          WHERE type = $1",
        &[type_name.into()],
    );
}

/// What a track stands on looks otherwise in another version of the server. Until it is looked at there, no
/// command of DDL has come: that would have made the track stale. Nobody is waited for who is changing it now.
fn look_anew_after_upgrade(catalogs: &Catalogs, patience: Patience) -> bool {
    const IS_OLD: &str = "(t.looked ->> 'version')::integer <> current_setting('server_version_num')::integer / 10000";
    let old = format!("SELECT t.type FROM ONLY counterx.track t WHERE {IS_OLD}");
    let old = catalogs.rows(&old, &[], |row| row.get::<String>(1));
    let mut is_all = true;
    for type_name in old.into_iter().flatten() {
        for track in tables::tracks(catalogs, None, Some(&type_name)) {
            let Some(table) = track.table else { continue };
            if !tables::may_change(catalogs, &type_name, patience) {
                is_all = false;
                continue;
            }
            if track.state == "exact"
                && let Some(why) = tables::trouble(catalogs, table, &type_name)
            {
                set_stale(catalogs, &type_name, &why, Some(table));
                continue;
            }
            catalogs.run(
                &format!("UPDATE ONLY counterx.track t SET looked = ({LOOK}) WHERE t.type = $2 AND {IS_OLD}"),
                &[table.into(), type_name.as_str().into()],
            );
            crate::bounds::types::changed();
        }
    }
    is_all
}

/// After a command of DDL. `created` are the tables that it has made. False when some tracks were passed over, as
/// somebody had locked what was to be changed.
pub fn after_ddl(catalogs: &Catalogs, created: &[pg_sys::Oid], patience: Patience) -> bool {
    let mut is_all = true;
    for track in tables::tracks(catalogs, None, None) {
        let type_name = track.type_name.as_str();
        let Some(table) = track.table else {
            is_all &= without_triggers(catalogs, type_name, patience);
            continue;
        };
        let looked: Option<String> = one(
            catalogs,
            "SELECT t.looked::text FROM ONLY counterx.track t WHERE t.type = $1",
            &[type_name.into()],
        );
        let Some(before) = looked else {
            is_all &= look_at(catalogs, table, &track, patience);
            continue;
        };
        // Row triggers are copied to partitions, made or attached; those of TRUNCATE are not.
        if !tables::make_missing_truncate_triggers(catalogs, table, type_name, patience) {
            is_all = false;
            continue;
        }
        let now: Option<String> = one(
            catalogs,
            &format!("SELECT ({LOOK})::text"),
            &[table.into(), type_name.into()],
        );
        let now = now.unwrap_or_default();
        let why: Option<String> = one(
            catalogs,
            JUDGE,
            &[
                before.as_str().into(),
                now.as_str().into(),
                created.to_vec().into(),
            ],
        );
        // What is new may be what cannot be counted.
        let trouble = || {
            (before != now)
                .then(|| tables::trouble(catalogs, table, type_name))
                .flatten()
        };
        let why = why.or_else(trouble);
        if why.is_none() && before == now {
            continue;
        }
        if !tables::may_change(catalogs, type_name, patience) {
            is_all = false;
            continue;
        }
        match why {
            Some(why) => set_stale(catalogs, type_name, &why, Some(table)),
            None => note(catalogs, table, type_name),
        }
    }
    is_all
}

/// A track whose triggers are all gone: with the table, or without it; or they were not restored yet.
fn without_triggers(catalogs: &Catalogs, type_name: &str, patience: Patience) -> bool {
    let query = "
        SELECT CASE
            WHEN t.looked IS NULL THEN 'restored'
            WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = (t.looked ->> 'root')::oid) THEN 'stale'
            ELSE 'gone' END
        FROM ONLY counterx.track t WHERE t.type = $1 AND t.reason IS DISTINCT FROM 'its triggers were dropped'";
    let found = one::<String>(catalogs, query, &[type_name.into()]);
    let is_gone = match found.as_deref() {
        Some("stale") => false,
        Some("gone") => true,
        _ => return true,
    };
    if !tables::may_change(catalogs, type_name, patience) {
        return false;
    }
    if is_gone {
        log(format!(
            "counterx: the tracked table of type \"{type_name}\" was dropped; its counters stay"
        ));
        tables::remove(catalogs, type_name);
        crate::bounds::types::changed();
    } else {
        set_stale(catalogs, type_name, "its triggers were dropped", None);
    }
    true
}

/// A track may be wrong from now on. It is looked at again, and recounted where that helps.
pub fn set_stale(catalogs: &Catalogs, type_name: &str, why: &str, table: Option<pg_sys::Oid>) {
    let changed = catalogs.run(
        "UPDATE ONLY counterx.track SET state = 'stale', since = clock_timestamp(), reason = $2, version = version + 1
          WHERE type = $1",
        &[type_name.into(), why.into()],
    );
    check_is_seen(changed, type_name);
    if let Some(table) = table {
        note(catalogs, table, type_name);
    }
    log(format!(
        "counterx: the track of type \"{type_name}\" is stale: {why}"
    ));
    writing::wake_worker_at_commit();
}

/// Rows of `counterx.track` have come by SQL: those of a dump, which do not say what they stand on. If the
/// triggers are there already, rows may have been counted before their counters came.
pub fn restored(catalogs: &Catalogs) {
    // SAFETY: what the command has brought shall be seen.
    unsafe { pg_sys::CommandCounterIncrement() };
    tables::watch_ddl_if_needed(catalogs);
    for track in tables::tracks(catalogs, None, None) {
        if let Some(table) = track.table.filter(|_| !track.is_known) {
            const WHY: &str = "it was restored beside triggers that were there already";
            let type_name = track.type_name.as_str();
            match tables::trouble(catalogs, table, type_name) {
                None => {
                    was_exact_elsewhere(catalogs, type_name);
                    set_stale(catalogs, type_name, WHY, Some(table));
                }
                // The restore goes on.
                Some(_) => {
                    spoil(catalogs, type_name, WHY);
                }
            }
        }
    }
}
