"""Run a sync function in a greenlet, and its waits in the task that called it.

The only module that imports greenlet, and the only one that switches. It knows asyncio, and neither Django nor
a database. Two greenlets meet here, and are called by the same words everywhere: the *task side* runs the event
loop and the task; the *ORM side* runs the sync function.

Contract with the layers above: `spawn` runs a job on an ORM side and is awaited on the task side; on the ORM side
`drive` steps a coroutine of the driver in place and switches only for the futures on which it really suspends,
`await_` has any awaitable awaited on the task side, and `carried` gives back the object that `spawn` was handed.
Switching up hands over one of: a future (or None for a bare yield), an `_Awaited`, a `_Done`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

from greenlet import GreenletExit, getcurrent, greenlet

from .errors import Abandoned, NoEventLoop, NotInRun

T = TypeVar("T")

# Parked ORM sides kept for reuse, per thread. A new greenlet costs five times the CPU of a parked one.
_KEEP_PARKED = 64

# What ends a wait without being an error of the statement that waited.
INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt)
# What ends a greenlet or a coroutine that nobody will ever resume.
DYING = (GreenletExit, GeneratorExit)


class _Done:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class _Awaited:
    __slots__ = ("awaitable",)

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.awaitable = awaitable


class _OrmSide(greenlet):
    """A greenlet that runs one job after another, parked in between."""

    task_side: greenlet
    job: Callable[[], Any]
    carried: object = None
    held: asyncio.CancelledError | None = None
    dying: bool = False

    def run(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # reason: greenlet calls what it finds
        # The result goes up without a local name: a parked side must keep nothing of its last job alive.
        while True:
            self.task_side.switch(_Done(self.job()))


class _Parked(threading.local):
    def __init__(self) -> None:
        self.sides: list[_OrmSide] = []


_parked = _Parked()


def in_run() -> bool:
    """Return whether this code runs on an ORM side, that is, as sync code inside a `run`."""
    return type(getcurrent()) is _OrmSide


def carried() -> Any:
    """Return the object that the surrounding `spawn` was handed, or None outside of an ORM side."""
    side = getcurrent()
    return side.carried if type(side) is _OrmSide else None


def loop_is_running() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop that runs in this thread. Raises NoEventLoop where there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop(
            "no running event loop: greenorm works in asyncio (with uvloop, too), and not in trio. From sync code "
            "write `asyncio.run(main())`, where main is async and awaits greenorm; code that needs no other task "
            "beside it is plain Django, and is called as it is."
        ) from None


@types.coroutine
def spawn(job: Callable[[], T], carrying: object = None) -> Generator[Any, Any, T]:
    """Run `job` on an ORM side and return its value, or raise its exception.

    Awaited: whatever the job waits for; other tasks run meanwhile. A cancellation is raised in the job, where it
    waits. Mirrors `sqlalchemy.util.concurrency.greenlet_spawn`, SQLAlchemy 2.1.
    """
    here = getcurrent()
    sides = _parked.sides
    side = sides.pop() if sides else _OrmSide()
    side.parent = side.task_side = here
    # The same Context object, not a copy: context variables are visible both ways.
    side.gr_context = here.gr_context
    side.job = job
    side.carried = carrying
    try:
        request = side.switch()
        while type(request) is not _Done:
            try:
                if type(request) is _Awaited:
                    answer = yield from cast("Generator[Any, Any, Any]", _wait_for(request.awaitable))
                else:
                    answer = yield request
            except GeneratorExit:
                # Nobody will resume this task. Let the job unwind; `_switch_up` refuses every further wait.
                side.dying = True
                side.throw(GreenletExit)
                raise
            except BaseException as exc:
                request = side.throw(type(exc), exc, exc.__traceback__)  # of one argument it would forget the traceback
            else:
                request = side.switch(answer)
        if side.held is not None:
            raise side.held
        return cast(T, request.value)
    except Exception as exc:
        if side.held is not None:
            raise side.held from exc
        raise
    finally:
        # A job that raised has ended its greenlet; only one that is parked in `run` may be used again.
        side.held = None
        side.carried = None
        del side.job
        if not side.dead and not side.dying:
            side.gr_context = None
            if len(sides) < _KEEP_PARKED:
                sides.append(side)


@types.coroutine
def _wait_for(awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
    if isinstance(awaitable, Generator):  # a generator-based coroutine, awaitable without an __await__
        return cast(T, (yield from awaitable))
    return (yield from awaitable.__await__())


def _switch_up(request: object) -> Any:
    side = getcurrent()
    assert type(side) is _OrmSide
    if side.held is not None:
        held, side.held = side.held, None
        raise held
    if side.dying:
        raise Abandoned(
            "This run cannot wait any more: its task was destroyed or its event loop closed before it ended. "
            "Let tasks end (asyncio.run does) or cancel them before the loop is closed."
        )
    try:
        return side.task_side.switch(request)
    except GreenletExit:
        side.dying = True
        raise


def drive(coro: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine of the driver to its end, from the ORM side, and return its value.

    It is stepped in place; a switch happens only where it really suspends. Other tasks run meanwhile.
    For coroutines that hold no user code: user code belongs on the task side, see `await_`.
    """
    error: BaseException | None
    try:
        request = coro.send(None)
        while True:
            error = answer = None
            try:
                answer = _switch_up(request)
            except BaseException as exc:
                error = exc
            # Not in the except block: what `coro` makes of the error must not be chained to it by this frame.
            request = coro.send(answer) if error is None else coro.throw(error)
    except StopIteration as stop:
        return cast(T, stop.value)
    finally:
        error = None  # a frame that knows an error whose traceback knows the frame lives until the next collection


