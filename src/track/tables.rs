//! Tracked tables in the catalogs: their triggers, partitions, and the rows of `counterx.track`.

use crate::bounds::types;
use crate::pg::compat;
use crate::pg::error::{quoted, raise, report};
use crate::pg::expression::Condition;
use crate::pg::ports;
use crate::pg::query::{self, ResultRow};
use crate::pg::relation::{ACCESS_EXCLUSIVE, LockMode, Relation, SHARE_ROW_EXCLUSIVE};
use crate::pg::row_trigger::{self, RowTrigger};
use crate::store::as_owner::AsOwner;
use crate::store::catalog;
use crate::track::definition::{Definition, Event};
use pgrx::datum::{DatumWithOid, TimestampWithTimeZone};
use pgrx::spi::{quote_identifier, quote_literal};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;
use std::fmt::Display;

/// Runs queries on the catalogs and on our tables, as the extension's owner, with the system's search path,
/// as long as this lives.
pub struct Catalogs {
    owner: AsOwner,
}

impl Catalogs {
    /// From now on.
    ///
    /// # Errors
    /// Raises an error when the extension cannot be used.
    pub fn enter() -> Self {
        Self {
            owner: AsOwner::of(catalog::shared().types),
        }
    }

    /// Runs a command. Returns how many rows it has changed, as far as the transaction's snapshot has them.
    ///
    /// # Errors
    /// Those of the command.
    pub fn run(&self, command: &str, arguments: &[DatumWithOid]) -> usize {
        self.owner.run(command, arguments)
    }

    /// The rows of a query, as `read` takes them: as they are now, whatever snapshot the transaction is bound to.
    ///
    /// # Errors
    /// Those of the query.
    pub fn rows<T>(
        &self,
        query: &str,
        arguments: &[DatumWithOid],
        mut read: impl FnMut(&ResultRow) -> T,
    ) -> Vec<T> {
        let mut rows = Vec::new();
        if !query::for_each_row(query, arguments, |row| rows.push(read(row))) {
            internal(&"a query was not run")
        }
        rows
    }
}

fn internal(error: &dyn Display) -> ! {
    raise(report(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("counterx could not look at its tracks: {error}"),
    ))
}

/// A row of `counterx.track`.
#[derive(PartialEq)]
pub struct Track {
    /// The type of its counters.
    pub type_name: String,
    /// Its state: attached, exact, stale.
    pub state: String,
    /// Rises with each change of the row that says that the counters may be wrong.
    pub version: i64,
    /// When it came into that state: tells it from one that was of the same type before.
    pub since: Option<TimestampWithTimeZone>,
    /// It was exact before, so its counters have not been anybody's since.
    pub was_exact: bool,
    /// What it stands on was looked at: not when it has just been restored.
    pub is_known: bool,
    /// The table that the triggers are on; None: there are none.
    pub table: Option<pg_sys::Oid>,
}

/// The tracks, each with the table on which its triggers are: those that are no partition's copies. A table that
/// somebody has copied them to is none, as long as that on which they were seen last still has them. No track
/// is exact while a partition is being detached, as DETACH PARTITION CONCURRENTLY commits in the middle.
const TRACKS: &str = "
    SELECT t.type,
           CASE WHEN EXISTS (
                SELECT FROM pg_trigger c JOIN pg_inherits i ON i.inhrelid = c.tgrelid AND i.inhdetachpending
                WHERE c.tgfoid = 'counterx.count_row()'::regprocedure
                  AND substring(c.tgargs FROM 1 FOR octet_length(convert_to(t.type, 'SQL_ASCII')) + 1)
                      = convert_to(t.type, 'SQL_ASCII') || '\\x00'::bytea
           ) THEN 'stale' ELSE t.state END,
           t.version, t.looked IS NOT NULL, g.tgrelid, t.since,
           t.rows_seen IS NOT NULL AND t.looked IS NOT NULL
    FROM ONLY counterx.track t
    LEFT JOIN LATERAL (
        SELECT g.tgrelid
        FROM pg_trigger g
        WHERE g.tgfoid = 'counterx.count_row()'::regprocedure
          AND g.tgparentid = 0
          AND substring(g.tgargs FROM 1 FOR octet_length(convert_to(t.type, 'SQL_ASCII')) + 1)
              = convert_to(t.type, 'SQL_ASCII') || '\\x00'::bytea
        ORDER BY g.tgrelid IS NOT DISTINCT FROM (t.looked ->> 'root')::oid DESC,
                 g.tgrelid IS NOT DISTINCT FROM to_regclass(format('%I.%I', t.table_schema, t.table_name)) DESC,
                 g.tgrelid
        LIMIT 1
    ) g ON true";

