"""A site on a port, and a Chromium that looks at it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.whole.serving import APPLICATION, ROOT, SECONDS, environment, site_database

# In a container of a closed network: without the flags it looks for Google's hosts, and as root it needs no sandbox.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1400,1400",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("Chromium and ChromeDriver are not installed (Debian's chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(prefix="greenorm-chromium-", ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        service = webdriver.ChromeService(driver, log_output=subprocess.DEVNULL)
        with webdriver.Chrome(options=options, service=service) as chrome:
            chrome.set_page_load_timeout(SECONDS)
            chrome.implicitly_wait(SECONDS / 4)
            yield chrome


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of the site, served by uvicorn on a port that the system has chosen."""
    arguments = ["--port", "0", APPLICATION]
    with site_database() as database, tempfile.TemporaryDirectory(prefix="greenorm-") as directory:
        log = Path(directory, "log")
        create_user(database)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(Path(sys.executable).with_name("uvicorn")), *arguments],
                cwd=ROOT,
                env=environment(database),
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + SECONDS
            while (found := re.search(r"running on (http://\S+)", log.read_text())) is None:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
            process.wait(SECONDS)


def create_user(database: dict[str, Any]) -> None:
    command = [sys.executable, "-m", "django", "createsuperuser", "--noinput", "--username=ada", "--email=a@b.example"]
    env = environment(database, DJANGO_SUPERUSER_PASSWORD="secret")
    subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True)
