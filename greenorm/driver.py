"""psycopg's AsyncConnection, in the shape of the sync connection that Django expects.

A *session* is an `AsyncConnection`: what waits for the server. Its *face* is a `Connection`, a psycopg.Connection
over the same libpq connection and the same state, whose every wait is awaited by the session. Cursors of a face are
AsyncCursors of the session with sync-looking methods: nothing is forwarded, no state is kept twice.

Contract: on the ORM side of a run all of this waits through the bridge. Anywhere else (a finalizer, a thread that
was handed a connection) the same objects block, as psycopg's own would; where a run is dying they close instead.
"""

# A face has properties where psycopg has attributes.
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from operator import itemgetter
from time import monotonic
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import ReferenceType, ref

import psycopg
from psycopg import errors as e
from psycopg import pq, waiting
from psycopg.abc import PQGen
from psycopg.rows import tuple_row
from psycopg.waiting import Wait

from .bridge import (
    DYING,
    INTERRUPTS,
    drive,
    has_kept_the_loop,
    in_run,
    loop_is_running,
    to_completion,
)
from .cursors import bridged, with_additions
from .errors import ConnectionInUse, NotInRun, StaleCursor
from .readiness import Watch, readiness, ready_now
from .shortcuts import KNOWN, Lock, watch

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")

logger = logging.getLogger("greenorm")

# Bounds of cleanup, in seconds: stopping a statement on the server; a rollback, commit or give-back.
CANCEL_SECONDS = 5.0
CLEANUP_SECONDS = 15.0
# What a borrower can change of a connection without the server noticing. Names of psycopg 3.3.
_CLIENT_STATE = (
    "_autocommit", "_isolation_level", "_read_only", "_deferrable", "row_factory", "face_cursor_factory",
    "_begin_statement",
)  # fmt: skip
# Without the last, which follows from the others, and with the lists of handlers.
_values = itemgetter(*_CLIENT_STATE[:-1], "_notice_handlers", "_notify_handlers")

WAIT_R = int(Wait.R)
READY_R = int(waiting.Ready.R)

# What a session has of its own, when it shares the rest with a sync connection.
_OWN_STATE = {
    "lock", "cursor_factory", "server_cursor_factory", "face_cursor_factory", "_face", "_blocking", "borrow",
    "open_cursors", "open_portals", "on_interrupt", "take_up", "call", "_watch",
}  # fmt: skip

ACTIVE = pq.TransactionStatus.ACTIVE
IDLE = pq.TransactionStatus.IDLE
CONNECTED = pq.ConnStatus.OK


