"""What README's tables say of Django, and of the examples that they name."""

from __future__ import annotations

import re
from pathlib import Path

import django
import pytest

pytestmark = pytest.mark.no_database

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DJANGO = Path(django.__file__).parent
VERSIONS = ["5.2.19", "6.0.10", "6.1.3"]


def of_django() -> list[list[str]]:
    table = README.partition("<!-- django -->")[2].partition("<!-- /django -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()]
    assert rows[0][3:] == VERSIONS
    return rows[2:]


@pytest.mark.parametrize("row", of_django(), ids=lambda row: row[0])
def test_django_does_what_readme_says_of_it(row: list[str]) -> None:
    code, file, lines = row[1].strip("`"), row[2], row[3:]
    # Which line it is depends on the release; that it is there does not.
    column = [version.rpartition(".")[0] for version in VERSIONS].index(".".join(map(str, django.VERSION[:2])))
    if lines[column] == "-":
        assert code not in (DJANGO / file).read_text()
    else:
        found = [number for number, line in enumerate((DJANGO / file).read_text().splitlines(), 1) if code in line]
        assert found
        assert django.__version__ != VERSIONS[column] or int(lines[column]) in found


def test_django_has_no_async_connection_or_cursor_of_psycopg() -> None:
    for path in DJANGO.rglob("*.py"):
        source = path.read_text(errors="replace")
        assert "AsyncConnection" not in source, path
        assert "AsyncCursor" not in source, path


def test_every_example_that_readme_names_is_there_and_every_one_is_named() -> None:
    named = set(re.findall(r"\]\((tests/[\w/]+\.py)\)", README))
    assert all((ROOT / path).exists() for path in named)
    described = {"test_logging", "test_metrics", "test_opentelemetry", "test_sentry", "test_debug_toolbar"}
    for path in (ROOT / "tests" / "neighbours").glob("test_*.py"):
        assert path.stem in described or f"tests/neighbours/{path.name}" in named, path


def test_the_sections_that_readme_links_to_are_there() -> None:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors
