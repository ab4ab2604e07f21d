//! Making a track exact: adding what its counters miss. See `compare.rs` for why that is enough.

use crate::pg::error::{raise, report};
use crate::pg::lock::{NameLock, VirtualXact, conflicting_xacts};
use crate::pg::progress::{self, Progress};
use crate::pg::relation::{
    ACCESS_SHARE, LockMode, Relation, SHARE_ROW_EXCLUSIVE, SHARE_UPDATE_EXCLUSIVE,
};
use crate::pg::snapshot::LatestSnapshot;
use crate::store::catalog;
use crate::track::compare::{self, Difference};
use crate::track::tables::{self, Catalogs, Patience, Track};
use crate::transaction::pending::Kind;
use crate::write::{change, writing};
use counterx_core::lane::{LANES, NameHash};
use counterx_core::sums::Sums;
use counterx_core::tally::Tally;
use pgrx::{PgSqlErrorCode, pg_sys};

/// Why a track could not be made exact now.
pub enum NotNow {
    /// Somebody has the table, or a partition, locked, or is at the same track.
    Locked,
    /// What is wrong with its triggers.
    Trouble(String),
}

const SHARE: LockMode = pg_sys::ShareLock as LockMode;

/// All who may have changed rows or counters by what was before: those who write to a table, whether its triggers
/// count or not, and, where its track has not been exact yet, those who are about to write calls' deltas of counters
/// that were anybody's, or have written them and are prepared.
pub struct Others(Vec<VirtualXact>);

impl Others {
    /// Who they are now. Whoever comes later goes by what is committed now.
    pub fn of(catalogs: &Catalogs, track: &Track, table: pg_sys::Oid) -> Self {
        let leaves = tables::leaves(catalogs, table).into_iter();
        let mut all: Vec<(pg_sys::Oid, LockMode)> = vec![(table, SHARE)];
        all.extend(leaves.map(|leaf| (leaf, SHARE)));
        // Who has written anything and is prepared keeps gates: he would be in the way of all tracks.
        if !track.was_exact {
            let shared = catalog::shared();
            all.extend((0..LANES).map(|lane| (catalog::lane(lane).gate, SHARE_ROW_EXCLUSIVE)));
            all.extend([shared.late, shared.hold].map(|table| (table, SHARE_ROW_EXCLUSIVE)));
        }
        let mut xacts: Vec<VirtualXact> = all
            .into_iter()
            .flat_map(|(relation, mode)| conflicting_xacts(relation, mode))
            .collect();
        xacts.sort_by_key(VirtualXact::parts);
        xacts.dedup_by_key(|xact| xact.parts());
        Self(xacts)
    }

    /// Waits for them, by a caller who may have locks and a snapshot.
    pub fn wait(&self) {
        for xact in &self.0 {
            xact.wait();
        }
    }

    /// Forgets those who have ended. In a transaction.
    pub fn see_who_has_ended(&mut self) {
        self.0.retain(|xact| !xact.has_ended());
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Is nobody left?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who they are, for whoever wants to end them.
    pub fn shown(&self, catalogs: &Catalogs) -> String {
        let names = self.0.iter().map(|xact| {
            let (backend, number) = xact.parts();
            format!("{backend}/{number}")
        });
        tables::who(catalogs, names.collect())
    }
}

/// What has the rows of a track, locked so that no partition comes or goes.
pub struct Locked {
    leaves: Vec<Relation>,
    // Kept open as long as the rows are counted.
    parents: Vec<Relation>,
}

impl Locked {
    /// Locks without waiting: whoever holds one of these may want to write to the track. With `keep_out`, no
    /// partition comes or goes, and nobody else does the same. Without, and on a standby, where partitions come
    /// by replay, one may come: see [`Self::is_all`].
    pub fn take(catalogs: &Catalogs, table: pg_sys::Oid, keep_out: bool) -> Option<Self> {
        let mode = if keep_out {
            SHARE_UPDATE_EXCLUSIVE
        } else {
            ACCESS_SHARE
        };
        let parents = tables::partitioned(catalogs, table)
            .into_iter()
            .map(|oid| Relation::open_if_free(oid, mode))
            .collect::<Option<Vec<_>>>()?;
        let leaves = tables::leaves(catalogs, table)
            .into_iter()
            .map(|oid| Relation::open_if_free(oid, ACCESS_SHARE))
            .collect::<Option<Vec<_>>>()?;
        Some(Self { leaves, parents })
    }

    /// Rows whose triggers have yet to fire would be counted twice.
    ///
    /// # Errors
    /// Raises 55006 where the running transaction has such rows.
    fn check_no_pending_triggers(&self) {
        let mut all = self.parents.iter().chain(&self.leaves);
        if let Some(table) = all.find(|table| table.has_pending_triggers()) {
            raise(
                report(
                    PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                    format!(
                        "cannot count the rows of table {} because it has pending trigger events",
                        tables::shown(table)
                    ),
                )
                .set_hint("Call counter_recount() in a statement of its own, and after SET CONSTRAINTS ALL IMMEDIATE."),
            )
        }
    }

    /// What has the rows.
    pub fn leaves(&self) -> &[Relation] {
        &self.leaves
    }

    /// Are these all the partitions that there are now? After rows and counters were compared: a partition that
    /// came in between may be in the counters, and not in the rows.
    pub fn is_all(&self, catalogs: &Catalogs, table: pg_sys::Oid) -> bool {
        let known: Vec<pg_sys::Oid> = self.leaves.iter().map(Relation::oid).collect();
        known == tables::leaves(catalogs, table)
    }

