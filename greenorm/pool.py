"""The connections that one event loop of one process keeps open for one alias.

No background tasks: a connection is made by the borrower that needs it, kept in a last-in-first-out list, handed
straight to the next waiter when it is given back, and closed without waiting for anything. So an event loop can end
at any moment. Option names and errors are psycopg_pool's, since Django's `OPTIONS["pool"]` has them.

Contract: `getconn` and `putconn` run on the ORM side of a run, like the `configure`, `check` and `reset` callbacks
that they call; all of them see connections by their sync face. Nothing here knows Django.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextvars import Context
from time import monotonic
from typing import Any, TypeVar
from warnings import warn
from weakref import ReferenceType, ref

from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests

from .bridge import collecting, drive, dying, in_run, running_loop, until_done
from .driver import CONNECTED, IDLE, AsyncConnection, Connection
from .pool_options import Callback, PoolOptions, PoolStats

T = TypeVar("T")

logger = logging.getLogger("greenorm")

# How long, in seconds, a connection may take to pass its check before another one is tried.
CHECK_SECONDS = 5.0
# How much too early, in seconds, the timer of an event loop may be.
TIMER_SECONDS = 0.001

# Tasks that give back what a finalizer has found in use; each bounded, and waited for at the end of its event loop.
finishing: set[asyncio.Task[None]] = set()


class Pool:
    """Connections of one event loop to one database."""

    def __init__(
        self, connect: Callable[[], Awaitable[AsyncConnection]], options: PoolOptions, configure: Callback | None = None
    ) -> None:
        self.options = options
        self._check = options.check
        self._connect = connect
        self._configure = configure
        self._idle: list[AsyncConnection] = []
        self._in_use: set[AsyncConnection] = set()
        # A waiter is granted a connection, or None: the right to open one, already counted in `_size`.
        # By time.monotonic, until when each waits, which goes up from the first to the last.
        self._waiting: OrderedDict[asyncio.Future[AsyncConnection | None], float] = OrderedDict()
        self._size = 0
        # Whether it takes back what it lent; it lends until it is closed, to finalizers of a loop that ends, say.
        self._keeps = True
        self._closed = False
        self._borrowed = self._queued = self._timeouts = self._opened = self._gone = 0
        self._wait_seconds = 0.0
        self._shrink_timer: asyncio.TimerHandle | None = None
        self._waiting_timer: asyncio.TimerHandle | None = None
        self._loop: ReferenceType[asyncio.AbstractEventLoop] = ref(asyncio.get_running_loop())
        self._until_shutdown = self._close_at_shutdown()
        # An async generator that has been started is closed by its loop, last of all: the pool's sign to close.
        try:
            self._until_shutdown.__anext__().send(None)
        except StopIteration:
            pass

    async def _close_at_shutdown(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            # All async generators of the loop are closed at once: those of users may still need a connection.
            while not self._closed and (tasks := [task for task in finishing if task.get_loop() is self._loop()]):
                await asyncio.wait(tasks)
            self._stop_keeping()

    @property
    def keeps(self) -> bool:
        """Whether it takes back what it lent. From the end of its event loop on it does not."""
        return self._keeps

    def is_open_here(self) -> bool:
        """Return whether it is the running event loop's, and open."""
        return not self._closed and self._loop() is asyncio.get_running_loop()

    # Borrowing

    def getconn(self) -> Connection:
        """Borrow a connection, opening one or waiting for one where none is idle.

        Other tasks run meanwhile. Raises PoolTimeout, TooManyRequests, PoolClosed, or what connecting raises.
        """
        if self._idle and not self._waiting and self._check is None and (session := self._take_idle()) is not None:
            self._in_use.add(session)
            return self._lend(session)
        deadline = monotonic() + self.options.timeout
        has_waited = False
        while True:
            if self._closed:
                raise PoolClosed(f"{self._title()} is closed")
            session = self._take_idle() if not self._waiting else None
            if session is None:
                if not self._waiting and self._size < self.options.limit:
                    self._size += 1
                    return self._lend(self._open(deadline))
                session = self._wait_in_line(deadline, has_waited)
                if session is None:
                    return self._lend(self._open(deadline))
                has_waited = True
            self._in_use.add(session)  # owned from here on, whatever interrupts the check
            if self._is_healthy(session, deadline):
                return self._lend(session)
            self._discard(session)

    def _take_idle(self) -> AsyncConnection | None:
        while self._idle:
            session = self._idle.pop()
            # A socket that has something to read while nobody asked has been closed by the server, or soon will be.
            if session.pgconn.status == CONNECTED and not session.readable_now():
                return session
            self._close(session)
        return None

    def _is_healthy(self, session: AsyncConnection, deadline: float) -> bool:
        if self._check is None:
            return True
        limit = asyncio.timeout(min(CHECK_SECONDS, deadline - monotonic()))
        try:
            drive(limit.__aenter__())
            try:
                self._check(session.new_face())
            except BaseException as exc:
                # Raises TimeoutError in place of what it has caused.
                drive(limit.__aexit__(type(exc), exc, exc.__traceback__))
                raise
            drive(limit.__aexit__(None, None, None))
        except Exception as exc:
            if monotonic() >= deadline:
                self._discard(session)
                self._timeouts += 1
                raise PoolTimeout(
                    f"{self._title()}: a connection did not answer its check within {self.options.timeout:g} s. Look "
                    "at the server and the network; `timeout` in OPTIONS['pool'] sets the limit in seconds."
                ) from exc
            logger.info("%s: a connection failed its check and is replaced: %s", self._title(), exc)
            return False
        except BaseException:
            self._discard(session)
            raise
        return session.pgconn.transaction_status == IDLE

    def _open(self, deadline: float) -> AsyncConnection:
        session = None
        try:
            session = drive(self._connect_within(deadline))
            self._in_use.add(session)
            session.expires_at = monotonic() + self.options.max_lifetime * (1 - random.random() * 0.05)
            session.pool = self
            self._opened += 1
            if self._configure is not None:
                self._configure(session.face)
            session.remember()
        except BaseException:
            if session is not None:
                self._discard(session)
            else:
                self._size -= 1
                self._grant_slot()
            raise
        return session

    async def _connect_within(self, deadline: float) -> AsyncConnection:
        try:
            async with asyncio.timeout(max(0.0, deadline - monotonic())):
                return await self._connect()
        except TimeoutError:
            pass
        # Raised out here, so that the error does not keep the half-open connection alive by a traceback.
        self._timeouts += 1
        raise PoolTimeout(
            f"{self._title()}: no connection to the server within {self.options.timeout:g} s. "
            "Look at HOST, PORT and the network; `timeout` in OPTIONS['pool'] sets the limit in seconds."
        )

    def _wait_in_line(self, deadline: float, first: bool = False) -> AsyncConnection | None:
        if self.options.max_waiting and len(self._waiting) >= self.options.max_waiting:
            raise TooManyRequests(
                f"{self._title()}: {len(self._waiting)} borrowers wait already, as many as `max_waiting` in "
                "OPTIONS['pool'] allows. Raise it or `max_size`, or send fewer requests at once."
            )
        future: asyncio.Future[AsyncConnection | None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = deadline
        if first:
            self._waiting.move_to_end(future, last=False)
        self._queued += 1
        since = monotonic()
        self._time_the_first()
        try:
            return until_done(future)
        except BaseException:
            self._waiting.pop(future, None)
            if future.done() and not future.cancelled() and future.exception() is None:
                # Granted in the very moment of the interrupt: hand it on.
                granted = future.result()
                if granted is None:
                    self._size -= 1
                    self._grant_slot()
                else:
                    self._pass_on(granted)
            raise
        finally:
            self._wait_seconds += monotonic() - since

    def _time_the_first(self) -> None:
        # One timer for all who wait, in a context of its own: it outlives the one that it was set for.
        if self._waiting_timer is None and self._waiting:
            loop = asyncio.get_running_loop()
            seconds = next(iter(self._waiting.values())) - monotonic()
            self._waiting_timer = loop.call_later(max(0.0, seconds), self._turn_away, context=Context())

    def _turn_away(self) -> None:
        self._waiting_timer = None
        while self._waiting and next(iter(self._waiting.values())) <= monotonic() + TIMER_SECONDS:
            future, _ = self._waiting.popitem(last=False)
            if future.done():
                continue
            self._timeouts += 1
            future.set_exception(
                PoolTimeout(
                    f"{self._title()}: no connection became free within {self.options.timeout:g} s; {len(self._in_use)}"
                    f" of {self.options.limit} are in use, {len(self._waiting)} other borrowers wait. "
                    "Raise `max_size` (or `timeout`, in seconds) in OPTIONS['pool'], or hold connections for less long."
                )
            )
        self._time_the_first()

    def _lend(self, session: AsyncConnection) -> Connection:
        self._borrowed += 1
        return session.new_face()

    # Giving back

    def putconn(self, conn: Connection) -> None:
        """Take a connection back, clean, for the next borrower; one that cannot be cleaned is closed.

        Waits only where the borrower left a transaction or a server-side cursor open, or for `reset`, and then to
        the end, whatever cancellations arrive. Never raises for the connection's sake.
        """
        session = conn.session
        if not in_run() or collecting():
            # A finalizer, or a thread that was handed a wrapper: neither may wait or touch the pool's lists.
            session.abandon()
            if (loop := self._loop()) is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._discard, session)
            return
        try:
            clean = self._clean(session)
        except BaseException:
            self._discard(session)
            raise
        if not clean:
            self._discard(session)
            return
        self._in_use.discard(session)
        self._pass_on(session)

    def _clean(self, session: AsyncConnection) -> bool:
        session.borrow += 1
        session.on_interrupt = None
        pgconn = session.pgconn
        if dying():
            warn(
                f"a run was destroyed while it held {session!r}, which is now closed; "
                "let tasks end or cancel them before their event loop is closed",
                ResourceWarning,
                stacklevel=2,
            )
            return False
        if pgconn.status != CONNECTED or session._pipeline is not None or session.lock.locked():
            return False
        try:
            if pgconn.transaction_status != IDLE:
                session.call_to_completion(session.rollback())
            if session.open_portals:
                session.call_to_completion(_close_portals(session))
            session.restore()
            if self.options.reset is not None:
                face = session.new_face()
                self.options.reset(face)
                if self._configure is not None:
                    self._configure(face)  # time zone and role are of the session, and may be gone
        except Exception as exc:
            logger.warning("%s: a connection could not be cleaned and is closed: %s", self._title(), exc)
            return False
        session.open_cursors = session.open_portals = 0
        return pgconn.transaction_status == IDLE

    def _pass_on(self, session: AsyncConnection) -> None:
        now = monotonic()
        if self._closed or now >= session.expires_at or session.pgconn.status != CONNECTED:
            self._discard(session)
        elif (waiter := self._next_waiter()) is not None:
            waiter.set_result(session)
        elif not self._keeps:
            self._discard(session)
        else:
            session.idle_since = now
            self._idle.append(session)
            self._shrink_later()

    def _discard(self, session: AsyncConnection) -> None:
        self._in_use.discard(session)
        self._close(session)
        self._grant_slot()

    def _close(self, session: AsyncConnection) -> None:
        session.borrow += 1
        session.abandon()
        self._size -= 1
        self._gone += 1

    def _grant_slot(self) -> None:
        if self._size < self.options.limit and not self._closed and (waiter := self._next_waiter()) is not None:
            self._size += 1
            waiter.set_result(None)

    def _next_waiter(self) -> asyncio.Future[AsyncConnection | None] | None:
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():  # else cancelled a moment ago, and its task has not run since
                return waiter
        return None

    # Shrinking and closing

    def _shrink_later(self) -> None:
        if self._shrink_timer is None and self._size > self.options.min_size:
            loop = asyncio.get_running_loop()
            delay = self._idle[0].idle_since + self.options.max_idle - monotonic()
            # In a context of its own, as it outlives the one that gives back, and what that holds.
            self._shrink_timer = loop.call_later(max(0.0, delay), self._shrink, context=Context())

    def _shrink(self) -> None:
        self._shrink_timer = None
        oldest = monotonic() - self.options.max_idle
        while self._idle and self._size > self.options.min_size and self._idle[0].idle_since <= oldest:
            self._close(self._idle.pop(0))
        if self._idle:
            self._shrink_later()

    def close(self) -> None:
        """Close idle connections now, those in use when they are given back, and turn the waiters away.

        Waits for nothing.
        """
        self._closed = True
        try:
            self._until_shutdown.aclose().send(None)
        except StopIteration:
            pass
        while (waiter := self._next_waiter()) is not None:
            if not waiter.get_loop().is_closed():
                waiter.set_exception(PoolClosed(f"{self._title()} was closed while a borrower waited for it"))

    def _stop_keeping(self) -> None:
        self._keeps = False
        for timer in (self._shrink_timer, self._waiting_timer):
            if timer is not None:
                timer.cancel()
        while self._idle:
            self._close(self._idle.pop())

    def abandon(self) -> None:
        """Close every connection, those in use too, of an event loop that has been closed."""
        for session in [*self._in_use]:
            warn(f"{session!r} was in use when its event loop was closed, and is now closed too", ResourceWarning, 2)
            session.abandon()
        self._stop_keeping()

    def stats(self) -> PoolStats:
        """Return the pool's figures. Waits for nothing."""
        return PoolStats(
            name=self.options.name,
            min_size=self.options.min_size,
            max_size=self.options.limit,
            size=self._size,
            in_use=len(self._in_use),
            idle=len(self._idle),
            waiting=len(self._waiting),
            borrowed=self._borrowed,
            queued=self._queued,
            wait_seconds=self._wait_seconds,
            timeouts=self._timeouts,
            opened=self._opened,
            closed=self._gone,
        )

    def _title(self) -> str:
        return f"connection pool {self.options.name!r}"


