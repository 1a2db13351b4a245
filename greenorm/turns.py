"""Whose turn it is with what several scopes use: one at a time, and the others wait in order.

Contract: who takes a turn says who it is, a scope as a rule, and may take it again while it has it. A wait for a turn
is bounded, since the one that has it may wait for the one that waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from . import bridge
from .errors import ConnectionInUse

# How long cleanup, and who is lent a transaction, waits for a turn.
RETURN_SECONDS = 15.0


class Turn:
    """The right to use what several share: one of them has it, as often as it likes, and the others wait in order."""

    __slots__ = ("_lock", "_times", "holder")

    def __init__(self) -> None:
        self.holder: object = None
        self._lock = asyncio.Lock()
        self._times = 0

    async def take(self, who: object, seconds: float, always: bool = False) -> None:
        """Wait for the turn, for so many seconds, and then raise ConnectionInUse.

        `always` even if the task is cancelled meanwhile; then for RETURN_SECONDS.
        """
        if self.holder is not who:
            if self._lock.locked():
                await self._wait(who, seconds, always)
            else:
                await self._lock.acquire()
            self.holder = who
        self._times += 1

    async def _wait(self, who: object, seconds: float, always: bool) -> None:
        holder = self.holder
        try:
            if always:
                await bridge.to_completion(self._lock.acquire(), RETURN_SECONDS)
            else:
                async with asyncio.timeout(seconds):
                    await self._lock.acquire()
            return
        except TimeoutError:
            pass
        raise ConnectionInUse(
            f"{name_of(who)} has waited for {seconds:g} seconds for its turn in a transaction that it shares with "
            f"{name_of(holder)}, which keeps it in a block of its own. A transaction of sync code, such as a test's "
            "that is rolled back, has one connection for all tasks: end the block before you wait for another task, "
            "or use TransactionTestCase, or pytest.mark.django_db(transaction=True), where each has its own."
        )

    def give_up(self) -> None:
        """Let the next one have the turn, when this has been called as often as it was taken."""
        self._times -= 1
        if not self._times:
            self.holder = None
            if self._lock.locked():
                self._lock.release()

    def forget_waiters(self) -> None:
        """Wake nobody any more: their event loop is closed."""
        self._lock = asyncio.Lock()

    def is_taken(self) -> bool:
        return self._lock.locked()


def name_of(who: Any) -> str:
    task = getattr(who, "task", None)
    return f"Task {task.get_name()!r}" if task is not None else "sync code in a thread"


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()
# Of code that a thread, which has its turn, waits for by async_to_sync.
_nested_turn: ContextVar[Turn | None] = ContextVar("greenorm.turn", default=None)
_thread_has_its_turn: ContextVar[bool] = ContextVar("greenorm.thread_has_its_turn", default=False)


def turn_with_sync_code() -> Turn:
    """Return the turn that scopes of this loop take on all wrappers of sync code: with two, each could want both."""
    return _nested_turn.get() or _turns.setdefault(asyncio.get_running_loop(), Turn())


@contextmanager
def thread_has_its_turn() -> Iterator[None]:
    """Note that what is called in here, in a thread, has its turn."""
    before = _thread_has_its_turn.get()
    _thread_has_its_turn.set(True)
    try:
        yield
    finally:
        _thread_has_its_turn.set(before)


@contextmanager
def nested_turns() -> Iterator[None]:
    """Let what a thread that has its turn waits for take turns of its own, below what that has open."""
    if not _thread_has_its_turn.get():
        yield
        return
    before = _nested_turn.get()
    _nested_turn.set(Turn())
    _thread_has_its_turn.set(False)
    try:
        yield
    finally:
        _nested_turn.set(before)
        _thread_has_its_turn.set(True)
