//! All interleavings of a few callers, the launcher, committers that fail or die, and cancels: each step
//! that takes the lock is one step here, and so is each waking.
//!
//! A *fault* plants a mistake into what the callers and the committer do; each has to be found.

use super::*;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::xxh3_128;

/// What a client was told.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum Told {
    Counted,
    /// An error that says that it was not counted.
    NotCounted,
    /// An error that says that it may have been.
    Maybe,
    /// True, by a call that does not wait.
    Handed,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
enum CallerAt {
    Push,
    NoRoom,
    /// Has pushed, and is about to wake the committer, or not.
    Pushed(u32, bool),
    Look(u32),
    Sleep(u32),
    Done(Told),
}

#[derive(Clone, Copy, Debug, Hash)]
struct Caller {
    at: CallerAt,
    silent: bool,
    /// The hit is of so many counters.
    parts: u8,
    latch: bool,
    may_cancel: bool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
enum CommitterAt {
    Begin,
    Look,
    Asleep,
    Nap,
    Take,
    /// These are in one transaction; the others come after, one by one.
    Commit(Vec<u32>, Vec<u32>),
    Committed(Vec<u32>, Vec<u32>),
    Failed(u32, Vec<u32>),
    Wake(Vec<usize>, Vec<u32>),
}

#[derive(Clone, Debug, Hash)]
struct Committer {
    at: CommitterAt,
    start: u32,
    latch: bool,
}

#[derive(Clone)]
struct World {
    place: Place,
    entries: Vec<Entry>,
    callers: Vec<Caller>,
    committer: Option<Committer>,
    /// How often each caller's hit was committed.
    counted: Vec<u8>,
    deaths: u8,
    failures: u8,
    ends: u8,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The answer is there, and its caller is not woken.
    NoWaking,
    /// What was committed is put back by a committer that dies.
    PutBackCommitted,
    /// What was not committed is answered by it.
    AnswerUncommitted,
    /// What was taken is lost with it.
    LoseTaken,
    /// Nobody hears of its death.
    SilentDeath,
    /// A caller that is cancelled takes its hit for not counted, taken or not.
    ClaimWithdrawn,
    /// A caller that is cancelled leaves its hit behind and takes it for withdrawn.
    LeaveBehind,
    /// The committer sleeps after a look that others did not hear of.
    SleepUnheard,
    /// Nobody is told that there is room.
    NoRoomUnheard,
    /// It ends without another look.
    EndBlindly,
    /// A batch that has failed is answered as if it were counted.
    AnswerFailed,
    /// One by one, the first is committed again.
    CommitTwice,
    /// A caller is cancelled between pushing and waking.
    CancelBeforeWaking,
    /// A process that was given up begins as well.
    EnterAlways,
    /// Of a hit of several counters only the first is counted.
    CountFirst,
    /// One whose transaction was cancelled is not put back.
    ForgetCancelled,
}

const FAULTS: [Fault; 16] = [
    Fault::NoWaking,
    Fault::PutBackCommitted,
    Fault::AnswerUncommitted,
    Fault::LoseTaken,
    Fault::SilentDeath,
    Fault::ClaimWithdrawn,
    Fault::LeaveBehind,
    Fault::SleepUnheard,
    Fault::NoRoomUnheard,
    Fault::EndBlindly,
    Fault::AnswerFailed,
    Fault::CommitTwice,
    Fault::CancelBeforeWaking,
    Fault::EnterAlways,
    Fault::CountFirst,
    Fault::ForgetCancelled,
];

/// One step that is possible: what is so afterwards, and whether it is one that happens by itself.
struct Next {
    world: World,
    progress: bool,
}

const DATABASE: u32 = 7;

/// What is hashed, as it is.
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}

impl World {
    fn new(scene: &Scene, fault: Fault) -> Self {
        let mut entries = vec![Entry::FREE; scene.capacity];
        let mut place = Place::new(&mut entries);
        place.claim(DATABASE);
        let callers = scene.callers.iter().map(|&(silent, parts)| Caller {
            at: CallerAt::Push,
            silent,
            parts,
            latch: false,
            may_cancel: scene.cancels,
        });
        let callers: Vec<Caller> = callers.collect();
        Self {
            counted: vec![0; callers.len()],
            place,
            entries,
            callers,
            committer: None,
            deaths: scene.deaths,
            failures: scene.failures,
            ends: 1,
            fault,
        }
    }

