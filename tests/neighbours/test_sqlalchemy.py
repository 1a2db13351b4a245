"""SQLAlchemy's asyncio, which has a greenlet of its own: both in one task, one inside of the other, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction

import greenorm
from tests.neighbours import needs
from tests.shop.models import Owner

needs("sqlalchemy")

from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

NAMES = text("SELECT name FROM shop_owner ORDER BY name")
INSERT = text("INSERT INTO shop_owner (name) VALUES (:name)")


@pytest.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    params = connections["default"].get_connection_params()
    query = {"host": params["host"], "port": str(params.get("port", ""))}
    url = URL.create("postgresql+psycopg", username=params.get("user"), database=params["dbname"], query=query)
    engine = create_async_engine(url.set(password=params.get("password")))
    yield engine
    await engine.dispose()


async def names(session: AsyncSession) -> list[str]:
    return list((await session.execute(NAMES)).scalars())


async def test_each_has_its_transaction_in_one_task(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session, greenorm.atomic():
        await session.execute(INSERT, {"name": "Ada"})
        await greenorm.run(Owner.objects.create, name="Bob")
        assert await names(session) == ["Ada"]
        assert await greenorm.run(lambda: [owner.name for owner in Owner.objects.all()]) == ["Bob"]
        await session.commit()
        assert await greenorm.run(Owner.objects.count) == 2


async def test_sync_code_of_a_run_waits_for_a_session(engine: AsyncEngine) -> None:
    async def read() -> list[str]:
        async with AsyncSession(engine) as session:
            return await names(session)

    def both() -> tuple[list[str], int]:
        with transaction.atomic():
            before = greenorm.await_(read())
            Owner.objects.create(name="Ada")
        return before, len(greenorm.await_(read()))

    assert await greenorm.run(both) == ([], 1)


async def test_sync_code_of_a_session_is_not_in_a_run_and_is_told_so(engine: AsyncEngine) -> None:
    def with_session(session: Any) -> None:
        assert session.execute(NAMES).all() == []
        assert not greenorm.in_run()
        with pytest.raises(SynchronousOnlyOperation):
            Owner.objects.count()

    async with AsyncSession(engine) as session:
        await session.run_sync(with_session)


async def test_many_of_both_at_once(engine: AsyncEngine) -> None:
    async def by_sqlalchemy(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(INSERT, {"name": f"a{number}"})

    runs = [greenorm.run(Owner.objects.create, name=f"b{number}") for number in range(50)]
    await asyncio.gather(*runs, *[by_sqlalchemy(number) for number in range(50)])
    assert await greenorm.run(Owner.objects.count) == 100
    assert greenorm.pool_stats().in_use == 0
