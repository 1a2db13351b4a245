"""Servers that end sessions, restart, are full, or give way to another: clear errors, and pools that heal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import InterfaceError, OperationalError, connection, connections, transaction

import greenorm
from greenorm.demo.server import database_settings

from .books import open_wallets
from .faults_servers import Server, own_servers, place, server
from .models import Wallet
from .proxy import Proxy
from .storm import check_pool
from .test_faults_network import FOREVER, SLEEP, created, execute, heals, until_heard

# What the loop makes of a connection that is lost is tested by test_faults_network.
pytestmark = pytest.mark.one_loop

POOL = {"min_size": 0, "max_size": 3, "timeout": 20}


def pid() -> int:
    connection.ensure_connection()
    return connection.connection.info.backend_pid


def create_tables(dsn: str) -> None:
    """Make the tables of the wallets in another server, by plain sync Django."""
    connections.settings["elsewhere"] = connections.configure_settings(
        {"default": {}, "elsewhere": database_settings(dsn)}
    )["elsewhere"]
    try:
        with connections["elsewhere"].schema_editor() as editor:
            for model in (Wallet, Wallet.posting_set.rel.related_model):  # type: ignore[attr-defined]
                editor.create_model(model)
        connections["elsewhere"].close()
    finally:
        del connections["elsewhere"]
        del connections.settings["elsewhere"]


def use(monkeypatch: pytest.MonkeyPatch, dsn: str, **options: Any) -> None:
    """Let the default alias be another server."""
    settings = database_settings(dsn, pool=POOL, **options)
    default = {**connections.settings["default"], **settings}
    monkeypatch.setitem(connections.settings, "default", default)


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A server for the tests of this module, with the tables of the wallets."""
    with server(superuser_reserved_connections=0, max_connections=12) as running:
        create_tables(dsn(running))
        yield running


def dsn(*servers: Server) -> str:
    hosts = ",".join(["127.0.0.1"] * len(servers))
    ports = ",".join(str(server.port) for server in servers)
    return f"host={hosts} port={ports} user=postgres dbname=postgres connect_timeout=5"


async def begin(monkeypatch: pytest.MonkeyPatch, *servers: Server, **options: Any) -> None:
    use(monkeypatch, dsn(*servers), **options)
    await greenorm.run(open_wallets)


# Sessions that the server ends