    /// Tells it from all others.
    fn key(&self) -> u128 {
        let mut bytes = Bytes(Vec::with_capacity(512));
        self.place.hash(&mut bytes);
        for entry in &self.entries {
            (entry.next, entry.before, entry.more, entry.parts).hash(&mut bytes);
            (entry.state, entry.waiter, entry.delta).hash(&mut bytes);
        }
        self.callers.hash(&mut bytes);
        self.committer.hash(&mut bytes);
        self.counted.hash(&mut bytes);
        (self.deaths, self.failures, self.ends).hash(&mut bytes);
        xxh3_128(&bytes.0)
    }

    fn wake_committer(&mut self) {
        if let Some(committer) = &mut self.committer {
            committer.latch = true;
        }
    }

    /// Those who wait for room sleep on a condition variable.
    fn tell_of_room(&mut self) {
        if self.fault != Fault::NoRoomUnheard && self.place.queue.room_for_others() {
            self.broadcast();
        }
    }

    fn broadcast(&mut self) {
        self.callers
            .iter_mut()
            .for_each(|caller| caller.latch = true);
    }

    fn wake_all(&mut self) {
        let mut waiters = Vec::new();
        Queue::for_each_waiter(&self.entries, |waiter| waiters.push(waiter));
        for waiter in waiters {
            self.callers[waiter].latch = true;
        }
        self.broadcast();
    }

    fn push(&mut self, who: usize) {
        self.callers[who].latch = false;
        let silent = self.callers[who].silent;
        self.place.want(0);
        if !self.place.admits(silent) {
            self.callers[who].at = CallerAt::NoRoom;
            return;
        }
        let change = Change {
            name: b"",
            delta: who as i64,
        };
        let hit = Hit {
            changes: &vec![change; self.callers[who].parts.into()],
            kind: Kind::Add,
            durable: true,
            waiter: (!silent).then_some(who),
        };
        self.callers[who].at = match self.place.queue.push(&mut self.entries, &hit) {
            Ok(Pushed { ticket, wake }) => CallerAt::Pushed(ticket, wake),
            Err(Full) => CallerAt::NoRoom,
        };
    }

    fn look_for_answer(&mut self, who: usize, ticket: u32) {
        let answer = self.place.queue.collect(&mut self.entries, ticket, |_| {});
        self.callers[who].at = match answer {
            Some(Answer::Counted { .. }) => CallerAt::Done(Told::Counted),
            Some(_) => CallerAt::Done(Told::NotCounted),
            None => {
                self.place.want(0);
                CallerAt::Sleep(ticket)
            }
        };
        self.tell_of_room();
    }

    fn cancel(&mut self, who: usize) {
        let told = match self.callers[who].at {
            CallerAt::Push | CallerAt::NoRoom => Told::NotCounted,
            CallerAt::Pushed(ticket, _) | CallerAt::Look(ticket) | CallerAt::Sleep(ticket) => {
                if self.fault == Fault::LeaveBehind {
                    Told::NotCounted
                } else {
                    match self.place.queue.withdraw(&mut self.entries, ticket) {
                        Withdrawn::Before => Told::NotCounted,
                        _ if self.fault == Fault::ClaimWithdrawn => Told::NotCounted,
                        Withdrawn::Taken => Told::Maybe,
                        Withdrawn::Answered(Answer::Counted { .. }) => Told::Counted,
                        Withdrawn::Answered(_) => Told::NotCounted,
                    }
                }
            }
            CallerAt::Done(told) => told,
        };
        self.callers[who].at = CallerAt::Done(told);
        self.tell_of_room();
    }

    fn at(&mut self, at: CommitterAt) {
        if let Some(committer) = &mut self.committer {
            committer.at = at;
        }
    }

    fn count(&mut self, tickets: &[u32]) {
        for &ticket in tickets {
            for Change { delta, .. } in Queue::changes(&self.entries, ticket) {
                self.counted[delta as usize] += 1;
                if self.fault == Fault::CountFirst {
                    break;
                }
            }
        }
    }

