"""FastAPI, and so Starlette and anyio: Django's models by `run`, transactions as dependencies, cancellation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from django.db import connection

import greenorm
from tests.neighbours import needs
from tests.shop.models import Owner
from tests.site import Admin

needs("fastapi")
needs("httpx")

import anyio
import httpx
from fastapi import Depends, FastAPI, HTTPException
from starlette.middleware.base import BaseHTTPMiddleware

app = FastAPI()


async def transaction() -> AsyncIterator[None]:
    async with greenorm.atomic():
        yield


Transaction = Annotated[None, Depends(transaction)]


@app.get("/owners")
async def owners() -> list[str]:
    return await greenorm.run(lambda: [owner.name for owner in Owner.objects.order_by("name")])


@app.post("/owners/{name}")
async def create(name: str, transaction: Transaction) -> int:
    owner = await greenorm.run(Owner.objects.create, name=name)
    if name == "nobody":
        raise HTTPException(422)
    return int(owner.pk)


@app.get("/slow")
async def slow() -> str:
    with anyio.move_on_after(0.1) as scope:
        await greenorm.run(sleep)
    return "too late" if scope.cancelled_caught else "in time"


def sleep(seconds: float = 60) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://testserver")


def sleeping(admin: Admin) -> int:
    found = admin.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'"
    ).fetchone()
    return int(found[0])


@pytest.mark.usefixtures("no_threads")
async def test_endpoints_read_and_write_by_djangos_models() -> None:
    async with client() as site:
        assert (await site.post("/owners/Ada")).status_code == 200
        assert (await site.get("/owners")).json() == ["Ada"]
    assert greenorm.pool_stats().in_use == 0


async def test_an_error_in_an_endpoint_rolls_back_the_transaction_that_it_depends_on() -> None:
    async with client() as site:
        assert (await site.post("/owners/nobody")).status_code == 422
        assert (await site.get("/owners")).json() == []


async def test_many_requests_share_the_pool() -> None:
    async with client() as site, anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(site.post, f"/owners/{number}")
    assert await greenorm.run(Owner.objects.count) == 50
    assert greenorm.pool_stats().size <= 4


async def test_a_scope_of_anyio_that_is_cancelled_stops_the_statement(admin: Admin) -> None:
    async with client() as site:
        assert (await site.get("/slow")).json() == "too late"
    assert sleeping(admin) == 0
    assert greenorm.pool_stats().in_use == 0


async def test_a_task_group_of_anyio_that_fails_cancels_its_runs_and_rolls_back(admin: Admin) -> None:
    async def write_and_sleep() -> None:
        async with greenorm.atomic():
            await greenorm.run(Owner.objects.create, name="Ada")
            written.set()
            await greenorm.run(sleep)

    written = anyio.Event()
    with pytest.raises(ExceptionGroup) as failed:
        async with anyio.create_task_group() as group:
            group.start_soon(write_and_sleep)
            await written.wait()
            raise ZeroDivisionError
    assert failed.group_contains(ZeroDivisionError)
    assert sleeping(admin) == 0
    assert await greenorm.run(Owner.objects.count) == 0


async def test_starlettes_base_middleware_cannot_hold_a_transaction_for_the_endpoint() -> None:
    """It calls the endpoint in a task of its own; what happens then is an error, not a lost transaction."""

    async def around(request: Any, call_next: Any) -> Any:
        async with greenorm.atomic():
            return await call_next(request)

    other = FastAPI()
    other.add_middleware(BaseHTTPMiddleware, dispatch=around)
    other.get("/")(owners)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(other), base_url="http://testserver") as site:
        with pytest.raises(greenorm.SharedScope):
            await site.get("/")
