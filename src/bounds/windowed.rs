//! The window of a counter type: how long it is, and which one is running.

use crate::pg::error::{quoted, raise, report};
use crate::pg::memory::MemoryScope;
use crate::pg::time::Calendar;
use counterx_core::history::Unit;
use counterx_core::names::NameRange;
use counterx_core::windows::{
    self, BadName, Kind, Length, MAX_WINDOWED_BYTES, Prefix, StoredName, Window,
};
use pgrx::{PgSqlErrorCode, pg_sys};
use std::cell::{Cell, RefCell};

/// What is known of a type with a window.
pub struct Windowed {
    type_name: Box<[u8]>,
    length: Length,
    kind: Kind,
    /// Of days and months.
    zone: Box<[u8]>,
    /// So many windows before the running one are kept.
    kept: u32,
    /// A request that is refused counts as well.
    counts_refused: bool,
    /// The one that was looked at last, and what stored names begin with in it.
    known: RefCell<Option<(Window, Prefix)>>,
    /// What was looked up last of the windows beside one.
    beside: Cell<Option<Beside>>,
    /// The window that was running when it was looked which ones have ended, and when the first one began that was kept
    /// then. To count a thousand days back takes milliseconds, and the worker looks every few seconds.
    first_kept: Cell<Option<(Window, i64)>>,
}

/// The windows beside one.
#[derive(Clone, Copy)]
struct Beside {
    window: Window,
    before: Option<Window>,
    after: Option<Window>,
}

impl Windowed {
    /// Of a type.
    pub fn new(
        type_name: &[u8],
        (length, kind): (Length, Kind),
        zone: &[u8],
        kept: u32,
        counts_refused: bool,
    ) -> Self {
        Self {
            type_name: type_name.into(),
            length,
            kind,
            zone: zone.into(),
            kept,
            counts_refused,
            known: RefCell::new(None),
            first_kept: Cell::new(None),
            beside: Cell::new(None),
        }
    }

    /// What stored names begin with in the window that a time is in.
    ///
    /// # Errors
    /// Raises 22008 for a time that is out of all windows.
    pub fn prefix(&self, time: i64) -> Prefix {
        self.with_known(time, |_, prefix| prefix.clone())
    }

    /// The type.
    pub fn type_name(&self) -> &[u8] {
        &self.type_name
    }

    /// The window that a time is in, and how a counter of the type is stored in it.
    ///
    /// # Errors
    /// Raises 22023 for a name that such a counter cannot have, 22008 for a time that is out of all windows.
    pub fn stored(&self, name: &[u8], time: i64) -> (Window, StoredName) {
        self.with_known(time, |window, prefix| (window, stored_by(prefix, name)))
    }

    fn with_known<T>(&self, time: i64, act: impl FnOnce(Window, &Prefix) -> T) -> T {
        let mut known = self.known.borrow_mut();
        let is_known = known
            .as_ref()
            .is_some_and(|(window, _)| window.contains(time));
        if !is_known {
            *known = None;
        }
        let (window, prefix) = known.get_or_insert_with(|| self.look_up(time));
        act(*window, prefix)
    }

    /// The windows that are kept at a time, before the one that it is in: the last one first.
    pub fn kept(&self, time: i64) -> Vec<Window> {
        self.with_calendar(|calendar| {
            let mut next = Window::at(self.length, calendar, time);
            let before = std::iter::from_fn(|| {
                next = next?.before(self.length, calendar);
                next
            });
            before.take(self.kept as usize).collect()
        })
    }

    /// What is stored for windows that are not kept any more at a time, and when the first one begins that is. None: the
    /// time is out of all windows.
    pub fn ended(&self, time: i64) -> Option<(NameRange, i64)> {
        let known = self.first_kept.get().filter(|(it, _)| it.contains(time));
        let (_, first) = known.or_else(|| {
            let found = self.with_calendar(|calendar| {
                let running = Window::at(self.length, calendar, time)?;
                // Others may go by the rules of a zone as they were: one more is kept of days and months.
                let kept = self.kept + u32::from(self.length.needs_zone());
                Some((running, running.first_kept(kept, self.length, calendar)))
            });
            self.first_kept.set(found);
            found
        })?;
        Some((windows::ended(&self.type_name, first)?, first))
    }

