"""The process that runs Django's runtests.py: `python -m tests.django_suite.worker WAY LABEL...`.

Started in the directory of Django's tests, so that their apps are found. WAY is "stock", "hook" or "run".
"""

from __future__ import annotations

import asyncio
import functools
import runpy
import sys

import greenorm
from greenorm.integrations import async_methods
from tests.django_suite.recorder import count_statements, watch


def main(way: str, *labels: str) -> None:
    """Run the tests of `labels` in one of the three ways; ends with SystemExit, as runtests.py does."""
    count_statements()
    watch()
    settings = "--settings=tests.django_suite.settings"
    sys.argv = ["runtests.py", "--parallel=1", "--noinput", settings, *labels]
    run_tests = functools.partial(runpy.run_path, "runtests.py", run_name="__main__")
    if way != "stock":
        async_methods.install()
    if way == "run":
        asyncio.run(greenorm.run(run_tests))
    else:
        run_tests()


if __name__ == "__main__":
    main(*sys.argv[1:])
