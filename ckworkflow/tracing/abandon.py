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
from collections import Counter, deque
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

from ckworkflow.tracing.deferred import Deferred

__all__ = ["abandon", "holds_no_frames"]

REACH_LIMIT: Final = 2_000
"""Objects that are looked at, the nearest first: a body may reach all of its process."""

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
# The lowest bit of `_gc_prev`, the word before an object that the collector tracks.
_FINALIZED: Final = 1
# Without the lock, objects are laid out otherwise.
_HAS_GIL: Final = bool(getattr(sys, "_is_gil_enabled", lambda: True)())


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


def holds_no_frames(value: object) -> bool:
    """Whether a value is seen at a glance to hold nothing suspended: plain data, and stand-ins for results."""
    if isinstance(value, list | tuple):
        return all(not gc.is_tracked(item) or type(item) is Deferred for item in value)
    return not gc.is_tracked(value) or type(value) is Deferred


def _reach(roots: list[object], beyond: tuple[type, ...]) -> tuple[list[object], list[Any]]:
    """The suspended objects that the roots alone keep, and the exits of locks that a `with` has put on their stacks.

    As the collector finds garbage: of all that is within reach, what has a reference from elsewhere is not theirs, nor
    what that reaches in turn.
    """
    objects: dict[int, object] = {id(root): root for root in roots}
    found_from: Counter[int] = Counter()
    pending = deque(objects)
    while pending:
        for one in _held(objects[pending.popleft()]):
            key = id(one)
            found_from[key] += 1
            if (
                key not in objects
                and len(objects) < REACH_LIMIT
                and gc.is_tracked(one)
                and not _is(one, (*_SHARED, *beyond))
            ):
                objects[key] = one
                pending.append(key)
        one = None
    own = {id(root) for root in roots}
    # One of the references is that of `objects`, one the call's.
    outside = [
        key for key in objects if key not in own and sys.getrefcount(objects[key]) - 2 > found_from[key]
    ]
    foreign = set(outside)
    while outside:
        for key in {id(one) for one in _held(objects[outside.pop()])}:
            if key in objects and key not in foreign and key not in own:
                foreign.add(key)
                outside.append(key)
    theirs = {key: one for key, one in objects.items() if key not in foreign}
    theirs |= {id(one): one for one in _awaited_by(roots)}
    return _suspended(theirs.values())


def _awaited_by(roots: list[object]) -> list[object]:
    """What is awaited, one by the other: nobody else can go on with that, however much a body reaches."""
    chain: list[object] = [getattr(root, "get_coro", lambda root=root: root)() for root in roots]
    for one in chain:
        inner = getattr(one, "cr_await", None) or getattr(one, "ag_await", None)
        inner = inner or getattr(one, "gi_yieldfrom", None)
        # What `__await__` of a coroutine gives has no attribute for the coroutine.
        if isinstance(inner, _WRAPPER):
            chain += gc.get_referents(inner)
        elif inner is not None:
            chain.append(inner)
    return chain


async def _nothing() -> None:
    """Only for its type."""


_coroutine = _nothing()
_WRAPPER: Final = type(_coroutine.__await__())
_coroutine.close()


def _suspended(objects: Iterable[object]) -> tuple[list[object], list[Any]]:
    suspended = [one for one in objects if _is(one, _SUSPENDED)]
    exits = [
        held
        for one in suspended
        for held in gc.get_referents(one)
        if _is_exit(held) and not _waits_for(one, held.__self__)
    ]
    return suspended, exits


def _is(one: object, types: tuple[type, ...]) -> bool:
    """Whether an object is of one of these types; unlike `isinstance`, this runs no code of its class."""
    return issubclass(type(one), types)


def _held(found: object) -> list[object]:
    # Of a function only what it has closed over: its globals are everybody's.
    return list(found.__closure__ or ()) if type(found) is FunctionType else gc.get_referents(found)


def _is_exit(held: Any) -> bool:
    """Whether an object is what a `with` over a lock leaves on the stack of a frame."""
    return (
        type(held) in (BuiltinMethodType, MethodType)
        and held.__name__ in {"__exit__", "__aexit__"}
        and _is(held.__self__, _LOCKS)
    )


def _waits_for(suspended: object, lock: object) -> bool:
    """Whether a coroutine still waits for the lock whose exit stands on its stack: `async with` puts it there first."""
    frame = getattr(getattr(suspended, "cr_await", None), "cr_frame", None)
    return (
        frame is not None
        and frame.f_code.co_filename == asyncio.Lock.acquire.__code__.co_filename
        and frame.f_locals.get("self") is lock
    )


def _mark(suspended: object) -> None:
    """Tell CPython that an object was finalized; keep it for ever where that cannot be told."""
    if _HAS_GIL and sys.implementation.name == "cpython" and gc.is_tracked(suspended):
        ctypes.c_size_t.from_address(id(suspended) - ctypes.sizeof(ctypes.c_size_t)).value |= _FINALIZED
    if not gc.is_finalized(suspended):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(suspended))
