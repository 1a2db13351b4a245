"""What makes a DatabaseWrapper of Django's PostgreSQL backend wait through the bridge.

`AwaitableMixin` goes before any wrapper class that derives from Django's own. Inside a run its `pool` is the pool
of the event loop, and so Django's own code borrows, configures and closes; outside of a run nothing differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import isawaitable
from types import NoneType
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql import base as postgresql
from django.db.backends.postgresql.psycopg_any import register_tzloader
from django.db.backends.signals import connection_created
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
    _made_in: Scope | None = None
    _was_closed = False
    _is_checked = False
    _scope: Scope | None = None

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
        timezone = self.timezone_name
        if not self._is_registered() and not self.settings_dict["OPTIONS"].get("pool"):
            # A wrapper made by hand (a copy(), the one that creates databases) has one connection of its own.
            if self._own_pool is None:
                self._own_pool = make_pool(self, min_size=0, max_size=1)
            return self._own_pool
        by_key = pools()
        key = (*self._owner(), self.settings_dict["NAME"], timezone)
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
        if self._scope is mine:
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
        if not bridge.in_run():
            super().connect()
            return
        if self._scope is not None:
            self._look_after()
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
            self.close_at = None  # the pool ends what is too old
            session.wrapper_isolation_level = self.isolation_level
            self._note_setup(session, before)
            session.ready = True
        session.on_interrupt = self._interrupted

    def _note_setup(self, session: AsyncConnection, before: list[Any]) -> None:
        """Keep with the session what receivers of connection_created have done to it."""
        session.execute_wrappers = tuple(wrap for wrap in self.execute_wrappers if wrap not in before)
        session.remember()

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
        self.health_check_enabled = self.settings_dict["CONN_HEALTH_CHECKS"]
        self.health_check_done = True
        self.close_at = None
        self.run_on_commit = []
        if not self._was_closed:
            self.execute_wrappers[:0] = session.execute_wrappers
            return
        self._was_closed = False  # by its user, who has been promised a connection_created for the next one
        before = self.execute_wrappers[:]
        connection_created.send(sender=type(self), connection=self)
        self._note_setup(session, before)

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
            if self._is_checked:
                self.connection.close()  # and so the pool does not lend it again
            self.give_back()
            self._was_closed = True
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
        if not isinstance(self.connection, Connection) or self.settings_dict["OPTIONS"].get("pool"):
            super().close_if_health_check_failed()
            return
        self._is_checked = True
        try:
            BaseDatabaseWrapper.close_if_health_check_failed(self)
        finally:
            self._is_checked = False

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
