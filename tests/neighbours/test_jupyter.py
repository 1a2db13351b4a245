"""Jupyter and IPython: `await greenorm.run(...)` at the top level of a cell."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.neighbours import needs
from tests.neighbours.apart import SECONDS, project

needs("ipykernel")

from jupyter_client.manager import KernelManager

SETUP = """
import json, sys, asyncio
import django
from django.conf import settings
settings.configure(**json.loads(%r))
django.setup()
import greenorm
from tests.shop.models import Owner
"""


class Notebook:
    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, cell: str) -> str:
        """Run a cell, and return what it shows, or the name of the error that it raises."""
        shown: list[str] = []

        def show(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "execute_result":
                shown.append(content["data"]["text/plain"])
            if message["msg_type"] == "error":
                shown.append(content["ename"])

        self.client.execute_interactive(cell, output_hook=show, timeout=SECONDS)
        return "".join(shown)


@pytest.fixture(scope="module")
def notebook() -> Iterator[Notebook]:
    # The kernel of this very Python, whatever kernels are installed.
    manager = KernelManager()
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=SECONDS)
        yield Notebook(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cells_await_runs_and_share_one_pool(notebook: Notebook) -> None:
    assert notebook.run(SETUP % json.dumps(project())) == ""
    assert notebook.run("await greenorm.run(Owner.objects.create, name='Ada')") == "<Owner: Ada>"
    assert notebook.run("await greenorm.run(list, Owner.objects.all())") == "[<Owner: Ada>]"
    assert notebook.run("[owner async for owner in Owner.objects.all()]") == "[<Owner: Ada>]"
    cell = "async with greenorm.atomic():\\n    await Owner.objects.acreate(name='Bob')\\n    raise ZeroDivisionError"
    assert notebook.run(cell.replace("\\n", "\n")) == "ZeroDivisionError"
    assert notebook.run("await Owner.objects.acount(), greenorm.pool_stats().in_use") == "(1, 0)"
    assert notebook.run("greenorm.pool_stats().opened") == "1"
    assert notebook.run("len(Owner.objects.all())") == "NotInRun"
