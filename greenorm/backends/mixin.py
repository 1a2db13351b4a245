"""What makes a DatabaseWrapper of Django's PostgreSQL backend wait through the bridge.

`AwaitableMixin` goes before any wrapper class that derives from Django's own. Inside a run its `pool` is the pool
of the event loop, and so Django's own code borrows, configures and closes; outside of a run nothing differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.db import connections
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql.psycopg_any import register_tzloader
from psycopg import pq

from .. import bridge, sharing, tasks
from ..cursors import bridged
from ..driver import IDLE, AsyncConnection, Connection, adopt, release
from ..errors import SharedScope
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
    from ..scope import Scope

    _Wrapper = postgresql.DatabaseWrapper
else:
    _Wrapper = object  # goes before a wrapper class, and is none itself


class AwaitableMixin(_Wrapper):
    """Mixed in before a PostgreSQL DatabaseWrapper, lets it be used inside `greenorm.run`."""

    can_await = True
    _borrowed: _Borrowed | None = None
    _own_pool: Pool | None = None
    _sync_connection: Any = None
    _scope: Scope | None = None

    # Which pool

    @property
    def pool(self) -> Any:
        """The pool that Django's code sees. Mirrors DatabaseWrapper.pool, Django 6.1."""
        if not bridge.in_run():
            return super().pool
        return self._borrowed or self.async_pool

    @property
    def async_pool(self) -> Pool:
        """The pool of the running event loop for this wrapper's settings, made when first asked for.

        Raises ImproperlyConfigured for options that make no sense. Waits for nothing.
        """
        if connections.settings.get(self.alias) is not self.settings_dict:
            # A wrapper made by hand (a copy(), the one that creates databases) has one connection of its own.
            if self._own_pool is None:
                self._own_pool = make_pool(self, min_size=0, max_size=1)
            return self._own_pool
        by_key = pools()
        key = (self.alias, id(self.settings_dict), self.settings_dict["NAME"], self.timezone_name)
        pool = by_key.get(key)
        if pool is None:
            pool = by_key[key] = make_pool(self)
        return pool

    def close_pool(self) -> None:
        """Close the pool of this wrapper's settings. Mirrors DatabaseWrapper.close_pool, Django 6.1."""
        if not bridge.in_run():
            super().close_pool()
            return
        by_key = pools()
        for key in [key for key in by_key if key[:2] == (self.alias, id(self.settings_dict))]:
            by_key.pop(key).close()

    # Borrowing and giving back

    def ensure_connection(self) -> None:
        """Mirrors BaseDatabaseWrapper.ensure_connection, Django 6.1, for a wrapper that may be of another scope."""
        in_use = self.connection is not None or self._scope is not None
        if in_use and bridge.in_run() and self._scope is not bridge.carried():
            raise SharedScope(
                f"A wrapper of the database alias {self.alias!r} was used in a run other than the one that it is "
                f"connected in. Look it up inside of the run: `connections[{self.alias!r}]` or `django.db.connection`."
            )
        if not bridge.in_run() and tasks.is_left_out(self):
            warnings.warn(
                f"Sync code in a thread uses the database alias {self.alias!r}, on a connection of its own, while the "
                "task that waits for it has a transaction open there: what it does is not part of that. Use "
                "`greenorm.run` or `greenorm.sync_to_async` in place of a thread.",
                RuntimeWarning,
                stacklevel=2,
            )
        super().ensure_connection()

    def connect(self) -> None:
        """Borrow a connection, or make one. Mirrors BaseDatabaseWrapper.connect, Django 6.1.

        A connection that is only borrowed again was set up, and announced by connection_created, when it was made.
        """
        if not bridge.in_run():
            super().connect()
            return
        self._scope = bridge.carried()
        try:
            if self._scope is not None:
                self._scope.will_connect(self)
            self._borrow()
        finally:
            if self.connection is None:
                self._scope = None

    def _borrow(self) -> None:
        pool = self.async_pool
        conn = pool.getconn()
        session = conn.session
        if session.ready:
            self._attach(session)
        else:
            self._borrowed = _Borrowed(conn)
            before = self.execute_wrappers[:]
            try:
                super().connect()
            finally:
                self._borrowed = None
                if self.connection is not conn:
                    pool.putconn(conn)
            session.execute_wrappers = tuple(wrap for wrap in self.execute_wrappers if wrap not in before)
            session.wrapper_isolation_level = self.isolation_level
            session.remember()
            session.ready = True
        session.on_interrupt = self._interrupted

    def _attach(self, session: AsyncConnection) -> None:
        self.connection = session.face
        self.isolation_level = session.wrapper_isolation_level
        self.autocommit = session._autocommit
        self.in_atomic_block = False
        self.savepoint_ids = []
        self.atomic_blocks = []
        self.needs_rollback = False
        self.closed_in_transaction = False
        self.errors_occurred = False
        self.health_check_done = True
        self.run_on_commit = []
        self.execute_wrappers[:0] = session.execute_wrappers

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Mirrors DatabaseWrapper.get_new_connection, Django 6.1."""
        if not bridge.in_run():
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
        conn.session.pool.putconn(conn)
        if self._own_pool is not None:
            self._own_pool.close()
            self._own_pool = None

    def _close(self) -> None:
        if not isinstance(self.connection, Connection):
            super()._close()  # type: ignore[misc]  # reason: private in Django, and not in its type stubs
        elif self._sync_connection is not None:
            self.connection.close()
        else:
            in_atomic_block, run_on_commit = self.in_atomic_block, self.run_on_commit
            self.give_back()
            self.in_atomic_block, self.run_on_commit = in_atomic_block, run_on_commit

    # A transaction that sync code has opened

    def join_run(self) -> None:
        """Let a run use the transaction that sync code has open on this wrapper, over the same libpq connection."""
        self._scope = bridge.carried()
        self._sync_connection = self.connection
        self.connection = adopt(self.connection)
        self.connection.session.on_interrupt = self._interrupted
        self.inc_thread_sharing()

    def leave_run(self) -> None:
        """Hand the connection back to the sync code that it belongs to."""
        self.dec_thread_sharing()
        self._scope = None
        conn, self._sync_connection = self._sync_connection, None
        if isinstance(self.connection, Connection):
            release(self.connection, conn)
            self.connection = conn

    # Where Django's code would not do in a run

    def create_cursor(self, name: str | None = None) -> Any:
        """Mirrors DatabaseWrapper.create_cursor, Django 6.1, where that names a sync server-side cursor class."""
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
        super().set_autocommit(autocommit, *args, **kwargs)

    def on_commit(self, func: Callable[[], Any], robust: bool = False) -> None:
        """Mirrors BaseDatabaseWrapper.on_commit, Django 6.1; `func` may be async, and is then waited for."""
        super().on_commit(func if self.in_atomic_block or not callable(func) else _finished(func), robust)

    def run_and_clear_commit_hooks(self) -> None:
        """Run what on_commit has collected. A cancellation that came during COMMIT waits until it has run."""
        held = bridge.hold(None) if bridge.in_run() else None
        hooks: list[Any] = self.run_on_commit
        self.run_on_commit = [(sids, _finished(func), *robust) for sids, func, *robust in hooks]
        try:
            super().run_and_clear_commit_hooks()
        finally:
            if held is not None:
                bridge.hold(held)

    def _interrupted(self, exc: BaseException) -> None:
        # Django marks a transaction for rollback on Exception only, and a CancelledError is none.
        self.errors_occurred = True
        if self.in_atomic_block:
            self.needs_rollback = True


def _finished(func: Callable[[], Any]) -> Callable[[], Any]:
    """Return `func`, and whatever it returns is waited for where that is awaitable."""

    @wraps(func, updated=())
    def finished() -> Any:
        result = func()
        if not isawaitable(result):
            return result
        return tasks.wait_for(result) if bridge.in_run() else async_to_sync(_result)(result)

    return finished


async def _result(awaitable: Any) -> Any:
    return await awaitable
