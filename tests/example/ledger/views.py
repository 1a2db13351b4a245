from __future__ import annotations

from django.http import HttpRequest, HttpResponse

import greenorm
from tests.example.ledger import services


def create_sync(request: HttpRequest, name: str) -> HttpResponse:
    services.create(name)
    return HttpResponse(",".join(services.names()))


async def create_async(request: HttpRequest, name: str) -> HttpResponse:
    await services.fan_out(name, f"{name}'s friend")
    return HttpResponse(",".join(await greenorm.run(services.names)))


@greenorm.awaitable
def create_awaitable(request: HttpRequest, name: str) -> HttpResponse:
    return create_sync(request, name)


async def create_by_a_methods(request: HttpRequest, name: str) -> HttpResponse:
    await services.create_by_a_methods(name)
    return HttpResponse(",".join([account.name async for account in services.Account.objects.order_by("name")]))
