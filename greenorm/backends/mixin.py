"""What makes a DatabaseWrapper of Django's PostgreSQL backend wait through the bridge.

`AwaitableMixin` goes before any wrapper class that derives from Django's own. Inside a run its `pool` is the pool
of the event loop, and so Django's own code borrows, configures and closes; outside of a run nothing differs.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import isawaitable
from types import NoneType
from typing import TYPE_CHECKING, Any

import psycopg
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.core import mail
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql.psycopg_any import register_tzloader
from django.db.backends.signals import connection_created
from django.db.backends.utils import CursorWrapper
from django.db.utils import OperationalError
from psycopg import pq

from .. import bridge, hooks, sharing, tasks, testing
from ..cursors import bridged
from ..driver import IDLE, AsyncConnection, Connection, adopt, release
from ..errors import NotInRun, OutcomeUnknown, SharedScope
from ..pool import Pool, pools
from .pooling import make_pool


class _Borrowed:
    """A pool of the one connection that has just been borrowed: what Django's get_new_connection asks for."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def open(self) -> None:
        pass

    def getconn(self) -> Connection:
        return self.conn


if TYPE_CHECKING:
    from ..kept import AsMade
    from ..scope import Scope
    from ..shares import SharedWithSyncCode

    _Wrapper = postgresql.DatabaseWrapper
else:
    _Wrapper = object  # goes before a wrapper class, and is none itself


class _CursorWrapper(CursorWrapper):
    """Django's, with its fetches written out: __getattr__ costs as much as a fetch of one row."""

    def fetchone(self) -> Any:
        try:
            return self.cursor.fetchone()
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.cursor.fetchmany(*args, **kwargs)
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def fetchall(self) -> Any:
        try:
            return self.cursor.fetchall()
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def close(self) -> None:
        self.cursor.close()


