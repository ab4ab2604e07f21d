//! Streams: what a fold says of a counter, and how far a consumer has come.
//!
//! Each fold of a lane has a number, and the changes that it writes are numbered within it. A consumer has a
//! [`Position`] in each lane; a *place* is its positions in all lanes, and which start of which stream they are of.
//!
//! # Invariants
//! - A change tells what is *shown* of a counter: nothing while it does not exist, which counts as 0. So the deltas
//!   of a counter add up to its newest value, whatever becomes of it.
//! - What may be gone is gone through a whole fold. Whoever stands before its end has missed something.

use crate::lane::LANES;
use crate::room::{self, NoMemory};
use crate::tally::Tally;
use std::collections::HashMap;
use std::fmt;

/// How far a consumer has come in a lane: all through this change is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The number of a fold.
    pub fold: i64,
    /// That of a change in it.
    pub seq: i64,
}

impl Position {
    /// All changes of all folds through this one are done.
    pub fn end_of(fold: i64) -> Self {
        let seq = i64::MAX;
        Self { fold, seq }
    }

    /// Is something missing behind it, where rows of folds through `gone` may be?
    pub fn is_lost(self, gone: i64) -> bool {
        self < Self::end_of(gone)
    }
}

/// Where a consumer stands, as it is handed out and taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which start of the stream it is of: a UUID.
    pub incarnation: String,
    /// In which life of which database it was handed out.
    pub era: i64,
    /// The position in each lane.
    pub lanes: [Position; LANES],
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.incarnation, self.era)?;
        for (lane, position) in self.lanes.iter().enumerate() {
            let comma = if lane == 0 { "" } else { "," };
            write!(f, "{comma}{}", position.fold)?;
            if position.seq != i64::MAX {
                write!(f, ".{}", position.seq)?;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Reads one. None: it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse::<i64>().ok()).flatten()
        };
        let mut parts = text.split(':');
        let (incarnation, era, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let is_uuid = incarnation.len() == 36
            && (incarnation.bytes()).all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        if parts.next().is_some() || !is_uuid {
            return None;
        }
        let mut lanes = [Position::default(); LANES];
        let mut positions = rest.split(',');
        for lane in &mut lanes {
            let position = positions.next()?;
            *lane = match position.split_once('.') {
                None => Position::end_of(number(position)?),
                Some((fold, seq)) => Position {
                    fold: number(fold)?,
                    seq: number(seq)?,
                },
            };
        }
        if positions.next().is_some() {
            return None;
        }
        Some(Self {
            incarnation: incarnation.to_ascii_lowercase(),
            era: number(era)?,
            lanes,
        })
    }
}

/// What names begin with, of which any will do: as few prefixes as say the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prefixes(Vec<Box<[u8]>>);

impl Prefixes {
    /// Of these. One that begins with another adds nothing.
    pub fn new<'a>(all: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut all: Vec<&[u8]> = all.into_iter().collect();
        all.sort_unstable();
        let mut kept: Vec<Box<[u8]>> = Vec::new();
        for prefix in all {
            // What begins with a prefix follows it, with nothing else in between.
            if kept.last().is_none_or(|last| !prefix.starts_with(last)) {
                kept.push(prefix.into());
            }
        }
        Self(kept)
    }

    /// Does the name begin with one of them?
    pub fn cover(&self, name: &[u8]) -> bool {
        let after = self.0.partition_point(|prefix| **prefix <= *name);
        after > 0 && name.starts_with(&self.0[after - 1])
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What has become of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// It has come to exist.
    Created,
    /// It was counted.
    Changed,
    /// It was changed by other means, as well or alone.
    Adjusted,
    /// It does not exist any more.
    Dropped,
    /// An alert has fired.
    Fired,
    /// An alert that had fired can fire again.
    Rearmed,
}