    fn answer(&mut self, tickets: &[u32], answer: Answer) -> Vec<usize> {
        let mut wake = Vec::new();
        for &ticket in tickets {
            wake.extend((self.place.queue).answer(&mut self.entries, ticket, answer, b""));
        }
        self.tell_of_room();
        wake
    }

    /// What the committer does on its way out, whatever ends it.
    fn exit(&mut self) {
        let Some(committer) = self.committer.take() else {
            return;
        };
        if self.fault == Fault::SilentDeath {
            return;
        }
        if committer.at == CommitterAt::Begin {
            self.place.failed(committer.start, 0);
            self.wake_all();
            return;
        }
        const COUNTED: Answer = Answer::Counted {
            lsn: 1,
            flushed: true,
        };
        match &committer.at {
            CommitterAt::Committed(current, _) if self.fault != Fault::PutBackCommitted => {
                self.answer(current, COUNTED);
            }
            CommitterAt::Commit(current, _) if self.fault == Fault::AnswerUncommitted => {
                self.answer(current, COUNTED);
            }
            _ => {}
        }
        if self.fault != Fault::LoseTaken {
            self.place.queue.put_back_taken(&mut self.entries);
        }
        self.place.gone();
        if !self.place.queue.is_empty() {
            self.place.want(0);
        }
        self.wake_all();
    }

    fn caller_steps(&self, who: usize, add: &mut impl FnMut(bool, &mut dyn FnMut(&mut Self))) {
        let caller = self.callers[who];
        match caller.at {
            CallerAt::Push => add(true, &mut |world| world.push(who)),
            CallerAt::NoRoom if caller.latch => {
                add(true, &mut |world| world.callers[who].at = CallerAt::Push);
            }
            CallerAt::Pushed(ticket, wake) => add(true, &mut |world| {
                if wake {
                    world.wake_committer();
                }
                world.callers[who].at = if caller.silent {
                    CallerAt::Done(Told::Handed)
                } else {
                    CallerAt::Look(ticket)
                };
            }),
            CallerAt::Look(ticket) => add(true, &mut |world| world.look_for_answer(who, ticket)),
            CallerAt::Sleep(ticket) if caller.latch => add(true, &mut |world| {
                world.callers[who].latch = false;
                world.callers[who].at = CallerAt::Look(ticket);
            }),
            CallerAt::NoRoom | CallerAt::Sleep(_) | CallerAt::Done(_) => {}
        }
        // Between pushing and waking nothing can be cancelled.
        let is_out = match caller.at {
            CallerAt::Done(_) => true,
            CallerAt::Pushed(..) => caller.silent || self.fault != Fault::CancelBeforeWaking,
            _ => false,
        };
        if caller.may_cancel && !is_out {
            add(false, &mut |world| {
                world.callers[who].may_cancel = false;
                world.cancel(who);
            });
        }
    }

