"""For how long the event loop did not get round to a task that was due."""

from __future__ import annotations

import asyncio
from time import perf_counter, thread_time
from types import TracebackType
from typing import Self

# How often, in seconds, the loop is asked whether it is there.
TICK = 0.002


class Stalls:
    """Watches the loop for a block. Times are in seconds.

    `cpu` is what the loop's thread itself has worked in between: unlike `wall`, it does not grow with what else runs on
    the machine. `wall` grows, too, where the loop waits for anything in place of its selector.
    """

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self._ticking: asyncio.Task[None] | None = None

    async def _tick(self) -> None:
        while True:
            due, worked = perf_counter() + TICK, thread_time()
            await asyncio.sleep(TICK)
            self.wall = max(self.wall, perf_counter() - due)
            self.cpu = max(self.cpu, thread_time() - worked)

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._ticking is not None
        await asyncio.sleep(2 * TICK)  # for a tick that the last operation has kept waiting
        self._ticking.cancel()
        await asyncio.wait([self._ticking])
