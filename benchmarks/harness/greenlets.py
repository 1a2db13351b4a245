"""`turns.do_at_once` for gevent: clients and a ticker that are greenlets."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent

from .turns import TICK, Order, Outcome, requests_of


def do_at_once(do: Callable[[Any], Any], order: Order) -> Outcome:
    """Let many greenlets do the requests, until all are done or the deadline is there."""
    warm_up, requests = requests_of(order)
    _serve(do, warm_up, min(order.clients, 2 * order.connections), Outcome(), math.inf, math.inf)
    gc.collect()
    outcome = Outcome()
    ticking = gevent.spawn(_tick, outcome)
    try:
        gevent.sleep(2 * TICK)
        outcome.stalls.clear()
        since, cpu = time.perf_counter(), time.process_time()
        _serve(do, requests, order.clients, outcome, order.duration, order.deadline)
        outcome.seconds, outcome.cpu = time.perf_counter() - since, time.process_time() - cpu
        gevent.sleep(2 * TICK)
    finally:
        ticking.kill()
    return outcome


def _serve(
    do: Callable[[Any], Any], requests: Sequence[Any], clients: int, outcome: Outcome, duration: float, deadline: float
) -> None:
    waiting = iter(requests)
    started: dict[int, float] = {}
    until = time.perf_counter() + duration

    def client(number: int) -> None:
        for request in waiting:
            started[number] = since = time.perf_counter()
            outcome.finish(request, do(request), since)
            if time.perf_counter() > until:
                break
        del started[number]

    greenlets = [gevent.spawn(client, number) for number in range(min(clients, len(requests)))]
    gevent.joinall(greenlets, timeout=None if deadline == math.inf else deadline)
    now = time.perf_counter()
    outcome.unfinished = [now - since for since in started.values()]
    gevent.killall(greenlets)
    for greenlet in greenlets:
        if greenlet.exception is not None:
            raise greenlet.exception


def _tick(outcome: Outcome) -> None:
    while True:
        due = time.perf_counter() + TICK
        gevent.sleep(TICK)
        outcome.stalls.append(max(0.0, time.perf_counter() - due))
