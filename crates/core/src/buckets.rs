//! Reading what was counted when: stored rows of a counter, and what is pending of it, as folds will have them.
//!
//! # How it works
//! What is not folded yet has a place in the order in which it will be ([`Place`]). A purge hides all that comes
//! before it ([`without_purged`]). The rest is summed up by bucket ([`sums_by_start`]) and put between the stored rows
//! ([`shown`]), whose values it raises from its bucket on. Rows of one bucket that lie in several tables, as after a
//! restore, are one ([`merge`]).

use crate::history::{Change, Class, Kind, Stored, Sums};
use crate::room::{self, NoMemory};

/// Where something that is not folded stands in the order of folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Late deltas are folded before any log.
    Late,
    /// In a log, by its epoch.
    Log(i64),
    /// The reading transaction has not written it yet.
    Own,
}

/// Something that is not folded.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// When it will be.
    pub place: Place,
    /// What it says.
    pub change: Change,
}

/// Puts a counter's changes into the order of folds, and leaves out a purge among them, and those that it hides: all
/// before it, and those of its epoch that another transaction has written; of what is late, what was written before it.
/// Does it hide the stored rows as well?
///
/// Those of a log come in the order of its index.
pub fn without_purged(changes: &mut Vec<Pending>) -> bool {
    // A transaction writes it first.
    let is_own_rest =
        |pending: &Pending| pending.place == Place::Own && pending.change.kind != Kind::Purge;
    changes.sort_by_key(|pending| (pending.place, is_own_rest(pending)));
    let last = changes
        .iter()
        .rposition(|pending| pending.change.kind == Kind::Purge);
    let Some(last) = last else {
        return false;
    };
    let purge = changes[last];
    let mut at = 0;
    changes.retain(|pending| {
        at += 1;
        let is_behind = at > last + 1;
        match pending.place {
            // When it was committed is not known, and it is folded before all logs.
            Place::Late => at != last + 1 && pending.change.at > purge.change.at,
            place => is_behind && (place > purge.place || pending.change.xid == purge.change.xid),
        }
    });
    true
}

/// Sums up changes by the starts of their buckets, ascending, each once.
///
/// # Errors
/// [`NoMemory`].
pub fn sums_by_start(
    changes: &[Pending],
    mut start_of: impl FnMut(&Change) -> i64,
) -> Result<Vec<(i64, Sums)>, NoMemory> {
    let mut all: Vec<(i64, Sums)> = room::vector(changes.len())?;
    for Pending { change, .. } in changes {
        let sums = Sums::of(change.kind, change.delta);
        if !sums.is_nothing() {
            all.push((start_of(change), sums));
        }
    }
    all.sort_by_key(|(start, _)| *start);
    all.dedup_by(|later, kept| {
        let is_same = later.0 == kept.0;
        if is_same {
            kept.1 += later.1;
        }
        is_same
    });
    Ok(all)
}

/// When the events of changes are, which are in the order of folds: by their times in each place, each after the one
/// before it, and after the newest one that is stored. What is none is left out, and adjustments that change nothing.
///
/// # Errors
/// [`NoMemory`].
pub fn events(
    newest: Option<i64>,
    changes: &[Pending],
    mut counted_at: impl FnMut(&Change) -> i64,
) -> Result<Vec<(i64, Change)>, NoMemory> {
    let mut all = room::vector(changes.len())?;
    for of_place in changes.chunk_by(|a, b| a.place == b.place) {
        let first = all.len();
        for Pending { change, .. } in of_place {
            let changes_nothing = change.kind != Kind::Increment && change.delta == 0;
            if change.kind != Kind::Restored && !changes_nothing {
                all.push((counted_at(change), *change));
            }
        }
        all[first..].sort_by_key(|(at, _)| *at);
    }
    let mut newest = newest;
    for (at, _) in &mut all {
        *at = newest.map_or(*at, |newest| newest.saturating_add(1).max(*at));
        newest = Some(*at);
    }
    Ok(all)
}

