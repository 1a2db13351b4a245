"""The life of a server under greenorm's ASGI handler: start-up and shutdown, what blocks, and what is said about it."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from django import VERSION
from django.contrib.auth.hashers import PBKDF2PasswordHasher, check_password, make_password
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.core.mail.backends import smtp
from django.db import connection, connections
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

import greenorm
from greenorm import conf
from greenorm.errors import NotInRun
from greenorm.integrations import blocking, lifespan
from tests.exchange import Exchange, whole_site
from tests.shop.models import Owner
from tests.site import Admin, alive, of_the_loop, pid, until

pytestmark = pytest.mark.usefixtures("async_methods", "blocking_hooks")


# The lifespan protocol


class Life:
    """A server that starts an application and, at the end of the block, shuts it down."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.orders: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def ask(self, what: str) -> dict[str, Any]:
        await self.orders.put({"type": what})
        answer: dict[str, Any] = await self.answers.get()
        return answer

    async def __aenter__(self) -> dict[str, Any]:
        scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self.task = asyncio.create_task(self.application(scope, self.orders.get, self.answers.put))
        return await self.ask("lifespan.startup")

    async def __aexit__(self, *exc_info: object) -> None:
        if not self.task.done():
            assert await self.ask("lifespan.shutdown") == {"type": "lifespan.shutdown.complete"}
        await self.task


@pytest.fixture
def pool_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**connections.settings["default"]["OPTIONS"], "pool": {"min_size": 3, "max_size": 5}}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)


def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Owner.objects.count()))


@pytest.mark.usefixtures("pool_of_three")
async def test_pools_are_open_before_the_first_request_and_closed_after_the_last(
    caplog: pytest.LogCaptureFixture, no_threads: list[str]
) -> None:
    caplog.set_level(logging.INFO, "greenorm")
    with whole_site(view) as handler:
        async with Life(handler) as started:
            assert started == {"type": "lifespan.startup.complete"}
            before = greenorm.pool_stats()
            assert (before.size, before.idle, before.opened) == (3, 3, 3)
            assert greenorm.pool_stats("other").size == 1
            assert (await Exchange().by(handler)).text == "0"
            assert greenorm.pool_stats().opened == 3
    assert greenorm.pool_stats().size == 0
    opened, closed = (record.message for record in caplog.records)
    assert opened.startswith("pools of this process are open: ")
    assert "'default' 3 of at most 5" in opened
    assert "'other' 1 of at most 20" in opened
    assert "'default' 3 idle" in closed


@pytest.mark.usefixtures("pool_of_three")
async def test_a_shutdown_waits_for_the_requests_under_way(no_threads: list[str]) -> None:
    begun = asyncio.Event()

    def slow(request: HttpRequest) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            begun.set()
            cursor.execute("SELECT pg_sleep(0.3)")
        return HttpResponse("done")

    with whole_site(slow) as handler:
        async with Life(handler):
            serving = asyncio.create_task(Exchange().by(handler))
            await begun.wait()
        assert (await serving).text == "done"


async def test_a_shutdown_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "greenorm")
    monkeypatch.setattr(lifespan, "DRAIN_SECONDS", 0.05)
    with whole_site(view) as handler:
        async with greenorm.connection("other"), Life(handler):
            pass
    assert "'other' 1 idle and 1 in use" in caplog.text


async def test_a_database_that_is_away_does_not_keep_the_site_from_starting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(connections.settings["other"], "NAME", "nowhere")
    with whole_site(view) as handler:
        async with Life(handler) as started:
            assert started == {"type": "lifespan.startup.complete"}
            assert (await Exchange().by(handler)).text == "0"
    assert "the pool of database alias 'other' is not open yet" in caplog.text
    assert "nowhere" in caplog.text


async def test_options_that_make_no_sense_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["other"], "OPTIONS", {"pool": {"max_sise": 5}})
    with whole_site(view) as handler:
        async with Life(handler) as started:
            assert started["type"] == "lifespan.startup.failed"
            assert "max_sise" in started["message"]


# Threads for what blocks


async def test_in_thread_calls_in_a_thread_and_lets_others_run() -> None:
    both = threading.Barrier(2)

    def block(name: str, *, punctuation: str) -> str:
        both.wait(10)  # passed only if two of them block at once
        return f"{name}{punctuation} {of_the_loop()}"

    def work() -> str:
        return greenorm.in_thread(block, "Ada", punctuation="!")

    assert await asyncio.gather(greenorm.run(work), greenorm.run(work)) == ["Ada! False"] * 2


