"""The garbage collector runs wherever it likes: what it finalizes must neither switch greenlets nor block the loop."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import Any

import greenlet
import pytest
from django.db import connection, transaction

import greenorm
from greenorm import bridge

from .books import open_wallets
from .models import Wallet
from .proxy import Proxy
from .storm import Plan, check_pool, storm

# How long, in seconds, the network takes where nobody is meant to wait for it.
DELAY = 3.0


@pytest.fixture
def collector_waits() -> Iterator[None]:
    """The collector runs where the test calls it, and only there."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What finalizers have raised."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda hook: seen.append(hook.exc_value))
    return seen


def half_read() -> Iterator[Wallet]:
    """A queryset's iterator with an open server-side cursor."""
    rows = Wallet.objects.order_by("pk").iterator(5)
    next(rows)
    return rows


def in_a_cycle(thing: object) -> None:
    """Let nobody but the collector find `thing`."""
    cell = [thing]
    cell.append(cell)


def open_portals() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '\\_django%%'")
        return cursor.fetchone()[0]


async def turns_during(work: Callable[[Callable[[], None]], Awaitable[None]]) -> int:
    """How often the loop gets round to other tasks while the collector runs in `work`, by the function it is given."""
    turns = during = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def collect() -> None:
        nonlocal during
        before = turns
        gc.collect()
        during += turns - before

    task = asyncio.create_task(others())
    await work(collect)
    task.cancel()
    return during


@pytest.mark.usefixtures("collector_waits")
async def test_a_half_read_iterator_that_is_collected_in_its_run_does_not_switch(unraisable: list[Any]) -> None:
    def work(collect: Callable[[], None]) -> None:
        with transaction.atomic():
            in_a_cycle(half_read())
            assert open_portals() == 1
            collect()
            assert Wallet.objects.count() == 40  # the transaction goes on

    async def run(collect: Callable[[], None]) -> None:
        await greenorm.run(work, collect)

    await greenorm.run(open_wallets)
    assert await turns_during(run) == 0
    assert unraisable == []
    assert check_pool() == []
    assert await greenorm.run(open_portals) == 0


@pytest.mark.usefixtures("collector_waits")
async def test_a_half_read_iterator_that_is_collected_in_the_run_of_another_task_does_not_switch(
    unraisable: list[Any],
) -> None:
    async def owner() -> int:
        async with greenorm.atomic():
            in_a_cycle(await greenorm.run(half_read))
            left.set()
            await collected.wait()
            return await greenorm.run(Wallet.objects.count)

    async def run(collect: Callable[[], None]) -> None:
        await greenorm.run(collect)

    left, collected = asyncio.Event(), asyncio.Event()
    await greenorm.run(open_wallets)
    task = asyncio.create_task(owner())
    await left.wait()
    assert await turns_during(run) == 0
    collected.set()
    assert await task == 40
    assert unraisable == []
    assert check_pool() == []


@pytest.mark.usefixtures("collector_waits")
@pytest.mark.parametrize("by", ["collector", "hand"])
async def test_a_half_read_iterator_that_async_code_drops_does_not_block(
    by: str, proxy: Proxy, unraisable: list[Any]
) -> None:
    await greenorm.run(open_wallets)
    async with greenorm.connection(), greenorm.atomic():
        rows = await greenorm.run(half_read)
        if by == "collector":
            in_a_cycle(rows)
        proxy.delay(DELAY)
        since = monotonic()
        del rows
        gc.collect()
        assert monotonic() - since < DELAY
        proxy.delay(0)
        assert await greenorm.run(Wallet.objects.count) == 40
    assert unraisable == []
    assert check_pool() == []
    assert await greenorm.run(open_portals) == 0


@pytest.mark.usefixtures("collector_waits")
async def test_a_half_read_iterator_is_closed_where_its_own_run_drops_it(unraisable: list[Any]) -> None:
    def work() -> int:
        with transaction.atomic():
            rows = half_read()
            del rows
            return open_portals()

    await greenorm.run(open_wallets)
    assert await greenorm.run(work) == 0
    assert unraisable == []


async def test_a_cancellation_while_a_half_read_iterator_is_closed_is_not_swallowed(
    proxy: Proxy, unraisable: list[Any]
) -> None:
    def work() -> None:
        with transaction.atomic():
            rows = half_read()
            proxy.freeze()
            loop.call_soon(cancel)
            del rows  # waits for the server, in a finalizer, and is cancelled there
            done.append("with the finalizer")
            Wallet.objects.count()
            done.append("with what came after it")

    def cancel() -> None:
        task.cancel()
        proxy.thaw()

    done: list[str] = []
    loop = asyncio.get_running_loop()
    await greenorm.run(open_wallets)
    task = asyncio.create_task(greenorm.run(work))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["with the finalizer"]
    assert unraisable == []
    assert check_pool() == []