    fn committer_steps(&self, add: &mut impl FnMut(bool, &mut dyn FnMut(&mut Self))) {
        let Some(committer) = &self.committer else {
            return;
        };
        match committer.at.clone() {
            CommitterAt::Begin => add(true, &mut |world| {
                let start = committer.start;
                let expected = world.place.enter(DATABASE, start, 1, 0);
                if expected || world.fault == Fault::EnterAlways {
                    world.at(CommitterAt::Look);
                    world.broadcast();
                } else {
                    world.committer = None;
                }
            }),
            CommitterAt::Look => add(true, &mut |world| {
                let look = match world.fault {
                    Fault::SleepUnheard if world.place.queue.is_empty() => Look::Nothing,
                    _ => world.place.queue.look(true),
                };
                world.at(match look {
                    Look::Nothing => CommitterAt::Asleep,
                    Look::Silent => CommitterAt::Nap,
                    Look::Work => CommitterAt::Take,
                });
            }),
            CommitterAt::Asleep => {
                if committer.latch {
                    add(true, &mut |world| {
                        world.committer.as_mut().unwrap().latch = false;
                        world.at(CommitterAt::Look);
                    });
                }
                if self.ends > 0 {
                    add(false, &mut |world| {
                        world.ends -= 1;
                        if world.fault == Fault::EndBlindly {
                            world.place.gone();
                            world.committer = None;
                        } else if world.place.try_end(true) {
                            world.committer = None;
                            world.broadcast();
                        } else {
                            world.at(CommitterAt::Look);
                        }
                    });
                }
            }
            CommitterAt::Nap => add(true, &mut |world| world.at(CommitterAt::Take)),
            CommitterAt::Take => add(true, &mut |world| {
                let mut batch = Vec::new();
                while let Some(ticket) = world.place.queue.take(&mut world.entries) {
                    batch.push(ticket);
                }
                world.at(match batch.is_empty() {
                    true => CommitterAt::Look,
                    false => CommitterAt::Commit(batch, Vec::new()),
                });
            }),
            CommitterAt::Commit(batch, rest) => {
                add(true, &mut |world| {
                    world.count(&batch);
                    world.at(CommitterAt::Committed(batch.clone(), rest.clone()));
                });
                if self.failures > 0 {
                    add(false, &mut |world| {
                        world.failures -= 1;
                        if world.fault == Fault::CommitTwice {
                            world.count(&batch[..1]);
                        }
                        if world.fault == Fault::AnswerFailed {
                            world.at(CommitterAt::Committed(batch.clone(), rest.clone()));
                        } else if batch.len() == 1 {
                            world.at(CommitterAt::Failed(batch[0], rest.clone()));
                        } else {
                            let first = vec![batch[0]];
                            world.at(CommitterAt::Commit(first, batch[1..].to_vec()));
                        }
                    });
                }
            }
            CommitterAt::Committed(batch, rest) => add(true, &mut |world| {
                let counted = Answer::Counted {
                    lsn: 1,
                    flushed: true,
                };
                let wake = world.answer(&batch, counted);
                world.at(CommitterAt::Wake(wake, rest.clone()));
            }),
            CommitterAt::Failed(ticket, rest) => {
                add(true, &mut |world| {
                    // What nobody waits for is tried again, until it is counted.
                    if Queue::is_waited_for(&world.entries, ticket) {
                        let wake = world.answer(&[ticket], Answer::Failed(1));
                        world.at(CommitterAt::Wake(wake, rest.clone()));
                    } else {
                        world.at(CommitterAt::Commit(vec![ticket], rest.clone()));
                    }
                });
                // Somebody has cancelled the committer.
                if Queue::is_waited_for(&self.entries, ticket) {
                    add(false, &mut |world| {
                        if world.fault != Fault::ForgetCancelled {
                            world.place.queue.put_back(&mut world.entries, ticket);
                        }
                        world.at(CommitterAt::Wake(Vec::new(), rest.clone()));
                    });
                }
            }
            CommitterAt::Wake(wake, rest) => add(true, &mut |world| {
                let (Some((&first, others)), false) =
                    (wake.split_first(), world.fault == Fault::NoWaking)
                else {
                    world.at(match rest.split_first() {
                        Some((&next, rest)) => CommitterAt::Commit(vec![next], rest.to_vec()),
                        None => CommitterAt::Look,
                    });
                    return;
                };
                world.callers[first].latch = true;
                world.at(CommitterAt::Wake(others.to_vec(), rest.clone()));
            }),
        }
        if self.deaths > 0 {
            add(false, &mut |world| {
                world.deaths -= 1;
                world.exit();
            });
        }
    }

    fn next(&self) -> Vec<Next> {
        let mut all = Vec::new();
        let mut add = |progress: bool, step: &mut dyn FnMut(&mut Self)| {
            let mut world = self.clone();
            step(&mut world);
            all.push(Next { world, progress });
        };
        for who in 0..self.callers.len() {
            self.caller_steps(who, &mut add);
        }
        self.committer_steps(&mut add);
        if self.place.process() == Process::Wanted && self.committer.is_none() {
            add(true, &mut |world| {
                // Time passes.
                if let Start::Now { start, .. } = world.place.next_start(i64::MAX) {
                    world.committer = Some(Committer {
                        at: CommitterAt::Begin,
                        start: match world.fault {
                            Fault::EnterAlways => start.wrapping_sub(1),
                            _ => start,
                        },
                        latch: false,
                    });
                }
            });
        }
        all
    }

    fn all_told(&self) -> bool {
        let mut callers = self.callers.iter();
        callers.all(|caller| matches!(caller.at, CallerAt::Done(_)))
    }

