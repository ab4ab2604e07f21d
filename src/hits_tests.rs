//! Hits inside of a server: what a transaction that is never committed has counted by itself.

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    fn value(name: &str) -> i64 {
        Spi::get_one_with_args("SELECT counter_value($1)", &[name.into()])
            .expect("a query")
            .expect("a value")
    }

    #[pg_test]
    fn hit_is_counted_before_the_transaction_ends() {
        // What another run has left is there still: hits are not rolled back.
        let before = value("pg_test:hit");
        Spi::run("SELECT counter_hit('pg_test:hit', 3), counter_hit('pg_test:hit', -1)")
            .expect("a hit");
        assert_eq!(value("pg_test:hit"), before + 2);
    }

    #[pg_test]
    fn hits_that_nobody_waits_for_come_before_one_that_waits() {
        let before = value("pg_test:silent");
        Spi::run(
            "SELECT counter_hit('pg_test:silent', wait => false) FROM generate_series(1, 3000)",
        )
        .expect("hits");
        Spi::run("SELECT counter_hit('pg_test:silent', 0)").expect("a hit");
        assert_eq!(value("pg_test:silent"), before + 3000);
    }

    #[pg_test]
    fn hit_of_a_counter_that_the_transaction_has_changed_adds_up() {
        let before = value("pg_test:both");
        Spi::run("SELECT counter_incr('pg_test:both', 10)").expect("an increment");
        Spi::run("SELECT counter_hit('pg_test:both')").expect("a hit");
        assert_eq!(value("pg_test:both"), before + 11);
    }

    #[pg_test(
        error = "counter_hit() cannot count while its own transaction keeps others from counting"
    )]
    fn transaction_that_keeps_others_from_counting_is_refused() {
        Spi::run("SELECT counter_type_create('pg_test_hits', min => 0)").expect("a type");
        Spi::run("SELECT counter_hit('pg_test:refused')").expect("refused");
    }
}
