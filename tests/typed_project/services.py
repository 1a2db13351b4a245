from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

from django.db import transaction
from django.db.models import QuerySet

import greenorm

from .models import Account, Owner


@greenorm.awaitable
def deposit(name: str, amount: int) -> Account:
    with transaction.atomic():
        account = Account.objects.select_for_update().get(owner__name=name)
        account.balance += amount
        account.save()
    return account


@greenorm.awaitable
def rich(least: int) -> Iterator[Account]:
    yield from Account.objects.filter(balance__gte=least).iterator()


def accounts_of(name: str) -> QuerySet[Account]:
    return Account.objects.filter(owner__name=name)


async def read() -> None:
    assert_type(await greenorm.run(Account.objects.get, pk=1), Account)
    assert_type(await greenorm.run(list, Account.objects.all()), list[Account])
    assert_type(await greenorm.run(Account.objects.order_by("pk").first), Account | None)
    assert_type(await greenorm.run(accounts_of("Ada").count), int)
    assert_type(await greenorm.run(lambda: [account.owner.name for account in accounts_of("Ada")]), list[str])
    assert_type(await greenorm.sync_to_async(Owner.objects.create)(name="Ada"), Owner)
    async for account in greenorm.iterate(accounts_of("Ada"), chunk_size=500):
        assert_type(account, Account)


async def write() -> None:
    async with greenorm.atomic():
        assert_type(await deposit("Ada", 10), Account)
        assert_type(await Account.objects.aget(pk=1), Account)
    async for account in rich(100):
        assert_type(account, Account)


def both() -> None:
    counts = greenorm.gather(Account.objects.count, Owner.objects.count)
    assert_type(counts, list[int])
    assert_type(deposit.sync("Ada", 10), Account)
