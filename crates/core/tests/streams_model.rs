//! A stream of one lane and one counter, in all the states that it can come to: folds, consumers, a bootstrap, the
//! truncation of what is read, crashes that lose what was committed asynchronously, and a standby that is promoted.
//!
//! What a read returns is all that was folded between where it begins and where it ends. What a consumer within the
//! database has added up is the total as of its cursor; what one outside of it has added up, by positions, is the total
//! as of the position that it remembers, whatever it has forgotten to acknowledge.
//!
//! Commits are in a log, of which a crash keeps any part beyond what was flushed. A truncation takes rows out of all
//! snapshots; what is written in place is seen by all at once.
//!
//! The state space is small, and gone through as a whole: see [`Limits`]. That the model can tell right from wrong is
//! a test as well: [`Fault`] has what it has to find.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    None,
    /// A bootstrap that starts the stream does not keep folds out.
    NoLease,
    /// Its snapshot is older than its lease.
    OldSnapshot,
    /// A fold looks for cursors before it has the lease.
    EarlyCursors,
    /// A cursor is a fold, of which a page may have returned a part.
    CursorByFold,
    /// The rows of each epoch of a fold are numbered anew.
    SeqRestarts,
    /// Who has waited for the cursor goes by where it was in his snapshot.
    StaleCursor,
    /// Nobody looks whether rows are gone.
    GoneNotChecked,
    /// Somebody looks before he reads.
    GoneCheckedBefore,
    /// It is written after the truncation that rows are gone.
    GoneAfterTruncate,
    /// It is not written where all cursors are past them.
    GoneIfBehind,
    /// What is gone is told in folds, of which a cursor may have passed a part.
    GoneByFold,
    /// A cursor behind which nothing is to be read is moved to the newest fold, and not to that of the look.
    MoveOnTooFar,
    /// It is moved though rows behind it are gone.
    MoveOnPastGone,
    /// A fold leaves rows out, and says nothing of it.
    FullSaysNothing,
    /// What it says is that rows are gone which were written before, though somebody is about to move the cursor.
    FullIsBehind,
    /// What is acknowledged moves a cursor that is lost.
    AckOfLost,
    /// Rows are shown that a crash can take back.
    NoFlush,
    /// Positions of another timeline are taken.
    NoTimeline,
}

/// Where a row is, and how far a consumer has come. The greatest sequence is the end of a fold.
type Position = (u8, u8);

const END: u8 = u8::MAX;

/// Through the whole fold of a row.
fn whole(row: Row) -> Position {
    (row.position.0, END)
}

/// Rows of a segment with which it is full.
const CAPACITY: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Row {
    position: Position,
    delta: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cursor {
    position: Position,
    timeline: u8,
    is_lost: bool,
    /// Of its row.
    version: u8,
    /// What a consumer in the same database has made of it, in the same transactions.
    applied: u8,
}

/// What a snapshot sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Database {
    folds: u8,
    total: u8,
    /// Of two segments, and in which of their files.
    rows: [Vec<Row>; 2],
    files: [u8; 2],
    cursor: Option<Cursor>,
    /// The truth: all that was folded, whether somebody has asked for it or not.
    folded: Vec<Row>,
}

impl Database {
    /// The total as of a position.
    fn total_at(&self, position: Position) -> u8 {
        let until = self.folded.iter().filter(|row| row.position <= position);
        until.map(|row| row.delta).sum()
    }

    /// The end of the newest fold.
    fn end(&self) -> Position {
        (self.folds, END)
    }
}

/// What is written in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Cell {
    active: usize,
    /// Rows up to here may be missing.
    gone: Position,
}

/// What is in the write-ahead log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Record {
    Folded {
        rows: Vec<Row>,
        /// The segment that they were written to as well.
        to: Option<usize>,
    },
    Cursor(Cursor),
    Truncated(usize),
    Cell(Cell),
}

/// What a server has on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Disk {
    database: Database,
    cell: Cell,
}

