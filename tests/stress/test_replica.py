"""A primary and a replica that follows it by streaming replication: routers, read-your-writes, and a replica's loss."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import InternalError, OperationalError, connections, models, transaction
from django.test import override_settings

import greenorm
from tests.shop.models import Owner

from .aliases import alias, ask, until
from .clusters import Cluster, cluster, programs, replica_of

pytestmark = pytest.mark.no_database


class ReadFromReplica:
    """The router of Django's documentation: reads on the replica, writes on the primary."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str:
        return "primary"

    def allow_relation(self, one: models.Model, other: models.Model, **hints: Any) -> bool:
        return True


class Pair:
    """The two servers, watched from outside."""

    def __init__(self, primary: Cluster, replica: Cluster) -> None:
        self.primary, self.replica = primary, replica

    def on_replica(self, sql: str) -> Any:
        with psycopg.connect(self.replica.dsn, autocommit=True) as conn:
            found = conn.execute(sql.encode()).fetchone()
        assert found is not None
        return found[0]

    def catch_up(self) -> None:
        """Wait until the replica has everything that the primary has committed."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            found = conn.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
        assert found is not None
        until(lambda: self.on_replica(f"SELECT pg_last_wal_replay_lsn() >= '{found[0]}'"), "the replica catches up")


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    if (found := programs()) is None:
        pytest.skip("no PostgreSQL that this user can start is installed")
    with cluster(found, "primary") as primary, replica_of(primary) as replica:
        with alias("primary", primary.dsn), connections["primary"].schema_editor() as editor:
            editor.create_model(Owner)
        yield Pair(primary, replica)


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    with (
        alias("primary", servers.primary.dsn),
        alias("replica", servers.replica.dsn),
        override_settings(DATABASE_ROUTERS=[ReadFromReplica()]),
    ):
        yield servers
    with psycopg.connect(servers.primary.dsn, autocommit=True) as conn:
        conn.execute("TRUNCATE shop_owner")
    servers.catch_up()


def names() -> list[str]:
    return sorted(owner.name for owner in Owner.objects.all())


def own_names() -> list[str]:
    return sorted(owner.name for owner in Owner.objects.using("primary"))


async def test_one_run_writes_on_the_primary_and_reads_on_the_replica(pair: Pair) -> None:
    def work() -> Any:
        ada = Owner.objects.create(name="Ada")
        greenorm.await_(asyncio.to_thread(pair.catch_up))
        found = Owner.objects.get(name="Ada")
        in_recovery = [ask("SELECT pg_is_in_recovery()", using=using) for using in ("primary", "replica")]
        return ada._state.db, found._state.db, found == ada, in_recovery

    assert await greenorm.run(work) == ("primary", "replica", True, [False, True])
    assert [greenorm.pool_stats(using).in_use for using in ("primary", "replica")] == [0, 0]


async def test_using_reads_ones_own_writes_before_the_replica_has_them(pair: Pair) -> None:
    def work() -> tuple[list[str], list[str]]:
        Owner.objects.create(name="Ada")
        return names(), own_names()

    pair.on_replica("SELECT pg_wal_replay_pause()::text")
    try:
        until(lambda: pair.on_replica("SELECT pg_get_wal_replay_pause_state() = 'paused'"), "replay pauses")
        assert await greenorm.run(work) == ([], ["Ada"])
    finally:
        pair.on_replica("SELECT pg_wal_replay_resume()::text")
    pair.catch_up()
    assert await greenorm.run(names) == ["Ada"]


async def test_a_transaction_on_the_primary_is_not_seen_on_the_replica_before_its_commit(pair: Pair) -> None:
    async with greenorm.atomic("primary"):
        await greenorm.run(Owner.objects.create, name="Ada")
        seen = await greenorm.run(names), await greenorm.run(own_names)
        # A sibling reads on the replica meanwhile: no transaction is open there.
        assert await asyncio.create_task(greenorm.run(names)) == []
    assert seen == ([], ["Ada"])
    pair.catch_up()
    assert await greenorm.run(names) == ["Ada"]


async def test_many_runs_read_and_write_at_once(pair: Pair) -> None:
    def work(i: int) -> int:
        with transaction.atomic("primary"):
            Owner.objects.create(name=str(i))
            if i % 5 == 0:
                transaction.set_rollback(True, "primary")
        return Owner.objects.count()

    await asyncio.gather(*[greenorm.run(work, i) for i in range(50)])
    pair.catch_up()
    assert await greenorm.run(names) == sorted(str(i) for i in range(50) if i % 5)


async def test_a_write_on_the_replica_is_djangos_error_and_leaves_nothing(pair: Pair) -> None:
    with pytest.raises(InternalError, match="cannot execute INSERT in a read-only transaction"):
        await greenorm.run(Owner.objects.using("replica").create, name="Ada")
    assert await greenorm.run(names) == []
    stats = greenorm.pool_stats("replica")
    assert (stats.in_use, stats.size) == (0, 1)


async def test_a_replica_that_is_lost_fails_its_reads_only_and_is_used_again_when_it_is_back(pair: Pair) -> None:
    def falls_back() -> list[str]:
        try:
            return names()
        except OperationalError:
            return own_names()

    def sleeps() -> None:
        ask("SELECT pg_sleep(60)", using="replica")

    await greenorm.run(Owner.objects.create, name="Ada")
    pair.catch_up()
    assert await greenorm.run(names) == ["Ada"]
    reading = asyncio.create_task(greenorm.run(sleeps))
    while not greenorm.pool_stats("replica").in_use:
        await asyncio.sleep(0.01)

    await asyncio.to_thread(pair.replica.stop)
    try:
        with pytest.raises(OperationalError):
            await reading
        with pytest.raises(OperationalError, match="Is the server running"):
            await greenorm.run(names)
        assert await greenorm.run(falls_back) == ["Ada"]
        await greenorm.run(Owner.objects.create, name="Bob")  # the primary does not care
        stats = greenorm.pool_stats("replica")
        assert (stats.in_use, stats.waiting, stats.size) == (0, 0, 0)
    finally:
        await asyncio.to_thread(pair.replica.start)
    pair.catch_up()
    assert await greenorm.run(names) == ["Ada", "Bob"]
    assert await asyncio.gather(*[greenorm.run(names) for _ in range(10)]) == [["Ada", "Bob"]] * 10
