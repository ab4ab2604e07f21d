//! Windows: limits that renew themselves. A counter of a type with a window begins anew with each window.
//!
//! # Names
//! The value of each window is a counter of its own, under a *stored name* that nobody sees:
//!
//! > type, colon, [`SEPARATOR`], the window's start in ten digits, [`SEPARATOR`], the rest of the name
//!
//! No name of such a type has the separator in it, so what is given and what is stored are never taken for each other.
//! The start sorts as time, so all counters of a window are one range of names, and so are all windows that have ended
//! ([`Prefix::range`], [`ended`]). Within one window, stored names are in the order of the names that are given: so a
//! range of those is a few ranges of these ([`Shown`]).
//!
//! # Time
//! A window's start is what its calendar says, and is stored: who has the start needs no calendar any more. Fixed
//! lengths divide a day of UTC evenly. Times are microseconds since 2000-01-01 UTC, as the server has them.
//!
//! The time of a call is the greatest that anybody has gone by, at least up to where windows may have been removed
//! ([`time`]). It is looked up *before* the call reserves, and once more when all is reserved and read: if it is in
//! another window then, what was reserved is given back, and the call begins anew. So from the moment on at which
//! somebody has gone by a time in a later window, nobody is granted anything in the one before. That is what lets a
//! sliding window know what the one before came to, and removal know that nobody reads what it removes.
//!
//! # Sliding
//! In a sliding window what was counted in the window before counts still, in the part that the running one has left
//! ([`Window::weight`]). What that promises: within any time up to a window, at most max × (1 + time / window). Proof:
//! of the calls that were granted up to a moment of the running window, look at the one that was reserved last. It has
//! counted all others of its window, in flight or committed, and all that were ever granted in the one before. So both
//! together are at most max and the part of the window before that does not count any more, and of that window there is
//! max at most.
//!
//! Where lengths differ, as those of days and months do, a window is the running one, and the time is no longer than
//! the one before.

use crate::history::DAY;
use crate::lane::MAX_NAME_BYTES;
use crate::names::NameRange;
use std::borrow::Cow;

/// Stands around a window's start in stored names, and in no name of a windowed type. In no encoding that a database
/// can have is it a part of another character.
pub const SEPARATOR: u8 = 0x01;

/// A window's start, in seconds since 1970: up to the year 2286.
const DIGITS: usize = 10;

/// So much longer is a stored name, in bytes.
const OVERHEAD: usize = DIGITS + 2;

/// The longest name of a windowed type's counter, in bytes.
pub const MAX_WINDOWED_BYTES: usize = MAX_NAME_BYTES - OVERHEAD;

const SECOND: i64 = 1_000_000;

/// From 1970 to 2000, in seconds.
const SINCE_1970: i64 = 946_684_800;

/// How long windows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many microseconds, by UTC.
    Fixed(i64),
    /// A day of a time zone.
    Day,
    /// A month of it.
    Month,
}

/// What no window is as long as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLength {
    /// Zero or less.
    NotPositive,
    /// Less than a second, or a part of one.
    NotWholeSeconds,
    /// A day is not a multiple of it: windows would begin at other times each day.
    Uneven,
    /// Several days or months, or some of each.
    Several,
}

impl Length {
    /// That of an interval, in its three parts.
    ///
    /// # Errors
    /// [`BadLength`].
    pub fn of_interval(months: i32, days: i32, micros: i64) -> Result<Self, BadLength> {
        if months < 0 || days < 0 || micros < 0 || (months, days, micros) == (0, 0, 0) {
            return Err(BadLength::NotPositive);
        }
        match (months, days, micros) {
            (1, 0, 0) => Ok(Self::Month),
            (0, 1, 0) => Ok(Self::Day),
            (0, 0, micros) if micros % SECOND != 0 => Err(BadLength::NotWholeSeconds),
            (0, 0, micros) if micros >= DAY || DAY % micros != 0 => Err(BadLength::Uneven),
            (0, 0, micros) => Ok(Self::Fixed(micros)),
            _ => Err(BadLength::Several),
        }
    }

    /// Does it depend on a time zone?
    pub fn needs_zone(self) -> bool {
        self == Self::Day || self == Self::Month
    }
}

/// Where the days, or the months, of a time zone begin.
pub trait Calendar {
    /// When the one begins that a time is in.
    fn start_of(&mut self, time: i64) -> i64;
    /// When the one ends that begins then.
    fn end_of(&mut self, start: i64) -> i64;
}

/// A window: from its start on, up to its end and without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it begins.
    pub start: i64,
    /// When it ends.
    pub end: i64,
}

