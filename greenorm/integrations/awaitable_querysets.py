"""`await Post.objects.filter(...)`: a queryset that is awaited is evaluated, by GREENORM["AWAITABLE_QUERYSETS"]."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from asgiref.sync import sync_to_async
from django.db.models import QuerySet
from django.db.models.query import RawQuerySet


async def _evaluated(queryset: Any) -> Any:
    await sync_to_async(queryset._fetch_all)()
    return queryset


def _await(self: Any) -> Generator[Any, Any, Any]:
    return _evaluated(self).__await__()


def install() -> None:
    """Let querysets and raw querysets be awaited, which gives the evaluated queryset. Idempotent."""
    for owner in (QuerySet, RawQuerySet):
        owner.__await__ = _await  # type: ignore[union-attr]  # reason: the attribute is what is added


def uninstall() -> None:
    """Undo `install`."""
    for owner in (QuerySet, RawQuerySet):
        if owner.__dict__.get("__await__") is _await:
            del owner.__await__  # type: ignore[union-attr]  # reason: as above