async def test_in_thread_raises_what_the_function_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        await greenorm.run(lambda: greenorm.in_thread(lambda: 1 / 0))


async def test_in_thread_leaves_no_connection_behind(admin: Admin) -> None:
    backend = await greenorm.run(lambda: greenorm.in_thread(pid, "other"))
    await until(lambda: not alive(admin, backend))


@pytest.mark.no_database
def test_in_thread_is_a_plain_call_outside_of_a_run() -> None:
    assert greenorm.in_thread(of_the_loop) is True


@pytest.mark.no_database
async def test_in_thread_in_async_code_says_what_to_write() -> None:
    with pytest.raises(NotInRun, match=r"await asyncio\.to_thread"):
        greenorm.in_thread(of_the_loop)


class Hasher(PBKDF2PasswordHasher):
    """Notes where it works."""

    iterations = 10
    on_the_loop: list[tuple[str, bool]] = []  # noqa: RUF012 - filled by tests

    def encode(self, *args: Any, **kwargs: Any) -> str:
        self.on_the_loop.append(("encode", of_the_loop()))
        return super().encode(*args, **kwargs)

    def verify(self, *args: Any) -> bool:
        self.on_the_loop.append(("verify", of_the_loop()))
        return super().verify(*args)


class HarderHasher(Hasher):
    iterations = 20


HASHERS = "tests.test_asgi_life.Hasher", "tests.test_asgi_life.HarderHasher"


@pytest.mark.no_database
async def test_passwords_are_hashed_in_a_thread() -> None:
    encoded: list[str] = []
    Hasher.on_the_loop.clear()
    with override_settings(PASSWORD_HASHERS=HASHERS[:1]):
        encoded.append(await greenorm.run(make_password, "secret"))
        assert await greenorm.run(check_password, "secret", encoded[0])
    with override_settings(PASSWORD_HASHERS=HASHERS[1:]):
        hash_anew = partial(check_password, setter=lambda password: encoded.append(make_password(password)))
        assert await greenorm.run(hash_anew, "secret", encoded[0])
    assert encoded[1].startswith("pbkdf2_sha256$20$")
    assert {name for name, _ in Hasher.on_the_loop} == {"encode", "verify"}
    assert not any(on_the_loop for _, on_the_loop in Hasher.on_the_loop)


@pytest.mark.no_database
def test_passwords_are_hashed_as_ever_outside_of_a_run() -> None:
    Hasher.on_the_loop.clear()
    with override_settings(PASSWORD_HASHERS=HASHERS[:1]):
        assert check_password("secret", make_password("secret"))
    assert all(on_the_loop for _, on_the_loop in Hasher.on_the_loop)


async def smtp_session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, letters: list[bytes]) -> None:
    """Take letters by SMTP, on the event loop that must be free meanwhile."""
    writer.write(b"220 here\r\n")
    while line := await reader.readline():
        if line.upper().startswith(b"DATA"):
            writer.write(b"354 go on\r\n")
            letters.append(await reader.readuntil(b"\r\n.\r\n"))
        writer.write(b"250 fine\r\n")
        if line.upper().startswith(b"QUIT"):
            break
    writer.close()
    await writer.wait_closed()