impl Disk {
    fn apply(&mut self, record: &Record) {
        let database = &mut self.database;
        match record {
            Record::Folded { rows, to } => {
                database.folds += 1;
                database.total += rows.iter().map(|row| row.delta).sum::<u8>();
                database.folded.extend(rows);
                if let Some(side) = to {
                    database.rows[*side].extend(rows);
                }
            }
            Record::Cursor(cursor) => {
                let version = database.cursor.map_or(0, |cursor| cursor.version + 1);
                database.cursor = Some(Cursor { version, ..*cursor });
            }
            Record::Truncated(side) => {
                database.rows[*side].clear();
                database.files[*side] += 1;
            }
            Record::Cell(cell) => self.cell = *cell,
        }
    }
}

/// A consumer's next step, or that of whoever asks for a bootstrap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum Session {
    #[default]
    Idle,
    /// Has a snapshot; is it found already that nothing is gone?
    Snapshot(Database, bool),
    /// Has locked the cursor, which is here now.
    Locked(Database, Cursor, bool),
    /// Has read rows, and keeps the segments from being truncated.
    Read {
        snapshot: Database,
        cursor: Cursor,
        rows: Vec<Row>,
        until: Position,
        is_checked: bool,
    },
    /// Bootstraps; does it have the lease?
    Bootstrap(Database, bool),
}

impl Session {
    fn locks_cursor(&self, is_outside: bool) -> bool {
        match self {
            Self::Locked(..) => true,
            Self::Read { .. } => !is_outside,
            Self::Bootstrap(..) => true,
            _ => false,
        }
    }
}

/// What has the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Fold {
        rows: Vec<Row>,
        to: Option<usize>,
        /// Has locked the cursor, and marks it as lost.
        loses: Option<Cursor>,
    },
    /// Has locked the segment, and knows what is to be gone.
    Truncate {
        side: usize,
        gone: Position,
        is_truncated: bool,
    },
    Bootstrap,
}

/// What a consumer outside remembers, crash or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Outside {
    value: u8,
    position: Position,
    timeline: u8,
}

/// How far it goes.
#[derive(Clone, Copy)]
struct Limits {
    /// Does the consumer peek, and acknowledge? Else it goes on in its transactions.
    is_outside: bool,
    sessions: usize,
    folds: u8,
    /// What may be folded at a time: a delta for each epoch.
    loads: &'static [&'static [u8]],
    crashes: u8,
    promotions: u8,
    bootstraps: u8,
    /// May a fold find that changes cannot be written?
    fails: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct World {
    now: Disk,
    /// What a crash leaves, and what is not flushed yet.
    flushed: Disk,
    log: Vec<Record>,
    standby: Disk,
    timeline: u8,
    holder: Option<Holder>,
    sessions: [Session; 2],
    /// The worker has looked whether anything is behind the cursor.
    moves_on: Option<Database>,
    /// A fold has looked for cursors.
    early: Option<Database>,
    outside: Option<Outside>,
    crashes: u8,
    promotions: u8,
    bootstraps: u8,
}

type Outcome = Result<World, String>;

impl World {
    fn write(&mut self, record: Record) {
        if record == Record::Cell(self.now.cell) {
            return;
        }
        self.now.apply(&record);
        self.log.push(record);
    }

    fn flush(&mut self) {
        self.flushed = self.now.clone();
        self.log.clear();
    }

    fn is_locked(&self, limits: Limits) -> bool {
        let by_fold = matches!(&self.holder, Some(Holder::Fold { loses: Some(_), .. }));
        let mut sessions = self.sessions.iter();
        by_fold || sessions.any(|session| session.locks_cursor(limits.is_outside))
    }

    fn is_gone(&self, position: Position, fault: Fault) -> bool {
        let gone = self.now.cell.gone;
        match fault {
            Fault::GoneNotChecked => false,
            Fault::GoneByFold => position.0 < gone.0,
            _ => position < gone,
        }
    }

    /// Are rows written for this cursor?
    fn is_covered(&self, cursor: Option<Cursor>, fault: Fault) -> bool {
        cursor.is_some_and(|cursor| !cursor.is_lost && !self.is_gone(cursor.position, fault))
    }