/// All tracks, or those of one table, or that of one type.
pub fn tracks(
    catalogs: &Catalogs,
    table: Option<pg_sys::Oid>,
    type_name: Option<&str>,
) -> Vec<Track> {
    let query = format!(
        "{TRACKS} WHERE ($1 IS NULL OR g.tgrelid = $1) AND ($2 IS NULL OR t.type = $2) ORDER BY t.type"
    );
    catalogs.rows(&query, &[table.into(), type_name.into()], |row| Track {
        type_name: row.get(1).unwrap_or_default(),
        state: row.get(2).unwrap_or_default(),
        version: row.get(3).unwrap_or_default(),
        is_known: row.get(4).unwrap_or_default(),
        table: row.get(5),
        since: row.get(6),
        was_exact: row.get(7).unwrap_or_default(),
    })
}

/// The function of the row triggers.
pub fn row_function(catalogs: &Catalogs) -> pg_sys::Oid {
    let oid = catalogs.rows(
        "SELECT 'counterx.count_row()'::regprocedure::oid",
        &[],
        |row| row.get(1),
    );
    oid.into_iter()
        .flatten()
        .next()
        .unwrap_or(pg_sys::InvalidOid)
}

/// A table and all partitions below it, by number and level. (`pg_partition_tree()` locks them all, to the end of
/// the transaction.)
pub const TREE: &str = "
    tree(oid, level) AS (
        SELECT $1::oid, 0
        UNION ALL
        SELECT i.inhrelid, t.level + 1
        FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid
        JOIN pg_class c ON c.oid = i.inhrelid AND c.relispartition
    )";

/// What has the rows: a table's partitions that have none themselves, or the table.
pub fn leaves(catalogs: &Catalogs, table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let query = format!(
        "WITH RECURSIVE {TREE}
         SELECT c.oid FROM tree t JOIN pg_class c ON c.oid = t.oid WHERE c.relkind <> 'p' ORDER BY 1"
    );
    let leaves = catalogs.rows(&query, &[table.into()], |row| row.get::<pg_sys::Oid>(1));
    leaves.into_iter().flatten().collect()
}

/// All partitions below a table, each after what it is a partition of, as the server locks them.
pub fn below(catalogs: &Catalogs, table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let query = format!(
        "WITH RECURSIVE {TREE} SELECT t.oid FROM tree t WHERE t.level > 0 ORDER BY t.level, 1"
    );
    let all = catalogs.rows(&query, &[table.into()], |row| row.get::<pg_sys::Oid>(1));
    all.into_iter().flatten().collect()
}

/// The partitioned tables among a table and those below it.
pub fn partitioned(catalogs: &Catalogs, table: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let query = format!(
        "WITH RECURSIVE {TREE}
         SELECT c.oid FROM tree t JOIN pg_class c ON c.oid = t.oid WHERE c.relkind = 'p' ORDER BY t.level, 1"
    );
    let all = catalogs.rows(&query, &[table.into()], |row| row.get::<pg_sys::Oid>(1));
    all.into_iter().flatten().collect()
}

/// A column that rows are looked up by, for queries.
pub struct Leading {
    /// Its name.
    pub column: String,
    /// Its type's.
    pub type_name: String,
}

/// The column of this number, when an index of each partition begins with it. None for a "char", whose text says
/// something else in each version of the server.
pub fn indexed_column(catalogs: &Catalogs, table: pg_sys::Oid, number: i16) -> Option<Leading> {
    let query = format!(
        "WITH RECURSIVE {TREE}
        SELECT quote_ident(a.attname), format_type(a.atttypid, -1)
        FROM pg_attribute a
        WHERE a.attrelid = $1 AND a.attnum = $2 AND a.atttypid <> '\"char\"'::regtype
          AND NOT EXISTS (
              SELECT FROM tree t JOIN pg_class c ON c.oid = t.oid
              WHERE c.relkind <> 'p' AND NOT EXISTS (
                  SELECT FROM pg_index i
                  JOIN pg_class x ON x.oid = i.indexrelid
                  JOIN pg_am m ON m.oid = x.relam
                  JOIN pg_attribute l ON l.attrelid = i.indrelid AND l.attname = a.attname
                  WHERE i.indrelid = t.oid AND i.indisvalid AND i.indpred IS NULL
                    AND i.indkey[0] = l.attnum AND m.amname = 'btree'))"
    );
    let found = catalogs.rows(&query, &[table.into(), i32::from(number).into()], |row| {
        row.get(1).zip(row.get(2))
    });
    let (column, type_name) = found.into_iter().flatten().next()?;
    Some(Leading { column, type_name })
}

/// Why the rows of `tree` cannot be counted, and what to do; NULL: they can.
const UNSUITABLE: &str = "
    CASE
        WHEN EXISTS (SELECT FROM tree t JOIN pg_class c ON c.oid = t.oid WHERE c.relpersistence <> 'p')
            THEN 'Unlogged and temporary tables are emptied without a trigger.|ALTER TABLE ... SET LOGGED, or count with counter_incr().'
        WHEN EXISTS (SELECT FROM tree t JOIN pg_class c ON c.oid = t.oid WHERE c.relkind NOT IN ('r', 'p'))
            THEN 'A partition of it is a foreign table, which others change without a trigger.|Detach it first.'
        WHEN EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                     WHERE $1 IN (i.inhrelid, i.inhparent) AND NOT c.relispartition)
            THEN 'It takes part in inheritance.|Use a partitioned table.'
        WHEN EXISTS (SELECT FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid WHERE i.inhdetachpending)
            THEN 'A partition of it is being detached.|ALTER TABLE ... DETACH PARTITION ... FINALIZE.'
    END";

