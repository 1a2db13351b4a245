"""Clients of a web server, in a process of their own: each keeps its connection, and has one request under way.

A program: `python -m benchmarks.harness.load`, asked by lines of JSON on stdin, answers by lines on stdout. Bodies are
held against what is expected.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from random import Random
from typing import Any, cast

from .turns import percentile
from .works import ITEMS, Reference

# How long, in seconds, a server may take for what is under way at the end.
PATIENCE = 60.0
END_OF_HEAD = b"\r\n\r\n"


class Refused(AssertionError):
    """A server's answer is not what it should be."""


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, page: str, asked: Callable[[], int], expected: dict[int, Any], until: float) -> None:
        self.page, self.asked, self.expected, self.until = page.encode(), asked, expected, until
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.latencies: list[float] = []
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no child of asyncio's
        self.ask()

    def ask(self) -> None:
        self.pk = self.asked()
        self.since = time.perf_counter()
        self.transport.write(b"GET /%b/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % (self.page, self.pk))

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, end, body = self.received.partition(END_OF_HEAD)
        if not end:
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), None)
        if length is None or len(body) > length:
            self.end(Refused(f"no length, or more than that: {self.received[:300]!r}"))
        elif len(body) == length:
            now = time.perf_counter()
            self.latencies.append(now - self.since)
            self.received = b""
            if lines[0].split()[1] != b"200" or json.loads(body) != self.expected[self.pk]:
                self.end(Refused(f"{head[:200]!r} {body[:200]!r}"))
            elif now > self.until:
                self.end(None)
            else:
                self.ask()

    def end(self, error: Exception | None) -> None:
        self.transport.close()
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(Refused(f"the server has closed the connection: {exc}"))


async def _call(order: dict[str, Any], expected: dict[int, Any]) -> dict[str, Any]:
    random, duration = Random(order["seed"]), order["duration"]
    until = time.perf_counter() + duration

    def client() -> _Client:
        return _Client(order["page"], lambda: random.randint(1, ITEMS), expected, until)

    loop = asyncio.get_running_loop()
    since = time.perf_counter()
    called = [(await loop.create_unix_connection(client, order["socket"]))[1] for _ in range(order["clients"])]
    async with asyncio.timeout(duration + PATIENCE):
        await asyncio.gather(*(client.ended for client in called))
    seconds = time.perf_counter() - since
    latencies = sorted(latency for client in called for latency in client.latencies)
    return {
        "done": len(latencies),
        "seconds": seconds,
        "p50": percentile(latencies, 50),
        "p99": percentile(latencies, 99),
    }


def main() -> None:
    """Answer orders until there are no more."""
    loop_factory = None
    if find_spec("uvloop"):
        import uvloop

        loop_factory = uvloop.new_event_loop
    expected: dict[int, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if not expected:
            rows = Reference(order["near"]).items
            expected = {pk: {"id": row[0], "title": row[1], "number": row[2]} for pk, row in rows.items()}
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                answer = runner.run(_call(order, expected))
        except (OSError, Refused) as exc:
            answer = {"error": f"{type(exc).__name__}: {exc}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
