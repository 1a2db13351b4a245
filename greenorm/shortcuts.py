"""What spares time by knowing how asyncio and psycopg work inside, each with the plain way beside it.

Nothing here is needed: where `KNOWN` is false, for a psycopg that nobody has looked at yet, or a loop is not asyncio's
own, the layers above do the same by public means. A test fails when an installed version is not known.
"""

from __future__ import annotations

import asyncio
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import Any

import psycopg

from .readiness import Watch

# Whether this psycopg's cursors work as is assumed below.
KNOWN = psycopg.__version__.startswith("3.3.")


class Ready:
    """An awaitable that is ready, and no coroutine: it may be left alone."""

    __await__ = staticmethod(partial(iter, ()))


READY = Ready()


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
    _wake: Callable[[], object] | None = None
    _cancellation: asyncio.CancelledError | None = None
    _done = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __await__(self) -> Any:
        self._asyncio_future_blocking = True
        return iter((self,))  # not a generator, which would cost more: the task itself asks for the result

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
            run: Callable[..., object] = (context or copy_context()).run
            self._wake = partial(run, callback, self)

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        self._wake, had = None, self._wake is not None
        return int(had)

    def set_result(self, result: None) -> None:
        """Run what waits. For callbacks of the loop only, where no task is running."""
        self._done = True
        if (wake := self._wake) is not None:
            self._wake = None
            wake()

    def cancel(self, msg: Any = None) -> bool:
        if self._done:
            return False
        self._done = True
        self._cancellation = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        wake, self._wake = self._wake, None
        if wake is not None:
            self._loop.call_soon(wake)
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

    def __await__(self) -> Any:
        if not self._is_registered:
            self._register()
        self._done = False
        self._asyncio_future_blocking = True
        return iter((self,))

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

    def __aenter__(self) -> Any:
        return READY if self.take() else super().__aenter__()

    def __aexit__(self, *exc_info: object) -> Any:
        self.release()
        return READY


# What a sync cursor does to fetch, an AsyncCursor has all for: both keep their rows in the same way, in BaseCursor, and
# wait only for a pipeline.
fetchone: Callable[..., Any] = psycopg.Cursor.fetchone
fetchmany: Callable[..., Any] = psycopg.Cursor.fetchmany
fetchall: Callable[..., Any] = psycopg.Cursor.fetchall
