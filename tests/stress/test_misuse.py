"""What users do wrong: each mistake has its message, which says what to do, and leaves nothing behind.

Mistakes about servers, roles, TLS and pools are in `test_secrets`; a transaction shared between tasks in
`tests/test_ownership`; cancelling in `tests/test_cancellation`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import DatabaseError, connection, connections, transaction
from psycopg.rows import TupleRow

import greenorm
from greenorm import bridge
from tests.shop.models import Account, Owner

from .aliases import ask, nothing_left, until

Admin = psycopg.Connection[TupleRow]


def pid() -> int:
    return int(ask("SELECT pg_backend_pid()"))


def make_account() -> Account:
    return Account.objects.create(owner=Owner.objects.create(name="Ada"))


def sessions(admin: Admin) -> int:
    """Sessions of the default alias's database, without those that watch."""
    found = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND application_name <> 'cleaner'"
    ).fetchone()
    assert found is not None
    return int(found[0])


# No event loop, and async code


def test_a_run_without_asyncio_says_what_runs_it() -> None:
    coroutine = greenorm.run(Owner.objects.count)
    with pytest.raises(greenorm.NoEventLoop, match=r"asyncio\.run\(main\(\)\)") as caught:
        coroutine.send(None)
    assert isinstance(caught.value, RuntimeError)


@pytest.mark.parametrize("block", [greenorm.atomic, greenorm.connection])
def test_a_block_without_asyncio_says_what_runs_it(block: Callable[[], Any]) -> None:
    with pytest.raises(greenorm.NoEventLoop, match=r"asyncio\.run\(main\(\)\)"):
        block().__aenter__().send(None)


async def test_a_coroutine_is_refused_and_closed_without_a_connection() -> None:
    async def get() -> None: ...

    with nothing_left("default"), pytest.raises(TypeError, match="write `await` before it"):
        await greenorm.run(get())  # type: ignore[arg-type]
    assert greenorm.pool_stats().borrowed == 0


async def test_an_object_touched_in_async_code_is_named_with_what_to_write() -> None:
    made = await greenorm.run(make_account)
    account = await greenorm.run(Account.objects.defer("balance").get, pk=made.pk)
    owner = await greenorm.run(Owner.objects.get)
    touched: list[tuple[str, Callable[[], Any]]] = [
        ("Account.owner", lambda: account.owner),
        ("Account.balance", lambda: account.balance),
        ("Account.save()", account.save),
        ("Account.delete()", account.delete),
        ("a query on Account", lambda: list(owner.accounts.all())),
        ("a query on Owner", Owner.objects.count),
        ("a query on Owner", lambda: [*Owner.objects.all()]),
        ("sync code of the ORM", connection.cursor),
    ]
    with nothing_left("default"):
        for what, touch in touched:
            with pytest.raises(SynchronousOnlyOperation) as caught:
                touch()
            assert isinstance(caught.value, greenorm.NotInRun)
            assert f"It is {what}, in async code." in str(caught.value)
            assert "`await greenorm.run(function)`" in str(caught.value)
            assert "You cannot call this from an async context" in str(caught.value)  # Django's own words


async def test_django_allow_async_unsafe_still_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    await greenorm.run(make_account)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    try:
        assert Owner.objects.count() == 1
    finally:
        connection.close()  # it is this task's, and so nobody else's to close


# A scope in the wrong place


async def test_a_wrapper_in_another_thread_is_djangos_error() -> None:
    def work() -> str:
        wrapper = connections["default"]
        wrapper.ensure_connection()
        said: list[BaseException] = []

        def elsewhere() -> None:
            with pytest.raises(DatabaseError) as caught:
                wrapper.cursor()
            said.append(caught.value)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return str(said[0])

    with nothing_left("default"):
        assert "can only be used in that same thread" in await greenorm.run(work)
    assert greenorm.pool_stats().in_use == 0


async def test_a_psycopg_connection_kept_after_its_run_is_refused() -> None:
    def borrowed() -> Any:
        pid()
        return connection.connection

    kept = await greenorm.run(borrowed)
    uses: list[Callable[[], Any]] = [
        lambda: kept.execute("SELECT 1"),
        kept.cursor,
        kept.commit,
        kept.rollback,
        lambda: kept.transaction().__enter__(),
        lambda: setattr(kept, "autocommit", False),
        kept.cancel_safe,
    ]
    with nothing_left("default"):
        for use in uses:
            with pytest.raises(greenorm.StaleCursor, match=r"had gone back to the pool\. Use it within the run"):
                await greenorm.run(use)
    kept.close()
    assert await greenorm.run(pid) == kept.info.backend_pid  # the session is another's by now, and stays


async def test_a_psycopg_connection_kept_after_its_run_is_not_the_next_borrowers() -> None:
    kept: list[Any] = []

    def borrowed() -> None:
        pid()
        kept.append(connection.connection)

    def other() -> None:
        borrowed()
        with transaction.atomic():
            Owner.objects.create(name="of another run")
            with pytest.raises(greenorm.StaleCursor):
                kept[0].rollback()

    await greenorm.run(borrowed)
    await greenorm.run(other)
    assert await greenorm.run(Owner.objects.count) == 1


async def test_a_block_left_by_another_task_ends_as_it_should() -> None:
    block = greenorm.atomic()
    with nothing_left("default"):
        await block.__aenter__()
        await greenorm.run(make_account)
        await asyncio.create_task(block.__aexit__(None, None, None))
    assert await greenorm.run(Owner.objects.count) == 1