async def _close_portals(session: AsyncConnection) -> None:
    await session.execute("CLOSE ALL")


# Pools by event loop, and in it by what they connect to.
_pools: dict[asyncio.AbstractEventLoop, dict[tuple[Any, ...], Pool]] = {}
# Pools of the parent process: their sockets are the parent's, so that not even a finalizer may see them.
_of_parent: list[object] = []


def pools() -> dict[tuple[Any, ...], Pool]:
    """Return the pools of the running event loop, by key. Raises NoEventLoop where none is running."""
    loop = running_loop()
    of_loop = _pools.get(loop)
    if of_loop is None:
        _sweep()
        of_loop = _pools[loop] = {}
    return of_loop


def all_pools() -> list[Pool]:
    """Return the pools of every event loop of this process. From any thread; for their figures only."""
    # Each list() is made without another thread between: loops and pools may come and go meanwhile.
    return [pool for loop, of_loop in list(_pools.items()) if not loop.is_closed() for pool in list(of_loop.values())]


def _sweep() -> None:
    # A loop that was closed without shutting down its async generators: its pools do not know yet.
    # Other threads may come and go with loops of their own meanwhile.
    for loop in [loop for loop in list(_pools) if loop.is_closed()]:
        for pool in _pools.pop(loop, {}).values():
            pool.abandon()


class _OfParent:
    """Takes back, in a forked process, what its parent has borrowed."""

    def putconn(self, conn: Connection) -> None:
        """Do nothing: the session is the parent's."""


def _forget() -> None:
    global _pools
    _of_parent.append(_pools)
    for pool in [pool for of_loop in _pools.values() for pool in of_loop.values()]:
        for session in pool._in_use:  # by a run that has been forked too: it must not write to the parent's socket
            session.borrow += 1
            session.pool = _OfParent()
    _pools = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
