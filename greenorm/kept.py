"""Wrappers of scopes that have ended, each as it was made, for the next scopes: to make one costs more than a run.

Django looks by the same `getattr` for a wrapper and for whether there is one, so that a kept one may not stand there:
it is handed out where Django asks for one to be made.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from sys import getrefcount
from typing import Any

from django.core.signals import setting_changed
from django.db import connections

from . import bridge

# As many as there may be runs at once that ask for a database; of each alias, per thread.
_KEEP = 64


class _Kind:
    """What wrappers of one kind have in common, and those that nobody uses now."""

    def __init__(self) -> None:
        self.wrappers: list[Any] = []
        self.names: tuple[str, ...] = ()
        self.lists: list[str] = []
        self.logs: list[tuple[str, deque[Any]]] = []
        self.looked_up: dict[str, Any] = {}  # what one has found out, and all may know


class _Kept(threading.local):
    def __init__(self) -> None:
        self.by_kind: defaultdict[tuple[str, str, str | None], _Kind] = defaultdict(_Kind)


_kept = _Kept()


def _forget(setting: str, **_: Any) -> None:
    # What wrappers have looked up is kept with them. As django.test.signals does it for those that it knows.
    global _kept
    if setting in ("TIME_ZONE", "USE_TZ"):
        _kept = _Kept()


setting_changed.connect(_forget)


class AsMade:
    """What a wrapper was when it had just been made, and how many had hold of it: its own parts, that is."""

    __slots__ = ("holders", "kind", "names", "state", "values")

    def __init__(self, made: list[Any], kind: _Kind) -> None:
        for made_when_asked_for in ("wrap_database_errors", "timezone", "timezone_name"):
            getattr(made[0], made_when_asked_for)
        made[0]._as_made = self
        state: dict[str, Any] = made[0].__dict__
        self.kind = kind
        kind.lists = kind.lists or [name for name in state if type(state[name]) is list]
        kind.logs = kind.logs or [(name, state[name].copy()) for name in state if type(state[name]) is deque]
        names = tuple(name for name in state if type(state[name]) not in (list, deque))
        # Thousands may be in use at once: what is the same for all is there once.
        self.names = kind.names = kind.names if kind.names == names else names
        self.values = tuple(map(state.__getitem__, names))
        self.state: dict[str, Any] | None = None
        self.holders = getrefcount(made[0])

    def note(self, **looked_up: Any) -> None:
        """Let the next scopes have what was looked up in this one, in wrappers of this kind."""
        self.kind.looked_up.update(looked_up)
        if self.state is not None:
            self.state.update(looked_up)

    def restore(self, wrapper: Any) -> None:
        """Make of the state of a wrapper what it was. Who has kept a list of it does not see what is added to one."""
        if self.state is None:
            self.state = dict(zip(self.names, self.values, strict=True), **self.kind.looked_up)
        wrapper.__dict__ = state = self.state.copy()
        for name in self.kind.lists:
            state[name] = []
        for name, log in self.kind.logs:
            state[name] = log.copy()


def make_wrapper(alias: str) -> Any:
    """Return a new wrapper, or in a run one that is as good. Stands in for ConnectionHandler.create_connection."""
    if bridge.carried() is None:
        return _create(alias)
    settings = connections.settings[alias]
    kind = _kept.by_kind[alias, settings["ENGINE"], settings["TIME_ZONE"]]
    while kind.wrappers:
        wrapper = kind.wrappers.pop()
        if wrapper.settings_dict is settings:
            return wrapper
    made = [_create(alias)]
    # A backend that adds to what is made may have it from anywhere.
    if getattr(made[0], "can_await", False) and type(made[0]).__init__.__module__.startswith("django."):
        AsMade(made, kind)
    return made[0]


def _create(alias: str) -> Any:
    return type(connections).create_connection(connections, alias)


def keep(wrappers: dict[str, Any], alias: str) -> None:
    """Take the wrapper of `alias`, which has no connection, out of `wrappers`, for the next who wants one.

    Not where anybody else has hold of it.
    """
    box = [wrappers.pop(alias)]
    as_made: AsMade | None = box[0]._as_made
    if as_made is not None and getrefcount(box[0]) == as_made.holders and len(as_made.kind.wrappers) < _KEEP:
        as_made.restore(box[0])
        as_made.kind.wrappers += box
