"""Django's settings in the process of the server; the test gives the database."""

import json
import os

from tests.startproject import STARTPROJECT

DATABASES = {"default": json.loads(os.environ["GREENORM_SITE_DATABASE"])}
SECRET_KEY = "tests"
ALLOWED_HOSTS = ["*"]
DEBUG = bool(os.environ.get("GREENORM_SITE_DEBUG"))
GREENORM = {"LOG_STALLS_MS": 0}
SILENCED_SYSTEM_CHECKS = ["postgres.E005"]  # no test of the site uses the fields
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.whole.urls"
ASGI_APPLICATION = "tests.whole.asgi.application"
STATIC_URL = "static/"
INSTALLED_APPS = [
    *(["daphne"] if os.environ.get("GREENORM_SITE_DEBUG") else []),  # for its runserver
    "greenorm",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "tests.shop",
]
MIDDLEWARE = STARTPROJECT
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
REST_FRAMEWORK = {"DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.PageNumberPagination", "PAGE_SIZE": 10}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}
