"""`python -m benchmarks [QUESTION ...]`: answers the questions, on the server of DATABASE_URL or an embedded one."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import QUESTIONS
from benchmarks.harness import figures, plots, tables
from benchmarks.harness.figures import Row
from benchmarks.harness.place import prepared
from benchmarks.harness.rounds import Bench
from benchmarks.harness.workers import Workers
from greenorm.demo.server import ServerFailed
from greenorm.demo.steps import Steps

RESULTS = Path(__file__).with_name("results")
QUICK_RESULTS = RESULTS / "quick"
ROUNDS, QUICK_ROUNDS = 9, 1
# Rows that are streamed.
STREAMED, QUICK_STREAMED = 1_000_000, 20_000


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
    output = chosen.output or (QUICK_RESULTS if chosen.quick else RESULTS)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed: dict[str, str] = {}
    try:
        if not chosen.report:
            rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS)
            failed = _measure(chosen.questions or list(QUESTIONS), rounds, chosen.quick, chosen.only, output)
        _report(output)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; what had been answered before is kept.\n")
        return 130
    return 1 if failed else 0


def _measure(questions: list[str], rounds: int, quick: bool, only: list[str] | None, output: Path) -> dict[str, str]:
    failed: dict[str, str] = {}
    try:
        with Steps() as steps:
            steps.begin("Starting PostgreSQL, filling tables")
            with prepared(QUICK_STREAMED if quick else STREAMED) as place:
                for question in questions:
                    steps.begin(question)
                    with Workers() as workers:
                        bench = Bench(place, workers, steps, rounds, quick, only)
                        _answer(bench, question, output)
                    failed |= bench.failed
    except (ImportError, ServerFailed) as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(2)
    for turn, reason in failed.items():
        sys.stderr.write(f"Failed: {turn}: {reason}\n")
    return failed


def _answer(bench: Bench, question: str, output: Path) -> None:
    """Write the figures after each situation, so that an end before the end loses no more than one."""
    since = monotonic()
    rows: list[Row] = []
    answer = {
        "question": question,
        "surroundings": figures.surroundings(bench.place.schema.server_version, bench.place.embedded),
        "quick": bench.quick,
        "rounds": bench.rounds,
        "complete": False,
        "rows": rows,
    }
    for more in import_module(f"benchmarks.{question}").measure(bench):
        rows += more
        figures.write(output, question, {**answer, **bench.absent()})
    answer |= {"complete": True, "seconds": round(monotonic() - since, 1)}
    figures.write(output, question, {**answer, **bench.absent()})


def _report(output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
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
