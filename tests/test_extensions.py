"""PostGIS, hstore and citext, on the system's PostgreSQL."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from django.conf import settings
from django.db import connections

import greenorm

pytestmark = [
    pytest.mark.no_database,
    pytest.mark.skipif(
        "places" not in settings.DATABASES, reason="needs the system's PostgreSQL with PostGIS, and GDAL"
    ),
]


async def test_geometries_and_hstores_go_to_the_server_and_back() -> None:
    from django.contrib.gis.geos import Point

    from tests.places.models import Place

    def work() -> list[tuple[str, float, dict[str, str]]]:
        Place.objects.create(name="Paris", point=Point(2.35, 48.86), tags={"river": "Seine"})
        return [(place.name, round(place.point.y, 2), place.tags) for place in Place.objects.filter(name="Paris")]

    try:
        assert await greenorm.run(work) == [("Paris", 48.86, {"river": "Seine"})]
    finally:
        await greenorm.run(lambda: Place.objects.all().delete())


async def test_distance_queries_run_at_once_on_connections_that_all_know_the_types() -> None:
    from django.contrib.gis.db.models.functions import Distance
    from django.contrib.gis.geos import Point

    from tests.places.models import Place

    def fill() -> None:
        Place.objects.bulk_create(Place(name=str(i), point=Point(i, i)) for i in range(20))

    def nearest(i: int) -> str:
        here = Point(i + 0.1, i, srid=4326)
        place = Place.objects.annotate(distance=Distance("point", here)).order_by("distance").first()
        assert place is not None
        assert isinstance(place.point, Point)
        return place.name

    try:
        await greenorm.run(fill)
        assert await asyncio.gather(*[greenorm.run(nearest, i) for i in range(20)]) == [str(i) for i in range(20)]
        assert greenorm.pool_stats("places").size > 1
    finally:
        await greenorm.run(lambda: Place.objects.all().delete())


async def test_citext_compares_and_comes_back() -> None:
    def work() -> tuple[bool, str]:
        with connections["places"].cursor() as cursor:
            cursor.execute("SELECT 'Ada'::citext = 'ADA'::citext, 'Ada'::citext")
            return cursor.fetchone()

    assert await greenorm.run(work) == (True, "Ada")


async def test_the_wrapper_is_djangos_postgis_wrapper_with_the_mixin() -> None:
    from django.contrib.gis.db.backends.postgis.base import DatabaseWrapper

    def work() -> list[bool]:
        wrapper = connections["places"]
        wrapper.ensure_connection()
        return [isinstance(wrapper, DatabaseWrapper), isinstance(wrapper.connection, psycopg.Connection)]

    assert await greenorm.run(work) == [True, True]


def test_outside_of_a_run_it_is_djangos_postgis_backend() -> None:
    from tests.places.models import Place

    assert Place.objects.count() == 0
    assert type(connections["places"].connection) is psycopg.Connection
