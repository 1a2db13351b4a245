"""The Django app `"greenorm"`, in a project of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from django.conf import settings

pytestmark = pytest.mark.no_database

PROJECT = """
import asyncio, json, sys, threading
import django
from django.conf import settings

settings.configure(**json.loads(sys.argv[1]))
django.setup()
started = []
start = threading.Thread.start
threading.Thread.start = lambda thread: (started.append(thread.name), start(thread))

from django.contrib.contenttypes.models import ContentType
from django.db import transaction

async def main():
    count = await ContentType.objects.acount()
    assert len([row async for row in ContentType.objects.all()]) == count > 0
    if settings.GREENORM.get("ASYNC_TRANSACTION_ATOMIC"):
        async with transaction.atomic():
            assert await ContentType.objects.acount() == count
    if settings.GREENORM.get("AWAITABLE_QUERYSETS"):
        assert len(await ContentType.objects.all()) == count
    print(json.dumps(started))

asyncio.run(main())
"""


def project(apps: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    database = {**settings.DATABASES["default"]}
    database = {name: database[name] for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")}
    configured = {"DATABASES": {"default": database}, "INSTALLED_APPS": apps, "GREENORM": options}
    arguments = [sys.executable, "-W", "error", "-c", PROJECT, json.dumps(configured)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


def started(apps: list[str], **options: Any) -> list[str]:
    done = project(apps, **options)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_in_installed_apps_it_is_all_that_the_async_methods_need() -> None:
    assert started(["django.contrib.contenttypes", "greenorm"]) == []


def test_without_it_they_use_a_thread() -> None:
    assert started(["django.contrib.contenttypes"])[0].startswith("ThreadPoolExecutor")


def test_its_settings_switch_on_what_is_off_by_default() -> None:
    apps = ["greenorm", "django.contrib.contenttypes"]
    assert started(apps, ASYNC_TRANSACTION_ATOMIC=True, AWAITABLE_QUERYSETS=True) == []


def test_a_wrong_setting_is_refused_when_django_is_set_up() -> None:
    done = project(["django.contrib.contenttypes", "greenorm"], RUN_ALL=True)
    assert done.returncode != 0
    assert "ImproperlyConfigured: GREENORM has no setting 'RUN_ALL'" in done.stderr
