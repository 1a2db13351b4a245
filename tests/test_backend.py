"""Everything that Django's PostgreSQL backend offers works inside a run, as it does in plain sync Django.

`alike` states most laws twice: the function is run by plain sync Django first, and must return the same in a run.
"""

from __future__ import annotations

import asyncio
import datetime
import decimal
import functools
import io
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    close_old_connections,
    connection,
    connections,
    models,
    reset_queries,
    transaction,
)
from django.db.backends.postgresql import base as django_base
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.db.backends.signals import connection_created
from django.db.models import F
from django.db.transaction import TransactionManagementError
from django.test import TransactionTestCase, override_settings
from django.test.utils import CaptureQueriesContext
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo, register_composite
from psycopg_pool import ConnectionPool

import greenorm

from .shop.models import Account, Fact, Owner, Tag

T = TypeVar("T")


class Stop(Exception):
    """What a test raises to leave a block."""


async def plainly(fn: Callable[[], T]) -> T:
    """Run `fn` as plain sync Django does: in a thread, with connections of its own; then empty the tables."""

    def work() -> T:
        try:
            return fn()
        finally:
            connections.close_all()
            for each in (connection, connections["other"]):
                ask("TRUNCATE shop_owner, shop_tag, shop_fact RESTART IDENTITY CASCADE", using=each)
                each.close()

    return await asyncio.to_thread(work)


async def alike(fn: Callable[[], T]) -> T:
    """Return what `fn` returns in a run, where plain sync Django must return the same."""
    expected = await plainly(fn)
    result = await greenorm.run(fn)
    assert result == expected
    return result


@contextmanager
def wrapper(**changes: Any) -> Iterator[Any]:
    """A wrapper of its own with the default alias's settings, some changed; without pool, unless OPTIONS say so."""
    changes["OPTIONS"] = {**connection.settings_dict["OPTIONS"], "pool": None, **changes.get("OPTIONS", {})}
    made = type(connections["default"])({**deepcopy(connection.settings_dict), **changes}, "default")
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def alias() -> Iterator[Callable[..., str]]:
    """Add aliases to Django's settings: the default one's, without pool, and with what is given changed."""
    added: list[str] = []

    def add(**changes: Any) -> str:
        name = f"added_{len(added)}"
        default = connections.settings["default"]
        options = {**default["OPTIONS"], "pool": None, **changes.pop("OPTIONS", {})}
        connections.settings[name] = {**deepcopy(default), **changes, "OPTIONS": options}
        added.append(name)
        return name

    yield add
    for name in added:
        if hasattr(connections._connections, name):
            connections[name].close()
            del connections[name]
        if (pool := django_base.DatabaseWrapper._connection_pools.pop(name, None)) is not None:
            pool.close()
        del connections.settings[name]


def ask(sql: str, params: Any = None, using: Any = connection) -> Any:
    """Return the one value that a statement gives, if it gives one."""
    with using.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone()[0] if cursor.description else None


def names(using: str = "default") -> list[str]:
    return list(Tag.objects.using(using).order_by("pk").values_list("name", flat=True))


# Autocommit and manual transactions


async def test_autocommit_makes_each_statement_visible_at_once(admin: psycopg.Connection) -> None:
    def seen() -> Any:
        Tag.objects.create(name="a")
        return transaction.get_autocommit(), admin.execute("SELECT name FROM shop_tag").fetchall()

    assert await alike(seen) == (True, [("a",)])


async def test_set_autocommit_off_shows_nothing_before_commit(admin: psycopg.Connection) -> None:
    def seen() -> Any:
        transaction.set_autocommit(False)
        try:
            Tag.objects.create(name="a")
            before = admin.execute("SELECT count(*) FROM shop_tag").fetchone()
            transaction.commit()
            return before, admin.execute("SELECT count(*) FROM shop_tag").fetchone()
        finally:
            transaction.set_autocommit(True)

    assert await alike(seen) == ((0,), (1,))


async def test_rollback_undoes_a_manual_transaction() -> None:
    def undone() -> list[str]:
        transaction.set_autocommit(False)
        try:
            Tag.objects.create(name="a")
            transaction.commit()
            Tag.objects.create(name="b")
            transaction.rollback()
        finally:
            transaction.set_autocommit(True)
        return names()

    assert await alike(undone) == ["a"]


async def test_manual_transaction_left_open_is_rolled_back_at_the_end_of_the_run() -> None:
    def leave_open() -> None:
        transaction.set_autocommit(False)
        Tag.objects.create(name="a")

    await greenorm.run(leave_open)
    assert await greenorm.run(lambda: (transaction.get_autocommit(), names())) == (True, [])


async def test_commit_inside_atomic_is_forbidden() -> None:
    def forbidden() -> str:
        with transaction.atomic(), pytest.raises(TransactionManagementError) as caught:
            transaction.commit()
        return str(caught.value)

    assert "forbidden when an 'atomic' block is active" in await alike(forbidden)


async def test_autocommit_false_in_settings_leaves_committing_to_the_caller(admin: psycopg.Connection) -> None:
    def seen() -> Any:
        with wrapper(AUTOCOMMIT=False) as manual:
            ask("INSERT INTO shop_tag (name) VALUES ('a')", using=manual)
            before = admin.execute("SELECT count(*) FROM shop_tag").fetchone()
            manual.commit()
            return manual.get_autocommit(), before, admin.execute("SELECT count(*) FROM shop_tag").fetchone()

    assert await alike(seen) == (False, (0,), (1,))


async def test_autocommit_false_in_settings_holds_for_each_borrower(alias: Callable[..., str]) -> None:
    name = alias(AUTOCOMMIT=False)

    def insert() -> tuple[bool, list[str]]:
        Tag.objects.using(name).create(name="a")
        return transaction.get_autocommit(using=name), names(name)

    assert await greenorm.run(insert) == (False, ["a"])
    assert await greenorm.run(insert) == (False, ["a"])


# Atomic blocks and savepoints


async def test_savepoint_rolls_back_only_its_block() -> None:
    def partly() -> list[str]:
        with transaction.atomic():
            Tag.objects.create(name="a")
            with pytest.raises(Stop), transaction.atomic():
                Tag.objects.create(name="b")
                raise Stop
            Tag.objects.create(name="c")
        return names()

    assert await alike(partly) == ["a", "c"]


async def test_savepoints_can_be_set_by_hand() -> None:
    def by_hand() -> list[str]:
        with transaction.atomic():
            first = connection.savepoint()
            Tag.objects.create(name="a")
            connection.savepoint_commit(first)
            second = connection.savepoint()
            Tag.objects.create(name="b")
            connection.savepoint_rollback(second)
        return names()

    assert await alike(by_hand) == ["a"]


async def test_error_breaks_the_transaction_until_its_block_ends() -> None:
    def broken() -> Any:
        with pytest.raises(TransactionManagementError) as caught, transaction.atomic():
            Owner.objects.create(name="a")
            with pytest.raises(IntegrityError), transaction.atomic(savepoint=False):
                Owner.objects.create(name="a")
            Owner.objects.count()
        return str(caught.value), type(caught.value.__cause__), Owner.objects.count()

    message, cause, count = await alike(broken)
    assert message.startswith("An error occurred in the current transaction")
    assert (cause, count) == (IntegrityError, 0)


async def test_set_rollback_undoes_the_block_without_an_error() -> None:
    def undone() -> list[str]:
        with transaction.atomic():
            Tag.objects.create(name="a")
            transaction.set_rollback(True)
        return names()

    assert await alike(undone) == []


async def test_durable_block_is_refused_inside_another() -> None:
    def refused() -> str:
        with transaction.atomic(), pytest.raises(RuntimeError) as caught, transaction.atomic(durable=True):
            pass
        return str(caught.value)

    assert "durable" in await alike(refused)


async def test_deferred_constraint_fails_the_commit() -> None:
    def late() -> Any:
        with pytest.raises(IntegrityError) as caught, transaction.atomic():
            Account.objects.create(owner_id=1)
        return type(caught.value.__cause__), Account.objects.count()

    assert await alike(late) == (psycopg.errors.ForeignKeyViolation, 0)


async def test_check_constraints_finds_a_deferred_violation_early() -> None:
    def early() -> str:
        with transaction.atomic():
            account = Account.objects.create(owner_id=1)
            with pytest.raises(IntegrityError) as caught, transaction.atomic():
                connection.check_constraints()
            account.delete()
        return str(caught.value)

    assert "foreign key" in await alike(early)


async def test_select_for_update_locks_until_the_block_ends(admin: psycopg.Connection) -> None:
    skipping = "SELECT count(*) FROM (SELECT 1 FROM shop_owner FOR UPDATE SKIP LOCKED) AS free"

    def locked() -> Any:
        Owner.objects.create(name="a")
        with transaction.atomic():
            Owner.objects.select_for_update().get(name="a")
            inside = admin.execute(skipping).fetchone()
        return inside, admin.execute(skipping).fetchone()

    assert await alike(locked) == ((0,), (1,))


# Isolation levels


@pytest.mark.parametrize("level", list(psycopg.IsolationLevel))
async def test_isolation_level_of_the_options_is_the_transactions(level: psycopg.IsolationLevel) -> None:
    def inside() -> Any:
        with wrapper(OPTIONS={"isolation_level": level}) as isolated:
            isolated.set_autocommit(False)
            shown = ask("SHOW transaction_isolation", using=isolated)
            isolated.rollback()
            isolated.set_autocommit(True)
            return shown, isolated.isolation_level

    assert await alike(inside) == (level.name.lower().replace("_", " "), level)


async def test_isolation_level_holds_for_each_borrower(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"isolation_level": psycopg.IsolationLevel.SERIALIZABLE})

    def inside() -> Any:
        with transaction.atomic(using=name):
            shown = ask("SHOW transaction_isolation", using=connections[name])
        return shown, connections[name].isolation_level

    for _ in range(2):
        assert await greenorm.run(inside) == ("serializable", psycopg.IsolationLevel.SERIALIZABLE)


