"""Starts real servers with the site, in processes of their own, and stops them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
from django.db import connections

APPLICATION = "tests.whole.asgi:application"
# As in README, on a socket of their own.
COMMANDS = {
    "uvicorn": ["uvicorn", "--loop", "asyncio", "--uds", "{socket}", "{application}"],
    "uvicorn on uvloop": ["uvicorn", "--loop", "uvloop", "--uds", "{socket}", "{application}"],
    "granian": ["granian", "--interface", "asgi", "--loop", "asyncio", "--uds", "{socket}", "{application}"],
    "hypercorn": ["hypercorn", "-b", "unix:{socket}", "{application}"],
    "daphne": ["daphne", "-u", "{socket}", "{application}"],
}
ROOT = Path(__file__).parents[2]
# How long, in seconds, a server may take to answer first, or to stop.
SECONDS = 120


@contextmanager
def site_database() -> Iterator[dict[str, Any]]:
    """Give the settings of a database of the site's own, with its tables, for the block."""
    settings = connections["default"].settings_dict
    name = f"{settings['NAME']}_site"
    params = connections["default"].get_connection_params()
    params = {key: params[key] for key in ("dbname", "user", "password", "host", "port") if key in params}
    with psycopg.connect(**params, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
        try:
            kept = {key: settings[key] for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT")}
            options = {**settings["OPTIONS"], "pool": {"min_size": 2, "max_size": 10}}
            database = {**kept, "NAME": name, "OPTIONS": options}
            command = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"]
            subprocess.run(command, env=environment(database), cwd=ROOT, check=True)
            yield database
        finally:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def environment(database: dict[str, Any], **more: str) -> dict[str, str]:
    """Return the environment of a process that has the site's settings."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.whole.settings",
        "GREENORM_SITE_DATABASE": json.dumps(database),
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


@dataclass
class Server:
    """A server that is up."""

    database: dict[str, Any]
    socket: Path
    log: Path
    process: subprocess.Popen[bytes]

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)), base_url="http://site", timeout=SECONDS, **options
        )

    def async_client(self, **options: Any) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_connections=None))
        return httpx.AsyncClient(transport=transport, base_url="http://site", timeout=SECONDS, **options)

    def stop(self) -> int:
        """Ask the server to end, and return how its process did."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


@contextmanager
def serving(name: str, database: dict[str, Any]) -> Iterator[Server]:
    """Give the site, served by the server of that name, for the block."""
    with tempfile.TemporaryDirectory(prefix="greenorm-") as directory:
        # By which the sessions of this server are known.
        database = {**database, "OPTIONS": {**database["OPTIONS"], "application_name": Path(directory).name}}
        path, log = Path(directory, "socket"), Path(directory, "log")
        program, *arguments = [part.format(socket=path, application=APPLICATION) for part in COMMANDS[name]]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name(program)), *arguments],
                cwd=ROOT,
                env=environment(database),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        server = Server(database, path, log, process)
        try:
            _wait_for(server)
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + SECONDS
    while not _listens(server.socket):
        assert server.process.poll() is None, server.log.read_text()
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
