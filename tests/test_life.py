"""Event loops, processes and threads that come and go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import psycopg
import pytest
import uvloop
from django.db import connection, connections, transaction

import greenorm
from greenorm import bridge
from tests.shop.models import Owner

loops = pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def run_in(factory: LoopFactory, main: Any) -> Any:
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def sleep(seconds: float = 30) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def sessions(admin: psycopg.Connection[Any]) -> int:
    """Sessions of this database other than the one that looks, once those that are ending have ended."""
    for _ in range(100):
        row = admin.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND application_name <> 'cleaner'"
        ).fetchone()
        assert row is not None
        if row[0] == 0:
            break
        time.sleep(0.02)
    return row[0]


@loops
def test_a_hundred_short_loops_in_a_row_each_end_at_once(factory: LoopFactory, admin: psycopg.Connection[Any]) -> None:
    for _ in range(100):
        started = time.monotonic()
        assert run_in(factory, greenorm.run(Owner.objects.count)) == 0
        assert time.monotonic() - started < 1
    assert sessions(admin) == 0


@loops
def test_loops_that_end_while_connecting_end_at_once(factory: LoopFactory, admin: psycopg.Connection[Any]) -> None:
    async def cut_short(seconds: float) -> None:
        tasks = [asyncio.create_task(greenorm.run(sleep)) for _ in range(3)]
        await asyncio.sleep(seconds)
        assert all(not task.done() for task in tasks)

    for i in range(100):
        started = time.monotonic()
        run_in(factory, cut_short(i % 10 / 2000))
        assert time.monotonic() - started < 1
    assert sessions(admin) == 0


@loops
def test_a_loop_that_ends_in_the_middle_of_a_transaction_leaves_nothing(
    factory: LoopFactory, admin: psycopg.Connection[Any]
) -> None:
    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            sleep()

    async def cut_short() -> None:
        tasks = [asyncio.create_task(greenorm.run(work)) for _ in range(3)]
        await asyncio.sleep(0.1)
        assert all(not task.done() for task in tasks)

    run_in(factory, cut_short())
    assert sessions(admin) == 0
    assert Owner.objects.count() == 0


@loops
def test_a_users_async_generator_may_use_the_database_when_its_loop_ends(
    factory: LoopFactory, admin: psycopg.Connection[Any]
) -> None:
    ended = []

    async def generator() -> AsyncGenerator[int]:
        try:
            yield await greenorm.run(Owner.objects.count)
        finally:
            ended.append(await greenorm.run(Owner.objects.count))

    async def main() -> None:
        kept.append(generator())
        await anext(kept[-1])

    kept: list[AsyncGenerator[int]] = []
    for _ in range(20):
        run_in(factory, main())
    assert ended == [0] * 20
    assert sessions(admin) == 0


@loops
def test_a_loop_closed_without_shutting_down_loses_its_sockets_with_a_warning(
    factory: LoopFactory, admin: psycopg.Connection[Any]
) -> None:
    loop = factory()
    task = loop.create_task(greenorm.run(sleep, 0.5))
    loop.run_until_complete(asyncio.sleep(0.1))
    loop.close()
    with pytest.warns(ResourceWarning, match="was in use when its event loop was closed"):
        run_in(factory, greenorm.run(Owner.objects.count))
    assert sessions(admin) == 0
    # Python would speak of a pending task that was destroyed: of this very one.
    task._log_destroy_pending = False  # type: ignore[attr-defined]


@loops
def test_a_run_whose_coroutine_is_closed_closes_its_socket_with_one_warning(
    factory: LoopFactory, admin: psycopg.Connection[Any]
) -> None:
    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            sleep(1)

    async def main() -> None:
        await greenorm.run(Owner.objects.count)
        coroutine = greenorm.run(work)
        step: Any = coroutine.send(None)
        while step is None or not step.done():
            await asyncio.sleep(0.01)
            if step is not None and step.done():
                with contextlib.suppress(StopIteration):
                    step = coroutine.send(None)
            if admin.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep%' "
                "AND pid <> pg_backend_pid()"
            ).fetchone():
                break
        with pytest.warns(ResourceWarning, match="a run was destroyed") as warned:
            coroutine.close()
        assert len(warned) == 1
        assert greenorm.pool_stats().in_use == 0

    run_in(factory, main())
    assert Owner.objects.count() == 0


def test_a_fork_opens_connections_of_its_own(admin: psycopg.Connection[Any]) -> None:
    def child(queue: Any) -> None:
        queue.put((os.getpid(), asyncio.run(greenorm.run(_pid))))

    async def main() -> None:
        mine = await greenorm.run(_pid)
        queue: Any = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        _, childs = await asyncio.to_thread(queue.get, timeout=20)
        await asyncio.to_thread(process.join)
        assert process.exitcode == 0
        assert childs != mine
        assert await greenorm.run(_pid) == mine  # the parent's session has survived the child

    context = multiprocessing.get_context("fork")
    asyncio.run(main())


def _pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def test_two_threads_with_a_loop_each_have_pools_of_their_own() -> None:
    pids: list[set[int]] = []

    def thread() -> None:
        async def main() -> set[int]:
            return set(await asyncio.gather(*[greenorm.run(_pid) for _ in range(20)]))

        pids.append(asyncio.run(main()))

    threads = [threading.Thread(target=thread) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert pids[0].isdisjoint(pids[1])


async def test_no_call_starts_a_thread(no_threads: list[str]) -> None:
    def fill() -> None:
        Owner.objects.bulk_create(Owner(name=str(i)) for i in range(50))

    def all_sync_calls() -> None:
        with greenorm.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        with greenorm.connection():
            greenorm.await_(asyncio.sleep(0))
        greenorm.gather(Owner.objects.count, Owner.objects.count)
        list(Owner.objects.iterator(chunk_size=5))

    @greenorm.awaitable
    def helper() -> int:
        return Owner.objects.count()

    await greenorm.run(fill)
    await greenorm.run(all_sync_calls)
    await asyncio.gather(*[helper() for _ in range(50)])
    async with greenorm.atomic(), greenorm.connection("other"):
        assert await helper() == 50
        async for _ in greenorm.iterate(Owner.objects.all(), chunk_size=10):
            break
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await greenorm.run(sleep)
    with anyio.move_on_after(0.05):
        await greenorm.run(sleep)
    await asyncio.sleep(0.05)
    greenorm.pool_stats()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hundred_thousand_runs_leave_no_memory_behind() -> None:
    def works() -> int:
        return 1

    def fails() -> None:
        raise ValueError("no")

    async def batch(count: int) -> None:
        for _ in range(count):
            await greenorm.run(works)
            with contextlib.suppress(ValueError):
                await greenorm.run(fails)

    async def main() -> tuple[int, int]:
        await batch(1000)
        gc.collect()
        gc.disable()
        try:
            before, sides = _rss(), _orm_sides()
            await batch(50_000)
            return _rss() - before, _orm_sides() - sides
        finally:
            gc.enable()

    grown, sides = asyncio.run(main())
    assert grown < 2 * 1024 * 1024
    assert sides <= 1


def test_runs_with_queries_that_fail_leave_no_memory_behind() -> None:
    def fails() -> None:
        with transaction.atomic():
            Owner.objects.get(pk=-1)

    async def batch(count: int) -> None:
        for _ in range(count):
            with contextlib.suppress(Owner.DoesNotExist):
                await greenorm.run(fails)

    async def main() -> int:
        await batch(200)
        gc.collect()
        before = len(gc.get_objects())
        await batch(500)
        gc.collect()
        return len(gc.get_objects()) - before

    assert asyncio.run(main()) < 100


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def _orm_sides() -> int:
    return sum(type(obj) is bridge._OrmSide for obj in gc.get_objects())


async def test_an_asyncio_program_in_debug_mode_works() -> None:
    asyncio.get_running_loop().set_debug(True)
    await asyncio.gather(*[greenorm.run(Owner.objects.count) for _ in range(10)])


def test_the_same_engine_is_plain_django_outside_of_a_run() -> None:
    Owner.objects.create(name="plain")
    assert type(connection.connection) is psycopg.Connection
    asyncio.run(greenorm.run(Owner.objects.count))
    Owner.objects.count()
    assert type(connection.connection) is psycopg.Connection


def test_install_is_idempotent_and_can_be_undone() -> None:
    import django.utils.asyncio

    from greenorm import hooks

    asyncio.run(greenorm.run(Owner.objects.count))
    storage = connections._connections
    hooks.install()
    assert connections._connections is storage
    hooks.uninstall()
    hooks.uninstall()
    assert connections._connections is storage._outside
    assert django.utils.asyncio.get_running_loop is asyncio.get_running_loop
    assert asyncio.run(greenorm.run(Owner.objects.count)) == 0


@pytest.mark.no_database
def test_a_free_threaded_build_is_refused_with_the_reason() -> None:
    program = textwrap.dedent("""
        import sysconfig
        sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else None
        import greenorm
    """)
    result = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)
    assert "ImportError: greenorm does not support free-threaded builds of Python" in result.stderr


@pytest.mark.no_database
def test_importing_greenorm_needs_no_settings_and_hooks_nothing() -> None:
    program = textwrap.dedent("""
        import django.db, django.utils.asyncio, asyncio, sys
        storage, guard = django.db.connections._connections, django.utils.asyncio.get_running_loop
        import greenorm
        assert django.db.connections._connections is storage
        assert django.utils.asyncio.get_running_loop is guard is asyncio.get_running_loop
        assert asyncio.run(greenorm.run(lambda: 1)) == 1
    """)
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)
