"""Increments are part of the transaction, in whatever way a program makes its transactions."""

from psycopg import IsolationLevel, Rollback, errors

from support import CounterTest, backend_pid


class Transactions(CounterTest):
    def test_commit_and_rollback(self):
        conn = self.connect()
        name = self.name("x")
        conn.execute("SELECT counter_incr(%s, 3)", [name])
        # Seen by the transaction itself, and by nobody else until the commit.
        self.assertEqual(conn.execute("SELECT counter_value(%s)", [name]).fetchone(), (3,))
        self.assertEqual(self.value("x"), 0)
        conn.commit()
        self.assertEqual(self.value("x"), 3)
        conn.execute("SELECT counter_incr(%s, 50)", [name])
        conn.rollback()
        self.assertEqual(self.value("x"), 3)

    def test_nested_blocks_are_savepoints(self):
        class Changed(Exception):
            pass

        name = self.name("x")
        add = "SELECT counter_incr(%s, %s)"
        with self.db.transaction():
            self.db.execute(add, [name, 1])
            with self.db.transaction():
                self.db.execute(add, [name, 10])
                with self.assertRaises(Changed), self.db.transaction():
                    self.db.execute(add, [name, 100])
                    raise Changed
                row = self.db.execute("SELECT counter_value(%s)", [name]).fetchone()
                self.assertEqual(row, (11,))
            # An error of the server rolls back to the savepoint as well.
            with self.assertRaises(errors.DivisionByZero), self.db.transaction():
                self.db.execute(add, [name, 1000])
                self.db.execute("SELECT 1 / 0")
            self.db.execute(add, [name, 20])
        self.assertEqual(self.value("x"), 31)

    def test_outer_block_rolls_back_all(self):
        name = self.name("x")
        with self.db.transaction():
            with self.db.transaction():
                self.db.execute("SELECT counter_incr(%s)", [name])
            raise Rollback
        self.assertEqual(self.values(), {})

    def test_errors_in_mid_transaction(self):
        conn = self.connect()
        name = self.name("x")
        conn.execute("SELECT counter_incr(%s)", [name])
        with self.assertRaises(errors.UndefinedTable):
            conn.execute("SELECT * FROM no_such_table")
        with self.assertRaises(errors.InFailedSqlTransaction):
            conn.execute("SELECT counter_incr(%s)", [name])
        # A commit of a failed transaction is a rollback.
        conn.commit()
        self.assertEqual(self.values(), {})
        conn.execute("SELECT counter_incr(%s)", [name])
        conn.commit()
        self.assertEqual(self.values(), {"x": 1})

    def test_several_statements_in_one_string(self):
        # Without parameters psycopg sends them as they are: one transaction.
        incr = f"SELECT counter_incr('{self.name('x')}');"
        self.db.execute(incr * 3)
        self.assertEqual(self.value("x"), 3)
        with self.assertRaises(errors.DivisionByZero):
            self.db.execute(incr * 3 + "SELECT 1 / 0")
        self.assertEqual(self.value("x"), 3)

    def test_repeatable_read_keeps_its_snapshot(self):
        reader = self.connect()
        reader.isolation_level = IsolationLevel.REPEATABLE_READ
        name = self.name("x")
        query = "SELECT counter_value(%s)"
        self.assertEqual(reader.execute(query, [name]).fetchone(), (0,))
        for n in range(20):
            self.db.execute("SELECT counter_incr(%s)", [name])
            self.db.execute("SELECT counterx.compact()")
        self.assertEqual(reader.execute(query, [name]).fetchone(), (0,))
        # What it adds itself comes on top.
        row = reader.execute("SELECT counter_incr_get(%s, 5)", [name]).fetchone()
        self.assertEqual(row, (5,))
        reader.commit()
        self.assertEqual(reader.execute(query, [name]).fetchone(), (25,))


