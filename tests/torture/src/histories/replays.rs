//! Histories that have failed once, or are the shortest of their kind; played in each run.

use super::step::{Level, Op, Step};
use super::stepped::{History, Turn};

/// What each is about, and the history.
pub(crate) fn histories() -> Vec<(&'static str, History)> {
    let set = |value| Op::Set("s:0".to_owned(), value);
    let bump = |delta| Op::Bump("u:0".to_owned(), delta);
    // All there is.
    let take = || Op::Take("stock:b".to_owned(), 1_000);
    let once = || Op::Once {
        token: "shared 1".to_owned(),
        name: "s:1".to_owned(),
        delta: 2,
        get: false,
    };
    let filled = Op::Bump("stock:b".to_owned(), 3);
    vec![
        (
            "a later FETCH fails, and what an earlier one has locked stays locked",
            by_cursor(
                vec![set(Some(3)), set(Some(100))],
                vec![set(None)],
                &set(None),
            ),
        ),
        (
            "a later FETCH fails, and a token that an earlier one has used stays used",
            by_cursor(vec![], vec![once()], &once()),
        ),
        (
            "a later FETCH fails, and what an earlier one has taken stays taken",
            by_cursor(vec![filled.clone()], vec![take()], &take()),
        ),
        (
            "a later FETCH fails, and what an earlier one has written early is not lost",
            by_cursor(vec![], vec![bump(5), Op::Overflow(0)], &bump(2)),
        ),
        (
            "the same in PL/pgSQL: locks",
            by_block(
                vec![set(Some(100))],
                vec![set(None), bump(1)],
                1,
                &set(None),
            ),
        ),
        (
            "the same in PL/pgSQL: takes",
            by_block(vec![filled], vec![take(), bump(1)], 1, &take()),
        ),
        (
            "the same in PL/pgSQL: increments that are written early",
            by_block(vec![], vec![bump(5), Op::Overflow(0), bump(1)], 2, &bump(2)),
        ),
    ]
}

/// One session fetches these, and then a row that fails, in a savepoint; another one does something to
/// the same counter, there are folds, and both go on.
fn by_cursor(before: Vec<Op>, ops: Vec<Op>, other: &Op) -> History {
    let rows = ops.len();
    let next = |rows| Step::Next { rows, moves: false };
    let steps = vec![
        Step::Change { ops, fails: true },
        next(rows),
        Step::Savepoint,
        next(1),
        Step::RollbackTo(1),
    ];
    around(before, steps, other)
}

fn by_block(before: Vec<Op>, ops: Vec<Op>, kept: usize, other: &Op) -> History {
    around(before, vec![Step::Block { ops, kept }], other)
}

fn around(before: Vec<Op>, steps: Vec<Step>, other: &Op) -> History {
    let fold = || Turn::Upkeep("SELECT counterx.compact()".to_owned());
    let level = Level::ReadCommitted;
    let mut turns: Vec<Turn> = before
        .into_iter()
        .map(|op| Turn::Session(1, Step::Alone(op)))
        .collect();
    turns.push(fold());
    let begin = Step::Begin {
        level,
        journal: true,
    };
    turns.push(Turn::Session(0, begin));
    turns.extend(steps.into_iter().map(|step| Turn::Session(0, step)));
    turns.extend([
        fold(),
        Turn::Session(1, Step::Alone(other.clone())),
        fold(),
        Turn::Session(0, Step::Op(Op::Look)),
        Turn::Session(0, Step::Commit),
        fold(),
        fold(),
        Turn::Session(1, Step::Alone(Op::Bump("u:0".to_owned(), 1))),
        fold(),
    ]);
    History { sessions: 2, turns }
}
