"""Web servers with the site: each a process group, on a socket, on one core where that can be had."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from .workers import ROOT

START_SECONDS = 60.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Site:
    """A server, and the application that it serves."""

    name: str
    command: Sequence[str]
    engine: str
    needs: Sequence[str]
    options: dict[str, Any] = field(default_factory=lambda: {})
    database: dict[str, Any] = field(default_factory=lambda: {})

    def missing(self) -> str | None:
        """Return why it cannot take part here, or None."""
        absent = [need for need in self.needs if find_spec(need) is None]
        return f"{' and '.join(absent)} cannot be imported" if absent else None


class Served:
    """A server that runs."""

    def __init__(self, socket: str, process: psutil.Process) -> None:
        self.socket, self._process = socket, process

    def _all(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def cpu(self) -> float:
        """Return the CPU seconds that it has used."""
        return sum(sum(each.cpu_times()[:2]) for each in self._all())

    def memory(self) -> int:
        """Return its resident size in bytes, of all its processes."""
        return sum(each.memory_info().rss for each in self._all())

    def threads(self) -> int:
        """Return how many threads its busiest process has."""
        return max(each.num_threads() for each in self._all())


def pin(process: int, cpu: int) -> bool:
    """Keep a process, and what it will start, to one core. Returns whether that can be done here."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cpus) < 2:
        return False
    os.sched_setaffinity(process, {cpus[cpu]})
    return True


@contextmanager
def serving(site: Site, dsn: str) -> Generator[Served]:
    """Serve for the block. Raises RuntimeError with what the server has said, where it does not start."""
    words = {"dsn": dsn, "engine": site.engine, "options": site.options, "database": site.database}
    with tempfile.TemporaryDirectory(prefix="greenorm-site-") as directory, tempfile.TemporaryFile() as said:
        path = str(Path(directory) / "http")
        process = subprocess.Popen(
            [sys.executable, "-m", *(word.format(socket=path) for word in site.command)],
            cwd=ROOT,
            env={
                **os.environ,
                "BENCHMARKS_SITE": json.dumps(words),
                "DJANGO_SETTINGS_MODULE": "benchmarks.project.settings",
            },
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        pin(process.pid, 0)
        try:
            _await_socket(process, path, said)
            yield Served(path, psutil.Process(process.pid))
        finally:
            _stop(process)


def _await_socket(process: subprocess.Popen[bytes], path: str, said: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.connect(path)
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    raise RuntimeError(f"it does not serve: {said.read().decode(errors='replace')[-600:]}") from None
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
