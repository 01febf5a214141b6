"""Forgotten awaits: a call in a body that nobody awaits would be skipped without a word, so it is found out.

- A call that stands alone as a statement (`unban(user)`), when Python throws its result away: a fault of the run at once.
- A call that is used as a value (`if ok(2) == 2`, `f"{name()}"`): an error there, and a fault of the run.
- A call that is kept and never awaited, gathered, or given to a task: when the body has returned. Where the body handles errors
  one of them may have come between the call and its await, which is nobody's fault: then it is a warning.

Not here: what a call is (`calls`).
"""

from __future__ import annotations

import dis
import logging
from types import CodeType, FrameType
from typing import TYPE_CHECKING

from ckworkflow.errors import NotAwaitedError

if TYPE_CHECKING:
    from ckworkflow.tracing.tracer import Tracer

__all__ = ["Alarm", "Unawaited", "used_as_a_value"]

logger = logging.getLogger(__name__)

_known: dict[int, tuple[CodeType, frozenset[int], bool]] = {}
"""By the id of a code: the code, so that the id stays its own; where it drops the value of a call; whether it handles errors."""


class Alarm:
    """Held by a call that stands alone; dropped with it, unless that is awaited first."""

    __slots__ = ("error", "tracer")

    def __init__(self, tracer: Tracer, error: NotAwaitedError) -> None:
        self.tracer: Tracer | None = tracer
        self.error = error

    def __del__(self) -> None:
        tracer = self.tracer
        if tracer is not None and tracer.is_alive and tracer.loop.fault is None:
            tracer.loop.fault = self.error


class Unawaited:
    """The calls of one body that nobody has awaited yet.

    Args:
        tracer: The body.
    """

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._calls: dict[int, tuple[str, int]] = {}
        self._codes: dict[int, bool] = {}

    def add(self, number: int, what: str, frame: FrameType) -> Alarm | None:
        """Note a call that a frame has just made, and return its alarm if that throws it away.

        Args:
            number: The call's number.
            what: What was called, for a person.
            frame: The frame.
        """
        code = frame.f_code
        _, drops, handles = _known.get(id(code)) or _look(code)
        self._codes[id(code)] = handles
        if frame.f_lasti in drops:
            return Alarm(self._tracer, NotAwaitedError(what, frame.f_lineno))
        if self._tracer.state().is_root:  # any other may be cancelled before it comes to its await
            self._calls[number] = (what, frame.f_lineno)
        return None

    def discard(self, number: int) -> None:
        """Note that a call is awaited, or somebody else's to await."""
        self._calls.pop(number, None)

    def at_end(self, *, is_surely_wrong: bool = False) -> NotAwaitedError | None:
        """Return the error of the first that is left when the body has returned; `None`: it may be nobody's fault.

        Args:
            is_surely_wrong: Whether the body has met an error for which that is the likely cause.
        """
        if not self._calls:
            return None
        error = NotAwaitedError(*self._calls[min(self._calls)])
        if is_surely_wrong or not any(self._codes.values()):
            return error
        logger.warning("run %s: %s", self._tracer.run_id, error, extra={"run_id": self._tracer.run_id})
        return None


def _look(code: CodeType) -> tuple[CodeType, frozenset[int], bool]:
    drops, handles, before = set[int](), False, None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "POP_TOP" and before is not None and before.opname.startswith("CALL"):
            # A frame stands at the call, or at the caches behind it.
            drops.update(range(before.offset, instruction.offset))
        handles |= instruction.opname == "PUSH_EXC_INFO"
        before = instruction
    found = _known[id(code)] = code, frozenset(drops), handles
    return found


def used_as_a_value(tracer: Tracer, what: str, line: int) -> NotAwaitedError:
    """Return the error of a call that is used in place of its result, which is a fault of the run."""
    error = NotAwaitedError(what, line)
    if tracer.is_alive and tracer.loop.fault is None:
        tracer.loop.fault = error
    return error
