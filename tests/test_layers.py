"""The order of the layers: imports go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import greenorm

pytestmark = pytest.mark.no_database

PACKAGE = Path(greenorm.__file__).parent
# From the lowest to the highest; modules of one line do not import each other, but for the marked ones.
LAYERS = [
    ["errors"],
    ["bridge"],
    ["readiness"],
    ["shortcuts", "touch"],
    ["cursors"],
    ["driver"],
    ["pool_options"],
    ["pool"],
    ["turns", "conf", "kept"],
    ["sharing"],
    ["shares", "testing"],
    ["scope"],
    ["tasks"],
    ["hooks", "backends.pooling"],
    ["backends.mixin"],
    ["backends.postgresql.base", "backends.postgis.base"],
    ["api", "blocks", "iteration"],
    ["adapters", "decorator"],
    ["integrations.routing", "integrations.transaction_atomic", "integrations.awaitable_querysets"],
    ["integrations.async_methods", "integrations.lifespan", "integrations.bodies", "integrations.blocking"],
    ["integrations.departure", "integrations.stalls", "integrations.metrics", "checks"],
    ["integrations.asgi", "integrations.prometheus", "integrations.opentelemetry", "integrations.debug_toolbar"],
    ["apps", "management.scan", "management.bench", "management.shown"],
    ["management.doctor"],
    ["management.commands.greenorm"],
    ["__init__"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def imported(module: str) -> set[str]:
    """Modules of greenorm that `module` imports at run time, by the text of its import statements."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level or id(node) in typing_only:
            continue
        package = module.split(".")[: -node.level]
        base = [*package, *(node.module.split(".") if node.module else [])]
        names = [".".join(base)] if node.module else []
        names += [".".join([*base, alias.name]) for alias in node.names]
        found |= {name for name in names if name in LEVEL}
    return found


@pytest.mark.parametrize("module", LEVEL)
def test_imports_go_down_only(module: str) -> None:
    for other in imported(module):
        assert LEVEL[other] < LEVEL[module], f"{module} imports {other}"


def test_every_module_has_its_layer() -> None:
    modules = {
        str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
        for path in PACKAGE.rglob("*.py")
        if "demo" not in path.parts and path.name != "__main__.py"
    }
    assert {module for module in modules if not module.endswith("__init__") or module == "__init__"} == set(LEVEL)


@pytest.mark.parametrize("module", [module for module in LEVEL if module != "bridge"])
def test_only_the_bridge_imports_greenlet(module: str) -> None:
    source = (PACKAGE / (module.replace(".", "/") + ".py")).read_text()
    assert "greenlet" not in {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }


def test_the_bridge_knows_neither_django_nor_psycopg() -> None:
    source = (PACKAGE / "bridge.py").read_text()
    assert "import django" not in source
    assert "from django" not in source
    assert "import psycopg" not in source
    assert "from psycopg" not in source
