"""The site that is served: a sync and an async view with one query, and the ways to serve it."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import path


def item(request: HttpRequest, pk: int) -> JsonResponse:
    """Answer with a row."""
    from .work import get

    return _answer(get(pk))


async def aitem(request: HttpRequest, pk: int) -> JsonResponse:
    """Answer with a row, asynchronously."""
    from .models import Item

    return _answer(await Item.objects.aget(pk=pk))


def _answer(found: Any) -> JsonResponse:
    return JsonResponse({"id": found.pk, "title": found.title, "number": found.number})


urlpatterns = [path("item/<int:pk>", item), path("aitem/<int:pk>", aitem)]


def stock_asgi() -> Any:
    """Django's own ASGI application."""
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


def greenorm_asgi() -> Any:
    """greenorm's."""
    from greenorm.integrations.asgi import get_asgi_application

    return get_asgi_application()


def wsgi() -> Any:
    """Django's own WSGI application."""
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()
