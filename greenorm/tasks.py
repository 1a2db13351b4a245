"""Which scope a task has open, and work in it.

A scope is found by its task; what a task inherits, by the context that it copied when it was started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from time import monotonic
from types import SimpleNamespace
from typing import Any, NoReturn, TypeVar, cast

from asgiref.sync import AsyncToSync

from . import bridge, sharing, turns
from .errors import Abandoned, SharedScope
from .scope import Scope, scope_of

T = TypeVar("T")

# The innermost scope that a context has open, to be inherited by the tasks that are started in it.
_current: ContextVar[Scope | None] = ContextVar("greenorm.scope", default=None)


def current() -> Scope | None:
    """Return the innermost scope that this context has open, be it of this task or inherited from another."""
    scope = _current.get()
    while scope is not None and scope.ended:
        scope = scope.parent
    return scope


def is_left_out(wrapper: Any) -> bool:
    """Return whether this context has a transaction open on the alias of `wrapper`, and on another wrapper."""
    scope = current()
    while scope is not None:
        held = scope.wrappers.get(wrapper.alias)
        if held is not None and held is not wrapper and scope.is_in_transaction(held):
            return True
        scope = scope.parent
    return False


def own() -> Scope | None:
    """Return the scope that this task has open, or None."""
    return scope_of(asyncio.current_task(bridge.running_loop()))


def own_or_new() -> Scope:
    """Return the scope that this task has open, or a new one for it, below what its context has inherited."""
    return own() or Scope(parent=current())


async def work_in(scope: Scope, job: Callable[[], T], always: bool = False) -> T:
    """Run `job` on an ORM side that sees `scope`. Other tasks run while it waits.

    A scope that still has users afterwards stays open for the rest of this task, until its last user has left.
    Where the job must wait for its turn, it is done `always`, or not if the task is cancelled meanwhile.
    """
    if monotonic() > bridge.turns.free_until and not always:
        await bridge.turns.begin()
    outer, was_open = _current.get(), scope.users > 0
    if was_open and scope.loop is not asyncio.get_running_loop():
        _refuse_other_loop(scope)
    if scope.abandoned:
        job = partial(scope.close_abandoned, job)
    if (wait := sharing.turn_in(scope)) is not None and wait.turn is not None:
        job = partial(_in_turn, wait.turn, scope, job, always)
    if outer is not scope:
        _current.set(scope)
    if not was_open:
        scope.open()
    try:
        return await bridge.spawn(partial(scope.work, job), scope)
    finally:
        if (was_open or scope.ended) and _current.get() is scope:
            # Tasks may share a context: what another one has set is to be found there again.
            _current.set(scope.parent if outer is scope and scope.ended else outer)


def _refuse_other_loop(scope: Scope) -> NoReturn:
    what = "A block or an iteration of greenorm was used in an event loop other than the one that it was begun in"
    if not scope.loop.is_closed():
        raise SharedScope(f"{what}, which still runs: go on with it there, or begin another one here.")
    scope.end()
    raise Abandoned(f"{what}, and that is closed: end it before its loop ends. Its connection has been closed.")


async def work(job: Callable[[], T]) -> T:
    """Run `job` in the scope that this task has open, or in one of its own that ends with it."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        bridge.running_loop()
        raise
    if (scope := scope_of(task)) is not None:
        return await work_in(scope, job)
    if monotonic() > bridge.turns.free_until:
        await bridge.turns.begin()
    # As `work_in` does it for a scope that nobody knows yet.
    outer = _current.get()
    scope = Scope(outer if outer is None or not outer.ended else current(), task)
    _current.set(scope)
    scope.open()
    try:
        return await bridge.spawn(partial(scope.work, job), scope)
    finally:
        if scope.ended and _current.get() is scope:
            _current.set(outer)


def wait_for(awaitable: Awaitable[T], lend: bool = False) -> T:
    """Wait for anything but the database, on the ORM side, without holding on to what is not needed meanwhile.

    With `lend`, tasks that are started meanwhile by what is waited for may use, in turns, what is still held.
    """
    scope: Scope | None = bridge.carried()
    if scope is None:
        return bridge.await_(awaitable)
    scope.settle()
    wait = sharing.Wait(scope, lend)
    try:
        return bridge.await_(awaitable)
    except BaseException as exc:
        if not isinstance(exc, Exception):
            scope.mark_for_rollback()
        raise
    finally:
        wait.end()


# Stands for a scope in the context of code that sync code waits for.
_outside = cast("Scope", SimpleNamespace(ended=True, parent=None))


@contextmanager
def waits_outside() -> Iterator[None]:
    """Let what is started in here be outside of the scope that this context has open: sync code waits for it."""
    outer = _current.get()
    _current.set(_outside)
    try:
        yield
    finally:
        _current.set(outer)


def belongs_to_sync_code() -> bool:
    """Return whether sync code, in a thread of its own, waits for the code that calls this, and is nearer than a scope.

    For the task side. asgiref knows it too, but to ask for its executor costs more than all other look-ups together.
    """
    if _current.get() is _outside:
        return True
    return current() is None and asyncio.get_running_loop() in AsyncToSync.loop_thread_executors


async def lend(coro: Coroutine[Any, Any, T]) -> T:
    """Await `coro` on the task side, whose tasks may use, in turns, what this task's open scope holds."""
    mine = own()
    if mine is None:
        return await coro
    wait = sharing.Wait(mine, lend=True, by_sync_code=False)
    try:
        return await coro
    except GeneratorExit:
        wait.turn = None  # nobody would resume this coroutine if it waited
        raise
    finally:
        await bridge.spawn(wait.end)


def _in_turn(turn: turns.Turn, scope: Scope, job: Callable[[], T], always: bool) -> T:
    bridge.drive(turn.take(scope, turns.RETURN_SECONDS, always))
    try:
        return job()
    finally:
        turn.give_up()
