"""The drivers alone, with SQL written by hand and rows that are tuples: what any ORM adds to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks.harness.target import Target
from benchmarks.harness.works import FIELDS
from benchmarks.project.work import CHUNK

PATIENCE = 3600.0
COLUMNS = ", ".join(FIELDS)
GET = f"SELECT {COLUMNS} FROM bench_item WHERE id = {{0}}"
LIST = f"SELECT {COLUMNS} FROM bench_item WHERE id >= {{0}} AND id < {{1}} ORDER BY id"
AUTHORS = "SELECT id, name FROM bench_author WHERE id >= {0} AND id < {1} ORDER BY id"
BOOKS = "SELECT author_id, title FROM bench_book WHERE author_id = ANY({0})"
INSERT = "INSERT INTO bench_entry (counter_id, note) VALUES ({0}, {1}) RETURNING id"
UPDATE = "UPDATE bench_counter SET value = value + 1 WHERE id = {0}"
STREAM = "SELECT id, number, note FROM bench_measurement WHERE id <= {0}"


def _together(authors: list[Any], books: list[Any]) -> list[tuple[str, list[str]]]:
    titles: dict[int, list[str]] = {}
    for author, title in books:
        titles.setdefault(author, []).append(title)
    return [(name, sorted(titles.get(pk, []))) for pk, name in authors]


class _Psycopg:
    """Each method borrows a connection and gives it back."""

    def __init__(self, pool: AsyncConnectionPool[AsyncConnection[Any]]) -> None:
        self.pool = pool

    async def get(self, pk: int) -> Any:
        async with self.pool.connection() as conn:
            return await (await conn.execute(GET.format("%s"), [pk])).fetchone()

    async def get_many(self, pks: list[int]) -> list[Any]:
        async with self.pool.connection() as conn:
            return [await (await conn.execute(GET.format("%s"), [pk])).fetchone() for pk in pks]

    async def list_100(self, first: int, count: int = 100) -> list[Any]:
        async with self.pool.connection() as conn:
            return await (await conn.execute(LIST.format("%s", "%s"), [first, first + count])).fetchall()

    async def list_1000(self, first: int) -> list[Any]:
        return await self.list_100(first, 1000)

    async def prefetch(self, first: int) -> list[tuple[str, list[str]]]:
        async with self.pool.connection() as conn:
            authors = await (await conn.execute(AUTHORS.format("%s", "%s"), [first, first + 10])).fetchall()
            books = await (await conn.execute(BOOKS.format("%s"), [[author[0] for author in authors]])).fetchall()
        return _together(authors, books)

    async def write(self, pk: int) -> None:
        async with self.pool.connection() as conn, conn.transaction():
            await (await conn.execute(INSERT.format("%s", "%s"), [pk, "written"])).fetchone()
            await conn.execute(UPDATE.format("%s"), [pk])

    async def stream(self, rows: int) -> tuple[int, int]:
        count = total = 0
        async with self.pool.connection() as conn, conn.transaction(), conn.cursor("stream") as cursor:
            cursor.itersize = CHUNK
            await cursor.execute(STREAM.format("%s"), [rows])
            async for _, number, _ in cursor:
                count += 1
                total += number
        return count, total


class _Asyncpg:
    """Each method borrows a connection and gives it back."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    async def get(self, pk: int) -> Any:
        async with self.pool.acquire() as conn:
            return await conn.fetchrow(GET.format("$1"), pk)

    async def get_many(self, pks: list[int]) -> list[Any]:
        async with self.pool.acquire() as conn:
            return [await conn.fetchrow(GET.format("$1"), pk) for pk in pks]

    async def list_100(self, first: int, count: int = 100) -> Any:
        async with self.pool.acquire() as conn:
            return await conn.fetch(LIST.format("$1", "$2"), first, first + count)

    async def list_1000(self, first: int) -> Any:
        return await self.list_100(first, 1000)

    async def prefetch(self, first: int) -> list[tuple[str, list[str]]]:
        async with self.pool.acquire() as conn:
            authors = await conn.fetch(AUTHORS.format("$1", "$2"), first, first + 10)
            books = await conn.fetch(BOOKS.format("$1"), [author["id"] for author in authors])
        return _together(authors, books)

    async def write(self, pk: int) -> None:
        async with self.pool.acquire() as conn, conn.transaction():
            await conn.fetchval(INSERT.format("$1", "$2"), pk, "written")
            await conn.execute(UPDATE.format("$1"), pk)

    async def stream(self, rows: int) -> tuple[int, int]:
        count = total = 0
        async with self.pool.acquire() as conn, conn.transaction():
            async for row in conn.cursor(STREAM.format("$1"), rows, prefetch=CHUNK):
                count += 1
                total += row["number"]
        return count, total


def _works(methods: Any) -> dict[str, Callable[[Any], Any]]:
    names = ("get", "get_many", "list_100", "list_1000", "prefetch", "write", "stream")
    return {name: getattr(methods, name) for name in names}


@asynccontextmanager
async def with_psycopg(target: Target) -> AsyncGenerator[dict[str, Callable[[Any], Any]]]:
    """Work over psycopg's AsyncConnection and psycopg_pool."""
    size = target.connections
    pool = AsyncConnectionPool(
        kwargs={**target.words(), "autocommit": True}, min_size=size, max_size=size, timeout=PATIENCE, open=False
    )
    async with pool:
        await pool.wait(PATIENCE)
        yield _works(_Psycopg(pool))


@asynccontextmanager
async def with_asyncpg(target: Target) -> AsyncGenerator[dict[str, Callable[[Any], Any]]]:
    """Work over asyncpg and its pool."""
    import asyncpg

    size = target.connections
    async with asyncpg.create_pool(**target.asyncpg_words(), min_size=size, max_size=size) as pool:
        yield _works(_Asyncpg(pool))
