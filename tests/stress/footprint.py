"""What a process holds: tasks, greenlets, descriptors, threads, objects, memory."""

from __future__ import annotations

import asyncio
import gc
import threading
from dataclasses import asdict, dataclass

import greenlet
import psutil


@dataclass(frozen=True, slots=True)
class Footprint:
    """What was there at one moment. To be taken from the running loop."""

    tasks: int
    greenlets: int
    descriptors: int
    threads: int
    objects: int
    """Objects that the garbage collector knows, after it has run."""
    rss: int
    """Bytes of memory."""

    @classmethod
    def take(cls, collect: bool = True) -> Footprint:
        """Look, after a full collection unless there is to be none."""
        if collect:
            gc.collect()
            gc.collect()
        known = gc.get_objects()
        process = psutil.Process()
        return cls(
            tasks=len(asyncio.all_tasks()),
            greenlets=sum(
                issubclass(type(thing), greenlet.greenlet) for thing in known
            ),  # isinstance() wakes lazy objects
            descriptors=process.num_fds(),
            threads=threading.active_count(),
            objects=len(known),
            rss=process.memory_info().rss,
        )

    def grown_since(self, before: Footprint) -> dict[str, int]:
        """Return by how much each figure has grown."""
        former = asdict(before)
        return {name: value - former[name] for name, value in asdict(self).items()}
