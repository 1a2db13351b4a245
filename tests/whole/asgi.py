"""The application that the servers load. Notes each thread that Django, asgiref or greenorm starts."""

import os
import threading
import traceback

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.whole.settings")
started: list[str] = []
_start = threading.Thread.start


def _note(thread: threading.Thread) -> None:
    stack = "".join(traceback.format_stack(limit=40))
    if any(f"/{package}/" in stack for package in ("django", "asgiref", "greenorm", "rest_framework")):
        started.append(f"{thread.name}: {stack}")
    _start(thread)


threading.Thread.start = _note  # type: ignore[method-assign]

from greenorm.integrations.asgi import get_asgi_application  # noqa: E402 - not before threads are noted

application = get_asgi_application()
