"""Each function as psycopg calls it: what goes in, what comes out, which errors there are."""

from decimal import Decimal

from psycopg import errors, sql
from psycopg.rows import dict_row, namedtuple_row
from psycopg.types.json import Jsonb

from support import CounterTest


class Calls(CounterTest):
    def test_increment_and_read(self):
        likes = self.name("likes")
        self.db.execute("SELECT counter_incr(%s)", [likes])
        self.db.execute("SELECT counter_incr(%s, %s)", [likes, 10])
        self.db.execute("SELECT counter_decr(%(name)s, %(delta)s)", {"name": likes, "delta": 2})
        self.db.execute("SELECT counter_incr(name => %s, delta => %s)", [likes, -1])
        row = self.db.execute("SELECT counter_value(%s)", [likes]).fetchone()
        self.assertEqual(row, (8,))
        # There is no need to create a counter, and none to ask whether there is one.
        row = self.db.execute("SELECT counter_value(%s)", [self.name("unknown")]).fetchone()
        self.assertEqual(row, (0,))

    def test_increment_returns_true(self):
        row = self.db.execute("SELECT counter_incr(%s)", [self.name("x")]).fetchone()
        self.assertEqual(row, (True,))

    def test_increment_and_get(self):
        ticket = self.name("ticket")
        for expected in (1, 2, 3):
            row = self.db.execute("SELECT counter_incr_get(%s)", [ticket]).fetchone()
            self.assertEqual(row, (expected,))
        row = self.db.execute("SELECT counter_incr_get(%s, %s)", [ticket, -5]).fetchone()
        self.assertEqual(row, (-2,))

    def test_literals_composed_on_the_client(self):
        # Text from outside belongs into a parameter. Where there can be none, psycopg quotes it.
        name = self.name("it's 100% \\ \"quoted\"")
        self.db.execute(sql.SQL("DO {}").format(
            sql.Literal(f"BEGIN PERFORM counter_incr({sql.quote(name)}, 3); END")))
        self.assertEqual(self.value("it's 100% \\ \"quoted\""), 3)

    def test_names_are_any_text(self):
        names = ["Zoë", "日本", "🐘", "with space", "a/b?c=d&e=%20", "new\nline", "NULL", "{}", "."]
        for number, name in enumerate(names, start=1):
            self.db.execute("SELECT counter_incr(%s, %s)", [self.name(name), number])
        self.assertEqual(self.values(), {name: n for n, name in enumerate(names, start=1)})

    def test_many_with_arrays(self):
        names = [self.name(n) for n in ("a", "b", "a")]
        # Lists are arrays. A name may be there twice.
        self.db.execute("SELECT counter_incr_many(%s, %s)", [names, [1, 2**40, 5]])
        self.assertEqual(self.values(), {"a": 6, "b": 2**40})
        # psycopg sends an empty list as an array of no known type, which fits any.
        self.db.execute("SELECT counter_incr_many(%s, %s)", [[], []])
        self.assertEqual(self.values(), {"a": 6, "b": 2**40})

    def test_many_with_jsonb(self):
        deltas = {self.name("a"): 3, self.name("b"): -4}
        self.db.execute("SELECT counter_incr_many(%s)", [Jsonb(deltas)])
        self.db.execute("SELECT counter_incr_many(%s)", [Jsonb({})])
        self.assertEqual(self.values(), {"a": 3, "b": -4})

    def test_many_is_all_or_nothing(self):
        names = [self.name("a"), None]
        with self.assertRaises(errors.NullValueNotAllowed):
            self.db.execute("SELECT counter_incr_many(%s, %s)", [names, [1, 1]])
        for deltas in ({self.name("a"): 1, self.name("b"): "many"}, {self.name("a"): 1.5}, [1]):
            with self.assertRaisesHint(errors.InvalidParameterValue, "22023"):
                self.db.execute("SELECT counter_incr_many(%s)", [Jsonb(deltas)])
        self.assertEqual(self.values(), {})

    def test_values_in_the_order_asked(self):
        self.db.execute("SELECT counter_incr_many(%s)", [
            Jsonb({self.name("a"): 1, self.name("b"): 2})])
        asked = [self.name(n) for n in ("b", "unknown", "a", "b")]
        rows = self.db.execute("SELECT name, value FROM counter_values(%s)", [asked]).fetchall()
        self.assertEqual(rows, list(zip(asked, [2, 0, 1, 2])))

    def test_list_page_by_page(self):
        names = [f"page:{n}" for n in range(25)] + ["page:Z", "page:ä", "pag", "pagf"]
        self.db.execute("SELECT counter_incr_many(%s, %s)", [
            [self.name(n) for n in names], list(range(1, len(names) + 1))])

        def pages(prefix, size):
            last = None
            while rows := self.db.execute(
                "SELECT name, value FROM counter_list(%s, after => %s, max_rows => %s)",
                [prefix, last, size],
            ).fetchall():
                yield rows
                last = rows[-1][0]

        got = list(pages(self.name("page:"), 10))
        self.assertEqual([len(page) for page in got], [10, 10, 7])
        # By bytes, whatever the database's collation is.
        expected = sorted((self.name(n) for n in names if n.startswith("page:")), key=str.encode)
        self.assertEqual([name for page in got for name, _ in page], expected)
        values = {self.name(name): n for n, name in enumerate(names, start=1)}
        self.assertTrue(all(value == values[name] for page in got for name, value in page))

    def test_top_and_bottom(self):
        self.db.execute("SELECT counter_incr_many(%s)", [
            Jsonb({self.name(n): v for n, v in {"a": 5, "b": 9, "c": 5, "d": -1}.items()})])
        cursor = self.db.cursor(row_factory=namedtuple_row)
        top = cursor.execute("SELECT * FROM counter_top(%s, %s)", [3, self.prefix]).fetchall()
        self.assertEqual([(row.rank, row.name, row.value) for row in top], [
            (1, self.name("b"), 9), (2, self.name("a"), 5), (2, self.name("c"), 5)])
        bottom = cursor.execute(
            "SELECT * FROM counter_bottom(prefix => %s)", [self.prefix]).fetchall()
        self.assertEqual([(row.rank, row.name, row.value) for row in bottom], [
            (1, self.name("d"), -1), (2, self.name("c"), 5), (2, self.name("a"), 5),
            (4, self.name("b"), 9)])

    def test_set_reset_and_drop(self):
        stock = self.name("stock")
        self.db.execute("SELECT counter_incr(%s, 7)", [stock])

        def call(query, *parameters):
            return self.db.execute(query, parameters).fetchone()[0]

        # Each returns the value before.
        self.assertEqual(call("SELECT counter_set(%s, %s)", stock, 100), 7)
        self.assertEqual(call("SELECT counter_reset(%s)", stock), 100)
        self.assertEqual(self.values(), {"stock": 0})
        self.assertIs(call("SELECT counter_drop(%s)", stock), True)
        self.assertIs(call("SELECT counter_drop(%s)", stock), False)
        self.assertEqual(self.values(), {})

    def test_rename_and_merge(self):
        old, new, other = self.name("old"), self.name("new"), self.name("other")
        self.db.execute("SELECT counter_incr(%s, 3), counter_incr(%s, 4)", [old, other])
        self.db.execute("SELECT counter_rename(%s, %s)", [old, new])
        self.assertEqual(self.values(), {"new": 3, "other": 4})
        self.db.execute("SELECT counter_merge(%s, %s)", [new, other])
        self.assertEqual(self.values(), {"new": 7})

    def test_once_a_token(self):
        mail = self.name("mail")
        first = self.db.execute(
            "SELECT counter_incr_once(%s, %s, %s)", [self.name("message 1"), mail, 2])
        self.assertIs(first.fetchone()[0], True)
        again = self.db.execute(
            "SELECT counter_incr_once(%s, %s, %s)", [self.name("message 1"), mail, 2])
        self.assertIs(again.fetchone()[0], False)
        self.assertEqual(self.values(), {"mail": 2})

    def test_once_a_token_with_the_value(self):
        mail = self.name("mail")
        call = "SELECT counter_incr_once_get(%s, %s)"
        first = self.db.execute(call, [self.name("message 1"), mail]).fetchone()[0]
        second = self.db.execute(call, [self.name("message 2"), mail]).fetchone()[0]
        replay = self.db.execute(call, [self.name("message 1"), mail]).fetchone()[0]
        self.assertEqual((first, second, replay), (1, 2, 1))

    def test_operators_functions(self):
        self.db.execute("SELECT counter_incr(%s)", [self.name("x")])
        folded = self.db.execute("SELECT counterx.compact()").fetchone()[0]
        self.assertIsInstance(folded, int)
        lanes = self.db.cursor(row_factory=dict_row).execute("SELECT * FROM counterx.lanes")
        self.assertGreater(len(lanes.fetchall()), 1)
        self.assertEqual(self.value("x"), 1)


