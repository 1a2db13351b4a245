"""What `manage.py greenorm bench` measures: a function of the project's own, through `run` and `sync_to_async`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import psycopg
from django.db import DEFAULT_DB_ALIAS, connection, connections, transaction
from django.db.models import QuerySet

from ..backends.pooling import pool_options
from ..demo.contenders import GREENORM, ONE_THREAD, many_threads
from ..demo.measure import Row, Situation, compare


def writes(fn: Callable[[], Any]) -> bool:
    """Call `fn` once, in a transaction that is rolled back, and return whether it has written to the database."""
    with transaction.atomic():
        _call(fn)
        with connection.cursor() as cursor:
            # PostgreSQL gives a number only to a transaction that changes something.
            cursor.execute("SELECT txid_current_if_assigned() IS NOT NULL")
            written: bool = cursor.fetchone()[0]
        transaction.set_rollback(True)
    return written


def _call(fn: Callable[[], Any]) -> None:
    result: Any = fn()
    if isinstance(cast("object", result), QuerySet):
        len(result)  # a queryset that is not read costs nothing


def measure(
    fn: Callable[[], Any],
    name: str,
    concurrency: Sequence[int],
    requests: int,
    rounds: int,
    report: Callable[[int, int, str], None],
) -> list[Row]:
    """Return the figures of all contenders at each number of clients. `report` is told of the progress.

    Each contender calls `fn` `requests` times, or as often as there are clients, in each round.
    """
    situations = [
        Situation(
            f"{name}, {clients} at once",
            clients,
            [(_call, (fn,))] * max(requests, clients),
            [(_call, (fn,))] * clients,
        )
        for clients in concurrency
    ]
    # As many threads as the pool has connections: more of them would wait for each other.
    threads = pool_options(DEFAULT_DB_ALIAS, connections.settings[DEFAULT_DB_ALIAS]).limit
    contenders = [GREENORM, ONE_THREAD, many_threads(threads)]
    before = _sessions()
    return asyncio.run(compare(situations, contenders, rounds, lambda: max(0, _sessions() - before), report))


def _sessions() -> int:
    """Return how many sessions this database's user has on the server, without the one that asks."""
    params = connection.get_connection_params()
    conninfo = {name: params[name] for name in ("dbname", "user", "password", "host", "port") if name in params}
    with psycopg.connect(**conninfo, application_name="greenorm bench counts") as conn:
        row = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user "
            "AND pid <> pg_backend_pid()"
        ).fetchone()
    return int(row[0]) if row else 0


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw requests per second over the number of clients, a line for each contender, with the range of its rounds.

    Raises ImportError where matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    for contender in dict.fromkeys(row.contender for row in rows):
        own = [row for row in rows if row.contender == contender]
        values = [row.requests_per_second for row in own]
        axes.errorbar(
            [row.clients for row in own],
            [value.value for value in values],
            yerr=[[v.value - v.lowest for v in values], [v.highest - v.value for v in values]],
            marker="o",
            capsize=3,
            label=contender,
        )
    axes.set(xscale="log", xlabel="clients at once", ylabel="calls per second", ylim=(0, None))
    axes.set_xticks([row.clients for row in rows], [str(row.clients) for row in rows])
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=144)
