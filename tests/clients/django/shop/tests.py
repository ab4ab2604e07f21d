"""Tests of the kinds that Django has, which count as docs/clients.md says: its lines, as they stand there."""

import page_django as page
from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import BooleanField, Func, Value
from django.db.models.signals import post_save
from django.db.utils import InternalError
from django.test import TestCase, TransactionTestCase

from shop.models import Comment, Post


def setUpModule():
    # Committed, for all tests.
    page.count("stock:mug", 3)


def tearDownModule():
    page.ask("SELECT counter_drop(%s)", "stock:mug")


def fail_once():
    """A function that fails with 40001 when it is called first."""
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == 1:
            with connections["default"].cursor() as cursor:
                cursor.execute("DO $$ BEGIN RAISE serialization_failure; END $$")
        return len(calls)

    return fail


class Rows(TestCase):
    databases = {"default", "replica"}

    def setUp(self):
        self.post = Post.objects.using("default").create(title="a")
        self.name = f"post:{self.post.pk}:comments"

    def test_a_trigger_sees_all_signals_do_not(self):
        seen = []

        def receive(instance, **_):
            seen.append(instance)

        post_save.connect(receive, Comment)
        self.addCleanup(post_save.disconnect, receive, Comment)
        Comment.objects.create(post_id=self.post.pk)
        Comment.objects.bulk_create([Comment(post_id=self.post.pk) for _ in range(4)])
        self.assertEqual((page.value(self.name), len(seen)), (5, 1))

    def test_rolled_back_block(self):
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            Comment.objects.create(post_id=self.post.pk)
            raise ZeroDivisionError
        self.assertEqual(page.value(self.name), 0)


class Counting(TestCase):
    databases = {"default", "replica"}

    def test_count(self):
        page.count("x")
        page.count("x", 4)
        self.assertEqual(page.value("x"), 5)

    def test_count_was_rolled_back(self):
        self.assertEqual(page.value("x"), 0)
        self.test_count()

    def test_take_all_there_is(self):
        self.assertIs(page.take("stock:mug", 3), True)
        self.assertIs(page.take("stock:mug", 1), False)
        # What the test has added, it can take.
        page.count("stock:mug", 5)
        self.assertIs(page.take("stock:mug", 5), True)
        self.assertIs(page.take("stock:mug", 1), False)

    def test_take_again(self):
        with self.assertRaises(IntegrityError) as raised, transaction.atomic():
            page.count("stock:mug", -4)
        self.assertEqual(raised.exception.__cause__.sqlstate, "23514")
        self.assertIs(page.take("stock:mug", 3), True)

    def test_hold_and_confirm(self):
        hold = page.ask("SELECT counter_hold(%s, %s, %s)", "stock:mug", 2, "1 minute")
        self.assertIs(page.take("stock:mug", 2), False)
        self.assertIs(page.ask("SELECT counter_hold_confirm(%s)", hold), True)
        self.assertEqual(page.value("stock:mug"), 1)

    def test_once(self):
        self.assertIs(page.count_once("token", "x"), True)
        self.assertIs(page.count_once("token", "x"), False)
        self.assertEqual(page.value("x"), 1)

    test_once_again = test_once

    def test_retry(self):
        fail = fail_once()
        self.assertEqual(page.in_transaction(lambda: page.count("x") or fail()), 2)
        self.assertEqual(page.value("x"), 1)

    def test_query_sets_are_no_place_to_count(self):
        def counting():
            incr = Func(Value("lazy"), function="counter_incr", output_field=BooleanField())
            return Post.objects.using("default").annotate(counted=incr)

        Post.objects.using("default").create(title="a")
        queries = counting()
        self.assertEqual(page.value("lazy"), 0)
        self.assertEqual(queries.count(), 1)
        self.assertTrue(queries.exists())
        self.assertEqual(page.value("lazy"), 0)
        list(queries), list(queries.all())
        self.assertEqual(page.value("lazy"), 2)

    def test_replica(self):
        for change in (page.count, page.take):
            with self.assertRaises(InternalError) as raised, transaction.atomic("replica"):
                change("x", 1, using="replica")
            self.assertEqual(raised.exception.__cause__.sqlstate, "25006")
        self.assertEqual(page.value("x", using="replica"), 0)


class Committing(TransactionTestCase):
    """Commits. What it counts is still there for the next one, unless it is dropped."""

    def tearDown(self):
        page.ask("SELECT count(counter_drop(name)) FROM counters WHERE name = %s", "committed")

    def test_retry(self):
        fail = fail_once()
        self.assertEqual(page.in_transaction(lambda: page.count("committed") or fail()), 2)
        self.assertEqual(page.value("committed"), 1)
        with self.assertRaises(OperationalError):
            page.in_transaction(lambda: page.count("committed") or fail_once()(), attempts=3)
        self.assertEqual(page.value("committed"), 1)

    def test_retry_in_a_transaction_is_refused(self):
        with self.assertRaises(RuntimeError), transaction.atomic():
            page.in_transaction(lambda: page.count("committed"))
        self.assertEqual(page.value("committed"), 0)

    def test_flush_leaves_counters(self):
        page.count("committed")
        Post.objects.using("default").create(title="a")
        self._fixture_teardown()
        self.assertEqual(Post.objects.using("default").count(), 0)
        self.assertEqual(page.value("committed"), 1)
