"""The worst trace there can be: a lazy step runs at the last moment that its body may not tell.

`Speculation` puts every lazily awaited step off until a fence, a strict await or the end of the body. If
any body then does something else than in plain asyncio, an await was called lazy, or a fence was left
out, without right. Failures are not of its world: there a real trace replays the body strictly.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Generator
from typing import Any

from ckworkflow.tracing import ops as real
from compiler.plain import Ops


class Deferred:
    """The value of a step that was put off. Looking at it is an error."""

    def __init__(self, call: Call, path: tuple[tuple[str, Any], ...] = ()) -> None:
        object.__setattr__(self, "_state", (call, path))

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name == "_state":
            return object.__getattribute__(self, name)
        call, path = self._state
        return Deferred(call, (*path, ("attr", name)))

    def __getitem__(self, key: Any) -> Any:
        call, path = self._state
        return Deferred(call, (*path, ("item", key)))

    def __deepcopy__(self, memo: Any) -> Deferred:
        return self


def _refuse(*_: Any) -> Any:
    raise AssertionError("a deferred value was looked at")


for _name in (
    "bool eq ne lt le gt ge hash len iter contains add radd str repr format call setattr setitem".split()
):
    setattr(Deferred, f"__{_name}__", _refuse)


class Call:
    """A call of a step, with its arguments as they were at the call."""

    def __init__(self, world: Speculation, function: Callable[..., Any], given: tuple[Any, Any]) -> None:
        self.world, self.function = world, function
        self.given = copy.deepcopy(given)
        self.value: Any = None

    async def run(self) -> Any:
        args, kwargs = resolve(self.given)
        value = self.function(*args, **kwargs)
        self.value = copy.deepcopy(await value if inspect.isawaitable(value) else value)
        return self.value

    def __await__(self) -> Generator[Any, None, Any]:
        return self._strictly().__await__()

    async def _strictly(self) -> Any:
        await self.world.fence()
        return copy.deepcopy(await self.run())

    async def lazily(self) -> Any:
        self.world.put_off.append(self)
        return Deferred(self)


class Inlined:
    """A call of a workflow, or a gather."""

    def __init__(self, world: Speculation, run: Callable[[], Any]) -> None:
        self.world, self.run = world, run

    def __await__(self) -> Generator[Any, None, Any]:
        return self._strictly().__await__()

    async def lazily(self) -> Any:
        self.world.depth += 1
        try:
            return await self.run()
        finally:
            self.world.depth -= 1

    async def _strictly(self) -> Any:
        value = await self.lazily()
        await self.world.fence()
        return resolve(value)


class Speculation(Ops):
    """What a compiled body calls."""

    def __init__(self) -> None:
        super().__init__(suspicious=False)
        self.put_off: list[Call] = []
        self.depth = 0
        self.has_lent = False

    async def fence(self) -> None:
        waiting, self.put_off = self.put_off, []
        for call in waiting:
            await call.run()

    def lazy(self, awaitable: Any, is_strict: bool = False) -> Any:
        return awaitable if is_strict else awaitable.lazily()

    def lazy_at_root(self, awaitable: Any, is_strict: bool = False) -> Any:
        return self.lazy(awaitable, is_strict or self.depth > 0)

    def early(self, value: Any) -> bool:
        return not isinstance(value, Deferred) and bool(self.put_off)

    def real(self, value: Any) -> Any:
        return resolve(value) if not self.put_off else value

    def callee(self, function: Any) -> Any:
        if function is asyncio.gather:
            return self.gather
        return function

    def gather(self, *members: Any, return_exceptions: bool = False) -> Any:
        async def run() -> list[Any]:
            results: list[Any] = []
            for member in members:
                results.append(await (member.lazily() if isinstance(member, Call | Inlined) else member))
            return results

        return Inlined(self, run)

    def foreign(self, *values: Any) -> bool:
        is_foreign = real.foreign(*map(without_deferred, values))
        self.has_lent |= is_foreign
        return is_foreign

    def shared(self, *values: Any) -> bool:
        return (self.has_lent or self.depth > 0) and self.loose(*values)

    def loose(self, *values: Any) -> bool:
        return real.loose(*map(without_deferred, values))

    def runs_code(self, *sources: Any, owned: bool, deep: bool) -> bool:
        if any(type(source) not in real._ITERABLES for source in sources):
            self.has_lent = True
            return True
        return (deep and self.foreign(*sources)) or (
            self.shared(*sources) if owned else self.loose(*sources)
        )


def without_deferred(value: Any, depth: int = 20) -> Any:
    if not depth:
        return object()
    if isinstance(value, Deferred):
        return None
    if type(value) in (list, tuple):
        return type(value)(without_deferred(item, depth - 1) for item in value)
    if type(value) is dict:
        return {key: without_deferred(item, depth - 1) for key, item in value.items()}
    return value


def resolve(value: Any) -> Any:
    """A value with every deferred one in it replaced by the real one; without any, the very object."""
    if isinstance(value, Deferred):
        call, path = value._state
        found = call.value
        for kind, key in path:
            found = getattr(found, key) if kind == "attr" else found[key]
        return copy.deepcopy(found)
    if type(value) is dict:
        resolved = {key: resolve(item) for key, item in value.items()}
        return resolved if any(resolved[key] is not value[key] for key in value) else value
    if type(value) in (list, tuple):
        items = [resolve(item) for item in value]
        return (
            type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
        )
    return value
