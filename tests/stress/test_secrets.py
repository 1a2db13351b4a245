"""Who may not connect is told why and what to look at, a password is seen nowhere, and TLS holds what it promises."""

from __future__ import annotations

import asyncio
import logging
import pprint
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, OperationalError, connections

import greenorm

from .aliases import alias, ask, nothing_left
from .clusters import cluster, programs
from .guarded import PASSWORD, Guarded, guarded

pytestmark = pytest.mark.no_database

PARTS = ("Xk7", "not-to-be-seen")


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    found = programs()
    if found is None or "pginstall" in str(found):
        pytest.skip("no system's PostgreSQL is installed: the embedded one is built without TLS")
    with guarded(found) as made:
        yield made


def everything(exc: BaseException) -> str:
    """What any report of an error may show: its words, its causes and notes, and the variables of our frames."""
    shown = "".join(traceback.format_exception(exc)) + repr(exc) + repr(exc.__cause__)
    seen: list[BaseException] = []
    while exc not in seen:
        seen.append(exc)
        shown += str(exc) + pprint.pformat(exc.args)
        exc = exc.__cause__ or exc.__context__ or exc
    return shown


async def refused(name: str, error: type[Exception] = OperationalError) -> str:
    with nothing_left(name), pytest.raises(error) as caught:
        await greenorm.run(ask, "SELECT 1", using=name)
    assert not any(part in everything(caught.value) for part in PARTS)
    assert greenorm.pool_stats(name).size == 0
    # Whoever reads the traceback learns which of many aliases it was, and where to look.
    cause = caught.value.__cause__
    assert cause is not None
    assert f"database alias {name!r}" in "".join(cause.__notes__)
    return str(caught.value)


# TLS


async def test_a_verified_connection_is_encrypted_and_its_statements_are_awaited(server: Guarded) -> None:
    with alias("guarded", server.dsn()):
        assert await greenorm.run(ask, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", using="guarded")
        found = await asyncio.gather(*[greenorm.run(ask, "SELECT 1 FROM pg_sleep(0.01)", using="guarded")] * 1)
        assert found == [1]


async def test_a_statement_over_tls_is_stopped_on_the_server(server: Guarded) -> None:
    with alias("guarded", server.dsn()):
        await greenorm.run(ask, "SELECT 1", using="guarded")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await greenorm.run(ask, "SELECT pg_sleep(60)", using="guarded")
        running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)' AND state = 'active'"
        assert await greenorm.run(ask, running, using="guarded") == 0
        assert greenorm.pool_stats("guarded").opened == 1


@pytest.mark.one_loop
async def test_a_certificate_for_another_name_is_refused(server: Guarded) -> None:
    with alias("guarded", server.dsn(host="another.example.org")):
        message = await refused("guarded")
    assert 'server certificate for "db.example.org" does not match host name "another.example.org"' in message


@pytest.mark.one_loop
async def test_a_certificate_of_another_authority_is_refused(server: Guarded) -> None:
    with alias("guarded", server.dsn(sslrootcert=server.stranger)):
        assert "certificate verify failed" in await refused("guarded")


@pytest.mark.one_loop
async def test_a_missing_certificate_of_the_authority_is_said_to_be_missing(server: Guarded) -> None:
    with alias("guarded", server.dsn(sslrootcert="/no/such/file")):
        assert 'root certificate file "/no/such/file" does not exist' in await refused("guarded")


@pytest.mark.one_loop
async def test_a_server_that_demands_tls_refuses_to_go_without(server: Guarded) -> None:
    with alias("guarded", server.dsn(sslmode="disable")):
        assert "no encryption" in await refused("guarded")


@pytest.mark.one_loop
async def test_a_server_without_tls_is_refused_by_who_demands_it() -> None:
    if (found := programs()) is None:
        pytest.skip("no PostgreSQL that this user can start is installed")
    with cluster(found, "plain", tcp=True) as plain:
        dsn = f"host=127.0.0.1 port={plain.port} user=postgres password='{PARTS[0]}' dbname=postgres sslmode=require"
        with alias("plain", dsn):
            assert "server does not support SSL, but SSL was required" in await refused("plain")


