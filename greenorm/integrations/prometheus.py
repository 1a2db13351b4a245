"""The pools of a process as a metric set of Prometheus, by the package `prometheus-client`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .metrics import COUNTED, figures


class PoolCollector(Collector):
    """Reads the figures anew each time that Prometheus asks."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; by label `pool`, which is the alias."""
        pools = figures()
        connections = GaugeMetricFamily(
            "greenorm_pool_connections", "Connections of the pool, by state", labels=["pool", "state"]
        )
        limit = GaugeMetricFamily("greenorm_pool_max_connections", "Connections that may be open", labels=["pool"])
        waiting = GaugeMetricFamily("greenorm_pool_waiting", "Borrowers that wait for a connection", labels=["pool"])
        for stats in pools:
            connections.add_metric([stats.name, "in_use"], stats.in_use)
            connections.add_metric([stats.name, "idle"], stats.idle)
            limit.add_metric([stats.name], stats.max_size)
            waiting.add_metric([stats.name], stats.waiting)
        yield from (connections, limit, waiting)
        for field, (name, unit, description) in COUNTED.items():
            name = f"greenorm_pool_{name}" + ("_seconds" if unit == "s" else "")
            counted = CounterMetricFamily(name, description, labels=["pool"])
            for stats in pools:
                counted.add_metric([stats.name], getattr(stats, field))
            yield counted


def register(registry: CollectorRegistry = REGISTRY) -> PoolCollector:
    """Let `registry` show the pools, and return the collector, for `registry.unregister`. Once per registry."""
    collector = PoolCollector()
    registry.register(collector)
    return collector
