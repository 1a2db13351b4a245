"""A transaction that sync code has opened is joined by the runs below it."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import IntegrityError, connection, connections, transaction
from django.test import TestCase, TransactionTestCase

import greenorm
from tests.shop.models import Owner


def names() -> list[str]:
    return list(Owner.objects.order_by("name").values_list("name", flat=True))


class JoinsTheTestsTransaction(TestCase):
    """Django's TestCase: each test in a transaction that is rolled back."""

    @classmethod
    def setUpTestData(cls) -> None:
        Owner.objects.create(name="from setUpTestData")

    def test_run_sees_and_joins_the_tests_transaction(self) -> None:
        Owner.objects.create(name="from the test")
        seen = asyncio.run(greenorm.run(names))
        assert seen == ["from setUpTestData", "from the test"]
        asyncio.run(greenorm.run(Owner.objects.create, name="from a run"))
        assert names() == ["from a run", "from setUpTestData", "from the test"]
        assert type(connection.connection) is psycopg.Connection

    def test_what_a_run_wrote_is_rolled_back_with_the_test(self) -> None:
        assert names() == ["from setUpTestData"]

    def test_savepoints_of_a_run_nest_in_the_tests_transaction(self) -> None:
        def fails() -> None:
            with transaction.atomic():
                Owner.objects.create(name="lost")
                Owner.objects.create(name="from setUpTestData")

        with pytest.raises(IntegrityError):
            asyncio.run(greenorm.run(fails))
        assert names() == ["from setUpTestData"]

    def test_async_blocks_take_part_too(self) -> None:
        async def main() -> list[str]:
            async with greenorm.atomic():
                await greenorm.run(Owner.objects.create, name="a")
            return [owner.name async for owner in greenorm.iterate(Owner.objects.order_by("name"))]

        assert asyncio.run(main()) == ["a", "from setUpTestData"]
        assert names() == ["a", "from setUpTestData"]

    def test_concurrent_runs_take_turns(self) -> None:
        def create(name: str) -> None:
            with transaction.atomic():
                Owner.objects.create(name=name)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_sleep(0.01)")

        async def main() -> None:
            await asyncio.gather(*[greenorm.run(create, str(i)) for i in range(5)])

        asyncio.run(main())
        assert names() == ["0", "1", "2", "3", "4", "from setUpTestData"]

    async def test_an_async_test_of_djangos_runner_joins_from_its_loops_own_thread(self) -> None:
        await sync_to_async(Owner.objects.create)(name="from the test's thread")
        assert await greenorm.run(names) == ["from setUpTestData", "from the test's thread"]
        await greenorm.run(Owner.objects.create, name="from a run")
        assert await sync_to_async(names)() == ["from a run", "from setUpTestData", "from the test's thread"]
        await asyncio.gather(asyncio.create_task(greenorm.run(Owner.objects.create, name="from a task")))
        assert len(await sync_to_async(names)()) == 4

    def test_queries_of_a_run_are_counted_with_the_tests(self) -> None:
        with self.assertNumQueries(2):
            asyncio.run(greenorm.run(names))
            names()

    def test_the_connections_state_is_the_same_on_both_sides(self) -> None:
        def prepare() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL work_mem = '6MB'")

        asyncio.run(greenorm.run(prepare))
        with connection.cursor() as cursor:
            cursor.execute("SHOW work_mem")
            assert cursor.fetchone() == ("6MB",)


class HasNoTransactionToJoin(TransactionTestCase):
    """Django's TransactionTestCase: rows are committed, and runs have connections of their own."""

    def test_run_sees_committed_rows_on_its_own_connection(self) -> None:
        Owner.objects.create(name="committed")
        assert asyncio.run(greenorm.run(names)) == ["committed"]
        assert asyncio.run(greenorm.run(_pid)) != _pid()


def _pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def test_a_transaction_of_plain_sync_code_is_joined_through_async_to_sync() -> None:
    async def create() -> list[str]:
        await greenorm.run(Owner.objects.create, name="inside")
        return await greenorm.run(names)

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Owner.objects.create(name="outside")
        assert async_to_sync(create)() == ["inside", "outside"]
        assert names() == ["inside", "outside"]
        raise ZeroDivisionError
    assert names() == []


def test_sync_code_without_a_transaction_is_not_joined() -> None:
    Owner.objects.create(name="committed")
    assert asyncio.run(greenorm.run(_pid)) != _pid()


def test_a_wrapper_that_sync_code_has_connected_is_refused_in_a_run_and_left_alone() -> None:
    wrapper = connections["default"]
    wrapper.ensure_connection()
    connected = wrapper.connection

    def work() -> None:
        connections["default"] = wrapper
        greenorm.await_(asyncio.sleep(0))
        with pytest.raises(greenorm.SharedScope, match="Look it up inside of the run"):
            Owner.objects.count()

    asyncio.run(greenorm.run(work))
    assert wrapper.connection is connected
    assert Owner.objects.count() == 0
