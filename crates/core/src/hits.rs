//! Hits: what sessions hand over to a process that commits for them, the *committer* of their database.
//!
//! A [`Place`] is what the sessions of one database, the launcher and the committer share: what is known
//! of the process, and a [`Queue`] of [`Entry`]s. Everything here is done under one lock, and none of it
//! waits, allocates or fails; whoever is to be woken is named, and woken when the lock is given back.
//!
//! # The life of an entry
//! ```text
//!            push           take             answer            collect
//!   free  ───────►  queued ──────►  taken  ──────────► answered ───────► free
//!              withdraw │  ▲ put_back │        │ nobody waits for it
//!            free ◄─────┘  └──────────┘        └──────────────────────► free
//! ```
//! Who pushes an entry and waits for it owns it until he has collected the answer or withdrawn. An entry
//! that was taken cannot be withdrawn any more: its owner leaves, and the answer frees it. So an entry is
//! used again only when both sides are through with it.
//!
//! A hit of several counters has an entry for each: all but the first hang on that one, and share its life.
//!
//! # Invariant
//! A committer that ends in whatever way knows whether its transaction has committed: if so, it answers
//! what was in it, else it puts it back, for the next one. So nothing is counted twice, and nothing that
//! somebody relies on is lost, as long as the memory lives. `tests` has all interleavings of a few callers,
//! committers, cancels and deaths.

/// Room for a name, later for the text of an error.
pub const TEXT: usize = if cfg!(test) { 16 } else { 512 };

/// No entry.
const NIL: u32 = u32::MAX;

/// What is asked for.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Kind {
    /// To add; it is an error when a bound forbids it.
    Add,
    /// To add if bounds allow it, and to tell.
    Try,
}

/// What became of a hit.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Answer {
    /// Committed.
    Counted {
        /// Where the commit ends in the WAL.
        lsn: u64,
        /// Is the WAL up to there on disk?
        flushed: bool,
    },
    /// Not counted: a bound forbids it.
    Refused,
    /// Not counted: an error with this code, and the text that [`Entry::text`] has.
    Failed(i32),
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum State {
    Free,
    Queued,
    Taken,
    Answered(Answer),
    /// Belongs to the entry that it hangs on.
    Part,
}

/// A hit on its way.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    next: u32,
    before: u32,
    /// The next counter of the same hit.
    more: u32,
    /// Entries of the hit, this one included.
    parts: u32,
    state: State,
    /// Who waits for the answer; None: nobody does, or not any more.
    waiter: Option<usize>,
    kind: Kind,
    durable: bool,
    delta: i64,
    length: u16,
    text: [u8; TEXT],
}

impl Entry {
    /// One that is not used.
    pub const FREE: Self = Self {
        next: NIL,
        before: NIL,
        more: NIL,
        parts: 0,
        state: State::Free,
        waiter: None,
        kind: Kind::Add,
        durable: false,
        delta: 0,
        length: 0,
        text: [0; TEXT],
    };

    /// What is asked for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Must the commit be on disk before the answer?
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// Does nobody wait for the answer?
    pub fn is_silent(&self) -> bool {
        self.waiter.is_none()
    }

    /// The counter's name; of one that has failed, the error's text.
    fn text(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }

    fn set_text(&mut self, text: &[u8]) {
        let length = text.len().min(TEXT);
        self.text[..length].copy_from_slice(&text[..length]);
        self.length = length as u16;
    }
}

/// What one counter is to change by.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The counter's name, of [`TEXT`] bytes at most.
    pub name: &'a [u8],
    /// By how much.
    pub delta: i64,
}

/// A hit, as it is pushed.
#[derive(Clone, Copy, Debug)]
pub struct Hit<'a> {
    /// One, or several that are counted in one commit or not at all; at most [`Queue::most_of_one`].
    pub changes: &'a [Change<'a>],
    /// What is asked for.
    pub kind: Kind,
    /// Must the commit be on disk before the answer?
    pub durable: bool,
    /// Who waits for the answer; None: nobody does.
    pub waiter: Option<usize>,
}

/// There is no room for another hit now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Its number.
    pub ticket: u32,
    /// The committer is to be woken.
    pub wake: bool,
}

/// What becomes of a hit whose caller cannot wait for the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// It was not taken, and is not counted.
    Before,
    /// It was taken: nobody knows yet.
    Taken,
    /// It was answered.
    Answered(Answer),
}

/// What there is to do for a committer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing. The next push wakes.
    Nothing,
    /// Something that nobody waits for. Who waits wakes, and so does a queue that is half full.
    Silent,
    /// Something.
    Work,
}

