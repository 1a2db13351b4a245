"""async_to_sync in sync code of a run, signals in both directions, and the transaction that they share in turns."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import IntegrityError, connection, transaction
from django.db.models.signals import post_save
from django.dispatch import Signal
from django.test import override_settings

import greenorm
from greenorm import turns
from tests.shop.models import Account, Owner, Tag

pytestmark = pytest.mark.usefixtures("async_methods", "no_threads")


def pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


async def names(model: type[Owner] | type[Tag] = Tag) -> list[str]:
    return [name async for name in model.objects.order_by("name").values_list("name", flat=True)]


async def tag(name: str) -> int:
    await Tag.objects.acreate(name=name)
    return await greenorm.run(pid)


def in_atomic(fn: Callable[[], Any]) -> Callable[[], Any]:
    """`fn` in a transaction that is rolled back, with the backend's pid before it."""

    def job() -> Any:
        with transaction.atomic():
            try:
                return pid(), fn()
            finally:
                transaction.set_rollback(True)

    return job


# async_to_sync


async def test_async_to_sync_in_a_run_awaits_on_the_running_loop() -> None:
    async def asynchronous(x: int, *, y: int) -> tuple[int, Any, Any]:
        await asyncio.sleep(0)
        return x + y, asyncio.get_running_loop(), asyncio.current_task()

    assert await greenorm.run(lambda: async_to_sync(asynchronous)(1, y=2)) == (
        3,
        asyncio.get_running_loop(),
        asyncio.current_task(),
    )


async def test_async_to_sync_decorates_methods() -> None:
    class Shop:
        @async_to_sync
        async def count(self, more: int) -> int:
            return await Tag.objects.acount() + more

    assert await greenorm.run(Shop().count, 3) == 3


async def test_async_to_sync_with_a_loop_of_its_own_awaits_here_too() -> None:
    assert await greenorm.run(lambda: async_to_sync(tag, force_new_loop=True)("t")) > 0
    assert await names() == ["t"]


async def test_async_to_sync_in_async_code_still_raises() -> None:
    with pytest.raises(RuntimeError, match="just await the async function directly"):
        async_to_sync(names)()


async def test_context_variables_and_exceptions_pass_both_ways() -> None:
    var = contextvars.ContextVar("var", default="")

    async def asynchronous() -> None:
        assert var.get() == "set by sync code"
        var.set("set by async code")
        raise KeyError("async")

    def sync() -> str:
        var.set("set by sync code")
        with pytest.raises(KeyError, match="async"):
            async_to_sync(asynchronous)()
        return var.get()

    assert await greenorm.run(sync) == "set by async code"


async def test_async_code_sees_the_exception_that_its_sync_caller_handles() -> None:
    async def asynchronous() -> BaseException | None:
        await asyncio.sleep(0)
        return sys.exc_info()[1]

    def sync() -> bool:
        error, other = ValueError("handled"), KeyError("its context")
        error.__context__ = other
        try:
            raise error
        except ValueError:
            return async_to_sync(asynchronous)() is error and error.__context__ is other

    assert await greenorm.run(sync)


async def test_a_cancellation_in_async_to_sync_rolls_back() -> None:
    waits = asyncio.Event()

    async def asynchronous() -> None:
        await tag("lost")
        waits.set()
        await asyncio.Event().wait()

    @transaction.atomic
    def sync() -> None:
        Tag.objects.create(name="too")
        async_to_sync(asynchronous)()

    task = asyncio.create_task(greenorm.run(sync))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names() == []
    assert greenorm.pool_stats().in_use == 0


# Tasks that async_to_sync started take part, in turns


async def test_tasks_started_in_async_to_sync_share_the_transaction() -> None:
    async def parallel() -> list[int]:
        return await asyncio.gather(*[tag(str(i)) for i in range(5)])

    def sync() -> tuple[list[int], int]:
        return async_to_sync(parallel)(), Tag.objects.count()

    mine, (theirs, count) = await greenorm.run(in_atomic(sync))
    assert (set(theirs), count) == ({mine}, 5)
    assert await names() == []


async def test_without_a_transaction_they_work_side_by_side() -> None:
    async def parallel() -> list[int]:
        barrier = asyncio.Barrier(3)

        async def one() -> int:
            async with greenorm.atomic():
                used = await tag("t")
                await barrier.wait()
            return used

        return await asyncio.gather(*[one() for _ in range(3)])

    assert len(set(await greenorm.run(lambda: async_to_sync(parallel)()))) == 3


