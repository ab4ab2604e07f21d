//! Tests that run inside of the server, each in a transaction that is rolled back.

#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;

    #[pg_test]
    fn own_increments_are_seen_at_once() {
        Spi::run("SELECT counter_incr('t'), counter_incr('t', 4), counter_decr('t', 2)").unwrap();
        assert_eq!(Spi::get_one::<i64>("SELECT counter_value('t')"), Ok(Some(3)));
    }
}
