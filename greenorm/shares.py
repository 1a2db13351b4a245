"""A scope's part in a transaction that is another's, used in turns.

A scope has its turn from a look-up of the alias to the end of the run, or to a wait for anything but the database; but
it never gives it up with a block of its own open. So savepoints nest, and who waits for another task lets that have its
turn. What a scope shares is the wrapper with all its state; over sync code's it has a session of its own, on the same
libpq connection, so that its cursors outlast a turn.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .errors import ConnectionInUse
from .sharing import Wait, in_transaction
from .turns import RETURN_SECONDS, Turn, name_of

if TYPE_CHECKING:
    from .scope import Scope


class Share:
    """A scope's part in a transaction that another has opened, on one alias."""

    def __init__(self, scope: Scope, wrapper: Any, turn: Turn) -> None:
        self.scope = scope
        self.wrapper = wrapper
        self.turn = turn
        self.active = False
        self.depth = 0

    async def take_up(self) -> bool:
        """Wait for the turn, where this scope does not have it, and use the wrapper from now on.

        Returns False where there is nothing left to share.
        """
        if self.active:
            return True
        self._refuse_what_is_lost()
        await self.turn.take(self.scope, getattr(self.wrapper, "turn_seconds", RETURN_SECONDS))
        if not self._is_there():
            self.turn.give_up()
            return False
        self.depth = len(self.wrapper.atomic_blocks)
        self.active = True
        self._enter()
        return True

    def in_block(self) -> bool:
        """Return whether the scope has a block of its own open, below what it shares."""
        return self.active and len(self.wrapper.atomic_blocks) > self.depth

    def put_down(self) -> None:
        """Let others have their turn, until the wrapper is used again."""
        if self.active:
            self.active = False
            self._leave()
            self.turn.give_up()

    def end(self) -> None:
        """Let go for good. Blocks that were never left, since their task was destroyed, are rolled back."""
        if self.in_block():
            savepoints = self._forget_blocks()
            self.put_down()
            self._roll_back(savepoints)
        self.put_down()

    def _forget_blocks(self) -> list[str | None]:
        wrapper = self.wrapper
        left = len(wrapper.atomic_blocks) - self.depth
        savepoints: list[str | None] = wrapper.savepoint_ids[-left:]
        del wrapper.atomic_blocks[-left:], wrapper.savepoint_ids[-left:]
        return savepoints

    def _is_there(self) -> bool:
        raise NotImplementedError

    def _refuse_what_is_lost(self) -> None:
        pass

    def _enter(self) -> None:
        raise NotImplementedError

    def _leave(self) -> None:
        raise NotImplementedError

    def _roll_back(self, savepoints: list[str | None]) -> None:
        self.wrapper.needs_rollback = True


class SharedWithSyncCode(Share):
    """A part in what sync code has opened, over the same libpq connection."""

    def __init__(self, scope: Scope, wrapper: Any, turn: Turn) -> None:
        super().__init__(scope, wrapper, turn)
        self._loop = asyncio.get_running_loop()
        self._face: Any = None
        self._lost = False

    def _is_there(self) -> bool:
        return in_transaction(self.wrapper)

    def _refuse_what_is_lost(self) -> None:
        if self._lost:
            raise ConnectionInUse(
                f"{name_of(self.scope)} has outlived the test, or the transaction of sync code, in which it had a "
                f"block open on {self.wrapper.alias!r}; that has been rolled back with it. Await or cancel such tasks "
                "in the test that starts them."
            )

    def _enter(self) -> None:
        self._face = self.wrapper.join_run(self)

    def _leave(self) -> None:
        self.wrapper.leave_run()

    @property
    def face(self) -> Any:
        """The connection as this scope has seen it in an earlier turn; its cursors are still good."""
        return self._face

    def end(self) -> None:
        super().end()
        if self._face is not None:
            self._face.session.borrow += 1  # cursors that were left are stale

    def _roll_back(self, savepoints: list[str | None]) -> None:
        self.wrapper.roll_back_to(next((name for name in savepoints if name), None))

    def take_back(self) -> None:
        """Let sync code, which goes on, find its transaction as it has left it."""
        if self.active and not self._loop.is_running():
            self._lost = self.in_block()
            if self._loop.is_closed():
                self.turn.forget_waiters()
            self.end()


class LentByScope(Share):
    """A part in what a scope holds, which waits meanwhile."""

    def __init__(self, scope: Scope, wrapper: Any, wait: Wait) -> None:
        assert wait.turn is not None
        super().__init__(scope, wrapper, wait.turn)
        self._wait = wait

    def _is_there(self) -> bool:
        return not self._wait.over and self._wait.scope.wrappers.get(self.wrapper.alias) is self.wrapper

    def _enter(self) -> None:
        self.wrapper._scope = self.scope

    def _leave(self) -> None:
        self.wrapper._scope = self._wait.scope
