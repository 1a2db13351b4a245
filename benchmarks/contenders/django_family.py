"""Django's ORM, called in every way that needs no other library: the same sync functions, or Django's a-methods."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeAlias

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import connection, connections
from django.db.models import F

import greenorm
from benchmarks.harness.target import Target
from benchmarks.project import work
from benchmarks.project.models import Author, Counter, Entry, Item, Measurement
from greenorm.demo.server import database_settings

Works: TypeAlias = dict[str, Callable[[Any], Any]]

STOCK = "django.db.backends.postgresql"
GREENORM = "greenorm.backends.postgresql"
# How long, in seconds, anyone waits for a connection: never too short.
PATIENCE = 3600.0
# How long, in seconds, threads may take to be started.
START_SECONDS = 60.0

FUNCTIONS = {
    fn.__name__: fn
    for fn in (
        work.noop,
        work.get,
        work.get_many,
        work.list_100,
        work.list_1000,
        work.prefetch,
        work.write,
        work.stream,
    )
}


def configure(target: Target, engine: str, **options: Any) -> None:
    """Let Django's default alias be another server, with another ENGINE. Closes what is open in this thread."""
    connections.close_all()
    settings = {**database_settings(target.dsn, **options), "ENGINE": engine}
    connections.settings = connections.configure_settings({"default": settings})
    for alias in connections:
        if hasattr(connections._connections, alias):
            del connections[alias]


@contextmanager
def _sync(engine: str, target: Target) -> Generator[Works]:
    configure(target, engine)
    try:
        yield FUNCTIONS
    finally:
        connection.close()


sync_stock = partial(_sync, STOCK)
sync_greenorm = partial(_sync, GREENORM)


def _each(call: Callable[..., Awaitable[Any]]) -> Works:
    return {name: partial(call, fn) for name, fn in FUNCTIONS.items()}


# greenorm


def _close_pool() -> None:
    connection.close()
    connection.close_pool()


@asynccontextmanager
async def greenorm_run(target: Target) -> AsyncGenerator[Works]:
    """Call each function by `greenorm.run`."""
    configure(target, GREENORM, pool={"min_size": 0, "max_size": target.connections, "timeout": PATIENCE})

    async def stream(rows: int) -> tuple[int, int]:
        count = total = 0
        async for measurement in greenorm.iterate(Measurement.objects.filter(pk__lte=rows), chunk_size=work.CHUNK):
            count += 1
            total += measurement.number
        return count, total

    try:
        yield {**_each(greenorm.run), "stream": stream}
    finally:
        await greenorm.run(_close_pool)


@asynccontextmanager
async def greenorm_a_methods(target: Target) -> AsyncGenerator[Works]:
    """Call Django's async methods with greenorm among the installed apps."""
    from greenorm.integrations import async_methods

    configure(target, GREENORM, pool={"min_size": 0, "max_size": target.connections, "timeout": PATIENCE})

    async def write(pk: int) -> None:
        async with greenorm.atomic():
            await Entry.objects.acreate(counter_id=pk, note="written")
            await Counter.objects.filter(pk=pk).aupdate(value=F("value") + 1)

    async_methods.install()
    try:
        yield {**A_METHODS, "write": write}
    finally:
        await greenorm.run(_close_pool)
        async_methods.uninstall()


# Threads


@asynccontextmanager
async def one_thread(target: Target) -> AsyncGenerator[Works]:
    """Call each function by `sync_to_async`, as Django does: one thread for all."""
    configure(target, STOCK)

    def call(fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        return sync_to_async(fn, thread_sensitive=True)(*args)

    # Its calls share one thread, as they do outside of any context; but this thread ends with the context.
    async with ThreadSensitiveContext():
        try:
            yield _each(call)
        finally:
            await call(connections.close_all)


@asynccontextmanager
async def _threads(count: int, pooled: bool, target: Target) -> AsyncGenerator[Works]:
    """Threads that keep a connection each, or, `pooled`, share as many as there may be in Django's own pool."""
    if pooled:
        size = target.connections
        configure(target, STOCK, pool={"min_size": size, "max_size": size, "timeout": PATIENCE})
    else:
        configure(target, STOCK)
    all_started = threading.Barrier(count)
    wrappers: list[Any] = []

    def start() -> None:
        all_started.wait(START_SECONDS)
        wrapper: Any = connections["default"]
        wrappers.append(wrapper)
        wrapper.ensure_connection()
        if pooled:
            wrapper.close()

    def stop() -> None:
        for wrapper in wrappers:
            wrapper.inc_thread_sharing()  # lets this thread close what another has opened
            wrapper.close()
        if pooled:
            wrappers[0].close_pool()

    def giving_back(fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return fn(*args)
        finally:
            connection.close()

    def call(fn: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        if pooled:
            return sync_to_async(giving_back, thread_sensitive=False, executor=executor)(fn, *args)
        return sync_to_async(fn, thread_sensitive=False, executor=executor)(*args)

    with ThreadPoolExecutor(count) as executor:
        try:
            # Else the executor starts threads when it likes, and they connect while the clock runs.
            for started in [executor.submit(start) for _ in range(count)]:
                started.result()
            yield _each(call)
        finally:
            executor.submit(stop).result()


threads_20 = partial(_threads, 20, False)
threads_100 = partial(_threads, 100, True)


# Django's async methods, hooked or not


async def _noop(request: object) -> None:
    await sync_to_async(work.noop)(request)


async def _get(pk: int) -> Item:
    return await Item.objects.aget(pk=pk)


async def _get_many(pks: list[int]) -> list[Item]:
    return [await Item.objects.aget(pk=pk) for pk in pks]


async def _list(count: int, first: int) -> list[Item]:
    return [item async for item in Item.objects.filter(pk__gte=first, pk__lt=first + count).order_by("pk")]


async def _prefetch(first: int) -> list[tuple[str, list[str]]]:
    authors = Author.objects.filter(pk__gte=first, pk__lt=first + 10).order_by("pk").prefetch_related("books")
    return [(author.name, sorted([book.title async for book in author.books.all()])) async for author in authors]


def _write(pk: int) -> Any:
    """Django has no async `atomic`: its manual's advice is one sync function."""
    return sync_to_async(work.write)(pk)


async def _stream(rows: int) -> tuple[int, int]:
    count = total = 0
    async for measurement in Measurement.objects.filter(pk__lte=rows).aiterator(chunk_size=work.CHUNK):
        count += 1
        total += measurement.number
    return count, total


A_METHODS: Works = {
    "noop": _noop,
    "get": _get,
    "get_many": _get_many,
    "list_100": partial(_list, 100),
    "list_1000": partial(_list, 1000),
    "prefetch": _prefetch,
    "write": _write,
    "stream": _stream,
}


@asynccontextmanager
async def a_methods(target: Target) -> AsyncGenerator[Works]:
    """Call Django's async methods as Django has them."""
    configure(target, STOCK)
    async with ThreadSensitiveContext():
        try:
            yield A_METHODS
        finally:
            await sync_to_async(connections.close_all)()
