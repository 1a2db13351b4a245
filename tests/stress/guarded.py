"""A PostgreSQL that lets nobody in but by TLS and password, with a certificate authority of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import trustme
from psycopg.conninfo import make_conninfo

from .clusters import SETTINGS, Cluster, own_directory

NAME = "db.example.org"
ROLE = "keeper"
PASSWORD = "Xk7-not-to-be-seen-'q\" 9"
HBA = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"


@dataclass
class Guarded:
    """The server, and the files that those who trust it have."""

    cluster: Cluster
    authority: Path
    stranger: Path
    """Another authority, which has not signed its certificate."""

    def dsn(self, **changes: object) -> str:
        """Return what connects as it should: the name on the certificate, and no name resolution."""
        given: dict[str, object] = {
            "host": NAME,
            "hostaddr": "127.0.0.1",
            "port": self.cluster.port,
            "user": ROLE,
            "password": PASSWORD,
            "dbname": "postgres",
            "sslmode": "verify-full",
            "sslrootcert": self.authority,
        }
        return make_conninfo(**{name: str(value) for name, value in {**given, **changes}.items()})


@contextmanager
def guarded(programs: Path) -> Iterator[Guarded]:
    """Run such a server for the block."""
    with own_directory("guarded") as directory:
        made = Cluster(programs, directory, {**SETTINGS, "password_encryption": "scram-sha-256"}, tcp=True)
        made.init(HBA)
        ours, stranger = trustme.CA(), trustme.CA()
        certificate = ours.issue_cert(NAME)
        certificate.private_key_pem.write_to_path(str(made.data / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(made.data / "server.crt"))
        (made.data / "server.key").chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(made.data / "server.key", "postgres")
        made.settings = {**made.settings, "ssl": "on"}
        for name, authority in (("ours.pem", ours), ("stranger.pem", stranger)):
            authority.cert_pem.write_to_path(str(directory / name))
        made.start()
        try:
            with psycopg.connect(made.dsn, autocommit=True) as conn:
                password = psycopg.sql.Literal(PASSWORD)
                conn.execute(psycopg.sql.SQL("CREATE ROLE keeper LOGIN PASSWORD {}").format(password))
            yield Guarded(made, directory / "ours.pem", directory / "stranger.pem")
        finally:
            made.stop()
