"""`async with transaction.atomic()` as `greenorm.atomic()`, by GREENORM["ASYNC_TRANSACTION_ATOMIC"]."""

from __future__ import annotations

from contextlib import ContextDecorator
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.db.transaction import Atomic

from .. import blocks


def _async_face(atomic: Any) -> blocks.Atomic:
    face: blocks.Atomic | None = atomic.__dict__.get("_greenorm")
    if face is None:
        face = atomic._greenorm = blocks.Atomic(atomic.using, atomic.savepoint, atomic.durable)
    return face


async def _aenter(self: Any) -> None:
    await _async_face(self).__aenter__()


async def _aexit(self: Any, *exc_info: Any) -> None:
    await _async_face(self).__aexit__(*exc_info)


def _call(self: Any, fn: Any) -> Any:
    if iscoroutinefunction(fn):
        return _async_face(self)(fn)
    return ContextDecorator.__call__(self, fn)


_METHODS = {"__aenter__": _aenter, "__aexit__": _aexit, "__call__": _call}


def install() -> None:
    """Let transaction.atomic be used by `async with`, and as a decorator of async functions. Idempotent."""
    for name, method in _METHODS.items():
        setattr(Atomic, name, method)


def uninstall() -> None:
    """Undo `install`."""
    for name, method in _METHODS.items():
        if Atomic.__dict__.get(name) is method:
            delattr(Atomic, name)
