"""Django's sync ORM in gevent's greenlets: the process is patched before anything else is imported.

Each greenlet would connect for itself. As many wrappers as there may be connections are opened instead, and handed from
greenlet to greenlet, which costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from django.db import connections
from gevent.queue import LifoQueue

from benchmarks.harness.target import Target

from .django_family import FUNCTIONS, STOCK, Works, configure


@contextmanager
def opened(target: Target) -> Generator[Works]:
    """Open the wrappers, and call each function with one of them."""
    configure(target, STOCK)
    free: LifoQueue[Any] = LifoQueue()
    wrappers = [connections.create_connection("default") for _ in range(target.connections)]
    for wrapper in wrappers:
        wrapper.inc_thread_sharing()
        wrapper.ensure_connection()
        free.put(wrapper)

    def call(fn: Callable[[Any], Any], request: Any) -> Any:
        wrapper = free.get()
        connections["default"] = wrapper
        try:
            return fn(request)
        finally:
            free.put(wrapper)

    try:
        yield {name: partial(call, fn) for name, fn in FUNCTIONS.items()}
    finally:
        for wrapper in wrappers:
            wrapper.close()
