"""psycopg's AsyncConnection and AsyncCursors, in the shape of the sync objects that Django expects.

A *session* is an `AsyncConnection`: what waits for the server. Its *face* is a `Connection`, a psycopg.Connection
over the same libpq connection and the same state, whose every wait is awaited by the session. Cursors of a face are
AsyncCursors of the session with sync-looking methods: nothing is forwarded, no state is kept twice.

Contract: on the ORM side of a run all of this waits through the bridge. Anywhere else (a finalizer, a thread that
was handed a connection) the same objects block, as psycopg's own would; where a run is dying they close instead.
"""

# The cursors are typed as Any: they look sync, and derive from async ones. A face has properties for attributes.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportIncompatibleVariableOverride=false

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from traceback import clear_frames
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import ReferenceType, ref

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import errors as e
from psycopg import pq, waiting
from psycopg.abc import PQGen
from psycopg.rows import tuple_row
from psycopg.waiting import Ready, Wait

from .bridge import DYING, INTERRUPTS, drive, dying, in_run, to_completion
from .errors import ConnectionInUse, StaleCursor

if TYPE_CHECKING:
    from typing import Self

T = TypeVar("T")

logger = logging.getLogger("greenorm")

# Bounds of cleanup, in seconds: stopping a statement on the server; a rollback, commit or give-back.
CANCEL_SECONDS = 5.0
CLEANUP_SECONDS = 15.0
# How long, in seconds, work that never waits may keep the event loop. As psycopg.waiting.MAX_BUSY_TIME.
BUSY_SECONDS = 0.005

# What a borrower can change of a connection without the server noticing. Names of psycopg 3.3.
_CLIENT_STATE = (
    "_autocommit", "_isolation_level", "_read_only", "_deferrable", "_begin_statement", "row_factory",
    "face_cursor_factory",
)  # fmt: skip

ACTIVE = pq.TransactionStatus.ACTIVE
IDLE = pq.TransactionStatus.IDLE


class _Lock(asyncio.Lock):
    """The lock of a session, for `async with` in its coroutines and `with` in the methods of its face."""

    session: AsyncConnection

    def __enter__(self) -> None:
        self.session.call(self.acquire())

    def __exit__(self, *exc_info: object) -> None:
        self.release()