impl Window {
    /// The one that a time is in. None: its start cannot be stored, as it is before 1970 or after 2286.
    pub fn at(length: Length, calendar: &mut impl Calendar, time: i64) -> Option<Self> {
        let window = match length {
            Length::Fixed(length) => {
                let start = time.checked_sub(time.rem_euclid(length))?;
                let end = start.checked_add(length)?;
                Self { start, end }
            }
            Length::Day | Length::Month => {
                let start = calendar.start_of(time);
                let end = calendar.end_of(start);
                Self { start, end }
            }
        };
        (window.contains(time) && digits(window.start).is_some()).then_some(window)
    }

    /// The one before.
    pub fn before(self, length: Length, calendar: &mut impl Calendar) -> Option<Self> {
        Self::at(length, calendar, self.start.checked_sub(1)?)
    }

    /// The next one.
    pub fn after(self, length: Length, calendar: &mut impl Calendar) -> Option<Self> {
        Self::at(length, calendar, self.end)
    }

    /// The start of the first one that is kept, where this one is running and so many before it are kept.
    pub fn first_kept(self, kept: u32, length: Length, calendar: &mut impl Calendar) -> i64 {
        let mut first = self;
        for _ in 0..kept {
            match first.before(length, calendar) {
                Some(before) => first = before,
                None => break,
            }
        }
        first.start
    }

    /// Is a time in it?
    pub fn contains(self, time: i64) -> bool {
        (self.start..self.end).contains(&time)
    }

    fn length(self) -> i128 {
        i128::from(self.end) - i128::from(self.start)
    }

    /// What counts still, at a time of this window, of what was counted in the one before: the part of it that is left
    /// of this one, rounded up.
    pub fn weight(self, previous: i128, time: i64) -> i128 {
        let length = self.length();
        let left = (i128::from(self.end) - i128::from(time)).clamp(0, length);
        let previous = previous.max(0);
        // In two steps, none of which overflows.
        let (whole, rest) = (previous / length, previous % length);
        whole * left + (rest * left + length - 1) / length
    }

    /// The maximum that is left for this window at a time, where so much was counted in the one before. Negative: there
    /// was more than the maximum.
    pub fn limit(self, max: i64, previous: i128, time: i64) -> i64 {
        let limit = i128::from(max) - self.weight(previous, time);
        i64::try_from(limit).unwrap_or(i64::MIN)
    }

    /// The first time of this window at which so much has room, beside what counts still of the window before.
    fn first_with_room(self, room: i128, previous: i128) -> Option<i64> {
        if room < 0 {
            return None;
        }
        if previous <= room {
            return Some(self.start);
        }
        // The weight is at most the room as long as previous × left is at most room × length. `room` is less than
        // `previous` here, and is an i64's worth.
        let left = room.saturating_mul(self.length()) / previous;
        let left = i64::try_from(left).ok().filter(|&left| left > 0)?;
        Some(self.end - left)
    }
}

/// What a window does at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The next one begins at 0.
    Fixed,
    /// It goes on to count in the next one, less and less.
    Sliding,
}

/// Something that was not granted.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// The maximum of the type.
    pub max: i64,
    /// What was asked for.
    pub wanted: i64,
    /// What the running window has come to, at most.
    pub used: i128,
    /// What the one before had come to, at most. Of no meaning for fixed windows.
    pub previous: i128,
}

impl Refused {
    /// When it would be granted, if nobody else came: at `time` or later. None: never.
    ///
    /// `next` is the window after the running one.
    pub fn retry_at(&self, kind: Kind, running: Window, next: Window, time: i64) -> Option<i64> {
        let room = i128::from(self.max) - i128::from(self.wanted);
        if room < 0 {
            return None;
        }
        let previous = match kind {
            Kind::Fixed => 0,
            Kind::Sliding => self.previous,
        };
        if let Some(at) = running.first_with_room(room - self.used, previous) {
            return Some(at.max(time));
        }
        match kind {
            Kind::Fixed => Some(next.start),
            Kind::Sliding => next.first_with_room(room, self.used).or(Some(next.end)),
        }
    }
}

/// The time of a call, or of a look: what the clock shows; up to where windows may have been removed, where that is
/// later; and what the running transaction has gone by before.
///
/// The clock is one that does not go back, as long as the server runs. That windows may have been removed up to a time
/// is written before they are: so after a restart, or a promotion, with a clock that was set back, nobody takes again
/// what was taken in a window that is gone.
pub fn time(clock: i64, removed: i64, last: Option<i64>) -> i64 {
    last.into_iter().fold(clock.max(removed), i64::max)
}

/// What no counter of a windowed type is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadName {
    /// It is longer than [`MAX_WINDOWED_BYTES`].
    TooLong,
    /// It has the [`SEPARATOR`] in it.
    Separator,
}

