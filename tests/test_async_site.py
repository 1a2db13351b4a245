"""A whole Django site under Django's own handlers, with Django's async methods as runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from django import VERSION
from django.contrib.auth import aauthenticate
from django.contrib.auth.models import User
from django.core.handlers.base import BaseHandler
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, connections, transaction
from django.db.models import Func, TextField
from django.db.models.functions import Cast
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, RequestFactory

import greenorm
from tests.shop.models import Owner
from tests.site import (
    STARTPROJECT,
    Admin,
    Creating,
    Hasher,
    SessionStore,
    alive,
    apid,
    by_asgi,
    by_async_client,
    by_client,
    by_wsgi,
    counting,
    get,
    pid,
    site,
    sync_view,
    until,
    where,
    who,
    word,
)

pytestmark = pytest.mark.usefixtures("async_methods")
SYNC_MIDDLEWARE = "tests.site.sync_middleware"


# An async view behind startproject's middleware


async def test_requests_to_an_async_view_start_no_thread(no_threads: list[str]) -> None:
    await User.objects.acreate(username="ada")
    await Owner.objects.abulk_create([Owner(name="a"), Owner(name="b")])
    with site(who, *STARTPROJECT) as handler:
        first = await get(handler)
        second = await get(handler, first.cookie)
    assert (first.body, second.body) == ("in", "ada 1 ['a', 'b']")
    assert greenorm.pool_stats().in_use == 0


async def test_a_streaming_response_reads_row_by_row_and_starts_no_thread(no_threads: list[str]) -> None:
    await Owner.objects.abulk_create(Owner(name=f"{i:04} ") for i in range(2500))
    in_use = []

    async def names() -> AsyncIterator[str]:
        async for owner in Owner.objects.order_by("name").aiterator(chunk_size=1000):
            in_use.append(greenorm.pool_stats().in_use)
            yield owner.name

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(names())

    with site(view, *STARTPROJECT) as handler:
        answer = await get(handler)
    assert answer.body == "".join(f"{i:04} " for i in range(2500))
    assert (in_use[0], greenorm.pool_stats().in_use) == (1, 0)


async def test_a_stream_that_the_client_leaves_gives_its_connection_back() -> None:
    await Owner.objects.abulk_create(Owner(name=f"{i:04} ") for i in range(100))
    gone = asyncio.Event()

    async def names() -> AsyncIterator[str]:
        async for owner in Owner.objects.order_by("name").aiterator(chunk_size=10):
            yield owner.name
            gone.set()
            await asyncio.sleep(0)

    async def view(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(names())

    with site(view, *STARTPROJECT) as handler:
        answer = await get(handler, gone=gone)
    assert answer.body.startswith("0000 ")
    assert not answer.body.endswith("0099 ")
    await until(lambda: greenorm.pool_stats().in_use == 0)


async def test_a_template_is_rendered_in_a_run(no_threads: list[str]) -> None:
    await Owner.objects.acreate(name="Ada")

    async def view(request: HttpRequest) -> TemplateResponse:
        template = engines["django"].from_string("{% for owner in owners %}{{ owner }}{% endfor %}")
        return TemplateResponse(request, template, {"owners": Owner.objects.all()})

    templates = [{"BACKEND": "django.template.backends.django.DjangoTemplates"}]
    with site(view, *STARTPROJECT, TEMPLATES=templates) as handler:
        assert (await get(handler)).body == "Ada"


async def test_a_middleware_of_django_that_reads_the_user_does_so_in_a_run(no_threads: list[str]) -> None:
    await User.objects.acreate(username="ada")
    with site(who, *STARTPROJECT) as handler:
        cookie = (await get(handler)).cookie
    with site(who, *STARTPROJECT, "django.contrib.auth.middleware.LoginRequiredMiddleware") as handler:
        assert (await get(handler)).status == 302
        assert (await get(handler, cookie)).body == "ada 1 []"


async def test_a_password_is_hashed_where_django_has_it_hashed_and_the_user_is_read_in_a_run() -> None:
    await greenorm.run(User.objects.create_user, "ada", password="secret")

    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(await aauthenticate(request, username="ada", password="secret")))

    before = greenorm.pool_stats().borrowed
    with site(view, PASSWORD_HASHERS=["tests.site.Hasher"]) as handler:
        assert (await get(handler)).body == "ada"
    assert Hasher.of_the_loop is (VERSION < (6, 0))  # on a thread since
    assert greenorm.pool_stats().borrowed > before


# What users write stays on a thread


async def test_a_sync_view_stays_on_a_thread_whose_connection_is_closed_with_the_request(admin: Admin) -> None:
    with site(sync_view, *STARTPROJECT) as handler:
        backend, here = (await get(handler)).body.split()
    assert here == "False"
    await until(lambda: not alive(admin, int(backend)))


async def test_an_awaitable_view_starts_no_thread(no_threads: list[str]) -> None:
    with site(greenorm.awaitable(sync_view), *STARTPROJECT) as handler:
        assert (await get(handler)).body.endswith("True")
    assert greenorm.pool_stats("other").in_use == 0


async def test_an_async_view_takes_part_in_the_transaction_of_a_sync_middleware_on_its_thread(admin: Admin) -> None:
    seen = []

    async def view(request: HttpRequest) -> HttpResponse:
        seen.extend([request.of_the_loop, request.pid, await apid("other"), word.get()])
        word.set("from the view")
        return HttpResponse("view")

    with site(view, *STARTPROJECT, SYNC_MIDDLEWARE) as handler:
        answer = await get(handler)
    assert answer.body == "view from the view"
    assert seen == [False, seen[1], seen[1], "from the middleware"]
    await until(lambda: not alive(admin, seen[1]))


async def test_a_client_that_leaves_closes_the_connection_of_a_sync_middleware(admin: Admin) -> None:
    pids, gone = [], asyncio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        pids.append(request.pid)
        gone.set()
        await asyncio.Event().wait()
        return HttpResponse()

    with site(view, *STARTPROJECT, SYNC_MIDDLEWARE) as handler:
        async with asyncio.timeout(5):
            assert (await get(handler, gone=gone)).status == 0
    await until(lambda: not alive(admin, *pids))


async def test_one_setting_lets_sync_views_and_middleware_be_runs(no_threads: list[str]) -> None:
    with site(sync_view, SYNC_MIDDLEWARE, *STARTPROJECT, GREENORM={"RUN_ALL_SYNC_TO_ASYNC": True}) as handler:
        answer = await get(handler)
    assert answer.body.split(maxsplit=2)[1:] == ["True", "from the middleware"]
    assert greenorm.pool_stats("other").in_use == 0


async def test_a_named_view_is_kept_on_a_thread() -> None:
    kept = {"RUN_ALL_SYNC_TO_ASYNC": True, "KEEP_IN_THREADS": ["tests.site.where"]}
    with site(where, *STARTPROJECT, GREENORM=kept) as handler:
        assert (await get(handler)).body == "False"
    with site(where, *STARTPROJECT, GREENORM={**kept, "KEEP_IN_THREADS": ["tests.site.who"]}) as handler:
        assert (await get(handler)).body == "True"


# Sessions and caches

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
DATABASE = "django.core.cache.backends.db.DatabaseCache"
FILES = "django.core.cache.backends.filebased.FileBasedCache"


@pytest.fixture
def cached_in(tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    def settings(backend: str) -> dict[str, Any]:
        location = "cache_table" if backend == DATABASE else str(tmp_path)
        return {"CACHES": {"default": {"BACKEND": backend, "LOCATION": location}}, "SESSION_FILE_PATH": str(tmp_path)}

    return settings


@pytest.mark.parametrize(
    ("engine", "cache", "on_a_thread"),
    [
        ("db", LOCMEM, False),
        ("signed_cookies", LOCMEM, False),
        ("cache", LOCMEM, False),
        ("cache", DATABASE, False),
        ("cached_db", DATABASE, False),
        ("cache", FILES, True),
        ("cached_db", FILES, True),
        ("file", LOCMEM, True),
    ],
)
async def test_sessions_stay_on_a_thread_only_where_their_store_may_block(
    engine: str, cache: str, on_a_thread: bool, cached_in: Callable[..., Any], no_threads: list[str]
) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        request.session["visits"] = 1  # of a new session: nothing is read
        return HttpResponse()

    async def again(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(await request.session.aget("visits")))

    settings = {"SESSION_ENGINE": f"django.contrib.sessions.backends.{engine}", **cached_in(cache)}
    with site(view, "django.contrib.sessions.middleware.SessionMiddleware", **settings) as handler:
        cookie = (await get(handler)).cookie
    assert bool(no_threads) is on_a_thread
    with site(again, "django.contrib.sessions.middleware.SessionMiddleware", **settings) as handler:
        assert (await get(handler, cookie)).body == "1"
    if on_a_thread:
        no_threads.clear()


@pytest.mark.parametrize(("cache", "on_a_thread"), [(LOCMEM, False), (DATABASE, False), (FILES, True)])
async def test_cached_pages_stay_on_a_thread_only_where_the_cache_may_block(
    cache: str, on_a_thread: bool, cached_in: Callable[..., Any], no_threads: list[str]
) -> None:
    asked = []

    async def view(request: HttpRequest) -> HttpResponse:
        asked.append(request)
        return HttpResponse("page")

    both = [f"django.middleware.cache.{name}CacheMiddleware" for name in ("Update", "FetchFrom")]
    with site(view, *both, **cached_in(cache)) as handler:
        assert [(await get(handler)).body for _ in range(2)] == ["page", "page"]
    assert len(asked) == 1
    assert bool(no_threads) is on_a_thread
    if on_a_thread:
        no_threads.clear()


@pytest.mark.parametrize("method", ["sync", "async"])
async def test_a_foreign_session_engine_stays_on_a_thread(method: str) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        if method == "async":
            await request.session.aget("visits")
        else:
            request.session.modified = True
        return HttpResponse()

    SessionStore.on_the_loop.clear()
    with site(view, "tests.site.Sessions", SESSION_ENGINE="tests.site") as handler:
        await get(handler, "sessionid=abcdefghijk")
    assert set(SessionStore.on_the_loop) == {False}


ALL_BUT_ONE = {"RUN_ALL_SYNC_TO_ASYNC": True, "KEEP_IN_THREADS": ["tests.site.sync_view", "tests.site.pid"]}


async def test_the_connection_of_a_view_that_is_kept_on_a_thread_is_closed_with_the_request(admin: Admin) -> None:
    with site(sync_view, *STARTPROJECT, GREENORM=ALL_BUT_ONE) as handler:
        backend, here = (await get(handler)).body.split()
    assert here == "False"
    await until(lambda: not alive(admin, int(backend)))


@pytest.mark.parametrize("status", [by_wsgi, by_client])
@pytest.mark.parametrize("atomic", [False, True])
def test_an_awaitable_view_is_a_sync_one_below_sync_handlers(
    status: Callable[[], int], atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", atomic)
    with site(counting, *STARTPROJECT):
        assert status() == 200


async def test_an_awaitable_view_is_a_sync_one_below_a_sync_handler_in_a_run(no_threads: list[str]) -> None:
    assert await in_a_run(counting, *STARTPROJECT) == "0"


# ATOMIC_REQUESTS


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("status", [by_asgi, by_async_client])
async def test_atomic_requests_hold_for_async_views_below_async_handlers(
    status: Callable[[], Awaitable[int]], admin: Admin
) -> None:
    creating = Creating(admin)
    with site(creating.failing, *STARTPROJECT):
        assert await status() == 500
    with site(creating.view, *STARTPROJECT):
        assert await status() == 200
    assert creating.seen == [[], [], ["Ada"]]


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize("status", [by_wsgi, by_client])
def test_atomic_requests_hold_for_async_views_below_sync_handlers(status: Callable[[], int], admin: Admin) -> None:
    creating = Creating(admin)
    with site(creating.failing, *STARTPROJECT):
        assert status() == 500
    with site(creating.view, *STARTPROJECT):
        assert status() == 200
    assert creating.seen == [[], [], ["Ada"]]


@pytest.mark.usefixtures("atomic_requests")
async def test_a_request_of_async_views_is_a_transaction_without_a_thread(no_threads: list[str]) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        same = {await apid() for _ in range(3)} | {await greenorm.run(pid)}
        return HttpResponse(f"{len(same)} {await greenorm.run(lambda: connection.in_atomic_block)}")

    with site(view, *STARTPROJECT) as handler:
        assert (await get(handler)).body == "1 True"


@pytest.mark.usefixtures("atomic_requests")
async def test_non_atomic_requests_are_respected(admin: Admin) -> None:
    creating = Creating(admin)

    @transaction.non_atomic_requests
    async def view(request: HttpRequest) -> HttpResponse:
        return await creating.failing(request)

    with site(view) as handler:
        assert (await get(handler)).status == 500
    assert creating.seen == [["Ada"], ["Ada"]]


async def test_atomic_requests_on_an_alias_of_another_backend_raise_djangos_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(connections.settings["local"], "ATOMIC_REQUESTS", True)
    with site(who), pytest.raises(RuntimeError, match="You cannot use ATOMIC_REQUESTS with async views"):
        await AsyncClient().get("/")


# WSGI


def test_an_async_view_below_wsgi_works_on_the_connection_of_the_thread() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{await apid('other')} {await apid('other')}")

    with site(view, *STARTPROJECT):
        response = WSGIHandler()(RequestFactory()._base_environ(), lambda *args: None)
        assert response.content.decode() == f"{pid('other')} {pid('other')}"
        response.close()


def test_a_block_of_an_async_view_below_wsgi_is_atomic() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        with pytest.raises(ZeroDivisionError):
            async with greenorm.atomic():
                await Owner.objects.acreate(name="lost")
                assert await Owner.objects.acount() == 1
                raise ZeroDivisionError
        async with greenorm.atomic():
            await Owner.objects.acreate(name="kept")
        return HttpResponse()

    with site(view, *STARTPROJECT):
        assert by_wsgi() == 200
    assert [owner.name for owner in Owner.objects.all()] == ["kept"]


# An async view below a sync handler in a run


async def in_a_run(view: Any, *middleware: str) -> str:
    with site(view, *middleware):
        handler = BaseHandler()
        handler.load_middleware(is_async=False)
        response = await greenorm.run(handler.get_response, RequestFactory().get("/"))
    return response.content.decode()


async def test_an_async_view_joins_the_run_of_its_sync_handler(
    monkeypatch: pytest.MonkeyPatch, no_threads: list[str]
) -> None:
    options = connections.settings["other"].setdefault("OPTIONS", {})
    monkeypatch.setitem(options, "pool", {"min_size": 0, "max_size": 1, "timeout": 5})

    async def view(request: HttpRequest) -> HttpResponse:
        same = request.pid == await apid("other")
        answer = f"{request.of_the_loop} {same} {word.get()};"
        word.set("from the view")
        return HttpResponse(answer)

    assert await in_a_run(view, *STARTPROJECT, SYNC_MIDDLEWARE) == "True True from the middleware; from the view"
    assert greenorm.pool_stats("other").opened == 1


async def test_an_async_view_gathers_on_a_connection_each() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        return HttpResponse(str(len(set(await asyncio.gather(apid(), apid())))))

    with site(view, *STARTPROJECT) as handler:
        assert (await get(handler)).body == "2"
    assert await in_a_run(view) == "2"
    assert greenorm.pool_stats().in_use == 0


async def test_an_async_view_gathers_in_turns_in_the_transaction_above() -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        await Owner.objects.using("other").acreate(name="Ada")
        count = Owner.objects.using("other").acount
        return HttpResponse(str({*await asyncio.gather(apid("other"), apid("other"), count())} == {request.pid, 1}))

    assert (await in_a_run(view, SYNC_MIDDLEWARE)).startswith("True")
    assert greenorm.pool_stats("other").in_use == 0


# Errors, clients that leave, and many at once


@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError, 500), (Http404, 404)])
async def test_an_error_of_an_async_view_is_djangos_answer_and_leaves_nothing_open(error: Any, status: int) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        await Owner.objects.acreate(name="kept")
        async for _ in Owner.objects.aiterator(chunk_size=1):
            raise error

    with site(view, *STARTPROJECT) as handler:
        assert (await get(handler)).status == status
    assert await Owner.objects.acount() == 1
    await until(lambda: greenorm.pool_stats().in_use == 0)


@pytest.mark.usefixtures("atomic_requests")
async def test_a_client_that_leaves_stops_the_statement_and_the_transaction(
    admin: Admin, no_threads: list[str]
) -> None:
    await Owner.objects.acreate(name="Ada")
    gone = asyncio.Event()
    slow = Owner.objects.annotate(slept=Cast(Func(30, function="pg_sleep"), TextField()))

    async def view(request: HttpRequest) -> HttpResponse:
        await Owner.objects.acreate(name="lost")
        return HttpResponse(str(await slow.aget(name="Ada")))

    def busy() -> bool:
        found = admin.execute(
            "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg\\_sleep(30)%' "
            "AND pid <> pg_backend_pid()"
        )
        return found.fetchone() is not None

    with site(view, *STARTPROJECT) as handler:
        request = asyncio.create_task(get(handler, gone=gone))
        await until(busy)
        gone.set()
        async with asyncio.timeout(5):
            assert (await request).status == 0
    assert not busy()
    assert [owner.name async for owner in Owner.objects.all()] == ["Ada"]
    assert greenorm.pool_stats().in_use == 0


async def test_a_thousand_requests_that_read_and_wait_share_four_connections(no_threads: list[str]) -> None:
    pids, all_have_read = [], asyncio.Event()

    async def view(request: HttpRequest) -> HttpResponse:
        pids.append(await apid())
        if len(pids) == 1000:
            all_have_read.set()
        await all_have_read.wait()
        return HttpResponse("read")

    with site(view, *STARTPROJECT) as handler:
        answers = await asyncio.gather(*(get(handler) for _ in range(1000)))
    assert [answer.body for answer in answers] == ["read"] * 1000
    assert len(set(pids)) == greenorm.pool_stats().opened <= 4
