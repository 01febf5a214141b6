"""Lives: what `continue_as_new` gives back, for the body to return.

Not here: the change from one life to the next (`ckworkflow.engine.lives`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ckworkflow.model import Json

__all__ = ["NextLife", "as_next_life"]


class NextLife:
    """What `continue_as_new` gives back. No dataclass: that could be stored.

    Attributes:
        args: The arguments of the next life, encoded; they may hold references.
        line: Line of the call in the body's file.
    """

    __slots__ = ("args", "line")
    __ckworkflow_hint__ = "Write `return continue_as_new(...)` in the body of the workflow."

    def __init__(self, args: Json, line: int) -> None:
        self.args, self.line = args, line


def as_next_life(value: object) -> NextLife | None:
    """Return what a body has returned, if it is that."""
    return value if type(value) is NextLife else None
