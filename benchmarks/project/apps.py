"""The project as a Django app."""

from __future__ import annotations

from django.apps import AppConfig


class ProjectConfig(AppConfig):
    name = "benchmarks.project"
    label = "bench"
    default_auto_field = "django.db.models.BigAutoField"
