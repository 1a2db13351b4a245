"""Each async method of Django, called under the hook: it runs on AsyncCursor, and takes no thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import django
import psycopg
import pytest
from asgiref.sync import ThreadSensitiveContext
from django import shortcuts
from django.conf import settings
from django.contrib import auth
from django.contrib.auth import hashers, middleware
from django.contrib.auth.backends import BaseBackend, ModelBackend, RemoteUserBackend
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.contrib.sessions.backends import base, cache, cached_db, db, file, signed_cookies
from django.core import paginator
from django.core.cache import caches
from django.core.cache.backends.filebased import FileBasedCache
from django.db.models import Count, aprefetch_related_objects
from django.dispatch import Signal
from django.http import HttpRequest
from django.test import AsyncClient
from django.utils import timezone

import greenorm
from tests.shop.models import Account, Owner, Tag
from tests.surface import elsewhere, for_this_django, is_here, markdown_table, surface

README = Path(__file__).parent.parent / "README.md"
# What a call touches; and whose code, where not greenorm's, takes a thread for that.
DATABASE, MEMORY, FILE, CACHE_FILE, HASH, LOGIN = "database", "memory", "file", "cache file", "hash", "database, hash"
THREADS = {CACHE_FILE: "django/core/cache"}
if django.VERSION >= (6, 0):
    THREADS |= dict.fromkeys([HASH, LOGIN], "django/contrib/auth/hashers")
# By a method's name: its call, awaited with the subject; its result, or a check of subject and result that is done in
# a run; and what it touches, where that is not the database.
Calls = dict[str, tuple[Any, ...]]


def touching(what: str, calls: Calls) -> Calls:
    return {name: (call, result, what) for name, (call, result, *_) in calls.items()}


async def listed(items: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in items]


# The ORM


class Rows:
    """Rows that hold 1, 2 and 3, and one that holds 9 and that their manager does not see."""

    def __init__(self, all_: Any, field: str, needs: dict[str, Any], strays: dict[str, Any] | None = None) -> None:
        self.all, self.field, self.needs = all_, field, needs
        self.rows = [all_.create(**self.at(number), **needs) for number in (1, 2, 3)]
        self.stray = all_.model.objects.create(**self.at(9), **strays) if strays is not None else None

    def at(self, number: int) -> dict[str, Any]:
        return {self.field: number}

    def raised(self) -> list[Any]:
        for number, row in enumerate(self.rows, start=4):
            setattr(row, self.field, number)
        return self.rows

    def hold(self, *numbers: int) -> bool:
        return sorted(int(value) for value in self.all.values_list(self.field, flat=True)) == [*numbers]


def owner(name: str = "Ada") -> Owner:
    return Owner.objects.get_or_create(name=name)[0]


def account() -> Account:
    return Account.objects.create(owner=owner())


def accounts() -> Rows:
    return Rows(Account.objects, "balance", {"owner": owner()})


def accounts_of_an_owner() -> Rows:
    return Rows(owner().accounts, "balance", {"owner": owner()}, {"owner": owner("Bob")})


def accounts_of_a_tag() -> Rows:
    return Rows(Tag.objects.create().accounts, "balance", {"owner": owner()}, {"owner": owner()})


def notes() -> Rows:
    subject = account()
    return Rows(subject.notes, "text", {"subject": subject}, {"subject": account()})


def unsaved() -> Account:
    made = account()
    made.balance = 5
    return made


def pages() -> Any:
    return paginator.AsyncPaginator(accounts().all.order_by("pk"), 1)


def page() -> Any:
    return paginator.AsyncPage(pages().object_list[1:2], 2, pages())


MANAGERS: Calls = {
    "aaggregate": (lambda r: r.all.aaggregate(n=Count("pk")), {"n": 3}),
    "abulk_create": (
        lambda r: r.all.abulk_create([r.all.model(**r.at(4), **r.needs)]),
        lambda r, made: made == [r.all.model.objects.get(**r.at(4))],
    ),
    "abulk_update": (lambda r: r.all.abulk_update(r.raised(), [r.field]), lambda r, _: r.hold(4, 5, 6)),
    "acontains": (lambda r: r.all.acontains(r.rows[0]), True),
    "acount": (lambda r: r.all.acount(), 3),
    "acreate": (lambda r: r.all.acreate(**r.at(4), **r.needs), lambda r, _: r.hold(1, 2, 3, 4)),
    "aearliest": (lambda r: r.all.aearliest("pk"), lambda r, row: row == r.rows[0]),
    "aexists": (lambda r: r.all.aexists(), True),
    "aexplain": (lambda r: r.all.aexplain(), lambda _, plan: "cost=" in plan),
    "afirst": (lambda r: r.all.afirst(), lambda r, row: row == r.rows[0]),
    "aget": (lambda r: r.all.aget(**r.at(2)), lambda r, row: row == r.rows[1]),
    "aget_or_create": (lambda r: r.all.aget_or_create(**r.at(4), defaults=r.needs), lambda r, _: r.hold(1, 2, 3, 4)),
    "ain_bulk": (lambda r: r.all.ain_bulk([r.rows[0].pk]), lambda r, rows: rows == {r.rows[0].pk: r.rows[0]}),
    "aiterator": (lambda r: listed(r.all.aiterator()), lambda r, rows: set(rows) == set(r.rows)),
    "alast": (lambda r: r.all.alast(), lambda r, row: row == r.rows[2]),
    "alatest": (lambda r: r.all.alatest("pk"), lambda r, row: row == r.rows[2]),
    "aupdate": (lambda r: r.all.aupdate(**r.at(7)), lambda r, count: count == 3 and r.hold(7, 7, 7)),
    "aupdate_or_create": (lambda r: r.all.aupdate_or_create(**r.at(2), defaults=r.at(5)), lambda r, _: r.hold(1, 3, 5)),
}
QUERYSETS: Calls = MANAGERS | {
    "__aiter__": (lambda r: listed(r.all), lambda r, rows: set(rows) == set(r.rows)),
    "adelete": (lambda r: r.all.adelete(), lambda r, result: result[0] == 3 and r.hold()),
}
FOREIGN_KEYS: Calls = MANAGERS | {
    "aadd": (lambda r: r.all.aadd(r.stray), lambda r, _: r.hold(1, 2, 3, 9)),
    "aset": (lambda r: r.all.aset([*r.rows, r.stray]), lambda r, _: r.hold(1, 2, 3, 9)),
}
RELATIONS: Calls = FOREIGN_KEYS | {
    "aclear": (lambda r: r.all.aclear(), lambda r, _: r.hold()),
    "aremove": (lambda r: r.all.aremove(r.rows[0]), lambda r, _: r.hold(2, 3)),
    "aset": (lambda r: r.all.aset([r.rows[0], r.stray]), lambda r, _: r.hold(1, 9)),
}
RAW: Calls = {"__aiter__": (listed, lambda _, rows: {row.balance for row in rows} == {1, 2, 3})}
MODELS: Calls = {
    "adelete": (lambda a: a.adelete(), lambda a, _: not Account.objects.exists()),
    "arefresh_from_db": (lambda a: a.arefresh_from_db(), lambda a, _: a.balance == 0),
    "asave": (lambda a: a.asave(), lambda a, _: Account.objects.get().balance == 5),
}
PREFETCHES: Calls = {
    "aprefetch_related_objects": (
        lambda r: aprefetch_related_objects(r.rows, "tags"),
        lambda r, _: "tags" in r.rows[2]._prefetched_objects_cache,
    ),
}
SHORTCUTS: Calls = {
    "aget_object_or_404": (lambda r: shortcuts.aget_object_or_404(r.all, balance=2), lambda r, row: row == r.rows[1]),
    "aget_list_or_404": (lambda r: shortcuts.aget_list_or_404(r.all, balance=2), lambda r, rows: rows == [r.rows[1]]),
}
PAGINATORS: Calls = {
    "__aiter__": (listed, lambda _, pages: [page.number for page in pages] == [1, 2, 3]),
    "acount": (lambda p: p.acount(), 3),
    "aget_elided_page_range": (lambda p: listed(p.aget_elided_page_range()), [1, 2, 3]),
    "aget_page": (lambda p: p.aget_page(9), lambda _, page: page.number == 3),
    "anum_pages": (lambda p: p.anum_pages(), 3),
    "apage": (lambda p: p.apage(2), lambda _, page: page.number == 2),
    "apage_range": (lambda p: p.apage_range(), range(1, 4)),
    "avalidate_number": (lambda p: p.avalidate_number("2"), 2),
}
PAGES: Calls = {
    "__aiter__": (listed, lambda _, rows: [row.balance for row in rows] == [2]),
    "aend_index": (lambda p: p.aend_index(), 2),
    "aget_object_list": (lambda p: p.aget_object_list(), lambda p, _: [row.balance for row in p] == [2]),
    "ahas_next": (lambda p: p.ahas_next(), True),
    "ahas_other_pages": (lambda p: p.ahas_other_pages(), True),
    "ahas_previous": (lambda p: p.ahas_previous(), True, MEMORY),
    "anext_page_number": (lambda p: p.anext_page_number(), 3),
    "aprevious_page_number": (lambda p: p.aprevious_page_number(), 1),
    "astart_index": (lambda p: p.astart_index(), 2),
}

# Users


def sync_half(of: type, parent: type, *names: str) -> Any:
    """Return a child of `parent` with sync methods only, as a project's own store or backend may be."""
    return type("SyncHalf", (parent,), {name: vars(of)[name] for name in names})


