//! Column numbers, as of `sql/tables.sql`.

/// What the column `kind` of logs and `late` has. Null is an increment.
pub mod kind {
    /// An adjustment.
    pub const ADJUSTMENT: i8 = b'a' as i8;
    /// An increment that was written before the end of a subtransaction: the row's xmin is not the
    /// transaction's id.
    pub const EARLY: i8 = b'e' as i8;
    /// The same of an adjustment.
    pub const EARLY_ADJUSTMENT: i8 = b'f' as i8;
    /// An adjustment that takes the counter's history with it.
    pub const PURGE: i8 = b'p' as i8;
    /// What a restore brings, in `late` alone: the value of a counter that was counted elsewhere.
    pub const RESTORED: i8 = b'r' as i8;
}

/// `log_*`: epoch, at, delta, name, uses, kind.
pub mod log {
    pub const KEY: [i16; 2] = [1, 4];
    pub const EPOCH: usize = 1;
    pub const AT: usize = 2;
    pub const DELTA: usize = 3;
    pub const NAME: usize = 4;
    pub const USES: usize = 5;
    pub const KIND: usize = 6;
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
/// last_error_at, sealed_until, counted_until.
pub mod state {
    pub const COLUMNS: usize = 11;
    pub const SEALED: usize = 10;
    pub const COUNTED: usize = 11;
    pub const KEY: [i16; 2] = [1, 2];
    pub const LANE: usize = 1;
    pub const GEN: usize = 2;
    pub const FOLDED_EPOCH: usize = 3;
    pub const FOLDS: usize = 4;
}
/// `late`: name, delta, at, uses, kind.
pub mod late {
    pub const KEY: [i16; 1] = [1];
    pub const NAME: usize = 1;
    pub const DELTA: usize = 2;
    pub const AT: usize = 3;
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

/// `type`: name, min, max, description, generation, tracked, per, zone, kept, sliding, count_refused, removed_until.
pub mod types {
    pub const NAME: usize = 1;
    pub const MIN: usize = 2;
    pub const MAX: usize = 3;
    pub const GENERATION: usize = 5;
    pub const TRACKED: usize = 6;
    pub const PER: usize = 7;
    pub const ZONE: usize = 8;
    pub const KEPT: usize = 9;
    pub const SLIDING: usize = 10;
    pub const COUNT_REFUSED: usize = 11;
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

/// `history`: id, type, unit, keep, class, zone, since, complete.
pub mod history {
    pub const ID: usize = 1;
    pub const TYPE: usize = 2;
    pub const UNIT: usize = 3;
    pub const KEEP: usize = 4;
    pub const CLASS: usize = 5;
    pub const ZONE: usize = 6;
    pub const SINCE: usize = 7;
    pub const COMPLETE: usize = 8;
}

/// `history_class`: history, class, until.
pub mod history_class {
    pub const HISTORY: usize = 1;
    pub const CLASS: usize = 2;
    pub const UNTIL: usize = 3;
}

/// `history_lane`: history, lane, epoch, at, since.
pub mod history_lane {
    pub const KEY: [i16; 2] = [1, 2];
    pub const HISTORY: usize = 1;
    pub const LANE: usize = 2;
    pub const EPOCH: usize = 3;
    pub const AT: usize = 4;
    pub const SINCE: usize = 5;
}

/// `expired`: class, through.
pub mod expired {
    pub const KEY: [i16; 1] = [1];
    pub const CLASS: usize = 1;
    pub const THROUGH: usize = 2;
}

/// `bucket_*`: history, start, changes, name, value, delta, adjusted, ups, downs.
pub mod bucket {
    pub const COLUMNS: usize = 9;
    pub const KEY: [i16; 3] = [4, 1, 2];
    pub const HISTORY: usize = 1;
    pub const START: usize = 2;
    pub const CHANGES: usize = 3;
    pub const NAME: usize = 4;
    pub const VALUE: usize = 5;
    pub const DELTA: usize = 6;
    pub const ADJUSTED: usize = 7;
    pub const UPS: usize = 8;
    pub const DOWNS: usize = 9;
}

/// `stream`: name, prefix, mode, keep, notify, publish, consumer, created_at.
pub mod stream {
    pub const NAME: usize = 1;
    pub const PREFIX: usize = 2;
    pub const MODE: usize = 3;
    pub const KEEP: usize = 4;
    pub const NOTIFY: usize = 5;
    pub const PUBLISH: usize = 6;
    pub const CONSUMER: usize = 7;
}

/// `alert`: id, name, prefix, below, above, rearm, stream, created_at.
pub mod alert {
    pub const ID: usize = 1;
    pub const NAME: usize = 2;
    pub const PREFIX: usize = 3;
    pub const BELOW: usize = 4;
    pub const ABOVE: usize = 5;
    pub const REARM: usize = 6;
    pub const STREAM: usize = 7;
}

/// `cursor`: stream, lane, fold, seq, era, incarnation, lost_reason.
pub mod cursor {
    pub const KEY: [i16; 2] = [1, 2];
    pub const STREAM: usize = 1;
    pub const LANE: usize = 2;
    pub const FOLD: usize = 3;
    pub const SEQ: usize = 4;
    pub const ERA: usize = 5;
    pub const INCARNATION: usize = 6;
    pub const LOST_REASON: usize = 7;
}

/// `alert_state`: alert, name, lane, value, since.
pub mod alert_state {
    pub const KEY: [i16; 2] = [2, 1];
    pub const ALERT: usize = 1;
    pub const LANE: usize = 3;
}

/// `alert_lane`: alert, lane, fired, last_fired_at.
pub mod alert_lane {
    pub const KEY: [i16; 2] = [1, 2];
    pub const ALERT: usize = 1;
    pub const LANE: usize = 2;
    pub const FIRED: usize = 3;
    pub const LAST_FIRED_AT: usize = 4;
}

/// `change_*`: fold, seq, at, name, delta, value, kind, alert, stream.
pub mod change {
    pub const KEY: [i16; 2] = [1, 2];
    pub const FOLD: usize = 1;
    pub const SEQ: usize = 2;
    pub const AT: usize = 3;
    pub const NAME: usize = 4;
    pub const DELTA: usize = 5;
    pub const VALUE: usize = 6;
    pub const KIND: usize = 7;
    pub const ALERT: usize = 8;
    pub const STREAM: usize = 9;
    pub const COLUMNS: usize = 9;
}
