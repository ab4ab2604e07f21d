"""Through PgBouncer with pool_mode = transaction: each transaction of a client may be on another
connection to the server, and these are fewer than the clients.

counterx needs no session: what a transaction has counted is written or forgotten when it ends.
"""

import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import errors
from psycopg.types.json import Jsonb

from support import DEADLINE, POOLER, RESETTING_POOLER, CounterTest, backend_pid


class Pooled(CounterTest):
    def one(self, pooler=POOLER, **options):
        """A client of the pool that has one connection to the server."""
        return self.pooled(pooler, dbname="one", **options)

    def test_simple_calls(self):
        client = self.pooled(autocommit=True)
        name = self.name("x")
        client.execute("SELECT counter_incr(%s, 5)", [name])
        client.execute("SELECT counter_incr_many(%s, %s)", [[name, self.name("y")], [2, 3]])
        self.assertEqual(client.execute("SELECT counter_incr_get(%s)", [name]).fetchone(), (8,))
        rows = client.execute("SELECT * FROM counter_list(%s)", [self.prefix]).fetchall()
        self.assertEqual(rows, [(name, 8), (self.name("y"), 3)])

    def mixed_load(self, pooler):
        """12 clients, 2 connections to the server; at the end the counters are compared with a
        plain table that the same transactions wrote."""
        self.db.execute(f"CREATE TABLE {self.schema}.oracle (name text, delta bigint)")
        pids = set()

        def change(client, name, delta):
            client.execute("SELECT counter_incr(%s, %s)", [name, delta])
            client.execute(f"INSERT INTO {self.schema}.oracle VALUES (%s, %s)", [name, delta])

        def work(number):
            with psycopg.connect(**pooler) as client:
                for n in range(30):
                    change(client, self.name("hot"), 1)
                    pids.add(backend_pid(client))
                    with client.transaction(force_rollback=n % 3 == 0):
                        change(client, self.name(f"key {n % 7}"), n)
                        with client.transaction(force_rollback=n % 4 == 0):
                            change(client, self.name(f"key {number % 7}"), -number)
                    if n % 10 == 9:
                        with self.assertRaises(errors.DivisionByZero):
                            client.execute("SELECT 1 / 0")
                        client.commit()
                    elif n % 5 == 4:
                        client.rollback()
                    else:
                        client.commit()

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
        self.assertLessEqual(len(pids), 2)
        oracle = self.db.execute("SELECT name, sum(delta) FROM oracle GROUP BY name")
        expected = {name.removeprefix(self.prefix): int(delta) for name, delta in oracle}
        self.assertEqual(expected["hot"], 12 * 24)
        self.assertEqual(self.values(), expected)

    def test_more_clients_than_servers(self):
        self.mixed_load(POOLER)

    def test_discard_all_after_each_transaction(self):
        # server_reset_query_always = 1
        client = self.one(RESETTING_POOLER, autocommit=True)
        pid = backend_pid(client)
        before = client.execute("SHOW work_mem").fetchone()
        client.execute("SET work_mem = '1234kB'")
        client.execute("SELECT counter_incr(%s)", [self.name("x")])
        # It does what it is to do.
        self.assertEqual(client.execute("SHOW work_mem").fetchone(), before)
        self.assertEqual(backend_pid(client), pid)
        self.assertEqual(self.values(), {"x": 1})

    def test_more_clients_than_servers_with_discard_all(self):
        self.mixed_load(RESETTING_POOLER)

    def test_statement_mode(self):
        hits, increments = self.name("hits"), self.name("increments")
        pids = set()

        def work(_):
            with self.pooled(dbname="statement", autocommit=True) as client:
                for n in range(20):
                    self.assertTrue(client.execute("SELECT counter_hit(%s)", [hits]).fetchone()[0])
                    client.execute("SELECT counter_hit_many(%s)", [Jsonb({hits: 1, self.name("both"): 2})])
                    client.execute("SELECT counter_incr(%s)", [increments])
                    pids.add(backend_pid(client))
                client.execute("SELECT counter_hit(%s, wait => false)", [hits])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        self.assertLessEqual(len(pids), 2)
        # What waits comes after what was handed over before.
        self.db.execute("SELECT counter_hit(%s, 0)", [hits])
        self.assertEqual(self.values(), {"hits": 8 * 41, "both": 8 * 40, "increments": 8 * 20})
        # What needs a transaction of several statements is refused by the pooler, and counts nothing.
        client = self.pooled(dbname="statement", autocommit=False)
        with self.assertRaises(psycopg.Error):
            client.execute("SELECT counter_incr(%s)", [self.name("refused")])
        self.assertNotIn("refused", self.values())

    def test_autocommit(self):
        def work(number):
            with psycopg.connect(**POOLER, autocommit=True) as client:
                for _ in range(100):
                    client.execute("SELECT counter_incr(%s)", [self.name("hot")])

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
        self.assertEqual(self.values(), {"hot": 1200})

    def test_transactions_interleave(self):
        # Two open transactions, each on a server connection; two clients wait for one.
        name = self.name("x")
        first, second = self.pooled(), self.pooled()
        for client, delta in ((first, 1), (second, 10)):
            client.execute("SELECT counter_incr(%s, %s)", [name, delta])
        self.assertNotEqual(backend_pid(first), backend_pid(second))
        started = threading.Barrier(3)

        def work(number):
            with psycopg.connect(**POOLER) as client:
                started.wait(DEADLINE)
                return client.execute("SELECT counter_incr_get(%s, 100)", [name]).fetchone()[0]

        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(work, number) for number in range(2)]
            started.wait(DEADLINE)
            self.assertEqual(self.value("x"), 0)
            first.commit()
            # Both go one after the other over the first connection, while the second is still open.
            got = sorted(answer.result(DEADLINE) for answer in waiting)
        self.assertEqual(got, [101, 201])
        second.rollback()
        self.assertEqual(self.value("x"), 201)

    def test_rolled_back_and_next_on_the_same_server(self):
        name = self.name("x")
        first, second = self.one(), self.one(autocommit=True)
        first.execute("SELECT counter_incr(%s, 100)", [name])
        pid = backend_pid(first)
        first.rollback()
        # The next client meets the same server process, and nothing of what was counted there.
        self.assertEqual(backend_pid(second), pid)
        row = second.execute("SELECT counter_incr_get(%s)", [name]).fetchone()
        self.assertEqual(row, (1,))
        # So after a transaction that failed.
        with self.assertRaises(errors.DivisionByZero):
            first.execute("SELECT counter_incr(%s, 100), 1 / (1 - length('x'))", [name])
        first.rollback()
        row = second.execute("SELECT counter_incr_get(%s)", [name]).fetchone()
        self.assertEqual(row, (2,))
        self.assertEqual(backend_pid(second), pid)
        self.assertEqual(self.values(), {"x": 2})

    def leave(self, how):
        """A client goes away in mid-transaction; another one waits for the server connection."""
        name = self.name("x")
        # To the pool that has one connection.
        leaver, waiter = self.one(), self.one(autocommit=True)
        leaver.execute("SELECT counter_incr(%s, 100)", [name])
        leaver.execute("SAVEPOINT s")
        leaver.execute("SELECT counter_incr(%s, 100)", [name])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(
                lambda: waiter.execute("SELECT counter_incr_get(%s)", [name]).fetchone()[0])
            how(leaver)
            self.assertEqual(answer.result(DEADLINE), 1)
        self.assertEqual(waiter.execute("SELECT counter_incr_get(%s)", [name]).fetchone(), (2,))
        self.assertEqual(self.values(), {"x": 2})

    def test_client_that_says_goodbye_in_mid_transaction(self):
        self.leave(lambda client: client.close())

    def test_client_that_is_cut_off_in_mid_transaction(self):
        def cut(client):
            with socket.socket(fileno=client.fileno()) as connection:
                connection.shutdown(socket.SHUT_RDWR)
                connection.detach()

        self.leave(cut)

    def test_server_connection_that_is_cut(self):
        token = self.name("message")
        client = self.one()

        def apply():
            row = client.execute(
                "SELECT counter_incr_once(%s, %s)", [token, self.name("x")]).fetchone()
            return row[0]

        self.assertIs(apply(), True)
        self.db.execute("SELECT pg_terminate_backend(%s, 60000)", [backend_pid(client)])
        # PgBouncer has words of its own to add, and psycopg takes them for an error in the protocol.
        with self.assertRaises(errors.Error):
            client.commit()
        client = self.one()
        self.assertIs(apply(), True)
        client.commit()
        client = self.one()
        self.assertIs(apply(), False)
        client.commit()
        self.assertEqual(self.values(), {"x": 1})

    def test_settings_of_one_transaction(self):
        # SET would stay on the server connection for whoever comes next; SET LOCAL does not.
        client = self.one()
        before = client.execute("SHOW counterx.pending_work_mem").fetchone()
        client.commit()
        for finish in (client.rollback, client.commit):
            client.execute("SET LOCAL counterx.pending_work_mem = '64kB'")
            # More than that holds, so that much of it is written before the end.
            client.execute(
                "SELECT count(counter_incr(%s || n || repeat('.', 150), n))"
                " FROM generate_series(1, 2000) n", [self.prefix])
            finish()
            if finish == client.rollback:
                self.assertEqual(self.values(), {})
        self.assertEqual(
            self.values(), {f"{n}{'.' * 150}": n for n in range(1, 2001)})
        other = self.one(autocommit=True)
        self.assertEqual(other.execute("SHOW counterx.pending_work_mem").fetchone(), before)
        self.assertNotEqual(before, ("64kB",))

    def test_locks_end_with_the_transaction(self):
        # counter_set locks the name until the commit. It is not the session's lock, and so nothing
        # stays behind on the server connection.
        name = self.name("x")
        first, second = self.pooled(), self.pooled()
        self.assertEqual(first.execute("SELECT counter_set(%s, 5)", [name]).fetchone(), (0,))
        # Increments do not wait for it.
        second.execute("SELECT counter_incr(%s)", [name])
        self.assertNotEqual(backend_pid(first), backend_pid(second))
        second.commit()
        first.commit()
        # Past the pooler, and so certainly on another connection.
        self.db.execute("SET lock_timeout = '10s'")
        self.assertEqual(self.db.execute("SELECT counter_set(%s, 1)", [name]).fetchone(), (6,))

    def test_pipeline(self):
        client = self.pooled(autocommit=True)
        with client.pipeline():
            cursors = [
                client.execute("SELECT counter_incr_get(%s)", [self.name("x")])
                for _ in range(50)
            ]
        self.assertEqual([cursor.fetchone()[0] for cursor in cursors], list(range(1, 51)))

    def test_copy_with_a_trigger(self):
        self.db.execute("CREATE TABLE visit (page text)")
        self.db.execute("""
            CREATE FUNCTION count_visit() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM counter_incr(NEW.page);
                RETURN NULL;
            END $$""")
        self.db.execute(f"""
            CREATE TRIGGER count AFTER INSERT ON visit
            FOR EACH ROW EXECUTE FUNCTION {self.schema}.count_visit()""")
        client = self.pooled()
        for finish in (client.rollback, client.commit):
            with client.cursor().copy(f"COPY {self.schema}.visit FROM STDIN") as copy:
                for n in range(100):
                    copy.write_row([self.name(f"page {n % 2}")])
            finish()
        self.assertEqual(self.values(), {"page 0": 50, "page 1": 50})