    /// What must hold at any time.
    fn check(&self) -> Result<(), String> {
        for (who, caller) in self.callers.iter().enumerate() {
            let counted = self.counted[who];
            // All of its counters in one commit, or none.
            if counted != 0 && counted != caller.parts {
                let parts = caller.parts;
                return Err(format!(
                    "{who} has {parts} parts and was counted {counted} times"
                ));
            }
            match caller.at {
                CallerAt::Done(Told::Counted) if counted == 0 => {
                    return Err(format!("{who} was told that it is counted"));
                }
                CallerAt::Done(Told::NotCounted) if counted != 0 => {
                    return Err(format!("{who} was told that it is not counted"));
                }
                _ => {}
            }
        }
        let process = self.place.process();
        if self.committer.is_none() && matches!(process, Process::Working | Process::Starting) {
            return Err(format!("there is no committer, which is {process:?}"));
        }
        let free = (self.entries.iter()).filter(|entry| entry.state == State::Free);
        let free = free.count();
        let mut listed = 0;
        let mut at = self.place.queue.free;
        while at != NIL {
            listed += 1;
            at = self.entries[at as usize].next;
        }
        if listed != free || free != self.place.queue.room as usize {
            return Err(format!("{free} entries are free, {listed} are listed"));
        }
        Ok(())
    }

    /// What must hold when nothing more happens by itself.
    fn check_end(&self) -> Result<(), String> {
        if !self.all_told() {
            return Err(format!("somebody sleeps for ever: {:?}", self.callers));
        }
        for (who, caller) in self.callers.iter().enumerate() {
            if caller.at == CallerAt::Done(Told::Handed) && self.counted[who] == 0 {
                return Err(format!("{who}, for which nobody waits, was lost"));
            }
        }
        if self.entries.iter().any(|entry| entry.state != State::Free) {
            return Err("an entry is lost".to_owned());
        }
        Ok(())
    }
}

/// Visits all that can become of it. From everywhere there must be a way to an end at which all is right.
fn explore(world: &World) -> Result<usize, String> {
    let mut ids = HashMap::from([(world.key(), 0_usize)]);
    let mut before: Vec<Vec<u32>> = vec![Vec::new()];
    let mut ends = Vec::new();
    let mut open = vec![(0, world.clone())];
    while let Some((id, world)) = open.pop() {
        world.check()?;
        let mut is_end = true;
        for Next {
            world: next,
            progress,
        } in world.next()
        {
            is_end &= !progress;
            let fresh = ids.len();
            let next_id = *ids.entry(next.key()).or_insert(fresh);
            if next_id == fresh {
                before.push(Vec::new());
                open.push((next_id, next));
            }
            if progress {
                before[next_id].push(id as u32);
            }
        }
        if is_end {
            world.check_end()?;
            ends.push(id);
        }
    }
    // Nobody goes round in circles either.
    let mut reaches_end = vec![false; ids.len()];
    while let Some(id) = ends.pop() {
        if !std::mem::replace(&mut reaches_end[id], true) {
            ends.extend(before[id].iter().map(|&id| id as usize));
        }
    }
    match reaches_end.iter().position(|&reaches| !reaches) {
        Some(_) => Err("from somewhere no end is reached".to_owned()),
        None => Ok(ids.len()),
    }
}

struct Scene {
    capacity: usize,
    /// Does nobody wait, and how many counters has it?
    callers: &'static [(bool, u8)],
    deaths: u8,
    failures: u8,
    cancels: bool,
}

const fn scene(
    capacity: usize,
    callers: &'static [(bool, u8)],
    (deaths, failures): (u8, u8),
    cancels: bool,
) -> Scene {
    Scene {
        capacity,
        callers,
        deaths,
        failures,
        cancels,
    }
}

const SCENES: [Scene; 9] = [
    scene(2, &[(false, 1), (false, 1)], (1, 1), true),
    scene(2, &[(false, 1), (true, 1)], (1, 1), true),
    scene(2, &[(true, 1), (true, 1)], (2, 2), true),
    scene(2, &[(false, 1), (false, 1), (false, 1)], (0, 0), true),
    scene(2, &[(false, 1), (false, 1), (true, 1)], (0, 1), false),
    scene(2, &[(false, 1), (true, 1), (true, 1)], (1, 0), false),
    scene(2, &[(false, 2), (false, 1)], (1, 1), true),
    scene(3, &[(false, 2), (true, 2)], (1, 1), true),
    scene(4, &[(true, 2), (false, 3), (false, 1)], (1, 0), false),
];

