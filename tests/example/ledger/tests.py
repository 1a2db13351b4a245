"""Tests by Django's own classes, for Django's own runner and for pytest."""

from __future__ import annotations

import asyncio
from urllib.request import urlopen

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.apps import apps
from django.core.asgi import get_asgi_application
from django.db import IntegrityError, connection, transaction
from django.test import LiveServerTestCase, TestCase, TransactionTestCase

import greenorm
from tests.example.ledger import services
from tests.example.ledger.models import Account


class RolledBack(TestCase):
    databases = ("default", "archive")

    @classmethod
    def setUpTestData(cls) -> None:
        services.create("Ada")
        cls.bob = asyncio.run(greenorm.run(services.create, "Bob"))

    def tearDown(self) -> None:
        assert connection.in_atomic_block
        assert not connection.needs_rollback

    # sync tests

    def test_sync_test_of_async_code(self) -> None:
        asyncio.run(services.fan_out("Cy", "Di"))
        assert services.names() == ["Ada", "Bob", "Cy", "Di"]
        assert asyncio.run(services.read_all()) == ["Ada", "Bob", "Cy", "Di"]

    def test_nothing_of_another_test_is_left(self) -> None:
        assert services.names() == ["Ada", "Bob"]
        assert self.bob.entries.count() == 1

    def test_sync_client(self) -> None:
        # An awaitable view is a sync one for WSGI where the app is installed.
        awaitable = ["awaitable"] if apps.is_installed("greenorm") else []
        for kind in ("sync", "async", "a-methods", *awaitable):
            response = self.client.get(f"/{kind}/{kind}/")
            assert kind in response.content.decode().split(",")
        assert "async's friend" in services.names()

    def test_queries_of_runs_are_counted(self) -> None:
        with self.assertNumQueries(3):
            asyncio.run(greenorm.run(services.names))
            services.names()
            asyncio.run(greenorm.run(Account.objects.count))

    def test_on_commit_callbacks_are_captured_and_called(self) -> None:
        called = []

        async def async_callback() -> None:
            called.append(await greenorm.run(services.names))

        def work() -> None:
            with transaction.atomic():
                transaction.on_commit(async_callback)
                transaction.on_commit(lambda: called.append("sync"))
                services.create("Cy")

        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            asyncio.run(greenorm.run(work))
            assert called == []
        assert called == [["Ada", "Bob", "Cy"], "sync"]
        assert len(callbacks) == 2

    # async tests: Django's runner has the loop in another thread

    async def test_runs_see_the_tests_data(self) -> None:
        await sync_to_async(services.create)("Cy")
        assert await greenorm.run(services.names) == ["Ada", "Bob", "Cy"]
        await greenorm.run(services.create, "Di")
        assert await sync_to_async(services.names)() == ["Ada", "Bob", "Cy", "Di"]
        assert await greenorm.run(services.backend) == await sync_to_async(services.backend)()

    async def test_tasks_take_turns_and_their_savepoints_nest(self) -> None:
        async with asyncio.TaskGroup() as group:
            good = [group.create_task(greenorm.run(services.create_slowly, f"good {i}")) for i in range(4)]
            bad = [group.create_task(_fails(f"bad {i}")) for i in range(4)]
            threads = [group.create_task(sync_to_async(services.create_slowly)(f"thread {i}")) for i in range(4)]
            blocks = [group.create_task(services.create_in_block(f"block {i}")) for i in range(4)]
        assert len([*good, *bad, *threads, *blocks]) == 16
        created = [name for name in await greenorm.run(services.names) if name[-1].isdigit()]
        assert created == sorted(f"{kind} {i}" for kind in ("good", "thread", "block") for i in range(4))

    async def test_a_run_that_waits_for_a_task_lets_it_have_its_turn(self) -> None:
        event = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(greenorm.run(services.create_after, event, "second"))
            await asyncio.sleep(0)
            group.create_task(greenorm.run(services.create_and_set, event, "first"))
        assert await services.read_all() == ["Ada", "Bob", "first", "second"]

    async def test_gather_inside_of_a_run(self) -> None:
        assert await greenorm.run(services.summary) == (2, 2)

    async def test_iterations_and_tasks_in_them(self) -> None:
        assert await services.read_all() == ["Ada", "Bob"]
        assert await services.read_all_with_children() == [1, 1, 1, 1]

    async def test_async_methods(self) -> None:
        assert await services.create_by_a_methods("Cy") == 1
        counts = await asyncio.gather(*[Account.objects.acount(), greenorm.run(Account.objects.count)] * 4)
        assert counts == [3] * 8
        assert [account.name async for account in Account.objects.order_by("pk")] == ["Ada", "Bob", "Cy"]

    async def test_async_client(self) -> None:
        for kind in ("sync", "async", "awaitable", "a-methods"):
            response = await self.async_client.get(f"/{kind}/{kind}/")
            assert kind in response.content.decode().split(",")
        assert "async's friend" in await greenorm.run(services.names)

    async def test_the_asgi_application(self) -> None:
        for kind in ("sync", "async", "awaitable", "a-methods"):
            assert kind in (await ask(f"/{kind}/{kind}/")).split(",")
        assert "async's friend" in await greenorm.run(services.names)

    async def test_queries_are_counted_in_async_code(self) -> None:
        with self.assertNumQueries(2):
            await greenorm.run(services.names)
            await asyncio.create_task(greenorm.run(services.names))

    async def test_on_commit_callbacks_are_captured_in_async_code(self) -> None:
        called = []

        async def async_callback() -> None:
            called.append(await greenorm.run(Account.objects.count))

        def work() -> None:
            with transaction.atomic():
                transaction.on_commit(async_callback)
                transaction.on_commit(lambda: called.append("sync"))

        with self.captureOnCommitCallbacks() as callbacks:
            await greenorm.run(work)
        for callback in callbacks:
            await greenorm.run(callback)
        assert called == [2, "sync"]

        def capture() -> None:
            with self.captureOnCommitCallbacks(execute=True):
                work()

        await greenorm.run(capture)
        assert called == [2, "sync"] * 2
        with (
            self.assertRaisesMessage(greenorm.NotInRun, "captureOnCommitCallbacks"),
            self.captureOnCommitCallbacks(execute=True),
        ):
            await greenorm.run(work)

    async def test_a_forgotten_await_is_as_clear_as_ever(self) -> None:
        with self.assertRaisesMessage(greenorm.NotInRun.__mro__[2], "You cannot call this from an async context"):
            services.names()

    async def test_children_of_a_block_are_refused_as_in_production(self) -> None:
        async with greenorm.atomic():
            with pytest.raises(greenorm.SharedScope):
                await asyncio.create_task(greenorm.run(services.names))

    async def test_a_second_connection_is_refused_with_the_way_out(self) -> None:
        async def child() -> None:
            async with greenorm.connection():
                await greenorm.run(services.names)

        async with greenorm.atomic():
            with self.assertRaisesMessage(greenorm.OpenTransaction, "TransactionTestCase"):
                await asyncio.create_task(child())

    async def test_a_thread_of_the_loop_is_refused_with_the_way_out(self) -> None:
        with self.assertRaisesMessage(greenorm.OpenTransaction, "greenorm.run in place of a thread"):
            await asyncio.to_thread(services.names)

    async def test_two_aliases_share_one_turn(self) -> None:
        def both(first: str, second: str) -> None:
            with transaction.atomic(using=first):
                Account.objects.using(first).count()
                greenorm.await_(asyncio.sleep(0.001))
                with transaction.atomic(using=second):
                    Account.objects.using(second).create(name=f"{first} {second}")

        await asyncio.gather(*[greenorm.run(both, *pair) for pair in [("default", "archive"), ("archive", "default")]])

    def test_an_error_in_a_block_of_a_run_leaves_the_test_usable(self) -> None:
        with pytest.raises(IntegrityError):
            asyncio.run(greenorm.run(services.create, "Ada"))
        assert services.names() == ["Ada", "Bob"]