    /// What it does at its end.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Does a request count that is refused? Then the maximum is one of what is granted, and not of the value.
    pub fn counts_refused(&self) -> bool {
        self.counts_refused
    }

    /// The window before another one.
    pub fn before(&self, window: Window) -> Option<Window> {
        self.beside(window).before
    }

    /// The window after another one.
    pub fn after(&self, window: Window) -> Option<Window> {
        self.beside(window).after
    }

    /// Each call that is refused asks for it, and a calendar takes some thousand instructions.
    fn beside(&self, window: Window) -> Beside {
        if let Some(known) = self.beside.get()
            && known.window == window
        {
            return known;
        }
        let found = self.with_calendar(|calendar| Beside {
            window,
            before: window.before(self.length, calendar),
            after: window.after(self.length, calendar),
        });
        self.beside.set(Some(found));
        found
    }

    /// How a counter is stored in one of its windows.
    ///
    /// # Errors
    /// As of [`Windowed::stored`].
    pub fn stored_in(&self, name: &[u8], window: Window) -> StoredName {
        let prefix = Prefix::new(&self.type_name, window.start);
        let prefix = prefix.unwrap_or_else(|| self.raise_out_of_windows());
        stored_by(&prefix, name)
    }

    /// # Errors
    /// Raises 22023 for a name that no such counter can have.
    pub fn check_name(&self, name: &[u8]) {
        if let Some(prefix) = Prefix::new(&self.type_name, 0) {
            stored_by(&prefix, name);
        }
    }

    fn look_up(&self, time: i64) -> (Window, Prefix) {
        let window = self.with_calendar(|calendar| Window::at(self.length, calendar, time));
        let found =
            window.and_then(|window| Some((window, Prefix::new(&self.type_name, window.start)?)));
        found.unwrap_or_else(|| self.raise_out_of_windows())
    }

    fn raise_out_of_windows(&self) -> ! {
        raise(
            report(
                PgSqlErrorCode::ERRCODE_DATETIME_FIELD_OVERFLOW,
                format!(
                    "the time is out of all windows of counter type {}",
                    quoted(&self.type_name)
                ),
            )
            .set_hint("Windows begin from 1970 to 2286. Set the server's clock right."),
        )
    }

    fn with_calendar<T>(&self, look: impl FnOnce(&mut Days) -> T) -> T {
        let unit = match self.length {
            Length::Fixed(_) => return look(&mut Days(None)),
            Length::Day => Unit::Day,
            Length::Month => Unit::Month,
        };
        // SAFETY: what leaves the scope are numbers.
        let _scope = unsafe { MemoryScope::enter(pg_sys::CurrentMemoryContext) };
        look(&mut Days(Some(Calendar::new(unit, &self.zone))))
    }
}

/// Where windows of days and months begin. Nobody asks for others.
struct Days(Option<Calendar>);

impl windows::Calendar for Days {
    fn start_of(&mut self, time: i64) -> i64 {
        (self.0.as_mut()).map_or(time, |calendar| calendar.start_of(time))
    }

    fn end_of(&mut self, start: i64) -> i64 {
        (self.0.as_mut()).map_or(start, |calendar| calendar.end_of(start))
    }
}

fn stored_by(prefix: &Prefix, name: &[u8]) -> StoredName {
    (prefix.stored(name)).unwrap_or_else(|why| raise_bad_name(name, why))
}

fn raise_bad_name(name: &[u8], why: BadName) -> ! {
    let (message, hint) = match why {
        BadName::TooLong => (
            format!(
                "name of a counter with a window is too long: {} bytes",
                name.len()
            ),
            format!("It has {MAX_WINDOWED_BYTES} bytes at most, as the window is stored with it."),
        ),
        BadName::Separator => (
            format!(
                "name of a counter with a window has a character that it must not have: {}",
                quoted(name)
            ),
            "The character is chr(1). Leave it out.".to_owned(),
        ),
    };
    raise(report(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message).set_hint(hint))
}