/// What a committer does, as far as those who push have to know.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Watch {
    Busy,
    Naps,
    Sleeps,
}

/// Hits in the order of their coming, and the entries that are free.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Queue {
    free: u32,
    /// So many are free.
    room: u32,
    first: u32,
    last: u32,
    /// So many entries are queued.
    queued: u32,
    /// Of those, so many are waited for.
    waited_for: u32,
    /// Silent entries that are not free.
    silent: u32,
    capacity: u32,
    watch: Watch,
    /// Somebody has found no room.
    room_wanted: bool,
}

impl Queue {
    /// An empty one, of all these entries.
    pub fn new(entries: &mut [Entry]) -> Self {
        let capacity = entries.len() as u32;
        for (at, entry) in (0..).zip(entries.iter_mut()) {
            *entry = Entry::FREE;
            entry.next = if at + 1 < capacity { at + 1 } else { NIL };
        }
        Self {
            free: if capacity > 0 { 0 } else { NIL },
            room: capacity,
            first: NIL,
            last: NIL,
            queued: 0,
            waited_for: 0,
            silent: 0,
            capacity,
            watch: Watch::Busy,
            room_wanted: false,
        }
    }

    /// Is there nothing to be taken?
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// How much is to be taken: one for each counter of a hit.
    pub fn len(&self) -> usize {
        self.queued as usize
    }

    /// A quarter is kept for those who wait: what nobody waits for may be there for long, when it cannot be
    /// counted now.
    fn has_room(&self, parts: u32, silent: bool) -> bool {
        let most = self.capacity - self.capacity.div_ceil(4);
        self.room >= parts && (!silent || self.silent + parts <= most.max(1))
    }

    /// A hit of more counters than this may never find room in a queue of so many entries.
    pub fn most_of_one(capacity: usize) -> usize {
        (capacity / 2).max(1)
    }

    /// A hit more, of one counter at least.
    ///
    /// # Errors
    /// [`Full`]; who is to hear when there is room again is told by [`Queue::room_for_others`].
    pub fn push(&mut self, entries: &mut [Entry], hit: &Hit) -> Result<Pushed, Full> {
        let silent = hit.waiter.is_none();
        let parts = hit.changes.len() as u32;
        if !self.has_room(parts, silent) {
            self.room_wanted = true;
            return Err(Full);
        }
        let ticket = self.free;
        let mut last = NIL;
        for change in hit.changes {
            let at = self.free;
            let entry = &mut entries[at as usize];
            self.free = entry.next;
            entry.state = State::Part;
            entry.more = NIL;
            entry.delta = change.delta;
            entry.set_text(change.name);
            if last != NIL {
                entries[last as usize].more = at;
            }
            last = at;
        }
        self.room -= parts;
        let entry = &mut entries[ticket as usize];
        entry.parts = parts;
        entry.kind = hit.kind;
        entry.durable = hit.durable;
        entry.waiter = hit.waiter;
        self.silent += if silent { parts } else { 0 };
        self.append(entries, ticket);
        let wake = match self.watch {
            Watch::Busy => false,
            Watch::Naps => !silent || self.queued >= self.capacity / 2,
            Watch::Sleeps => true,
        };
        if wake {
            self.watch = Watch::Busy;
        }
        Ok(Pushed { ticket, wake })
    }

    fn append(&mut self, entries: &mut [Entry], ticket: u32) {
        let last = self.last;
        self.note_queued(&mut entries[ticket as usize], last, NIL);
        match last {
            NIL => self.first = ticket,
            last => entries[last as usize].next = ticket,
        }
        self.last = ticket;
    }

    fn prepend(&mut self, entries: &mut [Entry], ticket: u32) {
        let first = self.first;
        self.note_queued(&mut entries[ticket as usize], NIL, first);
        match first {
            NIL => self.last = ticket,
            first => entries[first as usize].before = ticket,
        }
        self.first = ticket;
    }

    fn note_queued(&mut self, entry: &mut Entry, before: u32, next: u32) {
        entry.state = State::Queued;
        (entry.before, entry.next) = (before, next);
        self.queued += entry.parts;
        self.waited_for += if entry.is_silent() { 0 } else { entry.parts };
    }

    fn unlink(&mut self, entries: &mut [Entry], ticket: u32) {
        let Entry {
            before,
            next,
            parts,
            ..
        } = entries[ticket as usize];
        match before {
            NIL => self.first = next,
            before => entries[before as usize].next = next,
        }
        match next {
            NIL => self.last = before,
            next => entries[next as usize].before = before,
        }
        self.queued -= parts;
        if !entries[ticket as usize].is_silent() {
            self.waited_for -= parts;
        }
    }

