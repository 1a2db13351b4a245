"""Django REST framework: its sync views and serializers, as they are, under ASGI and without a thread."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db import connections
from django.http import HttpRequest, JsonResponse

import greenorm
from tests.neighbours import needs
from tests.shop.models import Account, Owner
from tests.site import get, site

needs("rest_framework")

from rest_framework import serializers, viewsets
from rest_framework.decorators import api_view
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response

pytestmark = pytest.mark.usefixtures("async_methods", "unused_thread")
CSRF = "django.middleware.csrf.CsrfViewMiddleware"
# As in a project without users and sessions.
ANYBODY = {"REST_FRAMEWORK": {"DEFAULT_AUTHENTICATION_CLASSES": [], "UNAUTHENTICATED_USER": None}}


class AccountSerializer(serializers.ModelSerializer[Account]):
    owner = serializers.SlugRelatedField("name", queryset=Owner.objects.all())  # a query for each account

    class Meta:
        model = Account
        fields = ("owner", "balance")


class Accounts(viewsets.ModelViewSet[Account]):
    queryset = Account.objects.order_by("pk")
    serializer_class = AccountSerializer


accounts = greenorm.awaitable(Accounts.as_view({"get": "list", "post": "create"}))


async def serialized(request: HttpRequest) -> JsonResponse:
    """An async view that serializes in a run."""
    data = await greenorm.run(lambda: AccountSerializer(Account.objects.order_by("pk"), many=True).data)
    return JsonResponse(data, safe=False)


@greenorm.awaitable
@api_view(["GET", "POST"])
def refusing(request: Request) -> Response:
    Owner.objects.create(name="Bob")
    raise ValidationError("no")


def fill() -> None:
    Owner.objects.create(name="Ada").accounts.create(balance=100)


@pytest.mark.parametrize("view", [accounts, serialized])
async def test_a_serializer_follows_relations_without_a_thread(view: Any, no_threads: list[str]) -> None:
    await greenorm.run(fill)
    with site(view, **ANYBODY) as handler:
        answer = await get(handler)
    assert json.loads(answer.body) == [{"owner": "Ada", "balance": 100}]
    assert greenorm.pool_stats().in_use == 0


async def test_a_viewset_creates_what_it_is_sent_and_is_exempt_from_csrf_as_before(no_threads: list[str]) -> None:
    await greenorm.run(fill)
    with site(accounts, CSRF, **ANYBODY) as handler:
        answer = await get(handler, method="POST", body=b'{"owner": "Ada", "balance": 7}')
    assert answer.status == 201, answer.body
    assert await Account.objects.filter(balance=7).acount() == 1


async def test_an_error_of_the_api_rolls_back_with_atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    with site(refusing, **ANYBODY) as handler:
        assert (await get(handler)).status == 400
    assert await Owner.objects.acount() == 0
