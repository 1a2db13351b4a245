"""`manage.py greenorm doctor` and `bench`, and what they are made of."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connections

from greenorm.management import scan
from greenorm.management.commands.greenorm import Command
from tests.shop.models import Owner

pytestmark = pytest.mark.one_loop

PROJECT = """
import asgiref.sync
import asgiref.sync as aliased
from asgiref import sync
from asgiref.sync import sync_to_async as later, async_to_sync
from channels.db import database_sync_to_async


async def view(request):
    first = await later(load)(request.user, limit=3)
    second = await sync.sync_to_async(load, thread_sensitive=True)("Ada")
    third = await asgiref.sync.sync_to_async(load)()
    load_later = aliased.sync_to_async(load)
    cpu = await later(hash_password, thread_sensitive=False)("secret")
    pool = await later(hash_password, executor=None)("secret")
    return async_to_sync(view)


@database_sync_to_async
def load(name): ...


@later(thread_sensitive=True)
def store(name): ...


class Consumer:
    @database_sync_to_async
    def save(self): ...
"""


def read() -> Any:
    return Owner.objects.filter(name="Ada")


def write() -> None:
    Owner.objects.update_or_create(name="Ada")


async def wait() -> None: ...


def call(*arguments: str) -> str:
    output = StringIO()
    call_command(Command(), *arguments, stdout=output)
    return output.getvalue()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "views.py").write_text(PROJECT)
    (tmp_path / "broken.py").write_text("def (")
    for elsewhere in (".tox", "node_modules", "site-packages", "my_venv"):
        (tmp_path / elsewhere).mkdir()
        (tmp_path / elsewhere / "views.py").write_text(PROJECT)
    (tmp_path / "my_venv" / "pyvenv.cfg").touch()
    return tmp_path


@pytest.mark.no_database
def test_the_scan_finds_what_could_become_a_run_with_file_and_line(project: Path) -> None:
    found = [(use.line, use.code, use.instead) for use in scan.uses_below(project)]
    lines = PROJECT.splitlines()
    assert {use.file for use in scan.uses_below(project)} == {str(Path("shop", "views.py"))}
    assert found == [
        (lines.index("    first = await later(load)(request.user, limit=3)") + 1,
         "later(load)(request.user, limit=3)", "greenorm.run(load, request.user, limit=3)"),
        (11, "sync.sync_to_async(load, thread_sensitive=True)('Ada')", "greenorm.run(load, 'Ada')"),
        (12, "asgiref.sync.sync_to_async(load)()", "greenorm.run(load)"),
        (13, "aliased.sync_to_async(load)", "greenorm.run(load, ...)"),
        (19, "@database_sync_to_async def load", "@greenorm.awaitable"),
        (23, "@later(thread_sensitive=True) def store", "@greenorm.awaitable"),
        (28, "@database_sync_to_async def save", "@greenorm.awaitable"),
    ]  # fmt: skip


def test_doctor_tells_of_each_alias_and_of_the_project(project: Path) -> None:
    found = json.loads(call("doctor", "--json", "--path", str(project)))
    by_alias = {alias["alias"]: alias for alias in found["aliases"]}
    default = by_alias["default"]
    assert default["face"] == "waits in runs"
    assert default["pool"]["max_size"] == 4
    assert default["round_trip_ms"] > 0
    assert default["pgbouncer"] is False
    assert int(default["server_settings"]["max_connections"]) > 0
    assert default["server_version"]
    assert by_alias["local"]["face"] == "would block, and is refused in runs"
    assert {"greenorm", "psycopg", "libpq"} <= found["versions"].keys()
    assert len(found["could_become_runs"]) == 7


def test_doctor_says_which_alias_does_not_answer(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {**connections.settings["default"], "HOST": "/nowhere", "PORT": "1"}
    monkeypatch.setitem(connections.settings, "default", gone)
    text = call("doctor", "--path", str(project))
    assert "/nowhere" in text
    assert "views.py:10" in text.replace("\n", "")
    assert "greenorm.run(load, request.user, limit=3)" in text


def test_bench_measures_a_function_of_the_project(tmp_path: Path) -> None:
    picture = tmp_path / "figures.png"
    arguments = ["--concurrency", "1,2", "--requests", "2", "--rounds", "1", "--plot", str(picture)]
    rows = json.loads(call("bench", f"{__name__}.read", "--json", *arguments))
    assert [row["clients"] for row in rows] == [1] * 3 + [2] * 3
    assert {row["contender"] for row in rows} == {
        "greenorm.run", "sync_to_async, 1 thread", "sync_to_async, 4 threads",
    }  # fmt: skip
    assert all(row["requests_per_second"] > 0 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert Owner.objects.count() == 0


def test_bench_warns_before_it_writes() -> None:
    with pytest.raises(CommandError, match="writes to the database"):
        call("bench", f"{__name__}.write")
    assert Owner.objects.count() == 0
    text = call("bench", f"{__name__}.write", "--writes", "--concurrency", "1", "--requests", "2", "--rounds", "1")
    assert "greenorm.run" in text
    assert Owner.objects.count() == 1


@pytest.mark.no_database
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((f"{__name__}.missing",), "does not define"),
        ((f"{__name__}.wait",), "no sync function"),
        ((f"{__name__}.read", "--concurrency", "0"), "numbers of clients"),
        ((f"{__name__}.read", "--concurrency", "a"), "numbers of clients"),
    ],
)
def test_bench_refuses_what_it_cannot_do(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        call("bench", *arguments)
