//! What a worker does beside folding: it removes what has expired, of tokens, holds, windows and histories.

use crate::bounds::holds;
use crate::bounds::windows::Leaps;
use crate::fold::expiry;
use crate::fold::sealing;
use crate::fold::sweep::{self, Sweep};
use crate::pg::error::log;
use crate::pg::lock;
use crate::process::directory;
use crate::process::session;
use crate::process::uptime::Uptime;
use crate::settings;
use crate::store::expired::Batch;
use crate::write::token;
use crate::write::windows;
use counterx_core::schedule::{LaneClock, POLL};
use pgrx::pg_sys;
use std::time::Duration;

/// How often a worker looks for expired tokens, at least.
const TOKENS_EVERY: Duration = Duration::from_secs(10);

/// So many expired tokens are removed in one transaction: some milliseconds. Between two of them
/// lanes have their turn.
const TOKEN_BATCH: usize = 1000;

/// How often a worker looks for windows that are not kept any more, at least.
const WINDOWS_EVERY: Duration = Duration::from_secs(10);

/// So often it begins with them from the start.
const FORGET_WINDOWS_AFTER: Duration = Duration::from_secs(3600);

/// How often a worker looks for history that has expired.
const EXPIRY_EVERY: Duration = Duration::from_secs(10);

/// Between two steps of what is to be deleted at once.
const BREATH: Duration = Duration::from_millis(5);

/// How far that has come.
#[derive(Default)]
pub struct Upkeep {
    /// When what is not wanted of history is looked for, and whether that is to go on.
    expiry: LaneClock,
    sweep: Option<Sweep>,
    /// It has looked for that at least once.
    looked_for_expired: bool,
    tokens: LaneClock,
    /// It has looked for expired tokens at least once.
    looked_for_tokens: bool,
    tokens_removed: token::Progress,
    /// When windows are looked for that are not kept any more.
    windows: LaneClock,
    looked_for_windows: bool,
    windows_removed: windows::Progress,
    /// When it was forgotten last how far that has come: late deltas bring totals back.
    windows_since: Duration,
    /// There are some that could not be removed yet.
    windows_left: bool,
    /// It is said that they are not removed, as the clock has leapt.
    windows_leap: bool,
    /// Somebody had a lane's lease when they were to be removed, or history was to be deleted.
    windows_kept_out: bool,
    sweep_kept_out: bool,
    /// There is more of them, as far as that could be looked at.
    windows_go_on: bool,
    sweep_goes_on: bool,
}

impl Upkeep {
    /// Are there windows that could not be removed yet?
    pub fn has_windows_left(&self) -> bool {
        self.windows_left
    }

    /// Do ended windows stay until the clock is known to be right?
    pub fn has_windows_that_leap(&self) -> bool {
        self.windows_leap
    }

    /// Did somebody who folds keep it from removing windows or history?
    pub fn is_kept_out(&self) -> bool {
        self.windows_kept_out || self.sweep_kept_out
    }

    /// Tries again what it was kept from, and goes on with it. False: there is no more.
    pub fn try_again(&mut self, up: &mut Uptime) -> bool {
        if self.sweep_goes_on {
            self.delete_history(up);
        }
        if self.windows_go_on {
            self.remove_some_windows(up);
        }
        self.sweep_goes_on || self.windows_go_on
    }

    /// Removes tokens and holds that have expired, if it is time to.
    pub fn remove_tokens(&mut self, up: &Uptime) {
        // At the start of a turn, too: it may be shorter than the pause.
        let pause = TOKENS_EVERY.min(settings::token_ttl());
        if self.looked_for_tokens && !self.tokens.due(up.now(), pause) {
            return;
        }
        self.looked_for_tokens = true;
        let progress = &mut self.tokens_removed;
        let removed =
            session::transaction(
                c"removing what has expired",
                || match token::remove_expired(TOKEN_BATCH, progress) {
                    Batch::Done => holds::remove_expired(TOKEN_BATCH),
                    other => other,
                },
            );
        let now = up.now();
        match removed {
            // It stays due.
            Ok(Batch::More) => {}
            Ok(Batch::Done | Batch::Busy) => self.tokens.succeeded(now),
            Err(message) => {
                self.tokens.failed(now);
                self.tokens_removed = token::Progress::default();
                log(format!(
                    "counterx: removing expired tokens and holds failed: {message}"
                ));
            }
        }
    }

