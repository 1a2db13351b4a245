"""A soak of some seconds, and its picture; `python -m tests.stress soak` has the long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from django.db import connections

from greenorm import driver

from .soak import Plan, soak
from .soak_faults import FAULTS
from .soak_picture import draw


@pytest.mark.one_loop
async def test_a_short_soak_goes_through_every_fault_and_loses_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections.settings["default"]["OPTIONS"], "pool", {"min_size": 0, "max_size": 4})
    for bound in ("CANCEL_SECONDS", "CLEANUP_SECONDS"):
        monkeypatch.setattr(driver, bound, getattr(driver, bound) / 10)
    plan = Plan(seed, 8, rate=5, sample_every=1, fault_every=0.4, fault_seconds=0.3, patience=2, healing=0)
    result = await soak(plan)
    assert result.wrong == [], f"seed {seed}"
    assert {name for _, name in result.faults} == {fault.__name__ for fault in FAULTS}
    assert json.loads(json.dumps(result.figures()))["operations"] == result.operations > 0


@pytest.mark.one_loop
@pytest.mark.no_database
def test_a_soak_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the dependency group `pictures`")
    sample = {"at": 5.0, "done": 9, "errors": {"TimeoutError": 1}, "p50": 0.01, "p99": 0.1, "stall_cpu": 0.0}
    sample |= {"rss": 10**8, "descriptors": 20, "greenlets": 3, "tasks": 2, "pool": 4, "waiting": 0}
    figures = {"plan": {"sample_every": 5.0}, "samples": [sample, {**sample, "at": 10.0}], "faults": [(6.0, "cut")]}
    draw(figures, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