    /// All that can happen next.
    fn next(&self, fault: Fault, limits: Limits) -> Vec<(String, Outcome)> {
        let mut all = Vec::new();
        self.next_of_lease(fault, limits, &mut all);
        self.next_of_worker(fault, limits, &mut all);
        for number in 0..limits.sessions {
            self.next_of_session(number, fault, limits, &mut all);
        }
        if !self.log.is_empty() {
            let mut next = self.clone();
            next.flush();
            all.push(("flush".into(), Ok(next)));
        }
        if self.crashes < limits.crashes {
            for kept in 0..=self.log.len() {
                let mut next = self.clone();
                next.crashes += 1;
                next.now = self.flushed.clone();
                for record in &self.log[..kept] {
                    next.now.apply(record);
                }
                next.starts();
                all.push((format!("crash, {kept} kept"), Ok(next)));
            }
        }
        if limits.promotions > 0 && self.standby != self.flushed {
            let mut next = self.clone();
            next.standby = self.flushed.clone();
            all.push(("replicate".into(), Ok(next)));
        }
        if self.promotions < limits.promotions {
            let mut next = self.clone();
            next.promotions += 1;
            next.timeline += 1;
            next.now = self.standby.clone();
            next.starts();
            all.push(("promote".into(), Ok(next)));
        }
        all
    }

    fn starts(&mut self) {
        self.flush();
        self.holder = None;
        self.sessions = Default::default();
        self.moves_on = None;
        self.early = None;
    }

    fn next_of_lease(&self, fault: Fault, limits: Limits, all: &mut Vec<(String, Outcome)>) {
        match &self.holder {
            None => {
                if self.now.database.folds < limits.folds {
                    if fault == Fault::EarlyCursors && self.early.is_none() {
                        let mut next = self.clone();
                        next.early = Some(self.now.database.clone());
                        all.push(("fold looks for cursors".into(), Ok(next)));
                    } else {
                        for load in limits.loads {
                            let next = self.fold(load, fault, limits);
                            all.push((format!("fold {load:?}"), Ok(next)));
                        }
                        if limits.fails {
                            let mut next = self.fold(limits.loads[0], Fault::None, limits);
                            if let Some(Holder::Fold { to, .. }) = &mut next.holder {
                                *to = None;
                            }
                            let gone = (self.now.database.folds + 1, END);
                            next.write(Record::Cell(Cell {
                                gone,
                                ..next.now.cell
                            }));
                            all.push(("fold without changes".into(), Ok(next)));
                        }
                    }
                }
                let side = 1 - self.now.cell.active;
                let rows = &self.now.database.rows[side];
                let mut sessions = self.sessions.iter();
                let is_read = sessions.any(|session| matches!(session, Session::Read { .. }));
                if let Some(last) = rows.last()
                    && !is_read
                {
                    let cursor = self.now.database.cursor;
                    let is_wanted = self.is_covered(cursor, fault)
                        && cursor.is_some_and(|cursor| match fault {
                            Fault::GoneByFold => cursor.position.0 < last.position.0,
                            _ => cursor.position < whole(*last),
                        });
                    if !is_wanted {
                        let mut next = self.clone();
                        let gone = self.now.cell.gone.max(whole(*last));
                        next.holder = Some(Holder::Truncate {
                            side,
                            gone,
                            is_truncated: false,
                        });
                        let is_behind = cursor.is_none_or(|cursor| cursor.position < whole(*last));
                        let is_written = match fault {
                            Fault::GoneAfterTruncate => false,
                            Fault::GoneIfBehind => is_behind,
                            _ => true,
                        };
                        if is_written {
                            next.write(Record::Cell(Cell {
                                gone,
                                ..self.now.cell
                            }));
                        }
                        all.push((format!("lock segment {side}"), Ok(next)));
                    }
                }
            }
            Some(Holder::Fold { rows, to, loses }) => {
                let mut next = self.clone();
                next.holder = None;
                if let Some(cursor) = loses {
                    next.write(Record::Cursor(Cursor {
                        is_lost: true,
                        ..*cursor
                    }));
                }
                next.write(Record::Folded {
                    rows: rows.clone(),
                    to: *to,
                });
                all.push(("fold commits".into(), Ok(next)));
                let mut next = self.clone();
                next.holder = None;
                all.push(("fold fails".into(), Ok(next)));
            }
            Some(Holder::Truncate {
                side,
                gone,
                is_truncated: false,
            }) => {
                let mut next = self.clone();
                next.write(Record::Truncated(*side));
                // Files are removed by it.
                next.flush();
                next.holder = (fault == Fault::GoneAfterTruncate).then_some(Holder::Truncate {
                    side: *side,
                    gone: *gone,
                    is_truncated: true,
                });
                all.push((format!("truncate {side}"), Ok(next)));
                let mut next = self.clone();
                next.holder = None;
                all.push(("truncation fails".into(), Ok(next)));
            }
            Some(Holder::Truncate { gone, .. }) => {
                let mut next = self.clone();
                next.write(Record::Cell(Cell {
                    gone: *gone,
                    ..self.now.cell
                }));
                next.holder = None;
                all.push(("gone is written".into(), Ok(next)));
            }
            Some(Holder::Bootstrap) => {}
        }
    }

