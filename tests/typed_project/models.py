from __future__ import annotations

from django.db import models

# pyright has no plugin that would find out what a field holds; mypy does without these annotations.


class Owner(models.Model):
    name: models.CharField[str, str] = models.CharField(max_length=100)

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    owner: models.ForeignKey[Owner, Owner] = models.ForeignKey(Owner, models.CASCADE)
    balance: models.IntegerField[int, int] = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.owner.name}: {self.balance}"
