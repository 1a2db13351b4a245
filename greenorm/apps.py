"""The Django app `"greenorm"`: in INSTALLED_APPS, it lets Django's own async methods be runs."""

from __future__ import annotations

from django.apps import AppConfig


class GreenormConfig(AppConfig):
    """Installs what the settings ask for when Django is set up."""

    name = "greenorm"

    def ready(self) -> None:
        """Check GREENORM, and install the hooks that it asks for. Raises ImproperlyConfigured."""
        from . import checks, conf
        from .integrations import async_methods, awaitable_querysets, transaction_atomic

        conf.check()
        checks.register()
        async_methods.install()
        if conf.get("ASYNC_TRANSACTION_ATOMIC"):
            transaction_atomic.install()
        if conf.get("AWAITABLE_QUERYSETS"):
            awaitable_querysets.install()
