"""A Django site for the tests: its settings, clients that call its handlers as servers do, and what users write."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import psycopg
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, JsonWebsocketConsumer
from django.contrib.auth import alogin
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import User
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, transaction
from django.db.models import Count, Func, IntegerField
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path

import greenorm
from tests.shop.models import Owner
from tests.startproject import STARTPROJECT as STARTPROJECT

View = Callable[..., Any]
Admin = psycopg.Connection[Any]


@contextmanager
def site(view: View, *middleware: str, **settings: Any) -> Iterator[ASGIHandler]:
    """Give Django's own ASGI handler for a site that answers every request by `view`, behind `middleware`."""
    settings.setdefault("ALLOWED_HOSTS", ["testserver"])
    with override_settings(ROOT_URLCONF=(path("", view),), MIDDLEWARE=middleware, **settings):
        yield ASGIHandler()


# Clients


@dataclass
class Answer:
    """What the handler has sent, and the cookies that the client has then."""

    cookie: str
    status: int = 0
    body: str = ""


async def get(
    handler: Callable[..., Any],
    cookie: str = "",
    gone: asyncio.Event | None = None,
    *,
    method: str = "GET",
    path: str = "/",
    query: str = "",
    body: bytes = b"",
) -> Answer:
    """Call the handler as an ASGI server does; the client disconnects when `gone` is set."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    answer = Answer(cookie)

    async def receive() -> dict[str, Any]:
        if not messages:
            await (gone or asyncio.Event()).wait()
            messages.append({"type": "http.disconnect"})
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        answer.status = message.get("status", answer.status)
        answer.body += message.get("body", b"").decode()
        for name, value in message.get("headers", ()):
            if name == b"Set-Cookie":
                answer.cookie += value.decode().partition(";")[0] + "; "

    headers = [(b"host", b"testserver"), (b"cookie", cookie.encode())]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": query.encode()}
    await handler({**scope, "headers": headers}, receive, send)
    return answer


async def by_asgi() -> int:
    return (await get(ASGIHandler())).status


async def by_async_client() -> int:
    return (await AsyncClient(raise_request_exception=False).get("/")).status_code


def by_wsgi() -> int:
    statuses: list[str] = []
    response = WSGIHandler()(RequestFactory()._base_environ(), lambda status, headers: statuses.append(status))
    response.close()
    return int(statuses[0][:3])


def by_client() -> int:
    return Client(raise_request_exception=False).get("/").status_code


# What users write

PID = Count("pk") * 0 + Func(function="pg_backend_pid", output_field=IntegerField())
word: ContextVar[str] = ContextVar("word", default="")


def pid(using: str = "default") -> int:
    """Return the server's process of this code's connection."""
    return int(Owner.objects.using(using).aggregate(pid=PID)["pid"])


async def apid(using: str = "default") -> int:
    return int((await Owner.objects.using(using).aaggregate(pid=PID))["pid"])


def of_the_loop() -> bool:
    return threading.current_thread() is threading.main_thread()


def sync_view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{pid('other')} {of_the_loop()}")


def where(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(of_the_loop()))


async def who(request: HttpRequest) -> HttpResponse:
    """Log the user in at the first visit, and greet at the second."""
    user = await request.auser()
    if user.is_anonymous:
        backend = "django.contrib.auth.backends.ModelBackend"
        await alogin(request, await User.objects.aget(username="ada"), backend=backend)
        await request.session.aset("visits", 1)
        return HttpResponse("in")
    names = [owner.name async for owner in Owner.objects.order_by("name")]
    return HttpResponse(f"{user.username} {await request.session.aget('visits')} {names}")


class Creating:
    """An async view that writes, and notes which rows others see before and after its transaction."""

    def __init__(self, admin: psycopg.Connection[Any]) -> None:
        self.admin = admin
        self.seen: list[list[str]] = []

    def look(self) -> None:
        self.seen.append([name for (name,) in self.admin.execute("SELECT name FROM shop_owner ORDER BY name")])

    async def view(self, request: HttpRequest) -> HttpResponse:
        await Owner.objects.acreate(name="Ada")
        await greenorm.run(transaction.on_commit, self.look)
        self.look()
        return HttpResponse()

    async def failing(self, request: HttpRequest) -> HttpResponse:
        await self.view(request)
        raise ZeroDivisionError


def sync_middleware(get_response: View) -> View:
    """A user's middleware that reads, in a transaction, and remembers where."""

    def middleware(request: Any) -> HttpResponse:
        word.set("from the middleware")
        with transaction.atomic(using="other"):
            request.pid, request.of_the_loop = pid("other"), of_the_loop()
            response: HttpResponse = get_response(request)
        response.content += f" {word.get()}".encode()
        return response

    return middleware


class Hasher(MD5PasswordHasher):
    """Notes where it last worked."""

    of_the_loop: bool

    def verify(self, password: str, encoded: str) -> bool:
        type(self).of_the_loop = of_the_loop()
        return super().verify(password, encoded)


# ... for channels


class OwnersBySql:
    @database_sync_to_async
    def names(self) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM shop_owner")
            return [isinstance(cursor.cursor, psycopg.AsyncCursor), of_the_loop(), *cursor.fetchall()]


class Consumer(AsyncConsumer):
    async def ask(self, message: dict[str, Any]) -> None:
        await self.send({"type": "answer", "name": (await Owner.objects.aget()).name})


class ConsumerOfSyncCode(SyncConsumer):
    def ask(self, message: dict[str, Any]) -> None:
        self.send({"type": "answer", "name": Owner.objects.get().name})


class WebSocket(AsyncJsonWebsocketConsumer):
    async def receive_json(self, content: Any) -> None:
        names = [name async for name in Owner.objects.values_list("name", flat=True)]
        await self.send_json([self.scope["user"].username, *names])


class WebSocketOfSyncCode(JsonWebsocketConsumer):
    def receive_json(self, content: Any) -> None:
        self.send_json([self.scope["user"].username, *Owner.objects.values_list("name", flat=True)])


class Sessions(SessionMiddleware):
    """A user's subclass of Django's middleware, which overrides nothing."""


class SessionStore(SessionBase):
    """A user's session engine, over a network perhaps: with sync methods only. Notes whether it blocks the loop."""

    on_the_loop: ClassVar[list[bool]] = []

    def load(self) -> dict[str, Any]:
        self.on_the_loop.append(of_the_loop())
        return {}

    def save(self, must_create: bool = False) -> None:
        self.on_the_loop.append(of_the_loop())
        self._session_key = "abcdefghijk"

    def exists(self, session_key: str) -> bool:
        return False


@greenorm.awaitable
def counting(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Owner.objects.count()))


# What the server is asked


def alive(admin: Admin, *pids: int) -> int:
    """Count which of these processes the server still has."""
    found = admin.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(%s)", [list(pids)]).fetchone()
    return int(found[0])


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.005)
