"""Connections that are slow, frozen, cut, half-open or reset: clear errors in time, and a pool that heals by itself."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connection, connections, transaction

import greenorm
from greenorm import driver
from greenorm import pool as pool_module

from .books import open_wallets
from .models import Wallet
from .proxy import Proxy
from .storm import check_pool, check_server

# Seconds that no step of these tests may take, on any machine: they end long before, or never.
FOREVER = 60.0
SLEEP = "SELECT pg_sleep(30)"


@pytest.fixture
def short_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library gives up on a server that does not answer in a tenth of the time."""
    for module, name in [(driver, "CANCEL_SECONDS"), (driver, "CLEANUP_SECONDS"), (pool_module, "CHECK_SECONDS")]:
        monkeypatch.setattr(module, name, getattr(module, name) / 10)


@pytest.fixture(autouse=True)
async def quiet_network(proxy: Proxy) -> None:
    """Each test begins with the network as it should be, and wallets in the database."""
    await greenorm.run(open_wallets)


def execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def create(balance: int = 1) -> None:
    Wallet.objects.create(pk=1000 + balance, balance=balance)


def created() -> int:
    return Wallet.objects.filter(pk__gt=1000).count()


async def until_heard(admin: psycopg.Connection[Any], what: str) -> None:
    """Wait until a session works on a statement, or waits in a transaction after it."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s AND state <> 'idle' AND pid <> pg_backend_pid()"
    async with asyncio.timeout(FOREVER):
        while not admin.execute(query, [f"%{what}%"]).fetchone()[0]:  # type: ignore[index]
            await asyncio.sleep(0.005)


async def heals() -> None:
    """Use the pool as if nothing had been, at once, and look for what has been left behind."""
    async with asyncio.timeout(FOREVER):
        counts = await asyncio.gather(*[greenorm.run(Wallet.objects.count) for _ in range(6)])
    assert set(counts) == {counts[0]}
    assert check_pool() == []
    assert await check_server() == []


Fault = Callable[[Proxy], None]
faults = pytest.mark.parametrize("fault", [Proxy.cut, Proxy.reset], ids=["cut", "reset"])


async def test_a_slow_network_is_only_slow(proxy: Proxy) -> None:
    proxy.delay(0.02)
    await asyncio.gather(*[greenorm.run(create, number) for number in range(1, 7)])
    assert await greenorm.run(created) == 6
    proxy.delay(0)
    await heals()


@faults
async def test_a_connection_lost_in_a_statement_is_an_operational_error(
    fault: Fault, proxy: Proxy, admin: psycopg.Connection[Any]
) -> None:
    task = asyncio.create_task(greenorm.run(execute, SLEEP))
    await until_heard(admin, SLEEP)
    fault(proxy)
    async with asyncio.timeout(FOREVER):
        with pytest.raises(OperationalError) as info:
            await task
    assert isinstance(info.value.__cause__, psycopg.OperationalError)
    assert proxy.accepted == 1  # it has not been tried again
    await _end_sleepers(admin)
    await heals()


async def _end_sleepers(admin: psycopg.Connection[Any]) -> None:
    # The server has not been told that its client is gone, and sleeps on.
    admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = '{SLEEP}'")


@faults
async def test_a_connection_lost_in_a_transaction_loses_all_of_it(fault: Fault, proxy: Proxy) -> None:
    def work() -> None:
        with transaction.atomic():
            create()
            with transaction.atomic():
                create(2)
                fault(proxy)
                create(3)

    with pytest.raises((OperationalError, InterfaceError)) as info:
        await greenorm.run(work)
    assert not isinstance(info.value, greenorm.OutcomeUnknown)
    assert await greenorm.run(created) == 0
    await heals()


@faults
async def test_a_connection_lost_while_idle_is_replaced_before_anybody_notices(fault: Fault, proxy: Proxy) -> None:
    await asyncio.gather(*[greenorm.run(execute, "SELECT pg_sleep(0.05)") for _ in range(3)])
    assert greenorm.pool_stats().idle == 3
    fault(proxy)
    await greenorm.run(create)
    assert await greenorm.run(created) == 1
    await heals()


async def test_a_reset_in_the_middle_of_a_message_is_an_operational_error(proxy: Proxy) -> None:
    def work() -> None:
        proxy.reset_after(20000)
        execute("SELECT repeat('x', 1000) FROM generate_series(1, 1000)")

    with pytest.raises(OperationalError):
        await greenorm.run(work)
    await heals()


async def test_a_reset_while_a_streamed_read_is_under_way_ends_it_with_an_error(proxy: Proxy) -> None:
    seen = []
    with pytest.raises((OperationalError, InterfaceError)):
        async for wallet in greenorm.iterate(Wallet.objects.order_by("pk"), 5):
            seen.append(wallet.pk)
            if len(seen) == 10:
                proxy.reset()
    assert seen == [*range(1, 11)]
    await heals()


async def test_a_connection_lost_while_a_cursor_is_closed_raises_djangos_error_at_the_next_statement(
    proxy: Proxy,
) -> None:
    def work() -> None:
        with transaction.atomic():
            rows = Wallet.objects.order_by("pk").iterator(5)
            next(rows)
            proxy.lose(b"CLOSE")
            rows.close()
            reached.append("the next statement")
            Wallet.objects.count()

    reached: list[str] = []
    with pytest.raises((OperationalError, InterfaceError)):
        await greenorm.run(work)
    assert reached == ["the next statement"]
    await heals()


@pytest.mark.usefixtures("short_bounds")
@pytest.mark.parametrize("fault", [Proxy.freeze, Proxy.half_open], ids=["freeze", "half_open"])
async def test_a_timeout_ends_the_wait_for_a_server_that_is_silent(
    fault: Fault, proxy: Proxy, admin: psycopg.Connection[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        with transaction.atomic():
            create()
            execute(SLEEP)

    async def impatient() -> None:
        async with asyncio.timeout(3600) as limit:
            limits.append(limit)
            await greenorm.run(work)

    limits: list[asyncio.Timeout] = []
    task = asyncio.create_task(impatient())
    await until_heard(admin, SLEEP)
    fault(proxy)
    limits[0].reschedule(asyncio.get_running_loop().time())
    async with asyncio.timeout(FOREVER):
        with pytest.raises(TimeoutError):
            await task
    assert (greenorm.pool_stats().in_use, greenorm.pool_stats().size) == (0, 0)
    assert "could not be stopped, closing its connection" in caplog.text
    proxy.thaw()
    proxy.mend()
    await _end_sleepers(admin)
    await heals()
    assert await greenorm.run(created) == 0


@pytest.mark.one_loop
async def test_a_cancellation_returns_within_its_bound_where_the_server_is_silent(proxy: Proxy) -> None:
    def work() -> None:
        proxy.freeze()
        asyncio.get_running_loop().call_soon(task.cancel)
        Wallet.objects.count()

    await greenorm.run(Wallet.objects.count)
    task = asyncio.create_task(greenorm.run(work))
    since = monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    # 5 s to ask, and 5 more where an answer is under way.
    assert monotonic() - since < 2 * driver.CANCEL_SECONDS + FOREVER
    proxy.thaw()
    await heals()


@pytest.mark.usefixtures("short_bounds")
async def test_a_rollback_that_is_not_answered_gives_up_and_keeps_the_first_error(proxy: Proxy) -> None:
    def work() -> None:
        with transaction.atomic():
            create()
            proxy.freeze()
            raise ZeroDivisionError

    async with asyncio.timeout(FOREVER):
        with pytest.raises(ZeroDivisionError):
            await greenorm.run(work)
    proxy.thaw()
    assert await greenorm.run(created) == 0
    await heals()


async def test_a_server_that_is_frozen_while_connecting_is_given_up_within_the_pools_timeout(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"]["pool"], "timeout", 0.5)
    await _close_all()
    proxy.freeze()
    async with asyncio.timeout(FOREVER):
        results = await asyncio.gather(*[greenorm.run(created) for _ in range(5)], return_exceptions=True)
    assert [type(result) for result in results] == [OperationalError] * 5
    assert greenorm.pool_stats().size == 0
    proxy.thaw()
    await heals()


async def _close_all() -> None:
    await greenorm.run(lambda: connection.close_pool())


async def test_a_server_that_is_not_there_is_an_operational_error_until_it_is_back(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()
    for _ in range(3):
        with pytest.raises(OperationalError, match="refused"):
            await greenorm.run(created)
    assert greenorm.pool_stats().size == 0
    proxy.listen()
    await heals()


async def test_a_reset_while_connecting_is_an_operational_error(proxy: Proxy) -> None:
    await _close_all()
    for count in (0, 5, 50, 200, 350):
        proxy.reset_after(count)
        with pytest.raises(OperationalError):
            await greenorm.run(created)
        assert greenorm.pool_stats().size == 0
    await heals()


@pytest.mark.usefixtures("short_bounds")
async def test_a_half_open_idle_connection_is_replaced_by_its_health_check(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_HEALTH_CHECKS", True)
    await _close_all()
    await greenorm.run(create)
    proxy.half_open()
    proxy.mend()
    async with asyncio.timeout(FOREVER):
        assert await greenorm.run(created) == 1
    await heals()


@pytest.mark.usefixtures("short_bounds")
async def test_a_health_check_that_is_never_answered_ends_with_the_pools_timeout(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_HEALTH_CHECKS", True)
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"]["pool"], "timeout", 0.3)
    await _close_all()
    await greenorm.run(create)
    proxy.freeze()
    async with asyncio.timeout(FOREVER):
        with pytest.raises(OperationalError, match="did not answer its check"):
            await greenorm.run(created)
    assert greenorm.pool_stats().size == 0
    proxy.thaw()
    await heals()


# A commit whose answer is lost


def commits() -> None:
    with transaction.atomic():
        create()
        transaction.on_commit(lambda: called.append("told"))


called: list[str] = []


async def commits_in_steps() -> None:
    async with greenorm.atomic():
        await greenorm.run(create)
        await greenorm.run(transaction.on_commit, lambda: called.append("told"))


@pytest.mark.parametrize("work", [lambda: greenorm.run(commits), commits_in_steps], ids=["run", "block"])
@pytest.mark.parametrize("heard", [True, False], ids=["answer_lost", "question_lost"])
async def test_a_commit_without_an_answer_is_reported_as_unknown(
    heard: bool, work: Callable[[], Awaitable[None]], proxy: Proxy
) -> None:
    called.clear()
    (proxy.lose_answer_to if heard else proxy.lose)(b"COMMIT")
    with pytest.raises(greenorm.OutcomeUnknown, match="'default' was lost after COMMIT had been sent") as info:
        await work()
    assert isinstance(info.value, OperationalError)
    assert called == []
    assert await greenorm.run(created) == heard
    await heals()


@pytest.mark.usefixtures("short_bounds")
async def test_a_commit_that_is_never_answered_is_reported_as_unknown(proxy: Proxy) -> None:
    def work() -> None:
        with transaction.atomic():
            create()
            proxy.freeze()

    async with asyncio.timeout(FOREVER):
        with pytest.raises(greenorm.OutcomeUnknown):
            await greenorm.run(work)
    proxy.thaw()
    await heals()


async def test_a_commit_of_a_connection_that_is_known_to_be_lost_is_not_unknown(proxy: Proxy) -> None:
    def work() -> None:
        with transaction.atomic():
            create()
            proxy.cut()
            try:
                with transaction.atomic():
                    create(2)
            except DatabaseError:
                pass

    with pytest.raises(DatabaseError) as info:
        await greenorm.run(work)
    assert not isinstance(info.value, greenorm.OutcomeUnknown)
    assert await greenorm.run(created) == 0
    await heals()


@pytest.mark.parametrize("heard", [True, False], ids=["answer_lost", "question_lost"])
async def test_a_statement_without_an_answer_is_not_run_again(heard: bool, proxy: Proxy) -> None:
    def work() -> None:
        execute("INSERT INTO stress_posting (transfer, wallet_id, amount) VALUES (77, 1, 0)")

    def count() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM stress_posting WHERE transfer = 77")
            return cursor.fetchone()[0]

    (proxy.lose_answer_to if heard else proxy.lose)(b"INSERT INTO stress_posting")
    with pytest.raises(OperationalError):
        await greenorm.run(work)
    assert await greenorm.run(count) == heard
    await heals()


# Many at once


async def test_a_crowd_on_a_network_that_keeps_failing_loses_no_place_in_the_pool(
    proxy: Proxy, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def client(number: int) -> None:
        for turn in range(15):
            try:
                async with asyncio.timeout(FOREVER):
                    await greenorm.run(create, 100 * number + turn + 1)
            except (OperationalError, InterfaceError) as exc:
                lost.append(exc)

    async def network() -> None:
        while True:
            for fault in (proxy.cut, proxy.reset, lambda: proxy.reset_after(100)):
                await asyncio.sleep(0.03)
                fault()

    lost: list[Exception] = []
    failing = asyncio.create_task(network())
    with caplog.at_level(logging.CRITICAL, "greenorm"):
        await asyncio.gather(*[client(number) for number in range(8)])
    failing.cancel()
    proxy.reset_after(10**9)
    assert not any(isinstance(exc, greenorm.GreenormError) for exc in lost)
    assert await greenorm.run(created) >= 8 * 15 - len(lost)
    await heals()


async def test_a_descriptor_that_libpq_has_closed_is_not_waited_for_by_another(proxy: Proxy) -> None:
    # Numbers of descriptors are used again at once: here by pipes, in which there will be nothing to read.
    for _ in range(10):
        task = asyncio.create_task(greenorm.run(execute, "SELECT pg_sleep(0.2)"))
        while not greenorm.pool_stats().in_use:
            await asyncio.sleep(0)
        proxy.reset()
        with pytest.raises((OperationalError, InterfaceError)):
            await task
        ends = [end for _ in range(4) for end in os.pipe()]
        await greenorm.run(Wallet.objects.count)
        for end in ends:
            os.close(end)
    await heals()
