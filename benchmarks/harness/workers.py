"""The worker processes, seen from the harness: started when needed, asked, watched while they work, ended."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
# How often, in seconds, a process is looked at while it works.
LOOK = 0.05
# How long, in seconds, an answer may take: a contender that hangs must not keep the others from being measured.
PATIENCE = 600.0


class Died(RuntimeError):
    """A worker process ended without an answer."""


@dataclass
class Seen:
    """What was seen of a process while it worked."""

    threads: int = 0
    memory: int = 0
    """The highest resident size in bytes."""
    memories: list[tuple[float, int]] = field(default_factory=lambda: [])
    """Resident sizes with the seconds since the start."""

    def look(self, process: psutil.Process, since: float) -> None:
        """Take down how things are now."""
        with process.oneshot():
            size = process.memory_info().rss
            self.threads = max(self.threads, process.num_threads())
        self.memory = max(self.memory, size)
        self.memories.append((round(time.monotonic() - since, 3), size))


class Worker:
    """One process. `program` is a module, with its arguments, that answers lines of JSON with lines of JSON."""

    def __init__(self, *program: str) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - `end` closes it
        self._process = subprocess.Popen(
            [sys.executable, "-m", *program],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            bufsize=1,
            start_new_session=True,  # Ctrl-C is for the harness, which ends the rest
        )
        self.pid = self._process.pid
        self._look = psutil.Process(self.pid)
        self.seen = Seen()

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Return the answer. Raises Died with what the process has said, if it ends instead."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.seen = seen = Seen()
        since = time.monotonic()
        line = ""
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                while not selector.select(LOOK):
                    seen.look(self._look, since)
                    if time.monotonic() - since > PATIENCE:
                        raise Died(f"it has not answered for {PATIENCE:g} s")
            line = self._process.stdout.readline()
            seen.look(self._look, since)
        except (BrokenPipeError, psutil.NoSuchProcess):
            pass
        if not line:
            raise Died(f"it ended with exit code {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode(errors="replace").strip()[-400:]

    def end(self) -> None:
        """End the process, in the middle of its work if it is there."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._said):
            try:
                if file is not None:
                    file.close()
            except BrokenPipeError:
                pass


class Workers:
    """Processes by name: contenders that can share one do so, unless they are to be apart."""

    def __init__(self) -> None:
        self._workers: dict[tuple[str, str], Worker] = {}

    def get(self, process: str, apart: str = "") -> Worker:
        """Return the process of that name, started if there is none; for `apart`, one that is used for nothing else."""
        key = (process, apart)
        if key not in self._workers:
            self._workers[key] = Worker("benchmarks.harness.worker", process)
        return self._workers[key]

    def forget(self, worker: Worker) -> None:
        """End a process; the next one who asks for it gets a new one."""
        worker.end()
        self._workers = {key: each for key, each in self._workers.items() if each is not worker}

    def end(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()