    /// A fold has the lease, looks who wants rows, and has written them.
    fn fold(&self, load: &[u8], fault: Fault, limits: Limits) -> Self {
        let mut next = self.clone();
        let seen = next.early.take();
        let seen = seen.as_ref().unwrap_or(&self.now.database);
        let fold = self.now.database.folds + 1;
        let rows: Vec<_> = (1..)
            .zip(load)
            .map(|(seq, delta)| Row {
                position: (fold, if fault == Fault::SeqRestarts { 1 } else { seq }),
                delta: *delta,
            })
            .collect();
        let mut loses = None;
        let mut cell = self.now.cell;
        let sides = &self.now.database.rows;
        if sides[cell.active].len() >= CAPACITY && self.is_covered(seen.cursor, fault) {
            let other = 1 - cell.active;
            match sides[other].last() {
                None => cell.active = other,
                Some(last) => {
                    let is_past = |cursor: Cursor| cursor.position >= whole(*last);
                    let leaves_out = !seen.cursor.is_some_and(is_past);
                    if fault == Fault::FullSaysNothing {
                        next.holder = Some(Holder::Fold {
                            rows,
                            to: None,
                            loses: None,
                        });
                        return next;
                    }
                    if leaves_out && matches!(fault, Fault::FullIsBehind | Fault::AckOfLost) {
                        cell.gone = cell.gone.max(whole(*last));
                    } else if leaves_out && self.is_locked(limits) {
                        cell.gone = (fold, END);
                    } else if leaves_out {
                        // Locked until this commits.
                        loses = seen.cursor;
                    }
                }
            }
        }
        next.write(Record::Cell(cell));
        let is_covered = loses.is_none() && next.is_covered(seen.cursor, fault);
        let to = is_covered.then_some(cell.active);
        next.holder = Some(Holder::Fold { rows, to, loses });
        next
    }

    /// The worker sees to the cursor.
    fn next_of_worker(&self, fault: Fault, limits: Limits, all: &mut Vec<(String, Outcome)>) {
        let Some(cursor) = self.now.database.cursor else {
            return;
        };
        if let Some(seen) = &self.moves_on {
            let mut next = self.clone();
            next.moves_on = None;
            let is_same = seen.cursor == Some(cursor);
            if is_same && !self.is_locked(limits) {
                let position = match fault {
                    Fault::MoveOnTooFar => self.now.database.end(),
                    _ => seen.end(),
                };
                next.write(Record::Cursor(Cursor { position, ..cursor }));
            }
            all.push(("move on".into(), Ok(next)));
        } else if !cursor.is_lost && cursor.position < self.now.database.end() {
            let is_behind = |row: &Row| row.position > cursor.position;
            let is_gone = fault != Fault::MoveOnPastGone && self.is_gone(cursor.position, fault);
            if !is_gone && !self.now.database.rows.iter().flatten().any(is_behind) {
                let mut next = self.clone();
                next.moves_on = Some(self.now.database.clone());
                all.push(("nothing is behind the cursor".into(), Ok(next)));
            }
        }
        // It is too old.
        if !cursor.is_lost && !self.is_locked(limits) {
            let mut next = self.clone();
            next.write(Record::Cursor(Cursor {
                is_lost: true,
                ..cursor
            }));
            all.push(("lost".into(), Ok(next)));
        }
    }

