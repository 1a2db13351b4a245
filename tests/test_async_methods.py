"""Django's own async methods as runs: the hook, what it takes, and what it leaves on a thread."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import asgiref.sync
import psycopg
import pytest
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext, async_to_sync, iscoroutinefunction
from django.contrib.sessions.models import Session
from django.core.cache import caches
from django.core.cache.backends.filebased import FileBasedCache
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.handlers.base import BaseHandler
from django.db import IntegrityError, connection, connections, transaction
from django.dispatch import Signal
from django.test import TestCase, override_settings
from django.utils import timezone

import greenorm
from greenorm import conf
from greenorm.integrations import async_methods as hook
from greenorm.integrations import awaitable_querysets, transaction_atomic
from tests.shop.models import Account, Owner, Tag

pytestmark = pytest.mark.usefixtures("async_methods")


def pid() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def ident() -> int:
    return threading.get_ident()


async def names() -> list[str]:
    return [name async for name in Owner.objects.order_by("name").values_list("name", flat=True)]


async def make(count: int) -> None:
    await Owner.objects.abulk_create(Owner(name=f"{i:05}") for i in range(count))


async def idle_soon() -> None:
    """Wait until nothing is borrowed from the pool."""
    async with asyncio.timeout(10):
        while greenorm.pool_stats().in_use:
            await asyncio.sleep(0.001)


# The hook

PLACES = [(SyncToAsync, "__call__"), (AsyncToSync, "__call__"), (Signal, "asend"), (Signal, "asend_robust")]
PLACES += [(BaseHandler, "make_view_atomic")]


@pytest.mark.no_database
def test_uninstall_leaves_asgiref_and_django_as_they_were() -> None:
    hooked = [getattr(owner, name) for owner, name in PLACES]
    hook.uninstall()
    try:
        stock = [getattr(owner, name) for owner, name in PLACES]
        assert [method.__module__ for method in stock] == [owner.__module__ for owner, _ in PLACES]
        assert not set(stock) & set(hooked)
    finally:
        hook.install()


@pytest.mark.no_database
def test_install_is_idempotent() -> None:
    hooked = [getattr(owner, name) for owner, name in PLACES]
    hook.install()
    assert [getattr(owner, name) for owner, name in PLACES] == hooked


@pytest.mark.no_database
def test_uninstall_refuses_where_somebody_hooked_the_same_place_since(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SyncToAsync, "__call__", lambda self, *args: None)
        with pytest.raises(RuntimeError, match=r"SyncToAsync\.__call__ has been replaced"):
            hook.uninstall()
    assert SyncToAsync.__call__ is not hook._hooked[SyncToAsync, "__call__"][0]


@pytest.mark.no_database
def test_the_hooked_methods_look_like_asgirefs() -> None:
    assert iscoroutinefunction(SyncToAsync.__call__)
    assert SyncToAsync.__call__.__name__ == "__call__"
    with pytest.raises(TypeError, match="sync_to_async can only be applied to sync functions"):
        asgiref.sync.sync_to_async(asgiref.sync.sync_to_async(ident))


async def test_without_the_hook_an_async_method_uses_a_thread() -> None:
    hook.uninstall()
    try:
        pids = {await asgiref.sync.sync_to_async(pid)()}
        await Tag.objects.acreate(name="thread")
        assert greenorm.pool_stats().borrowed == 0
        assert len(pids) == 1
    finally:
        hook.install()
        await asgiref.sync.sync_to_async(connections.close_all)()


# Transactions


async def test_async_methods_take_part_in_atomic(no_threads: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            owner = await Owner.objects.acreate(name="a")
            account, _ = await Account.objects.aget_or_create(owner=owner, balance=5)
            account.balance += 1
            await account.asave()
            await account.tags.aadd(await Tag.objects.acreate(name="t"))
            locked = await Account.objects.select_for_update().aget(pk=account.pk)
            assert (locked.balance, await account.tags.acount()) == (6, 1)
            raise ZeroDivisionError
    assert (await Owner.objects.acount(), await Account.objects.acount(), await Tag.objects.acount()) == (0, 0, 0)


async def test_savepoints_nest_around_async_methods(no_threads: list[str]) -> None:
    async with greenorm.atomic():
        await Owner.objects.acreate(name="kept")
        with pytest.raises(IntegrityError):
            async with greenorm.atomic():
                await Owner.objects.acreate(name="lost")
                await Owner.objects.acreate(name="kept")
        await Owner.objects.acreate(name="too")
    assert await names() == ["kept", "too"]


async def test_another_task_is_refused_the_transaction() -> None:
    async with greenorm.atomic():
        await Owner.objects.acreate(name="a")
        with pytest.raises(greenorm.SharedScope):
            await asyncio.create_task(Owner.objects.acount())


async def test_an_async_method_joins_the_run_that_is_open() -> None:
    async def asynchronous() -> tuple[int, int]:
        async with greenorm.connection():
            return await greenorm.run(pid), await Owner.objects.acount()

    def outer() -> tuple[int, tuple[int, int]]:
        with greenorm.connection():
            return pid(), greenorm.await_(asynchronous())

    results = await asyncio.gather(*[greenorm.run(outer) for _ in range(8)])  # twice the pool
    assert all(mine == inner for mine, (inner, _) in results)


async def test_lazy_access_in_async_code_still_raises() -> None:
    await Account.objects.acreate(owner=await Owner.objects.acreate(name="a"))
    account = await Account.objects.afirst()
    assert account is not None
    with pytest.raises(SynchronousOnlyOperation):
        account.owner  # noqa: B018 - touched


async def test_a_thousand_idle_tasks_share_the_pool() -> None:
    read = 0
    go = asyncio.Event()

    async def stream() -> None:
        nonlocal read
        assert await Owner.objects.acount() == 1
        read += 1
        if read == 1000:
            go.set()
        await go.wait()
        assert await Owner.objects.aexists()

    await Owner.objects.acreate(name="a")
    await asyncio.gather(*[stream() for _ in range(1000)])
    stats = greenorm.pool_stats()
    assert (read, stats.in_use) == (1000, 0)
    assert stats.size <= 4


# What asgiref's callers expect


async def test_context_variables_are_seen_both_ways() -> None:
    var = contextvars.ContextVar("var", default="before")

    def sync() -> str:
        seen = var.get()
        var.set("inside")
        return seen

    var.set("outside")
    assert await greenorm.sync_to_async(sync)() == "outside"
    assert var.get() == "inside"


async def test_a_given_context_is_the_one_of_the_function() -> None:
    var = contextvars.ContextVar("var", default="nothing")
    context = contextvars.copy_context()
    context.run(var.set, "given")

    def sync() -> tuple[str, bool]:
        seen = var.get()
        Owner.objects.count()
        var.set("set")
        return seen, var.get() == "set"

    assert await greenorm.sync_to_async(sync, context=context)() == ("given", True)
    assert (var.get(), context[var]) == ("nothing", "set")


async def test_the_function_sees_the_exception_that_its_caller_handles() -> None:
    def sync() -> tuple[BaseException | None, int]:
        return sys.exc_info()[1], Owner.objects.count()

    error = ValueError("handled")
    try:
        raise error
    except ValueError:
        traceback = error.__traceback__
        assert await greenorm.sync_to_async(sync)() == (error, 0)
    assert error.__traceback__ is traceback
    assert (await greenorm.sync_to_async(sync)())[0] is None


async def test_an_exception_comes_with_the_line_that_raised_it() -> None:
    with pytest.raises(Owner.DoesNotExist) as info:
        await Owner.objects.aget(name="nobody")
    assert info.traceback[-1].path.name == "query.py"  # type: ignore[union-attr]


async def test_stop_iteration_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        await greenorm.sync_to_async(next)(iter(()))


async def test_a_cancellation_reaches_the_sync_code_and_stops_the_statement(admin: psycopg.Connection) -> None:
    seen: list[BaseException] = []

    def sync() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(60)")
        except asyncio.CancelledError as exc:
            seen.append(exc)
            raise

    task = asyncio.create_task(greenorm.sync_to_async(sync)())
    sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    while admin.execute(sleeping).fetchone() != (1,):
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(seen) == 1
    assert admin.execute(sleeping).fetchone() == (0,)
    assert greenorm.pool_stats().in_use == 0


# greenorm.sync_to_async


@pytest.mark.no_database
def test_sync_to_async_has_asgirefs_signature_and_attributes() -> None:
    ours, theirs = greenorm.sync_to_async, asgiref.sync.sync_to_async
    known = list(inspect.signature(theirs).parameters)  # `context` came with asgiref 3.9
    assert [name for name in inspect.signature(ours).parameters if name in known] == known
    tag = Tag(name="t")
    adapter = ours(tag.save)
    assert isinstance(adapter, SyncToAsync)
    assert iscoroutinefunction(adapter)
    assert adapter.__self__ is tag
    assert adapter.__name__ == "save"
    assert adapter.__wrapped__ == tag.save
    with pytest.raises(TypeError, match="can only be applied to sync functions"):
        ours(names)
    with pytest.raises(TypeError, match="executor must not be set when thread_sensitive is True"):
        ours(ident, executor=ThreadPoolExecutor())


async def test_sync_to_async_decorates_functions_and_methods(no_threads: list[str]) -> None:
    class Shop:
        @greenorm.sync_to_async
        def count(self, more: int) -> int:
            return Owner.objects.count() + more

    @greenorm.sync_to_async(thread_sensitive=True)
    def where() -> int:
        return ident()

    assert await Shop().count(3) == 3
    assert await where() == ident()


async def test_sync_to_async_without_thread_sensitivity_is_asgirefs() -> None:
    assert await greenorm.sync_to_async(ident, thread_sensitive=False)() != ident()
    with ThreadPoolExecutor(1, "chosen") as executor:
        name = greenorm.sync_to_async(
            lambda: threading.current_thread().name, thread_sensitive=False, executor=executor
        )
        assert (await name()).startswith("chosen")


# What stays on a thread


async def test_a_users_own_sync_to_async_stays_on_its_thread() -> None:
    assert await asgiref.sync.sync_to_async(ident)() != ident()


@override_settings(GREENORM={"RUN_ALL_SYNC_TO_ASYNC": True})
async def test_one_setting_lets_all_thread_sensitive_calls_be_runs(no_threads: list[str]) -> None:
    assert await asgiref.sync.sync_to_async(ident)() == ident()
    assert await asgiref.sync.sync_to_async(pid)() > 0


@override_settings(GREENORM={"RUN_ALL_SYNC_TO_ASYNC": True, "KEEP_IN_THREADS": [f"{__name__}.ident"]})
async def test_a_named_function_is_kept_in_threads() -> None:
    assert await asgiref.sync.sync_to_async(ident)() != ident()
    assert await asgiref.sync.sync_to_async(threading.get_ident)() == ident()


@override_settings(GREENORM={"RUN_ALL_SYNC_TO_ASYNC": True})
async def test_a_subclass_with_a_thread_handler_of_its_own_stays_on_its_thread() -> None:
    class Special(SyncToAsync[..., Any]):
        def thread_handler(self, *args: Any, **kwargs: Any) -> Any:
            return "special", super().thread_handler(*args, **kwargs)

    assert await Special(ident)() != ("special", ident())


@override_settings(GREENORM={"RUN_ALL_SYNC_TO_ASYNC": True})
@pytest.mark.skipif("executor" not in inspect.signature(ThreadSensitiveContext).parameters, reason="asgiref < 3.12")
async def test_a_chosen_executor_keeps_its_calls() -> None:
    with ThreadPoolExecutor(1, "chosen") as executor:
        async with ThreadSensitiveContext(executor=executor):
            name = await asgiref.sync.sync_to_async(lambda: threading.current_thread().name)()
    assert name.startswith("chosen")


async def test_an_alias_of_another_backend_stays_on_its_thread() -> None:
    def table(change: str) -> None:
        with connections["local"].schema_editor() as editor:
            getattr(editor, change)(Session)

    sessions = Session.objects.using("local")
    await asgiref.sync.sync_to_async(table)("create_model")
    try:
        session = await sessions.acreate(session_key="k", session_data="a", expire_date=timezone.now())
        session.session_data = "b"
        await session.asave()
        assert [s.session_data async for s in sessions.all()] == ["b"]
        assert [s.session_data async for s in sessions.aiterator()] == ["b"]
        assert [s.session_data async for s in sessions.raw("SELECT * FROM django_session")] == ["b"]
        async with greenorm.atomic():
            assert (await Session.objects.acount(), await sessions.acount()) == (0, 1)
        await session.arefresh_from_db()
        await session.adelete()
    finally:
        await asgiref.sync.sync_to_async(table)("delete_model")


class Files(FileBasedCache):
    """A cache in files that notes which threads read it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.used: set[int] = set()

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self.used.add(ident())
        return super().get(*args, **kwargs)


