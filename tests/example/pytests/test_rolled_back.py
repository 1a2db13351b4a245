"""pytest-django's `db`: the loop runs in the very thread that has the test's transaction."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.core.signals import request_finished
from django.db import close_old_connections, connection, transaction
from django.test import AsyncClient, Client

import greenorm
from tests.example.ledger import services
from tests.example.ledger.models import Account
from tests.example.ledger.tests import ask

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def ada(db: None) -> None:
    services.create("Ada")


@pytest_asyncio.fixture
async def bob(ada: None) -> AsyncIterator[None]:
    await greenorm.run(services.create, "Bob")
    yield
    assert "Bob" in await greenorm.run(services.names)


async def test_runs_and_tasks_join(bob: None) -> None:
    await services.fan_out("Cy", "Di")
    assert await greenorm.run(services.names) == ["Ada", "Bob", "Cy", "Di"]
    await services.create_in_block("Eve")
    assert await services.read_all() == ["Ada", "Bob", "Cy", "Di", "Eve"]


async def test_nothing_of_another_test_is_left(bob: None) -> None:
    assert await greenorm.run(services.names) == ["Ada", "Bob"]


def test_sync_tests_too() -> None:
    assert asyncio.run(services.read_all()) == ["Ada"]
    assert async_to_sync(services.create_by_a_methods)("Cy") == 1
    assert services.names() == ["Ada", "Cy"]


async def test_tasks_take_turns_and_their_savepoints_nest(bob: None) -> None:
    async def fails(name: str) -> None:
        with pytest.raises(ZeroDivisionError):
            await greenorm.run(services.create_slowly, name, fails=True)

    async with asyncio.TaskGroup() as group:
        for i in range(4):
            group.create_task(greenorm.run(services.create_slowly, f"run {i}"))
            group.create_task(fails(f"bad {i}"))
            group.create_task(sync_to_async(services.create_slowly)(f"thread {i}"))
            group.create_task(services.create_in_block(f"block {i}", f"second block {i}"))
            group.create_task(services.create_by_a_methods(f"method {i}"))
    kinds = ("block", "method", "run", "second block", "thread")
    assert (await greenorm.run(services.names))[2:] == [f"{kind} {i}" for kind in kinds for i in range(4)]


async def test_a_run_that_waits_for_a_task_lets_it_have_its_turn(bob: None) -> None:
    event = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(greenorm.run(services.create_after, event, "second"))
        await asyncio.sleep(0)
        group.create_task(greenorm.run(services.create_and_set, event, "first"))
    assert await greenorm.run(services.names) == ["Ada", "Bob", "first", "second"]


async def test_gather_and_iterations(bob: None) -> None:
    assert await greenorm.run(services.summary) == (2, 2)
    assert await services.read_all_with_children() == [1, 1, 1, 1]


async def test_async_methods_and_sync_to_async_join(bob: None) -> None:
    assert await services.create_by_a_methods("Cy") == 1
    assert await sync_to_async(services.names)() == ["Ada", "Bob", "Cy"]
    assert await sync_to_async(services.backend)() == await greenorm.run(services.backend)


@pytest.mark.parametrize("kind", ["sync", "async", "awaitable", "a-methods"])
async def test_the_clients_and_the_asgi_application_join(bob: None, kind: str) -> None:
    response = await AsyncClient().get(f"/{kind}/client/")
    assert {"Ada", "Bob", "client"} <= set(response.content.decode().split(","))
    assert {"Ada", "Bob", "client", "asgi"} <= set((await ask(f"/{kind}/asgi/")).split(","))
    assert {"asgi", "client"} <= set(await greenorm.run(services.names))


@pytest.mark.parametrize("kind", ["sync", "async", "a-methods"])
def test_the_sync_client_joins(kind: str) -> None:
    assert {"Ada", "client"} <= set(Client().get(f"/{kind}/client/").content.decode().split(","))


async def test_queries_are_counted(bob: None, django_assert_num_queries) -> None:
    with django_assert_num_queries(2):
        await greenorm.run(services.names)
        await asyncio.create_task(greenorm.run(services.names))


def test_captured_callbacks(django_capture_on_commit_callbacks) -> None:
    called = []

    async def callback() -> None:
        called.append(await greenorm.run(Account.objects.count))

    with django_capture_on_commit_callbacks(execute=True):
        asyncio.run(greenorm.run(transaction.on_commit, callback))
    assert called == [1]


async def test_closing_old_connections_closes_nothing_of_the_test(bob: None) -> None:
    close_old_connections()
    await greenorm.run(close_old_connections)
    await greenorm.run(connection.close)
    await request_finished.asend(None)
    assert await greenorm.run(services.names) == ["Ada", "Bob"]


async def test_closing_in_a_block_of_ones_own_rolls_that_back(bob: None) -> None:
    def work() -> None:
        with transaction.atomic():
            services.create("Cy")
            connection.close()

    await greenorm.run(work)
    assert await greenorm.run(services.names) == ["Ada", "Bob"]


async def test_a_cancelled_wait_leaves_the_test_usable(bob: None) -> None:
    def work() -> None:
        services.create("Cy")
        waits.set()
        greenorm.await_(asyncio.Event().wait())

    waits = asyncio.Event()
    task = asyncio.create_task(greenorm.run(work))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await greenorm.run(services.names) == ["Ada", "Bob", "Cy"]


async def test_who_waits_for_its_turn_can_be_cancelled(bob: None) -> None:
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def hold() -> None:
        async with greenorm.atomic():
            entered.set()
            await leave.wait()

    holder = asyncio.create_task(hold())
    await entered.wait()
    waiters = [asyncio.create_task(greenorm.run(services.names)) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiters[0].cancel()
    waiters[1].cancel()
    leave.set()
    await holder
    assert await waiters[2] == ["Ada", "Bob"]
    assert waiters[0].cancelled()
    assert waiters[1].cancelled()


async def test_a_deadlock_is_an_error_that_names_the_holder_and_the_way_out(bob: None, settings) -> None:
    greenorm_pool = await greenorm.run(lambda: connection.async_pool)
    object.__setattr__(greenorm_pool.options, "timeout", 0.2)
    started = asyncio.Event()

    async def other() -> list[str]:
        await started.wait()
        return await greenorm.run(services.names)

    task = asyncio.create_task(other(), name="other")
    with pytest.raises(greenorm.ConnectionInUse, match=r"'other' has waited .*transaction=True"):
        async with greenorm.atomic():
            started.set()
            await task
    assert await greenorm.run(services.names) == ["Ada", "Bob"]


async def test_a_forgotten_await_is_as_clear_as_ever(bob: None) -> None:
    with pytest.raises(SynchronousOnlyOperation):
        services.names()


async def test_children_of_a_block_are_refused_as_in_production(bob: None) -> None:
    async with greenorm.atomic():
        with pytest.raises(greenorm.SharedScope):
            await asyncio.create_task(greenorm.run(services.names))


async def test_a_second_connection_is_refused_with_the_way_out(bob: None) -> None:
    async def child() -> None:
        async with greenorm.connection():
            await greenorm.run(services.names)

    async with greenorm.connection():
        with pytest.raises(greenorm.OpenTransaction, match="transaction=True"):
            await asyncio.create_task(child())


async def test_a_thread_of_the_loop_is_refused_with_the_way_out(bob: None) -> None:
    with pytest.raises(greenorm.OpenTransaction, match=r"greenorm\.run in place of a thread"):
        await asyncio.to_thread(services.names)


def test_a_loop_in_another_thread_is_refused_with_the_way_out() -> None:
    errors: list[BaseException] = []

    def work() -> None:
        try:
            asyncio.run(greenorm.run(services.names))
        except greenorm.OpenTransaction as exc:
            errors.append(exc)

    thread = threading.Thread(target=work, name="portal")
    thread.start()
    thread.join()
    assert "portal would open a second connection to 'default'" in str(errors[0])


def test_a_block_that_a_task_leaves_open_is_rolled_back_when_sync_code_goes_on() -> None:
    async def left(ready: asyncio.Event, go_on: asyncio.Event) -> None:
        async with greenorm.atomic():
            await greenorm.run(services.create, "left")
            ready.set()
            await go_on.wait()
            await greenorm.run(services.names)

    async def start() -> tuple[asyncio.Task[None], asyncio.Event]:
        ready, go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(left(ready, go_on))
        await ready.wait()
        return task, go_on

    async def end(task: asyncio.Task[None], go_on: asyncio.Event) -> None:
        go_on.set()
        with pytest.raises(greenorm.ConnectionInUse, match="outlived the test"):
            await task

    depth = len(connection.savepoint_ids)
    with asyncio.Runner() as runner:  # as a loop that is shared by several tests
        started = runner.run(start())
        assert services.names() == ["Ada"]
        assert len(connection.savepoint_ids) == depth
        runner.run(end(*started))
        assert runner.run(greenorm.run(services.names)) == ["Ada"]


def test_a_loop_that_is_closed_with_a_block_open_leaves_the_test_usable() -> None:
    async def left(ready: asyncio.Event) -> None:
        async with greenorm.atomic():
            await greenorm.run(services.create, "left")
            ready.set()
            await asyncio.Event().wait()

    async def start() -> asyncio.Task[None]:
        ready = asyncio.Event()
        task = asyncio.create_task(left(ready))
        await ready.wait()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(start())
    loop.close()
    assert services.names() == ["Ada"]
    assert asyncio.run(greenorm.run(services.names)) == ["Ada"]
    task.get_coro().close()  # so that nothing is said of a task that was destroyed
    assert services.names() == ["Ada"]
