"""Draws a soak: latency, memory and descriptors, and what failed, over time, with each fault marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(figures: dict[str, Any], path: Path) -> None:
    """Draw the figures of a soak into a file. Raises ImportError where matplotlib is not installed."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    samples = figures["samples"]
    minutes = [sample["at"] / 60 for sample in samples]
    every = figures["plan"]["sample_every"]

    def each(name: str, unit: float = 1) -> list[float]:
        return [sample[name] / unit for sample in samples]

    figure, (latency, memory, failures) = plt.subplots(3, 1, sharex=True, figsize=(10, 8), layout="constrained")
    latency.plot(minutes, each("p50", 1e-3), label="p50")
    latency.plot(minutes, each("p99", 1e-3), label="p99")
    latency.set(yscale="log", ylabel="latency of what succeeds, ms")
    memory.plot(minutes, each("rss", 2**20), label="memory, MiB")
    memory.plot(minutes, each("descriptors"), label="descriptors")
    memory.plot(minutes, each("pool"), label="connections in the pool")
    memory.set(ylabel="of the process", ylim=(0, None))
    failures.plot(minutes, [sample["done"] / every for sample in samples], label="succeed")
    failures.plot(minutes, [sum(sample["errors"].values()) / every for sample in samples], label="fail")
    failures.set(ylabel="operations per second", xlabel="minutes", ylim=(0, None))
    for axes in (latency, memory, failures):
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
        for at, _ in figures["faults"]:
            axes.axvline(at / 60, color="tab:red", alpha=0.3, linewidth=1)
    for at, name in figures["faults"]:
        latency.annotate(name, (at / 60, 1), xycoords=("data", "axes fraction"), rotation=60, fontsize=7, va="bottom")
    figure.savefig(path, dpi=110)
    plt.close(figure)