async def test_a_cache_in_files_stays_on_its_thread(tmp_path: Any) -> None:
    with override_settings(CACHES={"default": {"BACKEND": f"{__name__}.Files", "LOCATION": str(tmp_path)}}):
        await caches["default"].aset("key", "value")
        assert await caches["default"].aget("key") == "value"
        used = caches["default"].used
    assert len(used) == 1
    assert ident() not in used


@pytest.mark.parametrize("alias", ["default", "database"])
async def test_a_cache_in_memory_or_in_the_database_uses_no_thread(alias: str, no_threads: list[str]) -> None:
    cache = caches[alias]
    await cache.aset_many({"a": 1, "b": 2})
    assert await cache.aget_many(["a", "b"]) == {"a": 1, "b": 2}
    assert await cache.aincr("a") == 2
    await cache.aclear()


async def test_a_thread_that_uses_the_alias_of_an_open_transaction_is_warned() -> None:
    def in_a_thread(alias: str) -> int:
        try:
            return Owner.objects.using(alias).count()
        finally:
            connections.close_all()

    async with greenorm.atomic():
        await Owner.objects.acreate(name="a")
        assert await asyncio.to_thread(in_a_thread, "other") == 0
        with pytest.warns(RuntimeWarning, match="uses the database alias 'default', on a connection of its own"):
            assert await asgiref.sync.sync_to_async(in_a_thread)("default") == 0
    assert await asgiref.sync.sync_to_async(in_a_thread)("default") == 1