async def test_a_block_that_is_left_twice_is_refused() -> None:
    for block in (greenorm.atomic(), greenorm.connection()):
        with nothing_left("default"):
            async with block:
                pass
            with pytest.raises(RuntimeError, match="left without having been entered"):
                await block.__aexit__(None, None, None)


def test_a_block_left_in_another_loop_is_refused_and_rolled_back(admin: Admin) -> None:
    block = greenorm.atomic()

    async def enter() -> None:
        await block.__aenter__()
        await greenorm.run(make_account)

    asyncio.run(enter())
    with pytest.warns(ResourceWarning, match="was in use when its event loop was closed"):
        asyncio.run(greenorm.run(pid))
    with pytest.raises(greenorm.Abandoned, match="other than the one that it was begun in"):
        asyncio.run(block.__aexit__(None, None, None))
    until(lambda: sessions(admin) == 0, "the session ends")
    assert Owner.objects.count() == 0


def test_an_iteration_goes_on_in_no_other_loop(admin: Admin) -> None:
    async def fill_and_begin() -> Any:
        await greenorm.run(Owner.objects.bulk_create, [Owner(name=str(i)) for i in range(10)])
        owners = greenorm.iterate(Owner.objects.all(), chunk_size=2)
        assert await anext(owners) is not None
        assert await anext(owners) is not None
        return owners

    async def go_on(owners: Any) -> None:
        await anext(owners)

    owners = asyncio.run(fill_and_begin())
    with pytest.raises(greenorm.Abandoned, match="other than the one that it was begun in"):
        asyncio.run(go_on(owners))
    with pytest.warns(ResourceWarning, match="was in use when its event loop was closed"):
        asyncio.run(greenorm.run(pid))
    until(lambda: sessions(admin) == 0, "the session ends")


# Fork


def _in_child(work: Callable[[], Any], answers: Any) -> None:
    try:
        answers.put(repr(work()))
    except BaseException as exc:
        answers.put(f"{type(exc).__name__}: {exc}")


def forked(work: Callable[[], Any]) -> str:
    """Return what `work` returns, or raises, in a process that is forked here."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_child, args=(work, answers))
    child.start()
    answer: str = answers.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    return answer


forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@forks
async def test_a_transaction_in_a_forked_process_is_refused_and_stays_the_parents() -> None:
    def work() -> str:
        with transaction.atomic():
            make_account()
            answer = forked(Owner.objects.count)
            assert Owner.objects.count() == 1
        return answer

    answer = await greenorm.run(work)
    assert answer.startswith("StaleCursor: ")
    assert "belongs to the parent of this process" in answer
    assert "asyncio.run(greenorm.run(fn))" in answer
    assert await greenorm.run(Owner.objects.count) == 1


@forks
async def test_a_forked_process_may_run_in_a_loop_of_its_own() -> None:
    def work() -> tuple[str, int]:
        with transaction.atomic():
            return forked(lambda: asyncio.run(greenorm.run(pid))), pid()

    childs, mine = await greenorm.run(work)
    assert childs.isdigit()
    assert int(childs) != mine
    assert await greenorm.run(pid) == mine


# The end of everything


def interrupted_by(exc: BaseException | None, error: type[BaseException], admin: Admin) -> None:
    """Let `error` end a loop in which two siblings are in the middle of a transaction."""
    started: list[int] = []

    def sibling() -> None:
        with transaction.atomic():
            Owner.objects.create(name=f"of connection {pid()}")
            started.append(pid())
            ask("SELECT pg_sleep(60)")

    def fails() -> None:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            if exc is None:
                threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
                ask("SELECT pg_sleep(60)")
            else:
                raise exc

    async def main() -> None:
        siblings = [asyncio.create_task(greenorm.run(sibling)) for _ in range(2)]
        while len(started) < 2:
            await asyncio.sleep(0.01)
        await greenorm.run(fails)
        await asyncio.gather(*siblings)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where tests run in the background
    try:
        with pytest.raises(error) as caught:
            asyncio.run(main())
    finally:
        signal.signal(signal.SIGINT, former)
    assert exc is None or caught.value is exc
    until(lambda: sessions(admin) == 0, "all sessions end")
    assert Owner.objects.count() == 0
    assert asyncio.run(greenorm.run(Owner.objects.count)) == 0


def test_sys_exit_in_a_function_ends_the_loop_and_rolls_back(admin: Admin) -> None:
    interrupted_by(SystemExit(3), SystemExit, admin)


def test_a_keyboard_interrupt_in_a_function_ends_the_loop_and_rolls_back(admin: Admin) -> None:
    interrupted_by(KeyboardInterrupt(), KeyboardInterrupt, admin)


def test_ctrl_c_in_the_middle_of_a_query_ends_the_loop_and_rolls_back(admin: Admin) -> None:
    interrupted_by(None, KeyboardInterrupt, admin)


async def test_sys_exit_in_a_function_that_the_caller_survives_leaves_nothing() -> None:
    with nothing_left("default"), pytest.raises(SystemExit) as caught:
        await greenorm.run(sys.exit, 3)
    assert caught.value.code == 3


# Generators that are left half read


async def test_a_generator_left_half_read_closes_its_cursor_and_transaction() -> None:
    await greenorm.run(Owner.objects.bulk_create, [Owner(name=str(i)) for i in range(10)])

    @greenorm.awaitable
    def names() -> Iterator[str]:
        with transaction.atomic():
            Owner.objects.create(name="lost")
            for owner in Owner.objects.iterator(chunk_size=2):
                yield owner.name

    with nothing_left("default"):
        async for _ in names():
            break
        while greenorm.pool_stats().in_use:
            await asyncio.sleep(0.01)
    assert await greenorm.run(Owner.objects.count) == 10
    assert not bridge.in_run()