SyncBackend = sync_half(
    *(ModelBackend, BaseBackend, "authenticate", "user_can_authenticate", "get_user", "get_user_permissions"),
    *("get_group_permissions", "_get_permissions", "_get_user_permissions", "_get_group_permissions"),
)


class Site:
    """Ada, who may view tags, and owners by her group; a request of hers; and one that Eve, a remote user, begins."""

    def __init__(self, subject: Any = None) -> None:
        ada = User.objects.create_user("ada", password="secret")
        group = Group.objects.create(name="staff")
        ada.groups.add(group)
        ada.user_permissions.add(Permission.objects.get(codename="view_tag"))
        group.permissions.add(Permission.objects.get(codename="view_owner"))
        self.user = User.objects.get()
        self.user.backend = settings.AUTHENTICATION_BACKENDS[0]
        self.request, self.new = request_of(self.user), request_of(AnonymousUser())
        auth.login(self.request, self.user)
        self.request.session.save()
        self.request.session = db.SessionStore(self.request.session.session_key)
        self.subject = subject or self.user

    def with_new_password(self) -> User:
        self.user.set_password("new")
        return self.user


def request_of(user: Any) -> Any:
    async def auser() -> Any:
        return user

    request: Any = HttpRequest()
    request.META |= {"REMOTE_USER": "eve", "HTTP_REMOTE_USER": "eve"}
    request.session, request.user, request.auser = db.SessionStore(), user, auser
    return request


