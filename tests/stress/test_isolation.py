"""What one scope leaves behind is not seen by the next that borrows its connection.

Always: what is of Django's wrapper, of psycopg's connection, of a transaction and of a cursor. With the pool's `reset`
also what the server's session remembers. Scopes of every kind are drawn by lot, in a row and side by side;
`GREENORM_STRESS_EXAMPLES=1000 pytest tests/stress/test_isolation.py` draws as many for each test.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from django.db import ProgrammingError, connection, transaction
from django.utils import timezone, translation
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import IsolationLevel
from psycopg.rows import dict_row

import greenorm
from tests.shop.models import Owner

from .aliases import alias, ask

ROLE = "greenorm_isolated"
# The same ones each time, unless many are asked for: then hypothesis prints how to have a failing one again.
WANTED = int(os.environ.get("GREENORM_STRESS_EXAMPLES") or 0)
EXAMPLES = settings(
    max_examples=WANTED or 15,
    derandomize=not WANTED,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def execute(sql: str) -> Callable[[], None]:
    def work() -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    work.__name__ = sql
    return work


# What a scope does to its connection: seen by nobody else, ever ...


def leaves_a_transaction_open() -> None:
    transaction.set_autocommit(False)
    Owner.objects.create(name="never committed")


def leaves_a_savepoint_open() -> None:
    if connection.in_atomic_block:
        transaction.savepoint()
    else:
        transaction.atomic().__enter__()
    Owner.objects.update(name="never renamed")


def leaves_a_cursor_open() -> None:
    with connection.chunked_cursor() as cursor:
        cursor.execute("SELECT generate_series(1, 100)")
        kept.append(cursor.cursor)
        cursor.fetchone()
        cursor.close = lambda: None


def wraps_execute() -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a wrapper of another scope")

    connection.execute_wrappers.append(lambda execute, *args: execute(*args))
    connection.execute_wrapper(refuse)  # made, and never entered


def logs_queries() -> None:
    connection.force_debug_cursor = True
    Owner.objects.count()


def changes_psycopgs_connection() -> None:
    connection.ensure_connection()
    conn = connection.connection
    if not connection.in_atomic_block:
        conn.isolation_level = IsolationLevel.SERIALIZABLE
        conn.read_only = True
        conn.autocommit = False
    conn.row_factory = dict_row
    conn.prepare_threshold = 1
    conn.add_notice_handler(print)


def prepares_statements() -> None:
    connection.ensure_connection()
    for _ in range(3):
        connection.connection.execute("SELECT %s::int", [1], prepare=True)


def fails() -> None:
    ask("SELECT 1 / 0")


def activates_translation_and_time_zone() -> None:
    translation.activate("fr")
    timezone.activate("Asia/Tokyo")


ALWAYS = [
    leaves_a_transaction_open,
    leaves_a_savepoint_open,
    leaves_a_cursor_open,
    wraps_execute,
    logs_queries,
    changes_psycopgs_connection,
    prepares_statements,
    fails,
    activates_translation_and_time_zone,
    execute("SET LOCAL work_mem = '9MB'"),
    execute("SELECT pg_advisory_xact_lock(7)"),
]
# ... and only with `reset` not by the next borrower: what the session on the server remembers.
SESSION = [
    execute(f"SET ROLE {ROLE}"),
    execute(f"SET SESSION AUTHORIZATION {ROLE}"),
    execute("SET search_path = pg_catalog"),
    execute("SET TIME ZONE 'Asia/Tokyo'"),
    execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    execute("SET default_transaction_read_only = on"),
    execute("SELECT pg_advisory_lock(42)"),
    execute("CREATE TEMPORARY TABLE IF NOT EXISTS left_behind (id int)"),
    execute("LISTEN left_behind"),
    execute("DEALLOCATE ALL; PREPARE left_behind AS SELECT 1"),
    execute("SET statement_timeout = '1h'"),
]
kept: list[Any] = []

QUERY = """
SELECT current_user::text, session_user::text, current_setting('search_path'), current_setting('TimeZone'),
       current_setting('transaction_isolation'), current_setting('default_transaction_read_only'),
       current_setting('statement_timeout'), current_setting('work_mem'),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
       (SELECT count(*) FROM pg_class WHERE relname = 'left_behind'),
       (SELECT count(*) FROM pg_listening_channels()),
       (SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind'),
       (SELECT count(*) FROM pg_cursors WHERE name LIKE '%_django%')
"""


def seen() -> dict[str, Any]:
    """Everything that a scope could see of another one."""
    with connection.cursor() as cursor:
        cursor.execute(QUERY)
        session = cursor.fetchone()
    conn = connection.connection
    return {
        "session": session,
        "transaction": (connection.in_atomic_block, connection.savepoint_ids, connection.run_on_commit),
        "state": (connection.autocommit, connection.needs_rollback, connection.closed_in_transaction),
        "wrappers": (connection.execute_wrappers, connection.force_debug_cursor, connection.queries),
        "client": (conn.isolation_level, conn.read_only, conn.autocommit, conn.prepare_threshold),
        "handlers": (conn.row_factory, conn._notice_handlers),
        "context": (translation.get_language(), timezone.get_current_timezone_name()),
        "rows": names(),
    }


def names() -> list[str] | None:
    try:
        return list(Owner.objects.values_list("name", flat=True))
    except ProgrammingError:  # with another role, or on another search path
        return None


# Scopes


async def in_run(work: Callable[[], None]) -> None:
    await greenorm.run(work)


async def in_atomic(work: Callable[[], None]) -> None:
    async with greenorm.atomic():
        await greenorm.run(Owner.objects.exists)
        await greenorm.run(work)
        raise ZeroDivisionError


async def in_connection(work: Callable[[], None]) -> None:
    async with greenorm.connection():
        await greenorm.run(work)


async def in_iteration(work: Callable[[], None]) -> None:
    async with greenorm.iterate(Owner.objects.all(), chunk_size=1) as owners:
        async for _ in owners:
            await greenorm.run(work)


async def cancelled(work: Callable[[], None]) -> None:
    def slow() -> None:
        work()
        started.set()
        ask("SELECT pg_sleep(60)")

    started = asyncio.Event()
    task = asyncio.create_task(greenorm.run(slow))
    waiter = asyncio.create_task(started.wait())
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    task.cancel()
    await task


Kind = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
KINDS: list[Kind] = [in_run, in_atomic, in_connection, in_iteration, cancelled]


def scopes(works: list[Callable[[], None]]) -> st.SearchStrategy[list[tuple[Kind, list[Callable[[], None]]]]]:
    scope = st.tuples(st.sampled_from(KINDS), st.lists(st.sampled_from(works), min_size=1, max_size=3))
    return st.lists(scope, min_size=1, max_size=6)


def one_after_the_other(works: list[Callable[[], None]]) -> Callable[[], None]:
    def work() -> None:
        for each in works:
            each()

    return work


async def seen_after(
    pool: dict[str, Any], drawn: list[tuple[Kind, list[Callable[[], None]]]], at_once: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a scope sees before, and what one sees on each connection after what was drawn."""
    options = connection.settings_dict["OPTIONS"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(options, "pool", pool)
        await greenorm.run(Owner.objects.get_or_create, name="Ada")
        before = await greenorm.run(seen)
        # Each in a task of its own, as requests are: context variables are the task's.
        tasks = [asyncio.create_task(kind(one_after_the_other(works))) for kind, works in drawn if at_once]
        await asyncio.gather(*tasks, return_exceptions=True)
        for kind, works in [] if at_once else drawn:
            await asyncio.gather(asyncio.create_task(kind(one_after_the_other(works))), return_exceptions=True)
        stats = greenorm.pool_stats()
        assert (stats.in_use, stats.waiting) == (0, 0)
        kept.clear()
        return before, await on_each_connection(max(1, stats.idle))


async def on_each_connection(count: int) -> list[dict[str, Any]]:
    looked: list[dict[str, Any]] = []
    together = asyncio.Barrier(count)

    async def look() -> None:
        async with greenorm.connection():
            looked.append(await greenorm.run(seen))
            await together.wait()

    await asyncio.gather(*[look() for _ in range(count)])
    return looked


def discard(conn: Any) -> None:
    conn.execute("DISCARD ALL")


@pytest.fixture
def role() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE IF EXISTS {ROLE}")
        cursor.execute(f"CREATE ROLE {ROLE}")
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"DROP ROLE {ROLE}")


@pytest.mark.parametrize("at_once", [False, True], ids=["one after the other", "side by side"])
@EXAMPLES
@given(drawn=scopes(ALWAYS))
@example(drawn=[(in_iteration, [leaves_a_transaction_open, leaves_a_savepoint_open])])
def test_nothing_of_a_scope_but_its_session_is_seen_by_the_next(
    at_once: bool, drawn: list[tuple[Kind, list[Callable[[], None]]]]
) -> None:
    pool = {"min_size": 1, "max_size": 3 if at_once else 1}
    before, after = asyncio.run(seen_after(pool, drawn, at_once))
    assert after == [before] * len(after)


@pytest.mark.parametrize("at_once", [False, True], ids=["one after the other", "side by side"])
@EXAMPLES
@given(drawn=scopes(ALWAYS + SESSION))
def test_nothing_of_a_scope_is_seen_by_the_next_with_a_reset(
    role: None, at_once: bool, drawn: list[tuple[Kind, list[Callable[[], None]]]]
) -> None:
    pool = {"min_size": 1, "max_size": 3 if at_once else 1, "reset": discard}
    before, after = asyncio.run(seen_after(pool, drawn, at_once))
    assert after == [before] * len(after)


@pytest.mark.parametrize("work", SESSION, ids=lambda work: work.__name__)
def test_what_the_session_remembers_is_seen_without_a_reset(role: None, work: Callable[[], None]) -> None:
    before, after = asyncio.run(seen_after({"min_size": 1, "max_size": 1}, [(in_run, [work])], False))
    assert after != [before]


async def test_a_reset_leaves_time_zone_and_role_as_the_settings_have_them(role: None) -> None:
    def who() -> tuple[str, str]:
        return ask("SELECT current_user::text", using="tenant"), ask("SHOW TimeZone", using="tenant")

    options = {"assume_role": ROLE, "pool": {"min_size": 1, "max_size": 1, "reset": discard}}
    with alias("tenant", options=options, TIME_ZONE="Asia/Tokyo"):
        assert [await greenorm.run(who) for _ in range(3)] == [(ROLE, "Asia/Tokyo")] * 3
        assert greenorm.pool_stats("tenant").opened == 1


async def test_statements_that_psycopg_has_prepared_survive_a_reset() -> None:
    def prepared() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return [connection.connection.execute("SELECT %s::int", [i], prepare=True).fetchone() for i in range(3)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connection.settings_dict["OPTIONS"], "pool", {"min_size": 1, "max_size": 1, "reset": discard})
        assert [await greenorm.run(prepared) for _ in range(3)] == [[(0,), (1,), (2,)]] * 3
        assert greenorm.pool_stats().opened == 1
