"""The whole suite with PgBouncer in transaction pooling between it and its server: `GREENORM_TEST_PGBOUNCER=1 pytest`.

What cannot work there is named in `behind_pgbouncer.toml`, with the reason. Such a test must fail: one that passes
has to leave the list.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from .pgbouncer import pgbouncer as pgbouncer

WANTED = bool(os.environ.get("GREENORM_TEST_PGBOUNCER"))
# What Django's documentation demands of an alias behind a pooler in transaction pooling.
SETTINGS = {"DISABLE_SERVER_SIDE_CURSORS": True}
LIST = Path(__file__).with_suffix(".toml")


def mark(items: list[pytest.Item]) -> None:
    """Expect each test in the list to fail, for the reason that stands there."""
    marks = {
        test: pytest.mark.xfail(reason=known["reason"], run=known.get("run", True), strict=True)
        for known in tomllib.loads(LIST.read_text())["known"]
        for test in known["tests"]
    }
    for item in items:
        if item.nodeid.startswith("tests/stress/"):
            item.add_marker(pytest.mark.skip("it starts servers of its own, or counts sessions, which PgBouncer keeps"))
        if (known := marks.get(item.nodeid.partition("[")[0].removeprefix("tests/"))) is not None:
            item.add_marker(known)
