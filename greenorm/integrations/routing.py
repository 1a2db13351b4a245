"""Which calls of asgiref's `sync_to_async` become runs, and which stay on a thread.

Django's own async methods do, where they are about the ORM. What may block on anything but a greenorm alias does not:
other database backends, caches over a network or in files, users' views, middleware and other functions.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.cache import caches
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.handlers.base import BaseHandler
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Model
from django.db.utils import load_backend
from django.http.response import HttpResponseBase
from django.middleware.common import BrokenLinkEmailsMiddleware
from django.utils.deprecation import MiddlewareMixin

from .. import conf, sharing, tasks, testing

# Where Django's async methods hand their sync halves to sync_to_async.
ORM = (
    "django.db.",
    "django.contrib.auth.",
    "django.contrib.contenttypes.",
    "django.contrib.sessions.",
    "django.core.paginator",
    "django.tasks.",
    "greenorm.",
)
SESSIONS = "django.contrib.sessions.backends.base"  # for stores that have no async methods of their own
SIGNALS = "django.dispatch."
CACHES = "django.core.cache."
HANDLERS = ("django.core.handlers.", "django.utils.deprecation")
CHANNELS = "channels.db"


def becomes_run(adapter: SyncToAsync[..., Any], site: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the call of `adapter` from the module `site` becomes a run. For the task side."""
    if not _may_become_run(adapter):
        return False
    of_channels = _is_of_channels(adapter)
    if _follows_a_thread(adapter.func, site):
        return False
    asked_for = of_channels or conf.get("RUN_ALL_SYNC_TO_ASYNC") or sharing.sync_code_waits_in_transaction()
    if not (asked_for or _is_djangos_own(adapter.func, site)):
        return False
    return not _has_a_thread_above() and _is_for_greenorm(adapter.func, args, kwargs)


