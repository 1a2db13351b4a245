"""One file for each question, one harness for all: `python -m benchmarks --help`.

A question is a module here. Its docstring's first line asks it, and its `measure` answers it with rows: a function of
`harness.rounds.Bench`. `harness.tables` writes each question's rows as Markdown, `harness.plots` draws them.
"""

QUESTIONS = ("round_trip", "heavier_work", "concurrency", "waiting", "asgi")
