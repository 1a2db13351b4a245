"""The same tables for Tortoise."""

from __future__ import annotations

from typing import ClassVar

from tortoise import fields
from tortoise.models import Model


class Item(Model):
    id = fields.BigIntField(primary_key=True)
    title = fields.CharField(max_length=100)
    number = fields.IntField()
    ratio = fields.FloatField()
    price = fields.DecimalField(max_digits=10, decimal_places=2)
    active = fields.BooleanField()
    created = fields.DatetimeField()
    day = fields.DateField()
    note = fields.TextField()
    size = fields.BigIntField()

    class Meta:
        table = "bench_item"


class Author(Model):
    id = fields.BigIntField(primary_key=True)
    name = fields.CharField(max_length=100)
    books: ClassVar[fields.ReverseRelation[Book]]

    class Meta:
        table = "bench_author"


class Book(Model):
    id = fields.BigIntField(primary_key=True)
    author: fields.ForeignKeyRelation[Author] = fields.ForeignKeyField("bench.Author", related_name="books")
    title = fields.CharField(max_length=100)

    class Meta:
        table = "bench_book"


class Counter(Model):
    id = fields.BigIntField(primary_key=True)
    value = fields.IntField()

    class Meta:
        table = "bench_counter"


class Entry(Model):
    id = fields.BigIntField(primary_key=True)
    counter: fields.ForeignKeyRelation[Counter] = fields.ForeignKeyField("bench.Counter")
    note = fields.CharField(max_length=100)

    class Meta:
        table = "bench_entry"
