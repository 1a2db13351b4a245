"""`python -m greenorm demo`: the unchanged services of a Django project, called from asyncio in three ways."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from . import report
from .stage import Stage, perform

if TYPE_CHECKING:
    from .comparison import Comparison

# Requests of a turn, at once and one by one, and turns.
FULL = (500, 200, 3)
QUICK = (100, 50, 1)


def main(as_json: bool, quick: bool) -> None:
    """Run the demo, and write what came out of it to stdout. Raises what `stage.perform` raises."""

    async def act(stage: Stage) -> tuple[Stage, Comparison]:
        from .comparison import with_sync_to_async

        stage.steps.begin("Measuring")
        return stage, await with_sync_to_async(stage, *(QUICK if quick else FULL))

    stage, comparison = perform(act)
    if as_json:
        sys.stdout.write(json.dumps(_plain(stage, comparison), indent=2) + "\n")
    else:
        _tell(stage, comparison)


def _plain(stage: Stage, comparison: Comparison) -> dict[str, object]:
    return {
        "surroundings": report.surroundings(stage),
        "loaded": {**asdict(stage.loaded), "seconds": round(stage.load_seconds, 3)},
        "rows": [report.plain(row) for row in comparison.rows],
        "accounts": {"transfers": comparison.transfers, "balance": comparison.balance},
    }


def _tell(stage: Stage, comparison: Comparison) -> None:
    console = Console(highlight=False)
    loaded = stage.loaded
    console.print(
        f"{loaded.continents} continents, {loaded.countries} countries and {loaded.cities:,} cities were loaded in "
        f"{stage.load_seconds:.1f} s, by one transaction inside greenorm.run. The services "
        f"called below know nothing of asyncio: {Path(__file__).with_name('services.py')}\n"
    )
    console.print(report.table(comparison.rows))
    console.print(
        "\nStall: the longest time for which the event loop kept a task waiting that was due. One thread for all is "
        "what sync_to_async has outside of a request; under Django's ASGI handler each request has a thread of its own."
    )
    console.print(
        f"All gave the same results. After {comparison.transfers:,} transfers the accounts hold "
        f"{comparison.balance:,} together, as they did before."
    )
    console.print(report.sentence(report.surroundings(stage)))
