"""Foreign code: what runs when ours reads a value of the user's.

To read an attribute, to iterate, to compare or to show an object runs code of its class, which may raise anything:
`SystemExit` and other exceptions that are no `Exception` too. Where ours must go on, it catches `BaseException`
and lets go only of what `is_interrupt` says is meant for the process.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["describe", "exact_text", "is_interrupt", "place", "show", "suppressed", "type_name"]

_LONGEST: Final = 200
# Past whatever a metaclass or a class has put in front of them.
_QUALNAME: Final = type.__dict__["__qualname__"]
_MODULE: Final = type.__dict__["__module__"]


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception is Ctrl-C's, and not one of the code that it passed through."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


class suppressed:  # noqa: N801  # as `contextlib.suppress`
    """Let what comes after the block go on without it, whatever foreign code raises in there."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> bool:
        return error is not None and not is_interrupt(error)


def exact_text(value: object) -> str:
    """Return the text of an object as a plain `str`, which runs no more code of its class.

    Raises:
        BaseException: Whatever its class raises.
    """
    return str.__str__(str(value))


def place(cls: type) -> str:
    """Return where a class was defined: `module:qualname`; runs no code of it."""
    module, qualname = _MODULE.__get__(cls), _QUALNAME.__get__(cls)
    return f"{module if type(module) is str else '?'}:{str.__str__(qualname)}"


def type_name(value: object) -> str:
    """Return the name of an object's class with its module, that of builtins left out; runs no code of it."""
    return place(type(value)).replace(":", ".", 1).removeprefix("builtins.")


def describe(error: BaseException) -> str:
    """Say an exception in one line: `ValueError: boom`; only its class, where its text raises too."""
    name, text = place(type(error)).partition(":")[2], ""
    with suppressed():
        text = " ".join(exact_text(error).split())
    return f"{name}: {_cut(text)}" if text else name


def show(value: object) -> str:
    """Return the `repr` of a value, cut to a line; the name of its class, where that raises."""
    with suppressed():  # also that of an int with more digits than Python writes out
        return _cut(str.__str__(repr(value)))
    return f"<{type_name(value)}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