def is_ada(site: Site, user: Any) -> bool:
    return bool(user == site.user)


CREDENTIALS = {"username": "ada", "password": "secret"}
BOTH = {"shop.view_tag", "shop.view_owner"}
AUTH: Calls = {
    "aauthenticate": (lambda s: auth.aauthenticate(**CREDENTIALS), is_ada, LOGIN),
    "acheck_password_with_timing_attack_mitigation": (
        lambda s: auth.acheck_password_with_timing_attack_mitigation(s.user, "secret"),
        *(True, HASH),
    ),
    "aget_user": (lambda s: auth.aget_user(s.request), is_ada),
    "alogin": (lambda s: auth.alogin(s.new, s.user), lambda s, _: is_ada(s, auth.get_user(s.new))),
    "alogout": (lambda s: auth.alogout(s.request), lambda s, _: auth.get_user(s.request).is_anonymous),
    "aupdate_session_auth_hash": (
        lambda s: auth.aupdate_session_auth_hash(s.request, s.with_new_password()),
        lambda s, _: s.request.session[auth.HASH_SESSION_KEY] == s.user.get_session_auth_hash(),
    ),
}
HASHERS: Calls = {"acheck_password": (lambda s: hashers.acheck_password("secret", s.user.password), True, HASH)}
SYNC_BACKENDS: Calls = {
    "aauthenticate": (lambda s: s.subject.aauthenticate(None, **CREDENTIALS), is_ada),  # a hash in the run, too
    "aget_all_permissions": (lambda s: s.subject.aget_all_permissions(s.user), BOTH),
    "aget_group_permissions": (lambda s: s.subject.aget_group_permissions(s.user), {"shop.view_owner"}),
    "aget_user": (lambda s: s.subject.aget_user(s.user.pk), is_ada),
    "aget_user_permissions": (lambda s: s.subject.aget_user_permissions(s.user), {"shop.view_tag"}),
    "ahas_perm": (lambda s: s.subject.ahas_perm(s.user, "shop.view_tag"), True),
}
BACKENDS: Calls = SYNC_BACKENDS | {
    "aauthenticate": (lambda s: s.subject.aauthenticate(None, **CREDENTIALS), is_ada, LOGIN),
    "ahas_module_perms": (lambda s: s.subject.ahas_module_perms(s.user, "shop"), True),
}
REMOTE_BACKENDS: Calls = BACKENDS | {
    "aauthenticate": (lambda s: s.subject.aauthenticate(s.new, "eve"), lambda s, user: user.username == "eve"),
    "aconfigure_user": (lambda s: s.subject.aconfigure_user(s.new, s.user), is_ada, MEMORY),
}
REQUESTS: Calls = {"auser": (lambda s: middleware.auser(s.request), is_ada)}
REMOTE_USERS: Calls = {
    "aclean_username": (lambda s: s.subject.aclean_username("ada", s.request), "ada"),
    "aprocess_request": (
        lambda s: s.subject.aprocess_request(s.new),
        lambda s, _: auth.get_user(s.new).username == "eve",
    ),
}
ANYBODY: Calls = {
    "aget_all_permissions": (lambda s: s.subject.aget_all_permissions(), BOTH),
    "aget_group_permissions": (lambda s: s.subject.aget_group_permissions(), {"shop.view_owner"}),
    "aget_user_permissions": (lambda s: s.subject.aget_user_permissions(), {"shop.view_tag"}),
    "ahas_module_perms": (lambda s: s.subject.ahas_module_perms("shop"), True),
    "ahas_perm": (lambda s: s.subject.ahas_perm("shop.view_tag"), True),
    "ahas_perms": (lambda s: s.subject.ahas_perms(BOTH), True),
}
NOBODY: Calls = {name: (call, type(result)(), MEMORY) for name, (call, result) in ANYBODY.items()}
USERS: Calls = ANYBODY | {"acheck_password": (lambda s: s.user.acheck_password("secret"), True, HASH)}
USER_MANAGERS: Calls = {
    "acreate_superuser": (lambda s: User.objects.acreate_superuser("eve"), lambda s, user: user.pk > s.user.pk),
    "acreate_user": (lambda s: User.objects.acreate_user("eve"), lambda s, user: user.pk > s.user.pk),
    "aget_by_natural_key": (lambda s: User.objects.aget_by_natural_key("ada"), is_ada),
}
GROUP_MANAGERS: Calls = {
    "aget_by_natural_key": (lambda _: Group.objects.aget_by_natural_key("staff"), lambda _, group: group.pk),
}
CLIENTS: Calls = {
    "aforce_login": (lambda s: s.subject.aforce_login(s.user), lambda s, _: auth.SESSION_KEY in s.subject.session),
    "alogin": (lambda s: s.subject.alogin(**CREDENTIALS), True, LOGIN),
    "alogout": (lambda s: s.subject.alogout(), lambda s, _: not s.subject.cookies),
    "asession": (lambda s: s.subject.asession(), lambda _, made: made.exists(made.session_key)),
}