async def test_isolation_level_is_read_committed_unless_said_otherwise() -> None:
    def inside() -> Any:
        with transaction.atomic():
            return ask("SHOW transaction_isolation"), connection.isolation_level

    assert await alike(inside) == ("read committed", psycopg.IsolationLevel.READ_COMMITTED)


async def test_unknown_isolation_level_is_improperly_configured() -> None:
    def refused() -> str:
        with wrapper(OPTIONS={"isolation_level": -1}) as wrong, pytest.raises(ImproperlyConfigured) as caught:
            wrong.ensure_connection()
        return str(caught.value)

    assert await alike(refused) == (
        "Invalid transaction isolation level -1 specified. Use one of the psycopg.IsolationLevel values."
    )


async def test_isolation_level_set_by_a_borrower_is_not_the_next_ones() -> None:
    def set_by_hand() -> None:
        connection.ensure_connection()
        connection.connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.connection.read_only = True

    def inside() -> Any:
        with transaction.atomic():
            return ask("SHOW transaction_isolation"), ask("SHOW transaction_read_only")

    await greenorm.run(set_by_hand)
    assert await greenorm.run(inside) == ("read committed", "off")


# Server-side cursors


def open_cursors(using: Any = connection) -> list[tuple[bool, bool]]:
    """Return, of each server-side cursor that Django has open, whether it is holdable and scrollable."""
    with using.cursor() as cursor:
        cursor.execute("SELECT is_holdable, is_scrollable FROM pg_cursors WHERE name LIKE '_django_curs_%'")
        return cursor.fetchall()


def fill(count: int, using: str = "default") -> None:
    Tag.objects.using(using).bulk_create([Tag(name=str(i)) for i in range(count)])


async def test_iterator_uses_a_server_side_cursor_and_closes_it() -> None:
    def cursors() -> Any:
        fill(10)
        items = Tag.objects.order_by("pk").iterator(chunk_size=2)
        first, during = next(items).name, open_cursors()
        return first, during, [tag.name for tag in items], open_cursors()

    assert await alike(cursors) == ("0", [(True, False)], [str(i) for i in range(1, 10)], [])


async def test_iterator_inside_atomic_uses_a_cursor_of_the_transaction() -> None:
    def cursors() -> Any:
        fill(10)
        with transaction.atomic():
            items = Tag.objects.iterator(chunk_size=2)
            next(items)
            return open_cursors(), len(list(items)), open_cursors()

    assert await alike(cursors) == ([(False, False)], 9, [])


async def test_iterator_closed_early_closes_its_cursor() -> None:
    def cursors() -> Any:
        fill(10)
        items = Tag.objects.iterator(chunk_size=2)
        next(items)
        items.close()
        return open_cursors()

    assert await alike(cursors) == []


async def test_iterator_left_half_read_is_closed_with_the_run() -> None:
    def leave() -> Any:
        fill(10)
        items = Tag.objects.iterator(chunk_size=2)
        next(items)
        return items, connection.connection.info.backend_pid

    items, pid = await greenorm.run(leave)
    assert await greenorm.run(lambda: (open_cursors(), connection.connection.info.backend_pid)) == ([], pid)
    items.close()


async def test_iterator_dropped_half_read_by_a_run_leaves_no_cursor() -> None:
    def drop() -> int:
        fill(10)
        next(Tag.objects.iterator(chunk_size=2))
        return connection.connection.info.backend_pid

    pid = await greenorm.run(drop)
    assert await greenorm.run(lambda: (open_cursors(), connection.connection.info.backend_pid)) == ([], pid)


async def test_iterators_can_be_read_in_turns() -> None:
    def in_turns() -> Any:
        fill(5)
        one, two = Tag.objects.order_by("pk").iterator(chunk_size=2), Tag.objects.order_by("-pk").iterator(chunk_size=2)
        return [(a.name, b.name) for a, b in zip(one, two, strict=True)], open_cursors()

    assert await alike(in_turns) == ([("0", "4"), ("1", "3"), ("2", "2"), ("3", "1"), ("4", "0")], [])


async def test_iterator_lets_other_statements_pass_between_its_chunks() -> None:
    def renamed() -> list[str]:
        fill(5)
        for tag in Tag.objects.iterator(chunk_size=2):
            Tag.objects.filter(pk=tag.pk).update(name=f"{tag.name}!")
        return names()

    assert await alike(renamed) == ["0!", "1!", "2!", "3!", "4!"]


async def test_iterator_prefetches_chunk_by_chunk() -> None:
    def prefetched() -> Any:
        for name in "abc":
            Account.objects.create(owner=Owner.objects.create(name=name))
        owners = Owner.objects.order_by("pk").prefetch_related("accounts").iterator(chunk_size=2)
        with CaptureQueriesContext(connection) as queries:
            return [(owner.name, len(owner.accounts.all())) for owner in owners], len(queries)

    assert await alike(prefetched) == ([("a", 1), ("b", 1), ("c", 1)], 3)


async def test_iterator_error_on_the_server_is_djangos() -> None:
    def failing() -> Any:
        fill(3)
        with pytest.raises(DataError) as caught:
            list(Tag.objects.extra(select={"no": "1 / (id - 2)"}).order_by("pk").iterator(chunk_size=1))
        return type(caught.value.__cause__), open_cursors()

    assert await alike(failing) == (psycopg.errors.DivisionByZero, [])


@pytest.mark.parametrize("block", [nullcontext, transaction.atomic], ids=["autocommit", "atomic"])
async def test_disable_server_side_cursors_is_honoured(alias: Callable[..., str], block: Any) -> None:
    name = alias(DISABLE_SERVER_SIDE_CURSORS=True)

    def cursors() -> Any:
        fill(10, using=name)
        with block(name):
            items = Tag.objects.using(name).iterator(chunk_size=2)
            next(items)
            return open_cursors(connections[name]), len(list(items))

    assert await alike(cursors) == ([], 9)


async def test_chunked_cursor_is_an_async_server_cursor() -> None:
    def fetched() -> Any:
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT generate_series(1, %s)", [6])
            assert isinstance(cursor.cursor, psycopg.AsyncServerCursor)
            return cursor.fetchone(), cursor.fetchmany(2), list(cursor), cursor.fetchall()

    assert await greenorm.run(fetched) == ((1,), [(2,), (3,)], [(4,), (5,), (6,)], [])


async def test_chunked_cursor_has_the_time_zone_of_its_connection() -> None:
    def fetched() -> Any:
        with wrapper(TIME_ZONE="Asia/Tokyo") as tokyo, tokyo.chunked_cursor() as cursor:
            cursor.execute("SELECT timestamptz '2026-01-01 00:00+00'")
            return cursor.fetchone()[0].isoformat()

    assert await alike(fetched) == "2026-01-01T09:00:00+09:00"


# Server-side binding


async def test_server_side_binding_sends_parameters_apart() -> None:
    def bound() -> Any:
        with wrapper(OPTIONS={"server_side_binding": True}) as binding, binding.cursor() as cursor:
            cursor.execute("SELECT %s", ["a'b"])
            return cursor._query.query, cursor.fetchall()

    assert await alike(bound) == (b"SELECT $1", [("a'b",)])


async def test_client_side_binding_is_the_default() -> None:
    def bound() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", ["a'b"])
            return cursor._query.query, cursor.fetchall()

    assert await alike(bound) == (b"SELECT 'a''b'", [("a'b",)])


async def test_server_side_binding_serves_the_orm_and_its_iterator(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"server_side_binding": True})

    def read() -> Any:
        fill(5, using=name)
        items = Tag.objects.using(name).filter(name__gt="1").order_by("pk").iterator(chunk_size=2)
        first, during = next(items).name, open_cursors(connections[name])
        return first, during, [tag.name for tag in items], open_cursors(connections[name])

    assert await alike(read) == ("2", [(True, False)], ["3", "4"], [])


async def test_prepare_threshold_of_the_options_prepares_statements() -> None:
    def prepared() -> Any:
        with wrapper(OPTIONS={"server_side_binding": True, "prepare_threshold": 0}) as eager:
            ask("SELECT %s::int", [1], using=eager)
            return ask("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1::int'", using=eager)

    assert await alike(prepared) == 1


# Roles and time zones


@pytest.fixture
def role(admin: psycopg.Connection) -> Iterator[str]:
    admin.execute("CREATE ROLE greenorm_reader")
    admin.execute("GRANT SELECT ON shop_tag TO greenorm_reader")
    yield "greenorm_reader"
    admin.execute("DROP OWNED BY greenorm_reader")
    admin.execute("DROP ROLE greenorm_reader")


async def test_assume_role_is_the_role_of_the_connection(role: str) -> None:
    def who() -> str:
        with wrapper(OPTIONS={"assume_role": role}) as reader:
            return ask("SELECT current_user", using=reader)

    assert await alike(who) == role


async def test_assume_role_limits_each_borrower(role: str, alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"assume_role": role, "pool": {"min_size": 0, "max_size": 1}})

    def limited() -> Any:
        with pytest.raises(ProgrammingError) as caught:
            Tag.objects.using(name).create(name="a")
        return names(name), type(caught.value.__cause__)

    for _ in range(2):
        assert await greenorm.run(limited) == ([], psycopg.errors.InsufficientPrivilege)


async def test_time_zone_of_the_settings_is_the_sessions_and_the_datetimes() -> None:
    def shown() -> Any:
        with wrapper(TIME_ZONE="Asia/Tokyo") as tokyo:
            at = ask("SELECT timestamptz '2026-01-01 00:00+00'", using=tokyo)
            return ask("SHOW timezone", using=tokyo), at.isoformat(), at.tzinfo

    assert await alike(shown) == ("Asia/Tokyo", "2026-01-01T09:00:00+09:00", ZoneInfo("Asia/Tokyo"))


