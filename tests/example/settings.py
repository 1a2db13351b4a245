"""The settings; a server with a role that may create databases is named by EXAMPLE_DSN."""

import os

from greenorm.demo.server import database_settings

_dsn = os.environ["EXAMPLE_DSN"]
_name = os.environ["EXAMPLE_NAME"]

DATABASES = {
    alias: {**database_settings(_dsn), "TEST": {"NAME": f"{_name}_{alias}", "MIGRATE": False}}
    for alias in ("default", "archive")
}
INSTALLED_APPS = [
    *(["greenorm"] if os.environ.get("EXAMPLE_WITH_APP") else []),
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "tests.example.ledger",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "tests.example.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "example"
USE_TZ = True
STATIC_URL = "static/"
ALLOWED_HOSTS = ["*"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
