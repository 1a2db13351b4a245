"""The demo as a Django app."""

from __future__ import annotations

from django.apps import AppConfig


class DemoConfig(AppConfig):
    name = "greenorm.demo"
    label = "demo"
    verbose_name = "greenorm demo"
    default_auto_field = "django.db.models.BigAutoField"
