"""`run`, `await_` and `gather`, on a real server."""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
import time
import traceback
from typing import Any

import greenlet
import psycopg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import IntegrityError, connection, transaction
from django.db.models import Count, F, Sum
from django.utils import timezone, translation

import greenorm
from greenorm import bridge
from tests.shop.models import Account, Owner, Tag
from tests.test_bridge import Switches


def sleep(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def make_owner(name: str = "Ada", accounts: int = 3) -> Owner:
    owner = Owner.objects.create(name=name)
    Account.objects.bulk_create(Account(owner=owner, balance=100) for _ in range(accounts))
    return owner


async def test_run_returns_what_the_function_returns() -> None:
    owner = await greenorm.run(make_owner, "Ada", accounts=2)
    assert owner.pk is not None


async def test_run_raises_djangos_error_with_the_users_line_and_psycopgs_cause() -> None:
    def twice() -> None:
        make_owner()
        make_owner()  # the user's line

    with pytest.raises(IntegrityError) as info:
        await greenorm.run(twice)
    assert isinstance(info.value.__cause__, psycopg.errors.UniqueViolation)
    assert "make_owner()  # the user's line" in [frame.line for frame in traceback.extract_tb(info.value.__traceback__)]


async def test_querysets_lazy_relations_prefetch_and_aggregates_work_unchanged() -> None:
    def service() -> list[Any]:
        make_owner("Ada")
        make_owner("Bob", accounts=1)
        account = Account.objects.order_by("pk").first()
        assert account is not None
        account.tags.add(Tag.objects.create(name="new"))
        return [
            account.owner.name,
            [a.owner.name for a in Account.objects.select_related("owner").order_by("pk")],
            {owner.name: len(owner.accounts.all()) for owner in Owner.objects.prefetch_related("accounts__tags")},
            Owner.objects.annotate(n=Count("accounts")).aggregate(total=Sum("n")),
            Account.objects.filter(owner__name="Ada").update(balance=F("balance") + 1),
            list(Tag.objects.filter(accounts__owner__name="Ada").values_list("name", flat=True)),
        ]

    assert await greenorm.run(service) == [
        "Ada",
        ["Ada", "Ada", "Ada", "Bob"],
        {"Ada": 3, "Bob": 1},
        {"total": 4},
        3,
        ["new"],
    ]


async def test_nested_atomic_blocks_roll_back_as_in_sync_code() -> None:
    def service() -> list[str]:
        with transaction.atomic():
            Owner.objects.create(name="kept")
            with pytest.raises(IntegrityError), transaction.atomic():
                Owner.objects.create(name="lost")
                Owner.objects.create(name="kept")
            Owner.objects.create(name="too")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            Owner.objects.create(name="gone")
            raise ZeroDivisionError
        return list(Owner.objects.order_by("name").values_list("name", flat=True))

    assert await greenorm.run(service) == ["kept", "too"]


async def test_a_select_for_update_makes_another_run_wait_and_not_the_loop() -> None:
    owner = await greenorm.run(make_owner, accounts=1)

    def withdraw() -> None:
        with transaction.atomic():
            account = Account.objects.select_for_update().get(owner=owner)
            account.balance -= 10
            account.save()

    await asyncio.gather(*[greenorm.run(withdraw) for _ in range(10)])
    assert await greenorm.run(lambda: Account.objects.get(owner=owner).balance) == 0


async def test_the_loop_ticks_while_a_query_sleeps() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await greenorm.run(sleep, 0.3)
    ticker.cancel()
    assert ticks >= 15


async def test_two_hundred_runs_share_four_connections() -> None:
    def count() -> int:
        return Owner.objects.count()

    assert await asyncio.gather(*[greenorm.run(count) for _ in range(200)]) == [0] * 200
    stats = greenorm.pool_stats()
    assert (stats.size, stats.in_use, stats.idle, stats.waiting) == (4, 0, 4, 0)
    assert stats.borrowed >= 200
    assert stats.queued > 0  # those that had not to wait for the loop to turn, before they began


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: no run has kept the loop for so long that it would let others go first."""
    monkeypatch.setattr(bridge, "BUSY_SECONDS", 60.0)


@pytest.mark.usefixtures("patient")
async def test_a_warm_select_costs_one_switch() -> None:
    pk = (await greenorm.run(make_owner)).pk

    def gets(times: int) -> None:
        for _ in range(times):
            Owner.objects.get(pk=pk)

    await greenorm.run(gets, 1)
    with Switches() as switches:
        await greenorm.run(gets, 10)
    assert switches.count == 2 + 10 * 2  # into the run and out of it, and for each wait up and back


@pytest.mark.usefixtures("patient")
async def test_a_warm_atomic_write_costs_three_switches() -> None:
    pk = (await greenorm.run(make_owner)).pk

    def write() -> None:
        with transaction.atomic():
            Owner.objects.filter(pk=pk).update(name="Eve")

    await greenorm.run(write)
    with Switches() as switches:
        await greenorm.run(write)
    assert switches.count == 2 + 3 * 2  # BEGIN, UPDATE, COMMIT


async def test_translation_and_time_zone_are_seen_both_ways() -> None:
    def activates() -> tuple[str, str]:
        seen = translation.get_language()
        translation.activate("fr")
        timezone.activate("Asia/Tokyo")
        return seen, str(Owner.objects.count())

    with translation.override("de"), timezone.override("UTC"):
        assert await greenorm.run(activates) == ("de", "0")
        assert translation.get_language() == "fr"
        assert timezone.get_current_timezone_name() == "Asia/Tokyo"


async def test_a_lazy_relation_in_a_coroutine_still_raises() -> None:
    owner = await greenorm.run(make_owner)
    account = await greenorm.run(lambda: Account.objects.filter(owner_id=owner.pk).first())
    assert account is not None
    with pytest.raises(SynchronousOnlyOperation):
        account.owner  # noqa: B018
    assert await greenorm.run(lambda: account.owner.name) == "Ada"


async def test_a_lazy_relation_in_a_coroutine_awaited_by_sync_code_still_raises() -> None:
    async def coroutine() -> int:
        return Owner.objects.count()

    with pytest.raises(SynchronousOnlyOperation):
        await greenorm.run(lambda: greenorm.await_(coroutine()))


async def test_a_coroutine_function_is_refused_with_what_to_write() -> None:
    async def get() -> None: ...

    with pytest.raises(TypeError, match=r"get is async: write `await .*get\(\.\.\.\)`"):
        await greenorm.run(get)
    with pytest.raises(TypeError, match="is async"):
        await greenorm.run(functools.partial(get))


async def test_a_coroutine_is_refused_and_closed() -> None:
    async def get() -> None: ...

    with pytest.raises(TypeError, match=r"not the coroutine of .*get\(\): write `await` before it"):
        await greenorm.run(get())  # type: ignore[arg-type]


async def test_a_future_is_refused() -> None:
    with pytest.raises(TypeError, match="write `await` before it"):
        await greenorm.run(asyncio.get_running_loop().create_future())  # type: ignore[arg-type]


async def test_a_queryset_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"write `run\(lambda: list\(\.\.\.\)\)`"):
        await greenorm.run(Owner.objects.all())  # type: ignore[arg-type]


async def test_run_nests_through_await_and_joins_the_transaction() -> None:
    def outer() -> tuple[bool, int]:
        with transaction.atomic():
            pid = connection.connection.info.backend_pid
            Owner.objects.create(name="uncommitted")
            return greenorm.await_(greenorm.run(lambda: (connection.connection.info.backend_pid == pid, inner())))

    def inner() -> int:
        return Owner.objects.count()

    assert await greenorm.run(outer) == (True, 1)


async def test_sync_code_awaits_anything_inside_a_run() -> None:
    async def fetch() -> str:
        await asyncio.sleep(0.01)
        return "fetched"

    assert await greenorm.run(lambda: [greenorm.await_(fetch()), Owner.objects.count()]) == ["fetched", 0]


async def test_a_wait_for_something_else_lends_the_connection() -> None:
    def waits() -> tuple[int, int, int]:
        before = Owner.objects.count()
        during = greenorm.await_(asyncio.sleep(0.01, greenorm.pool_stats().in_use))
        lent = greenorm.await_(in_use())
        return before, during, lent

    async def in_use() -> int:
        return greenorm.pool_stats().in_use

    assert await greenorm.run(waits) == (0, 1, 0)


async def test_a_wait_inside_a_transaction_keeps_the_connection() -> None:
    async def in_use() -> int:
        return greenorm.pool_stats().in_use

    def waits() -> int:
        with transaction.atomic():
            Owner.objects.count()
            return greenorm.await_(in_use())

    assert await greenorm.run(waits) == 1


async def test_a_wait_with_an_open_cursor_keeps_the_connection() -> None:
    def waits() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            greenorm.await_(asyncio.sleep(0.01))
            cursor.execute("SELECT 2")
            return [cursor.fetchone(), greenorm.pool_stats().in_use]

    assert await greenorm.run(waits) == [(2,), 1]


async def test_a_thousand_runs_that_wait_for_something_else_share_four_connections() -> None:
    def stream() -> int:
        before = Owner.objects.count()
        greenorm.await_(asyncio.sleep(0.5))
        return before + Owner.objects.count()

    started = time.monotonic()
    assert sum(await asyncio.gather(*[greenorm.run(stream) for _ in range(1000)])) == 0
    assert time.monotonic() - started < 60  # one after another on four connections: 125 s


async def test_gather_returns_results_in_order_and_runs_at_once() -> None:
    def slow(value: int) -> int:
        sleep(0.2)
        return value

    def all_at_once() -> list[int]:
        return greenorm.gather(*[functools.partial(slow, i) for i in range(4)])

    started = time.monotonic()
    assert await greenorm.run(all_at_once) == [0, 1, 2, 3]
    assert time.monotonic() - started < 0.7


async def test_gather_takes_no_more_than_the_pool_has() -> None:
    def pid(_: int) -> int:
        sleep(0.01)
        return connection.connection.info.backend_pid

    pids = await greenorm.run(lambda: greenorm.gather(*[functools.partial(pid, i) for i in range(40)]))
    assert len(set(pids)) <= 4
    assert greenorm.pool_stats().queued == 0


async def test_gather_raises_the_first_error_after_all_others_have_ended() -> None:
    ended = []

    def fails() -> None:
        sleep(0.05)
        raise KeyError("first")

    def slow() -> None:
        try:
            sleep(30)
        finally:
            ended.append("slow")

    with pytest.raises(KeyError, match="first"):
        await greenorm.run(lambda: greenorm.gather(slow, fails, slow))
    assert ended == ["slow", "slow"]
    assert greenorm.pool_stats().in_use == 0


async def test_gather_inside_a_transaction_is_refused() -> None:
    def inside() -> None:
        with transaction.atomic():
            greenorm.gather(Owner.objects.count)

    with pytest.raises(greenorm.OpenTransaction, match="inside a transaction on 'default'"):
        await greenorm.run(inside)


async def test_gather_of_nothing_is_nothing() -> None:
    assert await greenorm.run(greenorm.gather) == []


async def test_gather_outside_of_a_run_says_what_to_write() -> None:
    with pytest.raises(greenorm.NotInRun, match=r"asyncio\.gather"):
        greenorm.gather(Owner.objects.count)


async def test_a_sql_alchemy_style_greenlet_beside_a_run_does_no_harm() -> None:
    def job() -> int:
        return greenlet.greenlet(lambda: 5).switch() + Owner.objects.count()

    assert await greenorm.run(job) == 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
async def test_eager_tasks_run_in_the_callback_of_a_protocol_that_starts_them() -> None:
    def work() -> int:
        with transaction.atomic():
            return Owner.objects.count() + Owner.objects.count()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            for _ in data:
                tasks.append(loop.create_task(self.answer()))

        async def answer(self) -> None:
            self.transport.write(b"%d" % await greenorm.run(work))

    async def client() -> bytes:
        reader, writer = await asyncio.open_connection(sock=clients.pop())
        answers = b""
        for _ in range(10):
            writer.write(b"ask")
            answers += await reader.readexactly(3)
        writer.close()
        return answers

    def eager(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        # uvloop passes asyncio's own factory an argument that it does not have before Python 3.13.3.
        return asyncio.Task(coro, loop=loop, **{**options, "eager_start": True})

    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    tasks: list[asyncio.Task[None]] = []
    pairs = [socket.socketpair() for _ in range(8)]
    clients = [ours for ours, _ in pairs]
    servers = [(await loop.connect_accepted_socket(Server, theirs))[0] for _, theirs in pairs]
    assert await asyncio.gather(*[client() for _ in pairs]) == [b"0" * 30] * 8
    await asyncio.gather(*tasks)
    for server in servers:
        server.close()
    assert greenorm.pool_stats().in_use == 0
