"""What `manage.py greenorm doctor` finds out: what is installed, what each alias is and whether it answers."""

from __future__ import annotations

import asyncio
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from psycopg import pq

import greenorm

from ..backends.pooling import pool_options
from ..integrations.routing import can_await
from .scan import uses_below

# Settings of the server, or of the role, that decide how it goes with many clients.
SERVER_SETTINGS = (
    "max_connections", "statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout", "TimeZone",
)  # fmt: skip
ROUND_TRIPS = 20


def examine(directory: Path | None = None) -> dict[str, Any]:
    """Return the findings, for programs. Connects to every alias that can wait; imports nothing of the project."""
    directory = directory or Path(getattr(settings, "BASE_DIR", "."))
    return {
        "versions": _versions(),
        "aliases": [_examine_alias(alias) for alias in connections.settings],
        "checks": [
            {"id": message.id, "message": message.msg, "hint": message.hint}
            for message in checks.run_checks(tags=["greenorm"], databases=None)
        ],
        "directory": str(directory),
        "could_become_runs": [asdict(use) for use in uses_below(directory)],
    }


def _versions() -> dict[str, str]:
    packages = ("greenorm", "django", "psycopg", "psycopg-pool", "greenlet", "asgiref")
    libpq = pq.version()
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "psycopg implementation": pq.__impl__,
        "libpq": f"{libpq // 10000}.{libpq % 10000}",
    }


def _examine_alias(alias: str) -> dict[str, Any]:
    settings_dict = connections.settings[alias]
    found: dict[str, Any] = {
        "alias": alias,
        "engine": settings_dict["ENGINE"],
        "face": "waits in runs" if can_await(alias) else "would block, and is refused in runs",
    }
    if not can_await(alias):
        return found
    try:
        options = pool_options(alias, settings_dict)
        found["pool"] = {
            name: getattr(options, name) for name in ("min_size", "max_size", "timeout", "max_lifetime", "max_idle")
        }
        found.update(asyncio.run(greenorm.run(_ask, alias)))
    except (DatabaseError, ImproperlyConfigured) as exc:
        found["error"] = str(exc).strip()
    return found


def _ask(alias: str) -> dict[str, Any]:
    wrapper = connections[alias]
    with wrapper.cursor() as cursor:
        cursor.execute(
            "SELECT name, coalesce(setting || coalesce(unit, ''), '') FROM pg_settings WHERE name = ANY(%s)",
            [list(SERVER_SETTINGS)],
        )
        server_settings = dict(cursor.fetchall())
        cursor.execute("SELECT pg_backend_pid(), current_setting('server_version')")
        pid, server_version = cursor.fetchone()
        times: list[float] = []
        for _ in range(ROUND_TRIPS):
            since = perf_counter()
            cursor.execute("SELECT 1")
            times.append(1000 * (perf_counter() - since))
    conn: Any = wrapper.connection
    return {
        "server_version": server_version,
        "server_settings": server_settings,
        "round_trip_ms": round(median(times), 3),
        # PgBouncer hands its clients numbers of its own.
        "pgbouncer": conn.info.backend_pid != pid,
    }
