"""The system's PostgreSQL, where it has the extensions that the embedded one lacks."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path


def with_postgis() -> Path | None:
    """Return the program directory of the newest installed PostgreSQL that has PostGIS, if Django can use it."""
    if find_library("gdal") is None or find_library("geos_c") is None:
        return None
    found = [
        Path("/usr/lib/postgresql") / control.parts[-3] / "bin"
        for control in Path("/usr/share/postgresql").glob("*/extension/postgis.control")
    ]
    usable = [path for path in found if (path / "initdb").exists()]
    return max(usable, key=lambda path: int(path.parts[-2]), default=None)


@contextmanager
def system_server(programs: Path) -> Iterator[str]:
    """Run a cluster of its own on the system's PostgreSQL for the block, on a socket, and give its DSN."""
    directory = Path(tempfile.mkdtemp(prefix="greenorm-system-"))
    # PostgreSQL refuses to run as root.
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if user:
        shutil.chown(directory, "postgres", "postgres")
    data = str(directory / "data")

    def call(program: str, *arguments: str) -> None:
        subprocess.run([*user, programs / program, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")

    try:
        call("initdb", "-D", data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off -c max_connections=50"
        call("pg_ctl", "-D", data, "-w", "-l", str(directory / "log"), "-o", options, "start")
        try:
            yield f"host={directory} user=postgres dbname=postgres"
        finally:
            call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
