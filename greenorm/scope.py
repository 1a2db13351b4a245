"""Which DatabaseWrapper a piece of code sees, and which task owns it.

A scope holds the wrappers of a run, or of a block that spans several runs, and belongs to the task that opened it.
`django.db.connections` is made to look into the scope of the run that surrounds the code; outside of a run it is as
Django made it.

Contract with the backends above: a wrapper that can wait through the bridge says so (`can_await`) and knows whether
it still needs its connection (`needs_connection`), how to let go of it (`give_back`, or `lend` for a time), and how to
serve a run although sync code has opened its transaction (`join_run`, `leave_run`, `roll_back_to`, `turn_seconds`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar
from weakref import ref

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import bridge, conf, sharing, testing, turns
from .errors import BlockingBackend, OpenTransaction, SharedScope
from .kept import keep
from .shares import LentByScope, Share, SharedWithSyncCode
from .sharing import in_transaction

T = TypeVar("T")

logger = logging.getLogger("greenorm")

# The scope that each task has open, by the id of the task: a task that is kept here would be kept for ever, where its
# exception knows, by a traceback, of an iteration that keeps the scope open.
_open_scopes: dict[int, Scope] = {}
# Told of each wrapper that a run makes. Django has a signal for connections only, and those outlive wrappers.
on_new_wrapper: list[Callable[[Any], None]] = []


class Scope:
    """The wrappers that one task sees, by alias, for as long as somebody uses them."""

    users = 0
    ended = False
    # What few scopes have need of.
    left_behind: Scope | None = None  # what the task inherited, where it asked for a connection of its own
    abandoned: Sequence[Callable[[], None]] = ()  # what ends the iterations that nobody will read on
    strays: Sequence[Any] = ()  # wrappers that were not looked up in this scope, and were connected in it

    def __init__(self, parent: Scope | None, task: asyncio.Task[Any] | None = None) -> None:
        if task is None:
            self.loop = bridge.running_loop()
            task = asyncio.current_task(self.loop)
        else:
            self.loop = task.get_loop()
        self._task = no_task if task is None else ref(task)
        self._key = id(task)
        self.parent = parent  # the scope of another task, that this one inherited; or an outer one that has ended
        self.wrappers: dict[str, Any] = {}
        self.joined: dict[str, Share] = {}  # what is another's, and used in turns
        self.pins: dict[str, int] = {}  # how many blocks keep the connection of an alias

    @property
    def task(self) -> asyncio.Task[Any] | None:
        """The task that opened this scope, while both are there."""
        return self._task()

    def open(self) -> None:
        """Let the next run of the task find this scope."""
        _open_scopes[self._key] = self

    def work(self, job: Callable[[], T]) -> T:
        """Run `job` on the ORM side, and afterwards give back the connections that nobody needs any more."""
        self.users += 1
        try:
            return job()
        finally:
            self.users -= 1
            if self.users:
                self.settle()
            else:
                self.end()

    def pin(self, alias: str, by: int) -> None:
        """Count one block more, or one less, that keeps the connection of `alias`."""
        self.pins[alias] = self.pins.get(alias, 0) + by
        if not self.pins[alias]:
            del self.pins[alias]

    def close_abandoned(self, job: Callable[[], T]) -> T:
        """Run `job` after what was abandoned has been closed: it may end the transaction that a cursor is in."""
        while self.abandoned:
            close, *self.abandoned = self.abandoned
            try:
                close()
            except Exception as exc:
                logger.warning("an iteration that was left could not be closed: %s", exc)
        return job()

    def settle(self) -> None:
        """Give back each connection that holds no transaction and no open cursor, and is not pinned.

        Of what is another's, give up the turn where no block of this scope is open. Cursors there may stay open.
        """
        for alias, share in self.joined.items():
            if alias not in self.pins and not share.in_block():
                share.put_down()
        for wrapper in self.connected():
            alias = wrapper.alias
            if alias in self.joined or not getattr(wrapper, "can_await", False):
                continue
            if alias not in self.pins and not wrapper.needs_connection():
                wrapper.lend()

    def end(self) -> None:
        """Give back every connection, whatever its state. The scope is not used again."""
        self.close_to_joiners()
        if self.wrappers or self.strays:
            try:
                self._let_all_go()
            finally:
                self.wrappers = {}
                self.strays = ()
        self._task = no_task

    def _let_all_go(self) -> None:
        if len(self.wrappers) == 1 and not self.strays and not self.joined:
            [alias] = self.wrappers
            if getattr(self.wrappers[alias], "can_await", False):
                self.wrappers[alias].give_back()
                keep(self.wrappers, alias)  # nothing here has hold of it
                return
        with ExitStack() as stack:  # whatever is raised meanwhile, each is let go
            for alias, wrapper in self.wrappers.items():
                stack.callback(self._let_go, alias, wrapper)
            for wrapper in self.strays:
                stack.callback(wrapper.give_back)

    def close_to_joiners(self) -> None:
        """Let the next run of the task find no open scope."""
        self.ended = True
        if _open_scopes.get(self._key) is self:
            del _open_scopes[self._key]

    def _let_go(self, alias: str, wrapper: Any) -> None:
        if (share := self.joined.pop(alias, None)) is not None:
            self.wrappers.pop(alias, None)
            share.end()
        elif getattr(wrapper, "can_await", False):
            wrapper.give_back()
        else:
            # SQLite's own close() leaves a database in memory open, for whoever looks for it in this thread.
            BaseDatabaseWrapper.close(wrapper)

    def mark_for_rollback(self) -> None:
        """Let no open transaction of this scope commit: an interrupt passed through code that relied on it."""
        for wrapper in self.connected():
            if wrapper.in_atomic_block and self.is_in_transaction(wrapper):
                wrapper.needs_rollback = True

    def is_in_transaction(self, wrapper: Any) -> bool:
        """Return whether this scope has a transaction open on `wrapper`, or a block in one that it shares."""
        share = self.joined.get(wrapper.alias)
        return in_transaction(wrapper) if share is None or share.wrapper is not wrapper else share.in_block()

    def connected(self) -> list[Any]:
        """Return the wrappers that have a connection now."""
        return [wrapper for wrapper in [*self.wrappers.values(), *self.strays] if wrapper.connection is not None]

    def find(self, alias: str) -> Any:
        """Return the wrapper of `alias`, or None where it is still to be made. May wait for a turn to use it."""
        wrapper = self.wrappers.get(alias)
        if wrapper is not None and not self.joined:
            return wrapper
        share = self.joined.get(alias)
        if share is not None and wrapper in (None, share.wrapper):
            if self.take_up(share.wrapper):
                self.wrappers[alias] = share.wrapper
                return share.wrapper
        elif wrapper is not None:
            return wrapper
        while (share := self._share_in(alias)) is not None:
            if bridge.drive(share.take_up()):
                self.joined[alias] = share
                self.wrappers[alias] = share.wrapper
                return share.wrapper
        return None

    def take_up(self, wrapper: Any) -> bool:
        """Wait for this scope's turn with `wrapper`, if it has a share in that. Returns False where it has none."""
        share = self.joined.get(wrapper.alias)
        if share is None or share.wrapper is not wrapper:
            return False
        if share.active or bridge.drive(share.take_up()):
            return True
        del self.joined[wrapper.alias]  # it is over, and others may have begun
        self.wrappers.pop(wrapper.alias, None)
        return False

    def _share_in(self, alias: str) -> Share | None:
        """Return a share in the transaction that this task is lent, or that sync code has opened, if there is one."""
        holder = self._holder(alias)
        if holder is not None and (wait := sharing.turn_in(holder)) is not None:
            return LentByScope(self, holder.wrappers[alias], wait)
        wrapper = sharing.opened_by_sync_code(alias)
        if wrapper is None:
            return None
        if holder is not None:
            raise self._refusal(alias, holder)
        turn = turns.turn_with_sync_code()
        if self.left_behind is not None and self.left_behind.keeps(turn):
            raise OpenTransaction(
                f"greenorm.connection() was asked for a second connection to {alias!r}, below a block of "
                f"{_name(self.left_behind.task)} in a transaction of sync code, such as a test's that is rolled back: "
                "a second connection could not see it. Use TransactionTestCase, or pytest.mark.django_db("
                "transaction=True), for what needs two connections."
            )
        return SharedWithSyncCode(self, wrapper, turn)

    def add(self, alias: str, wrapper: Any) -> None:
        """Let this scope's code see `wrapper` as `alias`."""
        if not getattr(wrapper, "can_await", False) and alias not in conf.blocking_aliases():
            wrapper.connect = wrapper.copy = partial(_refuse_blocking, alias, wrapper)
        if wrapper.connection is None:
            wrapper._made_in = self
        self.wrappers[alias] = wrapper
        for tell in on_new_wrapper:
            tell(wrapper)

    def will_connect(self, wrapper: Any) -> None:
        """Hear of a wrapper that is about to borrow a connection. Raises SharedScope where it may not."""
        self.refuse_inherited(wrapper.alias)
        if testing.seen and wrapper.settings_dict is connections.settings.get(wrapper.alias):
            testing.refuse_second_connection(wrapper)
        if self.wrappers.get(wrapper.alias) is not wrapper:
            others = (stray for stray in self.strays if stray.connection is not None and stray is not wrapper)
            self.strays = (*others, wrapper)

    def refuse_inherited(self, alias: str) -> None:
        """Raise SharedScope where this task inherited a scope whose transaction or connection is not its own."""
        holder = self._holder(alias)
        if holder is not None and alias not in self.joined:
            raise self._refusal(alias, holder)

    def _refusal(self, alias: str, holder: Scope) -> SharedScope:
        what = "connection" if alias in holder.pins else "transaction"
        return SharedScope(
            f"{_name(self.task)} was started while {_name(holder.task)} holds a {what} open on {alias!r}, and "
            f"a {what} is never shared between tasks. Start it outside of that block, await its work in the "
            "task that opened the block, or give it a connection of its own: `async with "
            "greenorm.connection(): ...`."
        )

    def _holder(self, alias: str) -> Scope | None:
        """Return the scope above this one that has `alias` in a transaction, or pinned, if any."""
        scope = self.parent
        while scope is not None:
            held = scope.wrappers.get(alias)
            if (
                held is not None
                and (alias in scope.pins or scope.is_in_transaction(held))
                and not (alias in scope.joined and _share_a_context(self.task, scope.task))
            ):
                return scope
            scope = scope.parent
        return None

    def keeps(self, turn: turns.Turn) -> bool:
        """Return whether this scope, or one above it, has `turn` for longer than a run."""
        if turn.holder is self and any(alias in self.pins or share.in_block() for alias, share in self.joined.items()):
            return True
        return self.parent is not None and self.parent.keeps(turn)