/// What the stored names of a type's counters begin with in one window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    bytes: [u8; MAX_NAME_BYTES],
    length: usize,
    /// That of the type's name and the colon.
    plain: usize,
}

impl Prefix {
    /// None: the type's name is too long, or the start cannot be stored.
    pub fn new(type_name: &[u8], start: i64) -> Option<Self> {
        if type_name.len() >= MAX_WINDOWED_BYTES {
            return None;
        }
        let digits = digits(start)?;
        let mut bytes = [0; MAX_NAME_BYTES];
        let mut length = 0;
        for part in [type_name, b":", &[SEPARATOR], &digits, &[SEPARATOR]] {
            bytes[length..length + part.len()].copy_from_slice(part);
            length += part.len();
        }
        Some(Self {
            bytes,
            length,
            plain: type_name.len() + 1,
        })
    }

    /// Its bytes.
    pub fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The type and the colon, which the names begin with as they are given.
    pub fn plain(&self) -> &[u8] {
        &self.bytes[..self.plain]
    }

    /// The stored name of a counter of the type.
    ///
    /// # Errors
    /// [`BadName`].
    pub fn stored(&self, name: &[u8]) -> Result<StoredName, BadName> {
        debug_assert!(name.starts_with(self.plain()));
        if name.len() > MAX_WINDOWED_BYTES {
            return Err(BadName::TooLong);
        }
        let rest = &name[self.plain..];
        if rest.contains(&SEPARATOR) {
            return Err(BadName::Separator);
        }
        let mut bytes = self.bytes;
        let length = self.length + rest.len();
        bytes[self.length..length].copy_from_slice(rest);
        Ok(StoredName { bytes, length })
    }

    /// The stored names of the window.
    pub fn range(&self) -> NameRange {
        let mut range = NameRange::all();
        range.starting_with(self.get());
        range
    }
}

/// The name that a counter has in one window.
#[derive(Clone, Debug)]
pub struct StoredName {
    bytes: [u8; MAX_NAME_BYTES],
    length: usize,
}

impl StoredName {
    /// Its bytes.
    pub fn get(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A stored name, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The type.
    pub type_name: &'a [u8],
    /// The window's start.
    pub start: i64,
    /// What follows the colon in the name as it is given.
    pub rest: &'a [u8],
}

impl<'a> Stored<'a> {
    /// Takes a name apart. None: it is none that is stored for a window.
    pub fn of(name: &'a [u8]) -> Option<Self> {
        let colon = name.iter().position(|&byte| byte == b':')?;
        let (type_name, behind) = (&name[..colon], &name[colon + 1..]);
        let (head, rest) = behind.split_at_checked(OVERHEAD)?;
        let (digits, ends) = (&head[1..=DIGITS], (head[0], head[DIGITS + 1]));
        let is_stored = !type_name.is_empty()
            && name.len() <= MAX_NAME_BYTES
            && ends == (SEPARATOR, SEPARATOR)
            && digits.iter().all(u8::is_ascii_digit)
            && !rest.contains(&SEPARATOR);
        if !is_stored {
            return None;
        }
        let digit = |sum: i64, byte: &u8| sum * 10 + i64::from(byte - b'0');
        let seconds = digits.iter().fold(0, digit);
        Some(Self {
            type_name,
            start: (seconds - SINCE_1970) * SECOND,
            rest,
        })
    }

    /// The name as it is given.
    pub fn plain(&self) -> Vec<u8> {
        [self.type_name, b":", self.rest].concat()
    }
}

/// A window's start in digits. None: it is out of their range, or no whole second.
fn digits(start: i64) -> Option<[u8; DIGITS]> {
    if start.rem_euclid(SECOND) != 0 {
        return None;
    }
    let mut rest = u64::try_from(start / SECOND + SINCE_1970).ok()?;
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit += (rest % 10) as u8;
        rest /= 10;
    }
    (rest == 0).then_some(digits)
}

/// The stored names of all windows of a type.
pub fn all(type_name: &[u8]) -> NameRange {
    let mut range = NameRange::all();
    range.starting_with(&[type_name, b":", &[SEPARATOR]].concat());
    range
}

/// The stored names of all windows of a type that begin before a time. None: no window does.
pub fn ended(type_name: &[u8], before: i64) -> Option<NameRange> {
    let first_kept = Prefix::new(type_name, before)?;
    let mut range = all(type_name);
    range.less_than(first_kept.get());
    Some(range)
}

/// Which of all stored names are shown: those of types without a window, as they are, and of each type with a window
/// those of one, under the names that are given.
///
/// Names that are given, and what of stored ones is shown, are in the same order. For the types' names have no colon:
/// so where two names differ in what stands before a colon, they do so before anything was put in.
#[derive(Clone, Debug, Default)]
pub struct Shown {
    /// In the order of what is given of them.
    prefixes: Vec<Prefix>,
}

