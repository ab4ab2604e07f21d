//! What a round does: a function of its seed.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What bounds a counter has: those of a type, which is the first part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Floor,
    Ceiling,
    Both,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Plain, Self::Floor, Self::Ceiling, Self::Both];

    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Floor => "floor",
            Self::Ceiling => "ceiling",
            Self::Both => "both",
        }
    }

    pub(super) fn min(self) -> Option<i64> {
        match self {
            Self::Plain | Self::Ceiling => None,
            Self::Floor => Some(0),
            Self::Both => Some(-1),
        }
    }

    pub(super) fn max(self) -> Option<i64> {
        match self {
            Self::Plain | Self::Floor => None,
            Self::Ceiling => Some(4),
            Self::Both => Some(5),
        }
    }
}

/// A call; counters, holds, rows and tokens by their place in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Value(usize),
    /// Value, amount on hold, available.
    Available(usize),
    /// Of all counters, and how many exist.
    Sum,
    /// `counter_sum` of all counters of a kind.
    Prefix(Kind),
    /// All holds.
    Holds,
    Row(usize),
    /// The sum of all rows.
    Rows,
    Incr(usize, i64),
    Get(usize, i64),
    Try(usize, i64),
    Take(usize, i64),
    Set(usize, i64),
    Reset(usize),
    Drop(usize),
    Once(usize),
    Hold(usize, i64),
    /// A hold from before the round; all of it, or so much.
    Confirm(usize, Option<i64>),
    Release(usize),
    Update(usize, i64),
}

impl Call {
    pub(super) fn only_reads(self) -> bool {
        matches!(
            self,
            Self::Value(_)
                | Self::Available(_)
                | Self::Sum
                | Self::Prefix(_)
                | Self::Holds
                | Self::Row(_)
                | Self::Rows
        )
    }

    /// May it wait for another transaction's end?
    pub(super) fn may_wait(self) -> bool {
        matches!(
            self,
            Self::Set(..)
                | Self::Reset(_)
                | Self::Drop(_)
                | Self::Once(_)
                | Self::Confirm(..)
                | Self::Release(_)
                | Self::Update(..)
        )
    }
}

/// One move of a round.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turn {
    /// A client's call. A guarded one is in a block that catches refusals; the first one of a client
    /// begins its transaction.
    Call {
        client: usize,
        call: Call,
        guarded: bool,
    },
    Commit(usize),
    Rollback(usize),
    /// A fold, by nobody of them.
    Compact,
}

/// A counter, and how it came to be: what was added to it before a fold, and after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counter {
    pub(super) kind: Kind,
    pub(super) folded: Option<i64>,
    pub(super) pending: Option<i64>,
}

/// What a token stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub(super) counter: usize,
    pub(super) delta: i64,
    /// By `counter_incr_once_get`.
    pub(super) get: bool,
    pub(super) used: bool,
}

/// What a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Features {
    /// No counter is bounded.
    Plain,
    /// Some are, and nothing is set aside.
    Bounded,
    /// The same, with holds.
    Holds,
}

impl Features {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Plain => "plain counters",
            Self::Bounded => "bounded counters",
            Self::Holds => "bounded counters and holds",
        }
    }
}

/// A round.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) serializable: bool,
    pub(super) features: Features,
    pub(super) counters: Vec<Counter>,
    /// Made before the round: counter and amount.
    pub(super) holds: Vec<(usize, i64)>,
    pub(super) rows: usize,
    pub(super) tokens: Vec<Token>,
    pub(super) clients: usize,
    /// Clients whose transactions are READ ONLY.
    pub(super) read_only: Vec<bool>,
    pub(super) turns: Vec<Turn>,
}

