"""A short cancellation storm; `python -m tests.stress storm` has the long one."""

from __future__ import annotations

import pytest
from django.db import connections

from .storm import Plan, storm


async def test_a_storm_of_cancellations_loses_nothing_and_leaves_nothing(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections["default"].settings_dict["OPTIONS"], "pool", {"min_size": 0, "max_size": 6})
    result = await storm(Plan(seed, operations=600, cancellations=300, clients=24))
    assert result.wrong == [], f"seed {seed}"
    assert result.operations >= 600
    assert result.cancellations >= 300
