from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

import greenorm

from .models import Account
from .services import deposit


@greenorm.awaitable
def accounts(request: HttpRequest) -> HttpResponse:
    return JsonResponse([str(account) for account in Account.objects.select_related("owner")], safe=False)


async def pay(request: HttpRequest, name: str) -> HttpResponse:
    account = await deposit(name, 10)
    return JsonResponse({"balance": account.balance})


urlpatterns = [path("", accounts), path("pay/<str:name>", pay)]
