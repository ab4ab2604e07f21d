//! Hits inside of a server: what a transaction that is never committed has counted by itself.

#[pgrx::pg_schema]
mod tests {
    use crate::hits::failure::Failure;
    use pgrx::prelude::*;

    fn value(name: &str) -> i64 {
        Spi::get_one_with_args("SELECT counter_value($1)", &[name.into()])
            .expect("a query")
            .expect("a value")
    }

    /// Other tests, which run at the same time, create types: while they do, nobody counts.
    fn hit(call: &str) {
        Spi::run(&format!(
            "DO $$ BEGIN
                FOR i IN 1..30 LOOP
                    BEGIN
                        PERFORM {call};
                        RETURN;
                    EXCEPTION WHEN lock_not_available THEN
                        NULL;
                    END;
                END LOOP;
                RAISE 'nobody may count for half a minute';
            END $$"
        ))
        .expect("a hit");
    }

    #[pg_test]
    fn hit_is_counted_before_the_transaction_ends() {
        // What another run has left is there still: hits are not rolled back.
        let before = value("pg_test:hit");
        hit("counter_hit('pg_test:hit', 3)");
        hit("counter_hit('pg_test:hit', -1)");
        assert_eq!(value("pg_test:hit"), before + 2);
    }

    #[pg_test]
    fn hit_of_a_counter_that_the_transaction_has_changed_adds_up() {
        let before = value("pg_test:both");
        Spi::run("SELECT counter_incr('pg_test:both', 10)").expect("an increment");
        hit("counter_hit('pg_test:both')");
        assert_eq!(value("pg_test:both"), before + 11);
    }
    /// In a server, as that knows how codes are made.
    #[pg_test]
    fn what_may_pass_is_told_from_what_never_will() {
        let may_pass = |code| {
            let failure = Failure {
                code,
                message: String::new(),
                detail: String::new(),
                hint: String::new(),
            };
            failure.may_pass()
        };
        assert!(may_pass(PgSqlErrorCode::ERRCODE_DISK_FULL));
        // No xids are left until somebody has vacuumed.
        assert!(may_pass(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED));
        assert!(may_pass(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE));
        assert!(!may_pass(PgSqlErrorCode::ERRCODE_CHECK_VIOLATION));
        // The extension was dropped.
        assert!(!may_pass(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT));
    }
}
