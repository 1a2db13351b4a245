"""Which DatabaseWrapper a piece of code sees, and which task owns it.

A scope holds the wrappers of a run, or of a block that spans several runs, and belongs to the task that opened it.
`django.db.connections` is made to look into the scope of the run that surrounds the code; outside of a run it is as
Django made it.

Contract with the backends above: a wrapper that can wait through the bridge says so (`can_await`) and knows whether
it still needs its connection (`needs_connection`), how to let go of it (`give_back`), and how to serve a run although
sync code has opened its transaction (`join_run`, `leave_run`).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from django.db.backends.base.base import BaseDatabaseWrapper

from . import bridge, conf, sharing
from .errors import BlockingBackend, SharedScope
from .sharing import in_transaction

T = TypeVar("T")


# The scope that each task has open.
open_scopes: dict[asyncio.Task[Any] | None, Scope] = {}


class Scope:
    """The wrappers that one task sees, by alias, for as long as somebody uses them."""

    def __init__(self, parent: Scope | None) -> None:
        self.loop = bridge.running_loop()
        self.task = asyncio.current_task(self.loop)
        self.parent = parent  # the scope of another task, that this one inherited; or an outer one that has ended
        self.wrappers: dict[str, Any] = {}
        self.joined: dict[str, Callable[[], None]] = {}  # wrappers of others, used in turns, and how to leave them
        self.strays: list[Any] = []  # wrappers that were not looked up in this scope, and were connected in it
        self.pins: Counter[str] = Counter()
        self.users = 0
        self.ended = False

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

    def settle(self) -> None:
        """Give back each connection that holds no transaction and no open cursor, and is not pinned."""
        for wrapper in self.connected():
            alias = wrapper.alias
            if alias in self.joined or not getattr(wrapper, "can_await", False):
                continue
            if not self.pins[alias] and not wrapper.needs_connection():
                wrapper.give_back()

    def end(self) -> None:
        """Give back every connection, whatever its state. The scope is not used again."""
        self.close_to_joiners()
        with ExitStack() as stack:  # whatever is raised meanwhile, each is let go
            for alias, wrapper in self.wrappers.items():
                stack.callback(self._let_go, alias, wrapper)
            for wrapper in self.strays:
                stack.callback(wrapper.give_back)
        self.wrappers.clear()
        self.strays.clear()
        self.task = None

    def close_to_joiners(self) -> None:
        """Let the next run of the task find no open scope."""
        self.ended = True
        if open_scopes.get(self.task) is self:
            del open_scopes[self.task]

    def _let_go(self, alias: str, wrapper: Any) -> None:
        if (leave := self.joined.pop(alias, None)) is not None:
            leave()
        elif getattr(wrapper, "can_await", False):
            wrapper.give_back()
        else:
            # SQLite's own close() leaves a database in memory open, for whoever looks for it in this thread.
            BaseDatabaseWrapper.close(wrapper)

    def mark_for_rollback(self) -> None:
        """Let no open transaction of this scope commit: an interrupt passed through code that relied on it."""
        for wrapper in self.connected():
            if wrapper.in_atomic_block:
                wrapper.needs_rollback = True

    def connected(self) -> list[Any]:
        """Return the wrappers that have a connection now."""
        return [wrapper for wrapper in [*self.wrappers.values(), *self.strays] if wrapper.connection is not None]

    def find(self, alias: str) -> Any:
        """Return the wrapper of `alias`, or None where it is still to be made."""
        if alias in self.wrappers:
            return self.wrappers[alias]
        wrapper = self._lent(alias)
        if wrapper is not None:
            return wrapper
        wrapper = sharing.opened_by_sync_code(alias)
        if wrapper is not None:
            self.refuse_inherited(alias, wrapper)
            turn = sharing.turn_of(wrapper)
            bridge.drive(sharing.take(turn))
            wrapper.join_run()
            self._join(alias, wrapper, partial(_leave_sync_code, wrapper, turn))
        return wrapper

    def _lent(self, alias: str) -> Any:
        """Join the transaction of a scope that waits for this task in async_to_sync, when it is this one's turn."""
        while (holder := self._holder(alias)) is not None and (wait := sharing.turn_in(holder)) is not None:
            turn = wait.turn
            assert turn is not None
            bridge.drive(sharing.take(turn))
            wrapper = holder.wrappers.get(alias)
            if wait.over or wrapper is None:
                turn.release()
                continue
            self._join(alias, wrapper, partial(_leave_lender, wrapper, turn, holder, len(wrapper.savepoint_ids)))
            wrapper._scope = self
            return wrapper
        return None

    def _join(self, alias: str, wrapper: Any, leave: Callable[[], None]) -> None:
        self.joined[alias] = leave
        self.wrappers[alias] = wrapper

    def add(self, alias: str, wrapper: Any) -> None:
        """Let this scope's code see `wrapper` as `alias`."""
        if not getattr(wrapper, "can_await", False) and alias not in conf.blocking_aliases():
            wrapper.connect = wrapper.copy = partial(_refuse_blocking, alias, wrapper)
        if wrapper.connection is None:
            wrapper._made_in = self
        self.wrappers[alias] = wrapper

    def will_connect(self, wrapper: Any) -> None:
        """Hear of a wrapper that is about to borrow a connection. Raises SharedScope where it may not."""
        self.refuse_inherited(wrapper.alias)
        if self.wrappers.get(wrapper.alias) is not wrapper:
            self.strays = [stray for stray in self.strays if stray.connection is not None and stray is not wrapper]
            self.strays.append(wrapper)

    def refuse_inherited(self, alias: str, wrapper: Any = None) -> None:
        """Raise SharedScope where this task inherited a scope whose transaction or connection is not its own."""
        holder = self._holder(alias, wrapper)
        if holder is not None and alias not in self.joined:
            what = "connection" if holder.pins[alias] else "transaction"
            raise SharedScope(
                f"{_name(self.task)} was started while {_name(holder.task)} holds a {what} open on {alias!r}, and "
                f"a {what} is never shared between tasks. Start it outside of that block, await its work in the "
                "task that opened the block, or give it a connection of its own: `async with "
                "greenorm.connection(): ...`."
            )

    def _holder(self, alias: str, wrapper: Any = None) -> Scope | None:
        """Return the scope above this one that has `alias` in a transaction, or pinned, or has `wrapper`, if any."""
        scope = self.parent
        while scope is not None:
            held = scope.wrappers.get(alias)
            if (
                held is not None
                and (held is wrapper or scope.pins[alias] or in_transaction(held))
                and not (alias in scope.joined and _share_a_context(self.task, scope.task))
            ):
                return scope
            scope = scope.parent
        return None


def _leave_sync_code(wrapper: Any, turn: asyncio.Lock) -> None:
    wrapper.leave_run()
    turn.release()


def _leave_lender(wrapper: Any, turn: asyncio.Lock, lender: Scope, savepoints: int) -> None:
    wrapper._scope = lender
    if left := len(wrapper.savepoint_ids) - savepoints:  # blocks that were never left: their task was destroyed
        del wrapper.atomic_blocks[-left:], wrapper.savepoint_ids[-left:]
        wrapper.needs_rollback = True
    turn.release()


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
    for scope in open_scopes.values():
        scope.ended = True
    open_scopes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # what a forked task inherits is the parent's
