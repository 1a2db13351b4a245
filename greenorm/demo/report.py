"""Says what was measured: a table for people, plain values for programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich import box
from rich.table import Table

import greenorm

from .measure import Figure, Row
from .stage import Stage

# Column, attribute of a row, digits after the point.
COLUMNS: list[tuple[str, str, int]] = [
    ("requests\nper second", "requests_per_second", 0),
    ("median\nms", "p50_ms", 1),
    ("p99\nms", "p99_ms", 1),
    ("stall\nms", "longest_stall_ms", 1),
    ("threads", "threads", 0),
    ("connec-\ntions", "connections", 0),
]


def table(rows: Sequence[Row], spread: bool = False) -> Table:
    """Return the rows as a table, a section for each situation; with the range over the rounds where asked for."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    drawn.add_column("", no_wrap=True)
    for name, _, _ in COLUMNS:
        drawn.add_column(name, justify="right", vertical="bottom")
    situation = None
    for row in rows:
        if row.situation != situation:
            situation = row.situation
            drawn.add_section()
            drawn.add_row(f"[bold]{situation}[/bold]")
        drawn.add_row(f" {row.contender}", *(_cell(getattr(row, name), digits, spread) for _, name, digits in COLUMNS))
    return drawn


def _cell(figure: Figure, digits: int, spread: bool) -> str:
    if not spread or figure.lowest == figure.highest:
        return _number(figure.value, digits)
    return f"{_number(figure.value, digits)}  {_number(figure.lowest, digits)}..{_number(figure.highest, digits)}"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits if value < 1000 else 0}f}"


def plain(row: Row) -> dict[str, Any]:
    """Return a row for programs: each figure by its name, and under `spread` its lowest and highest round."""
    values = asdict(row)
    spread: dict[str, list[float]] = {}
    for _, name, _ in COLUMNS:
        figure: Figure = getattr(row, name)
        values[name] = round(figure.value, 3)
        spread[name] = [round(figure.lowest, 3), round(figure.highest, 3)]
    return {**values, "spread": spread}


def surroundings(stage: Stage) -> dict[str, Any]:
    """Return what a figure is worth nothing without: machine, versions and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "postgresql": stage.schema.server_version,
        "embedded_server": stage.embedded,
        "greenorm": greenorm.__version__,
        **{name: version(name) for name in ("django", "psycopg", "greenlet", "asgiref")},
    }


def sentence(around: dict[str, Any]) -> str:
    """Return the surroundings in words."""
    return (
        f"greenorm {around['greenorm']}, Django {around['django']}, psycopg {around['psycopg']}, "
        f"Python {around['python']}, PostgreSQL {around['postgresql']}{' (embedded)' * around['embedded_server']}, "
        f"{around['cpus']} CPUs."
    )
