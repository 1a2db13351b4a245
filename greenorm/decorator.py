"""`awaitable`: a sync helper that async code can await, and sync code can call as before."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from asgiref.sync import iscoroutinefunction, markcoroutinefunction

from .api import run
from .bridge import in_run, loop_is_running
from .iteration import iterate

if TYPE_CHECKING:
    from typing import Self

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")


class _Helper(Generic[P, T]):
    """A decorated function: its attributes, signature and docstring, and `sync`, the original."""

    sync: Callable[P, T]

    def __init__(self, fn: Callable[P, T]) -> None:
        functools.update_wrapper(self, fn)
        self.sync = fn

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        sync: Any = self.sync
        if instance is None and not isinstance(sync, (staticmethod, classmethod)):
            return self
        bound = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.sync = cast("Any", sync).__get__(instance, owner)
        bound.__dict__["__self__"] = instance
        return bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        if in_run() or not loop_is_running():
            return self.sync(*args, **kwargs)
        return self._in_async_code(*args, **kwargs)

    def _in_async_code(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<greenorm.awaitable {self.sync!r}>"


class AwaitableFunction(_Helper[P, T]):
    """A sync function that async code awaits. Type checkers see the coroutine; `.sync` has the plain result."""

    def __init__(self, fn: Callable[P, T]) -> None:
        super().__init__(fn)
        markcoroutinefunction(self)

    def _in_async_code(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        return run(self.sync, *args, **kwargs)

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Self: ...
        @overload
        def __get__(
            self: AwaitableFunction[Concatenate[S, Q], T], instance: S, owner: type | None = None
        ) -> AwaitableFunction[Q, T]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...


class AwaitableGenerator(_Helper[P, Iterator[T]]):
    """A sync generator function over which async code iterates with `async for`."""

    def _in_async_code(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return iterate(self.sync(*args, **kwargs))

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type | None = None) -> Self: ...
        @overload
        def __get__(
            self: AwaitableGenerator[Concatenate[S, Q], T], instance: S, owner: type | None = None
        ) -> AwaitableGenerator[Q, T]: ...
        def __get__(self, instance: Any, owner: type | None = None) -> Any: ...
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> iterate[T]: ...


@overload
def awaitable(  # type: ignore[overload-overlap]  # reason: a generator function is the special case
    fn: Callable[P, Iterator[T]], /
) -> AwaitableGenerator[P, T]: ...
@overload
def awaitable(fn: Callable[P, T], /) -> AwaitableFunction[P, T]: ...
def awaitable(fn: Any, /) -> Any:
    """Let async code await a sync helper, with no change for its sync callers.

    Called where an event loop runs, it returns a coroutine that does what `run` does; called from plain sync code, or
    from sync code inside a run, it runs and returns. A generator function gives an iterator for `async for`, or for
    `for`. For functions, methods, static and class methods; Django takes a decorated view for an async one.
    `.sync` is the original. Raises TypeError for what is async already, or cannot be called.
    """
    if isinstance(fn, _Helper):
        return cast("Any", fn)
    inner = getattr(fn, "__func__", fn)  # of a static or class method
    if iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        raise TypeError(f"@greenorm.awaitable is for sync functions; {fn.__qualname__} is async already")
    if not callable(inner):
        raise TypeError(f"@greenorm.awaitable is for functions, not {type(fn).__name__}")
    if inspect.isgeneratorfunction(inner):
        return AwaitableGenerator(fn)
    return AwaitableFunction(fn)
