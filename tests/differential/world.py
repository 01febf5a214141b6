"""The world that steps change and bodies look at: modules' state, told again to bodies that are replayed.

Module state is not durable, so a body that reads it is not repeatable by itself. To compare always-replay
with plain asyncio all the same, the world is recorded with the outcomes: when a replayed body is told of an
outcome, the world is put back to what it was when a body was told so first. A body that looks at the
world at any other moment than plain asyncio would sees another world, and is found out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any
from unittest import mock

from ckworkflow.engine import advance, start
from ckworkflow.model import NodeId
from ckworkflow.tracing import Outcome, Trace, Tracer


class World:
    """The state of some modules and what was seen of it.

    Args:
        roots: Mutable containers; put back in place, because bodies may hold them.
        globals_: Immutable globals: namespace and name.
    """

    def __init__(self, roots: Sequence[Any], globals_: Sequence[tuple[dict[str, Any], str]]) -> None:
        self._roots, self._globals = list(roots), list(globals_)
        self._seen: dict[tuple[str, str], Any] = {}
        self._unsaved: tuple[Any, list[tuple[str, str]]] | None = None
        self.told_last: object = None
        """The body that was told something last."""

    def look(self) -> Any:
        """Return the world as it is."""
        return copy.deepcopy((self._roots, [space[name] for space, name in self._globals]))

    def put_back(self, seen: Any) -> None:
        """Make the world what it was."""
        for root, was in zip(self._roots, seen[0], strict=True):
            _restore(root, was)
        for (space, name), value in zip(self._globals, seen[1], strict=True):
            space[name] = value

    def forget(self) -> None:
        """Before another run."""
        self._seen.clear()
        self._unsaved = None

    # -- bodies ---------------------------------------------------------------------------------------

    def begin(self) -> Any:
        """A body is about to run; until its commit what it does to the world is only in its process."""
        now = self.look()
        self._unsaved = (now, [])
        return now

    def tell(self, key: tuple[str, str]) -> None:
        """A body is about to be told something for the first time."""
        if self._unsaved is not None:
            self._unsaved[1].append(key)
        self._seen[key] = self.look()

    def told(self, key: tuple[str, str]) -> Any:
        """The world when a body was told this first; `None` when it is news."""
        return self._seen.get(key)

    def committed(self) -> None:
        """What the body did is done."""
        self._unsaved = None

    def lost(self) -> None:
        """What the body did is undone: its process died, or its commit was refused."""
        if self._unsaved is not None:
            before, keys = self._unsaved
            self.put_back(before)
            for key in keys:
                self._seen.pop(key, None)
            self._unsaved = None


def _restore(value: Any, was: Any) -> None:
    if isinstance(value, list):
        for index, item in enumerate(was):
            if index < len(value) and isinstance(item, list | dict) and type(value[index]) is type(item):
                _restore(value[index], item)
            elif index < len(value):
                value[index] = item
            else:
                value.append(item)
        del value[len(was) :]
    else:
        for key in [key for key in value if key not in was]:
            del value[key]
        for key, item in was.items():
            if isinstance(item, list | dict) and type(value.get(key)) is type(item):
                _restore(value[key], item)
            else:
                value[key] = item


class WitnessTracer(Tracer):
    """A tracer that tells the world again with the outcomes."""

    world: World

    def resume(
        self, outcomes: Sequence[Outcome] = (), *, strict: int = 0, running: Iterable[NodeId] = ()
    ) -> Trace:
        world = self.world
        self._now_is, world.told_last = world.begin(), self
        self._is_past = False
        if self._root is None:
            first = world.told((self.run_id, "start"))
            if first is None:
                world.tell((self.run_id, "start"))
            else:
                self._is_past = True
                world.put_back(first)
        try:
            return super().resume(outcomes, strict=strict, running=running)
        finally:
            self._to_present()

    def close(self) -> None:
        # Of a body that was told and is not committed: foreseen, and then told on the normal path.
        if self.world.told_last is self:
            self.world.lost()
        super().close()

    def _deliver(self, outcome: Outcome) -> None:
        key = (self.run_id, outcome.node_id)
        then = self.world.told(key)
        if self._is_past and then is not None:
            self.world.put_back(then)
        else:
            self._to_present()
            self.world.tell(key)
        super()._deliver(outcome)

    def _to_present(self) -> None:
        if self._is_past:
            self._is_past = False
            self.world.put_back(self._now_is)


def witnessed(world: World) -> Any:
    """Let the engine's bodies run in this world."""
    kind = type("WitnessTracer", (WitnessTracer,), {"world": world})
    stack = mock.patch.multiple(advance, Tracer=kind)
    other = mock.patch.multiple(start, Tracer=kind)
    return stack, other
