"""Ten columns of the usual types, authors with their books, and what a transaction writes.

SQLAlchemy and Tortoise map the same tables, in `benchmarks.contenders`.
"""

from __future__ import annotations

from django.db import models


class Item(models.Model):
    title = models.CharField(max_length=100)
    number = models.IntegerField()
    ratio = models.FloatField()
    price = models.DecimalField(max_digits=10, decimal_places=2)
    active = models.BooleanField()
    created = models.DateTimeField()
    day = models.DateField()
    note = models.TextField()
    size = models.BigIntegerField()

    def __str__(self) -> str:
        return self.title


class Author(models.Model):
    name = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Book(models.Model):
    author = models.ForeignKey(Author, models.PROTECT, related_name="books")
    title = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.title


class Counter(models.Model):
    value = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.pk}: {self.value}"


class Entry(models.Model):
    counter = models.ForeignKey(Counter, models.PROTECT)
    note = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.note


class Measurement(models.Model):
    """A narrow row, of which there are a million."""

    number = models.IntegerField()
    note = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.note
