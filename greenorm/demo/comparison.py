"""The comparison with sync_to_async: what the demo prints in short, and `benchmarks/concurrency.py` at length."""

from __future__ import annotations

from dataclasses import dataclass

import greenorm

from . import services, workload
from .contenders import CONTENDERS
from .data import read_books
from .measure import Row, compare
from .stage import Stage


@dataclass(frozen=True)
class Comparison:
    """What was measured, and what the accounts have been through meanwhile."""

    rows: list[Row]
    transfers: int
    balance: int


async def with_sync_to_async(stage: Stage, at_once: int, one_by_one: int, rounds: int) -> Comparison:
    """Let all contenders do all situations, and check the accounts: every transfer is there, no money was made.

    `at_once` and `one_by_one` are the numbers of requests of a turn. Raises AssertionError where contenders differ in
    what they return, or the accounts are wrong.
    """
    before = await greenorm.run(read_books)
    situations = await greenorm.run(workload.make_situations, at_once, one_by_one)
    rows = await compare(situations, CONTENDERS, rounds, stage.schema.count_sessions, stage.steps.advance)
    after = await greenorm.run(read_books)
    ordered = sum(
        workload.count_of(services.transfer, [*situation.warm_up, *situation.requests]) for situation in situations
    )
    transfers = after.transfers - before.transfers
    if after.balance != before.balance or transfers != ordered * len(CONTENDERS) * rounds:
        raise AssertionError(f"the accounts are wrong: {before} before, {after} after {ordered} transfers a round")
    return Comparison(rows, transfers, after.balance)
