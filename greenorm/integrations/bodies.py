"""Bodies of requests and of streaming responses, between ASGI's messages and Django's files and iterators."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import AsyncIterator, Iterator
from time import monotonic
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestAborted
from django.http import FileResponse

from ..api import in_thread
from ..bridge import in_run
from ..iteration import iterate

# After this long, in seconds, without a wait a stream lets other tasks run.
SLICE_SECONDS = 0.005
_CallableIterator: Any = type(iter(int, 1))


async def read_body(receive: Any) -> Any:
    """Read the body of a request into a file, which is in memory up to FILE_UPLOAD_MAX_MEMORY_SIZE.

    Awaited: the client, and beyond that size the disk, in a thread. Raises RequestAborted where the client leaves
    before the end. Mirrors ASGIHandler.read_body, Django 6.1, which has a temporary file for each body.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body = message.get("body", b"")
        if len(body) <= settings.FILE_UPLOAD_MAX_MEMORY_SIZE:
            return io.BytesIO(body)
    file = _Spooled(max_size=settings.FILE_UPLOAD_MAX_MEMORY_SIZE, mode="w+b")
    try:
        while True:
            if message["type"] == "http.disconnect":
                raise RequestAborted
            await file.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
            message = await receive()
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


class _Spooled(tempfile.SpooledTemporaryFile[bytes]):
    """A body that is read and written in a thread once it is on disk, chunk by chunk."""

    async def append(self, chunk: bytes) -> None:
        file: Any = self
        if file._rolled or self.tell() + len(chunk) > file._max_size:
            await asyncio.to_thread(self.write, chunk)
        else:
            self.write(chunk)

    def read(self, *args: Any) -> bytes:
        file: Any = self
        if file._rolled and in_run():
            return in_thread(super().read, *args)
        return super().read(*args)


def readable_by_tasks(response: Any) -> None:
    """Give a streaming response an async iterator in place of a sync one, that reads it chunk by chunk."""
    if response.is_async:
        return
    iterator: Any = response._iterator
    file = getattr(response, "file_to_stream", None) if isinstance(response, FileResponse) else None
    if file is not None and type(iterator) is _CallableIterator and _is_on_disk(file):
        chunks: Any = iterator  # narrowed to what wraps it
        response.streaming_content = _read_in_threads(chunks)
    else:
        response.streaming_content = _pull(iterator)


def _is_on_disk(file: Any) -> bool:
    try:
        file.fileno()
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        return False
    return True


async def _read_in_threads(iterator: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, iterator, b""):
        yield chunk


async def _pull(iterator: Iterator[Any]) -> AsyncIterator[Any]:
    async with iterate(iterator) as chunks:
        since = monotonic()
        async for chunk in chunks:
            yield chunk
            if monotonic() - since > SLICE_SECONDS:
                await asyncio.sleep(0)
                since = monotonic()
