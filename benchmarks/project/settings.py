"""Settings of the site that is served: `BENCHMARKS_SITE` holds, as JSON, what differs from server to server."""

from __future__ import annotations

import json
import os

from greenorm.demo.server import database_settings

_site = json.loads(os.environ["BENCHMARKS_SITE"])

DATABASES = {
    "default": {
        **database_settings(_site["dsn"], **_site.get("options", {})),
        "ENGINE": _site["engine"],
        **_site.get("database", {}),
    }
}
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "benchmarks.project",
]
# The seven of `django-admin startproject`.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "benchmarks.project.served"
SECRET_KEY = "benchmarks"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
