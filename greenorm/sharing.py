"""Transactions that are shared, in turns: by runs with sync code, and by an ORM side with the tasks that it waits for.

Sync code that has opened a transaction and waits (a `TestCase`, a thread in `async_to_sync`) shares it with the runs
below it. An ORM side that waits in `async_to_sync` lends what it holds to the tasks that are started meanwhile, as
asgiref hands their sync code to the thread that waits. Nobody else ever sees a transaction that is not its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from itertools import chain
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from asgiref.sync import AsyncToSync
from django.db import connections

from . import bridge, turns
from .errors import ConnectionInUse
from .turns import Turn

if TYPE_CHECKING:
    from .scope import Scope


def in_transaction(wrapper: Any) -> bool:
    """Return whether `wrapper` has a transaction open, by `atomic` or by autocommit being off."""
    return wrapper.connection is not None and (wrapper.in_atomic_block or not wrapper.autocommit)


# Sync code shares with the runs below it


# By thread, what its sync code has connected: each read as a whole, as other threads write meanwhile.
_sync_wrappers: dict[int, tuple[ReferenceType[Any], ...]] = {}
_noting = threading.Lock()


def note_sync_connection(wrapper: Any) -> None:
    """Remember that sync code of this thread has connected `wrapper`."""
    with _noting:
        for ident in [*_sync_wrappers]:
            if not connected_by(ident):
                del _sync_wrappers[ident]  # a thread that has ended, or whose wrappers have
        mine = connected_by(threading.get_ident())
        if wrapper not in mine:
            _sync_wrappers[threading.get_ident()] = (*map(ref, mine), ref(wrapper))


def connected_by(ident: int | None) -> list[Any]:
    """Return the wrappers that sync code of a thread has connected, as far as they are still there."""
    found: list[Any] = [known() for known in _sync_wrappers.get(ident or 0, ())]
    return [wrapper for wrapper in found if wrapper is not None]


def connecting_threads() -> list[int]:
    """Return the threads whose sync code has connected a wrapper."""
    return [*_sync_wrappers]


def opened_by_sync_code(alias: str) -> Any:
    """Return the wrapper on which this thread, or the one that waits for this loop, has a transaction open, or None."""
    # To ask asgiref for the threads takes longer than to see that there is nothing to be found in any.
    for known in chain.from_iterable([*_sync_wrappers.values()]):
        wrapper = known()
        if wrapper is not None and in_transaction(wrapper):
            break
    else:
        return None
    for ident in sync_threads():
        for wrapper in connected_by(ident):
            if is_open(wrapper, alias):
                return wrapper
    return None


def is_open(wrapper: Any, alias: str) -> bool:
    return wrapper.alias == alias and in_transaction(wrapper) and wrapper.settings_dict is connections.settings[alias]


def sync_threads() -> Iterator[int | None]:
    yield threading.get_ident()
    # asgiref keeps the executor of the waiting thread by context, and by loop for tasks with a context of their own.
    for executor in (
        getattr(AsyncToSync.executors, "current", None),
        AsyncToSync.loop_thread_executors.get(asyncio.get_running_loop()),
    ):
        if executor is not None and not executor._broken:
            yield executor._work_thread.ident


# An ORM side shares with the tasks that it waits for


class Wait:
    """A wait of `scope` for async code, from now to `end`; with a `turn` where the tasks of that code may join.

    Seen by the tasks that are started meanwhile, since they copy the context, and by none that was there before.
    """

    __slots__ = ("by_sync_code", "outer", "over", "scope", "turn")

    def __init__(self, scope: Scope, lend: bool, by_sync_code: bool = True) -> None:
        self.scope = scope
        self.by_sync_code = by_sync_code
        self.turn = Turn() if lend else None
        self.over = False
        self.outer = _waits.get()
        _waits.set(self)

    def end(self) -> None:
        """Let nobody join any more, and wait, on an ORM side, for the one that still has a turn."""
        self.over = True
        _waits.set(self.outer)
        if self.turn is None or not self.turn.is_taken() or bridge.dying():
            return
        try:
            bridge.drive(self.turn.take(self, turns.RETURN_SECONDS, always=True))
        except ConnectionInUse:
            self.scope.mark_for_rollback()
            raise ConnectionInUse(
                f"A task that was started inside async_to_sync() still uses the transaction that it was lent there, "
                f"{turns.RETURN_SECONDS:.0f} seconds after the call has ended. Await such a task before returning."
            ) from None


_waits: ContextVar[Wait | None] = ContextVar("greenorm.waits", default=None)


def turn_in(scope: Scope) -> Wait | None:
    """Return the innermost wait of `scope` around this code, where that lends, or None."""
    wait = _waits.get()
    while wait is not None and (wait.over or wait.scope is not scope):
        wait = wait.outer
    return wait if wait is not None and wait.turn is not None else None


def sync_code_waits() -> bool:
    """Return whether sync code of a run waits in async_to_sync for who calls this."""
    return _wait_of_sync_code() is not None


def sync_code_waits_in_transaction() -> bool:
    """Return whether sync code of a run that has a transaction open waits in async_to_sync for who calls this."""
    wait = _wait_of_sync_code()
    return wait is not None and any(map(wait.scope.is_in_transaction, wait.scope.connected()))


def _wait_of_sync_code() -> Wait | None:
    wait = _waits.get()
    while wait is not None:
        if not wait.over and wait.by_sync_code and wait.turn is not None:
            return wait
        wait = wait.outer
    return None
