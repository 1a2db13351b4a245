"""Every sample of README runs, in order, against the models of the tests."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

import greenorm
from greenorm import conf
from greenorm.pool_options import OPTION_NAMES
from tests.shop import models

README = (Path(__file__).parent.parent / "README.md").read_text()
SAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def fill() -> None:
    owner = models.Owner.objects.create(name="Ada")
    models.Account.objects.bulk_create(models.Account(owner=owner, balance=100) for _ in range(3))


@pytest.mark.usefixtures("async_methods", "blocking_hooks")
async def test_every_python_sample_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    await greenorm.run(fill)
    monkeypatch.setitem(sys.modules, "bank.models", models)
    namespace: dict[str, Any] = {}
    for sample in SAMPLES:
        code = compile(sample, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            await result
    assert len(SAMPLES) >= 10
    rows = await namespace["view"](None)
    assert rows == [("Ada", 100)] * 3


@pytest.mark.no_database
def test_the_settings_sample_names_the_engine_of_the_tests() -> None:
    namespace: dict[str, Any] = {}
    exec(SAMPLES[0], namespace)
    assert namespace["DATABASES"]["default"]["ENGINE"] == settings.DATABASES["default"]["ENGINE"]


@pytest.mark.no_database
def test_every_public_name_is_in_readme() -> None:
    for name in set(greenorm.__all__) - {"PoolStats"}:
        assert name in README, name


@pytest.mark.no_database
def test_every_pool_option_is_in_readme() -> None:
    for name in OPTION_NAMES - {"name"}:
        assert f"| `{name}` |" in README, name


@pytest.mark.no_database
def test_every_setting_is_in_readme() -> None:
    for name in conf.DEFAULTS:
        assert f'"{name}"' in README, name
