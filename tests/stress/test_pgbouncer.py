"""Behind PgBouncer in transaction pooling: many connections share few sessions, and what cannot work there says so.

The whole suite goes through it by `GREENORM_TEST_PGBOUNCER=1 pytest`; what cannot pass is in `behind_pgbouncer.toml`.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command
from django.db import ProgrammingError, connections, transaction
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow

import greenorm
from greenorm.management.commands.greenorm import Command
from tests.shop.models import Owner

from .aliases import alias, ask
from .pgbouncer import PROGRAM, figures, pgbouncer

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="PgBouncer, Debian's package, is not installed")

SESSIONS = 2


@pytest.fixture
def behind(admin: psycopg.Connection[TupleRow]) -> Iterator[str]:
    """The default alias's database through a PgBouncer that has two sessions for everybody."""
    with pgbouncer(make_conninfo(admin.info.dsn, password=admin.info.password), SESSIONS) as dsn:
        yield dsn


@pytest.fixture
def pooled(behind: str) -> Iterator[str]:
    options = {"pool": {"min_size": 0, "max_size": 10}}
    with alias("pooled", behind, options, DISABLE_SERVER_SIDE_CURSORS=True) as name:
        yield name


def names(using: str) -> list[str]:
    return list(Owner.objects.using(using).order_by("name").values_list("name", flat=True))


async def test_many_connections_share_few_sessions(behind: str, pooled: str) -> None:
    def work(i: int) -> int:
        with transaction.atomic(pooled):
            Owner.objects.using(pooled).create(name=f"{i:02}")
            with transaction.atomic(pooled):
                Owner.objects.using(pooled).create(name=f"{i:02} undone")
                transaction.set_rollback(True, pooled)
        return int(ask("SELECT pg_backend_pid()", using=pooled))

    sessions = set(await asyncio.gather(*[greenorm.run(work, i) for i in range(40)]))
    assert await greenorm.run(names, pooled) == [f"{i:02}" for i in range(40)]
    assert greenorm.pool_stats(pooled).opened == 10
    assert len(sessions) <= SESSIONS
    shown = [row for row in await asyncio.to_thread(figures, behind, "POOLS") if row["database"] != "pgbouncer"]
    assert sum(int(str(row["cl_active"])) for row in shown) == 10


async def test_an_async_transaction_keeps_its_session_over_its_awaits(pooled: str) -> None:
    async def transfer(i: int) -> None:
        async with greenorm.atomic(pooled):
            before = await greenorm.run(ask, "SELECT pg_backend_pid()", using=pooled)
            await greenorm.run(Owner.objects.using(pooled).create, name=str(i))
            await asyncio.sleep(0.001)
            assert await greenorm.run(ask, "SELECT pg_backend_pid()", using=pooled) == before

    await asyncio.gather(*[transfer(i) for i in range(10)])
    assert len(await greenorm.run(names, pooled)) == 10


async def test_a_cancelled_statement_is_stopped_on_the_server(pooled: str, admin: psycopg.Connection[TupleRow]) -> None:
    def running() -> Any:
        return admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' "
            "AND query LIKE '%pg_sleep(60)'"
        ).fetchone()

    await greenorm.run(ask, "SELECT 1", using=pooled)
    task = asyncio.create_task(greenorm.run(ask, "SELECT pg_sleep(60)", using=pooled))
    while running() == (0,):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running() == (0,)
    assert await greenorm.run(ask, "SELECT 1", using=pooled) == 1


async def test_iterators_read_all_without_server_side_cursors(pooled: str) -> None:
    def read() -> list[str]:
        Owner.objects.using(pooled).bulk_create(Owner(name=str(i)) for i in range(10))
        return [owner.name for owner in Owner.objects.using(pooled).order_by("pk").iterator(chunk_size=2)]

    expected = [str(i) for i in range(10)]
    assert await greenorm.run(read) == expected
    streamed = [owner.name async for owner in greenorm.iterate(Owner.objects.using(pooled).order_by("pk"))]
    assert streamed == expected


async def test_a_server_side_cursor_outside_of_a_transaction_is_an_error_that_names_it(behind: str) -> None:
    with alias("cursors", behind), psycopg.connect(behind) as conn:

        def reads_while_another_has_the_session() -> None:
            Owner.objects.using("cursors").bulk_create(Owner(name=str(i)) for i in range(10))
            owners = Owner.objects.using("cursors").iterator(chunk_size=2)
            next(owners)
            conn.execute("SELECT 1")  # PgBouncer gives it the session that was used last, for its transaction
            list(owners)

        # As with Django's own backend: the fetch fails by Django's error, and closing by psycopg's.
        with pytest.raises(
            psycopg.errors.InvalidCursorName, match=r'cursor "_django_curs_.*" does not exist'
        ) as caught:
            await greenorm.run(reads_while_another_has_the_session)
        assert isinstance(caught.value.__context__, ProgrammingError)
        assert greenorm.pool_stats("cursors").in_use == 0


async def test_a_server_side_cursor_inside_of_a_transaction_works(behind: str) -> None:
    def read() -> list[str]:
        with transaction.atomic("cursors"):
            Owner.objects.using("cursors").bulk_create(Owner(name=str(i)) for i in range(10))
            return [owner.name for owner in Owner.objects.using("cursors").order_by("pk").iterator(chunk_size=2)]

    with alias("cursors", behind):
        assert await greenorm.run(read) == [str(i) for i in range(10)]


async def test_a_connection_that_pgbouncer_has_dropped_is_replaced(behind: str, pooled: str) -> None:
    assert await greenorm.run(ask, "SELECT 1", using=pooled) == 1
    name = connections[pooled].settings_dict["NAME"]
    await asyncio.to_thread(drop_clients, behind, name)
    assert await greenorm.run(ask, "SELECT 1", using=pooled) == 1


def drop_clients(dsn: str, database: str) -> None:
    """Let PgBouncer drop every client of a database, and serve it again."""
    with psycopg.connect(make_conninfo(dsn, dbname="pgbouncer"), autocommit=True) as conn:
        cursor = psycopg.ClientCursor(conn)
        cursor.execute(f"KILL {database}".encode())
        cursor.execute(f"RESUME {database}".encode())


def test_doctor_tells_which_alias_is_behind_it(pooled: str, tmp_path: Path) -> None:
    output = io.StringIO()
    call_command(Command(), "doctor", "--json", "--path", str(tmp_path), stdout=output)
    found = {each["alias"]: each for each in json.loads(output.getvalue())["aliases"]}
    assert found[pooled]["pgbouncer"] is True
    assert found[pooled]["pool"]["max_size"] == 10
    assert found["default"]["pgbouncer"] is (os.environ.get("GREENORM_TEST_PGBOUNCER") == "1")
