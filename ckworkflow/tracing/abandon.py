"""Letting go of a body that will never go on: nothing of it runs any more.

Python closes a coroutine or generator when it collects it, and so runs its `finally`, its `with` exits and its broad
handlers. A body that is abandoned is replayed elsewhere; that code belongs to the replay. CPython runs a finalizer once
for each object and keeps a mark of it (PEP 442), so setting the mark is a promise that there is nothing left to
finalize: then the frames go without a word. What a frame holds goes as anything that is collected (`__del__` runs).

Not here: which bodies are abandoned (`loop`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from types import (
    AsyncGeneratorType,
    BuiltinMethodType,
    CodeType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
)
from typing import Any, Final

__all__ = ["abandon"]

REACH_LIMIT: Final = 100_000
"""Objects that are looked at; what holds more is kept for ever instead."""

_SUSPENDED: Final = (CoroutineType, GeneratorType, AsyncGeneratorType)
_SHARED: Final = (ModuleType, CodeType, type)
_LOCKS: Final = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Semaphore,
    asyncio.Lock,
    asyncio.Condition,
    asyncio.Semaphore,
)
_FINALIZED: Final = (
    1  # the lowest bit of `_gc_prev`, the word before an object that the collector tracks
)
_HAS_GIL: Final = bool(
    getattr(sys, "_is_gil_enabled", lambda: True)()
)  # without it, objects are laid out otherwise


def abandon(roots: Iterable[object], *, beyond: tuple[type, ...] = ()) -> None:
    """Let go of tasks and all that they alone keep suspended, without running any of it.

    A lock that one of them holds in a `with` is released: it guards this process, where the body is as good as dead,
    and its replay would wait for it for ever.

    Args:
        roots: The tasks and asynchronous generators of the body.
        beyond: Types of objects that are not the body's, and not looked into.
    """
    roots = list(roots)
    suspended, exits = _reach(roots, beyond)
    for exit_ in exits:
        with contextlib.suppress(RuntimeError):  # not held, or by another thread
            exit_.__self__.release()
    for one in suspended:
        _mark(one)


def _reach(roots: list[object], beyond: tuple[type, ...]) -> tuple[list[Any], list[Any]]:
    """The suspended objects that the roots alone keep, and the exits of locks that a `with` has put on their stacks.

    An object is theirs if all references to it come from what is theirs. So it waits until the last of them is found;
    what is found from elsewhere as well waits for ever, and is left alone.
    """
    suspended: list[Any] = []
    exits: list[Any] = []
    found_from: Counter[int] = Counter()
    waiting: dict[int, Any] = {}
    known = {id(root) for root in roots}
    pending: list[Any] = list(roots)
    while pending:
        found = pending.pop()
        is_function = isinstance(found, FunctionType)
        # Of a function only what it has closed over: its globals are everybody's.
        held = list(found.__closure__ or ()) if is_function else gc.get_referents(found)
        if isinstance(found, _SUSPENDED):
            suspended.append(found)
            exits += [one for one in held if _is_exit(one) and not _waits_for(found, one.__self__)]
        times = Counter(map(id, held))
        each = {id(one): one for one in held if id(one) not in known and gc.is_tracked(one)}
        del found, held
        while each:
            key, one = each.popitem()
            if isinstance(one, (*_SHARED, *beyond)):
                continue
            waiting.pop(key, None)
            found_from[key] += times[key]
            # One of the references is ours, and one the call's.
            if sys.getrefcount(one) - 2 <= found_from[key]:
                known.add(key)
                pending.append(one)
            else:
                waiting[key] = one
            del one
        if len(known) + len(waiting) > REACH_LIMIT:
            for root in roots:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(root))
            return [], exits
    return suspended, exits


def _is_exit(held: object) -> bool:
    """Whether an object is what a `with` over a lock leaves on the stack of a frame."""
    return (
        isinstance(held, BuiltinMethodType | MethodType)
        and held.__name__ in {"__exit__", "__aexit__"}
        and isinstance(held.__self__, _LOCKS)
    )


def _waits_for(suspended: Any, lock: object) -> bool:
    """Whether a coroutine still waits for the lock whose exit stands on its stack: `async with` puts it there first."""
    frame = getattr(getattr(suspended, "cr_await", None), "cr_frame", None)
    return (
        frame is not None
        and frame.f_code.co_filename == asyncio.Lock.acquire.__code__.co_filename
        and frame.f_locals.get("self") is lock
    )


def _mark(suspended: Any) -> None:
    """Tell CPython that an object was finalized; keep it for ever where that cannot be told."""
    if gc.is_finalized(suspended):
        return
    if _HAS_GIL and sys.implementation.name == "cpython" and gc.is_tracked(suspended):
        ctypes.c_size_t.from_address(id(suspended) - ctypes.sizeof(ctypes.c_size_t)).value |= _FINALIZED
    if not gc.is_finalized(suspended):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(suspended))
