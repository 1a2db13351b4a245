"""A Django site under ASGI: the whole sync chain of a request in one run, on the event loop's thread.

In place of Django's `get_asgi_application`. Middleware, views, templates and signals are called as under WSGI; async
views and middleware are awaited natively, on the task side. What differs from Django's handler is in README.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import django
from asgiref.sync import SyncToAsync
from django.core import signals
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.db import close_old_connections
from django.http import FileResponse
from django.urls import set_script_prefix

from .. import hooks, tasks
from ..adapters import sync_to_async
from . import async_methods, blocking, lifespan, stalls
from .bodies import read_body, readable_by_tasks
from .departure import Departure, finish


def get_asgi_application() -> Handler:
    """Return the ASGI application of the site, in place of django.core.asgi.get_asgi_application.

    Sets Django up, and installs the hooks of the async methods and of what blocks in Django itself.
    """
    django.setup(set_prefix=False)
    async_methods.install()
    blocking.install()
    return Handler()


class Handler(ASGIHandler):
    """Mirrors django.core.handlers.asgi.ASGIHandler, Django 6.1, and serves the lifespan protocol as well."""

    _stalls: stalls.Watch | None = None

    def __init__(self) -> None:
        super().__init__()
        hooks.install()
        self._stalls = stalls.watch()

    def load_middleware(self, is_async: bool = False) -> None:
        """Build the sync chain, which adapts what is async only; the bridge awaits that."""
        super().load_middleware(is_async=False)

    def adapt_method_mode(self, *args: Any, **kwargs: Any) -> Any:
        """Adapt as Django does; sync code below async middleware is a run."""
        adapted = super().adapt_method_mode(*args, **kwargs)
        return sync_to_async(adapted.func) if isinstance(adapted, SyncToAsync) else adapted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection's request, or the life of the server's event loop. Other tasks run meanwhile."""
        if scope["type"] == "lifespan":
            await lifespan.serve(receive, send)
        elif self._stalls is not None and scope["type"] == "http":
            await self._stalls.timed(super().__call__(scope, receive, send), scope)
        else:
            await super().__call__(scope, receive, send)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request. A client that leaves cancels it; whatever happens, its response is closed."""
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        exchange = _Exchange(self, scope, body)
        departure = Departure(self.listen_for_disconnect(receive))
        try:
            with departure:
                await tasks.work(exchange.answer)
                await self.send_response(exchange.response, send)
        except BaseException:
            await finish(exchange.close())
            raise
        await (finish(exchange.close()) if departure.gone else exchange.close())

    async def read_body(self, receive: Any) -> Any:
        """Read the request's body. Raises RequestAborted where the client leaves before its end."""
        return await read_body(receive)

    async def send_response(self, response: Any, send: Any) -> None:
        """Send a response; a sync iterator of a streaming one is pulled chunk by chunk."""
        if response.streaming:
            readable_by_tasks(response)
        await super().send_response(response, send)

    def _get_response(self, request: Any) -> Any:
        # Kept, because middleware that is cancelled on the way out takes the response with it, and nobody closes it.
        get_response: Any = super()
        request._greenorm_response = response = get_response._get_response(request)
        return response


class _Exchange:
    """One request and its response. `answer` and the end of `close` are for the ORM side."""

    __slots__ = ("body", "handler", "request", "response", "scope")

    def __init__(self, handler: Handler, scope: Any, body: Any) -> None:
        self.handler = handler
        self.scope = scope
        self.body = body
        self.request: Any = None
        self.response: Any = None

    def answer(self) -> None:
        handler, scope = self.handler, self.scope
        set_script_prefix(get_script_prefix(scope))
        signals.request_started.send(sender=type(handler), scope=scope)
        self.request, self.response = handler.create_request(scope, self.body)
        if self.request is not None:
            self.response = response = cast("Any", handler.get_response(self.request))
            response._handler_class = type(handler)
            if isinstance(response, FileResponse):
                response.block_size = handler.chunk_size

    async def close(self) -> None:
        try:
            if getattr(self.response, "streaming", False):
                await _close_iterator(self.response)
            await tasks.work(self._close)
            # A `sync_to_async` in the site's async code may be under way in its thread, although it was cancelled.
            context: Any = SyncToAsync.thread_sensitive_context.get(None)
            executor = SyncToAsync.context_to_thread_executor.get(context) if context is not None else None
            if executor is not None:
                await asyncio.get_running_loop().run_in_executor(executor, close_old_connections)
        finally:
            self.body.close()

    def _close(self) -> None:
        response = self.response
        if response is None:
            response = getattr(self.request, "_greenorm_response", None)
        if response is None:
            signals.request_finished.send(sender=type(self.handler))
            return
        response._handler_class = type(self.handler)
        response.close()


async def _close_iterator(response: Any) -> None:
    aclose = getattr(response._iterator, "aclose", None)
    if aclose is not None:
        await aclose()