async def test_blocks_of_such_tasks_are_savepoints_one_after_the_other() -> None:
    async def one(name: str) -> None:
        async with greenorm.atomic():
            await tag(f"{name}1")
            await asyncio.sleep(0.001)
            await tag(f"{name}2")
            if name == "b":
                raise ZeroDivisionError

    async def parallel() -> list[Any]:
        return await asyncio.gather(*[one(name) for name in "abc"], return_exceptions=True)

    @transaction.atomic
    def sync() -> list[Any]:
        return async_to_sync(parallel)()

    results = await greenorm.run(sync)
    assert [type(result) for result in results] == [type(None), ZeroDivisionError, type(None)]
    assert await names() == ["a1", "a2", "c1", "c2"]


async def test_the_waiting_task_itself_takes_turns_with_them() -> None:
    async def parallel() -> None:
        async def block() -> None:
            with pytest.raises(ZeroDivisionError):
                async with greenorm.atomic():
                    await tag("lost")
                    inside.set()
                    await asyncio.sleep(0.01)
                    raise ZeroDivisionError

        inside = asyncio.Event()
        task = asyncio.create_task(block())
        await inside.wait()
        await tag("kept")  # not into the other task's savepoint
        await task

    await greenorm.run(transaction.atomic(lambda: async_to_sync(parallel)()))
    assert await names() == ["kept"]


async def test_a_child_of_a_block_of_such_a_task_is_refused() -> None:
    async def one() -> None:
        async with greenorm.atomic():
            await tag("a")
            with pytest.raises(greenorm.SharedScope):
                await asyncio.create_task(tag("b"))

    async def parallel() -> None:
        await asyncio.gather(one(), one())

    await greenorm.run(transaction.atomic(lambda: async_to_sync(parallel)()))
    assert await names() == ["a", "a"]


async def test_async_to_sync_nests_in_such_a_task() -> None:
    async def inner() -> list[int]:
        return await asyncio.gather(tag("a"), tag("b"))

    async def outer() -> list[list[int]]:
        return await asyncio.gather(*[greenorm.run(lambda: async_to_sync(inner)()) for _ in range(2)])

    mine, theirs = await greenorm.run(in_atomic(lambda: async_to_sync(outer)()))
    assert {used for both in theirs for used in both} == {mine}


async def test_a_task_that_was_there_before_is_still_refused() -> None:
    async def stranger() -> None:
        await go.wait()
        try:
            with pytest.raises(greenorm.SharedScope):
                await Tag.objects.acount()
        finally:
            done.set()

    async def asynchronous() -> None:
        go.set()
        await done.wait()

    go, done = asyncio.Event(), asyncio.Event()
    async with greenorm.atomic():
        await tag("a")
        task = asyncio.create_task(stranger())
        await greenorm.run(lambda: async_to_sync(asynchronous)())
        await task


async def test_sync_to_async_below_it_takes_part_in_the_transaction() -> None:
    async def users_own() -> int:
        return await sync_to_async(pid)()

    mine, theirs = await greenorm.run(in_atomic(lambda: async_to_sync(users_own)()))
    assert mine == theirs


async def test_sync_to_async_below_it_without_a_transaction_keeps_its_thread(no_threads: list[str]) -> None:
    async def users_own() -> int:
        return await sync_to_async(threading.get_ident)()

    assert await greenorm.run(lambda: async_to_sync(users_own)()) != threading.get_ident()
    assert len(no_threads) == 1
    no_threads.clear()


async def test_await_does_not_lend_the_transaction() -> None:
    async def parallel() -> None:
        await asyncio.gather(tag("a"), tag("b"))

    with pytest.raises(greenorm.SharedScope):
        await greenorm.run(in_atomic(lambda: greenorm.await_(parallel())))


async def test_a_task_that_outlives_async_to_sync_ends_its_turn_and_gets_no_other() -> None:
    tasks = []

    async def lives_on() -> None:
        async with greenorm.atomic():
            await tag("a")
            await asyncio.sleep(0.01)
            await tag("b")
        with pytest.raises(greenorm.SharedScope):
            await tag("c")

    async def asynchronous() -> None:
        tasks.append(asyncio.create_task(lives_on()))
        await asyncio.sleep(0.005)

    def sync() -> int:
        async_to_sync(asynchronous)()
        seen = Tag.objects.count()
        greenorm.await_(tasks[0])
        return seen

    assert await greenorm.run(transaction.atomic(sync)) == 2
    assert await names() == ["a", "b"]


