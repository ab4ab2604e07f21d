//! A lane with history, step by step: writers, prepared transactions, folds by the worker and by hand, a clock that is
//! set, crashes. In whatever order the steps come, a sealed bucket stays as it is, and the buckets add up to the value.
//!
//! The model is one lane and one counter, with minutes, and hours of a time zone that is half an hour off. A commit
//! goes into the write-ahead log first and is seen by others in a step of its own, after the log was flushed where it
//! has to be. A crash leaves what was flushed, and any part of the rest.
//!
//! That the model can tell right from wrong is a test as well: [`Fault`] has what it has to find.

use counterx_core::history::{
    HOUR, Kind, MINUTE, Steadiness, Stored, Sums, counted_at, ends_bucket, place, seal,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    None,
    /// A folder reads the clock after it has published.
    ClockAfterPublishing,
    /// A writer reads the clock before the epoch.
    ClockBeforeEpoch,
    /// A folder does not wait for those who may still write.
    NoWait,
    /// A folder takes its snapshot before it waits for them.
    EarlySnapshot,
    /// A fold counts its deltas at the new seal.
    ClampByNewSeal,
    /// A fold counts its deltas when they were written, whatever is sealed.
    NoClamp,
    /// A reader counts what is pending when it was written, whatever is sealed.
    NoClampInReads,
    /// A fold that ends a bucket is not flushed.
    AsyncSeal,
    /// A seal goes back with the clock.
    SealGoesBack,
    /// The fold that activates history counts its deltas.
    ActivationCounts,
    /// History is said to be known from where the lane is sealed, at its activation.
    KnownFromSeal,
}

/// The lengths of the units, and when the first one begins.
const UNITS: [(i64, i64); 2] = [(MINUTE, 0), (HOUR, 30 * MINUTE)];

fn start_of((length, offset): (i64, i64), time: i64) -> i64 {
    (time - offset).div_euclid(length) * length + offset
}

/// A delta of a log, or a late one.
#[derive(Clone, Debug)]
struct Row {
    id: usize,
    /// None: it is late.
    epoch: Option<i64>,
    at: i64,
    kind: Kind,
    delta: i128,
    /// Its writer's clock was not behind what any had shown before.
    is_in_order: bool,
}

/// The beginning of history.
#[derive(Clone, Copy, Debug)]
struct Since {
    /// Nothing counts before this.
    sealed: i64,
    /// All that is not history was counted before this: from then on, values as of a time are known.
    known: i64,
    /// The counter's value without history.
    base: i128,
}

/// What a snapshot sees.
#[derive(Clone, Debug, Default)]
struct Database {
    /// Logs and late rows; what was folded stays in the logs.
    rows: BTreeMap<usize, Row>,
    folded: i64,
    sealed: Option<i64>,
    total: i128,
    /// Somebody has asked for history.
    is_wanted: bool,
    since: Option<Since>,
    stored: [Vec<Stored>; 2],
    /// All that was ever committed, whatever folds have made of it.
    truth: i128,
}

impl Database {
    /// What folds have not met.
    fn pending(&self) -> impl Iterator<Item = &Row> + Clone {
        let folded = self.folded;
        self.rows
            .values()
            .filter(move |row| row.epoch.is_none_or(|epoch| epoch > folded))
    }

    /// These deltas added to what is stored of a unit.
    fn with<'a>(
        &self,
        unit: usize,
        rows: impl Iterator<Item = &'a Row>,
        sealed: Option<i64>,
    ) -> Vec<Stored> {
        let mut new = BTreeMap::<i64, Sums>::new();
        for row in rows {
            let start = start_of(UNITS[unit], counted_at(row.at, sealed));
            *new.entry(start).or_default() += Sums::of(row.kind, row.delta);
        }
        let new: Vec<_> = new.into_iter().collect();
        let mut rows = self.stored[unit].clone();
        let Some((first, _)) = new.first() else {
            return rows;
        };
        let stored = rows.split_off(rows.partition_point(|row| row.start < *first));
        let mut after: BTreeMap<_, _> = stored.iter().map(|row| (row.start, *row)).collect();
        place(self.total, &stored, &new, |placed| {
            after.insert(placed.row.start, placed.row);
        });
        rows.extend(after.into_values());
        rows
    }

    /// What a reader finds.
    fn read(&self, unit: usize, fault: Fault) -> Vec<Stored> {
        if self.since.is_none() {
            return Vec::new();
        }
        let sealed = self.sealed.filter(|_| fault != Fault::NoClampInReads);
        self.with(unit, self.pending(), sealed)
    }
}

