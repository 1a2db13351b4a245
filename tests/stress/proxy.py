"""A network between the library and its server that does what a test tells it: delay, freeze, cut, lose, reset.

It runs on a thread with an event loop of its own, so that neither a test that blocks nor a loop that is stuck keeps it
from working. When a method returns, what it asks for is in effect.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar

T = TypeVar("T")

CHUNK = 65536


class Link:
    """One connection of a client, and the one to the server that stands behind it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client, self.server = client, server
        self.deaf = False  # the server is gone, and the client has not been told
        self.loses_answer = False

    def close(self, reset: bool = False) -> None:
        """Tell both sides that the other is gone; the client by RST where it is to look like a crash."""
        if reset:
            _send_rst_on_close(self.client)
        self.server.transport.abort()
        if reset:
            self.client.transport.abort()
        else:
            self.client.close()


class Proxy:
    """Listens on 127.0.0.1, at `port`, and passes on to a PostgreSQL server on a socket or at an address."""

    def __init__(self, host: str, port: int | str) -> None:
        self._host, self._server_port = host, int(port)
        self.port = 0
        self.links: set[Link] = set()
        """Connections that are open now."""
        self.accepted = 0
        """How many connections have been made, requests to cancel a statement among them."""
        self._delay = 0.0
        self._trap: tuple[bytes, str] | None = None
        self._limit: int | None = None
        self._deaf = False
        self._loop = asyncio.new_event_loop()
        self._flows: asyncio.Event | None = None
        self._listener: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._flows = self._do(_open_event)
        self.listen()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.refuse()
        self.cut()
        asyncio.run_coroutine_threadsafe(self._end_pumps(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What a network does

    def delay(self, seconds: float) -> None:
        """Pass each piece on only after `seconds`, from now on."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def freeze(self) -> None:
        """Accept everything, and pass nothing on, until `thaw`."""
        assert self._flows is not None
        self._do(self._flows.clear)

    def thaw(self) -> None:
        """Pass on again, also what was held back."""
        assert self._flows is not None
        self._do(self._flows.set)

    def cut(self) -> None:
        """Close every connection, politely, by FIN."""
        self._do(lambda: [link.close() for link in self.links])

    def reset(self) -> None:
        """Tear down every connection, by RST."""
        self._do(lambda: [link.close(reset=True) for link in self.links])

    def half_open(self) -> None:
        """Lose the server behind each connection, those made later too, without the client being told; see `mend`."""

        def lose() -> None:
            self._deaf = True
            for link in self.links:
                link.deaf = True
                link.server.transport.abort()

        self._do(lose)

    def mend(self) -> None:
        """Give a server to each connection that is made from now on, after `half_open`."""
        self._do(lambda: setattr(self, "_deaf", False))

    def reset_after(self, count: int) -> None:
        """Pass on `count` more bytes of what the server says, and then reset: in the middle of a message."""
        self._do(lambda: setattr(self, "_limit", count))

    def lose_answer_to(self, statement: bytes) -> None:
        """Pass the next `statement` on, and when the server has answered it cut the connection instead of telling."""
        self._do(lambda: setattr(self, "_trap", (statement, "answer")))

    def lose(self, statement: bytes) -> None:
        """Cut the connection that the next `statement` comes by, before the server hears of it."""
        self._do(lambda: setattr(self, "_trap", (statement, "question")))

    def refuse(self) -> None:
        """Refuse new connections, as where no server listens, until `listen`."""
        asyncio.run_coroutine_threadsafe(self._refuse(), self._loop).result()

    def listen(self) -> None:
        """Accept connections, at the port of before."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()

    def heal(self) -> None:
        """End whatever it does that a network should not, now and for what comes."""

        def heal() -> None:
            self._delay, self._trap, self._limit, self._deaf = 0.0, None, None, False
            assert self._flows is not None
            self._flows.set()

        self._do(heal)
        if self._listener is None:
            self.listen()

    # How it is done, on its own loop

    def _do(self, action: Callable[[], T]) -> T:
        async def act() -> T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _end_pumps(self) -> None:
        for pump in (pumps := [*self._pumps]):
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        try:
            answers, server = await self._connect()
        except (OSError, asyncio.CancelledError):  # no server is there, or the proxy ends
            writer.transport.abort()
            self._pumps.discard(task)
            return
        link = Link(writer, server)
        if self._deaf:
            link.deaf = True
            server.transport.abort()
        self.links.add(link)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(link, reader, server, from_client=True))
                group.create_task(self._pump(link, answers, writer, from_client=False))
        except asyncio.CancelledError:
            pass  # the proxy ends; asyncio.streams would log it, in Python 3.12
        finally:
            self.links.discard(link)
            self._pumps.discard(task)
            link.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._host.startswith("/"):
            return await asyncio.open_unix_connection(f"{self._host}/.s.PGSQL.{self._server_port}")
        return await asyncio.open_connection(self._host, self._server_port)

    async def _pump(
        self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, from_client: bool
    ) -> None:
        assert self._flows is not None
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                if link.deaf:
                    continue
                if not (self._may_ask(link, data) if from_client else self._may_answer(link, data)):
                    return
                writer.write(data)
                await writer.drain()
        if not link.deaf or from_client:
            link.close()

    def _may_ask(self, link: Link, data: bytes) -> bool:
        if self._trap is None or self._trap[0] not in data:
            return True
        (_, what), self._trap = self._trap, None
        if what == "question":
            link.close()
            return False
        link.loses_answer = True
        return True

    def _may_answer(self, link: Link, data: bytes) -> bool:
        if link.loses_answer:
            link.close()
            return False
        if self._limit is None:
            return True
        if len(data) > self._limit:
            link.client.write(data[: self._limit])
            self._limit = None
            link.close(reset=True)
            return False
        self._limit -= len(data)
        return True


def _open_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


def _send_rst_on_close(writer: asyncio.StreamWriter) -> None:
    sock: socket.socket = writer.transport.get_extra_info("socket")
    if sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