class TwoPhase(CounterTest):
    """Distributed transactions: psycopg's tpc_ methods."""

    def prepare(self, delta):
        conn = self.connect()
        xid = conn.xid(1, self.schema, str(delta))
        conn.tpc_begin(xid)
        conn.execute("SELECT counter_incr(%s, %s)", [self.name("x"), delta])
        conn.tpc_prepare()
        return conn, xid

    def test_commit_and_rollback(self):
        for delta, finish in ((3, "tpc_commit"), (50, "tpc_rollback")):
            conn, _ = self.prepare(delta)
            before = self.value("x")
            getattr(conn, finish)()
            self.assertEqual(self.value("x"), before + (delta if finish == "tpc_commit" else 0))
        self.assertEqual(self.value("x"), 3)

    def test_another_connection_finishes_it(self):
        conn, xid = self.prepare(7)
        conn.close()
        self.assertEqual(self.values(), {})
        recovering = self.connect(autocommit=True)
        found = [x for x in recovering.tpc_recover() if x.gtrid == xid.gtrid]
        self.assertEqual(len(found), 1)
        recovering.tpc_commit(found[0])
        self.assertEqual(self.values(), {"x": 7})

    def test_in_doubt_stops_nobody(self):
        conn, _ = self.prepare(100)
        for n in range(1, 11):
            self.db.execute("SELECT counter_incr(%s)", [self.name("x")])
            self.db.execute("SELECT counterx.compact()")
            self.assertEqual(self.value("x"), n)
        conn.tpc_commit()
        self.assertEqual(self.value("x"), 110)


class Pipelines(CounterTest):
    """Many statements in one network round trip."""

    def test_many_increments(self):
        name = self.name("x")
        with self.db.pipeline():
            for n in range(1, 1001):
                self.db.execute("SELECT counter_incr(%s, %s)", [name, n])
        self.assertEqual(self.value("x"), 500500)

    def test_results_in_order(self):
        name = self.name("x")
        with self.db.pipeline():
            cursors = [
                self.db.execute("SELECT counter_incr_get(%s)", [name]) for _ in range(100)
            ]
        self.assertEqual([c.fetchone()[0] for c in cursors], list(range(1, 101)))

    def test_an_error_takes_back_to_the_last_sync(self):
        name = self.name("x")
        add = "SELECT counter_incr(%s, %s)"
        with self.assertRaises(errors.InvalidParameterValue), self.db.pipeline() as pipeline:
            # Without BEGIN, what lies between two syncs is one transaction.
            self.db.execute(add, [name, 1])
            self.db.execute(add, [name, 10])
            pipeline.sync()
            self.db.execute(add, [name, 100])
            self.db.execute(add, ["", 1])
            self.db.execute(add, [name, 1000])
            pipeline.sync()
        self.assertEqual(self.value("x"), 11)
        # The connection is as good as new.
        self.db.execute(add, [name, 20])
        self.assertEqual(self.value("x"), 31)

    def test_an_error_in_a_transaction_block(self):
        name = self.name("x")
        with self.assertRaises(errors.InvalidParameterValue), self.db.pipeline():
            with self.db.transaction():
                self.db.execute("SELECT counter_incr(%s)", [name])
                self.db.execute("SELECT counter_incr('')")
        self.assertEqual(self.values(), {})

    def test_savepoints(self):
        name = self.name("x")
        add = "SELECT counter_incr(%s, %s)"
        with self.db.pipeline(), self.db.transaction():
            self.db.execute(add, [name, 1])
            with self.assertRaises(errors.DivisionByZero), self.db.transaction():
                self.db.execute(add, [name, 10])
                self.db.execute("SELECT 1 / 0").fetchone()
            self.db.execute(add, [name, 100])
        self.assertEqual(self.value("x"), 101)

    def test_executemany(self):
        # It is a pipeline inside.
        cursor = self.db.cursor()
        cursor.executemany(
            "SELECT counter_incr(%s, %s)", [(self.name(f"k{n % 7}"), n) for n in range(1000)])
        self.assertEqual(
            self.values(), {f"k{k}": sum(range(k, 1000, 7)) for k in range(7)})

    def test_executemany_with_results(self):
        cursor = self.db.cursor()
        cursor.executemany(
            "SELECT counter_incr_get(%s, %s)", [(self.name("x"), 2)] * 10, returning=True)
        got = [result.fetchone()[0] for result in cursor.results()]
        self.assertEqual(got, list(range(2, 21, 2)))