    /// Removes what is stored for windows that are not kept any more, some of it at a time.
    pub fn remove_windows(&mut self, up: &mut Uptime) {
        let now = up.now();
        if self.looked_for_windows && !self.windows.due(now, WINDOWS_EVERY) {
            return;
        }
        self.looked_for_windows = true;
        self.remove_some_windows(up);
    }

    fn remove_some_windows(&mut self, up: &mut Uptime) {
        let now = up.now();
        if now - self.windows_since > FORGET_WINDOWS_AFTER {
            self.windows_since = now;
            self.windows_removed = windows::Progress::default();
        }
        let trusted = up.is_clock_trusted();
        let progress = &mut self.windows_removed;
        let removed = session::transaction(c"removing windows that have ended", || {
            windows::remove_ended(trusted, progress)
        });
        let leaps = matches!(removed, Ok(Err(Leaps)));
        if leaps && !self.windows_leap {
            log(
                "counterx: ended windows of counters are not removed: the clock is more than an hour past the time at which they were looked for last; they will be when it has gone steadily for ten minutes",
            );
        }
        self.windows_leap = leaps;
        self.windows_kept_out = matches!(removed, Ok(Ok(Batch::Busy)));
        self.windows_go_on = matches!(removed, Ok(Ok(Batch::Busy | Batch::More)));
        // What leaps is looked at another time.
        match removed.map(|removed| removed.unwrap_or(Batch::Busy)) {
            // It stays due.
            Ok(Batch::More) => {
                self.windows_left = true;
                up.note_work();
            }
            Ok(Batch::Busy) => {
                self.windows_left = true;
                self.windows.succeeded(now);
            }
            Ok(Batch::Done) => {
                self.windows_left = false;
                self.windows.succeeded(now);
            }
            Err(message) => {
                self.windows.failed(now);
                self.windows_removed = windows::Progress::default();
                log(format!(
                    "counterx: removing windows that have ended failed: {message}"
                ));
            }
        }
    }

    /// Goes on with that, for some time; or until it is known that the clock is right, unless somebody else waits.
    pub fn remove_rest_of_windows(&mut self, up: &mut Uptime, database: pg_sys::Oid) {
        self.remove_windows(up);
        while self.windows_left && !lock::database_is_wanted() && settings::compaction() {
            let (asked, waiting) = directory::asked(database.to_u32().into());
            if asked || waiting > 0 {
                return;
            }
            session::wait(POLL);
            self.remove_windows(up);
            pgrx::check_for_interrupts!();
        }
    }

    /// Goes on with what is to be deleted, for some time.
    pub fn sweep_history(&mut self, up: &Uptime, database: pg_sys::Oid) {
        const PATIENCE: Duration = Duration::from_secs(30);
        let started = up.now();
        self.expire_history(up);
        while self.sweep.is_some()
            && up.now() - started < PATIENCE
            && !directory::asked(database.to_u32().into()).0
            && !lock::database_is_wanted()
            && settings::compaction()
        {
            session::wait(BREATH);
            self.expire_history(up);
        }
    }

    /// Deletes what has expired of histories, some of it at a time.
    pub fn expire_history(&mut self, up: &Uptime) {
        let now = up.now();
        let pause = match self.sweep {
            Some(_) => settings::compaction_interval(),
            None => EXPIRY_EVERY,
        };
        // At the start of a turn or a visit, too: it may be shorter than the pause.
        if self.looked_for_expired && !self.expiry.due(now, pause) {
            return;
        }
        self.looked_for_expired = true;
        self.delete_history(up);
    }

    fn delete_history(&mut self, up: &Uptime) {
        let now = up.now();
        let mut sweep = self.sweep.take();
        let done = (|| {
            if sweep.is_none() {
                let expired = session::transaction(c"expiring history", || {
                    sealing::next_end().is_some() && expiry::note_expired()
                })?;
                session::transaction(c"emptying history", expiry::empty_tables)?;
                sweep = Some(Sweep::new(expired));
            }
            let sweep = sweep.get_or_insert_default();
            session::transaction(c"deleting history", || sweep::step(sweep))
        })();
        self.sweep_kept_out = matches!(done, Ok(Batch::Busy));
        self.sweep_goes_on = matches!(done, Ok(Batch::Busy | Batch::More));
        match done {
            Ok(Batch::Done) => self.expiry.succeeded(now),
            // Busy: somebody folds.
            Ok(Batch::More | Batch::Busy) => {
                self.sweep = sweep;
                self.expiry.succeeded(now);
            }
            Err(message) => {
                self.expiry.failed(now);
                log(format!("counterx: expiring history failed: {message}"));
            }
        }
    }
}
