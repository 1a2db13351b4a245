"""Each question's figures as a table in Markdown: medians with their quartiles, and who is not in it, and why."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import QUESTIONS

from . import figures
from .figures import Answer, Figure, Row
from .works import WORKS

BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Column:
    """A column: its title, the figure it shows, digits after the point, and whether with its quartiles."""

    title: str
    name: str
    digits: int = 0
    spread: bool = False


COST = [
    Column("CPU, times the floor's", "cpu_ratio", 2, True),
    Column("time, times the floor's", "wall_ratio", 2, True),
    Column("CPU µs", "cpu_us", 0),
    Column("time µs", "wall_us", 0),
]
NOOP = [
    Column("CPU, times sync_to_async's", "cpu_ratio", 3, True),
    Column("CPU µs", "cpu_us", 1, True),
    Column("time µs", "wall_us", 1),
]
STREAM = [
    Column("CPU µs per row", "cpu_us", 2, True),
    Column("time µs per row", "wall_us", 2),
    Column("most memory MiB", "memory_mib", 0),
    Column("longest stall ms", "stall_ms", 1),
]
CONCURRENCY = [
    Column("per second", "per_second", 0, True),
    Column("greenorm answers, times", "greenorm_times", 2, True),
    Column("median ms", "p50_ms", 1),
    Column("p99 ms", "p99_ms", 1, True),
    Column("stall p99 ms", "stall_p99_ms", 1),
    Column("CPU µs per query", "cpu_us", 0),
    Column("memory MiB", "memory_mib", 0),
    Column("threads", "threads", 0),
]
WAITING = [
    Column("bytes each", "bytes_each", 0, True),
    Column("CPU of a `get()` beside them, times", "cpu_beside", 2, True),
]
ASGI = [
    Column("requests per second", "per_second", 0, True),
    Column("median ms", "p50_ms", 1),
    Column("p99 ms", "p99_ms", 1, True),
    Column("CPU µs per request", "cpu_us", 0),
    Column("memory MiB", "memory_mib", 0),
    Column("threads", "threads", 0),
]
WAITED_FOR = {
    "connection": "waiting for a connection",
    "await_": "waiting in `await_`",
    "tasks": "waiting for an event, without greenorm",
}


def report(directory: Path, drawn: Sequence[Path]) -> str:
    """Return all tables, with their surroundings and the plots that there are."""
    parts = []
    for question in QUESTIONS:
        answer = figures.read(directory, question)
        plots = [path for path in drawn if path.stem.startswith(question)]
        parts.append("\n".join(_section(question, answer, plots)))
    return "\n\n".join(parts) + "\n"


def put_into_readme(readme: Path, text: str, plots: str = "results") -> Path:
    """Put the tables between their marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{text.replace('](', f']({plots}/')}\n{END}{after}")
    return readme


def _section(question: str, answer: Answer | None, plots: Sequence[Path]) -> Iterator[str]:
    asked, _, more = _doc(question).partition("\n\n")
    yield f"## {asked}\n"
    yield f"`{question}.py`. {more.strip()}\n" if more else f"`{question}.py`.\n"
    if answer is None:
        yield f"Not measured yet: `python -m benchmarks {question}`."
        return
    for path in plots:
        yield f"![{path.stem.replace('_', ' ')}]({path.name})\n"
    yield from _tables(question, answer["rows"])
    yield from _absent(answer)
    yield f"\n{_sentence(answer)}"


def _doc(question: str) -> str:
    # Read, not imported: a report needs none of the libraries.
    return ast.get_docstring(ast.parse((PACKAGE / f"{question}.py").read_text())) or question


def _tables(question: str, rows: Sequence[Row]) -> Iterator[str]:
    for situation in dict.fromkeys(row["situation"] for row in rows):
        of_it = [row for row in rows if row["situation"] == situation]
        title, columns = _columns(question, situation)
        columns = [column for column in columns if any(column.name in row for row in of_it)]
        yield f"| **{title}** | {' | '.join(column.title for column in columns)} |"
        yield f"| --- |{' ---: |' * len(columns)}"
        for row in sorted(of_it, key=lambda row: _order(row, columns[0])):
            yield f"| {row['contender']} | {' | '.join(_cell(row, column) for column in columns)} |"
        yield ""


def _columns(question: str, situation: str) -> tuple[str, list[Column]]:
    if situation == "noop":
        return WORKS[situation].title, NOOP
    if situation == "stream":
        return WORKS[situation].title, STREAM
    if situation in WORKS:
        return WORKS[situation].title, COST
    if question == "waiting":
        return WAITED_FOR[situation], WAITING
    return (f"{situation} to the database", ASGI) if question == "asgi" else (situation, CONCURRENCY)


def _order(row: Row, column: Column) -> float:
    value: float = row.get(column.name, {}).get("median", 0.0)
    return -value if column.name == "per_second" else value


def _cell(row: Row, column: Column) -> str:
    figure: Figure | None = row.get(column.name)
    if figure is None:
        return ""
    # Calls that had not come back at the deadline have been waiting for at least so long.
    least = "≥ " if column.name in ("p99_ms", "p50_ms") and row.get("unfinished", {}).get("median", 0) > 0 else ""
    text = least + number(figure["median"], column.digits)
    low, high = figure["quartiles"]
    if column.spread and figure["rounds"] > 1:
        text += f" ({number(low, column.digits)}..{number(high, column.digits)})"
    return text


def number(value: float, digits: int) -> str:
    """Return a number with thousands apart, and digits after the point where it is small enough for them."""
    return f"{value:,.{digits if value < 1000 else 0}f}"


def _absent(answer: Answer) -> Iterator[str]:
    for label, reason in answer["missing"].items():
        yield f"Not there: {label} ({reason})."
    for place, reason in answer["failed"].items():
        yield f"Failed: {place}: {' '.join(reason.split())[:200]}"
    for label, works in answer["cannot"].items():
        titles = ", ".join(WORKS[work].title for work in works)
        yield f"Has no means for it: {label} ({titles})."


def _sentence(answer: Answer) -> str:
    around: dict[str, Any] = answer["surroundings"]
    versions = ", ".join(f"{name} {version}" for name, version in around["versions"].items())
    server = f"PostgreSQL {around['postgresql']}{' (embedded)' * around['embedded_server']}"
    words = [f"Medians of up to {answer['rounds']} round{'s' * (answer['rounds'] > 1)}, with quartiles."]
    if answer["quick"]:
        words.append("A quick run, which says little.")
    if not answer["complete"]:
        words.append("Ended before all was measured.")
    if around["load_before"][0] > around["cpus"] / 2:
        words.append(
            "**The machine had other work to do meanwhile**: trust no figure in seconds, and ratios of CPU most."
        )
    words.append(
        f"{around['date'][:10]}, {around['cpus']} cores of {around['processor'] or around['machine']}, load "
        f"{around['load_before'][0]} before the start, {around['system']}, Python {around['python']}, {server}, "
        f"greenorm {around['greenorm']}, {versions}."
    )
    return " ".join(words)
