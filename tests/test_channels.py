"""channels: its consumers and database_sync_to_async as runs."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.auth import AuthMiddlewareStack
from channels.db import aclose_old_connections, database_sync_to_async
from channels.layers import get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import User
from django.db.models.signals import post_save
from django.test import override_settings
from django.urls import re_path

import greenorm
from tests.exchange import whole_site
from tests.shop.models import Owner
from tests.site import (
    STARTPROJECT,
    Admin,
    Consumer,
    ConsumerOfSyncCode,
    OwnersBySql,
    WebSocket,
    WebSocketOfSyncCode,
    alive,
    get,
    pid,
    site,
    until,
    who,
)

pytestmark = pytest.mark.usefixtures("async_methods")


@pytest.mark.usefixtures("unused_thread")
async def test_database_sync_to_async_is_a_run_in_the_transaction(no_threads: list[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        async with greenorm.atomic():
            await database_sync_to_async(Owner.objects.create)(name="Ada")
            assert await OwnersBySql().names() == [True, True, ("Ada",)]
            raise ZeroDivisionError
    assert await database_sync_to_async(Owner.objects.count)() == 0
    await aclose_old_connections()


@pytest.mark.usefixtures("unused_thread")
async def test_aclose_old_connections_goes_to_the_thread_that_sync_code_has_used(admin: Admin) -> None:
    backend = await sync_to_async(pid)("other")
    assert alive(admin, backend) == 1
    await aclose_old_connections()
    await until(lambda: not alive(admin, backend))


@pytest.mark.usefixtures("unused_thread")
@pytest.mark.parametrize("consumer", [Consumer, ConsumerOfSyncCode])
async def test_a_consumer_reads_without_a_thread(consumer: Any, no_threads: list[str]) -> None:
    await Owner.objects.acreate(name="Ada")
    client = ApplicationCommunicator(consumer.as_asgi(), {"type": "test"})
    await client.send_input({"type": "ask"})
    assert await client.receive_output(5) == {"type": "answer", "name": "Ada"}
    client.stop()
    assert greenorm.pool_stats().in_use == 0


async def who_and_what(application: Any, headers: list[tuple[bytes, bytes]]) -> None:
    """Have a conversation over a websocket of `application`, that knows the user and reads a row."""
    client = ApplicationCommunicator(application, {"type": "websocket", "path": "/", "headers": headers})
    await client.send_input({"type": "websocket.connect"})
    assert (await client.receive_output(5))["type"] == "websocket.accept"
    await client.send_input({"type": "websocket.receive", "text": "null"})
    assert (await client.receive_output(5))["text"] == '["ada", "Ada"]'
    await client.send_input({"type": "websocket.disconnect", "code": 1000})
    await client.wait(5)


@pytest.mark.usefixtures("unused_thread")
@pytest.mark.parametrize("consumer", [WebSocket, WebSocketOfSyncCode])
async def test_a_websocket_knows_the_user_and_reads_without_a_thread(consumer: Any, no_threads: list[str]) -> None:
    await User.objects.acreate(username="ada")
    await Owner.objects.acreate(name="Ada")
    with site(who, *STARTPROJECT) as handler:
        headers = [(b"cookie", (await get(handler)).cookie.encode())]
    await who_and_what(AuthMiddlewareStack(consumer.as_asgi()), headers)
    assert greenorm.pool_stats().in_use == 0


@pytest.mark.usefixtures("unused_thread", "blocking_hooks")
async def test_one_router_serves_the_site_its_websockets_and_its_life(no_threads: list[str]) -> None:
    await User.objects.acreate(username="ada")
    await Owner.objects.acreate(name="Ada")
    with whole_site(who, *STARTPROJECT) as handler:
        websockets = AuthMiddlewareStack(URLRouter([re_path("", WebSocket.as_asgi())]))
        router = ProtocolTypeRouter({"http": handler, "lifespan": handler, "websocket": websockets})
        life = ApplicationCommunicator(router, {"type": "lifespan"})
        await life.send_input({"type": "lifespan.startup"})
        assert await life.receive_output(5) == {"type": "lifespan.startup.complete"}
        entered = await get(router)
        assert entered.status == 200
        headers = [(b"cookie", entered.cookie.encode())]
        await who_and_what(router, headers)
        assert greenorm.pool_stats().in_use == 0
        await life.send_input({"type": "lifespan.shutdown"})
        assert await life.receive_output(5) == {"type": "lifespan.shutdown.complete"}
        await life.wait(5)


@pytest.mark.usefixtures("unused_thread")
async def test_a_receiver_sends_to_a_group_while_an_object_is_saved(no_threads: list[str]) -> None:
    def announce(instance: Owner, **named: Any) -> None:
        layer = get_channel_layer()
        async_to_sync(layer.group_send)("owners", {"type": "saved", "name": instance.name})

    post_save.connect(announce, sender=Owner)
    try:
        with override_settings(CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}):
            layer = get_channel_layer()
            await layer.group_add("owners", "listener")
            await Owner(name="Ada").asave()
            assert await layer.receive("listener") == {"type": "saved", "name": "Ada"}
    finally:
        post_save.disconnect(announce, sender=Owner)


ALL_BUT_ONE = {"RUN_ALL_SYNC_TO_ASYNC": True, "KEEP_IN_THREADS": ["tests.site.pid"]}


@pytest.mark.usefixtures("unused_thread")
async def test_aclose_old_connections_goes_to_the_thread_of_what_is_kept_there(admin: Admin) -> None:
    with override_settings(GREENORM=ALL_BUT_ONE):
        backend = await sync_to_async(pid)("other")
        await aclose_old_connections()
    await until(lambda: not alive(admin, backend))