    /// The hit's entries are free again, all of them.
    fn free(&mut self, entries: &mut [Entry], ticket: u32) {
        let mut at = ticket;
        while at != NIL {
            let entry = &mut entries[at as usize];
            let more = std::mem::replace(&mut entry.more, NIL);
            entry.state = State::Free;
            entry.waiter = None;
            entry.next = self.free;
            self.free = at;
            self.room += 1;
            at = more;
        }
    }

    /// What a hit that was taken is to change.
    pub fn changes(entries: &[Entry], ticket: u32) -> impl Iterator<Item = Change<'_>> {
        let entry = |at: u32| entries.get(at as usize);
        std::iter::successors(entry(ticket), move |known| entry(known.more)).map(|entry| Change {
            name: entry.text(),
            delta: entry.delta,
        })
    }

    /// Has somebody found no room who would find some now? Says so once.
    pub fn room_for_others(&mut self) -> bool {
        let wanted = self.room_wanted && self.free != NIL;
        if wanted {
            self.room_wanted = false;
        }
        wanted
    }

    /// What is there to do? From here on those who push wake the committer if they have to. `patient`: it
    /// would rather wait for more than commit what nobody waits for.
    pub fn look(&mut self, patient: bool) -> Look {
        let (watch, look) = if self.queued == 0 {
            (Watch::Sleeps, Look::Nothing)
        } else if patient && self.waited_for == 0 && self.queued < self.capacity / 2 {
            (Watch::Naps, Look::Silent)
        } else {
            (Watch::Busy, Look::Work)
        };
        self.watch = watch;
        look
    }

    /// The committer takes the hit that has come first.
    pub fn take(&mut self, entries: &mut [Entry]) -> Option<u32> {
        let ticket = self.first;
        if ticket == NIL {
            return None;
        }
        self.unlink(entries, ticket);
        entries[ticket as usize].state = State::Taken;
        Some(ticket)
    }

    /// The committer takes the hit that has come first of those that nobody waits for.
    pub fn take_silent(&mut self, entries: &mut [Entry]) -> Option<u32> {
        let mut ticket = self.first;
        while ticket != NIL && !entries[ticket as usize].is_silent() {
            ticket = entries[ticket as usize].next;
        }
        if ticket == NIL {
            return None;
        }
        self.unlink(entries, ticket);
        entries[ticket as usize].state = State::Taken;
        Some(ticket)
    }

    /// Does somebody still wait for this one, which was taken?
    pub fn is_waited_for(entries: &[Entry], ticket: u32) -> bool {
        !entries[ticket as usize].is_silent()
    }

    /// What became of a hit that was taken; `text` is that of an error. Returns who is to be woken.
    pub fn answer(
        &mut self,
        entries: &mut [Entry],
        ticket: u32,
        answer: Answer,
        text: &[u8],
    ) -> Option<usize> {
        let entry = &mut entries[ticket as usize];
        debug_assert_eq!(entry.state, State::Taken);
        let Some(waiter) = entry.waiter else {
            self.silent -= entry.parts;
            self.free(entries, ticket);
            return None;
        };
        entry.state = State::Answered(answer);
        entry.set_text(text);
        Some(waiter)
    }

    /// This one, which was taken, is to be tried anew.
    pub fn put_back(&mut self, entries: &mut [Entry], ticket: u32) {
        debug_assert_eq!(entries[ticket as usize].state, State::Taken);
        self.prepend(entries, ticket);
    }

    /// The committer ends, and this one is not counted: all that were taken, in any order.
    pub fn put_back_taken(&mut self, entries: &mut [Entry]) {
        for ticket in 0..self.capacity {
            if entries[ticket as usize].state == State::Taken {
                self.put_back(entries, ticket);
            }
        }
    }

    /// Calls `visit` with everybody who waits, whatever for.
    pub fn for_each_waiter(entries: &[Entry], visit: impl FnMut(usize)) {
        let waiters = entries.iter().filter(|entry| entry.state != State::Free);
        waiters.filter_map(|entry| entry.waiter).for_each(visit);
    }

    /// The answer, if there is one; then the entry is free. The text of an error is handed to `text`.
    pub fn collect(
        &mut self,
        entries: &mut [Entry],
        ticket: u32,
        text: impl FnOnce(&[u8]),
    ) -> Option<Answer> {
        let entry = &entries[ticket as usize];
        let State::Answered(answer) = entry.state else {
            return None;
        };
        if let Answer::Failed(_) = answer {
            text(entry.text());
        }
        self.free(entries, ticket);
        Some(answer)
    }

    /// Is the answer there, and not collected?
    pub fn is_answered(&self, entries: &[Entry], ticket: u32) -> bool {
        matches!(entries[ticket as usize].state, State::Answered(_))
    }

    /// The caller of this hit cannot wait for the answer, and never looks at it again.
    pub fn withdraw(&mut self, entries: &mut [Entry], ticket: u32) -> Withdrawn {
        match entries[ticket as usize].state {
            State::Queued => {
                self.unlink(entries, ticket);
                self.free(entries, ticket);
                Withdrawn::Before
            }
            State::Answered(answer) => {
                self.free(entries, ticket);
                Withdrawn::Answered(answer)
            }
            State::Taken | State::Free | State::Part => {
                // From now on it is one that nobody waits for.
                entries[ticket as usize].waiter = None;
                self.silent += entries[ticket as usize].parts;
                Withdrawn::Taken
            }
        }
    }
}

