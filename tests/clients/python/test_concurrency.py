"""Many connections at once."""

import asyncio
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import psycopg
from psycopg import IsolationLevel, errors

from support import DEADLINE, CounterTest, eventually


def in_threads(count, work):
    """Calls work(0), work(1), ... at the same time, and returns their results."""
    barrier = threading.Barrier(count)

    def start(number):
        barrier.wait(DEADLINE)
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(start, range(count)))


class Async(CounterTest, unittest.IsolatedAsyncioTestCase):
    async def test_concurrent_tasks(self):
        name = self.name("hot")

        async def work(number):
            async with await psycopg.AsyncConnection.connect() as conn:
                for n in range(50):
                    await conn.execute("SELECT counter_incr(%s)", [name])
                    await conn.execute(
                        "SELECT counter_incr(%s, %s)", [self.name(f"own {number}"), n])
                    # Every fifth transaction fails.
                    await (conn.rollback() if n % 5 == 4 else conn.commit())

        await asyncio.gather(*(work(number) for number in range(8)))
        kept = sum(n for n in range(50) if n % 5 != 4)
        self.assertEqual(
            self.values(), {"hot": 8 * 40} | {f"own {number}": kept for number in range(8)})

    async def test_pipeline(self):
        async with await psycopg.AsyncConnection.connect(autocommit=True) as conn:
            async with conn.pipeline():
                cursors = [
                    await conn.execute("SELECT counter_incr_get(%s)", [self.name("x")])
                    for _ in range(100)
                ]
            got = [(await cursor.fetchone())[0] for cursor in cursors]
        self.assertEqual(got, list(range(1, 101)))

    async def test_cancelled_task(self):
        # A task that is cancelled in mid-transaction leaves nothing.
        counted = asyncio.Event()

        async def work():
            async with await psycopg.AsyncConnection.connect() as conn:
                await conn.execute("SELECT counter_incr(%s)", [self.name("x")])
                counted.set()
                await conn.execute("SELECT pg_sleep(600)")

        task = asyncio.create_task(work())
        await asyncio.wait_for(counted.wait(), DEADLINE)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(self.values(), {})


class Threads(CounterTest):
    def test_hot_counter(self):
        def work(number):
            with psycopg.connect(autocommit=True) as conn:
                for _ in range(100):
                    conn.execute("SELECT counter_incr(%s)", [self.name("hot")])

        in_threads(8, work)
        self.assertEqual(self.values(), {"hot": 800})

    def test_nobody_waits_for_an_open_transaction(self):
        slow = self.connect()
        slow.execute("SELECT counter_incr(%s)", [self.name("hot")])
        # Whoever waits for it waits until the end of this test.
        self.db.execute("SET lock_timeout = '10s'")
        for _ in range(50):
            self.db.execute("SELECT counter_incr(%s)", [self.name("hot")])
        self.assertEqual(self.value("hot"), 50)
        slow.commit()
        self.assertEqual(self.value("hot"), 51)

    def test_transfers_keep_the_sum(self):
        accounts = [self.name(f"account {n}") for n in range(5)]
        stop = threading.Event()

        def work(number):
            if number == 0:
                # A reader, who must never see half of a transfer.
                with psycopg.connect(autocommit=True) as conn:
                    seen = []
                    while not (stop.is_set() and seen):
                        seen.append(conn.execute(
                            "SELECT counter_sum(%s), (SELECT sum(value) FROM counter_values(%s)),"
                            " (SELECT coalesce(sum(value), 0) FROM counters WHERE name = ANY (%s))",
                            [self.prefix, accounts, accounts]).fetchone())
                    return seen
            try:
                with psycopg.connect() as conn:
                    for n in range(100):
                        source, target = accounts[n % 5], accounts[(n + number) % 5]
                        conn.execute("SELECT counter_decr(%s, %s)", [source, n])
                        conn.execute("SELECT counter_incr(%s, %s)", [target, n])
                        conn.commit()
            finally:
                done.append(number)
                if len(done) == 4:
                    stop.set()

        done = []
        seen = in_threads(5, work)[0]
        self.assertEqual(set(seen), {(0, 0, 0)})

    def test_serializable_with_retries(self):
        # Each transaction decides by what it reads. At this level that is as if one ran after the
        # other, so each sees another value, and none is left out.
        name = self.name("x")
        end = time.monotonic() + DEADLINE

        def work(number):
            seen = []
            with psycopg.connect() as conn:
                conn.isolation_level = IsolationLevel.SERIALIZABLE
                while len(seen) < 50 and time.monotonic() < end:
                    try:
                        value = conn.execute("SELECT counter_value(%s)", [name]).fetchone()[0]
                        conn.execute("SELECT counter_incr(%s)", [name])
                        conn.commit()
                    except errors.SerializationFailure:
                        conn.rollback()
                    else:
                        seen.append(value)
            return seen

        seen = sorted(value for values in in_threads(4, work) for value in values)
        self.assertEqual(seen, list(range(200)))
        self.assertEqual(self.values(), {"x": 200})

    def test_one_of_many_duplicates_counts(self):
        def work(number):
            with psycopg.connect(autocommit=True) as conn:
                return [
                    conn.execute(
                        "SELECT counter_incr_once(%s, %s)",
                        [self.name(f"message {n}"), self.name("x")]).fetchone()[0]
                    for n in range(20)
                ]

        for verdicts in zip(*in_threads(6, work)):
            self.assertEqual(sorted(verdicts), [False] * 5 + [True])
        self.assertEqual(self.values(), {"x": 20})

    def test_a_duplicate_waits_for_the_first(self):
        query = "SELECT counter_incr_once(%s, %s)"
        parameters = [self.name("message"), self.name("x")]
        for finish, expected in (("rollback", True), ("commit", False)):
            first, second = self.connect(), self.connect(autocommit=True)
            if finish == "commit":
                parameters[0] += " again"
            self.assertEqual(first.execute(query, parameters).fetchone(), (True,))
            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(lambda: second.execute(query, parameters).fetchone()[0])
                try:
                    eventually("the duplicate to wait", lambda: self.waits(second))
                finally:
                    getattr(first, finish)()
                self.assertIs(answer.result(DEADLINE), expected)
        self.assertEqual(self.values(), {"x": 2})

    def waits(self, conn):
        row = self.db.execute(
            "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s",
            [conn.info.backend_pid]).fetchone()
        return row[0]

    def test_sets_of_one_counter_serialise(self):
        # A set takes a lock on the name, and reads the newest value: no other set in between.
        name = self.name("x")

        def work(number):
            old = []
            with psycopg.connect() as conn:
                for n in range(25):
                    value = number * 25 + n + 1
                    row = conn.execute("SELECT counter_set(%s, %s)", [name, value]).fetchone()
                    conn.commit()
                    old.append(row[0])
            return old

        old = [value for values in in_threads(4, work) for value in values]
        # Every value but the last was met by exactly one other set; the first met 0.
        self.assertEqual(sorted([*old, self.value("x")]), list(range(101)))
