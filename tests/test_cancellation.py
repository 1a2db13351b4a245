"""Cancelling a task at every place where a run can wait: nothing is lost, leaked or left running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import psycopg
import pytest
from django.db import connection, transaction
from django.db.transaction import TransactionManagementError

import greenorm
from tests.shop.models import Owner


def sleep(seconds: float = 30) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def names() -> list[str]:
    return list(Owner.objects.order_by("name").values_list("name", flat=True))


def busy(admin: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Clients' sessions of this database that are not idle, other than the one that looks."""
    return admin.execute(
        "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    ).fetchall()


async def once(task: asyncio.Task[Any]) -> None:
    task.cancel()


async def twice(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()


async def twice_a_little_later(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.sleep(0.002)
    task.cancel()


Canceller = Callable[[asyncio.Task[Any]], Awaitable[None]]
cancellers = pytest.mark.parametrize("cancel", [once, twice, twice_a_little_later])


async def cancelled(fn: Callable[[], Any], cancel: Canceller, after: float = 0.05) -> None:
    task = asyncio.create_task(greenorm.run(fn))
    await asyncio.sleep(after)
    await cancel(task)
    started = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 5
    check_pool()


def check_pool() -> None:
    stats = greenorm.pool_stats()
    assert (stats.in_use, stats.waiting) == (0, 0)
    assert stats.size == stats.idle


@cancellers
async def test_during_execute(cancel: Canceller, admin: psycopg.Connection[Any]) -> None:
    await cancelled(sleep, cancel)
    assert busy(admin) == []


@cancellers
async def test_during_execute_in_a_transaction(cancel: Canceller, admin: psycopg.Connection[Any]) -> None:
    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            with transaction.atomic():
                sleep()

    await cancelled(work, cancel)
    assert busy(admin) == []
    assert await greenorm.run(names) == []


@cancellers
async def test_during_a_fetch_from_a_server_side_cursor(cancel: Canceller, admin: psycopg.Connection[Any]) -> None:
    def work() -> None:
        with transaction.atomic(), connection.chunked_cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.02) FROM generate_series(1, 1000)")
            while cursor.fetchmany(10):
                pass

    await cancelled(work, cancel)
    assert busy(admin) == []


@cancellers
@pytest.mark.parametrize("after", [0, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006])
async def test_during_connect(cancel: Canceller, after: float, admin: psycopg.Connection[Any]) -> None:
    task = asyncio.create_task(greenorm.run(sleep))
    await asyncio.sleep(after)
    await cancel(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    check_pool()
    assert busy(admin) == []


@cancellers
async def test_during_the_wait_for_a_connection(cancel: Canceller) -> None:
    async def hold() -> None:
        async with greenorm.connection():
            await released.wait()

    released = asyncio.Event()
    holders = [asyncio.create_task(hold()) for _ in range(4)]
    while greenorm.pool_stats().borrowed < 4:
        await asyncio.sleep(0.01)
    waiters = [asyncio.create_task(greenorm.run(names)) for _ in range(6)]
    while greenorm.pool_stats().waiting < 6:
        await asyncio.sleep(0.01)
    for task in waiters[:3]:
        await cancel(task)
    released.set()
    results = await asyncio.gather(*waiters, *holders, return_exceptions=True)
    assert [type(result) for result in results[:3]] == [asyncio.CancelledError] * 3
    assert results[3:6] == [[]] * 3
    check_pool()
    assert greenorm.pool_stats().idle == 4


async def test_in_the_very_moment_a_connection_is_handed_over() -> None:
    async def hold() -> None:
        async with greenorm.connection():
            await released.wait()

    released = asyncio.Event()
    holders = [asyncio.create_task(hold()) for _ in range(4)]
    await asyncio.sleep(0.1)
    waiter = asyncio.create_task(greenorm.run(names))
    await asyncio.sleep(0.05)
    released.set()
    while greenorm.pool_stats().waiting:
        await asyncio.sleep(0)
    waiter.cancel()  # it has been granted a connection, but has not run since
    await asyncio.gather(waiter, *holders, return_exceptions=True)
    check_pool()
    assert greenorm.pool_stats().idle == 4


@pytest.fixture
def slow_commit(admin: psycopg.Connection[Any]) -> Iterator[None]:
    """Make each COMMIT that wrote an owner take half a second on the server."""
    admin.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON shop_owner DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    yield
    admin.execute("DROP TRIGGER slow ON shop_owner; DROP FUNCTION slow()")


@cancellers
@pytest.mark.usefixtures("slow_commit")
async def test_during_commit_the_commit_ends_and_its_callbacks_run(
    cancel: Canceller, admin: psycopg.Connection[Any]
) -> None:
    called = []

    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="whole")
            transaction.on_commit(lambda: called.append(names()))
            transaction.on_commit(lambda: called.append("second"))
        called.append("not reached: the cancellation comes at the next wait")
        names()
        called.append("never")

    await cancelled(work, cancel, after=0.2)
    assert called[:2] == [["whole"], "second"]
    assert "never" not in called
    assert busy(admin) == []
    assert await greenorm.run(names) == ["whole"]


@cancellers
@pytest.mark.usefixtures("slow_commit")
async def test_during_the_commit_of_an_async_block(cancel: Canceller, admin: psycopg.Connection[Any]) -> None:
    called = []

    async def work() -> None:
        async with greenorm.atomic():
            await greenorm.run(Owner.objects.create, name="whole")
            await greenorm.run(transaction.on_commit, lambda: called.append(1))

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    await cancel(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert called == [1]
    check_pool()
    assert await greenorm.run(names) == ["whole"]


@cancellers
async def test_during_a_callback_of_on_commit_the_others_run_all_the_same(cancel: Canceller) -> None:
    called = []

    async def slow() -> None:
        called.append("slow")
        waits.set()
        await asyncio.sleep(30)

    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="whole")
            transaction.on_commit(slow)
            transaction.on_commit(lambda: called.append("quick"))
        names()
        called.append("never")

    waits = asyncio.Event()
    task = asyncio.create_task(greenorm.run(work))
    await waits.wait()
    await cancel(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert called == ["slow", "quick"]
    check_pool()
    assert await greenorm.run(names) == ["whole"]


@cancellers
async def test_during_rollback(cancel: Canceller, admin: psycopg.Connection[Any]) -> None:
    rolling_back = []

    def work() -> None:
        try:
            with transaction.atomic():
                # Many subtransactions to undo, so that ROLLBACK takes a moment.
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO shop_owner (name) SELECT n::text FROM generate_series(1, 50000) n")
                rolling_back.append(1)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        sleep()

    task = asyncio.create_task(greenorm.run(work))
    while not rolling_back:
        await asyncio.sleep(0)
    await cancel(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    check_pool()
    assert busy(admin) == []
    assert await greenorm.run(names) == []


async def test_under_an_anyio_scope_that_cancels_every_wait_anew(admin: psycopg.Connection[Any]) -> None:
    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            sleep()

    with anyio.move_on_after(0.1) as scope:
        await greenorm.run(work)
    assert scope.cancelled_caught
    check_pool()
    assert busy(admin) == []
    assert await greenorm.run(names) == []
    assert greenorm.pool_stats().closed == 0


async def test_under_an_anyio_task_group(admin: psycopg.Connection[Any]) -> None:
    async def work() -> None:
        async with greenorm.atomic():
            await greenorm.run(Owner.objects.create, name="lost")
            await greenorm.run(sleep)

    async with anyio.create_task_group() as group:
        for _ in range(1):
            group.start_soon(work)
        await anyio.sleep(0.1)
        group.cancel_scope.cancel()
    check_pool()
    assert busy(admin) == []
    assert await greenorm.run(names) == []


async def test_asyncio_timeout_stops_the_sql_on_the_server(admin: psycopg.Connection[Any]) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await greenorm.run(sleep)
    assert time.monotonic() - started < 2
    assert busy(admin) == []
    assert greenorm.pool_stats().closed == 0


async def test_a_timeout_that_has_passed_already_does_no_harm() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await greenorm.run(sleep)
    check_pool()


async def test_a_task_group_cancels_its_siblings_and_all_is_clean(admin: psycopg.Connection[Any]) -> None:
    def fails() -> None:
        sleep(0.05)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(greenorm.run(fails))
            group.create_task(greenorm.run(sleep))
            group.create_task(greenorm.run(sleep))
    check_pool()
    assert busy(admin) == []


async def test_a_swallowed_cancellation_marks_the_transaction_for_rollback() -> None:
    def work() -> str:
        try:
            with transaction.atomic():
                Owner.objects.create(name="lost")
                try:
                    sleep()
                except asyncio.CancelledError:
                    pass
                Owner.objects.create(name="refused")
        except TransactionManagementError:
            return "rolled back"
        return "committed"

    task = asyncio.create_task(greenorm.run(work))
    await asyncio.sleep(0.1)
    task.cancel()
    assert await task == "rolled back"
    assert await greenorm.run(names) == []
    check_pool()


async def test_a_cancellation_swallowed_while_waiting_for_something_else_marks_it_too() -> None:
    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            try:
                greenorm.await_(asyncio.sleep(30))
            except asyncio.CancelledError:
                pass

    task = asyncio.create_task(greenorm.run(work))
    await asyncio.sleep(0.1)
    task.cancel()
    await task
    assert await greenorm.run(names) == []


async def test_inside_an_execute_wrapper() -> None:
    def blocks(execute: Callable[..., Any], *args: Any) -> Any:
        greenorm.await_(asyncio.sleep(30))
        return execute(*args)

    def work() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            with connection.execute_wrapper(blocks):
                names()

    await cancelled(work, once)
    assert await greenorm.run(names) == []


async def test_a_statement_that_fails_while_it_is_cancelled_leaves_its_connection_usable(
    admin: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / (pg_advisory_lock(20) IS NULL)::int")

    admin.execute("SELECT pg_advisory_lock(20)")
    await greenorm.run(names)
    task = asyncio.create_task(greenorm.run(fails))
    while not busy(admin):
        await asyncio.sleep(0.001)

    def unblocked() -> None:
        task.cancel()
        admin.execute("SELECT pg_advisory_unlock(20)")
        while busy(admin):  # the statement fails on the server before the loop hears of the cancellation
            time.sleep(0.001)

    unblocked()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert greenorm.pool_stats().closed == 0
    assert caplog.text == ""


async def test_a_connection_is_used_again_after_a_cancellation() -> None:
    def pid() -> int:
        connection.ensure_connection()
        return connection.connection.info.backend_pid

    before = await greenorm.run(pid)
    await cancelled(sleep, once)
    assert await greenorm.run(pid) == before


async def test_a_storm_of_impatient_borrowers_leaves_a_pool_that_works(admin: psycopg.Connection[Any]) -> None:
    async def impatient() -> None:
        while time.monotonic() < end:
            try:
                async with asyncio.timeout(0.02):
                    await greenorm.run(sleep, 0.005)
            except TimeoutError:
                pass

    end = time.monotonic() + 1.5
    await asyncio.gather(*[impatient() for _ in range(64)])
    started = time.monotonic()
    assert await greenorm.run(names) == []
    assert time.monotonic() - started < 1
    check_pool()
    assert busy(admin) == []


async def test_keyboard_interrupt_and_system_exit_in_a_function_leave_a_clean_pool() -> None:
    def work(exc: type[BaseException]) -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            raise exc

    for exc in (KeyboardInterrupt, SystemExit):
        try:
            await greenorm.run(work, exc)
        except exc:
            pass
    check_pool()
    assert await greenorm.run(names) == []
