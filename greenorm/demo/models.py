"""The countries of the world with their cities, and an account for each, that transfers go from and to."""

# mypy: disable-error-code="var-annotated, no-any-return"
# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# reason: without its mypy plugin, django-stubs does not know the types of fields.

from __future__ import annotations

from django.db import models


class Continent(models.Model):
    code = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Country(models.Model):
    iso = models.CharField(max_length=2, primary_key=True)
    name = models.CharField(max_length=100)
    capital = models.CharField(max_length=100, blank=True)
    continent = models.ForeignKey(Continent, models.PROTECT, related_name="countries")
    neighbours = models.ManyToManyField("self")

    class Meta:
        verbose_name_plural = "countries"

    def __str__(self) -> str:
        return self.name


class City(models.Model):
    name = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.PROTECT, related_name="cities")
    population = models.PositiveIntegerField()
    latitude = models.FloatField()
    longitude = models.FloatField()
    timezone = models.CharField(max_length=50)

    class Meta:
        verbose_name_plural = "cities"

    def __str__(self) -> str:
        return self.name


class Account(models.Model):
    country = models.OneToOneField(Country, models.PROTECT, primary_key=True, related_name="account")
    balance = models.BigIntegerField()

    class Meta:
        constraints = (models.CheckConstraint(condition=models.Q(balance__gte=0), name="not_overdrawn"),)

    def __str__(self) -> str:
        return f"{self.pk}: {self.balance}"


class Transfer(models.Model):
    giver = models.ForeignKey(Account, models.PROTECT, related_name="given")
    taker = models.ForeignKey(Account, models.PROTECT, related_name="taken")
    amount = models.PositiveIntegerField()
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.amount} at {self.at}"
