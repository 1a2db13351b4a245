"""`python -m benchmarks [QUESTION ...]`: answers the questions, on the server of DATABASE_URL or an embedded one."""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
from importlib import import_module
from types import ModuleType

from rich.console import Console

import benchmarks
from greenorm.demo import report
from greenorm.demo.measure import Row
from greenorm.demo.server import ServerFailed
from greenorm.demo.stage import Stage, perform

ROUNDS = 7
# Of the usual work, where it is to be quick.
QUICK_SHARE = 0.1
# Columns that a table with its spread takes, where no terminal says what there is.
WIDTH = 150


def main() -> int:
    questions = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__"]
    parser = argparse.ArgumentParser("python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument(
        "questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(questions)}; all, if none is given"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contender, {ROUNDS} unless given")
    parser.add_argument("--quick", action="store_true", help="do a tenth of the work, to see whether it runs")
    parser.add_argument("--json", action="store_true", help="write the figures as JSON")
    chosen = parser.parse_args()
    if unknown := set(chosen.questions) - set(questions):
        parser.error(f"there is no question {', '.join(sorted(unknown))}; there is {', '.join(questions)}")
    asked = {name: import_module(f"benchmarks.{name}") for name in chosen.questions or questions}
    share = QUICK_SHARE if chosen.quick else 1.0

    async def act(stage: Stage) -> tuple[Stage, dict[str, list[Row]]]:
        answers = {}
        for name, question in asked.items():
            stage.steps.begin(name)
            answers[name] = await question.measure(stage, chosen.rounds, share)
        return stage, answers

    try:
        stage, answers = perform(act)
    except (ImportError, ServerFailed) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    if chosen.json:
        plain = {name: [report.plain(row) for row in rows] for name, rows in answers.items()}
        sys.stdout.write(json.dumps({"surroundings": report.surroundings(stage), "answers": plain}, indent=2) + "\n")
    else:
        _tell(asked, answers, report.surroundings(stage), chosen.rounds)
    return 0


def _tell(asked: dict[str, ModuleType], answers: dict[str, list[Row]], around: dict[str, object], rounds: int) -> None:
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    for name, rows in answers.items():
        console.print(f"[bold]{str(asked[name].__doc__).splitlines()[0]}[/bold]\n")
        console.print(report.table(rows, spread=True))
    console.print(
        f"\nMedian of {rounds} rounds (of stalls, threads and connections the highest), lowest..highest round."
    )
    console.print(f"{report.sentence(around)} {around['date']}")


if __name__ == "__main__":
    sys.exit(main())
