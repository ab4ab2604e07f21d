//! Tests of the foreign table behind the view `counters`, inside of the server: what is read for
//! which condition, and that totals and increments come together. Each test is rolled back.

#[pgrx::pg_schema]
mod tests {
    use crate::query::listing::Wanted;
    use counterx_core::lane::MAX_NAME_BYTES;
    use counterx_core::names::NameRange;
    use pgrx::prelude::*;

    /// Nothing in a test commits, so that totals are written by hand.
    fn write_tables(sql: &str) -> Result<(), pgrx::spi::SpiError> {
        let _at_work = crate::store::ours::AtWork::begin();
        Spi::run(sql)
    }

    /// Three counters that are folded, one of them changed since, and two that never were.
    fn some_counters() {
        write_tables(
            "INSERT INTO counterx.total (name, gen, value, uses)
             VALUES ('f:a', 1, 10, 1), ('f:b', 1, 20, 1), ('g:a', 1, 30, 1);
             SELECT counter_incr('f:b', 2), counter_incr('f:c', 3), counter_incr('h', 0)",
        )
        .unwrap();
    }

    /// The rows of a query as `name=value`, in its order.
    fn rows(query: &str) -> Vec<String> {
        Spi::connect(|client| {
            let query = format!("SELECT name || '=' || value FROM ({query}) q");
            let table = client.select(&query, None, &[]).unwrap();
            table.map(|row| row.get(1).unwrap().unwrap()).collect()
        })
    }

    /// The rows that a condition on the view leaves.
    fn matching(condition: &str) -> Vec<String> {
        rows(&format!(
            "SELECT name, value FROM counters WHERE {condition} ORDER BY name"
        ))
    }

    /// What EXPLAIN says of the foreign table, a trimmed line each, without the costs.
    fn plan(statement: &str) -> Vec<String> {
        Spi::connect(|client| {
            let table = client.select(&format!("EXPLAIN (COSTS OFF) {statement}"), None, &[]);
            let line =
                |row: pgrx::spi::SpiHeapTupleData| -> String { row.get(1).unwrap().unwrap() };
            table
                .unwrap()
                .map(|row| line(row).trim().to_owned())
                .collect()
        })
    }

    /// What is read for a condition on the view.
    fn access(condition: &str) -> String {
        access_of(&format!("SELECT * FROM counters WHERE {condition}"))
    }

    fn access_of(statement: &str) -> String {
        let plan = plan(statement);
        let mut lines = plan.iter().filter(|line| line.starts_with("Name "));
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no such line in {plan:?}"));
        assert_eq!(lines.next(), None, "{plan:?}");
        line.clone()
    }

    #[pg_test]
    fn totals_and_own_increments_come_together() {
        some_counters();
        assert_eq!(
            matching("true"),
            ["f:a=10", "f:b=22", "f:c=3", "g:a=30", "h=0"]
        );
    }

    #[pg_test]
    fn one_name_is_looked_up() {
        some_counters();
        assert_eq!(matching("name = 'f:a'"), ["f:a=10"]);
        assert_eq!(matching("'f:b' = name"), ["f:b=22"]);
        assert_eq!(matching("name = 'f:c'"), ["f:c=3"]);
        assert_eq!(matching("name = 'h'"), ["h=0"]);
        assert_eq!(matching("name = 'f:'"), Vec::<String>::new());
        assert_eq!(access("name = 'f:a'"), "Name Lookup: (name = 'f:a'::text)");
        assert_eq!(access("'f:a' = name"), "Name Lookup: (name = 'f:a'::text)");
        // Equal in any deterministic collation is equal bytewise.
        assert_eq!(
            access("name = 'f:a' COLLATE \"default\""),
            "Name Lookup: (name = 'f:a'::text)"
        );
        assert!(access("name::varchar = 'f:a'").starts_with("Name Lookup: "));
    }

    #[pg_test]
    fn several_names_are_looked_up() {
        some_counters();
        let condition = "name IN ('h', 'f:b', 'x', 'f:b', NULL)";
        assert_eq!(matching(condition), ["f:b=22", "h=0"]);
        assert_eq!(
            access(condition),
            "Name Lookup: (name = ANY ('{h,f:b,x,f:b,NULL}'::text[]))"
        );
        assert_eq!(matching(&format!("{condition} AND name < 'g'")), ["f:b=22"]);
        assert_eq!(
            matching(&format!("{condition} AND name IN ('h', 'f:a')")),
            ["h=0"]
        );
        assert_eq!(access("name <> ALL (ARRAY['h', 'f:b'])"), "Name Range: all");
    }

