//! Whose change of our tables it is. The tables' triggers refuse, check or ignore what others do to them by
//! SQL; what we do by SQL ourselves passes.

use std::cell::Cell;

thread_local! {
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
}

/// We are changing our own tables as long as this lives.
pub struct AtWork {
    before: bool,
}

impl AtWork {
    /// From now on.
    pub fn begin() -> Self {
        let before = AT_WORK.replace(true);
        Self { before }
    }
}

impl Drop for AtWork {
    /// Also on the way of an error.
    fn drop(&mut self) {
        AT_WORK.set(self.before);
    }
}

/// Is it we who are changing our tables?
pub fn is_at_work() -> bool {
    AT_WORK.get()
}
