//! Rounds that have failed once, played in each run.

use super::plan::{Call, Counter, Kind, Plan, Turn};

/// What each is about, and the round.
pub(super) fn rounds() -> Vec<(&'static str, Plan)> {
    let add = |kind| match kind {
        Kind::Ceiling => -1,
        _ => 1,
    };
    let by = |kind, call, after| older_grant(kind, add(kind), call, after);
    vec![
        (
            "a take of what came after the snapshot",
            by(Kind::Floor, Call::Try(0, -1), Call::Value(0)),
        ),
        (
            "counter_take_up_to of what came after the snapshot",
            by(Kind::Floor, Call::Take(0, 1), Call::Row(0)),
        ),
        (
            "a decrement by what came after the snapshot",
            by(Kind::Floor, Call::Incr(0, -1), Call::Row(0)),
        ),
        (
            "a hold of what came after the snapshot",
            by(Kind::Floor, Call::Hold(0, 1), Call::Row(0)),
        ),
        (
            "an increment into room that came after the snapshot",
            by(Kind::Ceiling, Call::Incr(0, 1), Call::Row(0)),
        ),
    ]
}

/// One transaction has its snapshot, and has read a row; another changes the row and the counter, so it
/// comes after the first one; and then the first one gets what it can have only after the second.
fn older_grant(kind: Kind, change: i64, call: Call, after: Call) -> Plan {
    let turn = |client, call| Turn::Call {
        client,
        call,
        guarded: false,
    };
    let start = kind.max().unwrap_or(0);
    Plan {
        serializable: true,
        counters: vec![Counter {
            kind,
            folded: None,
            pending: (start > 0).then_some(start),
        }],
        holds: Vec::new(),
        rows: 1,
        tokens: Vec::new(),
        clients: 2,
        read_only: vec![false; 2],
        turns: vec![
            turn(0, Call::Row(0)),
            turn(1, Call::Update(0, 1)),
            turn(1, Call::Incr(0, change)),
            Turn::Commit(1),
            turn(0, call),
            turn(0, after),
            Turn::Commit(0),
        ],
    }
}
