"""django-ninja: async operations that call sync code by `run`, and sync ones that are awaitable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from django.http import HttpRequest
from django.test import override_settings
from django.urls import path

import greenorm
from tests.neighbours import needs
from tests.shop.models import Account, Owner
from tests.site import get

needs("ninja")

from django.core.handlers.asgi import ASGIHandler
from ninja import NinjaAPI, Schema

pytestmark = pytest.mark.usefixtures("async_methods", "unused_thread")

api = NinjaAPI()


class AccountOut(Schema):
    owner: str
    balance: int

    @staticmethod
    def resolve_owner(account: Account) -> str:
        return account.owner.name


@api.get("/accounts", response=list[AccountOut])
async def accounts(request: HttpRequest, least: int = 0) -> list[Account]:
    # The schema reads attributes on the event loop, so what it reads is loaded here.
    return await greenorm.run(list, Account.objects.filter(balance__gte=least).select_related("owner"))


@api.get("/total")
@greenorm.awaitable
def total(request: HttpRequest, least: int = 0) -> int:
    return sum(account.balance for account in Account.objects.filter(balance__gte=least))


@api.post("/owners")
async def create(request: HttpRequest, name: str) -> int:
    async with greenorm.atomic():
        owner = await Owner.objects.acreate(name=name)
        await owner.accounts.acreate(balance=1)
    return await Account.objects.acount()


urlpatterns = [path("api/", api.urls)]


@contextmanager
def site() -> Iterator[ASGIHandler]:
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[], ALLOWED_HOSTS=["testserver"]):
        yield ASGIHandler()


async def test_operations_read_and_write_without_a_thread(no_threads: list[str]) -> None:
    with site() as handler:
        created = await get(handler, method="POST", path="/api/owners", query="name=Ada")
        assert (created.status, created.body) == (200, "1"), created
        answer = await get(handler, path="/api/accounts", query="least=1")
        assert json.loads(answer.body) == [{"owner": "Ada", "balance": 1}]
        assert (await get(handler, path="/api/total", query="least=1")).body == "1"
    assert greenorm.pool_stats().in_use == 0


async def test_the_parameters_of_an_awaitable_operation_are_checked() -> None:
    with site() as handler:
        assert (await get(handler, path="/api/total", query="least=two")).status == 422
