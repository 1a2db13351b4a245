"""Django's own async methods as runs: one hook, in asgiref, and the two places of Django that do not go through it.

`install` is called when the app `"greenorm"` is ready; it is idempotent, and `uninstall` takes it back.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, cast

from asgiref.sync import AsyncToSync, SyncToAsync, async_to_sync, iscoroutinefunction, markcoroutinefunction
from django.core.handlers.base import BaseHandler
from django.db import connections, transaction
from django.dispatch import Signal

from .. import adapters, blocks, bridge, tasks, testing, turns
from ..decorator import AwaitableFunction
from .routing import becomes_run, can_await, joins_a_test

Hook = Callable[..., Any]


def _sync_to_async_call(stock: Hook) -> Hook:
    def call(self: Any, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        site = sys._getframe(1).f_globals.get("__name__") or ""
        return _call(stock, site, self, *args, **kwargs)

    return markcoroutinefunction(call)


async def _call(stock: Hook, site: str, adapter: Any, /, *args: Any, **kwargs: Any) -> Any:
    if _asked_for and becomes_run(adapter, site, args, kwargs):
        return await adapters.run_adapted(adapter, *args, **kwargs)
    if testing.seen and adapter._thread_sensitive:
        return await _call_in_a_test(stock, adapter, *args, **kwargs)
    return await stock(adapter, *args, **kwargs)


async def _call_in_a_test(stock: Hook, adapter: Any, /, *args: Any, **kwargs: Any) -> Any:
    if not joins_a_test(adapter, args, kwargs):
        async with testing.the_thread_has_its_turn(tasks.current()):
            return await stock(adapter, *args, **kwargs)
    before = _stands_for_thread.get()
    _stands_for_thread.set(True)
    try:
        return await adapters.run_adapted(adapter, *args, **kwargs)
    finally:
        _stands_for_thread.set(before)


def _async_to_sync_call(stock: Hook) -> Hook:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_helper = isinstance(cast("object", self.awaitable), AwaitableFunction)
        if _asked_for and is_helper and (bridge.in_run() or not bridge.loop_is_running()):
            sync: Hook = self.awaitable.sync  # what sync code gets that calls it without async_to_sync
            return sync(*args, **kwargs)
        if bridge.in_run() and (_asked_for or _stands_for_thread.get()):
            return adapters.await_adapted(self, *args, **kwargs)
        with tasks.waits_outside(), turns.nested_turns():
            return stock(self, *args, **kwargs)

    return call


def _asend(stock: Hook) -> Hook:
    async def asend(self: Any, sender: Any, **named: Any) -> Any:
        return await tasks.lend(stock(self, sender, **named))

    return asend


def _make_view_atomic(stock: Hook) -> Hook:
    def make_view_atomic(self: Any, view: Any) -> Any:
        if not _asked_for or not iscoroutinefunction(view):
            return stock(self, view)
        non_atomic: set[str] = getattr(view, "_non_atomic_requests", set())
        aliases = [
            alias
            for alias, settings_dict in connections.settings.items()
            if settings_dict["ATOMIC_REQUESTS"] and alias not in non_atomic
        ]
        if not all(map(can_await, aliases)):
            return stock(self, view)
        if bridge.in_run() or not bridge.loop_is_running():
            if aliases:
                view = async_to_sync(view)
            atomic: Any = transaction.atomic
        else:
            atomic = blocks.atomic
        for alias in aliases:
            view = atomic(using=alias)(view)
        return view

    return make_view_atomic


_PLACES: tuple[tuple[Any, str, Callable[[Hook], Hook]], ...] = (
    (SyncToAsync, "__call__", _sync_to_async_call),
    (AsyncToSync, "__call__", _async_to_sync_call),
    (Signal, "asend", _asend),
    (Signal, "asend_robust", _asend),
    (BaseHandler, "make_view_atomic", _make_view_atomic),
)
_hooked: dict[tuple[Any, str], tuple[Hook, Hook]] = {}  # Django's or asgiref's own, and what stands in its place


# Whether more is asked for than that tests are joined.
_asked_for = False
# Whether sync code is a run only for the sake of a test, and would otherwise have a thread.
_stands_for_thread: ContextVar[bool] = ContextVar("greenorm.stands_for_thread", default=False)


def install(for_tests: bool = False) -> None:
    """Let Django's async methods run on the ORM side, and async_to_sync in a run await. Idempotent.

    `for_tests` only where the test is rolled back, and would not be seen from a thread.
    """
    global _asked_for
    _asked_for = _asked_for or not for_tests
    for owner, name, hook in _PLACES:
        if (owner, name) not in _hooked:
            stock = getattr(owner, name)
            stand_in = functools.wraps(stock)(hook(stock))
            _hooked[owner, name] = stock, stand_in
            setattr(owner, name, stand_in)


def uninstall() -> None:
    """Undo `install`. Not while a run is under way.

    Raises RuntimeError, and undoes nothing, where somebody else has hooked one of the places since.
    """
    for (owner, name), (_, stand_in) in _hooked.items():
        if getattr(owner, name) is not stand_in:
            raise RuntimeError(f"{owner.__name__}.{name} has been replaced since greenorm hooked it; undo that first.")
    global _asked_for
    _asked_for = False
    while _hooked and not testing.seen:
        (owner, name), (stock, _) = _hooked.popitem()
        setattr(owner, name, stock)
