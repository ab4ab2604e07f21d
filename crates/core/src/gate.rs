//! What the value of a lane's gate sequence means: the current epoch and the active log.

/// One of the two logs of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `log_<lane>_a`
    A,
    /// `log_<lane>_b`
    B,
}

impl Side {
    /// Both sides, in the order in which they are always visited.
    pub const BOTH: [Side; 2] = [Side::A, Side::B];

    /// 0 or 1, for arrays of two.
    pub fn index(self) -> usize {
        match self {
            Side::A => 0,
            Side::B => 1,
        }
    }

    /// The other log.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }
}

/// A gate's value. An epoch belongs to exactly one side, since both change in one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    /// The epoch that deltas are stamped with now. The first one is 1.
    pub epoch: i64,
    /// The log that deltas go to now.
    pub side: Side,
}

impl Gate {
    /// Reads the sequence's value.
    pub fn decode(value: i64) -> Gate {
        Gate {
            epoch: value >> 1,
            side: if value & 1 == 0 { Side::A } else { Side::B },
        }
    }

    /// The sequence's value.
    pub fn encode(self) -> i64 {
        (self.epoch << 1) | self.side.index() as i64
    }

    /// The gate of the next epoch, in the same log or in the other one.
    pub fn next(self, switch: bool) -> Gate {
        Gate {
            epoch: self.epoch + 1,
            side: if switch { self.side.other() } else { self.side },
        }
    }
}

/// How many epochs a total or a lane's state is updated in place for before it moves to a higher
/// `gen`. Dead versions that an old snapshot keeps are left behind under the lower ones.
pub const EPOCHS_PER_GEN: i64 = 64;

/// Below the number of the installation, a `gen` has so many bits for its steps: enough for folds without
/// a pause in some thousand years.
const STEP_BITS: u32 = 40;

/// What all `gen` of a lane begin with: a number of its own, drawn before the first fold. Rows that
/// logical replication brings from another server have another one, so they are never found to be ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin(i64);

impl Origin {
    /// Of 64 random bits.
    pub fn of_random(bits: u64) -> Self {
        Self((bits >> (STEP_BITS + 1)) as i64)
    }

    /// The one that this `gen` begins with.
    pub fn of_gen(generation: i64) -> Self {
        Self(generation >> STEP_BITS)
    }

    /// The `gen` of a row that is written in this epoch.
    pub fn gen_of(self, epoch: i64) -> i64 {
        (self.0 << STEP_BITS) + epoch / EPOCHS_PER_GEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn encoding_round_trips(value in 2i64..i64::MAX / 2) {
            prop_assert_eq!(Gate::decode(value).encode(), value);
        }

        #[test]
        fn a_gen_knows_its_origin_and_grows_with_epochs(
            bits: u64,
            epoch in 0..EPOCHS_PER_GEN << STEP_BITS,
            other: u64,
        ) {
            let origin = Origin::of_random(bits);
            let generation = origin.gen_of(epoch);
            prop_assert!(generation >= 0);
            prop_assert_eq!(Origin::of_gen(generation), origin);
            let later = origin.gen_of((epoch / 2).max(epoch - 1));
            prop_assert!(later <= generation);
            prop_assert_eq!(origin.gen_of(0) + epoch / EPOCHS_PER_GEN, generation);
            if Origin::of_random(other) != origin {
                prop_assert_ne!(Origin::of_random(other).gen_of(epoch), generation);
            }
        }

        #[test]
        fn next_epoch_is_one_higher_and_value_grows(value in 2i64..i64::MAX / 4, switch: bool) {
            let gate = Gate::decode(value);
            let next = gate.next(switch);
            prop_assert_eq!(next.epoch, gate.epoch + 1);
            prop_assert_eq!(next.side == gate.side, !switch);
            prop_assert!(next.encode() > gate.encode());
        }
    }

    #[test]
    fn an_origin_has_many_values() {
        assert_eq!(Origin::of_random(u64::MAX).0, (1 << 23) - 1);
        assert_eq!(Origin::of_random(0).gen_of(129), 2);
    }

    #[test]
    fn the_first_gate_is_epoch_one_in_log_a() {
        assert_eq!(
            Gate::decode(2),
            Gate {
                epoch: 1,
                side: Side::A
            }
        );
    }
}
