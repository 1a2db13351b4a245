"""The pools of a process as metrics of OpenTelemetry, by the package `opentelemetry-api`.

What its semantic conventions have a name for is called by it (`db.client.connection.count`); the rest is
`greenorm.pool.*`. Statements need nothing from here: see "Seeing inside" in README.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

from .metrics import COUNTED, figures

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
# In the words of PoolStats: name, unit, description.
PRESENT = {
    "max_size": ("db.client.connection.max", "{connection}", "Connections that may be open"),
    "min_size": ("db.client.connection.idle.min", "{connection}", "Idle connections that are kept"),
    "waiting": ("db.client.connection.pending_requests", "{request}", "Borrowers that wait for a connection"),
}


def register(meter_provider: MeterProvider | None = None) -> None:
    """Let the pools be observed by `meter_provider`, by default the global one. Once per provider."""
    meter = get_meter("greenorm", meter_provider=meter_provider)
    meter.create_observable_up_down_counter(
        "db.client.connection.count", [_count], "{connection}", "Connections of the pool, by state"
    )
    for field, named in PRESENT.items():
        meter.create_observable_up_down_counter(named[0], [partial(_observe, field)], *named[1:])
    for field, (name, unit, description) in COUNTED.items():
        name = "db.client.connection.timeouts" if field == "timeouts" else f"greenorm.pool.{name}"
        meter.create_observable_counter(name, [partial(_observe, field)], unit, description)


def _count(options: CallbackOptions) -> Iterable[Observation]:
    for stats in figures():
        yield Observation(stats.in_use, {POOL: stats.name, STATE: "used"})
        yield Observation(stats.idle, {POOL: stats.name, STATE: "idle"})


def _observe(field: str, options: CallbackOptions) -> Iterable[Observation]:
    return [Observation(getattr(stats, field), {POOL: stats.name}) for stats in figures()]
