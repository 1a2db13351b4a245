"""A proxy in a process of its own, which hands on what the server answers some milliseconds later.

A program as well: `python -m benchmarks.harness.proxy '{"host": ..., "port": ..., "delay": ...}'` prints one line of
JSON, {"host": ..., "port": ...}, and ends with its stdin. It listens on what the server listens on, a socket in a
directory or TCP, so that distance is the only difference.
"""

from __future__ import annotations

import asyncio
import json
import select
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

PORT = 5432


class _Precise(selectors.DefaultSelector):
    """Waits to the microsecond, where epoll alone rounds up to whole milliseconds."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class _End(asyncio.Protocol):
    """One end of a connection: what it receives is written to the other end, after its delay in seconds."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self.early.append(data)  # the server is still being connected to
        elif self.delay:
            # Timers that are due at the same moment fire in the order of their times, and these never decrease.
            asyncio.get_running_loop().call_later(self.delay, self.other.transport.write, data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            asyncio.get_running_loop().call_later(self.delay, self.other.transport.close)


class _Client(_End):
    """The client's end, which connects to the server for it."""

    def __init__(self, host: str, port: int, delay: float) -> None:
        super().__init__(0.0)
        self._server = (host, port, delay)
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._task = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        host, port, delay = self._server
        loop = asyncio.get_running_loop()
        end = _End(delay)
        end.other = self
        try:
            if host.startswith("/"):
                await loop.create_unix_connection(lambda: end, f"{host}/.s.PGSQL.{port}")
            else:
                await loop.create_connection(lambda: end, host, port)
        except OSError:
            assert self.transport is not None
            self.transport.close()
            return
        self.other = end
        for data in self.early:
            self.data_received(data)
        assert self.transport is not None
        if self.transport.is_closing():  # the client has gone meanwhile
            self.connection_lost(None)


async def _serve(host: str, port: int, delay: float) -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="greenorm-proxy-") as directory:
        client = partial(_Client, host, port, delay / 1000)
        if host.startswith("/"):
            await loop.create_unix_server(client, f"{directory}/.s.PGSQL.{PORT}", backlog=1000)
            answer = {"host": directory, "port": PORT}
        else:
            server = await loop.create_server(client, "127.0.0.1", 0, backlog=1000)
            answer = {"host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
        ended = asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), ended.set)
        await ended.wait()


@contextmanager
def delayed(dsn: str, delay: float) -> Generator[str]:
    """Run a proxy to a server for the block, and give the DSN through which each round trip takes `delay` ms longer."""
    words = conninfo_to_dict(dsn)
    host = str(words.pop("hostaddr", None) or words.get("host") or "/var/run/postgresql")
    where = {"host": host, "port": int(str(words.get("port") or PORT)), "delay": delay}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.harness.proxy", json.dumps(where)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy did not start")
        yield make_conninfo(**{**words, **json.loads(line)})
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_Precise())) as runner:
        runner.run(_serve(**json.loads(sys.argv[1])))
