//! Tests that run inside of the server, each in a transaction that is rolled back: for what is in
//! memory, in one transaction, or below the SQL surface. The rest of what SQL can say is in
//! `tests/regress`; whatever needs a commit, or a second session, is in `tests/isolation` and
//! `tests/cluster`.

#[pgrx::pg_schema]
mod tests {
    use crate::bounds::types;
    use crate::pg::key_text::KeyType;
    use crate::pg::memory::{MemoryArena, MemorySwitch};
    use crate::pg::number;
    use crate::pg::varlena::NameText;
    use crate::read::reader;
    use crate::store::catalog;
    use crate::store::gate;
    use crate::store::tables;
    use crate::transaction::pending;
    use counterx_core::lane::{LANES, MAX_NAME_BYTES, NameHash};
    use counterx_core::parts::{NameBuilder, TypeName};
    use pgrx::prelude::*;
    use std::collections::BTreeMap;

    /// What the running transaction holds in memory.
    fn pending() -> BTreeMap<String, i64> {
        let mut pending = BTreeMap::new();
        pending::for_each_pending(|name, tally| {
            let delta = i64::try_from(tally.value).unwrap();
            pending.insert(String::from_utf8_lossy(name).into_owned(), delta);
        });
        pending
    }

    fn pending_of(name: &str) -> Option<i64> {
        let tally = pending::pending_tally(NameHash::of(name.as_bytes()), name.as_bytes())?;
        i64::try_from(tally.value).ok()
    }

    fn value_of(name: &str) -> Option<i64> {
        Spi::get_one_with_args("SELECT counter_value($1)", &[name.into()]).unwrap()
    }

    /// More than the least `counterx.pending_work_mem`, so that most of it is written at once.
    const FLUSH_EARLY: &str = "SET LOCAL counterx.pending_work_mem = '64kB'; \
        SELECT count(counter_incr('early:' || i || repeat('.', 180), i)) FROM generate_series(1, 1000) i";

    /// What a trigger does for each of millions of rows leaves nothing behind before the end of its query.
    #[pg_test]
    fn texts_of_parts_take_no_memory() {
        let values: [(&str, pg_sys::Oid, &str); 9] = [
            ("42::bigint", pg_sys::INT8OID, "t:42"),
            ("true", pg_sys::BOOLOID, "t:true"),
            ("'a:b'::text", pg_sys::TEXTOID, "t:a%3Ab"),
            ("'b  '::char(5)", pg_sys::BPCHAROID, "t:b"),
            ("1.0::numeric", pg_sys::NUMERICOID, "t:1"),
            ("-1.50::numeric", pg_sys::NUMERICOID, "t:-1.5"),
            ("'2026-11-27'::date", pg_sys::DATEOID, "t:2026-11-27"),
            ("'::1'::inet", pg_sys::INETOID, "t:%3A%3A1"),
            ("repeat('x', 300)", pg_sys::TEXTOID, "t:%~"),
        ];
        for (sql, of, expected) in values {
            let key = KeyType::of(of).unwrap();
            Spi::connect(|client| {
                let rows = client.select(&format!("SELECT {sql}"), None, &[]).unwrap();
                let value: pgrx::AnyElement = rows.first().get_one().unwrap().unwrap();
                let mut name = NameBuilder::default();
                let mut make = || {
                    name.begin(TypeName::new(b"t").unwrap());
                    // SAFETY: the value is of the type.
                    unsafe { key.append(value.datum(), &mut name) };
                    let name = name.finish();
                    assert!(name.starts_with(expected.as_bytes()), "{sql}: {name:?}");
                };
                // SAFETY: the arena lives as long as the switch, and nothing of it is used later.
                unsafe {
                    let arena = MemoryArena::below(pg_sys::CurrentMemoryContext);
                    let _switch = MemorySwitch::to(arena.as_ptr());
                    make();
                    let taken = || pg_sys::MemoryContextMemAllocated(arena.as_ptr(), true);
                    let at_first = taken();
                    (0..10_000).for_each(|_| make());
                    assert_eq!(taken(), at_first, "{sql}");
                }
            });
        }
    }

    #[pg_test]
    fn own_increments_are_seen_at_once() {
        Spi::run("SELECT counter_incr('t'), counter_incr('t', 4), counter_decr('t', 2)").unwrap();
        assert_eq!(value_of("t"), Some(3));
    }

