//! What sessions do: random transactions, the same for the same seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::step::{Level, Op, Step};

/// Counters that everybody only adds to, by plain increments.
const LEDGER: usize = 6;

/// Where changes of counters that all share come from; told the isolation level.
type Shared<'a> = Box<dyn FnMut(&mut StdRng, Level) -> Op + 'a>;

/// One session's random choices.
pub(crate) struct Script<'a> {
    rng: StdRng,
    number: usize,
    /// How many in ten of the calls are on counters that all share.
    sharing: u32,
    shared: Shared<'a>,
}

impl<'a> Script<'a> {
    pub(crate) fn new(
        seed: u64,
        number: usize,
        sharing: u32,
        shared: impl FnMut(&mut StdRng, Level) -> Op + 'a,
    ) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed.wrapping_mul(9_000).wrapping_add(number as u64)),
            number,
            sharing,
            shared: Box::new(shared),
        }
    }

    /// The steps of the next transaction. One that was prepared earlier may be ended before.
    pub(crate) fn transaction(&mut self, prepared: bool) -> Vec<Step> {
        let mut steps = Vec::new();
        if prepared && self.rng.random_bool(0.4) {
            let commit = self.rng.random_bool(0.7);
            steps.push(Step::Finish { commit });
        }
        match self.rng.random_range(0..20) {
            0..3 => {
                let op = self.blind();
                steps.push(Step::Alone(op));
            }
            3 => {
                let (name, count) = (self.ledger(), self.rng.random_range(2..7));
                steps.push(Step::Walk { name, steps: count });
            }
            _ => self.block(&mut steps),
        }
        steps
    }

    /// A random number below `end`, for choices of the caller's own.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.rng.random_range(0..end)
    }

    fn block(&mut self, steps: &mut Vec<Step>) {
        let level = match self.rng.random_range(0..10) {
            0..5 => Level::ReadCommitted,
            5..8 => Level::RepeatableRead,
            _ => Level::Serializable,
        };
        let journal = self.rng.random_bool(0.5);
        steps.push(Step::Begin { level, journal });
        for _ in 0..self.rng.random_range(1..8) {
            match self.rng.random_range(0..44) {
                0..5 => steps.push(Step::Savepoint),
                5..8 => {
                    let to = self.rng.random_range(1..4);
                    steps.push(Step::RollbackTo(to));
                }
                8..11 => {
                    let to = self.rng.random_range(1..4);
                    steps.push(Step::Release(to));
                }
                11 => {
                    let op = self.op(level);
                    steps.extend([Step::Savepoint, Step::Fail(op), Step::RollbackTo(9)]);
                }
                12 => {
                    let keep = self.rng.random_bool(0.5);
                    steps.push(Step::FlushEarly { keep });
                }
                13 | 14 => steps.push(Step::Op(Op::Look)),
                15 => {
                    steps.push(Step::Cursor { hold: false });
                    steps.extend(std::iter::repeat_n(
                        Step::Op(Op::Look),
                        self.rng.random_range(0..2),
                    ));
                    steps.push(Step::Fetch);
                }
                40..43 => self.changing(level, steps),
                43 => {
                    let (ops, kept) = (self.calls(level), self.rng.random_range(1..3));
                    let kept = kept.min(ops.len());
                    steps.push(Step::Block { ops, kept });
                }
                // Done, undone, and done again.
                16..19 => {
                    let op = self.op(level);
                    steps.extend([
                        Step::Savepoint,
                        Step::Op(op.clone()),
                        Step::RollbackTo(9),
                        Step::Op(op),
                    ]);
                }
                _ => {
                    let op = self.op(level);
                    steps.push(Step::Op(op));
                }
            }
        }
        if !journal {
            steps.push(Step::Journal);
        }
        match self.rng.random_range(0..20) {
            0..3 => steps.push(Step::Rollback),
            3..6 => steps.push(Step::Prepare),
            6 => steps.extend([Step::Cursor { hold: true }, Step::Commit, Step::Fetch]),
            _ => steps.push(Step::Commit),
        }
    }

    /// A cursor that changes something with each row, with other calls in between. One of its rows may
    /// fail in a savepoint; what was fetched before stays.
    fn changing(&mut self, level: Level, steps: &mut Vec<Step>) {
        let ops = self.calls(level);
        let rows = self.rng.random_range(1..=ops.len());
        let fails = self.rng.random_bool(0.7);
        steps.push(Step::Change { ops, fails });
        let next = |script: &mut Self, rows| Step::Next {
            rows,
            moves: script.rng.random_bool(0.3),
        };
        steps.push(next(self, rows));
        if self.rng.random_bool(0.3) {
            let op = self.op(level);
            steps.push(Step::Op(op));
        }
        steps.push(Step::Savepoint);
        let rows = if fails { 9 } else { 1 };
        steps.extend([next(self, rows), Step::RollbackTo(9)]);
        if self.rng.random_bool(0.5) {
            let op = self.op(level);
            steps.push(Step::Op(op));
        }
        if !fails {
            steps.push(next(self, 1));
        }
    }

    /// What can be a cursor's rows.
    fn calls(&mut self, level: Level) -> Vec<Op> {
        let mut ops: Vec<Op> = (0..self.rng.random_range(1..5))
            .map(|_| self.op(level))
            .filter(|op| !matches!(op, Op::Events(_) | Op::Look | Op::Sql(_)))
            .collect();
        if ops.is_empty() || self.rng.random_bool(0.3) {
            let place = self.rng.random_range(0..=ops.len());
            ops.insert(place, Op::Overflow(self.number));
        }
        ops
    }

    fn op(&mut self, level: Level) -> Op {
        if self.rng.random_range(0..10) < self.sharing {
            return (self.shared)(&mut self.rng, level);
        }
        match self.rng.random_range(0..3) {
            0 => self.adding(),
            _ => self.own(),
        }
    }

    /// What the client can account for without having been answered.
    fn blind(&mut self) -> Op {
        match self.rng.random_range(0..3) {
            0 => self.adding(),
            1 => Op::Bump(self.own_name(), self.rng.random_range(-50..100)),
            _ => {
                let op = (self.shared)(&mut self.rng, Level::ReadCommitted);
                if super::session::op_is_blind(&op) {
                    op
                } else {
                    self.adding()
                }
            }
        }
    }

    /// Plain increments of counters that everybody adds to.
    fn adding(&mut self) -> Op {
        let (name, delta) = (self.ledger(), self.rng.random_range(-20..100));
        match self.rng.random_range(0..8) {
            0 | 1 => Op::Bump(name, delta),
            2 => Op::Guarded(name, delta, self.rng.random_bool(0.5)),
            3 => Op::Events(self.several(1, 6)),
            4 => Op::Events(self.several(50, 100)),
            5 => Op::Many(self.several(20, 60), false),
            _ => Op::Many(self.several(1, 10), self.rng.random_bool(0.5)),
        }
    }

    fn several(&mut self, from: usize, to: usize) -> Vec<(String, i64)> {
        (0..self.rng.random_range(from..to))
            .map(|_| {
                let name = if self.rng.random_bool(0.7) {
                    self.ledger()
                } else {
                    self.own_name()
                };
                (name, self.rng.random_range(-20..100))
            })
            .collect()
    }

    /// Anything, to a counter of its own.
    fn own(&mut self) -> Op {
        let (name, other) = (self.own_name(), self.own_name());
        let stock = format!("stock:own:{}:{}", self.number, self.rng.random_range(0..2));
        match self.rng.random_range(0..20) {
            0 => Op::Bump(name, self.rng.random_range(-50..100)),
            1 | 2 => Op::Get(name, self.rng.random_range(-50..100)),
            3 | 4 => Op::Set(name, Some(self.rng.random_range(-50..100))),
            5 => Op::Set(name, None),
            6 | 7 => Op::Drop(name),
            8..10 if name != other => Op::Move {
                into: name,
                from: other,
                merge: self.rng.random_bool(0.5),
            },
            10..12 => {
                let token = self.rng.random_range(0..12_i64);
                Op::Once {
                    token: format!("own {} {token}", self.number),
                    name: format!("own:{}:{}", self.number, token % 4),
                    delta: token + 1,
                    get: token % 2 == 0,
                }
            }
            // So that there is little of it most of the time.
            12 => Op::Bump(stock, self.rng.random_range(0..8)),
            13 | 14 => Op::Try(stock, self.rng.random_range(-4..2)),
            15 => Op::Take(stock, self.rng.random_range(0..6)),
            16 | 17 => Op::Hold {
                name: stock,
                amount: self.rng.random_range(1..4),
                ttl: "1 hour",
            },
            18 => Op::Confirm {
                nth: self.rng.random_range(0..5),
                part: self.rng.random_bool(0.4),
            },
            _ => Op::Release(self.rng.random_range(0..5)),
        }
    }

    fn own_name(&mut self) -> String {
        format!("own:{}:{}", self.number, self.rng.random_range(0..4))
    }

    /// Half of the increments meet the first one.
    fn ledger(&mut self) -> String {
        let hot = self.rng.random_bool(0.5);
        let number = if hot {
            0
        } else {
            self.rng.random_range(0..LEDGER)
        };
        format!("u:{number}")
    }
}