# Sessions

SyncStore = sync_half(
    *(db.SessionStore, base.SessionBase, "load", "exists", "create", "save", "delete", "clear_expired"),
    *("model", "get_model_class", "_get_session_from_db", "create_model_instance"),
)


class DatabaseCacheStore(cache.SessionStore):
    _cache = property(lambda self: caches["database"], lambda self, default: None)


def session(store: Any, writer: Any = None) -> Any:
    """Return a session as a request finds it: stored, not yet read; it knows the key of one that has expired."""
    expired, written = (writer or store)(), (writer or store)()
    expired.set_expiry(-1)
    expired.save()
    written["a"] = 1
    written.set_test_cookie()
    written.save()
    found = store(written.session_key)
    found.was, found.expired = written.session_key, expired.session_key
    return found


def again(found: Any) -> Any:
    return type(found)(found.session_key)


DATA = {"a": 1, base.SessionBase.TEST_COOKIE_NAME: base.SessionBase.TEST_COOKIE_VALUE}
SESSIONS: Calls = {
    "aclear_expired": (lambda s: s.aclear_expired(), lambda s, _: not s.exists(s.expired)),
    "acreate": (lambda s: s.acreate(), lambda s, _: s.session_key != s.was and s.exists(s.session_key)),
    "acycle_key": (lambda s: s.acycle_key(), lambda s, _: again(s).load() == DATA and not s.exists(s.was)),
    "adelete": (lambda s: s.adelete(), lambda s, _: not s.exists(s.was)),
    "adelete_test_cookie": (lambda s: s.adelete_test_cookie(), lambda s, _: not s.test_cookie_worked()),
    "aexists": (lambda s: s.aexists(s.was), True),
    "aflush": (lambda s: s.aflush(), lambda s, _: s.session_key is None and not s.exists(s.was)),
    "aget": (lambda s: s.aget("a"), 1),
    "aget_expire_at_browser_close": (lambda s: s.aget_expire_at_browser_close(), False),
    "aget_expiry_age": (lambda s: s.aget_expiry_age(), settings.SESSION_COOKIE_AGE),
    "aget_expiry_date": (lambda s: s.aget_expiry_date(), lambda _, date: date > timezone.now()),
    "ahas_key": (lambda s: s.ahas_key("a"), True),
    "aitems": (lambda s: s.aitems(), DATA.items()),
    "akeys": (lambda s: s.akeys(), DATA.keys()),
    "aload": (lambda s: s.aload(), DATA),
    "apop": (lambda s: s.apop("a"), lambda s, value: value == 1 and "a" not in s),
    "asave": (lambda s: s.asave(), lambda s, _: again(s).load() == DATA),
    "aset": (lambda s: s.aset("b", 2), lambda s, _: s["b"] == 2),
    "aset_expiry": (lambda s: s.aset_expiry(60), lambda s, _: s.get_expiry_age() == 60),
    "aset_test_cookie": (lambda s: s.aset_test_cookie(), lambda s, _: s.modified and s.test_cookie_worked()),
    "asetdefault": (lambda s: s.asetdefault("b", 2), lambda s, value: s["b"] == value == 2),
    "atest_cookie_worked": (lambda s: s.atest_cookie_worked(), True),
    "aupdate": (lambda s: s.aupdate({"b": 2}), lambda s, _: s["b"] == 2),
    "avalues": (lambda s: s.avalues(), lambda _, values: set(values) == set(DATA.values())),
}
MODEL_SESSIONS: Calls = SESSIONS | {
    "acreate_model_instance": (lambda s: s.acreate_model_instance(DATA), lambda s, r: s.decode(r.session_data) == DATA),
}
KEYS: Calls = {"acache_key": (lambda s: s.acache_key(), lambda s, key: key == s.cache_key_prefix + s.was, MEMORY)}
CACHE_SESSIONS: Calls = SESSIONS | KEYS | {"aclear_expired": (lambda s: s.aclear_expired(), None, MEMORY)}
COOKIES: Calls = SESSIONS | {
    "aclear_expired": (lambda s: s.aclear_expired(), None),
    "acreate": (lambda s: s.acreate(), lambda s, _: s.modified),
    "acycle_key": (lambda s: s.acycle_key(), lambda s, _: s.modified and again(s).load() == DATA),
    "aexists": (lambda s: s.aexists(s.was), False),
}