class Types(CounterTest):
    """What comes back, in the text format and in the binary one."""

    def both_formats(self, query, *parameters):
        rows = [
            self.db.execute(query, parameters, binary=binary).fetchone()
            for binary in (False, True)
        ]
        self.assertEqual(rows[0], rows[1])
        return rows[0]

    def test_bigint_is_int(self):
        name = self.name("x")
        self.db.execute("SELECT counter_incr(%s, %s)", [name, 2**62])
        self.assertEqual(self.both_formats("SELECT counter_value(%s)", name), (2**62,))
        self.db.execute("SELECT counter_decr(%s, %s)", [name, 2**63 - 1])
        self.assertEqual(self.both_formats("SELECT counter_value(%s)", name), (-(2**62) + 1,))

    def test_bigint_in_tables_of_functions(self):
        self.db.execute("SELECT counter_incr(%s, -3)", [self.name("x")])
        row = (self.name("x"), -3)
        self.assertEqual(
            self.both_formats("SELECT * FROM counter_values(%s)", [self.name("x")]), row)
        self.assertEqual(self.both_formats("SELECT * FROM counter_list(%s)", self.prefix), row)
        self.assertEqual(
            self.both_formats("SELECT * FROM counter_top(1, %s)", self.prefix), (1, *row))

    def test_numeric_is_decimal(self):
        big = self.name("big")
        # More than a bigint holds: in two transactions, as one's sum has to fit.
        for _ in range(2):
            self.db.execute("SELECT counter_incr(%s, %s)", [big, 2**63 - 1])
        row = self.both_formats("SELECT value FROM counters WHERE name = %s", big)
        self.assertIsInstance(row[0], Decimal)
        self.assertEqual(row[0], 2**64 - 2)
        row = self.both_formats("SELECT counter_sum(%s)", self.prefix)
        self.assertIsInstance(row[0], Decimal)
        self.assertEqual(row[0], 2**64 - 2)
        row = self.both_formats("SELECT counter_sum(%s)", self.name("nothing begins like this"))
        self.assertEqual(row[0], 0)

    def test_boolean_is_bool(self):
        rows = [
            self.db.execute(
                "SELECT counter_incr_once(%s, %s)", [self.name("t"), self.name("x")], binary=binary
            ).fetchone()
            for binary in (False, True)
        ]
        self.assertEqual(rows, [(True,), (False,)])

    def test_binary_parameters(self):
        # %b asks for the binary format, and gets it, arrays included.
        names = [self.name("a"), self.name("b")]
        self.db.execute("SELECT counter_incr(%b, %b)", [names[0], 5])
        self.db.execute("SELECT counter_incr_many(%b, %b)", [names, [2**40, -1]])
        self.db.execute("SELECT counter_incr_many(%b)", [Jsonb({names[1]: 3})])
        self.assertEqual(self.values(), {"a": 5 + 2**40, "b": 2})