    /// Row by row: the value of a statement's own increments is that of the moment.
    #[pg_test]
    fn own_increments_are_seen_within_a_statement() {
        let seen: Option<Vec<i64>> = Spi::get_one(
            "SELECT array_agg(counter_value('t')) \
             FROM (SELECT counter_incr('t', i) FROM generate_series(1, 4) i OFFSET 0) s",
        )
        .unwrap();
        assert_eq!(seen, Some(vec![1, 3, 6, 10]));
    }

    #[pg_test]
    fn a_counter_is_one_entry_however_often_it_is_changed() {
        Spi::run("SELECT count(counter_incr('k:' || i % 3, i)) FROM generate_series(1, 30000) i")
            .unwrap();
        let third = (1..=30_000i64).filter(|i| i % 3 == 0).sum();
        let first = (1..=30_000i64).filter(|i| i % 3 == 1).sum();
        let second = (1..=30_000i64).filter(|i| i % 3 == 2).sum();
        let expected = [("k:0", third), ("k:1", first), ("k:2", second)];
        assert_eq!(
            pending(),
            expected.map(|(name, sum)| (name.to_owned(), sum)).into()
        );
        assert!(!pending::has_flushed_early());
    }

    #[pg_test]
    fn exception_blocks_take_back_what_they_have_counted() {
        Spi::run(
            "DO $$ BEGIN
                PERFORM counter_incr('kept', 1);
                BEGIN
                    PERFORM counter_incr('kept', 10), counter_incr('gone', 10);
                    RAISE division_by_zero;
                EXCEPTION WHEN division_by_zero THEN
                    PERFORM counter_incr('handled', 1);
                END;
                BEGIN
                    PERFORM counter_incr('kept', 100);
                EXCEPTION WHEN division_by_zero THEN
                    NULL;
                END;
             END $$",
        )
        .unwrap();
        assert_eq!(
            pending(),
            [("handled".to_owned(), 1), ("kept".to_owned(), 101)].into()
        );
        assert_eq!(pending_of("gone"), None);
    }

    /// A counter of no increments does not exist; one of increments that sum up to nothing does.
    #[pg_test]
    fn zero_is_not_nothing() {
        Spi::run(
            "SELECT counter_incr('zero', 0), counter_incr('back', 7), counter_decr('back', 7)",
        )
        .unwrap();
        for name in ["zero", "back"] {
            assert_eq!(pending_of(name), Some(0));
            let tally = reader::tally(name.as_bytes());
            assert!(tally.exists() && tally.value == 0);
        }
        assert!(!reader::tally(b"unknown").exists());
        assert_eq!(value_of("unknown"), Some(0));
    }

    /// Deltas on disk are found by this.
    #[pg_test]
    fn rows_lie_in_the_lane_of_their_name() {
        Spi::run(FLUSH_EARLY).unwrap();
        assert!(pending::has_flushed_early());
        let mut rows = 0;
        for lane in 0..LANES {
            let epoch = gate::read_gate(&tables::open(catalog::lane(lane).gate)).epoch;
            Spi::connect(|client| {
                let table = client
                    .select(
                        &format!(
                            "SELECT name, epoch FROM counterx.log_{lane}_a WHERE name LIKE 'early:%' \
                             UNION ALL SELECT name, epoch FROM counterx.log_{lane}_b WHERE name LIKE 'early:%'"
                        ),
                        None,
                        &[],
                    )
                    .unwrap();
                for row in table {
                    let name: String = row.get(1).unwrap().unwrap();
                    assert_eq!(NameHash::of(name.as_bytes()).lane(), lane, "{name}");
                    // A fold of another test's rows may have published the next one since.
                    let written = row.get::<i64>(2).unwrap().unwrap();
                    assert!((1..=epoch).contains(&written), "{written} of {epoch}");
                    rows += 1;
                }
            });
        }
        // What was written is not in memory any more, and the other way round.
        assert!(rows > 0);
        assert_eq!(rows + pending().len(), 1000);
    }