async def test_a_task_that_keeps_its_turn_for_good_is_an_error_and_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RETURN_SECONDS", 0.05)
    tasks = []
    held, go = asyncio.Event(), asyncio.Event()

    async def keeps() -> None:
        async with greenorm.atomic():
            await tag("lost")
            held.set()
            await go.wait()

    async def asynchronous() -> None:
        tasks.append(asyncio.create_task(keeps()))
        await held.wait()

    with pytest.raises(greenorm.ConnectionInUse, match="Await such a task before returning"):
        await greenorm.run(transaction.atomic(lambda: async_to_sync(asynchronous)()))
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await names() == []
    assert greenorm.pool_stats().in_use == 0


async def test_a_cancelled_task_gives_its_turn_back() -> None:
    async def parallel() -> None:
        async def stuck() -> None:
            async with greenorm.atomic():
                await tag("lost")
                inside.set()
                await asyncio.Event().wait()

        inside = asyncio.Event()
        task = asyncio.create_task(stuck())
        await inside.wait()
        waiting = asyncio.create_task(tag("cancelled while it waits for its turn"))
        await asyncio.sleep(0)
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        await tag("kept")

    await greenorm.run(transaction.atomic(lambda: async_to_sync(parallel)()))
    assert await names() == ["kept"]
    assert greenorm.pool_stats().in_use == 0


async def test_on_commit_of_such_a_task_waits_for_the_whole_transaction() -> None:
    ran = []

    async def parallel() -> None:
        await asyncio.gather(*[greenorm.run(transaction.on_commit, lambda i=i: ran.append(i)) for i in range(2)])

    def sync() -> list[int]:
        async_to_sync(parallel)()
        return list(ran)

    assert await greenorm.run(transaction.atomic(sync)) == []
    assert ran == [0, 1]


# Signals


@pytest.fixture
def saved() -> Iterator[Callable[..., None]]:
    """Connects receivers to post_save of Owner for one test."""
    connected = []

    def connect(receiver: Any) -> None:
        post_save.connect(receiver, sender=Owner, weak=False)
        connected.append(receiver)

    yield connect
    for receiver in connected:
        post_save.disconnect(receiver, sender=Owner)


async def test_async_receivers_of_save_are_in_its_transaction(saved: Callable[..., None]) -> None:
    seen = []

    async def tags(instance: Owner, **_: Any) -> None:
        seen.append(await tag(f"for {instance.name}"))

    async def opens_an_account(instance: Owner, **_: Any) -> None:
        async with greenorm.atomic():
            await Account.objects.acreate(owner=instance)
            seen.append(await greenorm.run(pid))

    saved(tags)
    saved(opens_an_account)
    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            mine = await greenorm.run(pid)
            await Owner(name="a").asave()
            assert (await names(), await Account.objects.acount()) == (["for a"], 1)
            raise ZeroDivisionError
    assert seen == [mine, mine]
    assert (await names(), await Account.objects.acount()) == ([], 0)


async def test_async_receivers_of_a_bare_save_are_in_its_transaction(saved: Callable[..., None]) -> None:
    async def fails(instance: Owner, **_: Any) -> None:
        await tag("lost")
        raise ZeroDivisionError

    saved(fails)
    with pytest.raises(ZeroDivisionError):
        await Owner.objects.aget_or_create(name="a")
    assert (await names(), await names(Owner)) == ([], [])


@pytest.mark.parametrize("send", ["send", "send_robust"])
async def test_send_awaits_async_receivers_in_the_transaction(send: str) -> None:
    signal = Signal()

    async def first(**_: Any) -> int:
        return await tag("a")

    async def second(**_: Any) -> int:
        return await tag("b")

    signal.connect(first)
    signal.connect(second)
    mine, responses = await greenorm.run(in_atomic(lambda: getattr(signal, send)(None)))
    assert responses == [(first, mine), (second, mine)]
    assert await names() == []


