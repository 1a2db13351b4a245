"""Figures: medians with their spread, in one JSON file for each question."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeAlias

import greenorm

# As JSON has them.
Figure: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]
Answer: TypeAlias = dict[str, Any]

DISTRIBUTIONS = (
    "django",
    "psycopg",
    "psycopg-pool",
    "asgiref",
    "greenlet",
    "uvloop",
    "django-async-backend",
    "gevent",
    "sqlalchemy",
    "asyncpg",
    "tortoise-orm",
    "uvicorn",
    "gunicorn",
)


def figure(values: Sequence[float]) -> Figure:
    """Return the median of the rounds, their quartiles, lowest and highest, and how many there were."""
    quartiles = quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "median": _rounded(median(values)),
        "quartiles": [_rounded(quartiles[0]), _rounded(quartiles[2])],
        "range": [_rounded(min(values)), _rounded(max(values))],
        "rounds": len(values),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def surroundings(server_version: str, embedded: bool) -> dict[str, Any]:
    """Return what a figure is worth nothing without: date, machine and versions. No names of hosts."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load_before": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "postgresql": server_version,
        "embedded_server": embedded,
        "greenorm": greenorm.__version__,
        "versions": {name: found for name in DISTRIBUTIONS if (found := _version(name))},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write(directory: Path, question: str, answer: Answer) -> Path:
    """Write a question's figures, all or nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{question}.json"
    half = path.with_suffix(".json.half")
    half.write_text(json.dumps(answer, indent=1, allow_nan=False) + "\n")
    half.replace(path)
    return path


def read(directory: Path, question: str) -> Answer | None:
    """Return a question's figures, or None where it has not been answered."""
    path = directory / f"{question}.json"
    if not path.exists():
        return None
    answer: Answer = json.loads(path.read_text())
    return answer