/// Refuses what cannot be tracked.
///
/// # Errors
/// Raises 42809 or 0A000 with the reason.
pub fn check_table(catalogs: &Catalogs, table: &Relation) {
    let query = format!(
        "WITH RECURSIVE {TREE}
         SELECT CASE
            WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = $1 AND c.relkind NOT IN ('r', 'p'))
                THEN 'It is not a table.|Track the tables that its rows are in.'
            WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = $1 AND (c.relnamespace IN ('pg_catalog'::regnamespace, 'counterx'::regnamespace) OR c.oid < 16384))
                THEN 'It is a table of the system.|Track a table of your own.'
            WHEN EXISTS (SELECT FROM pg_class c WHERE c.oid = $1 AND c.relispartition)
                THEN 'It is a partition.|Track the partitioned table.'
            ELSE {UNSUITABLE} END"
    );
    let refusal = catalogs.rows(&query, &[table.oid().into()], |row| row.get::<String>(1));
    if let Some(refusal) = refusal.into_iter().flatten().next() {
        let (why, hint) = refusal.split_once('|').unwrap_or((&refusal, ""));
        raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("cannot track the rows of {}", shown(table)),
            )
            .set_detail(why)
            .set_hint(hint),
        )
    }
}

/// The name of a table, for messages.
pub fn shown(table: &Relation) -> String {
    // SAFETY: an open relation has its pg_class row, and a name ends with a zero.
    let name = unsafe { CStr::from_ptr((*(*table.as_ptr()).rd_rel).relname.data.as_ptr()) };
    quoted(name.to_bytes())
}

/// Does row security hide rows of a table from somebody?
pub fn hides_rows(table: &Relation) -> bool {
    // SAFETY: an open relation has its pg_class row.
    unsafe { (*(*table.as_ptr()).rd_rel).relrowsecurity }
}

/// A table's name, with its schema, for commands.
pub fn full_name(catalogs: &Catalogs, table: pg_sys::Oid) -> String {
    // The search path has the system's schemas alone.
    let name = catalogs.rows("SELECT $1::regclass::text", &[table.into()], |row| {
        row.get(1)
    });
    name.into_iter().flatten().next().unwrap_or_default()
}

/// The beginning of the names of a type's triggers.
fn trigger_prefix(type_name: &str) -> String {
    const LONGEST: usize = 40;
    if type_name.len() <= LONGEST {
        return format!("counterx_{type_name}");
    }
    let hash = counterx_core::lane::NameHash::of(type_name.as_bytes()).get();
    format!("counterx_{}_{:08x}", &type_name[..LONGEST - 9], hash as u32)
}

/// The conditions of a track's triggers, by event.
pub fn conditions(
    catalogs: &Catalogs,
    table: &Relation,
    definition: &Definition,
) -> [Condition; 3] {
    let key = catalogs.rows(
        "SELECT format('%I.counter_key', n.nspname)
           FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'counterx'",
        &[],
        |row| row.get::<String>(1),
    );
    let key = key
        .into_iter()
        .flatten()
        .next()
        .unwrap_or_else(|| catalog::gone());
    Event::ALL.map(|event| definition.condition(table, event, &key))
}

