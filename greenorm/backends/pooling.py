"""The pool that the settings of an alias describe."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import Capabilities

from .. import bridge
from ..cursors import bridged
from ..driver import AsyncConnection, Connection
from ..pool import Pool
from ..pool_options import IGNORED_OPTIONS, OPTION_NAMES, PoolOptions

logger = logging.getLogger("greenorm")

# The pool of an alias whose OPTIONS name none: Django would connect per request, which no async program wants.
DEFAULT_POOL = {"min_size": 0, "max_size": 20}


def make_pool(wrapper: Any, **overrides: Any) -> Pool:
    """Return the pool that a wrapper's settings describe. Raises ImproperlyConfigured. Waits for nothing."""
    # Not the wrapper itself, which is its scope's.
    kind: Any = wrapper.__class__
    alias, settings_dict = wrapper.alias, wrapper.settings_dict
    params = wrapper.get_connection_params()
    factory = params.pop("cursor_factory")
    bridged(factory)
    params["autocommit"] = True
    _say_what_takes_a_thread(alias, params)

    async def connect() -> AsyncConnection:
        with _names(alias):
            session = await AsyncConnection.connect(**params)
        session.face_cursor_factory = factory
        return session

    def configure(conn: Connection) -> None:
        # Django composes SET ROLE with a cursor of the wrapper, so this takes one that has the connection already.
        settled = kind(settings_dict, alias)
        settled.connection, settled._scope = conn, bridge.carried()
        with _names(alias):
            settled._configure_connection(conn)

    return Pool(connect, replace(pool_options(alias, settings_dict), **overrides), configure)


@contextmanager
def _names(alias: str) -> Iterator[None]:
    """Add to an error of connecting which alias it was; what libpq says names neither that nor a setting."""
    try:
        yield
    except psycopg.Error as exc:
        exc.add_note(
            f"It was a connection of the database alias {alias!r} that could not be made: look at HOST, PORT, NAME, "
            f"USER, PASSWORD and OPTIONS of DATABASES[{alias!r}]."
        )
        raise


def pool_options(alias: str, settings_dict: dict[str, Any]) -> PoolOptions:
    """Return the pool options of an alias: OPTIONS["pool"] where there is one, else the documented default."""
    options = settings_dict["OPTIONS"].get("pool")
    max_age = settings_dict["CONN_MAX_AGE"]
    if not options:
        options = {**DEFAULT_POOL, **({"max_lifetime": max_age or float("inf")} if max_age != 0 else {})}
    elif max_age != 0:
        raise ImproperlyConfigured("Pooling doesn't support persistent connections.")
    options = {} if options is True else dict(options)
    if unknown := set(options) - OPTION_NAMES - IGNORED_OPTIONS:
        raise ImproperlyConfigured(
            f"OPTIONS['pool'] of the database alias {alias!r} has {sorted(unknown)}, which greenorm does not know. "
            f"It knows {sorted(OPTION_NAMES)}, as in psycopg_pool."
        )
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name in OPTION_NAMES}
    chosen.setdefault("name", alias)
    if settings_dict["CONN_HEALTH_CHECKS"]:
        chosen.setdefault("check", check_connection)
    try:
        return PoolOptions(**chosen)
    except (TypeError, ValueError) as exc:
        raise ImproperlyConfigured(f"OPTIONS['pool'] of the database alias {alias!r}: {exc}.") from exc


def check_connection(conn: Connection) -> None:
    """Make an empty round trip to the server. Mirrors psycopg_pool.ConnectionPool.check_connection, 3.3."""
    conn.execute("")


def names_to_resolve(params: dict[str, Any]) -> Iterator[str]:
    """Return the hosts among connection parameters that take a thread, since they are names."""
    for host in str(params.get("host") or "").split(","):
        if host and not host.startswith(("/", "@")) and not params.get("hostaddr") and not _is_address(host):
            yield host


def _say_what_takes_a_thread(alias: str, params: dict[str, Any]) -> None:
    for host in names_to_resolve(params):
        logger.warning(
            "database alias %r: resolving the host name %r takes a thread of the event loop's executor each time "
            "a connection is made. An address as HOST, or `hostaddr` in OPTIONS beside it, takes none.",
            alias,
            host,
        )
    if not Capabilities().has_cancel_safe():
        logger.warning(
            "database alias %r: this libpq is older than 17, so that cancelling a statement takes a thread. "
            "Install psycopg[binary], or libpq 17.",
            alias,
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
