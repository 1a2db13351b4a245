"""django-debug-toolbar's SQL panel shows the queries of a request's runs, and of no other request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.apps import apps
from django.core.handlers.asgi import ASGIHandler
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import include, path

import greenorm
from greenorm.integrations.asgi import Handler
from tests.neighbours import needs
from tests.neighbours.apart import APPS, apart
from tests.shop.models import Owner
from tests.site import get

needs("debug_toolbar")

PAGE = "<html><body>%s</body></html>"


@greenorm.awaitable
def view(request: HttpRequest) -> HttpResponse:
    name = request.GET["name"]
    with transaction.atomic():
        Owner.objects.create(name=name)
    return HttpResponse(PAGE % Owner.objects.get(name=name))


async def aview(request: HttpRequest) -> HttpResponse:
    name = request.GET["name"]
    async with greenorm.atomic():
        await Owner.objects.acreate(name=name)
    return HttpResponse(PAGE % await Owner.objects.aget(name=name))


urlpatterns = [path("", view), path("async/", aview)]
if apps.is_installed("debug_toolbar"):
    urlpatterns.append(path("__debug__/", include("debug_toolbar.urls", namespace="djdt")))


def show(request: HttpRequest) -> bool:
    return True


def under_djangos_handler() -> dict[str, list[str]]:
    return queries(ASGIHandler())


def under_greenorms_handler() -> dict[str, list[str]]:
    return queries(Handler())


def queries(site: ASGIHandler) -> dict[str, list[str]]:
    """Return, for each of four requests at once, what its SQL panel shows."""
    from debug_toolbar.toolbar import DebugToolbar

    toolbars: list[Any] = []
    DebugToolbar._created.connect(lambda toolbar, **named: toolbars.append(toolbar), weak=False)

    async def requests() -> list[Any]:
        names = {"Ada": "/", "Bob": "/", "Eve": "/async/", "Zoe": "/async/"}
        return await asyncio.gather(*[get(site, path=at, query=f"name={name}") for name, at in names.items()])

    for answer in asyncio.run(requests()):
        assert answer.status == 200, answer
        assert 'id="djDebug"' in answer.body
    return {
        toolbar.request.GET["name"]: [
            query["sql"] for query in toolbar.get_panel_by_id("SQLPanel").get_stats()["queries"]
        ]
        for toolbar in toolbars
    }


SITE = {
    "DEBUG": True,
    "ROOT_URLCONF": __name__,
    "INSTALLED_APPS": ["greenorm", "django.contrib.staticfiles", "debug_toolbar", *APPS],
    "STATIC_URL": "/static/",
    "MIDDLEWARE": ["debug_toolbar.middleware.DebugToolbarMiddleware"],
    "DEBUG_TOOLBAR_PANELS": ["greenorm.integrations.debug_toolbar.SQLPanel"],
    "DEBUG_TOOLBAR_CONFIG": {"SHOW_TOOLBAR_CALLBACK": f"{__name__}.show"},
    "TEMPLATES": [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
}


@pytest.mark.parametrize("job", [under_djangos_handler, under_greenorms_handler])
def test_each_request_shows_its_own_statements(job: Any) -> None:
    shown = apart(job, **SITE)
    assert sorted(shown) == ["Ada", "Bob", "Eve", "Zoe"]
    for name, statements in shown.items():
        of_table = [statement for statement in statements if "shop_owner" in statement]
        assert [statement.split()[0] for statement in of_table] == ["INSERT", "SELECT"], statements
        assert all(f"'{name}'" in statement for statement in of_table)
