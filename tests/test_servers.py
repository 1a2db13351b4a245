"""A whole site served by real servers, over real sockets, with no thread of Django's or greenorm's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.site import Admin
from tests.whole import serving as serving_module
from tests.whole.load import at_rest, load
from tests.whole.serving import COMMANDS, Server, serving, site_database

pytestmark = [pytest.mark.no_database, pytest.mark.one_loop]


@pytest.fixture(scope="module")
def database() -> Iterator[dict[str, Any]]:
    with site_database() as settings:
        yield settings


@pytest.fixture(scope="module", params=["uvicorn", "granian"])
def server(request: pytest.FixtureRequest, database: dict[str, Any]) -> Iterator[Server]:
    with serving(request.param, database) as served:
        yield served


@pytest.fixture
def site(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the site's database, empty before the test."""
    settings = server.database
    names = {"USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    params = {names[key]: value for key, value in settings.items() if key in names and value}
    with psycopg.connect(dbname=settings["NAME"], autocommit=True, **params) as conn:
        conn.execute("TRUNCATE shop_owner, auth_user CASCADE")
        yield conn


def names(site: Admin) -> list[str]:
    return [name for (name,) in site.execute("SELECT name FROM shop_owner ORDER BY name")]


def running(site: Admin) -> int:
    row = site.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle' "
        "AND pid <> pg_backend_pid()"
    ).fetchone()
    assert row is not None
    return int(row[0])


async def state(server: Server) -> dict[str, Any]:
    async with server.async_client() as client:
        answer: dict[str, Any] = (await client.get("/state")).json()
        return answer


async def test_pages_of_all_kinds_start_no_thread(server: Server, site: Admin) -> None:
    site.execute("INSERT INTO shop_owner (name) VALUES ('Ada'), ('Bob')")
    async with server.async_client() as client:
        assert (await client.get("/enter")).text == "in"

        async def ask(path: str) -> tuple[int, str]:
            answer = await client.get(path)
            return answer.status_code, answer.text

        pages = {
            "/sync": (200, "ada ['Ada', 'Bob'] True"),
            "/async": (200, "ada ['Ada', 'Bob']"),
            "/balance": (200, "True"),
            "/stream": (200, "".join(f"{i} " for i in range(1000))),
            "/decorated": (200, "2 ada"),
        }
        answers = await asyncio.gather(*[ask(path) for path in pages for _ in range(8)])
        assert answers == [answer for answer in pages.values() for _ in range(8)]
        assert (await ask("/missing"))[0] == 404
        assert (await ask("/failing"))[0] == 500
        echoed = await client.put("/echo?a=1", json={"b": [2]})
        assert echoed.json() == {"body": {"b": [2]}, "query": {"a": "1"}, "method": "PUT"}
    after = await state(server)
    assert after["threads"] == []
    assert after["pool"][1:] == [0, 10, 0]


async def test_the_admin_and_rest_framework_start_no_thread(server: Server, site: Admin) -> None:
    async with server.async_client(follow_redirects=True) as client:
        await client.get("/enter")
        form = await client.get("/admin/shop/owner/add/")
        token = re.search('name="csrfmiddlewaretoken" value="(.*?)"', form.text)
        assert token is not None
        inline = {"accounts-TOTAL_FORMS": "1", "accounts-INITIAL_FORMS": "0", "accounts-0-balance": "5"}
        data = {"csrfmiddlewaretoken": token[1], "name": "Eve", **inline}
        added = await client.post("/admin/shop/owner/add/", data=data)
        assert "was added successfully" in added.text
        data["name"] = "Fails"
        assert (await client.post("/admin/shop/owner/add/", data=data)).status_code == 500
        assert "1 account" in (await client.get("/admin/shop/account/?q=Eve")).text
        api = await client.get("/api/owners/", headers={"Accept": "application/json"})
        assert [(owner["name"], owner["accounts"]) for owner in api.json()["results"]] == [("Eve", [5])]
        headers = {"X-CSRFToken": client.cookies["csrftoken"]}
        posted = await client.post("/api/owners/", json={"name": "Dan"}, headers=headers)
        assert posted.status_code == 201
        browsable = await client.get("/api/owners/", headers={"Accept": "text/html"})
        assert "Django REST framework" in browsable.text
        assert "Dan" in browsable.text
    assert names(site) == ["Dan", "Eve"]
    assert (await state(server))["threads"] == []


async def test_uploads_and_files(server: Server) -> None:
    async with server.async_client() as client:
        for size in (10, 5_000_000):
            answer = await client.post("/upload", files={"file": b"x" * size})
            assert answer.text == f"{size} {size}"
        answer = await client.get("/file")
        assert answer.content == Path(serving_module.__file__).with_name("urls.py").read_bytes()
        assert "attachment" in answer.headers["content-disposition"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_events_arrive_one_by_one_and_end_with_their_client(kind: str, server: Server, site: Admin) -> None:
    before = (await state(server))["left"].count(kind)
    async with server.async_client() as client, client.stream("GET", f"/events/{kind}") as answer:
        lines = answer.aiter_lines()
        assert await anext(lines) == "data: 0"
        site.execute("INSERT INTO shop_owner (name) VALUES ('Ada')")
        async with asyncio.timeout(60):
            while await anext(lines) != "data: 1":
                pass
    async with asyncio.timeout(60):
        while (await state(server))["left"].count(kind) != before + 1:
            await asyncio.sleep(0.02)
    assert (await state(server))["pool"][1] == 0


async def test_a_client_that_leaves_stops_its_statement(server: Server, site: Admin) -> None:
    async with server.async_client() as client:
        request = asyncio.create_task(client.get("/sleep"))
        await reached(lambda: running(site) == 1)
        request.cancel()
    await reached(lambda: running(site) == 0)
    assert names(site) == []

    async def given_back() -> bool:
        return bool((await state(server))["pool"][1] == 0)

    async with asyncio.timeout(60):
        while not await given_back():
            await asyncio.sleep(0.02)


async def reached(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", COMMANDS)
async def test_pools_open_with_the_server_and_close_with_it(name: str, database: dict[str, Any], admin: Admin) -> None:
    with serving(name, database) as served:
        async with served.async_client() as client:
            pages = [client.get("/sync"), client.get("/async"), client.get("/missing")]
            assert [answer.status_code for answer in await asyncio.gather(*pages)] == [200, 200, 404]
        assert (await state(served))["threads"] == []
        stopped = served.stop()
        log = served.log.read_text()
    assert stopped in {0, -15}  # uvicorn ends by the signal that it was sent
    left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    options = served.database["OPTIONS"]
    await reached(lambda: admin.execute(left, [options["application_name"]]).fetchone() == (0,))
    if name != "daphne":  # which does not speak the lifespan protocol
        assert "pools of this process are open: 'default' 2 of at most 10 connections" in log
        assert "pools of this process are closed: 'default'" in log
    assert "Traceback" not in log


async def test_many_clients_some_of_which_leave_meet_no_error_and_leave_nothing(server: Server, site: Admin) -> None:
    before = await state(server)
    clients, _ = await load(server, clients=100, seconds=3, seed=1)
    assert clients.errors == []
    assert clients.counts["answered"] > 0
    assert clients.counts["left"] > 0
    after = await at_rest(server)
    assert after["pool"][1:] == [0, 10, 0]
    assert after["threads"] == before["threads"]  # which an upload has started, in an earlier test
    await reached(lambda: running(site) == 0)
