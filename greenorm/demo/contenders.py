"""Ways to call a synchronous function from async code, each ready to be measured.

All have the same settings and the same number of connections to use; each closes on leaving what it has opened.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper

import greenorm

from .measure import Call, Contender

if TYPE_CHECKING:
    from ..backends.postgresql.base import DatabaseWrapper

# As many as greenorm's pool has connections where the settings name no number.
THREADS = 20
# How long, in seconds, they may take to be started.
START_SECONDS = 10.0


@asynccontextmanager
async def _greenorm_run() -> AsyncGenerator[Call]:
    try:
        yield greenorm.run
    finally:
        await greenorm.run(_close_pool)


def _close_pool() -> None:
    connection.close()
    cast("DatabaseWrapper", connection).close_pool()


@asynccontextmanager
async def _one_thread() -> AsyncGenerator[Call]:
    def call(fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return sync_to_async(fn, thread_sensitive=True)(*args)

    # Its calls share one thread, as they do outside of any context; but this thread ends with the context.
    async with ThreadSensitiveContext():
        try:
            yield call
        finally:
            await call(connections.close_all)


@asynccontextmanager
async def _many_threads(count: int) -> AsyncGenerator[Call]:
    wrappers: list[BaseDatabaseWrapper] = []
    all_started = threading.Barrier(count)

    def connect() -> None:
        all_started.wait(START_SECONDS)
        wrapper = connections[DEFAULT_DB_ALIAS]
        wrappers.append(wrapper)  # whose last one may be another thread's already
        wrapper.ensure_connection()

    def disconnect() -> None:
        for wrapper in wrappers:
            wrapper.inc_thread_sharing()  # lets this thread close what another has opened
            wrapper.close()

    def call(fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return sync_to_async(fn, thread_sensitive=False, executor=executor)(*args)

    with ThreadPoolExecutor(count) as executor:
        try:
            # Else the executor starts threads when it likes, and they connect while the clock runs.
            for connected in [executor.submit(connect) for _ in range(count)]:
                connected.result()
            yield call
        finally:
            executor.submit(disconnect).result()


def many_threads(count: int) -> Contender:
    """Return sync_to_async with `count` threads, each with a connection of its own."""
    return Contender(f"sync_to_async, {count} threads", functools.partial(_many_threads, count))


GREENORM = Contender("greenorm.run", _greenorm_run)
ONE_THREAD = Contender("sync_to_async, 1 thread", _one_thread)
MANY_THREADS = many_threads(THREADS)

CONTENDERS = [GREENORM, ONE_THREAD, MANY_THREADS]
