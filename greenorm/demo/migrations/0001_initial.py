from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    operations = (
        migrations.CreateModel(
            name="Continent",
            fields=[
                ("code", models.CharField(max_length=2, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=50)),
            ],
        ),
        migrations.CreateModel(
            name="Country",
            fields=[
                ("iso", models.CharField(max_length=2, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("capital", models.CharField(blank=True, max_length=100)),
                (
                    "continent",
                    models.ForeignKey(on_delete=models.PROTECT, related_name="countries", to="demo.continent"),
                ),
                ("neighbours", models.ManyToManyField(to="demo.country")),
            ],
            options={"verbose_name_plural": "countries"},
        ),
        migrations.CreateModel(
            name="City",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100)),
                ("country", models.ForeignKey(on_delete=models.PROTECT, related_name="cities", to="demo.country")),
                ("population", models.PositiveIntegerField()),
                ("latitude", models.FloatField()),
                ("longitude", models.FloatField()),
                ("timezone", models.CharField(max_length=50)),
            ],
            options={"verbose_name_plural": "cities"},
        ),
        migrations.CreateModel(
            name="Account",
            fields=[
                (
                    "country",
                    models.OneToOneField(
                        on_delete=models.PROTECT,
                        primary_key=True,
                        related_name="account",
                        serialize=False,
                        to="demo.country",
                    ),
                ),
                ("balance", models.BigIntegerField()),
            ],
            options={
                "constraints": (models.CheckConstraint(condition=models.Q(("balance__gte", 0)), name="not_overdrawn"),)
            },
        ),
        migrations.CreateModel(
            name="Transfer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("giver", models.ForeignKey(on_delete=models.PROTECT, related_name="given", to="demo.account")),
                ("taker", models.ForeignKey(on_delete=models.PROTECT, related_name="taken", to="demo.account")),
                ("amount", models.PositiveIntegerField()),
                ("at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
    )
