"""Django's settings in the process that runs the tests: those of its own tests/test_sqlite.py, on other databases."""

import json
import os

import django

DATABASES = json.loads(os.environ["GREENORM_SUITE_DATABASES"])
if django.VERSION < (6, 0):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "django_tests_secret_key"
TEST_RUNNER = "tests.django_suite.recorder.Runner"
USE_TZ = False