async def test_datetimes_are_in_utc_without_a_time_zone_of_the_alias() -> None:
    def read() -> Any:
        at = datetime.datetime(2026, 1, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
        fact = Fact.objects.create(at=at)
        fact.refresh_from_db()
        return fact.at == at, fact.at.isoformat(), fact.at.tzinfo

    assert await alike(read) == (True, "2026-01-01T11:00:00+00:00", datetime.UTC)


async def test_time_zone_without_use_tz_is_improperly_configured() -> None:
    def refused() -> str:
        with wrapper(TIME_ZONE="Asia/Tokyo") as tokyo, pytest.raises(ImproperlyConfigured) as caught:
            tokyo.ensure_connection()
        return str(caught.value)

    with override_settings(USE_TZ=False):
        assert "cannot set TIME_ZONE because USE_TZ is False" in await alike(refused)


async def test_datetimes_are_naive_without_use_tz() -> None:
    def read() -> Any:
        fact = Fact.objects.create(at=datetime.datetime(2026, 1, 1, 12))
        fact.refresh_from_db()
        return fact.at

    with override_settings(USE_TZ=False):
        assert await alike(read) == datetime.datetime(2026, 1, 1, 12)


async def test_change_of_use_tz_reaches_connections_that_are_open() -> None:
    def read() -> Any:
        return ask("SHOW timezone"), ask("SELECT timestamptz '2026-01-01 00:00+00'").tzinfo

    before = await greenorm.run(read)
    with override_settings(USE_TZ=False):
        during = await greenorm.run(read)
    assert (before, during) == (("UTC", datetime.UTC), ("Europe/Berlin", None))
    assert await greenorm.run(read) == before


async def test_change_of_time_zone_inside_a_run_reaches_its_connection() -> None:
    def read() -> Any:
        with transaction.atomic():
            before = ask("SHOW timezone")
            with override_settings(USE_TZ=False):
                during = ask("SHOW timezone"), ask("SELECT timestamptz '2026-01-01 00:00+00'").tzinfo
            return before, during, ask("SHOW timezone")

    assert await greenorm.run(read) == ("UTC", ("Europe/Berlin", None), "UTC")


# Cursors


async def test_cursor_is_an_async_cursor() -> None:
    def kind() -> bool:
        with connection.cursor() as cursor:
            return isinstance(cursor.cursor, psycopg.AsyncCursor)

    assert await greenorm.run(kind)


async def test_cursor_fetches_one_many_and_all() -> None:
    def fetched() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 6)")
            return cursor.fetchone(), cursor.fetchmany(2), cursor.fetchmany(), cursor.fetchall(), cursor.fetchone()

    assert await alike(fetched) == ((1,), [(2,), (3,)], [(4,)], [(5,), (6,)], None)


async def test_cursor_can_be_iterated() -> None:
    def rows() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 3)")
            return list(cursor)

    assert await alike(rows) == [(1,), (2,), (3,)]


async def test_cursor_describes_its_result() -> None:
    def described() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 AS a, 'x'::varchar(5) AS b")
            columns = [tuple(column) for column in cursor.description]
            return columns, cursor.rowcount, cursor.statusmessage, cursor.rownumber

    columns, *figures = await alike(described)
    assert [column[0] for column in columns] == ["a", "b"]
    assert figures == [1, "SELECT 1", 0]


async def test_cursor_counts_the_rows_of_a_change() -> None:
    def counted() -> Any:
        fill(3)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE shop_tag SET name = 'x' WHERE id > 1")
            return cursor.rowcount, cursor.statusmessage, cursor.description

    assert await alike(counted) == (2, "UPDATE 2", None)


async def test_fetch_without_a_result_is_djangos_error() -> None:
    def refused() -> str:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE shop_tag SET name = 'x'")
            with pytest.raises(ProgrammingError) as caught:
                cursor.fetchone()
        return str(caught.value)

    assert await alike(refused) == "the last operation didn't produce records (command status: UPDATE 0)"


async def test_closed_cursor_refuses_as_djangos_does() -> None:
    def refused() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        with pytest.raises(InterfaceError) as caught:
            cursor.execute("SELECT 1")
        return str(caught.value), cursor.closed

    assert await alike(refused) == ("the cursor is closed", True)


async def test_executemany_runs_a_statement_for_each_row() -> None:
    def inserted() -> Any:
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO shop_tag (name) VALUES (%s)", [["a"], ["b"], ["c"]])
            return cursor.rowcount, names()

    assert await alike(inserted) == (3, ["a", "b", "c"])


async def test_executemany_fails_as_djangos_does() -> None:
    def failing() -> Any:
        with connection.cursor() as cursor, pytest.raises(IntegrityError) as caught:
            cursor.executemany("INSERT INTO shop_owner (name) VALUES (%s)", [["a"], ["a"], ["b"]])
        return type(caught.value.__cause__), Owner.objects.count()

    assert await alike(failing) == (psycopg.errors.UniqueViolation, 0)


async def test_nextset_goes_on_to_the_next_result() -> None:
    def walked() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2; SELECT 3")
            one, more, two = cursor.fetchone(), cursor.nextset(), cursor.fetchone()
            return one, more, two, cursor.nextset(), cursor.fetchone(), cursor.nextset()

    assert await alike(walked) == ((1,), True, (2,), True, (3,), None)


async def test_results_walks_several_results() -> None:
    def walked() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2; SELECT 3")
            return [each.fetchone() for each in cursor.results()]

    assert await alike(walked) == [(1,), (2,), (3,)]


async def test_set_result_chooses_a_result() -> None:
    def chosen() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1; SELECT 2; SELECT 3")
            cursor.set_result(-1)
            last = cursor.fetchone()
            cursor.set_result(0)
            return last, cursor.fetchone()

    assert await alike(chosen) == ((3,), (1,))


async def test_scroll_moves_in_the_result() -> None:
    def scrolled() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT generate_series(1, 5)")
            cursor.scroll(3)
            fourth = cursor.fetchone()
            cursor.scroll(-2)
            third = cursor.fetchone()
            cursor.scroll(0, mode="absolute")
            with pytest.raises(IndexError):
                cursor.scroll(9)
            return fourth, third, cursor.fetchone()

    assert await alike(scrolled) == ((4,), (3,), (1,))


async def test_callproc_calls_a_function_of_the_server() -> None:
    def called() -> Any:
        with connection.cursor() as cursor:
            return cursor.callproc("generate_series", [1, 3]), cursor.fetchall()

    assert await alike(called) == ([1, 3], [(1,), (2,), (3,)])


async def test_mogrify_shows_what_would_be_sent() -> None:
    def shown() -> str:
        with connection.cursor() as cursor:
            return cursor.mogrify("SELECT %s, %s", [1, "a'b"])

    assert await alike(shown) == "SELECT 1, 'a''b'"


async def test_stream_gives_row_by_row() -> None:
    def rows() -> list[Any]:
        with connection.cursor() as cursor:
            return list(cursor.stream("SELECT generate_series(1, %s)", [3]))

    assert await alike(rows) == [(1,), (2,), (3,)]


async def test_stream_left_early_leaves_a_usable_connection() -> None:
    def left() -> Any:
        pid = connection.cursor().connection.info.backend_pid
        with connection.cursor() as cursor:
            row = next(cursor.stream("SELECT generate_series(1, 100000)"))
        return row, ask("SELECT pg_backend_pid()") == pid

    assert await alike(left) == ((1,), True)


async def test_stream_error_is_raised_where_it_is_read() -> None:
    def failing() -> Any:
        with connection.cursor() as cursor, pytest.raises(psycopg.errors.DivisionByZero):
            list(cursor.stream("SELECT 1 / (3 - i) FROM generate_series(1, 5) AS i"))
        return ask("SELECT 1")

    assert await alike(failing) == 1


async def test_error_of_the_server_is_djangos_with_psycopgs_as_its_cause() -> None:
    def failing() -> Any:
        with pytest.raises(ProgrammingError) as caught:
            ask("SELECT nothing")
        cause = caught.value.__cause__
        return str(caught.value), type(cause), cause.diag.sqlstate, ask("SELECT 1")

    message, *rest = await alike(failing)
    assert message.startswith('column "nothing" does not exist')
    assert rest == [psycopg.errors.UndefinedColumn, "42703", 1]


async def test_large_values_pass_both_ways() -> None:
    def echoed() -> Any:
        sent = "x" * 5_000_000
        return ask("SELECT %s || 'y'", [sent]) == sent + "y"

    assert await alike(echoed)


@pytest.mark.parametrize(
    "sql",
    [
        "interval '1 day 2 seconds'", "date '2026-01-02'", "time '03:04:05'", "timestamp '2026-01-02 03:04'", "1.50",
        "1e300::float8", "'NaN'::numeric", "true", "2::bigint ^ 40", "inet '10.0.0.1/8'", "'{\"a\": 1}'::jsonb",
        "ARRAY[[1, 2], [3, NULL]]", "int4range(1, 3)", "'{[1,3),[5,7)}'::int4multirange", "NULL", "'a'::\"char\"",
        "ROW(1, 'a')", "''::bytea", "uuid '12345678-1234-5678-1234-567812345678'",
    ],
)  # fmt: skip
async def test_values_of_the_server_are_what_they_are_in_sync_django(sql: str) -> None:
    assert repr(await greenorm.run(ask, f"SELECT {sql}")) == repr(await plainly(lambda: ask(f"SELECT {sql}")))


