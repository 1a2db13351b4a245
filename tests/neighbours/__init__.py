"""greenorm beside other packages, each by its real code: one file per package, skipped where that is absent."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest


def needs(package: str) -> Any:
    """Import `package`, or skip the file. With GREENORM_NEIGHBOURS set, an absent one is an error."""
    if os.environ.get("GREENORM_NEIGHBOURS"):
        return import_module(package)
    return pytest.importorskip(package, reason=f"{package} is not installed: pip install --group neighbours")
