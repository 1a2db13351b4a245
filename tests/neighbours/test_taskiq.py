"""taskiq, a worker for async tasks: its tasks call Django's models by `run`, its broker is told on commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.db import transaction

import greenorm
from tests.neighbours import needs
from tests.shop.models import Account, Owner

needs("taskiq")

from taskiq import InMemoryBroker

broker = InMemoryBroker()


@broker.task
async def pay(name: str, amount: int) -> int:
    def pay() -> int:
        with transaction.atomic():
            account = Account.objects.select_for_update().get(owner__name=name)
            account.balance += amount
            account.save()
        return account.balance

    return await greenorm.run(pay)


@broker.task
async def greet(name: str) -> str:
    owner = await greenorm.run(Owner.objects.get, name=name)
    return f"Hello, {owner}"


@pytest.fixture(autouse=True)
async def worker() -> AsyncIterator[None]:
    await broker.startup()
    await greenorm.run(lambda: Owner.objects.create(name="Ada").accounts.create())
    yield
    await broker.shutdown()


async def result(job: Any) -> Any:
    """Wait for a task's result. taskiq's own waiting polls as well."""
    return (await job.wait_result(check_interval=0.01, timeout=300)).return_value


async def test_tasks_read_and_write_side_by_side_on_a_few_connections() -> None:
    jobs = await asyncio.gather(*[pay.kiq("Ada", 1) for _ in range(20)])
    assert sorted([await result(job) for job in jobs]) == list(range(1, 21))
    assert greenorm.pool_stats().size <= 4
    assert greenorm.pool_stats().in_use == 0


async def test_an_error_of_a_task_is_its_result_and_its_transaction_is_rolled_back() -> None:
    job = await pay.kiq("Ada", -1)
    failed = await job.wait_result(check_interval=0.01, timeout=300)
    assert "not_overdrawn" in str(failed.error)
    assert await greenorm.run(Account.objects.filter(balance=0).count) == 1


async def test_a_task_is_sent_when_the_transaction_commits_and_only_then() -> None:
    sent: list[Any] = []

    async def send(name: str) -> None:
        sent.append(await greet.kiq(name))

    def create(name: str, *, fail: bool) -> None:
        with transaction.atomic():
            Owner.objects.create(name=name)
            transaction.on_commit(lambda: send(name))
            assert sent == []
            if fail:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await greenorm.run(create, "Bob", fail=True)
    assert sent == []
    await greenorm.run(create, "Eve", fail=False)
    assert await result(sent[0]) == "Hello, Eve"
