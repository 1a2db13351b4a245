"""django-async-backend: Django's ORM rewritten to async, with an ENGINE and an app of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from django.db.models import F
from django_async_backend.db import async_connections
from django_async_backend.db.transaction import async_atomic

from benchmarks.harness.target import Target
from benchmarks.project.models import Counter, Entry, Item
from greenorm.demo.server import database_settings

ENGINE = "django_async_backend.db.backends.postgresql"
PATIENCE = 3600.0


async def _get(pk: int) -> Any:
    return await Item.async_objects.aget(pk=pk)


async def _get_many(pks: list[int]) -> list[Any]:
    return [await Item.async_objects.aget(pk=pk) for pk in pks]


async def _list(count: int, first: int) -> list[Any]:
    items = Item.async_objects.filter(pk__gte=first, pk__lt=first + count).order_by("pk")
    return [item async for item in items]


@async_atomic
async def _write(pk: int) -> None:
    await Entry.async_objects.acreate(counter_id=pk, note="written")
    await Counter.async_objects.filter(pk=pk).aupdate(value=F("value") + 1)


@asynccontextmanager
async def opened(target: Target) -> AsyncGenerator[dict[str, Callable[[Any], Any]]]:
    """Open its pool. Its connections belong to tasks; each is given back after the work, as at a request's end."""
    size = target.connections
    settings = {**database_settings(target.dsn), "ENGINE": ENGINE}
    settings["OPTIONS"]["pool"] = {"min_size": size, "max_size": size, "timeout": PATIENCE}
    async_connections.settings = async_connections.configure_settings({"default": settings})

    async def giving_back(fn: Callable[[Any], Any], request: Any) -> Any:
        try:
            return await fn(request)
        finally:
            await async_connections["default"].close()

    async def fill() -> Any:
        wrapper = async_connections["default"]
        await wrapper.ensure_connection()
        await wrapper.close()
        await wrapper.pool.wait(PATIENCE)  # not before: it counts what is idle
        return wrapper

    # In a task of its own, since the wrapper of this one would be inherited by, and so shared between, all clients.
    wrapper = await asyncio.create_task(fill())
    try:
        yield {
            "get": partial(giving_back, _get),
            "get_many": partial(giving_back, _get_many),
            "list_100": partial(giving_back, partial(_list, 100)),
            "list_1000": partial(giving_back, partial(_list, 1000)),
            "write": partial(giving_back, _write),
        }
    finally:
        await wrapper.close_pool()