    /// More names than are looked up one by one in what is pending.
    #[pg_test]
    fn many_names_are_looked_up() {
        some_counters();
        let names = "SELECT array_agg('f:' || chr(i)) || 'h'::text FROM generate_series(48, 98) i";
        assert_eq!(
            matching(&format!("name = ANY (({names})::text[])")),
            ["f:a=10", "f:b=22", "h=0"]
        );
    }

    #[pg_test]
    fn prefixes_are_ranges() {
        some_counters();
        let all = ["f:a=10", "f:b=22", "f:c=3"];
        for condition in ["name LIKE 'f:%'", "name ^@ 'f:'", "starts_with(name, 'f:')"] {
            assert_eq!(matching(condition), all, "{condition}");
        }
        assert_eq!(
            access("name LIKE 'f:%'"),
            "Name Range: (name ~~ 'f:%'::text)"
        );
        assert_eq!(access("name ^@ 'f:'"), "Name Range: (name ^@ 'f:'::text)");
        assert_eq!(
            access("starts_with(name, 'f:')"),
            "Name Range: (name ^@ 'f:'::text)"
        );
        // The rest of the pattern counts as well.
        assert_eq!(matching("name LIKE 'f%b'"), ["f:b=22"]);
        assert_eq!(matching("name LIKE '%a'"), ["f:a=10", "g:a=30"]);
        assert_eq!(matching("name LIKE 'f:a'"), ["f:a=10"]);
        assert_eq!(access("name NOT LIKE 'f:%'"), "Name Range: all");
    }

    #[pg_test]
    fn comparisons_are_ranges() {
        some_counters();
        assert_eq!(matching("name > 'f:b'"), ["f:c=3", "g:a=30", "h=0"]);
        assert_eq!(
            matching("name >= 'f:b' AND name < 'g:a'"),
            ["f:b=22", "f:c=3"]
        );
        assert_eq!(matching("'f:b' >= name"), ["f:a=10", "f:b=22"]);
        assert_eq!(matching("name <= 'f:a'"), ["f:a=10"]);
        assert_eq!(
            matching("name > 'f:a' AND name < 'f:a'"),
            Vec::<String>::new()
        );
        assert_eq!(
            access("name > 'f:b' AND 'x' >= name"),
            "Name Range: (name > 'f:b'::text) AND (name <= 'x'::text)"
        );
        // Another collation counts as another order than that of the bytes.
        assert_eq!(access("name > 'f:b' COLLATE \"POSIX\""), "Name Range: all");
        if !has_icu() {
            return;
        }
        Spi::run("CREATE COLLATION pg_temp.other (provider = icu, locale = 'und')").unwrap();
        assert_eq!(
            access("name > 'f:b' COLLATE pg_temp.other"),
            "Name Range: all"
        );
        assert_eq!(
            matching("name > 'F:B' COLLATE pg_temp.other"),
            ["f:c=3", "g:a=30", "h=0"]
        );
    }

    /// Was this server built with ICU? `scripts/test` says when it was not.
    fn has_icu() -> bool {
        // (The collation "unicode" is there without it.)
        Spi::get_one("SELECT count(*) > 0 FROM pg_collation WHERE collname = 'en-x-icu'")
            == Ok(Some(true))
    }