/// A row of one of several tables; where two have rows of one bucket, the value is that of the lower rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The table's.
    pub rank: usize,
    /// The row.
    pub row: Stored,
}

/// Puts rows of several tables into one order, by start, and adds up those of the same bucket.
pub fn merge(rows: &mut Vec<Ranked>) {
    rows.sort_unstable_by_key(|ranked| (ranked.row.start, ranked.rank));
    rows.dedup_by(|other, kept| {
        let is_same = other.row.start == kept.row.start;
        if is_same {
            kept.row.sums += other.row.sums;
        }
        is_same
    });
}

/// The rows of some buckets, ascending, with what is pending.
///
/// `before` is the stored value before all of them, `earlier` what is pending in buckets before them. Both `stored`
/// and `pending` are ascending, each bucket once.
///
/// # Errors
/// [`NoMemory`].
pub fn shown(
    before: i128,
    earlier: i128,
    stored: &[Ranked],
    pending: &[(i64, Sums)],
) -> Result<Vec<Stored>, NoMemory> {
    let mut all = room::vector(stored.len() + pending.len())?;
    let (mut value, mut added) = (before, earlier);
    let (mut olds, mut news) = (stored.iter().peekable(), pending.iter().peekable());
    loop {
        let next_old = olds.peek().map(|old| old.row.start);
        let next_new = news.peek().map(|(start, _)| *start);
        let start = match (next_old, next_new) {
            (Some(old), Some(new)) => old.min(new),
            (Some(start), None) | (None, Some(start)) => start,
            (None, None) => return Ok(all),
        };
        let mut sums = Sums::default();
        if let Some(old) = olds.next_if(|old| old.row.start == start) {
            sums = old.row.sums;
            value = old.row.value;
        }
        if let Some((_, new)) = news.next_if(|(new, _)| *new == start) {
            sums += *new;
            added += new.net();
        }
        all.push(Stored {
            start,
            sums,
            value: value + added,
        });
    }
}

/// What is pending in all of these buckets.
pub fn net(pending: &[(i64, Sums)]) -> i128 {
    pending.iter().map(|(_, sums)| sums.net()).sum()
}

/// Hands over rows, ascending, and empty ones between them: for each bucket from `first` on that begins at `last` or
/// before. `before` is the value before the first of all; `next` says which bucket follows.
pub fn fill(
    rows: &[Stored],
    before: i128,
    (first, last): (i64, i64),
    mut next: impl FnMut(i64) -> i64,
    mut hand_over: impl FnMut(&Stored),
) {
    let (mut value, mut start) = (before, first);
    for row in rows {
        while start < row.start && start <= last {
            hand_over(&empty(start, value));
            start = next(start);
        }
        hand_over(row);
        value = row.value;
        if start == row.start {
            start = next(start);
        }
    }
    while start <= last {
        hand_over(&empty(start, value));
        start = next(start);
    }
}

fn empty(start: i64, value: i128) -> Stored {
    Stored {
        start,
        sums: Sums::default(),
        value,
    }
}