@pytest.mark.parametrize("in_block", [False, True], ids=["statement", "transaction"])
async def test_a_session_that_is_ended_in_a_statement(
    in_block: bool, own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work() -> None:
        if not in_block:
            execute(SLEEP)
        with transaction.atomic():
            Wallet.objects.create(pk=1001, balance=1)
            with transaction.atomic():
                execute(SLEEP)

    await begin(monkeypatch, own)
    with own.connect() as admin:
        task = asyncio.create_task(greenorm.run(work))
        await until_heard(admin, SLEEP)
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = %s", [SLEEP])
        with pytest.raises(OperationalError, match="terminating connection due to administrator command"):
            await task
    await heals()
    assert await greenorm.run(created) == 0


async def test_a_session_that_is_ended_in_a_transaction_that_waits(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(monkeypatch, own)
    with own.connect() as admin:

        async def work() -> None:
            async with greenorm.atomic():
                await greenorm.run(Wallet.objects.create, pk=1001, balance=1)
                admin.execute("SELECT pg_terminate_backend(%s, 10000)", [await greenorm.run(pid)])
                await greenorm.run(Wallet.objects.create, pk=1002, balance=1)

        with pytest.raises((OperationalError, InterfaceError)):
            await work()
    await heals()
    assert await greenorm.run(created) == 0


async def test_all_idle_sessions_are_ended_and_nobody_notices(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await begin(monkeypatch, own)
    await heals()
    with own.connect() as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    await heals()


# A server that restarts


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_restarts_is_used_again(mode: str, own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await begin(monkeypatch, own)
    task = asyncio.create_task(greenorm.run(execute, SLEEP))
    with own.connect() as admin:
        await until_heard(admin, SLEEP)
    own.stop(mode)
    with pytest.raises(OperationalError):
        await task
    for _ in range(3):
        with pytest.raises(OperationalError):
            await greenorm.run(created)
    assert check_pool() == []
    assert greenorm.pool_stats().size == 0
    own.start()
    await heals()


# A server that is full


async def test_a_server_that_is_full_is_an_operational_error_until_it_is_not(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(monkeypatch, own)
    await greenorm.run(lambda: connection.close_pool())
    others: list[psycopg.Connection] = []
    try:
        while True:
            others.append(own.connect())
    except psycopg.OperationalError:
        pass
    results = await asyncio.gather(*[greenorm.run(created) for _ in range(8)], return_exceptions=True)
    assert [type(result) for result in results] == [OperationalError] * 8
    assert "too many clients" in str(results[0])
    assert greenorm.pool_stats().size == 0
    for conn in others:
        conn.close()
    await _until_there_is_room(own)
    await heals()


async def test_a_pool_that_cannot_grow_serves_all_with_what_it_has(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(monkeypatch, own)
    assert greenorm.pool_stats().size == 1
    others: list[psycopg.Connection] = []
    try:
        while True:
            others.append(own.connect())
    except psycopg.OperationalError:
        pass
    # One after another there is always one that is idle.
    assert [await greenorm.run(created) for _ in range(5)] == [0] * 5
    for conn in others:
        conn.close()
    await _until_there_is_room(own)
    await heals()


async def _until_there_is_room(own: Server) -> None:
    # The server takes a moment to see that its clients have left.
    async with asyncio.timeout(FOREVER):
        while True:
            try:
                with own.connect() as admin:
                    query = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    if admin.execute(query).fetchone()[0] < 6:  # type: ignore[index]
                        return
            except psycopg.OperationalError:
                pass
            await asyncio.sleep(0.02)


# A second server


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary with the tables of the wallets, and its standby."""
    with own_servers() as directory:
        primary = Server(place(directory, "primary"), wal_level="replica")
        primary.init()
        primary.start()
        create_tables(dsn(primary))
        standby = Server(place(directory, "standby"))
        standby.copy_of(primary)
        standby.start()
        yield primary, standby


async def test_a_second_server_takes_over_by_a_dsn_that_names_both(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = pair
    await begin(monkeypatch, primary, standby, target_session_attrs="read-write")
    await heals()
    await _until_replayed(primary, standby)
    task = asyncio.create_task(greenorm.run(execute, SLEEP))
    with primary.connect() as admin:
        await until_heard(admin, SLEEP)
    primary.stop("immediate")
    with pytest.raises(OperationalError):
        await task
    with pytest.raises(OperationalError):  # the one is gone, and the other takes no writes yet
        await greenorm.run(Wallet.objects.create, pk=1001, balance=1)
    standby.promote()
    await greenorm.run(Wallet.objects.create, pk=1001, balance=1)
    assert await greenorm.run(created) == 1
    assert await greenorm.run(lambda: connection.ensure_connection() or connection.connection.info.port) == standby.port
    await heals()


async def _until_replayed(primary: Server, standby: Server) -> None:
    with primary.connect() as there, standby.connect() as here:
        (end,) = there.execute("SELECT pg_current_wal_lsn()").fetchone() or (None,)
        async with asyncio.timeout(FOREVER):
            while not here.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [end]).fetchone()[0]:  # type: ignore[index]
                await asyncio.sleep(0.02)


async def test_a_silent_first_server_takes_no_more_than_its_connect_timeout(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy("127.0.0.1", own.port) as silent:
        silent.freeze()
        both = f"host=127.0.0.1,127.0.0.1 port={silent.port},{own.port} user=postgres dbname=postgres connect_timeout=2"
        use(monkeypatch, both)
        await greenorm.run(open_wallets)
        assert silent.accepted == 1
        assert await greenorm.run(created) == 0
        silent.thaw()
