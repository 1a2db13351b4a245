"""A package's own settings for its tests, `tests.settings`, on other databases and with the recorder's runner."""

from importlib import import_module

from tests.django_suite.recorder import on_suite_database

globals().update({name: value for name, value in vars(import_module("tests.settings")).items() if name.isupper()})

DATABASES = {alias: on_suite_database() for alias in globals()["DATABASES"]}
TEST_RUNNER = "tests.django_suite.recorder.Runner"