class Procedures(CounterTest):
    """Increments inside PL/pgSQL."""

    def test_exception_blocks(self):
        self.db.execute("""
            CREATE FUNCTION try_all(prefix text) RETURNS bigint LANGUAGE plpgsql AS $$
            BEGIN
                FOR n IN 1 .. 10 LOOP
                    BEGIN
                        PERFORM counter_incr(prefix || 'tried');
                        IF n % 3 = 0 THEN
                            RAISE EXCEPTION 'no multiples of three';
                        END IF;
                        PERFORM counter_incr(prefix || 'kept');
                    EXCEPTION WHEN raise_exception THEN
                        PERFORM counter_incr(prefix || 'caught');
                    END;
                END LOOP;
                RETURN counter_value(prefix || 'tried');
            END $$""")
        row = self.db.execute("SELECT try_all(%s)", [self.prefix]).fetchone()
        # The block's own increments go with it.
        self.assertEqual(row, (7,))
        self.assertEqual(self.values(), {"tried": 7, "kept": 7, "caught": 3})

    def test_do_block(self):
        self.db.execute(f"""
            DO $$
            BEGIN
                PERFORM counter_incr('{self.name("x")}', 5);
                BEGIN
                    PERFORM counter_incr('{self.name("x")}', 100);
                    PERFORM counter_incr('');
                EXCEPTION WHEN invalid_parameter_value THEN
                    NULL;
                END;
            END $$""")
        self.assertEqual(self.values(), {"x": 5})

    def test_a_procedure_that_commits(self):
        self.db.execute("""
            CREATE PROCEDURE count_up(name text, n integer) LANGUAGE plpgsql AS $$
            BEGIN
                FOR i IN 1 .. n LOOP
                    PERFORM counter_incr(name);
                    IF i % 10 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
                END LOOP;
            END $$""")
        # CALL has to be a transaction of its own: autocommit.
        self.db.execute("CALL count_up(%s, %s)", [self.name("x"), 200])
        self.assertEqual(self.values(), {"x": 180})

    def test_a_procedure_that_commits_and_fails(self):
        self.db.execute("""
            CREATE PROCEDURE count_and_fail(name text) LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM counter_incr(name);
                COMMIT;
                PERFORM counter_incr(name, 100);
                RAISE EXCEPTION 'that is it';
            END $$""")
        with self.assertRaises(errors.RaiseException):
            self.db.execute("CALL count_and_fail(%s)", [self.name("x")])
        self.assertEqual(self.values(), {"x": 1})