# A real sync thread above


class SyncThreadAbove(TestCase):
    """Django's runner starts an async test by async_to_sync: its loop is not on the thread of the test's connection."""

    def setUp(self) -> None:
        hook.install()
        self.addCleanup(hook.uninstall)
        Owner.objects.create(name="from setUp")
        self.pid, self.ident = pid(), ident()

    async def test_async_methods_use_the_connection_and_transaction_of_the_thread_that_waits(self) -> None:
        assert ident() != self.ident
        owner = await Owner.objects.aget()
        seen: list[int] = []
        await Owner.objects.aget_or_create(name="b", defaults={"name": lambda: seen.append(ident()) or "b"})
        assert (owner.name, seen) == ("from setUp", [self.ident])

    async def test_inside_of_atomic_they_take_part_in_its_transaction(self) -> None:
        with pytest.raises(ZeroDivisionError):
            async with greenorm.atomic():
                await Owner.objects.acreate(name="lost")
                assert await greenorm.run(pid) == self.pid
                raise ZeroDivisionError
        assert await names() == ["from setUp"]

    async def test_child_tasks_of_the_block_are_refused_as_ever(self) -> None:
        async with greenorm.atomic():
            await Owner.objects.acreate(name="a")
            with pytest.raises(greenorm.SharedScope):
                await asyncio.create_task(Owner.objects.acount())


