"""Hooks: what a run waits for that somebody outside sends.

The body makes one (`create_hook`, or `create` of what `define_hook` gave) and waits for it; a command, a listener or a step
sends to its token (`resume_hook`, `resume`). Requests to the URL of a webhook (`create_webhook`) come from outside.

Not here: what a hook is to a body (`ckworkflow.tracing.hooks`), and receiving requests (`ckworkflow.web`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, overload

from ckworkflow import codec, tracing
from ckworkflow.background import OffLoop
from ckworkflow.codec.fitting import MisfitError, check_schema, fit
from ckworkflow.duration import parse_wait
from ckworkflow.engine import resume as sending
from ckworkflow.engine.installation import current
from ckworkflow.errors import HookContextError, HookNotFoundError, HookPayloadError
from ckworkflow.foreign import show
from ckworkflow.model import UNTYPED_HOOK, WEBHOOK, HookInfo, HookKey, Namespace
from ckworkflow.store.schema import NoRunsYetError
from ckworkflow.tracing import Hook, Webhook
from ckworkflow.tracing.hooks import HookSpec
from ckworkflow.webhook import WebhookRequest, from_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta
    from types import FrameType

    from ckworkflow.engine.core import Engine

__all__ = [
    "Hook",
    "HookDefinition",
    "Webhook",
    "WebhookRequest",
    "create_hook",
    "create_webhook",
    "define_hook",
    "get_hook",
    "get_hook_sync",
    "resume_hook",
    "resume_hook_sync",
]

T = TypeVar("T")

LONGEST_TOKEN = 1_000
LONGEST_KEY = 200
"""Characters of a dedup key."""
_threads = OffLoop(8, "ckworkflow-hooks")


def create_hook(
    token: str | None = None, *, metadata: Any = None, expires: str | float | timedelta | datetime | None = None
) -> Hook[Any]:  # fmt: skip
    """Make a hook in the body of a workflow: what is sent to its token, the body gets, through any restart.

    Write `async with create_hook(f"order:{order_id}") as answers:`, and in it `answer = await answers`.

    It is in the database before any step after it can begin; of one that is made before the first await, before `start` returns.

    Args:
        token: What it is found by, 1 to 1,000 characters: an address, not a secret. Left out: one that nobody can guess (`hook.token`).
        metadata: Anything that can be stored, for whoever asks `get_hook`.
        expires: After which time, or when, it takes nothing any more, as for `sleep`; `None`: when the run ends.

    Raises:
        HookContextError: No body of a workflow is running.
        InvalidDurationError: `expires` is no duration, or not in the future.
        UnserializableValueError: `metadata` cannot be stored.
        TypeError: `token` is no text.
        ValueError: `token` is empty or too long.

    `HookConflictError` is raised where the hook is awaited first, or its `async with` begins: another open hook has the token.
    """
    return _make(
        "create_hook", UNTYPED_HOOK, lambda value: value, token, metadata, expires, sys._getframe(1)  # noqa: SLF001  # where the body calls
    )  # fmt: skip


def create_webhook(
    *, metadata: Any = None, expires: str | float | timedelta | datetime | None = None
) -> Webhook:
    """Make a hook to which HTTP requests are sent, in the body of a workflow; each one that comes is a `WebhookRequest`.

    Write `async with create_webhook() as hook:`, hand `hook.url` to a step that tells the service, and `request = await hook`.

    Its token cannot be chosen: the URL is a secret. Only requests reach it, never `resume_hook`. They are received by
    `ckworkflow web`, the bot (`workflow_web_port`), or an application of yours (`ckworkflow.web.webhook_app`).

    Args:
        metadata: As for `create_hook`.
        expires: As for `create_hook`; after that a request is answered with 404.

    Raises:
        HookContextError: No body of a workflow is running.
        InvalidSettingError: `workflow_web_url` is not set, which says where webhooks are found.
        InvalidDurationError: `expires` is no duration, or not in the future.
        UnserializableValueError: `metadata` cannot be stored.
    """
    made = _make(
        "create_webhook", WEBHOOK, from_tree, None, metadata, expires, sys._getframe(1), _web_url  # noqa: SLF001  # where the body calls
    )  # fmt: skip
    assert isinstance(made, Webhook)
    return made


class HookDefinition(Generic[T]):
    """A kind of hook; what `define_hook` returns.

    Attributes:
        name: What its hooks are called.
        schema: What their payloads are; `None`: anything that can be stored.
    """

    def __init__(self, name: str, schema: type[T] | None) -> None:
        self.name, self.schema = name, schema

    def __repr__(self) -> str:
        return f"<HookDefinition {self.name}>"

    def create(
        self, token: str | None = None, *, metadata: Any = None,
        expires: str | float | timedelta | datetime | None = None,
    ) -> Hook[T]:  # fmt: skip
        """Make a hook in the body of a workflow, as `create_hook` does.

        Raises:
            CkWorkflowError: As `create_hook`.
        """
        return _make("create", self.name, self._fit, token, metadata, expires, sys._getframe(1))  # noqa: SLF001  # where the body calls

    async def resume(self, token: str, payload: T, *, dedup_key: str | None = None) -> HookInfo:
        """Send a payload to the open hook of a token, as `resume_hook` does.

        Args:
            token: The hook's.
            payload: As the hook was defined, or what JSON can say of it.
            dedup_key: As for `resume_hook`.

        Raises:
            CkWorkflowError: As `resume_hook`.
            HookPayloadError: The payload does not fit, or the hook is one of another definition. Nothing was sent.
        """
        return await _threads.run(
            _sending("resume", token, lambda: self._fit(payload), dedup_key, self.name)
        )

    def resume_sync(self, token: str, payload: T, *, dedup_key: str | None = None) -> HookInfo:
        """Do what `resume` does, from sync code.

        Raises:
            CkWorkflowError: As `resume`.
        """
        return _sending("resume_sync", token, lambda: self._fit(payload), dedup_key, self.name)()

    def _fit(self, value: object) -> T:
        if self.schema is None:
            return cast("T", value)
        try:
            return fit(value, self.schema)
        except MisfitError as error:
            raise HookPayloadError(self.name, str(error)) from error


@overload
def define_hook(name: str) -> HookDefinition[Any]: ...
@overload
def define_hook(name: str, schema: type[T]) -> HookDefinition[T]: ...
def define_hook(name: str, schema: type[Any] | None = None) -> HookDefinition[Any]:
    """Define a kind of hook, so that what is sent and what the body gets have a type.

        decision = define_hook("decision", Decision)

    Args:
        name: What its hooks are called where runs are shown.
        schema: A dataclass, a `TypedDict`, a pydantic model, a class of attrs, or a type that JSON has; left out: anything that
            can be stored.

    Raises:
        TypeError: `schema` is no class, or `name` is no text.
        ValueError: `name` is empty.
    """
    given: object = name
    if not isinstance(given, str):
        msg = f"define_hook() takes a name first, and got {show(given)}"
        raise TypeError(msg)
    if not name.strip():
        msg = "define_hook() needs a name: what its hooks are called where runs are shown"
        raise ValueError(msg)
    if schema is not None:
        check_schema(schema)
    return HookDefinition(name, schema)


async def resume_hook(token: str, payload: Any, *, dedup_key: str | None = None) -> HookInfo:
    """Send a payload to the open hook of a token, and return that hook once the payload is committed.

    The body gets it, whatever restarts in between. Works with the broker down, and never blocks the running loop.

    Args:
        token: The hook's.
        payload: Anything that can be stored.
        dedup_key: Names this sending (the id of an interaction, say; not that of a user), 1 to 200 characters. What is sent again under it,
            to the same run and token, is not sent twice, also when the hook was closed meanwhile.

    Raises:
        HookNotFoundError: No open hook has the token.
        HookFullError: Its body has left too much untaken.
        UnserializableValueError: The payload cannot be stored; names its path.
        RefusedValueError: The database refuses the payload, since it is too large.
        DatabaseUnavailableError: The database cannot be reached; nobody knows whether the payload was accepted. With a `dedup_key` it can be
            sent again.
        HookContextError: This is the body of a workflow.
        TypeError: `token` or `dedup_key` is no text.
        ValueError: One of them is empty or too long.
    """
    return await _threads.run(_sending("resume_hook", token, lambda: payload, dedup_key))


def resume_hook_sync(token: str, payload: Any, *, dedup_key: str | None = None) -> HookInfo:
    """Do what `resume_hook` does, from sync code; blocks until the payload is committed.

    Raises:
        CkWorkflowError: As `resume_hook`.
    """
    return _sending("resume_hook_sync", token, lambda: payload, dedup_key)()


async def get_hook(token: str) -> HookInfo:
    """Return the open hook of a token.

    Raises:
        HookNotFoundError: There is none.
        DatabaseUnavailableError: The database cannot be reached.
        HookContextError: This is the body of a workflow.
        TypeError: `token` is no text.
        ValueError: It is empty or too long.
    """
    return await _threads.run(_finding("get_hook", token))


def get_hook_sync(token: str) -> HookInfo:
    """Do what `get_hook` does, from sync code.

    Raises:
        CkWorkflowError: As `get_hook`.
    """
    return _finding("get_hook_sync", token)()


# -- the core of all forms ----------------------------------------------------------------------------------


def _make(
    function: str, name: str, fit: Callable[[object], Any], token: str | None, metadata: object,
    expires: str | float | timedelta | datetime | None, frame: FrameType,
    base: Callable[[], str | None] | None = None,
) -> Hook[Any]:  # fmt: skip
    tracer = tracing.current()
    if tracer is None:
        raise HookContextError(
            function,
            "it belongs in the body of a workflow, and none is running; use resume_hook or resume to send to one.",
        )
    wait = None if expires is None else parse_wait(expires)
    checked = None if token is None else _checked("token", token, LONGEST_TOKEN)
    tree = codec.encode(metadata, path="metadata")
    namespace = Namespace.CODE if base is None else Namespace.HTTP
    spec = HookSpec(name, namespace, checked, tree, wait, fit, base)
    return tracer.hooks.make(spec, frame=frame)


def _sending(
    function: str,
    token: str,
    payload: Callable[[], object],
    dedup_key: str | None,
    name: str | None = None,
) -> Callable[[], HookInfo]:
    """Check what is to be sent, at the call; return what sends it."""
    _refuse_in_body(function)
    key = HookKey.of(Namespace.CODE, _checked("token", token, LONGEST_TOKEN))
    if dedup_key is not None:
        dedup_key = _checked("dedup_key", dedup_key, LONGEST_KEY)
    body = codec.pack(codec.encode(payload(), path="payload"))
    return lambda: sending.resume(_engine(), key, body, dedup_key=dedup_key, name=name)


def _finding(function: str, token: str) -> Callable[[], HookInfo]:
    _refuse_in_body(function)
    key = HookKey.of(Namespace.CODE, _checked("token", token, LONGEST_TOKEN))
    return lambda: sending.find(_engine(), key)


def _refuse_in_body(function: str) -> None:
    if tracing.current() is not None:
        raise HookContextError(
            function,
            "this is the body of a workflow, which may be run again. Call it in a @step and await that.",
        )


def _web_url() -> str | None:
    return current().engine.settings.web.url


def _engine() -> Engine:
    """Return the engine; where no run was ever started, no hook is."""
    engine = current().engine
    try:
        engine.ensure_schema(creates=False)
    except NoRunsYetError as error:
        raise HookNotFoundError from error
    return engine


def _checked(what: str, value: object, longest: int) -> str:
    if not isinstance(value, str):
        msg = f"{what}= must be text, and got {show(value)}"
        raise TypeError(msg)
    if not value.isprintable() and any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
        msg = f"{what}= has a NUL character, or half of a surrogate pair, which no database keeps"
        raise ValueError(msg)
    if not 0 < len(value) <= longest:
        msg = f"{what}= must have 1 to {longest:,} characters, and has {len(value):,}"
        raise ValueError(msg)
    return value
