"""asgiref's adapters over runs: `sync_to_async` as a run, and `async_to_sync` inside of one."""

from __future__ import annotations

import contextvars
import functools
import inspect
import sys
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar, cast, overload

from asgiref.sync import AsyncToSync, SyncToAsync

from . import hooks, tasks
from .iteration import Reading

P = ParamSpec("P")
T = TypeVar("T")


async def run_adapted(adapter: SyncToAsync[..., T], *args: Any, **kwargs: Any) -> T:
    """Do in a run what `adapter` does in a thread. Mirrors SyncToAsync.__call__, asgiref 3.13.

    Context variables that the function sets are seen by the caller, and so is, in the function, the exception that
    the caller handles. Unlike there, a cancellation is raised in the function, where it waits.
    """
    if getattr(adapter.func, "__qualname__", "") == NEXT_SLICE and inspect.isgenerator(args[0]):
        reading = _reading_of(adapter.func, args[0])
        return await reading.work(functools.partial(reading.read, adapter.func))
    hooks.install()
    job = functools.partial(adapter.func, *args, **kwargs)
    if (error := sys.exc_info()[1]) is not None:
        job = functools.partial(_call_while_handling, error, job)
    if (context := getattr(adapter, "context", None)) is not None:  # not in asgiref 3.9
        job = functools.partial(cast("contextvars.Context", context).run, job)
    try:
        return await tasks.work(job)
    finally:
        error = None  # see bridge.drive
        del job


async def _await_while_handling(error: BaseException, coro: Awaitable[T]) -> T:
    before = error.__traceback__, error.__context__
    try:
        raise error
    except BaseException:
        error.__traceback__, error.__context__ = before
        return await coro


def _call_while_handling(error: BaseException, fn: Callable[[], T]) -> T:
    before = error.__traceback__, error.__context__
    try:
        raise error
    except BaseException:
        error.__traceback__, error.__context__ = before
        return fn()


def await_adapted(adapter: AsyncToSync[..., T], *args: Any, **kwargs: Any) -> T:
    """Await, on the running loop, what `adapter` would run in a loop of its own. Mirrors AsyncToSync.__call__.

    For sync code inside a run. Tasks that are started meanwhile take part in the transaction that is open, in turns.
    """
    awaitable = adapter.awaitable(*args, **kwargs)
    if (error := sys.exc_info()[1]) is not None:
        awaitable = _await_while_handling(error, awaitable)
    try:
        return tasks.wait_for(awaitable, lend=True)
    finally:
        error = None


class _GeneratorReading(Reading[Any]):
    """A sync generator read by calls of one function, as Django's `async for` over a queryset does."""

    def read(self, next_slice: Callable[[Any], T]) -> T:
        generator: Any = self.begin()
        try:
            result = next_slice(generator)
        except BaseException:
            self.close()
            raise
        if inspect.getgeneratorstate(generator) == inspect.GEN_CLOSED:
            self.close()
        return result


# How Django's `async for` over a queryset reads: by calls of one function, made anew for each iteration.
NEXT_SLICE = "BaseIterable._async_generator.<locals>.next_slice"
# By that function: when it is gone, nobody will read on.
_readings: weakref.WeakKeyDictionary[Callable[..., Any], _GeneratorReading] = weakref.WeakKeyDictionary()


def _reading_of(next_slice: Callable[..., Any], generator: Generator[Any, Any, Any]) -> _GeneratorReading:
    reading = _readings.get(next_slice)
    if reading is None or reading.done:
        reading = _readings[next_slice] = _GeneratorReading(lambda: generator)
        weakref.finalize(next_slice, reading.abandon).atexit = False
    return reading


class _InRun(SyncToAsync[P, T]):
    """asgiref's adapter, whose thread-sensitive calls are runs."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._thread_sensitive:
            return await super().__call__(*args, **kwargs)
        return await run_adapted(self, *args, **kwargs)


@overload
def sync_to_async(
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
    context: contextvars.Context | None = None,
) -> Callable[[Callable[P, T]], Callable[P, Coroutine[Any, Any, T]]]: ...
@overload
def sync_to_async(
    func: Callable[P, T],
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
    context: contextvars.Context | None = None,
) -> Callable[P, Coroutine[Any, Any, T]]: ...
def sync_to_async(
    func: Any = None,
    *,
    thread_sensitive: bool = True,
    executor: ThreadPoolExecutor | None = None,
    context: contextvars.Context | None = None,
) -> Any:
    """asgiref's `sync_to_async`, whose thread-sensitive calls are runs.

    Awaited, by a call of the result: what `greenorm.run` awaits; other tasks run meanwhile. With
    `thread_sensitive=False`, with or without an `executor`, it is asgiref's own and uses a thread. `context` is the
    contextvars.Context to run in, by default the caller's. Raises TypeError for what is async, as asgiref does.
    """
    if func is None:
        return functools.partial(sync_to_async, thread_sensitive=thread_sensitive, executor=executor, context=context)
    if not thread_sensitive and context is not None:
        return _InRun(func, thread_sensitive, executor, context=context)  # TypeError where asgiref is too old for it
    adapter: Any = _InRun(func, thread_sensitive, executor)
    adapter.context = context
    return adapter
