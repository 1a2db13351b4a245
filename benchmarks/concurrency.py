"""How many requests do unchanged sync services answer in asyncio, and how soon, beside sync_to_async?

What the demo prints, with more work and more rounds: a mixture of six services, one after the other, 200 at once, and
200 at once on a server that takes 2 ms longer, as a distant or busy one does. Each contender may use 20 connections.
"""

from __future__ import annotations

from greenorm.demo.measure import Row
from greenorm.demo.stage import Stage

# Requests of a turn.
AT_ONCE = 2_000
ONE_BY_ONE = 500


async def measure(stage: Stage, rounds: int, share: float) -> list[Row]:
    from greenorm.demo.comparison import with_sync_to_async

    return (await with_sync_to_async(stage, round(share * AT_ONCE), round(share * ONE_BY_ONE), rounds)).rows
