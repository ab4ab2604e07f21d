//! What was counted when: in which bucket a delta belongs, what that does to the values of the rows after it,
//! when a lane may be sealed, and in which table a row is kept.
//!
//! # Time
//! Times are microseconds since 2000-01-01 UTC, as the server has them. A delta carries the clock of its commit,
//! which may be late: a prepared transaction commits when it likes, and a clock may step back. So a lane has a
//! time *through which it is sealed*, and what arrives later counts at that time ([`counted_at`]): a bucket that
//! ends before it never changes.
//!
//! # Values
//! A row of a bucket has the counter's value after it. A delta that belongs to an older bucket than the newest
//! one, as after a clock that jumped ahead, raises the values of all rows after it as well ([`place`]). So the
//! value before a row, by itself, is its value less its own deltas, and the newest row has the total.

/// A minute in microseconds.
pub const MINUTE: i64 = 60_000_000;
/// An hour in microseconds.
pub const HOUR: i64 = 60 * MINUTE;
/// A day in microseconds.
pub const DAY: i64 = 24 * HOUR;

/// How long a bucket is; or no length at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Each change by itself, no bucket.
    Event,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day of the history's time zone.
    Day,
    /// A month of it.
    Month,
}

impl Unit {
    /// The units that have buckets, finest first.
    pub const BUCKETS: [Self; 4] = [Self::Minute, Self::Hour, Self::Day, Self::Month];

    /// As SQL has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    /// The unit of this name.
    pub fn of_name(name: &[u8]) -> Option<Self> {
        [
            Self::Event,
            Self::Minute,
            Self::Hour,
            Self::Day,
            Self::Month,
        ]
        .into_iter()
        .find(|unit| unit.name().as_bytes() == name)
    }

    /// How long one is at most, in microseconds: a day has 25 hours where clocks are set back.
    pub fn longest(self) -> i64 {
        match self {
            Self::Event => 0,
            Self::Minute => MINUTE,
            Self::Hour => HOUR,
            Self::Day => DAY + HOUR,
            Self::Month => 31 * DAY + HOUR,
        }
    }
}

/// When a delta counts: when it was written, or the time through which the lane is sealed, if that is later.
pub fn counted_at(at: i64, sealed: Option<i64>) -> i64 {
    sealed.map_or(at, |sealed| at.max(sealed))
}

/// How long rows are kept, roughly: tables are emptied as a whole, so those of one class share them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class(u8);

impl Class {
    /// The longest that rows of a class are kept, in days. What is to be kept for longer is kept for ever.
    const DAYS: [i64; Self::FINITE] = [1, 7, 35, 800];
    /// Classes whose rows go one day.
    pub const FINITE: usize = 4;
    /// All classes.
    pub const ALL: usize = Self::FINITE + 1;
    /// Tables of a class whose rows go. A row is wanted for up to four and a half segments after its beginning, so half
    /// of one is left for emptying a table before its turn comes again.
    const TABLES: i64 = 6;
    /// No class has more tables.
    pub const MOST_TABLES: usize = Self::TABLES as usize;
    /// So many segments are as long as the longest that rows of the class are kept.
    const SEGMENTS: i64 = 4;

    /// What does not go.
    pub const FOR_EVER: Self = Self(Self::FINITE as u8);

    /// The class with this number.
    pub fn of_number(number: usize) -> Option<Self> {
        (number < Self::ALL).then_some(Self(number as u8))
    }

    /// The class for rows of a unit that are kept so long after their end, in microseconds; None: for ever. A row is
    /// filed by its beginning, which is that much earlier.
    ///
    /// # Errors
    /// The longest time that is not for ever, in days, where it is exceeded.
    pub fn of_keep(unit: Unit, keep: Option<i64>) -> Result<Self, i64> {
        const LONGEST: i64 = Class::DAYS[Class::FINITE - 1];
        let Some(keep) = keep else {
            return Ok(Self::FOR_EVER);
        };
        if keep > LONGEST * DAY {
            return Err(LONGEST);
        }
        (0..Self::FINITE as u8)
            .map(Self)
            .find(|class| {
                let days = Self::DAYS[class.number()];
                keep <= days * DAY
                    && class
                        .wanted_for()
                        .is_some_and(|wanted| keep + unit.longest() <= wanted)
            })
            .ok_or(LONGEST)
    }

    /// Its number.
    pub fn number(self) -> usize {
        self.0.into()
    }

    /// How many tables it has.
    pub fn tables(self) -> usize {
        match self.segment_length() {
            Some(_) => Self::TABLES as usize,
            None => 1,
        }
    }

