"""`iterate`: a sync iterable, such as a queryset, read with `async for`."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from django.db.models import QuerySet
from django.db.models.query import RawQuerySet

from . import hooks, tasks
from .bridge import loop_is_running
from .pool import finishing, pools
from .scope import Scope

if TYPE_CHECKING:
    from typing import Self

R = TypeVar("R")
T = TypeVar("T")


class Reading(Generic[T]):
    """An iterator that is read over several runs, and keeps their scope in use until it ends or is left.

    `work` is for the task side and `abandon` for a finalizer; the other methods are for the ORM side.
    """

    def __init__(self, source: Callable[[], Iterable[T]]) -> None:
        self.source: Callable[[], Iterable[T]] | None = source
        self.items: Iterator[T] | None = None
        self.scope: Scope | None = None
        self.done = False
        self._advancing = False

    async def work(self, job: Callable[[], R], always: bool = False) -> R:
        """Run `job` in the scope of this reading, which is that of the task that begins it."""
        if self._advancing:
            raise RuntimeError("iterate() is advanced by two tasks at once; give each task an iteration of its own")
        if self.scope is None or self.items is None:
            hooks.install()
            self.scope = tasks.own_or_new()
        self._advancing = True
        try:
            return await tasks.work_in(self.scope, job, always)
        except asyncio.CancelledError:
            if not self.done and self.items is not None:  # it came before the job, which would have closed
                await tasks.work_in(self.scope, self.close, always=True)
            raise
        finally:
            self._advancing = False

    def begin(self) -> Iterator[T]:
        """Return the iterator, and keep the scope in use from the first call on."""
        assert self.scope is not None
        if self.items is None:
            assert self.source is not None
            source, self.source = self.source, None
            self.scope.users += 1
            try:
                self.items = iter(source())
            except BaseException:
                self.done = True
                self.scope.users -= 1
                raise
        return self.items

    def close(self) -> None:
        """Close the iterator, and with it its cursor, and let go of the scope."""
        if self.done:
            return
        self.done = True
        try:
            if (close := getattr(self.items, "close", None)) is not None:
                close()
        finally:
            if self.scope is not None and self.items is not None:
                self.scope.users -= 1

    def abandon(self) -> None:
        """Have closed what nobody will read on: before the next run in its scope, or in a task of its own."""
        if self.done or self.items is None:
            return
        mine = self.scope
        assert mine is not None
        here = asyncio.get_running_loop() if loop_is_running() else None
        if here is not mine.loop or not all(pool.keeps for pool in pools().values()):
            mine.end()  # there will be no time to wait, or nobody to do it
            return
        if mine.users == 1:
            mine.close_to_joiners()  # the task's next run must not meet the cursor's end
        mine.abandoned = [*mine.abandoned, self.close]
        task = mine.loop.create_task(tasks.work_in(mine, _nothing_more))
        finishing.add(task)
        task.add_done_callback(functools.partial(_closed, mine))


def _nothing_more() -> None:
    pass


def _closed(mine: Scope, task: asyncio.Task[None]) -> None:
    finishing.discard(task)
    if task.cancelled() and mine.wrappers:
        mine.end()  # the loop is ending, and nothing was awaited: close the socket


class _Slices(Reading[T]):
    """A sync iterable pulled slice by slice into a buffer."""

    def __init__(self, source: Callable[[], Iterable[T]], size: int) -> None:
        super().__init__(source)
        self.size = size
        self.buffer: deque[T] = deque()
        self.error: Exception | None = None

    def pull(self) -> None:
        items = self.begin()
        before = len(self.buffer)
        try:
            self.buffer.extend(islice(items, self.size))  # keeps the items before an error
        except Exception as exc:
            self.error = exc
            self.close()
        except BaseException:
            self.close()
            raise
        if len(self.buffer) - before < self.size:
            self.close()


class iterate(Generic[T]):  # noqa: N801 - reads as the function that it is to its callers
    """Iterate over a queryset, or any sync iterable, with `async for`.

    Awaited: each slice of `chunk_size` items, in a run; other tasks run meanwhile. A queryset is read by its
    `iterator(chunk_size)`, 2,000 rows at a time unless said otherwise, from a server-side cursor where Django uses
    one, so that memory stays flat; another iterable item by item. Between slices a connection is kept only for an
    open cursor or transaction, and runs in the loop's body share it. Leaving early, by break, error or cancellation,
    closes the cursor and gives the connection back; `async with` or `aclose()` waits until that is done.
    """

    def __init__(
        self, source: QuerySet[Any, T] | RawQuerySet[Any] | Iterable[T], chunk_size: int | None = None
    ) -> None:
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}, but must be at least 1")
        read: Callable[[], Iterable[Any]] = functools.partial(iter, cast("Iterable[T]", source))
        if isinstance(source, QuerySet):
            chunk_size = chunk_size or 2000
            read = functools.partial(source.iterator, chunk_size=chunk_size)
        elif isinstance(source, RawQuerySet):
            chunk_size = chunk_size or 2000
            read = source.iterator
        elif not hasattr(source, "__iter__"):
            raise TypeError(f"iterate() takes a queryset or another sync iterable, not {type(source).__name__}")
        self._slices: _Slices[T] = _Slices(read, chunk_size or 1)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        slices = self._slices
        if not slices.buffer and not slices.done:
            await slices.work(slices.pull)
        if slices.buffer:
            return slices.buffer.popleft()
        if slices.error is not None:
            error, slices.error = slices.error, None
            raise error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the iteration: close its cursor and give its connection back."""
        slices = self._slices
        slices.buffer.clear()
        if not slices.done:
            await slices.work(slices.close, always=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if (slices := getattr(self, "_slices", None)) is not None:
            slices.abandon()
