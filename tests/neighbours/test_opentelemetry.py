"""OpenTelemetry's psycopg and Django instrumentation see a run as they see sync Django."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from asgiref.sync import async_to_sync
from django.db import DataError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

import greenorm
from greenorm.integrations.asgi import Handler
from tests.neighbours import needs
from tests.shop.models import Owner
from tests.site import get

needs("opentelemetry.sdk")
needs("opentelemetry.instrumentation.django")

from django.core.handlers.asgi import ASGIHandler
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

provider = TracerProvider()
tracer = provider.get_tracer("tests")


RUNNING = "SELECT 1 AS id, query AS name FROM pg_stat_activity WHERE pid = pg_backend_pid()"


@contextmanager
def instrumented(**options: Any) -> Iterator[None]:
    connects = [(owner, owner.__dict__["connect"]) for owner in (psycopg.Connection, psycopg.AsyncConnection)]
    PsycopgInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True, **options)
    try:
        yield
    finally:
        PsycopgInstrumentor().uninstrument()
        for owner, connect in connects:
            owner.connect = connect  # it leaves a bound method there, which would connect for no subclass


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with instrumented():
        yield exporter
    provider._active_span_processor._span_processors = ()


def statements(spans: InMemorySpanExporter) -> list[str]:
    return [span.attributes["db.statement"] for span in spans.get_finished_spans() if "db.statement" in span.attributes]


def in_steps() -> None:
    with transaction.atomic():
        Owner.objects.create(name="Ada")
        assert Owner.objects.get().name == "Ada"
        assert isinstance(connection.connection.cursor(), psycopg.AsyncCursor) is greenorm.in_run()
    with connection.cursor() as cursor:
        cursor.executemany("UPDATE shop_owner SET name = %s", [["Bob"], ["Eve"]])
    Owner.objects.all().delete()


@pytest.mark.one_loop
def test_each_statement_of_a_run_is_a_span_as_it_is_in_sync_django(spans: InMemorySpanExporter) -> None:
    asyncio.run(greenorm.run(in_steps))
    of_run = statements(spans)
    spans.clear()
    in_steps()
    assert of_run == statements(spans)
    kinds = [statement.split()[0] for statement in of_run if '"shop_owner"' in statement]
    assert kinds == ["INSERT", "SELECT", "SELECT", "DELETE"]
    assert "UPDATE shop_owner SET name = %s" in of_run


async def test_statements_are_children_of_the_span_of_the_task_that_runs_them(spans: InMemorySpanExporter) -> None:
    async def request(name: str) -> None:
        with tracer.start_as_current_span(name):
            await greenorm.run(Owner.objects.create, name=name)

    await asyncio.gather(request("Ada"), request("Bob"), request("Eve"))
    requests = {span.context.span_id: span.name for span in spans.get_finished_spans() if span.parent is None}
    assert sorted(requests.values()) == ["Ada", "Bob", "Eve"]
    inserts = [span for span in spans.get_finished_spans() if span.name == "INSERT"]
    assert sorted(requests[span.parent.span_id] for span in inserts) == ["Ada", "Bob", "Eve"]


async def test_a_statement_that_fails_is_a_span_with_its_error(spans: InMemorySpanExporter) -> None:
    def fail() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    with pytest.raises(DataError):
        await greenorm.run(fail)
    (span,) = [span for span in spans.get_finished_spans() if not span.status.is_ok and span.events]
    assert span.attributes["db.statement"] == "SELECT 1 / 0"
    assert span.status.status_code is StatusCode.ERROR
    assert span.events[0].attributes["exception.type"] == "psycopg.errors.DivisionByZero"


async def test_a_run_that_joins_a_transaction_of_sync_code_is_seen(spans: InMemorySpanExporter) -> None:
    def outer() -> int:
        with transaction.atomic():
            Owner.objects.create(name="Ada")
            return async_to_sync(inner)()

    async def inner() -> int:
        return await greenorm.run(Owner.objects.count)

    assert await asyncio.to_thread(outer) == 1
    assert [statement for statement in statements(spans) if "COUNT" in statement]


async def test_the_comments_of_its_commenter_reach_the_server() -> None:
    with instrumented(enable_commenter=True), tracer.start_as_current_span("request") as span:
        (sent,) = await greenorm.run(lambda: list(Owner.objects.raw(RUNNING)))
    assert f"traceparent='00-{span.get_span_context().trace_id:032x}-" in sent.name


@greenorm.awaitable
def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Owner.objects.count()))


async def aview(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(await Owner.objects.acount()))


@pytest.mark.usefixtures("async_methods")
@pytest.mark.parametrize("handler", [ASGIHandler, Handler])
@pytest.mark.parametrize("answer", [view, aview])
async def test_a_request_is_a_span_and_its_statements_are_below_it(
    spans: InMemorySpanExporter, answer: Any, handler: type[ASGIHandler]
) -> None:
    with override_settings(ROOT_URLCONF=(path("", answer),), MIDDLEWARE=[], ALLOWED_HOSTS=["testserver"]):
        DjangoInstrumentor().instrument(tracer_provider=provider, skip_dep_check=True)
        try:
            assert (await get(handler())).body == "0"
        finally:
            DjangoInstrumentor().uninstrument()
    (request,) = [span for span in spans.get_finished_spans() if span.kind is SpanKind.SERVER]
    (statement,) = [span for span in spans.get_finished_spans() if "COUNT" in span.attributes.get("db.statement", "")]
    assert statement.parent.span_id == request.context.span_id