class PreparedStatements(CounterTest):
    """With prepare_threshold=0, against the advice for PgBouncer before 1.21."""

    def client(self):
        return self.pooled(POOLER | {"prepare_threshold": 0}, autocommit=True)

    def has_prepared_statements(self):
        admin = self.pooled(dbname="pgbouncer", autocommit=True)
        version = admin.execute("SHOW VERSION").fetchone()[0]
        return [int(n) for n in version.removeprefix("PgBouncer ").split(".")[:2]] >= [1, 21]

    def test_within_one_transaction(self):
        client, name = self.client(), self.name("x")
        with client.transaction():
            got = [
                client.execute("SELECT counter_incr_get(%s)", [name]).fetchone()[0]
                for _ in range(10)
            ]
            # For the next client on this connection, whose statements may have the same names.
            client.execute("DEALLOCATE ALL")
        self.assertEqual(got, list(range(1, 11)))
        self.assertEqual(self.values(), {"x": 10})

    def test_over_transactions(self):
        if self.has_prepared_statements():
            self.skipTest("this PgBouncer takes care of prepared statements")
        name = self.name("x")
        client, other = self.client(), self.pooled()
        client.execute("SELECT counter_incr(%s)", [name])
        # `other` keeps the connection that `client` was on, which so gets another one. What was
        # prepared is not there. That is an error, and nothing is counted.
        own = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%counter_incr%'"
        self.assertEqual(other.execute(own).fetchone(), (1,))
        with self.assertRaises(errors.InvalidSqlStatementName):
            client.execute("SELECT counter_incr(%s)", [name])
        self.assertEqual(self.values(), {"x": 1})
        other.execute("DEALLOCATE ALL")
        other.commit()