async def _fails(name: str) -> None:
    try:
        await greenorm.run(services.create_slowly, name, fails=True)
    except ZeroDivisionError:
        pass


async def ask(path: str) -> str:
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "headers": [], "query_string": b""}
    communicator = ApplicationCommunicator(get_asgi_application(), scope)
    await communicator.send_input({"type": "http.request"})
    start = await communicator.receive_output(timeout=60)
    assert start["status"] == 200, start
    body = (await communicator.receive_output(timeout=60))["body"].decode()
    await communicator.wait(timeout=60)
    return body


class Committed(TransactionTestCase):
    async def test_runs_have_connections_of_their_own(self) -> None:
        await greenorm.run(services.create, "Ada")
        await services.fan_out("Bob", "Cy")
        assert await services.read_all() == ["Ada", "Bob", "Cy"]
        assert await greenorm.run(services.summary) == (3, 3)
        async with greenorm.connection():
            first = await greenorm.run(services.backend)
            assert first != await sync_to_async(services.backend)()

    def test_nothing_is_left(self) -> None:
        assert services.names() == []
        services.create("Ada")
        assert asyncio.run(services.read_all()) == ["Ada"]


class Live(LiveServerTestCase):
    def test_both_sides_see_what_the_other_has_written(self) -> None:
        services.create("Ada")
        for kind in ("sync", "async", "a-methods"):
            with urlopen(f"{self.live_server_url}/{kind}/{kind}/") as response:
                assert "Ada" in response.read().decode().split(",")
        assert asyncio.run(services.read_all()) == ["Ada", "a-methods", "async", "async's friend", "sync"]
