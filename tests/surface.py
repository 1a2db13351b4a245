"""Django's own async methods: computed from the Django that is installed, and as README's table shows them."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import django

# What has async methods, by group.
HOLDERS = {
    "QuerySet": "django.db.models:QuerySet",
    "RawQuerySet": "django.db.models.query:RawQuerySet",
    "Manager": "django.db.models:Manager",
    "reverse foreign key": "tests.shop.models:Owner.accounts.related_manager_cls",
    "many-to-many": "tests.shop.models:Account.tags.related_manager_cls",
    "reverse many-to-many": "tests.shop.models:Tag.accounts.related_manager_cls",
    "generic relation": "tests.shop.models:Account.notes.related_manager_cls",
    "Model": "django.db.models:Model",
    "models": "django.db.models.query",
    "shortcuts": "django.shortcuts",
    "AsyncPaginator": "django.core.paginator:AsyncPaginator",
    "AsyncPage": "django.core.paginator:AsyncPage",
    "auth": "django.contrib.auth",
    "hashers": "django.contrib.auth.hashers",
    "BaseBackend": "django.contrib.auth.backends:BaseBackend",
    "ModelBackend": "django.contrib.auth.backends:ModelBackend",
    "RemoteUserBackend": "django.contrib.auth.backends:RemoteUserBackend",
    "middleware": "django.contrib.auth.middleware",
    "RemoteUserMiddleware": "django.contrib.auth.middleware:RemoteUserMiddleware",
    "User": "django.contrib.auth.models:User",
    "AnonymousUser": "django.contrib.auth.models:AnonymousUser",
    "UserManager": "django.contrib.auth.models:UserManager",
    "GroupManager": "django.contrib.auth.models:GroupManager",
    "AsyncClient": "django.test:AsyncClient",
    "SessionBase": "django.contrib.sessions.backends.base:SessionBase",
    "db session": "django.contrib.sessions.backends.db:SessionStore",
    "cached_db session": "django.contrib.sessions.backends.cached_db:SessionStore",
    "cache session": "django.contrib.sessions.backends.cache:SessionStore",
    "signed_cookies session": "django.contrib.sessions.backends.signed_cookies:SessionStore",
    "file session": "django.contrib.sessions.backends.file:SessionStore",
    "database cache": "django.core.cache.backends.db:DatabaseCache",
    "memory cache": "django.core.cache.backends.locmem:LocMemCache",
    "file cache": "django.core.cache.backends.filebased:FileBasedCache",
    "Signal": "django.dispatch:Signal",
    "Task": "django.tasks:Task",
    "TaskResult": "django.tasks:TaskResult",
    "BaseTaskBackend": "django.tasks.backends.base:BaseTaskBackend",
    "DummyBackend": "django.tasks.backends.dummy:DummyBackend",
}
# The first Django that has a group, or a name, where that is not 5.2.
SINCE = {
    **dict.fromkeys(["AsyncPaginator", "AsyncPage", "Task", "TaskResult", "BaseTaskBackend", "DummyBackend"], (6, 0)),
    "auth.acheck_password_with_timing_attack_mitigation": (6, 1),
    "RemoteUserMiddleware.aclean_username": (6, 1),
}
# A group's names do not count where they are only those of another one.
BESIDE = {"User": "Model", "UserManager": "Manager", "GroupManager": "Manager"}
# README's rows: what they are called, the groups that each one shows together, and what becomes of the calls.
HASHING = "a run; hashing in a thread from Django 6.0 on"
RELATED = "reverse foreign key, many-to-many, reverse many-to-many, generic relation"
STORES = "SessionBase, db session, cached_db session, cache session"
ROWS = [
    ("`QuerySet`, `RawQuerySet`, managers", "QuerySet, RawQuerySet, Manager", "a run"),
    ("related managers: all of a manager's, and", RELATED, "a run"),
    ("managers of `User` and `Group`: all of a manager's, and", "UserManager, GroupManager", "a run"),
    ("`Model`", "Model", "a run"),
    ("`django.db.models`, `django.shortcuts`", "models, shortcuts", "a run"),
    ("`AsyncPaginator`, `AsyncPage`", "AsyncPaginator, AsyncPage", "a run"),
    ("`django.contrib.auth`, `.hashers`", "auth, hashers", HASHING),
    ("authentication backends", "BaseBackend, ModelBackend, RemoteUserBackend", HASHING),
    ("`request`, `RemoteUserMiddleware`", "middleware, RemoteUserMiddleware", "a run"),
    ("`User`, `AnonymousUser`", "User, AnonymousUser", HASHING),
    ("`Client`, `AsyncClient` of tests", "AsyncClient", HASHING),
    ("sessions: db, cached_db, cache, your own", STORES, "a run; the cache as below"),
    ("sessions: signed_cookies", "signed_cookies session", "neither: there is nothing to wait for"),
    ("sessions: file", "file session", "neither: Django reads and writes the files on the event loop's thread"),
    ("caches: database, in memory", "database cache, memory cache", "a run"),
    ("caches: file, Redis, memcached", "file cache", "their thread"),
    ("`Signal`", "Signal", "a run, for the sync receivers"),
    ("`Task`, `TaskResult`, task backends", "Task, TaskResult, BaseTaskBackend, DummyBackend", "a run"),
]


def is_here(group: str, name: str = "") -> bool:
    """Return whether the Django that is installed has this, as far as SINCE knows."""
    return _since(group, name) <= django.VERSION


def _since(group: str, name: str = "") -> tuple[int, int]:
    return max(SINCE.get(group, (5, 2)), SINCE.get(f"{group}.{name}", (5, 2)))


def surface() -> dict[str, set[str]]:
    """Return the names of Django's async methods, by group."""
    holders = {group: resolve_name(path) for group, path in HOLDERS.items() if is_here(group)}
    return {
        group: {
            name
            for name in dir(holder)
            if (name == "__aiter__" or (name.startswith("a") and _is_async(getattr(holder, name))))
            and getattr(holder, name) is not getattr(holders.get(BESIDE.get(group, "")), name, None)
        }
        for group, holder in holders.items()
    }


