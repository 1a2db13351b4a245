"""Shows people what is going on, on stderr where that is a terminal; nobody else hears of it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Steps:
    """A line for each step with what is done of it and the time that it took, one step at a time."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        # Drawn when told to, not by rich's thread: that one would be measured with the rest.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._current: TaskID | None = None

    def begin(self, step: str) -> None:
        """End the step before, if there is one, and begin another."""
        self._end()
        self._current = self._progress.add_task(step, total=None, detail="")
        self._progress.refresh()

    def advance(self, done: int, total: int, detail: str = "") -> None:
        """Say how much of the step is done."""
        if self._current is not None:
            self._progress.update(self._current, completed=done, total=total, detail=detail)
            self._progress.refresh()

    def _end(self) -> None:
        if self._current is not None:
            self._progress.update(self._current, total=1, completed=1, detail="")
            self._progress.refresh()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is None:
            self._end()
        self._progress.stop()
