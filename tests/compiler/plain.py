"""Plain asyncio for the bodies of the table: what the durable world is compared with.

Steps are called as what they are, but get copies of their arguments and give copies of their results, as
any durable step must; sleeps pass at once on a clock of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any
from unittest import mock
from uuid import UUID

from ckworkflow.definition import Step, Workflow
from ckworkflow.duration import parse_wait
from compiler import steps

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


class Awaitable:
    """A call that may also be left alone."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = run

    def __await__(self) -> Any:
        return self._run().__await__()


@contextlib.contextmanager
def plain(module: ModuleType, call_workflow: Callable[[Workflow[..., Any]], Any]) -> Iterator[None]:
    """Let the bodies of a module run in ordinary asyncio.

    Args:
        module: Whose `sleep`, `now`, `random` and `uuid4` to stand in for.
        call_workflow: Gives the function to run for an inlined workflow.
    """
    clock = [EPOCH]

    async def sleep(duration: Any) -> None:
        wait = parse_wait(duration)
        clock[0] += wait if isinstance(wait, timedelta) else timedelta()
        await asyncio.sleep(0)

    def call_step(self: Step[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = copy.deepcopy((args, kwargs))

        async def run() -> Any:
            result = self.function(*given[0], **given[1])
            if inspect.isawaitable(result):
                result = await result
            await asyncio.sleep(0)
            return copy.deepcopy(result)

        return Awaitable(run)

    with (
        mock.patch.object(Step, "__call__", call_step),
        mock.patch.object(Workflow, "__call__", lambda self, *a, **k: call_workflow(self)(*a, **k)),
        mock.patch.multiple(
            module, sleep=sleep, now=lambda: clock[0], random=lambda: 0.5, uuid4=lambda: UUID(int=1)
        ),
    ):
        yield


def outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, list[Any], list[str]]:
    """Run a body with `asyncio.run` on a fresh world: its result or error, its calls, what it noted."""
    steps.reset_world()
    try:
        result: Any = ("returned", asyncio.run(function(*copy.deepcopy(args))))
    except Exception as error:
        result = ("raised", type(error), str(error))
    return result, list(steps.CALLS), list(steps.NOTES)


class Ops:
    """What a compiled body calls, with every await plain.

    Args:
        suspicious: Whether every question to a value is answered so that the fence waits.
    """

    def __init__(self, *, suspicious: bool) -> None:
        self.suspicious = suspicious
        self.fences = 0

    def lazy(self, awaitable: Any, is_strict: bool = False) -> Any:
        return awaitable

    def lazy_in_root(self, awaitable: Any, is_strict: bool = False) -> Any:
        return self.lazy(awaitable, is_strict)

    def lazy_alone(self, awaitable: Any, is_strict: bool = False) -> Any:
        return self.lazy(awaitable, is_strict)

    def lazy_at_root(self, awaitable: Any, is_strict: bool = False) -> Any:
        return self.lazy(awaitable, is_strict)

    def early(self, value: Any) -> bool:
        return self.suspicious

    def real(self, value: Any) -> Any:
        return value

    def callee(self, function: Any) -> Any:
        return function

    async def fence(self) -> None:
        self.fences += 1

    def foreign(self, *values: Any) -> bool:
        return self.suspicious

    def shared(self, *values: Any) -> bool:
        return self.suspicious

    def loose(self, *values: Any) -> bool:
        return self.suspicious

    def runs_code(self, *sources: Any, owned: bool, deep: bool) -> bool:
        return self.suspicious
