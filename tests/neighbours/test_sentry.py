"""Sentry's Django integration sees the statements, the connect, and the errors of a run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path

import greenorm
from greenorm.integrations.asgi import Handler
from tests.neighbours import needs
from tests.neighbours.apart import apart
from tests.shop.models import Owner
from tests.site import get

sentry_sdk = needs("sentry_sdk")


@greenorm.awaitable
def view(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Owner.objects.create(name="Ada")
    return HttpResponse(str(Owner.objects.count()))


async def aview(request: HttpRequest) -> HttpResponse:
    async with greenorm.atomic():
        await Owner.objects.acreate(name="Bob")
    return HttpResponse(str(await Owner.objects.acount()))


@greenorm.awaitable
def failing(request: HttpRequest) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 / 0")
    return HttpResponse()


urlpatterns = [path("", view), path("async/", aview), path("failing/", failing)]


def events() -> dict[str, list[dict[str, Any]]]:
    """Return what Sentry is sent by a request to each path, under Django's handler and greenorm's."""
    from sentry_sdk.integrations.django import DjangoIntegration
    from sentry_sdk.transport import Transport

    sent: list[dict[str, Any]] = []

    class Kept(Transport):
        def capture_envelope(self, envelope: Any) -> None:
            sent.extend(item.payload.json for item in envelope.items)

    integrations: dict[str, Any] = {"integrations": [DjangoIntegration()], "auto_enabling_integrations": False}
    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Kept, traces_sample_rate=1.0, **integrations)
    by_path = {}
    for handler in (ASGIHandler, Handler):
        for at, status in {"/": 200, "/async/": 200, "/failing/": 500}.items():
            answer = asyncio.run(get(handler(), path=at))
            assert answer.status == status, answer
            by_path[f"{handler.__name__} {at}"], sent = sent, []
        Owner.objects.all().delete()
    return by_path


SITE = {"ROOT_URLCONF": __name__, "MIDDLEWARE": ["django.middleware.common.CommonMiddleware"]}


@pytest.fixture(scope="module")
def sent() -> dict[str, list[dict[str, Any]]]:
    return dict(apart(events, **SITE))


@pytest.mark.parametrize("at", ["ASGIHandler /", "ASGIHandler /async/", "Handler /", "Handler /async/"])
def test_a_request_is_a_transaction_with_a_span_for_each_statement(sent: Any, at: str) -> None:
    (event,) = [event for event in sent[at] if event.get("type") == "transaction"]
    spans = [span for span in event["spans"] if span["op"] == "db"]
    assert [span["description"].split()[0] for span in spans if "shop_owner" in span["description"]] == [
        "INSERT",
        "SELECT",
    ]
    assert "connect" in [span["description"] for span in spans]
    (insert,) = [span for span in spans if span["description"].startswith("INSERT")]
    assert insert["data"]["db.system"] == "postgresql"
    assert insert["data"]["db.name"].startswith("greenorm_")


@pytest.mark.parametrize("at", ["ASGIHandler /failing/", "Handler /failing/"])
def test_an_error_of_the_database_arrives_with_the_line_of_the_user_and_the_statements_before(
    sent: Any, at: str
) -> None:
    (event,) = [event for event in sent[at] if "exception" in event]
    error = event["exception"]["values"][-1]
    assert error["type"] == "DataError"
    assert any(frame["function"] == "failing" for frame in error["stacktrace"]["frames"])
    assert "SELECT 1 / 0" in [crumb["message"] for crumb in event["breadcrumbs"]["values"]]