/// What a fold has made of what it saw.
#[derive(Clone, Debug)]
struct Fold {
    through: i64,
    sealed: Option<i64>,
    total: i128,
    since: Option<Since>,
    stored: [Vec<Stored>; 2],
    late: Vec<usize>,
}

/// What is in the write-ahead log.
#[derive(Clone, Debug)]
enum Record {
    Published(i64),
    Committed(Vec<Row>),
    Wanted,
    Folded(Box<Fold>),
}

impl Database {
    fn apply(&mut self, record: &Record) {
        match record {
            // No transaction's.
            Record::Published(_) => (),
            Record::Committed(rows) => {
                for row in rows {
                    self.truth += row.delta;
                    self.rows.insert(row.id, row.clone());
                }
            }
            Record::Wanted => self.is_wanted = true,
            Record::Folded(fold) => {
                for id in &fold.late {
                    self.rows.remove(id);
                }
                self.folded = fold.through;
                self.sealed = fold.sealed;
                self.total = fold.total;
                self.since = fold.since;
                self.stored = fold.stored.clone();
            }
        }
    }
}

/// How a transaction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// In its commit.
    Ordinary,
    /// Again and again, as its memory is full. It keeps its gate.
    Early,
    /// Prepared.
    Prepared,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriterStep {
    /// Neither lock nor anything written.
    Begun,
    GateLocked,
    EpochRead,
    ClockRead,
    /// Or prepared.
    Written,
    /// The commit is in the log at this place.
    Committing(usize),
}

#[derive(Clone, Debug)]
struct Writer {
    /// Of all transactions the only one of this number.
    number: usize,
    way: Way,
    is_synchronous: bool,
    delta: (Kind, i128),
    step: WriterStep,
    epoch: i64,
    clock: (i64, bool),
    rows: Vec<Row>,
}

impl Writer {
    fn holds_gate(&self) -> bool {
        self.way != Way::Prepared && self.step != WriterStep::Begun
    }

    /// Has its next step nothing to do with what others do meanwhile?
    fn is_by_itself(&self) -> bool {
        match self.step {
            WriterStep::Begun | WriterStep::Committing(_) => true,
            WriterStep::Written => self.way != Way::Prepared,
            _ => false,
        }
    }
}

#[derive(Clone, Debug)]
enum FolderStep {
    ClockRead,
    Published,
    /// These may still write.
    Listed(Vec<usize>),
    /// Has the lease, and this snapshot.
    Snapshot(Box<Database>),
    /// The commit is in the log at this place.
    Committing(usize),
}

#[derive(Clone, Debug)]
struct Folder {
    step: FolderStep,
    epoch: i64,
    clock: i64,
    is_trusted: bool,
    early: Option<Box<Database>>,
    /// The clock after the snapshot was taken.
    clock_then: i64,
    ends_bucket: bool,
}

impl Folder {
    fn has_lease(&self) -> bool {
        matches!(
            self.step,
            FolderStep::Snapshot(_) | FolderStep::Committing(_)
        )
    }
}

