"""The example project's own tests, by Django's runner and by pytest, with and without the app, in parallel too.

They are what shows that tests are rolled back with all async code below them: see tests/example.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connections
from psycopg.conninfo import make_conninfo

pytestmark = [pytest.mark.no_database, pytest.mark.one_loop]

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "tests" / "example"
PYTEST = [
    *("-m", "pytest", "-q", "-c", str(EXAMPLE / "pytest.ini"), "--rootdir", str(EXAMPLE), str(EXAMPLE)),
    *("-p", "no:cacheprovider"),
]
DJANGO = [str(EXAMPLE / "manage.py"), "test", "tests.example.ledger", "--noinput"]


@pytest.fixture
def run_tests(request: pytest.FixtureRequest) -> Callable[..., str]:
    def run_tests(*arguments: str, with_app: bool) -> str:
        params = connections["default"].get_connection_params()
        params = {name: params[name] for name in ("user", "password", "host", "port") if name in params}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "tests.example.settings",
            "EXAMPLE_DSN": make_conninfo(dbname="postgres", **params),
            "EXAMPLE_NAME": f"example_{os.getpid()}",
            "EXAMPLE_WITH_APP": "yes" if with_app else "",
        }
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        output = done.stdout + done.stderr
        assert done.returncode == 0, output
        return output

    return run_tests


@pytest.mark.parametrize("parallel", [(), ("-n", "2")], ids=["one process", "two processes"])
def test_pytest_rolls_back_all_async_code(run_tests: Callable[..., str], parallel: tuple[str, ...]) -> None:
    # Each kind once: with the app in one process, without it in two.
    output = run_tests(*PYTEST, *parallel, with_app=not parallel)
    assert re.search(r"^\d\d+ passed in", output, re.M), output


@pytest.mark.parametrize("parallel", [(), ("--parallel", "2")], ids=["one process", "two processes"])
def test_djangos_runner_rolls_back_all_async_code(run_tests: Callable[..., str], parallel: tuple[str, ...]) -> None:
    output = run_tests(*DJANGO, *parallel, with_app=bool(parallel))
    assert re.search(r"^Ran \d\d+ tests in .*\n\nOK$", output, re.M), output
