"""Wrappers of scopes that have ended are used again, where nobody can tell them from new ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.utils import override_settings

import greenorm
from greenorm import kept
from greenorm.scope import on_new_wrapper

pytestmark = pytest.mark.no_database


@pytest.fixture(autouse=True)
def kept_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrapper has been kept yet."""
    monkeypatch.setattr(kept, "_kept", kept._Kept())


def use() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return id(connections["default"])


async def test_the_next_run_has_the_wrapper_of_the_last() -> None:
    assert await greenorm.run(use) == await greenorm.run(use)


async def test_runs_at_once_have_each_their_own_and_all_are_kept() -> None:
    def wait() -> int:
        greenorm.await_(all_there.wait())
        return use()

    all_there = asyncio.Barrier(4)
    first, again = [{*await asyncio.gather(*[greenorm.run(wait) for _ in range(4)])} for _ in range(2)]
    assert len(first) == 4
    assert again == first


async def test_it_is_as_it_was_made() -> None:
    def state() -> dict[str, Any]:
        found = {**vars(connections["default"])}
        del found["_as_made"], found["_made_in"]
        return found

    def disturb() -> None:
        wrapper: Any = connections["default"]
        wrapper.timezone_name  # noqa: B018  # is cached
        wrapper.savepoint_state = 7
        wrapper.force_debug_cursor = wrapper.closed_in_transaction = wrapper.needs_rollback = True
        wrapper.of_the_last_run = "secret"
        wrapper.commit_on_exit = False
        wrapper.inc_thread_sharing()

    made = await greenorm.run(state)
    await greenorm.run(disturb)
    assert await greenorm.run(state) == made


def keep_it(there: SimpleNamespace) -> None:
    there.kept = connections["default"]


def keep_a_method(there: SimpleNamespace) -> None:
    there.kept = connections["default"].cursor


def leave_an_error(there: SimpleNamespace) -> None:
    wrapper = connections["default"]
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as exc:
        there.error = exc
    assert wrapper


@pytest.mark.parametrize("leave", [keep_it, keep_a_method, leave_an_error])
async def test_it_is_not_kept_where_somebody_has_hold_of_it(leave: Callable[[SimpleNamespace], None]) -> None:
    there = SimpleNamespace()
    before = await greenorm.run(use)
    await greenorm.run(leave, there)
    assert not any(kind.wrappers for kind in kept._kept.by_kind.values())
    assert await greenorm.run(use) != before or leave is leave_an_error


async def test_nothing_is_left_in_it_and_nobody_has_a_list_of_it() -> None:
    def leave() -> list[Any]:
        wrapper = connections["default"]
        wrapper.execute_wrappers.append(lambda execute, *args: execute(*args))
        with override_settings(DEBUG=True):
            use()
        assert wrapper.queries_log
        return [wrapper.execute_wrappers, wrapper.queries_log, id(wrapper)]

    def look() -> list[Any]:
        wrapper = connections["default"]
        return [wrapper.execute_wrappers, wrapper.queries_log, id(wrapper)]

    await greenorm.run(use)
    left, found = await greenorm.run(leave), await greenorm.run(look)
    assert left[2] == found[2]
    assert [[*each] for each in found[:2]] == [[], []]
    assert left[0] is not found[0]
    assert left[1] is not found[1]


async def test_nobody_finds_one_that_was_not_asked_for() -> None:
    def initialized() -> list[str]:
        return [wrapper.alias for wrapper in connections.all(initialized_only=True)]

    await greenorm.run(use)
    assert kept._kept.by_kind
    assert await greenorm.run(initialized) == []


async def test_settings_that_have_changed_make_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    await greenorm.run(use)
    changed = {**connections.settings["default"]}
    monkeypatch.setitem(connections.settings, "default", changed)
    assert await greenorm.run(lambda: connections["default"].settings_dict) is changed
    await greenorm.run(lambda: connections["default"].close_pool())


async def test_a_setting_that_has_changed_is_seen() -> None:
    def zone() -> str:
        return connection.timezone_name  # is cached

    before = await greenorm.run(zone)
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Tokyo"):
        assert await greenorm.run(zone) == "Asia/Tokyo" != before
    assert await greenorm.run(zone) == before


async def test_a_time_zone_that_was_changed_in_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def zone() -> tuple[str, str]:
        with connection.cursor() as cursor:
            cursor.execute("SHOW timezone")
            return connection.timezone_name, cursor.fetchone()[0]

    before = await greenorm.run(zone)
    with monkeypatch.context() as patch:
        patch.setitem(connections.settings["default"], "TIME_ZONE", "Asia/Tokyo")
        assert await greenorm.run(zone) == ("Asia/Tokyo", "Asia/Tokyo") != before
    assert await greenorm.run(zone) == before


async def test_one_whose_class_is_made_by_others_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: BaseDatabaseWrapper, *args: Any) -> None:
        made.append(self)
        BaseDatabaseWrapper.__init__(self, *args)

    made: list[Any] = []
    kind = await greenorm.run(lambda: type(connections["default"]))
    kept._kept.by_kind.clear()
    monkeypatch.setattr(kind, "__init__", init)
    await greenorm.run(use)
    before = len(made)
    await greenorm.run(use)
    assert len(made) == before + 1


async def test_tools_are_told_of_it_as_of_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr("greenorm.scope.on_new_wrapper", [*on_new_wrapper, lambda wrapper: told.append(id(wrapper))])
    ids = [await greenorm.run(use), await greenorm.run(use)]
    assert told == ids


@pytest.mark.one_loop
async def test_no_other_thread_has_it() -> None:
    def in_thread() -> None:
        found.append(asyncio.run(greenorm.run(lambda: connections["default"]._thread_ident)))

    found: list[int] = []
    await greenorm.run(use)
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert found == [thread.ident]


async def test_no_more_are_kept_than_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait() -> None:
        assert connections["default"]
        greenorm.await_(all_there.wait())

    monkeypatch.setattr(kept, "_KEEP", 3)
    all_there = asyncio.Barrier(10)
    await asyncio.gather(*[greenorm.run(wait) for _ in range(10)])
    assert [len(kind.wrappers) for kind in kept._kept.by_kind.values()] == [3]