/// Makes the triggers of a track.
///
/// # Errors
/// Those of CREATE TRIGGER.
pub fn make_triggers(
    catalogs: &Catalogs,
    table: pg_sys::Oid,
    type_name: &str,
    conditions: &[Condition; 3],
    scale: Option<u32>,
) {
    let prefix = trigger_prefix(type_name);
    let scale = scale.map(|scale| scale.to_string());
    let arguments: Vec<&str> = [Some(type_name), scale.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    let function = row_function(catalogs);
    let query = format!(
        "SELECT g.tgname::text FROM pg_trigger g WHERE g.tgrelid = $1 AND g.tgfoid = $3 AND g.tgparentid = 0 AND {OF_TYPE}"
    );
    let of_before = [table.into(), type_name.into(), function.into()];
    let left = catalogs.rows(&query, &of_before, |row| row.get::<String>(1));
    let left: Vec<String> = left.into_iter().flatten().collect();
    {
        // What is made on a partitioned table looks at its key, which may call somebody's functions.
        let partitioned: Vec<Relation> = partitioned(catalogs, table)
            .into_iter()
            .filter_map(Relation::open_for_read)
            .collect();
        partitioned.iter().for_each(row_trigger::know_partitions);
        for (event, condition) in Event::ALL.into_iter().zip(conditions) {
            let name = format!("{prefix}_{}", event.keyword());
            let trigger = RowTrigger {
                name: &name,
                replaces: left.contains(&name),
                event: event.number(),
                function,
                arguments: &arguments,
                condition,
            };
            trigger.make(table);
        }
    }
    for leaf in leaves(catalogs, table) {
        make_truncate_trigger(catalogs, leaf, type_name);
    }
}

/// Triggers of TRUNCATE are not copied to partitions. One may have been left by an earlier track: see
/// [`drop_triggers`].
pub fn make_truncate_trigger(catalogs: &Catalogs, leaf: pg_sys::Oid, type_name: &str) {
    let name = full_name(catalogs, leaf);
    let query = format!(
        "SELECT quote_ident(g.tgname) FROM pg_trigger g
          WHERE g.tgrelid = $1 AND g.tgfoid = 'counterx.count_truncate()'::regprocedure AND {OF_TYPE} LIMIT 1"
    );
    let left = catalogs.rows(&query, &[leaf.into(), type_name.into()], |row| {
        row.get::<String>(1)
    });
    let trigger = left.into_iter().flatten().next().unwrap_or_else(|| {
        let trigger = quote_identifier(format!("{}_truncate", trigger_prefix(type_name)));
        catalogs.run(
            &format!(
                "CREATE TRIGGER {trigger} BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION counterx.count_truncate({})",
                quote_literal(type_name),
            ),
            &[],
        );
        trigger
    });
    catalogs.run(
        &format!("ALTER TABLE {name} ENABLE ALWAYS TRIGGER {trigger}"),
        &[],
    );
}

/// Triggers `g` of the type `$2`.
const OF_TYPE: &str = "
    substring(g.tgargs FROM 1 FOR octet_length(convert_to($2, 'SQL_ASCII')) + 1)
        = convert_to($2, 'SQL_ASCII') || '\\x00'::bytea";

/// Row triggers of ours, and those of TRUNCATE, that are of the type `$2` and no copies that go with another.
fn own_triggers() -> String {
    format!(
        "g.tgfoid IN ('counterx.count_row()'::regprocedure, 'counterx.count_truncate()'::regprocedure)
         AND g.tgparentid = 0 AND {OF_TYPE}"
    )
}

/// Drops the triggers of a track. Its table and the partitions are locked against everybody. Other tables may have
/// them as well: what was a partition keeps that of TRUNCATE, and a copy of a table has all. There they count
/// nothing, and nobody waits for whoever has such a table in use. Returns the names of those tables.
pub fn drop_triggers(catalogs: &Catalogs, table: pg_sys::Oid, type_name: &str) -> Vec<String> {
    let own = own_triggers();
    let query = format!(
        "WITH RECURSIVE {TREE}
        SELECT DISTINCT g.tgrelid, EXISTS (SELECT FROM tree t WHERE t.oid = g.tgrelid) FROM pg_trigger g WHERE {own} ORDER BY 1"
    );
    let arguments = [table.into(), type_name.into()];
    let all = catalogs.rows(&query, &arguments, |row| {
        row.get::<pg_sys::Oid>(1)
            .map(|oid| (oid, row.get(2) == Some(true)))
    });
    let mut in_use = Vec::new();
    for (oid, is_ours) in all.into_iter().flatten() {
        if !is_ours && !locked_if_free(catalogs, oid) {
            in_use.push(full_name(catalogs, oid));
            continue;
        }
        let query = format!(
            "SELECT format('DROP TRIGGER %I ON %s', g.tgname, g.tgrelid::regclass)
               FROM pg_trigger g WHERE g.tgrelid = $1 AND {own}"
        );
        let commands = catalogs.rows(&query, &[oid.into(), type_name.into()], |row| {
            row.get::<String>(1)
        });
        for command in commands.into_iter().flatten() {
            catalogs.run(&command, &[]);
        }
    }
    in_use
}

/// Locks a table and its partitions against everybody, if nobody uses one of them.
fn locked_if_free(catalogs: &Catalogs, table: pg_sys::Oid) -> bool {
    let is_free = |oid| {
        Relation::open_if_free(oid, ACCESS_EXCLUSIVE)
            .is_some_and(|table| !table.is_used_elsewhere())
    };
    is_free(table) && below(catalogs, table).into_iter().all(is_free)
}

/// Are all triggers of a track there, on the table and on each of its partitions, and do they fire in every
/// session? If not: what is wrong.
pub fn trouble(catalogs: &Catalogs, table: pg_sys::Oid, type_name: &str) -> Option<String> {
    let query = format!(
        "WITH RECURSIVE {TREE}, wanted AS (
            SELECT c.oid, f.function, f.type
            FROM tree t JOIN pg_class c ON c.oid = t.oid,
                (VALUES ('counterx.count_row()'::regprocedure::oid, 4),
                        ('counterx.count_row()'::regprocedure::oid, 8),
                        ('counterx.count_row()'::regprocedure::oid, 16),
                        ('counterx.count_truncate()'::regprocedure::oid, 32)) f(function, type)
            WHERE c.relkind <> 'p' OR f.type <> 32
        ), ours AS (
            SELECT g.tgrelid, g.tgfoid, g.tgtype, g.tgname, g.tgenabled, g.tgparentid
            FROM pg_trigger g
            WHERE g.tgfoid IN ('counterx.count_row()'::regprocedure, 'counterx.count_truncate()'::regprocedure)
              AND {OF_TYPE}
        )
        SELECT coalesce(
            lower(left(u.why, 1)) || substr(split_part(u.why, '.|', 1), 2),
            (SELECT format('there are triggers of this type on %s as well', g.tgrelid::regclass)
               FROM ours g
              WHERE g.tgparentid = 0 AND g.tgfoid = 'counterx.count_row()'::regprocedure AND g.tgrelid <> $1
                -- Others cannot keep a track from being counted: what they copy counts nothing.
                AND (SELECT c.relowner FROM pg_class c WHERE c.oid = g.tgrelid) = (SELECT c.relowner FROM pg_class c WHERE c.oid = $1)
              LIMIT 1),
            (SELECT CASE WHEN g.tgrelid IS NULL
                THEN format('a trigger on %s is missing', w.oid::regclass)
                ELSE format('trigger %I on %s is not enabled ALWAYS', g.tgname, w.oid::regclass) END
             FROM wanted w
             LEFT JOIN ours g ON g.tgrelid = w.oid AND g.tgfoid = w.function AND g.tgtype & w.type <> 0
             WHERE g.tgrelid IS NULL OR g.tgenabled <> 'A'
             LIMIT 1))
        FROM (SELECT {UNSUITABLE} AS why) u"
    );
    let found = catalogs.rows(&query, &[table.into(), type_name.into()], |row| {
        row.get::<String>(1)
    });
    found.into_iter().flatten().next()
}

