//! Which counters of a type have changed most.

use crate::pg::clock;
use crate::pg::room;
use crate::pg::scan::TableScan;
use crate::pg::snapshot;
use crate::pg::time::Calendar;
use crate::read::history::{self as counter_history, Tables};
use crate::read::reader::{Lanes, Reader};
use crate::store::columns;
use crate::store::history::{self, Buckets, Series};
use crate::store::state;
use counterx_core::buckets::{self, Pending};
use counterx_core::history::{Begin, Sums, counted_at};
use counterx_core::lane::{LANES, NameHash};
use counterx_core::names::NameRange;
use counterx_core::rank::{Best, End, Ranked as Changed};
use counterx_core::sums::Sums as SumsByName;
use counterx_core::tally::Tally;
/// Into so many buckets a time is divided at least, where there is a unit for it.
const DIVIDED: i64 = 12;

/// The series by which a time of this length is looked at: the coarsest that divides it, or the finest; of those that
/// are kept for so long, if there are any.
fn dividing(series: &[Series], length: i64, is_kept: impl Fn(&Series) -> bool) -> Option<&Series> {
    let choose = |is_wanted: &dyn Fn(&&Series) -> bool| {
        let among = || series.iter().filter(is_wanted);
        among()
            .filter(|series| length / series.unit.longest().max(1) >= DIVIDED)
            .max_by_key(|series| series.unit)
            .or_else(|| among().min_by_key(|series| series.unit))
    };
    choose(&|series| is_kept(series)).or_else(|| choose(&|_| true))
}

/// The counters of a range, which is of one type, of which most was counted since a time: the first `wanted` of them.
/// `length` is how long ago that is, at most. None: the type has no history.
///
/// # Errors
/// Raises 40001 when something was removed meanwhile that the snapshot needs.
pub fn most_changed(
    range: &NameRange,
    type_name: &[u8],
    (earlier, length): (impl FnOnce(i64) -> i64, i64),
    wanted: usize,
) -> Option<Vec<Changed>> {
    let current = snapshot::active_or_latest();
    let snapshot = current.as_ptr();
    let mut reader = Reader::open(Lanes::All, snapshot);
    let now = clock::now();
    // SAFETY: the snapshot is active as long as `current` lives.
    let all = unsafe { history::series(&reader.shared, Some(type_name), snapshot) };
    let from = earlier(now);
    let is_kept = |series: &Series| series.keep.is_none_or(|keep| keep.before(now) <= from);
    let series = dividing(&all, length, is_kept)?;
    let tables = Tables::open(snapshot);
    let mut calendar = Calendar::new(series.unit, &series.zone);
    let from = calendar.start_of(from);
    // Retention is by lane.
    let firsts: [i64; LANES] = std::array::from_fn(|lane| {
        counter_history::first_of(series, &tables, &mut calendar, reader.lanes[lane].sealed)
    });
    // No fold has written what begins later.
    // SAFETY: as above.
    let newest = unsafe { state::counted_until(&reader.shared, snapshot) };
    let through = newest.map_or(i64::MIN, |newest| newest.max(from));
    let mut sums = SumsByName::default();
    let mut sum_up = |buckets: &Buckets, from: i64| {
        // SAFETY: as above.
        let mut scan = unsafe { TableScan::new(&buckets.table, snapshot) };
        while let Some(row) = scan.next() {
            use columns::bucket::{HISTORY, NAME, START};
            pgrx::check_for_interrupts!();
            if row.int8(HISTORY) != series.id || row.int8(START) < from {
                continue;
            }
            let name = row.text(NAME);
            if !range.contains(name) || row.int8(START) < firsts[NameHash::of(name).lane()] {
                continue;
            }
            let tally = Tally {
                value: history::delta(&row),
                uses: 0,
            };
            room::granted(sums.add(name, tally));
        }
    };
    let from = from.max(series.complete_from(&tables.expired));
    for class in series.classes_from(from) {
        tables.need(class, from);
        for (table, _) in buckets::tables_back(class, from, through) {
            if let Some(buckets) = Buckets::numbered(class, table) {
                sum_up(&buckets, from);
            }
        }
    }
    if let Some(buckets) = Buckets::restored() {
        sum_up(&buckets, from);
    }
    let sealed: [Option<i64>; LANES] = std::array::from_fn(|lane| reader.lanes[lane].sealed);
    let begins: [Begin; LANES] =
        std::array::from_fn(|lane| counter_history::begin_of(series, lane, snapshot));
    let pending = counter_history::pending_in(&mut reader, range, now);
    for of_name in pending.chunk_by(|(a, _), (b, _)| a == b) {
        let name = &of_name[0].0;
        let mut changes = room::collect(of_name.iter().map(|(_, pending)| *pending));
        if buckets::without_purged(&mut changes) {
            sums.take(name);
        }
        let lane = NameHash::of(name).lane();
        let sealed = sealed[lane];
        changes.retain(|pending| counter_history::is_included(&begins[lane], pending));
        for Pending { change, .. } in changes {
            if calendar.start_of(counted_at(change.at, sealed)) >= from {
                let value = Sums::of(change.kind, change.delta).delta;
                room::granted(sums.add(name, Tally { value, uses: 0 }));
            }
        }
    }
    tables.check_nothing_was_emptied();
    reader.finish();
    let mut best = Best::new(End::Top, wanted);
    for (name, tally) in sums {
        if tally.value != 0 {
            room::granted(best.offer(&name, tally.value));
        }
    }
    Some(room::granted(best.into_ranked()))
}
