"""Django's ORM in asyncio, unchanged and without threads: `await greenorm.run(fn)`."""

from __future__ import annotations

import sysconfig as _sysconfig

if _sysconfig.get_config_var("Py_GIL_DISABLED"):
    raise ImportError(
        "greenorm does not support free-threaded builds of Python: greenlet is known to crash on them. "
        "Use a build with the GIL (python3.14, not python3.14t)."
    )

from .adapters import sync_to_async
from .api import await_, gather, in_thread, pool_stats, run
from .blocks import atomic, connection
from .bridge import in_run
from .decorator import awaitable
from .errors import (
    Abandoned,
    BlockingBackend,
    ConnectionInUse,
    GreenormError,
    NoEventLoop,
    NotInRun,
    OpenTransaction,
    OutcomeUnknown,
    SharedScope,
    StaleCursor,
)
from .iteration import iterate
from .pool_options import PoolStats

__version__ = "0.1.0"

__all__ = [
    "Abandoned",
    "BlockingBackend",
    "ConnectionInUse",
    "GreenormError",
    "NoEventLoop",
    "NotInRun",
    "OpenTransaction",
    "OutcomeUnknown",
    "PoolStats",
    "SharedScope",
    "StaleCursor",
    "__version__",
    "atomic",
    "await_",
    "awaitable",
    "connection",
    "gather",
    "in_run",
    "in_thread",
    "iterate",
    "pool_stats",
    "run",
    "sync_to_async",
]
