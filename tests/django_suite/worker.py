"""The process that runs a project's tests: `python -m tests.django_suite.worker PROJECT WAY LABEL...`.

Started in the directory of these tests, so that their modules are found. WAY is "stock", "hook" or "run".
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys

import django.core.asgi
import django.core.handlers.asgi

import greenorm
from greenorm.integrations import asgi, async_methods
from tests.django_suite import plugin  # noqa: F401 - while `tests` is this project's
from tests.django_suite.recorder import count_statements, watch
from tests.django_suite.suites import SUITES


def main(project: str, way: str, *labels: str) -> None:
    """Run the tests of `labels` in one of the three ways; ends with SystemExit, as the project's own command does."""
    count_statements()
    watch()
    # From here on `tests` is the package of that name in the directory of the project's tests, where it has one.
    del sys.modules["tests"]
    sys.path.insert(0, os.getcwd())
    run_tests = functools.partial(SUITES[project].start, list(labels))
    if way != "stock":
        async_methods.install()
    if way == "asgi":
        django.core.asgi.get_asgi_application = asgi.get_asgi_application
        django.core.handlers.asgi.ASGIHandler = asgi.Handler
    if way == "run":
        asyncio.run(greenorm.run(run_tests))
    else:
        run_tests()


if __name__ == "__main__":
    main(*sys.argv[1:])