/// What is known of a place's committer.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub enum Process {
    /// There is none, and nobody needs one.
    #[default]
    None,
    /// The launcher is to start one.
    Wanted,
    /// The postmaster was asked for one.
    Starting,
    /// It is there.
    Working,
    /// It takes what there is, and then it ends: others want the place.
    Leaving,
}

/// A committer that has not reported for duty by then never will, in microseconds.
const START_TIMEOUT_US: i64 = 30_000_000;

/// After one that could not begin, or for which there was no slot.
const RETRY_US: i64 = 1_000_000;

/// What the sessions of a database, the launcher and the committer share.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Place {
    /// Whose it is; 0: nobody's.
    pub database: u32,
    process: Process,
    /// Tells the process that was started last from any before it.
    start: u32,
    /// Since when the process is what it is.
    since: i64,
    not_before: i64,
    /// The last process could not begin.
    failed: bool,
    asked: bool,
    /// The committer's latch; 0: there is none.
    latch: usize,
    /// Its hits.
    pub queue: Queue,
}

/// Two cannot hit the same place: what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// There is nothing to start.
    Nothing,
    /// Start a process of this number, for this database.
    Now {
        /// Its number.
        start: u32,
        /// The database's OID.
        database: u32,
        /// The last one could not begin: is the database still there?
        again: bool,
    },
    /// Look again then.
    At(i64),
}

impl Place {
    /// Nobody's.
    pub fn new(entries: &mut [Entry]) -> Self {
        Self {
            database: 0,
            process: Process::None,
            start: 0,
            since: 0,
            not_before: 0,
            failed: false,
            asked: false,
            latch: 0,
            queue: Queue::new(entries),
        }
    }

    /// What is known of the committer.
    pub fn process(&self) -> Process {
        self.process
    }

    /// The committer's latch.
    pub fn latch(&self) -> Option<usize> {
        (self.latch != 0).then_some(self.latch)
    }

    /// Since when the committer is what it is.
    pub fn since(&self) -> i64 {
        self.since
    }

    /// May another database have the place?
    pub fn is_idle(&self) -> bool {
        self.process == Process::None && self.queue.is_empty()
    }

    /// It is this database's from now on. To be called for an idle one.
    pub fn claim(&mut self, database: u32) {
        self.database = database;
        self.not_before = 0;
        self.asked = false;
    }

    /// Somebody needs a committer. True: the launcher is to hear of it.
    pub fn want(&mut self, now: i64) -> bool {
        let lacks = self.process == Process::None;
        if lacks {
            self.process = Process::Wanted;
            self.since = now;
        }
        lacks
    }

    /// May this hit be pushed now? What nobody waits for is handed to a committer that is there alone: it
    /// ends by itself only when it has counted all of that.
    pub fn admits(&self, silent: bool) -> bool {
        match self.process {
            Process::Leaving => false,
            Process::Working => true,
            Process::None | Process::Wanted | Process::Starting => !silent,
        }
    }

    /// Is the launcher to start a process?
    pub fn next_start(&mut self, now: i64) -> Start {
        if self.process == Process::Starting && now >= self.since + START_TIMEOUT_US {
            self.process = Process::Wanted;
        }
        match self.process {
            Process::Wanted if now < self.not_before => Start::At(self.not_before),
            Process::Wanted => {
                self.process = Process::Starting;
                self.since = now;
                self.start = self.start.wrapping_add(1) & Self::STARTS;
                Start::Now {
                    start: self.start,
                    database: self.database,
                    again: self.failed,
                }
            }
            Process::Starting => Start::At(self.since + START_TIMEOUT_US),
            Process::None | Process::Working | Process::Leaving => Start::Nothing,
        }
    }

