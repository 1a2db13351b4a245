"""greenorm's own ASGI handler: what a site sees is what it sees under Django's, without a thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import signals
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.dispatch import Signal
from django.http import Http404, HttpRequest, HttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import override_settings

import greenorm
from greenorm.integrations.asgi import Handler, get_asgi_application
from tests.exchange import Exchange, whole_site
from tests.shop.models import Owner
from tests.site import STARTPROJECT, Admin, alive, of_the_loop, pid, until, who

pytestmark = pytest.mark.usefixtures("async_methods", "blocking_hooks")
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]


class Heard:
    """Notes each time that a signal is sent, and where its receivers ran."""

    def __init__(self, *sent: Signal) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.signals = sent

    def receive(self, signal: Signal, **named: Any) -> None:
        self.calls.append(("sync", greenorm.in_run()))

    async def areceive(self, signal: Signal, **named: Any) -> None:
        self.calls.append(("async", greenorm.in_run()))

    def __enter__(self) -> Heard:
        for signal in self.signals:
            signal.connect(self.receive)
            signal.connect(self.areceive)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signal in self.signals:
            signal.disconnect(self.receive)
            signal.disconnect(self.areceive)


def owners(request: HttpRequest, rest: str = "") -> HttpResponse:
    return HttpResponse(f"{[owner.name for owner in Owner.objects.order_by('name')]} {of_the_loop()}")


# One run for the whole chain


async def test_a_sync_view_behind_djangos_middleware_runs_on_the_event_loops_thread(no_threads: list[str]) -> None:
    await Owner.objects.acreate(name="Ada")
    with whole_site(owners, *STARTPROJECT) as handler:
        answer = await Exchange().by(handler)
    assert (answer.status, answer.text) == (200, "['Ada'] True")
    assert answer.answered[b"x-frame-options"] == b"DENY"
    assert greenorm.pool_stats().in_use == 0


async def test_requests_wait_for_the_database_side_by_side(no_threads: list[str]) -> None:
    waiting = []

    def view(request: HttpRequest) -> HttpResponse:
        waiting.append(request)
        while len(waiting) < 3:  # none of them would end if one came after the other
            Owner.objects.count()
        return HttpResponse(str(len(waiting)))

    with whole_site(view, *STARTPROJECT) as handler:
        answers = await asyncio.gather(*[Exchange().by(handler) for _ in range(3)])
    assert [answer.text for answer in answers] == ["3"] * 3


async def test_middleware_and_view_share_one_connection_and_the_users_session(no_threads: list[str]) -> None:
    await User.objects.acreate(username="ada")

    def view(request: HttpRequest) -> HttpResponse:
        with transaction.atomic():
            return HttpResponse(f"{request.user.username} {pid()} {pid()}")

    with whole_site(who, *STARTPROJECT) as handler:
        cookie = (await Exchange().by(handler)).answered[b"set-cookie"]
    with whole_site(view, *STARTPROJECT) as handler:
        name, one, other = (await Exchange(headers=[(b"cookie", cookie)]).by(handler)).text.split()
    assert name == "ada"
    assert one == other


async def test_session_state_of_a_request_does_not_reach_the_next(no_threads: list[str]) -> None:
    def view(request: HttpRequest, rest: str = "") -> HttpResponse:
        with connection.cursor() as cursor:
            if rest:
                connection.execute_wrappers.append(lambda execute, *args: execute(*args))
                connection.run_on_commit = [(set(), lambda: None, False)]
                transaction.set_autocommit(False)
                cursor.execute("SET LOCAL application_name = 'one of them'")
            cursor.execute("SHOW application_name")
            (name,) = cursor.fetchone()
        wrapper = connections["default"]
        return HttpResponse(f"{name} {wrapper.execute_wrappers} {wrapper.run_on_commit} {wrapper.autocommit}")

    with whole_site(view) as handler:
        before = (await Exchange().by(handler)).text
        assert (await Exchange(path="/set").by(handler)).text.startswith("one of them")
        assert (await Exchange().by(handler)).text == before


# Async code


async def test_an_async_view_is_awaited_natively_and_guarded(no_threads: list[str]) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        with pytest.raises(SynchronousOnlyOperation):
            Owner.objects.count()
        await asyncio.sleep(0)
        return HttpResponse(f"{await Owner.objects.acount()} {greenorm.in_run()} {asyncio.current_task() is task}")

    with whole_site(view, *STARTPROJECT) as handler:
        task = asyncio.current_task()
        assert (await Exchange().by(handler)).text == "0 False True"


async def test_an_async_view_holds_no_connection_while_it_waits_for_something_else() -> None:
    held = []

    async def view(request: HttpRequest) -> HttpResponse:
        await Owner.objects.acount()
        await asyncio.sleep(0)
        held.append(greenorm.pool_stats().in_use)
        async with greenorm.connection():
            held.append(greenorm.pool_stats().in_use)
        return HttpResponse()

    with whole_site(view, *STARTPROJECT) as handler:
        await Exchange().by(handler)
    assert held == [0, 1]


async def test_a_sync_view_holds_no_connection_while_it_waits_for_something_else(no_threads: list[str]) -> None:
    held = []

    async def upstream() -> int:
        held.append(greenorm.pool_stats().in_use)
        return 1

    def view(request: HttpRequest) -> HttpResponse:
        Owner.objects.count()
        return HttpResponse(str(greenorm.await_(upstream())))

    with whole_site(view, *STARTPROJECT) as handler:
        assert (await Exchange().by(handler)).text == "1"
    assert held == [0]


ASYNC_ONLY = "tests.test_asgi.async_only"
OUTER = "tests.test_asgi.Outer"


def async_only(get_response: Any) -> Any:
    async def middleware(request: Any) -> Any:
        request.seen = [await Owner.objects.acount(), greenorm.in_run()]
        return await get_response(request)

    return middleware


async_only.sync_capable = False  # type: ignore[attr-defined]
async_only.async_capable = True  # type: ignore[attr-defined]


class Outer:
    """A user's sync middleware that Django must adapt around one that is async only."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.outer = [Owner.objects.count(), of_the_loop()]
        return self.get_response(request)


