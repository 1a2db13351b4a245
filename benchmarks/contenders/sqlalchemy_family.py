"""SQLAlchemy's async ORM over psycopg and over asyncpg, mapped to the same tables.

What reads does so without a transaction, as Django does it, which spares SQLAlchemy two round trips.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from benchmarks.harness.target import Target
from benchmarks.project.work import CHUNK

PATIENCE = 3600.0


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "bench_item"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    title: Mapped[str]
    number: Mapped[int]
    ratio: Mapped[float]
    price: Mapped[Decimal]
    active: Mapped[bool]
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    day: Mapped[date]
    note: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)


class Author(Base):
    __tablename__ = "bench_author"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship()


class Book(Base):
    __tablename__ = "bench_book"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(Author.id))
    title: Mapped[str]


class Counter(Base):
    __tablename__ = "bench_counter"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[int]


class Entry(Base):
    __tablename__ = "bench_entry"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    counter_id: Mapped[int] = mapped_column(ForeignKey(Counter.id))
    note: Mapped[str]


class Measurement(Base):
    __tablename__ = "bench_measurement"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int]
    note: Mapped[str]


async def _get(reading: AsyncEngine, pk: int) -> Any:
    async with AsyncSession(reading, expire_on_commit=False) as session:
        return await session.get_one(Item, pk)


async def _get_many(reading: AsyncEngine, pks: list[int]) -> list[Any]:
    async with AsyncSession(reading, expire_on_commit=False) as session:
        return [await session.get_one(Item, pk) for pk in pks]


async def _list(count: int, reading: AsyncEngine, first: int) -> list[Any]:
    query = select(Item).where(Item.id >= first, Item.id < first + count).order_by(Item.id)
    async with AsyncSession(reading, expire_on_commit=False) as session:
        return list(await session.scalars(query))


async def _prefetch(reading: AsyncEngine, first: int) -> list[tuple[str, list[str]]]:
    query = select(Author).where(Author.id >= first, Author.id < first + 10).order_by(Author.id)
    async with AsyncSession(reading, expire_on_commit=False) as session:
        authors = await session.scalars(query.options(selectinload(Author.books)))
        return [(author.name, sorted(book.title for book in author.books)) for author in authors]


async def _write(writing: AsyncEngine, pk: int) -> None:
    async with AsyncSession(writing, expire_on_commit=False) as session, session.begin():
        session.add(Entry(counter_id=pk, note="written"))
        await session.flush()
        await session.execute(update(Counter).where(Counter.id == pk).values(value=Counter.value + 1))


async def _stream(writing: AsyncEngine, rows: int) -> tuple[int, int]:
    count = total = 0
    query = select(Measurement).where(Measurement.id <= rows).execution_options(yield_per=CHUNK)
    async with AsyncSession(writing, expire_on_commit=False) as session:
        async for measurement in await session.stream_scalars(query):
            count += 1
            total += measurement.number
    return count, total


@asynccontextmanager
async def _opened(driver: str, words: dict[str, Any], size: int) -> AsyncGenerator[dict[str, Callable[[Any], Any]]]:
    writing = create_async_engine(
        f"postgresql+{driver}://", connect_args=words, pool_size=size, max_overflow=0, pool_timeout=PATIENCE
    )
    reading = writing.execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield {
            "get": partial(_get, reading),
            "get_many": partial(_get_many, reading),
            "list_100": partial(_list, 100, reading),
            "list_1000": partial(_list, 1000, reading),
            "prefetch": partial(_prefetch, reading),
            "write": partial(_write, writing),
            "stream": partial(_stream, writing),
        }
    finally:
        await writing.dispose()


def with_psycopg(target: Target) -> Any:
    """Work over psycopg."""
    return _opened("psycopg", target.words(), target.connections)


def with_asyncpg(target: Target) -> Any:
    """Work over asyncpg."""
    return _opened("asyncpg", target.asyncpg_words(), target.connections)
