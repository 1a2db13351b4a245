"""The units of work: what is asked for, and what must come out of it, whoever does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from random import Random
from typing import Any

import psycopg

ITEMS = 10_000
AUTHORS = 1_000
BOOKS_OF_EACH = 10
COUNTERS = 10_000
FIELDS = ("id", "title", "number", "ratio", "price", "active", "created", "day", "note", "size")
# Queries of one run, where a run has many.
INSIDE = 25


class Reference:
    """The rows as the server has them, read without any of the contenders."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def _all(self, query: str, *params: object) -> list[Any]:
        with psycopg.connect(self._dsn, application_name="greenorm_reference") as conn:
            return conn.execute(query.encode(), params).fetchall()

    @cached_property
    def items(self) -> dict[int, Any]:
        """The rows of the items, by their keys."""
        return {row[0]: plain(row) for row in self._all(f"SELECT {', '.join(FIELDS)} FROM bench_item")}

    @cached_property
    def authors(self) -> dict[int, tuple[str, list[str]]]:
        """Names with the titles of the books, by the authors' keys."""
        rows = self._all("SELECT a.id, a.name, b.title FROM bench_author a JOIN bench_book b ON b.author_id = a.id")
        found: dict[int, tuple[str, list[str]]] = {}
        for pk, name, title in sorted(rows):
            found.setdefault(pk, (name, []))[1].append(title)
        return found

    def sum_of(self, rows: int) -> tuple[int, int]:
        """Return how many of the first measurements there are, and their sum."""
        found = self._all("SELECT count(*), sum(number) FROM bench_measurement WHERE id <= %s", rows)
        return tuple(found[0])

    def written(self) -> tuple[int, int]:
        """Return how many entries there are, and what the counters say."""
        found = self._all("SELECT (SELECT count(*) FROM bench_entry), (SELECT sum(value) FROM bench_counter)")
        return tuple(found[0])


def plain(value: Any) -> Any:
    """Return a row, whatever class it has, as the plain values of its columns."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, list):
        return [plain(each) for each in value]
    if hasattr(value, "title") and not isinstance(value, str):
        return tuple(plain(getattr(value, name)) for name in FIELDS)
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return tuple(plain(each) for each in value)


@dataclass(frozen=True)
class Work:
    """A unit of work."""

    name: str
    title: str
    ask: Callable[[Random], Any]
    """Makes a request."""
    expected: Callable[[Reference, Any], Any]
    """What the request must be answered with."""
    queries: int = 1
    """How many units a request stands for."""

    def requests(self, count: int, seed: int) -> Sequence[Any]:
        """Return requests: the same for the same seed."""
        random = Random(seed)
        return [self.ask(random) for _ in range(count)]


def _work(name: str, title: str, *args: Any, **kwargs: Any) -> tuple[str, Work]:
    return name, Work(name, title, *args, **kwargs)


def _items(first: int, count: int, reference: Reference) -> list[Any]:
    return [reference.items[pk] for pk in range(first, first + count)]


WORKS: dict[str, Work] = dict(
    [
        _work("noop", "nothing: `run(lambda: None)`", lambda random: None, lambda reference, request: None),
        _work(
            "get_many",
            f"`get()` inside a run ({INSIDE} in each)",
            lambda random: [random.randint(1, ITEMS) for _ in range(INSIDE)],
            lambda reference, pks: [reference.items[pk] for pk in pks],
            queries=INSIDE,
        ),
        _work(
            "get",
            "a run for each `get()`",
            lambda random: random.randint(1, ITEMS),
            lambda reference, pk: reference.items[pk],
        ),
        _work(
            "list_100",
            "100 rows",
            lambda random: random.randint(1, ITEMS - 100),
            lambda reference, first: _items(first, 100, reference),
        ),
        _work(
            "list_1000",
            "1,000 rows",
            lambda random: random.randint(1, ITEMS - 1000),
            lambda reference, first: _items(first, 1000, reference),
        ),
        _work(
            "prefetch",
            "prefetch of 10 x 10",
            lambda random: random.randint(1, AUTHORS - 10),
            lambda reference, first: plain([reference.authors[pk] for pk in range(first, first + 10)]),
        ),
        _work(
            "write",
            "`atomic` with an insert and an update",
            lambda random: random.randint(1, COUNTERS),
            lambda reference, request: None,
        ),
        _work("stream", "rows streamed", lambda random: 0, lambda reference, rows: reference.sum_of(rows)),
    ]
)