# Caches, signals, tasks


def filled(cache_: Any) -> Any:
    cache_.clear()
    cache_.set("a", 1)
    return cache_


def file_cache() -> Any:
    return filled(FileBasedCache(file.SessionStore._storage_path, {}))


CACHES: Calls = {
    "aadd": (lambda c: c.aadd("b", 2), lambda c, added: added and c.get("b") == 2),
    "aclear": (lambda c: c.aclear(), lambda c, _: not c.has_key("a")),
    "aclose": (lambda c: c.aclose(), None, MEMORY),
    "adecr": (lambda c: c.adecr("a"), lambda c, value: value == c.get("a") == 0),
    "adecr_version": (lambda c: c.adecr_version("a"), lambda c, version: c.get("a", version=version) == 1),
    "adelete": (lambda c: c.adelete("a"), lambda c, deleted: deleted and not c.has_key("a")),
    "adelete_many": (lambda c: c.adelete_many(["a"]), lambda c, _: not c.has_key("a")),
    "aget": (lambda c: c.aget("a"), 1),
    "aget_many": (lambda c: c.aget_many(["a", "b"]), {"a": 1}),
    "aget_or_set": (lambda c: c.aget_or_set("b", 2), lambda c, value: value == c.get("b") == 2),
    "ahas_key": (lambda c: c.ahas_key("a"), True),
    "aincr": (lambda c: c.aincr("a"), lambda c, value: value == c.get("a") == 2),
    "aincr_version": (lambda c: c.aincr_version("a"), lambda c, version: c.get("a", version=version) == 1),
    "aset": (lambda c: c.aset("b", 2), lambda c, _: c.get("b") == 2),
    "aset_many": (lambda c: c.aset_many({"b": 2}), lambda c, failed: failed == [] and c.get("b") == 2),
    "atouch": (lambda c: c.atouch("a", 60), True),
}
FILE_CACHES: Calls = touching(CACHE_FILE, CACHES)
if django.VERSION < (6, 1):  # which does nothing in a thread, too
    FILE_CACHES["aclose"] = CACHES["aclose"]


