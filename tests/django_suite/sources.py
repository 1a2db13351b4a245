"""Django's own tests, from the source distribution of a release."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django


def django_tests(version: str) -> Path:
    """Return the directory of Django's tests, downloaded by pip when first asked for. Blocks meanwhile.

    Ends the program, saying what to do, where `version` is not the installed one: the tests import that one.
    """
    if version != django.__version__:
        raise SystemExit(
            f"Django {django.__version__} is installed, and its tests run with their own version only. "
            f"For {version}: pip install 'django=={version}', or use the Python of an environment that has it."
        )
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / (
        "Library/Caches" if sys.platform == "darwin" else ".cache"
    )
    kept = Path(os.environ.get("GREENORM_CACHE") or Path(cache, "greenorm"), f"django-{version}")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            _download(version, directory)
            try:
                Path(directory, "tests").rename(kept)
            except OSError:
                if not kept.exists():  # else another process was faster
                    raise
    return kept


def _download(version: str, directory: str) -> None:
    # pip knows the index, its mirror, proxy and certificates. It also reads the metadata, and gets Django's build
    # backend for that, into an environment of its own.
    options = ["--quiet", "--no-deps", "--no-binary=django", f"--dest={directory}"]
    pip = [sys.executable, "-m", "pip", "download", *options, f"django=={version}"]
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"The source of Django {version} could not be had by: {' '.join(pip)}")
    with tarfile.open(next(Path(directory).glob("*.tar.gz"))) as archive:
        for member in archive:
            _, _, member.name = member.name.partition("/")
            if member.name.startswith("tests/"):
                archive.extract(member, directory, filter="data")