class _Lock(Lock):
    """The lock of a session, for `async with` in its coroutines and `with` in the methods of its face."""

    session: AsyncConnection

    def __enter__(self) -> None:
        if not self.take():
            self.session.call(self.acquire())

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """A session: psycopg's AsyncConnection, whose coroutines can also be called from sync code."""

    lock: _Lock
    # Counted by the cursors: those not closed yet, and the server-side ones among them.
    open_cursors: int = 0
    open_portals: int = 0
    # How often a transaction has ended, or a savepoint was rolled back: cursors went with it.
    undone: int = 0
    # Changes with each borrower, so that a cursor or face of a former one is told apart.
    borrow: int = 0
    # The process that it is of: a forked one has the socket too, and must not use it.
    opened_by: int = 0
    # Told of an interrupt that passed through, so that the borrower's transaction is never committed.
    on_interrupt: Callable[[BaseException], None] | None = None
    # The sync cursor classes of the face, as Django's settings name them.
    face_cursor_factory: type[Any] = psycopg.ClientCursor
    # Where it was borrowed from; when it is to be closed, and when it became idle, by time.monotonic.
    pool: Any = None
    expires_at: float = 0.0
    idle_since: float = 0.0
    # Whether Django has set it up, and the isolation level that it then gave its wrapper.
    ready: bool = False
    wrapper_isolation_level: Any = None
    # The sends of connection_created, and the like, may leave wrappers around execute(): they stay with the session.
    execute_wrappers: tuple[Any, ...] = ()
    _blocking: bool = False
    _face: ReferenceType[Connection] | None = None
    # Of its socket, for what a pool has opened.
    _watch: Watch | None = None
    # The class of the face's cursors, the two that it has been made of, and whether it is an AsyncCursor.
    _cursor_class: type[Any] = object
    _cursor_class_of: tuple[type[Any], type[Any]] = (object, object)
    has_async_cursors: bool = False

    def __init__(self, pgconn: Any, row_factory: Any = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.__dict__.update(_async_parts(self), opened_by=os.getpid(), face_cursor_factory=psycopg.ClientCursor)

    def __del__(self, __warn: Any = None) -> None:
        # The pool closes what it opened; nobody else is meant to.
        pass

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Connect to the server, or leave nothing behind. Mirrors AsyncConnection.connect, psycopg 3.3."""
        try:
            session = await super().connect(*args, **kwargs)
        except BaseException as exc:
            # The frames of a failed attempt own its socket, and live as long as the error: in a cancelled task, say.
            clear_frames(exc.__traceback__)
            raise
        session._watch = watch(asyncio.get_running_loop(), session.pgconn.socket)
        return session

    def cursor_class(self) -> type[Any]:
        """Return the class that `cursor()` of the face makes, with what instrumentation has added to the session's."""
        factories = self.face_cursor_factory, self.cursor_factory
        if factories != self._cursor_class_of:
            made = bridged(self.face_cursor_factory)
            self.has_async_cursors = issubclass(cast("type", made), psycopg.AsyncCursor)
            if self.cursor_factory is not psycopg.AsyncCursor and self.has_async_cursors:
                made = with_additions(made, self.cursor_factory)
            self._cursor_class_of, self._cursor_class = factories, made
        return self._cursor_class

    def new_face(self) -> Connection:
        """Return the face for a new borrower. What a former one has kept is refused from now on."""
        self.borrow += 1
        face = Connection(self)
        self._face = ref(face)
        return face

    def refuse_former(self, borrow: int, what: object) -> None:
        """Raise StaleCursor unless `what` is of the present borrower of this session."""
        if borrow == self.borrow:
            return
        if self.opened_by != os.getpid():
            raise StaleCursor(
                f"{what!r} belongs to the parent of this process, which was forked while it was in use. "
                "Start processes before connections are used, or with the start method 'spawn'; in a forked one run "
                "new code in an event loop of its own: `asyncio.run(greenorm.run(fn))`."
            )
        raise StaleCursor(
            f"{what!r} was used after its connection had gone back to the pool. "
            "Use it within the run, or the greenorm.atomic() or connection() block, that opened it."
        )

    @property
    def face(self) -> Connection:
        """The sync face of this session; the same object for as long as its borrower holds it."""
        face = None if self._face is None else self._face()
        if face is None:
            face = Connection(self)
            self._face = ref(face)
        return face

    def call(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run one of this session's coroutines from sync code, wherever that runs."""
        try:
            return drive(coro, self._call_blocking)
        except BaseException as exc:
            if not isinstance(exc, Exception) and self.on_interrupt is not None and in_run():
                self.on_interrupt(exc)
            raise

    def call_to_completion(self, coro: Coroutine[Any, Any, T]) -> T:
        """Like `call`, for what must not be cut short: cancellations wait, and it is bounded in time."""
        if not in_run():
            return self._call_blocking(coro)
        try:
            return drive(cast("Coroutine[Any, Any, T]", to_completion(coro, CLEANUP_SECONDS)))
        except TimeoutError as exc:
            self.abandon()
            raise e.OperationalError(f"the server did not answer, the connection was closed: {exc}") from exc
        finally:
            coro.close()  # where it was not begun

    def _call_blocking(self, coro: Coroutine[Any, Any, T]) -> T:
        blocking, self._blocking = self._blocking, True
        try:
            coro.send(None)
        except StopIteration as stop:
            return cast(T, stop.value)
        finally:
            self._blocking = blocking
        coro.close()
        raise ConnectionInUse(
            f"The connection {self!r} is in use by a run; sync code outside of it cannot wait for its turn. "
            "Use a connection in one place at a time."
        )

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let each `call` in here run to its end: cancellations wait, and it is bounded in time."""
        self.__dict__["call"] = self.call_to_completion
        try:
            yield
        finally:
            self.__dict__.pop("call", None)

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Consume a generator that operates on the connection. Mirrors AsyncConnection.wait, psycopg 3.3."""
        if self._blocking:
            return self._wait_blocking(gen, interval, timeout)
        watch = self._watch
        deadline = None if timeout is None else monotonic() + timeout
        try:
            state = next(gen)
            while True:
                if state == WAIT_R and deadline is None and watch is not None:
                    await watch
                    state = gen.send(READY_R)
                else:
                    state = gen.send(await self._ready(state, deadline))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # reason: what `gen` has returned
        except TimeoutError:  # of a cleanup that is out of time; an OSError, too
            raise
        except OSError as exc:
            raise e.OperationalError("connection socket closed") from exc
        except (*INTERRUPTS, *DYING) as exc:
            await self._break_off(gen, exc)
            raise

    def _wait_blocking(self, gen: PQGen[T], interval: float, timeout: float | None) -> T:
        if loop_is_running():
            raise NotInRun(
                f"The connection {self!r} was used outside of the run that borrowed it, where it would block the "
                "event loop. Use it in sync code that is called by `await greenorm.run(fn)`."
            )
        return waiting.wait(gen, self.pgconn.socket, interval=interval, timeout=timeout)

    async def _ready(self, state: int, deadline: float | None) -> int:
        # Against psycopg.waiting.wait_async: no timer each 0.1 s (signals reach asyncio without), and no yield to
        # the loop where nothing waits.
        if not state & Wait.W or not (ready := ready_now(self.pgconn.socket, state)):
            return await readiness(asyncio.get_running_loop(), self.pgconn.socket, state, deadline)
        # A socket is nearly always writable: asking costs less than a turn of the loop.
        if has_kept_the_loop() or not in_run():
            await asyncio.sleep(0)
        return ready

    async def _break_off(self, gen: PQGen[Any], exc: BaseException) -> None:
        """Raise what has interrupted a wait, after its statement has been stopped, or its connection closed."""
        if isinstance(exc, DYING):
            self.abandon()
        elif self.pgconn.transaction_status == ACTIVE:
            # A second cancellation must not leave the statement running on the server.
            await to_completion(self._stop(gen), 2 * CANCEL_SECONDS)
        raise exc

    async def _stop(self, gen: PQGen[Any]) -> None:
        """Stop the running statement on the server; where that fails, close the connection."""
        deadline = monotonic() + CANCEL_SECONDS
        patience = 0.1
        try:
            while True:
                await self.cancel_safe(timeout=CANCEL_SECONDS)
                try:
                    until = min(monotonic() + patience, deadline)
                    state = next(gen)
                    while True:
                        state = gen.send(await self._ready(state, until))
                except StopIteration:
                    return
                except e._WaitTimeout:
                    # The server forgets a request that overtakes the statement it is meant for: ask again.
                    if monotonic() >= deadline:
                        raise
                    patience *= 2
        except e.QueryCanceled:
            pass
        except Exception as exc:
            if self.pgconn.status == pq.ConnStatus.OK and self.pgconn.transaction_status != ACTIVE:
                return  # it has ended by itself meanwhile, in an error of its own
            logger.warning("a cancelled statement could not be stopped, closing its connection: %s", exc)
            self.abandon()
        except BaseException:
            self.abandon()
            raise

    def readable_now(self) -> bool:
        """Return whether there is something to read, or the server has closed."""
        if self._watch is not None:
            return self._watch.readable_now()
        return bool(ready_now(self.pgconn.socket, Wait.R))

    def abandon(self) -> None:
        """Close the connection at once, without waiting for anything."""
        self._closed = True
        if self._watch is not None:
            self._watch.close()
        self.pgconn.finish()

    def remember(self) -> None:
        """Take the client-side state of now as what each new borrower is to find."""
        self._remembered = {name: self.__dict__[name] for name in _CLIENT_STATE}
        *values, notice_handlers, notify_handlers = _values(self.__dict__)
        self._remembered_values = *values, notice_handlers[:], notify_handlers[:]
        self._remembered_threshold = self.prepare_threshold

    def restore(self) -> None:
        """Go back to the client-side state that was remembered. The connection must be idle."""
        if _values(self.__dict__) != self._remembered_values:
            self.__dict__.update(self._remembered)
            self._notice_handlers[:], self._notify_handlers[:] = self._remembered_values[-2:]
        if self.prepare_threshold != self._remembered_threshold:
            self.prepare_threshold = self._remembered_threshold


class _Adopted(AsyncConnection):
    """A session over the libpq connection of a sync one, used in turns: each wait for the server takes up the turn."""

    take_up: Callable[[], Awaitable[object]]

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        if not self._blocking:
            await self.take_up()
        return await super().wait(gen, interval, timeout)


def adopt(conn: psycopg.Connection[Any], take_up: Callable[[], Awaitable[object]], again: Any = None) -> Connection:
    """Return a face over a session that shares the libpq connection and the state of a sync connection.

    For as long as it is used, `conn` must not be; `release` ends that. A later use awaits `take_up`, and that adopts
    `again`, the same face, so that its cursors stay good.
    """
    if again is not None and again.session.pgconn is conn.pgconn:
        again.session.__dict__.update(_state(conn))
        return cast("Connection", again)
    session = _Adopted.__new__(_Adopted)
    session.__dict__.update(
        _state(conn), **_async_parts(session), face_cursor_factory=conn.cursor_factory, opened_by=os.getpid()
    )
    session.take_up = take_up
    return session.face


def release(face: Connection, conn: psycopg.Connection[Any]) -> None:
    """Give an adopted connection back to its sync owner, with the state that it has now."""
    conn.__dict__.update({name: value for name, value in _state(face).items() if name in conn.__dict__})


def _state(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    return {name: value for name, value in conn.__dict__.items() if name not in _OWN_STATE}


def _async_parts(session: AsyncConnection) -> dict[str, Any]:
    lock = _Lock()
    lock.session = session
    return {
        "lock": lock,
        "cursor_factory": psycopg.AsyncCursor,
        "server_cursor_factory": psycopg.AsyncServerCursor,
    }


class Connection(psycopg.Connection[Any]):
    """The sync face of a session: a psycopg.Connection to look at, awaited by the session wherever it waits.

    What psycopg's sync classes do with a connection (TypeInfo.fetch, transaction(), pipeline(), notifies(), a
    user's own cursor class) goes through `wait`, and so works unchanged.
    """

    __slots__ = ("borrow", "session")

    session: AsyncConnection
    borrow: int

    def __init__(self, session: AsyncConnection) -> None:
        # One state, two faces: autocommit, adapters, prepared statements and handlers are never out of step.
        self.__dict__ = session.__dict__
        self.session = session
        self.borrow = session.borrow

    def __del__(self, __warn: Any = None) -> None:
        pass

    @property
    def cursor_factory(self) -> type[Any]:
        """The sync cursor class that `cursor()` stands for."""
        return self.session.face_cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, factory: type[Any]) -> None:
        self.session.face_cursor_factory = factory

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Consume a generator that operates on the connection, awaited by the session."""
        session = self.session
        if self.borrow != session.borrow:
            session.refuse_former(self.borrow, self)
        return session.call(session.wait(gen, interval, timeout))

    def cursor(self, name: str = "", **options: Any) -> Any:
        """Return a sync-looking AsyncCursor. Mirrors Connection.cursor, psycopg 3.3."""
        session = self.session
        if self.borrow != session.borrow:
            session.refuse_former(self.borrow, self)
        if session.pgconn.status != CONNECTED:
            self._check_connection_ok()
        factory = session.cursor_class()
        if not name and not options and session.has_async_cursors:
            return factory(session)
        binary = options.pop("binary", False)
        if name:
            cursor = bridged(psycopg.ServerCursor)(session, name, **options)
        else:
            options.pop("scrollable", None)
            options.pop("withhold", None)
            if session.has_async_cursors:
                cursor = factory(session, **options)
            else:
                cursor = factory(self, **options)
                session.open_cursors += 1  # it waits through this face, and its end is not seen
        if binary:
            cursor.format = pq.Format.BINARY
        return cursor

    def set_autocommit(self, value: bool) -> None:
        """Mirrors Connection.set_autocommit, psycopg 3.3; at once, where it has nothing to wait for."""
        session = self.session
        if (
            KNOWN
            and self.borrow == session.borrow
            and session.pgconn.transaction_status == IDLE
            and session._pipeline is None
            and not session.lock.locked()
            and in_run()
        ):
            session._autocommit = bool(value)
        else:
            super().set_autocommit(value)

    def commit(self) -> None:
        """Commit, to the end: a cancellation that arrives meanwhile is raised after on_commit has run."""
        self.session.refuse_former(self.borrow, self)
        self.session.undone += 1
        self.session.call_to_completion(self.session.commit())

    def rollback(self) -> None:
        """Roll back, to the end: a cancellation that arrives meanwhile is raised afterwards."""
        self.session.refuse_former(self.borrow, self)
        self.session.undone += 1
        self.session.call_to_completion(self.session.rollback())

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the running statement; `timeout` in seconds."""
        self.session.refuse_former(self.borrow, self)
        if in_run():
            self.session.call(self.session.cancel_safe(timeout=timeout))
        else:
            super().cancel_safe(timeout=timeout)

    def close(self) -> None:
        """Close the connection to the server, unless it has another borrower by now. Never waits."""
        if self.borrow == self.session.borrow:
            self.session.abandon()
