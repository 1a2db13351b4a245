"""pytest-django's `transactional_db` and `live_server`: rows are committed, and tables emptied after each test."""

from __future__ import annotations

import asyncio
from urllib.request import urlopen

import pytest

import greenorm
from tests.example.ledger import services
from tests.example.ledger.tests import ask

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("time", ["first", "second"])
async def test_runs_have_connections_of_their_own(time: str) -> None:
    assert await greenorm.run(services.names) == []
    await services.fan_out("Ada", "Bob")
    async with greenorm.connection():
        first = await greenorm.run(services.backend)

        async def child() -> int:
            async with greenorm.connection():
                return await greenorm.run(services.backend)

        assert await asyncio.create_task(child()) != first
    assert "asgi" in (await ask("/async/asgi/")).split(",")


@pytest.mark.asyncio(loop_scope="session")
async def test_a_loop_that_outlives_the_test_keeps_connections_open() -> None:
    await services.fan_out("Ada", "Bob")
    assert greenorm.pool_stats().idle > 0


def test_the_live_server(live_server) -> None:
    services.create("Ada")
    with urlopen(f"{live_server.url}/async/Bob/") as response:
        assert response.read().decode() == "Ada,Bob,Bob's friend"
    assert services.names() == ["Ada", "Bob", "Bob's friend"]
