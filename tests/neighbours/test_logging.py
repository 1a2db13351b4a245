"""`logging` of django.db.backends in a run: each statement with its alias and duration, in the order of its task."""

from __future__ import annotations

import asyncio
import logging

import pytest
from django.db import connection, transaction
from django.test import override_settings

import greenorm
from tests.shop.models import Owner


def in_steps(name: str) -> list[str]:
    with transaction.atomic():
        Owner.objects.create(name=name)
    assert Owner.objects.filter(name=name).exists()
    return [query["sql"] for query in connection.queries]


@override_settings(DEBUG=True)
async def test_each_statement_is_logged_as_in_sync_django(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "django.db.backends"):
        queries = await greenorm.run(in_steps, "Ada")
    logged = [record for record in caplog.records if record.name == "django.db.backends"]
    assert [record.sql for record in logged][-4:] == queries[-4:]
    assert [query.split()[0] for query in queries][-4:] == ["BEGIN", "INSERT", "COMMIT", "SELECT"]
    assert {record.alias for record in logged} == {"default"}
    assert all(record.duration >= 0 for record in logged)
    assert "'Ada'" in logged[-1].sql


@override_settings(DEBUG=True)
async def test_the_queries_of_a_run_are_its_own() -> None:
    names = ["Ada", "Bob", "Eve"]
    for name, queries in zip(
        names, await asyncio.gather(*[greenorm.run(in_steps, name) for name in names]), strict=True
    ):
        assert [query for query in queries if "shop_owner" in query] == [
            query for query in queries if f"'{name}'" in query
        ]