def test_without_a_transaction_a_sync_thread_above_does_the_work() -> None:
    async def asynchronous() -> tuple[int, int]:
        return await Owner.objects.acount(), await asgiref.sync.sync_to_async(pid)()

    try:
        mine = pid()
        assert async_to_sync(asynchronous)() == (0, mine)
    finally:
        connection.close()


async def test_a_thread_inside_a_run_is_nearer_than_the_run() -> None:
    async def back_on_the_loop() -> tuple[bool, int]:
        found: list[int] = []
        await Owner.objects.aget_or_create(name="x", defaults={"name": lambda: found.append(pid()) or "x"})
        return ident() == loops, found[0]

    def in_a_thread() -> tuple[int, tuple[bool, int]]:
        try:
            return pid(), async_to_sync(back_on_the_loop)()
        finally:
            connections.close_all()

    def in_a_run() -> Any:
        with transaction.atomic():
            return pid(), greenorm.await_(asgiref.sync.sync_to_async(in_a_thread)())

    loops = ident()
    with pytest.warns(RuntimeWarning, match="what it does is not part of that"):
        mine, (threads, (on_the_loop, used)) = await greenorm.run(in_a_run)
    assert on_the_loop
    assert threads == used != mine


# Reading row by row


async def test_aiterator_keeps_one_server_side_cursor_over_its_chunks(admin: psycopg.Connection) -> None:
    await make(30)
    before = greenorm.pool_stats().borrowed
    seen = []
    async for owner in Owner.objects.order_by("name").aiterator(chunk_size=10):
        if not seen:
            cursors = await greenorm.run(open_cursors)
            assert len(cursors) == 1
        seen.append(owner.name)
    assert seen == [f"{i:05}" for i in range(30)]
    assert greenorm.pool_stats().borrowed == before + 1
    assert greenorm.pool_stats().in_use == 0