@pytest.mark.usefixtures("collector_waits")
async def test_a_finalizer_that_queries_is_refused_where_the_collector_calls_it(unraisable: list[Any]) -> None:
    class Careless:
        def __del__(self) -> None:
            Wallet.objects.count()

    def work(collect: Callable[[], None]) -> None:
        in_a_cycle(Careless())
        collect()
        assert Wallet.objects.count() == 40

    async def run(collect: Callable[[], None]) -> None:
        await greenorm.run(work, collect)

    await greenorm.run(open_wallets)
    assert await turns_during(run) == 0
    (error,) = unraisable
    assert isinstance(error, greenorm.NotInRun)
    assert "while the garbage collector ran" in str(error)
    assert check_pool() == []


@pytest.mark.usefixtures("collector_waits")
async def test_what_a_finalizer_may_not_wait_for_is_not_started(unraisable: list[Any]) -> None:
    class Careless:
        def __del__(self) -> None:
            greenorm.await_(never())

    async def never() -> None:
        raise AssertionError

    def work() -> None:
        in_a_cycle(Careless())
        gc.collect()

    await greenorm.run(work)
    assert [type(error) for error in unraisable] == [greenorm.NotInRun]


@pytest.mark.usefixtures("collector_waits")
async def test_a_half_read_iterate_that_is_collected_gives_its_connection_back(unraisable: list[Any]) -> None:
    async def begin() -> None:
        items = greenorm.iterate(Wallet.objects.order_by("pk"), 5)
        await anext(items)
        in_a_cycle(items)

    async def run(collect: Callable[[], None]) -> None:
        await greenorm.run(collect)

    await greenorm.run(open_wallets)
    await asyncio.create_task(begin())
    assert greenorm.pool_stats().in_use == 1
    assert await turns_during(run) == 0
    while greenorm.pool_stats().in_use:
        await asyncio.sleep(0.001)
    assert unraisable == []
    assert await greenorm.run(open_portals) == 0


@pytest.mark.usefixtures("collector_waits")
async def test_a_run_that_is_collected_is_unwound_after_the_collector_has_ended() -> None:
    def work() -> None:
        with transaction.atomic():
            Wallet.objects.create(balance=1)
            try:
                greenorm.await_(never)
            finally:
                unwound.append(bridge.collecting())

    async def begin() -> None:
        # Stepped by hand: a task that waits for something is kept by that, and never found by the collector.
        coroutine = greenorm.run(work)
        step: Any = None
        while step is not never:
            while step is not None and not step.done():
                await asyncio.sleep(0)
            step = coroutine.send(None)
        in_a_cycle(coroutine)

    never = asyncio.get_running_loop().create_future()
    unwound: list[bool] = []
    await begin()
    assert greenorm.pool_stats().in_use == 1
    gc.collect()
    with pytest.warns(ResourceWarning, match="a run was destroyed while it held"):
        await asyncio.sleep(0)
    assert unwound == [False]
    assert greenorm.pool_stats().in_use == 0
    assert await asyncio.create_task(greenorm.run(Wallet.objects.count)) == 0


def greenlets() -> int:
    gc.collect()
    # By type(): isinstance() asks lazy objects of others for their class, and so sets them up.
    return sum(issubclass(type(thing), greenlet.greenlet) for thing in gc.get_objects())


@pytest.mark.one_loop
@pytest.mark.no_database
async def test_greenlets_of_a_crowd_end_with_it() -> None:
    async def crowd() -> int:
        all_there = asyncio.Barrier(200)
        await asyncio.gather(*[greenorm.run(lambda: greenorm.await_(all_there.wait())) for _ in range(200)])
        return greenlets()

    few = greenlets()
    assert await crowd() < few + 100  # some are kept for reuse
    assert await crowd() < few + 100


@pytest.mark.one_loop
@pytest.mark.no_database
def test_greenlets_end_with_their_thread() -> None:
    def in_thread() -> None:
        async def main() -> None:
            await asyncio.gather(*[greenorm.run(greenorm.await_, asyncio.sleep(0)) for _ in range(20)])

        asyncio.run(main())

    def some_threads() -> None:
        for _ in range(10):
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()

    some_threads()
    before = greenlets()
    some_threads()
    assert greenlets() - before < 10  # less than one of each thread; the last one's main greenlet may be there yet


async def test_a_storm_during_which_the_collector_runs_all_the_time(seed: int) -> None:
    thresholds = gc.get_threshold()
    gc.set_threshold(20, 2, 2)
    try:
        result = await storm(Plan(seed, operations=60, cancellations=30, clients=8, warm_up=20))
    finally:
        gc.set_threshold(*thresholds)
    assert result.wrong == [], f"seed {seed}"
