"""What `manage.py check` says of a project that has the app: what greenorm cannot work with, and what costs a thread.

Those that ask the server run with `manage.py check --database default`, as Django's own do.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from psycopg import Capabilities

from . import conf
from .backends.pooling import names_to_resolve, pool_options
from .integrations.routing import can_await, may_block, store_may_block

# As in pyproject.toml, for who has installed them otherwise.
OLDEST = {"psycopg": (3, 3, 9), "psycopg-pool": (3, 3, 2)}
_CACHE_MIDDLEWARE = (
    "django.middleware.cache.CacheMiddleware",
    "django.middleware.cache.UpdateCacheMiddleware",
    "django.middleware.cache.FetchFromCacheMiddleware",
)
_SESSION_MIDDLEWARE = "django.contrib.sessions.middleware.SessionMiddleware"


def installed(package: str) -> str:
    """Return the version of a package that is installed."""
    return version(package)


def has_cancel_safe() -> bool:
    """Return whether this libpq can cancel a statement without a thread."""
    return Capabilities().has_cancel_safe()


def check_versions(**_: Any) -> Iterator[checks.CheckMessage]:
    """E001, W001: what is installed is too old."""
    for package, oldest in OLDEST.items():
        found = installed(package)
        if tuple(map(int, re.findall(r"\d+", found)[:3])) < oldest:
            wanted = ".".join(map(str, oldest))
            yield checks.Error(
                f"{package} {found} is too old: cancellations are lost in it.",
                hint=f"Install {package} {wanted} or later.",
                id="greenorm.E001",
            )
    if not has_cancel_safe():
        yield checks.Warning(
            "libpq is older than 17, so that cancelling a statement takes a thread.",
            hint="Install psycopg[binary], or libpq 17.",
            id="greenorm.W001",
        )


def check_aliases(**_: Any) -> Iterator[checks.CheckMessage]:
    """W002, E002, W003: settings of an alias that cost a thread, contradict each other, or would block."""
    for alias, settings_dict in connections.settings.items():
        if not can_await(alias):
            if alias not in conf.blocking_aliases():
                yield checks.Warning(
                    f"The database alias {alias!r} would block the event loop, and is refused in a run.",
                    hint="For PostgreSQL set ENGINE to 'greenorm.backends.postgresql'. For a local SQLite file that "
                    f"may block for a moment: GREENORM = {{'BLOCKING_ALIASES': [{alias!r}]}}.",
                    id="greenorm.W003",
                )
            continue
        try:
            pool_options(alias, settings_dict)
        except ImproperlyConfigured as exc:
            yield checks.Error(
                f"The pool of the database alias {alias!r}: {exc}",
                hint="With OPTIONS['pool'] the age of a connection is its `max_lifetime`, in seconds, and CONN_MAX_AGE "
                "stays 0.",
                id="greenorm.E002",
            )
        params = {**settings_dict["OPTIONS"], **({"host": settings_dict["HOST"]} if settings_dict["HOST"] else {})}
        for host in names_to_resolve(params):
            yield checks.Warning(
                f"Resolving the host name {host!r} of the database alias {alias!r} takes a thread each time a "
                "connection is made.",
                hint="Give an address as HOST, or `hostaddr` in OPTIONS beside it.",
                id="greenorm.W002",
            )


def check_environment(**_: Any) -> Iterator[checks.CheckMessage]:
    """W004: Django's guard is off."""
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        yield checks.Warning(
            "DJANGO_ALLOW_ASYNC_UNSAFE is set: a forgotten `await` blocks the event loop, and says nothing.",
            hint="Unset it. Sync code in a run needs no permission.",
            id="greenorm.W004",
        )


def check_stores(**_: Any) -> Iterator[checks.CheckMessage]:
    """I001, I002: what takes a thread for each request under the ASGI handler."""
    if _SESSION_MIDDLEWARE in settings.MIDDLEWARE:
        store = import_module(settings.SESSION_ENGINE).SessionStore
        if store_may_block(store):
            yield checks.Info(
                f"Sessions in {settings.SESSION_ENGINE} may block, so that under the ASGI handler each request takes a "
                "thread for them.",
                hint="Sessions in the database ('django.contrib.sessions.backends.db') or in signed cookies take none.",
                id="greenorm.I001",
            )
    alias = getattr(settings, "CACHE_MIDDLEWARE_ALIAS", "default")
    if set(_CACHE_MIDDLEWARE) & set(settings.MIDDLEWARE) and may_block(caches[alias]):
        yield checks.Info(
            f"The cache {alias!r} of the cache middleware may block, so that under the ASGI handler each request takes "
            "a thread for it.",
            hint="A cache in the database, or in the memory of the process, takes none.",
            id="greenorm.I002",
        )


def check_sizes(databases: Sequence[str] | None = None, **_: Any) -> Iterator[checks.CheckMessage]:
    """W005: one event loop's pools alone are larger than their server. Asks the server."""
    by_server: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for alias in databases or ():
        if can_await(alias):
            settings_dict = connections.settings[alias]
            by_server[settings_dict["HOST"], settings_dict["PORT"]].append(alias)
    for aliases in by_server.values():
        wanted = sum(pool_options(alias, connections.settings[alias]).limit for alias in aliases)
        limit = _limit_of_server(aliases[0])
        if wanted > limit:
            yield checks.Warning(
                f"The pools of {', '.join(map(repr, aliases))} may open {wanted} connections for each process and "
                f"event loop, and the server allows {limit} in all.",
                hint="Lower `max_size` in OPTIONS['pool'], or raise max_connections: it must be above processes times "
                "event loops times max_size.",
                id="greenorm.W005",
            )


def _limit_of_server(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        return int(cursor.fetchone()[0])


def _listed(check: Any) -> Any:
    def listed(app_configs: Any = None, **options: Any) -> list[checks.CheckMessage]:
        found: Iterable[checks.CheckMessage] = check(**options)
        return list(found)

    listed.__name__ = check.__name__
    return listed


def register() -> None:
    """Let `manage.py check` call these. Once, when the app is ready."""
    for check in (check_versions, check_aliases, check_environment, check_stores):
        checks.register(_listed(check), "greenorm")
    checks.register(_listed(check_sizes), "greenorm", checks.Tags.database)
