//! Calls in every place of a query where a function may stand.

use anyhow::{Context, Result, ensure};
use counterx_cluster_tests::create_database;
use counterx_harness::Cluster;

use super::errors::answer;
use super::fuzz;
use crate::report::PartReport;

/// What a case comes to.
enum Comes {
    /// To this first column of the last row.
    To(&'static str),
    /// To an error of this code, and no change.
    Not(&'static str),
}

use Comes::{Not, To};

/// A place, what is there before, the statements, and what comes of the last one.
struct Case {
    place: &'static str,
    sql: &'static str,
    comes: Comes,
}

const fn case(place: &'static str, sql: &'static str, comes: Comes) -> Case {
    Case { place, sql, comes }
}

/// All in one session, one after the other. The counter `c` stands at 100 at the beginning of each.
const CASES: &[Case] = &[
    case(
        "an aggregate's argument",
        "SELECT sum(counter_incr_get('c')) FROM generate_series(1, 3)",
        To("306"),
    ),
    case(
        "a window",
        "SELECT max(s) FROM (SELECT sum(counter_incr_get('c')) OVER (ORDER BY n) s FROM generate_series(1, 3) n) w",
        To("306"),
    ),
    case(
        "a FILTER",
        "SELECT count(*) FILTER (WHERE counter_value('c') = 100) FROM generate_series(1, 3)",
        To("3"),
    ),
    case(
        "CASE",
        "SELECT CASE WHEN counter_value('c') = 100 THEN counter_incr_get('c') ELSE counter_set('c', 0) END",
        To("101"),
    ),
    case(
        "ORDER BY",
        "SELECT n FROM generate_series(1, 3) n ORDER BY counter_incr_get('c') DESC LIMIT 1",
        To("3"),
    ),
    case(
        "GROUP BY and HAVING",
        "SELECT counter_value('c') FROM generate_series(1, 3) GROUP BY 1 HAVING counter_value('c') > 0",
        To("100"),
    ),
    case(
        "LIMIT",
        "SELECT count(*) FROM (SELECT FROM generate_series(1, 1000) LIMIT counter_value('c')) q",
        To("100"),
    ),
    case(
        "a WITH query that nobody reads",
        "WITH w AS MATERIALIZED (SELECT counter_incr('c')) SELECT counter_value('c')",
        To("100"),
    ),
    case(
        "LATERAL",
        "SELECT sum(v.value) FROM generate_series(1, 3) n, LATERAL counter_values(ARRAY['c', 'd' || n]) v",
        To("300"),
    ),
    case(
        "VALUES",
        "SELECT max(x) FROM (VALUES (counter_incr_get('c')), (counter_incr_get('c'))) v(x)",
        To("102"),
    ),
    case(
        "a recursive query",
        "WITH RECURSIVE r(n) AS (SELECT counter_incr_get('c') UNION ALL SELECT counter_incr_get('c') FROM r WHERE n < 105) SELECT max(n) FROM r",
        To("105"),
    ),
    case(
        "a subquery of an IN",
        "SELECT 100 IN (SELECT counter_value('c'))",
        To("t"),
    ),
    case(
        "a row comparison",
        "SELECT (counter_value('c'), 1) < (101, 0)",
        To("t"),
    ),
    case(
        "a view",
        "CREATE VIEW v AS SELECT counter_value('c') x, (SELECT count(*) FROM counters) y; SELECT x FROM v",
        To("100"),
    ),
    case(
        "a view that counts",
        "CREATE VIEW vc AS SELECT counter_incr_get('c') x; SELECT x FROM vc",
        To("101"),
    ),
    case(
        "a materialized view",
        "CREATE MATERIALIZED VIEW m AS SELECT counter_value('c') x; SELECT counter_incr('c'); REFRESH MATERIALIZED VIEW m; SELECT x FROM m",
        To("101"),
    ),
    case(
        "a generated column",
        "CREATE TABLE g (n bigint, v bigint GENERATED ALWAYS AS (counter_value('c')) STORED)",
        Not("42P17"),
    ),
    case(
        "an index on an expression",
        "CREATE TABLE i (n text); CREATE INDEX ON i (counter_value(n))",
        Not("42P17"),
    ),
    case(
        "a partial index",
        "CREATE TABLE pi (n text); CREATE INDEX ON pi (n) WHERE counter_value(n) > 0",
        Not("42P17"),
    ),
    case(
        "a partition key",
        "CREATE TABLE pk (n text) PARTITION BY RANGE (counter_value(n))",
        Not("42P17"),
    ),
    case(
        "a column default",
        "CREATE TABLE d (n int, v bigint DEFAULT counter_incr_get('c')); INSERT INTO d (n) VALUES (1), (2); SELECT max(v) FROM d",
        To("102"),
    ),
    case(
        "a check that holds",
        "CREATE TABLE k (n text CHECK (counter_value('c') < 101)); INSERT INTO k VALUES ('a'); SELECT n FROM k",
        To("a"),
    ),
    case(
        "a check that fails",
        "CREATE TABLE kf (n text CHECK (counter_incr_get('c') < 50)); INSERT INTO kf VALUES ('a')",
        Not("23514"),
    ),
    case(
        "a domain's check",
        "CREATE DOMAIN dc AS int CHECK (counter_value('c') = 100); SELECT 1::dc",
        To("1"),
    ),
    case(
        "an exclusion by ON CONFLICT",
        "CREATE TABLE o (n int PRIMARY KEY, v bigint); INSERT INTO o VALUES (1, 0); INSERT INTO o VALUES (1, 0) ON CONFLICT (n) DO UPDATE SET v = counter_incr_get('c'); SELECT v FROM o",
        To("101"),
    ),
    case(
        "RETURNING",
        "CREATE TABLE rt (n int); INSERT INTO rt VALUES (1), (2) RETURNING counter_incr_get('c')",
        To("102"),
    ),
    case(
        "a USING of a column's type",
        "CREATE TABLE au (n text); INSERT INTO au VALUES ('c'); ALTER TABLE au ALTER n TYPE bigint USING counter_value(n); SELECT n FROM au",
        To("100"),
    ),
    case(
        "a policy",
        "CREATE TABLE p (n text); INSERT INTO p VALUES ('c'), ('none'); ALTER TABLE p ENABLE ROW LEVEL SECURITY; CREATE ROLE reads_p; GRANT SELECT ON p TO reads_p; CREATE POLICY y ON p USING (counter_value(n) > 0); SET ROLE reads_p; SELECT n FROM p",
        To("c"),
    ),
    case(
        "a policy that counts",
        "CREATE TABLE pc (n text); INSERT INTO pc VALUES ('c'); ALTER TABLE pc ENABLE ROW LEVEL SECURITY; CREATE ROLE reads_pc; GRANT SELECT ON pc TO reads_pc; CREATE POLICY y ON pc USING (counter_incr_get(n) > 0); SET ROLE reads_pc; SELECT counter_value(n) FROM pc",
        To("101"),
    ),
    case(
        "a rule",
        "CREATE TABLE r (n int); CREATE RULE y AS ON INSERT TO r DO ALSO SELECT counter_incr('c'); INSERT INTO r VALUES (1); SELECT counter_value('c')",
        To("101"),
    ),
    case(
        "triggers",
        "CREATE TABLE t (n int); CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM counter_incr('c'); RETURN NEW; END $$; CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION t(); CREATE TRIGGER a AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION t(); INSERT INTO t VALUES (1), (2); SELECT counter_value('c')",
        To("103"),
    ),
    case(
        "a constraint trigger at commit",
        "CREATE TABLE ct (n int); CREATE FUNCTION ct() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM counter_incr('c'); RETURN NULL; END $$; CREATE CONSTRAINT TRIGGER c AFTER INSERT ON ct DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ct(); BEGIN; INSERT INTO ct VALUES (1), (2); COMMIT; SELECT counter_value('c')",
        To("102"),
    ),
    case(
        "an event trigger",
        "CREATE FUNCTION et() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM counter_incr('c'); END $$; CREATE EVENT TRIGGER et ON ddl_command_end EXECUTE FUNCTION et(); CREATE TABLE ett (n int); DROP EVENT TRIGGER et; SELECT counter_value('c')",
        To("101"),
    ),
    case(
        "a cursor",
        "BEGIN; DECLARE y CURSOR FOR SELECT counter_incr_get('c') FROM generate_series(1, 5); FETCH 2 FROM y; COMMIT; SELECT counter_value('c')",
        To("102"),
    ),
    case(
        "a held cursor",
        "BEGIN; DECLARE hy CURSOR WITH HOLD FOR SELECT counter_incr_get('c') FROM generate_series(1, 5); COMMIT; CLOSE hy; SELECT counter_value('c')",
        To("105"),
    ),
    case(
        "COPY of a query",
        "COPY (SELECT counter_incr_get('c')) TO '/dev/null'; SELECT counter_value('c')",
        To("101"),
    ),
    case(
        "EXPLAIN ANALYZE",
        "EXPLAIN ANALYZE SELECT counter_incr('c'); SELECT counter_value('c')",
        To("101"),
    ),
    case(
        "EXPLAIN",
        "EXPLAIN SELECT counter_incr('c'); SELECT counter_value('c')",
        To("100"),
    ),
    case(
        "SECURITY DEFINER",
        "CREATE FUNCTION sd() RETURNS bigint SECURITY DEFINER LANGUAGE sql SET search_path = public, pg_temp AS $$ SELECT counter_incr_get('c') $$; SELECT sd()",
        To("101"),
    ),
    case(
        "an error in a block",
        "DO $$ BEGIN PERFORM counter_incr('c'); PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END $$; SELECT counter_value('c')",
        To("100"),
    ),
    case(
        "an error of ours in a block",
        "DO $$ BEGIN PERFORM counter_incr('c'); PERFORM counter_incr(''); EXCEPTION WHEN invalid_parameter_value THEN NULL; END $$; SELECT counter_value('c')",
        To("100"),
    ),
    case(
        "a loop of blocks",
        "DO $$ BEGIN FOR n IN 1..100 LOOP BEGIN PERFORM counter_incr('c'); PERFORM counter_rename('none' || n, 'c'); EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$; SELECT counter_value('c')",
        To("100"),
    ),
    case(
        "a statement that fails late",
        "SELECT counter_incr('c') FROM generate_series(1, 1000) n WHERE 1 / (1000 - n) >= 0",
        Not("22012"),
    ),
    case(
        "a parallel plan",
        "SET LOCAL_PARALLEL; SELECT count(*) FROM big WHERE n % 7 = counter_value('none')",
        To("2857"),
    ),
    case(
        "a parallel plan around a list",
        "SET LOCAL_PARALLEL; SELECT count(*) FROM big JOIN counters ON name = 'c' WHERE n <= value",
        To("100"),
    ),
    case(
        "a query that changes is not parallel",
        "SET LOCAL_PARALLEL; SELECT count(counter_incr('c')) FROM big WHERE n <= 5; SELECT counter_value('c')",
        To("105"),
    ),
    case(
        "a worker that reads",
        "SET LOCAL_PARALLEL; CREATE FUNCTION safe_read(int) RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN RETURN counter_value('c'); END $$; SELECT sum(safe_read(n)) FROM big",
        Not("25000"),
    ),
    case(
        "a worker that counts",
        "SET LOCAL_PARALLEL; CREATE FUNCTION safe_count(int) RETURNS bigint LANGUAGE plpgsql PARALLEL SAFE AS $$ BEGIN RETURN counter_incr_get('c'); END $$; SELECT sum(safe_count(n)) FROM big",
        Not("25000"),
    ),
    case(
        "a parallel query that asks what is available",
        "SET LOCAL_PARALLEL; CREATE FUNCTION safe_ask(int) RETURNS bigint LANGUAGE plpgsql PARALLEL RESTRICTED AS $$ BEGIN RETURN (SELECT value FROM counter_available('c')); END $$; SELECT sum(safe_ask(n)) FROM (SELECT count(*)::int AS n FROM big) b",
        Not("25000"),
    ),
    case(
        "a composite result",
        "SELECT (counter_available('c')).value",
        To("100"),
    ),
    case(
        "a set in a list of columns",
        "SELECT (counter_list('c')).value",
        To("100"),
    ),
    case(
        "an ordinality",
        "SELECT ordinality FROM counter_values(ARRAY['x', 'c']) WITH ORDINALITY WHERE value = 100",
        To("2"),
    ),
    case(
        "an array that is called variadic",
        "SELECT counter_values(VARIADIC ARRAY['c'])",
        To("(c,100)"),
    ),
    case(
        "DISTINCT in a call",
        "SELECT counter_incr(DISTINCT 'c')",
        Not("42809"),
    ),
    case(
        "OVER in a call",
        "SELECT counter_value('c') OVER ()",
        Not("42809"),
    ),
    case(
        "a trigger function that is called",
        "SELECT counterx.type_changed()",
        Not("39P01"),
    ),
    case(
        "a handler that is called",
        "SELECT counterx.fdw_handler()",
        Not("0A000"),
    ),
    case(
        "rows for the view",
        "INSERT INTO counters VALUES ('c', 1)",
        Not("0A000"),
    ),
    case(
        "an update of the view",
        "UPDATE counters SET value = 0",
        Not("0A000"),
    ),
    case(
        "a delete from the view",
        "DELETE FROM counters",
        Not("0A000"),
    ),
    case(
        "a locking read of the view",
        "SELECT value FROM counters WHERE name = 'c' FOR UPDATE",
        To("100"),
    ),
    case(
        "system columns of the view",
        "SELECT ctid FROM counters",
        Not("42703"),
    ),
    case(
        "another table of the wrapper",
        "CREATE FOREIGN TABLE ft (name int, value text, more int) SERVER counterx; SELECT * FROM ft",
        Not("HV006"),
    ),
    case(
        "an empty table of the wrapper",
        "CREATE FOREIGN TABLE ft0 () SERVER counterx; SELECT count(*) FROM ft0",
        Not("HV006"),
    ),
    case(
        "ANALYZE",
        "ANALYZE counterx.listing; SELECT counter_value('c')",
        To("100"),
    ),
    case(
        "a transition table",
        "CREATE TABLE tt (n int); CREATE FUNCTION tt() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM counter_incr('c', (SELECT count(*) FROM new_rows)); RETURN NULL; END $$; CREATE TRIGGER y AFTER INSERT ON tt REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION tt(); INSERT INTO tt SELECT generate_series(1, 9); SELECT counter_value('c')",
        To("109"),
    ),
    case(
        "a procedure that commits",
        "CREATE PROCEDURE pr() LANGUAGE plpgsql AS $$ BEGIN FOR n IN 1..3 LOOP PERFORM counter_incr('c'); COMMIT; PERFORM counter_incr('c'); ROLLBACK; END LOOP; END $$; CALL pr(); SELECT counter_value('c')",
        To("103"),
    ),
];

/// Plans are parallel from the first row on.
const PARALLEL: &str = "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
    SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2;
    SET parallel_leader_participation = off";

pub(super) fn run(cluster: &Cluster, report: &mut PartReport) -> Result<()> {
    let mut client = create_database(cluster, "contexts")?;
    client.batch_execute("CREATE TABLE big AS SELECT generate_series(1, 20000) n; ANALYZE big")?;
    for case in CASES {
        client.batch_execute("RESET ROLE; RESET ALL; SELECT counter_set('c', 100)")?;
        let sql = case.sql.replace("SET LOCAL_PARALLEL", PARALLEL);
        // Each statement is a transaction, as the last one may fail.
        let mut statements: Vec<&str> = split(&sql);
        let last = statements.pop().context("no statement")?;
        for statement in statements {
            client
                .batch_execute(statement)
                .with_context(|| format!("{}: {statement}", case.place))?;
        }
        let outcome = answer(client.simple_query(last))?;
        match (&case.comes, outcome) {
            (To(expected), Ok(messages)) => {
                let rows = fuzz::rows(messages);
                let value = rows.last().and_then(|row| row.first().cloned().flatten());
                ensure!(
                    value.as_deref() == Some(expected),
                    "{}: {value:?}, expected {expected}",
                    case.place
                );
            }
            (Not(code), Err(refusal)) => {
                refusal.check().with_context(|| case.place.to_owned())?;
                ensure!(
                    refusal.code == *code,
                    "{}: {refusal:?}, expected {code}",
                    case.place
                );
                client.batch_execute("RESET ROLE")?;
                let value: i64 = client.query_one("SELECT counter_value('c')", &[])?.get(0);
                ensure!(
                    value == 100,
                    "{}: an error, and yet c is {value}",
                    case.place
                );
            }
            (To(expected), Err(refusal)) => {
                anyhow::bail!("{}: {refusal:?}, expected {expected}", case.place)
            }
            (Not(code), Ok(_)) => anyhow::bail!("{}: no error, expected {code}", case.place),
        }
    }
    report.tried("calls in places of a query", CASES.len() as u64);
    Ok(())
}

/// Statements, at semicolons outside of dollar quotes.
fn split(sql: &str) -> Vec<&str> {
    let (mut statements, mut begin, mut quoted) = (Vec::new(), 0, false);
    for (at, _) in sql.match_indices([';', '$']) {
        if sql[at..].starts_with("$$") {
            quoted = !quoted;
        }
        if sql[at..].starts_with(';') && !quoted {
            statements.push(sql[begin..at].trim());
            begin = at + 1;
        }
    }
    statements.push(sql[begin..].trim());
    statements
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn dollar_quotes_hide_semicolons() {
        assert_eq!(split("a; b $$ c; d $$; e"), ["a", "b $$ c; d $$", "e"]);
    }
}
