"""That a run lets other tasks run, counted in steps of a task beside it, and not in time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

import greenorm
from greenorm import bridge
from tests.shop.models import Owner


@pytest.fixture(autouse=True)
def turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run has begun yet, of those that wait in line for the loop to turn."""
    monkeypatch.setattr(bridge, "turns", bridge._Turns())


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a run has done, it has kept the loop for long."""
    monkeypatch.setattr(bridge, "BUSY_SECONDS", -1.0)


class Ticker:
    """A task that counts its steps, one in each turn of the loop."""

    async def __aenter__(self) -> Ticker:
        self.steps = 0
        self.task = asyncio.create_task(self.tick())
        await asyncio.sleep(0)
        return self

    async def tick(self) -> None:
        while True:
            self.steps += 1
            await asyncio.sleep(0)

    async def __aexit__(self, *exc_info: object) -> None:
        self.task.cancel()


@contextmanager
def rows(count: int) -> Iterator[Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT generate_series(1, %s)", [count])
        yield cursor


@pytest.mark.no_database
@pytest.mark.usefixtures("impatient")
async def test_a_fetch_lets_others_go_first_when_the_run_has_kept_the_loop() -> None:
    seen = []

    def work() -> None:
        with rows(10) as cursor:
            for _ in range(10):
                cursor.fetchone()
                seen.append(ticker.steps)

    async with Ticker() as ticker:
        await greenorm.run(work)
    assert all(later > earlier for earlier, later in itertools.pairwise(seen))


@pytest.mark.no_database
async def test_a_fetch_goes_on_at_once_in_a_run_that_has_not_kept_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "BUSY_SECONDS", 60.0)
    seen = set()

    def work() -> None:
        with rows(100) as cursor:
            while cursor.fetchmany(10):
                seen.add(ticker.steps)

    async with Ticker() as ticker:
        await greenorm.run(work)
    assert len(seen) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_long_list_lets_others_go_first_at_each_block_of_rows() -> None:
    await greenorm.run(Owner.objects.bulk_create, [Owner(name=f"owner {i}") for i in range(1000)])
    seen = []

    def work() -> None:
        before = ticker.steps
        list(Owner.objects.all())
        seen.append(ticker.steps - before)

    async with Ticker() as ticker:
        await greenorm.run(work)
    assert seen[0] >= 10  # Django reads 100 rows at a time


@pytest.mark.no_database
@pytest.mark.usefixtures("impatient")
async def test_a_cancellation_at_a_fetch_rolls_back() -> None:
    def work() -> None:
        with rows(10) as cursor:
            task.cancel()
            cursor.fetchone()

    task = asyncio.create_task(greenorm.run(work))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert greenorm.pool_stats().in_use == 0


@pytest.mark.no_database
@pytest.mark.usefixtures("impatient")
async def test_runs_that_are_started_together_begin_in_turn_and_let_others_run() -> None:
    begun: list[int] = []
    steps = []

    def work(number: int) -> None:
        begun.append(number)
        steps.append(ticker.steps)

    async with Ticker() as ticker:
        await asyncio.gather(*[greenorm.run(work, number) for number in range(300)])
    assert begun == list(range(300))
    assert steps[-1] - steps[0] >= 60  # they take long, here: soon four at a time


@pytest.mark.no_database
async def test_runs_that_are_started_together_begin_at_once_while_the_loop_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bridge, "BUSY_SECONDS", 60.0)
    steps = set()
    async with Ticker() as ticker:
        await asyncio.gather(*[greenorm.run(lambda: steps.add(ticker.steps)) for _ in range(300)])
    assert len(steps) == 1


@pytest.mark.no_database
@pytest.mark.usefixtures("impatient")
async def test_a_run_that_is_cancelled_before_it_begins_never_does() -> None:
    begun: list[int] = []
    tasks = [asyncio.create_task(greenorm.run(begun.append, number)) for number in range(20)]
    await asyncio.sleep(0)
    tasks[15].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert begun == [*range(15), *range(16, 20)]
    assert await greenorm.run(lambda: "next") == "next"


@pytest.mark.no_database
@pytest.mark.usefixtures("impatient")
async def test_slices_of_an_iteration_that_wait_for_nothing_let_others_run() -> None:
    seen = []
    async with Ticker() as ticker:
        async for _ in greenorm.iterate(range(100)):
            seen.append(ticker.steps)
    assert len(set(seen)) >= 40


@pytest.mark.no_database
@pytest.mark.usefixtures("impatient")
async def test_an_iteration_that_is_cancelled_at_its_end_closes_its_cursor() -> None:
    async def read() -> None:
        async with greenorm.iterate(Owner.objects.all(), chunk_size=1) as owners:
            async for _ in owners:
                asyncio.current_task().cancel()  # type: ignore[union-attr]  # reason: this is a task
                return

    await greenorm.run(Owner.objects.bulk_create, [Owner(name="a"), Owner(name="b")])
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(read())
    assert greenorm.pool_stats().in_use == 0
    await greenorm.run(Owner.objects.all().delete)


@pytest.mark.usefixtures("impatient")
async def test_an_iteration_that_is_cancelled_in_line_closes_its_cursor() -> None:
    async def read() -> None:
        owners = greenorm.iterate(Owner.objects.order_by("pk"), chunk_size=1)
        async for _ in owners:
            begun.set()
            await go_on.wait()

    await greenorm.run(Owner.objects.bulk_create, [Owner(name="a"), Owner(name="b")])
    begun, go_on = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(read())
    await begun.wait()
    assert greenorm.pool_stats().in_use == 1
    others = [asyncio.create_task(greenorm.run(lambda: None)) for _ in range(20)]
    go_on.set()
    await asyncio.sleep(0)  # the others have asked the loop, and the reading is in line behind them
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert greenorm.pool_stats().in_use == 0  # although the task, which is kept, knows the error
    await asyncio.gather(*others)
    await greenorm.run(Owner.objects.all().delete)


@pytest.mark.no_database
async def test_a_context_is_not_kept_alive_by_the_connection_that_it_has_opened() -> None:
    class Request:
        pass

    variable: contextvars.ContextVar[Request] = contextvars.ContextVar("request")

    async def serve() -> weakref.ref[Request]:
        request = Request()
        variable.set(request)
        await greenorm.run(lambda: connection.cursor().execute("SELECT 1"))
        return weakref.ref(request)

    request = await asyncio.create_task(serve())
    await asyncio.sleep(0)  # the loop forgets the task
    gc.collect()
    assert request() is None
    assert greenorm.pool_stats().idle == 1
