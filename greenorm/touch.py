"""What async code has touched, where Django's guard refuses it: named in the error, with what to write instead.

Knows Django's models by the frames of a call; changes nothing, and is asked only where an error is raised anyway.
"""

from __future__ import annotations

from types import FrameType
from typing import Any, cast

from django.db.models import Manager, Model, QuerySet

from .errors import NotInRun


def refusal(guard: FrameType) -> NotInRun:
    """Return the error for a call that Django's `async_unsafe` refuses; `guard` is the frame of its wrapper.

    Its message begins with Django's own. Mirrors django.utils.asyncio.async_unsafe, Django 6.1.
    """
    message = guard.f_locals.get("message") or "You cannot call this from an async context."
    what = _touched(guard)
    return NotInRun(
        f"{message} It is {what or 'sync code of the ORM'}, in async code. Let a sync function do it, and write "
        "`await greenorm.run(function)`."
    )


def _touched(frame: FrameType | None) -> str:
    """Name the outermost thing of Django's models that leads to `frame`."""
    found = ""
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("django.", "greenorm.")):
        found = _name(frame.f_code.co_name, frame.f_locals.get("self"), frame.f_locals) or found
        frame = frame.f_back
    return found


def _name(function: str, it: Any, names: Any) -> str:
    if isinstance(it, Model):
        return f"{type(it).__name__}.{function}()"
    if isinstance(it, (QuerySet, Manager)):
        return f"a query on {cast('Any', it).model.__name__}"
    instance = names.get("instance")
    if function == "__get__" and isinstance(instance, Model):  # a relation, or a field that was deferred
        related = getattr(it, "related", None)
        name = getattr(getattr(it, "field", it), "name", "") if related is None else related.get_accessor_name()
        return f"{type(instance).__name__}.{name}"
    return ""
