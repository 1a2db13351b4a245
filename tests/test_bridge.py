"""The bridge, with neither Django nor a database."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import sys
import traceback
import types
import weakref
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import greenlet
import pytest

from greenorm import Abandoned, NotInRun, bridge
from greenorm.bridge import await_, drive, in_run, spawn, to_completion

pytestmark = pytest.mark.no_database

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def spawned(job: Callable[[], Any]) -> Any:
    return await spawn(job)


async def sleep_and_return(value: Any, seconds: float = 0.001) -> Any:
    await asyncio.sleep(seconds)
    return value


class Switches:
    """Counts the switches between greenlets in a block."""

    def __enter__(self) -> Switches:
        self.count = 0
        self.former = greenlet.settrace(self)
        return self

    def __call__(self, event: str, args: object) -> None:
        self.count += 1

    def __exit__(self, *exc_info: object) -> None:
        greenlet.settrace(self.former)


async def test_spawn_returns_what_the_job_returns() -> None:
    assert await spawn(lambda: 42) == 42


async def test_spawn_raises_what_the_job_raises_and_shows_its_line() -> None:
    def fails() -> None:
        raise ValueError("this very line")

    with pytest.raises(ValueError, match="this very line") as info:
        await spawn(fails)
    assert "fails" in [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]


async def test_in_run_is_true_for_the_job_only() -> None:
    async def in_coroutine() -> bool:
        return in_run()

    assert await spawn(lambda: (in_run(), await_(in_coroutine()))) == (True, False)
    assert not in_run()


@pytest.mark.parametrize("wait", [await_, drive])
async def test_a_wait_lets_other_tasks_run(wait: Callable[[Any], Any]) -> None:
    order = []

    async def other() -> None:
        order.append("other")

    task = asyncio.create_task(other())
    await spawn(lambda: order.append(wait(sleep_and_return("job"))))
    await task
    assert order == ["other", "job"]


async def test_await_accepts_every_kind_of_awaitable() -> None:
    class Custom:
        def __await__(self) -> Generator[Any, Any, str]:
            return sleep_and_return("custom").__await__()

    @types.coroutine
    def generator_based() -> Generator[Any, Any, str]:
        yield
        return "generator"

    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "future")
    task = asyncio.create_task(sleep_and_return("task"))
    kinds: list[Awaitable[str]] = [sleep_and_return("coroutine"), Custom(), generator_based(), future, task]
    assert await spawn(lambda: [await_(kind) for kind in kinds]) == [
        "coroutine",
        "custom",
        "generator",
        "future",
        "task",
    ]


async def test_await_raises_what_the_awaitable_raises() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("inside")

    def job() -> str:
        try:
            await_(fails())
        except KeyError:
            return "caught"
        return "missed"

    assert await spawn(job) == "caught"


async def test_an_error_of_an_awaitable_shows_the_lines_of_both_sides() -> None:
    async def asynchronous() -> None:
        await asyncio.sleep(0)
        raise KeyError

    def sync() -> None:
        await_(asynchronous())

    with pytest.raises(KeyError) as info:
        await spawn(sync)
    frames = [frame.name for frame in traceback.extract_tb(info.value.__traceback__)]
    assert frames.index("sync") < frames.index("asynchronous")


def test_await_outside_of_a_run_closes_the_coroutine_and_says_what_to_do() -> None:
    coroutine = sleep_and_return(1)
    with pytest.raises(NotInRun, match=r"sleep_and_return.*greenorm\.run"):
        await_(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_await_in_async_code_is_refused_too() -> None:
    with pytest.raises(NotInRun):
        await_(sleep_and_return(1))


@pytest.mark.parametrize("value", [None, 3, len, [1]])
async def test_await_refuses_what_cannot_be_awaited(value: Any) -> None:
    with pytest.raises(TypeError, match="needs an awaitable, not"):
        await spawn(lambda: await_(value))


async def test_runs_nest_to_any_depth() -> None:
    def deep(level: int) -> int:
        return level if level == 20 else await_(spawned(lambda: deep(level + 1)))

    assert await spawn(lambda: deep(0)) == 20


async def test_a_thousand_jobs_wait_at_once() -> None:
    jobs = [spawned(lambda i=i: await_(sleep_and_return(i, 0.05))) for i in range(1000)]
    assert await asyncio.gather(*jobs) == list(range(1000))


async def test_context_variables_are_seen_both_ways() -> None:
    async def sets() -> str:
        variable.set(variable.get() + " coroutine")
        return variable.get()

    def job() -> None:
        variable.set(variable.get() + " job")
        await_(sets())
        variable.set(variable.get() + " job")

    variable.set("task")
    await spawn(job)
    assert variable.get() == "task job coroutine job"


async def test_a_token_of_the_task_can_be_reset_in_the_job() -> None:
    token = variable.set("task")
    await spawn(lambda: variable.reset(token))
    assert variable.get("unset") == "unset"


async def test_the_current_task_stays_the_same() -> None:
    async def current() -> Any:
        await asyncio.sleep(0)
        return asyncio.current_task()

    seen = await spawn(lambda: [asyncio.current_task(), await_(current()), drive(current()), asyncio.current_task()])
    assert set(seen) == {asyncio.current_task()}


async def test_an_except_block_survives_a_wait() -> None:
    def job() -> Any:
        try:
            raise ValueError
        except ValueError as exc:
            await_(sleep_and_return(1))
            return sys.exc_info()[1] is exc

    assert await spawn(job) is True


async def test_cancelling_raises_where_the_job_waits() -> None:
    seen = []

    def job() -> None:
        try:
            await_(sleep_and_return(1, 60))
        except asyncio.CancelledError as exc:
            seen.append(exc.args)
            raise

    task = asyncio.create_task(spawned(job))
    await asyncio.sleep(0.01)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [("enough",)]


async def test_a_job_may_wait_while_it_is_cancelled() -> None:
    seen = []

    def job() -> None:
        try:
            await_(sleep_and_return(1, 60))
        finally:
            seen.append(await_(sleep_and_return("cleaned up")))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await spawn(job)
    assert seen == ["cleaned up"]


async def test_to_completion_outlasts_repeated_cancellation_and_then_cancels() -> None:
    ended = []

    def job() -> None:
        ended.append(drive(to_completion(sleep_and_return("done", 0.1), 5)))
        await_(sleep_and_return(None, 60))

    task = asyncio.create_task(spawned(job))
    for _ in range(3):
        await asyncio.sleep(0.01)
        task.cancel("first")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["done"]


async def test_to_completion_outlasts_an_anyio_scope() -> None:
    ended = []

    def job() -> None:
        ended.append(drive(to_completion(sleep_and_return("done", 0.1), 5)))

    with anyio.move_on_after(0.01) as scope:
        await spawn(job)
    assert ended == ["done"]
    assert scope.cancelled_caught


async def test_a_cancellation_that_had_to_wait_is_raised_at_the_end_of_the_job() -> None:
    task = asyncio.create_task(spawned(lambda: drive(to_completion(sleep_and_return("done", 0.05), 5))))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_had_to_wait_goes_before_a_later_error() -> None:
    def job() -> None:
        drive(to_completion(sleep_and_return("done", 0.05), 5))
        raise ValueError

    task = asyncio.create_task(spawned(job))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as info:
        await task
    assert isinstance(info.value.__cause__, ValueError)


async def test_to_completion_is_bounded() -> None:
    def job() -> None:
        drive(to_completion(sleep_and_return(None, 60), 0.05))

    with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
        await spawn(job)


async def test_to_completion_survives_a_bare_yield() -> None:
    async def yields() -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        return "done"

    assert await spawn(lambda: drive(to_completion(yields(), 5))) == "done"


async def test_a_coroutine_that_does_not_wait_is_driven_without_a_switch() -> None:
    async def immediate() -> int:
        return 1

    with Switches() as both_ways:
        await spawn(lambda: None)
    with Switches() as driven:
        await spawn(lambda: [drive(immediate()) for _ in range(100)])
    assert driven.count == both_ways.count == 2


async def test_each_wait_is_one_switch_up_and_one_back() -> None:
    with Switches() as switches:
        await spawn(lambda: [drive(sleep_and_return(1)) for _ in range(10)])
    assert switches.count == 2 + 10 * 2


async def test_greenlets_are_used_again() -> None:
    first = await spawn(greenlet.getcurrent)
    assert await spawn(greenlet.getcurrent) is first


async def test_a_parked_greenlet_keeps_nothing_of_its_job_alive() -> None:
    class Thing:
        pass

    def job() -> Thing:
        variable.set("something")
        return Thing()

    result = weakref.ref(await spawn(job))
    task = asyncio.create_task(spawned(lambda: None))
    await task
    gc.collect()
    assert result() is None
    assert all(side.gr_context is None and not hasattr(side, "job") for side in bridge._parked.sides)


async def test_a_foreign_greenlet_inside_a_job_is_no_run() -> None:
    assert await spawn(lambda: greenlet.greenlet(in_run).switch()) is False


async def test_an_exception_group_is_not_needed_to_leave_a_generator_half_read() -> None:
    def numbers() -> Generator[int]:
        yield await_(sleep_and_return(1))
        yield await_(sleep_and_return(2))

    generator = numbers()
    assert await spawn(lambda: next(generator)) == 1
    assert await spawn(lambda: next(generator)) == 2  # resumed on another ORM side


async def test_a_run_whose_coroutine_is_closed_unwinds_its_job_without_a_wait() -> None:
    seen: list[object] = []

    def job() -> None:
        try:
            await_(sleep_and_return(1, 60))
        finally:
            seen.append("unwound")
            try:
                await_(sleep_and_return(2))
            except Abandoned as exc:
                seen.append(exc)

    coroutine = spawned(job)
    coroutine.send(None)
    coroutine.close()
    assert seen[0] == "unwound"
    assert isinstance(seen[1], Abandoned)


async def test_memory_does_not_grow_with_runs_that_return_or_raise() -> None:
    def fails() -> None:
        raise ValueError

    async def batch(count: int) -> None:
        for _ in range(count):
            await spawn(int)
            try:
                await spawn(fails)
            except ValueError:
                pass

    await batch(100)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        await batch(2000)
        after = len(gc.get_objects())
    finally:
        gc.enable()
    assert after - before < 50
