//! Some calls, the accounts and the values of the windows that they count in, and who removes windows, all of it in
//! steps that can be put into any order.

use super::super::*;
use crate::escrow::{Account, Bounds, End, Noted, Seen, Verdict, check};
use crate::path::{Change, Path, Step};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What is kept to, besides bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Who has reserved and read looks at the clock once more.
    SecondLook,
    /// What is in flight of the window before counts.
    NoteBefore,
    /// Up to where windows may be removed is written before they are, and heeded.
    Removed,
}

/// The type, and which rule is not kept to.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    kind: Kind,
    max: i64,
    broken: Option<Rule>,
}

impl Rules {
    pub fn fixed(max: i64) -> Self {
        Self {
            kind: Kind::Fixed,
            max,
            broken: None,
        }
    }

    pub fn sliding(max: i64) -> Self {
        Self {
            kind: Kind::Sliding,
            ..Self::fixed(max)
        }
    }

    pub fn without(self, rule: Rule) -> Self {
        Self {
            broken: Some(rule),
            ..self
        }
    }

    fn keep(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    /// So many windows before the running one stay.
    fn kept(self) -> usize {
        match self.kind {
            Kind::Fixed => 0,
            Kind::Sliding => 1,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Act {
    /// Looks at the clock.
    Begin(usize, i64),
    /// Reserves.
    Reserve(usize),
    /// Whatever comes next.
    Step(usize),
    /// All that is left of the call.
    Finish(usize),
    BecomeVisible(usize),
    Commit(usize),
    Abort(usize),
    /// The system's clock.
    Tick(i64),
    /// One of the two steps of who removes windows.
    RemoveOnce,
    /// An account that nobody uses is given away.
    Recycle,
    /// The server, with its clock set by so much.
    Restart(i64),
}

const CALLERS: usize = 4;

/// `restarts`: the server does, too.
pub fn act(restarts: bool) -> impl Strategy<Value = Act> {
    let who = 0..CALLERS;
    prop_oneof![
        8 => (who.clone(), 0i64..5).prop_map(|(who, delta)| Act::Begin(who, delta)),
        3 => who.clone().prop_map(Act::Reserve),
        12 => who.clone().prop_map(Act::Step),
        6 => who.clone().prop_map(Act::Finish),
        2 => who.clone().prop_map(Act::BecomeVisible),
        8 => who.clone().prop_map(Act::Commit),
        2 => who.prop_map(Act::Abort),
        8 => (-2i64..6).prop_map(Act::Tick),
        3 => Just(Act::RemoveOnce),
        2 => Just(Act::Recycle),
        1 => (-12i64..3).prop_map(move |by| match restarts {
            true => Act::Restart(by),
            false => Act::Tick(1),
        }),
    ]
}

/// A call, and how far it is.
#[derive(Clone, Copy, Debug)]
struct Call {
    delta: i64,
    /// Looked up before anything.
    time: i64,
    window: Window,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Began,
    Reserved {
        noted: Noted,
    },
    /// And what is in flight of the window before.
    Noted {
        noted: Noted,
        before: i128,
    },
    /// All but the second look.
    Decided(bool),
    /// Until the transaction ends.
    Granted,
    /// Its changes are visible, and not given back yet.
    Visible,
}

/// The account of a window.
#[derive(Clone, Copy, Debug)]
struct Slot {
    account: Account,
    /// The most that the window before came to, and whether it is known that it is that much.
    before: Option<(i128, bool)>,
}

/// What was granted, and not rolled back.
#[derive(Clone, Copy, Debug)]
struct Granted {
    who: Option<usize>,
    time: i64,
    window: Window,
    delta: i64,
}

pub struct World {
    rules: Rules,
    lengths: (i64, i64),
    now: i64,
    /// In shared memory: the latest time that somebody has gone by.
    clock: i64,
    /// On disk.
    removed: i64,
    values: BTreeMap<i64, i128>,
    slots: BTreeMap<i64, Slot>,
    calls: [Option<Call>; CALLERS],
    granted: Vec<Granted>,
    /// Who removes windows has come so far: these may go.
    removes: Option<i64>,
}

impl World {
    /// At the start of a window. Windows have these two lengths in turn.
    pub fn new(rules: Rules, lengths: (i64, i64)) -> Self {
        Self {
            rules,
            lengths,
            now: 0,
            clock: i64::MIN,
            removed: i64::MIN,
            values: BTreeMap::new(),
            slots: BTreeMap::new(),
            calls: [None; CALLERS],
            granted: Vec::new(),
            removes: None,
        }
    }

    pub fn go_through(&mut self, acts: Vec<Act>) -> Result<(), TestCaseError> {
        for act in acts {
            let known = self.granted.len();
            self.run(&act);
            // What is less is no worse.
            if self.granted.len() > known {
                self.check_windows()?;
                if self.rules.kind == Kind::Sliding {
                    self.check_promise()?;
                }
            }
        }
        Ok(())
    }

    fn window(&self, time: i64) -> Window {
        let (first, second) = self.lengths;
        let round = time - time.rem_euclid(first + second);
        match time < round + first {
            true => Window {
                start: round,
                end: round + first,
            },
            false => Window {
                start: round + first,
                end: round + first + second,
            },
        }
    }

    fn time(&mut self) -> i64 {
        self.clock = self.clock.max(self.now);
        match self.rules.keep(Rule::Removed) {
            true => time(self.clock, self.removed, None),
            false => self.clock,
        }
    }

    fn value(&self, start: i64) -> i128 {
        self.values.get(&start).copied().unwrap_or(0)
    }

    fn slot(&mut self, start: i64) -> &mut Slot {
        self.slots.entry(start).or_insert(Slot {
            account: Account::NEW,
            before: None,
        })
    }

    fn run(&mut self, act: &Act) {
        match *act {
            Act::Begin(who, delta) => {
                if self.calls[who].is_none() {
                    let time = self.time();
                    self.calls[who] = Some(Call {
                        delta,
                        time,
                        window: self.window(time),
                        stage: Stage::Began,
                    });
                }
            }
            Act::Reserve(who) => {
                if let Some(Call {
                    stage: Stage::Began,
                    ..
                }) = self.calls[who]
                {
                    self.step(who);
                }
            }
            Act::Step(who) => self.step(who),
            Act::Finish(who) => {
                while let Some(call) = self.calls[who]
                    && !matches!(call.stage, Stage::Granted | Stage::Visible)
                {
                    self.step(who);
                }
            }
            Act::BecomeVisible(who) => self.become_visible(who),
            Act::Commit(who) => {
                self.become_visible(who);
                if let Some(call) = self.calls[who]
                    && matches!(call.stage, Stage::Visible)
                {
                    self.end(who, call, End::Committed);
                    for granted in &mut self.granted {
                        granted.who = granted.who.filter(|&of| of != who);
                    }
                }
            }
            Act::Abort(who) => {
                if let Some(call) = self.calls[who]
                    && !matches!(call.stage, Stage::Visible)
                {
                    self.granted.retain(|granted| granted.who != Some(who));
                    match call.stage {
                        Stage::Began => self.calls[who] = None,
                        _ => self.end(who, call, End::Aborted),
                    }
                }
            }
            Act::Tick(by) => self.now += by,
            Act::RemoveOnce => self.remove_once(),
            Act::Recycle => {
                let in_use = |start: &i64| {
                    let mut calls = self.calls.iter().flatten();
                    calls.any(|call| {
                        call.window.start == *start && !matches!(call.stage, Stage::Began)
                    })
                };
                let free = self.slots.keys().copied().find(|start| !in_use(start));
                if let Some(free) = free {
                    self.slots.remove(&free);
                }
            }
            Act::Restart(by) => {
                self.granted.retain(|granted| match granted.who {
                    // What is visible has committed.
                    Some(who) => {
                        self.calls[who].is_some_and(|call| matches!(call.stage, Stage::Visible))
                    }
                    None => true,
                });
                for granted in &mut self.granted {
                    granted.who = None;
                }
                self.calls = [None; CALLERS];
                self.slots.clear();
                self.removes = None;
                self.clock = i64::MIN;
                self.now += by;
            }
        }
    }

    fn become_visible(&mut self, who: usize) {
        if let Some(call) = &mut self.calls[who]
            && matches!(call.stage, Stage::Granted)
        {
            call.stage = Stage::Visible;
            *self.values.entry(call.window.start).or_default() += i128::from(call.delta);
        }
    }

    fn end(&mut self, who: usize, call: Call, end: End) {
        let wanted = asked(call.delta).wanted();
        self.slot(call.window.start).account.release(wanted, end);
        self.calls[who] = None;
    }

    /// The next step of a call.
    fn step(&mut self, who: usize) {
        let Some(mut call) = self.calls[who] else {
            return;
        };
        let (rules, start) = (self.rules, call.window.start);
        let step = asked(call.delta);
        match call.stage {
            Stage::Began => {
                let slot = self.slot(start);
                let noted = slot.account.reserve_step(&step);
                let known = match rules.kind {
                    Kind::Fixed => Some((0, true)),
                    Kind::Sliding => slot.before,
                };
                let covered = known.is_some_and(|(before, _)| {
                    let bounds = bounds(rules, call, before);
                    slot.account.is_covered(bounds, step.wanted())
                });
                call.stage = match covered {
                    true => Stage::Decided(true),
                    false => Stage::Reserved { noted },
                };
            }
            Stage::Reserved { noted } => {
                let before = self.window(start - 1).start;
                let in_flight = (self.slots.get(&before))
                    .filter(|_| rules.keep(Rule::NoteBefore))
                    .map_or(0, |slot| slot.account.in_flight().adds);
                call.stage = Stage::Noted {
                    noted,
                    before: in_flight,
                };
            }
            // With one snapshot.
            Stage::Noted { noted, before } => {
                let value = self.value(self.window(start - 1).start);
                let seen = Seen {
                    value: self.value(start),
                    held: 0,
                    clock: call.time,
                };
                let slot = self.slot(start);
                slot.account.learn(noted, seen);
                let known = match (slot.before, (value + before, before == 0)) {
                    (Some(known), _) if known.1 => known,
                    (_, new) if new.1 => new,
                    (Some(known), new) => (known.0.min(new.0), false),
                    (None, new) => new,
                };
                slot.before = Some(known);
                let bounds = bounds(rules, call, known.0);
                let verdict = check(bounds, seen, &step, call.time, noted);
                call.stage = Stage::Decided(verdict == Verdict::Granted);
            }
            Stage::Decided(is_granted) => {
                let time = self.time();
                if rules.keep(Rule::SecondLook) && !call.window.contains(time) {
                    self.end(who, call, End::Aborted);
                    self.calls[who] = Some(Call {
                        time,
                        window: self.window(time),
                        stage: Stage::Began,
                        ..call
                    });
                    return;
                }
                if !is_granted {
                    return self.end(who, call, End::Aborted);
                }
                self.granted.push(Granted {
                    who: Some(who),
                    time: call.time,
                    window: call.window,
                    delta: call.delta,
                });
                call.stage = Stage::Granted;
            }
            Stage::Granted | Stage::Visible => {}
        }
        self.calls[who] = Some(call);
    }

    /// First what may be removed is written down, then it goes.
    fn remove_once(&mut self) {
        match self.removes.take() {
            None => {
                let time = self.time();
                let mut first = self.window(time);
                for _ in 0..self.rules.kept() {
                    first = self.window(first.start - 1);
                }
                self.removed = self.removed.max(first.start);
                self.removes = Some(first.start);
            }
            Some(before) => self.values.retain(|&start, _| start >= before),
        }
    }

    /// Whatever was removed, no window is had twice.
    fn check_windows(&self) -> Result<(), TestCaseError> {
        let mut sums: BTreeMap<i64, i64> = BTreeMap::new();
        for granted in &self.granted {
            *sums.entry(granted.window.start).or_default() += granted.delta;
        }
        for (start, sum) in sums {
            prop_assert!(sum <= self.rules.max, "{} in the window at {}", sum, start);
        }
        Ok(())
    }

    /// Within any time, up to the running window and the one before, no more than is promised.
    fn check_promise(&self) -> Result<(), TestCaseError> {
        let mut granted = self.granted.clone();
        granted.sort_unstable_by_key(|granted| granted.time);
        for (at, last) in granted.iter().enumerate() {
            // Of those at the same time, the others are no longer ago.
            if granted
                .get(at + 1)
                .is_some_and(|next| next.time == last.time)
            {
                continue;
            }
            let length = last.window.end - last.window.start;
            let before = self.window(last.window.start - 1);
            let longest = length.min(before.end - before.start);
            let mut sum = 0;
            for first in granted[..=at].iter().rev() {
                let time = last.time - first.time;
                if time > longest {
                    break;
                }
                sum += first.delta;
                prop_assert!(
                    sum * length <= self.rules.max * (length + time),
                    "{} from {} to {}",
                    sum,
                    first.time,
                    last.time
                );
            }
        }
        Ok(())
    }
}

fn asked(delta: i64) -> Step {
    let after = Path::NEW
        .then(Change::delta(delta))
        .expect("a small number");
    Step {
        before: Path::NEW,
        after,
    }
}

fn bounds(rules: Rules, call: Call, before: i128) -> Bounds {
    let max = match rules.kind {
        Kind::Fixed => rules.max,
        Kind::Sliding => call.window.limit(rules.max, before, call.time),
    };
    Bounds {
        min: None,
        max: Some(max),
    }
}
