"""What a pool can be told, and what it tells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from .driver import Connection

Callback: TypeAlias = Callable[[Connection], None]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The sizes and times of a pool. Mirrors psycopg_pool.AsyncConnectionPool, 3.3; times are in seconds."""

    min_size: int = 4
    """Connections that are kept even when idle. They are opened when first needed, not before."""
    max_size: int | None = None
    """Connections that are open at the most; None means `min_size`."""
    timeout: float = 30.0
    """How long a borrower waits for a connection, connecting included."""
    max_waiting: int = 0
    """How many borrowers may wait; one more gets TooManyRequests. 0 means any number."""
    max_lifetime: float = 3600.0
    """After which a connection is closed when it is given back, less up to 5 %, so that not all go at once."""
    max_idle: float = 600.0
    """After which an idle connection beyond `min_size` is closed."""
    check: Callback | None = None
    """Called with a connection before it is lent again; one that raises is closed and another taken."""
    reset: Callback | None = None
    """Called with a connection when it is given back; one that raises is closed."""
    name: str = "pool"

    def __post_init__(self) -> None:
        kinds: list[tuple[tuple[str, ...], Any, str]] = [
            (("min_size", "limit", "max_waiting"), (int,), "a whole number"),
            (("timeout", "max_lifetime", "max_idle"), (int, float), "a number of seconds"),
        ]
        for names, kind, what in kinds:
            for name in names:
                value = getattr(self, name)
                shown = "max_size" if name == "limit" else name
                if not isinstance(value, kind):
                    raise TypeError(f"{shown} is {value!r}, but must be {what}")
                if value < 0:
                    raise ValueError(f"{shown} is {value}, but cannot be negative")
        if not self.timeout:
            raise ValueError("timeout is 0, but connecting takes time: give it some seconds")
        for name in ("check", "reset"):
            if not (getattr(self, name) is None or callable(getattr(self, name))):
                raise TypeError(f"{name} is {getattr(self, name)!r}, but must be a function that takes a connection")
        if self.limit < max(1, self.min_size):
            raise ValueError(f"max_size is {self.limit}, but must be at least 1 and at least min_size, {self.min_size}")

    @property
    def limit(self) -> int:
        return self.min_size if self.max_size is None else self.max_size


OPTION_NAMES = frozenset(field.name for field in fields(PoolOptions))
# Options of psycopg_pool that speak of its background workers; here they have nothing to act on.
IGNORED_OPTIONS = frozenset({"open", "num_workers", "reconnect_timeout", "reconnect_failed", "close_returns"})


@dataclass(frozen=True, slots=True)
class PoolStats:
    """The figures of one pool at one moment."""

    name: str
    min_size: int
    max_size: int
    size: int
    """Connections that are open or being opened."""
    in_use: int
    idle: int
    waiting: int
    """Borrowers that wait for a connection now."""
    borrowed: int
    """How often a connection has been borrowed."""
    queued: int
    """How often a borrower had to wait."""
    wait_seconds: float
    """How long borrowers have waited, in all."""
    timeouts: int
    """How often a borrower gave up waiting."""
    opened: int
    closed: int
