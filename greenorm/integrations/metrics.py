"""The figures of the pools of a process, as both `integrations.prometheus` and `integrations.opentelemetry` show them.

A process may have several event loops, and each its own pool of an alias: they are added up by the pool's name,
which is the alias unless OPTIONS["pool"] says otherwise. What a loop has counted is gone with it, as with a process
that was started anew. May be asked from any thread, and waits for nothing.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ..pool import all_pools
from ..pool_options import PoolStats

# What has been counted so far, in the words of PoolStats: name in a metric, unit, description.
COUNTED = {
    "borrowed": ("borrowed", "{borrowing}", "Connections borrowed from the pool"),
    "queued": ("queued", "{borrowing}", "Borrowings that had to wait for a connection"),
    "wait_seconds": ("wait", "s", "Time that borrowers have waited for a connection"),
    "timeouts": ("timeouts", "{timeout}", "Borrowers that gave up waiting"),
    "opened": ("opened", "{connection}", "Connections opened"),
    "closed": ("closed", "{connection}", "Connections closed"),
}


def figures() -> list[PoolStats]:
    """Return the figures of this process' pools, one for each name, added up over its event loops."""
    added: dict[str, PoolStats] = {}
    for pool in all_pools():
        stats = pool.stats()
        added[stats.name] = _sum(added[stats.name], stats) if stats.name in added else stats
    return list(added.values())


def _sum(one: PoolStats, other: PoolStats) -> PoolStats:
    names = [field.name for field in fields(PoolStats) if field.name != "name"]
    both: dict[str, Any] = {name: getattr(one, name) + getattr(other, name) for name in names}
    return replace(one, **both)
