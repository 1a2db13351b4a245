"""A schema for each tenant: django-tenants' backend with the mixin, and the pattern without it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from django.db import connection, connections, transaction

import greenorm
from tests.neighbours import needs
from tests.neighbours.apart import APPS, apart, database
from tests.site import Admin

needs("django_tenants")

TENANTS = ["red", "green", "blue"]


def tenants() -> dict[str, Any]:
    """Make three tenants, work in their schemas side by side on two connections, and return what each has seen."""
    from django_tenants.utils import schema_context, tenant_context

    from tests.neighbours.tenancy.models import Tenant
    from tests.shop.models import Owner

    made = {name: Tenant(schema_name=name, name=name) for name in TENANTS}
    with connection.schema_editor() as editor:
        editor.create_model(Tenant)
    for name, tenant in made.items():
        tenant.save()
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE SCHEMA {name}")
        with tenant_context(tenant), connection.schema_editor() as editor:
            editor.create_model(Owner)

    def write(name: str, number: int) -> None:
        with tenant_context(made[name]):
            Owner.objects.create(name=f"{name} {number}")

    def read(name: str) -> list[str]:
        seen = []
        with schema_context(name):
            for _ in range(10):
                with transaction.atomic():
                    seen += [owner.name.split()[0] for owner in Owner.objects.all()]
                greenorm.await_(asyncio.sleep(0))  # the connection is lent to the others
                seen += [owner.name.split()[0] for owner in Owner.objects.iterator()]
        return seen

    def no_tenant() -> list[str]:
        return [tenant.name for tenant in Tenant.objects.order_by("name")]

    async def main() -> tuple[Any, ...]:
        await asyncio.gather(*[greenorm.run(write, name, number) for name in TENANTS for number in range(3)])
        names = TENANTS * 5
        return tuple(await asyncio.gather(*[greenorm.run(read, name) for name in names], greenorm.run(no_tenant)))

    *seen, public = asyncio.run(main())
    counted = [[name, dict(Counter(rows))] for name, rows in zip(TENANTS * 5, seen, strict=True)]
    return {"seen": counted, "public": public}


TENANCY = {
    "INSTALLED_APPS": ["greenorm", "django_tenants", "tests.neighbours.tenancy", *APPS],
    "SHARED_APPS": ["django_tenants", "tests.neighbours.tenancy", "django.contrib.contenttypes"],
    "TENANT_APPS": ["django.contrib.contenttypes", "tests.shop"],
    "TENANT_MODEL": "tenancy.Tenant",
    "TENANT_DOMAIN_MODEL": "tenancy.Domain",
    "DATABASE_ROUTERS": ["django_tenants.routers.TenantSyncRouter"],
}


@pytest.fixture
def of_tenants(admin: Admin) -> Any:
    """A database of their own, since schemas are not seen by what empties the tables of the tests."""
    name = f"{connections['default'].settings_dict['NAME']}_tenants"
    admin.execute(f"CREATE DATABASE {name}")
    options = {**database()["OPTIONS"], "pool": {"min_size": 0, "max_size": 2}}
    yield {
        "default": database(
            NAME=name, ENGINE="tests.neighbours.backends.tenants", OPTIONS={**database()["OPTIONS"], **options}
        )
    }
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("limit_set_calls", [False, True])
def test_each_run_sees_its_tenant_only(of_tenants: dict[str, Any], limit_set_calls: bool) -> None:
    found = apart(tenants, DATABASES=of_tenants, TENANT_LIMIT_SET_CALLS=limit_set_calls, **TENANCY)
    assert found["public"] == sorted(TENANTS)
    for name, rows in found["seen"]:
        assert rows == {name: 60}