impl Kind {
    const ALL: [(Self, u8, &'static str); 6] = [
        (Self::Created, b'c', "created"),
        (Self::Changed, b'i', "changed"),
        (Self::Adjusted, b'a', "adjusted"),
        (Self::Dropped, b'd', "dropped"),
        (Self::Fired, b'f', "fired"),
        (Self::Rearmed, b'r', "rearmed"),
    ];

    /// As it is stored.
    pub fn letter(self) -> u8 {
        let mut all = Self::ALL.into_iter();
        all.find(|(kind, ..)| *kind == self)
            .map_or(0, |(_, letter, _)| letter)
    }

    /// Reads what is stored.
    pub fn of_letter(letter: u8) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|(_, known, _)| *known == letter)
            .map(|(kind, ..)| kind)
    }

    /// As it is shown.
    pub fn name(self) -> &'static str {
        let mut all = Self::ALL.into_iter();
        all.find(|(kind, ..)| *kind == self)
            .map_or("", |(.., name)| name)
    }

    /// Does it tell of an alert, and not of the counter itself?
    pub fn is_of_alert(self) -> bool {
        matches!(self, Self::Fired | Self::Rearmed)
    }

    /// What has become of a counter by two changes, the second of which is `later`.
    pub fn then(self, later: Self) -> Self {
        match (self, later) {
            (_, Self::Dropped) => Self::Dropped,
            (Self::Created, _) | (_, Self::Created) => Self::Created,
            (Self::Adjusted, _) | (_, Self::Adjusted) => Self::Adjusted,
            _ => later,
        }
    }
}

/// What a total shows: the value of a counter that exists.
pub fn shown(total: Tally) -> Option<i128> {
    total.exists().then_some(total.value)
}

/// What is to be told when a total becomes another one: what has become of the counter, and by how much what is shown
/// has changed. None: nothing has.
pub fn change(old: Tally, new: Tally, is_adjusted: bool) -> Option<(Kind, i128)> {
    let (before, after) = (shown(old), shown(new));
    let delta = after.unwrap_or(0) - before.unwrap_or(0);
    let kind = match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => Kind::Created,
        (Some(_), None) => Kind::Dropped,
        (Some(_), Some(_)) if delta == 0 => return None,
        (Some(_), Some(_)) if is_adjusted => Kind::Adjusted,
        (Some(_), Some(_)) => Kind::Changed,
    };
    Some((kind, delta))
}

/// A change, as a consumer gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The counter.
    pub name: Box<[u8]>,
    /// What has become of it.
    pub kind: Kind,
    /// By how much it has changed.
    pub delta: i128,
    /// What it is now.
    pub value: i128,
    /// The alert that this is of.
    pub alert: Option<Box<[u8]>>,
    /// When it was folded.
    pub at: i64,
    /// Its lane.
    pub lane: usize,
    /// Where it is written in that.
    pub position: Position,
}

/// What a consumer gets at once.
pub struct Batch {
    is_every: bool,
    limit: usize,
    changes: Vec<Change>,
    /// Where the last change of a counter is among them.
    by_name: HashMap<Vec<u8>, usize>,
    ends: [Position; LANES],
    /// What each of them ends at, where each one can be acknowledged.
    places: Vec<[Position; LANES]>,
    /// The lane and the fold of the last change that was taken, as long as more of that fold may follow.
    open: Option<(usize, i64)>,
    is_full: bool,
    /// So many changes of each lane were looked at.
    looked_at: [usize; LANES],
    /// Some of the lane are among the changes.
    has_some: [bool; LANES],
}

/// Where nothing in a lane was for the consumer, its place is not moved before it has passed so many changes: a look
/// that finds nothing leaves no new version of a row behind.
const PASSED_ENOUGH: usize = 1000;

impl Batch {
    /// Begins at these positions. `is_every`: all changes of a counter, and not only what they come to.
    pub fn new(is_every: bool, limit: usize, from: [Position; LANES]) -> Self {
        Self {
            is_every,
            limit,
            changes: Vec::new(),
            by_name: HashMap::new(),
            ends: from,
            places: Vec::new(),
            open: None,
            is_full: limit == 0,
            looked_at: [0; LANES],
            has_some: [false; LANES],
        }
    }

