"""`python -m tests.packaging`: builds the sdist and the wheel, and runs the demo from a bare environment elsewhere.

Needs a package index, and takes a minute; for continuous integration.
"""

from __future__ import annotations

import email
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import greenorm

ROOT = Path(__file__).parent.parent
IN_BOTH = ["py.typed", "demo/migrations/0001_initial.py", "management/commands/greenorm.py"]


def call(*arguments: str | Path, cwd: Path) -> str:
    """Run a program and return what it wrote; with what it said where it fails."""
    done = subprocess.run([*map(str, arguments)], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{arguments} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def environment(path: Path) -> Path:
    """Make a virtual environment, and return its Python."""
    call(sys.executable, "-m", "venv", path, cwd=path.parent)
    return path / "bin" / "python"


def check_sdist(path: Path) -> None:
    """The sdist has what its own tests need, and nothing that is no source."""
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for name in ["LICENSE", "NOTES.md", "README.md", "tests/conftest.py", *(f"greenorm/{name}" for name in IN_BOTH)]:
        assert name in names, name
    assert not [name for name in names if name.endswith(".pyc")]


def check_wheel(path: Path) -> None:
    """The wheel has the package alone, its type marker, its licence and its metadata."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    info = f"greenorm-{greenorm.__version__}.dist-info/"
    assert {name.split("/")[0] for name in names} == {"greenorm", info[:-1]}
    for name in [*(f"greenorm/{name}" for name in IN_BOTH), f"{info}licenses/LICENSE"]:
        assert name in names, name
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert {"demo", "test", "tools"} <= set(metadata.get_all("Provides-Extra", []))
    assert "Framework :: Django :: 6.1" in metadata.get_all("Classifier", [])


def main() -> None:
    """Build, look inside, install and run."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        builder = environment(here / "builder")
        call(builder, "-m", "pip", "install", "-q", "build", cwd=here)
        call(builder, "-m", "build", "--outdir", here / "dist", ROOT, cwd=here)
        (sdist,) = (here / "dist").glob("*.tar.gz")
        (wheel,) = (here / "dist").glob("*.whl")
        check_sdist(sdist)
        check_wheel(wheel)
        bare = environment(here / "bare")
        call(bare, "-m", "pip", "install", "-q", f"greenorm[demo] @ {wheel.as_uri()}", cwd=here)
        assert str(here) in call(bare, "-c", "import greenorm; print(greenorm.__file__)", cwd=here)
        assert "demo" in call(bare, "-m", "greenorm", cwd=here)
        figures = json.loads(call(bare, "-m", "greenorm", "demo", "--quick", "--json", cwd=here))
        assert figures, "the demo says nothing"
    sys.stdout.write(f"{sdist.name} and {wheel.name} build, install and run.\n")


if __name__ == "__main__":
    main()
