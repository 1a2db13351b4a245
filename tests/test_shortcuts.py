"""What relies on how asyncio and psycopg work inside. A failure here: look at `greenorm/shortcuts.py` anew."""

from __future__ import annotations

import asyncio
import inspect
import socket
import threading
from typing import Any

import psycopg
import pytest
from django.db import connection
from psycopg import AsyncCursor

import greenorm
from greenorm import shortcuts
from greenorm.readiness import Watch
from greenorm.shortcuts import DirectFuture, DirectWatch, Lock

pytestmark = pytest.mark.no_database


@pytest.fixture
def pair() -> Any:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def watch(kind: type[Watch], ours: socket.socket) -> Watch:
    return kind(asyncio.get_running_loop(), ours.fileno())


async def waited(watch: Watch) -> None:
    await watch


kinds = pytest.mark.parametrize("kind", [Watch, DirectWatch])


def test_this_psycopg_is_known() -> None:
    assert shortcuts.KNOWN


def test_a_fetch_of_both_kinds_of_cursor_does_the_same() -> None:
    for name in ("fetchone", "fetchmany", "fetchall"):
        plain, awaited = inspect.getsource(getattr(psycopg.Cursor, name)), inspect.getsource(getattr(AsyncCursor, name))
        assert plain.split('"""')[2] == awaited.replace("await ", "").split('"""')[2]


def test_to_set_autocommit_where_nothing_is_open_is_to_note_it() -> None:
    lines = inspect.getsource(psycopg.Connection._set_autocommit_gen).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        'yield from self._check_intrans_gen("autocommit")',
        "self._autocommit = bool(value)",
    ]


def test_the_lock_of_asyncio_is_as_it_was() -> None:
    lock = asyncio.Lock()
    assert (lock._locked, lock._waiters) == (False, None)


async def test_a_lock_lets_one_in_at_a_time() -> None:
    async def enter(name: str) -> None:
        async with lock:
            steps.append(f"{name} in")
            await asyncio.sleep(0)
            steps.append(f"{name} out")

    lock, steps = Lock(), list[str]()
    await asyncio.gather(enter("a"), enter("b"), enter("c"))
    assert steps == ["a in", "a out", "b in", "b out", "c in", "c out"]
    assert not lock.locked()


async def test_a_lock_that_somebody_waits_for_is_not_taken() -> None:
    lock = Lock()
    assert lock.take()
    assert not lock.take()
    waits = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0)
    lock.release()
    assert not lock.take()
    assert await waits
    lock.release()
    assert lock.take()


@pytest.mark.parametrize("task", [asyncio.Task, asyncio.tasks._PyTask])  # type: ignore[attr-defined]
@pytest.mark.one_loop
async def test_tasks_wait_for_a_direct_future(task: Any) -> None:
    future = DirectFuture(asyncio.get_running_loop())
    steps: list[Any] = []

    async def wait() -> None:
        await future
        steps.append(asyncio.current_task())

    waits = task(wait(), loop=asyncio.get_running_loop())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(lambda: (future.set_result(None), steps.append("and then the callback")))
    await waits
    assert steps == [waits, "and then the callback"]


@pytest.mark.parametrize("task", [asyncio.Task, asyncio.tasks._PyTask])  # type: ignore[attr-defined]
@pytest.mark.one_loop
async def test_tasks_that_wait_for_a_direct_future_can_be_cancelled(task: Any) -> None:
    future = DirectFuture(asyncio.get_running_loop())

    async def wait() -> None:
        await future

    waits = task(wait(), loop=asyncio.get_running_loop())
    await asyncio.sleep(0)
    waits.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await waits


@kinds
@pytest.mark.one_loop
async def test_a_watch_sees_what_comes_again_and_again(kind: type[Watch], pair: Any) -> None:
    ours, theirs = pair
    seen = watch(kind, ours)
    for _ in range(3):
        assert not seen.readable_now()
        asyncio.get_running_loop().call_soon(theirs.send, b"x")
        await waited(seen)
        assert seen.readable_now()
        assert ours.recv(1) == b"x"
    seen.close()


async def test_uvloop_has_the_plain_watch_and_asyncio_the_direct_one(pair: Any) -> None:
    loop = asyncio.get_running_loop()
    is_asyncio = isinstance(loop, asyncio.SelectorEventLoop)
    for debug in (False, True):
        loop.set_debug(debug)
        seen = shortcuts.watch(loop, pair[0].fileno())
        assert isinstance(seen, DirectWatch) == (is_asyncio and not debug)
        seen.close()


@kinds
async def test_a_watch_that_nobody_waits_for_does_not_keep_the_loop_busy(kind: type[Watch], pair: Any) -> None:
    ours, theirs = pair
    seen = watch(kind, ours)
    asyncio.get_running_loop().call_soon(theirs.send, b"x")
    await waited(seen)  # and nobody reads it
    while seen._is_registered:
        await asyncio.sleep(0)
    await waited(seen)
    seen.close()


@kinds
async def test_a_watch_that_is_closed_wakes_who_waits_and_closes_its_descriptor_once(
    kind: type[Watch], pair: Any
) -> None:
    seen = watch(kind, pair[0])
    waits = asyncio.create_task(waited(seen))
    await asyncio.sleep(0)
    seen.close()
    seen.close()
    await waits
    with pytest.raises(OSError, match="closed"):
        await seen


@kinds
async def test_a_watch_can_be_closed_by_another_thread(kind: type[Watch], pair: Any) -> None:
    seen = watch(kind, pair[0])
    waits = asyncio.create_task(waited(seen))
    await asyncio.sleep(0)
    thread = threading.Thread(target=seen.close)
    thread.start()
    await waits
    thread.join()
    assert not seen._is_registered


async def test_a_lost_connection_leaves_nothing_that_the_loop_would_poll(admin: psycopg.Connection[Any]) -> None:
    def pid() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    def lose() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    for _ in range(3):  # a new connection is given the descriptor of the lost one
        lost = await greenorm.run(pid)
        with pytest.raises(Exception, match=r"terminat|closed"):
            await greenorm.run(lose)
        assert await greenorm.run(pid) != lost
    assert greenorm.pool_stats().size == 1
