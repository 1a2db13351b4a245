"""The places where Django is made to look: which wrapper an alias stands for, and whether sync code may run.

Nothing is hooked at import. `install` is called by the first run, is idempotent, and `uninstall` takes it back.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import django.utils.asyncio
from django.db import connections

from . import bridge, testing, touch
from .kept import make_wrapper

if TYPE_CHECKING:
    from .scope import Scope


class _ScopedStorage:
    """Stands in for `connections._connections`: the run's scope inside of a run, Django's own storage outside."""

    __slots__ = ("_outside",)

    def __init__(self, outside: Any) -> None:
        object.__setattr__(self, "_outside", outside)

    def __getattr__(self, alias: str) -> Any:
        scope: Scope | None = bridge.carried()
        if scope is None:
            wrapper = testing.of_the_test(alias) if testing.seen else None
            return wrapper if wrapper is not None else getattr(self._outside, alias)
        wrapper = scope.find(alias)
        if wrapper is None:
            raise AttributeError(alias)
        return wrapper

    def __setattr__(self, alias: str, wrapper: Any) -> None:
        scope: Scope | None = bridge.carried()
        if scope is None:
            setattr(self._outside, alias, wrapper)
        else:
            scope.add(alias, wrapper)

    def __delattr__(self, alias: str) -> None:
        scope: Scope | None = bridge.carried()
        if scope is None:
            delattr(self._outside, alias)
        elif scope.wrappers.pop(alias, None) is None:
            raise AttributeError(alias)


# Private names of Django, that its type stubs do not have either.
_handler: Any = connections
_guard: Any = django.utils.asyncio
_get_running_loop: Callable[[], asyncio.AbstractEventLoop] = _guard.get_running_loop


def _running_loop_of_async_code() -> asyncio.AbstractEventLoop:
    """Answer Django's `async_unsafe`: sync code on the ORM side is not async code, although a loop is running."""
    if bridge.in_run():
        raise RuntimeError("no running event loop for sync code inside a run")
    loop = _get_running_loop()
    guard = sys._getframe(1)
    if testing.seen and testing.only_looks(guard):
        raise RuntimeError("nothing to wait for: the wrapper of a test, to count its queries, say, is connected")
    if not os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        raise touch.refusal(guard)  # where Django would raise SynchronousOnlyOperation, its parent
    return loop


def install() -> None:
    """Let `django.db.connections` and Django's `async_unsafe` guard see runs. Called by the first run; idempotent."""
    if not isinstance(_handler._connections, _ScopedStorage):
        _handler._connections = _ScopedStorage(_handler._connections)
        _handler.create_connection = make_wrapper
        _guard.get_running_loop = _running_loop_of_async_code


def install_for_tests() -> None:
    """Let all async code below a test that is rolled back join its transaction, Django's async methods included.

    Called by the first connection that sync code makes in Django's test environment; idempotent.
    """
    if not testing.seen:
        install()
        # By its name: an integration is imported by nothing below it.
        import_module("greenorm.integrations.async_methods").install(for_tests=True)
        testing.seen = True


def uninstall() -> None:
    """Undo `install`. Not while a run is under way."""
    storage = _handler._connections
    if isinstance(storage, _ScopedStorage):
        _handler._connections = storage._outside
        del _handler.create_connection
        _guard.get_running_loop = _get_running_loop