def receive(**_: Any) -> int:
    return Account.objects.count()


async def areceive(**_: Any) -> int:
    return await Account.objects.acount()


def signal() -> Signal:
    made = Signal()
    made.connect(receive)
    made.connect(areceive)
    return made


if django.VERSION >= (6, 0):
    from django.tasks import task, task_backends
    from django.tasks.backends import dummy, immediate

    @task
    def job() -> int:
        return Account.objects.count()

    class KeepingBackend(immediate.ImmediateBackend):
        def get_result(self, result_id: str) -> Any:  # it asks the database, as one does that keeps results there
            return self.enqueue(job.using(backend="own"), (), {})


def queue(backend: str = "") -> SimpleNamespace:
    """Return a task, its backend, and a result from before there was an account."""
    task_backends["own"] = dummy.DummyBackend("own", {}) if backend == "dummy" else KeepingBackend("own", {})
    own = SimpleNamespace(task=job.using(backend="own"), backend=task_backends["own"])
    own.result = own.task.enqueue()
    account()
    return own


SIGNALS: Calls = {
    "asend": (lambda s: s.asend(None), lambda _, results: [value for _, value in results] == [0, 0]),
    "asend_robust": (lambda s: s.asend_robust(None), lambda _, results: [value for _, value in results] == [0, 0]),
}
TASKS: Calls = {
    "acall": (lambda q: q.task.acall(), 1),
    "aenqueue": (lambda q: q.task.aenqueue(), lambda _, result: result.return_value == 1),
    "aget_result": (lambda q: q.task.aget_result(q.result.id), lambda _, result: result.return_value == 1),
}
TASK_RESULTS: Calls = {"arefresh": (lambda q: q.result.arefresh(), lambda q, _: q.result.return_value == 1)}
TASK_BACKENDS: Calls = {
    "aenqueue": (lambda q: q.backend.aenqueue(q.task, (), {}), lambda _, result: result.return_value == 1),
    "aget_result": (lambda q: q.backend.aget_result(q.result.id), lambda _, result: result.return_value == 1),
}
DUMMIES: Calls = {
    "aenqueue": (lambda q: q.backend.aenqueue(q.task, (), {}), lambda q, _: len(q.backend.results) == 2, MEMORY),
    "aget_result": (lambda q: q.backend.aget_result(q.result.id), lambda q, found: found.id == q.result.id, MEMORY),
}

