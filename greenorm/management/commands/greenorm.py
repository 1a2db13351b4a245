"""`manage.py greenorm doctor` and `manage.py greenorm bench`: for people as tables, for programs as JSON."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.utils.module_loading import import_string

from ...integrations.routing import can_await


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ArgumentTypeError(f"numbers of clients, such as 1,10,100, and not {text!r}")
    return numbers


class Command(BaseCommand):
    """Django's command."""

    help = "Look into what greenorm finds in this project, or measure a function of the project's own."

    def add_arguments(self, parser: CommandParser) -> None:
        """Mirrors BaseCommand.add_arguments, Django 6.1."""
        actions = parser.add_subparsers(dest="action", required=True, metavar="doctor|bench")
        doctor = actions.add_parser("doctor", help="what is installed, what each alias is, and what could become a run")
        doctor.add_argument("--json", action="store_true", help="write the findings as JSON")
        doctor.add_argument("--path", type=Path, help="where the project's code is; BASE_DIR or here unless given")
        bench = actions.add_parser("bench", help="call a sync function through run and through sync_to_async")
        bench.add_argument("function", help="dotted path of a sync function that takes no arguments")
        bench.add_argument("--concurrency", type=_numbers, default=[1, 10, 100], help="clients at once: 1,10,100")
        bench.add_argument("--requests", type=int, default=500, help="calls for each contender and round (500)")
        bench.add_argument("--rounds", type=int, default=3, help="rounds, whose median and range are shown (3)")
        bench.add_argument("--writes", action="store_true", help="go on although the function writes to the database")
        bench.add_argument("--json", action="store_true", help="write the figures as JSON")
        bench.add_argument("--plot", type=Path, help="draw the figures into this file, a .png or .svg")

    def handle(self, *args: Any, action: str, **options: Any) -> None:
        """Mirrors BaseCommand.handle, Django 6.1."""
        if not options["json"] or action == "bench":
            _need("rich")
        if action == "doctor":
            self._doctor(options["json"], options["path"])
        else:
            self._bench(**options)

    def _doctor(self, as_json: bool, path: Path | None) -> None:
        from ..doctor import examine

        found = examine(path)
        if as_json:
            self.stdout.write(json.dumps(found, indent=2, default=str))
            return
        from ..shown import show_doctor

        show_doctor(found, self.stdout)

    def _bench(self, function: str, **options: Any) -> None:
        from ...demo.steps import Steps
        from .. import bench

        if options["plot"] is not None:
            _need("matplotlib")
        if not can_await(DEFAULT_DB_ALIAS):
            engine = connections.settings[DEFAULT_DB_ALIAS]["ENGINE"]
            raise CommandError(f"The default database alias has the ENGINE {engine!r}, which is not greenorm's.")
        try:
            fn = import_string(function)
        except ImportError as exc:
            raise CommandError(str(exc)) from exc
        fn = getattr(fn, "sync", fn)
        if not callable(fn) or iscoroutinefunction(fn):
            raise CommandError(f"{function} is no sync function.")
        if bench.writes(fn) and not options["writes"]:
            connection.close()
            raise CommandError(
                f"{function} writes to the database {connection.settings_dict['NAME']!r}: it did when it was called "
                "once, in a transaction that has been rolled back. To call it again and again for good, give --writes."
            )
        connection.close()
        with Steps() as steps:
            steps.begin(function)
            rows = bench.measure(
                fn, function, options["concurrency"], options["requests"], options["rounds"], steps.advance
            )
        if options["plot"] is not None:
            bench.plot(rows, options["plot"])
        from ..shown import bench_as_json, show_bench

        if options["json"]:
            self.stdout.write(json.dumps(bench_as_json(rows), indent=2))
        else:
            show_bench(rows, self.stdout)


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise CommandError(f"This needs {package}, which pip install 'greenorm[tools]' brings.")
