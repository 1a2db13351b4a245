"""Cursors of a run, where something has given the session a cursor class of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

import greenorm
from tests.shop.models import Owner

seen: list[Any] = []


class Noting(psycopg.AsyncCursor[Any]):
    """What instrumentation makes: coroutine methods of its own around AsyncCursor's."""

    async def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(query)
        return await super().execute(query, *args, **kwargs)

    async def executemany(self, query: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(query)
        await super().executemany(query, *args, **kwargs)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The statements that a cursor class notes which was put in where psycopg connects."""
    connect = psycopg.AsyncConnection.__dict__["connect"].__func__

    @classmethod  # type: ignore[misc]  # reason: as psycopg declares it
    async def noting(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return await connect(cls, *args, **kwargs, cursor_factory=Noting)

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", noting)
    yield seen
    seen.clear()


async def test_a_cursor_class_given_where_psycopg_connects_sees_each_statement(noted: list[Any]) -> None:
    def change() -> None:
        Owner.objects.create(name="Ada")
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE shop_owner SET name = %s", [["Bob"]])
            cursor.execute("SELECT name FROM shop_owner")
            assert cursor.fetchall() == [("Bob",)]

    await greenorm.run(change)
    assert any(str(query).startswith("INSERT INTO") for query in noted)
    assert noted[-2:] == ["UPDATE shop_owner SET name = %s", "SELECT name FROM shop_owner"]


async def test_with_it_a_cursor_is_still_of_the_class_that_django_asks_for(noted: list[Any]) -> None:
    def classes() -> list[type]:
        with connection.cursor() as one, connection.cursor() as other:
            return [type(one.cursor), type(other.cursor)]

    one, other = await greenorm.run(classes)
    assert one is other
    assert issubclass(one, Noting)
    assert issubclass(one, psycopg.AsyncClientCursor)
    assert hasattr(one, "callproc")


async def test_it_sees_what_server_side_binding_sends(noted: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["other"]["OPTIONS"], "server_side_binding", True)
    assert await greenorm.run(Owner.objects.using("other").count) == 0
    assert "COUNT" in noted[-1]
