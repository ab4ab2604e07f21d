//! Many counters at once: of given names, or the next ones in the order of their names.

use crate::pg::room;
use crate::pg::snapshot::{self, CurrentSnapshot};
use crate::query::shown;
use crate::read::reader::{Lanes, Reader};
use crate::store::totals::{self, Order};
use counterx_core::lane::NameHash;
use counterx_core::names::NameRange;
use counterx_core::tally::Tally;
use counterx_core::windows::Asked;
use std::ops::ControlFlow;

/// The values of these names, in this order; 0 for counters that do not exist.
pub fn values(names: &[&[u8]]) -> Vec<i128> {
    let mut sorted: Vec<Vec<u8>> = room::collect(names.iter().map(|name| name.to_vec()));
    sorted.sort_unstable();
    sorted.dedup();
    let hashes = room::collect(sorted.iter().map(|name| NameHash::of(name)));
    let latest = snapshot::active_or_latest();
    let mut reader = Reader::open(Lanes::Of(&hashes), latest.as_ptr());
    let pending = reader.pending_of(&sorted);
    let mut totals = reader.totals();
    // In the order of the names: neighbours share pages of the index.
    let found: Vec<Tally> = room::collect(sorted.iter().map(|name| {
        pgrx::check_for_interrupts!();
        totals.get(name) + pending.get(name)
    }));
    drop(totals);
    reader.finish();
    let value_of = |name: &[u8]| {
        let at = sorted.binary_search_by(|known| (**known).cmp(name));
        at.map_or(0, |at| found[at].value)
    };
    room::collect(names.iter().map(|&name| value_of(name)))
}

/// The first counters of a range, at most `limit`.
///
/// Reads as many totals as are wanted, then what is pending up to the last of their names, until
/// the page is full: what it costs depends on the page, not on the number of counters. Counters
/// that were dropped and not folded yet make it read on.
pub fn page(range: NameRange, limit: usize) -> Vec<(Box<[u8]>, i128)> {
    let latest = snapshot::active_or_latest();
    let asked = Asked::new(shown::now(), &range);
    let mut reader = Reader::open(Lanes::All, latest.as_ptr());
    let mut page = Vec::new();
    for segment in asked.segments() {
        fill(&mut page, limit, segment.clone(), &mut reader, &latest);
    }
    reader.finish();
    if !asked.shown().is_plain() {
        for (name, _) in &mut page {
            *name = asked.plain(name);
        }
    }
    page
}

/// The same of names as they are stored, until the page is full.
fn fill(
    page: &mut Vec<(Box<[u8]>, i128)>,
    limit: usize,
    mut range: NameRange,
    reader: &mut Reader,
    latest: &CurrentSnapshot,
) {
    while page.len() < limit {
        let wanted = limit - page.len();
        let mut counters: Vec<(Box<[u8]>, Tally)> = Vec::new();
        // SAFETY: the snapshot is active or registered as long as `latest` lives.
        let end = unsafe {
            totals::visit(&range, Order::ByName, latest.as_ptr(), |name, row| {
                room::push(&mut counters, (name.into(), totals::tally(row)));
                if counters.len() < wanted {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        };
        let last = counters
            .last()
            .filter(|_| end.is_break())
            .map(|(name, _)| name.clone());
        let mut here = range.clone();
        if let Some(last) = &last {
            here.at_most(last);
        }
        let mut pending = reader.pending_in(&here);
        for (name, tally) in &mut counters {
            *tally += pending.take(name);
        }
        let folded = counters.len();
        for counter in pending {
            room::push(&mut counters, counter);
        }
        if counters.len() > folded {
            counters.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        }
        let existing = counters.into_iter().filter(|(_, tally)| tally.exists());
        for (name, tally) in existing.take(wanted) {
            room::push(page, (name, tally.value));
        }
        match last {
            Some(last) => range.more_than(&last),
            None => break,
        }
    }
}
