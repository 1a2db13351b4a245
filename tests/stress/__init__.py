"""Floods, faults and cancellations: what must hold when nothing goes well.

The tests in here are short and run with all others; `python -m tests.stress` runs the same for long. What is drawn by
lot comes from one seed, which is printed, and which GREENORM_STRESS_SEED or `--seed` names to have it again.

`proxy` is a network that does what it is told. `models` and `books` are what is worked on: money that must not be lost.
`footprint` and `stalls` are what is looked at meanwhile.
"""