@pytest.mark.no_database
async def test_mail_is_sent_by_smtp_in_a_thread() -> None:
    letters: list[bytes] = []
    server = await asyncio.start_server(lambda *streams: smtp_session(*streams, letters), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    backend = "django.core.mail.backends.smtp.EmailBackend"
    mailers = {"default": {"BACKEND": backend, "OPTIONS": {"host": host, "port": port, "timeout": 30}}}
    older = {"EMAIL_BACKEND": backend, "EMAIL_HOST": host, "EMAIL_PORT": port, "EMAIL_TIMEOUT": 30}
    letter = EmailMessage("Hello", "from a run", "bank@example.com", ["ada@example.com"])
    async with server:
        with override_settings(**({"MAILERS": mailers} if VERSION >= (6, 1) else older)):
            assert await greenorm.run(letter.send) == 1
    assert len(letters) == 1
    assert b"from a run" in letters[0]


@pytest.mark.no_database
def test_the_hooks_of_what_blocks_are_idempotent_and_can_be_undone() -> None:
    hooked = blocking.hashers.get_hasher, smtp.EmailBackend.send_messages
    blocking.install()
    assert (blocking.hashers.get_hasher, smtp.EmailBackend.send_messages) == hooked
    blocking.uninstall()
    assert blocking.hashers.get_hasher is hooked[0].__wrapped__  # type: ignore[attr-defined]
    assert smtp.EmailBackend.send_messages is hooked[1].__wrapped__  # type: ignore[attr-defined]


# Stalls


@pytest.fixture
def stalls_logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = signal.getsignal(signal.SIGALRM)
    with override_settings(GREENORM={"LOG_STALLS_MS": 50}):
        yield
    signal.signal(signal.SIGALRM, before)


def that_blocks() -> None:
    time.sleep(0.5)


@pytest.mark.usefixtures("stalls_logged")
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_stall_is_logged_with_its_stack_its_path_and_its_duration(
    kind: str, caplog: pytest.LogCaptureFixture, no_threads: list[str]
) -> None:
    def view(request: HttpRequest, rest: str) -> HttpResponse:
        Owner.objects.count()
        that_blocks()
        return HttpResponse(str(Owner.objects.count()))

    async def aview(request: HttpRequest, rest: str) -> HttpResponse:
        await asyncio.sleep(0)
        that_blocks()
        return HttpResponse(str(await Owner.objects.acount()))

    with whole_site(view if kind == "sync" else aview) as handler:
        assert (await Exchange(path="/blocks?x=1").by(handler)).text == "0"
    (record,) = (record for record in caplog.records if "in that_blocks" in record.message)
    assert record.name == "greenorm"
    took = re.search(r"GET /blocks blocked the event loop for (\d+) ms", record.message)
    assert took is not None
    assert int(took[1]) >= 500
    assert f"in {view.__name__}" in record.message or f"in {aview.__name__}" in record.message
    assert "in that_blocks\n    time.sleep(0.5)" in record.message
    assert "greenorm.in_thread" in record.message


@pytest.mark.one_loop
@pytest.mark.usefixtures("stalls_logged")
async def test_waiting_is_no_stall(caplog: pytest.LogCaptureFixture) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.6)")
        greenorm.in_thread(time.sleep, 0.6)
        return HttpResponse()

    with override_settings(GREENORM={"LOG_STALLS_MS": 1000}), whole_site(view) as handler:
        assert (await Exchange().by(handler)).status == 200
    assert "blocked" not in caplog.text


@pytest.mark.usefixtures("stalls_logged")
async def test_a_signal_handler_of_somebody_else_stays(caplog: pytest.LogCaptureFixture) -> None:
    def theirs(*_: Any) -> None: ...

    signal.signal(signal.SIGALRM, theirs)

    def view(request: HttpRequest) -> HttpResponse:
        that_blocks()
        return HttpResponse()

    with whole_site(view) as handler:
        await Exchange().by(handler)
    assert signal.getsignal(signal.SIGALRM) is theirs
    assert "its stack was not seen" in caplog.text


@pytest.mark.usefixtures("stalls_logged")
@pytest.mark.one_loop
def test_outside_of_the_main_thread_a_thread_watches_with_debug(caplog: pytest.LogCaptureFixture) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        that_blocks()
        return HttpResponse()

    def serve() -> None:
        asyncio.run(Exchange().by(handler))  # type: ignore[arg-type]

    with whole_site(view, DEBUG=True) as handler:
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    assert "in that_blocks\n    time.sleep(0.5)" in caplog.text


@pytest.mark.no_database
def test_stalls_are_looked_for_with_debug_or_by_the_setting() -> None:
    from greenorm.integrations.stalls import watch

    with override_settings(DEBUG=False):
        assert watch() is None
    with override_settings(DEBUG=True):
        assert watch().threshold == 0.1  # type: ignore[union-attr]
    with override_settings(DEBUG=True, GREENORM={"LOG_STALLS_MS": 0}):
        assert watch() is None
    with override_settings(GREENORM={"LOG_STALLS_MS": 250}):
        assert watch().threshold == 0.25  # type: ignore[union-attr]


@pytest.mark.no_database
def test_a_threshold_that_is_no_number_is_refused() -> None:
    with (
        override_settings(GREENORM={"LOG_STALLS_MS": "often"}),
        pytest.raises(ImproperlyConfigured, match="a number, or None"),
    ):
        conf.check()