    fn next_of_session(
        &self,
        number: usize,
        fault: Fault,
        limits: Limits,
        all: &mut Vec<(String, Outcome)>,
    ) {
        let put = |session: Session| {
            let mut next = self.clone();
            next.sessions[number] = session;
            next
        };
        let is_live = self.is_covered(self.now.database.cursor, fault);
        let mut say = |what: &str, next: Outcome| all.push((format!("{number}: {what}"), next));
        match &self.sessions[number] {
            Session::Idle => {
                if self.now.database.cursor.is_some() {
                    let is_checked = fault == Fault::GoneCheckedBefore && is_live;
                    let snapshot = Session::Snapshot(self.now.database.clone(), is_checked);
                    say("snapshot", Ok(put(snapshot)));
                }
                let has_lease = match fault {
                    Fault::NoLease => false,
                    // It is to be waited for, with the snapshot that is there.
                    Fault::OldSnapshot => false,
                    // Where the cursor is live, folds write for it, or say that they do not.
                    _ => !is_live,
                };
                let can_begin = !has_lease || self.holder.is_none();
                if self.bootstraps < limits.bootstraps && !self.is_locked(limits) && can_begin {
                    let seen = self.now.database.clone();
                    let mut next = put(Session::Bootstrap(seen, has_lease));
                    next.bootstraps += 1;
                    if has_lease {
                        next.holder = Some(Holder::Bootstrap);
                    }
                    say("bootstrap", Ok(next));
                }
                // What it remembers is acknowledged.
                if let Some(outside) = self.outside
                    && let Some(cursor) = self.now.database.cursor
                    && !self.is_locked(limits)
                {
                    let is_known = outside.position <= self.now.database.end();
                    let is_live = is_live || (fault == Fault::AckOfLost && !cursor.is_lost);
                    let is_ours = fault == Fault::NoTimeline || outside.timeline == self.timeline;
                    if is_known && is_ours && is_live && outside.position > cursor.position {
                        let mut next = self.clone();
                        next.write(Record::Cursor(Cursor {
                            position: outside.position,
                            timeline: self.timeline,
                            ..cursor
                        }));
                        say("acknowledge", Ok(next));
                    }
                }
            }
            Session::Snapshot(snapshot, is_checked) => {
                let Some(seen) = snapshot.cursor else { return };
                if limits.is_outside {
                    self.read(number, snapshot, seen, *is_checked, fault, &mut say);
                } else if !self.is_locked(limits) {
                    let cursor = match (fault, self.now.database.cursor) {
                        (Fault::StaleCursor, Some(now)) => Cursor {
                            position: seen.position,
                            ..now
                        },
                        (_, Some(now)) => now,
                        (_, None) => return,
                    };
                    let locked = Session::Locked(snapshot.clone(), cursor, *is_checked);
                    say("lock", Ok(put(locked)));
                }
            }
            Session::Locked(snapshot, cursor, is_checked) => {
                self.read(number, snapshot, *cursor, *is_checked, fault, &mut say);
            }
            Session::Read {
                snapshot,
                cursor,
                rows,
                until,
                is_checked,
            } => {
                say("give up", Ok(put(Session::Idle)));
                if !is_checked {
                    if !self.is_gone(cursor.position, fault) {
                        let mut next = self.clone();
                        if let Session::Read { is_checked, .. } = &mut next.sessions[number] {
                            *is_checked = true;
                        }
                        say("check", Ok(next));
                    }
                } else if *until > cursor.position {
                    let read = (snapshot, *cursor, &rows[..], *until);
                    say("commit", self.commit(number, read, fault, limits));
                }
            }
            Session::Bootstrap(snapshot, has_lease) => {
                let mut next = put(Session::Idle);
                if *has_lease {
                    next.holder = None;
                } else if fault == Fault::OldSnapshot && self.holder.is_some() {
                    return;
                }
                next.write(Record::Cursor(Cursor {
                    position: snapshot.end(),
                    timeline: self.timeline,
                    is_lost: false,
                    version: 0,
                    applied: snapshot.total,
                }));
                next.outside = limits.is_outside.then_some(Outside {
                    value: snapshot.total,
                    position: snapshot.end(),
                    timeline: self.timeline,
                });
                // What it was told, it can remember.
                next.flush();
                say("bootstrap commits", Ok(next));
            }
        }
    }

