"""Where contenders find the data, in the words of each driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg.conninfo import conninfo_to_dict


@dataclass(frozen=True)
class Target:
    """A server, the schema to work in, and how many connections may be open."""

    dsn: str
    schema: str
    connections: int

    def words(self) -> dict[str, Any]:
        """Return the keyword arguments of psycopg's `connect`."""
        return dict(conninfo_to_dict(self.dsn))

    def asyncpg_words(self) -> dict[str, Any]:
        """Return the keyword arguments of asyncpg's `connect`."""
        words = self.words()
        named = {"host": "host", "port": "port", "user": "user", "password": "password", "dbname": "database"}
        given = {theirs: words[ours] for ours, theirs in named.items() if words.get(ours)}
        settings = {"search_path": self.schema, "application_name": self.schema}
        return {**given, "port": int(words.get("port") or 5432), "server_settings": settings}
