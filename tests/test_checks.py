"""`manage.py check`: each message by its id, where it applies and where it does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, registry
from django.db import connections
from django.test import override_settings

from greenorm import checks

pytestmark = [pytest.mark.no_database, pytest.mark.one_loop]

README = (Path(__file__).parent.parent / "README.md").read_text()
SESSIONS = ["django.contrib.sessions.middleware.SessionMiddleware"]
PAGES = ["django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware"]


def ids(messages: Any) -> list[str | None]:
    found: list[CheckMessage] = list(messages)
    assert all(message.hint for message in found)
    return [message.id for message in found]


def alias_with(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    for alias in ("places", "local"):
        if alias in connections.settings:
            monkeypatch.delitem(connections.settings, alias)
    for alias in ("default", "other"):
        monkeypatch.setitem(connections.settings, alias, {**connections.settings[alias], **changes})


def test_a_project_as_readme_has_it_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    alias_with(monkeypatch)
    for check in (checks.check_versions, checks.check_aliases, checks.check_environment, checks.check_stores):
        assert ids(check()) == []


def test_packages_that_are_too_old_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "installed", {"psycopg": "3.3.8", "psycopg-pool": "3.4.0.dev1"}.get)
    assert ids(checks.check_versions()) == ["greenorm.E001"]
    monkeypatch.setattr(checks, "installed", {"psycopg": "3.10.0", "psycopg-pool": "3.2"}.get)
    assert ids(checks.check_versions()) == ["greenorm.E001"]


def test_a_libpq_that_needs_a_thread_to_cancel_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "has_cancel_safe", lambda: False)
    assert ids(checks.check_versions()) == ["greenorm.W001"]


@pytest.mark.parametrize(
    ("host", "options", "found"),
    [
        ("db.example", {}, 2),
        ("db.example", {"hostaddr": "10.0.0.1"}, 0),
        ("10.0.0.1", {}, 0),
        ("::1", {}, 0),
        ("/run/postgresql", {}, 0),
        ("", {"host": "db.example,10.0.0.1"}, 2),
    ],
)
def test_a_host_name_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, host: str, options: dict[str, str], found: int
) -> None:
    alias_with(monkeypatch, HOST=host, OPTIONS=options)
    assert ids(checks.check_aliases()) == ["greenorm.W002"] * found


@pytest.mark.parametrize(
    "changes",
    [
        {"CONN_MAX_AGE": 60, "OPTIONS": {"pool": True}},
        {"OPTIONS": {"pool": {"max_sise": 4}}},
        {"OPTIONS": {"pool": {"min_size": 4, "max_size": 2}}},
    ],
    ids=str,
)
def test_pool_options_that_contradict_are_errors(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    alias_with(monkeypatch, **changes)
    assert ids(checks.check_aliases()) == ["greenorm.E002"] * 2


def test_an_alias_that_would_block_is_a_warning_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    local = connections.settings["local"]
    alias_with(monkeypatch)
    monkeypatch.setitem(connections.settings, "local", local)
    assert ids(checks.check_aliases()) == ["greenorm.W003"]
    with override_settings(GREENORM={"BLOCKING_ALIASES": ["local"]}):
        assert ids(checks.check_aliases()) == []


def test_a_guard_that_is_off_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    assert ids(checks.check_environment()) == ["greenorm.W004"]


def test_stores_that_take_a_thread_under_asgi_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    alias_with(monkeypatch)
    files = "django.contrib.sessions.backends.file"
    with override_settings(MIDDLEWARE=SESSIONS, SESSION_ENGINE=files):
        assert ids(checks.check_stores()) == ["greenorm.I001"]
    with (
        override_settings(MIDDLEWARE=SESSIONS),
        override_settings(SESSION_ENGINE="django.contrib.sessions.backends.db"),
    ):
        assert ids(checks.check_stores()) == []
    caches = {"default": {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://localhost"}}
    with override_settings(MIDDLEWARE=PAGES, CACHES=caches):
        assert ids(checks.check_stores()) == ["greenorm.I002"]
    with override_settings(MIDDLEWARE=[], CACHES=caches):
        assert ids(checks.check_stores()) == []


@pytest.mark.parametrize(("size", "found"), [(10_000, ["greenorm.W005"]), (2, [])])
def test_pools_larger_than_their_server_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, size: int, found: list[str]
) -> None:
    for alias in ("default", "other"):
        options = connections.settings[alias]["OPTIONS"]
        monkeypatch.setitem(options, "pool", {"min_size": 0, "max_size": size})
    try:
        assert ids(checks.check_sizes(databases=["default", "other"])) == found
        assert ids(checks.check_sizes(databases=None)) == []
    finally:
        for alias in ("default", "other"):
            connections[alias].close()
            connections[alias].close_pool()


def test_the_app_registers_them_all_and_readme_lists_each() -> None:
    before = registry.registry.registered_checks.copy()
    try:
        checks.register()
        new = registry.registry.registered_checks - before
        assert {check.__name__ for check in new} == {
            "check_versions", "check_aliases", "check_environment", "check_stores", "check_sizes",
        }  # fmt: skip
    finally:
        registry.registry.registered_checks = before
    source = Path(checks.__file__).read_text()
    for name in re.findall(r'id="(greenorm\.\w+)"', source):
        assert f"| `{name}` |" in README, name