async def test_statement_timeout_is_an_operational_error_and_the_connection_stays() -> None:
    def timed_out() -> Any:
        pid = ask("SELECT pg_backend_pid()")
        with pytest.raises(OperationalError) as caught, transaction.atomic():
            ask("SET LOCAL statement_timeout = '50ms'")
            ask("SELECT pg_sleep(9)")
        return type(caught.value.__cause__), ask("SELECT pg_backend_pid()") == pid

    assert await alike(timed_out) == (psycopg.errors.QueryCanceled, True)


# COPY


async def test_copy_in_writes_rows_and_counts_them() -> None:
    def copied() -> Any:
        with connection.cursor() as cursor:
            with cursor.copy("COPY shop_tag (name) FROM STDIN") as copy:
                copy.write_row(["a"])
                copy.write_row(["b"])
            return cursor.rowcount, cursor.statusmessage, names()

    assert await alike(copied) == (2, "COPY 2", ["a", "b"])


async def test_copy_in_writes_blocks_of_text_and_bytes() -> None:
    def copied() -> Any:
        with connection.cursor() as cursor, cursor.copy("COPY shop_tag (name) FROM STDIN") as copy:
            copy.write("a\nb")
            copy.write(b"\nc\n")
        return names()

    assert await alike(copied) == ["a", "b", "c"]


async def test_copy_out_reads_rows_and_counts_them() -> None:
    def copied() -> Any:
        with connection.cursor() as cursor:
            with cursor.copy("COPY (SELECT i, 'x' FROM generate_series(1, 3) AS i) TO STDOUT") as copy:
                copy.set_types(["int4", "text"])
                rows = list(copy.rows())
            return rows, cursor.rowcount

    assert await alike(copied) == ([(1, "x"), (2, "x"), (3, "x")], 3)


async def test_copy_out_reads_blocks() -> None:
    def copied() -> Any:
        with connection.cursor() as cursor, cursor.copy("COPY (VALUES (1), (2), (3)) TO STDOUT") as copy:
            first, second = copy.read(), copy.read_row()
            return bytes(first), second, [bytes(block) for block in copy], bytes(copy.read())

    assert await alike(copied) == (b"1\n", ("2",), [b"3\n"], b"")


async def test_copy_takes_parameters() -> None:
    def copied() -> Any:
        with connection.cursor() as cursor, cursor.copy("COPY (SELECT %s) TO STDOUT", ["a'b"]) as copy:
            return list(copy.rows())

    assert await alike(copied) == [("a'b",)]


async def test_copy_in_binary_writes_typed_rows() -> None:
    def copied() -> Any:
        at = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        with connection.cursor() as cursor:
            statement = "COPY shop_fact (data, numbers, blob, at) FROM STDIN WITH (FORMAT BINARY)"
            with cursor.copy(statement) as copy:
                copy.set_types(["jsonb", "int4[]", "bytea", "timestamptz"])
                copy.write_row([psycopg.types.json.Jsonb({"a": 1}), [1, 2], b"\0", at])
        return list(Fact.objects.values_list("data", "numbers", "at"))

    assert await alike(copied) == [({"a": 1}, [1, 2], datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))]


async def test_copy_of_wrong_rows_is_the_servers_error() -> None:
    def failing() -> Any:
        statement, wrong = "COPY shop_account (balance) FROM STDIN", psycopg.errors.InvalidTextRepresentation
        with connection.cursor() as cursor, pytest.raises(wrong), cursor.copy(statement) as copy:
            copy.write_row(["many"])
        return Account.objects.count()

    assert await alike(failing) == 0


async def test_copy_left_by_an_error_copies_nothing() -> None:
    def failing() -> Any:
        statement = "COPY shop_tag (name) FROM STDIN"
        with connection.cursor() as cursor, pytest.raises(Stop), cursor.copy(statement) as copy:
            copy.write_row(["a"])
            raise Stop
        return names()

    assert await alike(failing) == []


async def test_copy_larger_than_the_sockets_buffers_arrives_whole() -> None:
    def copied() -> int:
        with connection.cursor() as cursor:
            with cursor.copy("COPY shop_tag (name) FROM STDIN") as copy:
                for _ in range(20):
                    copy.write((b"0123456789" * 5 + b"\n") * 2000)
            with cursor.copy("COPY shop_tag (name) TO STDOUT") as copy:
                return sum(len(block) for block in copy)

    assert await alike(copied) == 20 * 51 * 2000


async def test_copy_is_logged_like_a_query() -> None:
    def logged() -> Any:
        with CaptureQueriesContext(connection) as queries, connection.cursor() as cursor:  # noqa: SIM117 - too long
            with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                list(copy)
        return [query["sql"] for query in queries]

    assert await alike(logged) == ["COPY (SELECT 1) TO STDOUT"]


# psycopg's own connection


async def test_connection_is_a_psycopg_connection() -> None:
    def kind() -> bool:
        connection.ensure_connection()
        return isinstance(connection.connection, psycopg.Connection)

    assert await greenorm.run(kind)


async def test_connection_executes_and_tells_of_itself() -> None:
    def told() -> Any:
        connection.ensure_connection()
        conn = connection.connection
        pid = conn.execute("SELECT pg_backend_pid()").fetchone()[0]
        assert pid == conn.info.backend_pid
        return conn.info.dbname, conn.info.transaction_status, conn.info.encoding, conn.autocommit, conn.closed

    assert await alike(told) == (
        connection.settings_dict["NAME"], psycopg.pq.TransactionStatus.IDLE, "utf-8", True, False,
    )  # fmt: skip


async def test_connection_cursor_takes_its_options() -> None:
    def read() -> Any:
        connection.ensure_connection()
        with connection.connection.cursor(row_factory=dict_row) as cursor:
            by_name = cursor.execute("SELECT 1 AS a").fetchone()
        with connection.connection.cursor(binary=True) as cursor:
            return by_name, cursor.format

    assert await alike(read) == ({"a": 1}, psycopg.pq.Format.BINARY)


async def test_connection_transaction_commits_and_rolls_back() -> None:
    def changed() -> list[str]:
        connection.ensure_connection()
        conn = connection.connection
        with conn.transaction():
            conn.execute("INSERT INTO shop_tag (name) VALUES ('a')")
            with conn.transaction("inner") as inner:
                conn.execute("INSERT INTO shop_tag (name) VALUES ('b')")
                raise psycopg.Rollback(inner)
        with pytest.raises(Stop), conn.transaction():
            conn.execute("INSERT INTO shop_tag (name) VALUES ('c')")
            raise Stop
        return names()

    assert await alike(changed) == ["a"]


async def test_pipeline_sends_several_statements_at_once() -> None:
    def piped() -> Any:
        connection.ensure_connection()
        conn = connection.connection
        with conn.pipeline() as pipeline:
            one, two = conn.cursor(), conn.cursor()
            one.execute("SELECT 1")
            two.execute("SELECT 2")
            pipeline.sync()
            inside = two.fetchone()
        return one.fetchone(), inside, conn.info.pipeline_status

    assert await alike(piped) == ((1,), (2,), psycopg.pq.PipelineStatus.OFF)


async def test_pipeline_error_is_raised_and_ends_with_the_block() -> None:
    def failing() -> Any:
        connection.ensure_connection()
        conn = connection.connection
        with pytest.raises(psycopg.errors.DivisionByZero), conn.pipeline():
            conn.execute("SELECT 1 / 0")
            conn.execute("SELECT 1")
        return ask("SELECT 1")

    assert await alike(failing) == 1


async def test_type_info_is_fetched() -> None:
    def fetched() -> Any:
        connection.ensure_connection()
        info = TypeInfo.fetch(connection.connection, "int4")
        return info.name, info.oid, TypeInfo.fetch(connection.connection, "no_such_type")

    assert await alike(fetched) == ("int4", 23, None)


async def test_composite_type_is_fetched_and_registered() -> None:
    def fetched() -> Any:
        connection.ensure_connection()
        info = CompositeInfo.fetch(connection.connection, "shop_owner")
        with connection.cursor() as cursor:
            register_composite(info, cursor.cursor)
            cursor.execute("SELECT ROW(1, 'a')::shop_owner")
            return tuple(cursor.fetchone()[0])

    assert await alike(fetched) == (1, "a")


async def test_notifies_gives_what_was_sent() -> None:
    def heard() -> Any:
        ask("LISTEN greenorm_news")
        with wrapper() as sender:
            ask("NOTIFY greenorm_news, 'a'", using=sender)
            ask("NOTIFY greenorm_news, 'b'", using=sender)
        heard = [note.payload for note in connection.connection.notifies(timeout=5, stop_after=2)]
        ask("UNLISTEN *")
        return heard

    assert await alike(heard) == ["a", "b"]


async def test_notifies_ends_at_its_timeout_while_other_tasks_run() -> None:
    def listen() -> Any:
        ask("LISTEN greenorm_news")
        return [note.payload for note in connection.connection.notifies(timeout=0.2)]

    loop = asyncio.get_running_loop()
    start, task, turns = loop.time(), asyncio.create_task(greenorm.run(listen)), 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    assert await task == []
    assert 0.2 <= loop.time() - start < 2
    assert turns > 5


async def test_notice_handler_hears_the_server_and_not_the_next_borrowers() -> None:
    heard: list[str] = []

    def notice(listening: bool) -> int:
        connection.ensure_connection()
        if listening:
            connection.connection.add_notice_handler(lambda diag: heard.append(diag.message_primary))
        ask("DO $$BEGIN RAISE NOTICE 'hello'; END$$")
        return connection.connection.info.backend_pid

    assert await greenorm.run(notice, True) == await greenorm.run(notice, False)
    assert heard == ["hello"]


async def test_row_factory_set_by_a_borrower_is_not_the_next_ones() -> None:
    def set_by_hand() -> Any:
        connection.ensure_connection()
        connection.connection.row_factory = dict_row
        return ask.__name__ and connection.connection.execute("SELECT 1 AS a").fetchone()

    assert await greenorm.run(set_by_hand) == {"a": 1}
    assert await greenorm.run(lambda: ask("SELECT 1 AS a")) == 1


