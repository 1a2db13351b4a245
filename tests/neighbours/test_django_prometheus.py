"""django-prometheus counts the statements and connections of runs, by its backend with the mixin."""

from __future__ import annotations

import asyncio
from typing import Any

from django.db import connection, transaction

import greenorm
from tests.neighbours import needs
from tests.neighbours.apart import APPS, apart, database
from tests.shop.models import Owner

needs("django_prometheus")


def counts() -> dict[str, Any]:
    """Do the same in a run and outside of one, and return what each has added to the counters."""
    from prometheus_client import REGISTRY

    from greenorm.integrations import prometheus

    prometheus.register()
    labels = {"alias": "default", "vendor": "postgresql"}

    def counted() -> list[float]:
        names = ["django_db_execute_total", "django_db_execute_many_total", "django_db_new_connections_total"]
        return [REGISTRY.get_sample_value(name, labels) or 0 for name in names]

    def in_steps() -> list[float]:
        connection.ensure_connection()
        before = counted()
        with transaction.atomic():
            Owner.objects.create(name="Ada")
        with connection.cursor() as cursor:
            cursor.executemany("UPDATE shop_owner SET name = %s", [["Bob"], ["Eve"]])
        assert [owner.name for owner in Owner.objects.iterator()] == ["Eve"]
        Owner.objects.all().delete()
        return [after - count for after, count in zip(counted(), before, strict=True)]

    async def main() -> dict[str, Any]:
        before = counted()
        await asyncio.gather(*[greenorm.run(Owner.objects.count) for _ in range(20)])
        opened = REGISTRY.get_sample_value("greenorm_pool_opened_total", {"pool": "default"})
        connections = counted()[2] - before[2]
        return {"in_run": await greenorm.run(in_steps), "connections": connections, "opened": opened}

    found = asyncio.run(main())
    return {**found, "outside": in_steps()}


def test_its_counters_are_those_of_sync_django() -> None:
    options = {"pool": {"min_size": 0, "max_size": 4}}
    engine = database(ENGINE="tests.neighbours.backends.prometheus", OPTIONS={**database()["OPTIONS"], **options})
    found = apart(counts, DATABASES={"default": engine}, INSTALLED_APPS=["greenorm", "django_prometheus", *APPS])
    assert found["in_run"] == found["outside"]
    assert found["in_run"][1] == 2
    assert 1 <= found["connections"] == found["opened"] <= 4