def _is_async(attribute: Any) -> bool:
    fn = inspect.unwrap(attribute)  # a manager's are made from QuerySet's
    return inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn)


def elsewhere() -> set[str]:
    """Return the async functions and methods that Django's source has, and no group."""
    holders = [resolve_name(path) for group, path in HOLDERS.items() if is_here(group)]
    owners = {(owner.__module__, owner.__name__) for holder in holders for owner in getattr(holder, "__mro__", ())}
    owners |= {(holder.__name__, "") for holder in holders}
    root, found = Path(django.__file__).parent, set()
    for path in root.rglob("*.py"):
        module = ".".join(["django", *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef) and (module, getattr(node, "name", "")) not in owners:
                names = {item.name for item in node.body if isinstance(item, ast.AsyncFunctionDef)}
                found |= {f"{module}.{name}" for name in names if name.startswith(("a", "__aiter"))}
    return found


def markdown_table() -> str:
    """Return README's table, for the Django that is installed."""
    computed, above = surface(), set[str]()
    lines = ["| of | async methods | go to |", "| --- | --- | --- |"]
    for label, shown, how in ROWS:
        groups = shown.split(", ")
        names = set[str]().union(*(computed.get(group, ()) for group in groups))
        whole = min(map(_since, groups))
        if shown == RELATED:
            names -= above
        if names:
            marked = [_marked(name, computed, groups, whole) for name in sorted(names)]
            cells = [_mark(label, whole, (5, 2)), "the same" if names <= above else ", ".join(marked), how]
            lines.append(f"| {' | '.join(cells)} |")
        above = names
    return "\n".join(lines)


def _marked(name: str, computed: dict[str, set[str]], groups: list[str], whole: tuple[int, int]) -> str:
    since = min(_since(group, name) for group in groups if name in computed.get(group, ()))
    return _mark(name.replace("__aiter__", "`async for`"), since, whole)


def _mark(text: str, since: tuple[int, int], known: tuple[int, int]) -> str:
    return f"{text}<sup>{since[0]}.{since[1]}</sup>" if since > known else text


def for_this_django(table: str) -> list[list[str]]:
    """Return the rows of README's table, without what is marked as newer than the Django that is installed."""
    rows = []
    for line in table.strip().splitlines()[2:]:
        label, names, how = line.strip("| ").split(" | ")
        if not _is_newer(label):
            rows.append([label, how, *(name for name in names.split(", ") if not _is_newer(name))])
    return rows


def _is_newer(text: str) -> bool:
    since = re.search(r"<sup>(\d+)\.(\d+)</sup>", text)
    return since is not None and (int(since[1]), int(since[2])) > django.VERSION
