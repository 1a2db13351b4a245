"""The errors of greenorm: one class for each thing that the reader must do.

Lowest layer: imports Django's exception classes and nothing of greenorm. Each class is also a child of the
Django (or Python) class that users already catch. Errors of the database stay Django's own.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db.utils import InterfaceError, OperationalError


class GreenormError(Exception):
    """Base of all errors that greenorm itself raises."""


class NotInRun(GreenormError, SynchronousOnlyOperation):
    """Sync code wanted to wait, but no `run` is above it: call it through `await greenorm.run(...)`."""


class SharedScope(GreenormError, InterfaceError):
    """A task inherited the transaction or connection that another task holds open: give it one of its own."""


class BlockingBackend(GreenormError, ImproperlyConfigured):
    """An alias inside a `run` has a backend that would block the event loop: change its ENGINE, or allow it."""


class OpenTransaction(GreenormError, InterfaceError):
    """The call needs connections of its own and cannot be made inside an open transaction: move it outside."""


class ConnectionInUse(GreenormError, InterfaceError):
    """Two pieces of code use one connection at once: let them take turns, or give each its own."""


class Abandoned(GreenormError, InterfaceError):
    """The run can wait no more, since its task or event loop is gone; its connection has been closed."""


class StaleCursor(GreenormError, InterfaceError):
    """A cursor or psycopg connection was used after it went back to the pool: use it within the run that opened it."""


class NoEventLoop(GreenormError, RuntimeError):
    """A call needs asyncio's event loop, and none runs here: let `asyncio.run(...)` run the coroutine."""


class OutcomeUnknown(GreenormError, OperationalError):
    """The connection was lost before the server answered a COMMIT: look whether it was made before doing it again."""
