"""The work in Django's synchronous ORM, as anyone would write it. It knows nothing of asyncio, threads or greenlets."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import transaction
from django.db.models import F

from .models import Author, Counter, Entry, Item, Measurement

# Rows of a block of a server-side cursor.
CHUNK = 2_000


def noop(request: object) -> None:
    """Do nothing at all."""


def get(pk: int) -> Item:
    """Read one row by its key."""
    return Item.objects.get(pk=pk)


def get_many(pks: Sequence[int]) -> list[Item]:
    """Read rows by their keys, one query for each."""
    return [Item.objects.get(pk=pk) for pk in pks]


def list_100(first: int) -> list[Item]:
    """Read 100 rows by one query."""
    return list(Item.objects.filter(pk__gte=first, pk__lt=first + 100).order_by("pk"))


def list_1000(first: int) -> list[Item]:
    """Read 1,000 rows by one query."""
    return list(Item.objects.filter(pk__gte=first, pk__lt=first + 1000).order_by("pk"))


def prefetch(first: int) -> list[tuple[str, list[str]]]:
    """Read 10 authors, and the 10 books of each, by two queries."""
    authors = Author.objects.filter(pk__gte=first, pk__lt=first + 10).order_by("pk").prefetch_related("books")
    return [(author.name, sorted(book.title for book in author.books.all())) for author in authors]


@transaction.atomic
def write(pk: int) -> None:
    """Insert a row and update another, in one transaction."""
    Entry.objects.create(counter_id=pk, note="written")
    Counter.objects.filter(pk=pk).update(value=F("value") + 1)


def stream(rows: int) -> tuple[int, int]:
    """Read rows through a server-side cursor, and return how many there were, and their sum."""
    count = total = 0
    for measurement in Measurement.objects.filter(pk__lte=rows).iterator(chunk_size=CHUNK):
        count += 1
        total += measurement.number
    return count, total