/// A step of the model. Where it is not possible, nothing happens.
#[derive(Clone, Debug)]
enum Step {
    /// A transaction begins, where this place is free, or goes on.
    Write {
        place: usize,
        way: Way,
        is_synchronous: bool,
        delta: (Kind, i128),
        writes_again: bool,
    },
    /// It fails.
    Abort(usize),
    /// A folder goes on: the worker, somebody by hand.
    Fold { by_hand: bool, is_trusted: bool },
    /// Somebody asks for history.
    Want,
    /// Time goes by.
    Pass(i64),
    /// The clock is set.
    Set(i64),
    /// The log is flushed.
    Flush,
    /// Of the log that was not flushed, this part is lost.
    Crash(f64),
}

fn step() -> impl Strategy<Value = Step> {
    let way =
        prop_oneof![4 => Just(Way::Ordinary), 1 => Just(Way::Early), 2 => Just(Way::Prepared)];
    let kind = prop_oneof![3 => Just(Kind::Increment), 1 => Just(Kind::Adjustment)];
    let write = (
        0usize..4,
        way,
        any::<bool>(),
        (kind, -4i128..9),
        prop::bool::weighted(0.3),
    );
    let passes = prop_oneof![2 => 1i64..3, 4 => 1..MINUTE / 6, 4 => 1..MINUTE, 1 => 1..6 * MINUTE];
    let set = prop_oneof![
        2 => -3i64..3,
        4 => -2 * MINUTE..2 * MINUTE,
        1 => -2 * HOUR..2 * HOUR,
        1 => -30 * HOUR..30 * HOUR,
    ];
    prop_oneof![
        80 => write.prop_map(|(place, way, is_synchronous, delta, writes_again)| Step::Write {
            place, way, is_synchronous, delta, writes_again
        }),
        1 => (0usize..4).prop_map(Step::Abort),
        100 => (prop::bool::weighted(0.3), prop::bool::weighted(0.1))
            .prop_map(|(by_hand, is_trusted)| Step::Fold { by_hand, is_trusted }),
        2 => Just(Step::Want),
        30 => passes.prop_map(Step::Pass),
        1 => set.prop_map(Step::Set),
        3 => Just(Step::Flush),
        1 => (0.0..=1.0).prop_map(Step::Crash),
    ]
}

#[derive(Clone)]
struct World {
    fault: Fault,
    /// What the clock shows, and one that nobody sets.
    clock: i64,
    steady: i64,
    /// The latest that anybody has read.
    highest: i64,
    epoch: i64,
    log: Vec<Record>,
    flushed: usize,
    seen: Database,
    /// Transactions and rows so far.
    numbers: usize,
    writers: [Option<Writer>; 4],
    folders: [Option<Folder>; 2],
    steadiness: Steadiness,
    /// No clock was set so far, and nothing prepared.
    is_in_order: bool,
    /// What was sealed at the latest, in whatever snapshot, and all buckets that had ended.
    sealed: Option<(i64, [Vec<Stored>; 2])>,
}

/// What a test says of what is wrong.
type Outcome = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

impl World {
    fn new(fault: Fault, clock: i64) -> Self {
        Self {
            fault,
            clock,
            steady: 0,
            highest: i64::MIN,
            epoch: 1,
            log: Vec::new(),
            flushed: 0,
            seen: Database::default(),
            numbers: 0,
            writers: Default::default(),
            folders: Default::default(),
            steadiness: Steadiness::default(),
            is_in_order: true,
            sealed: None,
        }
    }

    fn go_through(&mut self, steps: impl IntoIterator<Item = Step>) -> Outcome {
        for step in steps {
            self.go(step)?;
        }
        Ok(())
    }

    fn go(&mut self, step: Step) -> Outcome {
        match step {
            Step::Write {
                place,
                way,
                is_synchronous,
                delta,
                writes_again,
            } => {
                return self.write(place, way, is_synchronous, delta, writes_again);
            }
            Step::Abort(place) => {
                let is_over =
                    |writer: &mut Writer| !matches!(writer.step, WriterStep::Committing(_));
                self.writers[place].take_if(is_over);
            }
            Step::Fold {
                by_hand,
                is_trusted,
            } => return self.fold(by_hand, is_trusted),
            Step::Want => {
                if !self.seen.is_wanted {
                    self.log.push(Record::Wanted);
                    self.flushed = self.log.len();
                    return self.see(self.log.len() - 1);
                }
            }
            Step::Pass(time) => {
                self.clock += time;
                self.steady += time;
            }
            Step::Set(by) => {
                self.clock += by;
                self.is_in_order = false;
            }
            Step::Flush => self.flushed = self.log.len(),
            Step::Crash(part) => return self.crash(part),
        }
        Ok(())
    }

