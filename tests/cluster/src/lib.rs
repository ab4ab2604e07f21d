//! What the cluster tests share.
//!
//! The measure of every test here is the *oracle*: a plain table that a transaction writes its
//! deltas to beside the calls of `counter_incr`. Both commit or roll back together, so a counter
//! and the oracle's sum must be equal in every snapshot that anybody can take, whatever was
//! killed, folded, truncated or restored in between. No test needs to know how a transaction
//! ended that it lost sight of.
//!
//! - [`shared`] keeps one server for all tests of a file, [`create_database`] gives each its own
//!   database in it; in a cluster that is [`folding_hard`], a short load sees many folds;
//! - [`check()`] compares counters and oracle in the snapshot of one statement;
//! - [`Load`] is the traffic, [`under_watch`] runs it while checkers look on;
//!   [`changes_under_watch`] does so with all the ways to change a counter, [`BoundedLoad`] and
//!   [`bounded_under_watch`] with bounded counters, [`windowed_under_watch`] with ones that begin anew; [`mixed_under_watch`] does all of that at once;
//! - [`Consumer`] and [`Outside`] follow streams beside any of them, [`look_at_stream`] says whether they have missed
//!   something;
//! - [`settle`] waits until all is folded, [`footprint`] measures what that has come to;
//! - [`blocks`] and [`run_blocks`] take SQL out of the documents, and run it;
//! - [`Figures`] are what an exporter says of a database, [`lapse`] what they come to, [`firing`] which alerts that raises;
//! - [`Refusal`] is what a reader on a standby may meet instead of its answer.

mod amcheck;
mod bounded;
mod changes;
mod check;
mod control;
mod database;
mod folding;
mod history;
mod hits;
mod kill;
mod load;
mod logs;
mod mixed;
mod monitoring;
mod pages;
mod replica;
mod server;
mod streamed;
mod tracked;
mod windowed;

pub use amcheck::amcheck;
pub use bounded::{
    BoundedEnd, BoundedLoad, BoundedTraffic, bounded_under_watch, nothing_is_kept, prepare_bounded,
    within_bounds,
};
pub use changes::{ChangesTraffic, agree, changes_schema, changes_under_watch, totals_are_clean};
pub use check::{
    CHECK_SQL, Recovering, check, check_database, is_lost, refused, sqlstate, watch, watch_by,
};
pub use control::Control;
pub use database::{
    create_bare_database, create_database, names_in_lanes, oracle_schema, pages, wait_for_blocked,
};
pub use folding::{
    Footprint, compact, count_and_settle, count_workers, folds_and_empties, folds_often, folds_on,
    footprint, pause_folding, settle, turn_over, wait_for_no_worker, wait_for_pause,
    wait_for_worker,
};
pub use history::{
    Seen, buckets_agree, has_clock, histories, history_under_watch, look_at_history,
    prepare_history, run_clock, seconds_until, set_clock, set_server_clock,
};
pub use hits::{Book, Told, Way, hit_while, wait_for_hits};
pub use kill::{committing, kill_and_recover, victim};
pub use load::{
    Load, Maintenance, Outcome, Watched, resolve_orphans, resolve_prepared, resolve_prepared_where,
    seed, together, under_watch,
};
pub use logs::{bad_lines, nothing_crashed, nothing_crashed_by_itself};
pub use mixed::{Mixed, MixedEnd, mixed_under_watch, prepare_mixed};
pub use monitoring::{
    BETWEEN, Figures, Program, firing, get, lapse, monitoring, promtool, scrape_database,
};
pub use pages::{Block, blocks, checkout, page, run_blocks};
pub use replica::{Refusal, catch_up, same_at_last, undisturbed, wait_for_commits_to_wait};
pub use server::{DEADLINE, folding_hard, shared};
pub use streamed::{
    Consumed, Consumer, Outside, consume_beside, drain, is_busy, is_gone, look_at_stream,
    look_at_stream_twice, parse_position, streamed_schema,
};
pub use tracked::{
    LEVELS, TRACKED_TABLES, TRACKS, TrackedLoad, is_in_the_way, is_no_look, look_at_exact,
    no_drift, patiently, rows_agree, track, track_all, tracked_under_watch, tracks_have_triggers,
};
pub use windowed::{
    GROWING, Granted, Growing, WindowedTraffic, granted, look_at_windows, prepare_windowed,
    promise_holds, windowed_under_watch, windows_agree, windows_are_sound, windows_hold,
};