    #[pg_test]
    fn what_was_written_early_goes_with_its_subtransaction() {
        Spi::run(
            "DO $$ BEGIN
                SET LOCAL counterx.pending_work_mem = '64kB';
                PERFORM counter_incr('x', 1);
                BEGIN
                    PERFORM counter_incr('x', 10);
                    PERFORM counter_incr('early:' || i || repeat('.', 180)) FROM generate_series(1, 1000) i;
                    RAISE division_by_zero;
                EXCEPTION WHEN division_by_zero THEN
                    NULL;
                END;
             END $$",
        )
        .unwrap();
        assert_eq!(value_of("x"), Some(1));
        assert_eq!(value_of(&format!("early:7{}", ".".repeat(180))), Some(0));
    }

    #[pg_test(
        error = "counterx.compact() cannot run in a transaction that has already written increments"
    )]
    fn a_transaction_that_has_written_cannot_fold() {
        Spi::run(FLUSH_EARLY).unwrap();
        Spi::run("SELECT counterx.compact()").unwrap();
    }

    #[pg_test(
        error = "the increments of counter \"t\" in this transaction are out of range for type bigint"
    )]
    fn a_sum_that_overflows_is_an_error() {
        Spi::run("SELECT counter_incr('t', 9223372036854775807)").unwrap();
        Spi::run("SELECT counter_incr('t', 1)").unwrap();
    }

    /// An increment that is refused has changed nothing.
    #[pg_test]
    fn an_overflow_leaves_the_sum_as_it_was() {
        Spi::run(
            "DO $$ BEGIN
                PERFORM counter_incr('t', 9223372036854775807);
                BEGIN
                    PERFORM counter_incr('t', 1);
                EXCEPTION WHEN numeric_value_out_of_range THEN
                    NULL;
                END;
             END $$",
        )
        .unwrap();
        assert_eq!(pending(), [("t".to_owned(), i64::MAX)].into());
    }

    /// The catalogs are read anew after the relation cache was told of a change, and say the same.
    #[pg_test]
    fn relations_are_found_again() {
        let before = (catalog::shared().total, catalog::lane(3).gate);
        Spi::run("REINDEX TABLE counterx.total").unwrap();
        assert!(!catalog::is_known());
        assert_eq!((catalog::shared().total, catalog::lane(3).gate), before);
        assert!(catalog::is_known());
        catalog::forget();
        assert_eq!((catalog::shared().total, catalog::lane(3).gate), before);
    }

    /// Where every reading of the types comes with news of a change, it ends all the same.
    #[pg_test]
    fn a_change_of_types_while_they_are_read_is_for_the_next_reading() {
        assert!(types::hears_of_a_change_while_reading());
        assert_eq!(types::limits_of(b"plain"), None);
    }

    /// From 127 bytes on, a text has the long header.
    #[pg_test]
    fn names_of_every_length_are_texts() {
        for length in [1, 2, 125, 126, 127, 128, 254, MAX_NAME_BYTES] {
            let name = "n".repeat(length);
            let text = NameText::new(name.as_bytes());
            // SAFETY: a text datum, which lives until the end of the turn.
            let read = unsafe { String::from_datum(text.datum(), false) };
            assert_eq!(read.as_deref(), Some(name.as_str()));
            assert_eq!(
                Spi::get_one_with_args(
                    "SELECT counter_incr($1, 3), counter_value($1)",
                    &[name.as_str().into()]
                ),
                Ok(Some(true))
            );
            assert_eq!(value_of(&name), Some(3));
        }
    }

    #[pg_test]
    fn numerics_are_read_as_the_numbers_they_were_made_of() {
        let mut values = vec![0, 1, 9999, 10_000, 1_000_000_000_000, i128::from(i64::MAX)];
        values.extend((0..37).flat_map(|exponent| {
            let power = 10i128.pow(exponent);
            [power - 1, power, power + 1, 7 * power]
        }));
        for value in values.into_iter().flat_map(|value| [value, -value]) {
            // SAFETY: a numeric, just made.
            let read = unsafe { number::total(number::numeric(value)) };
            assert_eq!(read, value);
        }
        // SAFETY: both are numerics.
        let sum = unsafe { number::add(number::numeric(1 << 70), number::numeric(-1)) };
        // SAFETY: a numeric.
        assert_eq!(unsafe { number::total(sum) }, (1 << 70) - 1);
    }
}
