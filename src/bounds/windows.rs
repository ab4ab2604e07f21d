//! In which window a call counts, and which one a look shows.
//!
//! # Time
//! Who calls goes by the clock of the shared memory, which never goes back, and by what is on disk: up to when windows
//! may have been removed. After it has reserved and read, it looks again ([`Place::is_left`]), and begins anew where its
//! window is over: see `counterx_core::windows`.
//!
//! What is on disk matters where the clock in shared memory begins anew: after a restart, or a promotion. So it is read
//! once in a transaction; where there is no shared memory, and on a standby, at each look.
//!
//! Who looks goes by the same time in READ COMMITTED. A transaction that goes by one snapshot keeps to the time of its
//! first look, or of its last call where that is later: a snapshot that is older than that sees all windows that were
//! not removed by then.

use crate::bounds::accounts::{self, Partition};
use crate::bounds::limits::Renewal;
use crate::bounds::types;
use crate::bounds::windowed::Windowed;
use crate::pg::cell;
use crate::pg::clock;
use crate::pg::compat;
use crate::pg::ports;
use crate::pg::relation::Relation;
use crate::pg::room;
use crate::store::catalog;
use crate::store::tables;
use counterx_core::escrow::Bounds;
use counterx_core::history::{HOUR, MINUTE};
use counterx_core::names::NameRange;
use counterx_core::windows::{self, Kind, Prefix, Refused, Shown, StoredName, Window};
use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::rc::Rc;

/// What is on disk: up to when windows may have been removed, and when somebody has looked for such windows.
fn cell() -> Relation {
    tables::open(catalog::relation_of("window_clock"))
}

/// What the running transaction has gone by.
#[derive(Clone, Copy)]
struct Known {
    /// Its number: what is known of another one is nothing.
    transaction: u32,
    /// Up to when windows may have been removed; None: not read yet.
    removed: Option<i64>,
    /// The time of its last call, or of its first look where it goes by one snapshot.
    last: Option<i64>,
}

thread_local! {
    static KNOWN: Cell<Known> = const {
        Cell::new(Known {
            transaction: 0,
            removed: None,
            last: None,
        })
    };
}

fn known() -> Known {
    let transaction = compat::local_transaction();
    let known = KNOWN.get();
    if known.transaction == transaction {
        known
    } else {
        Known {
            transaction,
            removed: None,
            last: None,
        }
    }
}

/// The time now.
fn now(known: &mut Known) -> i64 {
    let is_shared = Partition::of(0).is_some() && !ports::recovery_in_progress();
    let removed = match known.removed.filter(|_| is_shared) {
        Some(removed) => removed,
        None => {
            let [removed, _] = cell::read(&cell());
            // What is read in recovery says nothing of the time after it.
            known.removed = is_shared.then_some(removed);
            removed
        }
    };
    windows::time(accounts::window_clock(), removed, known.last)
}

/// Where a call counts, or what a look shows.
pub struct Place {
    windowed: Rc<Windowed>,
    /// Looked up before anything.
    time: i64,
    window: Window,
    stored: StoredName,
}

impl Place {
    /// Of a call of this moment.
    ///
    /// # Errors
    /// Raises 22023 for a name that a counter of such a type cannot have.
    pub fn of(name: &[u8], windowed: &Rc<Windowed>) -> Self {
        let mut known = known();
        let time = now(&mut known);
        known.last = Some(time);
        KNOWN.set(known);
        let (window, stored) = windowed.stored(name, time);
        Self {
            windowed: Rc::clone(windowed),
            time,
            window,
            stored,
        }
    }

    /// The name that the counter has in its window.
    pub fn name(&self) -> &[u8] {
        self.stored.get()
    }

    /// Is its window over? To be asked when all is reserved and read.
    pub fn is_left(&self) -> bool {
        let mut known = known();
        let time = now(&mut known);
        KNOWN.set(known);
        !self.window.contains(time)
    }

    /// When it begins anew, for a call that was not granted.
    pub fn renewal(&self, refused: &Refused) -> Renewal {
        let next = self.windowed.after(self.window);
        let time = now(&mut known());
        let retry_at =
            next.and_then(|next| refused.retry_at(self.windowed.kind(), self.window, next, time));
        Renewal {
            ends_at: self.window.end,
            retry_at,
            ahead: time.saturating_sub(clock::now()),
        }
    }

    /// Does what was counted in the window before count still?
    pub fn is_sliding(&self) -> bool {
        self.windowed.kind() == Kind::Sliding
    }

    /// The name that the counter has in the window before, if that counts still.
    pub fn name_before(&self, name: &[u8]) -> Option<StoredName> {
        if !self.is_sliding() {
            return None;
        }
        let before = self.windowed.before(self.window)?;
        Some(self.windowed.stored_in(name, before))
    }

    /// The bounds that are left for the window, where so much was counted in the one before.
    pub fn limited(&self, bounds: Bounds, before: i128) -> Bounds {
        let limit = |max| self.window.limit(max, before, self.time);
        match self.is_sliding() {
            true => Bounds {
                max: bounds.max.map(limit),
                ..bounds
            },
            false => bounds,
        }
    }