    /// Equal there is not equal bytewise.
    #[pg_test]
    fn a_nondeterministic_collation_reads_all_names() {
        if !has_icu() {
            return;
        }
        some_counters();
        Spi::run(
            "CREATE COLLATION pg_temp.any_case
             (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        )
        .unwrap();
        let condition = "name = 'F:B' COLLATE pg_temp.any_case";
        assert_eq!(access(condition), "Name Range: all");
        assert_eq!(matching(condition), ["f:b=22"]);
    }

    #[pg_test]
    fn what_depends_on_the_row_narrows_nothing() {
        some_counters();
        assert_eq!(access("name = value::text"), "Name Range: all");
        assert_eq!(access("name = 'f:' || random()"), "Name Range: all");
        assert_eq!(access("value > 20"), "Name Range: all");
        assert_eq!(matching("value > 20"), ["f:b=22", "g:a=30"]);
    }

    #[pg_test]
    fn names_that_cannot_be_are_not_there() {
        some_counters();
        let longest = "n".repeat(MAX_NAME_BYTES);
        Spi::run_with_args("SELECT counter_incr($1)", &[longest.as_str().into()]).unwrap();
        let count = |condition: &str| -> Option<i64> {
            let query = format!("SELECT count(*) FROM counters WHERE {condition}");
            Spi::get_one_with_args(&query, &[longest.as_str().into()]).unwrap()
        };
        assert_eq!(count("name = $1"), Some(1));
        assert_eq!(count("name = $1 || 'n'"), Some(0));
        assert_eq!(count("name IN ($1, $1 || 'n', '')"), Some(1));
        assert_eq!(count("name = ''"), Some(0));
        assert_eq!(count("name >= $1"), Some(1));
        assert_eq!(count("name > $1"), Some(0));
        assert_eq!(count("name < $1 || 'n' AND name > 'i'"), Some(1));
        assert_eq!(count("name LIKE repeat('n', 100000) || '%'"), Some(0));
        assert_eq!(count("name > repeat('f', 100000)"), Some(3));
        assert_eq!(count("name < ''"), Some(0));
        assert_eq!(count("name LIKE '%'"), Some(6));
    }

    /// A generic plan does not know the values: they are put in when it runs.
    #[pg_test]
    fn parameters_are_looked_up() {
        some_counters();
        Spi::run(
            "SET LOCAL plan_cache_mode = force_generic_plan;
             PREPARE by_name(text) AS SELECT value::text FROM counters WHERE name = $1;
             PREPARE by_pattern(text) AS SELECT string_agg(name, ' ' ORDER BY name) FROM counters WHERE name LIKE $1;
             PREPARE by_names(text[]) AS SELECT sum(value)::text FROM counters WHERE name = ANY ($1)",
        )
        .unwrap();
        assert_eq!(
            access_of("EXECUTE by_name('f:a')"),
            "Name Lookup: (name = $1)"
        );
        assert_eq!(
            access_of("EXECUTE by_pattern('f:%')"),
            "Name Range: (name ~~ $1)"
        );
        assert_eq!(
            access_of("EXECUTE by_names('{}')"),
            "Name Lookup: (name = ANY ($1))"
        );
        let run = |statement: &str| -> Option<String> {
            Spi::connect(|client| {
                let mut table = client
                    .select(&format!("EXECUTE {statement}"), None, &[])
                    .unwrap();
                table.next().and_then(|row| row.get(1).unwrap())
            })
        };
        assert_eq!(run("by_name('f:a')").as_deref(), Some("10"));
        assert_eq!(run("by_name('f:b')").as_deref(), Some("22"));
        assert_eq!(run("by_name('x')"), None);
        assert_eq!(run("by_name(NULL)"), None);
        assert_eq!(run("by_pattern('f:%')").as_deref(), Some("f:a f:b f:c"));
        assert_eq!(run("by_pattern('g:a')").as_deref(), Some("g:a"));
        assert_eq!(run("by_pattern('%a')").as_deref(), Some("f:a g:a"));
        assert_eq!(run("by_pattern(NULL)"), None);
        assert_eq!(run("by_names('{f:a,f:c,x,NULL}')").as_deref(), Some("13"));
        assert_eq!(
            run("by_names('{{f:a,f:c},{g:a,h}}')").as_deref(),
            Some("43")
        );
        assert_eq!(run("by_names('{}')"), None);
        assert_eq!(run("by_names(NULL)"), None);
    }

    /// Few rows on the other side, and many counters that would have to be read for them otherwise.
    #[pg_test]
    fn joins_look_each_name_up() {
        some_counters();
        write_tables(
            "INSERT INTO counterx.total (name, gen, value, uses)
             SELECT 'many:' || i, 1, i, 1 FROM generate_series(1, 20000) i;
             ANALYZE counterx.total;
             CREATE TEMP TABLE things (id int, key text);
             INSERT INTO things VALUES (1, 'f:b'), (2, 'x'), (3, NULL), (4, 'many:77'), (5, 'f:b');
             ANALYZE things",
        )
        .unwrap();
        let join = "SELECT id || ':' || key AS name, value FROM things JOIN counters ON name = key";
        assert_eq!(access_of(join), "Name Lookup: (name = things.key)");
        assert!(
            plan(join)
                .iter()
                .any(|line| line.starts_with("Nested Loop"))
        );
        let expected = ["1:f:b=22", "4:many:77=77", "5:f:b=22"];
        assert_eq!(rows(&format!("{join} ORDER BY id")), expected);
        // An outer join, by an expression.
        let join = "SELECT id::text AS name, COALESCE(value, -1) AS value
             FROM things LEFT JOIN counters ON name = replace(key, 'x', 'g:a')";
        assert!(access_of(join).starts_with("Name Lookup: (name = replace("));
        let expected = ["1=22", "2=30", "3=-1", "4=77", "5=22"];
        assert_eq!(rows(&format!("{join} ORDER BY id")), expected);
        // A prefix of each row.
        let join = "SELECT id::text AS name, sum(value) AS value
             FROM things JOIN counters ON name LIKE left(key, 2) || '%' GROUP BY id";
        assert!(access_of(join).starts_with("Name Range: (name ~~ ("));
        let sum = 20_000 * 20_001 / 2;
        let expected = ["1=35".to_owned(), format!("4={sum}"), "5=35".to_owned()];
        assert_eq!(rows(&format!("{join} ORDER BY id")), expected);
        // A subquery of each row.
        let query = "SELECT id::text AS name,
             COALESCE((SELECT value FROM counters WHERE name = key), -1) AS value FROM things";
        assert_eq!(access_of(query), "Name Lookup: (name = things.key)");
        let expected = ["1=22", "2=-1", "3=-1", "4=77", "5=22"];
        assert_eq!(rows(&format!("{query} ORDER BY id")), expected);
    }

    /// Where most counters are wanted, reading them all at once is cheaper.
    #[pg_test]
    fn large_joins_read_all_names() {
        write_tables(
            "INSERT INTO counterx.total (name, gen, value, uses)
             SELECT 'many:' || i, 1, i, 1 FROM generate_series(1, 20000) i;
             ANALYZE counterx.total;
             CREATE TEMP TABLE things AS SELECT 'many:' || i AS key FROM generate_series(1, 20000) i;
             ANALYZE things",
        )
        .unwrap();
        let join = "SELECT count(*), sum(value) FROM things JOIN counters ON name = key";
        assert_eq!(access_of(join), "Name Range: all");
        let (count, sum) = Spi::get_two::<i64, AnyNumeric>(join).unwrap();
        assert_eq!((count, sum), (Some(20_000), Some(200_010_000.into())));
    }

    /// A row of the estimate is a row of the plan's decisions.
    #[pg_test]
    fn a_name_is_known_to_be_unique() {
        write_tables(
            "INSERT INTO counterx.total (name, gen, value, uses)
             SELECT 'many:' || i, 1, i, 1 FROM generate_series(1, 20000) i;
             ANALYZE counterx.total;
             CREATE TEMP TABLE things AS SELECT 'many:' || i AS key FROM generate_series(1, 100) i;
             ANALYZE things",
        )
        .unwrap();
        let estimate = |query: &str| -> f64 {
            let plan: pgrx::Json = Spi::get_one(&format!("EXPLAIN (FORMAT json) {query}"))
                .unwrap()
                .unwrap();
            plan.0[0]["Plan"]["Plan Rows"].as_f64().unwrap()
        };
        assert_eq!(
            estimate("SELECT * FROM counters WHERE name = 'many:5'"),
            1.0
        );
        assert_eq!(
            estimate("SELECT * FROM counters WHERE name IN ('a', 'b', 'c')"),
            3.0
        );
        assert_eq!(
            estimate("SELECT * FROM things JOIN counters ON name = key"),
            100.0
        );
        let all = estimate("SELECT * FROM counters");
        assert!((20_000.0..22_000.0).contains(&all), "{all}");
    }

    /// counter_value() could not return it.
    #[pg_test]
    fn values_beyond_a_bigint_are_shown() {
        write_tables(
            "INSERT INTO counterx.total (name, gen, value, uses)
             VALUES ('big', 1, 9223372036854775807, 1), ('small', 1, -1e30, 1);
             SELECT counter_incr('big', 9223372036854775807), counter_decr('small', 1)",
        )
        .unwrap();
        assert_eq!(
            matching("name IN ('big', 'small')"),
            [
                "big=18446744073709551614",
                "small=-1000000000000000000000000000001"
            ]
        );
        assert_eq!(matching("name = 'big'"), ["big=18446744073709551614"]);
    }

    /// The totals hold several versions of a name: the newest is the one that counts.
    #[pg_test]
    fn the_newest_version_counts() {
        some_counters();
        for generation in 2..50 {
            write_tables(&format!(
                "UPDATE counterx.total SET gen = {generation}, value = value + 1 WHERE name = 'f:a'"
            ))
            .unwrap();
        }
        for condition in [
            "name = 'f:a'",
            "name < 'f:b'",
            "name IN ('f:a', 'x')",
            "value = 58",
        ] {
            assert_eq!(matching(condition), ["f:a=58"], "{condition}");
        }
    }

    /// What was written early lies in the logs, and is one's own still.
    #[pg_test]
    fn increments_that_were_written_early_are_shown() {
        some_counters();
        Spi::run(
            "SET LOCAL counterx.pending_work_mem = '64kB';
             SELECT count(counter_incr('early:' || i % 1000 || repeat('.', 180), i)) FROM generate_series(1, 3000) i",
        )
        .unwrap();
        assert!(crate::transaction::pending::has_flushed_early());
        let sum = 3000 * 3001 / 2;
        assert_eq!(
            rows(
                "SELECT 'early' AS name, sum(value) AS value FROM counters WHERE name LIKE 'early:%'"
            ),
            [format!("early={sum}")]
        );
        assert_eq!(
            rows("SELECT 'count' AS name, count(*) AS value FROM counters"),
            ["count=1005"]
        );
        assert_eq!(
            rows(
                "SELECT 'one' AS name, value FROM counters WHERE name = 'early:7' || repeat('.', 180)"
            ),
            [format!("one={}", 7 + 1007 + 2007)]
        );
    }

    /// The server takes back what a scan had open; our own part must not do so again.
    #[pg_test]
    fn errors_in_mid_scan_leave_nothing_open() {
        some_counters();
        for condition in [
            "true",
            "name >= 'f:'",
            "name = 'f:b'",
            "name IN ('f:a', 'f:b')",
        ] {
            Spi::run(&format!(
                "DO $$ BEGIN
                    FOR i IN 1 .. 20 LOOP
                        BEGIN
                            PERFORM 1 / (value - 22) FROM counters WHERE {condition};
                            RAISE EXCEPTION 'it did not fail';
                        EXCEPTION WHEN division_by_zero THEN
                            NULL;
                        END;
                    END LOOP;
                 END $$"
            ))
            .unwrap();
        }
        assert_eq!(matching("name = 'f:b'"), ["f:b=22"]);
    }

    /// A scan starts anew for each row of the other side, also before it has ended.
    #[pg_test]
    fn a_scan_that_was_left_starts_anew() {
        some_counters();
        for condition in ["c.name >= chr(i)", "c.name LIKE chr(i) || ':%'"] {
            assert_eq!(
                rows(&format!(
                    "SELECT i::text AS name, value FROM generate_series(102, 103) i
                     CROSS JOIN LATERAL (SELECT value FROM counters c WHERE {condition} LIMIT 1) v"
                )),
                ["102=10", "103=30"]
            );
        }
    }

    #[pg_test(
        error = "a foreign table of the wrapper counterx must have the columns (name text, value numeric)"
    )]
    fn other_tables_of_the_wrapper_are_refused() {
        Spi::run("CREATE FOREIGN TABLE pg_temp.other (name int) SERVER counterx").unwrap();
        Spi::run("SELECT * FROM pg_temp.other").unwrap();
    }

    #[pg_test]
    fn wanted_names_are_what_all_conditions_leave() {
        let range = |from: &[u8], before: &[u8]| {
            let mut range = NameRange::all();
            range.at_least(from);
            range.less_than(before);
            range
        };
        let names = |names: &[&str]| -> Vec<Vec<u8>> {
            names.iter().map(|name| name.as_bytes().to_vec()).collect()
        };
        let mut one = NameRange::all();
        one.equal_to(b"a");
        assert_eq!(Wanted::new(one, None), Wanted::Names(names(&["a"])));
        assert_eq!(
            Wanted::new(range(b"b", b"d"), Some(names(&["d", "c", "b", "c", "a"]))),
            Wanted::Names(names(&["b", "c"]))
        );
        assert_eq!(
            Wanted::new(range(b"b", b"d"), None),
            Wanted::Range(range(b"b", b"d"))
        );
        assert_eq!(Wanted::new(range(b"d", b"b"), None), Wanted::Nothing);
        assert_eq!(Wanted::new(range(b"d", b"d"), None), Wanted::Nothing);
        assert_eq!(Wanted::new(range(b"", b""), None), Wanted::Nothing);
        assert_eq!(
            Wanted::new(range(b"b", b"d"), Some(names(&["x"]))),
            Wanted::Nothing
        );
        assert_eq!(Wanted::new(NameRange::all(), Some(vec![])), Wanted::Nothing);
        assert_eq!(
            Wanted::new(NameRange::all(), Some(names(&[""]))),
            Wanted::Nothing
        );
    }
}
