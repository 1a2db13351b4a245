"""The calls: `run`, `await_`, `in_thread`, `gather` and `pool_stats`, over the bridge, the scopes and Django's names.

The blocks that span several awaits are in `blocks`, what decorates a helper in `decorator`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
from django.utils.connection import ConnectionDoesNotExist

from . import bridge, hooks, tasks
from .bridge import in_run
from .errors import NotInRun, OpenTransaction

if TYPE_CHECKING:
    from .backends.mixin import AwaitableMixin
    from .pool_options import PoolStats
    from .scope import Scope

P = ParamSpec("P")
T = TypeVar("T")

_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


async def run(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the sync callable `fn` in a greenlet of this task, and return its value or raise its exception.

    Awaited: every query, commit and connect of `fn` on a greenorm alias, and what it hands to `await_`; other tasks
    run meanwhile. No thread is used. A connection is borrowed at the first query and given back at the end, unless
    the task has `atomic()` or `connection()` open, which this joins. Cancelling stops the running statement on the
    server and raises CancelledError in `fn`, where it waits. Raises TypeError where `fn` is no sync callable.
    """
    if not _is_plain(fn):
        _refuse_what_is_not_sync(fn)
    hooks.install()
    return await tasks.work(functools.partial(fn, *args, **kwargs) if args or kwargs else fn)


def _is_plain(fn: object) -> bool:
    # The usual kinds of sync callable, told at once; whatever else there is takes a closer look.
    inner: Any = fn
    while type(inner) is not FunctionType:
        if type(inner) is functools.partial:
            inner = inner.func
        elif type(inner) is MethodType:
            inner = inner.__func__
        else:
            return type(inner) is BuiltinFunctionType
    return not inner.__code__.co_flags & _ASYNC and not inner.__dict__


def _refuse_what_is_not_sync(fn: object) -> None:
    if getattr(fn, "sync", None) is not None and not inspect.isfunction(fn):  # functools.wraps copies attributes
        return
    if inspect.iscoroutine(fn):
        fn.close()
        raise TypeError(
            f"run() takes a sync function, not the coroutine of {fn.__qualname__}(): write `await` before it"
        )
    if inspect.isawaitable(fn):
        raise TypeError(f"run() takes a sync function, not an awaitable {type(fn).__name__}: write `await` before it")
    if iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        name = getattr(fn, "__qualname__", repr(fn))
        raise TypeError(
            f"run() takes a sync function, but {name} is async: write `await {name}(...)`, "
            f"or in sync code inside a run `greenorm.await_({name}(...))`"
        )
    if not callable(fn):
        hint = "list(...)" if hasattr(fn, "__iter__") else "..."
        raise TypeError(f"run() takes a sync function, not {type(fn).__name__}: write `run(lambda: {hint})`")


def await_(awaitable: Awaitable[T]) -> T:
    """Wait, in sync code inside a run, for any awaitable, and return its value or raise its exception.

    Awaited: `awaitable`, by the task that called `run`; other tasks run meanwhile. A connection with no transaction
    and no open cursor is lent to others for that time, unless `connection()` keeps it. Raises NotInRun outside of a
    run (the coroutine is closed) and TypeError for what cannot be awaited.
    """
    return tasks.wait_for(awaitable) if in_run() else bridge.await_(awaitable)


def in_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what blocks (requests, smtplib, files, time.sleep) from sync code inside a run, in a thread of the loop.

    Awaited: the call, as by `await_`; other tasks run meanwhile. Context variables are seen in the thread, and what it
    sets there is not seen here. A cancellation does not stop the thread. Queries of `fn` are on connections of the
    thread, outside of any transaction that is open here. From plain sync code it is a plain call. Raises NotInRun in
    async code, which has asyncio.to_thread.
    """
    if in_run():
        return await_(asyncio.to_thread(_call_and_close, functools.partial(fn, *args, **kwargs)))
    if bridge.loop_is_running():
        raise NotInRun(
            "greenorm.in_thread() was called in async code, where it is `await asyncio.to_thread(fn, ...)`; "
            "sync code inside of a run calls it."
        )
    return fn(*args, **kwargs)


def _call_and_close(fn: Callable[[], T]) -> T:
    try:
        return fn()
    finally:
        close_old_connections()  # threads are kept, and what they have connected would be


def gather(*fns: Callable[[], T]) -> list[T]:
    """Run several sync callables at once, from sync code inside a run, each on a connection of its own.

    Awaited: all of them, as many at a time as the pool of the default alias has connections; other tasks run
    meanwhile. Returns their results in order. The first error is raised when all others have been cancelled and have
    ended. Raises OpenTransaction inside a transaction, and NotInRun outside of a run (async code has asyncio.gather).
    """
    if not in_run():
        raise NotInRun(
            "greenorm.gather() was called outside of a run. In async code write "
            "`await asyncio.gather(greenorm.run(f), greenorm.run(g))`; plain sync code calls them one after another."
        )
    for fn in fns:
        _refuse_what_is_not_sync(fn)
    mine: Scope = bridge.carried()
    for wrapper in mine.connected():
        if mine.is_in_transaction(wrapper):
            raise OpenTransaction(
                f"greenorm.gather() was called inside a transaction on {wrapper.alias!r}, which its functions could "
                "neither see nor take part in. Call it before or after the atomic block, or the functions one by one."
            )
    if not fns:
        return []
    limit = getattr(connections[DEFAULT_DB_ALIAS], "async_pool", None)
    return await_(_gather(fns, limit.options.limit if limit is not None else len(fns)))


async def _gather(fns: tuple[Callable[[], T], ...], limit: int) -> list[T]:
    slots = asyncio.Semaphore(limit)

    async def one(fn: Callable[[], T]) -> T:
        async with slots:
            return await run(fn)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(fn)) for fn in fns]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def pool_stats(using: str | None = None) -> PoolStats:
    """Return the figures of the running event loop's pool for an alias. Waits for nothing.

    Raises RuntimeError where no loop is running, Django's ConnectionDoesNotExist for an unknown alias, and
    ImproperlyConfigured for one that is not greenorm's.
    """
    alias = using or DEFAULT_DB_ALIAS
    if alias not in connections.settings:
        raise ConnectionDoesNotExist(f"The connection '{alias}' doesn't exist.")
    wrapper = connections.create_connection(alias)
    if not getattr(wrapper, "can_await", False):
        raise ImproperlyConfigured(
            f"The database alias {alias!r} has no greenorm pool: its ENGINE is {wrapper.settings_dict['ENGINE']!r}."
        )
    return cast("AwaitableMixin", wrapper).async_pool.stats()
