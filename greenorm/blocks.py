"""What spans several awaits of one task: `atomic` and `connection`.

Each keeps a scope of the task in use from its start to its end, and does its work on the ORM side of runs in it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from . import hooks, tasks
from .bridge import carried, in_run, loop_is_running
from .errors import NotInRun
from .scope import Scope

if TYPE_CHECKING:
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")


class _Block:
    """`async with` around any number of awaits, and `with` inside sync code; may be entered again and again."""

    def __init__(self) -> None:
        self._entered: list[Scope] = []

    def _scope(self) -> Scope:
        return tasks.own_or_new()

    def _enter(self, mine: Scope | None) -> None:
        raise NotImplementedError

    def _exit(self, mine: Scope | None, *exc_info: Any) -> None:
        raise NotImplementedError

    def __enter__(self) -> None:
        if not in_run() and loop_is_running():
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
        hooks.install()
        mine = self._scope()
        entered = False

        def enter() -> None:
            nonlocal entered
            self._enter(mine)
            mine.users += 1
            entered = True

        try:
            await tasks.work_in(mine, enter)
        except BaseException as exc:
            if entered:  # and then a cancellation that had to wait
                await self._leave(mine, type(exc), exc, exc.__traceback__)
            raise
        self._entered.append(mine)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._entered:
            raise RuntimeError(f"{type(self).__name__.lower()}() was left without having been entered")
        task = asyncio.current_task() if loop_is_running() else None
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

        await tasks.work_in(mine, leave, always=True)


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
        mine = tasks.own()
        if mine is None:
            mine = Scope(parent=None)
            mine.left_behind = tasks.current()
        return mine

    def _enter(self, mine: Scope | None) -> None:
        connections[self._alias].ensure_connection()
        if mine is not None:
            mine.pin(self._alias, +1)

    def _exit(self, mine: Scope | None, *exc_info: Any) -> None:
        if mine is not None:
            mine.pin(self._alias, -1)


def connection(using: str | None = None) -> Connection:
    """Keep one connection for a block, for session settings, advisory locks or temporary tables.

    `async with` around any number of awaits, or `with` in sync code inside a run. Awaited on entry: a connection from
    the pool; on exit it is given back, and what is open on it rolled back. Other tasks run meanwhile; one that
    inherited the block is refused with SharedScope, and may open a `connection()` of its own.
    Raises Django's OperationalError when the pool has none in time.
    """
    return Connection(using)
