"""What docs/clients.md says of psycopg, run as it stands there."""

import os
import subprocess

import page_psycopg as page
from psycopg import Rollback, errors

from support import CounterTest


class Page(CounterTest):
    def setUp(self):
        super().setUp()
        self.kind = f"{self._testMethodName}"
        self.stock = f"{self.kind}:mug"
        self.db.execute("SELECT counter_type_create(%s, min => 0)", [self.kind])

    def test_count_and_look(self):
        page.count(self.db, self.name("x"))
        page.count(self.db, self.name("x"), 5)
        page.count_many(self.db, {self.name("x"): -2, self.name("y"): 7})
        self.assertEqual(page.value(self.db, self.name("x")), 4)
        self.assertEqual(self.values(), {"x": 4, "y": 7})

    def test_one_statement_each_row(self):
        with self.db.cursor() as cursor:
            cursor.executemany("CALL counter_add(%s, %s)", [[self.name("x"), n] for n in (1, 2, 3)])
            cursor.executemany("SELECT counter_incr(%s)", [[self.name("y")]] * 3)
        self.assertEqual(self.values(), {"x": 6, "y": 3})

    def test_without_autocommit_and_commit_nothing_is_counted(self):
        conn = self.connect()
        page.count(conn, self.name("x"))
        conn.close()
        self.assertEqual(self.values(), {})

    def test_take(self):
        page.count(self.db, self.stock, 2)
        self.assertIs(page.take(self.db, self.stock, 2), True)
        with self.db.transaction():
            self.assertIs(page.take(self.db, self.stock, 1), False)
            page.count(self.db, self.name("x"))
        self.assertEqual(self.values(), {"x": 1})
        with self.assertRaises(errors.CheckViolation) as raised:
            page.count(self.db, self.stock, -1)
        self.assertIsNone(raised.exception.diag.constraint_name)

    def test_once(self):
        for added in (True, False, False):
            self.assertIs(page.count_once(self.db, self.name("t"), self.name("x"), 3), added)
        self.assertEqual(self.value("x"), 3)

    def test_transactions_are_repeated(self):
        attempts = []

        def work(conn):
            attempts.append(conn)
            page.count(conn, self.name("x"))
            if len(attempts) < 3:
                conn.execute("DO $$ BEGIN RAISE serialization_failure; END $$")
            return page.value(conn, self.name("x"))

        self.assertEqual(page.in_transaction(self.db, work), 1)
        self.assertEqual((len(attempts), self.value("x")), (3, 1))
        attempts.clear()
        with self.assertRaises(errors.SerializationFailure):
            page.in_transaction(self.db, work, attempts=2)
        with self.assertRaises(AssertionError), self.db.transaction():
            page.in_transaction(self.db, work)
        self.assertEqual(self.value("x"), 1)

    def test_in_a_transaction_that_rolls_back(self):
        page.count(self.db, self.stock, 5)
        with self.db.transaction():
            page.count(self.db, self.name("x"))
            self.assertTrue(page.take(self.db, self.stock, 5))
            self.assertTrue(page.count_once(self.db, self.name("t"), self.name("x")))
            self.assertEqual(page.value(self.db, self.name("x")), 2)
            raise Rollback
        self.assertEqual((self.values(), page.value(self.db, self.stock)), ({}, 5))
        # What it adds itself, it can take.
        with self.db.transaction():
            page.count(self.db, self.stock, 5)
            self.assertTrue(page.take(self.db, self.stock, 10))
            self.assertFalse(page.take(self.db, self.stock, 1))
            raise Rollback
        self.assertTrue(page.count_once(self.db, self.name("t"), self.name("x")))

    def test_read_only(self):
        conn = self.connect(autocommit=True, options="-c default_transaction_read_only=on")
        with self.assertRaises(errors.ReadOnlySqlTransaction):
            page.count(conn, self.name("x"))
        with self.assertRaises(errors.ReadOnlySqlTransaction):
            page.take(conn, self.stock, 0)
        self.assertEqual(page.value(conn, self.name("x")), 0)

    def test_pooler(self):
        conn = self.pooled(autocommit=True)
        page.count(conn, self.name("x"))
        page.in_transaction(conn, lambda conn: page.count(conn, self.name("x")))
        self.assertEqual(page.value(conn, self.name("x")), 2)

    def test_a_dump_without_data_has_no_types(self):
        def dump(*options):
            command = [os.path.join(os.environ["COUNTERX_PG_BIN"], "pg_dump"), *options]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

        self.assertIn("CREATE EXTENSION", dump("--schema-only"))
        self.assertNotIn(self.kind, dump("--schema-only"))
        self.assertIn(self.kind, dump())
