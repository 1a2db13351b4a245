"""What blocks in Django itself, taken to a thread where sync code of a run calls it: password hashing and SMTP.

`install` is called by `asgi.get_asgi_application`; it is idempotent, and `uninstall` takes it back.
"""

from __future__ import annotations

import functools
from typing import Any

from django.contrib.auth import hashers
from django.core.mail.backends import smtp

from ..api import in_thread
from ..bridge import in_run

_hashers: Any = hashers
_stock_get_hasher = hashers.get_hasher
_stock_send_messages = smtp.EmailBackend.send_messages
# A hop to a thread costs a hundred times what this one does; it is for tests.
_FAST = hashers.MD5PasswordHasher


class _InThread:
    """A password hasher whose costly methods are called in a thread."""

    def __init__(self, hasher: Any) -> None:
        self._hasher = hasher

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._hasher, name)
        return functools.partial(in_thread, value) if name in {"encode", "verify", "harden_runtime"} else value


@functools.wraps(_stock_get_hasher)
def _get_hasher(algorithm: Any = "default") -> Any:
    hasher: Any = _stock_get_hasher(algorithm)
    if not in_run() or type(hasher) is _FAST or isinstance(hasher, _InThread):
        return hasher
    return _InThread(hasher)


@functools.wraps(_stock_send_messages)
def _send_messages(self: Any, email_messages: Any) -> Any:
    if in_run():
        return in_thread(_stock_send_messages, self, email_messages)
    return _stock_send_messages(self, email_messages)


def install() -> None:
    """Let sync code of runs hash passwords, and send mail by SMTP, in a thread, and wait for it. Idempotent."""
    _hashers.get_hasher = _get_hasher
    smtp.EmailBackend.send_messages = _send_messages  # type: ignore[method-assign]  # reason: this is the hook


def uninstall() -> None:
    """Undo `install`."""
    _hashers.get_hasher = _stock_get_hasher
    smtp.EmailBackend.send_messages = _stock_send_messages  # type: ignore[method-assign]  # reason: as above