/// Are triggers of a track missing, on its table or a partition, whether they fire or not?
fn lacks_triggers(catalogs: &Catalogs, type_name: &str) -> bool {
    let track = tracks(catalogs, None, Some(type_name)).pop();
    let Some(table) = track.and_then(|track| track.table) else {
        return true;
    };
    let query = format!(
        "WITH RECURSIVE {TREE}
         SELECT EXISTS (
            SELECT FROM tree t JOIN pg_class c ON c.oid = t.oid,
                (VALUES ('counterx.count_row()'::regprocedure, 4), ('counterx.count_row()'::regprocedure, 8),
                        ('counterx.count_row()'::regprocedure, 16), ('counterx.count_truncate()'::regprocedure, 32)) f(function, type)
            WHERE (c.relkind <> 'p' OR f.type <> 32)
              AND NOT EXISTS (
                SELECT FROM pg_trigger g
                WHERE g.tgrelid = c.oid AND g.tgfoid = f.function AND g.tgtype & f.type <> 0
                  AND {OF_TYPE}))"
    );
    let found = catalogs.rows(&query, &[table.into(), type_name.into()], |row| {
        row.get::<bool>(1)
    });
    found.first() != Some(&Some(false))
}

/// A trigger of a track that no row fires, or only what is replicated. None: there is none like that.
///
/// A restore makes triggers first, and then has them fire always: one like this was switched off by somebody.
pub fn switched_off(catalogs: &Catalogs, table: pg_sys::Oid, type_name: &str) -> Option<String> {
    let query = format!(
        "WITH RECURSIVE {TREE}
         SELECT format('trigger %I on %s was disabled', g.tgname, g.tgrelid::regclass)
         FROM tree t JOIN pg_trigger g ON g.tgrelid = t.oid
         WHERE g.tgfoid IN ('counterx.count_row()'::regprocedure, 'counterx.count_truncate()'::regprocedure)
           AND {OF_TYPE}
           AND g.tgenabled IN ('D', 'R')
         ORDER BY t.level, g.tgrelid, g.tgname
         LIMIT 1"
    );
    let found = catalogs.rows(&query, &[table.into(), type_name.into()], |row| {
        row.get::<String>(1)
    });
    found.into_iter().flatten().next()
}

/// Is the current user the table's owner, or a member of it?
///
/// # Errors
/// Raises 42501 when not.
pub fn check_is_owner(table: &Relation) {
    // SAFETY: takes any ids.
    if !unsafe { compat::owns_relation(table.oid(), pg_sys::GetUserId()) } {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("must be owner of table {}", shown(table)),
            )
            .set_hint(
                "Whoever tracks a table puts triggers on it, and everybody may read the counters.",
            ),
        )
    }
}

/// A track has become exact, unless somebody has said since it was looked at that it is not. Nobody is waited for
/// who is just changing it: that would be under locks on the table that he may be waiting for.
///
/// Nor is it exact when this very transaction has made it stale: before that is committed, others count by what
/// was before. The filler finds out after it.
pub fn set_exact(catalogs: &Catalogs, track: &Track, rows: u64) {
    if track.state == "stale" && is_ours(catalogs, Some(&track.type_name)) {
        return;
    }
    catalogs.run(
        &format!(
            "UPDATE ONLY counterx.track SET state = 'exact', since = clock_timestamp(), reason = NULL,
                waiting_for = NULL, last_error = NULL, rows_seen = $3
              WHERE type IN (SELECT t.type FROM ONLY counterx.track t WHERE t.type = $1 AND t.version = $2 {UNLOCKED})"
        ),
        &[
            track.type_name.as_str().into(),
            track.version.into(),
            i64::try_from(rows).unwrap_or(i64::MAX).into(),
        ],
    );
}