    /// Takes a change, the next one of its lane. False: there is no room for it, nor for any that follows.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn add(&mut self, change: Change) -> Result<bool, NoMemory> {
        let (lane, position) = (change.lane, change.position);
        if self.open != Some((lane, position.fold)) {
            self.close();
        }
        let is_of_counter = !self.is_every && !change.kind.is_of_alert();
        if is_of_counter && let Some(&at) = self.by_name.get(&*change.name) {
            let known = &mut self.changes[at];
            known.kind = known.kind.then(change.kind);
            known.delta += change.delta;
            known.value = change.value;
            known.at = change.at;
            known.position = position;
        } else if self.changes.len() >= self.limit {
            self.is_full = true;
            return Ok(false);
        } else {
            if is_of_counter {
                self.by_name.try_reserve(1).map_err(|_| NoMemory)?;
                let name = room::copy(&change.name)?;
                self.by_name.insert(name, self.changes.len());
            }
            if self.is_every {
                room::push(&mut self.places, self.ends)?;
            }
            room::push(&mut self.changes, change)?;
        }
        self.ends[lane] = position;
        if let Some(place) = self.places.last_mut() {
            place[lane] = position;
        }
        self.open = Some((lane, position.fold));
        self.has_some[lane] = true;
        Ok(true)
    }

    /// Nothing follows of the fold of the last change: with that one, all of it is done. So the place of a change is
    /// always the same, whatever is folded later.
    fn close(&mut self) {
        let Some((lane, fold)) = self.open.take() else {
            return;
        };
        self.ends[lane] = self.ends[lane].max(Position::end_of(fold));
        if let Some(place) = self.places.last_mut() {
            place[lane] = Position::end_of(fold);
        }
    }

    /// A change of its lane is nothing that the consumer wants.
    pub fn pass(&mut self, lane: usize, position: Position) {
        self.looked_at[lane] += 1;
        self.ends[lane] = self.ends[lane].max(position);
    }

    /// There is nothing more in the lane, through this fold.
    pub fn end_lane(&mut self, lane: usize, fold: i64) {
        self.close();
        self.ends[lane] = self.ends[lane].max(Position::end_of(fold));
    }

    /// Was there no room for a change?
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Is there nothing for the consumer?
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// The lanes in which it is worth that the consumer's place is moved.
    pub fn worth_moving(&self) -> [bool; LANES] {
        std::array::from_fn(|lane| self.has_some[lane] || self.looked_at[lane] >= PASSED_ENOUGH)
    }

    /// The changes, each with what it is to be acknowledged by, and where the batch ends.
    pub fn finish(self) -> (Vec<(Change, [Position; LANES])>, [Position; LANES]) {
        let ends = self.ends;
        let mut places = self.places.into_iter();
        let changes = (self.changes.into_iter())
            .map(|change| (change, places.next().unwrap_or(ends)))
            .collect();
        (changes, ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(value: i64, uses: i64) -> Tally {
        Tally::of(value, uses)
    }

    fn a_change(name: &str, kind: Kind, delta: i128, value: i128, at: (usize, i64, i64)) -> Change {
        let (lane, fold, seq) = at;
        Change {
            name: name.as_bytes().into(),
            kind,
            delta,
            value,
            alert: None,
            at: 0,
            lane,
            position: Position { fold, seq },
        }
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        let mut lanes = [Position::end_of(7); LANES];
        lanes[3] = Position { fold: 12, seq: 40 };
        let place = Place {
            incarnation: "0ab1c2d3-0000-4000-8000-0123456789ab".into(),
            era: 2,
            lanes,
        };
        let text = place.to_string();
        assert_eq!(
            text,
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7,12.40,7,7,7,7"
        );
        assert_eq!(Place::parse(&text), Some(place));
        for bad in [
            "",
            "x:2:7,7,7,7,7,7,7,7",
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7",
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7,7,7,7,7,7,7",
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7,7,7,7,7,-7",
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7,7,7,7,7,+7",
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7,7,7,7,7,7.",
            "0ab1c2d3-0000-4000-8000-0123456789ab:2:7,7,7,7,7,7,7,7:1",
        ] {
            assert_eq!(Place::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_gone_through_a_fold_is_lost_to_who_stands_before_its_end() {
        assert!(Position { fold: 5, seq: 9 }.is_lost(5));
        assert!(!Position::end_of(5).is_lost(5));
        assert!(Position::end_of(4).is_lost(5));
        assert!(!Position { fold: 6, seq: 1 }.is_lost(5));
    }

    #[test]
    fn letters_mean_the_same_both_ways() {
        for (kind, letter, _) in Kind::ALL {
            assert_eq!(Kind::of_letter(letter), Some(kind));
            assert_eq!(kind.letter(), letter);
        }
    }

    #[test]
    fn what_does_not_exist_is_not_shown() {
        assert_eq!(
            change(tally(0, 0), tally(0, 1), false),
            Some((Kind::Created, 0))
        );
        assert_eq!(
            change(tally(3, 1), tally(5, 2), false),
            Some((Kind::Changed, 2))
        );
        assert_eq!(
            change(tally(3, 1), tally(5, 1), true),
            Some((Kind::Adjusted, 2))
        );
        assert_eq!(change(tally(3, 1), tally(3, 2), false), None);
        assert_eq!(
            change(tally(3, 1), tally(0, 0), true),
            Some((Kind::Dropped, -3))
        );
        // A part of a sum alone.
        assert_eq!(change(tally(0, 0), tally(-5, -1), true), None);
        assert_eq!(
            change(tally(-5, -1), tally(2, 1), false),
            Some((Kind::Created, 2))
        );
    }

    #[test]
    fn the_latest_of_a_counter_is_one_row() {
        let mut batch = Batch::new(false, 2, [Position::default(); LANES]);
        assert!(
            batch
                .add(a_change("a", Kind::Created, 1, 1, (0, 1, 1)))
                .expect("room")
        );
        assert!(
            batch
                .add(a_change("b", Kind::Changed, 5, 9, (0, 1, 2)))
                .expect("room")
        );
        assert!(
            batch
                .add(a_change("a", Kind::Changed, 2, 3, (0, 2, 1)))
                .expect("room")
        );
        assert!(
            !batch
                .add(a_change("c", Kind::Changed, 1, 1, (0, 2, 2)))
                .expect("room")
        );
        assert!(batch.is_full());
        let (changes, ends) = batch.finish();
        assert_eq!(ends[0], Position { fold: 2, seq: 1 });
        assert!(!ends[0].is_lost(1));
        let (first, place) = &changes[0];
        assert_eq!(
            (first.kind, first.delta, first.value),
            (Kind::Created, 3, 3)
        );
        assert_eq!(*place, ends);
        assert_eq!(changes.len(), 2);
    }

    #[test]
    fn each_change_has_a_place_of_its_own_where_all_are_wanted() {
        let mut batch = Batch::new(true, 10, [Position::default(); LANES]);
        batch
            .add(a_change("a", Kind::Created, 1, 1, (0, 1, 1)))
            .expect("room");
        batch
            .add(a_change("a", Kind::Changed, 1, 2, (0, 1, 2)))
            .expect("room");
        batch.pass(0, Position { fold: 1, seq: 3 });
        batch.end_lane(0, 4);
        let (changes, ends) = batch.finish();
        assert_eq!(changes[0].1[0], Position { fold: 1, seq: 1 });
        // The last one of its fold, whatever has been folded since.
        assert_eq!(changes[1].1[0], Position::end_of(1));
        assert_eq!(ends[0], Position::end_of(4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]
        #[test]
        fn few_prefixes_say_the_same(all in proptest::collection::vec("[ab]{0,3}", 0..6), name in "[ab]{0,5}") {
            let prefixes = Prefixes::new(all.iter().map(String::as_bytes));
            let expected = all.iter().any(|prefix| name.starts_with(&**prefix));
            prop_assert_eq!(prefixes.cover(name.as_bytes()), expected);
            for (at, one) in prefixes.0.iter().enumerate() {
                for (other, two) in prefixes.0.iter().enumerate() {
                    prop_assert!(at == other || !two.starts_with(one));
                }
            }
        }

        /// In pages of any size, nothing is missed and nothing comes twice.
        #[test]
        fn deltas_add_up_over_pages(
            rows in proptest::collection::vec((0..4_u8, -5..5_i64), 0..40),
            limit in 1..7_usize,
            is_every: bool,
        ) {
            let mut totals = [0_i128; 4];
            let all: Vec<Change> = (rows.iter().enumerate()).map(|(at, &(name, delta))| {
                let value = &mut totals[usize::from(name)];
                *value += i128::from(delta);
                let at = (0, 1 + at as i64 / 3, at as i64);
                a_change(&name.to_string(), Kind::Changed, delta.into(), *value, at)
            }).collect();
            let mut sums = [0_i128; 4];
            let mut newest = [0_i128; 4];
            let mut from = [Position::default(); LANES];
            from[0].seq = -1;
            loop {
                let mut batch = Batch::new(is_every, limit, from);
                for change in all.iter().filter(|change| change.position > from[0]) {
                    if !batch.add(change.clone()).expect("room") {
                        break;
                    }
                }
                let is_full = batch.is_full();
                let (changes, ends) = batch.finish();
                prop_assert!(changes.len() <= limit);
                for (change, _) in &changes {
                    let at = usize::from(change.name[0] - b'0');
                    sums[at] += change.delta;
                    newest[at] = change.value;
                }
                from = ends;
                if !is_full {
                    break;
                }
            }
            prop_assert_eq!(sums, totals);
            prop_assert_eq!(newest, totals);
        }
    }
}