class AsyncConnection(psycopg.AsyncConnection[Any]):
    """A session: psycopg's AsyncConnection, whose coroutines can also be called from sync code."""

    # Counted by the cursors: those not closed yet, and the server-side ones among them.
    open_cursors: int = 0
    open_portals: int = 0
    # Changes with each borrower, so that a cursor of a former one is told apart.
    borrow: int = 0
    # Told of an interrupt that passed through, so that the borrower's transaction is never committed.
    on_interrupt: Callable[[BaseException], None] | None = None
    # The sync cursor classes of the face, as Django's settings name them.
    face_cursor_factory: type[Any] = psycopg.ClientCursor
    # Where it was borrowed from, and whether Django has set it up.
    pool: Any = None
    # When it is to be closed, and when it became idle, on the clock of time.monotonic.
    expires_at: float = 0.0
    idle_since: float = 0.0
    ready: bool = False
    wrapper_isolation_level: Any = None
    # The sends of connection_created, and the like, may leave wrappers around execute(): they stay with the session.
    execute_wrappers: tuple[Any, ...] = ()
    _blocking: bool = False
    _face: ReferenceType[Connection] | None = None
    _last_yield: float = 0.0

    def __init__(self, pgconn: Any, row_factory: Any = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.__dict__.update(_async_parts(self))

    def __del__(self, __warn: Any = None) -> None:
        # The pool closes what it opened; nobody else is meant to.
        pass

    @classmethod
    async def connect(cls, *args: Any, **kwargs: Any) -> Self:
        """Connect to the server, or leave nothing behind. Mirrors AsyncConnection.connect, psycopg 3.3."""
        try:
            return await super().connect(*args, **kwargs)
        except BaseException as exc:
            # The frames of a failed attempt own its socket, and live as long as the error: in a cancelled task, say.
            clear_frames(exc.__traceback__)
            raise

    @property
    def face(self) -> Connection:
        """The sync face of this session; the same object for as long as anybody holds it."""
        face = None if self._face is None else self._face()
        if face is None:
            face = Connection(self)
            self._face = ref(face)
        return face

    def call(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run one of this session's coroutines from sync code, wherever that runs."""
        if not in_run():
            return self._call_blocking(coro)
        try:
            return drive(coro)
        except BaseException as exc:
            if not isinstance(exc, Exception) and self.on_interrupt is not None:
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

    async def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Consume a generator that operates on the connection. Mirrors AsyncConnection.wait, psycopg 3.3."""
        if self._blocking:
            return waiting.wait(gen, self.pgconn.socket, interval=interval, timeout=timeout)
        try:
            return await self._wait(gen, timeout)
        except INTERRUPTS:
            if self.pgconn.transaction_status == ACTIVE:
                # A second cancellation must not leave the statement running on the server.
                await to_completion(self._stop(gen), 2 * CANCEL_SECONDS)
            raise
        except DYING:
            self.abandon()
            raise

    async def _wait(self, gen: PQGen[T], timeout: float | None = None) -> T:
        # Against psycopg.waiting.wait_async: no timer each 0.1 s (signals reach asyncio without), and no yield to
        # the loop where nothing waits.
        try:
            state = next(gen)
        except StopIteration as stop:
            return cast(T, stop.value)
        loop = asyncio.get_running_loop()
        fd = self.pgconn.socket
        deadline = None if timeout is None else monotonic() + timeout
        try:
            while True:
                if state & Wait.W and (ready := ready_now(fd, state)):
                    # A socket is nearly always writable: asking costs less than a turn of the loop.
                    if monotonic() - self._last_yield > BUSY_SECONDS:
                        await asyncio.sleep(0)
                        self._last_yield = monotonic()
                else:
                    ready = await _readiness(loop, fd, state, deadline)
                    self._last_yield = monotonic()
                state = gen.send(ready)
        except OSError as exc:
            raise e.OperationalError("connection socket closed") from exc
        except StopIteration as stop:
            return cast(T, stop.value)

    async def _stop(self, gen: PQGen[Any]) -> None:
        """Stop the running statement on the server; where that fails, close the connection."""
        deadline = monotonic() + CANCEL_SECONDS
        patience = 0.1
        try:
            while True:
                await self.cancel_safe(timeout=CANCEL_SECONDS)
                try:
                    await self._wait(gen, min(patience, deadline - monotonic()))
                    return
                except e._WaitTimeout:
                    # The server forgets a request that overtakes the statement it is meant for: ask again.
                    if monotonic() >= deadline:
                        raise
                    patience *= 2
        except e.QueryCanceled:
            pass
        except Exception as exc:
            logger.warning("a cancelled statement could not be stopped, closing its connection: %s", exc)
            self.abandon()
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Close the connection at once, without waiting for anything."""
        self._closed = True
        self.pgconn.finish()

    def remember(self) -> None:
        """Take the client-side state of now as what each new borrower is to find."""
        self._remembered = {name: self.__dict__[name] for name in _CLIENT_STATE if name in self.__dict__}
        self._remembered_handlers = self._notice_handlers[:], self._notify_handlers[:], self.prepare_threshold

    def restore(self) -> None:
        """Go back to the client-side state that was remembered. The connection must be idle."""
        for name in _CLIENT_STATE:
            self.__dict__.pop(name, None)
        self.__dict__.update(self._remembered)
        self._notice_handlers[:], self._notify_handlers[:], self.prepare_threshold = self._remembered_handlers


def adopt(conn: psycopg.Connection[Any]) -> Connection:
    """Return a face over a session that shares the libpq connection and the state of a sync connection.

    For as long as it is used, `conn` must not be; `release` ends that.
    """
    session = AsyncConnection.__new__(AsyncConnection)
    session.__dict__.update(conn.__dict__)
    session.__dict__.update(_async_parts(session), face_cursor_factory=conn.cursor_factory)
    return session.face


def release(face: Connection, conn: psycopg.Connection[Any]) -> None:
    """Give an adopted connection back to its sync owner, with the state that it has now."""
    session = face.session
    session.borrow += 1
    own = _async_parts(session)
    conn.__dict__.update({k: v for k, v in session.__dict__.items() if k in conn.__dict__ and k not in own})


def _async_parts(session: AsyncConnection) -> dict[str, Any]:
    lock = _Lock()
    lock.session = session
    return {
        "lock": lock,
        "cursor_factory": psycopg.AsyncCursor,
        "server_cursor_factory": psycopg.AsyncServerCursor,
    }


def ready_now(fd: int, state: int) -> int:
    poll = select.poll()
    poll.register(fd, (select.POLLIN if state & Wait.R else 0) | (select.POLLOUT if state & Wait.W else 0))
    ready = 0
    for _, event in poll.poll(0):
        ready |= Ready.R if event & select.POLLIN else 0
        ready |= Ready.W if event & select.POLLOUT else 0
    return ready


async def _readiness(loop: asyncio.AbstractEventLoop, fd: int, state: int, deadline: float | None) -> int:
    future: asyncio.Future[int] = loop.create_future()
    timer = None
    if deadline is not None:
        timer = loop.call_later(deadline - monotonic(), _fail, future, e._WaitTimeout("wait timeout expired"))
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


class Connection(psycopg.Connection[Any]):
    """The sync face of a session: a psycopg.Connection to look at, awaited by the session wherever it waits.

    What psycopg's sync classes do with a connection (TypeInfo.fetch, transaction(), pipeline(), notifies(), a
    user's own cursor class) goes through `wait`, and so works unchanged.
    """

    __slots__ = ("session",)

    session: AsyncConnection

    def __init__(self, session: AsyncConnection) -> None:
        # One state, two faces: autocommit, adapters, prepared statements and handlers are never out of step.
        self.__dict__ = session.__dict__
        self.session = session

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
        return self.session.call(self.session.wait(gen, interval, timeout))

    def cursor(self, name: str = "", **options: Any) -> Any:
        """Return a sync-looking AsyncCursor. Mirrors Connection.cursor, psycopg 3.3."""
        self._check_connection_ok()
        binary = options.pop("binary", False)
        if name:
            cursor = bridged(psycopg.ServerCursor)(self.session, name, **options)
        else:
            options.pop("scrollable", None)
            options.pop("withhold", None)
            factory = bridged(self.cursor_factory)
            if issubclass(factory, psycopg.AsyncCursor):
                cursor = factory(self.session, **options)
            else:
                # A class that cannot be mapped stays sync and waits through this face. Its end is not seen.
                cursor = factory(self, **options)
                self.session.open_cursors += 1
        if binary:
            cursor.format = pq.Format.BINARY
        return cursor

    def commit(self) -> None:
        """Commit, to the end: a cancellation that arrives meanwhile is raised after on_commit has run."""
        self.session.call_to_completion(self.session.commit())

    def rollback(self) -> None:
        """Roll back, to the end: a cancellation that arrives meanwhile is raised afterwards."""
        self.session.call_to_completion(self.session.rollback())

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the running statement; `timeout` in seconds."""
        if in_run():
            self.session.call(self.session.cancel_safe(timeout=timeout))
        else:
            super().cancel_safe(timeout=timeout)

    def close(self) -> None:
        """Close the connection to the server. Never waits."""
        self.session.abandon()


if TYPE_CHECKING:
    # Typed, these would be AsyncCursors whose every method has the wrong type, which is their very purpose.
    _AnyCursor: Any = object
else:
    _AnyCursor = object


class _SyncLooking(_AnyCursor):  # type: ignore[misc]  # reason: see _AnyCursor
    """AsyncCursor's coroutine methods as plain ones. Mirrors psycopg.Cursor, psycopg 3.3."""

    _conn: AsyncConnection

    def __init__(self, session: AsyncConnection, *args: Any, **kwargs: Any) -> None:
        super().__init__(session, *args, **kwargs)
        self._borrow = session.borrow
        session.open_cursors += 1

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._borrow == self._conn.borrow:
            self._conn.open_cursors -= 1  # an open portal stays counted, until the session is given back

    def _call(self, coro: Coroutine[Any, Any, T]) -> T:
        session = self._conn
        if self._borrow != session.borrow:
            coro.close()
            raise StaleCursor(
                f"{self!r} was used after its connection had gone back to the pool. "
                "Use a cursor within the run, or the greenorm.atomic() or connection() block, that opened it."
            )
        return session.call(coro)

    @property
    def connection(self) -> Connection:
        """The sync face of the connection that this cursor uses."""
        return self._conn.face

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if not self._closed and self._borrow == self._conn.borrow:
            self._conn.open_cursors -= 1
        self._close()

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        return self._call(super().execute(query, params, **options))

    def executemany(self, query: Any, params_seq: Iterable[Any], **options: Any) -> None:
        self._call(super().executemany(query, params_seq, **options))

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        return self._each(super().stream(query, params, **options))

    def results(self) -> Iterator[Any]:
        return self._each(super().results())

    def set_result(self, index: int) -> Any:
        return self._call(super().set_result(index))

    def fetchone(self) -> Any:
        return self._call(super().fetchone())

    def fetchmany(self, size: int = 0) -> list[Any]:
        return self._call(super().fetchmany(size))

    def fetchall(self) -> list[Any]:
        return self._call(super().fetchall())

    def scroll(self, value: int, mode: str = "relative") -> None:
        self._call(super().scroll(value, mode))

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        try:
            return self._call(super().__anext__())
        except StopAsyncIteration:
            raise StopIteration("no more records to return") from None

    @contextmanager
    def copy(self, statement: Any, params: Any = None, *, writer: Any = None) -> Iterator[psycopg.Copy]:
        """Start a COPY. Mirrors Cursor.copy, psycopg 3.3; the sync Copy waits through the face."""
        face = self.connection
        with face.lock:
            face.wait(self._start_copy_gen(statement, params))
            with psycopg.Copy(self, writer=writer) as copy:
                yield copy
        self._select_current_result(0)

    def _each(self, items: AsyncGenerator[T]) -> Iterator[T]:
        try:
            while True:
                try:
                    yield self._call(items.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            self._call(items.aclose())


class _SyncLookingPortal(_SyncLooking):
    """A server-side cursor: its portal stays open on the server until the cursor is closed."""

    _declared: bool = False

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        if not self._declared:
            self._declared = True
            self._conn.open_portals += 1
        return super().execute(query, params, **options)

    def close(self) -> None:
        session = self._conn
        if self._declared and not self._closed and self._borrow == session.borrow and not dying():
            session.call(super(_SyncLooking, self).close())
            session.open_cursors -= 1
            session.open_portals -= 1
        else:
            super().close()


class Cursor(_SyncLooking, psycopg.AsyncCursor[Any]):  # type: ignore[misc]  # reason: sync-looking by design
    """psycopg.AsyncCursor in the shape of psycopg.Cursor."""


class ServerCursor(_SyncLookingPortal, psycopg.AsyncServerCursor[Any]):  # type: ignore[misc]  # reason: as above
    """psycopg.AsyncServerCursor in the shape of psycopg.ServerCursor."""


class RawCursor(_SyncLooking, psycopg.AsyncRawCursor[Any]):  # type: ignore[misc]  # reason: as above
    """psycopg.AsyncRawCursor in the shape of psycopg.RawCursor."""


class RawServerCursor(_SyncLookingPortal, psycopg.AsyncRawServerCursor[Any]):  # type: ignore[misc]  # reason: as above
    """psycopg.AsyncRawServerCursor in the shape of psycopg.RawServerCursor."""


class ClientCursor(_SyncLooking, psycopg.AsyncClientCursor[Any]):  # type: ignore[misc]  # reason: as above
    """psycopg.AsyncClientCursor in the shape of psycopg.ClientCursor."""


_BRIDGED: dict[type[Any], type[Any]] = {
    psycopg.Cursor: Cursor,
    psycopg.ClientCursor: ClientCursor,
    psycopg.ServerCursor: ServerCursor,
    psycopg.RawCursor: RawCursor,
    psycopg.RawServerCursor: RawServerCursor,
}
# Names in a class body that are not behaviour.
_BLANK = {
    "__module__",
    "__doc__",
    "__qualname__",
    "__firstlineno__",
    "__static_attributes__",
    "__dict__",
    "__weakref__",
    "__slots__",
    "__orig_bases__",
    "__parameters__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
}


def bridged(sync_class: type[Any]) -> type[Any]:
    """Return the AsyncCursor class that does for a session what `sync_class` does for a sync connection.

    A class that only combines others (as Django's do) is combined anew over the async ones. One with methods of
    its own that derives from psycopg's sync cursor cannot be: it is returned as it is, and used over the face.
    Raises ImproperlyConfigured for what is no sync cursor class of psycopg.
    """
    if sync_class in _BRIDGED:
        return _BRIDGED[sync_class]
    if not (isinstance(cast("Any", sync_class), type) and issubclass(sync_class, psycopg.Cursor)):
        raise ImproperlyConfigured(
            f"OPTIONS['cursor_factory'] is {sync_class!r}, which is not a subclass of psycopg.Cursor. Name a sync "
            "cursor class, as for Django's own backend (psycopg.ClientCursor, psycopg.Cursor or a child of one)."
        )
    if set(vars(sync_class)) - _BLANK:
        return sync_class
    bases = [bridged(base) if issubclass(base, psycopg.Cursor) else base for base in sync_class.__bases__]
    if any(issubclass(base, psycopg.Cursor) for base in bases):
        return sync_class
    body = {"__doc__": sync_class.__doc__, "__module__": __name__}
    _BRIDGED[sync_class] = type(sync_class.__name__, tuple(bases), body)
    return _BRIDGED[sync_class]