# By group: what makes the subject, in a run, and its calls.
TABLE: dict[str, tuple[Callable[[], Any], Calls]] = {
    "QuerySet": (lambda: Rows(Account.objects.all(), "balance", {"owner": owner()}), QUERYSETS),
    "RawQuerySet": (lambda: accounts().all.raw("SELECT * FROM shop_account"), RAW),
    "Manager": (accounts, MANAGERS),
    "reverse foreign key": (accounts_of_an_owner, FOREIGN_KEYS),
    "many-to-many": (lambda: Rows(account().tags, "name", {}, {}), RELATIONS),
    "reverse many-to-many": (accounts_of_a_tag, RELATIONS),
    "generic relation": (notes, RELATIONS),
    "Model": (unsaved, MODELS),
    "models": (accounts, PREFETCHES),
    "shortcuts": (accounts, SHORTCUTS),
    "AsyncPaginator": (pages, PAGINATORS),
    "AsyncPage": (page, PAGES),
    "auth": (Site, AUTH),
    "hashers": (Site, HASHERS),
    "BaseBackend": (lambda: Site(SyncBackend()), SYNC_BACKENDS),
    "ModelBackend": (lambda: Site(ModelBackend()), BACKENDS),
    "RemoteUserBackend": (lambda: Site(RemoteUserBackend()), REMOTE_BACKENDS),
    "middleware": (Site, REQUESTS),
    "RemoteUserMiddleware": (lambda: Site(middleware.RemoteUserMiddleware(receive)), REMOTE_USERS),
    "User": (Site, USERS),
    "AnonymousUser": (lambda: Site(AnonymousUser()), NOBODY),
    "UserManager": (Site, USER_MANAGERS),
    "GroupManager": (Site, GROUP_MANAGERS),
    "AsyncClient": (lambda: Site(AsyncClient()), CLIENTS),
    "SessionBase": (lambda: session(SyncStore), SESSIONS),
    "db session": (lambda: session(db.SessionStore), MODEL_SESSIONS),
    "cached_db session": (lambda: session(cached_db.SessionStore, db.SessionStore), MODEL_SESSIONS | KEYS),
    "cache session": (lambda: session(DatabaseCacheStore), CACHE_SESSIONS),
    "signed_cookies session": (lambda: session(signed_cookies.SessionStore), touching(MEMORY, COOKIES)),
    "file session": (lambda: session(file.SessionStore), touching(FILE, SESSIONS)),
    "database cache": (lambda: filled(caches["database"]), CACHES),
    "memory cache": (lambda: filled(caches["default"]), touching(MEMORY, CACHES)),
    "file cache": (file_cache, FILE_CACHES),
    "Signal": (signal, SIGNALS),
    "Task": (queue, TASKS),
    "TaskResult": (queue, TASK_RESULTS),
    "BaseTaskBackend": (queue, TASK_BACKENDS),
    "DummyBackend": (lambda: queue("dummy"), DUMMIES),
}
CASES = {
    f"{group}.{name}": (make, *call)
    for group, (make, calls) in TABLE.items()
    for name, call in calls.items()
    if is_here(group, name)
}


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The kind of cursor, and the thread, of each statement."""
    seen: list[tuple[str, int]] = []

    def counting(stock: Any, kind: str) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            seen.append((kind, threading.get_ident()))
            return stock(*args, **kwargs)

        return counted

    for kind in (psycopg.AsyncCursor, psycopg.AsyncServerCursor, psycopg.Cursor, psycopg.ServerCursor):
        for name in ("execute", "executemany"):
            monkeypatch.setattr(kind, name, counting(getattr(kind, name), kind.__name__.replace("Server", "")))
    return seen


@pytest.fixture
def threads(no_threads: list[str]) -> Iterator[list[str]]:
    """The threads that have started; without the one that ends an executor's threads at the end of the loop."""
    yield no_threads
    no_threads[:] = [thread for thread in no_threads if "(_do_shutdown)" not in thread]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backends = [f"django.contrib.auth.backends.{name}" for name in ("ModelBackend", "RemoteUserBackend")]
    monkeypatch.setattr(settings, "AUTHENTICATION_BACKENDS", backends)
    monkeypatch.setattr(file.SessionStore, "_storage_path", str(tmp_path), raising=False)


