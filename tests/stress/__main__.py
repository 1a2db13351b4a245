"""`python -m tests.stress storm|soak`: the long runs, with their progress, and their figures as JSON.

On the server that GREENORM_TEST_DSN names, in a database of its own, or on an embedded one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import django
import psycopg
import uvloop
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import make_conninfo
from rich.console import Console

from greenorm.demo.server import database_settings, embedded_server

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
}

console = Console(stderr=True, highlight=False)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.stress", description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    parsers = {name: commands.add_parser(name, help=what) for name, what in HELP.items()}
    for sub in parsers.values():
        sub.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="of what is drawn by lot")
        sub.add_argument("--loop", choices=LOOPS, default="asyncio")
        sub.add_argument("--pool", type=int, default=8, help="connections at the most")
        sub.add_argument("--json", type=Path, help="a file for the figures; else they go to stdout")
    parsers["storm"].add_argument("--operations", type=int, default=100_000)
    parsers["storm"].add_argument("--cancellations", type=int, default=50_000)
    parsers["storm"].add_argument("--clients", type=int, default=32)
    parsers["soak"].add_argument("--minutes", type=float, default=30)
    parsers["soak"].add_argument("--rate", type=float, default=15, help="operations in a second")
    parsers["soak"].add_argument("--fault-every", type=float, default=40, help="seconds from a fault to the next")
    parsers["soak"].add_argument("--patience", type=float, default=5, help="seconds that an operation may take")
    parsers["soak"].add_argument("--picture", type=Path, help="a file to draw the figures into, by matplotlib")
    chosen = parser.parse_args()
    console.print(f"seed {chosen.seed}; to have it again: --seed {chosen.seed}")
    with ExitStack() as stack:
        set_up(stack, chosen.pool)
        with asyncio.Runner(loop_factory=LOOPS[chosen.loop]) as runner:
            figures = runner.run(COMMANDS[chosen.command](chosen))
    text = json.dumps({**figures, "surroundings": surroundings(chosen)}, indent=1) + "\n"
    if chosen.json:
        chosen.json.write_text(text)
    else:
        sys.stdout.write(text)
    for sentence in figures["wrong"]:
        console.print(f"[red]wrong:[/red] {sentence}")
    return 1 if figures["wrong"] else 0


def set_up(stack: ExitStack, pool: int) -> None:
    """Configure Django on a database of our own, which is gone when `stack` ends."""
    dsn = os.environ.get("GREENORM_TEST_DSN") or stack.enter_context(embedded_server())
    name = f"greenorm_stress_{os.getpid()}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    stack.callback(_drop, dsn, name)
    settings.configure(
        DATABASES={
            "default": database_settings(make_conninfo(dsn, dbname=name), pool={"min_size": 0, "max_size": pool})
        },
        INSTALLED_APPS=["tests.stress"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)
    connections["default"].close()
    connections["default"].close_pool()


def _drop(dsn: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def surroundings(chosen: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "loop": chosen.loop,
        "python": platform.python_version(),
        "django": django.__version__,
        "psycopg": psycopg.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": f"{datetime.now():%Y-%m-%d}",
    }


async def have_storm(chosen: argparse.Namespace) -> dict[str, Any]:
    # Models can be imported from here on.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .storm import Plan, storm
    from .storm_ways import Tally

    plan = Plan(chosen.seed, chosen.operations, chosen.cancellations, chosen.clients)
    columns = TextColumn("{task.description:>13}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # Not refreshed by rich's thread, which would be counted as the library's.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        lines = [
            progress.add_task("operations", total=plan.operations),
            progress.add_task("cancellations", total=plan.cancellations),
        ]

        def report(tally: Tally) -> None:
            if tally.ended % 500 == 0:
                for line, done in zip(lines, (tally.ended, tally.cancelled), strict=True):
                    progress.update(line, completed=done)
                if console.is_terminal:
                    progress.refresh()

        result = await storm(plan, report)
        for line, done in zip(lines, (result.operations, result.cancellations), strict=True):
            progress.update(line, completed=done)
    return result.figures()


async def have_soak(chosen: argparse.Namespace) -> dict[str, Any]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from .soak import Plan, Sample, soak
    from .soak_picture import draw

    if chosen.picture:
        import matplotlib as mpl  # rather now than after half an hour

        del mpl
    plan = Plan(chosen.seed, 60 * chosen.minutes, chosen.rate, fault_every=chosen.fault_every, patience=chosen.patience)
    columns = BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        line = progress.add_task("", total=plan.seconds)

        def report(sample: Sample) -> None:
            said = f"{sample.done} done, p99 {1000 * sample.p99:.0f} ms, {sample.rss >> 20} MiB, {sample.errors or ''}"
            progress.update(line, completed=sample.at, description=said)
            if console.is_terminal:
                progress.refresh()

        figures = (await soak(plan, report)).figures()
    if chosen.picture:
        draw(figures, chosen.picture)
    return figures


HELP = {
    "storm": "many clients move money and are cancelled at random moments",
    "soak": "a steady load for long, through a network that fails now and then",
}
COMMANDS: dict[str, Callable[[argparse.Namespace], Awaitable[dict[str, Any]]]] = {
    "storm": have_storm,
    "soak": have_soak,
}

if __name__ == "__main__":
    sys.exit(main())
