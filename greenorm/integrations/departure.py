"""The client's departure as a cancellation of its request, and what is finished in spite of any."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

from django.core.exceptions import RequestAborted

# How long, in seconds, a cancelled request may take to close its response.
CLOSE_SECONDS = 15.0


class Departure:
    """Cancels the current task, inside of `with`, when `listening` raises; RequestAborted ends the block in silence.

    Does what asyncio.timeout does with its timer.
    """

    __slots__ = ("_before", "_over", "_task", "error", "listener")

    def __init__(self, listening: Coroutine[Any, Any, None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._over = False
        self.error: BaseException | None = None
        self.listener = task.get_loop().create_task(listening)
        self.listener.add_done_callback(self._heard)

    @property
    def gone(self) -> bool:
        """Whether the request was cancelled because its client has left."""
        return isinstance(self.error, RequestAborted)

    def _heard(self, listener: asyncio.Task[None]) -> None:
        if listener.cancelled() or (error := listener.exception()) is None or self._over:
            return
        self.error = error
        self._task.cancel()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._over = True
        self.listener.cancel()
        if self.error is None:
            return False
        asked_by_others = self._task.uncancel() > self._before
        if exc_type is None or not issubclass(exc_type, asyncio.CancelledError) or asked_by_others:
            return False
        if not self.gone:
            raise self.error
        return True


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` to its end, however often this task is cancelled, and within a bound; then raise CancelledError.

    In a task of its own, as `_run_to_completion` of SQLAlchemy 2.1.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    deadline = loop.time() + CLOSE_SECONDS
    held: asyncio.CancelledError | None = None
    while not task.done() and (left := deadline - loop.time()) > 0:
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError as exc:
            held = exc
    if not task.done():
        task.cancel()
        raise TimeoutError(f"a cancelled request did not close its response within {CLOSE_SECONDS:g} seconds")
    if held is not None:
        raise held
    task.result()
