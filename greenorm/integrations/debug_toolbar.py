"""The SQL panel of django-debug-toolbar, for requests whose queries are runs.

The toolbar instruments the wrappers that it finds when a request begins; a run makes its own later. This panel
instruments those too, of its own request only. In the settings it takes the place of the toolbar's own:

    DEBUG_TOOLBAR_PANELS = [..., "greenorm.integrations.debug_toolbar.SQLPanel", ...]
"""

# The toolbar has no types.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from debug_toolbar.panels import sql
from debug_toolbar.panels.sql import tracking

from .. import scope

_sql: Any = sql
_tracking: Any = tracking

# By context: whatever a request starts inherits it, and no other request does.
_panel: ContextVar[SQLPanel | None] = ContextVar("greenorm_sql_panel", default=None)


class SQLPanel(_sql.SQLPanel):  # type: ignore[misc]  # reason: see _sql
    """debug_toolbar.panels.sql.SQLPanel, which sees the queries of runs as well."""

    async def aenable_instrumentation(self) -> None:
        """Mirrors SQLPanel.aenable_instrumentation, django-debug-toolbar 8."""
        self._follow()
        await super().aenable_instrumentation()

    def enable_instrumentation(self) -> None:
        """Mirrors SQLPanel.enable_instrumentation, django-debug-toolbar 8."""
        self._follow()
        super().enable_instrumentation()

    def disable_instrumentation(self) -> None:
        """Mirrors SQLPanel.disable_instrumentation, django-debug-toolbar 8."""
        _panel.set(None)
        super().disable_instrumentation()

    def _follow(self) -> None:
        _panel.set(self)
        if _instrument not in scope.on_new_wrapper:
            scope.on_new_wrapper.append(_instrument)


def _instrument(wrapper: Any) -> None:
    if (panel := _panel.get()) is not None:
        _tracking.wrap_cursor(wrapper)
        wrapper._djdt_logger = panel