async def test_connection_names_a_cursor_that_scrolls() -> None:
    def scrolled() -> Any:
        connection.ensure_connection()
        with connection.connection.cursor("mine", scrollable=True, withhold=True) as cursor:
            cursor.execute("SELECT generate_series(1, 5)")
            last = cursor.fetchall()[-1]
            cursor.scroll(1, mode="absolute")
            second = cursor.fetchone()
            there = ask("SELECT is_scrollable FROM pg_cursors WHERE name = 'mine'")
        return last, second, there, ask("SELECT count(*) FROM pg_cursors WHERE name = 'mine'")

    assert await alike(scrolled) == ((5,), (2,), True, 0)


async def test_connection_cancel_safe_is_harmless_when_nothing_runs() -> None:
    def cancelled() -> int:
        connection.ensure_connection()
        connection.connection.cancel_safe(timeout=5)
        return ask("SELECT 1")

    assert await alike(cancelled) == 1


# What Django hooks into queries


async def test_execute_wrapper_sees_each_statement() -> None:
    def wrapped() -> Any:
        seen: list[tuple[str, bool]] = []

        def spy(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
            seen.append((sql.split()[0], many))
            return execute(sql, params, many, context)

        with connection.execute_wrapper(spy):
            Tag.objects.create(name="a")
            with connection.cursor() as cursor:
                cursor.executemany("DELETE FROM shop_tag WHERE id = %s", [[1]])
        return seen, ask("SELECT 1"), seen, connection.execute_wrappers

    assert (await alike(wrapped))[0] == [("INSERT", False), ("DELETE", True)]


async def test_execute_wrapper_may_answer_in_the_servers_place() -> None:
    def blocked() -> int:
        def blocker(*args: Any) -> Any:
            raise Stop

        ask("SELECT 1")
        with connection.execute_wrapper(blocker), pytest.raises(Stop):
            Tag.objects.create(name="a")
        return Tag.objects.count()

    assert await alike(blocked) == 0


async def test_execute_wrapper_left_behind_by_a_run_is_not_the_next_ones() -> None:
    calls: list[str] = []

    def spy(execute: Any, *args: Any) -> Any:
        calls.append(args[0])
        return execute(*args)

    await greenorm.run(lambda: connection.execute_wrappers.append(spy))
    await greenorm.run(ask, "SELECT 1")
    assert calls == []


async def test_queries_are_logged_with_force_debug_cursor() -> None:
    def logged() -> Any:
        connection.force_debug_cursor = True
        try:
            reset_queries()
            with transaction.atomic():
                Tag.objects.filter(name="a'b").count()
            return [query["sql"] for query in connection.queries]
        finally:
            connection.force_debug_cursor = False

    assert await alike(logged) == [
        "BEGIN", """SELECT COUNT(*) AS "__count" FROM "shop_tag" WHERE "shop_tag"."name" = 'a''b'""", "COMMIT",
    ]  # fmt: skip


async def test_queries_of_a_run_are_not_the_next_ones() -> None:
    with override_settings(DEBUG=True):
        assert await greenorm.run(lambda: (ask("SELECT 1"), len(connection.queries))) == (1, 1)
        assert await greenorm.run(lambda: connection.queries) == []


async def test_reset_queries_empties_the_log() -> None:
    def emptied() -> Any:
        ask("SELECT 1")
        before = len(connection.queries)
        reset_queries()
        return before, connection.queries

    with override_settings(DEBUG=True):
        assert await alike(emptied) == (1, [])


async def test_capture_queries_context_counts_its_block_only() -> None:
    def captured() -> Any:
        ask("SELECT 0")
        with CaptureQueriesContext(connection) as queries:
            ask("SELECT 1")
            ask("SELECT %s", [2])
        ask("SELECT 3")
        return [query["sql"] for query in queries.captured_queries]

    assert await alike(captured) == ["SELECT 1", "SELECT 2"]


async def test_assert_num_queries_counts() -> None:
    def counted() -> str:
        case = TransactionTestCase()
        with case.assertNumQueries(2):
            ask("SELECT 1")
            ask("SELECT 2")
        with pytest.raises(AssertionError) as caught:
            case.assertNumQueries(1, lambda: None)
        return str(caught.value).splitlines()[0]

    assert await alike(counted) == "0 != 1 : 0 queries executed, 1 expected"


async def test_explain_returns_the_plan() -> None:
    assert "Seq Scan on shop_tag" in await alike(lambda: Tag.objects.filter(name="a").explain())


@contextmanager
def receiving(receiver: Callable[..., Any]) -> Iterator[None]:
    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


async def test_connection_created_is_sent_once_for_each_connection() -> None:
    created: list[int] = []

    def note(connection: Any, **kwargs: Any) -> None:
        created.append(connection.connection.info.backend_pid)

    def pid() -> int:
        return ask("SELECT pg_backend_pid()")

    with receiving(note):
        pids = [await greenorm.run(pid) for _ in range(3)]
        pids += await asyncio.gather(*(greenorm.run(lambda: (ask("SELECT pg_sleep(0.1)"), pid())[1]) for _ in range(3)))
        pids += [await greenorm.run(pid) for _ in range(3)]
    assert len(created) == len(set(created)) == 3
    assert set(pids) == set(created)


async def test_connection_created_may_query_and_what_it_sets_stays() -> None:
    def limit(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '12s'")

    with receiving(limit):
        assert await greenorm.run(ask, "SHOW statement_timeout") == "12s"
    assert await greenorm.run(ask, "SHOW statement_timeout") == "12s"


async def test_connection_created_finds_its_wrapper_by_its_alias() -> None:
    found: list[bool] = []

    def look_up(connection: Any, **kwargs: Any) -> None:
        found.append(connections[connection.alias] is connection and ask("SELECT 1", using=connection) == 1)

    with receiving(look_up):
        await greenorm.run(ask, "SELECT 1")
    assert found == [True]


async def test_execute_wrapper_of_a_receiver_stays_with_its_connection() -> None:
    seen: list[str] = []

    def spy(execute: Any, sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    def install(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(spy)

    def read() -> int:
        ask("SELECT 1")
        return connection.execute_wrappers.count(spy)

    with receiving(install):
        assert [await greenorm.run(read) for _ in range(3)] == [1, 1, 1]
    assert seen == ["SELECT 1"] * 3


async def test_execute_wrapper_of_a_receiver_survives_a_block_that_was_open_before() -> None:
    def spy(execute: Any, *args: Any) -> Any:
        return execute(*args)

    def other(execute: Any, *args: Any) -> Any:
        return execute(*args)

    def read() -> list[Any]:
        with connection.execute_wrapper(other):
            ask("SELECT 1")
        return list(connection.execute_wrappers)

    def install(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(spy)

    with receiving(install):
        await greenorm.run(read)  # makes the connection
        assert await greenorm.run(read) == [spy]


async def test_type_handlers_of_contrib_postgres_can_be_registered() -> None:
    from django.contrib.postgres.signals import register_type_handlers

    def registers(**kwargs: Any) -> None:  # the app's own receiver, where it is installed, is to stay
        register_type_handlers(**kwargs)

    with receiving(registers):
        assert await greenorm.run(ask, "SELECT 1") == 1


# Types


async def test_fact_of_each_type_comes_back_as_it_was() -> None:
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=datetime.UTC)
    values = {
        "data": {"a": [1, None, "ü", {"b": 1.5}]},
        "numbers": [3, 1, 2],
        "period": DateTimeTZRange(at, at + datetime.timedelta(hours=1)),
        "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
        "price": decimal.Decimal("12345678.90"),
        "at": at,
    }

    def round_trip() -> Any:
        fact = Fact.objects.get(pk=Fact.objects.create(blob=b"\0\xff'\\", **values).pk)
        return bytes(fact.blob), {name: getattr(fact, name) for name in values}

    assert await alike(round_trip) == (b"\0\xff'\\", values)


async def test_empty_and_missing_values_come_back_as_they_were() -> None:
    def round_trip() -> Any:
        fact = Fact.objects.get(pk=Fact.objects.create().pk)
        return fact.data, fact.numbers, bytes(fact.blob), fact.period, fact.uuid, fact.price, fact.at

    assert await alike(round_trip) == ({}, [], b"", None, None, None, None)


async def test_json_lookups_reach_into_documents() -> None:
    def found() -> Any:
        Fact.objects.create(data={"a": {"b": [1, 2]}, "c": None})
        facts = Fact.objects
        return (
            facts.filter(data__a__b__0=1).count(),
            facts.filter(data__c=None).count(),
            facts.filter(data__contains={"c": None}).count(),
            facts.filter(data__has_key="x").count(),
            facts.values_list("data__a__b", flat=True).get(),
        )

    assert await alike(found) == (1, 1, 1, 0, [1, 2])


async def test_array_and_range_lookups_find_their_rows() -> None:
    def found() -> Any:
        start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        Fact.objects.create(numbers=[1, 2, 3], period=(start, start + datetime.timedelta(days=1)))
        facts = Fact.objects
        return (
            facts.filter(numbers__contains=[2]).count(),
            facts.filter(numbers__0=1, numbers__len=3).count(),
            facts.filter(period__contains=start).count(),
            facts.filter(period__startswith=start + datetime.timedelta(days=1)).count(),
        )

    assert await alike(found) == (1, 1, 1, 0)


async def test_bulk_create_inserts_arrays_and_decimals() -> None:
    def created() -> Any:
        Fact.objects.bulk_create([Fact(numbers=[i], price=decimal.Decimal(i)) for i in range(3)])
        return list(Fact.objects.order_by("pk").values_list("numbers", "price"))

    assert await alike(created) == [([i], decimal.Decimal(i)) for i in range(3)]


async def test_bulk_create_ignores_conflicts() -> None:
    def upserted() -> Any:
        Owner.objects.create(name="a")
        Owner.objects.bulk_create([Owner(name="a"), Owner(name="b")], ignore_conflicts=True)
        return list(Owner.objects.order_by("name").values_list("name", flat=True))

    assert await alike(upserted) == ["a", "b"]


async def test_f_expression_and_returning_work() -> None:
    def changed() -> Any:
        owner = Owner.objects.create(name="a")
        account = Account.objects.create(owner=owner, balance=1)
        Account.objects.filter(pk=account.pk).update(balance=F("balance") + 1)
        account.refresh_from_db()
        return owner.pk, account.balance, Account.objects.get_or_create(owner=owner)[1]

    assert await alike(changed) == (1, 2, False)


# Schema, commands and test databases


class Note(models.Model):
    title = models.CharField(max_length=30)
    tag = models.ForeignKey(Tag, models.CASCADE, null=True, related_name="+")

    class Meta:
        app_label = "notes"

    def __str__(self) -> str:
        return self.title


async def test_schema_editor_creates_changes_and_drops_a_table() -> None:
    def changed() -> Any:
        with connection.schema_editor() as editor:
            editor.create_model(Note)
        Note.objects.create(title="a")
        with connection.schema_editor() as editor:
            body = models.TextField(default="b")
            body.set_attributes_from_name("body")
            editor.add_field(Note, body)
        created = ask("SELECT title || body FROM notes_note"), "notes_note" in connection.introspection.table_names()
        with connection.schema_editor() as editor:
            editor.delete_model(Note)
        return created, "notes_note" in connection.introspection.table_names()

    assert await alike(changed) == (("ab", True), False)


async def test_schema_change_that_fails_leaves_nothing() -> None:
    def failing() -> Any:
        with pytest.raises(ProgrammingError), connection.schema_editor() as editor:
            editor.create_model(Note)
            editor.execute("ALTER TABLE nothing ADD COLUMN a int")
        return "notes_note" in connection.introspection.table_names()

    assert await alike(failing) is False


async def test_schema_editor_collects_sql_without_running_it() -> None:
    def collected() -> Any:
        with connection.schema_editor(collect_sql=True) as editor:
            editor.create_model(Note)
        return editor.collected_sql, "notes_note" in connection.introspection.table_names()

    statements, there = await alike(collected)
    assert statements[0].startswith('CREATE TABLE "notes_note"')
    assert not there


async def test_index_is_created_concurrently_outside_of_a_transaction() -> None:
    def created() -> Any:
        index = models.Index("name", name="shop_tag_name")
        with connection.schema_editor(atomic=False) as editor:
            editor.add_index(Tag, index, concurrently=True)
        with connection.cursor() as cursor:
            there = index.name in connection.introspection.get_constraints(cursor, "shop_tag")
        with connection.schema_editor(atomic=False) as editor:
            editor.remove_index(Tag, index, concurrently=True)
        return there

    assert await alike(created)


async def test_introspection_lists_and_describes_tables() -> None:
    def described() -> Any:
        with connection.cursor() as cursor:
            inspect = connection.introspection
            return (
                sorted(table.name for table in inspect.get_table_list(cursor) if table.name.startswith("shop_")),
                [tuple(column) for column in inspect.get_table_description(cursor, "shop_account")],
                inspect.get_relations(cursor, "shop_account"),
                inspect.get_sequences(cursor, "shop_tag"),
                sorted(inspect.get_constraints(cursor, "shop_account")),
            )

    tables, columns, relations, *_ = await alike(described)
    assert tables == ["shop_account", "shop_account_tags", "shop_fact", "shop_note", "shop_owner", "shop_tag"]
    assert [column[0] for column in columns] == ["id", "owner_id", "balance", "opened"]
    assert relations["owner_id"][:2] == ("id", "shop_owner")


async def test_migrate_goes_backwards_and_forwards() -> None:
    def migrated() -> Any:
        call_command("migrate", "auth", "zero", database="other", verbosity=0)
        without = "auth_user" in connections["other"].introspection.table_names()
        call_command("migrate", "auth", database="other", verbosity=0)
        return without, "auth_user" in connections["other"].introspection.table_names()

    assert await greenorm.run(migrated) == (False, True)


def said(command: str, *args: Any, **options: Any) -> str:
    out = io.StringIO()
    call_command(command, *args, stdout=out, **options)
    return out.getvalue()


@override_settings(DATABASE_ROUTERS=[])  # with routers, the command looks at every alias, also at a blocking one
async def test_makemigrations_finds_no_changes() -> None:
    output = await alike(lambda: said("makemigrations", "auth", check=True, dry_run=True))
    assert output == "No changes detected in app 'auth'\n"


async def test_commands_that_read_the_database_say_the_same() -> None:
    def read() -> list[str]:
        return [
            said("migrate", "--plan"),
            said("showmigrations"),
            said("inspectdb", "shop_account"),
            said("check", "--tag", "database", "--database", "default"),
            said("sqlflush"),
            said("sqlsequencereset", "shop"),
        ]

    plan, shown, inspected, *_ = await alike(read)
    assert "No planned migration operations." in plan
    assert "[X] 0001_initial" in shown
    assert "class ShopAccount(models.Model):" in inspected


async def test_dumpdata_and_loaddata_move_rows(tmp_path: Any) -> None:
    def moved() -> Any:
        fill(2)
        file = tmp_path / "tags.json"
        call_command("dumpdata", "shop.tag", output=str(file), verbosity=0)
        Tag.objects.all().delete()
        call_command("loaddata", str(file), verbosity=0)
        return names()

    assert await alike(moved) == ["0", "1"]


async def test_flush_empties_the_database() -> None:
    def flushed() -> list[str]:
        Tag.objects.using("other").create(name="a")
        call_command("flush", database="other", interactive=False, verbosity=0)
        return names("other")

    assert await greenorm.run(flushed) == []


def databases(like: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database WHERE datname LIKE %s ORDER BY 1", [like])
        return [name for (name,) in cursor.fetchall()]


@pytest.mark.parametrize(
    "changes",
    [{}, {"OPTIONS": {"pool": {"min_size": 0, "max_size": 4}}}, {"CONN_MAX_AGE": 60}],
    ids=["plain", "pooled", "persistent"],
)
async def test_test_database_is_created_cloned_and_destroyed(alias: Callable[..., str], changes: Any) -> None:
    name = alias(**changes)
    connections.settings[name]["TEST"]["NAME"] = test_name = f"test_{connection.settings_dict['NAME']}"

    def used() -> Any:
        wrapper = connections[name]
        original = wrapper.settings_dict["NAME"]
        wrapper.creation.create_test_db(verbosity=0, autoclobber=True)
        Tag.objects.using(name).create(name="a")
        wrapper.creation.clone_test_db("1", verbosity=0, autoclobber=True)
        there = ask("SELECT current_database()", using=wrapper), databases(f"{test_name}%"), names()
        wrapper.creation.destroy_test_db(verbosity=0, suffix="1")
        wrapper.creation.destroy_test_db(original, verbosity=0)
        return there, databases(f"{test_name}%"), wrapper.settings_dict["NAME"] == original

    assert await alike(used) == ((test_name, [test_name, f"{test_name}_1"], []), [], True)


# A cursor class of the user's own


class BlankCursor(django_base.Cursor):
    pass


class CountingCursor(django_base.Cursor):
    def execute(self, *args: Any, **kwargs: Any) -> Any:
        self.executed = getattr(self, "executed", 0) + 1
        return super().execute(*args, **kwargs)

    def one(self) -> Any:
        return self.fetchone()[0]


async def test_blank_cursor_class_is_an_async_cursor_in_a_run(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"cursor_factory": BlankCursor})

    def kind() -> Any:
        with connections[name].cursor() as cursor:
            cursor.execute("SELECT %s", [1])
            return type(cursor.cursor).__name__, isinstance(cursor.cursor, psycopg.AsyncCursor), cursor.fetchone()

    assert await plainly(kind) == ("BlankCursor", False, (1,))
    assert await greenorm.run(kind) == ("BlankCursor", True, (1,))


async def test_cursor_class_with_methods_of_its_own_works(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"cursor_factory": CountingCursor})

    def used() -> Any:
        with connections[name].cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.execute("SELECT %s", [2])
            with cursor.copy("COPY (SELECT 3) TO STDOUT") as copy:
                rows = list(copy.rows())
            cursor.execute("SELECT 4")
            return cursor.executed, rows, cursor.one(), type(cursor.cursor).__name__

    assert await alike(used) == (3, [("3",)], 4, "CountingCursor")


async def test_cursor_class_with_methods_of_its_own_lets_other_tasks_run(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"cursor_factory": CountingCursor})
    task, turns = asyncio.create_task(greenorm.run(lambda: ask("SELECT pg_sleep(0.2)", using=connections[name]))), 0
    while not task.done():
        await asyncio.sleep(0.01)
        turns += 1
    await task
    assert turns > 5


async def test_cursor_class_with_methods_of_its_own_serves_the_orm(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"cursor_factory": CountingCursor})

    def used() -> Any:
        with transaction.atomic(using=name):
            fill(3, using=name)
        return [tag.name for tag in Tag.objects.using(name).order_by("pk").iterator(chunk_size=2)]

    assert await alike(used) == ["0", "1", "2"]


@pytest.mark.parametrize("factory", [psycopg.ClientCursor, psycopg.Cursor])
async def test_cursor_class_of_psycopg_itself_works(alias: Callable[..., str], factory: Any) -> None:
    name = alias(OPTIONS={"cursor_factory": factory})

    def used() -> Any:
        return ask("SELECT 1", using=connections[name])

    assert await alike(used) == 1


async def test_cursor_factory_set_by_a_borrower_is_not_the_next_ones() -> None:
    def set_by_hand() -> Any:
        connection.ensure_connection()
        connection.connection.cursor_factory = psycopg.RawCursor
        with connection.connection.cursor() as cursor:
            return cursor.execute("SELECT $1::int", [1]).fetchone(), isinstance(cursor, psycopg.AsyncRawCursor)

    assert await greenorm.run(set_by_hand) == ((1,), True)
    assert await greenorm.run(ask, "SELECT %s", [1]) == 1


@pytest.mark.parametrize("factory", [psycopg.AsyncCursor, psycopg.AsyncClientCursor, lambda conn: None, object])
async def test_cursor_factory_that_is_no_sync_cursor_class_is_improperly_configured(
    alias: Callable[..., str], factory: Any
) -> None:
    name = alias(OPTIONS={"cursor_factory": factory})
    with pytest.raises(ImproperlyConfigured, match="cursor_factory"):
        await greenorm.run(lambda: connections[name].ensure_connection())


# Pooled and persistent connections


def pid_of(name: str) -> int:
    return ask("SELECT pg_backend_pid()", using=connections[name])


async def test_pool_true_lends_a_connection_again(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"pool": True})
    assert await greenorm.run(pid_of, name) == await greenorm.run(pid_of, name)
    assert greenorm.pool_stats(name).max_size == ConnectionPool(open=False).max_size