#[test]
fn each_hit_is_counted_once_or_its_caller_knows() {
    for scene in &SCENES {
        let callers = scene.callers;
        match explore(&World::new(scene, Fault::None)) {
            Ok(states) => assert!(states > 100, "{callers:?}: {states} states"),
            Err(why) => panic!(
                "{callers:?}, {} deaths, {} failures: {why}",
                scene.deaths, scene.failures
            ),
        }
    }
}

#[test]
fn planted_faults_are_found() {
    for fault in FAULTS {
        let found = (SCENES.iter()).any(|scene| explore(&World::new(scene, fault)).is_err());
        assert!(found, "{fault:?} was not found");
    }
}

#[test]
fn who_waits_has_room_that_others_leave() {
    let mut entries = vec![Entry::FREE; 8];
    let mut queue = Queue::new(&mut entries);
    let change = Change {
        name: b"a",
        delta: 1,
    };
    let mut hit = Hit {
        changes: &[change],
        kind: Kind::Add,
        durable: false,
        waiter: None,
    };
    for _ in 0..6 {
        queue.push(&mut entries, &hit).expect("room");
    }
    assert_eq!(queue.push(&mut entries, &hit), Err(Full));
    hit.waiter = Some(1);
    let first = queue.push(&mut entries, &hit).expect("room").ticket;
    queue.push(&mut entries, &hit).expect("room");
    assert_eq!(queue.push(&mut entries, &hit), Err(Full));
    assert!(!queue.room_for_others());
    assert_eq!(queue.withdraw(&mut entries, first), Withdrawn::Before);
    assert!(queue.room_for_others());
    assert!(!queue.room_for_others(), "told once");
}

#[test]
fn hits_are_taken_in_order_and_silent_ones_apart() {
    let mut entries = vec![Entry::FREE; 8];
    let mut queue = Queue::new(&mut entries);
    let mut push = |delta: i64, waiter| {
        let change = Change {
            name: b"name",
            delta,
        };
        let hit = Hit {
            changes: &[change],
            kind: Kind::Try,
            durable: true,
            waiter,
        };
        queue.push(&mut entries, &hit).expect("room");
    };
    push(1, Some(1));
    push(2, None);
    push(3, Some(1));
    push(4, None);
    let take = |queue: &mut Queue, entries: &mut [Entry]| {
        let ticket = queue.take(entries)?;
        let change = Queue::changes(entries, ticket).next().expect("one");
        assert_eq!(change.name, b"name");
        Some(change.delta)
    };
    let silent = queue.take_silent(&mut entries).expect("one");
    assert_eq!(entries[silent as usize].delta, 2);
    assert_eq!(take(&mut queue, &mut entries), Some(1));
    queue.put_back_taken(&mut entries);
    let mut order = Vec::new();
    while let Some(delta) = take(&mut queue, &mut entries) {
        order.push(delta);
    }
    order[..2].sort_unstable();
    assert_eq!(order, [1, 2, 3, 4]);
    assert_eq!(queue.look(true), Look::Nothing);
}

#[test]
fn hit_of_several_counters_is_one() {
    let mut entries = vec![Entry::FREE; 8];
    let mut queue = Queue::new(&mut entries);
    let changes = |all: &'static [&'static str]| -> Vec<Change<'static>> {
        let all = all.iter().zip(1..);
        all.map(|(name, delta)| Change {
            name: name.as_bytes(),
            delta,
        })
        .collect()
    };
    let mut push = |changes: &[Change], waiter| {
        let hit = Hit {
            changes,
            kind: Kind::Add,
            durable: true,
            waiter,
        };
        queue.push(&mut entries, &hit).map(|pushed| pushed.ticket)
    };
    assert_eq!(Queue::most_of_one(8), 4);
    let first = push(&changes(&["a", "b", "c"]), Some(1)).expect("room");
    push(&changes(&["d", "e", "f", "g"]), None).expect("room");
    assert_eq!(push(&changes(&["x", "y"]), Some(2)), Err(Full));
    assert_eq!(push(&changes(&["h"]), None).map(drop), Ok(()));
    assert_eq!(push(&changes(&["i"]), Some(2)), Err(Full));
    assert_eq!(queue.withdraw(&mut entries, first), Withdrawn::Before);
    assert_eq!(queue.room, 3);
    let second = queue.take(&mut entries).expect("one");
    let text = |entries: &[Entry], ticket| {
        let all = Queue::changes(entries, ticket);
        let all = all.map(|it| format!("{}{}", String::from_utf8_lossy(it.name), it.delta));
        all.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(text(&entries, second), "d1 e2 f3 g4");
    queue.put_back_taken(&mut entries);
    let again = queue.take(&mut entries).expect("one");
    assert_eq!(text(&entries, again), "d1 e2 f3 g4");
    let counted = Answer::Counted {
        lsn: 1,
        flushed: true,
    };
    assert_eq!(queue.answer(&mut entries, again, counted, b""), None);
    assert_eq!((queue.room, queue.silent, queue.queued), (7, 1, 1));
}