    /// Reads a page: one row, or all there are.
    fn read(
        &self,
        number: usize,
        snapshot: &Database,
        cursor: Cursor,
        is_checked: bool,
        fault: Fault,
        say: &mut impl FnMut(&str, Outcome),
    ) {
        let is_ours = fault == Fault::NoTimeline || cursor.timeline == self.timeline;
        let is_outside = !matches!(self.sessions[number], Session::Locked(..));
        if cursor.is_lost || (is_outside && !is_ours) {
            let mut next = self.clone();
            next.sessions[number] = Session::Idle;
            say("refused", Ok(next));
            return;
        }
        let mut there = Vec::new();
        for side in 0..2 {
            // A file that came after the snapshot has nothing that it sees.
            if snapshot.files[side] == self.now.database.files[side] {
                there.extend(snapshot.rows[side].iter().copied());
            }
        }
        there.retain(|row| row.position > cursor.position);
        there.sort_by_key(|row| row.position);
        for most in [1, usize::MAX] {
            let rows: Vec<_> = there.iter().copied().take(most).collect();
            let until = match rows.last() {
                Some(row) if rows.len() < there.len() => row.position,
                _ => snapshot.end().max(cursor.position),
            };
            let until = match fault {
                Fault::CursorByFold => (until.0, END),
                _ => until,
            };
            let mut next = self.clone();
            next.sessions[number] = Session::Read {
                snapshot: snapshot.clone(),
                cursor,
                rows,
                until,
                is_checked,
            };
            say("read", Ok(next));
        }
    }

    /// The rows are returned, and their transaction commits.
    fn commit(
        &self,
        number: usize,
        (snapshot, cursor, rows, until): (&Database, Cursor, &[Row], Position),
        fault: Fault,
        limits: Limits,
    ) -> Outcome {
        let mut next = self.clone();
        next.sessions[number] = Session::Idle;
        let sum = rows.iter().map(|row| row.delta).sum::<u8>();
        if !limits.is_outside {
            let applied = cursor.applied + sum;
            next.write(Record::Cursor(Cursor {
                position: until,
                applied,
                ..cursor
            }));
            let total = next.now.database.total_at(until);
            return if applied == total {
                Ok(next)
            } else {
                Err(format!(
                    "{applied} as of {until:?}, where the total is {total}"
                ))
            };
        }
        let folded = snapshot.total_at(until) - snapshot.total_at(cursor.position);
        if sum != folded {
            return Err(format!(
                "{sum} is read up to {until:?}, and {folded} was folded"
            ));
        }
        if fault != Fault::NoFlush {
            next.flush();
        }
        let Some(mut outside) = next.outside else {
            return Ok(next);
        };
        if outside.timeline != self.timeline && fault != Fault::NoTimeline {
            return Ok(next);
        }
        for row in rows {
            if row.position > outside.position {
                outside.position = row.position;
                outside.value += row.delta;
            }
        }
        next.outside = Some(outside);
        let total = next.now.database.total_at(outside.position);
        if outside.value == total {
            Ok(next)
        } else {
            Err(format!("{outside:?} outside, where the total is {total}"))
        }
    }
}

