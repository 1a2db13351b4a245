"""Who is compared: each by its name, where its code is, and what it needs to be there.

A contender's module is imported in a worker process only. `module:function` names an async context manager (a plain one
where `loop` is "none" or "gevent") that opens what the contender needs on a target, gives what does each work, by the
names of `harness.works.WORKS`, and closes all of it at the end of the turn.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


@dataclass(frozen=True)
class Contender:
    """A way to work with the database."""

    name: str
    opened: str
    needs: tuple[str, ...] = ()
    """Distributions, with the module to be imported after a colon where it has another name."""
    loop: str = "asyncio"
    process: str = "shared"
    """Those with the same word can live in one process."""
    django: tuple[int, int] | None = None
    """The one version of Django that it works with."""
    python: tuple[int, int] = (3, 11)

    @property
    def label(self) -> str:
        """The name, with the loop where it is not asyncio's."""
        return f"{self.name} (uvloop)" if self.loop == "uvloop" else self.name

    def missing(self) -> str | None:
        """Return why it cannot take part here, or None."""
        for need in (*self.needs, *(["uvloop"] if self.loop == "uvloop" else [])):
            distribution, _, module = need.partition(":")
            try:
                version(distribution)
            except PackageNotFoundError:
                return f"{distribution} is not installed"
            if find_spec(module or distribution) is None:
                return f"{distribution} cannot be imported"
        if sys.version_info < self.python:
            return f"it needs Python {'.'.join(map(str, self.python))}"
        import django

        if self.django and django.VERSION[:2] != self.django:
            return f"it needs Django {'.'.join(map(str, self.django))}"
        return None


def on_uvloop(contender: Contender) -> Contender:
    """Return the same contender on uvloop."""
    return replace(contender, loop="uvloop")


_DJANGO = "benchmarks.contenders.django_family"

SYNC = Contender("sync Django", f"{_DJANGO}:sync_stock", loop="none")
SYNC_GREENORM = Contender("sync Django on greenorm's backend", f"{_DJANGO}:sync_greenorm", loop="none")
GREENORM = Contender("greenorm.run", f"{_DJANGO}:greenorm_run")
GREENORM_A = Contender("greenorm, a-methods", f"{_DJANGO}:greenorm_a_methods")
ONE_THREAD = Contender("sync_to_async", f"{_DJANGO}:one_thread")
THREADS_20 = Contender("sync_to_async, 20 threads", f"{_DJANGO}:threads_20")
THREADS_100 = Contender("sync_to_async, 100 threads", f"{_DJANGO}:threads_100")
A_METHODS = Contender("Django's a-methods", f"{_DJANGO}:a_methods")
ASYNC_BACKEND = Contender(
    "django-async-backend",
    "benchmarks.contenders.async_backend:opened",
    ("django-async-backend:django_async_backend",),
    process="django-async-backend",
    django=(6, 1),
    python=(3, 12),
)
GEVENT = Contender("gevent", "benchmarks.contenders.gevent_family:opened", ("gevent",), loop="gevent", process="gevent")
SQLALCHEMY_PSYCOPG = Contender(
    "SQLAlchemy, psycopg", "benchmarks.contenders.sqlalchemy_family:with_psycopg", ("sqlalchemy",)
)
SQLALCHEMY_ASYNCPG = Contender(
    "SQLAlchemy, asyncpg", "benchmarks.contenders.sqlalchemy_family:with_asyncpg", ("sqlalchemy", "asyncpg")
)
TORTOISE = Contender(
    "Tortoise, asyncpg", "benchmarks.contenders.tortoise_family:opened", ("tortoise-orm:tortoise", "asyncpg")
)
PSYCOPG = Contender("raw psycopg", "benchmarks.contenders.raw:with_psycopg", ("psycopg",))
ASYNCPG = Contender("raw asyncpg", "benchmarks.contenders.raw:with_asyncpg", ("asyncpg",))

FLOOR = SYNC
ASYNCIO = [
    GREENORM,
    GREENORM_A,
    ONE_THREAD,
    THREADS_20,
    THREADS_100,
    A_METHODS,
    ASYNC_BACKEND,
    GEVENT,
    SQLALCHEMY_PSYCOPG,
    SQLALCHEMY_ASYNCPG,
    TORTOISE,
    PSYCOPG,
    ASYNCPG,
]
# Those whose figures the loop can change: they wait in it.
UVLOOP = [
    on_uvloop(contender)
    for contender in (
        GREENORM,
        ONE_THREAD,
        ASYNC_BACKEND,
        SQLALCHEMY_PSYCOPG,
        SQLALCHEMY_ASYNCPG,
        TORTOISE,
        PSYCOPG,
        ASYNCPG,
    )
]
ALL = {contender.label: contender for contender in [SYNC, SYNC_GREENORM, *ASYNCIO, *UVLOOP]}
