"""Whose tests can be run: where each project keeps them, and how it starts them itself."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from .recorder import write_line
from .sources import unpacked

SETTINGS = "tests.django_suite.settings"
# Left out of Django's directories: those that hold no tests, or that its runtests.py leaves out.
NO_TESTS = {"data", "import_error_package", "test_runner_apps", "requirements", "templates"}


class Suite(NamedTuple):
    """The tests of one project."""

    project: str
    directory: str
    labels: list[str]
    start: Callable[[list[str]], None]

    @property
    def version(self) -> str:
        """The installed version, whose tests are run."""
        return version(self.project)

    def tests(self) -> Path:
        """Return the directory to start the tests in, downloaded when first asked for."""
        return unpacked(self.project, self.version) / self.directory


def _runtests(labels: list[str]) -> None:
    sys.argv = ["runtests.py", "--parallel=1", "--noinput", f"--settings={SETTINGS}", *labels]
    runpy.run_path("runtests.py", run_name="__main__")


def _runtests_of_a_package(labels: list[str]) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django_suite.package_settings"
    sys.argv = ["runtests.py", "--parallel=1", "--noinput", *labels]
    runpy.run_path("runtests.py", run_name="__main__")


def _pytest(labels: list[str]) -> None:
    import pytest

    # Read by the tests' conftest to choose PostgreSQL; the plugin says which one.
    os.environ["DATABASE_URL"] = "postgres://localhost/replaced"
    code = pytest.main(["-p", "tests.django_suite.plugin", "-p", "no:faulthandler", "-q", *labels])
    write_line(ended=True)
    sys.exit(code)


# What is run where no label is given: what exercises the database most, and what is async.
_LABELS = """
    queries aggregation annotations expressions lookup many_to_many many_to_one one_to_one prefetch_related
    select_related select_for_update transactions transaction_hooks backends get_or_create bulk_create update delete
    generic_relations multiple_database raw_query model_fields postgres_tests composite_pk test_utils
    async signals asgi sessions_tests
"""
DJANGO = Suite("django", "tests", _LABELS.split(), _runtests)
SUITES = {
    suite.project: suite
    for suite in (
        DJANGO,
        Suite("djangorestframework", "", ["tests"], _pytest),
        Suite("django-filter", "", ["tests"], _runtests_of_a_package),
    )
}


def all_labels(tests: Path, spatial: bool) -> list[str]:
    """Return the labels of all of Django's tests; those of GeoDjango where the server is `spatial`."""
    labels = sorted(path.parent.name for path in tests.glob("*/__init__.py") if path.parent.name not in NO_TESTS)
    return [label for label in labels if spatial or label != "gis_tests"]
