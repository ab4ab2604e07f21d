"""Counting what happens in tables: COPY, triggers, column defaults, INSERT ... SELECT."""

from psycopg import errors

from support import CounterTest

ROWS = [("open" if n % 3 else "done", n) for n in range(1, 301)]
EXPECTED = {"open": 200, "done": 100}


class Triggers(CounterTest):
    def setUp(self):
        super().setUp()
        self.db.execute("CREATE TABLE task (status text NOT NULL, amount bigint)")
        self.function("counter_name(status text) RETURNS text LANGUAGE sql",
                      f"SELECT '{self.prefix}' || status")

    def function(self, head, body):
        self.db.execute(f"CREATE FUNCTION {head} AS $body$ {body} $body$")

    def trigger_function(self, body):
        self.function("count_tasks() RETURNS trigger LANGUAGE plpgsql", f"BEGIN {body} END")

    def copy(self, conn, rows=ROWS):
        with conn.cursor().copy("COPY task FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def check_copy(self):
        self.copy(self.db)
        self.assertEqual(self.values(), EXPECTED)
        # A row that does not fit fails the whole COPY, and no row of it is counted.
        with self.assertRaises(errors.InvalidTextRepresentation):
            self.copy(self.db, [*ROWS, ("open", "many")])
        self.assertEqual(self.values(), EXPECTED)
        # So with a client that gives up.
        with self.assertRaises(ZeroDivisionError):
            self.copy(self.db, (("open", 1 // (100 - n)) for n in range(200)))
        self.assertEqual(self.values(), EXPECTED)

    def test_after_each_row(self):
        self.trigger_function("""
            PERFORM counter_incr(counter_name(NEW.status));
            RETURN NULL;""")
        self.db.execute("""
            CREATE TRIGGER count AFTER INSERT ON task
            FOR EACH ROW EXECUTE FUNCTION count_tasks()""")
        self.check_copy()

    def test_before_each_row(self):
        self.trigger_function("""
            NEW.amount := counter_incr_get(counter_name(NEW.status));
            RETURN NEW;""")
        self.db.execute("""
            CREATE TRIGGER count BEFORE INSERT ON task
            FOR EACH ROW EXECUTE FUNCTION count_tasks()""")
        self.check_copy()
        # Each row got a number of its own.
        numbers = self.db.execute(
            "SELECT status, array_agg(amount ORDER BY amount) FROM task GROUP BY status")
        self.assertEqual(dict(numbers), {s: list(range(1, n + 1)) for s, n in EXPECTED.items()})

    def test_once_a_statement_with_arrays(self):
        # The cheapest way: one call a statement. A statement without rows has a transition table
        # without rows, of which array_agg makes NULL, which is as good as an empty array.
        self.trigger_function("""
            PERFORM counter_incr_many(array_agg(counter_name(status)), array_agg(n))
            FROM (SELECT status, count(*) AS n FROM fresh GROUP BY status) AS counted;
            RETURN NULL;""")
        self.db.execute("""
            CREATE TRIGGER count AFTER INSERT ON task REFERENCING NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION count_tasks()""")
        self.copy(self.db, [])
        self.assertEqual(self.values(), {})
        self.check_copy()

    def test_once_a_statement_with_groups(self):
        self.trigger_function("""
            PERFORM counter_incr(counter_name(status), count(*)) FROM fresh GROUP BY status;
            RETURN NULL;""")
        self.db.execute("""
            CREATE TRIGGER count AFTER INSERT ON task REFERENCING NEW TABLE AS fresh
            FOR EACH STATEMENT EXECUTE FUNCTION count_tasks()""")
        self.check_copy()

    def test_all_changes(self):
        # Rows per status, kept through INSERT, UPDATE and DELETE.
        self.trigger_function("""
            IF TG_OP <> 'INSERT' THEN PERFORM counter_decr(counter_name(OLD.status)); END IF;
            IF TG_OP <> 'DELETE' THEN PERFORM counter_incr(counter_name(NEW.status)); END IF;
            RETURN NULL;""")
        self.db.execute("""
            CREATE TRIGGER count AFTER INSERT OR UPDATE OR DELETE ON task
            FOR EACH ROW EXECUTE FUNCTION count_tasks()""")
        self.copy(self.db)
        self.db.execute("UPDATE task SET status = 'done' WHERE amount > 290")
        self.db.execute("DELETE FROM task WHERE amount <= 30")
        with self.db.transaction(force_rollback=True):
            self.db.execute("DELETE FROM task")
            self.assertEqual(self.values(), {"open": 0, "done": 0})
        rows = self.db.execute("SELECT status, count(*) FROM task GROUP BY status")
        self.assertEqual(self.values(), dict(rows))

    def test_deferred_to_the_commit(self):
        self.trigger_function("""
            PERFORM counter_incr(counter_name(NEW.status));
            RETURN NULL;""")
        self.db.execute("""
            CREATE CONSTRAINT TRIGGER count AFTER INSERT ON task
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION count_tasks()""")
        conn = self.connect()
        self.copy(conn)
        value = "SELECT counter_value(counter_name('open'))"
        self.assertEqual(conn.execute(value).fetchone(), (0,))
        conn.commit()
        self.assertEqual(self.values(), EXPECTED)
        # PREPARE TRANSACTION runs deferred triggers too.
        conn.tpc_begin(conn.xid(1, self.schema, "deferred"))
        conn.execute("INSERT INTO task VALUES ('open')")
        conn.tpc_prepare()
        self.assertEqual(self.values(), EXPECTED)
        conn.tpc_commit()
        self.assertEqual(self.values(), EXPECTED | {"open": 201})

    def test_deferred_and_failing(self):
        self.trigger_function("""
            PERFORM counter_incr(counter_name(NEW.status), NEW.amount);
            IF NEW.amount < 0 THEN RAISE EXCEPTION 'less than nothing'; END IF;
            RETURN NULL;""")
        self.db.execute("""
            CREATE CONSTRAINT TRIGGER count AFTER INSERT ON task
            DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION count_tasks()""")
        conn = self.connect()
        conn.execute("INSERT INTO task VALUES ('open', 1), ('open', -1)")
        with self.assertRaises(errors.RaiseException):
            conn.commit()
        self.assertEqual(self.values(), {})
        # SET CONSTRAINTS runs them at once.
        conn.execute("INSERT INTO task VALUES ('open', 5)")
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        row = conn.execute("SELECT counter_value(counter_name('open'))").fetchone()
        self.assertEqual(row, (5,))
        conn.commit()
        self.assertEqual(self.values(), {"open": 5})


class Statements(CounterTest):
    def test_a_staging_table(self):
        self.db.execute("CREATE TABLE staging (page text, hits bigint)")
        rows = [(self.name(f"page {n % 13}"), n) for n in range(2000)]
        with self.db.cursor().copy("COPY staging FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["text", "int8"])
            for row in rows:
                copy.write_row(row)
        self.db.execute("SELECT counter_incr(page, hits) FROM staging")
        expected = {f"page {k}": sum(range(k, 2000, 13)) for k in range(13)}
        self.assertEqual(self.values(), expected)
        # The same, with one row for each counter.
        self.db.execute("SELECT counter_decr(page, sum(hits)::bigint) FROM staging GROUP BY page")
        self.assertEqual(set(self.values().values()), {0})

    def test_insert_select(self):
        self.db.execute("CREATE TABLE ticket (number bigint PRIMARY KEY)")
        for _ in range(3):
            self.db.execute(
                "INSERT INTO ticket SELECT counter_incr_get(%s) FROM generate_series(1, 50)",
                [self.name("ticket")])
        numbers = self.db.execute("SELECT number FROM ticket ORDER BY number").fetchall()
        self.assertEqual(numbers, [(n,) for n in range(1, 151)])
        self.assertEqual(self.values(), {"ticket": 150})

    def test_a_column_default(self):
        self.db.execute(f"""
            CREATE TABLE visit (
                page text,
                seen bigint DEFAULT counter_incr_get('{self.name("visit")}')
            )""")
        row = self.db.execute("INSERT INTO visit VALUES ('a') RETURNING seen").fetchone()
        self.assertEqual(row, (1,))
        rows = self.db.execute(
            "INSERT INTO visit (page) VALUES ('b'), ('c') RETURNING page, seen").fetchall()
        self.assertEqual(rows, [("b", 2), ("c", 3)])
        with self.db.cursor().copy("COPY visit (page) FROM STDIN") as copy:
            for page in "defgh":
                copy.write_row([page])
        seen = self.db.execute("SELECT array_agg(seen ORDER BY page) FROM visit").fetchone()[0]
        self.assertEqual(seen, list(range(1, 9)))
        # A value that is given needs no default.
        self.db.execute("INSERT INTO visit VALUES ('i', 0)")
        self.assertEqual(self.values(), {"visit": 8})

    def test_conflicts_are_not_counted(self):
        self.db.execute("CREATE TABLE liker (who text PRIMARY KEY)")
        query = """
            WITH fresh AS (
                INSERT INTO liker SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING RETURNING who
            )
            SELECT count(counter_incr(%s)) FROM fresh"""
        likes = self.name("likes")
        self.assertEqual(self.db.execute(query, [["ann", "bob"], likes]).fetchone(), (2,))
        self.assertEqual(self.db.execute(query, [["bob", "cid"], likes]).fetchone(), (1,))
        self.assertEqual(self.values(), {"likes": 3})

    def test_join_with_the_view(self):
        self.db.execute("CREATE TABLE page (id integer PRIMARY KEY, title text)")
        self.db.execute("INSERT INTO page SELECT n, 'page ' || n FROM generate_series(1, 5) n")
        self.db.execute(
            "SELECT counter_incr(%s || n, n * 10) FROM generate_series(1, 3) n", [self.prefix])
        rows = self.db.execute(
            "SELECT title, coalesce(value, 0)::bigint FROM page"
            " LEFT JOIN counters ON name = %s || id ORDER BY id", [self.prefix]).fetchall()
        self.assertEqual([value for _, value in rows], [10, 20, 30, 0, 0])

    def test_copy_out(self):
        self.db.execute("SELECT counter_incr(%s || n, n) FROM generate_series(1, 3) n", [self.prefix])
        with self.db.cursor().copy(
            "COPY (SELECT name, value FROM counters WHERE starts_with(name, %s) ORDER BY name)"
            " TO STDOUT", [self.prefix]
        ) as copy:
            rows = list(copy.rows())
        self.assertEqual(rows, [(self.name(str(n)), str(n)) for n in (1, 2, 3)])