class Cursors(CounterTest):
    """Cursors on the server, for results that are larger than the client wants to hold."""

    def setUp(self):
        super().setUp()
        self.db.execute(
            "SELECT count(counter_incr(%s || lpad(n::text, 4, '0'), n))"
            " FROM generate_series(1, 1000) n",
            [self.prefix],
        )
        self.expected = [(self.name(f"{n:04}"), n) for n in range(1, 1001)]

    def test_over_the_view(self):
        conn = self.connect()
        with conn.cursor("listing") as cursor:
            cursor.itersize = 64
            cursor.execute(
                "SELECT name, value::bigint FROM counters WHERE starts_with(name, %s)"
                " ORDER BY name", [self.prefix])
            rows = []
            for row in cursor:
                if len(rows) == 100:
                    # What others do in the meantime, folds included, does not change the result.
                    self.db.execute("SELECT counter_incr(%s, 5000)", [self.name("0500")])
                    self.db.execute("SELECT counter_incr(%s, 5000)", [self.name("0500b")])
                    self.db.execute("SELECT counterx.compact()")
                rows.append(row)
        self.assertEqual(rows, self.expected)
        conn.rollback()
        self.assertEqual(self.value("0500"), 5500)

    def test_over_a_list(self):
        conn = self.connect()
        with conn.cursor("page") as cursor:
            cursor.itersize = 10
            cursor.execute(
                "SELECT * FROM counter_list(%s, max_rows => %s)", [self.prefix, 500])
            self.assertEqual(list(cursor), self.expected[:500])

    def test_held_over_the_commit(self):
        conn = self.connect()
        conn.execute("SELECT counter_incr(%s, 7)", [self.name("0001")])
        cursor = conn.cursor("held", withhold=True, scrollable=True)
        cursor.execute(
            "SELECT name, value::bigint FROM counters WHERE starts_with(name, %s) ORDER BY name",
            [self.prefix])
        conn.commit()
        # It has the transaction's own increments, and nothing that came later.
        self.db.execute("SELECT counter_incr(%s, 100)", [self.name("0002")])
        self.assertEqual(cursor.fetchone(), (self.name("0001"), 8))
        self.assertEqual(cursor.fetchmany(999), self.expected[1:])
        cursor.scroll(0, mode="absolute")
        cursor.close()

    def test_streamed(self):
        # Row by row, without a cursor on the server.
        stream = self.db.cursor().stream(
            "SELECT name, value::bigint FROM counters WHERE starts_with(name, %s) ORDER BY name",
            [self.prefix])
        self.assertEqual(list(stream), self.expected)

    def test_increments_through_a_cursor(self):
        # As far as it is fetched, so far it counts.
        conn = self.connect()
        with conn.cursor("counting") as cursor:
            cursor.itersize = 10
            cursor.execute(
                "SELECT counter_incr_get(%s) FROM generate_series(1, 100)", [self.name("n")])
            self.assertEqual([row[0] for row in cursor.fetchmany(30)], list(range(1, 31)))
        conn.commit()
        self.assertEqual(self.value("n"), 30)


class Retries(CounterTest):
    """A connection may break at the worst moment; with a token, a retry is safe."""

    def apply(self, conn, token):
        """What a consumer of messages does: it may be called again with the same message."""
        with conn.transaction():
            fresh = conn.execute(
                "SELECT counter_incr_once(%s, %s, %s)", [token, self.name("paid"), 25]
            ).fetchone()[0]
            if fresh:
                conn.execute("INSERT INTO payment VALUES (%s, 25)", [token])
        return fresh

    def setUp(self):
        super().setUp()
        self.db.execute("CREATE TABLE payment (token text, amount bigint)")

    def check(self, paid):
        amount = self.db.execute("SELECT coalesce(sum(amount), 0) FROM payment").fetchone()[0]
        self.assertEqual((self.value("paid"), amount), (paid, paid))

    def test_cut_in_mid_transaction(self):
        token = self.name("message 1")
        conn = self.connect(autocommit=True)
        with self.assertRaises(errors.OperationalError), conn.transaction():
            conn.execute(
                "SELECT counter_incr_once(%s, %s, 25)", [token, self.name("paid")])
            self.db.execute("SELECT pg_terminate_backend(%s, 60000)", [conn.info.backend_pid])
            conn.execute("INSERT INTO payment VALUES (%s, 25)", [token])
        self.assertTrue(conn.closed)
        self.check(0)
        # The token went with the transaction, so the retry counts; the retry of the retry does not.
        retry = self.connect(autocommit=True)
        self.assertIs(self.apply(retry, token), True)
        self.assertIs(self.apply(retry, token), False)
        self.check(25)

    def test_cut_after_the_commit(self):
        # The client sends the commit and never hears of it.
        token = self.name("message 1")
        conn = self.connect(autocommit=True)
        self.apply(conn, token)
        self.db.execute("SELECT pg_terminate_backend(%s, 60000)", [backend_pid(conn)])
        with self.assertRaises(errors.OperationalError):
            conn.execute("SELECT 1")
        self.assertIs(self.apply(self.connect(autocommit=True), token), False)
        self.check(25)

    def test_rolled_back_token_is_free_again(self):
        conn = self.connect()
        token = self.name("message 1")
        query = "SELECT counter_incr_once(%s, %s, 25)"
        for finish in (conn.rollback, conn.commit):
            self.assertEqual(conn.execute(query, [token, self.name("paid")]).fetchone(), (True,))
            finish()
        self.assertEqual(self.values(), {"paid": 25})
