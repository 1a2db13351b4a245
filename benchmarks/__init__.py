"""One file for each question, one harness for all: `python -m benchmarks --help`.

A question is a module here. Its docstring's first line asks it, and its `measure` answers it: a coroutine function of
the stage (the demo's project with all its data), the number of rounds and the share of the usual work to be done, that
returns rows of `greenorm.demo.measure`.
"""
