"""What rewritten bodies call: the compiler binds this module's functions to the name `__ckw__`.

Every function reads the trace of the running loop, so one compiled body serves all runs. Outside a
trace there is nothing to guard, and the functions say so by doing nothing.
"""

from __future__ import annotations

import asyncio
import enum
import sys
import types
import uuid
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ckworkflow.tracing.calls import GatherCall, Lazy
from ckworkflow.tracing.deferred import Deferred, holds_deferred
from ckworkflow.tracing.loop import TraceLoop

if TYPE_CHECKING:
    from ckworkflow.tracing.tracer import Tracer

LOOK_LIMIT = 1_000
"""Items that `foreign` looks at in a value before it calls a value foreign: a fence is cheaper."""

_SCALARS = frozenset(
    {
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        range,
        slice,
        type(Ellipsis),
        timedelta,
        uuid.UUID,
    }
)
_CONTAINERS = frozenset({list, tuple, set, frozenset})
_ITERABLES = frozenset({list, tuple, dict, str, bytes, range, set, frozenset})
_callee_kinds: list[Callable[[object], bool]] = []


def current() -> Tracer | None:
    """Return the trace of the running event loop, if it is one."""
    loop = asyncio._get_running_loop()
    return loop.tracer if isinstance(loop, TraceLoop) else None


def recognise(is_callee: Callable[[object], bool]) -> None:
    """Let `definition` say what is a step, a workflow, `sleep` and so on."""
    _callee_kinds.append(is_callee)


def lazy(awaitable: Awaitable[object], is_strict: bool = False) -> Awaitable[object]:  # noqa: FBT001, FBT002  # only rewritten bodies call it
    """Await without waiting (see `calls`), unless a loop around it runs code at its turns."""
    return awaitable if is_strict else Lazy(awaitable)


def lazy_in_root(awaitable: Awaitable[object], is_strict: bool = False) -> Awaitable[object]:  # noqa: FBT001, FBT002  # as `lazy`
    """Await without waiting in the root task; strictly in any other, which may be cancelled: then a `try` can tell where."""
    tracer = current()
    return awaitable if is_strict or tracer is None or not tracer.state().is_root else Lazy(awaitable)


def lazy_alone(awaitable: Awaitable[object], is_strict: bool = False) -> Awaitable[object]:  # noqa: FBT001, FBT002  # as `lazy`
    """Await without waiting while no other task is under way: a part that has no value must raise before others go on."""
    tracer = current()
    return awaitable if is_strict or tracer is None or not tracer.is_alone() else Lazy(awaitable)


def lazy_at_root(awaitable: Awaitable[object], is_strict: bool = False) -> Awaitable[object]:  # noqa: FBT001, FBT002  # as `lazy`
    """As `lazy_alone` in the body of the run itself; strictly in a workflow that it calls."""
    return lazy_alone(awaitable, is_strict or is_inlined())


def is_inlined() -> bool:
    """Whether the running code is not the body of the run itself, in its own task."""
    tracer = current()
    return tracer is None or not tracer.state().is_root or bool(tracer.state().inlined)


def early(value: object) -> bool:
    """Whether a part of this value would be taken before all that the task awaited is recorded."""
    tracer = current()
    return tracer is not None and not holds_deferred(value) and not tracer.is_settled(tracer.state())


def real(value: object) -> object:
    """The value itself, if all that the task awaited is recorded; else its stand-in, or the list of a gather's."""
    tracer = current()
    return value if tracer is None or not tracer.is_settled(tracer.state()) else tracer.resolve(value)


def callee(function: Callable[..., object]) -> Callable[..., object]:
    """Return what to call in place of `function`, judged by what it is now."""
    if function is asyncio.gather:
        return gather
    if any(is_callee(function) for is_callee in _callee_kinds):
        return function
    tracer = current()
    if tracer is None:
        return function
    line = sys._getframe(1).f_lineno
    return lambda *args, **kwargs: tracer.later(function, args, kwargs, line=line)


def gather(*members: Awaitable[object], return_exceptions: bool = False) -> Awaitable[object]:
    """`asyncio.gather` of a body."""
    tracer = current()
    if tracer is None:
        return asyncio.gather(*members, return_exceptions=return_exceptions)
    frame = sys._getframe(1)
    call = GatherCall(tracer, members, frame.f_lineno, return_exceptions=return_exceptions)
    return call.made_by(frame)


async def fence() -> None:
    """Wait until all that this task awaited before is recorded."""
    tracer = current()
    if tracer is not None:
        await tracer.fence(sys._getframe(1).f_lineno, "what follows looks at the world")


def foreign(*values: object) -> bool:
    """Whether any value is more than plain built-in data, so that using it may run other code."""
    is_foreign = not all(_is_plain(value) for value in values)
    tracer = current()
    if is_foreign and tracer is not None:
        tracer.has_lent = True  # that code may keep what it is given
    return is_foreign


def shared(*values: object) -> bool:
    """Whether an object of the body's own is not its own here: a caller gave it, or its class may know it."""
    tracer = current()
    return (tracer is None or tracer.has_lent or is_inlined()) and loose(*values)


def loose(*values: object) -> bool:
    """Whether any value may change while nobody looks."""
    return not all(
        _is_immutable(value) or any(is_callee(value) for is_callee in _callee_kinds) for value in values
    )


def runs_code(*sources: object, owned: bool, deep: bool) -> bool:
    """Whether the turns of a loop run code or see the world: then it is not quiet."""
    tracer = current()
    if any(type(source) not in _ITERABLES for source in sources):
        if tracer is not None:
            tracer.has_lent = True
        return True
    return (deep and foreign(*sources)) or (shared(*sources) if owned else loose(*sources))


def _is_immutable(value: Any) -> bool:
    kind = type(value)
    if kind in (tuple, frozenset):
        return all(_is_immutable(item) for item in value)
    return (
        kind in _SCALARS
        or kind is Deferred
        or isinstance(
            value, (types.BuiltinFunctionType, types.FunctionType, types.ModuleType, type, enum.Enum)
        )
    )


def _is_plain(value: Any) -> bool:
    stack, looked = [value], 0
    while stack:
        value = stack.pop()
        kind = type(value)
        looked += 1
        if looked > LOOK_LIMIT:
            return False
        if kind in _CONTAINERS:
            stack.extend(value)
        elif kind is dict:
            stack.extend(value.keys())
            stack.extend(value.values())
        elif kind not in _SCALARS and kind is not Deferred:
            return False
    return True
