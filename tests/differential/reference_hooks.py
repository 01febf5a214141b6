"""The reference of hooks: a queue of asyncio for each token, and a hook that takes from it.

Waiting is `asyncio.Queue.get` itself: the order of those who wait, and what becomes of one who is cancelled, are asyncio's own. What only
the database of the engine knows is told (`Facts`): when it made a hook, and whether it refused one.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

from ckworkflow import codec
from ckworkflow.duration import parse_wait
from ckworkflow.errors import (
    HookClosedError,
    HookConflictError,
    HookExpiredError,
    InvalidDurationError,
)
from ckworkflow.model import HookKey
from ckworkflow.tracing.hooks import HookSpec
from ckworkflow.tracing.tasks import TaskState
from differential.reference_family import ChildEnd


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the database knows of the hooks of a run, and what others have done to it.

    Attributes:
        secret: From what its tokens are derived; `None`: it has derived none.
        made: When each hook was made, by its place in the body.
        refused: The places of those that could not be made, each with the run that had its token.
        carried: The numbers of the payloads that have come in a life before.
        ends: How the runs have ended that it has started, by their places.
        reason: Why it was asked to end.
    """

    secret: str | None = "plain"
    made: Mapping[str, datetime] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    carried: frozenset[int] = frozenset()
    ends: Mapping[str, ChildEnd] = field(default_factory=dict)
    reason: str | None = None


class Item(NamedTuple):
    """A payload: its number in the run, and what was sent, encoded."""

    number: int
    body: str


class Told(Protocol):
    """What a body was told."""

    told: int


class World(Protocol):
    """What hooks need of the body."""

    run_id: str
    clock: datetime
    run: Told

    def place(self) -> TaskState:
        """Where the body is."""
        ...

    def kept(self, coro: Any) -> Any:
        """Close a coroutine in the end."""
        ...

    def set_expiry(self, node_id: str, at: datetime, ring: Callable[[], None]) -> None:
        """Call when a hook expires."""
        ...

    def cancel_expiry(self, node_id: str) -> None:
        """Do not."""
        ...

    def closing(self, name: str, hook: str) -> Coroutine[Any, Any, None]:
        """Wait until the close of a hook is committed."""
        ...

    def fail(self, why: str) -> None:
        """Note that the engine did what it may not."""
        ...


class _EndedError(Exception):
    """The hook at which a task waits has ended."""


class _Getters(deque[Any]):
    """Those who wait in a queue, each with its task."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[Any, Any] = {}

    def append(self, getter: Any) -> None:
        self.tasks[getter] = asyncio.current_task()
        super().append(getter)


class _Queue(asyncio.Queue[Item]):
    """asyncio's queue; who waits in it can be told that there is no more to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._getters = _Getters()

    @property
    def items(self) -> list[Item]:
        """What is in it."""
        return list(self._queue)  # type: ignore[attr-defined]

    async def take(self, hook: PlainHook) -> Item:
        """Take the next item; raises what the hook has ended with when nothing is left."""
        task = asyncio.current_task()
        while True:
            if self.empty() and hook.ended is not None:
                raise hook.ended()
            hook.waiting.append(task)
            try:
                return await self.get()
            except _EndedError:
                continue
            finally:
                hook.waiting.remove(task)

    def end(self, hook: PlainHook) -> None:
        """Tell who waits at a hook."""
        for getter in list(self._getters):
            if self._getters.tasks[getter] in hook.waiting and not getter.done():
                getter.set_exception(_EndedError())


