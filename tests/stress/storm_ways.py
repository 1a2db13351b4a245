"""The ways in which a client's operation is interrupted, or let be.

Each takes the operations that it is to start, and the dice for when to strike; and returns when all
have ended. What came of each is noted in the tally. A cancellation that was accepted must come out: nothing may
swallow it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import TypeAlias

import anyio

Startable: TypeAlias = Callable[[], Awaitable[None]]
Way: TypeAlias = Callable[["Tally", list[Startable], Random], Awaitable[None]]

# How much the time that an operation takes, undisturbed, is smoothed.
SMOOTHING = 0.05


@dataclass
class Tally:
    """What came of the operations so far."""

    ended: int = 0
    cancelled: int = 0
    """Operations that an interruption has reached."""
    by_way: Counter[str] = field(default_factory=Counter)
    """Of these, how many each way has reached."""
    wrong: list[str] = field(default_factory=list)
    """What should never be."""
    usual: float = 0.02
    """How long an undisturbed operation takes now, in seconds."""

    async def watch(self, way: str, operation: Startable) -> None:
        """Run an operation and note what came of it."""
        since = perf_counter()
        try:
            await operation()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.by_way[way] += 1
            raise
        except Exception as exc:
            if len(self.wrong) < 100:
                self.wrong.append(f"{way}: {type(exc).__name__}: {exc}")
        else:
            if way == "let be":
                self.usual += SMOOTHING * (perf_counter() - since - self.usual)
        finally:
            self.ended += 1

    def accuse(self, what: str) -> None:
        """Note what should never be."""
        self.wrong.append(what)


async def _wait_for_the_moment(tally: Tally, dice: Random) -> None:
    # By turns of the loop where it is to strike early, since all that happens before the first answer takes no time.
    if dice.random() < 0.3:
        for _ in range(dice.randint(0, 12)):
            await asyncio.sleep(0)
    else:
        await asyncio.sleep(dice.random() * tally.usual)


async def let_be(tally: Tally, operations: list[Startable], dice: Random) -> None:
    """Interrupt nothing."""
    for operation in operations:
        await tally.watch("let be", operation)


async def cancel(tally: Tally, operations: list[Startable], dice: Random, again: bool = False) -> None:
    """Cancel each as a task."""
    for operation in operations:
        task = asyncio.create_task(tally.watch("twice" if again else "cancel", operation))
        await _wait_for_the_moment(tally, dice)
        asked = task.cancel()
        if again:
            if dice.random() < 0.5:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(dice.random() * 0.004)
            task.cancel()
        await asyncio.wait([task])
        if asked and not task.cancelled():
            tally.accuse("a cancellation was swallowed")


async def twice(tally: Tally, operations: list[Startable], dice: Random) -> None:
    """Cancel each as a task, and once more while it cleans up."""
    await cancel(tally, operations, dice, again=True)


async def timeout(tally: Tally, operations: list[Startable], dice: Random) -> None:
    """Put each under an asyncio.timeout that is too short, mostly."""
    for operation in operations:
        try:
            async with asyncio.timeout(dice.random() * tally.usual) as limit:
                await tally.watch("timeout", operation)
        except TimeoutError:
            continue
        if limit.expired():
            tally.accuse("a timeout was swallowed")


async def task_group(tally: Tally, operations: list[Startable], dice: Random) -> None:
    """Start all in a TaskGroup, in which then one fails."""
    try:
        async with asyncio.TaskGroup() as group:
            for operation in operations:
                group.create_task(tally.watch("task group", operation))
            await _wait_for_the_moment(tally, dice)
            raise ZeroDivisionError
    except* ZeroDivisionError:
        pass


async def anyio_scope(tally: Tally, operations: list[Startable], dice: Random) -> None:
    """Put each into an anyio scope with too short a time: each of its waits is cancelled anew."""
    for operation in operations:
        with anyio.move_on_after(dice.random() * tally.usual):
            await tally.watch("anyio scope", operation)


async def anyio_group(tally: Tally, operations: list[Startable], dice: Random) -> None:
    """Start all in an anyio task group, which is then cancelled."""
    async with anyio.create_task_group() as group:
        for operation in operations:
            group.start_soon(tally.watch, "anyio group", operation)
        await _wait_for_the_moment(tally, dice)
        group.cancel_scope.cancel()


WAYS: dict[Way, tuple[int, int]] = {
    let_be: (80, 1),
    cancel: (20, 1),
    twice: (20, 1),
    timeout: (20, 1),
    task_group: (7, 3),
    anyio_scope: (20, 1),
    anyio_group: (7, 3),
}
"""By way: how often it is drawn, and how many operations it takes at once."""