    /// The window.
    pub fn window(&self) -> Window {
        self.window
    }

    /// The names that the counter has in windows before this one, which are kept; the last one first.
    pub fn before(&self, name: &[u8]) -> Vec<(Window, StoredName)> {
        let kept = self.windowed.kept(self.window.start);
        kept.into_iter()
            .map(|window| (window, self.windowed.stored_in(name, window)))
            .collect()
    }
}

/// One look at counters, of however many: all by one time.
#[derive(Default)]
pub struct Look(OnceCell<i64>);

impl Look {
    fn time(&self) -> i64 {
        *self.0.get_or_init(|| {
            let mut known = known();
            let is_fixed = ports::isolation_uses_xact_snapshot();
            let time = match known.last.filter(|_| is_fixed) {
                Some(last) => last,
                None => now(&mut known),
            };
            if is_fixed {
                known.last = Some(time);
            }
            KNOWN.set(known);
            time
        })
    }

    /// The window of a counter that is shown. None: its type has none.
    ///
    /// # Errors
    /// As of [`Place::of`].
    pub fn place(&self, name: &[u8]) -> Option<Place> {
        let windowed = types::window_of(name)?;
        let time = self.time();
        let (window, stored) = windowed.stored(name, time);
        Some(Place {
            windowed,
            time,
            window,
            stored,
        })
    }

    /// The name that is read for a counter.
    ///
    /// # Errors
    /// As of [`Place::of`].
    pub fn name<'a>(&self, name: &'a [u8]) -> Cow<'a, [u8]> {
        match self.place(name) {
            Some(place) => Cow::Owned(place.name().to_vec()),
            None => Cow::Borrowed(name),
        }
    }

    /// Which names are shown of all that are stored.
    pub fn shown(&self) -> Shown {
        let windows = types::all_windows();
        let prefixes = windows.iter().map(|windowed| windowed.prefix(self.time()));
        Shown::new(room::collect(prefixes))
    }
}

/// What stored names of a type begin with that has windows: those of the one that is running now, and of later ones, are
/// no less.
pub fn running(type_name: &[u8]) -> Option<Prefix> {
    let windowed = types::window_of_type(type_name)?;
    Some(windowed.prefix(now(&mut known())))
}

/// The windows of a type that are not kept any more.
pub struct Ended {
    /// The names that they are stored as.
    pub names: NameRange,
    /// The first one that is kept begins then.
    pub before: i64,
}

/// The clock is further ahead than it was looked at last than one that is not known to be right may be.
pub struct Leaps;

/// So far a clock goes without somebody's word that it is right.
const LEAP: i64 = HOUR;

/// So often it is noted that somebody has looked.
const NOTED_EVERY: i64 = MINUTE;

/// Is there a type with a window?
pub fn are_any() -> bool {
    !types::all_windows().is_empty()
}

/// All windows that are not kept any more at this moment.
///
/// # Errors
/// [`Leaps`] when the clock may be wrong: what is removed does not come back when it is set right.
pub fn ended(clock_is_trusted: bool) -> Result<Vec<Ended>, Leaps> {
    let windows = types::all_windows();
    // By no more than the server's clock shows now. What others have gone by may be what a clock has shown that was
    // wrong, and was set right: how steadily that goes now says nothing of it.
    let time = now(&mut known()).min(clock::now());
    let [_, looked] = cell::read(&cell());
    let is_known = looked != i64::MIN;
    if is_known && time.saturating_sub(looked) > LEAP && !clock_is_trusted {
        return Err(Leaps);
    }
    if !is_known || time.saturating_sub(looked) > NOTED_EVERY {
        cell::update(&cell(), |[removed, looked]| [removed, looked.max(time)]);
    }
    let ended = windows.iter().filter_map(|windowed| {
        let (names, before) = windowed.ended(time)?;
        Some(Ended { names, before })
    });
    Ok(room::collect(ended))
}

/// The server's clock was ahead, and is right now: whoever calls goes by it again. Returns what it shows. What was counted
/// in windows that are removed is gone, and may be counted once more.
pub fn reset_clock() -> i64 {
    let now = accounts::set_window_clock_back();
    cell::update(&cell(), |[removed, looked]| {
        [removed.min(now), looked.min(now)]
    });
    KNOWN.set(Known {
        removed: None,
        last: None,
        ..known()
    });
    now
}

/// Up to when windows may have been removed; None: none has been.
pub fn removed() -> Option<i64> {
    let [removed, _] = cell::read(&cell());
    (removed != i64::MIN).then_some(removed)
}

/// To be called before anything is removed of what is stored for windows that begin before this time.
pub fn note_removed(before: i64) {
    cell::update(&cell(), |[removed, looked]| [removed.max(before), looked]);
}

/// Which names are shown of all that are stored, by a look of this moment.
pub fn shown() -> Shown {
    Look::default().shown()
}
