"""A client that calls an ASGI application as a server does, in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.test import override_settings
from django.urls import path

from greenorm.integrations.asgi import Handler

View = Callable[..., Any]


@contextmanager
def whole_site(view: View, *middleware: str, **settings: Any) -> Iterator[Handler]:
    """Give greenorm's ASGI handler for a site that answers every request by `view`, behind `middleware`."""
    settings.setdefault("ALLOWED_HOSTS", ["testserver"])
    urls = (path("", view), path("<path:rest>", view))
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=middleware, **settings):
        yield Handler()


@dataclass
class Exchange:
    """One request, and what the application has sent in answer so far. The client leaves when `leave` is called."""

    method: str = "GET"
    path: str = "/"
    body: Sequence[bytes] = (b"",)
    headers: Sequence[tuple[bytes, bytes]] = ()
    on_chunk: Callable[[bytes], None] = lambda chunk: None
    status: int = 0
    sent: list[bytes] = field(default_factory=list)
    answered: dict[bytes, bytes] = field(default_factory=dict)
    over: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        last = len(self.body) - 1
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": i < last} for i, part in enumerate(self.body)
        ]

    @property
    def text(self) -> str:
        return b"".join(self.sent).decode()

    def leave(self) -> None:
        self.gone.set()

    async def receive(self) -> dict[str, Any]:
        if self._messages:
            return self._messages.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        assert not self.over
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.answered = {name.lower(): value for name, value in message["headers"]}
            return
        if message.get("body"):
            self.sent.append(message["body"])
            self.on_chunk(message["body"])
        self.over = not message.get("more_body", False)

    async def by(self, application: Any) -> Exchange:
        """Let the application serve this request to its end."""
        path, _, query = self.path.partition("?")
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": self.method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(b"host", b"testserver"), *self.headers],
        }
        await application(scope, self.receive, self.send)
        return self