# Who may not connect


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"password": "Xk7-wrong"}, 'password authentication failed for user "keeper"'),
        ({"password": ""}, "no password supplied"),
        ({"user": "nobody"}, 'password authentication failed for user "nobody"'),
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"port": 1}, "Connection refused"),
        ({"sslmode": "perhaps"}, "invalid sslmode value"),
    ],
    ids=["wrong password", "no password", "unknown role", "unknown database", "no server", "bad option"],
)
async def test_who_may_not_connect_is_told_why(server: Guarded, changes: dict[str, Any], message: str) -> None:
    with alias("guarded", server.dsn(**changes)):
        assert message in await refused("guarded")


@pytest.mark.one_loop
async def test_a_role_that_cannot_be_assumed_is_named(server: Guarded) -> None:
    with alias("guarded", server.dsn(), {"assume_role": "nobody"}):
        assert 'role "nobody" does not exist' in await refused("guarded", DataError)


@pytest.mark.one_loop
async def test_an_unknown_option_is_named(server: Guarded) -> None:
    with alias("guarded", server.dsn(), {"colour": "green"}):
        with nothing_left("guarded"), pytest.raises(Exception, match="colour") as caught:
            await greenorm.run(ask, "SELECT 1", using="guarded")
        assert not any(part in everything(caught.value) for part in PARTS)


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"min_size": -1}, "min_size is -1, but cannot be negative"),
        ({"min_size": 0, "max_size": 0}, "must be at least 1"),
        ({"max_size": "20"}, "max_size is '20', but must be a whole number"),
        ({"timeout": "30"}, "timeout is '30', but must be a number of seconds"),
        ({"timeout": 0}, "timeout is 0, but connecting takes time"),
        ({"max_waiting": -5}, "max_waiting is -5, but cannot be negative"),
        ({"max_idle": None}, "max_idle is None, but must be a number of seconds"),
        ({"reset": "DISCARD ALL"}, "reset is 'DISCARD ALL', but must be a function that takes a connection"),
        ({"size": 5}, "has ['size'], which greenorm does not know"),
    ],
)
async def test_pool_options_that_make_no_sense_are_refused_by_name(
    server: Guarded, pool: dict[str, Any], message: str
) -> None:
    with alias("guarded", server.dsn(), {"pool": pool}), pytest.raises(ImproperlyConfigured) as caught:
        await greenorm.run(ask, "SELECT 1", using="guarded")
    assert message in str(caught.value)
    assert "'guarded'" in str(caught.value)
    assert not any(part in everything(caught.value) for part in PARTS)


# Where a password could be seen


async def test_no_password_is_in_a_repr_or_a_figure(server: Guarded) -> None:
    def shown() -> str:
        wrapper = connections["guarded"]
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT 1")
            conn = wrapper.connection
            seen = [wrapper, cursor, cursor.cursor, conn, conn.session, conn.session.pool, conn.info]
            seen += [conn.session.pool.options, greenorm.pool_stats("guarded")]
            return " ".join([*map(repr, seen), *map(str, seen), conn.info.dsn])

    with alias("guarded", server.dsn()):
        text = await greenorm.run(shown)
    assert "keeper" in text
    assert not any(part in text for part in PARTS)


@pytest.mark.one_loop
async def test_no_password_is_in_a_log(server: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    def borrowed_and_broken() -> None:
        ask("SELECT 1", using="guarded")
        ask("SELECT pg_terminate_backend(pg_backend_pid())", using="guarded")

    pool = {"min_size": 0, "max_size": 2, "check": lambda conn: conn.execute("nonsense")}
    with caplog.at_level(logging.DEBUG), alias("guarded", server.dsn(), {"pool": pool}):
        await greenorm.run(ask, "SELECT 1", using="guarded")
        await greenorm.run(ask, "SELECT 1", using="guarded")
        with pytest.raises(OperationalError):
            await greenorm.run(borrowed_and_broken)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await greenorm.run(ask, "SELECT pg_sleep(60)", using="guarded")
    assert "failed its check" in caplog.text
    assert not any(part in caplog.text for part in PARTS)


def test_the_password_is_one_that_could_be_seen() -> None:
    assert all(part in PASSWORD for part in PARTS)
