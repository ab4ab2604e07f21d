//! Column numbers, as of `sql/tables.sql`.

/// What the column `kind` of logs and `late` has for an adjustment. Null is an increment.
pub const ADJUSTMENT: i8 = b'a' as i8;

/// `log_*`: epoch, at, delta, name, uses, kind.
pub mod log {
    pub const KEY: [i16; 2] = [1, 4];
    pub const EPOCH: usize = 1;
    pub const DELTA: usize = 3;
    pub const NAME: usize = 4;
    pub const USES: usize = 5;
}
/// `total`: name, gen, value, uses.
pub mod total {
    pub const KEY: [i16; 2] = [1, 2];
    pub const NAME: usize = 1;
    pub const GEN: usize = 2;
    pub const VALUE: usize = 3;
    pub const USES: usize = 4;
    pub const COLUMNS: usize = 4;
    /// The value index: greatest value first, then by name.
    pub const BY_VALUE: [i16; 2] = [-3, 1];
}
/// `state`: lane, gen, folded_epoch, folds, deltas_folded, last_fold_at, last_fold_us, last_error,
/// last_error_at.
pub mod state {
    pub const COLUMNS: usize = 9;
    pub const KEY: [i16; 2] = [1, 2];
    pub const LANE: usize = 1;
    pub const GEN: usize = 2;
    pub const FOLDED_EPOCH: usize = 3;
}
/// `late`: name, delta, at, uses, kind.
pub mod late {
    pub const KEY: [i16; 1] = [1];
    pub const NAME: usize = 1;
    pub const DELTA: usize = 2;
    pub const USES: usize = 4;
    pub const KIND: usize = 5;
}
/// `token`: token, name, delta, value, at, hold.
pub mod token {
    pub const KEY: [i16; 1] = [1];
    pub const BY_AGE: [i16; 1] = [5];
    pub const NAME: usize = 2;
    pub const DELTA: usize = 3;
    pub const VALUE: usize = 4;
    pub const AT: usize = 5;
    pub const HOLD: usize = 6;
}

/// `type`: name, min, max, description, generation, tracked.
pub mod types {
    pub const NAME: usize = 1;
    pub const MIN: usize = 2;
    pub const MAX: usize = 3;
    pub const GENERATION: usize = 5;
    pub const TRACKED: usize = 6;
}

/// `hold`: id, name, amount, created_at, expires_at.
pub mod hold {
    pub const KEY: [i16; 1] = [1];
    pub const BY_NAME: [i16; 1] = [2];
    pub const BY_EXPIRY: [i16; 1] = [5];
    pub const ID: usize = 1;
    pub const NAME: usize = 2;
    pub const AMOUNT: usize = 3;
    pub const CREATED_AT: usize = 4;
    pub const EXPIRES_AT: usize = 5;
}