def open_cursors() -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT name FROM pg_cursors WHERE name LIKE '_django%'")
        return cursor.fetchall()


async def left_by_break(rows: AsyncIterator[Owner]) -> None:
    async for _ in rows:
        break


async def left_by_an_error(rows: AsyncIterator[Owner]) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _ in rows:
            raise ZeroDivisionError


async def left_by_cancellation(rows: AsyncIterator[Owner]) -> None:
    async def read() -> None:
        async for _ in rows:
            started.set()
            await asyncio.sleep(60)

    started = asyncio.Event()
    task = asyncio.create_task(read())
    async with asyncio.timeout(10):
        await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def left_by_aclose(rows: Any) -> None:
    async with aclosing(rows):
        await anext(rows)


@pytest.mark.parametrize("leave", [left_by_break, left_by_an_error, left_by_cancellation, left_by_aclose])
async def test_an_aiterator_that_is_left_gives_its_connection_back(leave: Callable[..., Any]) -> None:
    await make(30)
    await leave(Owner.objects.aiterator(chunk_size=10))
    await idle_soon()
    assert greenorm.pool_stats().closed == 0
    assert await greenorm.run(open_cursors) == []


async def test_an_aiterator_that_is_cancelled_in_its_query_gives_its_connection_back() -> None:
    slow = Owner.objects.raw("SELECT *, pg_sleep(60) FROM shop_owner")
    await make(1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            async for _ in slow:
                pass
    assert greenorm.pool_stats().in_use == 0


async def test_an_error_of_the_query_ends_the_aiterator() -> None:
    with pytest.raises(Exception, match="nonsense"):
        async for _ in Owner.objects.extra(where=["nonsense"]).aiterator():
            pass
    assert greenorm.pool_stats().in_use == 0


async def test_the_body_of_an_aiterator_works_on_its_connection() -> None:
    await make(30)
    async for owner in Owner.objects.aiterator(chunk_size=10):
        await Account.objects.acreate(owner=owner)
        assert greenorm.pool_stats().in_use == 1
    assert await Account.objects.acount() == 30


async def test_aiterators_run_side_by_side_and_inside_of_each_other() -> None:
    async def read() -> int:
        count = 0
        async for _ in Owner.objects.aiterator(chunk_size=10):
            async for _ in Owner.objects.aiterator(chunk_size=7):
                count += 1
        return count

    await make(30)
    assert await asyncio.gather(*[read() for _ in range(6)]) == [900] * 6
    await idle_soon()


async def test_an_aiterator_inside_of_atomic_sees_its_rows_and_ends_with_it() -> None:
    async with greenorm.atomic():
        await make(30)
        rows = Owner.objects.aiterator(chunk_size=10)
        await anext(rows)
    await rows.aclose()
    await idle_soon()
    assert await Owner.objects.acount() == 30


async def test_an_aiterator_prefetches() -> None:
    owner = await Owner.objects.acreate(name="a")
    await Account.objects.abulk_create(Account(owner=owner, balance=i) for i in range(3))
    async for found in Owner.objects.prefetch_related("accounts").aiterator(chunk_size=2):
        assert len(found.accounts.all()) == 3


def test_an_aiterator_that_outlives_its_loop_leaves_no_session_behind(admin: psycopg.Connection) -> None:
    kept = []

    async def main() -> None:
        await make(30)
        rows = Owner.objects.aiterator(chunk_size=10)
        await anext(rows)
        kept.append(rows)

    asyncio.run(main())
    count = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    others = f"{count} AND application_name <> 'cleaner' AND backend_type = 'client backend'"
    deadline = 100
    while admin.execute(others).fetchone() != (0,) and deadline:
        deadline -= 1
        admin.execute("SELECT pg_sleep(0.02)")
    assert admin.execute(others).fetchone() == (0,)


# Settings that are off by default


@pytest.fixture
def async_transaction_atomic() -> Any:
    transaction_atomic.install()
    yield
    transaction_atomic.uninstall()


@pytest.mark.usefixtures("async_transaction_atomic")
async def test_transaction_atomic_can_be_used_by_async_with(no_threads: list[str]) -> None:
    block = transaction.atomic()
    async with block:
        await Owner.objects.acreate(name="kept")
        with pytest.raises(IntegrityError):
            async with block:
                await Owner.objects.acreate(name="lost")
                await Owner.objects.acreate(name="kept")
    assert await names() == ["kept"]
    with pytest.raises(RuntimeError, match="durable"):
        async with transaction.atomic(), transaction.atomic(durable=True):
            pass


@pytest.mark.usefixtures("async_transaction_atomic")
async def test_transaction_atomic_decorates_async_and_sync_functions() -> None:
    @transaction.atomic
    async def fails(name: str) -> None:
        await Owner.objects.acreate(name=name)
        raise ZeroDivisionError

    @transaction.atomic
    def works(name: str) -> bool:
        Owner.objects.create(name=name)
        return connection.in_atomic_block

    with pytest.raises(ZeroDivisionError):
        await fails("lost")
    assert await greenorm.run(works, "kept")
    assert await names() == ["kept"]


async def test_transaction_atomic_is_djangos_own_unless_asked_for() -> None:
    with pytest.raises(TypeError, match="asynchronous context manager"):
        async with transaction.atomic():
            pass


@pytest.fixture
def querysets_can_be_awaited() -> Any:
    awaitable_querysets.install()
    yield
    awaitable_querysets.uninstall()


@pytest.mark.usefixtures("querysets_can_be_awaited")
async def test_a_queryset_that_is_awaited_is_evaluated(no_threads: list[str]) -> None:
    await make(3)
    owners = await Owner.objects.filter(name__gte="00001").order_by("-name")
    assert [owner.name for owner in owners] == ["00002", "00001"]
    assert len(await Owner.objects.raw("SELECT * FROM shop_owner")) == 3
    assert (await owners) is owners


async def test_querysets_cannot_be_awaited_unless_asked_for() -> None:
    with pytest.raises(TypeError, match="await"):
        await Owner.objects.all()  # type: ignore[misc]


@pytest.mark.no_database
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"BLOCKING_ALIAS": []}, "no setting 'BLOCKING_ALIAS'. Its settings are ASYNC_TRANSACTION_ATOMIC, "),
        ({"KEEP_IN_THREADS": "shop.views"}, "must be a list of strings, not 'shop.views'"),
        ({"AWAITABLE_QUERYSETS": "yes"}, "must be True or False, not 'yes'"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with override_settings(GREENORM=settings), pytest.raises(ImproperlyConfigured, match=message):
        conf.check()
