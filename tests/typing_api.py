"""What type checkers make of the public functions. Checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from typing import Any, assert_type

import greenorm


def service(name: str, *, count: int = 1) -> list[str]:
    return [name] * count


@greenorm.awaitable
def helper(name: str) -> int:
    return len(name)


@greenorm.awaitable
def numbers(limit: int) -> Iterator[int]:
    yield from range(limit)


class Service:
    @greenorm.awaitable
    def method(self, name: str) -> int:
        return len(name)


@greenorm.atomic
def in_transaction(name: str) -> int:
    return len(name)


@greenorm.atomic(using="other", durable=True)
async def in_async_transaction(name: str) -> int:
    return len(name)


async def fetch() -> bytes:
    return b""


async def run() -> None:
    assert_type(await greenorm.run(service, "a", count=2), list[str])
    assert_type(await greenorm.run(lambda: 1), int)
    await greenorm.run(service, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # reason: the point
    await greenorm.run(service, "a", size=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # reason: same


async def awaitable() -> None:
    assert_type(await helper("a"), int)
    assert_type(helper.sync("a"), int)
    coroutine = helper("a")
    assert assert_type(coroutine, Coroutine[Any, Any, int]) is coroutine
    assert_type(await Service().method("a"), int)
    assert_type(Service().method.sync("a"), int)
    async for number in numbers(3):
        assert_type(number, int)
    assert_type(numbers.sync(3), Iterator[int])
    await helper(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # reason: the point


async def blocks() -> None:
    async with greenorm.atomic():
        pass
    async with greenorm.atomic("other", savepoint=False), greenorm.connection():
        pass
    assert_type(in_transaction("a"), int)
    assert_type(await in_async_transaction("a"), int)
    async for item in greenorm.iterate(["a", "b"]):
        assert_type(item, str)
    async with greenorm.iterate(range(3), chunk_size=2) as items:
        assert_type(items, greenorm.iterate[int])


def sync_code() -> None:
    assert_type(greenorm.await_(fetch()), bytes)
    assert_type(greenorm.gather(lambda: 1, lambda: 2), list[int])
    assert_type(greenorm.in_run(), bool)
    with greenorm.atomic():
        pass


async def figures() -> None:
    assert_type(greenorm.pool_stats("other").in_use, int)


async def adapted() -> None:
    assert_type(await greenorm.sync_to_async(service)("a", count=2), list[str])
    assert_type(await greenorm.sync_to_async(service, thread_sensitive=False)("a"), list[str])

    @greenorm.sync_to_async(thread_sensitive=True)
    def decorated(name: str) -> int:
        return len(name)

    assert_type(await decorated("a"), int)