/// What a caller does about what others have locked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It waits, as sessions do.
    Waits,
    /// It comes again later, as processes do that have other things to do.
    ComesAgain,
}

/// Rows of tracks that nobody has locked, for background processes: whoever has locked one may keep it for hours.
const UNLOCKED: &str = "FOR NO KEY UPDATE SKIP LOCKED";

/// May the row of a track be changed now? For who comes again later, it is locked then. False when somebody else
/// has it locked, or has removed it.
pub fn may_change(catalogs: &Catalogs, type_name: &str, patience: Patience) -> bool {
    let query = format!("SELECT FROM ONLY counterx.track t WHERE t.type = $1 {UNLOCKED}");
    patience == Patience::Waits || catalogs.run(&query, &[type_name.into()]) > 0
}

/// Notes something of a track that says nothing about whether it is right: `waiting_for` or `last_error`. Not while
/// somebody has its row locked.
pub fn note(catalogs: &Catalogs, type_name: &str, what: &str, text: Option<&str>) {
    let column = quote_identifier(what);
    catalogs.run(
        &format!(
            "UPDATE ONLY counterx.track SET {column} = $2
              WHERE type IN (SELECT t.type FROM ONLY counterx.track t
                             WHERE t.type = $1 AND t.{column} IS DISTINCT FROM $2 {UNLOCKED})"
        ),
        &[type_name.into(), text.into()],
    );
}

/// The same of all tracks that are not exact.
pub fn note_unfinished(catalogs: &Catalogs, error: &str) {
    catalogs.run(
        &format!(
            "UPDATE ONLY counterx.track SET last_error = $1
              WHERE type IN (SELECT t.type FROM ONLY counterx.track t
                             WHERE t.state <> 'exact' AND t.last_error IS DISTINCT FROM $1 {UNLOCKED})"
        ),
        &[error.into()],
    );
}

/// Says which tracks are not exact, by a number that is another one when one more is not. None: all are.
pub fn unfinished(catalogs: &Catalogs) -> Option<i64> {
    let query =
        "SELECT sum(hashtextextended(t.type, t.version) >> 8)::bigint FROM ONLY counterx.track t
                  WHERE t.state <> 'exact' AND t.looked IS NOT NULL";
    let found = catalogs.rows(query, &[], |row| row.get::<i64>(1));
    found.into_iter().flatten().next()
}

/// Who has what is in `l`, of `pg_locks`.
const WHO: &str = "
    SELECT string_agg(DISTINCT coalesce(
        CASE a.backend_type WHEN 'autovacuum worker' THEN 'autovacuum, process ' ELSE 'process ' END || l.pid,
        'prepared transaction ' || quote_literal(x.gid), 'somebody'), ', ')
    FROM pg_locks l
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
    LEFT JOIN pg_locks own ON l.pid IS NULL AND own.locktype = 'transactionid' AND own.granted
        AND own.mode = 'ExclusiveLock' AND own.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_prepared_xacts x ON x.transaction = own.transactionid";

/// Who has a table, or a partition, locked so that it cannot be locked in this mode, which keeps writers out, or
/// readers as well; None: nobody.
pub fn holders(catalogs: &Catalogs, table: pg_sys::Oid, mode: LockMode) -> Option<String> {
    let query = format!(
        "WITH RECURSIVE {TREE} {WHO}
        WHERE l.locktype = 'relation' AND l.relation IN (SELECT t.oid FROM tree t)
          AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
          AND l.granted AND ($2 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
          AND l.pid IS DISTINCT FROM pg_backend_pid()"
    );
    let readers_too = mode == ACCESS_EXCLUSIVE;
    let arguments = [table.into(), readers_too.into()];
    let holders = catalogs.rows(&query, &arguments, |row| row.get::<String>(1));
    holders.into_iter().flatten().next()
}

/// Whose transactions these are, as `pg_locks` names them.
pub fn who(catalogs: &Catalogs, xacts: Vec<String>) -> String {
    let query = format!("{WHO} WHERE l.virtualtransaction = ANY ($1) AND l.granted");
    let who = catalogs.rows(&query, &[xacts.into()], |row| row.get::<String>(1));
    let who = who.into_iter().flatten().next();
    who.unwrap_or_else(|| "somebody".to_owned())
}

/// Makes a type one that is tracked.
///
/// # Errors
/// Raises 42710 when it is, 0A000 when it has bounds, 55000 when there are counters and they are not adopted.
pub fn take_type(catalogs: &Catalogs, type_name: &str, adopt: bool) {
    let query = "SELECT t.tracked, t.min IS NOT NULL OR t.max IS NOT NULL OR t.per IS NOT NULL FROM ONLY counterx.type t WHERE t.name = $1";
    let known = catalogs.rows(query, &[type_name.into()], |row| {
        (row.get::<bool>(1), row.get::<bool>(2))
    });
    match known.first() {
        Some((Some(true), _)) => raise(
            report(
                PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
                format!("type \"{type_name}\" is that of a tracked table already"),
            )
            .set_hint(
                "SELECT * FROM counter_tracks shows which. Each track needs a type of its own.",
            ),
        ),
        Some((_, Some(true))) => raise(
            report(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("counters of type \"{type_name}\" have bounds, or a window"),
            )
            .set_hint(
                "Use another type: the counters of a tracked table have no bounds and no windows.",
            ),
        ),
        _ => {}
    }
    if !adopt {
        let query = "SELECT EXISTS (SELECT FROM counterx.listing l WHERE l.name ^@ ($1 || ':'))";
        let there = catalogs.rows(query, &[type_name.into()], |row| row.get::<bool>(1));
        if there.first() == Some(&Some(true)) {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                    format!("there are counters of type \"{type_name}\""),
                )
                .set_detail(
                    "They would become those of the table, and nobody else could change them.",
                )
                .set_hint("Use another type, or say adopt => true."),
            )
        }
    }
    // SAFETY: reads the clock.
    let generation = unsafe { pg_sys::GetCurrentTimestamp() };
    catalogs.run(
        "INSERT INTO counterx.type (name, generation, tracked) VALUES ($1, $2, true)
         ON CONFLICT (name) DO UPDATE SET tracked = true, generation = $2",
        &[type_name.into(), generation.into()],
    );
}