@pytest.mark.parametrize("asend", ["asend", "asend_robust"])
async def test_asend_calls_sync_and_async_receivers_in_the_transaction(asend: str) -> None:
    signal = Signal()

    def sync(**_: Any) -> int:
        Tag.objects.create(name="sync")
        return pid()

    async def first(**_: Any) -> int:
        return await tag("async")

    async def second(**_: Any) -> int:
        async with greenorm.atomic():
            await tag("async")
            return await tag("async")

    for receiver in (sync, first, second):
        signal.connect(receiver)
    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            mine = await greenorm.run(pid)
            assert dict(await getattr(signal, asend)(None)) == {sync: mine, first: mine, second: mine}
            assert await Tag.objects.acount() == 4
            raise ZeroDivisionError
    assert await names() == []


async def test_asend_outside_of_a_transaction_needs_no_thread_either() -> None:
    signal = Signal()

    def sync(**_: Any) -> int:
        return pid()

    async def asynchronous(**_: Any) -> int:
        return await Tag.objects.acount()

    signal.connect(sync)
    signal.connect(asynchronous)
    responses = dict(await signal.asend(None))
    assert responses[sync] > 0
    assert responses[asynchronous] == 0


async def test_an_error_of_one_receiver_leaves_the_transaction_to_the_caller() -> None:
    signal = Signal()

    async def fails(**_: Any) -> None:
        await tag("a")
        raise ZeroDivisionError

    async def slow(**_: Any) -> None:
        async with greenorm.atomic():
            await tag("b")
            await asyncio.sleep(0.01)

    signal.connect(slow)
    signal.connect(fails)
    async with greenorm.atomic():
        with pytest.raises(ZeroDivisionError):
            await signal.asend(None)
        await tag("c")
        assert "c" in await names()
    assert greenorm.pool_stats().in_use == 0


async def test_asend_robust_gives_the_errors_of_sync_receivers() -> None:
    signal = Signal()

    def fails(**_: Any) -> None:
        with transaction.atomic():
            Tag.objects.create(name="lost")
            raise ZeroDivisionError

    signal.connect(fails)
    async with greenorm.atomic():
        [(_, error)] = await signal.asend_robust(None)
        assert isinstance(error, ZeroDivisionError)
    assert await names() == []


async def test_a_cancelled_asend_rolls_back_and_gives_back() -> None:
    signal = Signal()
    inside = asyncio.Event()

    async def stuck(**_: Any) -> None:
        async with greenorm.atomic():
            await tag("lost")
            inside.set()
            await asyncio.Event().wait()

    async def work() -> None:
        async with greenorm.atomic():
            await tag("lost too")
            await signal.asend(None)

    signal.connect(stuck)
    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await names() == []
    assert greenorm.pool_stats().in_use == 0


@override_settings(GREENORM={"BLOCKING_ALIASES": ["local"]})
async def test_an_allowed_blocking_alias_is_shared_in_turns_too() -> None:
    def sqlite_depth() -> int:
        from django.db import connections

        return len(connections["local"].savepoint_ids)

    async def parallel() -> list[int]:
        return await asyncio.gather(greenorm.run(sqlite_depth), greenorm.run(sqlite_depth))

    def sync() -> list[int]:
        with transaction.atomic(using="local"), transaction.atomic(using="local"):
            return async_to_sync(parallel)()

    assert await greenorm.run(sync) == [1, 1]


async def test_nothing_of_a_shared_transaction_is_kept() -> None:
    async def parallel() -> None:
        await asyncio.gather(tag("a"), tag("b"))

    def scopes() -> int:
        gc.collect()
        return sum(type(thing).__name__ in ("Scope", "Wait") for thing in gc.get_objects())

    await greenorm.run(transaction.atomic(lambda: async_to_sync(parallel)()))
    before = scopes()
    for _ in range(20):
        await greenorm.run(transaction.atomic(lambda: async_to_sync(parallel)()))
    assert scopes() <= before + 1


async def test_integrity_errors_of_a_task_break_only_its_savepoint() -> None:
    async def doubles() -> None:
        with pytest.raises(IntegrityError):
            async with greenorm.atomic():
                await Owner.objects.acreate(name="a")

    async def parallel() -> None:
        await asyncio.gather(doubles(), doubles(), tag("kept"))

    @transaction.atomic
    def sync() -> None:
        Owner.objects.create(name="a")
        async_to_sync(parallel)()

    await greenorm.run(sync)
    assert (await names(Owner), await names()) == (["a"], ["kept"])