class Hits(CounterTest):
    """Calls that count by themselves: a client's transaction may end, or be rolled back, as it likes."""

    def hits(self, pooler):
        def work(number):
            with psycopg.connect(**pooler) as client:
                for n in range(20):
                    client.execute("SELECT counter_hit(%s)", [self.name("hot")])
                    client.execute("SELECT counter_hit(%s, wait => false)", [self.name("silent")])
                    client.execute("SELECT counter_incr(%s)", [self.name("mine")])
                    if n % 4 == 0:
                        with self.assertRaises(errors.DivisionByZero):
                            client.execute("SELECT 1 / 0")
                    if n % 2 == 0:
                        client.rollback()
                    else:
                        client.commit()

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(work, range(12)))
        # Who waits comes after those for whom nobody does.
        self.db.execute("SELECT counter_hit(%s, 0)", [self.name("silent")])
        self.assertEqual(self.values(), {"hot": 240, "silent": 240, "mine": 120})

    def test_through_the_pooler(self):
        self.hits(POOLER)

    def test_with_discard_all_after_each_transaction(self):
        self.hits(RESETTING_POOLER)

    def test_in_autocommit_and_in_a_pipeline(self):
        with self.connect(autocommit=True) as client:
            name = self.name("x")
            self.assertEqual(client.execute("SELECT counter_hit(%s, 5)", [name]).fetchone(), (True,))
            with client.pipeline():
                for n in range(50):
                    client.execute("SELECT counter_hit(%s)", [name])
                with self.assertRaises(errors.DivisionByZero):
                    client.execute("SELECT 1 / 0")
                    client.execute("SELECT counter_hit(%s)", [name]).fetchone()
        # What came before the error is counted; what the server has skipped is not.
        self.assertEqual(self.values(), {"x": 55})