    /// The clock, and whether it shows no less than anybody has read before.
    fn read_clock(&mut self) -> (i64, bool) {
        let is_in_order = self.clock >= self.highest;
        self.highest = self.highest.max(self.clock);
        (self.clock, is_in_order)
    }

    fn next_number(&mut self) -> usize {
        self.numbers += 1;
        self.numbers
    }

    fn write(
        &mut self,
        place: usize,
        way: Way,
        is_synchronous: bool,
        delta: (Kind, i128),
        writes_again: bool,
    ) -> Outcome {
        let Some(mut writer) = self.writers[place].take() else {
            self.writers[place] = Some(Writer {
                number: self.next_number(),
                way,
                // Who commits what was prepared waits for the disk, whatever the setting.
                is_synchronous: is_synchronous || way == Way::Prepared,
                delta,
                step: WriterStep::Begun,
                epoch: 0,
                clock: (0, false),
                rows: Vec::new(),
            });
            return Ok(());
        };
        let clock_first = self.fault == Fault::ClockBeforeEpoch;
        match writer.step {
            WriterStep::Begun if writer.way == Way::Prepared => {
                let (at, _) = self.read_clock();
                self.is_in_order = false;
                self.insert(&mut writer, None, (at, false));
                // A prepared transaction is on disk, and all before it.
                self.flushed = self.log.len();
            }
            WriterStep::Begun => writer.step = WriterStep::GateLocked,
            WriterStep::GateLocked => {
                if clock_first {
                    writer.clock = self.read_clock();
                } else {
                    writer.epoch = self.epoch;
                }
                writer.step = WriterStep::EpochRead;
            }
            WriterStep::EpochRead => {
                if clock_first {
                    writer.epoch = self.epoch;
                } else {
                    writer.clock = self.read_clock();
                }
                writer.step = WriterStep::ClockRead;
            }
            WriterStep::ClockRead => {
                let (epoch, clock) = (writer.epoch, writer.clock);
                self.insert(&mut writer, Some(epoch), clock);
            }
            WriterStep::Written if writer.way == Way::Early && writes_again => {
                writer.step = WriterStep::GateLocked;
            }
            WriterStep::Written => {
                self.log.push(Record::Committed(writer.rows.clone()));
                writer.step = WriterStep::Committing(self.log.len() - 1);
            }
            WriterStep::Committing(record) => {
                if writer.is_synchronous {
                    self.flushed = self.flushed.max(record + 1);
                }
                return self.see(record);
            }
        }
        self.writers[place] = Some(writer);
        Ok(())
    }

    fn insert(&mut self, writer: &mut Writer, epoch: Option<i64>, (at, is_in_order): (i64, bool)) {
        let (kind, delta) = writer.delta;
        writer.rows.push(Row {
            id: self.next_number(),
            epoch,
            at,
            kind,
            delta,
            is_in_order,
        });
        writer.step = WriterStep::Written;
    }