/// Notes what was asked for.
pub fn add(
    catalogs: &Catalogs,
    table: pg_sys::Oid,
    type_name: &str,
    key: &[String],
    definition: &Definition,
) {
    let (sum, scale) = match &definition.sum {
        Some((sum, scale)) => (Some(sum.text()), i32::try_from(*scale).unwrap_or(0)),
        None => (None, 0),
    };
    catalogs.run(
        "INSERT INTO counterx.track (type, table_schema, table_name, key, sum, scale, filter, state, since, version)
         SELECT $1, n.nspname, c.relname, $3, $4, $5, $6, 'attached', clock_timestamp(), 1
           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $2",
        &[
            type_name.into(),
            table.into(),
            key.to_vec().into(),
            sum.into(),
            scale.into(),
            definition.filter.as_ref().map(|filter| filter.text()).into(),
        ],
    );
    watch_ddl_if_needed(catalogs);
}

/// Are there tracks, and how is DDL watched, as `pg_event_trigger` says it?
fn watch_of_ddl(catalogs: &Catalogs) -> Option<(bool, i8)> {
    let query = "
        SELECT EXISTS (SELECT FROM ONLY counterx.track), e.evtenabled
        FROM pg_event_trigger e WHERE e.evtname = 'counterx_tracked_ddl'";
    let found = catalogs.rows(query, &[], |row| row.get::<bool>(1).zip(row.get::<i8>(2)));
    found.into_iter().flatten().next()
}

const ALWAYS: i8 = b'A' as i8;
const NEVER: i8 = b'D' as i8;

fn alter_watch_of_ddl(catalogs: &Catalogs, how: &str) {
    let command = format!("ALTER EVENT TRIGGER counterx_tracked_ddl {how}");
    catalogs.run(&command, &[]);
}

/// DDL is watched as long as there are tracks.
pub fn watch_ddl_if_needed(catalogs: &Catalogs) {
    match watch_of_ddl(catalogs) {
        Some((true, how)) if how != ALWAYS => alter_watch_of_ddl(catalogs, "ENABLE ALWAYS"),
        _ => stop_watching_ddl(catalogs),
    }
}

/// There may be no tracks any more.
fn stop_watching_ddl(catalogs: &Catalogs) {
    if matches!(watch_of_ddl(catalogs), Some((false, how)) if how != NEVER) {
        alter_watch_of_ddl(catalogs, "DISABLE");
    }
}

/// The same by the worker, with a look at what DDL was missed. False when that was not looked at everywhere: DDL is
/// watched then, and not yet always, so that whoever comes next looks again.
pub fn watch_ddl_after_a_look(catalogs: &Catalogs, look: impl FnOnce() -> bool) -> bool {
    match watch_of_ddl(catalogs) {
        Some((true, how)) if how != ALWAYS => {
            let is_all = look();
            if is_all {
                alter_watch_of_ddl(catalogs, "ENABLE ALWAYS");
            } else if how == NEVER {
                alter_watch_of_ddl(catalogs, "ENABLE");
            }
            is_all
        }
        _ => {
            stop_watching_ddl(catalogs);
            true
        }
    }
}

/// A track is no more: its counters, if there are any, are anybody's. False: somebody else has ended it.
pub fn remove(catalogs: &Catalogs, type_name: &str) -> bool {
    let removed = catalogs.run(
        "DELETE FROM ONLY counterx.track WHERE type = $1",
        &[type_name.into()],
    );
    if removed == 0 {
        return false;
    }
    catalogs.run(
        "DELETE FROM ONLY counterx.type WHERE name = $1 AND tracked",
        &[type_name.into()],
    );
    stop_watching_ddl(catalogs);
    true
}

