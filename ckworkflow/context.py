"""Context: what surrounds a running step, and the hooks that find it.

`use_step()`, `use_run()`, `use_client()` and `use_commandkit()` find the attempt that calls them by a
context variable which the worker sets around it, so they work in helpers of any depth, in asyncio tasks
that a step starts and in `asyncio.to_thread`. `use_run()` works in the body of a workflow too, which has a run but
no attempt. Anywhere else they raise `HookContextError`.

Not here: what stands behind them (`ckworkflow.worker` gives the `Services`).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ckworkflow import tracing
from ckworkflow.errors import HookContextError
from ckworkflow.model import RunId

if TYPE_CHECKING:
    from datetime import datetime

    import discord

    from ckworkflow.model import NodeId

__all__ = [
    "CommandKit",
    "RunContext",
    "Services",
    "StepContext",
    "current_step",
    "use_client",
    "use_commandkit",
    "use_run",
    "use_step",
]


class Services(Protocol):
    """What a worker offers to the steps that it runs. `Any` stands for a type of a layer above."""

    def client(self) -> discord.Client:
        """Return the Discord client of this worker.

        Raises:
            MissingTokenError: The worker has no token.
            HookContextError: The step is not an async one, or runs on another loop.
        """
        ...

    @property
    def store(self) -> Any:
        """The key-value store that bot and workers share."""
        ...

    def is_told_to_stop(self, run_id: RunId, node_id: NodeId) -> bool:
        """Whether a step that runs here is to stop."""
        ...

    @property
    def app(self) -> Any:
        """The Celery app."""
        ...

    @property
    def config(self) -> Any:
        """The settings of that app."""
        ...


@dataclass(frozen=True, slots=True)
class RunContext:
    """The run that a step or a body belongs to.

    Attributes:
        run_id: Id of the run, as `start(...)` returned it.
        workflow: Registered name of its workflow.
    """

    run_id: RunId
    workflow: str


@dataclass(frozen=True, slots=True)
class StepContext:
    """The attempt that is running.

    Attributes:
        run_id: Id of the run.
        workflow: Registered name of its workflow.
        node_id: Place of this step in the body (`0:2`).
        step: Registered name of the step.
        attempt: Which try this is, from 1.
        max_attempts: How many there may be, `max_retries + 1`.
        idempotency_key: The same text for every attempt of this step of this run, and for no other:
            give it to services that take one, so that an attempt that is repeated acts once.
        started_at: When this attempt began, UTC.
        services: What the worker offers; use the hooks instead.
    """

    run_id: RunId
    workflow: str
    node_id: NodeId
    step: str
    attempt: int
    max_attempts: int
    idempotency_key: str
    started_at: datetime
    services: Services
    _starts: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False, compare=False)

    def next_run_id(self) -> RunId:
        """The id of the next run that this attempt starts: the same in each attempt, if it starts them in one order."""
        place = f"{self.idempotency_key}/{next(self._starts)}"
        return RunId(hashlib.sha256(place.encode()).hexdigest()[:32])

    @property
    def is_cancelled(self) -> bool:
        """Whether the step is to stop: its await was cancelled (a timeout, say), or its run has ended.

        A plain step that takes long looks at it now and then. In another process than the one that cancels, it turns true within a
        second. An async step is cancelled as well, as any task of asyncio.
        """
        return self.services.is_told_to_stop(self.run_id, self.node_id)


current_step: ContextVar[StepContext] = ContextVar("ckworkflow.current_step")


class CommandKit:
    """What `use_commandkit()` returns: the surroundings of a step under one name."""

    __slots__ = ("_services",)

    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def client(self) -> discord.Client:
        """The same as `use_client()`, with its errors."""
        return self._services.client()

    @property
    def store(self) -> Any:
        """The key-value store that bot and workers share, kept in SQL: `await store.set(key, value)`."""
        return self._services.store

    @property
    def app(self) -> Any:
        """The Celery app that runs this step."""
        return self._services.app

    @property
    def config(self) -> Any:
        """The settings of that app, as `celeryconfig.py` and the defaults make them."""
        return self._services.config


def use_step() -> StepContext:
    """Return the attempt that is running: its names, its number, its idempotency key.

    Raises:
        HookContextError: No step is running here.
    """
    return _context("use_step")


def use_run() -> RunContext:
    """Return the run that the running step, or the running body of a workflow, belongs to.

    Raises:
        HookContextError: Neither is running here.
    """
    tracer = tracing.current()
    if tracer is not None:
        return RunContext(tracer.run_id, tracer.workflow)
    context = _context("use_run")
    return RunContext(context.run_id, context.workflow)


def use_client() -> discord.Client:
    """Return the Discord client of this worker, for async steps.

    In a worker process it is a plain `discord.Client` that is logged in over REST and has no gateway: fetch
    (`await client.fetch_user(...)`) instead of reading its cache. In a worker embedded in the bot it is
    the bot.

    Raises:
        HookContextError: No step is running here, or it is not an async one.
        MissingTokenError: This worker has no Discord token.
    """
    return _context("use_client").services.client()


def use_commandkit() -> CommandKit:
    """Return the surroundings of the running step: `.client`, `.store`, `.app`, `.config`.

    Raises:
        HookContextError: No step is running here.
    """
    return CommandKit(_context("use_commandkit").services)


def _context(hook: str) -> StepContext:
    if tracing.current() is not None:
        # Asked first: a body that a worker runs in place of a message inherits the context of the step
        # before it, and would act for that step.
        raise HookContextError(
            hook,
            "this is the body of a workflow, which may be run again. Call it in a @step and await that.",
        )
    context = current_step.get(None)
    if context is None:
        raise HookContextError(
            hook,
            "no step is running. It works in a function under @step while a worker runs it, and in what that "
            "function calls; a thread of your own needs `asyncio.to_thread` or `contextvars.copy_context`.",
        )
    return context
