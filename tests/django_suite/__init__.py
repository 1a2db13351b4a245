"""Django's own tests against greenorm: `python -m tests.django_suite`.

The same labels run against Django's stock backend and against greenorm's, each time in a process of its own, and the
outcomes are compared test by test. What may differ is in known.toml, with the reason.

`sources` gets Django's tests, `__main__` starts and compares; in the other process `worker` runs Django's runtests.py
with `settings`, and `recorder` notes what came of each test.
"""
