"""The money of a stress test, what was promised about it, and whether that was kept.

Operations note what they were told: that a transfer was committed (by on_commit), that a call returned. `audit` holds
that against what the database has. Kept in arrays that are as long as the test, so that the notes themselves take no
memory while it is measured.
"""

from __future__ import annotations

from django.db.models import Count, F, Sum
from django.db.models.functions import Coalesce

from .models import Posting, Wallet

WALLETS = 40
BALANCE = 1000


class Books:
    """What became of the transfers, by number."""

    def __init__(self, transfers: int) -> None:
        self.on_commit = bytearray(transfers)
        """How often the callbacks of a transfer have run; each has two."""
        self.returned = bytearray(transfers)
        """Whether the call that was to commit the transfer has returned."""
        self.unknown = bytearray(transfers)
        """Whether the caller was told that the outcome of its commit is unknown."""

    def note_commit(self, number: int) -> None:
        """Hear, as a callback of on_commit, that a transfer was committed."""
        self.on_commit[number] += 1

    async def note_commit_async(self, number: int) -> None:
        """Likewise, as an async callback."""
        self.on_commit[number] += 1

    def note_return(self, number: int) -> None:
        """Hear that the call which made a transfer has returned."""
        self.returned[number] = 1

    def note_unknown(self, number: int) -> None:
        """Hear that the commit of a transfer was sent, and its answer lost."""
        self.unknown[number] = 1


def open_wallets() -> None:
    """Begin with nothing but wallets of the same balance."""
    Posting.objects.all().delete()
    Wallet.objects.all().delete()
    Wallet.objects.bulk_create(Wallet(pk=number, balance=BALANCE) for number in range(1, WALLETS + 1))


def audit(books: Books) -> list[str]:
    """Return a sentence for each way in which the money or the promises are not in order."""
    found = []
    total = Wallet.objects.aggregate(total=Sum("balance"))["total"]
    if total != WALLETS * BALANCE:
        found.append(f"the wallets hold {total}, not {WALLETS * BALANCE}")
    wrong = Wallet.objects.annotate(moved=Coalesce(Sum("posting__amount"), 0)).exclude(balance=F("moved") + BALANCE)
    found += [
        f"wallet {wallet.pk} holds {wallet.balance}, and its postings add up to {wallet.moved}" for wallet in wrong
    ]
    transfers = Posting.objects.order_by("transfer").values("transfer").annotate(sides=Count("*"), left=Sum("amount"))
    found += [
        f"transfer {row['transfer']} is not whole: {row}" for row in transfers if (row["sides"], row["left"]) != (2, 0)
    ]
    committed = {row["transfer"] for row in transfers}
    for number, times in enumerate(books.on_commit):
        there = number in committed
        if times != 2 * there and not (there and books.unknown[number] and times == 0):
            found.append(f"transfer {number} {'is' if there else 'is not'} there, and {times} of its 2 callbacks ran")
        if books.returned[number] and not there:
            found.append(f"transfer {number} returned, and is not there")
    return found