    fn fold(&mut self, by_hand: bool, is_trusted: bool) -> Outcome {
        let place = usize::from(by_hand);
        let late_clock = self.fault == Fault::ClockAfterPublishing;
        let Some(mut folder) = self.folders[place].take() else {
            let mut folder = Folder {
                step: FolderStep::ClockRead,
                epoch: 0,
                clock: 0,
                is_trusted: false,
                early: None,
                clock_then: 0,
                ends_bucket: false,
            };
            if late_clock {
                self.publish(&mut folder);
            } else {
                self.look_at_clock(&mut folder, by_hand, is_trusted);
            }
            self.folders[place] = Some(folder);
            return Ok(());
        };
        match folder.step {
            FolderStep::ClockRead => {
                if late_clock {
                    self.look_at_clock(&mut folder, by_hand, is_trusted);
                } else {
                    self.publish(&mut folder);
                }
                folder.step = FolderStep::Published;
            }
            FolderStep::Published => {
                let writers = self.writers.iter().flatten();
                let holders = writers.filter(|writer| writer.holds_gate());
                folder.step = FolderStep::Listed(holders.map(|writer| writer.number).collect());
                folder.early =
                    (self.fault == Fault::EarlySnapshot).then(|| Box::new(self.seen.clone()));
            }
            FolderStep::Listed(ref listed) => {
                let mut writers = self.writers.iter().flatten();
                let is_settled = self.fault == Fault::NoWait
                    || !writers.any(|writer| listed.contains(&writer.number));
                let is_free = !self.folders.iter().flatten().any(Folder::has_lease);
                if is_settled && is_free {
                    if self.seen.folded >= folder.epoch - 1 {
                        // Somebody else has done it.
                        return Ok(());
                    }
                    let snapshot = folder.early.take();
                    let snapshot = snapshot.unwrap_or_else(|| Box::new(self.seen.clone()));
                    (folder.clock_then, _) = self.read_clock();
                    folder.step = FolderStep::Snapshot(snapshot);
                }
            }
            FolderStep::Snapshot(ref snapshot) => {
                let fold = self.make_fold(&folder, snapshot)?;
                folder.ends_bucket = fold
                    .sealed
                    .is_some_and(|sealed| ends_bucket(snapshot.sealed, sealed));
                self.log.push(Record::Folded(Box::new(fold)));
                folder.step = FolderStep::Committing(self.log.len() - 1);
            }
            FolderStep::Committing(record) => {
                if folder.ends_bucket && self.fault != Fault::AsyncSeal {
                    self.flushed = self.flushed.max(record + 1);
                }
                return self.see(record);
            }
        }
        self.folders[place] = Some(folder);
        Ok(())
    }

    /// Who takes such steps has begun, and is not done.
    fn is_under_way(&self, step: &Step) -> bool {
        match step {
            Step::Write { place, .. } => self.writers[*place].is_some(),
            Step::Fold { by_hand, .. } => self.folders[usize::from(*by_hand)].is_some(),
            _ => false,
        }
    }

    /// Nobody has got any further than there.
    fn is_where(&self, other: &Self) -> bool {
        let of = |world: &Self| {
            let writers = world
                .writers
                .iter()
                .flatten()
                .map(|writer| writer.step)
                .collect::<Vec<_>>();
            let folders = world.folders.iter().flatten();
            let folders: Vec<_> = folders
                .map(|folder| std::mem::discriminant(&folder.step))
                .collect();
            (writers, folders)
        };
        of(self) == of(other)
    }

    fn look_at_clock(&mut self, folder: &mut Folder, by_hand: bool, is_trusted: bool) {
        (folder.clock, _) = self.read_clock();
        folder.is_trusted = if by_hand {
            is_trusted
        } else {
            self.steadiness.look(folder.clock, self.steady)
        };
    }

    fn publish(&mut self, folder: &mut Folder) {
        self.epoch += 1;
        folder.epoch = self.epoch;
        self.log.push(Record::Published(self.epoch));
    }

