"""Aliases that a test adds to Django's settings, and what must be left when all is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import psutil
from django.db import connections
from django.db.backends.postgresql.base import DatabaseWrapper

import greenorm
from greenorm.demo.server import database_settings

# Seconds for what a server does by itself: ending a session, or following a primary.
PATIENCE = 60


@contextmanager
def alias(name: str, dsn: str | None = None, options: dict[str, Any] | None = None, **changes: Any) -> Iterator[str]:
    """Add an alias for the server of `dsn`, or for the default one; without pool, unless `options` say so."""
    default = connections.settings["default"]
    added = {**deepcopy(default), **(database_settings(dsn) if dsn is not None else {})}
    added["OPTIONS"] = {**added["OPTIONS"], "pool": None, **(options or {})}
    connections.settings[name] = {**added, **changes}
    try:
        yield name
    finally:
        if hasattr(connections._connections, name):  # type: ignore[attr-defined]  # reason: private in Django
            connections[name].close()
            del connections[name]
        if (pool := DatabaseWrapper._connection_pools.pop(name, None)) is not None:  # type: ignore[attr-defined]
            pool.close()
        del connections.settings[name]


def ask(sql: str, params: Any = None, using: str = "default") -> Any:
    """Return the first value that the server answers."""
    with connections[using].cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0]


@contextmanager
def nothing_left(*using: str) -> Iterator[None]:
    """No connection in use, no task and no file descriptor is left by the block. Inside of an event loop."""
    process = psutil.Process()
    files, tasks = process.num_fds(), asyncio.all_tasks()
    open_before = sum(greenorm.pool_stats(name).size for name in using)
    yield
    for name in using:
        stats = greenorm.pool_stats(name)
        assert (stats.in_use, stats.waiting) == (0, 0)
        assert stats.size == stats.idle
    opened = sum(greenorm.pool_stats(name).size for name in using) - open_before
    # The socket, and where the loop watches it for as long as it is open, a copy of its descriptor.
    assert process.num_fds() - files in (opened, 2 * opened)
    assert asyncio.all_tasks() == tasks


def until(true: Any, what: str) -> None:
    """Wait, blocking, until `true()` is."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"{what}, not within {PATIENCE} s"
        time.sleep(0.02)
