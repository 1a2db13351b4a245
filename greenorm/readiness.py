"""Whether a socket can be read or written, now or later, in psycopg's words.

Used by the driver to wait and by the pool to look. Mirrors what psycopg.waiting does for asyncio, psycopg 3.3.
"""

from __future__ import annotations

import asyncio
import select
from time import monotonic

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
