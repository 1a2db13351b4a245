"""ENGINE = "greenorm.backends.postgis": Django's PostGIS backend, able to wait through the bridge."""

from __future__ import annotations

from django.contrib.gis.db.backends.postgis import base

from ..mixin import AwaitableMixin


class DatabaseWrapper(AwaitableMixin, base.DatabaseWrapper):
    """Django's PostGIS wrapper; inside `greenorm.run` its connections are awaited."""
