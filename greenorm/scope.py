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
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar, cast
from weakref import WeakSet

from asgiref.sync import AsyncToSync
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from . import bridge
from .errors import BlockingBackend, SharedScope

T = TypeVar("T")


class Scope:
    """The wrappers that one task sees, by alias, for as long as somebody uses them."""

    def __init__(self, parent: Scope | None) -> None:
        self.task = asyncio.current_task()
        self.parent = parent  # the scope of another task, that this one inherited; or an outer one that has ended
        self.wrappers: dict[str, Any] = {}
        self.joined: dict[str, Any] = {}
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
        if _open.get(self.task) is self:
            del _open[self.task]

    def _let_go(self, alias: str, wrapper: Any) -> None:
        if alias in self.joined:
            wrapper.leave_run()
            self.joined.pop(alias).release()
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
        wrapper = _opened_by_sync_code(alias)
        if wrapper is not None:
            self.refuse_inherited(alias, wrapper)
            turn = _turn(wrapper)
            bridge.drive(_acquire(turn))
            wrapper.join_run()
            self.joined[alias] = turn
            self.wrappers[alias] = wrapper
        return wrapper

    def add(self, alias: str, wrapper: Any) -> None:
        """Let this scope's code see `wrapper` as `alias`."""
        if not getattr(wrapper, "can_await", False) and alias not in blocking_aliases():
            wrapper.connect = wrapper.copy = partial(_refuse_blocking, alias, wrapper)
        self.wrappers[alias] = wrapper

    def will_connect(self, wrapper: Any) -> None:
        """Hear of a wrapper that is about to borrow a connection. Raises SharedScope where it may not."""
        self.refuse_inherited(wrapper.alias)
        if self.wrappers.get(wrapper.alias) is not wrapper:
            self.strays = [stray for stray in self.strays if stray.connection is not None and stray is not wrapper]
            self.strays.append(wrapper)

    def refuse_inherited(self, alias: str, wrapper: Any = None) -> None:
        """Raise SharedScope where this task inherited a scope whose transaction or connection is not its own."""
        scope = self.parent
        while scope is not None:
            held = scope.wrappers.get(alias)
            if held is not None and (held is wrapper or scope.pins[alias] or in_transaction(held)):
                what = "connection" if scope.pins[alias] else "transaction"
                raise SharedScope(
                    f"{_name(self.task)} was started while {_name(scope.task)} holds a {what} open on {alias!r}, and "
                    f"a {what} is never shared between tasks. Start it outside of that block, await its work in the "
                    "task that opened the block, or give it a connection of its own: `async with "
                    "greenorm.connection(): ...`."
                )
            scope = scope.parent


# The scope that each task has open; and, to be inherited by the tasks that it starts, the one that a context has.
_open: dict[asyncio.Task[Any] | None, Scope] = {}
_current: ContextVar[Scope | None] = ContextVar("greenorm.scope", default=None)


def current() -> Scope | None:
    """Return the innermost scope that this context has open, be it of this task or inherited from another."""
    scope = _current.get()
    while scope is not None and scope.ended:
        scope = scope.parent
    return scope


def own() -> Scope | None:
    """Return the scope that this task has open, or None."""
    return _open.get(asyncio.current_task())


def own_or_new() -> Scope:
    """Return the scope that this task has open, or a new one for it, below what its context has inherited."""
    return own() or Scope(parent=current())


async def work_in(scope: Scope, job: Callable[[], T]) -> T:
    """Run `job` on an ORM side that sees `scope`. Other tasks run while it waits.

    A scope that still has users afterwards stays open for the rest of this task, until its last user has left.
    """
    outer, was_open = _current.get(), scope.users > 0
    if outer is not scope:
        _current.set(scope)
    if not was_open:
        _open[scope.task] = scope
    try:
        return await bridge.spawn(partial(scope.work, job), scope)
    finally:
        if (was_open or scope.ended) and _current.get() is scope:
            # Tasks may share a context: what another one has set is to be found there again.
            _current.set(scope.parent if outer is scope and scope.ended else outer)


async def work(job: Callable[[], T]) -> T:
    """Run `job` in the scope that this task has open, or in one of its own that ends with it."""
    return await work_in(own_or_new(), job)


def wait_for(awaitable: Awaitable[T]) -> T:
    """Wait for anything but the database, on the ORM side, without holding on to what is not needed meanwhile."""
    scope: Scope | None = bridge.carried()
    if scope is None:
        return bridge.await_(awaitable)
    scope.settle()
    try:
        return bridge.await_(awaitable)
    except BaseException as exc:
        if not isinstance(exc, Exception):
            scope.mark_for_rollback()
        raise


def in_transaction(wrapper: Any) -> bool:
    """Return whether `wrapper` has a transaction open, by `atomic` or by autocommit being off."""
    return wrapper.connection is not None and (wrapper.in_atomic_block or not wrapper.autocommit)


# Transactions that sync code has opened: in this thread, or in the one that waits for this loop in async_to_sync.

_sync_wrappers: dict[int | None, WeakSet[Any]] = {}


def note_sync_connection(wrapper: Any) -> None:
    """Remember that sync code of this thread has connected `wrapper`."""
    _sync_wrappers.setdefault(threading.get_ident(), WeakSet()).add(wrapper)


def _opened_by_sync_code(alias: str) -> Any:
    if not _sync_wrappers:
        return None
    for ident in _sync_threads():
        for wrapper in list(_sync_wrappers.get(ident, ())):
            if (
                wrapper.alias == alias
                and in_transaction(wrapper)
                and wrapper.settings_dict is connections.settings[alias]
            ):
                return wrapper
    return None


def _sync_threads() -> Iterator[int | None]:
    yield threading.get_ident()
    # asgiref keeps the executor of the waiting thread by context, and by loop for tasks with a context of their own.
    for executor in (
        getattr(AsyncToSync.executors, "current", None),
        AsyncToSync.loop_thread_executors.get(asyncio.get_running_loop()),
    ):
        if executor is not None and not executor._broken:
            yield executor._work_thread.ident


def _turn(wrapper: Any) -> asyncio.Lock:
    loop = asyncio.get_running_loop()
    owner, turn = getattr(wrapper, "_turn", (None, None))
    if turn is None or owner is not loop:
        turn = asyncio.Lock()
        wrapper._turn = loop, turn
    return turn


async def _acquire(turn: asyncio.Lock) -> None:
    await turn.acquire()


# Aliases of other backends


def blocking_aliases() -> Iterable[str]:
    """Return the aliases that may block the event loop, by `GREENORM = {"BLOCKING_ALIASES": [...]}`."""
    return cast("Iterable[str]", getattr(settings, "GREENORM", {}).get("BLOCKING_ALIASES", ()))


def _refuse_blocking(alias: str, wrapper: Any, *_: Any) -> None:
    raise BlockingBackend(
        f"The database alias {alias!r} has the backend {wrapper.settings_dict['ENGINE']!r}, which would block the "
        "event loop in a run. For PostgreSQL set ENGINE to 'greenorm.backends.postgresql'. For a local SQLite file "
        f"that may block for a moment, allow it: GREENORM = {{'BLOCKING_ALIASES': [{alias!r}]}}."
    )


def loop_is_running() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _name(task: asyncio.Task[Any] | None) -> str:
    return f"task {task.get_name()!r}" if task is not None else "a task"