/// The table that a track without triggers has stood on, or, where it was restored and not looked at, the one of the
/// name that is noted; None: there is no such table.
pub fn table_of_before(catalogs: &Catalogs, type_name: &str) -> Option<pg_sys::Oid> {
    let query = "
        SELECT c.oid FROM ONLY counterx.track t
        JOIN pg_class c ON c.oid = coalesce((t.looked ->> 'root')::oid,
                                            to_regclass(format('%I.%I', t.table_schema, t.table_name)))
        WHERE t.type = $1";
    let found = catalogs.rows(query, &[type_name.into()], |row| row.get(1));
    found.into_iter().flatten().next()
}

/// The same for partitions that have come since the track was looked at, made or attached, and have none yet.
/// False when others write to one of them, and the caller does not wait.
pub fn make_missing_truncate_triggers(
    catalogs: &Catalogs,
    table: pg_sys::Oid,
    type_name: &str,
    patience: Patience,
) -> bool {
    let query = format!(
        "WITH RECURSIVE {TREE}
         SELECT c.oid FROM tree t JOIN pg_class c ON c.oid = t.oid
         WHERE c.relkind = 'r'
           AND NOT EXISTS (SELECT FROM ONLY counterx.track k WHERE k.type = $2 AND k.looked -> 'tables' ? c.oid::text)
           AND NOT EXISTS (SELECT FROM pg_trigger g
            WHERE g.tgrelid = c.oid AND g.tgfoid = 'counterx.count_truncate()'::regprocedure
              AND {OF_TYPE})"
    );
    let leaves = catalogs.rows(&query, &[table.into(), type_name.into()], |row| {
        row.get::<pg_sys::Oid>(1)
    });
    for leaf in leaves.into_iter().flatten() {
        if patience == Patience::ComesAgain {
            // The lock stays, as that of the command would.
            if Relation::open_if_free(leaf, SHARE_ROW_EXCLUSIVE).is_none() {
                return false;
            }
        }
        make_truncate_trigger(catalogs, leaf, type_name);
    }
    true
}

/// Has the running transaction, or a subtransaction of it, changed this track, or any, which nobody else sees yet?
pub fn is_ours(catalogs: &Catalogs, type_name: Option<&str>) -> bool {
    let query = "SELECT t.xmin FROM ONLY counterx.track t WHERE $1 IS NULL OR t.type = $1";
    let xids = catalogs.rows(query, &[type_name.into()], |row| row.get(1));
    xids.into_iter().flatten().any(ports::is_own_xid)
}

/// The digits after the point of a track's sum; `Some(None)` where rows are counted; None: there is no such
/// track.
pub fn scale_of(catalogs: &Catalogs, type_name: &str) -> Option<Option<u32>> {
    let query = "SELECT CASE WHEN t.sum IS NOT NULL THEN t.scale END FROM ONLY counterx.track t WHERE t.type = $1";
    let scale = catalogs.rows(query, &[type_name.into()], |row| row.get::<i32>(1));
    let scale = scale.first()?;
    Some(scale.and_then(|scale| u32::try_from(scale).ok()))
}

/// Are the rows of a table, or partition, those of the track of a type?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// They are not.
    No,
    /// They are.
    Yes,
    /// The track was restored, and not looked at: it is taken at its word.
    NotLookedAt,
    /// Besides, some of its triggers are still to be made: its rows are just being restored, and so are the counters, which
    /// have these rows.
    NotWhole,
}

/// The same. Triggers alone do not say so: a copy of a table may have them too, and a restore may bring them without the
/// track.
pub fn counts_in(table: pg_sys::Oid, type_name: &str) -> Counts {
    /// Of each type by table, as of a number of changes.
    type Answers = HashMap<pg_sys::Oid, Vec<(String, Counts)>>;
    thread_local! {
        static KNOWN: RefCell<(u64, Answers)> = RefCell::default();
    }
    let changes = types::number_of_changes();
    let known = KNOWN.with_borrow_mut(|(at, known)| {
        if *at != changes {
            known.clear();
            *at = changes;
        }
        let mut types = known.get(&table)?.iter();
        types
            .find(|(name, _)| name == type_name)
            .map(|(_, counts)| *counts)
    });
    if let Some(known) = known {
        return known;
    }
    let query = "
        WITH RECURSIVE up(oid) AS (
            SELECT $1::oid
            UNION ALL
            SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
        )
        SELECT t.looked IS NULL FROM ONLY counterx.track t
         WHERE t.type = $2 AND (t.looked IS NULL OR (t.looked ->> 'root')::oid IN (SELECT up.oid FROM up))";
    let catalogs = Catalogs::enter();
    let found = catalogs.rows(query, &[table.into(), type_name.into()], |row| {
        row.get::<bool>(1)
    });
    let counts = match found.first() {
        // For the query alone: nobody is told when the next trigger is made.
        Some(Some(true)) if lacks_triggers(&catalogs, type_name) => return Counts::NotWhole,
        Some(Some(true)) => return Counts::NotLookedAt,
        Some(_) => Counts::Yes,
        None => Counts::No,
    };
    KNOWN.with_borrow_mut(|(at, known)| {
        if *at == changes {
            let types = known.entry(table).or_default();
            types.push((type_name.to_owned(), counts));
        }
    });
    counts
}
