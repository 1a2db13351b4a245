"""Request bodies, streams and files under greenorm's ASGI handler, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import signals
from django.db import connection, connections, transaction
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.test.client import BOUNDARY, MULTIPART_CONTENT, encode_multipart

import greenorm
from tests.exchange import Exchange, whole_site
from tests.shop.models import Owner
from tests.site import STARTPROJECT, Admin, of_the_loop, until

pytestmark = pytest.mark.usefixtures("async_methods", "blocking_hooks")
MIB = 2**20


@contextlib.contextmanager
def finished() -> Iterator[list[Any]]:
    """Give the senders of request_finished, as they come."""
    senders: list[Any] = []

    def receiver(sender: Any, **named: Any) -> None:
        senders.append(sender)

    signals.request_finished.connect(receiver)
    yield senders
    signals.request_finished.disconnect(receiver)


def idle() -> bool:
    return greenorm.pool_stats().in_use == 0


# Requests


def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


@pytest.mark.no_database
@pytest.mark.parametrize("parts", [[b""], [b"one"], [b"one", b" two", b" three"], [b"", b"late"]])
async def test_a_body_arrives_whole_and_in_memory(parts: list[bytes], no_threads: list[str]) -> None:
    with whole_site(echo) as handler:
        answer = await Exchange("POST", body=parts).by(handler)
    assert answer.text == b"".join(parts).decode()


@pytest.mark.no_database
async def test_a_large_body_is_kept_on_disk_by_a_thread() -> None:
    parts = [bytes([i]) * MIB for i in range(4)]
    with whole_site(echo, DATA_UPLOAD_MAX_MEMORY_SIZE=None) as handler:
        answer = await Exchange("POST", body=parts).by(handler)
    assert b"".join(answer.sent) == b"".join(parts)


@pytest.mark.parametrize("size", [10, 3 * MIB])
async def test_a_file_is_uploaded(size: int, tmp_path: Path) -> None:
    sent = tmp_path / "photo.bin"
    sent.write_bytes(b"x" * size)

    def view(request: HttpRequest) -> HttpResponse:
        file: Any = request.FILES["photo"]
        Owner.objects.create(name=file.name)
        return HttpResponse(f"{request.POST['name']} {file.name} {len(file.read())} {type(file).__name__}")

    with sent.open("rb") as file:
        form = encode_multipart(BOUNDARY, {"name": "Ada", "photo": file})
    headers = [(b"content-type", MULTIPART_CONTENT.encode()), (b"content-length", str(len(form)).encode())]
    parts = [form[i : i + 65536] for i in range(0, len(form), 65536)]
    with whole_site(view) as handler:
        answer = await Exchange("POST", body=parts, headers=headers).by(handler)
    kind = "InMemoryUploadedFile" if size == 10 else "TemporaryUploadedFile"
    assert answer.text == f"Ada photo.bin {size} {kind}"
    assert await Owner.objects.acount() == 1


@pytest.mark.no_database
async def test_other_requests_are_served_while_a_large_upload_is_read() -> None:
    answered: list[str] = []

    def view(request: HttpRequest, rest: str = "") -> HttpResponse:
        size = len(request.body)
        answered.append(rest)
        return HttpResponse(str(size))

    def arrived(chunk: bytes) -> None:
        assert chunk

    with whole_site(view, DATA_UPLOAD_MAX_MEMORY_SIZE=None) as handler:
        upload = asyncio.create_task(Exchange("POST", "/upload", body=[b"x" * MIB] * 8, on_chunk=arrived).by(handler))
        await asyncio.sleep(0)
        await Exchange(path="/small").by(handler)
        await upload
    assert answered == ["small", "upload"]


@pytest.mark.no_database
async def test_a_client_that_leaves_before_its_body_has_arrived_is_not_served() -> None:
    with finished() as senders, whole_site(echo) as handler:
        exchange = Exchange("POST", body=[b"half", b"never"])
        del exchange._messages[1]
        exchange.leave()
        await exchange.by(handler)
    assert (exchange.status, senders) == (0, [])


# Streams


async def test_a_sync_iterator_is_pulled_chunk_by_chunk(no_threads: list[str]) -> None:
    await Owner.objects.abulk_create(Owner(name=f"{i}") for i in range(3))
    story: list[Any] = []

    def names() -> Iterator[str]:
        for i in range(3):
            story.append(f"read {i}")
            yield Owner.objects.get(name=str(i)).name

    def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(names())

    with whole_site(view, *STARTPROJECT) as handler:
        answer = await Exchange(on_chunk=lambda chunk: story.append((chunk, idle()))).by(handler)
    assert answer.text == "012"
    assert story == ["read 0", (b"0", True), "read 1", (b"1", True), "read 2", (b"2", True)]


async def test_a_stream_from_a_server_side_cursor_keeps_its_connection_and_gives_it_back(no_threads: list[str]) -> None:
    await Owner.objects.abulk_create(Owner(name=f"{i:04}") for i in range(1000))
    in_use = []

    def names() -> Iterator[str]:
        for owner in Owner.objects.order_by("name").iterator(chunk_size=100):
            yield owner.name

    def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(names())

    with whole_site(view, *STARTPROJECT) as handler:
        answer = await Exchange(on_chunk=lambda chunk: in_use.append(greenorm.pool_stats().in_use)).by(handler)
    assert answer.text == "".join(f"{i:04}" for i in range(1000))
    assert set(in_use) == {1}
    assert idle()


async def test_a_sync_stream_that_waits_for_nothing_lets_others_run() -> None:
    turns = 0
    done = False

    async def count() -> None:
        nonlocal turns
        while not done:
            turns += 1
            await asyncio.sleep(0)

    def numbers() -> Iterator[str]:
        for _ in range(20_000):
            yield "x"

    with whole_site(lambda request: StreamingHttpResponse(numbers())) as handler:
        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        before = turns
        await Exchange().by(handler)
        during, done = turns - before, True
        await counting
    assert during > 5


def sync_events() -> Iterator[str]:
    while True:
        yield f"data: {Owner.objects.count()}\n\n"
        greenorm.await_(asyncio.sleep(0))


async def async_events() -> AsyncIterator[str]:
    while True:
        yield f"data: {await Owner.objects.acount()}\n\n"
        await asyncio.sleep(0)


@pytest.mark.parametrize("events", [sync_events, async_events])
async def test_server_sent_events_end_with_their_client(events: Any, no_threads: list[str]) -> None:
    ended: list[bool] = []

    class Events(StreamingHttpResponse):
        def close(self) -> None:
            ended.append(greenorm.in_run())
            super().close()

    def view(request: HttpRequest) -> StreamingHttpResponse:
        return Events(events(), content_type="text/event-stream")

    def leave_after_three(chunk: bytes) -> None:
        assert idle()
        if len(exchange.sent) == 3:
            exchange.leave()

    with finished() as senders, whole_site(view, *STARTPROJECT) as handler:
        exchange = Exchange(on_chunk=leave_after_three)
        await exchange.by(handler)
    assert exchange.sent[:3] == [b"data: 0\n\n"] * 3
    assert (ended, senders) == ([True], [type(handler)])
    assert idle()


async def test_many_streams_share_a_few_connections(no_threads: list[str]) -> None:
    streaming = 0

    def count(chunk: bytes) -> None:
        nonlocal streaming
        streaming += 1

    with whole_site(lambda request: StreamingHttpResponse(sync_events())) as handler:
        exchanges = [Exchange(on_chunk=count) for _ in range(100)]
        serving = [asyncio.create_task(exchange.by(handler)) for exchange in exchanges]
        await until(lambda: all(len(exchange.sent) > 2 for exchange in exchanges))
        stats = greenorm.pool_stats()
        for exchange in exchanges:
            exchange.leave()
        await asyncio.gather(*serving)
    assert stats.size <= stats.max_size == 4
    assert stats.timeouts == 0
    assert idle()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stream_that_its_client_leaves_is_closed_before_its_response(kind: str) -> None:
    await Owner.objects.abulk_create(Owner(name=f"{i:04}") for i in range(100))
    story: list[str] = []

    def names() -> Iterator[str]:
        try:
            for owner in Owner.objects.order_by("name").iterator(chunk_size=10):
                yield owner.name
        finally:
            story.append("stream")

    async def anames() -> AsyncIterator[str]:
        try:
            async for owner in Owner.objects.order_by("name").aiterator(chunk_size=10):
                yield owner.name
                await asyncio.sleep(0)
        finally:
            story.append("stream")

    class Stream(StreamingHttpResponse):
        def close(self) -> None:
            story.append("response")
            super().close()

    with whole_site(lambda request: Stream(names() if kind == "sync" else anames())) as handler:
        exchange = Exchange(on_chunk=lambda chunk: exchange.leave())
        await exchange.by(handler)
    assert story == ["stream", "response"]
    await until(idle)


async def test_an_error_in_a_stream_closes_the_response_and_reaches_the_server() -> None:
    def broken() -> Iterator[str]:
        yield str(Owner.objects.count())
        raise ZeroDivisionError

    with finished() as senders, whole_site(lambda request: StreamingHttpResponse(broken())) as handler:
        exchange = Exchange()
        with pytest.raises(ZeroDivisionError):
            await exchange.by(handler)
    assert (exchange.text, senders) == ("0", [type(handler)])
    assert idle()


# Files


@pytest.mark.no_database
@pytest.mark.parametrize("size", [0, 1, 65536, 200_000])
async def test_a_file_is_read_in_threads_and_closed(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"x" * size)
    opened: list[Any] = []
    readers = set()

    class File:
        def __init__(self) -> None:
            self.file = path.open("rb")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, count: int = -1) -> bytes:
            readers.add(threading.current_thread())
            return self.file.read(count)

    def view(request: HttpRequest) -> FileResponse:
        opened.append(File())
        return FileResponse(opened[0])

    with whole_site(view, *STARTPROJECT) as handler:
        answer = await Exchange().by(handler)
    assert b"".join(answer.sent) == b"x" * size
    assert int(answer.answered[b"content-length"]) == size
    assert opened[0].closed
    assert threading.main_thread() not in readers


async def test_a_file_like_object_that_is_no_file_is_read_in_runs(no_threads: list[str]) -> None:
    class InTheDatabase:
        def __init__(self) -> None:
            self.left = 3

        def read(self, size: int) -> bytes:
            self.left -= 1
            return f"{Owner.objects.count()}{of_the_loop()}".encode() if self.left else b""

    with whole_site(lambda request: FileResponse(InTheDatabase())) as handler:
        assert (await Exchange().by(handler)).text == "0True0True"


# Clients that leave


async def test_a_client_that_leaves_stops_the_statement_and_rolls_back(admin: Admin, no_threads: list[str]) -> None:
    raised: list[BaseException] = []

    def view(request: HttpRequest) -> HttpResponse:
        try:
            with transaction.atomic():
                Owner.objects.create(name="Ada")
                connection.execute_wrappers.append(leave)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_sleep(60)")
        except BaseException as exc:
            raised.append(exc)
            raise
        return HttpResponse()

    def leave(execute: Any, *args: Any) -> Any:
        asyncio.get_running_loop().call_later(0.05, exchange.leave)
        return execute(*args)

    with finished() as senders, whole_site(view, *STARTPROJECT) as handler:
        exchange = Exchange()
        await exchange.by(handler)
    assert [type(exc) for exc in raised] == [asyncio.CancelledError]
    assert (exchange.status, senders) == (0, [type(handler)])
    assert await Owner.objects.acount() == 0
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    await until(lambda: admin.execute(running).fetchone() == (0,))
    assert idle()


async def test_a_client_that_leaves_cancels_an_async_view() -> None:
    raised: list[BaseException] = []

    async def view(request: HttpRequest) -> HttpResponse:
        exchange.leave()
        try:
            await asyncio.sleep(60)
        except BaseException as exc:
            raised.append(exc)
            raise
        return HttpResponse()

    with finished() as senders, whole_site(view, *STARTPROJECT) as handler:
        exchange = Exchange()
        await exchange.by(handler)
    assert [type(exc) for exc in raised] == [asyncio.CancelledError]
    assert len(senders) == 1
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


class Waiting:
    """Middleware that waits for the database on the way out, when the client leaves."""

    leave: Any

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        response = self.get_response(request)
        asyncio.get_running_loop().call_later(0.02, type(self).leave)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
        return response


async def test_a_response_that_cancelled_middleware_has_lost_is_closed() -> None:
    closed = []

    class Response(HttpResponse):
        def close(self) -> None:
            closed.append(self)
            super().close()

    with finished() as senders, whole_site(lambda request: Response(), "tests.test_asgi_bodies.Waiting") as handler:
        exchange = Exchange()
        Waiting.leave = exchange.leave
        await exchange.by(handler)
    assert len(closed) == 1
    assert senders == [type(handler)]


async def test_a_server_that_cancels_again_and_again_meets_a_request_that_gives_all_back() -> None:
    closed = []

    class Response(HttpResponse):
        def close(self) -> None:
            with connections["default"].cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.2)")
            super().close()
            closed.append(self)

    async def send(message: Any) -> None:
        sending.set()
        await asyncio.sleep(60)

    sending = asyncio.Event()
    with finished() as senders, whole_site(lambda request: Response()) as handler:
        exchange = Exchange()
        exchange.send = send  # type: ignore[method-assign]
        serving = asyncio.create_task(exchange.by(handler))
        await sending.wait()
        while not serving.done():
            serving.cancel()
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert (len(closed), len(senders)) == (1, 1)
    assert idle()


async def test_a_client_that_breaks_the_protocol_is_an_error() -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    with finished() as senders, whole_site(lambda request: HttpResponse(str(Owner.objects.count()))) as handler:
        exchange = Exchange()
        exchange.receive = receive  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="Invalid ASGI message"):
            await exchange.by(handler)
    assert len(senders) == 1