fn hash(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

/// Goes through all states, the nearest first. Returns how many there are, or the shortest way to what is wrong.
fn explore(fault: Fault, limits: Limits) -> Result<usize, String> {
    let start = World::default();
    let mut known: HashMap<u64, (u64, String)> = HashMap::new();
    known.insert(hash(&start), (0, String::new()));
    let mut todo = VecDeque::from([start]);
    while let Some(world) = todo.pop_front() {
        if known.len() > MOST {
            return Err(format!("more than {MOST} states"));
        }
        let from = hash(&world);
        for (what, outcome) in world.next(fault, limits) {
            match outcome {
                Ok(mut next) => {
                    // It makes no difference any more.
                    if next.crashes >= limits.crashes && limits.promotions == 0 {
                        next.flush();
                    }
                    let at = hash(&next);
                    if let Entry::Vacant(entry) = known.entry(at) {
                        entry.insert((from, what));
                        todo.push_back(next);
                    }
                }
                Err(wrong) => {
                    let mut way = vec![wrong, what];
                    let mut at = from;
                    while let Some((before, what)) = known.get(&at)
                        && !what.is_empty()
                    {
                        way.push(what.clone());
                        at = *before;
                    }
                    way.reverse();
                    return Err(way.join("\n"));
                }
            }
        }
    }
    Ok(known.len())
}

/// More states than there are to be: a limit is too high.
const MOST: usize = 400_000;

/// Two consumers within the database.
const INSIDE: Limits = Limits {
    is_outside: false,
    sessions: 2,
    folds: 2,
    loads: &[&[1, 2]],
    crashes: 0,
    promotions: 0,
    bootstraps: 1,
    fails: false,
};

/// One outside, and a crash.
const OUTSIDE: Limits = Limits {
    is_outside: true,
    sessions: 1,
    loads: &[&[1], &[2]],
    crashes: 1,
    ..INSIDE
};

/// One more fold than the segments have room for, and a stream that is begun again.
const FULL: Limits = Limits {
    sessions: 1,
    folds: 4,
    bootstraps: 2,
    ..INSIDE
};

/// Two that read what others acknowledge, and a truncation beside them.
const BESIDE: Limits = Limits {
    sessions: 2,
    folds: 3,
    loads: &[&[1, 2]],
    crashes: 0,
    ..OUTSIDE
};

/// A standby that lacks what a consumer has seen.
const PROMOTED: Limits = Limits {
    crashes: 0,
    promotions: 1,
    ..OUTSIDE
};

/// A fold that finds that changes cannot be written.
const FAILS: Limits = Limits {
    folds: 3,
    fails: true,
    ..FULL
};

fn shown(fault: Fault, limits: Limits) -> Result<usize, String> {
    let start = Instant::now();
    let found = explore(fault, limits);
    println!("{fault:?}, {:?}: {found:?}", start.elapsed());
    found
}

#[test]
fn no_state_has_a_gap_or_an_overlap() {
    let beside = [
        Limits {
            sessions: 1,
            ..BESIDE
        },
        Limits { folds: 2, ..BESIDE },
    ];
    let others = [INSIDE, OUTSIDE, FULL, PROMOTED, FAILS];
    for limits in others.into_iter().chain(beside) {
        let states = shown(Fault::None, limits).unwrap_or_else(|way| panic!("{way}"));
        assert!(states > 5000, "only {states} states");
    }
}

#[test]
fn the_model_finds_faults() {
    let quiet = Limits {
        folds: 3,
        loads: &[&[], &[1]],
        ..FULL
    };
    for (fault, limits) in [
        (Fault::NoLease, INSIDE),
        (Fault::OldSnapshot, INSIDE),
        (Fault::EarlyCursors, INSIDE),
        (Fault::CursorByFold, INSIDE),
        (Fault::SeqRestarts, INSIDE),
        (Fault::StaleCursor, INSIDE),
        (Fault::GoneNotChecked, BESIDE),
        (Fault::GoneCheckedBefore, BESIDE),
        (Fault::GoneAfterTruncate, BESIDE),
        (Fault::GoneIfBehind, BESIDE),
        (Fault::GoneByFold, FULL),
        (Fault::MoveOnTooFar, quiet),
        (Fault::MoveOnPastGone, FAILS),
        (Fault::FullSaysNothing, FULL),
        (Fault::FullIsBehind, FULL),
        (Fault::AckOfLost, BESIDE),
        (Fault::NoFlush, OUTSIDE),
        (Fault::NoTimeline, PROMOTED),
    ] {
        let way = shown(fault, limits).expect_err("nothing is found");
        assert!(!way.starts_with("more than"), "{fault:?} is not found");
    }
}