    /// Compares rows and counters by one snapshot, which is active. Returns how many rows there were.
    pub fn compare(
        &self,
        catalogs: &Catalogs,
        type_name: &str,
        snapshot: pg_sys::Snapshot,
        mut seen: impl FnMut(u64),
    ) -> Option<(Vec<Difference>, u64)> {
        let function = tables::row_function(catalogs);
        let type_name = type_name.as_bytes();
        let mut counted = Sums::default();
        let mut rows = 0;
        for leaf in &self.leaves {
            let before = rows;
            rows += compare::add_up(leaf, function, type_name, snapshot, &mut counted, |now| {
                seen(before + now);
            })?;
        }
        let recorded = compare::recorded(type_name, snapshot);
        Some((compare::differences(counted, recorded), rows))
    }
}

fn mark_of(type_name: &[u8]) -> i64 {
    NameHash::of(type_name).get().cast_signed() | 1
}

/// How many rows have been counted so far by whoever makes this track exact; None: nobody is at it.
pub fn rows_so_far(type_name: &[u8]) -> Option<i64> {
    progress::of(mark_of(type_name))
}

/// Adds what is missing, for a caller in a READ COMMITTED transaction. The track is exact when that commits.
/// [`Others`] have ended who were there when the track was as the caller knows it.
///
/// # Errors
/// [`NotNow`]; else what is raised on the way.
pub fn fill(
    catalogs: &Catalogs,
    track: &Track,
    table: pg_sys::Oid,
    patience: Patience,
) -> Result<Vec<Difference>, NotNow> {
    let Track { type_name, .. } = track;
    failpoint!("fill.waited");
    // Counters of a track that was restored, and was not counted here, may be on their way still: another session of the
    // restore may have locked this table, and nobody sees what it brings. Whoever comes later finds them there, and is
    // refused.
    if track.state == "stale" && !track.was_exact {
        let late = catalog::shared().late;
        let locked = match patience {
            Patience::Waits => Relation::open_until_commit(late, SHARE_UPDATE_EXCLUSIVE),
            Patience::ComesAgain => Relation::open_if_free(late, SHARE_UPDATE_EXCLUSIVE),
        };
        if locked.is_none() {
            return Err(NotNow::Locked);
        }
    }
    let name = format!("{type_name}:");
    match patience {
        Patience::Waits => NameLock::take(name.as_bytes()),
        Patience::ComesAgain if NameLock::try_take(name.as_bytes()) => {}
        Patience::ComesAgain => return Err(NotNow::Locked),
    }
    let locked = Locked::take(catalogs, table, true).ok_or(NotNow::Locked)?;
    // The table may have been tracked anew since: other transactions are to be waited for then.
    if patience == Patience::ComesAgain
        && tables::tracks(catalogs, None, Some(type_name)).first() != Some(track)
    {
        return Err(NotNow::Locked);
    }
    locked.check_no_pending_triggers();
    if let Some(trouble) = tables::trouble(catalogs, table, type_name) {
        return Err(NotNow::Trouble(trouble));
    }
    failpoint!("fill.locked");
    let progress = Progress::begin(mark_of(type_name.as_bytes()));
    let latest = LatestSnapshot::take();
    failpoint!("fill.snapshot_taken");
    let missing = || NotNow::Trouble("a trigger is missing".to_owned());
    let (differences, rows) = locked
        .compare(catalogs, type_name, latest.as_ptr(), |rows| {
            progress.show(rows);
        })
        .ok_or_else(missing)?;
    progress.show(rows);
    drop(latest);
    failpoint!("fill.counted");
    for difference in &differences {
        let missing = difference.counted - difference.recorded;
        add(Kind::Adjustment, &difference.name, missing);
    }
    failpoint!("fill.added");
    tables::set_exact(catalogs, track, rows);
    failpoint!("fill.noted");
    Ok(differences)
}

/// A table, or a partition, is about to be emptied: its rows go, as by a DELETE. In a transaction that has
/// locked it.
///
/// # Errors
/// Those of the expressions.
pub fn subtract_rows(catalogs: &Catalogs, table: &Relation, type_name: &str) {
    let function = tables::row_function(catalogs);
    let latest = LatestSnapshot::take();
    let mut counted = Sums::default();
    let found = compare::add_up(
        table,
        function,
        type_name.as_bytes(),
        latest.as_ptr(),
        &mut counted,
        |_| {},
    );
    drop(latest);
    if found.is_none() {
        return;
    }
    for (name, tally) in counted {
        add(Kind::Increment, &name, Tally::default() - tally);
    }
    failpoint!("empty.subtracted");
}

/// Adds what may be beyond a bigint, in several deltas then.
fn add(kind: Kind, name: &[u8], tally: Tally) {
    pgrx::check_for_interrupts!();
    let hash = NameHash::of(name);
    let (mut value, mut rows) = (tally.value, tally.uses);
    loop {
        let delta = i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX });
        change::add_rows(kind, hash, name, delta, rows);
        value -= i128::from(delta);
        rows = 0;
        if value == 0 {
            return;
        }
        // More of it does not fit into one.
        writing::write_early();
    }
}

/// Takes back all that the counters of a track say, for one that is about to be no more: its rows stay. Nobody
/// else changes them: the table is locked.
pub fn forget(type_name: &str) {
    let latest = LatestSnapshot::take();
    let recorded = compare::recorded(type_name.as_bytes(), latest.as_ptr());
    drop(latest);
    for (name, tally) in recorded {
        add(Kind::Adjustment, &name, Tally::default() - tally);
    }
}
