"""Django's own commands: `shell`, sync and async, and `asyncio.run` in a management command."""

from __future__ import annotations

import asyncio
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from django.core.management import BaseCommand, call_command
from django.db import connection, transaction

import greenorm
from tests.neighbours.apart import apart
from tests.shop.models import Owner

IN_A_SHELL = """
import asyncio, greenorm
from tests.shop.models import Owner
Owner.objects.create(name="Ada")
async def main():
    await Owner.objects.acreate(name="Bob")
    async with greenorm.atomic():
        await greenorm.run(Owner.objects.create, name="Eve")
    return [owner.name async for owner in Owner.objects.order_by("name")]
for _ in range(3):
    names = asyncio.run(main()) if Owner.objects.count() < 3 else names
print(names, Owner.objects.count())
"""


def in_a_shell() -> str:
    with redirect_stdout(StringIO()) as printed:
        call_command("shell", command=IN_A_SHELL, no_imports=True)
    return printed.getvalue()


class Command(BaseCommand):
    """What a project has in management/commands."""

    def handle(self, *args: Any, **options: Any) -> str:
        Owner.objects.create(name="Ada")
        names = asyncio.run(self.work())
        with connection.cursor() as cursor:  # sync again, on the connection of before
            cursor.execute("SELECT count(*) FROM shop_owner")
            return f"{names} {cursor.fetchone()[0]}"

    async def work(self) -> list[str]:
        await asyncio.gather(*[greenorm.run(Owner.objects.create, name=name) for name in ["Bob", "Eve"]])
        return await greenorm.run(lambda: [owner.name for owner in Owner.objects.order_by("name")])


def test_a_command_calls_asyncio_run_between_its_sync_queries() -> None:
    assert call_command(Command()) == "['Ada', 'Bob', 'Eve'] 3"


def test_asyncio_run_in_a_commands_transaction_joins_it() -> None:
    """One session serves both sides, in turns; what the other tasks of the loop do is part of it, too."""

    class Failing(Command):
        def handle(self, *args: Any, **options: Any) -> str:
            try:
                with transaction.atomic():
                    found = super().handle()
                    raise ZeroDivisionError
            except ZeroDivisionError:
                return f"{found} {Owner.objects.count()}"

    assert call_command(Failing()) == "['Ada', 'Bob', 'Eve'] 3 0"


def test_the_shell_works_as_before_and_runs_what_is_async() -> None:
    assert apart(in_a_shell) == "['Ada', 'Bob', 'Eve'] 3\n"