class AwaitableMixin(_Wrapper):
    """Mixed in before a PostgreSQL DatabaseWrapper, lets it be used inside `greenorm.run`."""

    can_await = True
    _borrowed: _Borrowed | None = None
    _own_pool: Pool | None = None
    _sync_connection: Any = None
    _taken_from: Sequence[tuple[Any, Any, Scope | None, SharedWithSyncCode]] = ()
    _made_in: Scope | None = None
    _was_closed = False
    _has_been_connected = False
    _is_checked = False
    _scope: Scope | None = None
    _known_pool: Pool | None = None
    _known_key: Any = None
    _as_made: AsMade | None = None

    # Which pool

    @property
    def pool(self) -> Any:
        """The pool that Django's code sees. Mirrors DatabaseWrapper.pool, Django 6.1."""
        if not bridge.in_run() or not isinstance(self.connection, (Connection, NoneType)):
            return super().pool  # also for what sync code, or a thread, has connected
        return self._borrowed or (self.connection and self.connection.session.pool) or self.async_pool

    @property
    def async_pool(self) -> Pool:
        """The pool of the running event loop for this wrapper's settings, made when first asked for.

        Raises ImproperlyConfigured for options that make no sense. Waits for nothing.
        """
        key = self.settings_dict["NAME"], self.timezone_name
        known = self._known_pool
        if known is not None and self._known_key == key and known.is_open_here() and self._is_registered():
            return known
        if not self._is_registered() and not self.settings_dict["OPTIONS"].get("pool"):
            # A wrapper made by hand (a copy(), the one that creates databases) has one connection of its own.
            if self._own_pool is None:
                self._own_pool = make_pool(self, min_size=0, max_size=1)
            return self._own_pool
        by_key = pools()
        pool = by_key.get((*self._owner(), *key))
        if pool is None:
            pool = by_key[(*self._owner(), *key)] = make_pool(self)
        self._known_pool, self._known_key = pool, key
        if self._as_made is not None:
            self._as_made.note(_known_pool=pool, _known_key=key)
        return pool

    def close_pool(self) -> None:
        """Close the pool of this wrapper's settings. Mirrors DatabaseWrapper.close_pool, Django 6.1."""
        if not bridge.in_run():
            super().close_pool()
            return
        by_key = pools()
        for key in [key for key in by_key if key[:2] == self._owner()]:
            by_key.pop(key).close()

    def _is_registered(self) -> bool:
        return connections.settings.get(self.alias) is self.settings_dict

    def _owner(self) -> tuple[str, int]:
        # As Django does it: copies have their original's pool, and wrappers made by hand one by their alias.
        registered: Any = connections.settings.get(self.alias)
        same = registered is self.settings_dict or registered == self.settings_dict
        return self.alias, id(registered) if same else 0

    # Borrowing and giving back

    def _look_after(self) -> None:
        """Hear of a use of this wrapper. Not by ensure_connection, which Django's own tests replace and call again."""
        if not bridge.in_run():
            if tasks.is_left_out(self):
                warnings.warn(
                    f"Sync code in a thread uses the database alias {self.alias!r}, on a connection of its own, while "
                    "the task that waits for it has a transaction open there: what it does is not part of that. Use "
                    "`greenorm.run` or `greenorm.sync_to_async` in place of a thread.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return
        mine: Scope | None = bridge.carried()
        if self._scope is mine or (mine is not None and mine.take_up(self)):
            return
        if self._scope is None and self._made_in is mine and not sharing.in_transaction(self):
            self.close()  # a thread that it was handed to has connected it
            self.ensure_connection()
        elif self._scope is not None or self.connection is not None:
            raise SharedScope(
                f"A wrapper of the database alias {self.alias!r} was used in a run other than the one that it is "
                f"connected in. Look it up inside of the run: `connections[{self.alias!r}]` or `django.db.connection`."
            )

    def connect(self) -> None:
        """Borrow a connection, or make one. Mirrors BaseDatabaseWrapper.connect, Django 6.1.

        A connection that is only borrowed again was set up, and announced by connection_created, when it was made.
        """
        again, self._has_been_connected = self._has_been_connected, True
        if not bridge.in_run():
            super().connect()
            return
        if self._scope is not None:
            self._look_after()
        scope = self._scope = bridge.carried()
        try:
            if scope is not None:
                scope.will_connect(self)
            self._borrow(again)
        finally:
            if self.connection is None:
                self._scope = None

    def _borrow(self, again: bool) -> None:
        pool = self.async_pool
        conn = pool.getconn()
        session = conn.session
        if session.ready:
            self._attach(conn, again)
        else:
            self._borrowed = _Borrowed(conn)
            before = self.execute_wrappers[:]
            try:
                super().connect()
            finally:
                self._borrowed = None
                if self.connection is not conn:
                    self._return(conn)
            self.close_at = None  # the pool ends what is too old
            session.wrapper_isolation_level = self.isolation_level
            self._note_setup(session, before)
            session.ready = True
        session.on_interrupt = self._interrupted

    def _note_setup(self, session: AsyncConnection, before: list[Any]) -> None:
        """Keep with the session what receivers of connection_created have done to it."""
        session.execute_wrappers = tuple(wrap for wrap in self.execute_wrappers if wrap not in before)
        session.remember()

    def _attach(self, conn: Connection, again: bool) -> None:
        session = conn.session
        self.connection = conn
        self.isolation_level = session.wrapper_isolation_level
        self.autocommit = session._autocommit
        self.health_check_enabled = self.settings_dict["CONN_HEALTH_CHECKS"]
        self.health_check_done = True
        if again:  # else all of this is as it was made
            self.in_atomic_block = False
            self.savepoint_ids = []
            self.atomic_blocks = []
            self.needs_rollback = False
            self.closed_in_transaction = False
            self.errors_occurred = False
            self.close_at = None
            self.run_on_commit = []
        if not self._was_closed:
            if session.execute_wrappers:
                self.execute_wrappers[:0] = session.execute_wrappers
            return
        self._was_closed = False  # by its user, who has been promised a connection_created for the next one
        before = self.execute_wrappers[:]
        connection_created.send(sender=type(self), connection=self)
        self._note_setup(session, before)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Mirrors DatabaseWrapper.get_new_connection, Django 6.1."""
        if not bridge.in_run():
            if hasattr(mail, "outbox"):  # Django's test environment
                hooks.install_for_tests()
                testing.refuse_second_connection(self, by_sync_code=True)
            sharing.note_sync_connection(self)
        return super().get_new_connection(conn_params)

    def needs_connection(self) -> bool:
        """Return whether something would be lost if the connection were given back now."""
        if not isinstance(self.connection, Connection):
            return True  # sync code has connected it
        session = self.connection.session
        return bool(
            self.in_atomic_block
            or not self.autocommit
            or session.open_cursors
            or session.pgconn.transaction_status != IDLE
        )

    def give_back(self) -> None:
        """Give the connection back to its pool, which rolls back what is open. The wrapper may be used again."""
        self._scope = None
        if not isinstance(self.connection, Connection):
            return  # nothing borrowed, or what sync code has connected
        conn, self.connection = self.connection, None
        self.in_atomic_block = False
        self.run_on_commit = []
        for wrap in conn.session.execute_wrappers:
            if wrap in self.execute_wrappers:
                self.execute_wrappers.remove(wrap)
        self._return(conn)

    def _return(self, conn: Connection) -> None:
        conn.session.pool.putconn(conn)
        if self._own_pool is not None:
            self._own_pool.close()
            self._own_pool = None

    def lend(self) -> None:
        """Give the connection back for a time, in a run that goes on and may ask for one again."""
        # Django closes a wrapper between two connections. A backend that remembers what it has set in the session
        # (the schema of a tenant) forgets it there, and would else trust another session to have it.
        was_closed = self._was_closed
        self.close()
        self._was_closed = was_closed

    def _close(self) -> None:
        if not isinstance(self.connection, Connection):
            super()._close()  # type: ignore[misc]  # reason: private in Django, and not in its type stubs
        elif self._sync_connection is not None:
            self.connection.close()
        else:
            in_atomic_block, run_on_commit = self.in_atomic_block, self.run_on_commit
            if self._is_checked:
                self.connection.close()  # and so the pool does not lend it again
            self.give_back()
            self._was_closed = True
            self.in_atomic_block, self.run_on_commit = in_atomic_block, run_on_commit

    # A transaction that sync code has opened

    def join_run(self, share: SharedWithSyncCode) -> Connection:
        """Let a run use the transaction that sync code has open on this wrapper, over the same libpq connection."""
        self._taken_from = [*self._taken_from, (self.connection, self._sync_connection, self._scope, share)]
        self._scope = share.scope
        self._sync_connection = self.connection
        face = self.connection = adopt(self.connection, share.take_up, share.face)
        face.session.on_interrupt = self._interrupted
        self.inc_thread_sharing()
        return face

    def leave_run(self) -> None:
        """Hand the connection back to the sync code that it belongs to."""
        self.dec_thread_sharing()
        *self._taken_from, (conn, self._sync_connection, self._scope, _) = self._taken_from
        if isinstance(self.connection, Connection):
            release(self.connection, conn)
            self.connection = conn

    def take_back(self) -> None:
        """Let sync code that goes on find its transaction as it has left it, whatever tasks it has left behind."""
        for *_, share in reversed(self._taken_from):
            share.take_back()

    def roll_back_to(self, savepoint: str | None) -> None:
        """Undo, for sync code, what a run that was destroyed has left open in its transaction. Blocks."""
        if savepoint is None or self.connection is None or self.connection.closed:
            self.needs_rollback = True
            return
        self.run_on_commit = [entry for entry in self.run_on_commit if savepoint not in entry[0]]
        self.connection.execute(self.ops.savepoint_rollback_sql(savepoint))

    @property
    def turn_seconds(self) -> float:
        """How long a scope waits for its turn with sync code's connection: as long as for one of its own."""
        return self.async_pool.options.timeout

    def close(self) -> None:
        """Mirrors BaseDatabaseWrapper.close, Django 6.1. A run gives back what is its own; sync code's stays open."""
        if not self._is_sync_codes():
            super().close()
            return
        mine: Scope | None = bridge.carried()
        if mine is not None and self in mine.connected() and mine.is_in_transaction(self):
            self.needs_rollback = True

    def close_if_unusable_or_obsolete(self) -> None:
        """Mirrors BaseDatabaseWrapper.close_if_unusable_or_obsolete, Django 6.1, for what is not sync code's."""
        if not self._is_sync_codes() and not self._is_looked_at():
            super().close_if_unusable_or_obsolete()

    def _is_sync_codes(self) -> bool:
        """Return whether a run, that asks, has this wrapper from sync code which waits for it."""
        return bridge.in_run() and (self._sync_connection is not None or (testing.seen and testing.is_a_tests(self)))

    def _is_looked_at(self) -> bool:
        """Return whether async code has this wrapper in its hands, to count the queries of a test, say."""
        return testing.seen and not bridge.in_run() and bridge.loop_is_running() and testing.is_a_tests(self)

    # Where Django's code would not do in a run

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        """Mirrors BaseDatabaseWrapper.make_cursor, Django 6.1."""
        made = super().make_cursor(cursor)
        if type(made) is CursorWrapper and type(self.connection) is Connection:
            made.__class__ = _CursorWrapper
        return made

    def create_cursor(self, name: str | None = None) -> Any:
        """Mirrors DatabaseWrapper.create_cursor, Django 6.1, where that names a sync server-side cursor class."""
        conn = self.connection
        if type(conn) is not Connection or self._scope is None or self._scope is not bridge.carried():
            self._look_after()
            conn = self.connection
        if name is None or not isinstance(conn, Connection):
            return super().create_cursor(name)
        if self.settings_dict["OPTIONS"].get("server_side_binding") is True:
            return super().create_cursor(name)
        cursor = bridged(postgresql.ServerSideCursor)(conn.session, name, scrollable=False, withhold=conn.autocommit)
        if self.timezone != cursor.adapters.get_loader(postgresql.TIMESTAMPTZ_OID, pq.Format.TEXT).timezone:
            register_tzloader(self.timezone, cursor)
        return cursor

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        """Mirrors BaseDatabaseWrapper.set_autocommit, Django 6.1, but borrows nothing only to set what it has."""
        if (
            self.connection is None
            and not self.in_atomic_block
            and not self.run_commit_hooks_on_set_autocommit_on
            and autocommit == self.settings_dict["AUTOCOMMIT"]
            and bridge.in_run()
        ):
            self.autocommit = autocommit
            return
        if self.connection is not None:
            self._look_after()
        super().set_autocommit(autocommit, *args, **kwargs)

    def close_if_health_check_failed(self) -> None:
        """Mirrors BaseDatabaseWrapper.close_if_health_check_failed, Django 6.1, where no pool is asked for."""
        if type(self.connection) not in (Connection, NoneType):
            super().close_if_health_check_failed()
            return
        if self.health_check_done or self.settings_dict["OPTIONS"].get("pool"):
            return
        self._is_checked = True
        try:
            BaseDatabaseWrapper.close_if_health_check_failed(self)
        finally:
            self._is_checked = False

    def on_commit(self, func: Callable[[], Any], robust: bool = False) -> None:
        """Mirrors BaseDatabaseWrapper.on_commit, Django 6.1; `func` may be async, and is then waited for."""
        waits = callable(func) and (iscoroutinefunction(func) or not self.in_atomic_block)
        super().on_commit(_finished(func) if waits else func, robust)

    def _commit(self) -> None:
        """Mirrors BaseDatabaseWrapper._commit, Django 6.1, but raises OutcomeUnknown where COMMIT was not answered."""
        conn = self.connection
        sent = isinstance(conn, Connection) and not conn.closed
        try:
            super()._commit()  # type: ignore[misc]  # reason: private in Django, and not in its type stubs
        except OperationalError as exc:
            if sent and (conn.closed or _ended_by_server(exc.__cause__)):
                raise OutcomeUnknown(
                    f"The connection of the database alias {self.alias!r} was lost after COMMIT had been sent, and "
                    "before the server answered: the transaction may or may not have been committed. Look there before "
                    f"doing it again. ({exc})"
                ) from exc
            raise

    def run_and_clear_commit_hooks(self) -> None:
        """Run what on_commit has collected. A cancellation that came during COMMIT waits until it has run.

        One that comes while it runs is raised in the function that waits, and keeps none of the others from running.
        """
        held = bridge.hold(None) if bridge.in_run() else None
        hooks: list[Any] = self.run_on_commit
        interrupts: list[asyncio.CancelledError] = [] if held is None else [held]
        self.run_on_commit = [(sids, _finished(func, interrupts), *robust) for sids, func, *robust in hooks]
        try:
            super().run_and_clear_commit_hooks()
        finally:
            if interrupts:
                bridge.hold(interrupts[0])

    def _savepoint_commit(self, sid: str) -> None:
        with self._uninterrupted():
            super()._savepoint_commit(sid)  # type: ignore[misc]  # reason: as _close

    def _savepoint_rollback(self, sid: str) -> None:
        # As a rollback of the transaction: what is around the block is to be used afterwards.
        conn: Any = self.connection
        if isinstance(conn, Connection):
            conn.session.undone += 1
        with self._uninterrupted():
            super()._savepoint_rollback(sid)  # type: ignore[misc]  # reason: as _close

    def _uninterrupted(self) -> AbstractContextManager[None]:
        conn: Any = self.connection
        return conn.session.uninterrupted() if isinstance(conn, Connection) else nullcontext()

    def _interrupted(self, exc: BaseException) -> None:
        # Django marks a transaction for rollback on Exception only, and a CancelledError is none.
        self.errors_occurred = True
        if self.in_atomic_block:
            self.needs_rollback = True


def _finished(func: Callable[[], Any], interrupts: list[asyncio.CancelledError] | None = None) -> Callable[[], Any]:
    """Return `func`, and whatever it returns is waited for where that is awaitable; `interrupts` collects its own."""

    @wraps(func, updated=())
    def finished() -> Any:
        try:
            result = func()
            if not isawaitable(result):
                return result
            if bridge.in_run():
                return tasks.wait_for(result)
            return _awaited_later(result) if bridge.loop_is_running() else async_to_sync(_result)(result)
        except asyncio.CancelledError as exc:
            if interrupts is None or not bridge.in_run():
                raise
            interrupts.append(exc)

    if not hasattr(func, "__qualname__"):
        finished.__qualname__ = repr(func)  # as Django names it in its log: a partial, say
    return finished


def _awaited_later(awaitable: Any) -> Any:
    # By async code that has it from captureOnCommitCallbacks; which does not await what it calls itself.
    if sys._getframe(2).f_code.co_name != "captureOnCommitCallbacks":
        return awaitable
    awaitable.close()
    raise NotInRun(
        "captureOnCommitCallbacks(execute=True) in async code cannot wait for an async callback. Use it in sync code, "
        "which the test calls by `await greenorm.run(...)`, or call each callback that it has captured so."
    )


def _ended_by_server(error: BaseException | None) -> bool:
    """Return whether the server said that it closes the connection, so that nothing more can be learned from it."""
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized in ("FATAL", "PANIC")


async def _result(awaitable: Any) -> Any:
    return await awaitable
