"""A project as its type checkers see it: Django's stubs, with mypy's plugin and with pyright. Checked, never run."""
