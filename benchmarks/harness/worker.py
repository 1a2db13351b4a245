"""A process in which contenders have their turns. Asked by lines of JSON on stdin, answers by lines on stdout.

A program: `python -m benchmarks.harness.worker PROCESS`, which ends with its stdin. What it can import is what the
contenders of that process need.
"""

from __future__ import annotations

import sys

if sys.argv[1:] == ["gevent"]:
    from gevent import monkey

    monkey.patch_all()

import asyncio
import json
import traceback
from dataclasses import asdict
from importlib import import_module
from typing import Any

import django
from django.conf import settings

from benchmarks.contenders import ALL, Contender

from .target import Target
from .turns import Checker, Order, Outcome, do_at_once, do_in_sync, do_in_turn
from .works import WORKS


def main(process: str) -> None:
    """Answer orders until there are no more."""
    # Nothing that a contender writes may come between the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    _set_up(process)
    checkers: dict[str, Checker] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["order"] == "waiting":
            from .waiting_runs import measure

            answer = _answered(measure, asked["waiting"])
        else:
            order = Order(**asked["turn"])
            checker = checkers.setdefault(order.schema, Checker(asked["near"]))
            answer = _answered(take_turn, order, checker)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answered(do: Any, *args: Any) -> dict[str, Any]:
    try:
        return do(*args)
    except Exception as exc:
        return {"error": "".join(traceback.format_exception_only(exc)).strip(), "traceback": traceback.format_exc()}


def _set_up(process: str) -> None:
    apps = ["benchmarks.project"]
    engine = "django.db.backends.postgresql"
    if process == "django-async-backend":
        apps.append("django_async_backend")
        engine = "django_async_backend.db.backends.postgresql"
    # The server is named by each order.
    settings.configure(
        DATABASES={"default": {"ENGINE": engine, "NAME": "-"}},
        INSTALLED_APPS=apps,
        USE_TZ=True,
        ASYNC_BACKEND_DISABLE_POOL_WARNING=True,
    )
    django.setup()


def take_turn(order: Order, checker: Checker) -> dict[str, Any]:
    """Let a contender do its work. Raises Wrong where its results are."""
    contender = ALL[order.contender]
    module, _, name = contender.opened.partition(":")
    opened = getattr(import_module(module), name)
    target = Target(order.dsn, order.schema, order.connections)
    before = checker.before(order)
    outcome = _perform(contender, opened, target, order)
    if outcome is None:
        return {"cannot": True}
    warm_up = 1 if order.work == "stream" else order.warm_up
    checker.after(order, before, outcome.done + warm_up, outcome)
    return {**outcome.summary(), "queries": WORKS[order.work].queries, "order": asdict(order)}


def _perform(contender: Contender, opened: Any, target: Target, order: Order) -> Outcome | None:
    if contender.loop in ("none", "gevent"):
        with opened(target) as works:
            if order.work not in works or (contender.loop == "none" and order.clients > 1):
                return None
            if contender.loop == "gevent" and order.clients:
                from .greenlets import do_at_once as in_greenlets

                return in_greenlets(works[order.work], order)
            return do_in_sync(works[order.work], order)

    async def perform() -> Outcome | None:
        async with opened(target) as works:
            if order.work not in works:
                return None
            return await (do_at_once if order.clients else do_in_turn)(works[order.work], order)

    with asyncio.Runner(loop_factory=_loop(contender)) as runner:
        return runner.run(perform())


def _loop(contender: Contender) -> Any:
    if contender.loop == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop


if __name__ == "__main__":
    main(sys.argv[1])
