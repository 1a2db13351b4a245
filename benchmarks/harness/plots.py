"""Pictures of the figures, where matplotlib is installed: bars with quartiles, and lines over tasks and time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import QUESTIONS

from . import figures
from .figures import Answer, Row
from .works import WORKS

OURS, OTHERS = "#2a7f4f", "#8a94a6"
DPI = 110


def draw_all(directory: Path) -> list[Path]:
    """Draw what there are figures for, and return the pictures."""
    if find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("agg")
    drawn: list[Path] = []
    for question in QUESTIONS:
        answer = figures.read(directory, question)
        if answer is not None and answer["rows"]:
            drawn += DRAW[question](answer, directory)
    return drawn


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return path


def _is_ours(label: str) -> bool:
    return label.startswith("greenorm")


def _bars(axes: Any, rows: Sequence[Row], name: str, title: str, floor: float | None = None) -> None:
    rows = sorted((row for row in rows if name in row), key=lambda row: -row[name]["median"])
    medians = [row[name]["median"] for row in rows]
    errors = [
        [row[name]["median"] - row[name]["quartiles"][0] for row in rows],
        [row[name]["quartiles"][1] - row[name]["median"] for row in rows],
    ]
    colours = [OURS if _is_ours(row["contender"]) else OTHERS for row in rows]
    places = range(len(rows))
    axes.barh(places, medians, xerr=errors, color=colours, height=0.7, error_kw={"lw": 0.8})
    axes.set_yticks(places, [row["contender"] for row in rows], fontsize=7)
    if floor is not None:
        axes.axvline(floor, color="black", lw=0.7, ls=":")
    axes.set_title(title, fontsize=9)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _costs(answer: Answer, directory: Path) -> list[Path]:
    from matplotlib.figure import Figure

    works = [work for work in dict.fromkeys(row["situation"] for row in answer["rows"]) if work != "stream"]
    picture = Figure(figsize=(5.2 * len(works), 4.6), layout="constrained")
    all_axes = picture.subplots(1, len(works), squeeze=False)[0]
    for axes, work in zip(all_axes, works, strict=True):
        rows = [row for row in answer["rows"] if row["situation"] == work]
        title = f"{WORKS[work].title.replace('`', '')}\nCPU, times that of {rows[0]['floor']}"
        _bars(axes, rows, "cpu_ratio", title, 1.0)
    drawn = [_save(picture, directory / f"{answer['question']}.png")]
    if streams := [row for row in answer["rows"] if row["situation"] == "stream"]:
        picture = Figure(figsize=(7, 4), layout="constrained")
        axes = picture.subplots()
        for row in streams:
            seconds, sizes = zip(*row["memory_over_time"], strict=True)
            width = 2.2 if _is_ours(row["contender"]) else 1.0
            axes.plot(seconds, [size / 2**20 for size in sizes], label=row["contender"], lw=width)
        axes.set_xlabel("seconds")
        axes.set_ylabel("resident MiB")
        axes.set_ylim(bottom=0)
        axes.set_title(f"{streams[0]['rows']:,} rows streamed", fontsize=9)
        axes.legend(fontsize=7)
        drawn.append(_save(picture, directory / f"{answer['question']}_stream.png"))
    return drawn


def _concurrency(answer: Answer, directory: Path) -> list[Path]:
    from matplotlib.figure import Figure

    rows = answer["rows"]
    main = [row for row in rows if row["situation"] == rows[0]["situation"]]
    picture = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = picture.subplots(1, 2)
    _bars(left, main, "per_second", f"{main[0]['situation']}: get() per second")
    _bars(right, main, "p99_ms", f"{main[0]['situation']}: p99 ms")
    drawn = [_save(picture, directory / "concurrency.png")]
    if len({row["clients"] for row in rows}) == 1:
        return drawn
    delays = sorted({row["delay_ms"] for row in rows})
    picture = Figure(figsize=(4.2 * len(delays), 4.2), layout="constrained")
    all_axes = picture.subplots(1, len(delays), squeeze=False, sharey=True)[0]
    for axes, delay in zip(all_axes, delays, strict=True):
        for label in dict.fromkeys(row["contender"] for row in rows):
            points = sorted(
                (row["clients"], row["per_second"]["median"])
                for row in rows
                if (row["delay_ms"], row["contender"]) == (delay, label)
            )
            if len(points) > 1:
                axes.plot(*zip(*points, strict=True), marker=".", label=label, lw=2.2 if _is_ours(label) else 1.0)
        axes.set_xscale("log")
        axes.set_title(f"+{delay} ms", fontsize=9)
        axes.set_xlabel("tasks")
    all_axes[0].set_ylabel("get() per second")
    if handles := all_axes[0].get_legend_handles_labels()[0]:
        picture.legend(handles=handles, loc="outside right", fontsize=7)
    return [*drawn, _save(picture, directory / "concurrency_tasks.png")]


def _waiting(answer: Answer, directory: Path) -> list[Path]:
    from matplotlib.figure import Figure

    rows = [
        {**row, "contender": f"{row['contender']}, in await_" if row["situation"] == "await_" else row["contender"]}
        for row in answer["rows"]
    ]
    picture = Figure(figsize=(7, 3.6), layout="constrained")
    _bars(picture.subplots(), rows, "bytes_each", f"{rows[0]['count']:,} calls that wait: bytes each")
    return [_save(picture, directory / "waiting.png")]


def _asgi(answer: Answer, directory: Path) -> list[Path]:
    from matplotlib.figure import Figure

    situations = list(dict.fromkeys(row["situation"] for row in answer["rows"]))
    picture = Figure(figsize=(5.5 * len(situations), 3), layout="constrained")
    for axes, situation in zip(picture.subplots(1, len(situations), squeeze=False)[0], situations, strict=True):
        rows = [row for row in answer["rows"] if row["situation"] == situation]
        _bars(axes, rows, "per_second", f"{situation}: requests per second on one core")
    return [_save(picture, directory / "asgi.png")]


DRAW = {
    "round_trip": _costs,
    "heavier_work": _costs,
    "concurrency": _concurrency,
    "waiting": _waiting,
    "asgi": _asgi,
}
