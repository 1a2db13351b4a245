"""The requests that are measured: a mixture of the services, the same each time it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from . import services
from .contenders import THREADS
from .measure import Request, Situation
from .models import City, Country

# How long, in seconds, the server takes in addition, where it is said to.
DELAY = 0.002
# Clients of the situations that are served at once.
CLIENTS = 200

# Of 100 requests.
MIXTURE: dict[Callable[..., Any], int] = {
    services.describe_city: 30,
    services.locate_city: 20,
    services.list_neighbours: 15,
    services.summarise_country: 15,
    services.transfer: 15,
    services.export_cities: 5,
}


def count_of(service: object, requests: Sequence[Request]) -> int:
    """Return how many of the requests call a service, with or without a delay."""
    return sum(service in (fn, *args) for fn, args in requests)


def make_situations(at_once: int, one_by_one: int) -> list[Situation]:
    """Return the situations, with a number of requests for those that serve them at once, and for the other.

    Sync, and reads the keys of what it asks for from the database.
    """
    cities = list(City.objects.order_by("pk").values_list("pk", flat=True))
    countries = list(Country.objects.order_by("pk").values_list("pk", flat=True))
    many = _mix(at_once, cities, countries)
    slow: list[Request] = [(services.after_delay, (DELAY, fn, *args)) for fn, args in many]
    # For what Python and Django keep from the first call of each, and for the connections.
    each = [*{fn: (fn, args) for fn, args in many}.values()]
    waiting: Request = (services.after_delay, (0.01, services.describe_city, cities[0]))
    all_at_once = [*each, *[waiting] * THREADS]
    return [
        Situation("one after the other", 1, many[:one_by_one], each),
        Situation(f"{CLIENTS} at once", CLIENTS, many, all_at_once),
        Situation(f"{CLIENTS} at once, server +{1000 * DELAY:g} ms", CLIENTS, slow, all_at_once),
    ]


def _mix(count: int, cities: Sequence[int], countries: Sequence[str]) -> list[Request]:
    random = Random(2026)
    requests: list[Request] = []
    for service in random.choices([*MIXTURE], [*MIXTURE.values()], k=count):
        if service in (services.describe_city, services.locate_city):
            requests.append((service, (random.choice(cities),)))
        elif service is services.transfer:
            giver, taker = random.sample(countries, 2)
            requests.append((service, (giver, taker, random.randint(1, 100))))
        else:
            requests.append((service, (random.choice(countries),)))
    return requests
