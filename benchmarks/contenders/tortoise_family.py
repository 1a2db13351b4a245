"""Tortoise over asyncpg. It has no server-side cursors, and so cannot stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from tortoise import Tortoise
from tortoise.expressions import F
from tortoise.transactions import in_transaction

from benchmarks.harness.target import Target

from .tortoise_models import Author, Counter, Entry, Item


async def _get(pk: int) -> Item:
    return await Item.get(id=pk)


async def _list(count: int, first: int) -> list[Item]:
    return await Item.filter(id__gte=first, id__lt=first + count).order_by("id")


async def _prefetch(first: int) -> list[tuple[str, list[str]]]:
    authors = await Author.filter(id__gte=first, id__lt=first + 10).order_by("id").prefetch_related("books")
    return [(author.name, sorted(book.title for book in author.books)) for author in authors]


async def _write(pk: int) -> None:
    async with in_transaction() as transaction:
        await Entry.create(counter_id=pk, note="written", using_db=transaction)
        await Counter.filter(id=pk).using_db(transaction).update(value=F("value") + 1)


@asynccontextmanager
async def opened(target: Target) -> AsyncGenerator[dict[str, Callable[[Any], Any]]]:
    """Open its pool."""
    words = target.asyncpg_words()
    size = target.connections
    credentials = {**words, "minsize": size, "maxsize": size}
    await Tortoise.init(
        config={
            "connections": {"default": {"engine": "tortoise.backends.asyncpg", "credentials": credentials}},
            "apps": {"bench": {"models": ["benchmarks.contenders.tortoise_models"], "default_connection": "default"}},
            "use_tz": True,
            "timezone": "UTC",
        }
    )
    try:
        yield {
            "get": _get,
            "list_100": partial(_list, 100),
            "list_1000": partial(_list, 1000),
            "prefetch": _prefetch,
            "write": _write,
        }
    finally:
        await Tortoise.close_connections()
