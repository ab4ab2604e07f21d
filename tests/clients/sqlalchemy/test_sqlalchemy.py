"""A small application on SQLAlchemy, which counts as docs/clients.md says: its lines, as they stand there."""

import os
import unittest

import page_sqlalchemy as page
from sqlalchemy import ForeignKey, create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

primary = create_engine("postgresql+psycopg://")
# A server that takes reads only, as a standby does.
replica = create_engine(
    "postgresql+psycopg://", connect_args={"options": "-c default_transaction_read_only=on"}
)


class Base(DeclarativeBase):
    pass


class Post(Base):
    __tablename__ = "alchemy_post"
    id: Mapped[int] = mapped_column(primary_key=True)


class Comment(Base):
    __tablename__ = "alchemy_comment"
    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey(Post.id))


@event.listens_for(Comment, "after_insert")
def count_comment(mapper, connection, comment):
    connection.execute(
        text("CALL counter_add('alchemy-event:' || :post)"), {"post": str(comment.post_id)}
    )


class RoutingSession(Session):
    """Writes of the unit of work go to the primary, all else to a replica: a recipe of SQLAlchemy's."""

    def get_bind(self, mapper=None, *, bind=None, **_):
        if bind is not None:
            return bind
        return primary if self._flushing else replica


def setUpModule():
    Base.metadata.create_all(primary)
    with primary.begin() as connection:
        connection.execute(text("SELECT counter_type_create('alchemy-stock', min => 0)"))
        connection.execute(text("""
            CREATE FUNCTION alchemy_count() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM counter_incr('alchemy-trigger:' || NEW.post_id);
                RETURN NULL;
            END $$"""))
        connection.execute(text(
            "CREATE TRIGGER count AFTER INSERT ON alchemy_comment FOR EACH ROW EXECUTE FUNCTION alchemy_count()"))
        connection.execute(text("CALL counter_add('alchemy-stock:mug', 3)"))


def committed(name):
    with primary.connect() as connection:
        return page.value(connection, name)


class Transactional(unittest.TestCase):
    """Each test in a transaction that is rolled back, whatever the code under test commits."""

    def setUp(self):
        connection = primary.connect()
        self.addCleanup(connection.close)
        self.addCleanup(connection.begin().rollback)
        self.session = Session(bind=connection, join_transaction_mode="create_savepoint")
        self.addCleanup(self.session.close)

    def comments(self, *, by_orm):
        post = Post()
        self.session.add(post)
        self.session.flush()
        for _ in range(3):
            if by_orm:
                self.session.add(Comment(post_id=post.id))
            else:
                self.session.execute(insert(Comment.__table__).values(post_id=post.id))
        self.session.commit()
        kinds = ("event", "trigger")
        return [page.value(self.session, f"alchemy-{kind}:{post.id}") for kind in kinds], post.id

    def test_rows_are_counted_by_events_and_by_triggers(self):
        counted, post = self.comments(by_orm=True)
        self.assertEqual(counted, [3, 3])
        self.assertEqual(committed(f"alchemy-trigger:{post}"), 0)

    def test_only_a_trigger_sees_all(self):
        self.assertEqual(self.comments(by_orm=False)[0], [0, 3])

    def test_count_twice_is_two(self):
        for _ in range(2):
            page.count(self.session, "alchemy", 2)
            self.session.commit()
        self.session.rollback()
        self.assertEqual(page.value(self.session, "alchemy"), 4)
        self.assertEqual(committed("alchemy"), 0)

    def test_take_all_there_is(self):
        self.assertIs(page.take(self.session, "alchemy-stock:mug", 3), True)
        self.assertIs(page.take(self.session, "alchemy-stock:mug", 1), False)
        # What the test has added, it can take.
        page.count(self.session, "alchemy-stock:mug", 5)
        self.assertIs(page.take(self.session, "alchemy-stock:mug", 5), True)
        self.assertIs(page.take(self.session, "alchemy-stock:mug", 1), False)

    def test_take_again_what_the_other_test_took(self):
        with self.assertRaises(IntegrityError) as raised, self.session.begin_nested():
            page.count(self.session, "alchemy-stock:mug", -4)
        self.assertEqual(raised.exception.orig.sqlstate, "23514")
        self.assertIs(page.take(self.session, "alchemy-stock:mug", 3), True)

    def test_hold_and_confirm(self):
        hold = self.session.scalar(
            select(func.counter_hold("alchemy-stock:mug", 2, text("interval '1 minute'"))))
        self.assertIs(page.take(self.session, "alchemy-stock:mug", 2), False)
        self.assertIs(self.session.scalar(select(func.counter_hold_confirm(hold))), True)
        self.assertEqual(page.value(self.session, "alchemy-stock:mug"), 1)

    def test_tokens_are_rolled_back(self):
        self.assertIs(page.count_once(self.session, "alchemy-token", "alchemy"), True)
        self.assertIs(page.count_once(self.session, "alchemy-token", "alchemy"), False)
        self.assertEqual(page.value(self.session, "alchemy"), 1)

    test_tokens_are_rolled_back_again = test_tokens_are_rolled_back


class Committed(unittest.TestCase):
    def test_a_connection_without_commit_counts_nothing(self):
        with primary.connect() as connection:
            page.count(connection, "alchemy-lost")
        self.assertEqual(committed("alchemy-lost"), 0)

    def test_transactions_are_repeated(self):
        attempts = []

        def work(session):
            attempts.append(session)
            page.count(session, "alchemy-retry")
            if len(attempts) < 3:
                session.execute(text("DO $$ BEGIN RAISE serialization_failure; END $$"))
            return page.value(session, "alchemy-retry")

        sessions = sessionmaker(primary)
        self.assertEqual(page.in_transaction(sessions, work), 1)
        self.assertEqual((len(set(attempts)), committed("alchemy-retry")), (3, 1))
        attempts.clear()
        with self.assertRaises(DBAPIError):
            page.in_transaction(sessions, work, attempts=2)
        self.assertEqual((len(attempts), committed("alchemy-retry")), (2, 1))

    def test_sessions_that_route(self):
        primary_only = {"bind_arguments": {"bind": primary}}
        with RoutingSession() as session:
            for refused in (page.count, page.take):
                with self.assertRaises(DBAPIError) as raised:
                    refused(session, "alchemy-route", 1)
                self.assertEqual(raised.exception.orig.sqlstate, "25006")
                session.rollback()
            page.count(session, "alchemy-route", 2, **primary_only)
            self.assertTrue(page.take(session, "alchemy-route", 1, **primary_only))
            session.commit()
            self.assertEqual(page.value(session, "alchemy-route"), 1)

    def test_through_a_pooler(self):
        pooled = create_engine(
            "postgresql+psycopg://", connect_args={
                "port": os.environ["COUNTERX_POOLER_PORT"], "prepare_threshold": None})
        self.addCleanup(pooled.dispose)
        for _ in range(10):
            page.in_transaction(sessionmaker(pooled), lambda s: page.count(s, "alchemy-pooled"))
        self.assertEqual(committed("alchemy-pooled"), 10)


if __name__ == "__main__":
    unittest.main()