async def test_pool_dict_has_psycopg_pools_options(alias: Callable[..., str]) -> None:
    name = alias(OPTIONS={"pool": {"min_size": 1, "max_size": 2, "timeout": 3, "num_workers": 1, "name": "mine"}})
    await greenorm.run(pid_of, name)
    stats = greenorm.pool_stats(name)
    assert (stats.min_size, stats.max_size, stats.name, stats.opened) == (1, 2, "mine", 1)


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ({"max_sise": 4}, "max_sise"),
        ({"min_size": 4, "max_size": 2}, "max_size is 2"),
        ({"min_size": -1}, "min_size is -1"),
        ({"min_size": 0, "max_size": 0}, "max_size is 0"),
        ({"min_size": "many"}, "added_0"),
    ],
)
async def test_pool_option_that_makes_no_sense_is_improperly_configured(
    alias: Callable[..., str], pool: Any, said: str
) -> None:
    name = alias(OPTIONS={"pool": pool})
    with pytest.raises(ImproperlyConfigured, match=said):
        await greenorm.run(pid_of, name)


@pytest.mark.parametrize("age", [60, None])
async def test_conn_max_age_with_a_pool_is_improperly_configured(alias: Callable[..., str], age: int | None) -> None:
    name = alias(CONN_MAX_AGE=age, OPTIONS={"pool": True})

    def refused() -> str:
        with pytest.raises(ImproperlyConfigured) as caught:
            connections[name].ensure_connection()
        return str(caught.value)

    assert await alike(refused) == "Pooling doesn't support persistent connections."