class PlainHooks:
    """The hooks of one body under plain asyncio."""

    def __init__(self, world: World, facts: Facts) -> None:
        self.world, self.facts = world, facts
        self.made: dict[str, PlainHook] = {}
        self.open: dict[HookKey, PlainHook] = {}
        self.taken: list[int] = []
        self._queues: dict[HookKey, _Queue] = {}

    def make(self, spec: HookSpec, *, frame: FrameType) -> PlainHook:
        state, now = self.world.place(), self.world.clock
        until = now + spec.expires if isinstance(spec.expires, timedelta) else spec.expires
        if until is not None and until <= now:
            raise InvalidDurationError(
                spec.expires, "a hook that expires at once takes nothing: expires= must be in the future"
            )
        hook = PlainHook(self, spec, state.next_node(), None if until is None else until.astimezone(UTC))
        expiry = state.next_node() if hook.expires_at is not None else None
        self.made[hook.node_id] = hook
        holder = self._holder(hook)
        if holder is not None:
            hook.refusal = HookConflictError(holder)
            return hook
        self.open[hook.key] = hook
        if expiry is not None and hook.expires_at is not None:
            hook.expiry = expiry
            self.world.set_expiry(expiry, hook.expires_at, hook.expire)
        return hook

    def _holder(self, hook: PlainHook) -> str | None:
        """The run that has the token of a hook; `None`: it is free."""
        holder = self.open.get(hook.key)
        if hook.node_id in self.facts.refused:
            refused_by = self.facts.refused[hook.node_id]
            # That another run has the token is checked where all of them are known.
            if (holder is None) == (refused_by == self.world.run_id):
                self.world.fail(
                    f"the engine refuses hook {hook.node_id}, which {refused_by} has, and here it is {holder}"
                )
            return refused_by
        if holder is None:
            return None
        made_at = self.facts.made.get(hook.node_id)
        if made_at is None:
            return self.world.run_id
        if holder.expires_at is None or holder.expires_at > made_at:
            self.world.fail(f"the engine makes hook {hook.node_id}, and {holder.node_id} has its token")
        return None

    def queue(self, key: HookKey) -> _Queue:
        return self._queues.setdefault(key, _Queue())

    def put(self, key: HookKey, item: Item) -> None:
        """A payload has come."""
        if item.number not in self.facts.carried and all(
            hook.key != key or hook.refusal is not None for hook in self.made.values()
        ):
            self.world.fail(f"the engine tells of {item}, and no hook was made for it")
        self.queue(key).put_nowait(item)

    def left(self) -> Iterator[int]:
        """The payloads that were told and not taken."""
        for queue in self._queues.values():
            yield from (item.number for item in queue.items)

    def awaited(self) -> list[PlainHook]:
        """The open hooks at which somebody waits."""
        return [hook for hook in self.open.values() if hook.waiting]

    def derive(self, node_id: str) -> str:
        """The token of a hook that was given none."""
        if self.facts.secret is None:
            self.world.fail(f"the engine has derived no token for hook {node_id}")
            return node_id
        digest = hmac.new(self.facts.secret.encode(), node_id.encode(), "sha256").digest()
        return base64.urlsafe_b64encode(digest[:16]).decode().strip("=")


class PlainHook:
    """A hook."""

    def __init__(
        self, hooks: PlainHooks, spec: HookSpec, node_id: str, expires_at: datetime | None
    ) -> None:
        self.name, self.node_id, self.expires_at = spec.name, node_id, expires_at
        self.token = hooks.derive(node_id) if spec.token is None else spec.token
        self.key = HookKey.of(spec.namespace, self.token)
        self.refusal: HookConflictError | None = None
        """One error, however often it is raised: as a task that has failed and is awaited again."""
        self.ended: Callable[[], BaseException] | None = None
        self.expiry: str | None = None
        self.waiting: list[Any] = []
        self.made_at = hooks.world.clock
        self.made_after = hooks.world.run.told
        self.freed_at: datetime | None = None
        self._hooks, self._fit = hooks, spec.fit

    def _begin(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._take().__await__()

    async def _take(self) -> Any:
        self._begin()
        item = await self._hooks.queue(self.key).take(self)
        self._hooks.taken.append(item.number)
        return self._read(item)

    def _read(self, item: Item) -> Any:
        return self._fit(codec.decode(json.loads(item.body)))

    def next(self, timeout: Any = None) -> Coroutine[Any, Any, Any]:
        wait = None if timeout is None else parse_wait(timeout)
        return self._hooks.world.kept(self._take_in(wait))  # type: ignore[no-any-return]

    async def _take_in(self, wait: timedelta | datetime | None) -> Any:
        self._begin()
        if isinstance(wait, datetime):
            wait = wait - self._hooks.world.clock
        async with asyncio.timeout(None if wait is None else wait.total_seconds()):
            return await self._take()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._take()
        except (HookExpiredError, HookClosedError):
            raise StopAsyncIteration from None

    def pending(self) -> list[Any]:
        return [self._read(item) for item in self._hooks.queue(self.key).items]

    def close(self) -> Coroutine[Any, Any, None]:
        return self._hooks.world.kept(self._close())  # type: ignore[no-any-return]

    async def _close(self) -> None:
        self._begin()
        if self.ended is not None:
            return
        self._free()
        try:
            await self._hooks.world.closing(self.name, self.node_id)
        finally:
            self._end(lambda: HookClosedError(self.name))

    async def __aenter__(self) -> Self:
        self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end(lambda: HookClosedError(self.name))

    def expire(self) -> None:
        """Its time has come."""
        self.expiry = None
        self._end(lambda: HookExpiredError(self.name, self.expires_at))

    def _free(self) -> None:
        with contextlib.suppress(KeyError):
            if self._hooks.open[self.key] is self:
                del self._hooks.open[self.key]
        self.freed_at = self.freed_at or self._hooks.world.clock

    def _end(self, why: Callable[[], BaseException]) -> None:
        self._free()
        if self.ended is not None:
            return
        self.ended = why
        if self.expiry is not None:
            self._hooks.world.cancel_expiry(self.expiry)
        self._hooks.queue(self.key).end(self)
