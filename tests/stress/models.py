"""Money, and where it went."""

from __future__ import annotations

from django.db import models


class Wallet(models.Model):
    balance = models.IntegerField()

    class Meta:
        app_label = "stress"

    def __str__(self) -> str:
        return f"{self.pk}: {self.balance}"


class Posting(models.Model):
    """One side of a transfer: each has two, whose amounts cancel out."""

    transfer = models.BigIntegerField(db_index=True)
    wallet = models.ForeignKey(Wallet, models.CASCADE)
    amount = models.IntegerField()

    class Meta:
        app_label = "stress"

    def __str__(self) -> str:
        return f"{self.transfer}: {self.amount} to {self.wallet_id}"
