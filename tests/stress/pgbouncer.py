"""PgBouncer, Debian's package, in front of a server: transaction pooling, on a socket of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .clusters import as_user, own_directory

# Where Debian puts it is on root's PATH only.
PROGRAM = which("pgbouncer") or which("pgbouncer", path="/usr/sbin")
# Seconds that a start or a stop may take.
PATIENCE = 60

CONFIGURATION = """\
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr =
listen_port = 6432
unix_socket_dir = {directory}
pidfile = {directory}/pid
auth_type = trust
auth_file = {directory}/users
admin_users = {user}
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 1000
ignore_startup_parameters = extra_float_digits,options
{more}
"""


@contextmanager
def pgbouncer(dsn: str, pool_size: int = 20, more: str = "") -> Iterator[str]:
    """Run PgBouncer for the block in front of the server of `dsn`, and give the DSN that leads through it.

    Every database of the server is reached by its name. `pool_size` is what the server sees, for each database.
    """
    if PROGRAM is None:
        raise RuntimeError("PgBouncer is not installed: apt-get install pgbouncer")
    with psycopg.connect(dsn) as conn:
        host, port, user = conn.info.host, conn.info.port, conn.info.user
    password = str(conninfo_to_dict(dsn).get("password") or "")
    # Whoever runs the server may enter the directory of its socket.
    server = (Path(host) / f".s.PGSQL.{port}").owner() if host.startswith("/") else "postgres"
    with own_directory("pgbouncer", server) as directory:
        (directory / "users").write_text(f'"{user}" "{password}"\n')
        names = {"host": host, "port": port, "directory": directory, "user": user, "pool_size": pool_size}
        (directory / "ini").write_text(CONFIGURATION.format(**names, more=more))
        log = (directory / "log").open("wb")
        process = subprocess.Popen([PROGRAM, directory / "ini"], stdout=log, stderr=log, cwd="/", **as_user(server))
        try:
            behind = make_conninfo(dsn, host=str(directory), port=6432)
            _wait(behind, process, directory / "log")
            yield behind
        finally:
            process.terminate()  # SIGTERM: at once
            process.wait(PATIENCE)
            log.close()


def _wait(dsn: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg.connect(dsn).close()
            return
        except psycopg.OperationalError as exc:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PgBouncer does not answer: {exc}\n{log.read_text()}") from exc
        time.sleep(0.02)


def figures(dsn: str, what: str) -> list[dict[str, object]]:
    """Return what PgBouncer's console says to `SHOW what`."""
    with psycopg.connect(make_conninfo(dsn, dbname="pgbouncer"), autocommit=True) as conn:
        # The console knows neither parameters nor prepared statements.
        cursor = psycopg.ClientCursor(conn)
        cursor.execute(f"SHOW {what}".encode())
        assert cursor.description is not None
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
