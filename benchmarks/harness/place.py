"""Where measurements take place: a server, a schema of its own on it, rows that are the same each time."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import django
import psycopg
from django.apps import apps
from django.conf import settings
from django.db import connection

from greenorm.demo.server import Schema, database_settings, embedded_server, own_schema

from .proxy import delayed
from .target import Target
from .works import AUTHORS, BOOKS_OF_EACH, COUNTERS, ITEMS

FILLING = [
    f"""INSERT INTO bench_item (id, title, number, ratio, price, active, created, day, note, size)
    SELECT i, 'Item ' || i, i * 7 % 1000, i / 8.0, i / 100.0, i % 3 = 0,
        timestamptz '2026-01-01 00:00:00+00' + i * interval '1 minute', date '2026-01-01' + i % 365,
        repeat('note ', 1 + i % 10), i * 1000003::bigint
    FROM generate_series(1, {ITEMS}) AS i""",
    f"INSERT INTO bench_author (id, name) SELECT i, 'Author ' || i FROM generate_series(1, {AUTHORS}) AS i",
    f"""INSERT INTO bench_book (author_id, title) SELECT i, 'Book ' || i || '-' || j
    FROM generate_series(1, {AUTHORS}) AS i, generate_series(1, {BOOKS_OF_EACH}) AS j""",
    f"INSERT INTO bench_counter (id, value) SELECT i, 0 FROM generate_series(1, {COUNTERS}) AS i",
    """INSERT INTO bench_measurement (id, number, note) SELECT i, i %% 1000, 'measured'
    FROM generate_series(1, %(streamed)s::int) AS i""",
]


class Place:
    """A server with the data, near or, through a proxy, as far away as is asked for."""

    def __init__(self, schema: Schema, embedded: bool, streamed: int, stack: ExitStack) -> None:
        self.schema, self.embedded, self.streamed = schema, embedded, streamed
        self._stack = stack
        self._distant: dict[float, str] = {}

    def target(self, connections: int, delay: float = 0.0) -> Target:
        """Return where to connect to; with a delay, in milliseconds, that each round trip takes in addition.

        A proxy for it is started where there is none yet, and ends with the place.
        """
        if delay and delay not in self._distant:
            self._distant[delay] = self._stack.enter_context(delayed(self.schema.dsn, delay))
        return Target(self._distant[delay] if delay else self.schema.dsn, self.schema.name, connections)


@contextmanager
def prepared(streamed: int) -> Generator[Place]:
    """Find a server, the one that DATABASE_URL names or else an embedded one, and fill the tables.

    `streamed` is the number of measurements. Raises what `own_schema` and `embedded_server` raise. Leaves nothing on
    the server. Configures Django, and so works once in a process.
    """
    named = os.environ.get("DATABASE_URL")
    with ExitStack() as stack:
        schema = stack.enter_context(own_schema(named or stack.enter_context(embedded_server())))
        settings.configure(
            DATABASES={"default": database_settings(schema.dsn)},
            INSTALLED_APPS=["benchmarks.project"],
            USE_TZ=True,
        )
        django.setup()
        with connection.schema_editor() as editor:
            for model in apps.get_app_config("bench").get_models():
                editor.create_model(model)
        connection.close()
        with psycopg.connect(schema.dsn, autocommit=True) as conn:
            for statement in FILLING:
                conn.execute(statement.encode(), {"streamed": streamed} if "%(" in statement else None)
            conn.execute("ANALYZE")
        yield Place(schema, not named, streamed, stack)