def scope_of(task: asyncio.Task[Any] | None) -> Scope | None:
    """Return the scope that a task has open, or None."""
    scope = _open_scopes.get(id(task))
    return scope if scope is not None and scope._task() is task else None  # or it is of a task that is no more


def no_task() -> None:
    """Return what stands for the task of a scope that has none, or has ended."""


def _share_a_context(one: asyncio.Task[Any] | None, other: asyncio.Task[Any] | None) -> bool:
    # Tasks that Django starts side by side in one context (Signal.asend, 6.1) do not inherit from each other.
    get_context: Any = getattr(asyncio.Task, "get_context", None)  # not in Python 3.11
    return bool(get_context and one and other and get_context(one) is get_context(other))


def _refuse_blocking(alias: str, wrapper: Any, *_: Any) -> None:
    raise BlockingBackend(
        f"The database alias {alias!r} has the backend {wrapper.settings_dict['ENGINE']!r}, which would block the "
        "event loop in a run. For PostgreSQL set ENGINE to 'greenorm.backends.postgresql'. For a local SQLite file "
        f"that may block for a moment, allow it: GREENORM = {{'BLOCKING_ALIASES': [{alias!r}]}}."
    )


def _name(task: asyncio.Task[Any] | None) -> str:
    return f"task {task.get_name()!r}" if task is not None else "a task"


def _forget() -> None:
    for scope in _open_scopes.values():
        scope.ended = True
    _open_scopes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # what a forked task inherits is the parent's