    /// The length of a segment in microseconds; None: there is one, without an end.
    fn segment_length(self) -> Option<i64> {
        let days = Self::DAYS.get(self.number())?;
        Some(days * DAY / Self::SEGMENTS)
    }

    /// The table that a row belongs to by the start of its bucket.
    pub fn table_of(self, start: i64) -> usize {
        self.segment_length().map_or(0, |length| {
            start.div_euclid(length).rem_euclid(Self::TABLES) as usize
        })
    }

    /// The tables that have the rows that begin between two times, both included.
    pub fn tables_between(self, first: i64, last: i64) -> impl Iterator<Item = usize> + use<> {
        let segments = self.segment_length().map_or(1, |length| {
            last.div_euclid(length)
                .saturating_sub(first.div_euclid(length))
                .saturating_add(1)
        });
        let (from, tables) = (self.table_of(first), self.tables());
        let count = usize::try_from(segments).map_or(0, |segments| segments.min(tables));
        (from..from + count).map(move |table| table % tables)
    }

    /// How long after its beginning a row may be wanted: half a segment more than the longest that rows are kept, for
    /// the bucket's own length.
    fn wanted_for(self) -> Option<i64> {
        let length = self.segment_length()?;
        Some(Self::SEGMENTS * length + length / 2)
    }

    /// Of what begins before this, nothing is wanted at that time any more.
    pub fn wanted_from(self, now: i64) -> Option<i64> {
        Some(now.saturating_sub(self.wanted_for()?))
    }

    /// The beginning of the segment that a time is in: what is before it is in segments that have ended.
    pub fn segment_begin(self, time: i64) -> Option<i64> {
        let length = self.segment_length()?;
        Some(time.div_euclid(length).saturating_mul(length))
    }

    /// Is nothing of a table wanted any more, where all before `expired` is not, and rows up to `newest` may have been
    /// written?
    pub fn is_expired(self, table: usize, expired: i64, newest: i64) -> bool {
        let Some(length) = self.segment_length() else {
            return false;
        };
        // The last segment of the table that begins at `newest` or before.
        let last = newest.div_euclid(length);
        let back = (last - table as i64).rem_euclid(Self::TABLES);
        (last - back + 1).saturating_mul(length) <= expired
    }
}

/// What a delta is, for history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something was counted.
    Increment,
    /// Nothing was: the counter was set, reset, dropped, renamed, merged, filled.
    Adjustment,
    /// The counter was dropped, and its history goes as well.
    Purge,
    /// A restore has brought the counter's value, and its history beside it.
    Restored,
}

/// The sums of a bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// What was counted.
    pub delta: i128,
    /// What was adjusted.
    pub adjusted: i128,
    /// What was counted upwards.
    pub ups: i128,
    /// What was counted downwards, as a positive number.
    pub downs: i128,
    /// How many transactions have counted.
    pub changes: i64,
}

impl Sums {
    /// Of one delta.
    pub fn of(kind: Kind, delta: i128) -> Self {
        match kind {
            Kind::Increment => Self {
                delta,
                adjusted: 0,
                ups: delta.max(0),
                downs: -delta.min(0),
                changes: 1,
            },
            Kind::Adjustment | Kind::Purge => Self {
                adjusted: delta,
                ..Self::default()
            },
            Kind::Restored => Self::default(),
        }
    }

    /// What they change the value by.
    pub fn net(&self) -> i128 {
        self.delta + self.adjusted
    }

    /// Nothing at all.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.delta += other.delta;
        self.adjusted += other.adjusted;
        self.ups += other.ups;
        self.downs += other.downs;
        self.changes = self.changes.saturating_add(other.changes);
    }
}

/// Where a history begins in a lane. What was committed before somebody asked for it is not part of it, and all that
/// was begun to be written after that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Its first epoch.
    pub epoch: i64,
    /// The clock before that was published.
    pub at: i64,
    /// From when on it is known; None: what comes before it may not be folded yet.
    pub since: Option<i64>,
}

impl Begin {
    /// Is something that is not folded part of it? It has this epoch, or none: what is late comes before all epochs,
    /// and so before the first one.
    pub fn includes(&self, epoch: Option<i64>) -> bool {
        self.since.is_some() || epoch.is_some_and(|epoch| epoch >= self.epoch)
    }