    fn make_fold(&self, folder: &Folder, snapshot: &Database) -> Result<Fold, String> {
        let through = folder.epoch - 1;
        let mine = snapshot
            .pending()
            .filter(|row| row.epoch.is_none_or(|epoch| epoch <= through));
        let sealed = match self.fault {
            Fault::SealGoesBack => folder.clock,
            _ => seal(snapshot.sealed, folder.clock, folder.is_trusted),
        };
        let clamp = match self.fault {
            Fault::ClampByNewSeal => Some(sealed),
            Fault::NoClamp => None,
            _ => snapshot.sealed,
        };
        let total = snapshot.total + mine.clone().map(|row| row.delta).sum::<i128>();
        let mut since = snapshot.since;
        // Not while it is in doubt what time it is.
        if since.is_none() && snapshot.is_wanted && sealed >= folder.clock {
            let known = match self.fault {
                Fault::KnownFromSeal => sealed,
                _ => sealed.max(folder.clock_then + 1),
            };
            since = Some(Since {
                sealed,
                known,
                base: total,
            });
        }
        let mut stored = snapshot.stored.clone();
        if snapshot.since.is_some() || (since.is_some() && self.fault == Fault::ActivationCounts) {
            in_order_are_not_moved(mine.clone(), clamp)?;
            stored = [0, 1].map(|unit| snapshot.with(unit, mine.clone(), clamp));
        }
        Ok(Fold {
            through,
            sealed: Some(sealed),
            total,
            since,
            stored,
            late: mine
                .filter(|row| row.epoch.is_none())
                .map(|row| row.id)
                .collect(),
        })
    }

    fn crash(&mut self, part: f64) -> Outcome {
        let kept = self.flushed + ((self.log.len() - self.flushed) as f64 * part) as usize;
        self.log.truncate(kept);
        self.flushed = kept;
        self.seen = Database::default();
        self.epoch = 1;
        for record in &self.log {
            self.seen.apply(record);
            if let Record::Published(epoch) = record {
                self.epoch = *epoch;
            }
        }
        let epochs = self.seen.rows.values().filter_map(|row| row.epoch);
        if epochs.max().is_some_and(|newest| newest > self.epoch) {
            return Err("a row of an epoch that nobody has published".into());
        }
        for writer in &mut self.writers {
            *writer = writer.take().filter(|writer| {
                writer.way == Way::Prepared
                    && match writer.step {
                        WriterStep::Committing(record) => record >= kept,
                        step => step == WriterStep::Written,
                    }
            });
            if let Some(writer) = writer {
                writer.step = WriterStep::Written;
            }
        }
        self.folders = Default::default();
        self.steadiness = Steadiness::default();
        self.check()
    }

    /// A commit is seen by others.
    fn see(&mut self, record: usize) -> Outcome {
        self.seen.apply(&self.log[record]);
        self.check()
    }

    /// What holds in every snapshot.
    fn check(&mut self) -> Outcome {
        let now = &self.seen;
        let value = now.total + now.pending().map(|row| row.delta).sum::<i128>();
        ensure(value == now.truth, || {
            format!("{value} is counted of {}", now.truth)
        })?;
        let read = [0, 1].map(|unit| now.read(unit, self.fault));
        if let Some(Since {
            sealed: since,
            known,
            base,
        }) = now.since
        {
            in_order_are_not_moved(now.pending(), now.sealed)?;
            for (unit, rows) in read.iter().enumerate() {
                let all = base + rows.iter().map(|row| row.sums.net()).sum::<i128>();
                ensure(all == value, || {
                    format!("the buckets make {all} of {value}")
                })?;
                let last = rows.last().map_or(base, |row| row.value);
                ensure(last == value, || {
                    format!("the last bucket has {last} for {value}")
                })?;
                let first = start_of(UNITS[unit], since);
                ensure(rows.iter().all(|row| row.start >= first), || {
                    format!("there is history since {since}, but {rows:?}")
                })?;
            }
            if self.is_in_order {
                self.check_values(&read, base, known)?;
            }
        }
        if let Some((sealed, known)) = &self.sealed {
            for unit in 0..UNITS.len() {
                let rows = ended(unit, &read[unit], *sealed);
                let known = &known[unit];
                ensure(rows == known, || {
                    format!("sealed through {sealed}: {known:?} is {rows:?} now")
                })?;
            }
            // And nobody is told that what was sealed is not.
            let minute = |sealed| start_of(UNITS[0], sealed);
            ensure(now.sealed.map(minute) >= Some(minute(*sealed)), || {
                format!("{sealed} was sealed, and now {:?} is", now.sealed)
            })?;
        }
        if let Some(sealed) = now.sealed
            && now.since.is_some()
            && self.sealed.as_ref().is_none_or(|known| known.0 < sealed)
        {
            let known = [0, 1].map(|unit| ended(unit, &read[unit], sealed).to_vec());
            self.sealed = Some((sealed, known));
        }
        Ok(())
    }
}

