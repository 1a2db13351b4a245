"""The site that is served: one sync view with one query, and the ways to serve it."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import path


def item(request: HttpRequest, pk: int) -> JsonResponse:
    """Answer with a row."""
    from .work import get

    found = get(pk)
    return JsonResponse({"id": found.pk, "title": found.title, "number": found.number})


urlpatterns = [path("item/<int:pk>", item)]


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