impl Plan {
    /// The round of a seed.
    pub(super) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let serializable = rng.random_bool(0.8);
        let features = match rng.random_range(0..10) {
            0..3 => Features::Plain,
            3..6 => Features::Bounded,
            _ => Features::Holds,
        };
        // Few enough that the transactions meet.
        let most = if features == Features::Plain { 4 } else { 3 };
        let counters: Vec<Counter> = (0..rng.random_range(1..most))
            .map(|_| counter(&mut rng, features == Features::Plain))
            .collect();
        let mut holds = Vec::new();
        for (place, counter) in counters.iter().enumerate() {
            let free = counter.value() - counter.kind.min().unwrap_or(counter.value());
            if features == Features::Holds && free > 0 && rng.random_bool(0.4) {
                holds.push((place, rng.random_range(1..=free.min(3))));
            }
        }
        let tokens = (0..2)
            .map(|_| {
                let counter = rng.random_range(0..counters.len());
                Token {
                    counter,
                    delta: rng.random_range(-2..3),
                    get: rng.random_bool(0.5),
                    // What that has added could be beyond a bound.
                    used: counters[counter].kind == Kind::Plain && rng.random_bool(0.2),
                }
            })
            .collect();
        let clients = rng.random_range(3..5);
        let mut plan = Self {
            serializable,
            features,
            counters,
            holds,
            rows: rng.random_range(1..3),
            tokens,
            clients,
            read_only: Vec::new(),
            turns: Vec::new(),
        };
        let mut left: Vec<Vec<Turn>> = Vec::new();
        for client in 0..clients {
            let reads = rng.random_bool(0.2);
            plan.read_only.push(reads && rng.random_bool(0.5));
            let mut turns: Vec<Turn> = (0..rng.random_range(2..6))
                .map(|_| Turn::Call {
                    client,
                    call: plan.call(&mut rng, reads),
                    guarded: rng.random_bool(0.6),
                })
                .collect();
            turns.push(if rng.random_bool(0.1) {
                Turn::Rollback(client)
            } else {
                Turn::Commit(client)
            });
            turns.reverse();
            left.push(turns);
        }
        while left.iter().any(|turns| !turns.is_empty()) {
            if rng.random_bool(0.03) {
                plan.turns.push(Turn::Compact);
            }
            let client = rng.random_range(0..clients);
            plan.turns.extend(left[client].pop());
        }
        plan
    }

    fn call(&self, rng: &mut StdRng, reads: bool) -> Call {
        let counter = rng.random_range(0..self.counters.len());
        let row = rng.random_range(0..self.rows);
        let kind = self.counters[counter].kind;
        let signed = [-3, -2, -1, -1, 1, 1, 2, 3][rng.random_range(0..8)];
        if reads || rng.random_bool(0.35) {
            return match rng.random_range(0..14) {
                0..5 => Call::Value(counter),
                5 | 6 => Call::Available(counter),
                7 => Call::Sum,
                8 => Call::Prefix(kind),
                9 if !self.holds.is_empty() => Call::Holds,
                10 => Call::Rows,
                _ => Call::Row(row),
            };
        }
        let hold = rng.random_range(0..self.holds.len().max(1));
        match rng.random_range(0..24) {
            0..5 => Call::Incr(counter, signed),
            5 | 6 => Call::Get(counter, signed),
            7..11 => Call::Try(counter, signed),
            11 | 12 => Call::Take(counter, signed.abs()),
            13 => Call::Set(counter, rng.random_range(0..4)),
            14 => Call::Reset(counter),
            15 if rng.random_bool(0.5) => Call::Drop(counter),
            16 => Call::Once(rng.random_range(0..self.tokens.len())),
            17 | 18 if self.features == Features::Holds && kind.min().is_some() => {
                Call::Hold(counter, signed.abs())
            }
            19 if hold < self.holds.len() => {
                let amount = self.holds[hold].1;
                Call::Confirm(hold, rng.random_bool(0.3).then_some((amount + 1) / 2))
            }
            20 if hold < self.holds.len() => Call::Release(hold),
            _ => Call::Update(row, signed),
        }
    }
}

impl Counter {
    pub(super) fn value(&self) -> i64 {
        self.folded.unwrap_or(0) + self.pending.unwrap_or(0)
    }
}

fn counter(rng: &mut StdRng, plain: bool) -> Counter {
    let kind = if plain {
        Kind::Plain
    } else {
        Kind::ALL[rng.random_range(0..4)]
    };
    // At a bound, as often as not: there a grant depends on what others do.
    let at_bound = match kind {
        Kind::Plain => None,
        Kind::Floor => Some(0),
        Kind::Ceiling | Kind::Both => kind.max(),
    };
    if let Some(value) = at_bound
        && rng.random_bool(0.5)
    {
        let (folded, pending) = if rng.random_bool(0.5) {
            (Some(value), None)
        } else {
            (None, Some(value))
        };
        return Counter {
            kind,
            folded,
            pending,
        };
    }
    let mut some = |share| rng.random_bool(share).then(|| rng.random_range(0..3));
    Counter {
        kind,
        folded: some(0.5),
        pending: some(0.6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_a_matter_of_its_seed() {
        let round = |seed| format!("{:?}", Plan::of(seed));
        assert_eq!(round(7), round(7));
        assert_ne!(round(7), round(8));
    }

    #[test]
    fn rounds_begin_within_bounds() {
        for seed in 0..500 {
            for counter in Plan::of(seed).counters {
                for value in [counter.folded.unwrap_or(0), counter.value()] {
                    assert!(counter.kind.min().is_none_or(|min| value >= min));
                    assert!(counter.kind.max().is_none_or(|max| value <= max));
                }
            }
        }
    }
}
