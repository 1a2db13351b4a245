"""Call a function of a test module in a process, and a Django project, of its own.

For what cannot be undone (Sentry patches Django for good) and what belongs into the settings of a project.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import django
from django.conf import settings

APPS = ["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "tests.shop"]
SECONDS = 600


def database(**options: Any) -> dict[str, Any]:
    """Return the settings of the tests' database, as they were before Django filled in defaults."""
    given = settings.DATABASES["default"]
    named = {name: given[name] for name in ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")}
    return {**named, **options}


def project(**changes: Any) -> dict[str, Any]:
    """Return the settings of a project on the tests' database."""
    return {
        "DATABASES": {"default": database()},
        "INSTALLED_APPS": ["greenorm", *APPS],
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "SECRET_KEY": "tests",
        "USE_TZ": True,
        "ALLOWED_HOSTS": ["testserver"],
        **changes,
    }


def apart(job: Callable[[], Any], **changes: Any) -> Any:
    """Return what `job`, a function of a module, returns in a process of its own, by way of JSON."""
    where = f"{job.__module__}:{job.__qualname__}"
    arguments = [sys.executable, "-m", "tests.neighbours.apart", where, json.dumps(project(**changes))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "ResourceWarning" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main(where: str, configured: str) -> None:
    settings.configure(**json.loads(configured))
    django.setup()
    module, _, name = where.partition(":")
    print(json.dumps(getattr(import_module(module), name)()))  # noqa: T201  # reason: that is how it answers
    sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main(*sys.argv[1:])
