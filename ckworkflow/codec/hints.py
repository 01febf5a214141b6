"""What to pass in place of a value that cannot be stored.

`<path>` in a hint stands for the path of the value.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, MappingView
from pathlib import PurePath
from typing import Final

from ckworkflow.codec.classes import builtin_base
from ckworkflow.foreign import describe

OWN_HINT: Final = "__ckworkflow_hint__"
"""The attribute of a class of ours that says what to pass in place of its objects."""
CYCLE: Final = "It contains itself (a cycle): pass a tree, or ids in place of links."

# In this order: a step is callable, a coroutine is an iterator in spirit, an exception may be a mapping.
_HINTS: Final = (
    (BaseException, "Pass str(<path>) instead."),
    (Awaitable, "It was not awaited: pass what `await` gives."),
    (PurePath, "Pass str(<path>) instead."),
    ((bytearray, memoryview), "Pass bytes(<path>) instead."),
    ((Iterator, range, deque, MappingView), "Pass list(<path>) instead."),
)
_LATER_HINTS: Final = (
    (Mapping, "Pass dict(<path>) instead."),
    (Callable, "Code is not stored: pass a name, or the values that it works on."),
)

# By the names of discord.py's classes, which this module must not import.
_DISCORD_HINTS: Final = (
    ("Interaction", "Pass <path>.user.id or what you need of the interaction instead."),
    ("Context", "Pass <path>.author.id or what you need of the context instead."),
    ("Client", "Call use_client() in the step instead."),
)


def raised(error: BaseException) -> str:
    """Return what to do about a value that raised when it was read."""
    return f"Reading it raised {describe(error)}. Pass the ids and values that you need of it instead."


def hint(value: object) -> str:
    """Return what to pass in place of a value; empty when only general advice can be given."""
    for cls in type(value).__mro__:
        if OWN_HINT in vars(cls):
            return str(vars(cls)[OWN_HINT])
    base = builtin_base(type(value))
    if base is not None:
        return f"Only {base.__name__} itself keeps its type: pass {base.__name__}(<path>) instead."
    hints = (*_HINTS, *_LATER_HINTS)
    return next((text for kinds, text in hints if isinstance(value, kinds)), "")  # type: ignore[arg-type]


def discord_hint(value: object) -> str | None:
    """Return what to pass in place of an object of discord.py, or `None` for other objects."""
    cls = type(value)
    theirs = {base.__name__ for base in cls.__mro__ if base.__module__.partition(".")[0] == "discord"}
    if not theirs:
        return None
    for name, text in _DISCORD_HINTS:
        if name in theirs:
            return text
    if hasattr(cls, "id") or "id" in getattr(value, "__dict__", ()):
        return "Pass its id instead: <path>.id, and fetch it in the step with use_client()."
    if hasattr(cls, "to_dict"):
        return "Pass <path>.to_dict() instead."
    return "Pass the ids and values that you need of it instead."
