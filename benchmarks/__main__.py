"""`python -m benchmarks [QUESTION ...]`: answers the questions, on the server of DATABASE_URL or an embedded one."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from benchmarks import QUESTIONS

RESULTS = Path(__file__).with_name("results")
QUICK_RESULTS = RESULTS / "quick"
ROUNDS, QUICK_ROUNDS = 9, 1
# Rows that are streamed.
STREAMED, QUICK_STREAMED = 1_000_000, 20_000
NEEDED = {"rich": "rich", "psutil": "psutil", "django": "django"}


def main() -> int:
    """Do what the command line says, and return the exit code: 1 if a contender failed, 2 if nothing can be done."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measures greenorm beside its alternatives, and writes the figures as JSON, as a table in Markdown "
        "and as plots. A question that is asked again replaces its own figures only.",
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(QUESTIONS)}; all, if none")
    parser.add_argument(
        "--rounds", type=int, help=f"turns of each contender, {ROUNDS} unless given; quick {QUICK_ROUNDS}"
    )
    parser.add_argument("--quick", action="store_true", help="take about a minute, for figures that say little")
    parser.add_argument("--only", action="append", metavar="NAME", help="contenders to be compared; may be repeated")
    parser.add_argument("--output", type=Path, metavar="DIRECTORY", help="where the figures go and are read")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing: write tables and plots from the figures"
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.questions) - set(QUESTIONS):
        parser.error(f"there is no question {', '.join(sorted(unknown))}; there is {', '.join(QUESTIONS)}")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        sys.stderr.write(f"The benchmarks need {' and '.join(missing)}: pip install -e '.[test]' --group bench\n")
        return 2
    output = chosen.output or (QUICK_RESULTS if chosen.quick else RESULTS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: dict[str, str] = {}
    try:
        if not chosen.report:
            rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
            failed = _measure(chosen.questions or list(QUESTIONS), rounds, chosen.quick, chosen.only, output)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; what had been answered before is kept.\n")
        return 130
    _report(output)
    return 1 if failed else 0


def _measure(questions: list[str], rounds: int, quick: bool, only: list[str] | None, output: Path) -> dict[str, str]:
    from benchmarks.harness import figures
    from benchmarks.harness.place import prepared
    from benchmarks.harness.rounds import Bench
    from benchmarks.harness.workers import Workers
    from greenorm.demo.server import ServerFailed
    from greenorm.demo.steps import Steps

    failed: dict[str, str] = {}
    try:
        with Steps() as steps:
            steps.begin("Starting PostgreSQL, filling tables")
            with prepared(QUICK_STREAMED if quick else STREAMED) as place:
                for question in questions:
                    steps.begin(question)
                    since = monotonic()
                    around = figures.surroundings(place.schema.server_version, place.embedded)
                    with Workers() as workers:
                        bench = Bench(place, workers, steps, rounds, quick, only)
                        rows = import_module(f"benchmarks.{question}").measure(bench)
                    answer = {
                        "question": question,
                        "surroundings": around,
                        "quick": quick,
                        "rounds": rounds,
                        "seconds": round(monotonic() - since, 1),
                        **bench.absent(),
                        "rows": rows,
                    }
                    figures.write(output, question, answer)
                    failed |= bench.failed
    except (ImportError, ServerFailed) as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(2)
    for turn, reason in failed.items():
        sys.stderr.write(f"Failed: {turn}: {reason}\n")
    return failed


def _report(output: Path) -> None:
    from rich.console import Console
    from rich.markdown import Markdown

    from benchmarks.harness import plots, tables

    drawn = plots.draw_all(output)
    text = tables.report(output, drawn)
    written = tables.put_into_readme(RESULTS.parent / "README.md", text) if output == RESULTS else output / "README.md"
    if output != RESULTS:
        written.write_text(text)
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        sys.stdout.write(text)
    console.print(
        f"Figures: {output}; tables: {written}" + ("" if drawn else "; no plots: matplotlib is not installed")
    )


if __name__ == "__main__":
    sys.exit(main())