@pytest.mark.parametrize("age", [0, 60, None])
async def test_conn_max_age_without_a_pool_keeps_connections(alias: Callable[..., str], age: int | None) -> None:
    name = alias(CONN_MAX_AGE=age)
    assert await greenorm.run(pid_of, name) == await greenorm.run(pid_of, name)


async def test_conn_max_age_replaces_a_connection_that_is_too_old(alias: Callable[..., str]) -> None:
    name = alias(CONN_MAX_AGE=0.1)
    first = await greenorm.run(pid_of, name)
    await asyncio.sleep(0.15)
    await greenorm.run(pid_of, name)
    assert await greenorm.run(pid_of, name) != first


async def gone(admin: psycopg.Connection, pid: int) -> None:
    """End a session on the server, as a restart would, and wait until it is gone."""
    admin.execute("SELECT pg_terminate_backend(%s)", [pid])
    there = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
    while admin.execute(there, [pid]).fetchone():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("checks", [True, False])
async def test_idle_connection_that_was_terminated_is_replaced(
    alias: Callable[..., str], admin: psycopg.Connection, checks: bool
) -> None:
    name = alias(CONN_HEALTH_CHECKS=checks)
    first = await greenorm.run(pid_of, name)
    await gone(admin, first)
    assert await greenorm.run(pid_of, name) != first
    assert greenorm.pool_stats(name).size == 1


async def test_health_check_asks_the_server_before_a_connection_is_lent_again(alias: Callable[..., str]) -> None:
    asked: list[int] = []

    def check(conn: psycopg.Connection) -> None:
        asked.append(conn.execute("SELECT pg_backend_pid()").fetchone()[0])
        raise psycopg.OperationalError("not this one")

    name = alias(OPTIONS={"pool": {"check": check}})
    first = await greenorm.run(pid_of, name)
    assert await greenorm.run(pid_of, name) != first
    assert asked == [first]


async def test_connection_terminated_in_use_is_an_operational_error_and_then_replaced() -> None:
    def cut_off() -> Any:
        pid = ask("SELECT pg_backend_pid()")
        with pytest.raises(OperationalError):
            ask("SELECT pg_terminate_backend(pg_backend_pid())")
        return pid

    first = await greenorm.run(cut_off)
    assert await greenorm.run(ask, "SELECT pg_backend_pid()") != first


async def test_close_old_connections_replaces_a_connection_that_broke_in_use() -> None:
    def recovered() -> int:
        with pytest.raises(OperationalError):
            ask("SELECT pg_terminate_backend(pg_backend_pid())")
        close_old_connections()
        return ask("SELECT 1")

    assert await alike(recovered) == 1


async def test_copies_of_a_wrapper_leave_no_connections_behind(admin: psycopg.Connection) -> None:
    left = {await greenorm.run(pid_of_a_copy, "other") for _ in range(5)}
    async with asyncio.timeout(5):
        while left:
            await asyncio.sleep(0.01)
            left &= {pid for (pid,) in admin.execute("SELECT pid FROM pg_stat_activity").fetchall()}


async def test_copies_of_a_wrapper_share_the_pool_that_its_options_name() -> None:
    assert len({await greenorm.run(pid_of_a_copy, "default") for _ in range(5)}) == 1
    assert greenorm.pool_stats().in_use == 0


def pid_of_a_copy(alias: str) -> int:
    copy = connections[alias].copy()
    pid = ask("SELECT pg_backend_pid()", using=copy)
    copy.close()
    return pid


async def test_copy_of_a_wrapper_has_a_transaction_of_its_own() -> None:
    def apart() -> Any:
        copy = connections["default"].copy()
        try:
            with transaction.atomic():
                Tag.objects.create(name="a")
                return ask("SELECT count(*) FROM shop_tag", using=copy), ask("SELECT count(*) FROM shop_tag")
        finally:
            copy.close()

    assert await alike(apart) == (0, 1)


@pytest.mark.parametrize("age", [60, None])
async def test_copy_of_a_wrapper_with_conn_max_age_connects(alias: Callable[..., str], age: int | None) -> None:
    name = alias(CONN_MAX_AGE=age)

    def copied() -> Any:
        copy = connections[name].copy()
        try:
            return ask("SELECT 1", using=copy)
        finally:
            copy.close()

    assert await alike(copied) == 1


async def test_nodb_cursor_reaches_the_server_without_the_database() -> None:
    def reached() -> Any:
        with connection._nodb_cursor() as cursor:
            cursor.execute("SELECT current_database()")
            return cursor.fetchone()[0]

    assert await alike(reached) == "postgres"


async def test_connection_options_reach_the_server() -> None:
    def shown() -> Any:
        with wrapper(OPTIONS={"application_name": "mine", "options": "-c search_path=shop"}) as made:
            return ask("SHOW application_name", using=made), ask("SHOW search_path", using=made)

    assert await alike(shown) == ("mine", "shop")


@pytest.mark.parametrize(
    "changes", [{"NAME": "no_such_database"}, {"USER": "no_such_role"}, {"HOST": "/no/such/socket"}]
)
async def test_connection_that_cannot_be_made_is_an_operational_error(changes: Any) -> None:
    def refused() -> str:
        with wrapper(**changes) as wrong, pytest.raises(OperationalError) as caught:
            wrong.ensure_connection()
        return str(caught.value)

    assert await alike(refused)


@pytest.mark.parametrize("name", ["", "x" * 64])
async def test_database_name_that_cannot_be_is_improperly_configured(name: str) -> None:
    def refused() -> str:
        with wrapper(NAME=name) as wrong, pytest.raises(ImproperlyConfigured) as caught:
            wrong.ensure_connection()
        return str(caught.value)

    assert await alike(refused)


async def test_version_and_features_are_read_from_the_server() -> None:
    def read() -> Any:
        with wrapper() as fresh:
            version = fresh.get_database_version()
            return version, fresh.connection, fresh.features.supports_json_field, fresh.features.uses_savepoints

    (major, _), *rest = await alike(read)
    assert major >= 14
    assert rest == [None, True, True]


# Closing


async def test_query_after_close_connects_again() -> None:
    def again() -> Any:
        Tag.objects.create(name="a")
        connection.close()
        closed = connection.connection is None
        return closed, names(), connection.connection is None

    assert await alike(again) == (True, ["a"], False)


async def test_close_twice_is_harmless() -> None:
    def twice() -> int:
        ask("SELECT 1")
        connection.close()
        connection.close()
        return ask("SELECT 2")

    assert await alike(twice) == 2


async def test_close_before_the_first_query_connects_nothing() -> None:
    def unused() -> bool:
        connection.close()
        return connection.connection is None

    assert await alike(unused)


async def test_close_all_closes_each_alias() -> None:
    def closed() -> Any:
        ask("SELECT 1")
        ask("SELECT 1", using=connections["other"])
        connections.close_all()
        return connection.connection, connections["other"].connection, ask("SELECT 1")

    assert await alike(closed) == (None, None, 1)


async def test_close_old_connections_keeps_what_works(alias: Callable[..., str]) -> None:
    name = alias(CONN_MAX_AGE=60)

    def kept() -> bool:
        pid = pid_of(name)
        close_old_connections()
        return connections[name].connection is not None and pid_of(name) == pid

    assert await alike(kept)


async def test_close_old_connections_drops_one_with_autocommit_changed() -> None:
    def dropped() -> Any:
        transaction.set_autocommit(False)
        Tag.objects.create(name="a")
        close_old_connections()
        return connection.connection is None, transaction.get_autocommit(), names()

    assert await alike(dropped) == (True, True, [])


async def test_close_inside_atomic_rolls_back_and_forbids_further_queries() -> None:
    def closed() -> Any:
        with pytest.raises(ProgrammingError) as caught, transaction.atomic():
            Tag.objects.create(name="a")
            connection.close()
            Tag.objects.count()
        return str(caught.value), connection.in_atomic_block, names()

    assert await alike(closed) == ("Cannot open a new connection in an atomic block.", False, [])


async def test_close_inside_atomic_is_no_error_if_nothing_follows() -> None:
    def closed() -> Any:
        with transaction.atomic():
            Tag.objects.create(name="a")
            connection.close()
        return connection.in_atomic_block, transaction.get_autocommit(), names()

    assert await alike(closed) == (False, True, [])


async def test_close_inside_atomic_without_a_pool_rolls_back_too() -> None:
    def closed() -> Any:
        other = connections["other"]
        with transaction.atomic(using="other"):
            Tag.objects.using("other").create(name="a")
            other.close()
        with pytest.raises((InterfaceError, OperationalError, ProgrammingError)), transaction.atomic(using="other"):
            other.close()
            ask("SELECT 1", using=other)
        return other.in_atomic_block, names("other")

    assert await alike(closed) == (False, [])


async def test_close_inside_a_nested_block_rolls_back_all_of_them() -> None:
    def closed() -> Any:
        with transaction.atomic():
            Tag.objects.create(name="a")
            with transaction.atomic():
                connection.close()
        return connection.in_atomic_block, names()

    assert await alike(closed) == (False, [])


async def test_closing_psycopgs_connection_itself_fails_the_next_query_and_no_more() -> None:
    def closed() -> Any:
        connection.ensure_connection()
        connection.connection.close()
        with pytest.raises(OperationalError) as caught:
            ask("SELECT 1")
        return str(caught.value), connection.is_usable()

    assert await alike(closed) == ("the connection is closed", False)
    assert await greenorm.run(ask, "SELECT 1") == 1


async def test_temporary_connection_is_closed_again() -> None:
    def temporary() -> Any:
        connection.close()
        with connection.temporary_connection() as cursor:
            cursor.execute("SELECT 1")
            inside = cursor.fetchone()
        return inside, connection.connection

    assert await alike(temporary) == ((1,), None)


# on_commit


async def test_on_commit_runs_its_callbacks_in_order_after_the_commit(admin: psycopg.Connection) -> None:
    def called() -> Any:
        seen: list[Any] = []
        with transaction.atomic():
            Tag.objects.create(name="a")
            transaction.on_commit(lambda: seen.append(admin.execute("SELECT count(*) FROM shop_tag").fetchone()))
            with transaction.atomic():
                transaction.on_commit(lambda: seen.append("second"))
            seen.append("block")
        return seen

    assert await alike(called) == ["block", (1,), "second"]


async def test_on_commit_is_forgotten_with_a_rollback() -> None:
    def called() -> list[str]:
        seen: list[str] = []
        with pytest.raises(Stop), transaction.atomic():
            transaction.on_commit(lambda: seen.append("outer"))
            raise Stop
        with transaction.atomic():
            with pytest.raises(Stop), transaction.atomic():
                transaction.on_commit(lambda: seen.append("inner"))
                raise Stop
            transaction.on_commit(lambda: seen.append("kept"))
        return seen

    assert await alike(called) == ["kept"]


async def test_on_commit_outside_of_a_transaction_calls_at_once() -> None:
    def called() -> list[str]:
        seen: list[str] = []
        transaction.on_commit(lambda: seen.append("callback"))
        seen.append("after")
        return seen

    assert await alike(called) == ["callback", "after"]


async def test_on_commit_awaits_an_async_function(admin: psycopg.Connection) -> None:
    def called() -> list[Any]:
        seen: list[Any] = []

        async def callback() -> None:
            await asyncio.sleep(0.01)
            seen.append(admin.execute("SELECT count(*) FROM shop_tag").fetchone())

        with transaction.atomic():
            Tag.objects.create(name="a")
            transaction.on_commit(callback)
            transaction.on_commit(lambda: callback())
            transaction.on_commit(lambda: seen.append("last"))
        return seen

    assert await alike(called) == [(1,), (1,), "last"]


async def test_on_commit_awaits_an_async_function_outside_of_a_transaction() -> None:
    def called() -> list[str]:
        seen: list[str] = []

        async def callback() -> None:
            await asyncio.sleep(0.01)
            seen.append("callback")

        transaction.on_commit(callback)
        seen.append("after")
        return seen

    assert await alike(called) == ["callback", "after"]


async def test_on_commit_callback_may_query_and_open_a_transaction() -> None:
    def called() -> list[str]:
        def callback() -> None:
            with transaction.atomic():
                Tag.objects.create(name="b")
                transaction.on_commit(lambda: Tag.objects.create(name="c"))

        with transaction.atomic():
            Tag.objects.create(name="a")
            transaction.on_commit(callback)
        return names()

    assert await alike(called) == ["a", "b", "c"]


async def test_on_commit_async_callback_may_run_the_orm() -> None:
    async def callback() -> None:
        await greenorm.run(Tag.objects.create, name="b")

    def called() -> list[str]:
        with transaction.atomic():
            Tag.objects.create(name="a")
            transaction.on_commit(callback)
        return names()

    assert await greenorm.run(called) == ["a", "b"]


async def test_on_commit_error_stops_the_callbacks_after_it() -> None:
    def stop() -> None:
        raise Stop

    def called() -> Any:
        seen: list[str] = []
        with pytest.raises(Stop), transaction.atomic():
            Tag.objects.create(name="a")
            transaction.on_commit(lambda: seen.append("first"))
            transaction.on_commit(stop)
            transaction.on_commit(lambda: seen.append("never"))
        return seen, names()

    assert await alike(called) == (["first"], ["a"])


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
async def test_on_commit_robust_logs_an_error_and_goes_on(caplog: pytest.LogCaptureFixture, inside: bool) -> None:
    def failing() -> None:
        raise Stop

    async def failing_later() -> None:
        raise Stop

    def called() -> Any:
        seen: list[str] = []
        caplog.clear()
        if inside:
            with transaction.atomic():
                transaction.on_commit(failing, robust=True)
                transaction.on_commit(failing_later, robust=True)
                transaction.on_commit(lambda: seen.append("last"))
        else:
            transaction.on_commit(failing, robust=True)
            transaction.on_commit(failing_later, robust=True)
            seen.append("last")
        return seen, [record.getMessage() for record in caplog.records if record.name.startswith("django.db")]

    seen, messages = await alike(called)
    assert seen == ["last"]
    assert [re.findall(r"(\w+) in on_commit", message) for message in messages] == [["failing"], ["failing_later"]]


async def test_on_commit_robust_names_a_partial_as_django_does(caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        raise Stop

    callback = functools.partial(failing)

    def called() -> str:
        caplog.clear()
        with transaction.atomic():
            transaction.on_commit(callback, robust=True)
        return next(record.getMessage() for record in caplog.records if record.name.startswith("django.db"))

    assert repr(callback) in await alike(called)


async def test_on_commit_in_manual_transaction_management_is_refused() -> None:
    def refused() -> str:
        transaction.set_autocommit(False)
        try:
            with pytest.raises(TransactionManagementError) as caught:
                transaction.on_commit(lambda: None)
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)
        return str(caught.value)

    assert await alike(refused) == "on_commit() cannot be used in manual transaction management"


async def test_on_commit_of_what_cannot_be_called_is_refused() -> None:
    def refused() -> str:
        with transaction.atomic(), pytest.raises(TypeError) as caught:
            transaction.on_commit("callback")  # type: ignore[arg-type]
        return str(caught.value)

    assert await alike(refused) == "on_commit()'s callback must be a callable."


# Outside of a run


def test_plain_sync_code_has_a_plain_psycopg_connection() -> None:
    asyncio.run(greenorm.run(ask, "SELECT 1", using=connections["other"]))
    other = connections["other"]
    with other.cursor() as cursor:
        assert type(other.connection) is psycopg.Connection
        assert type(cursor.cursor) is django_base.Cursor
        assert type(cursor.connection) is psycopg.Connection
    with other.chunked_cursor() as cursor:
        assert type(cursor.cursor) is django_base.ServerSideCursor


def test_plain_sync_code_has_djangos_own_pool() -> None:
    connection.ensure_connection()
    assert type(connection.pool) is ConnectionPool
    assert type(connection.connection) is psycopg.Connection
    before = connection.pool.get_stats()["requests_num"]
    connection.close()
    ask("SELECT 1")
    assert connection.pool.get_stats()["requests_num"] == before + 1


def test_plain_sync_code_has_no_pool_without_the_option() -> None:
    assert connections["other"].pool is None


def test_plain_sync_code_can_be_used_before_and_after_a_run() -> None:
    Tag.objects.create(name="a")
    asyncio.run(greenorm.run(Tag.objects.create, name="b"))
    assert names() == ["a", "b"]
    assert type(connection.connection) is psycopg.Connection


async def test_async_code_outside_of_a_run_is_still_refused() -> None:
    from django.core.exceptions import SynchronousOnlyOperation

    await greenorm.run(ask, "SELECT 1")
    with pytest.raises(SynchronousOnlyOperation):
        ask("SELECT 1")