impl World {
    /// Values as of a boundary are those of all that was written before it, where no clock was set and nothing prepared.
    fn check_values(&self, read: &[Vec<Stored>; 2], base: i128, known: i64) -> Outcome {
        for (unit, rows) in read.iter().enumerate() {
            let (length, _) = UNITS[unit];
            // Those about which anything happens.
            let times = self.seen.rows.values().map(|row| row.at);
            let boundaries = times.chain([known]).flat_map(|time| {
                let start = start_of(UNITS[unit], time);
                [start, start + length]
            });
            for boundary in boundaries.filter(|boundary| *boundary >= known) {
                let last = ended(unit, rows, boundary).last();
                let value = last.map_or(base, |row| row.value);
                let written = self.seen.rows.values().filter(|row| row.at < boundary);
                let written = written.map(|row| row.delta).sum::<i128>();
                ensure(value == written, || {
                    format!("{value} as of {boundary}, and {written} was written before")
                })?;
            }
        }
        Ok(())
    }
}

/// The buckets that have ended by then.
fn ended(unit: usize, rows: &[Stored], sealed: i64) -> &[Stored] {
    let (length, _) = UNITS[unit];
    &rows[..rows.partition_point(|row| row.start + length <= sealed)]
}

/// What was neither prepared nor written when the clock was behind counts when it was written.
fn in_order_are_not_moved<'a>(
    mut rows: impl Iterator<Item = &'a Row>,
    sealed: Option<i64>,
) -> Outcome {
    let moved = rows.find(|row| row.is_in_order && counted_at(row.at, sealed) != row.at);
    ensure(moved.is_none(), || {
        format!("{moved:?} is moved to {sealed:?}")
    })
}

/// The clock at the beginning: about a boundary.
fn clock() -> impl Strategy<Value = i64> {
    prop_oneof![-MINUTE..MINUTE, -3i64..3, 30 * MINUTE - 3..30 * MINUTE + 3]
}

/// Failures are not kept in files: what they look like changes with the steps.
fn orders(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(orders(600))]
    #[test]
    fn what_is_sealed_stays_in_whatever_order_things_happen(
        clock in clock(),
        steps in vec(step(), 0..250),
    ) {
        World::new(Fault::None, clock).go_through(steps).map_err(TestCaseError::fail)?;
    }

    /// Where no clock is set and nothing prepared; but the server may stand still for a day.
    #[test]
    fn what_is_in_order_counts_when_it_was_written(
        clock in clock(),
        steps in vec(step(), 0..250),
    ) {
        let mut world = World::new(Fault::None, clock);
        world.go_through(steps.into_iter().map(in_order)).map_err(TestCaseError::fail)?;
        prop_assert!(world.is_in_order);
    }
}

fn in_order(step: Step) -> Step {
    match step {
        Step::Write {
            place,
            way: Way::Prepared,
            is_synchronous,
            delta,
            writes_again,
        } => Step::Write {
            place,
            way: Way::Ordinary,
            is_synchronous,
            delta,
            writes_again,
        },
        Step::Set(by) => Step::Pass(by.abs()),
        step => step,
    }
}

/// One step of somebody whose whole way is tried in all orders with those of others.
fn one(place: usize, way: Way) -> Step {
    Step::Write {
        place,
        way,
        is_synchronous: false,
        delta: (Kind::Increment, 1 << place),
        writes_again: false,
    }
}

/// The worker's next step, or that of somebody who folds by hand.
fn fold(by_hand: bool) -> Step {
    Step::Fold {
        by_hand,
        is_trusted: false,
    }
}

