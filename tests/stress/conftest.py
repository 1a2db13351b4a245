"""The seed of what is drawn by lot, and a proxy before the server of the default alias."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import psycopg
import pytest
from django.db import connections

from .proxy import Proxy

SEED = int(os.environ.get("GREENORM_STRESS_SEED") or secrets.randbelow(10**9))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"stress seed {SEED}; to have it again: GREENORM_STRESS_SEED={SEED}")


@pytest.fixture
def seed() -> int:
    return SEED


@pytest.fixture(autouse=True)
def clean_wallets(request: pytest.FixtureRequest, cleaners: list[psycopg.Connection]) -> Iterator[None]:
    yield
    if not request.node.get_closest_marker("no_database"):
        cleaners[0].execute("TRUNCATE stress_wallet, stress_posting RESTART IDENTITY")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that the default alias connects through. Three connections at most, and 5 s to get one."""
    direct = connections.settings["default"]
    params = connections["default"].get_connection_params()
    with Proxy(params["host"], params.get("port") or 5432) as proxy:
        pool = {"min_size": 0, "max_size": 3, "timeout": 5}
        through = {"HOST": "127.0.0.1", "PORT": str(proxy.port), "OPTIONS": {**direct["OPTIONS"], "pool": pool}}
        monkeypatch.setitem(connections.settings, "default", {**direct, **through})
        yield proxy
