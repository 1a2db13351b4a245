"""A schema for each tenant, with nothing but `connection()` and the pool's `reset`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, connections

import greenorm
from tests.shop.models import Owner
from tests.site import Admin

TENANTS = ["red", "green", "blue"]


def use_schema(name: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('search_path', %s, false)", [f"{name},public"])


def reset(conn: Any) -> None:
    conn.execute("RESET search_path")


@contextmanager
def tenant(name: str) -> Iterator[None]:
    """For sync code of a run: its queries go to the tenant's schema, and its connection is not lent meanwhile."""
    with greenorm.connection():
        use_schema(name)
        yield


@pytest.fixture(autouse=True)
def schemas(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    pool = {"min_size": 0, "max_size": 2, "reset": reset}
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"], "pool", pool)
    for name in TENANTS:
        admin.execute(f"CREATE SCHEMA {name}")
        admin.execute(f"CREATE TABLE {name}.shop_owner (LIKE public.shop_owner INCLUDING ALL)")
        admin.execute(f"INSERT INTO {name}.shop_owner (name) OVERRIDING SYSTEM VALUE VALUES ('{name}')")
    yield
    for name in TENANTS:
        admin.execute(f"DROP SCHEMA {name} CASCADE")


def names() -> list[str]:
    return [owner.name for owner in Owner.objects.all()]


async def test_runs_of_many_tenants_share_the_pool_and_never_a_schema() -> None:
    def read(name: str) -> list[str]:
        with tenant(name):
            before = names()
            greenorm.await_(asyncio.sleep(0))
            return before + names()

    order = TENANTS * 10
    seen = await asyncio.gather(*[greenorm.run(read, name) for name in order], *[greenorm.run(names) for _ in order])
    assert seen == [[name, name] for name in order] + [[] for _ in order]
    assert greenorm.pool_stats().size <= 2


async def test_async_code_keeps_a_tenants_connection_over_its_runs() -> None:
    async def read(name: str) -> list[str]:
        async with greenorm.connection():
            await greenorm.run(use_schema, name)
            await asyncio.sleep(0)
            return await greenorm.run(names)

    order = TENANTS * 10
    assert await asyncio.gather(*[read(name) for name in order]) == [[name] for name in order]
    assert await greenorm.run(names) == []


async def test_an_error_in_a_tenants_run_leaves_no_schema_behind() -> None:
    def fail(name: str) -> None:
        with tenant(name):
            Owner.objects.create(name=name)

    for name in TENANTS:
        with pytest.raises(Exception, match="duplicate key"):
            await greenorm.run(fail, name)
    assert await greenorm.run(names) == []