impl Shown {
    /// With the window of each type that has some.
    pub fn new(mut prefixes: Vec<Prefix>) -> Self {
        prefixes.sort_unstable_by(|a, b| a.plain().cmp(b.plain()));
        Self { prefixes }
    }

    /// Is there no type with a window? Then all names are what they are.
    pub fn is_plain(&self) -> bool {
        self.prefixes.is_empty()
    }

    /// The prefix of the type of a name.
    fn prefix_of(&self, name: &[u8]) -> Option<&Prefix> {
        if self.is_plain() {
            return None;
        }
        let colon = name.iter().position(|&byte| byte == b':')?;
        let plain = &name[..=colon];
        let at = (self.prefixes).binary_search_by(|prefix| prefix.plain().cmp(plain));
        Some(&self.prefixes[at.ok()?])
    }

    /// What to look for in stored names instead of a text: a name, or the end of a range of names, of any length.
    pub fn stored<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        self.prefix_of(text).map_or(Cow::Borrowed(text), |prefix| {
            Cow::Owned([prefix.get(), &text[prefix.plain..]].concat())
        })
    }

    /// How a stored name is shown. None: it is not.
    pub fn plain<'a>(&self, stored: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let Some(prefix) = self.prefix_of(stored) else {
            return Some(Cow::Borrowed(stored));
        };
        let rest = stored.strip_prefix(prefix.get())?;
        Some(Cow::Owned([prefix.plain(), rest].concat()))
    }

    /// Is a stored name shown?
    pub fn shows(&self, stored: &[u8]) -> bool {
        self.prefix_of(stored)
            .is_none_or(|prefix| stored.starts_with(prefix.get()))
    }

    /// A range of stored names that has all that are shown of a range of names, and others that are not shown.
    pub fn hull(&self, range: &NameRange) -> NameRange {
        if self.is_plain() {
            return range.clone();
        }
        let mut hull = NameRange::all();
        if let Some(from) = range.from() {
            hull.at_least(&self.stored(from));
        }
        if let Some(before) = range.before() {
            hull.less_than(&self.stored(before));
        }
        hull
    }

    /// The ranges of stored names that are shown of a range of names, ascending, none of them empty.
    pub fn segments(&self, range: &NameRange) -> Vec<NameRange> {
        let hull = self.hull(range);
        let mut segments = Vec::new();
        let mut keep = |from: Option<&[u8]>, before: Option<&[u8]>| {
            let mut segment = hull.clone();
            if let Some(from) = from {
                segment.at_least(from);
            }
            if let Some(before) = before {
                segment.less_than(before);
            }
            if !segment.is_empty() {
                segments.push(segment);
            }
        };
        let mut from: Option<Vec<u8>> = None;
        for prefix in &self.prefixes {
            keep(from.as_deref(), Some(prefix.plain()));
            let window = prefix.range();
            keep(window.from(), window.before());
            // A colon is the last byte of it.
            let mut next = prefix.plain().to_vec();
            if let Some(colon) = next.last_mut() {
                *colon += 1;
            }
            from = Some(next);
        }
        keep(from.as_deref(), None);
        segments
    }
}

/// What is asked for by a range of names, in stored ones.
#[derive(Debug)]
pub struct Asked {
    shown: Shown,
    hull: NameRange,
    segments: Vec<NameRange>,
}

impl Asked {
    /// A range of names, of which these are shown.
    pub fn new(shown: Shown, range: &NameRange) -> Self {
        Self {
            hull: shown.hull(range),
            segments: shown.segments(range),
            shown,
        }
    }

    /// Which names are shown at all.
    pub fn shown(&self) -> &Shown {
        &self.shown
    }

    /// A range that has all of them, and others.
    pub fn hull(&self) -> &NameRange {
        &self.hull
    }

    /// Ranges that have them and no others, ascending.
    pub fn segments(&self) -> &[NameRange] {
        &self.segments
    }

    /// Is a stored name among them?
    pub fn contains(&self, stored: &[u8]) -> bool {
        self.hull.contains(stored) && self.shown.shows(stored)
    }

    /// Are all stored names among them?
    pub fn is_all(&self) -> bool {
        self.shown.is_plain() && self.hull.is_all()
    }

    /// How one of them is shown.
    pub fn plain(&self, stored: &[u8]) -> Box<[u8]> {
        let plain = self.shown.plain(stored);
        plain.unwrap_or(Cow::Borrowed(stored)).into()
    }
}

#[cfg(test)]
mod tests;
