//! Rounds that have failed once, played in each run.

use super::plan::{Call, Counter, Features, Kind, Plan, Turn};

/// What each is about, and the round.
pub(super) fn rounds() -> Vec<(&'static str, Plan)> {
    let floor = |call, after| late(Kind::Floor, 0, Call::Incr(0, 1), &[call, after]);
    let looks = [Call::Row(0), Call::Value(0)];
    vec![
        (
            "a take of what came after the snapshot",
            floor(Call::Try(0, -1), looks[1]),
        ),
        (
            "counter_take_up_to of what came after the snapshot",
            floor(Call::Take(0, 1), looks[0]),
        ),
        (
            "a decrement by what came after the snapshot",
            floor(Call::Incr(0, -1), looks[0]),
        ),
        (
            "a hold of what came after the snapshot",
            floor(Call::Hold(0, 1), looks[0]),
        ),
        (
            "an increment into room that came after the snapshot",
            late(Kind::Ceiling, 4, Call::Incr(0, -1), &[Call::Incr(0, 1)]),
        ),
        (
            "a take of what came after the snapshot, in REPEATABLE READ",
            Plan {
                serializable: false,
                ..floor(Call::Try(0, -1), looks[1])
            },
        ),
        (
            "a refusal by a hold that came after the snapshot",
            late(Kind::Floor, 1, Call::Hold(0, 1), &[Call::Try(0, -1)]),
        ),
        (
            "a hold that was released after the snapshot is not there",
            held(late(Kind::Floor, 1, Call::Release(0), &[Call::Release(0)])),
        ),
        (
            "a hold that was confirmed after the snapshot is not there",
            held(late(
                Kind::Floor,
                1,
                Call::Confirm(0, None),
                &[Call::Confirm(0, None)],
            )),
        ),
        (
            "a drop takes what its own transaction has set aside",
            alone(3, &[Call::Hold(0, 2), Call::Drop(0)]),
        ),
    ]
}

/// One transaction has its snapshot, and has read a row; another changes the row and the counter, so it
/// comes after the first one; and then the first one goes on.
fn late(kind: Kind, value: i64, change: Call, then: &[Call]) -> Plan {
    let turn = |client, call| Turn::Call {
        client,
        call,
        guarded: true,
    };
    let mut turns = vec![
        turn(0, Call::Row(0)),
        turn(1, Call::Update(0, 1)),
        turn(1, change),
        Turn::Commit(1),
    ];
    turns.extend(then.iter().map(|call| turn(0, *call)));
    turns.push(Turn::Commit(0));
    Plan {
        serializable: true,
        features: Features::Holds,
        counters: vec![Counter {
            kind,
            folded: None,
            pending: (value > 0).then_some(value),
        }],
        holds: Vec::new(),
        rows: 1,
        tokens: Vec::new(),
        clients: 2,
        read_only: vec![false; 2],
        turns,
    }
}

/// One transaction only.
fn alone(value: i64, calls: &[Call]) -> Plan {
    let mut plan = late(Kind::Floor, value, Call::Value(0), calls);
    let others = |turn: &Turn| matches!(turn, Turn::Call { client: 1, .. } | Turn::Commit(1));
    plan.turns.retain(|turn| !others(turn));
    plan
}

/// With one unit on hold.
fn held(plan: Plan) -> Plan {
    Plan {
        holds: vec![(0, 1)],
        ..plan
    }
}
