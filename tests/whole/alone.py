"""The site on a server and a database of its own, for commands that run outside of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings

from greenorm.demo.server import database_settings, embedded_server
from tests.whole import serving as site


@contextmanager
def serving(name: str) -> Iterator[site.Server]:
    """Give the site, on an embedded PostgreSQL, served by the server of that name, for the block."""
    with embedded_server() as dsn:
        settings.configure(DATABASES={"default": database_settings(dsn)})
        with site.site_database() as database, site.serving(name, database) as server:
            yield server
