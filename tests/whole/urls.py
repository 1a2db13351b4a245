"""What the site answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from django.contrib import admin
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.contrib.staticfiles.views import serve
from django.db import connection, transaction
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from rest_framework import routers, serializers, viewsets

import greenorm
from greenorm.decorator import awaitable
from tests.shop.models import Account, Owner

from . import asgi

# The admin


class AccountInline(admin.TabularInline):
    model = Account
    extra = 1
    fields = ("balance",)


@admin.register(Owner)
class OwnerAdmin(admin.ModelAdmin):
    inlines = (AccountInline,)
    search_fields = ("name",)

    def save_related(self, request: Any, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        if form.instance.name == "Fails":
            raise ZeroDivisionError("after everything has been written")


@admin.register(Account)
class AccountAdmin(admin.ModelAdmin):
    list_display = ("id", "owner", "balance")
    list_filter = ("owner",)
    search_fields = ("owner__name",)
    fields = ("owner", "balance")


# Django REST framework


class OwnerSerializer(serializers.ModelSerializer):
    accounts = serializers.SlugRelatedField(many=True, read_only=True, slug_field="balance")

    class Meta:
        model = Owner
        fields = ("id", "name", "accounts")


class OwnerViews(viewsets.ModelViewSet):
    queryset = Owner.objects.order_by("name")
    serializer_class = OwnerSerializer


router = routers.DefaultRouter()
router.register("owners", OwnerViews)


# Views


def enter(request: HttpRequest) -> HttpResponse:
    user, _ = User.objects.get_or_create(username="ada", is_staff=True, is_superuser=True)
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return HttpResponse("in")


def sync_view(request: HttpRequest) -> HttpResponse:
    names = [owner.name for owner in Owner.objects.order_by("name")]
    return HttpResponse(f"{request.user} {names} {greenorm.in_run()}")


async def async_view(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(f"{user} {[owner.name async for owner in Owner.objects.order_by('name')]}")


def balance(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Account.objects.select_for_update().filter(balance__gte=0).first()
        return HttpResponse(str(connection.in_atomic_block))


@csrf_exempt
def upload(request: HttpRequest) -> HttpResponse:
    file: Any = request.FILES["file"]
    return HttpResponse(f"{file.size} {sum(len(chunk) for chunk in file.chunks())}")


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(Path(__file__).open("rb"), as_attachment=True)


def sync_stream(request: HttpRequest) -> StreamingHttpResponse:
    def numbers() -> Iterator[str]:
        for i in range(1000):
            yield f"{i + Owner.objects.count() * 0} " if i % 100 == 0 else f"{i} "

    return StreamingHttpResponse(numbers())


left: list[str] = []


class Noting(StreamingHttpResponse):
    def close(self) -> None:
        left.append(self.headers["X-Name"])
        super().close()


def sync_events(request: HttpRequest) -> StreamingHttpResponse:
    def events() -> Iterator[str]:
        while True:
            yield f"data: {Owner.objects.count()}\n\n"
            greenorm.await_(asyncio.sleep(0.01))

    return Noting(events(), content_type="text/event-stream", headers={"X-Name": "sync"})


async def async_events(request: HttpRequest) -> StreamingHttpResponse:
    async def events() -> AsyncIterator[str]:
        while True:
            yield f"data: {await Owner.objects.acount()}\n\n"
            await asyncio.sleep(0.01)

    return Noting(events(), content_type="text/event-stream", headers={"X-Name": "async"})


def sleep(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        Owner.objects.create(name="asleep")
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(60)")
    return HttpResponse()


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


def failing(request: HttpRequest) -> HttpResponse:
    Owner.objects.count()
    raise ZeroDivisionError


@awaitable
def decorated(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{Owner.objects.count()} {request.user}")


async def state(request: HttpRequest) -> JsonResponse:
    stats = greenorm.pool_stats()
    return JsonResponse(
        {
            "threads": asgi.started,
            "left": left,
            "pool": [stats.size, stats.in_use, stats.max_size, stats.timeouts],
            "tasks": len(asyncio.all_tasks()),
        }
    )


@csrf_exempt
def echo(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"body": json.loads(request.body), "query": request.GET.dict(), "method": request.method})


urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/", include(router.urls)),
    path("api-auth/", include("rest_framework.urls")),
    path("static/<path:path>", serve, {"insecure": True}),
    path("enter", enter),
    path("sync", sync_view),
    path("async", async_view),
    path("balance", balance),
    path("upload", upload),
    path("file", file),
    path("stream", sync_stream),
    path("events/sync", sync_events),
    path("events/async", async_events),
    path("sleep", sleep),
    path("missing", missing),
    path("failing", failing),
    path("decorated", decorated),
    path("state", state),
    path("echo", echo),
]
