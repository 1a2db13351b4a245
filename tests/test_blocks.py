"""`atomic`, `connection` and `iterate`: what spans several awaits of one task."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator

import psycopg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError

import greenorm
from greenorm import scope
from tests.shop.models import Owner, Tag


def names() -> list[str]:
    return list(Owner.objects.order_by("name").values_list("name", flat=True))


async def create(name: str) -> None:
    await greenorm.run(Owner.objects.create, name=name)


def make(count: int) -> None:
    Owner.objects.bulk_create(Owner(name=f"{i:07}") for i in range(count))


# atomic


async def test_atomic_commits_what_several_runs_did() -> None:
    async with greenorm.atomic():
        await create("a")
        await asyncio.sleep(0)
        await create("b")
        assert await greenorm.run(names) == ["a", "b"]
    assert await greenorm.run(names) == ["a", "b"]


async def test_atomic_rolls_back_on_an_exception() -> None:
    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            await create("a")
            raise ZeroDivisionError
    assert await greenorm.run(names) == []


async def test_a_nested_atomic_is_a_savepoint() -> None:
    async with greenorm.atomic():
        await create("kept")
        with pytest.raises(IntegrityError):
            async with greenorm.atomic():
                await create("lost")
                await create("kept")
        await create("too")
    assert await greenorm.run(names) == ["kept", "too"]


async def test_atomic_without_savepoint_marks_the_outer_block() -> None:
    with pytest.raises(TransactionManagementError):
        async with greenorm.atomic():
            with pytest.raises(IntegrityError):
                async with greenorm.atomic(savepoint=False):
                    await create("a")
                    await create("a")
            await create("b")
    assert await greenorm.run(names) == []


async def test_sync_atomic_inside_a_run_nests_in_the_async_one() -> None:
    def fails() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            raise ZeroDivisionError

    async with greenorm.atomic():
        await create("kept")
        with pytest.raises(ZeroDivisionError):
            await greenorm.run(fails)
    assert await greenorm.run(names) == ["kept"]


async def test_set_rollback_rolls_back_without_an_exception() -> None:
    async with greenorm.atomic():
        await create("a")
        await greenorm.run(transaction.set_rollback, True)
    assert await greenorm.run(names) == []


async def test_durable_refuses_to_nest() -> None:
    async with greenorm.atomic(durable=True):
        with pytest.raises(RuntimeError, match="durable atomic block cannot be nested"):
            async with greenorm.atomic(durable=True):
                pass
        await create("a")
    assert await greenorm.run(names) == ["a"]


async def test_atomic_holds_one_connection_and_gives_it_back() -> None:
    async with greenorm.atomic():
        await create("a")
        await asyncio.sleep(0.01)
        assert greenorm.pool_stats().in_use == 1
    assert greenorm.pool_stats().in_use == 0


async def test_atomic_on_another_alias_leaves_the_default_one_alone() -> None:
    async with greenorm.atomic("other"):
        await greenorm.run(lambda: Owner.objects.using("other").create(name="other"))
        await create("default")
        assert (greenorm.pool_stats("other").in_use, greenorm.pool_stats().in_use) == (1, 0)
    assert await greenorm.run(names) == ["default"]


async def test_atomic_decorates_async_functions() -> None:
    @greenorm.atomic
    async def fails(name: str) -> None:
        await create(name)
        raise ZeroDivisionError

    @greenorm.atomic(durable=True)
    async def works(name: str) -> str:
        await create(name)
        return name

    with pytest.raises(ZeroDivisionError):
        await fails("a")
    assert await works("b") == "b"
    assert await greenorm.run(names) == ["b"]


async def test_atomic_decorates_sync_functions() -> None:
    @greenorm.atomic
    def fails() -> None:
        Owner.objects.create(name="a")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await greenorm.run(fails)
    assert await greenorm.run(names) == []


def test_atomic_is_djangos_in_plain_sync_code() -> None:
    with pytest.raises(ZeroDivisionError), greenorm.atomic():
        Owner.objects.create(name="a")
        raise ZeroDivisionError
    assert names() == []


async def test_with_atomic_in_a_coroutine_says_async_with() -> None:
    with pytest.raises(SynchronousOnlyOperation, match=r"async with greenorm\.atomic\(\)"), greenorm.atomic():
        pass


async def test_one_atomic_object_serves_many_tasks() -> None:
    block = greenorm.atomic()

    async def works(i: int) -> None:
        async with block:
            await create(f"{i}")
            async with block:
                await create(f"{i}+")

    await asyncio.gather(*[works(i) for i in range(8)])
    assert len(await greenorm.run(names)) == 16


async def test_a_decorated_async_function_may_run_many_times_at_once() -> None:
    @greenorm.atomic
    async def works(i: int) -> None:
        await create(str(i))

    await asyncio.gather(*[works(i) for i in range(8)])
    assert len(await greenorm.run(names)) == 8


async def test_on_commit_calls_sync_and_async_callbacks_in_order() -> None:
    called = []

    async def later() -> None:
        called.append(("async", await greenorm.run(names)))

    def register() -> None:
        transaction.on_commit(lambda: called.append(("sync", names())))
        transaction.on_commit(later)
        transaction.on_commit(lambda: later())

    async with greenorm.atomic():
        await create("a")
        await greenorm.run(register)
        assert called == []
    assert called == [("sync", ["a"]), ("async", ["a"]), ("async", ["a"])]


async def test_on_commit_is_not_called_after_a_rollback() -> None:
    called = []
    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            await greenorm.run(transaction.on_commit, lambda: called.append(1))
            raise ZeroDivisionError
    assert called == []


# connection


async def test_connection_keeps_one_session_for_the_block() -> None:
    def pid() -> int:
        return connection.connection.info.backend_pid if connection.ensure_connection() is None else 0

    def set_it() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET work_mem = '5MB'; CREATE TEMPORARY TABLE mine (n int)")

    def see_it() -> tuple[str, int]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('work_mem'), (SELECT count(*) FROM mine)")
            return cursor.fetchone()

    async with greenorm.connection():
        first = await greenorm.run(pid)
        await greenorm.run(set_it)
        await asyncio.gather(*[asyncio.create_task(asyncio.sleep(0)) for _ in range(3)])
        assert await greenorm.run(see_it) == ("5MB", 0)
        assert await greenorm.run(pid) == first
        assert greenorm.pool_stats().in_use == 1
        await greenorm.run(lambda: connection.cursor().execute("DROP TABLE mine; RESET work_mem"))
    assert greenorm.pool_stats().in_use == 0


async def test_connection_in_sync_code_keeps_it_over_a_wait() -> None:
    async def in_use() -> int:
        return greenorm.pool_stats().in_use

    def waits() -> tuple[int, int]:
        with greenorm.connection():
            inside = greenorm.await_(in_use())
        return inside, greenorm.await_(in_use())

    assert await greenorm.run(waits) == (1, 0)


async def test_connection_rolls_back_nothing_that_was_committed() -> None:
    async with greenorm.connection():
        await create("a")
        async with greenorm.atomic():
            await create("b")
    assert await greenorm.run(names) == ["a", "b"]


# iterate


async def test_iterate_gives_every_row_in_order() -> None:
    await greenorm.run(make, 100)
    rows = [owner.name async for owner in greenorm.iterate(Owner.objects.order_by("name"), chunk_size=7)]
    assert rows == await greenorm.run(names)


async def test_iterate_uses_a_server_side_cursor_and_closes_it(admin: psycopg.Connection) -> None:
    await greenorm.run(make, 100)
    async for _ in greenorm.iterate(Owner.objects.all(), chunk_size=10):
        cursors = await greenorm.run(_cursors)
        assert cursors == ["_django_curs"]
    assert await greenorm.run(_cursors) == []
    assert greenorm.pool_stats().in_use == 0


def _cursors() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_cursors WHERE name LIKE '_django%'")
        return [name[:12] for (name,) in cursor.fetchall()]


async def test_iterate_shares_its_connection_with_runs_in_its_body() -> None:
    await greenorm.run(make, 30)

    async def reads() -> None:
        async for owner in greenorm.iterate(Owner.objects.all(), chunk_size=5):
            await greenorm.run(lambda owner=owner: Owner.objects.get(pk=owner.pk))

    # Eight readers on four connections: a second connection for each would be waited for without end.
    await asyncio.wait_for(asyncio.gather(*[reads() for _ in range(8)]), 20)


@pytest.mark.parametrize("prefetch", [False, True])
async def test_iterate_takes_prefetch_values_and_raw(prefetch: bool) -> None:
    await greenorm.run(make, 5)
    owners = Owner.objects.order_by("pk")
    if prefetch:
        assert [list(o.accounts.all()) async for o in greenorm.iterate(owners.prefetch_related("accounts"))] == [[]] * 5
    else:
        assert len([row async for row in greenorm.iterate(owners.values("name"))]) == 5
        assert len([row async for row in greenorm.iterate(Owner.objects.raw("SELECT * FROM shop_owner"))]) == 5


async def test_iterate_left_by_break_gives_the_connection_back_at_once() -> None:
    await greenorm.run(make, 100)
    async for _ in greenorm.iterate(Owner.objects.all(), chunk_size=10):
        break
    assert await greenorm.run(_cursors) == []
    await asyncio.sleep(0.1)
    stats = greenorm.pool_stats()
    assert (stats.in_use, stats.idle, stats.closed) == (0, stats.size, 0)


async def test_iterate_left_by_an_exception_gives_the_connection_back() -> None:
    await greenorm.run(make, 100)
    with pytest.raises(ZeroDivisionError):
        async for _ in greenorm.iterate(Owner.objects.all(), chunk_size=10):
            raise ZeroDivisionError
    await asyncio.sleep(0.1)
    assert greenorm.pool_stats().in_use == 0
    assert await greenorm.run(_cursors) == []


async def test_iterate_left_by_cancellation_gives_the_connection_back() -> None:
    await greenorm.run(make, 100)

    async def reads() -> None:
        async for _ in greenorm.iterate(Owner.objects.extra(select={"s": "pg_sleep(0.01)"}), chunk_size=10):
            pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reads(), 0.25)
    assert greenorm.pool_stats().in_use == 0
    assert await greenorm.run(_cursors) == []


async def test_async_with_iterate_has_closed_it_at_the_end_of_the_block() -> None:
    await greenorm.run(make, 100)
    async with greenorm.iterate(Owner.objects.all(), chunk_size=10) as owners:
        async for _ in owners:
            break
        assert greenorm.pool_stats().in_use == 1
    assert greenorm.pool_stats().in_use == 0
    assert [owner async for owner in owners] == []


async def test_iterate_left_in_a_savepoint_that_is_rolled_back_leaves_the_transaction_as_it_is() -> None:
    await greenorm.run(make, 30)
    async with greenorm.atomic():
        with pytest.raises(ZeroDivisionError):
            async with greenorm.atomic():
                async for _ in greenorm.iterate(Owner.objects.all(), chunk_size=5):
                    raise ZeroDivisionError
        for name in ("a", "b"):
            await create(name)
            await asyncio.sleep(0)
    assert len(await greenorm.run(names)) == 32


@pytest.mark.parametrize("whole", [False, True], ids=["savepoint", "transaction"])
async def test_a_cursor_that_has_gone_with_what_was_rolled_back_can_be_closed_in_a_transaction(whole: bool) -> None:
    def in_another_transaction() -> list[str]:
        with greenorm.connection():
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                owners = Owner.objects.iterator(5)
                next(owners)
                raise ZeroDivisionError
            with transaction.atomic():
                names()
                owners.close()
                return [*names(), "and no error"]

    def in_the_one_around() -> list[str]:
        with transaction.atomic():
            with contextlib.suppress(ZeroDivisionError), transaction.atomic():
                owners = Owner.objects.iterator(5)
                next(owners)
                raise ZeroDivisionError
            owners.close()
            return [*names(), "and no error"]

    await greenorm.run(make, 30)
    assert len(await greenorm.run(in_another_transaction if whole else in_the_one_around)) == 31


async def test_iterate_that_only_the_error_of_a_task_knows_of_ends_with_the_task() -> None:
    async def fails() -> None:
        owners = greenorm.iterate(Owner.objects.all(), chunk_size=5)
        async for _ in owners:
            raise ZeroDivisionError

    await greenorm.run(make, 30)
    task = asyncio.create_task(fails())
    await asyncio.wait([task])
    assert greenorm.pool_stats().in_use == 1  # the traceback still knows its local variables
    with pytest.raises(ZeroDivisionError):
        task.result()
    del task
    gc.collect()
    assert await greenorm.run(_cursors) == []
    assert greenorm.pool_stats().in_use == 0
    assert scope._open_scopes == {}


async def test_iterate_inside_atomic_sees_the_transaction() -> None:
    async with greenorm.atomic():
        await create("uncommitted")
        assert [owner.name async for owner in greenorm.iterate(Owner.objects.all())] == ["uncommitted"]
        async for _ in greenorm.iterate(Owner.objects.all()):
            break
        await create("after")
    assert await greenorm.run(names) == ["after", "uncommitted"]


async def test_two_iterations_of_one_task_may_overlap() -> None:
    await greenorm.run(make, 20)
    first, second = (greenorm.iterate(Owner.objects.order_by("pk"), chunk_size=3) for _ in range(2))
    pairs = [(await anext(first), await anext(second)) for _ in range(10)]
    await first.aclose()
    assert len([owner async for owner in second]) == 10
    assert all(a == b for a, b in pairs)
    assert greenorm.pool_stats().in_use == 0


async def test_iterate_takes_any_sync_iterable_item_by_item() -> None:
    produced = []

    def produce() -> Iterator[int]:
        for i in range(3):
            produced.append(i)
            yield i + Owner.objects.count()

    async for item in greenorm.iterate(produce()):
        assert produced == list(range(item + 1))


async def test_an_error_in_the_middle_comes_after_the_items_before_it() -> None:
    def fails() -> Iterator[int]:
        yield 1
        yield 2
        raise ZeroDivisionError

    seen = []
    with pytest.raises(ZeroDivisionError):
        async for item in greenorm.iterate(fails(), chunk_size=10):
            seen.append(item)
    assert seen == [1, 2]


async def test_a_generator_with_an_open_transaction_keeps_it_between_items() -> None:
    def produce() -> Iterator[int]:
        with transaction.atomic():
            for i in range(3):
                Owner.objects.create(name=str(i))
                yield i

    async for _ in greenorm.iterate(produce()):
        assert greenorm.pool_stats().in_use == 1
    assert len(await greenorm.run(names)) == 3


async def test_a_generator_with_an_open_transaction_that_is_left_rolls_back() -> None:
    def produce() -> Iterator[int]:
        with transaction.atomic():
            for i in range(3):
                Owner.objects.create(name=str(i))
                yield i

    async with greenorm.iterate(produce()) as items:
        async for _ in items:
            break
    assert await greenorm.run(names) == []


async def test_iterate_refuses_what_it_cannot_iterate_over() -> None:
    with pytest.raises(TypeError, match="not int"):
        greenorm.iterate(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        greenorm.iterate([], chunk_size=0)


async def test_a_database_error_in_iterate_is_djangos() -> None:
    with pytest.raises(DatabaseError):
        async for _ in greenorm.iterate(Owner.objects.extra(where=["nonsense = 1"])):
            pass
    assert greenorm.pool_stats().in_use == 0


async def test_memory_stays_flat_over_a_million_rows() -> None:
    def fill() -> None:
        make(1000)
        Tag.objects.bulk_create(Tag(name="x" * 50) for _ in range(1000))

    await greenorm.run(fill)
    gc.collect()
    before = _rss()
    count = 0
    async for _ in greenorm.iterate(Owner.objects.extra(tables=["shop_tag"]).values_list("name")):
        count += 1
    assert count == 1_000_000
    assert _rss() - before < 30 * 1024 * 1024


def _rss() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
