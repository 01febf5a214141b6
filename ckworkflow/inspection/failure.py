"""Failures: why a run or a step failed, with the causes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ckworkflow import codec
from ckworkflow.engine import failures

__all__ = ["Failure"]

_FRAME: Final = "\n  File "


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it was recorded. It is decoded only when asked for: a list of runs need not decode theirs.

    Attributes:
        stored: The text of its column.
    """

    stored: str

    @property
    def line(self) -> str:
        """The error in one line: `ValueError: boom`."""
        return failures.one_line(self.stored) or ""

    @property
    def data(self) -> Mapping[str, Any]:
        """The whole of it, as `failures.to_data` describes."""
        data = codec.loads(self.stored)
        return data if isinstance(data, Mapping) else {"message": str(data)}

    @property
    def causes(self) -> tuple[Failure, ...]:
        """What caused it, or was handled when it was raised; what caused that, and so on."""
        found = []
        cause = failures.cause_of(self.data)
        while cause is not None:
            found.append(Failure(codec.dumps(dict(cause))))
            cause = failures.cause_of(cause)
        return tuple(found)

    @property
    def traceback(self) -> str | None:
        """Its traceback; `None` if it has no frames, since the error was rebuilt from a record."""
        text = self.data.get("traceback")
        return text if isinstance(text, str) and _FRAME in text else None