class Prepared(CounterTest):
    def prepared_statements(self):
        return [row[0] for row in self.db.execute("SELECT statement FROM pg_prepared_statements")]

    def test_prepared_at_once(self):
        name = self.name("x")
        # The plan is made anew five times, and then kept; folds come in between.
        for n in range(1, 51):
            self.db.execute("SELECT counter_incr(%s)", [name], prepare=True)
            row = self.db.execute("SELECT counter_value(%s)", [name], prepare=True).fetchone()
            self.assertEqual(row, (n,))
            row = self.db.execute(
                "SELECT value FROM counters WHERE name = %s", [name], prepare=True).fetchone()
            self.assertEqual(row, (n,))
        prepared = self.prepared_statements()
        self.assertIn("SELECT counter_incr($1)", prepared)
        self.assertIn("SELECT counter_value($1)", prepared)

    def test_prepared_by_threshold(self):
        self.db.prepare_threshold = 0
        name = self.name("x")
        for n in range(1, 21):
            row = self.db.execute("SELECT counter_incr_get(%s, %s)", [name, 2]).fetchone()
            self.assertEqual(row, (2 * n,))
        self.assertIn("SELECT counter_incr_get($1, $2)", self.prepared_statements())

    def test_prepared_in_sql(self):
        name = self.name("x")
        self.db.execute("PREPARE hit (text) AS SELECT counter_incr_get($1)")
        values = [
            self.db.execute("EXECUTE hit(%s)" % sql.quote(name)).fetchone()[0] for _ in range(8)
        ]
        self.assertEqual(values, list(range(1, 9)))