/// The tables of a class that may have rows that begin between two times, each once; the newest rows are in the first
/// ones, unless a table has older ones than its turn has.
pub fn tables_back(class: Class, from: i64, through: i64) -> impl Iterator<Item = (usize, i64)> {
    let mut time = (from <= through).then_some(through);
    std::iter::from_fn(move || {
        let at = time?;
        let begin = class.segment_begin(at).unwrap_or(i64::MIN);
        time = begin.checked_sub(1).filter(|&end| end >= from);
        Some((class.table_of(at), begin))
    })
    .take(class.tables())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{DAY, HOUR, Unit, place};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn change(kind: Kind, at: i64, delta: i128, xid: i64) -> Change {
        Change {
            at,
            delta,
            kind,
            xid,
            is_of_transaction: true,
        }
    }

    fn pending(place: Place, kind: Kind, delta: i128, xid: i64) -> Pending {
        Pending {
            place,
            change: change(kind, 0, delta, xid),
        }
    }

    fn deltas(changes: &[Pending]) -> Vec<i128> {
        changes.iter().map(|pending| pending.change.delta).collect()
    }

    #[test]
    fn a_purge_hides_what_comes_before_it_and_what_others_have_written_beside_it() {
        let mut changes = vec![
            pending(Place::Own, Kind::Increment, 7, 0),
            pending(Place::Log(5), Kind::Increment, 4, 12),
            pending(Place::Log(4), Kind::Increment, 3, 12),
            pending(Place::Log(5), Kind::Purge, -9, 12),
            pending(Place::Log(5), Kind::Increment, 5, 12),
            pending(Place::Log(5), Kind::Increment, 1, 11),
            pending(Place::Log(6), Kind::Increment, 6, 10),
            pending(Place::Late, Kind::Increment, 2, 12),
        ];
        assert!(without_purged(&mut changes));
        assert_eq!(deltas(&changes), [5, 6, 7]);
        assert!(!without_purged(&mut changes));
        assert_eq!(deltas(&changes), [5, 6, 7]);
    }

    #[test]
    fn the_last_of_two_purges_hides_the_first() {
        let mut changes = vec![
            pending(Place::Own, Kind::Increment, 4, 0),
            pending(Place::Log(2), Kind::Purge, -1, 5),
            pending(Place::Log(2), Kind::Increment, 3, 5),
            pending(Place::Own, Kind::Purge, -2, 0),
        ];
        assert!(without_purged(&mut changes));
        assert_eq!(deltas(&changes), [4]);
    }

    #[test]
    fn events_are_one_after_the_other() {
        let changes: Vec<Pending> = [(5, 50, 1), (6, 10, 4), (6, 70, 0), (6, 10, 2), (7, 60, 3)]
            .map(|(epoch, at, delta)| Pending {
                place: Place::Log(epoch),
                change: change(
                    if delta == 0 {
                        Kind::Restored
                    } else {
                        Kind::Increment
                    },
                    at,
                    delta,
                    1,
                ),
            })
            .into();
        let at = |newest| -> Vec<(i64, i128)> {
            let all = events(newest, &changes, |change| change.at).unwrap();
            all.iter().map(|(at, change)| (*at, change.delta)).collect()
        };
        assert_eq!(at(None), [(50, 1), (51, 4), (52, 2), (60, 3)]);
        assert_eq!(at(Some(59)), [(60, 1), (61, 4), (62, 2), (63, 3)]);
    }

    #[test]
    fn rows_of_one_bucket_are_one_with_the_value_of_the_first_table() {
        let row = |rank, start, delta, value| Ranked {
            rank,
            row: Stored {
                start,
                sums: Sums::of(Kind::Increment, delta),
                value,
            },
        };
        let mut rows = vec![
            row(2, 10, 5, 5),
            row(0, 20, 1, 9),
            row(2, 20, 3, 8),
            row(1, 15, 1, 6),
        ];
        merge(&mut rows);
        let short: Vec<_> = rows
            .iter()
            .map(|Ranked { row, .. }| (row.start, row.sums.delta, row.sums.changes, row.value))
            .collect();
        assert_eq!(short, [(10, 5, 1, 5), (15, 1, 1, 6), (20, 4, 2, 9)]);
        assert_eq!(rows[2].row.value_before(), 5);
    }

    #[test]
    fn empty_buckets_have_the_value_of_before() {
        let row = |start, delta, value| Stored {
            start,
            sums: Sums::of(Kind::Increment, delta),
            value,
        };
        let filled = |rows: &[Stored], span| {
            let mut all = Vec::new();
            fill(
                rows,
                100,
                span,
                |start| start + 10,
                |row| all.push((row.start, row.value)),
            );
            all
        };
        let rows = [row(20, 1, 101), row(35, 2, 103), row(50, 1, 104)];
        assert_eq!(
            filled(&rows, (10, 60)),
            [
                (10, 100),
                (20, 101),
                (30, 101),
                (35, 103),
                (40, 103),
                (50, 104),
                (60, 104)
            ]
        );
        assert_eq!(filled(&rows, (45, 44)), [(20, 101), (35, 103), (50, 104)]);
        assert_eq!(filled(&[], (10, 30)), [(10, 100), (20, 100), (30, 100)]);
    }

    #[test]
    fn tables_come_newest_first_and_each_once() {
        let class = Class::of_keep(Unit::Minute, Some(DAY)).unwrap();
        let tables = |from, through| -> Vec<usize> {
            tables_back(class, from, through)
                .map(|(table, _)| table)
                .collect()
        };
        assert_eq!(tables(0, 6 * HOUR), [1, 0]);
        assert_eq!(tables(0, 6 * HOUR - 1), [0]);
        assert_eq!(tables(1, 0), [] as [usize; 0]);
        assert_eq!(tables(i64::MIN, 6 * HOUR), [1, 0, 5, 4, 3, 2]);
        assert_eq!(tables(i64::MIN, i64::MAX).len(), 6);
        let forever = Class::of_keep(Unit::Minute, None).unwrap();
        assert_eq!(
            tables_back(forever, i64::MIN, i64::MAX).collect::<Vec<_>>(),
            [(0, i64::MIN)]
        );
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            3 => Just(Kind::Increment),
            1 => Just(Kind::Adjustment),
        ]
    }

    proptest! {
        /// What is read before a fold is what is read after it, for any range.
        #[test]
        fn reading_and_folding_agree(
            base in -50i64..50,
            folded in proptest::collection::vec((kinds(), 0i64..40, -9i64..9), 0..12),
            unfolded in proptest::collection::vec((kinds(), 0i64..40, -9i64..9), 0..12),
            from in 0i64..50, length in 0i64..50,
        ) {
            let unit = |at: i64| at.div_euclid(5) * 5;
            let as_pending = |all: &[(Kind, i64, i64)]| -> Vec<Pending> {
                all.iter()
                    .map(|&(kind, at, delta)| Pending {
                        place: Place::Log(1),
                        change: change(kind, at, delta.into(), 1),
                    })
                    .collect()
            };
            // Folds one batch into rows.
            let fold = |rows: &mut BTreeMap<i64, Stored>, total: i128, new: &[(i64, Sums)]| {
                let Some(&(first, _)) = new.first() else { return };
                let stored: Vec<Stored> = rows.range(first..).map(|(_, row)| *row).collect();
                place(total, &stored, new, |placed| {
                    rows.insert(placed.row.start, placed.row);
                });
            };
            let old = sums_by_start(&as_pending(&folded), |change| unit(change.at)).unwrap();
            let new = sums_by_start(&as_pending(&unfolded), |change| unit(change.at)).unwrap();
            let mut rows = BTreeMap::new();
            fold(&mut rows, base.into(), &old);
            let total = i128::from(base) + net(&old);
            let (from, through) = (from, from + length);
            let read = |rows: &BTreeMap<i64, Stored>, pending: &[(i64, Sums)], total: i128| {
                let ranked: Vec<Ranked> = rows
                    .range(from..=through)
                    .map(|(_, row)| Ranked { rank: 0, row: *row })
                    .collect();
                let at = |time| pending.partition_point(|(start, _)| *start < time);
                let before = ranked.first().map(|first| first.row.value_before())
                    .or_else(|| rows.range(..from).next_back().map(|(_, row)| row.value))
                    .or_else(|| rows.range(through + 1..).next().map(|(_, row)| row.value_before()))
                    .unwrap_or(total);
                let earlier = net(&pending[..at(from)]);
                shown(before, earlier, &ranked, &pending[at(from)..at(through + 1)]).unwrap()
            };
            let before = read(&rows, &new, total);
            fold(&mut rows, total, &new);
            let after = read(&rows, &[], total + net(&new));
            // A row that has come to nothing may be there or not.
            prop_assert_eq!(before, after);
        }
    }
}
