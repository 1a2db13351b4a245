"""Thousands of calls that wait, in a process of their own: what each takes of memory, and what others feel of it.

They wait for a connection: the table is locked by somebody else, so that those with a connection wait for the server,
and all others for one of theirs. Or, in `await_`, for an event, with their connection given back. When memory no longer
grows they are let go, and what they return is checked.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

import psutil
import psycopg
from django.db import models

import greenorm
from benchmarks.contenders import ALL
from benchmarks.project import work

from .target import Target
from .turns import Wrong
from .works import Reference, plain

PK = 1
# Memory has settled when it has grown by less than this, in bytes, between two looks so many seconds apart.
SETTLED, LOOK = 256 * 1024, 0.3
# Work beside those that wait.
BESIDE = 200


async def bare_tasks(release: asyncio.Event) -> Any:
    """Wait for an event, in a task and nothing else: the loop's own share."""
    await release.wait()
    return ()


def in_await(release: asyncio.Event) -> models.Model:
    """Use the database, and wait for an event in `await_`."""
    item = work.get(PK)
    greenorm.await_(release.wait())
    return item


def measure(waiting: dict[str, Any]) -> dict[str, Any]:
    """Let `count` calls of a contender wait for a "connection", in "await_" or as bare "tasks"."""
    contender = ALL[waiting["contender"]]
    module, _, name = contender.opened.partition(":")
    opened = getattr(import_module(module), name)
    target = Target(waiting["dsn"], waiting["schema"], waiting["connections"])
    if contender.loop == "gevent":
        return _greenlets(opened, target, waiting["count"])
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(_tasks(opened, target, waiting["kind"], waiting["count"]))


async def _tasks(opened: Any, target: Target, kind: str, count: int) -> dict[str, Any]:
    reference = Reference(target.dsn)  # kept to the end, since what it frees would be used again instead of grown by
    expected = reference.items[PK]
    release = asyncio.Event()
    async with opened(target) as works:
        get: Callable[[int], Awaitable[Any]] = works["get"]
        await asyncio.gather(*(get(PK) for _ in range(3 * target.connections)))
        undisturbed = await _beside(get) if kind != "connection" else None
        gc.collect()
        before = psutil.Process().memory_info().rss
        with psycopg.connect(target.dsn) as conn:
            if kind == "connection":
                conn.execute("LOCK TABLE bench_item IN ACCESS EXCLUSIVE MODE")
                tasks = [asyncio.ensure_future(get(PK)) for _ in range(count)]
            elif kind == "await_":
                tasks = [asyncio.ensure_future(greenorm.run(in_await, release)) for _ in range(count)]
            else:
                tasks = [asyncio.ensure_future(bare_tasks(release)) for _ in range(count)]
            memory = await _settled(before)
            if any(task.done() for task in tasks):
                raise Wrong("a call did not wait")
            disturbed = await _beside(get) if kind != "connection" else None
        release.set()
        results = await asyncio.gather(*tasks)
    if kind != "tasks" and any(plain(result) != expected for result in results):
        raise Wrong("a call that had waited returned something else")
    answer = {"bytes_each": (memory - before) / count}
    if undisturbed and disturbed:
        answer["cpu_beside"] = disturbed / undisturbed
    return answer


async def _beside(get: Callable[[int], Awaitable[Any]]) -> float:
    """Return the CPU seconds of some queries, one after the other."""
    await get(PK)
    since = time.process_time()
    for _ in range(BESIDE):
        await get(PK)
    return time.process_time() - since


async def _settled(memory: int) -> int:
    while True:
        await asyncio.sleep(LOOK)
        now = psutil.Process().memory_info().rss
        if now - memory < SETTLED:
            return now
        memory = now


def _greenlets(opened: Any, target: Target, count: int) -> dict[str, Any]:
    import gevent

    reference = Reference(target.dsn)
    expected = reference.items[PK]
    with opened(target) as works:
        gevent.joinall([gevent.spawn(works["get"], PK) for _ in range(3 * target.connections)], raise_error=True)
        gc.collect()
        before = memory = psutil.Process().memory_info().rss
        with psycopg.connect(target.dsn) as conn:
            conn.execute("LOCK TABLE bench_item IN ACCESS EXCLUSIVE MODE")
            greenlets = [gevent.spawn(works["get"], PK) for _ in range(count)]
            while True:
                gevent.sleep(LOOK)
                last, memory = memory, psutil.Process().memory_info().rss
                if memory - last < SETTLED:
                    break
        gevent.joinall(greenlets, raise_error=True)
        if any(plain(greenlet.value) != expected for greenlet in greenlets):
            raise Wrong("a call that had waited returned something else")
    return {"bytes_each": (memory - before) / count}
