"""The pool: sizes, waiting, errors, health, and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import psycopg_pool
import pytest
from django.db import OperationalError, connection, connections
from django.db.backends.signals import connection_created
from django.test import override_settings

import greenorm
from greenorm import bridge
from greenorm.driver import Connection
from greenorm.pool import Pool
from greenorm.pool_options import PoolOptions


def sleep(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def pid(using: str = "default") -> int:
    with connections[using].cursor() as cursor:
        return cursor.connection.info.backend_pid


async def with_pool(job: Callable[[Pool], Any], **options: Any) -> Any:
    """Call `job` with a pool of its own on the default database, inside a run, and close the pool."""

    def work() -> Any:
        model = connections["default"].async_pool
        pool = Pool(model._connect, PoolOptions(**options))
        try:
            return job(pool)
        finally:
            pool.close()

    return await greenorm.run(work)


async def test_the_last_connection_given_back_is_lent_first() -> None:
    def job(pool: Pool) -> bool:
        first, second = pool.getconn(), pool.getconn()
        pool.putconn(first)
        pool.putconn(second)
        return pool.getconn().session is second.session

    assert await with_pool(job, min_size=0, max_size=2)


async def test_waiters_are_served_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "pool", {"min_size": 1})
    served = []

    def work(i: int) -> None:
        sleep(0.005)
        served.append(i)

    await asyncio.gather(*[greenorm.run(work, i) for i in range(12)])
    assert served == list(range(12))


async def test_waiting_too_long_is_djangos_operational_error_that_says_what_to_set() -> None:
    wrapper_options = connections["default"].settings_dict["OPTIONS"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(wrapper_options, "pool", {"min_size": 0, "max_size": 2, "timeout": 0.2})
        holders = [asyncio.create_task(greenorm.run(sleep, 1)) for _ in range(2)]
        await asyncio.sleep(0.1)
        started = time.monotonic()
        waiters = [greenorm.run(sleep, 0) for _ in range(3)]
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert 0.1 < time.monotonic() - started < 0.9
        await asyncio.gather(*holders)
    assert [type(result) for result in results] == [OperationalError] * 3
    error = results[0]
    assert isinstance(error.__cause__, psycopg_pool.PoolTimeout)
    for part in ("'default'", "2 of 2 are in use", "2 other borrowers wait", "0.2 s", "max_size", "OPTIONS['pool']"):
        assert part in str(error)
    assert greenorm.pool_stats().timeouts == 3


async def test_too_many_waiters_are_turned_away() -> None:
    options = connections["default"].settings_dict["OPTIONS"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(options, "pool", {"min_size": 0, "max_size": 1, "max_waiting": 1})
        results = await asyncio.gather(*[greenorm.run(sleep, 0.1) for _ in range(3)], return_exceptions=True)
    assert [type(result) for result in results] == [type(None), type(None), OperationalError]
    assert isinstance(results[2].__cause__, psycopg_pool.TooManyRequests)
    assert "max_waiting" in str(results[2])


async def test_figures_tell_size_use_waiting_and_wait_time() -> None:
    tasks = [asyncio.create_task(greenorm.run(sleep, 0.2)) for _ in range(6)]
    await asyncio.sleep(0.1)
    stats = greenorm.pool_stats()
    assert (stats.name, stats.max_size, stats.in_use, stats.waiting, stats.idle) == ("default", 4, 4, 2, 0)
    await asyncio.gather(*tasks)
    stats = greenorm.pool_stats("default")
    assert (stats.size, stats.in_use, stats.idle, stats.queued, stats.borrowed) == (4, 0, 4, 2, 6)
    assert 0.1 < stats.wait_seconds < 1


async def test_figures_of_an_unused_alias_are_those_of_its_options() -> None:
    stats = greenorm.pool_stats("other")
    assert (stats.min_size, stats.max_size, stats.size, stats.borrowed) == (0, 20, 0, 0)


def test_figures_without_a_loop_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        greenorm.pool_stats()


async def test_a_dead_idle_connection_is_replaced_before_anybody_notices(admin: psycopg.Connection[Any]) -> None:
    before = await asyncio.gather(*[greenorm.run(_pid_and_sleep) for _ in range(4)])
    admin.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) pid", [list(before)])
    await asyncio.sleep(0.1)
    after = await asyncio.gather(*[greenorm.run(_pid_and_sleep) for _ in range(4)])
    assert set(before).isdisjoint(after)
    assert greenorm.pool_stats().size == 4


def _pid_and_sleep() -> int:
    backend = pid()
    sleep(0.05)
    return backend


async def test_a_connection_killed_in_use_is_an_operational_error_and_is_replaced(
    admin: psycopg.Connection[Any],
) -> None:
    def killed() -> None:
        admin.execute("SELECT pg_terminate_backend(%s)", [pid()])
        sleep(0)

    with pytest.raises(OperationalError):
        await greenorm.run(killed)
    assert greenorm.pool_stats().in_use == 0
    assert isinstance(await greenorm.run(pid), int)


async def test_a_failing_check_replaces_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[Connection] = []

    def check(conn: Connection) -> None:
        if not failed:
            failed.append(conn)
            raise psycopg.OperationalError("not healthy")

    def job(pool: Pool) -> tuple[int, int]:
        conn = pool.getconn()
        first = conn.info.backend_pid
        pool.putconn(conn)
        conn = pool.getconn()
        second = conn.info.backend_pid
        pool.putconn(conn)
        return first, second

    with caplog.at_level(logging.INFO, "greenorm"):
        first, second = await with_pool(job, min_size=1, check=check)
    assert first != second
    assert "failed its check" in caplog.text


async def test_a_connection_past_its_lifetime_is_closed_when_it_is_given_back() -> None:
    def job(pool: Pool) -> tuple[bool, int]:
        conn = pool.getconn()
        bridge.await_(asyncio.sleep(0.1))
        pool.putconn(conn)
        return conn.closed, pool.stats().size

    assert await with_pool(job, min_size=1, max_lifetime=0.05) == (True, 0)


async def test_connections_idle_for_too_long_are_closed_down_to_min_size() -> None:
    def job(pool: Pool) -> tuple[int, int]:
        conns = [pool.getconn() for _ in range(4)]
        for conn in conns:
            pool.putconn(conn)
        before = pool.stats().size
        bridge.await_(asyncio.sleep(0.3))
        return before, pool.stats().size

    assert await with_pool(job, min_size=1, max_size=4, max_idle=0.1) == (4, 1)


async def test_a_closed_pool_says_so_to_borrowers_and_waiters() -> None:
    async def borrow(pool: Pool) -> Any:
        return await bridge.spawn(pool.getconn)

    def job(pool: Pool) -> tuple[bool, Exception]:
        conn = pool.getconn()
        waiter = asyncio.ensure_future(borrow(pool))
        bridge.await_(asyncio.sleep(0.01))
        pool.close()
        with pytest.raises(psycopg_pool.PoolClosed, match="was closed while a borrower waited"):
            bridge.await_(waiter)
        with pytest.raises(psycopg_pool.PoolClosed) as info:
            pool.getconn()
        pool.putconn(conn)
        return conn.closed, info.value

    closed, error = await with_pool(job, min_size=0, max_size=1)
    assert closed
    assert "is closed" in str(error)


async def test_a_server_that_does_not_answer_is_given_up_within_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"pool": {"min_size": 1, "timeout": 0.3}}
        settings_dict = {
            **connections.settings["default"],
            "HOST": "127.0.0.1",
            "PORT": str(silent.getsockname()[1]),
            "OPTIONS": options,
        }
        started = time.monotonic()
        with pytest.raises(OperationalError, match=r"no connection to the server within 0\.3 s"):
            await greenorm.run(lambda: type(connections["default"])(settings_dict, "default").ensure_connection())
        assert time.monotonic() - started < 2
        accepted, _ = silent.accept()
        with accepted:
            accepted.settimeout(2)
            while accepted.recv(1000):  # what the client sent, and then its end
                pass


async def test_a_failed_connect_frees_its_place_for_the_next() -> None:
    def job(pool: Pool) -> int:
        connect = pool._connect

        async def refused() -> Any:
            raise psycopg.OperationalError("refused")

        pool._connect = refused
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="refused"):
                pool.getconn()
        pool._connect = connect
        pool.putconn(pool.getconn())
        return pool.stats().size

    assert await with_pool(job, min_size=0, max_size=1) == 1


async def test_a_failing_reset_closes_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    def job(pool: Pool) -> tuple[bool, int]:
        conn = pool.getconn()
        pool.putconn(conn)
        return conn.closed, pool.stats().size

    def reset(conn: Connection) -> None:
        conn.execute("nonsense")

    assert await with_pool(job, min_size=1, reset=reset) == (True, 0)
    assert "could not be cleaned" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": -1}, "negative"),
        ({"min_size": 5, "max_size": 2}, "at least min_size, 5"),
        ({"min_size": 0}, "at least 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolOptions(**options)  # type: ignore[arg-type]


async def test_a_host_name_is_said_to_take_a_thread(caplog: pytest.LogCaptureFixture) -> None:
    def job() -> None:
        settings_dict = {**connection.settings_dict, "HOST": "db.example.org", "OPTIONS": {"pool": True}}
        type(connections["default"])(settings_dict, "default").async_pool.close()

    await greenorm.run(job)
    assert "resolving the host name 'db.example.org' takes a thread" in caplog.text


async def test_a_pool_follows_a_change_of_the_time_zone() -> None:
    def zone() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SHOW TimeZone")
            return cursor.fetchone()[0]

    assert await greenorm.run(zone) == "UTC"
    with override_settings(USE_TZ=False, TIME_ZONE="Europe/Berlin"):
        assert await greenorm.run(zone) == "Europe/Berlin"
    assert await greenorm.run(zone) == "UTC"


# What Django's own tests ask of a wrapper


async def test_a_connection_that_is_closed_by_name_is_announced_when_it_is_borrowed_again() -> None:
    made: list[Any] = []

    def note(connection: Any, **_: Any) -> None:
        made.append(connection.connection)

    def twice() -> tuple[int, int]:
        first = pid()
        connection.close()
        return first, pid()

    await greenorm.run(pid)
    connection_created.connect(note)
    try:
        first, second = await greenorm.run(twice)
    finally:
        connection_created.disconnect(note)
    assert first == second
    assert len(made) == 1


async def test_a_wrapper_that_a_thread_has_connected_is_connected_anew_in_its_run() -> None:
    def handed_over() -> tuple[bool, bool]:
        wrapper = connections["default"]
        wrapper.inc_thread_sharing()
        try:
            with ThreadPoolExecutor(1) as executor:
                executor.submit(wrapper.ensure_connection).result()
            blocking = type(wrapper.connection) is psycopg.Connection
            pid()
            return blocking, type(wrapper.connection) is psycopg.Connection
        finally:
            wrapper.dec_thread_sharing()

    assert await greenorm.run(handed_over) == (True, False)
    assert greenorm.pool_stats().in_use == 0


async def test_a_connection_that_fails_its_health_check_in_a_run_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["other"], "CONN_HEALTH_CHECKS", True)

    def checked() -> tuple[int, int]:
        wrapper = connections["other"]
        first = pid("other")
        wrapper.health_check_done = False  # as at the end of a request
        wrapper.is_usable = lambda: False
        return first, pid("other")

    first, second = await greenorm.run(checked)
    assert first != second
    assert greenorm.pool_stats("other").size == 1
