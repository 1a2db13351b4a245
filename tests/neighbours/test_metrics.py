"""The pools' figures, by Prometheus' client and by OpenTelemetry's SDK, while the pools are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import greenorm
from greenorm.integrations.metrics import figures
from tests.neighbours import needs
from tests.shop.models import Owner

needs("prometheus_client")
needs("opentelemetry.sdk")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from greenorm.integrations import opentelemetry, prometheus

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"


async def in_use(look: Iterator[None]) -> None:
    """Take a look while one connection of four is in use, one is idle and none is waited for."""

    def both() -> None:
        greenorm.gather(Owner.objects.count, Owner.objects.count)

    await greenorm.run(both)
    async with greenorm.connection():
        await greenorm.run(Owner.objects.count)
        next(look, None)


async def test_prometheus_shows_each_pool() -> None:
    registry = CollectorRegistry()
    prometheus.register(registry)

    def look() -> Iterator[None]:
        text = generate_latest(registry).decode()
        stats = greenorm.pool_stats()
        assert stats.idle == 1
        assert 'greenorm_pool_connections{pool="default",state="in_use"} 1.0' in text
        assert 'greenorm_pool_connections{pool="default",state="idle"} 1.0' in text
        assert 'greenorm_pool_max_connections{pool="default"} 4.0' in text
        assert 'greenorm_pool_waiting{pool="default"} 0.0' in text
        assert f'greenorm_pool_borrowed_total{{pool="default"}} {float(stats.borrowed)}' in text
        assert 'greenorm_pool_opened_total{pool="default"} 2.0' in text
        assert 'greenorm_pool_wait_seconds_total{pool="default"}' in text
        yield

    await in_use(look())


async def test_prometheus_may_ask_from_another_thread() -> None:
    registry = CollectorRegistry()
    prometheus.register(registry)
    async with greenorm.connection():
        await greenorm.run(Owner.objects.count)
        text = await asyncio.to_thread(generate_latest, registry)
    assert b'state="in_use"} 1.0' in text


async def test_opentelemetry_observes_each_pool_by_the_names_of_its_conventions() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    opentelemetry.register(provider)

    def look() -> Iterator[None]:
        data = reader.get_metrics_data()
        (scope,) = data.resource_metrics[0].scope_metrics
        found = {
            (metric.name, point.attributes.get(STATE)): point.value
            for metric in scope.metrics
            for point in metric.data.data_points
            if point.attributes[POOL] == "default"
        }
        stats = greenorm.pool_stats()
        assert found["db.client.connection.count", "used"] == 1
        assert found["db.client.connection.count", "idle"] == 1
        assert found["db.client.connection.max", None] == 4
        assert found["db.client.connection.pending_requests", None] == 0
        assert found["db.client.connection.timeouts", None] == 0
        assert found["greenorm.pool.borrowed", None] == stats.borrowed
        assert found["greenorm.pool.wait", None] == stats.wait_seconds
        yield

    await in_use(look())
    provider.shutdown()


@pytest.mark.one_loop
def test_the_pools_of_several_event_loops_are_added_up() -> None:
    async def other() -> tuple[int, int]:
        async with greenorm.connection():
            await greenorm.run(Owner.objects.count)
            (stats,) = figures()
            return stats.in_use, stats.max_size

    async def one() -> tuple[int, int]:
        async with greenorm.connection():
            await greenorm.run(Owner.objects.count)
            return await asyncio.to_thread(asyncio.run, other())

    assert asyncio.run(one()) == (2, 8)
    assert figures() == []
