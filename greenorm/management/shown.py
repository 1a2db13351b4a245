"""The findings of `doctor` and the figures of `bench`, as people read them. Needs rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..demo import report
from ..demo.measure import Row


def _console(stream: Any) -> Console:
    return Console(file=cast("TextIO", stream), soft_wrap=True, highlight=False)


def show_doctor(found: dict[str, Any], stream: Any) -> None:
    """Write the findings as tables."""
    console = _console(stream)
    console.print(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    for alias in found["aliases"]:
        console.print(f"\n[bold]{escape(alias['alias'])}[/bold]  {escape(alias['engine'])}: {alias['face']}")
        drawn = Table(box=None, show_header=False, padding=(0, 2))
        for name in ("error", "server_version", "round_trip_ms", "pgbouncer"):
            if name in alias:
                drawn.add_row(name.replace("_", " "), escape(str(alias[name])))
        for group in ("pool", "server_settings"):
            if group in alias:
                drawn.add_row(group.replace("_", " "), escape(", ".join(f"{k} {v}" for k, v in alias[group].items())))
        console.print(drawn)
    for message in found["checks"]:
        console.print(f"\n[yellow]{message['id']}[/yellow] {escape(message['message'])}\n  {escape(message['hint'])}")
    uses = found["could_become_runs"]
    console.print(f"\n{len(uses)} uses of sync_to_async in {escape(found['directory'])} could become runs.")
    for use in uses:
        console.print(f"  {escape(use['file'])}:{use['line']}  {escape(use['code'])}\n    {escape(use['instead'])}")


def show_bench(rows: Sequence[Row], stream: Any) -> None:
    """Write the figures as a table: medians, and the range over the rounds."""
    _console(stream).print(report.table(rows, spread=True))


def bench_as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the figures for programs."""
    return [report.plain(row) for row in rows]
