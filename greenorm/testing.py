"""Tests that are rolled back, and the async code below them.

Django's TestCase, and pytest-django's `db`, open a transaction in sync code. Runs join it as they join any such
transaction; what is more than that is here, and takes effect once Django's test environment has been seen.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import bridge, turns
from .errors import OpenTransaction
from .sharing import connected_by, connecting_threads, in_transaction, is_open, opened_by_sync_code, sync_threads

if TYPE_CHECKING:
    from .scope import Scope

seen = False  # whether Django's test environment has been seen, see hooks.install_for_tests
# Threads that a loop hands sync code to: the default executors of asyncio and of anyio.
_WORKERS = ("asyncio_", "AnyIO worker")


def is_a_tests(wrapper: Any) -> bool:
    """Return whether a TestCase, or pytest-django's `db`, has opened the transaction of `wrapper`."""
    outermost = wrapper.atomic_blocks[:1]
    return in_transaction(wrapper) and any(getattr(block, "_from_testcase", False) for block in outermost)


def only_looks(guard: FrameType) -> bool:
    """Return whether Django's `async_unsafe`, in this frame, guards ensure_connection() of a test's own wrapper.

    Not by an ensure_connection of ours, since Django's own tests replace that one and call it again.
    """
    guarded: Any = guard.f_locals.get("func")
    args: Any = guard.f_locals.get("args")
    return getattr(guarded, "__name__", "") == "ensure_connection" and bool(args) and is_a_tests(args[0])


def of_the_test(alias: str) -> Any:
    """Return the wrapper that a test has on `alias`, for async code below it, which may look but not wait; or None."""
    if bridge.loop_is_running():
        wrapper = opened_by_sync_code(alias)
        return wrapper if wrapper is not None and is_a_tests(wrapper) else None
    for wrapper in connected_by(threading.get_ident()):
        if wrapper.alias == alias:
            wrapper.take_back()
    return None


def is_above() -> bool:
    """Return whether a test has its transaction in the thread of this loop, or in the one that waits for it."""
    return _of_a_test_above() is not None


def _of_a_test_above() -> Any:
    above = (wrapper for ident in sync_threads() for wrapper in connected_by(ident))
    return next(filter(is_a_tests, above), None)


@asynccontextmanager
async def the_thread_has_its_turn(scope: Scope | None) -> AsyncIterator[None]:
    """Let sync code of a test, in the thread that waits for this loop, use its transaction meanwhile.

    Nothing to wait for where `scope`, for which that code works, keeps the turn. For the task side.
    """
    wrapper = _of_a_test_above()
    if wrapper is None:
        yield
        return
    turn = turns.turn_with_sync_code()
    taken = scope is None or not scope.keeps(turn)
    if taken:
        await turn.take(object(), wrapper.turn_seconds)
    try:
        with turns.thread_has_its_turn():
            yield
    finally:
        if taken:
            turn.give_up()


def refuse_second_connection(wrapper: Any, by_sync_code: bool = False) -> None:
    """Raise OpenTransaction where a test that is rolled back would get a real connection beside its own."""
    if by_sync_code and not threading.current_thread().name.startswith(_WORKERS):
        return
    for ident in connecting_threads():
        if ident == threading.get_ident() and by_sync_code:
            continue
        if any(is_a_tests(other) and is_open(other, wrapper.alias) for other in connected_by(ident)):
            raise OpenTransaction(
                f"{threading.current_thread().name} would open a second connection to {wrapper.alias!r}, while a test "
                "that is rolled back holds its transaction open in another thread: the two could not see each other's "
                "rows, and what the second wrote would stay. Await the code under test in the test's own loop "
                "(Django's AsyncClient, httpx.ASGITransport in place of a TestClient with a thread), call sync code by "
                "greenorm.run in place of a thread, or use TransactionTestCase, or "
                "pytest.mark.django_db(transaction=True)."
            )
