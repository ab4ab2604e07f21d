//! Which part of a log's index `(epoch, name)` a reader of one name visits.

/// How to look for a name's deltas between the folded epoch and the gate's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    /// Nothing can be pending.
    None,
    /// One look-up of (epoch, name) for each of these epochs, first and last included.
    Each(i64, i64),
    /// One scan of all epochs in `(after, through]`: cheaper than very many look-ups. Only the
    /// snapshot of a transaction that outlived many folds has such a gap.
    Range(i64, i64),
}

/// The gap from which on a range scan is taken.
pub const MAX_LOOKUPS: i64 = 32;

/// Plans the visit for a snapshot that sees `folded` as the folded epoch, where `bound` is the
/// gate's epoch read after the snapshot was taken.
pub fn plan(folded: i64, bound: i64) -> Probes {
    if bound <= folded {
        Probes::None
    } else if bound - folded <= MAX_LOOKUPS {
        Probes::Each(folded + 1, bound)
    } else {
        Probes::Range(folded, bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_pending_epoch_is_visited_and_no_other(folded in 0i64..1000, gap in 0i64..100, epoch in 0i64..1200) {
            let bound = folded + gap;
            let visited = match plan(folded, bound) {
                Probes::None => false,
                Probes::Each(first, last) => (first..=last).contains(&epoch),
                Probes::Range(after, through) => epoch > after && epoch <= through,
            };
            prop_assert_eq!(visited, epoch > folded && epoch <= bound);
        }
    }

    #[test]
    fn a_gate_behind_the_folded_epoch_visits_nothing() {
        assert_eq!(plan(5, 4), Probes::None);
        assert_eq!(plan(5, 5), Probes::None);
    }

    #[test]
    fn a_wide_gap_is_scanned_once() {
        assert_eq!(plan(0, MAX_LOOKUPS), Probes::Each(1, MAX_LOOKUPS));
        assert_eq!(plan(0, MAX_LOOKUPS + 1), Probes::Range(0, MAX_LOOKUPS + 1));
    }
}
