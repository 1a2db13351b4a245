"""`python -m tests.stress.processes`: many processes, each with its event loop and its pool, behind one PgBouncer.

Each process answers requests for some seconds, of which each is a run: a read, and a write in a transaction. Printed:
how many connections the processes opened, how many sessions the server had, and how many requests were answered; and
the same without PgBouncer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time

import django
import psycopg
from django.conf import settings

from greenorm.demo.server import database_settings

from .clusters import cluster, programs
from .pgbouncer import pgbouncer

TABLE = (
    "CREATE TABLE counter (id int PRIMARY KEY, value int NOT NULL); "
    "INSERT INTO counter SELECT i, 0 FROM generate_series(1, 1000) i"
)
REQUESTS_AT_ONCE = 50


async def serve(dsn: str, pool: int, seconds: float) -> dict[str, int]:
    """Answer as many requests as there is time for; what a worker process does."""
    pooled = {"min_size": 0, "max_size": pool}
    database = {**database_settings(dsn, pool=pooled), "DISABLE_SERVER_SIDE_CURSORS": True}
    settings.configure(DATABASES={"default": database})
    django.setup()
    from django.db import connection, transaction

    import greenorm

    answered = 0

    def request(number: int) -> None:
        key = number % 1000 + 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT value FROM counter WHERE id = %s", [key])
            cursor.fetchone()
            with transaction.atomic():
                cursor.execute("UPDATE counter SET value = value + 1 WHERE id = %s", [key])

    async def client(first: int) -> None:
        nonlocal answered
        while time.monotonic() < end:
            await greenorm.run(request, first + answered * 7)
            answered += 1

    sys.stdin.readline()  # all start together
    end = time.monotonic() + seconds
    await asyncio.gather(*[client(i) for i in range(REQUESTS_AT_ONCE)])
    stats = greenorm.pool_stats()
    return {"answered": answered, "opened": stats.opened, "size": stats.size}


def measure(dsn: str, admin: str, processes: int, pool: int, seconds: float) -> dict[str, object]:
    """Start the processes and watch the server meanwhile."""
    command = [sys.executable, "-m", "tests.stress.processes", "--worker", dsn, "--pool", str(pool)]
    command += ["--seconds", str(seconds)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    sessions = 0
    with psycopg.connect(admin, autocommit=True) as conn:
        written = conn.execute("SELECT sum(value) FROM counter").fetchone()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
        while any(worker.poll() is None for worker in workers):
            found = conn.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchone()
            sessions = max(sessions, found[0] if found else 0)
            time.sleep(0.05)
        after = conn.execute("SELECT sum(value) FROM counter").fetchone()
    answers = [json.loads(worker.communicate()[0]) for worker in workers]
    answered = sum(answer["answered"] for answer in answers)
    assert written is not None
    assert after is not None
    return {
        "processes": processes,
        "pool": pool,
        "client connections": sum(answer["opened"] for answer in answers),
        "server sessions": sessions,
        "requests/s": round(answered / seconds),
        "lost or repeated": int(after[0] - written[0]) - answered,
    }


def main() -> int:
    """Print a row for each arrangement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--pool", type=int, default=20, help="max_size of each process")
    parser.add_argument("--server", type=int, default=10, help="default_pool_size of PgBouncer")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--worker", metavar="DSN", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        sys.stdout.write(json.dumps(asyncio.run(serve(chosen.worker, chosen.pool, chosen.seconds))))
        return 0
    found = programs()
    if found is None:
        sys.stderr.write("no PostgreSQL that this user can start is installed\n")
        return 2
    with cluster(found, "processes", max_connections="400") as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(TABLE.encode())
        with pgbouncer(server.dsn, chosen.server) as behind:
            for name, dsn in (("through PgBouncer", behind), ("directly", server.dsn)):
                row = measure(dsn, server.dsn, chosen.processes, chosen.pool, chosen.seconds)
                sys.stdout.write(f"{name}: {json.dumps(row)}\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
