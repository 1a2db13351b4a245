"""The settings under `GREENORM`. `override_settings` works."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, cast

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

DEFAULTS: dict[str, Any] = {
    "BLOCKING_ALIASES": (),
    "RUN_ALL_SYNC_TO_ASYNC": False,
    "KEEP_IN_THREADS": (),
    "ASYNC_TRANSACTION_ATOMIC": False,
    "AWAITABLE_QUERYSETS": False,
    "LOG_STALLS_MS": None,
}

# By the type of a default: what a value must be, and how that is said.
_KINDS: dict[type, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    tuple: ((list, tuple, set, frozenset), "a list of strings"),
    type(None): ((int, float, type(None)), "a number, or None"),
}


@functools.cache
def _given() -> dict[str, Any]:
    return {**DEFAULTS, **getattr(settings, "GREENORM", {})}


def _forget(*, setting: str, **_: Any) -> None:
    if setting == "GREENORM":
        _given.cache_clear()


setting_changed.connect(_forget, dispatch_uid="greenorm.conf")


def get(name: str) -> Any:
    """Return the setting `name` of GREENORM, or its default."""
    return _given()[name]


def blocking_aliases() -> Iterable[str]:
    """Return the aliases that may block the event loop, by `GREENORM = {"BLOCKING_ALIASES": [...]}`."""
    return cast("Iterable[str]", get("BLOCKING_ALIASES"))


def check() -> None:
    """Raise ImproperlyConfigured for a name that is no setting, or a value of the wrong type."""
    for name, value in getattr(settings, "GREENORM", {}).items():
        if name not in DEFAULTS:
            raise ImproperlyConfigured(
                f"GREENORM has no setting {name!r}. Its settings are {', '.join(sorted(DEFAULTS))}."
            )
        wanted, what = _KINDS[type(DEFAULTS[name])]
        if not isinstance(value, wanted):
            raise ImproperlyConfigured(f"GREENORM[{name!r}] must be {what}, not {value!r}.")
