"""Several aliases in one run: routers, a transaction on each, and backends that would block the event loop."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connection,
    connections,
    models,
    router,
    transaction,
)
from django.db.utils import ConnectionDoesNotExist
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

import greenorm

from .shop.models import Account, Owner, Tag


class Stop(Exception):
    """What a test raises to leave a block."""


class ReadFromDefaultWriteToOther:
    """Reads tags from `default` and writes them to `other`."""

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str | None:
        return "default" if model is Tag else None

    def db_for_write(self, model: type[models.Model], **hints: Any) -> str | None:
        return "other" if model is Tag else None


def names(using: str) -> list[str]:
    return list(Tag.objects.using(using).order_by("pk").values_list("name", flat=True))


def ask(sql: str, using: str = "default") -> Any:
    """Return the one value that a statement gives, if it gives one."""
    with connections[using].cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


# Several aliases


async def test_using_names_the_database() -> None:
    def written() -> Any:
        Tag.objects.using("other").create(name="a")
        databases = [ask("SELECT current_database()", using) for using in ("default", "other")]
        return names("default"), names("other"), databases

    expected = [connections[using].settings_dict["NAME"] for using in ("default", "other")]
    assert await greenorm.run(written) == ([], ["a"], expected)


async def test_object_remembers_the_database_that_it_came_from() -> None:
    def saved() -> Any:
        owner = Owner.objects.using("other").create(name="a")
        owner.accounts.create(balance=1)
        owner.name = "b"
        owner.save()
        related = Account.objects.using("other").get().owner
        return owner._state.db, related._state.db, related.name, Owner.objects.count()

    assert await greenorm.run(saved) == ("other", "other", "b", 0)


async def test_router_chooses_the_database_of_reads_and_writes() -> None:
    def written() -> Any:
        tag = Tag.objects.create(name="a")
        return tag._state.db, router.db_for_read(Tag), Tag.objects.count(), names("other")

    with override_settings(DATABASE_ROUTERS=[ReadFromDefaultWriteToOther()]):
        assert await greenorm.run(written) == ("other", "default", 0, ["a"])


async def test_relation_across_databases_is_djangos_error() -> None:
    def crossed() -> None:
        Account(owner=Owner.objects.using("other").create(name="a")).tags.add(Tag.objects.create(name="a"))

    with pytest.raises(ValueError, match="needs to have a value for field"):
        await greenorm.run(crossed)


async def test_each_alias_has_one_wrapper_in_a_run() -> None:
    def looked_up() -> Any:
        default, other = connections["default"], connections["other"]
        return (
            connections["default"] is default,
            connections["other"] is other,
            default is other,
            connection.alias,
            [each.alias for each in connections.all(initialized_only=True)],
            [each.alias for each in connections.all()] == list(connections.settings),
        )

    assert await greenorm.run(looked_up) == (
        True, True, False, "default", ["default", "other"], True,
    )  # fmt: skip


async def test_atomic_blocks_of_two_aliases_commit_together_by_hand() -> None:
    def written() -> Any:
        with transaction.atomic(), transaction.atomic(using="other"):
            Tag.objects.create(name="a")
            Tag.objects.using("other").create(name="b")
        return names("default"), names("other")

    assert await greenorm.run(written) == (["a"], ["b"])


async def test_rollback_on_one_alias_leaves_the_other_alone() -> None:
    def written() -> Any:
        with transaction.atomic():
            Tag.objects.create(name="a")
            with pytest.raises(Stop), transaction.atomic(using="other"):
                Tag.objects.using("other").create(name="b")
                raise Stop
            Tag.objects.create(name="c")
        return names("default"), names("other")

    assert await greenorm.run(written) == (["a", "c"], [])


async def test_error_on_one_alias_breaks_only_its_transaction() -> None:
    def written() -> Any:
        with pytest.raises(IntegrityError), transaction.atomic(using="other"):
            Owner.objects.using("other").create(name="a")
            with transaction.atomic():
                Tag.objects.create(name="b")
                Owner.objects.using("other").create(name="a")
        return names("default"), Owner.objects.using("other").count()

    assert await greenorm.run(written) == ([], 0)


async def test_autocommit_of_one_alias_is_its_own() -> None:
    def written() -> Any:
        transaction.set_autocommit(False, using="other")
        Tag.objects.create(name="a")
        Tag.objects.using("other").create(name="b")
        states = transaction.get_autocommit(), transaction.get_autocommit(using="other")
        transaction.rollback(using="other")
        transaction.set_autocommit(True, using="other")
        return states, names("default"), names("other")

    assert await greenorm.run(written) == ((True, False), ["a"], [])


async def test_on_commit_waits_for_its_own_alias() -> None:
    def called() -> list[str]:
        seen: list[str] = []
        with transaction.atomic():
            with transaction.atomic(using="other"):
                transaction.on_commit(lambda: seen.append("default"))
                transaction.on_commit(lambda: seen.append("other"), using="other")
            seen.append("between")
        return seen

    assert await greenorm.run(called) == ["other", "between", "default"]


async def test_queries_are_logged_by_alias() -> None:
    def logged() -> Any:
        with CaptureQueriesContext(connection) as default, CaptureQueriesContext(connections["other"]) as other:
            ask("SELECT 1", "other")
            ask("SELECT 2")
            ask("SELECT 3", "other")
        return [[query["sql"] for query in queries] for queries in (default, other)]

    assert await greenorm.run(logged) == [["SELECT 2"], ["SELECT 1", "SELECT 3"]]


async def test_open_atomic_on_one_alias_leaves_the_other_free_for_a_child_task() -> None:
    async with greenorm.atomic():
        await asyncio.create_task(greenorm.run(Tag.objects.using("other").create, name="a"))
        with pytest.raises(greenorm.SharedScope):
            await asyncio.create_task(greenorm.run(Tag.objects.create, name="a"))
    assert await greenorm.run(names, "other") == ["a"]


async def test_atomic_across_awaits_names_its_alias() -> None:
    with pytest.raises(Stop):
        async with greenorm.atomic(using="other"):
            await greenorm.run(Tag.objects.using("other").create, name="a")
            await greenorm.run(Tag.objects.create, name="b")
            raise Stop
    assert await greenorm.run(names, "other") == []
    assert await greenorm.run(names, "default") == ["b"]


async def test_connections_of_all_aliases_go_back_at_the_end_of_a_run() -> None:
    await greenorm.run(lambda: (ask("SELECT 1"), ask("SELECT 1", "other")))
    assert [greenorm.pool_stats(alias).in_use for alias in ("default", "other")] == [0, 0]
    assert [greenorm.pool_stats(alias).idle for alias in ("default", "other")] == [1, 1]


async def test_alias_that_is_not_used_connects_nothing() -> None:
    await greenorm.run(ask, "SELECT 1")
    assert greenorm.pool_stats("other").opened == 0


async def test_error_of_one_pool_names_its_alias(alias_that_cannot_connect: str) -> None:
    def used() -> Any:
        with pytest.raises(OperationalError):
            ask("SELECT 1", alias_that_cannot_connect)
        return ask("SELECT 1")

    assert await greenorm.run(used) == 1


@pytest.fixture
def alias_that_cannot_connect() -> Iterator[str]:
    connections.settings["lost"] = {**deepcopy(connections.settings["default"]), "NAME": "no_such_database"}
    yield "lost"
    del connections.settings["lost"]


# Names


async def test_unknown_alias_is_djangos_error() -> None:
    with pytest.raises(ConnectionDoesNotExist, match="The connection 'nowhere' doesn't exist"):
        await greenorm.run(lambda: connections["nowhere"])
    with pytest.raises(ConnectionDoesNotExist, match="The connection 'nowhere' doesn't exist"):
        await greenorm.run(lambda: Tag.objects.using("nowhere").count())


async def test_unknown_alias_is_djangos_error_in_a_block_too() -> None:
    with pytest.raises(ConnectionDoesNotExist):
        async with greenorm.atomic(using="nowhere"):
            pass
    with pytest.raises(ConnectionDoesNotExist):
        async with greenorm.connection("nowhere"):
            pass
    assert await greenorm.run(ask, "SELECT 1") == 1


async def test_alias_added_to_the_settings_later_can_be_used() -> None:
    connections.settings["later"] = connections["default"].copy("later").settings_dict
    try:
        assert await greenorm.run(ask, "SELECT current_database()", "later") == connection.settings_dict["NAME"]
    finally:
        del connections.settings["later"]


async def test_alias_can_be_deleted_in_a_run_and_is_made_anew() -> None:
    def replaced() -> Any:
        before = connections["other"]
        ask("SELECT 1", "other")
        before.close()
        del connections["other"]
        with pytest.raises(AttributeError):
            del connections["other"]
        return connections["other"] is before, ask("SELECT 1", "other")

    assert await greenorm.run(replaced) == (False, 1)


async def test_wrapper_made_by_hand_can_take_the_place_of_an_alias_for_a_run() -> None:
    def replaced() -> str:
        connections["default"] = connections["other"].copy("default")
        return ask("SELECT current_database()")

    other = connections["other"].settings_dict["NAME"]
    assert await greenorm.run(replaced) == other
    assert await greenorm.run(ask, "SELECT current_database()") != other


# Copies


async def test_copy_is_a_connection_of_its_own() -> None:
    def apart() -> Any:
        copy = connections["other"].copy()
        try:
            with transaction.atomic(using="other"):
                Tag.objects.using("other").create(name="a")
                with copy.cursor() as cursor:
                    cursor.execute("SELECT count(*), pg_backend_pid() FROM shop_tag")
                    count, pid = cursor.fetchone()
                return count, pid != ask("SELECT pg_backend_pid()", "other")
        finally:
            copy.close()

    assert await greenorm.run(apart) == (0, True)


async def test_copy_rolls_back_apart_from_its_alias() -> None:
    def apart() -> list[str]:
        copy = connections["other"].copy()
        try:
            copy.set_autocommit(False)
            with copy.cursor() as cursor:
                cursor.execute("INSERT INTO shop_tag (name) VALUES ('a')")
            Tag.objects.using("other").create(name="b")
            copy.rollback()
            copy.set_autocommit(True)
        finally:
            copy.close()
        return names("other")

    assert await greenorm.run(apart) == ["b"]


async def test_copy_can_be_used_again_after_close() -> None:
    def again() -> list[Any]:
        copy = connections["other"].copy()
        answers = []
        for _ in range(2):
            with copy.cursor() as cursor:
                cursor.execute("SELECT 1")
                answers.append(cursor.fetchone())
            copy.close()
        return answers

    assert await greenorm.run(again) == [(1,), (1,)]


@pytest.mark.parametrize("closing", [True, False], ids=["closed", "left"])
async def test_copy_has_left_the_server_with_its_run(admin: psycopg.Connection, closing: bool) -> None:
    def pid() -> int:
        copy = connections["other"].copy()
        with copy.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (answer,) = cursor.fetchone()
        if closing:
            copy.close()
        return answer

    gone = await greenorm.run(pid)
    async with asyncio.timeout(5):
        while admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [gone]).fetchone():
            await asyncio.sleep(0.01)


async def test_copy_whose_set_up_failed_has_left_the_server(admin: psycopg.Connection) -> None:
    def misconfigured() -> Any:
        copy = connections["other"].copy()
        copy.settings_dict = {**copy.settings_dict, "OPTIONS": {"isolation_level": 999}}
        with pytest.raises(ImproperlyConfigured):
            copy.ensure_connection()
        return copy.settings_dict["NAME"]

    database = await greenorm.run(misconfigured)
    here = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND application_name = ''"
    async with asyncio.timeout(60):
        while admin.execute(here, [database]).fetchone():
            await asyncio.sleep(0.01)


# Backends that would block


async def test_blocking_backend_is_refused_at_its_first_query() -> None:
    with pytest.raises(greenorm.BlockingBackend) as caught:
        await greenorm.run(ask, "SELECT 1", "local")
    message = str(caught.value)
    assert "'local'" in message
    assert "django.db.backends.sqlite3" in message
    assert "greenorm.backends.postgresql" in message
    assert "GREENORM = {'BLOCKING_ALIASES': ['local']}" in message
    assert isinstance(caught.value, ImproperlyConfigured)


async def test_blocking_backend_is_refused_in_a_transaction_too() -> None:
    def begin() -> None:
        with transaction.atomic(using="local"):
            pass

    with pytest.raises(greenorm.BlockingBackend):
        await greenorm.run(begin)
    with pytest.raises(greenorm.BlockingBackend):
        async with greenorm.atomic(using="local"):
            pass


async def test_blocking_backend_is_refused_for_the_orm_and_the_run_goes_on() -> None:
    def tried() -> list[str]:
        Tag.objects.create(name="a")
        with pytest.raises(greenorm.BlockingBackend):
            Tag.objects.using("local").count()
        return names("default")

    assert await greenorm.run(tried) == ["a"]


async def test_blocking_backend_may_be_looked_at() -> None:
    def looked_at() -> Any:
        local = connections["local"]
        return local.vendor, local.alias, local.features.supports_json_field_contains, local.ops.quote_name("a")

    assert await greenorm.run(looked_at) == ("sqlite", "local", False, '"a"')


async def test_blocking_backend_that_nobody_used_does_not_disturb_the_others() -> None:
    def closed() -> int:
        connections["local"].close()
        connections.close_all()
        return ask("SELECT 1")

    assert await greenorm.run(closed) == 1


async def test_copy_of_a_blocking_backend_is_refused_too() -> None:
    def tried() -> None:
        with connections["local"].copy().cursor():
            pass

    with pytest.raises(greenorm.BlockingBackend):
        await greenorm.run(tried)


@override_settings(GREENORM={"BLOCKING_ALIASES": ["local"]})
async def test_blocking_alias_that_is_allowed_works_in_a_run() -> None:
    def used() -> Any:
        with connections["local"].schema_editor() as editor:
            editor.create_model(Tag)
        with transaction.atomic(using="local"):
            Tag.objects.using("local").create(name="a")
        with pytest.raises(Stop), transaction.atomic(using="local"):
            Tag.objects.using("local").create(name="b")
            raise Stop
        Tag.objects.create(name="c")
        return names("local"), names("default")

    assert await greenorm.run(used) == (["a"], ["c"])


@override_settings(GREENORM={"BLOCKING_ALIASES": ["local"]})
async def test_blocking_alias_that_is_allowed_iterates_and_closes() -> None:
    def used() -> Any:
        with connections["local"].schema_editor() as editor:
            editor.create_model(Tag)
        Tag.objects.using("local").bulk_create([Tag(name=str(i)) for i in range(5)])
        read = [tag.name for tag in Tag.objects.using("local").order_by("pk").iterator(chunk_size=2)]
        connections["local"].close()
        return read

    assert await greenorm.run(used) == ["0", "1", "2", "3", "4"]


@override_settings(GREENORM={"BLOCKING_ALIASES": ["local"]})
async def test_blocking_alias_that_is_allowed_waits_for_async_work_in_its_transaction() -> None:
    def used() -> list[str]:
        with connections["local"].schema_editor() as editor:
            editor.create_model(Tag)
        with transaction.atomic(using="local"):
            Tag.objects.using("local").create(name="a")
            greenorm.await_(asyncio.sleep(0.01))
        return names("local")

    assert await greenorm.run(used) == ["a"]


@pytest.fixture
def file_alias(tmp_path: Any) -> Iterator[str]:
    connections.settings["file"] = {**deepcopy(connections.settings["local"]), "NAME": str(tmp_path / "db.sqlite3")}
    yield "file"
    del connections.settings["file"]


@override_settings(GREENORM={"BLOCKING_ALIASES": ["file"]})
async def test_blocking_file_alias_keeps_its_rows_from_run_to_run(file_alias: str) -> None:
    def create() -> None:
        with connections[file_alias].schema_editor() as editor:
            editor.create_model(Tag)
        Tag.objects.using(file_alias).create(name="a")

    await greenorm.run(create)
    assert await greenorm.run(names, file_alias) == ["a"]


@override_settings(GREENORM={"BLOCKING_ALIASES": ["local", "file"]})
@pytest.mark.parametrize("alias", ["local", "file"])
async def test_blocking_alias_is_closed_with_the_run(file_alias: str, alias: str) -> None:
    def used() -> sqlite3.Connection:
        ask("SELECT 1", alias)
        return connections[alias].connection

    conn = await greenorm.run(used)
    with closing(conn), pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        conn.execute("SELECT 1")


@override_settings(GREENORM={"BLOCKING_ALIASES": ["file"]})
async def test_blocking_file_alias_has_one_transaction_across_awaits(file_alias: str) -> None:
    def create() -> None:
        with connections[file_alias].schema_editor() as editor:
            editor.create_model(Tag)

    await greenorm.run(create)
    with pytest.raises(Stop):
        async with greenorm.atomic(using=file_alias):
            await greenorm.run(Tag.objects.using(file_alias).create, name="a")
            assert await greenorm.run(names, file_alias) == ["a"]
            raise Stop
    assert await greenorm.run(names, file_alias) == []


def test_blocking_backend_works_as_always_outside_of_a_run() -> None:
    asyncio.run(greenorm.run(ask, "SELECT 1"))
    with connections["local"].cursor() as cursor:
        cursor.execute("SELECT sqlite_version()")
        assert cursor.fetchone()
    connections["local"].close()


def test_routed_reads_and_writes_are_the_same_outside_of_a_run() -> None:
    with override_settings(DATABASE_ROUTERS=[ReadFromDefaultWriteToOther()]):
        Tag.objects.create(name="a")
        assert (Tag.objects.count(), names("other")) == (0, ["a"])


async def test_pool_stats_of_an_alias_without_a_pool_is_improperly_configured() -> None:
    with pytest.raises(ImproperlyConfigured, match="'local' has no greenorm pool"):
        greenorm.pool_stats("local")
    with pytest.raises(ConnectionDoesNotExist):
        greenorm.pool_stats("nowhere")


async def test_missing_table_of_one_alias_is_named_by_its_error() -> None:
    with pytest.raises(ProgrammingError, match='relation "nothing" does not exist'):
        await greenorm.run(ask, "SELECT * FROM nothing", "other")