    /// From when on it is known, once a fold through this epoch has moved what comes before; None: some may come yet.
    /// Folds before it have moved nothing that was written after `folded`, and this one has left out nothing that was
    /// written after `left_out`.
    pub fn known_since(
        &self,
        through: i64,
        folded: Option<i64>,
        left_out: Option<i64>,
    ) -> Option<i64> {
        let is_all = through.saturating_add(1) >= self.epoch;
        let left_out = left_out.map(|at| at.saturating_add(1));
        is_all.then(|| {
            [folded, left_out]
                .into_iter()
                .flatten()
                .fold(self.at, i64::max)
        })
    }
}

/// A row as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// When its bucket begins.
    pub start: i64,
    /// What is in it.
    pub sums: Sums,
    /// The counter's value after it.
    pub value: i128,
}

impl Stored {
    /// The counter's value before it.
    pub fn value_before(&self) -> i128 {
        self.value - self.sums.net()
    }
}

/// A row as it is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The row.
    pub row: Stored,
    /// The place, among the stored ones, of the row that it replaces; None: it is new.
    pub replaces: Option<usize>,
}

/// Puts sums into a counter's rows of one unit.
///
/// `new` has the sums by the starts of their buckets, ascending, each once. `stored` has all rows from the first of
/// these on, ascending. `before` is the counter's value without the new sums, where there is no such row. Calls
/// `write` with the rows that become others, ascending.
pub fn place(before: i128, stored: &[Stored], new: &[(i64, Sums)], mut write: impl FnMut(Placed)) {
    let mut value = stored.first().map_or(before, Stored::value_before);
    let (mut olds, mut news) = (stored.iter().enumerate().peekable(), new.iter().peekable());
    loop {
        let next_old = olds.peek().map(|(_, row)| row.start);
        let next_new = news.peek().map(|(start, _)| *start);
        let start = match (next_old, next_new) {
            (Some(old), Some(new)) => old.min(new),
            (Some(start), None) | (None, Some(start)) => start,
            (None, None) => return,
        };
        let old = olds.next_if(|(_, row)| row.start == start);
        let mut sums = old.map_or_else(Sums::default, |(_, row)| row.sums);
        if let Some((_, added)) = news.next_if(|(new, _)| *new == start) {
            sums += *added;
        }
        value += sums.net();
        let row = Stored { start, sums, value };
        if old.is_none_or(|(_, old)| *old != row) {
            write(Placed {
                row,
                replaces: old.map(|(place, _)| place),
            });
        }
    }
}

/// The furthest that a lane's seal moves without somebody's word that the clock is right, in microseconds.
pub const LEAP: i64 = HOUR;

/// Through which time is a lane sealed after a fold, that was so through `known` before, where `clock` was read before
/// the epoch was published? `is_trusted`: the clock is known to be right.
pub fn seal(known: Option<i64>, clock: i64, is_trusted: bool) -> i64 {
    match known {
        Some(known) if clock <= known => known,
        Some(known) if clock.saturating_sub(known) > LEAP && !is_trusted => known,
        _ => clock,
    }
}

/// Does a seal that moves so end a bucket of any unit? Then it has to be on disk before anybody hears of it.
pub fn ends_bucket(known: Option<i64>, sealed: i64) -> bool {
    known.is_none_or(|known| known.div_euclid(MINUTE) != sealed.div_euclid(MINUTE))
}

/// Whether the clock goes steadily: a process's own look at it, beside a clock that nobody sets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steadiness {
    /// The difference of the two clocks, and since when it is that, by the one that nobody sets.
    since: Option<(i64, i64)>,
}

impl Steadiness {
    /// So far the clocks may drift apart, in microseconds.
    const DRIFT: i64 = 10_000_000;
    /// A clock that has gone so long without a step is trusted, in microseconds.
    pub const TRUSTED_AFTER: i64 = 10 * MINUTE;

    /// Both clocks show this. Has the one gone steadily for long enough?
    pub fn look(&mut self, clock: i64, steady: i64) -> bool {
        let difference = clock - steady;
        match self.since {
            Some((known, since)) if (known - difference).abs() <= Self::DRIFT => {
                steady - since >= Self::TRUSTED_AFTER
            }
            _ => {
                self.since = Some((difference, steady));
                false
            }
        }
    }
}

/// A delta of a log, or a late one, as history has it.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// When it was written.
    pub at: i64,
    /// What it is.
    pub delta: i128,
    /// Why.
    pub kind: Kind,
    /// What has written it: the transaction, a FullTransactionId, or a subtransaction.
    pub xid: i64,
    /// Is that the id of the transaction?
    pub is_of_transaction: bool,
}

impl Change {
    /// The id of the transaction; 0: not known.
    pub fn transaction(&self) -> i64 {
        if self.is_of_transaction { self.xid } else { 0 }
    }
}

#[cfg(test)]
mod tests;
