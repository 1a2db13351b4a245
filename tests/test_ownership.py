"""Which task a connection belongs to: what is shared, what is refused, what is one's own."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest
from django.db import InterfaceError, connection, connections, transaction

import greenorm
from tests.shop.models import Owner


def pid() -> int:
    connection.ensure_connection()
    return connection.connection.info.backend_pid


def names() -> list[str]:
    return list(Owner.objects.order_by("name").values_list("name", flat=True))


async def create(name: str) -> None:
    await greenorm.run(Owner.objects.create, name=name)


async def test_gathered_runs_have_connections_of_their_own() -> None:
    def slow_pid() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(0.05)")
            return cursor.fetchone()[0]

    assert len(set(await asyncio.gather(*[greenorm.run(slow_pid) for _ in range(4)]))) == 4


async def test_gathered_transactions_are_never_shared() -> None:
    async def transfer(i: int) -> None:
        async with greenorm.atomic():
            await create(f"{i} first")
            await asyncio.sleep(0.001)
            await create(f"{i} second")
            if i % 2:
                raise ZeroDivisionError

    await asyncio.gather(*[transfer(i) for i in range(20)], return_exceptions=True)
    assert await greenorm.run(names) == sorted(f"{i} {part}" for i in range(0, 20, 2) for part in ("first", "second"))


async def test_tasks_started_inside_atomic_are_refused_and_write_nothing() -> None:
    async with greenorm.atomic():
        results = await asyncio.gather(create("a"), create("b"), return_exceptions=True)
    assert [type(result) for result in results] == [greenorm.SharedScope] * 2
    assert await greenorm.run(names) == []


async def test_the_refusal_is_djangos_interface_error_and_names_tasks_alias_and_cure() -> None:
    async with greenorm.atomic():
        asyncio.current_task().set_name("owner-task")  # type: ignore[union-attr]
        with pytest.raises(InterfaceError) as info:
            await asyncio.create_task(create("a"), name="child-task")
    message = str(info.value)
    for part in ("'child-task'", "'owner-task'", "transaction", "'default'", "async with greenorm.connection()"):
        assert part in message


async def test_tasks_started_inside_a_sync_transaction_are_refused_too() -> None:
    def outer() -> list[Any]:
        with transaction.atomic():
            Owner.objects.create(name="outer")
            return greenorm.await_(asyncio.wait_for(asyncio.gather(create("a"), return_exceptions=True), 5))

    results = await greenorm.run(outer)
    assert isinstance(results[0], greenorm.SharedScope)
    assert await greenorm.run(names) == ["outer"]


async def test_tasks_started_inside_connection_are_refused() -> None:
    async with greenorm.connection():
        with pytest.raises(greenorm.SharedScope, match="holds a connection open"):
            await asyncio.create_task(create("a"))


async def test_an_atomic_block_of_a_child_task_is_refused_as_well() -> None:
    async def child() -> None:
        async with greenorm.atomic():
            await create("a")

    async with greenorm.atomic():
        await create("mine")
        with pytest.raises(greenorm.SharedScope):
            await asyncio.create_task(child())
    assert await greenorm.run(names) == ["mine"]


async def test_a_child_task_may_take_a_connection_of_its_own() -> None:
    async def child() -> int:
        async with greenorm.connection():
            async with greenorm.atomic():
                await create("child")
            return await greenorm.run(pid)

    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            await create("parent")
            assert await asyncio.create_task(child()) != await greenorm.run(pid)
            raise ZeroDivisionError
    assert await greenorm.run(names) == ["child"]


async def test_a_child_task_that_outlives_the_block_gets_its_own_connection() -> None:
    ended = asyncio.Event()

    async def child() -> list[str]:
        await ended.wait()
        return await greenorm.run(names)

    async with greenorm.atomic():
        await create("a")
        task = asyncio.create_task(child())
    ended.set()
    assert await task == ["a"]


async def test_a_child_task_may_use_an_alias_that_is_not_held() -> None:
    async with greenorm.atomic():
        await create("a")
        assert await asyncio.create_task(greenorm.run(Owner.objects.using("other").count)) == 0


async def test_a_child_of_a_run_without_transaction_gets_its_own_connection() -> None:
    def outer() -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return pid(), greenorm.await_(asyncio.create_task(greenorm.run(pid)))

    mine, childs = await greenorm.run(outer)
    assert mine != childs


async def test_tasks_that_share_one_context_keep_their_transactions_apart() -> None:
    async def works(name: str) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
            async with greenorm.connection(), greenorm.atomic():
                backend = await greenorm.run(pid)
                await asyncio.sleep(0.002)
                assert await greenorm.run(pid) == backend
                await greenorm.run(Owner.objects.get_or_create, name=name)

    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    await asyncio.gather(*[loop.create_task(works(str(i)), context=context) for i in range(4)])
    assert await greenorm.run(names) == ["0", "1", "2", "3"]
    assert greenorm.pool_stats().in_use == 0


async def test_a_failing_sibling_leaves_nothing_of_the_others_uncommitted() -> None:
    async def sibling(name: str, seconds: float) -> None:
        async with greenorm.connection(), greenorm.atomic():
            await create(name)
            await asyncio.sleep(seconds)
            if seconds == 0:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await asyncio.gather(sibling("slow", 0.1), sibling("fails", 0))
    await asyncio.sleep(0.2)
    assert await greenorm.run(names) == ["slow"]
    assert greenorm.pool_stats().in_use == 0


async def test_first_use_by_many_tasks_at_once_leaks_no_connection() -> None:
    await asyncio.gather(*[greenorm.run(pid) for _ in range(10)])
    stats = greenorm.pool_stats()
    assert stats.size == stats.idle <= 4


async def test_wrappers_of_concurrent_runs_are_different_objects() -> None:
    def wrapper() -> Any:
        greenorm.await_(asyncio.sleep(0))
        return connections["default"]

    first, second = await asyncio.gather(greenorm.run(wrapper), greenorm.run(wrapper))
    assert first is not second


async def test_a_wrapper_that_was_looked_up_outside_gives_its_connection_back_too() -> None:
    await greenorm.run(connection.ensure_connection)
    assert greenorm.pool_stats().in_use == 0
    wrapper = connections["default"]
    await greenorm.run(wrapper.ensure_connection)
    assert wrapper.connection is None
    assert greenorm.pool_stats().in_use == 0


async def test_a_wrapper_is_refused_in_two_runs_at_once() -> None:
    wrapper = connections["default"]

    def slow() -> None:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.1)")

    results = await asyncio.gather(greenorm.run(slow), greenorm.run(slow), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), greenorm.SharedScope]
    assert "Look it up inside of the run" in str(results[1])


async def test_query_logs_execute_wrappers_and_savepoints_stay_with_their_run() -> None:
    def leaves_things_behind() -> None:
        connection.force_debug_cursor = True
        connection.execute_wrappers.append(lambda execute, *args: execute(*args))
        connection.savepoint_state = 7
        Owner.objects.count()

    def looks() -> list[Any]:
        Owner.objects.count()
        return [
            connection.force_debug_cursor,
            connection.execute_wrappers,
            connection.queries,
            connection.savepoint_state,
        ]

    await greenorm.run(leaves_things_behind)
    assert await greenorm.run(looks) == [False, [], [], 0]


async def test_what_a_run_changed_of_its_connection_is_undone() -> None:
    def changes() -> int:
        backend = pid()
        conn = connection.connection
        conn.isolation_level = 4
        conn.read_only = True
        conn.autocommit = False
        conn.prepare_threshold = 1
        conn.add_notice_handler(print)
        return backend

    def looks() -> list[Any]:
        backend, conn = pid(), connection.connection
        return [
            backend,
            conn.isolation_level,
            conn.read_only,
            conn.autocommit,
            conn.prepare_threshold,
            conn._notice_handlers,
        ]

    backend = await greenorm.run(changes)
    assert await greenorm.run(looks) == [backend, None, None, True, None, []]


async def test_an_open_transaction_is_rolled_back_when_its_run_ends() -> None:
    def leaves_it_open() -> None:
        transaction.set_autocommit(False)
        Owner.objects.create(name="never committed")

    await greenorm.run(leaves_it_open)
    assert await greenorm.run(names) == []


async def test_a_server_side_cursor_that_was_left_open_is_closed_when_its_run_ends() -> None:
    kept = []

    def leaves_it_open() -> int:
        Owner.objects.bulk_create(Owner(name=str(i)) for i in range(10))
        rows = Owner.objects.iterator(chunk_size=2)
        next(rows)
        kept.append(rows)
        return pid()

    def portals() -> tuple[int, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django%'")
            return pid(), cursor.fetchone()[0]

    backend = await greenorm.run(leaves_it_open)
    assert await greenorm.run(portals) == (backend, 0)
    with pytest.raises(greenorm.StaleCursor, match="gone back to the pool"):
        await greenorm.run(lambda: list(kept[0]))


async def test_a_cursor_used_after_its_run_is_refused() -> None:
    cursor = await greenorm.run(lambda: connection.cursor())
    with pytest.raises(greenorm.StaleCursor):
        await greenorm.run(cursor.execute, "SELECT 1")
    await greenorm.run(cursor.close)


async def test_the_pools_reset_option_runs_when_a_connection_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = {"min_size": 1, "reset": lambda conn: conn.execute("DISCARD ALL")}
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "pool", pool)

    def work_mem(*, change: bool) -> tuple[int, str]:
        with connection.cursor() as cursor:
            if change:
                cursor.execute("SET work_mem = '7MB'")
            cursor.execute("SELECT pg_backend_pid(), current_setting('work_mem')")
            return cursor.fetchone()

    pid, changed = await greenorm.run(work_mem, change=True)
    assert changed == "7MB"
    assert await greenorm.run(work_mem, change=False) == (pid, "4MB")
