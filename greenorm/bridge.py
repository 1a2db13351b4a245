"""Run a sync function in a greenlet, and its waits in the task that called it.

The only module that imports greenlet, and the only one that switches. It knows asyncio, and neither Django nor
a database. Two greenlets meet here, and are called by the same words everywhere: the *task side* runs the event
loop and the task; the *ORM side* runs the sync function.

Contract with the layers above: `spawn` runs a job on an ORM side and is awaited on the task side; on the ORM side
`drive` steps a coroutine of the driver in place and switches only for the futures on which it really suspends,
`await_` has any awaitable awaited on the task side, and `carried` gives back the object that `spawn` was handed.
Switching up hands over one of: a future (or None for a bare yield), an `_Awaited`, a tuple of what the job returned.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import types
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from math import inf
from time import monotonic
from typing import Any, NoReturn, TypeVar, cast

from greenlet import GreenletExit, getcurrent, greenlet

from .errors import Abandoned, NoEventLoop, NotInRun

T = TypeVar("T")

# Parked ORM sides kept for reuse, per thread. A new greenlet costs five times the CPU of a parked one.
_KEEP_PARKED = 64

# How long, in seconds, a job may keep the event loop before it lets others go first. As psycopg.waiting.MAX_BUSY_TIME.
BUSY_SECONDS = 0.005

# What ends a wait without being an error of the statement that waited.
INTERRUPTS = (asyncio.CancelledError, KeyboardInterrupt)
# What ends a greenlet or a coroutine that nobody will ever resume.
DYING = (GreenletExit, GeneratorExit)


class _Awaited:
    __slots__ = ("awaitable",)

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.awaitable = awaitable


class _OrmSide(greenlet):
    """A greenlet that runs one job after another, parked in between."""

    task_side: Any = None  # a greenlet, but for one that has done no job yet
    job: Callable[[], Any]
    carried: object = None
    held: asyncio.CancelledError | None = None
    dying: bool = False
    due: float = 0.0  # by time.monotonic, when it has kept the loop for long


def _do_jobs() -> None:
    # No local names, and no method: a parked side must keep nothing of its last job alive, and not itself either. Who
    # is kept by his own stack is never freed, since the garbage collector does not look there.
    while True:
        _this_side().task_side.switch((_this_side().job(),))


# What runs now; on the ORM side, of the class above.
_this_side: Callable[[], Any] = getcurrent


class _Parked(threading.local):
    def __init__(self) -> None:
        self.sides: list[_OrmSide] = []
        self.to_unwind: list[Callable[[], None]] = []


_parked = _Parked()


# The thread in which the garbage collector runs, if it does. A callback in Python can be cut short by the handler of a
# signal, and this be wrong from then on: `_phases` is kept by C code alone. The last of them is that of now.
_collector: int | None = None
_phases: OrderedDict[str, None] = OrderedDict(start=None, stop=None)


def _note_collector(phase: str, info: object) -> None:
    global _collector
    _collector = threading.get_ident() if phase == "start" else None


gc.callbacks += [cast("Callable[[str, Any], None]", _phases.move_to_end), _note_collector]


def collecting() -> bool:
    """Return whether this code is that of a finalizer that the garbage collector calls.

    It keeps lists on the C stack, which a switch of greenlets would give to others: to wait is to corrupt memory.
    """
    return _collector is not None and _collector == threading.get_ident() and _phase() == "start"


def _phase() -> str:
    while True:
        try:
            return next(reversed(_phases))
        except RuntimeError:  # a collection has come in between
            pass


class _Turns(threading.local):
    """Whether the loop of this thread still turns, and the runs that may not begin before it has.

    Not more often than each few milliseconds, a run that begins asks the loop to call back. Those that begin later and
    find that it has not done so yet wait in line, and are let in by the turn, as many at a time as it bears.
    """

    def __init__(self) -> None:
        self.free_until = 0.0  # by time.monotonic: runs may begin without a look
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line: deque[asyncio.Future[None]] = deque()
        self._is_asking = False
        self._at_a_time = 8
        self._turned_at = 0.0

    async def begin(self) -> None:
        """Wait until the loop has turned, where it has been kept for some milliseconds."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self._is_asking, self._at_a_time = loop, False, 8
            self._line.clear()
        if not self._is_asking:
            self._is_asking = True
            self._turned_at = monotonic()
            self.free_until = self._turned_at + BUSY_SECONDS
            loop.call_soon(self._turn, loop)
            return
        self.free_until = 0.0
        future = loop.create_future()
        self._line.append(future)
        await future

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        now = monotonic()
        if not self._line:
            self._is_asking = False
            self.free_until = now + BUSY_SECONDS
            return
        was_quick = now - self._turned_at < BUSY_SECONDS
        self._at_a_time = min(2 * self._at_a_time, 64) if was_quick else max(self._at_a_time // 2, 4)
        self._turned_at = now
        for _ in range(min(self._at_a_time, len(self._line))):
            future = self._line.popleft()
            if not future.done():  # else its task was cancelled
                future.set_result(None)
        if not self._line:
            self.free_until = now + BUSY_SECONDS
        loop.call_soon(self._turn, loop)


turns = _Turns()


def in_run() -> bool:
    """Return whether this code runs on an ORM side, that is, as sync code inside a `run`."""
    return type(getcurrent()) is _OrmSide


def carried() -> Any:
    """Return the object that the surrounding `spawn` was handed, or None outside of an ORM side."""
    return getattr(getcurrent(), "carried", None)


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
    if _parked.to_unwind:
        _unwind()
    sides = _parked.sides
    side = sides.pop() if sides else _OrmSide(_do_jobs)
    if side.task_side is not here:
        side.parent = side.task_side = here
    # The same Context object, not a copy: context variables are visible both ways.
    side.gr_context = here.gr_context
    side.job = job
    side.carried = carrying
    side.due = monotonic() + BUSY_SECONDS
    try:
        request = side.switch()
        while type(request) is not tuple:
            try:
                if type(request) is _Awaited:
                    answer = yield from cast("Generator[Any, Any, Any]", _wait_for(request.awaitable))
                else:
                    answer = yield request
            except GeneratorExit:
                # Nobody will resume this task. Let the job unwind; `switch_up` refuses every further wait.
                side.dying = True
                if collecting():
                    _unwind_later(side)
                else:
                    side.throw(GreenletExit)
                raise
            except BaseException as exc:
                request = side.throw(type(exc), exc, exc.__traceback__)  # of one argument it would forget the traceback
            else:
                request = side.switch(answer)
        if side.held is not None:
            raise side.held
        return request[0]  # type: ignore[no-any-return]  # reason: what the job has returned
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


def _unwind_later(side: _OrmSide) -> None:
    job, carried = side.job, side.carried

    def unwind() -> None:
        side.job, side.carried = job, carried
        side.parent = side.task_side = getcurrent()
        try:
            side.throw(GreenletExit)
        finally:
            side.carried = None
            del side.job

    _parked.to_unwind.append(unwind)
    if loop_is_running():
        asyncio.get_running_loop().call_soon(_unwind)


def _unwind() -> None:
    while _parked.to_unwind:
        _parked.to_unwind.pop()()


@types.coroutine
def _wait_for(awaitable: Awaitable[T]) -> Generator[Any, Any, T]:
    if isinstance(awaitable, Generator):  # a generator-based coroutine, awaitable without an __await__
        return cast(T, (yield from awaitable))
    return (yield from awaitable.__await__())


def switch_up(request: object) -> Any:
    """Hand up, on the ORM side, what is to be waited for; return what comes back when it is done."""
    side = _this_side()
    if side.held is not None or side.dying:
        _refuse_to_wait(side)
    try:
        answer = side.task_side.switch(request)
    except GreenletExit:
        side.dying = True
        raise
    side.due = monotonic() + BUSY_SECONDS
    return answer


def _refuse_to_wait(side: _OrmSide) -> NoReturn:
    if side.held is not None:
        held, side.held = side.held, None
        raise held
    raise Abandoned(
        "This run cannot wait any more: its task was destroyed or its event loop closed before it ended. "
        "Let tasks end (asyncio.run does) or cancel them before the loop is closed."
    )


def has_kept_the_loop() -> bool:
    """Return whether this code is a job, has waited for nothing for some milliseconds, and can wait."""
    return monotonic() > getattr(getcurrent(), "due", inf) and not dying() and not collecting()


def drive(coro: Coroutine[Any, Any, T], elsewhere: Callable[[Coroutine[Any, Any, T]], T] | None = None) -> T:
    """Run a coroutine of the driver to its end, from the ORM side, and return its value.

    It is stepped in place; a switch happens only where it really suspends. Other tasks run meanwhile.
    For coroutines that hold no user code: user code belongs on the task side, see `await_`. What is called from
    anywhere else is handed to `elsewhere`. Raises NotInRun in a finalizer that the garbage collector calls.
    """
    side = _this_side()
    if type(side) is not _OrmSide and elsewhere is not None:
        return elsewhere(coro)
    if _collector is not None and collecting():
        coro.close()
        raise _in_finalizer()
    try:
        request = coro.send(None)
        while True:
            try:  # as `switch_up`, without a frame more for greenlet to put away
                if side.held is not None or side.dying:
                    _refuse_to_wait(side)
                side.task_side.switch(request)
                side.due = monotonic() + BUSY_SECONDS
            except BaseException as exc:
                side.dying = side.dying or isinstance(exc, GreenletExit)
                error = exc
            else:
                request = coro.send(None)  # a task sends nothing else
                continue
            # Not in the except block: what `coro` makes of the error must not be chained to it by this frame.
            try:
                request = coro.throw(error)
            finally:
                del error  # a frame that knows an error whose traceback knows the frame lives until a collection
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # reason: what `coro` has returned


def until_done(future: asyncio.Future[T]) -> T:
    """Wait, on the ORM side, for a future that nobody else waits for, and return its result or raise its error.

    Other tasks run meanwhile. Raises NotInRun in a finalizer that the garbage collector calls.
    """
    if collecting():
        raise _in_finalizer()
    if not future.done():
        future._asyncio_future_blocking = True  # as a future says of itself when it is awaited
        switch_up(future)
    return future.result()


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
        if collecting():
            raise _in_finalizer()
        return cast(T, switch_up(_Awaited(awaitable)))
    except BaseException:
        if inspect.iscoroutine(awaitable):
            awaitable.close()  # never started, where the wait was refused; else it has ended
        raise


def _in_finalizer() -> NotInRun:
    return NotInRun(
        "A finalizer (a __del__, or a generator that was left half-way) wanted to wait while the garbage collector ran "
        "it, which is wherever that happens to run. Close what it finalizes where it is used: `with`, or `close()`."
    )


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
    stand_in: Any = None
    late = False
    held: tuple[Any, ...] | None = None
    error: BaseException | None
    timer: asyncio.TimerHandle | None = None

    def wake(_: object = None) -> None:
        if not stand_in.done():
            stand_in.set_result(None)

    def expire() -> None:
        nonlocal late
        late = True
        if stand_in is not None:
            wake()

    try:
        request = coro.send(None)
        timer = loop.call_later(seconds, expire)
        while True:
            error = None
            try:
                if request is None:
                    yield
                elif not request.done():
                    # The task waits for a stand-in: cancelling that leaves the future of `coro` as it is.
                    request._asyncio_future_blocking = False
                    stand_in = getattr(request, "stand_in", loop.create_future)()
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
            if error is None and not late and request is not None and not request.done():
                continue  # woken by what a wait before has left behind
            if late and error is None:
                late = False
                error = TimeoutError(f"cleanup did not finish within {seconds} seconds")
            request = coro.send(None) if error is None else coro.throw(error)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # reason: what `coro` has returned
    finally:
        error = None
        if timer is not None:
            timer.cancel()
        if held is not None:
            hold(asyncio.CancelledError(*held))
