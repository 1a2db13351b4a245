"""`awaitable`: the same helper for async and for sync callers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest
from asgiref.sync import iscoroutinefunction
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET

import greenorm
from tests.shop.models import Owner


@greenorm.awaitable
def owners(prefix: str, *, upper: bool = False) -> list[str]:
    """Names of owners."""
    names = [owner.name for owner in Owner.objects.filter(name__startswith=prefix).order_by("name")]
    return [name.upper() for name in names] if upper else names


@greenorm.awaitable
def stream() -> Iterator[str]:
    for owner in Owner.objects.order_by("pk").iterator():
        yield owner.name


class Service:
    names = ("instance",)

    @greenorm.awaitable
    def method(self, n: int) -> tuple[object, int, int]:
        return self, n, Owner.objects.count()

    @staticmethod
    @greenorm.awaitable
    def static_inside(n: int) -> int:
        return n + Owner.objects.count()

    @greenorm.awaitable
    @staticmethod
    def static_outside(n: int) -> int:
        return n + Owner.objects.count()

    @classmethod
    @greenorm.awaitable
    def class_inside(cls) -> tuple[type, int]:
        return cls, Owner.objects.count()

    @greenorm.awaitable
    @classmethod
    def class_outside(cls) -> tuple[type, int]:
        return cls, Owner.objects.count()


@greenorm.awaitable
@csrf_exempt
@require_GET
def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(Owner.objects.count()))


def make_owners() -> None:
    Owner.objects.bulk_create([Owner(name="Ada"), Owner(name="Bob")])


async def test_async_code_awaits_the_helper() -> None:
    await greenorm.run(make_owners)
    assert await owners("A") == ["Ada"]
    assert await owners("A", upper=True) == ["ADA"]


def test_plain_sync_code_calls_the_helper() -> None:
    make_owners()
    assert owners("B") == ["Bob"]


async def test_sync_code_inside_a_run_calls_the_helper_in_its_transaction() -> None:
    def service() -> list[str]:
        with greenorm.atomic():
            make_owners()
            return owners("A") + owners("B")

    assert await greenorm.run(service) == ["Ada", "Bob"]


async def test_run_takes_a_decorated_helper() -> None:
    await greenorm.run(make_owners)
    assert await greenorm.run(owners, "A") == ["Ada"]


async def test_methods_of_every_kind_can_be_awaited() -> None:
    service = Service()
    assert await service.method(3) == (service, 3, 0)
    assert await Service.method(service, 3) == (service, 3, 0)
    assert await service.static_inside(3) == await Service.static_outside(3) == 3
    assert await service.class_inside() == await Service.class_outside() == (Service, 0)


def test_methods_of_every_kind_can_be_called() -> None:
    service = Service()
    assert service.method(3) == (service, 3, 0)
    assert service.static_inside(3) == Service.static_outside(3) == 3
    assert service.class_inside() == Service.class_outside() == (Service, 0)


async def test_sync_reaches_the_original() -> None:
    service = Service()
    assert inspect.isfunction(owners.sync)
    assert await greenorm.run(owners.sync, "A") == []
    assert await greenorm.run(service.method.sync, 3) == (service, 3, 0)
    assert await greenorm.run(service.class_outside.sync) == (Service, 0)
    assert await greenorm.run(Service.static_outside.sync, 3) == 3


def test_name_docstring_signature_and_attributes_are_kept() -> None:
    assert owners.__name__ == "owners"
    assert owners.__doc__ == "Names of owners."
    assert list(inspect.signature(owners).parameters) == ["prefix", "upper"]
    assert view.csrf_exempt is True
    assert "owners" in repr(owners)


def test_django_takes_a_decorated_view_for_an_async_one() -> None:
    assert iscoroutinefunction(view)
    assert inspect.iscoroutinefunction(view) or not hasattr(inspect, "markcoroutinefunction")
    assert not iscoroutinefunction(stream)


async def test_a_decorated_view_answers_async_and_in_a_run() -> None:
    request = RequestFactory().get("/")
    assert (await view(request)).content == b"0"
    assert (await greenorm.run(lambda: view(request))).content == b"0"
    assert (await view(RequestFactory().post("/"))).status_code == 405


async def test_a_class_based_view_with_decorated_handlers_is_async() -> None:
    class Count(View):
        @greenorm.awaitable
        def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse(str(Owner.objects.count()))

    assert Count.view_is_async
    response = await Count.as_view()(RequestFactory().get("/"))
    assert response.content == b"0"


async def test_method_decorator_takes_it() -> None:
    @method_decorator(greenorm.awaitable, name="count")
    class Counter:
        def count(self) -> int:
            return Owner.objects.count()

    assert await Counter().count() == 0


async def test_a_decorated_generator_is_iterated_with_async_for() -> None:
    await greenorm.run(make_owners)
    assert [name async for name in stream()] == ["Ada", "Bob"]


def test_a_decorated_generator_stays_a_generator_for_sync_code() -> None:
    make_owners()
    assert list(stream()) == ["Ada", "Bob"]


async def test_a_decorated_generator_stays_a_generator_inside_a_run() -> None:
    await greenorm.run(make_owners)
    assert await greenorm.run(lambda: list(stream())) == ["Ada", "Bob"]


async def test_a_decorated_generator_gives_each_item_when_it_is_yielded() -> None:
    yielded = []

    @greenorm.awaitable
    def numbers() -> Iterator[int]:
        for number in range(5):
            yielded.append(number)
            yield number

    async for number in numbers():
        assert yielded == list(range(number + 1))


async def test_decorating_twice_changes_nothing() -> None:
    assert greenorm.awaitable(owners) is owners


async def test_an_async_function_is_refused() -> None:
    async def coroutine_function() -> None: ...

    async def async_generator() -> object:
        yield

    for fn in (coroutine_function, async_generator):
        with pytest.raises(TypeError, match="is async already"):
            greenorm.awaitable(fn)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="is for functions, not int"):
        greenorm.awaitable(3)  # type: ignore[call-overload]


async def test_concurrent_calls_have_connections_of_their_own() -> None:
    @greenorm.awaitable
    def pid() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(0.05)")
            return cursor.fetchone()[0]

    assert len(set(await asyncio.gather(*[pid() for _ in range(4)]))) == 4
