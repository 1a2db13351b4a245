"""Stalls of the event loop: which request blocked it, for how long, and the stack of the code that did.

A request's coroutine is timed step by step, which costs some microseconds for each request. What happens *while* a
step takes too long is seen by a signal, SIGALRM, that is due only then: no thread watches, and nothing is sampled as
long as nothing blocks. Where the event loop is not in the main thread, to which signals go, a thread watches, with
DEBUG only.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
import types
from collections import Counter
from collections.abc import Coroutine, Generator
from time import monotonic, sleep
from types import FrameType
from typing import Any

from django.conf import settings

from .. import conf

logger = logging.getLogger("greenorm")

DEFAULT_MS = 100
# How many frames, from the innermost, are shown.
FRAMES = 25
# How often, at most, the stack of one step is looked at: each time that the threshold has passed once more.
SAMPLES = 50


class Watch:
    """Times the steps of requests, and looks at the stack of one that takes longer than `threshold` seconds."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.since = 0.0  # when the current step began, or 0
        self.stacks: list[traceback.StackSummary] = []  # of the current step, from the innermost frame
        self._alarm: bool | None = None
        self._thread: threading.Thread | None = None

    @types.coroutine
    def timed(self, coro: Coroutine[Any, Any, None], scope: Any) -> Generator[Any, Any, None]:
        """Await `coro`, and log each of its steps that blocks the event loop for too long."""
        global _current
        if self._alarm is None:
            self._alarm = _set_handler()
        send, throw = coro.send, coro.throw
        answer: Any = None
        error: BaseException | None = None
        try:
            while True:
                self.stacks = []
                _current, self.since = self, (since := monotonic())
                if self._alarm:
                    signal.setitimer(signal.ITIMER_REAL, self.threshold, self.threshold)
                elif self._thread is None and settings.DEBUG:
                    self._thread = _start_thread(self)
                try:
                    request = send(answer) if error is None else throw(error)
                finally:
                    took = monotonic() - since
                    self.since = 0.0
                    if self._alarm:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    if took > self.threshold:
                        self._log(took, scope)
                answer = error = None
                try:
                    answer = yield request
                except GeneratorExit:
                    coro.close()
                    raise
                except BaseException as exc:
                    error = exc
        except StopIteration:
            return
        finally:
            error = None

    def sample(self, frame: FrameType | None) -> None:
        """Remember the stack at `frame`. Reads no source, and takes no lock."""
        if len(self.stacks) < SAMPLES:
            frames = traceback.walk_stack(frame)
            self.stacks.append(traceback.StackSummary.extract(frames, limit=FRAMES, lookup_lines=False))

    def _log(self, took: float, scope: Any) -> None:
        where = "its stack was not seen"
        if self.stacks:
            lines = Counter((stack[0].filename, stack[0].lineno) for stack in self.stacks)
            (longest, _), *_ = lines.most_common(1)
            stack = next(stack for stack in self.stacks if (stack[0].filename, stack[0].lineno) == longest)
            stack.reverse()
            where = f"most of the time it was here:\n{''.join(stack.format())}"
        logger.warning(
            "%s %s blocked the event loop for %.0f ms, and with it all other requests; %s\n"
            "`greenorm.in_thread(fn, ...)` takes a call that blocks to a thread.",
            scope["method"],
            scope["path"],
            took * 1000,
            where,
            extra={"path": scope["path"], "duration_ms": took * 1000},
        )


def watch() -> Watch | None:
    """Return the watch that GREENORM["LOG_STALLS_MS"] asks for; with DEBUG one of 100 ms unless it says 0."""
    threshold = conf.get("LOG_STALLS_MS")
    if threshold is None and settings.DEBUG:
        threshold = DEFAULT_MS
    return Watch(threshold / 1000) if threshold else None


_current: Watch | None = None


def _set_handler() -> bool:
    """Let SIGALRM look for the watch that is timing. Returns False in another thread, or where the signal is taken."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        return False
    if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN, _on_alarm):
        return False
    signal.signal(signal.SIGALRM, _on_alarm)
    signal.siginterrupt(signal.SIGALRM, False)  # what blocks in C is not broken off
    return True


def _on_alarm(signum: int, frame: FrameType | None) -> None:
    if _current is not None and _current.since:
        _current.sample(frame)


def _start_thread(watch: Watch) -> threading.Thread:
    ident = threading.get_ident()

    def look() -> None:
        while True:
            sleep(watch.threshold / 4)
            since = watch.since
            if since and monotonic() - since > watch.threshold:
                watch.sample(sys._current_frames().get(ident))

    thread = threading.Thread(target=look, name="greenorm-stalls", daemon=True)
    thread.start()
    return thread
