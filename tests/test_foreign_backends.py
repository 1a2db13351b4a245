"""A backend of somebody else with the mixin: what it remembers of a session, and what it overrides."""

from __future__ import annotations

import asyncio
from typing import Any

from django.db import connection, connections
from django.db.backends.postgresql import base

import greenorm
from greenorm.backends.mixin import AwaitableMixin


class TheirDatabaseWrapper(base.DatabaseWrapper):
    """Remembers what it has set in the session and forgets it when it is closed, as backends for tenants do."""

    setting: str | None = None
    closed = 0

    def close(self) -> None:
        self.setting = None
        self.closed += 1
        super().close()

    def create_cursor(self, name: str | None = None) -> Any:
        cursor = super().create_cursor(name)
        if self.setting is None:
            self.setting = "mine"
            self.connection.execute("SELECT set_config('greenorm.setting', 'mine', false)")
        return cursor


class DatabaseWrapper(AwaitableMixin, TheirDatabaseWrapper):
    pass


def setting() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('greenorm.setting')")
        return str(cursor.fetchone()[0])


def change() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('greenorm.setting', 'theirs', false)")


async def test_a_backend_is_told_by_close_that_another_session_may_come_next() -> None:
    def work() -> list[str]:
        connections["default"] = DatabaseWrapper(connections.settings["default"], "default")
        before = setting()
        greenorm.await_(asyncio.create_task(greenorm.run(change)))  # on the connection that is lent meanwhile
        return [before, setting()]

    assert await greenorm.run(work) == ["mine", "mine"]
    assert greenorm.pool_stats().size == 1


async def test_what_its_close_hears_of_a_lent_connection_is_no_close_to_its_user() -> None:
    def work() -> tuple[int, int]:
        wrapper = connections["default"] = DatabaseWrapper(connections.settings["default"], "default")
        setting()
        made = wrapper.connection.session.pool.stats().opened
        greenorm.await_(asyncio.sleep(0))
        assert wrapper.connection is None
        setting()
        return wrapper.closed, wrapper.connection.session.pool.stats().opened - made

    assert await greenorm.run(work) == (1, 0)
