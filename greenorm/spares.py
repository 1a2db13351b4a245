"""Wrappers of scopes that have ended, kept for the next ones: to make one costs more than all else that a run does.

One is kept only where nobody else knows it and it is as it was when it was made, so that nothing of one scope is ever
seen in another. Any other is left to Python, as all would be without this module.

Contract with the backends above: a wrapper names what its use changes (`CHANGES`) and what may stay (`CACHES`).
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from django.core.signals import setting_changed
from django.db import connections
from django.utils.functional import cached_property

# Kept for each alias, per thread.
_KEEP = 64


class _Spares(threading.local):
    def __init__(self) -> None:
        self.by_alias: dict[str, list[Any]] = {}
        self.generation = 0


_spares = _Spares()
# Changes with each setting that is overridden: wrappers remember some.
_generation = 0


class _Made:
    """How a wrapper was when it had been made, and how many references to it are its own."""

    __slots__ = ("changes", "engine", "lists", "references", "state")

    state: dict[str, Any]
    lists: list[str]
    references: int

    def __init__(self, wrapper: Any) -> None:
        state: dict[str, Any] = wrapper.__dict__
        for name in wrapper.CHANGES:
            state.setdefault(name, getattr(wrapper, name, None))
        self.changes: dict[str, Any] = {name: state[name] for name in wrapper.CHANGES}
        self.lists = [name for name, value in state.items() if type(value) is list]
        self.engine = wrapper.settings_dict["ENGINE"]

    def remember(self, wrapper: Any) -> None:
        state = self.state = {
            name: [*value] if type(value) is list else value for name, value in wrapper.__dict__.items()
        }
        parts: list[dict[str, Any]] = [value.__dict__ for value in state.values() if hasattr(value, "__dict__")]
        self.references = sum(other is wrapper for part in parts for other in part.values())


def note(wrapper: Any) -> None:
    """Remember how `wrapper`, which has just been made, is."""
    wrapper._made = made = _Made(wrapper)
    made.remember(wrapper)


def take(alias: str) -> Any:
    """Return a wrapper that is as good as a new one, or None."""
    if _spares.generation != _generation:
        _spares.generation = _generation
        _spares.by_alias.clear()
    kept = _spares.by_alias.get(alias, [])
    while kept:
        wrapper = kept.pop()
        settings_dict = wrapper.settings_dict
        made: _Made = wrapper._made
        if made.engine == settings_dict["ENGINE"] and connections.settings.get(alias) is settings_dict:
            return wrapper
    return None


def keep(alias: str, wrapper: Any) -> None:
    """Keep `wrapper`, which has no connection any more, if another scope can have it."""
    state: dict[str, Any] = wrapper.__dict__
    made: _Made | None = state.get("_made")
    if made is None or wrapper._thread_ident != threading.get_ident() or _spares.generation != _generation:
        return
    state.update(made.changes)
    if state != made.state:
        if not _differ_by_caches(wrapper, state, made.state):
            return
        made.remember(wrapper)
    if wrapper.queries_log or _references(wrapper) != made.references + _REFERENCES_HERE:
        return
    kept = _spares.by_alias.setdefault(alias, [])
    if len(kept) < _KEEP:
        for name in made.lists:
            state[name] = state[name][:]  # somebody may still look at the one that was here
        kept.append(wrapper)


def _differ_by_caches(wrapper: Any, state: dict[str, Any], before: dict[str, Any]) -> bool:
    return state.keys() >= before.keys() and all(
        name in wrapper.CACHES or isinstance(getattr(wrapper.__class__, name, None), cached_property)
        for name, value in state.items()
        if name not in before or value != before[name]
    )


def _references(thing: object) -> int:
    return sys.getrefcount(thing)


def _references_here() -> int:
    def keep(alias: str, thing: object) -> int:
        return _references(thing)

    thing = object()
    return keep("", thing)


# What getrefcount says where `keep` asks for something that only its caller knows.
_REFERENCES_HERE = _references_here()


def _forget(**_: Any) -> None:
    global _generation
    _generation += 1


setting_changed.connect(_forget, dispatch_uid="greenorm.spares")
