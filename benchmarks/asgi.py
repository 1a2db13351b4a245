"""How many requests does a web server answer on one core, by a view with one query, and how soon?

The server, its database and the clients are processes of their own, the server pinned to a core and the clients to
another where that can be done. The seven middleware of `startproject`, 50 clients that keep their connections, a sync
view near the database and 2 ms away from it, and an async one, with one `aget()`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.harness import sites
from benchmarks.harness.figures import Row, figure
from benchmarks.harness.rounds import CONNECTIONS, Bench
from benchmarks.harness.workers import Died, Worker

CLIENTS = 50
# What is asked for, and how many milliseconds away the database is.
CASES, QUICK_CASES = (("item", 0), ("item", 2), ("aitem", 0)), (("item", 2),)
VIEWS = {"item": "a sync view", "aitem": "an async view"}
DURATION, QUICK_DURATION = 3.0, 0.5
WARM_UP = 0.5
MOST_ROUNDS = 7

STOCK = "django.db.backends.postgresql"
_UVICORN = ("uvicorn", "--factory", "--uds", "{socket}", "--no-access-log", "--log-level", "warning")
_SERVED = "benchmarks.project.served"
_POOL = {"pool": {"min_size": 0, "max_size": CONNECTIONS}}

SITES = [
    sites.Site(
        "stock ASGI",
        (*_UVICORN, "--loop", "asyncio", f"{_SERVED}:stock_asgi"),
        STOCK,
        ("uvicorn",),
    ),
    sites.Site(
        "stock ASGI, Django's pool",
        (*_UVICORN, "--loop", "asyncio", f"{_SERVED}:stock_asgi"),
        STOCK,
        ("uvicorn",),
        options=_POOL,
    ),
    sites.Site(
        "greenorm",
        (*_UVICORN, "--loop", "asyncio", f"{_SERVED}:greenorm_asgi"),
        "greenorm.backends.postgresql",
        ("uvicorn", "greenorm.integrations.asgi"),
        options=_POOL,
    ),
    sites.Site(
        "greenorm (uvloop)",
        (*_UVICORN, "--loop", "uvloop", f"{_SERVED}:greenorm_asgi"),
        "greenorm.backends.postgresql",
        ("uvicorn", "uvloop", "greenorm.integrations.asgi"),
        options=_POOL,
    ),
    sites.Site(
        f"WSGI, gunicorn gthread, {CONNECTIONS} threads",
        (
            "gunicorn",
            "--bind",
            "unix:{socket}",
            "--worker-class",
            "gthread",
            "--threads",
            str(CONNECTIONS),
            "--log-level",
            "warning",
            f"{_SERVED}:wsgi()",
        ),
        STOCK,
        ("gunicorn",),
        database={"CONN_MAX_AGE": None},
    ),
]


def measure(bench: Bench) -> Iterator[list[Row]]:
    """Yield, for each distance, a row for each server."""
    present = []
    for site in SITES:
        if bench.only and site.name not in bench.only:
            continue
        if reason := site.missing():
            bench.missing[site.name] = reason
        else:
            present.append(site)
    with ExitStack() as stack:
        load = Worker("benchmarks.harness.load")
        stack.callback(load.end)
        pinned = sites.pin(load.pid, 1)
        for page, delay in QUICK_CASES if bench.quick else CASES:
            yield _compare(bench, present, load, page, delay, pinned)


def _compare(bench: Bench, present: list[sites.Site], load: Worker, page: str, delay: int, pinned: bool) -> list[Row]:
    rounds = min(bench.rounds, MOST_ROUNDS)
    situation = f"{VIEWS[page]}, +{delay} ms"
    seen: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as running:
        served = _start(bench, present, delay, situation, running)
        for number in range(rounds):
            names = list(served) if number % 2 == 0 else list(served)[::-1]
            for index, name in enumerate(names):
                bench.steps.advance(number * len(names) + index, rounds * len(names), f"{situation}: {name}")
                order = {"page": page, "seed": number}
                for figure_name, value in _call(bench, load, served[name], f"{name}, {situation}", order).items():
                    seen[name][figure_name].append(value)
    return [
        {
            "situation": situation,
            "delay_ms": delay,
            "contender": name,
            "clients": CLIENTS,
            "pinned": pinned,
            **{figure_name: figure(values) for figure_name, values in figures.items()},
        }
        for name, figures in seen.items()
    ]


def _start(
    bench: Bench, present: list[sites.Site], delay: int, situation: str, running: ExitStack
) -> dict[str, sites.Served]:
    dsn = bench.place.target(CONNECTIONS, delay).dsn
    served = {}
    for site in present:
        try:
            served[site.name] = running.enter_context(sites.serving(site, dsn))
        except RuntimeError as exc:
            bench.failed[f"{site.name}, {situation}"] = str(exc)
    return served


def _call(bench: Bench, load: Worker, served: sites.Served, place: str, asked: dict[str, Any]) -> dict[str, float]:
    if place in bench.failed:
        return {}
    order = {**asked, "socket": served.socket, "near": bench.place.schema.dsn, "clients": CLIENTS}
    duration = QUICK_DURATION if bench.quick else DURATION
    try:
        answer = load.ask({**order, "duration": WARM_UP})
        before = served.cpu()
        if "error" not in answer:
            answer = load.ask({**order, "duration": duration})
    except Died as exc:
        answer = {"error": str(exc)}
    if "error" in answer:
        bench.failed[place] = answer["error"]
        return {}
    return {
        "per_second": answer["done"] / answer["seconds"],
        "p50_ms": 1e3 * answer["p50"],
        "p99_ms": 1e3 * answer["p99"],
        "cpu_us": 1e6 * (served.cpu() - before) / answer["done"],
        "memory_mib": served.memory() / 2**20,
        "threads": served.threads(),
    }