/// Goes through all orders in which these can take their steps, from here to where all are done: half a minute each, or
/// no time at all where nobody else has to do with it. After each step, the server crashes in a copy of the world, where
/// what is left is then folded. Returns how many orders there are.
fn in_all_orders(world: &World, ways: &[Step], begun: &[bool]) -> Result<usize, String> {
    let mut crashed = world.clone();
    crashed.go(Step::Crash(0.0))?;
    for place in 0..crashed.writers.len() {
        if crashed.writers[place].is_some() {
            crashed.go_through([one(place, Way::Prepared), one(place, Way::Prepared)])?;
        }
    }
    crashed.go_through((0..6).map(|_| fold(false)))?;
    let (mut orders, mut is_over) = (0, true);
    for (way, step) in ways.iter().enumerate() {
        if begun[way] && !world.is_under_way(step) {
            continue;
        }
        is_over = false;
        let mut next = world.clone();
        next.go(step.clone())?;
        if begun[way] && next.is_where(world) {
            // It waits for another.
            continue;
        }
        if let Step::Write { place, .. } = step {
            while next.writers[*place]
                .as_ref()
                .is_some_and(Writer::is_by_itself)
            {
                next.go(step.clone())?;
            }
        }
        next.go(Step::Pass(MINUTE / 2))?;
        let mut begun = begun.to_vec();
        begun[way] = true;
        orders += in_all_orders(&next, ways, &begun)?;
    }
    Ok(orders + usize::from(is_over))
}

/// All orders of these in a lane that has history.
fn all_orders(fault: Fault, ways: &[Step]) -> Result<usize, String> {
    let mut world = World::new(fault, 0);
    world.go(Step::Want)?;
    world.go_through((0..6).map(|_| fold(false)))?;
    world.go_through([Step::Flush, Step::Pass(MINUTE / 2)])?;
    in_all_orders(&world, ways, &vec![false; ways.len()])
}

/// Who is there at a time in [`all_orders`].
fn few() -> [Vec<Step>; 3] {
    let (ordinary, prepared) = (one(0, Way::Ordinary), one(1, Way::Prepared));
    [
        vec![ordinary.clone(), prepared.clone(), fold(false)],
        vec![prepared, fold(false), fold(true)],
        vec![ordinary, fold(false), fold(true)],
    ]
}

#[test]
fn what_is_sealed_stays_in_all_orders_of_a_few() {
    for ways in few() {
        let orders = all_orders(Fault::None, &ways).unwrap();
        println!("{orders} orders");
        assert!(orders > 1000);
    }
    for fault in [
        Fault::ClockAfterPublishing,
        Fault::ClockBeforeEpoch,
        Fault::NoWait,
        Fault::EarlySnapshot,
        Fault::ClampByNewSeal,
        Fault::AsyncSeal,
    ] {
        let is_found = few().iter().any(|ways| all_orders(fault, ways).is_err());
        assert!(is_found, "{fault:?} is not found");
    }
}

/// How many random orders it takes to find what is wrong; None: more than there are.
fn orders_to_find(fault: Fault, orders: usize) -> Option<usize> {
    let mut runner = TestRunner::deterministic();
    let steps = (clock(), vec(step(), 250));
    (0..orders).find(|_| {
        let (clock, steps) = steps.new_tree(&mut runner).unwrap().current();
        World::new(fault, clock).go_through(steps).is_err()
    })
}

#[test]
fn the_model_finds_faults() {
    for fault in [
        Fault::ClockAfterPublishing,
        Fault::ClockBeforeEpoch,
        Fault::NoWait,
        Fault::EarlySnapshot,
        Fault::ClampByNewSeal,
        Fault::NoClamp,
        Fault::NoClampInReads,
        Fault::AsyncSeal,
        Fault::SealGoesBack,
        Fault::ActivationCounts,
        Fault::KnownFromSeal,
    ] {
        let found = orders_to_find(fault, 2000);
        println!("{fault:?}: {found:?}");
        assert!(found.is_some(), "{fault:?} is not found");
    }
}
