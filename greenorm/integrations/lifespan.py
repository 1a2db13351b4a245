"""The ASGI lifespan protocol: pools are open and warm before the first request, and drained and closed after the last.

A database that is away does not keep the site from starting, as it does not under Django; options that make no sense
do.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from time import monotonic
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.utils import Error

from .. import blocks, tasks
from ..pool import Pool
from .routing import can_await

logger = logging.getLogger("greenorm")

# How long, in seconds, a shutdown waits for connections that are in use.
DRAIN_SECONDS = 15.0


async def serve(receive: Any, send: Any) -> None:
    """Answer the server's start-up and shutdown. Awaited: the server, and the database."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                await open_pools()
            except ImproperlyConfigured as exc:
                await send({"type": "lifespan.startup.failed", "message": str(exc)})
                return
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await close_pools()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def open_pools() -> None:
    """Open `min_size` connections, and at least one, of each alias of greenorm, side by side, and log the sizes.

    Raises ImproperlyConfigured. An alias whose server cannot be reached is logged as an error.
    """
    said = [part for part in await asyncio.gather(*map(_open_pool, _aliases())) if part]
    if said:
        logger.info("pools of this process are open: %s connections", ", ".join(said))


async def _open_pool(alias: str) -> str:
    pool = await tasks.work(partial(_pool, alias))
    count = max(1, pool.options.min_size)
    all_open = asyncio.Barrier(count)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(_hold(alias, all_open))
    except BaseExceptionGroup as errors:
        error = errors.exceptions[0]
        if not isinstance(error, Error):
            raise error from None
        logger.error("the pool of database alias %r is not open yet, and will be when it is used: %s", alias, error)
        return ""
    return f"{alias!r} {pool.stats().size} of at most {pool.options.limit}"


async def _hold(alias: str, all_open: asyncio.Barrier) -> None:
    async with blocks.connection(alias):
        await all_open.wait()


async def close_pools() -> None:
    """Wait until no connection is in use, for a bounded time, and close the pools of this event loop."""
    deadline = monotonic() + DRAIN_SECONDS
    pools = {alias: await tasks.work(partial(_pool, alias)) for alias in _aliases()}
    while any(pool.stats().in_use for pool in pools.values()) and monotonic() < deadline:  # noqa: ASYNC110 - no event
        await asyncio.sleep(0.02)
    said: list[str] = []
    for alias, pool in pools.items():
        stats = pool.stats()
        said.append(f"{alias!r} {stats.idle} idle" + (f" and {stats.in_use} in use" if stats.in_use else ""))
        await tasks.work(partial(_close_pool, alias))
    if said:
        logger.info("pools of this process are closed: %s connections", ", ".join(said))


def _aliases() -> list[str]:
    return [alias for alias in connections.settings if can_await(alias)]


def _pool(alias: str) -> Pool:
    wrapper: Any = connections[alias]
    pool: Pool = wrapper.async_pool
    return pool


def _close_pool(alias: str) -> None:
    wrapper: Any = connections[alias]
    wrapper.close_pool()