async def test_async_only_middleware_amid_sync_middleware_starts_no_thread(no_threads: list[str]) -> None:
    def view(request: Any) -> HttpResponse:
        return HttpResponse(f"{request.outer} {request.seen} {Owner.objects.count()} {request.user}")

    with whole_site(view, OUTER, *STARTPROJECT[:4], ASYNC_ONLY, *STARTPROJECT[4:]) as handler:
        assert (await Exchange().by(handler)).text == "[0, True] [0, False] 0 AnonymousUser"


async def test_what_an_async_view_hands_to_a_thread_leaves_no_connection(admin: Admin) -> None:
    from asgiref.sync import sync_to_async

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{await sync_to_async(pid)('other')} {await sync_to_async(of_the_loop)()}")

    with whole_site(view, *STARTPROJECT) as handler:
        backend, here = (await Exchange().by(handler)).text.split()
    assert here == "False"
    await until(lambda: not alive(admin, int(backend)))


# As in Django


async def test_the_requests_signals_are_sent_once_each_to_sync_and_async_receivers(no_threads: list[str]) -> None:
    with Heard(signals.request_started, signals.request_finished) as heard, whole_site(owners) as handler:
        await Exchange().by(handler)
    assert sorted(heard.calls) == [("async", False)] * 2 + [("sync", True)] * 2


async def test_request_finished_is_sent_when_the_response_has_been(no_threads: list[str]) -> None:
    over = []

    def finished(**named: Any) -> None:
        over.append(exchange.over)

    signals.request_finished.connect(finished)
    try:
        with whole_site(owners) as handler:
            exchange = Exchange()
            await exchange.by(handler)
    finally:
        signals.request_finished.disconnect(finished)
    assert over == [True]


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    yield
    connections.settings["default"]["ATOMIC_REQUESTS"] = False


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_atomic_requests_roll_back_what_a_failing_view_has_written(kind: str, no_threads: list[str]) -> None:
    def view(request: HttpRequest, rest: str = "") -> HttpResponse:
        Owner.objects.create(name=f"of {rest}")
        if rest == "fail":
            raise ZeroDivisionError
        return HttpResponse(str(connection.in_atomic_block))

    async def aview(request: HttpRequest, rest: str = "") -> HttpResponse:
        await Owner.objects.acreate(name=f"of {rest}")
        if rest == "fail":
            raise ZeroDivisionError
        return HttpResponse(str(await greenorm.run(lambda: connection.in_atomic_block)))

    with whole_site(view if kind == "sync" else aview, *STARTPROJECT) as handler:
        assert (await Exchange(path="/good").by(handler)).text == "True"
        logging.disable(logging.ERROR)
        try:
            assert (await Exchange(path="/fail").by(handler)).status == 500
        finally:
            logging.disable(logging.NOTSET)
    assert [owner.name async for owner in Owner.objects.all()] == ["of good"]


