"""psycopg's AsyncCursors with sync-looking methods, and which of them a sync cursor class stands for.

A cursor *is* an AsyncCursor of its session: it keeps `description`, `_query`, `adapters` and the C internals, and
forwards nothing. Contract with the driver above: the session runs the coroutines (`call`), counts open cursors, and
changes `borrow` when it goes to another borrower, so that a cursor of the former one is told apart.
"""

# The cursors are typed as Any: they look sync, and derive from async ones.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import pq

from . import shortcuts
from .bridge import collecting, dying, has_kept_the_loop, in_run, loop_is_running

if TYPE_CHECKING:
    from .driver import AsyncConnection, Connection

T = TypeVar("T")

if TYPE_CHECKING:
    # Typed, these would be AsyncCursors whose every method has the wrong type, which is their very purpose.
    _AnyCursor: Any = object
else:
    _AnyCursor = object


class _SyncLooking(_AnyCursor):  # type: ignore[misc]  # reason: see _AnyCursor
    """AsyncCursor's coroutine methods as plain ones. Mirrors psycopg.Cursor, psycopg 3.3."""

    _conn: AsyncConnection
    # Whether it has all its rows once it has executed, and psycopg is known to keep them as `shortcuts` says.
    _keeps_its_rows = shortcuts.KNOWN

    def __init__(self, session: AsyncConnection, *args: Any, **kwargs: Any) -> None:
        super().__init__(session, *args, **kwargs)
        self._borrow = session.borrow
        session.open_cursors += 1

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._borrow == self._conn.borrow:
            self._conn.open_cursors -= 1  # an open portal stays counted, until the session is given back

    @property
    def _call(self) -> Callable[[Coroutine[Any, Any, T]], T]:
        session = self._conn
        if self._borrow != session.borrow:
            session.refuse_former(self._borrow, self)
        return session.call

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
        session = self._conn
        if not self._closed and self._borrow == session.borrow:
            session.open_cursors -= 1
        self._close()

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        return self._call(super().execute(query, params, **options) if options else super().execute(query, params))

    def executemany(self, query: Any, params_seq: Iterable[Any], **options: Any) -> None:
        self._call(super().executemany(query, params_seq, **options))

    def stream(self, query: Any, params: Any = None, **options: Any) -> Iterator[Any]:
        return self._each(super().stream(query, params, **options))

    def results(self) -> Iterator[Any]:
        return self._each(super().results())

    def set_result(self, index: int) -> Any:
        return self._call(super().set_result(index))

    def fetchone(self) -> Any:
        return shortcuts.fetchone(self) if self._has_its_rows() else self._call(super().fetchone())

    def fetchmany(self, size: int = 0) -> list[Any]:
        return shortcuts.fetchmany(self, size) if self._has_its_rows() else self._call(super().fetchmany(size))

    def fetchall(self) -> list[Any]:
        return shortcuts.fetchall(self) if self._has_its_rows() else self._call(super().fetchall())

    def _has_its_rows(self) -> bool:
        """Return whether a fetch has nothing to wait for. Lets others go first, where it is time."""
        session = self._conn
        if self._borrow != session.borrow:
            session.refuse_former(self._borrow, self)
        if has_kept_the_loop():
            session.call(asyncio.sleep(0))
        return self._keeps_its_rows and not session._pipeline

    def _fetch_pipeline(self) -> Any:
        return super()._fetch_pipeline() if self._conn._pipeline else shortcuts.READY

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
    _undone: int = 0  # what it was of its session, when this was declared
    _keeps_its_rows = False

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        if not self._declared:
            self._declared = True
            self._conn.open_portals += 1
            self._undone = self._conn.undone
        return super().execute(query, params, **options)

    def close(self) -> None:
        session = self._conn
        # In a transaction that has failed psycopg sends no CLOSE, and a cursor WITH HOLD outlives the rollback.
        failed = session.pgconn.transaction_status == pq.TransactionStatus.INERROR
        if self._declared and not self._closed and self._borrow == session.borrow and not failed and _may_wait():
            # A cancellation waits: most are closed by the finalizer of a half-read generator, which would swallow it.
            try:
                session.call_to_completion(self._close_if_there())
            except psycopg.OperationalError:
                if not session.closed:
                    raise
                self._close()  # it went with its connection; Django would pass psycopg's own error on
            session.open_cursors -= 1
            session.open_portals -= 1
        else:
            super().close()  # the portal stays counted, and is closed when the session is given back

    async def _close_if_there(self) -> None:
        session = self._conn
        if self._undone != session.undone and session.pgconn.transaction_status == pq.TransactionStatus.INTRANS:
            # It may have gone with a savepoint, and to close it then would be an error, which ends the transaction.
            async with psycopg.AsyncCursor(session) as cursor:
                await cursor.execute("SELECT 1 FROM pg_catalog.pg_cursors WHERE name = %s", [self.name])
                if not await cursor.fetchone():
                    self._close()
                    return
        await super(_SyncLooking, self).close()


def _may_wait() -> bool:
    return not (dying() or collecting()) and (in_run() or not loop_is_running())


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


def with_additions(cursor_class: type[Any], added: type[Any]) -> type[Any]:
    """Return one of the classes above, with what `added`, the cursor class of its session, does beside AsyncCursor.

    Instrumentation wraps `AsyncConnection.connect` and gives the connection a cursor class of its own, whose coroutine
    methods go between the sync-looking ones and psycopg's. It may be a new class for each connection.
    """
    return type(cursor_class.__name__, (cursor_class, added), {"__doc__": cursor_class.__doc__, "__module__": __name__})