def await_(awaitable: Awaitable[T]) -> T:
    """Wait, in sync code inside a run, for any awaitable, and return its value or raise its exception.

    Awaited: `awaitable`, in the task that called `run`; other tasks run meanwhile. Raises `NotInRun` outside of a
    run and `TypeError` for what cannot be awaited; an un-awaited coroutine is closed first.
    Mirrors `sqlalchemy.util.concurrency.await_only`, SQLAlchemy 2.1.
    """
    if not inspect.isawaitable(awaitable):
        raise TypeError(f"await_() needs an awaitable, not {type(awaitable).__name__}: {awaitable!r:.100}")
    if type(getcurrent()) is not _OrmSide:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise NotInRun(
            f"await_() was called outside of a run, with {getattr(awaitable, '__qualname__', awaitable)!r}. "
            "In async code write `await ...`; let sync code be called by `await greenorm.run(fn)`."
        )
    try:
        return cast(T, _switch_up(_Awaited(awaitable)))
    except BaseException:
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # never started, where the wait was refused; else it has ended
        raise


def hold(cancellation: asyncio.CancelledError | None) -> asyncio.CancelledError | None:
    """Exchange the cancellation that waits for this run's next wait (or end), and return the former one."""
    side = getcurrent()
    assert type(side) is _OrmSide
    former, side.held = side.held, cancellation
    return former


def dying() -> bool:
    """Return whether this ORM side is being unwound because nobody will ever resume it."""
    side = getcurrent()
    return type(side) is _OrmSide and side.dying


@types.coroutine
def to_completion(coro: Coroutine[Any, Any, T], seconds: float) -> Generator[Any, Any, T]:
    """Step `coro` to its end, whatever cancellations arrive, and return its value.

    Cancellations are held back, and raised at the run's next wait or at its end. After `seconds` a `TimeoutError`
    is thrown into `coro`, once. No task is made: context and current task stay the caller's. Other tasks run
    meanwhile. Only on the ORM side, under `drive`. Does the work of `_run_to_completion`, SQLAlchemy 2.1.
    """
    loop = asyncio.get_running_loop()
    stand_in: asyncio.Future[None] = loop.create_future()
    late = False
    held: tuple[Any, ...] | None = None
    error: BaseException | None

    def wake(_: object = None) -> None:
        if not stand_in.done():
            stand_in.set_result(None)

    def expire() -> None:
        nonlocal late
        late = True
        wake()

    timer = loop.call_later(seconds, expire)
    try:
        request = coro.send(None)
        while True:
            error = None
            try:
                if request is None:
                    yield
                elif not request.done():
                    # The task waits for a stand-in: cancelling that leaves the future of `coro` as it is.
                    request._asyncio_future_blocking = False
                    stand_in = loop.create_future()
                    stand_in._asyncio_future_blocking = True
                    request.add_done_callback(wake)
                    try:
                        yield stand_in
                    finally:
                        request.remove_done_callback(wake)
            except asyncio.CancelledError as exc:
                held = exc.args if held is None else held
                continue
            except BaseException as exc:
                error = exc
            if late and error is None:
                late = False
                error = TimeoutError(f"cleanup did not finish within {seconds} seconds")
            request = coro.send(None) if error is None else coro.throw(error)
    except StopIteration as stop:
        return cast(T, stop.value)
    finally:
        error = None
        timer.cancel()
        if held is not None:
            hold(asyncio.CancelledError(*held))
