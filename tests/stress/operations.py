"""What the clients of a stress test do: transfers in every style, and reads that must always add up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import TypeAlias

from django.db import transaction
from django.db.models import F

import greenorm

from .books import BALANCE, WALLETS, Books
from .models import Posting, Wallet

CHUNK = 7

Operation: TypeAlias = Callable[[Books, "Order"], Awaitable[None]]


class Undone(Exception):
    """Raised to have a block rolled back."""


class DoesNotAddUp(AssertionError):
    """A read has seen half of a transfer."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one operation is to do; drawn by lot, by seed and number, before it begins."""

    number: int
    giver: int
    taker: int
    amount: int
    spoil: bool
    """Whether a savepoint is to be rolled back on the way."""
    undo: bool
    """Whether the whole is to be rolled back at the end."""
    leave_after: int | None
    """After how many rows a read is to be left; None: never."""


def draw(seed: int, number: int) -> tuple[Operation, Order, Random]:
    """Return the operation of a number, what it is to do, and the dice for whatever happens to it."""
    dice = Random(f"{seed}/{number}")
    giver, taker = dice.sample(range(1, WALLETS + 1), 2)
    order = Order(
        number=number,
        giver=giver,
        taker=taker,
        amount=dice.randint(1, 20),
        spoil=dice.random() < 0.3,
        undo=dice.random() < 0.1,
        leave_after=dice.randint(1, WALLETS) if dice.random() < 0.3 else None,
    )
    operation = dice.choices([transfer, transfer_in_steps, read, read_in_block, read_in_run], [5, 4, 1, 1, 1])[0]
    return operation, order, dice


def _lock(order: Order) -> None:
    found = Wallet.objects.select_for_update().filter(pk__in=[order.giver, order.taker]).order_by("pk")
    assert [wallet.pk for wallet in found] == sorted([order.giver, order.taker])


def _spoil(order: Order) -> None:
    try:
        with transaction.atomic():
            _post(order, order.giver, 1)
            raise Undone
    except Undone:
        pass


def _post(order: Order, wallet: int, amount: int) -> None:
    Wallet.objects.filter(pk=wallet).update(balance=F("balance") + amount)
    Posting.objects.create(transfer=order.number, wallet_id=wallet, amount=amount)


def _promise(books: Books, order: Order) -> None:
    transaction.on_commit(partial(books.note_commit, order.number))
    transaction.on_commit(partial(books.note_commit_async, order.number))


def _transfer(books: Books, order: Order) -> None:
    with transaction.atomic():
        _lock(order)
        if order.spoil:
            _spoil(order)
        with transaction.atomic():
            _post(order, order.giver, -order.amount)
            _promise(books, order)
        _post(order, order.taker, order.amount)
        if order.undo:
            raise Undone


async def transfer(books: Books, order: Order) -> None:
    """Move money in one run."""
    try:
        await greenorm.run(_transfer, books, order)
    except Undone:
        return
    books.note_return(order.number)


async def transfer_in_steps(books: Books, order: Order) -> None:
    """Move money in a block of several runs."""
    try:
        async with greenorm.atomic():
            await greenorm.run(_lock, order)
            if order.spoil:
                await greenorm.run(_spoil, order)
            async with greenorm.atomic():
                await greenorm.run(_post, order, order.giver, -order.amount)
            await asyncio.sleep(0)
            await greenorm.run(_post, order, order.taker, order.amount)
            await greenorm.run(_promise, books, order)
            if order.undo:
                raise Undone
    except Undone:
        return
    books.note_return(order.number)


async def read(books: Books, order: Order) -> None:
    """Stream all wallets, or some of them."""
    seen = total = 0
    async for wallet in greenorm.iterate(Wallet.objects.order_by("pk"), CHUNK):
        seen, total = seen + 1, total + wallet.balance
        if seen == order.leave_after:
            return
    _check(seen, total)


async def read_in_block(books: Books, order: Order) -> None:
    """Stream all wallets, or some of them, in a transaction, and use it for something else on the way."""
    async with greenorm.atomic():
        await read(books, order)
        await greenorm.run(Wallet.objects.filter(pk=order.giver).exists)


async def read_in_run(books: Books, order: Order) -> None:
    """Read all wallets, or some of them, from a server-side cursor in one run."""
    await greenorm.run(_read, order)


def _read(order: Order) -> None:
    seen = total = 0
    for wallet in Wallet.objects.order_by("pk").iterator(CHUNK):
        seen, total = seen + 1, total + wallet.balance
        if seen == order.leave_after:
            return
    _check(seen, total)


def _check(seen: int, total: int) -> None:
    if (seen, total) != (WALLETS, WALLETS * BALANCE):
        raise DoesNotAddUp(f"{seen} wallets hold {total}")
