"""What the project does: plain synchronous functions, as they are found in any Django project.

They know nothing of asyncio.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# reason: without its mypy plugin, django-stubs does not know the types of fields.

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable
from io import StringIO
from typing import TypeVar

from django.db import connection, transaction
from django.db.models import Count, Max, Sum

from .models import Account, City, Country, Transfer

T = TypeVar("T")


def describe_city(city_id: int) -> str:
    """Return a city with its country and continent, by one query with two joins."""
    city = City.objects.select_related("country__continent").get(pk=city_id)
    return f"{city.name}, {city.country.name}, {city.country.continent.name}"


def locate_city(city_id: int) -> str:
    """Return the same by three queries: the country and the continent are loaded when they are first looked at."""
    city = City.objects.get(pk=city_id)
    return f"{city.name}, {city.country.name}, {city.country.continent.name}"


def list_neighbours(iso: str) -> dict[str, str]:
    """Return the continent of each neighbour of a country, by three queries, of which two prefetch."""
    country = Country.objects.prefetch_related("neighbours__continent").get(pk=iso)
    return {neighbour.name: neighbour.continent.name for neighbour in country.neighbours.all()}


def summarise_country(iso: str) -> tuple[dict[str, int | None], list[tuple[str, int]]]:
    """Return a country's figures, and its time zones by how many live there, by two queries that aggregate."""
    cities = City.objects.filter(country=iso)
    figures = cities.aggregate(cities=Count("pk"), people=Sum("population"), largest=Max("population"))
    zones = cities.values_list("timezone").annotate(people=Sum("population")).order_by("-people", "timezone")
    return figures, list(zones[:3])


@transaction.atomic
def transfer(giver: str, taker: str, amount: int) -> int:
    """Move money from one country's account to another's, both locked, and return the amount."""
    # Locked in the order of their keys, so that two transfers the opposite way never wait for each other.
    rows = Account.objects.select_for_update().filter(pk__in=[giver, taker]).order_by("pk")
    accounts = {account.pk: account for account in rows}
    accounts[giver].balance -= amount
    accounts[taker].balance += amount
    for account in accounts.values():
        account.save(update_fields=["balance"])
    Transfer.objects.create(giver=accounts[giver], taker=accounts[taker], amount=amount)
    return amount


def export_cities(iso: str) -> tuple[int, int]:
    """Write the cities of a country as CSV, read from a server-side cursor, and return its lines and checksum."""
    lines = checksum = 0
    for city in City.objects.filter(country=iso).order_by("pk").iterator(chunk_size=200):
        line = StringIO()
        csv.writer(line).writerow([city.pk, city.name, city.population, city.latitude, city.longitude, city.timezone])
        checksum = zlib.crc32(line.getvalue().encode(), checksum)
        lines += 1
    return lines, checksum


def after_delay(seconds: float, service: Callable[..., T], *args: object) -> T:
    """Let the server take its time, as a distant or busy one does, and then call a service."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
    return service(*args)
