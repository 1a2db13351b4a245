"""A real PostgreSQL for the tests, and two Django aliases on it.

GREENORM_TEST_DSN names a server where the role may create databases; without it an embedded one is started. With
GREENORM_TEST_PGBOUNCER=1 a PgBouncer in transaction pooling is put in between.
"""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import django
import psycopg
import pytest
import uvloop
from asgiref.sync import SyncToAsync
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test import SimpleTestCase
from psycopg.conninfo import make_conninfo

from greenorm.demo.server import database_settings, embedded_server
from greenorm.integrations import async_methods as hook
from greenorm.integrations import blocking
from tests.servers import system_server, with_postgis
from tests.stress import behind_pgbouncer

_stack = ExitStack()
# Where the server itself is reached, whatever stands between it and Django.
_server = {"dsn": ""}


def pytest_configure(config: pytest.Config) -> None:
    dsn = os.environ.get("GREENORM_TEST_DSN") or _stack.enter_context(embedded_server())
    _server["dsn"] = dsn
    names = [f"greenorm_{os.getpid()}", f"greenorm_{os.getpid()}_other"]
    _stack.enter_context(Databases(dsn, names))
    pooled = behind_pgbouncer.SETTINGS if behind_pgbouncer.WANTED else {}
    if pooled:
        dsn = _stack.enter_context(behind_pgbouncer.pgbouncer(dsn))
    default, other = (make_conninfo(dsn, dbname=name) for name in names)
    aliases = {}
    apps = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"]
    apps += ["tests.shop", "tests.stress"]
    if (programs := with_postgis()) is not None:
        dsn = _stack.enter_context(system_server(programs))
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("CREATE EXTENSION postgis; CREATE EXTENSION hstore; CREATE EXTENSION citext")
        aliases["places"] = {**database_settings(dsn), "ENGINE": "greenorm.backends.postgis"}
        apps += ["django.contrib.postgres", "django.contrib.gis", "tests.places"]
    settings.configure(
        DATABASES={
            **aliases,
            "default": {**database_settings(default, pool={"min_size": 0, "max_size": 4}), **pooled},
            "other": {**database_settings(other), **pooled},
            "local": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        },
        INSTALLED_APPS=apps,
        DATABASE_ROUTERS=["tests.places.models.Router"] if aliases else [],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        SECRET_KEY="tests",
        USE_TZ=True,
        TIME_ZONE="Europe/Berlin",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        CACHES={
            "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
            "database": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache_table"},
        },
    )
    django.setup()
    for alias in ("default", "other", *aliases):
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
        call_command("createcachetable", database=alias)
        connections[alias].close()
        connections[alias].close_pool()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if behind_pgbouncer.WANTED:
        behind_pgbouncer.mark(items)


def pytest_unconfigure(config: pytest.Config) -> None:
    for connection in connections.all(initialized_only=True):
        connection.close()
    _stack.close()


class Databases:
    def __init__(self, dsn: str, names: list[str]) -> None:
        self.dsn, self.names = dsn, names

    def __enter__(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            for name in self.names:
                conn.execute(f"CREATE DATABASE {name}")

    def __exit__(self, *exc_info: object) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            for name in self.names:
                conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.SelectorEventLoop}
    if item.get_closest_marker("one_loop") is None:
        loops["uvloop"] = uvloop.new_event_loop
    return loops


@pytest.fixture
def admin() -> Iterator[psycopg.Connection]:
    """A connection that watches: outside of Django, of greenorm and of the test's loop."""
    with watcher("default", application_name="admin") as conn:
        yield conn


def watcher(alias: str, **options: str) -> psycopg.Connection:
    return psycopg.connect(_server["dsn"], dbname=connections[alias].settings_dict["NAME"], autocommit=True, **options)


@pytest.fixture(scope="session")
def cleaners() -> Iterator[list[psycopg.Connection]]:
    """A connection to each test database, for what has nothing to do with a test."""
    with ExitStack() as stack:
        yield [stack.enter_context(watcher(alias, application_name="cleaner")) for alias in ("default", "other")]


@pytest.fixture
def async_methods() -> Iterator[None]:
    """Django's own async methods are runs, as with "greenorm" in INSTALLED_APPS."""
    hook.install()
    yield
    hook.uninstall()


@pytest.fixture
def blocking_hooks() -> Iterator[None]:
    """What blocks in Django itself goes to a thread in runs, as with greenorm's ASGI handler."""
    blocking.install()
    yield
    blocking.uninstall()


@pytest.fixture
def unused_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """asgiref's one thread for the process is yet to be started: a hop to one that it has kept would start none."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)
        yield


@pytest.fixture
def no_threads(unused_thread: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No thread may start. Where one may, the test clears the list of what has started."""
    started: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(f"{thread.name}: {''.join(traceback.format_stack(limit=12))}")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    yield started
    assert started == []


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest, cleaners: list[psycopg.Connection]) -> Iterator[None]:
    """Empty every table after a test that may have filled it, and close what plain sync code has opened."""
    yield
    if request.node.get_closest_marker("no_database") or isinstance(request.instance, SimpleTestCase):
        return
    for alias, cleaner in zip(("default", "other"), cleaners, strict=True):
        connections[alias].close()
        connections[alias].close_pool()
        cleaner.execute(
            "TRUNCATE shop_owner, shop_tag, shop_fact, shop_note, cache_table, django_session, auth_user, auth_group "
            "RESTART IDENTITY CASCADE"
        )
