from __future__ import annotations

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.contrib.postgres.fields import ArrayField, DateTimeRangeField
from django.db import models


class Owner(models.Model):
    name = models.CharField(max_length=100, unique=True)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    owner = models.ForeignKey(Owner, models.CASCADE, related_name="accounts")
    balance = models.IntegerField(default=0)
    opened = models.DateTimeField(auto_now_add=True)
    tags = models.ManyToManyField(Tag, related_name="accounts")
    notes = GenericRelation("shop.Note")

    class Meta:
        app_label = "shop"
        constraints = (models.CheckConstraint(condition=models.Q(balance__gte=0), name="not_overdrawn"),)

    def __str__(self) -> str:
        return f"{self.owner_id}: {self.balance}"


class Note(models.Model):
    text = models.CharField(max_length=100)
    # No constraint: tables of apps without migrations are made before those that have some.
    content_type = models.ForeignKey(ContentType, models.CASCADE, db_constraint=False)
    object_id = models.PositiveBigIntegerField()
    subject = GenericForeignKey()

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return self.text


class Fact(models.Model):
    """A row of each type that psycopg or Django adapts by itself."""

    data = models.JSONField(default=dict)
    numbers = ArrayField(models.IntegerField(), default=list)
    period = DateTimeRangeField(null=True)
    blob = models.BinaryField(default=b"")
    uuid = models.UUIDField(null=True)
    price = models.DecimalField(max_digits=10, decimal_places=2, null=True)
    at = models.DateTimeField(null=True)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return str(self.pk)
