from __future__ import annotations

from django.contrib.gis.db import models
from django.contrib.postgres.fields import HStoreField


class Place(models.Model):
    name = models.TextField(db_collation="C")
    point = models.PointField()
    tags = HStoreField(default=dict)

    class Meta:
        app_label = "places"

    def __str__(self) -> str:
        return self.name


class Router:
    """Keeps the app where its extensions are, and the others away from there."""

    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool:
        return (db == "places") == (app_label == "places")

    def db_for_read(self, model: type[models.Model], **hints: object) -> str | None:
        return "places" if model._meta.app_label == "places" else None

    db_for_write = db_for_read
