"""Hooks in a body: objects through which it gets what somebody outside sends.

A hook is made and closed with the commit of the continuation in which its body does so; both wait until all that was awaited before
is recorded. A payload belongs to the run and the token: each token has one queue, of which every hook that the run makes under it takes.
It is an `asyncio.Queue` in all that an await can tell: who waits first gets first, and an await that is cancelled takes nothing.

Not here: the rows (`ckworkflow.store.hooks`), and sending (`ckworkflow.engine.hooks`).
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, TypeVar, cast

from ckworkflow import codec
from ckworkflow.duration import parse_wait
from ckworkflow.errors import (
    HookClosedError,
    HookExpiredError,
    InvalidDurationError,
    InvalidSettingError,
    UnreadableValueError,
)
from ckworkflow.model import HookKey, Namespace, NodeId, NodeKind, hook_in_words
from ckworkflow.tracing.calls import MethodCall, NodeCall
from ckworkflow.tracing.derived import Derived
from ckworkflow.tracing.nodes import ClosedHook, HookChange, HookChanges, MadeHook, Payload, Wait
from ckworkflow.tracing.places import line_of
from ckworkflow.webhook import WebhookRequest

if TYPE_CHECKING:
    from types import FrameType

    from ckworkflow.model import Json
    from ckworkflow.tracing.tracer import Tracer

__all__ = ["Hook", "HookSpec", "Hooks", "Webhook"]

T = TypeVar("T")

URL_SETTING: Final = "workflow_web_url"
_NO_URL: Final = "create_webhook() needs it: it says where your webhooks are found from outside, such as 'https://bot.example.com/hooks'"


class HookSpec(NamedTuple):
    """What a hook is to be.

    Attributes:
        name: What it is called.
        namespace: By which door payloads come to it.
        token: What it is found by; `None`: one that cannot be guessed.
        metadata: What is said of it, encoded.
        expires: After which time, or when, it takes nothing any more; `None`: never.
        fit: Makes what the body gets of a payload; raises `HookPayloadError`.
        base: Of a webhook: says where webhooks are found, if that is configured.
    """

    name: str
    namespace: Namespace
    token: str | None
    metadata: Json
    expires: timedelta | datetime | None
    fit: Callable[[object], Any]
    base: Callable[[], str | None] | None = None


class _Queue:
    """The payloads under one token that nobody has taken, and who waits for one."""

    def __init__(self) -> None:
        self.payloads: deque[Payload] = deque()
        self.getters: deque[tuple[asyncio.Future[None], Source]] = deque()

    def put(self, payload: Payload) -> None:
        self.payloads.append(payload)
        self._wake_next()

    async def get(self, hook: Source, line: int) -> Payload:
        """As `asyncio.Queue.get`; raises what the hook has ended with when nothing is left."""
        while not self.payloads:
            hook.raise_if_ended()
            future = hook.hooks.begin_wait(hook, line)
            self.getters.append((future, hook))
            try:
                await future
            except BaseException:
                future.cancel()  # as a getter that has not been woken
                self._forget(future)
                if self.payloads and not future.cancelled():
                    self._wake_next()  # it was woken, and takes nothing
                raise
            finally:
                hook.hooks.end_wait(future)
        return self.payloads.popleft()

    def end(self, hook: Source) -> None:
        """Wake who waits at a hook that has ended."""
        for future, waiting in self.getters:
            if waiting is hook and not future.done():
                future.set_result(None)

    def _wake_next(self) -> None:
        while self.getters:
            future, _ = self.getters.popleft()
            if not future.done():
                future.set_result(None)
                break

    def _forget(self, future: asyncio.Future[None]) -> None:
        self.getters = deque(each for each in self.getters if each[0] is not future)


class Hooks:
    """The hooks of one body.

    Args:
        tracer: The body's.
        secret: From what tokens and the URLs of webhooks are derived (`Derived`); `None`: nothing was yet.
    """

    def __init__(self, tracer: Tracer, secret: str | None) -> None:
        self.tracer = tracer
        self._derived = Derived(secret)
        self._queues: dict[HookKey, _Queue] = {}
        self._changes: list[HookChange] = []
        self._taken: list[int] = []
        self.waits: dict[int, Wait] = {}
        """Who waits for a payload, by the identity of what wakes it."""

    def begin(self) -> None:
        """Forget the changes: they are committed, or this body would have been closed."""
        self._changes.clear()
        self._taken.clear()
        self._derived.begin()

    @property
    def secret(self) -> str | None:
        """From what tokens are derived, in this life and in those to come; `None`: none was yet."""
        return self._derived.secret

    @property
    def changes(self) -> HookChanges:
        """What the body has done since `begin`."""
        return HookChanges(tuple(self._changes), tuple(self._taken), self._derived.news)

    def tell(self, payload: Payload) -> None:
        """Give the body a payload."""
        self.queue(payload.key).put(payload)

    def make(self, spec: HookSpec, *, frame: FrameType) -> Hook[Any]:
        """Make a hook; one whose specification has a base is a `Webhook`.

        Raises:
            InvalidDurationError: It would have expired by now.
            InvalidSettingError: It is a webhook, and nothing says where webhooks are found.
        """
        state, now = self.tracer.place(), self.tracer.now()
        until = now + spec.expires if isinstance(spec.expires, timedelta) else spec.expires
        if until is not None and until <= now:
            raise InvalidDurationError(
                spec.expires, "a hook that expires at once takes nothing: expires= must be in the future"
            )
        # Both at the call, whenever the hook is made: in each replay they are the same.
        node_id, timer_id = state.next_node(), None if until is None else state.next_node()
        token = self._derived.token(node_id) if spec.token is None else spec.token
        base = None if spec.base is None else self._derived.base(spec.base)
        if spec.base is not None and base is None:
            raise InvalidSettingError(URL_SETTING, None, _NO_URL)
        expires_at = None if until is None else until.astimezone(UTC)
        hook = Source(self, spec, node_id, timer_id, token, expires_at, frame.f_lineno)
        if self.tracer.is_settled(state):
            hook.make()
        return Hook(hook) if base is None else Webhook(hook, base)

    def queue(self, key: HookKey) -> _Queue:
        """The queue of a token."""
        return self._queues.setdefault(key, _Queue())

    def forget_queue(self, key: HookKey) -> None:
        """Forget a queue in which nothing is, and nobody waits."""
        queue = self._queues.get(key)
        if queue is not None and not queue.payloads and not queue.getters:
            del self._queues[key]

    def note(self, change: HookChange) -> None:
        """Note what is to be written with the commit."""
        self._changes.append(change)

    def take(self, payload: Payload) -> None:
        """Note that a payload was taken."""
        if not payload.is_taken:
            self._taken.append(payload.number)

    def begin_wait(self, hook: Source, line: int) -> asyncio.Future[None]:
        """Return what wakes the running task, which waits at a hook."""
        future: asyncio.Future[None] = self.tracer.loop.create_future()
        reason = f"a payload of {hook_in_words(hook.name)} is awaited"
        path = self.tracer.state().path
        self.waits[id(future)] = Wait(path, frozenset(), line, reason, is_for_payload=True)
        return future

    def end_wait(self, future: asyncio.Future[None]) -> None:
        """Note that it waits no longer."""
        self.waits.pop(id(future), None)


class Hook(Generic[T]):
    """A place where a run gets what somebody outside sends to its token; what `create_hook` and `define_hook(...).create` make.

    `await hook` takes the next payload, `async for` all of them until it expires. Leaving `async with` closes it.
    """

    __slots__ = ("_source",)
    __ckworkflow_hint__ = "Pass <path>.token, and send to that with resume_hook."

    def __init__(self, source: Source) -> None:
        self._source = source

    def __repr__(self) -> str:
        return f"<Hook {self.name} {self._source.node_id}>"

    @property
    def name(self) -> str:
        """What it is called: `hook`, or what `define_hook` was given."""
        return self._source.name

    @property
    def token(self) -> str:
        """What payloads are sent to. One that was left out is a secret: whoever has it can send."""
        return self._source.token

    @property
    def expires_at(self) -> datetime | None:
        """From when on it takes nothing, UTC; `None`: it does not expire."""
        return self._source.expires_at

    def __await__(self) -> Generator[Any, Any, T]:
        call = self._source.call(lambda line: self._source.next(None, line), "a hook", sys._getframe(1))
        return cast("Generator[Any, Any, T]", call.__await__())

    def next(
        self, timeout: str | float | timedelta | datetime | None = None
    ) -> Coroutine[None, None, T]:
        """Take the next payload: one that has come, or the one that comes next.

        Write `await hook.next(timeout="2 days")`.

        Args:
            timeout: How long to wait, or until when, as for `sleep`; `None`: until it comes.

        Raises:
            TimeoutError: None has come in time. The hook stays open.
            HookConflictError: Another hook had the token.
            HookExpiredError: The hook has expired, and nothing is left in it.
            HookClosedError: The body has closed it, and nothing is left in it.
            HookPayloadError: What was sent does not fit; it is taken.
            InvalidDurationError: `timeout` is no duration; at the call.
        """
        wait = None if timeout is None else parse_wait(timeout)
        return self._source.call(lambda line: self._source.next(wait, line), "next", sys._getframe(1))

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[None, None, T]:
        return self._source.call(self._source.next_or_stop, "a hook", sys._getframe(1))

    def pending(self) -> list[T]:
        """Return what has been sent, as far as the body has been told, and was not taken; it stays where it is.

        Raises:
            HookPayloadError: What was sent does not fit.
        """
        return self._source.pending()

    def close(self) -> Coroutine[None, None, None]:
        """Close the hook: nothing is sent to it any more, and its token is free.

        Write `await hook.close()`. After that `pending` has all that was accepted. What nobody takes waits for the next hook that this
        run makes under the same token.

        Raises:
            HookConflictError: Another hook had the token.
        """
        return self._source.call(self._source.close, "close", sys._getframe(1))

    async def __aenter__(self) -> Self:
        await self._source.begin(line_of(sys._getframe(1)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._source.leave()


class Webhook(Hook[WebhookRequest]):
    """A hook to which HTTP requests are sent; what `create_webhook` makes.

    It is awaited, iterated and closed as any `Hook`, and gives `WebhookRequest` objects.
    """

    __slots__ = ("_base",)
    __ckworkflow_hint__ = "Pass <path>.url."

    def __init__(self, source: Source, base: str) -> None:
        super().__init__(source)
        self._base = base

    @property
    def url(self) -> str:
        """Where requests are sent: `workflow_web_url`, a slash and the token. It is a secret: it is all that a sender needs.

        It never changes. If the setting does, only webhooks that are made later have the new address.
        """
        return f"{self._base}/{self.token}"


class Source:
    """What stands behind a `Hook`."""

    def __init__(
        self, hooks: Hooks, spec: HookSpec, node_id: NodeId, timer_id: NodeId | None, token: str,
        expires_at: datetime | None, line: int,
    ) -> None:  # fmt: skip
        self.name, self.token, self.expires_at = spec.name, token, expires_at
        self.hooks, self.node_id = hooks, node_id
        self._spec, self._timer_id, self._line = spec, timer_id, line
        self._key = HookKey.of(spec.namespace, token)
        self._is_made = False
        self._refusal: BaseException | None = None
        self._ended: Callable[[], BaseException] | None = None
        self._cancel_timer: Callable[[], object] | None = None

    def make(self) -> None:
        """Make it, unless the database knows of it."""
        tracer, self._is_made = self.hooks.tracer, True
        args: dict[str, Json] = {"namespace": self._key.namespace.value, "token": self._key.token_hash}
        known = tracer.meet(self.node_id, NodeKind.HOOK, self.name, args)
        if known is None:
            self.hooks.note(
                MadeHook(
                    self.node_id, self.name, args, self._line, self._key, self._spec.metadata, self.expires_at
                )
            )  # fmt: skip
        elif known.refusal is not None:
            self._refusal = known.refusal
            return
        elif isinstance(known.args, Mapping):  # of an edited body: the one that was made counts
            self._key = HookKey(Namespace(str(known.args["namespace"])), str(known.args["token"]))
        if self._timer_id is not None and self.expires_at is not None:
            self._cancel_timer = tracer.set_timer(
                self.expires_at, self._expire, line=self._line, node_id=self._timer_id, reason="a hook expires"
            )  # fmt: skip

    def raise_if_ended(self) -> None:
        """Raise why nothing comes any more, if that is so."""
        if self._ended is not None:
            raise self._ended()

    def call(
        self, begin: Callable[[int], Coroutine[Any, Any, Any]], what: str, frame: FrameType
    ) -> Coroutine[None, None, Any]:
        """An await of the body: what begins it is called with the line that it is for, when all before is recorded."""
        line = line_of(frame)
        call = MethodCall(self.hooks.tracer, lambda: begin(line), what, line).made_by(frame)
        return cast("Coroutine[None, None, Any]", call)

    async def begin(self, line: int) -> None:
        """Make it if it is not made yet; raises why it cannot be."""
        if not self._is_made:
            await self.hooks.tracer.fence(line, "a hook is made")
        if not self._is_made:  # by another task meanwhile
            self.make()
        if self._refusal is not None:
            raise self._refusal

    async def next(self, wait: timedelta | datetime | None, line: int) -> Any:
        """Take the next payload."""
        await self.begin(line)
        if wait is None:
            return await self._take(line)
        until = self.hooks.tracer.now() + wait if isinstance(wait, timedelta) else wait
        async with asyncio.timeout_at(until.timestamp()):
            return await self._take(line)

    async def next_or_stop(self, line: int) -> Any:
        """Take the next payload, as an iterator does."""
        await self.begin(line)
        try:
            return await self._take(line)
        except (HookExpiredError, HookClosedError):
            raise StopAsyncIteration from None

    async def _take(self, line: int) -> Any:
        payload = await self.hooks.queue(self._key).get(self, line)
        self.hooks.take(payload)
        self.hooks.forget_queue(self._key)
        return self._value(payload)

    async def close(self, line: int) -> None:
        """Close it, and wait until that is committed."""
        await self.begin(line)
        if self._ended is not None:
            return
        tracer = self.hooks.tracer
        call = NodeCall(tracer, NodeKind.CLOSE, self.name, {"hook": self.node_id}, line)
        node = call.record()
        if node.outcome is None:
            self.hooks.note(ClosedHook(self.node_id, self._key))
        try:
            await tracer.wait_for({node.node_id}, line, "a hook is closed")
        finally:
            if self._ended is None:
                self._leave(is_noted=node.outcome is not None)

    async def leave(self) -> None:
        """Close it without waiting, when all that was awaited before is recorded."""
        try:
            await self.hooks.tracer.fence(self._line, "a hook is closed")
        finally:
            if self._ended is None:
                self._leave()

    def pending(self) -> list[Any]:
        """What is in the queue of its token, decoded."""
        return [self._value(payload) for payload in self.hooks.queue(self._key).payloads]

    def _leave(self, *, is_noted: bool = False) -> None:
        if not is_noted and self._is_made:
            self.hooks.note(ClosedHook(self.node_id, self._key))
        self._end(lambda: HookClosedError(self.name))

    def _expire(self) -> None:
        if self._ended is None:
            self.hooks.note(ClosedHook(self.node_id, self._key))
            self._end(lambda: HookExpiredError(self.name, self.expires_at))

    def _end(self, why: Callable[[], BaseException]) -> None:
        self._ended = why
        if self._cancel_timer is not None:
            self._cancel_timer()
        self.hooks.queue(self._key).end(self)
        self.hooks.forget_queue(self._key)

    def _value(self, payload: Payload) -> Any:
        """A fresh copy of what was sent.

        Raises:
            UnreadableValueError: This process cannot rebuild it, and so cannot go on.
            HookPayloadError: It does not fit.
        """
        try:
            value = codec.decode(payload.body)
        except UnreadableValueError as error:
            self.hooks.tracer.interrupt(error)
            raise
        return self._spec.fit(value)
