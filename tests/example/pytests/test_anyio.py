"""anyio's own pytest plugin, in place of pytest-asyncio."""

from __future__ import annotations

import anyio
import pytest

import greenorm
from tests.example.ledger import services

pytestmark = [pytest.mark.anyio, pytest.mark.django_db]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def ada(db: None, anyio_backend: str) -> None:
    await greenorm.run(services.create, "Ada")


@pytest.mark.parametrize("time", ["first", "second"])
async def test_tasks_of_a_group_join_and_are_rolled_back(ada: None, time: str) -> None:
    assert await greenorm.run(services.names) == ["Ada"]
    async with anyio.create_task_group() as group:
        for name in ("Bob", "Cy"):
            group.start_soon(greenorm.run, services.create_slowly, name)
    assert await services.read_all() == ["Ada", "Bob", "Cy"]


async def test_a_cancelled_scope_leaves_the_test_usable(ada: None) -> None:
    with anyio.CancelScope() as scope:
        async with greenorm.atomic():
            await greenorm.run(services.create, "Bob")
            scope.cancel()
            await anyio.sleep_forever()
    assert await services.read_all() == ["Ada"]


async def test_a_worker_thread_is_refused_with_the_way_out(ada: None) -> None:
    with pytest.raises(greenorm.OpenTransaction, match=r"greenorm\.run in place of a thread"):
        await anyio.to_thread.run_sync(services.names)
