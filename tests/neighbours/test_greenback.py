"""greenback, which also lets sync code wait in a greenlet: a portal around runs, and runs below its `await_`."""

from __future__ import annotations

import asyncio

import greenorm
from tests.neighbours import needs
from tests.shop.models import Owner

needs("greenback")

import greenback


async def read() -> int:
    await asyncio.sleep(0)
    return await greenorm.run(Owner.objects.count)


async def test_a_run_in_a_task_with_a_portal() -> None:
    await greenback.ensure_portal()
    await greenorm.run(Owner.objects.create, name="Ada")
    assert await read() == 1


async def test_sync_code_outside_of_a_run_waits_for_one_through_the_portal() -> None:
    def sync_code() -> int:
        greenback.await_(greenorm.run(Owner.objects.create, name="Ada"))
        return greenback.await_(read())

    assert await greenback.with_portal_run(_call, sync_code) == 1
    assert greenorm.pool_stats().in_use == 0


async def _call(fn):  # type: ignore[no-untyped-def]  # reason: a sync function below a portal
    return fn()


async def test_a_run_of_a_task_with_a_portal_waits_by_greenorm_and_by_greenback() -> None:
    def in_run() -> tuple[int, int]:
        return greenorm.await_(read()), greenback.await_(read())

    await greenback.ensure_portal()
    assert await greenorm.run(in_run) == (0, 0)
