"""ENGINE = "greenorm.backends.postgresql": Django's PostgreSQL backend, able to wait through the bridge."""

from __future__ import annotations

from django.db.backends.postgresql import base

from ..mixin import AwaitableMixin


class DatabaseWrapper(AwaitableMixin, base.DatabaseWrapper):
    """Django's PostgreSQL wrapper; inside `greenorm.run` its connections are awaited."""
