"""What befalls the network and the server of a soak. Each fault is over when it returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeAlias

from django.db import DatabaseError, connection

import greenorm

from .proxy import Proxy

# Its last argument is for how long, in seconds, it may last.
Fault: TypeAlias = Callable[[Proxy, Random, float], Awaitable[None]]


async def slow(proxy: Proxy, dice: Random, seconds: float) -> None:
    """Each piece takes 50 ms, for a while."""
    proxy.delay(0.05)
    await asyncio.sleep(seconds)
    proxy.delay(0)


async def freeze(proxy: Proxy, dice: Random, seconds: float) -> None:
    """Nothing comes through, for a while."""
    proxy.freeze()
    await asyncio.sleep(seconds * dice.uniform(0.2, 1))
    proxy.thaw()


async def cut(proxy: Proxy, dice: Random, seconds: float) -> None:
    """All connections are closed."""
    proxy.cut()


async def reset(proxy: Proxy, dice: Random, seconds: float) -> None:
    """All connections are reset, some in the middle of a message."""
    proxy.reset_after(dice.randrange(500))
    await asyncio.sleep(seconds / 4)
    proxy.reset()


async def half_open(proxy: Proxy, dice: Random, seconds: float) -> None:
    """The server is gone behind each connection, and says nothing."""
    proxy.half_open()
    proxy.mend()


async def refuse(proxy: Proxy, dice: Random, seconds: float) -> None:
    """No server is there, for a while."""
    proxy.refuse()
    proxy.cut()
    await asyncio.sleep(seconds / 2)
    proxy.listen()


async def lose_commit(proxy: Proxy, dice: Random, seconds: float) -> None:
    """The answer to a COMMIT is lost."""
    proxy.lose_answer_to(b"COMMIT")
    await asyncio.sleep(seconds / 2)


async def terminate(proxy: Proxy, dice: Random, seconds: float) -> None:
    """The server ends all sessions."""

    def end_sessions() -> None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = current_setting('application_name') AND pid <> pg_backend_pid()"
            )

    try:
        async with asyncio.timeout(seconds):
            await greenorm.run(end_sessions)
    except (DatabaseError, TimeoutError):
        pass  # what ended, or fell silent, before this could be asked is no matter


FAULTS: list[Fault] = [slow, freeze, cut, reset, half_open, refuse, lose_commit, terminate]
