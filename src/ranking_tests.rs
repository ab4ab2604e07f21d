//! Tests of ranks, inside of the server: each way of finding them says what sorting all counters
//! says. Each test is rolled back.

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    /// Two thousand counters with many equal values, as if they were folded; more than what is read
    /// by name before the value index is. The lock: tests run side by side in one database, and those
    /// here insert the same rows, and make and drop an index.
    const TOTALS: &str = "
        LOCK TABLE counterx.total;
        INSERT INTO counterx.total (name, gen, value, uses)
        SELECT 'r:' || i, 1, i * 7919 % 1000 - 300, 1 FROM generate_series(1, 2000) AS i
        UNION ALL SELECT 's:' || i, 1, i * 100 - 2000, 1 FROM generate_series(1, 40) AS i";

    /// Counters that move to either end, some that stay, some that are new, and some that go.
    const PENDING: &str = "
        SELECT count(counter_incr('r:' || i, (i * 31 % 3001 - 1500))) FROM generate_series(1, 2000, 7) AS i;
        SELECT count(counter_incr('s:' || i, 1)) FROM generate_series(1, 40) AS i;
        SELECT count(counter_incr('n:' || i, i * 50 - 1000)) FROM generate_series(1, 40) AS i;
        SELECT counter_drop('r:8'), counter_drop('s:40'), counter_drop('s:1'), counter_drop('n:40')";

    fn check_all(state: &str) {
        for prefix in ["", "r:", "r:1", "s:", "n:", "none"] {
            for n in [1, 3, 10, 100, 3000] {
                check("counter_top", "value DESC", "name", n, prefix, state);
                check("counter_bottom", "value", "name DESC", n, prefix, state);
            }
        }
    }

    fn check(function: &str, by: &str, then: &str, n: i32, prefix: &str, state: &str) {
        let different: Option<i64> = Spi::get_one(&format!(
            "WITH found AS (
                 SELECT * FROM {function}({n}, '{prefix}') WITH ORDINALITY
             ), wanted AS (
                 SELECT rank() OVER (ORDER BY {by}), name, value::bigint,
                        row_number() OVER (ORDER BY {by}, {then})
                 FROM counters WHERE starts_with(name, '{prefix}') ORDER BY 4 LIMIT {n}
             )
             SELECT count(*) FROM ((TABLE found EXCEPT ALL TABLE wanted)
                                   UNION ALL (TABLE wanted EXCEPT ALL TABLE found)) AS different"
        ))
        .unwrap();
        assert_eq!(different, Some(0), "{function}({n}, '{prefix}'), {state}");
    }

    #[pg_test]
    fn ranks_are_those_of_all_counters_sorted() {
        {
            let _at_work = crate::store::ours::AtWork::begin();
            Spi::run(TOTALS).unwrap();
        }
        check_all("no value index");
        Spi::run("SELECT counterx.create_value_index()").unwrap();
        check_all("value index");
        Spi::run(PENDING).unwrap();
        check_all("value index, pending");
        Spi::run("SELECT counterx.drop_value_index()").unwrap();
        check_all("no value index, pending");
    }

    /// Small steps of many counters: the visit by value goes on until none of them can matter.
    #[pg_test]
    fn ranks_are_right_when_every_other_counter_has_moved_a_little() {
        {
            let _at_work = crate::store::ours::AtWork::begin();
            Spi::run(TOTALS).unwrap();
        }
        Spi::run("SELECT counterx.create_value_index()").unwrap();
        Spi::run(
            "SELECT count(counter_incr('r:' || i, i % 11 - 5)) FROM generate_series(1, 2000, 2) AS i",
        )
        .unwrap();
        check_all("small steps");
    }
}
