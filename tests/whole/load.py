"""`python -m tests.whole.load`: many keep-alive clients on the site's pool of 10, some of which leave at random.

Says how many requests were answered, and fails where one was not answered as it should be, where a session of the
server is left in use, or where the site's memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections import Counter
from typing import Any

import psutil

from tests.whole.serving import COMMANDS, Server

# What each page answers, and how often it is asked for. Streams are left in any case.
PAGES = {"/sync": 4, "/async": 3, "/balance": 2, "/decorated": 1, "/events/sync": 0.3, "/events/async": 0.3}
# Of the requests, those whose client leaves without waiting for the answer, after up to so many seconds.
LEAVING, PATIENCE = 0.05, 0.1


class Load:
    """Clients of one server, for some seconds."""

    def __init__(self, server: Server, cookie: str, chance: random.Random) -> None:
        self.server, self.cookie, self.chance = server, cookie, chance
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []

    async def client(self, until: float) -> None:
        """Ask for one page after another, on one connection for as long as the client does not leave."""
        streams: Any = None
        while time.monotonic() < until:
            (path,) = self.chance.choices(list(PAGES), list(PAGES.values()))
            try:
                streams = streams or await asyncio.open_unix_connection(self.server.socket)
                async with asyncio.timeout(120):
                    kept = await self.ask(path, *streams)
            except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError) as exc:
                self.errors.append(f"{path}: {exc!r}")
                kept = False
            if not kept and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def ask(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send a request and read its answer, or leave. Return whether the connection may be used again."""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: site\r\nCookie: {self.cookie}\r\n\r\n".encode())
        if self.chance.random() < LEAVING:
            await asyncio.sleep(self.chance.random() * PATIENCE)
            self.counts["left"] += 1
            return False
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        headers = await reader.readuntil(b"\r\n\r\n")
        if status != 200:
            self.errors.append(f"{path}: {status}")
            return False
        if path.startswith("/events"):
            await reader.readuntil(b"data: ")
            self.counts["streams"] += 1
            return False
        length = next(int(line[15:]) for line in headers.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        self.counts["answered"] += 1
        return True


def memory(server: Server) -> float:
    """Return the memory of the server and its workers, in MiB."""
    process = psutil.Process(server.process.pid)
    return sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]) / 2**20


async def load(server: Server, clients: int, seconds: float, seed: int) -> tuple[Load, list[float]]:
    """Put the load on the server, and return it with the memory of the server, four times in equal distances."""
    async with server.async_client() as client:
        await client.get("/enter")
        cookie = f"sessionid={client.cookies['sessionid']}"
    running = Load(server, cookie, random.Random(seed))
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(running.client(until))
        sizes = []
        for _ in range(4):
            await asyncio.sleep(seconds / 4)
            sizes.append(memory(server))
    return running, sizes


async def at_rest(server: Server) -> dict[str, Any]:
    """Return the state of the site when nothing is asked of it any more, at the latest after a minute."""
    async with server.async_client() as client, asyncio.timeout(60):
        while True:
            state: dict[str, Any] = (await client.get("/state")).json()
            if state["pool"][1] == 0:
                return state
            await asyncio.sleep(0.05)


def main() -> int:
    import tests.whole.alone as alone

    parser = argparse.ArgumentParser("python -m tests.whole.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--server", choices=COMMANDS, default="uvicorn")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)), help="of the clients' chances")
    chosen = parser.parse_args()

    with alone.serving(chosen.server) as server:
        running, sizes = asyncio.run(load(server, chosen.clients, chosen.seconds, chosen.seed))
        state = asyncio.run(at_rest(server))
        log = server.log.read_text()
    size, in_use, most, timeouts = state["pool"]
    told = ", ".join(f"{count} {what}" for what, count in sorted(running.counts.items()))
    sys.stdout.write(
        f"{chosen.clients} clients for {chosen.seconds:g} s on {chosen.server}, seed {chosen.seed}: {told}; "
        f"{len(running.errors)} errors; pool {size} of {most}, {in_use} in use, {timeouts} timeouts; "
        f"memory {' '.join(f'{mib:.0f}' for mib in sizes)} MiB; {len(state['threads'])} threads\n"
    )
    for error, count in Counter(running.errors).most_common(10):
        sys.stdout.write(f"{count} times {error}\n")
    sound = not running.errors and not timeouts and not in_use and not state["threads"] and "Traceback" not in log
    return 0 if sound and sizes[-1] < 1.1 * sizes[0] else 1


if __name__ == "__main__":
    sys.exit(main())