#[test]
fn place_is_tried_again_where_no_process_comes() {
    let mut entries = vec![Entry::FREE; 2];
    let mut place = Place::new(&mut entries);
    place.claim(3);
    assert!(place.want(10));
    assert!(!place.want(11));
    let Start::Now {
        start,
        database: 3,
        again: false,
    } = place.next_start(12)
    else {
        panic!("nothing to start")
    };
    place.refused(start, 12);
    assert_eq!(place.next_start(13), Start::At(12 + RETRY_US));
    let Start::Now { start: second, .. } = place.next_start(12 + RETRY_US) else {
        panic!("nothing to start")
    };
    assert!(!place.enter(3, start, 1, 0), "one that was given up");
    assert!(!place.enter(4, second, 1, 0), "another database's");
    let timeout = 12 + RETRY_US + START_TIMEOUT_US;
    assert_eq!(place.next_start(20 + RETRY_US), Start::At(timeout));
    assert!(matches!(place.next_start(timeout), Start::Now { .. }));
    assert!(!place.enter(3, second, 1, 0), "it came too late");
}

#[test]
fn place_of_a_dropped_database_is_free() {
    let mut entries = vec![Entry::FREE; 8];
    let mut place = Place::new(&mut entries);
    place.claim(3);
    let change = Change {
        name: b"a",
        delta: 1,
    };
    let hit = Hit {
        changes: &[change; 3],
        kind: Kind::Add,
        durable: false,
        waiter: None,
    };
    place.queue.push(&mut entries, &hit).expect("room");
    place.want(10);
    let Start::Now { start, .. } = place.next_start(12) else {
        panic!("nothing to start")
    };
    place.failed(start, 12);
    let Start::Now {
        start, again: true, ..
    } = place.next_start(12 + RETRY_US)
    else {
        panic!("it is not known that the last one has failed")
    };
    place.abandon(&mut entries, start.wrapping_sub(1));
    assert!(!place.is_idle(), "by one who is late");
    place.abandon(&mut entries, start);
    assert!(place.is_idle());
    assert_eq!((place.database, place.queue.room), (0, 8));
    assert_eq!((place.queue.silent, place.queue.queued), (0, 0));
}

#[test]
fn places_go_to_those_who_have_waited_longest() {
    let mut line = Line::EMPTY;
    assert!(line.join(5, 0));
    assert!(!line.join(3, 1));
    // Of one that has many sessions none comes first.
    assert!(!line.join(3, 2));
    assert!(!line.join(4, 3));
    assert!(line.join(5, 4));
    assert!(line.leave(5));
    assert!(!line.join(5, 5));
    assert!(line.join(3, 6));
    assert!(line.leave(3));
    assert!(line.join(4, 7));
    // One that does not look any more is not waited for.
    assert!(!line.join(5, FORGOTTEN_AFTER_US));
    assert!(line.join(5, FORGOTTEN_AFTER_US + 7));
    assert!(!line.leave(5));
}

#[test]
fn line_that_is_full_has_room_later() {
    let mut line = Line::EMPTY;
    for database in 1..=64 {
        assert_eq!(line.join(database, database.into()), database == 1);
    }
    assert!(!line.join(65, 65));
    assert!(line.leave(1));
    assert!(!line.join(65, 66));
    for database in 2..=64 {
        assert!(line.join(database, 67));
        assert!(line.leave(database));
    }
    assert!(line.join(65, 68));
}