class Errors(CounterTest):
    """Each error is a class of psycopg.errors, and says what to do about it."""

    def fails(self, error, sqlstate, query, *parameters):
        with self.assertRaisesHint(error, sqlstate):
            self.db.execute(query, parameters)
        self.assertEqual(self.values(), {})

    def test_null(self):
        for query in ("counter_incr(NULL)", "counter_incr(%s, NULL)", "counter_value(NULL)",
                      "counter_incr_get(NULL)", "counter_incr_once(NULL, %s)",
                      "counter_values(ARRAY[NULL])", "counter_list(NULL)", "counter_top(NULL)"):
            with self.subTest(query):
                parameters = [self.name("x")] if "%s" in query else []
                self.fails(errors.NullValueNotAllowed, "22004", f"SELECT {query}", *parameters)

    def test_names_of_wrong_length(self):
        for name in ("", "x" * 256, "ä" * 128):
            with self.subTest(name[:5]):
                self.fails(errors.InvalidParameterValue, "22023", "SELECT counter_incr(%s)", name)

    def test_out_of_range(self):
        name = self.name("x")
        with self.assertRaisesHint(errors.NumericValueOutOfRange, "22003"), \
                self.db.transaction():
            self.db.execute("SELECT counter_incr(%s, %s)", [name, 2**63 - 1])
            self.db.execute("SELECT counter_incr(%s)", [name])
        self.assertEqual(self.values(), {})

    def test_value_beyond_bigint(self):
        name = self.name("x")
        for _ in range(2):
            self.db.execute("SELECT counter_incr(%s, %s)", [name, 2**63 - 1])
        with self.assertRaisesHint(errors.NumericValueOutOfRange, "22003"):
            self.db.execute("SELECT counter_value(%s)", [name])
        self.assertEqual(self.values(), {"x": 2**64 - 2})

    def test_token_with_another_increment(self):
        token = self.name("token")
        self.db.execute("SELECT counter_incr_once(%s, %s, 2)", [token, self.name("x")])
        for rest, delta in (("x", 3), ("y", 2)):
            with self.assertRaisesHint(errors.InvalidParameterValue, "22023"):
                self.db.execute(
                    "SELECT counter_incr_once(%s, %s, %s)", [token, self.name(rest), delta])
        self.assertEqual(self.values(), {"x": 2})

    def test_read_only_transaction(self):
        conn = self.connect()
        conn.read_only = True
        name = self.name("x")
        for query in ("counter_incr(%s)", "counter_decr(%s)", "counter_incr_get(%s)",
                      "counter_reset(%s)", "counter_drop(%s)"):
            with self.subTest(query):
                with self.assertRaises(errors.ReadOnlySqlTransaction) as caught:
                    conn.execute(f"SELECT {query}", [name])
                self.assertEqual(caught.exception.sqlstate, "25006")
                conn.rollback()
        # Reading is what it is for.
        self.assertEqual(conn.execute("SELECT counter_value(%s)", [name]).fetchone(), (0,))
        rows = conn.execute("SELECT * FROM counters WHERE name = %s", [name]).fetchall()
        self.assertEqual(rows, [])

    def test_rights(self):
        role = f"{self.schema}_app"
        self.db.execute(f"CREATE ROLE {role}")
        self.addCleanup(self.db.execute, f"DROP OWNED BY {role}; DROP ROLE {role}")
        name = self.name("x")
        app = self.connect(autocommit=True)
        app.execute(f"SET ROLE {role}")
        # Everybody counts and reads.
        app.execute("SELECT counter_incr(%s)", [name])
        self.assertEqual(app.execute("SELECT counter_value(%s)", [name]).fetchone(), (1,))
        # To overwrite what others have counted takes a GRANT.
        with self.assertRaises(errors.InsufficientPrivilege):
            app.execute("SELECT counter_set(%s, 5)", [name])
        self.db.execute(f"GRANT EXECUTE ON FUNCTION counter_set TO {role}")
        self.assertEqual(app.execute("SELECT counter_set(%s, 5)", [name]).fetchone(), (1,))
        self.assertEqual(self.value("x"), 5)
