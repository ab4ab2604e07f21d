//! What a lock is for, as the server says it where somebody waits: in the context of its messages.
//!
//! A lock of ours is a number to the server. So while one is waited for, a callback adds a line to what
//! is said meanwhile: by `log_lock_waits`, by the deadlock detector, by a timeout.

use pgrx::pg_sys;
use std::cell::UnsafeCell;
use std::ffi::c_char;
use std::io::Write as _;

/// What is locked.
#[derive(Clone, Copy)]
pub enum Locked<'a> {
    /// A counter, by its name.
    Counter(&'a [u8]),
    /// A token.
    Token(&'a [u8]),
    /// A hold, by its id.
    Hold(i64),
    /// The ids of holds, all together.
    HoldIds,
}

/// Room for the longest name, and what is around it.
const ROOM: usize = 320;

/// The line and its callback. One of each: a process waits for one lock at a time.
struct Line {
    text: UnsafeCell<[u8; ROOM]>,
    callback: UnsafeCell<pg_sys::ErrorContextCallback>,
}

// SAFETY: a backend has one thread.
unsafe impl Sync for Line {}

static LINE: Line = Line {
    text: UnsafeCell::new([0; ROOM]),
    callback: UnsafeCell::new(pg_sys::ErrorContextCallback {
        previous: std::ptr::null_mut(),
        callback: Some(add_line),
        arg: std::ptr::null_mut(),
    }),
};

/// As long as this lives, messages say what is locked.
pub struct Waiting;

impl Waiting {
    /// From now on. Allocates nothing.
    pub fn enter(locked: Locked) -> Self {
        // SAFETY: nobody else uses the line now. The callback is a static; what it leads to is further
        // up the stack.
        unsafe {
            let text = &mut *LINE.text.get();
            // The last byte stays 0. A text that is too long is cut off.
            let mut rest = &mut text[..ROOM - 1];
            let _ = match locked {
                Locked::Counter(name) => write_quoted(&mut rest, "counter", name),
                Locked::Token(token) => write_quoted(&mut rest, "token", token),
                Locked::Hold(id) => write!(rest, "hold {id}"),
                Locked::HoldIds => write!(rest, "the ids of holds"),
            };
            rest.fill(0);
            let callback = LINE.callback.get();
            // An error that was caught by us, and not by the server, has left it there.
            if pg_sys::error_context_stack != callback {
                (*callback).previous = pg_sys::error_context_stack;
            }
            pg_sys::error_context_stack = callback;
        }
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // An error of the server's passes through the bindings, which raise it anew when it leaves us. So the
        // line stays for that, and whoever catches the error sets the stack to what he knows.
        if std::thread::panicking() {
            return;
        }
        // SAFETY: a static, on top of the stack.
        unsafe { pg_sys::error_context_stack = (*LINE.callback.get()).previous };
    }
}

fn write_quoted(rest: &mut &mut [u8], kind: &str, name: &[u8]) -> std::io::Result<()> {
    // As they are: the server's messages are in the database's encoding.
    write!(rest, "{kind} \"")?;
    rest.write_all(name)?;
    write!(rest, "\"")
}

unsafe extern "C-unwind" {
    // utils/elog.h; the bindings lack it
    fn errcontext_msg(format: *const c_char, ...) -> core::ffi::c_int;
}

/// Called by the server while it makes a message. No bindings, and nothing that has to be dropped.
unsafe extern "C-unwind" fn add_line(_arg: *mut core::ffi::c_void) {
    // SAFETY: a text that ends with a zero, for one %s.
    unsafe { errcontext_msg(c"while locking %s".as_ptr(), LINE.text.get()) };
}
