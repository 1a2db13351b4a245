"""The tests of Django, and of packages that live on its ORM, from the source distributions of their releases."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def unpacked(project: str, version: str) -> Path:
    """Return the directory of a release's source distribution, which pip downloads when first asked for it.

    Blocks meanwhile. Ends the program where it cannot be had.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / (
        "Library/Caches" if sys.platform == "darwin" else ".cache"
    )
    kept = Path(os.environ.get("GREENORM_CACHE") or Path(cache, "greenorm"), f"{project}-{version}-sdist")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as directory:
            _download(project, version, directory)
            try:
                Path(directory, "sdist").rename(kept)
            except OSError:
                if not kept.exists():  # else another process was faster
                    raise
    return kept


def _download(project: str, version: str, directory: str) -> None:
    # pip knows the index, its mirror, proxy and certificates. It also reads the metadata, and gets the build backend
    # for that, into an environment of its own.
    options = ["--quiet", "--no-deps", f"--no-binary={project}", f"--dest={directory}"]
    pip = [sys.executable, "-m", "pip", "download", *options, f"{project}=={version}"]
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"The source of {project} {version} could not be had by: {' '.join(pip)}")
    with tarfile.open(next(Path(directory).glob("*.tar.gz"))) as archive:
        for member in archive:
            _, _, inside = member.name.partition("/")
            member.name = f"sdist/{inside}"
            archive.extract(member, directory, filter="data")
