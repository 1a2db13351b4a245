"""What spares time by knowing how asyncio and psycopg work inside, each with the plain way beside it.

Nothing here is needed: where `KNOWN` is false, for a psycopg that nobody has looked at yet, or a loop is not asyncio's
own, the layers above do the same by public means. A test fails when an installed version is not known.
"""

from __future__ import annotations

import asyncio
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Generator, Iterator
from contextvars import Context
from typing import Any

import psycopg

from .readiness import Watch

# Whether this psycopg's cursors work as is assumed below.
KNOWN = psycopg.__version__.startswith("3.3.")


def watch(loop: asyncio.AbstractEventLoop, fd: int) -> Watch:
    """Return a watch for a socket, the quickest that is safe on `loop`."""
    # A greenlet that is switched to in a callback of uvloop overwrites what libuv keeps on the C stack. In debug mode
    # asyncio tells which task has kept the loop, where the loop has woken it.
    return (DirectWatch if isinstance(loop, BaseEventLoop) and not loop.get_debug() else Watch)(loop, fd)


class DirectFuture:
    """A future, to a Task, that runs what waits for it at once and not in the loop's next turn.

    A Task asks no more of what it waits for than is here: asyncio takes every object that has
    `_asyncio_future_blocking` for a future (see asyncio.isfuture). Only one may wait for it.
    """

    _asyncio_future_blocking = False
    _callback: Callable[[Any], object] | None = None
    _context: Context | None = None
    _cancellation: asyncio.CancelledError | None = None
    _done = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __await__(self) -> Generator[Any, Any, None]:
        self._asyncio_future_blocking = True
        yield self
        self.result()

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancellation is not None

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        if self._done:
            self._loop.call_soon(callback, self, context=context)
        else:
            self._callback, self._context = callback, context

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        self._callback, had = None, self._callback is not None
        return int(had)

    def set_result(self, result: None) -> None:
        """Run what waits. For callbacks of the loop only, where no task is running."""
        self._done = True
        callback, self._callback = self._callback, None
        context, self._context = self._context, None
        if context is not None and callback is not None:
            context.run(callback, self)
        elif callback is not None:
            callback(self)

    def cancel(self, msg: Any = None) -> bool:
        if self._done:
            return False
        self._done = True
        self._cancellation = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        callback, self._callback = self._callback, None
        context, self._context = self._context, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=context)
        return True

    def result(self) -> None:
        if self._cancellation is not None:
            cancellation, self._cancellation = self._cancellation, None
            raise cancellation

    exception = result


class DirectWatch(Watch, DirectFuture):
    """A watch that is the future of each of its waits. It saves them a turn of the loop, a future and two handles."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        super().__init__(loop, fd)
        self._done = True

    def begin(self) -> Any:
        if not self._is_registered:
            self._register()
        self._done = False
        self._cancellation = None
        return self

    def _see(self) -> None:
        if self._done:
            self._unregister()
        else:
            self.set_result(None)

    def stand_in(self) -> DirectFuture:
        """Return a future that may be cancelled in place of this one."""
        return DirectFuture(self._loop)


class Lock(asyncio.Lock):
    """asyncio's lock, which can be acquired without a coroutine where nobody has it or waits for it."""

    _locked: bool
    _waiters: Any

    def take(self) -> bool:
        """Acquire the lock if that needs no wait, and return whether it did."""
        if self._locked or self._waiters:
            return False
        self._locked = True
        return True

    def release(self) -> None:
        if self._waiters or not self._locked:
            super().release()
        else:
            self._locked = False


class Ready:
    """An awaitable that is ready, and no coroutine: it may be left alone."""

    def __await__(self) -> Iterator[None]:
        return iter(())


READY = Ready()

# What a sync cursor does to fetch, an AsyncCursor has all for: both keep their rows in the same way, in BaseCursor, and
# wait only for a pipeline.
fetchone: Callable[..., Any] = psycopg.Cursor.fetchone
fetchmany: Callable[..., Any] = psycopg.Cursor.fetchmany
fetchall: Callable[..., Any] = psycopg.Cursor.fetchall