    /// Numbers of starts are up to this one.
    pub const STARTS: u32 = 0xffff;

    /// The postmaster has no slot for the process.
    pub fn refused(&mut self, start: u32, now: i64) {
        if self.process == Process::Starting && self.start == start {
            self.process = Process::Wanted;
            self.not_before = now + RETRY_US;
        }
    }

    /// The process of this number is there. False: it was not waited for.
    pub fn enter(&mut self, database: u32, start: u32, latch: usize, now: i64) -> bool {
        let expected =
            self.process == Process::Starting && self.start == start && self.database == database;
        if expected {
            self.process = Process::Working;
            self.failed = false;
            self.since = now;
            self.latch = latch;
            self.asked = false;
        }
        expected
    }

    /// The process of this number could not begin.
    pub fn failed(&mut self, start: u32, now: i64) {
        if self.process == Process::Starting && self.start == start {
            // Who waits asks again. Nobody does so for what nobody waits for.
            self.process = match self.queue.is_empty() {
                true => Process::None,
                false => Process::Wanted,
            };
            self.not_before = now + RETRY_US;
            self.failed = true;
        }
    }

    /// The database was dropped: with it goes what nobody waited for. Nobody else can be there.
    pub fn abandon(&mut self, entries: &mut [Entry], start: u32) {
        if self.process != Process::Starting || self.start != start {
            return;
        }
        while let Some(ticket) = self.queue.take(entries) {
            if entries[ticket as usize].is_silent() {
                self.queue.silent -= entries[ticket as usize].parts;
            }
            self.queue.free(entries, ticket);
        }
        *self = Self {
            queue: self.queue,
            start: self.start,
            ..Self::new(&mut [])
        };
    }

    /// Another database wants the place.
    pub fn ask(&mut self) {
        self.asked = true;
    }

    /// Does another database want the place?
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// The committer takes no more than what is there.
    pub fn leave(&mut self) {
        self.process = Process::Leaving;
    }

    /// The committer ends if nothing is left that it should count. `all`: also what is waited for.
    pub fn try_end(&mut self, all: bool) -> bool {
        let left = if all {
            self.queue.queued
        } else {
            self.queue.queued - self.queue.waited_for
        };
        if left == 0 {
            self.gone();
        }
        left == 0
    }

    /// The committer is gone. Who waits is to be woken, and looks for another one.
    pub fn gone(&mut self) {
        self.process = Process::None;
        self.latch = 0;
        self.asked = false;
        self.queue.watch = Watch::Busy;
    }
}

/// One that waits for a place looks more often than this, in microseconds.
const FORGOTTEN_AFTER_US: i64 = 500_000;

#[derive(Clone, Copy, Debug)]
struct Waits {
    database: u32,
    since: i64,
    seen: i64,
}

/// The databases that wait for a place, so that each of them gets one, however many sessions it has. Where
/// more wait than there is room for here, they wait for that first.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    waits: [Option<Waits>; 64],
}

impl Line {
    /// Nobody waits.
    pub const EMPTY: Self = Self { waits: [None; 64] };

    /// This database waits, or goes on to. True: nobody has waited for longer who still does.
    pub fn join(&mut self, database: u32, now: i64) -> bool {
        for waits in &mut self.waits {
            *waits = waits.filter(|other| now - other.seen < FORGOTTEN_AFTER_US);
        }
        let is_own = |waits: &&mut Option<Waits>| waits.is_some_and(|it| it.database == database);
        let own = match self.waits.iter_mut().find(is_own) {
            Some(own) => own,
            None => match self.waits.iter_mut().find(|waits| waits.is_none()) {
                Some(free) => free,
                None => return false,
            },
        };
        let since = own.map_or(now, |own| own.since);
        *own = Some(Waits {
            database,
            since,
            seen: now,
        });
        let mut others = self.waits.iter().flatten();
        others.all(|other| (since, database) <= (other.since, other.database))
    }

    /// It has a place. True: others still wait.
    pub fn leave(&mut self, database: u32) -> bool {
        for waits in &mut self.waits {
            *waits = waits.filter(|other| other.database != database);
        }
        self.waits.iter().any(Option::is_some)
    }
}

#[cfg(test)]
#[path = "hits_tests.rs"]
mod tests;
