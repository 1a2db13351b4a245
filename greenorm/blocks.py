"""What spans several awaits of one task: `atomic`, `connection` and `iterate`.

Each keeps a scope of the task in use from its start to its end, and does its work on the ORM side of runs in it.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.models import QuerySet
from django.db.models.query import RawQuerySet

from . import scope
from .bridge import carried, in_run
from .errors import NotInRun
from .scope import Scope

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _Block:
    """`async with` around any number of awaits, and `with` inside sync code; may be entered again and again."""

    def __init__(self) -> None:
        self._entered: list[Scope] = []

    def _scope(self) -> Scope:
        return scope.own() or Scope(parent=scope.current())

    def _enter(self, mine: Scope | None) -> None:
        raise NotImplementedError

    def _exit(self, mine: Scope | None, *exc_info: Any) -> None:
        raise NotImplementedError

    def __enter__(self) -> None:
        if not in_run() and _loop_is_running():
            name = type(self).__name__.lower()
            raise NotInRun(
                f"`with greenorm.{name}()` was used in async code, where it is `async with greenorm.{name}()`."
            )
        self._enter(carried())

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(carried(), exc_type, exc, traceback)

    async def __aenter__(self) -> None:
        scope.install()
        mine = self._scope()
        entered = False

        def enter() -> None:
            nonlocal entered
            self._enter(mine)
            mine.users += 1
            entered = True

        try:
            await scope.work_in(mine, enter)
        except BaseException as exc:
            if entered:  # and then a cancellation that had to wait
                await self._leave(mine, type(exc), exc, exc.__traceback__)
            raise
        self._entered.append(mine)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = asyncio.current_task() if _loop_is_running() else None
        index = next((i for i, mine in reversed([*enumerate(self._entered)]) if mine.task is task), -1)
        mine = self._entered.pop(index)
        if task is None:
            # The coroutine is being destroyed: nobody would resume it after an await.
            mine.end()
            return
        await self._leave(mine, exc_type, exc, traceback)

    async def _leave(self, mine: Scope, *exc_info: Any) -> None:
        def leave() -> None:
            try:
                self._exit(mine, *exc_info)
            finally:
                mine.users -= 1

        await scope.work_in(mine, leave)


class Atomic(_Block):
    """See `atomic`."""

    def __init__(self, using: str | None, savepoint: bool, durable: bool) -> None:
        super().__init__()
        self._options = using, savepoint, durable
        self._django = transaction.atomic(using, savepoint, durable)

    def _enter(self, mine: Scope | None) -> None:
        self._django.__enter__()

    def _exit(self, mine: Scope | None, *exc_info: Any) -> None:
        self._django.__exit__(*exc_info)

    def __call__(self, fn: Callable[P, R]) -> Callable[P, R]:
        """Run each call of a sync or async function in a block of its own."""
        options = self._options
        if iscoroutinefunction(fn):

            @functools.wraps(fn)
            async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with Atomic(*options):
                    return await fn(*args, **kwargs)

            return call_async  # type: ignore[return-value]  # reason: as async as `fn` is

        @functools.wraps(fn)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with Atomic(*options):
                return fn(*args, **kwargs)

        return call


@overload
def atomic(using: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def atomic(using: str | None = None, savepoint: bool = True, durable: bool = False) -> Atomic: ...
def atomic(using: Any = None, savepoint: bool = True, durable: bool = False) -> Any:
    """Make a block atomic: `async with` around any number of awaits, `with` in sync code, or a decorator of both.

    Awaited, by `async with`: connecting and SAVEPOINT on entry; on exit COMMIT, ROLLBACK or RELEASE, which run to
    their end even if the task is cancelled meanwhile, and then the callbacks of on_commit, sync or async. Other tasks
    run meanwhile; another task that inherited the block is refused with SharedScope. Each `run` of the task takes
    part, and a nested block is a savepoint. Mirrors django.db.transaction.atomic, Django 6.1, whose arguments,
    errors and `set_rollback` it has.
    """
    if callable(using):
        return Atomic(None, savepoint, durable)(using)
    return Atomic(using, savepoint, durable)


class Connection(_Block):
    """See `connection`."""

    def __init__(self, using: str | None) -> None:
        super().__init__()
        self._alias = using or DEFAULT_DB_ALIAS

    def _scope(self) -> Scope:
        # Asked for by name, a connection of one's own is no accident: whatever was inherited is left behind.
        return scope.own() or Scope(parent=None)

    def _enter(self, mine: Scope | None) -> None:
        connections[self._alias].ensure_connection()
        if mine is not None:
            mine.pins[self._alias] += 1

    def _exit(self, mine: Scope | None, *exc_info: Any) -> None:
        if mine is not None:
            mine.pins[self._alias] -= 1


def connection(using: str | None = None) -> Connection:
    """Keep one connection for a block, for session settings, advisory locks or temporary tables.

    `async with` around any number of awaits, or `with` in sync code inside a run. Awaited on entry: a connection from
    the pool; on exit it is given back, and what is open on it rolled back. Other tasks run meanwhile; one that
    inherited the block is refused with SharedScope, and may open a `connection()` of its own.
    Raises Django's OperationalError when the pool has none in time.
    """
    return Connection(using)


class _Slices(Generic[T]):
    """A sync iterable pulled slice by slice, each in a run; all on the ORM side but `start`."""

    def __init__(self, source: Iterable[T], size: int, options: dict[str, Any]) -> None:
        self.source: Any = source
        self.size = size
        self.options = options
        self.items: Iterator[T] | None = None
        self.scope: Scope | None = None
        self.buffer: deque[T] = deque()
        self.error: Exception | None = None
        self.done = False

    def pull(self) -> None:
        assert self.scope is not None
        if self.items is None:
            self.scope.users += 1
            source, self.source = self.source, None
            try:
                self.items = iter(source.iterator(**self.options) if hasattr(source, "iterator") else source)
            except BaseException:
                self.done = True
                self.scope.users -= 1
                raise
        try:
            for _ in range(self.size):
                self.buffer.append(next(self.items))
        except StopIteration:
            self.close()
        except Exception as exc:
            self.error = exc
            self.close()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.done:
            return
        self.done = True
        try:
            if (close := getattr(self.items, "close", None)) is not None:
                close()
        finally:
            if self.scope is not None and self.items is not None:
                self.scope.users -= 1


# Iterations left by `break`, whose cursor is being closed.
_closing: set[asyncio.Task[None]] = set()


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
        options = {}
        if isinstance(source, QuerySet):
            chunk_size = chunk_size or 2000
            options = {"chunk_size": chunk_size}
        elif isinstance(source, RawQuerySet):
            chunk_size = chunk_size or 2000
        elif not hasattr(source, "__iter__"):
            raise TypeError(f"iterate() takes a queryset or another sync iterable, not {type(source).__name__}")
        self._slices: _Slices[T] = _Slices(cast("Iterable[T]", source), chunk_size or 1, options)
        self._advancing = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        slices = self._slices
        if not slices.buffer and not slices.done:
            await self._work(slices.pull)
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
            await self._work(slices.close)

    async def _work(self, job: Callable[[], None]) -> None:
        if self._advancing:
            raise RuntimeError("iterate() is advanced by two tasks at once; give each task an iteration of its own")
        slices = self._slices
        if slices.scope is None or slices.items is None:
            scope.install()
            slices.scope = scope.own() or Scope(parent=scope.current())
        self._advancing = True
        try:
            await scope.work_in(slices.scope, job)
        finally:
            self._advancing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        slices = getattr(self, "_slices", None)
        if slices is None or slices.done or slices.items is None:
            return
        mine = slices.scope
        if not _loop_is_running():
            mine.end()
            return
        if mine.users == 1:
            mine.ended = True  # closed to the task's next run, which must not meet the cursor's end
        task = asyncio.get_running_loop().create_task(scope.work_in(mine, slices.close))
        _closing.add(task)
        task.add_done_callback(functools.partial(_closed, mine))


def _closed(mine: Scope, task: asyncio.Task[None]) -> None:
    _closing.discard(task)
    if task.cancelled() and mine.wrappers:
        mine.end()  # the loop is ending, and nothing was awaited: close the socket


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