def joins_a_test(adapter: SyncToAsync[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether the call has to be a run, since the thread that it would get is not that of the test above.

    The thread of the test runs the loop itself, under pytest-asyncio, or an ASGI application has threads of its own.
    """
    if not testing.is_above() or not _may_become_run(adapter):
        return False
    context: Any = SyncToAsync.thread_sensitive_context.get(None)
    if getattr(AsyncToSync.executors, "current", None) is not None or getattr(context, "_executor", None) is not None:
        return False
    if context is None and asyncio.get_running_loop() in AsyncToSync.loop_thread_executors:
        return False
    return _is_for_greenorm(adapter.func, args, kwargs)


def _may_become_run(adapter: SyncToAsync[..., Any]) -> bool:
    if not adapter._thread_sensitive or _keeps_its_thread(adapter.func):
        return False
    # What another subclass does in its thread is its own affair.
    return type(adapter) is SyncToAsync or _is_of_channels(adapter)


def _is_of_channels(adapter: SyncToAsync[..., Any]) -> bool:
    channels: Any = sys.modules.get(CHANNELS)
    return channels is not None and type(adapter) is channels.DatabaseSyncToAsync


def _keeps_its_thread(fn: Callable[..., Any]) -> bool:
    kept = conf.get("KEEP_IN_THREADS")
    if not kept:
        return False
    module = str(getattr(fn, "__module__", ""))
    name = f"{module}.{getattr(fn, '__qualname__', '')}"
    return any(name == entry or name.startswith(f"{entry}.") for entry in kept)


def _follows_a_thread(fn: Callable[..., Any], site: str) -> bool:
    """Return whether the call may close, in the thread that the request's sync code has, what was opened there."""
    if site == CHANNELS:
        return _uses_a_thread(of_the_process=True)
    if site.startswith(SIGNALS):
        return tasks.current() is None and _uses_a_thread()
    closes = isinstance(getattr(fn, "__self__", None), HttpResponseBase) and fn.__name__ == "close"
    return closes and _uses_a_thread()


def _is_djangos_own(fn: Callable[..., Any], site: str) -> bool:
    if site == SESSIONS:
        owner: Any = getattr(fn, "__self__", None)
        return not store_may_block(owner if isinstance(owner, type) else type(owner))
    if site.startswith(CACHES):
        return not may_block(getattr(fn, "__self__", None))
    if site.startswith(HANDLERS):
        # Sync middleware around what is async only, in a chain that is a run: asgiref hands it to who waits for it.
        return sharing.sync_code_waits() or (_is_of_django(fn) and not _uses_a_thread())
    return site.startswith((*ORM, SIGNALS)) or site == CHANNELS


def _has_a_thread_above() -> bool:
    """Return whether asgiref would hand the call to a thread that waits for it, or that somebody has chosen."""
    context: Any = SyncToAsync.thread_sensitive_context.get(None)
    if getattr(context, "_executor", None) is not None:  # asgiref 3.12
        return True
    return tasks.belongs_to_sync_code()


# Stock handlers: Django's own middleware and responses, never users' views.


def _uses_a_thread(of_the_process: bool = False) -> bool:
    """Return whether sync code of this request has a thread already; the rest of it then goes there too."""
    context: Any = SyncToAsync.thread_sensitive_context.get(None)
    if context is not None:
        return context in SyncToAsync.context_to_thread_executor
    return of_the_process and bool(SyncToAsync.single_thread_executor._threads)


def _is_of_django(method: Callable[..., Any]) -> bool:
    owner = getattr(method, "__self__", None)
    if not isinstance(owner, (MiddlewareMixin, HttpResponseBase, BaseHandler)):
        return False
    if not str(getattr(method, "__module__", "")).startswith("django."):
        return False
    if isinstance(owner, BaseHandler):
        return all(map(_is_of_django, getattr(owner, "_exception_middleware", ()) or ()))
    return not (isinstance(owner, MiddlewareMixin) and _middleware_may_block(owner))


def _middleware_may_block(middleware: Any) -> bool:
    if (alias := getattr(middleware, "cache_alias", None)) is not None:
        return may_block(caches[alias])
    if isinstance(middleware, SessionMiddleware):
        return store_may_block(import_module(settings.SESSION_ENGINE).SessionStore)
    return isinstance(middleware, BrokenLinkEmailsMiddleware)  # SMTP


def store_may_block(store: Any) -> bool:
    from django.contrib.sessions.backends import cache, cached_db, signed_cookies

    if issubclass(store, (cache.SessionStore, cached_db.SessionStore)) and may_block(
        caches[settings.SESSION_CACHE_ALIAS]
    ):
        return True
    get_model_class: Any = getattr(store, "get_model_class", None)  # as Django documents it, for stores in the database
    if get_model_class is not None:
        return not all(map(can_await, _routed(get_model_class(), {})))
    return not issubclass(store, (cache.SessionStore, signed_cookies.SessionStore))


def may_block(cache: Any) -> bool:
    if isinstance(cache, BaseDatabaseCache):
        return not all(map(can_await, _routed(cache.cache_model_class, {})))
    return not isinstance(cache, (LocMemCache, DummyCache))


# Aliases of other backends stay in threads.


def can_await(alias: str) -> bool:
    """Return whether the ENGINE of `alias` is one of greenorm's."""
    return _engine_can_await(connections.settings[alias]["ENGINE"])


@functools.cache
def _engine_can_await(engine: str) -> bool:
    return bool(getattr(load_backend(engine).DatabaseWrapper, "can_await", False))


def _is_for_greenorm(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether all aliases that the call is about can wait; where they cannot be told, the default one."""
    if all(map(can_await, connections.settings)):
        return True
    if aliases := set(_aliases(fn, args, kwargs)):
        return all(can_await(alias) for alias in aliases if alias in connections.settings)
    return tasks.current() is not None or can_await(DEFAULT_DB_ALIAS)


def _aliases(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[str]:
    enclosed = _enclosed_by(fn)
    using = kwargs.get("using", enclosed.get("using"))
    if isinstance(using, str):
        yield using
        return
    subject = _subject_of(fn, enclosed, args)
    if isinstance(chosen := getattr(subject, "_db", None), str):
        yield chosen
        return
    model, hints = _model_of(subject)
    if model is not None:
        yield from _routed(model, hints)


def _subject_of(fn: Any, enclosed: dict[str, Any], args: tuple[Any, ...]) -> Any:
    # Compared with `is`: the truth of a queryset is a query.
    owner = getattr(fn, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        return owner
    first = args[0] if args else None
    if type(first) in (list, tuple):
        first = first[0] if first else None
    for subject in (getattr(enclosed.get("self"), "queryset", None), enclosed.get("sender"), first):
        if subject is not None:
            return subject
    return None


def _model_of(subject: Any) -> tuple[type[Model] | None, dict[str, Any]]:
    if isinstance(subject, BaseDatabaseCache):
        return subject.cache_model_class, {}
    if isinstance(subject, Model):
        return type(subject), {"instance": subject}
    if hasattr(subject, "has_perm") and hasattr(subject, "authenticate"):
        return get_user_model(), {}
    model: Any = subject if isinstance(subject, type) else getattr(subject, "model", None)
    if not (isinstance(model, type) and issubclass(model, Model)):
        return None, {}
    instance = getattr(subject, "instance", None)  # of a related manager
    return model, {"instance": instance} if instance is not None else getattr(subject, "_hints", {})


def _routed(model: Any, hints: dict[str, Any]) -> Iterator[str]:
    yield router.db_for_read(model, **hints)
    yield router.db_for_write(model, **hints)


def _enclosed_by(fn: Any) -> dict[str, Any]:
    code, cells = getattr(fn, "__code__", None), getattr(fn, "__closure__", None)
    if code is None or not cells:
        return {}
    return {name: cell.cell_contents for name, cell in zip(code.co_freevars, cells, strict=True) if _is_set(cell)}


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True
