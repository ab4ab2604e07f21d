"""Alembic compares models with the database: what it makes of counterx there, in `public` and in a schema of its own."""

import unittest

import page_schema_tools as page
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, text

# How the extension is installed, and the name of the database in which it is.
INSTALLATIONS = {
    "public": "CREATE EXTENSION counterx",
    "counting": "CREATE SCHEMA counting; CREATE EXTENSION counterx SCHEMA counting",
}

metadata = MetaData()
Table("post", metadata, Column("id", Integer, primary_key=True))


def engine_of(database):
    return create_engine("postgresql+psycopg://", connect_args={"dbname": database})


def setUpModule():
    server = create_engine("postgresql+psycopg://", isolation_level="AUTOCOMMIT")
    for schema, commands in INSTALLATIONS.items():
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE alembic_{schema}"))
        engine = engine_of(f"alembic_{schema}")
        with engine.begin() as connection:
            connection.execute(text(commands))
        metadata.create_all(engine)
        engine.dispose()
    server.dispose()


class AlembicTest(unittest.TestCase):
    def migration(self, schema, **options):
        """What `alembic revision --autogenerate` would write."""
        engine = engine_of(f"alembic_{schema}")
        self.addCleanup(engine.dispose)
        with engine.connect() as connection:
            context = MigrationContext.configure(connection, opts=options)
            return render_python_code(produce_migrations(context, metadata).upgrade_ops)

    def test_the_comparison_sees_changes(self):
        engine = engine_of("alembic_public")
        self.addCleanup(engine.dispose)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE gone (id int)"))
        self.assertIn("op.drop_table('gone')", self.migration("public"))
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE gone"))

    def test_nothing_is_to_be_changed(self):
        for schema in INSTALLATIONS:
            with self.subTest(schema):
                self.assertNotIn("op.", self.migration(schema))

    def test_with_all_schemas_the_internals_are_to_be_left_out(self):
        for schema in INSTALLATIONS:
            with self.subTest(schema):
                self.assertIn("op.drop_table('total', schema='counterx')", self.migration(schema, include_schemas=True))
                filtered = self.migration(schema, include_schemas=True, include_name=page.include_name)
                self.assertNotIn("op.", filtered)


if __name__ == "__main__":
    unittest.main()
