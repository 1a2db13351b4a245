from django.db import models


class Account(models.Model):
    name = models.CharField(max_length=50, unique=True)

    def __str__(self) -> str:
        return self.name


class Entry(models.Model):
    account = models.ForeignKey(Account, models.CASCADE, related_name="entries")
    amount = models.IntegerField()

    def __str__(self) -> str:
        return f"{self.amount}"
