"""gevent, the other user of greenlets: its hub in this thread or another, patched or not, does no harm."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import greenorm
from tests.neighbours import needs
from tests.neighbours.apart import apart
from tests.shop.models import Owner

needs("gevent")


def with_hubs() -> dict[str, Any]:
    """Work with gevent before, beside and after an event loop."""
    import gevent

    def tick(count: int) -> int:
        for _ in range(count):
            gevent.sleep(0)
        return count

    def spawned() -> int:
        return sum(job.get() for job in [gevent.spawn(tick, 100) for _ in range(3)])

    async def main() -> int:
        await asyncio.gather(*[greenorm.run(Owner.objects.create, name=str(number)) for number in range(20)])
        return await greenorm.run(Owner.objects.count)

    beside: list[int] = []
    thread = threading.Thread(target=lambda: beside.append(spawned()))
    before = spawned()
    thread.start()
    count = asyncio.run(main())
    thread.join()
    return {"before": before, "beside": beside, "after": spawned(), "count": count}


def with_patches() -> dict[str, Any]:
    """The same in a process that gevent has patched."""
    from gevent import monkey

    monkey.patch_all()
    return with_hubs()


@pytest.mark.parametrize("job", [with_hubs, with_patches])
def test_both_work_in_one_process(job: Any) -> None:
    assert apart(job) == {"before": 300, "beside": [300], "after": 300, "count": 20}
