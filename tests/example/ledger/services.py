"""The code under test: it knows nothing of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from django.db import connection, transaction

import greenorm
from tests.example.ledger.models import Account, Entry


def names() -> list[str]:
    return list(Account.objects.order_by("name").values_list("name", flat=True))


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def create(name: str) -> Account:
    with transaction.atomic():
        account = Account.objects.create(name=name)
        Entry.objects.create(account=account, amount=1)
    return account


def create_slowly(name: str, fails: bool = False) -> None:
    with transaction.atomic():
        create(name)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.005)")
        if fails:
            raise ZeroDivisionError


def create_after(event: asyncio.Event, name: str) -> None:
    Account.objects.count()
    greenorm.await_(event.wait())
    create(name)


def create_and_set(event: asyncio.Event, name: str) -> None:
    create(name)
    event.set()


def summary() -> tuple[int, int]:
    """Count both tables at once, each on a connection of its own."""
    accounts, entries = greenorm.gather(Account.objects.count, Entry.objects.count)
    return accounts, entries


async def fan_out(*names: str) -> None:
    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(greenorm.run(create_slowly, name))


async def create_in_block(*names: str, before_end: Callable[[], None] | None = None) -> None:
    async with greenorm.atomic():
        for name in names:
            await greenorm.run(create, name)
            await asyncio.sleep(0)
        if before_end is not None:
            await greenorm.run(before_end)


async def read_all() -> list[str]:
    return [account.name async for account in greenorm.iterate(Account.objects.order_by("name"), chunk_size=1)]


async def read_all_with_children() -> list[int]:
    """Count the entries of each account in tasks, while the cursor over the accounts is open."""
    counts = []
    async for account in greenorm.iterate(Account.objects.order_by("name"), chunk_size=1):
        counts += await asyncio.gather(*[greenorm.run(account.entries.count) for _ in range(2)])
    return counts


async def create_by_a_methods(name: str) -> int:
    account = await Account.objects.acreate(name=name)
    await Entry.objects.acreate(account=account, amount=1)
    return await account.entries.acount()