async def test_an_exception_is_an_error_page_and_a_signal_and_is_logged(
    caplog: pytest.LogCaptureFixture, no_threads: list[str]
) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        raise ZeroDivisionError("by nothing")

    with Heard(signals.got_request_exception) as heard, whole_site(view, *STARTPROJECT, DEBUG=True) as handler:
        answer = await Exchange().by(handler)
    assert answer.status == 500
    assert "by nothing" in answer.text
    assert sorted(heard.calls) == [("async", False), ("sync", True)]
    assert any(record.exc_info for record in caplog.records)


class Recovering:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_exception(self, request: Any, exception: Exception) -> HttpResponse:
        return HttpResponse(f"{type(exception).__name__} {Owner.objects.count()}", status=503)


async def test_middleware_answers_an_exception(no_threads: list[str]) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        raise ZeroDivisionError

    logging.disable(logging.ERROR)
    try:
        with whole_site(view, "tests.test_asgi.Recovering", *STARTPROJECT) as handler:
            answer = await Exchange().by(handler)
    finally:
        logging.disable(logging.NOTSET)
    assert (answer.status, answer.text) == (503, "ZeroDivisionError 0")


async def test_a_page_that_is_not_found(no_threads: list[str], caplog: pytest.LogCaptureFixture) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        raise Http404(f"of {Owner.objects.count()}")

    with whole_site(view, *STARTPROJECT, DEBUG=True) as handler:
        answer = await Exchange().by(handler)
    assert answer.status == 404
    assert "of 0" in answer.text
    assert "Not Found: /" in caplog.text


class Renaming:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    async def process_template_response(self, request: Any, response: TemplateResponse) -> TemplateResponse:
        assert response.context_data is not None
        response.context_data["title"] = f"{await Owner.objects.acount()} owner"
        return response


async def test_a_template_is_rendered_in_the_run_after_its_middleware(no_threads: list[str]) -> None:
    await Owner.objects.acreate(name="Ada")

    def view(request: HttpRequest) -> TemplateResponse:
        template = engines["django"].from_string("{{ title }}: {% for owner in owners %}{{ owner }}{% endfor %}")
        return TemplateResponse(request, template, {"owners": Owner.objects.all()})

    with whole_site(view, "tests.test_asgi.Renaming", *STARTPROJECT, TEMPLATES=TEMPLATES) as handler:
        assert (await Exchange().by(handler)).text == "1 owner: Ada"


@pytest.mark.no_database
async def test_a_request_that_cannot_be_read_is_refused(no_threads: list[str]) -> None:
    with Heard(signals.request_finished) as heard, whole_site(owners) as handler:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"\xff", "headers": []}
        exchange = Exchange()
        await handler(scope, exchange.receive, exchange.send)
    assert exchange.status == 400
    assert len(heard.calls) == 2


@pytest.mark.no_database
async def test_other_protocols_are_refused_as_by_django() -> None:
    with whole_site(owners) as handler, pytest.raises(ValueError, match="websocket"):
        await handler({"type": "websocket"}, None, None)


@pytest.mark.no_database
@pytest.mark.one_loop
async def test_the_application_is_a_handler_of_django() -> None:
    from django.core.handlers.asgi import ASGIHandler

    with override_settings(ROOT_URLCONF=(), MIDDLEWARE=[]):
        application = get_asgi_application()
    assert isinstance(application, Handler)
    assert isinstance(application, ASGIHandler)
