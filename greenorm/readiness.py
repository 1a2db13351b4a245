"""Whether a socket can be read or written, now or later, in psycopg's words.

Used by the driver to wait and by the pool to look. Mirrors what psycopg.waiting does for asyncio, psycopg 3.3.
"""

from __future__ import annotations

import asyncio
import os
import select
from contextvars import Context
from time import monotonic
from typing import Any

from psycopg.errors import _WaitTimeout
from psycopg.waiting import Ready, Wait


def ready_now(fd: int, state: int) -> int:
    poll = select.poll()
    poll.register(fd, (select.POLLIN if state & Wait.R else 0) | (select.POLLOUT if state & Wait.W else 0))
    ready = 0
    for _, event in poll.poll(0):
        ready |= Ready.R if event & select.POLLIN else 0
        ready |= Ready.W if event & select.POLLOUT else 0
    return ready


async def readiness(loop: asyncio.AbstractEventLoop, fd: int, state: int, deadline: float | None) -> int:
    future: asyncio.Future[int] = loop.create_future()
    timer = None
    if deadline is not None:
        timer = loop.call_later(deadline - monotonic(), _fail, future, _WaitTimeout("wait timeout expired"))
    try:
        if state & Wait.R:
            loop.add_reader(fd, _wake, future, Ready.R)
        if state & Wait.W:
            loop.add_writer(fd, _wake, future, Ready.W)
        return await future
    finally:
        if timer is not None:
            timer.cancel()
        if not loop.is_closed():
            loop.remove_reader(fd)
            loop.remove_writer(fd)


def _wake(future: asyncio.Future[int], ready: int) -> None:
    if not future.done():
        future.set_result(ready)


def _fail(future: asyncio.Future[int], exc: Exception) -> None:
    if not future.done():
        future.set_exception(exc)


class Watch:
    """The socket of one session, whose reader stays registered with the event loop from one statement to the next.

    It watches a duplicate of the descriptor: libpq closes its own by itself when a connection is lost, and the loop
    would go on to poll a dead number, or the next socket that is given it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._loop = loop
        self._process = os.getpid()
        self._fd = os.dup(fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._is_registered = False
        self._future: Any = None

    def readable_now(self) -> bool:
        """Return whether there is something to read, or the other side has closed."""
        return bool(self._poll.poll(0))

    def __await__(self) -> Any:
        """Wait until there is something to read, or it is closed. Raises OSError where it was closed before."""
        if not self._is_registered:
            self._register()
        self._future = future = self._loop.create_future()
        return future.__await__()

    def _register(self) -> None:
        if self._fd < 0:
            raise OSError("the connection was closed")
        # In a context of its own: the loop keeps a copy of the present one, a request's perhaps, with the reader.
        Context().run(self._loop.add_reader, self._fd, self._see)
        self._is_registered = True

    def _see(self) -> None:
        future, self._future = self._future, None
        if future is None or self._has_failed():
            # What comes unasked would be seen again and again, until somebody reads it. And of a socket in an error,
            # that of a reset, libuv tells once and polls it no more, although there may still be an answer to read.
            self._unregister()
        if future is not None and not future.done():
            future.set_result(None)

    def _has_failed(self) -> bool:
        return any(event & select.POLLERR for _, event in self._poll.poll(0))

    def _unregister(self) -> None:
        if self._is_registered:
            self._is_registered = False
            self._loop.remove_reader(self._fd)

    def close(self) -> None:
        """Stop to watch. From any thread, also when the loop has been closed."""
        if self._fd < 0 or self._process != os.getpid():  # a forked process would take it from its parent's poll
            return
        if self._loop.is_running() and asyncio._get_running_loop() is not self._loop:
            try:
                self._loop.call_soon_threadsafe(self.close)
                return
            except RuntimeError:
                pass  # closed in this very moment
        if not self._loop.is_closed():
            self._unregister()
            self._loop.call_soon(self._see)  # who waits finds the connection closed
        fd, self._fd = self._fd, -1
        os.close(fd)
