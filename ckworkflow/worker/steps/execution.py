"""Running the function of a step that was claimed: with its context, its integrations and its timeout.

An async step runs on the event loop of the worker's process, a plain one on the thread that asks.

Not here: how it ends in the database (`ckworkflow.engine.attempts`), and what comes next (`ckworkflow.worker.steps.task`).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Protocol

from ckworkflow import integration as integrations
from ckworkflow.context import Services, StepContext, current_step
from ckworkflow.errors import FatalError, StepCancelledError, StepTimeoutError
from ckworkflow.foreign import show
from ckworkflow.worker.process import interrupts
from ckworkflow.worker.steps.shell import call_in_shell, has_shell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ckworkflow.definition import Step
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.worker.process.runtime import Runtime

__all__ = ["Carrier", "StoppedError", "execute", "run_async", "run_sync"]


class Carrier(Services, Protocol):
    """What runs steps: a worker's process, or a test's environment."""

    @property
    def is_stopping(self) -> bool:
        """Whether a step that is cancelled is given back."""
        ...

    def interruption(self) -> BaseException | None:
        """Say why the current step was cancelled, if it was interrupted; called inside its task."""
        ...


class StoppedError(Exception):
    """The worker stops while the step runs: it is released."""


def execute(runtime: Runtime, step: Step[..., object], claimed: Claimed) -> object:
    """Run the function of a step that was claimed and return what it returned, or raise what it raised.

    Raises:
        StoppedError: The worker stops.
    """
    if claimed.error is not None:
        raise claimed.error
    if runtime.is_told_to_stop(claimed.run_id, claimed.row.node_id):
        raise StepCancelledError(step.name)  # while it waited for its slot
    if not step.is_async:
        return run_sync(
            runtime, step, claimed, partial(call_in_shell, runtime.app, claimed, step.function)
        )

    node = claimed.run_id, claimed.row.node_id

    def run_in_shell(*args: object, **kwargs: object) -> object:
        called = replace(claimed, args=args, kwargs=kwargs)
        return runtime.run_step(
            step.name, partial(run_async, runtime, step, called), node=node, context=copy_context()
        )

    try:
        if has_shell(runtime.app, step.name):
            return call_in_shell(runtime.app, claimed, run_in_shell)
        return runtime.run_step(step.name, partial(run_async, runtime, step, claimed), node=node)
    except asyncio.CancelledError:
        raise StoppedError from None


def _context(services: Services, step: Step[..., object], claimed: Claimed) -> StepContext:
    return StepContext(
        claimed.run_id, claimed.workflow, claimed.row.node_id, step.name, claimed.row.attempt,
        step.options.max_retries + 1, f"{claimed.run_id}/{claimed.row.node_id}/{step.name}",
        claimed.row.started_at or datetime.now(UTC), services,
    )  # fmt: skip


async def run_async(carrier: Carrier, step: Step[..., object], claimed: Claimed) -> object:
    """Run the function of an async step, on the loop; as `execute`."""
    timeout = step.options.timeout
    limit: asyncio.Timeout | None = None
    with _around(_context(carrier, step, claimed)):
        try:
            if timeout is None:
                return await step.function(*claimed.args, **claimed.kwargs)
            async with asyncio.timeout(timeout.total_seconds()) as limit:
                return await step.function(*claimed.args, **claimed.kwargs)
        except TimeoutError as error:
            if timeout is not None and limit is not None and limit.expired():
                raise StepTimeoutError(step.name, timeout.total_seconds()) from error
            raise
        except asyncio.CancelledError:
            if carrier.is_stopping:
                raise StoppedError from None
            if (interruption := carrier.interruption()) is not None:
                raise interruption from None
            raise RuntimeError("the step cancelled itself") from None  # said nowhere else
        except TypeError:
            step.check_stored(claimed.args, claimed.kwargs)
            raise
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            # Through a task, SystemExit would end the loop, and with it every step of this process.
            raise _as_exception(error) from error


def run_sync(
    services: Services, step: Step[..., object], claimed: Claimed, call: Callable[[], object]
) -> object:
    """Run the function of a plain step, on this thread; as `execute`. `call` calls it."""
    context = _context(services, step, claimed)
    timeout = step.options.timeout
    future: Future[object] = Future()

    def run() -> None:
        try:
            with _around(context):
                with interrupts.allowed:
                    value = _call(step, claimed, call)
                future.set_result(_result(step, value))
        except BaseException as error:  # noqa: BLE001  # handed over to the waiting thread
            future.set_exception(StoppedError() if interrupts.is_leaving() else _as_exception(error))

    if interrupts.is_leaving():
        raise StoppedError
    if timeout is None:
        run()
        return future.result()
    # A thread cannot be interrupted: at the timeout the attempt is given up, and the fence keeps the late
    # result out.
    threading.Thread(
        target=copy_context().run, args=(run,), name=f"ckworkflow-step-{step.name}", daemon=True
    ).start()
    try:
        with interrupts.allowed:
            return future.result(timeout.total_seconds())
    except BaseException as error:
        if future.done():  # the step's own error, or it has ended just now
            return future.result()
        if interrupts.is_leaving():
            raise StoppedError from None
        if isinstance(error, TimeoutError):
            raise StepTimeoutError(step.name, timeout.total_seconds()) from error
        raise


def _call(step: Step[..., object], claimed: Claimed, call: Callable[[], object]) -> object:
    try:
        return call()
    except TypeError:
        step.check_stored(claimed.args, claimed.kwargs)
        raise


def _result(step: Step[..., object], value: object) -> object:
    """A plain function that gives a coroutine (a decorator between @step and an `async def`) is refused."""
    if type(value) is CoroutineType:  # asked of its type: to ask the value may run code of its class
        value.close()
        raise FatalError(
            f"step {step.name} is not an `async def` but returned a coroutine: a decorator under @step hides "
            f"the function. Give that decorator an `async def` wrapper, or put it over @step."
        )
    return value


def _as_exception(error: BaseException) -> Exception:
    """A step may not stop its worker: `SystemExit` and its like are errors like any other."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, SystemExit):
        return RuntimeError(f"the step called sys.exit({show(error.code)})")
    return RuntimeError(f"the step raised {show(error)}")


@contextmanager
def _around(context: StepContext) -> Iterator[None]:
    token = current_step.set(context)
    try:
        installed = integrations.installed()
        if not installed:
            yield
            return
        with ExitStack() as stack:
            for integration in installed:
                stack.enter_context(integration.step(context))
            yield
    finally:
        current_step.reset(token)