@pytest.mark.one_loop
@pytest.mark.usefixtures("async_methods", "site")
@pytest.mark.parametrize("name", CASES)
async def test_an_async_method_works_on_this_thread_by_async_cursors_and_lets_go_of_its_connection(
    name: str, threads: list[str], statements: list[tuple[str, int]]
) -> None:
    make, call, expected, touches = (*CASES[name], DATABASE)[:4]
    subject = await greenorm.run(make)
    statements.clear()
    async with ThreadSensitiveContext():  # else asgiref might use a thread that is there already
        result = await call(subject)
    assert set(statements) == ({("AsyncCursor", threading.get_ident())} if DATABASE in touches else set())
    assert greenorm.pool_stats().in_use == 0
    if touches in THREADS:
        assert [THREADS[touches] in thread for thread in threads if "_adjust_thread_count" in thread] == [True]
        threads.clear()
    assert threads == []
    if callable(expected):
        assert await greenorm.run(lambda: expected(subject, result))
    else:
        assert result == expected


@pytest.mark.no_database
def test_the_table_has_the_async_methods_of_this_django_and_no_others() -> None:
    assert set(CASES) == {f"{group}.{name}" for group, names in surface().items() for name in names}


@pytest.mark.no_database
def test_no_other_place_in_djangos_source_has_async_methods() -> None:
    in_memory = {"django.test.client.aclosing_iterator_wrapper", "django.utils.text.acompress_sequence"}
    of_the_handlers = {"django.http.response.__aiter__"}
    assert elsewhere() - in_memory - of_the_handlers == set()


@pytest.mark.no_database
def test_readmes_table_of_async_methods_is_django_s() -> None:
    table = README.read_text().split("<!-- async methods -->")[1].split("<!-- /async methods -->")[0]
    assert for_this_django(table) == for_this_django(markdown_table())
