"""What the tests share: how to connect, and how to wait.

The server and the user come from the environment (PGHOST, PGPORT, PGUSER, PGDATABASE), which
psycopg reads by itself.
"""

import os
import re
import time
import unittest

import psycopg

# How long a test waits for something that must happen. Generous: it only bounds a failure.
DEADLINE = 60

POOLER = {
    "port": os.environ["COUNTERX_POOLER_PORT"],
    # PgBouncer 1.18 does not know prepared statements of the protocol.
    "prepare_threshold": None,
}
# The same, with DISCARD ALL after each transaction.
RESETTING_POOLER = POOLER | {"port": os.environ["COUNTERX_RESETTING_POOLER_PORT"]}


def eventually(what, condition):
    """Calls `condition` until it says true."""
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {DEADLINE} s for {what}")
        time.sleep(0.02)


def backend_pid(conn):
    """The server process behind a connection; through a pooler, that of this moment."""
    return conn.execute("SELECT pg_backend_pid()").fetchone()[0]


class CounterTest(unittest.TestCase):
    """A test with an autocommit connection `self.db`, a schema of its own, which is first in the
    search path of all its connections, and a prefix of its own for counters: `self.prefix`."""

    def setUp(self):
        # module.Class.test_something
        group, test = self.id().split(".")[-2:]
        self.prefix = f"{group}:{test.removeprefix('test_')}:"
        self.schema = re.sub(r"\W", "_", self.prefix.lower())[:63]
        self.db = self.connect(autocommit=True)
        self.db.execute(f"CREATE SCHEMA {self.schema}")

    def connect(self, **options):
        """A connection to the server itself, closed at the end of the test."""
        options.setdefault("options", f"-c search_path={self.schema},public")
        conn = psycopg.connect(**options)
        self.addCleanup(conn.close)
        return conn

    def pooled(self, pooler=POOLER, **options):
        """A connection through PgBouncer, which takes no options for a session."""
        conn = psycopg.connect(**pooler, **options)
        self.addCleanup(conn.close)
        return conn

    def name(self, rest):
        return self.prefix + rest

    def value(self, rest):
        """The value that everybody sees."""
        row = self.db.execute("SELECT counter_value(%s)", [self.name(rest)]).fetchone()
        return row[0]

    def values(self):
        """All counters of this test, without the prefix. A counter that was never changed, or
        whose changes were all rolled back, is not among them."""
        rows = self.db.execute(
            "SELECT name, value FROM counters WHERE starts_with(name, %s)", [self.prefix]
        )
        return {name.removeprefix(self.prefix): int(value) for name, value in rows}

    def assertRaisesHint(self, error, sqlstate):
        """An error of that class, with that SQLSTATE and a hint."""
        return _Raises(self, error, sqlstate)


class _Raises:
    def __init__(self, test, error, sqlstate):
        self.context = test.assertRaises(error)
        self.test, self.sqlstate = test, sqlstate

    def __enter__(self):
        self.context.__enter__()

    def __exit__(self, *error):
        caught = self.context.__exit__(*error)
        if caught:
            diag = self.context.exception.diag
            self.test.assertEqual(diag.sqlstate, self.sqlstate)
            self.test.assertTrue(diag.message_hint, diag.message_primary)
        return caught
