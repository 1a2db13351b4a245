"""Where measurements take place: a server, a schema of our own on it, and the project with all of its data."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import django
from django.conf import settings
from django.core.management import call_command

import greenorm

from .server import Schema, database_settings, embedded_server, own_schema
from .steps import Steps

if TYPE_CHECKING:
    from .data import Loaded

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """The project, ready for use: its models can be imported, its tables are full."""

    schema: Schema
    embedded: bool
    loaded: Loaded
    load_seconds: float
    """How long the one transaction took that loaded all data."""
    steps: Steps


def perform(act: Callable[[Stage], Awaitable[T]]) -> T:
    """Set up a stage, run `act` on it with asyncio, leave nothing behind, and return what `act` returns.

    On the server that DATABASE_URL names, or else on an embedded one. Once in a process, since Django is configured
    for it. Raises ImportError or ServerFailed where there is no such server.
    """
    with Steps() as steps, ExitStack() as stack:
        named = os.environ.get("DATABASE_URL")
        steps.begin("Connecting" if named else "Starting PostgreSQL")
        schema = stack.enter_context(own_schema(named or stack.enter_context(embedded_server())))
        settings.configure(
            DATABASES={"default": database_settings(schema.dsn)},
            INSTALLED_APPS=["greenorm.demo"],
            USE_TZ=True,
        )
        django.setup()
        return asyncio.run(_play(schema, not named, steps, act))


async def _play(schema: Schema, embedded: bool, steps: Steps, act: Callable[[Stage], Awaitable[T]]) -> T:
    # Models can be imported from here on.
    from .data import load

    steps.begin("Migrating")
    await greenorm.run(call_command, "migrate", verbosity=0)
    steps.begin("Loading the world")
    since = perf_counter()
    loaded = await greenorm.run(load, steps.advance)
    load_seconds = perf_counter() - since
    return await act(Stage(schema, embedded, loaded, load_seconds, steps))
