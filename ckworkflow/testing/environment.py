"""`environment()`: workflows in a test, on a clock of the test's own.

The real engine on a database of its own, in the process and on the loop of the test. Nothing happens by itself: `settle`, `advance`
and `return_value()` let steps run and time pass.

Not here: a real worker (`worker`), and Discord (`FakeDiscord`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self

from ckworkflow import inspection
from ckworkflow import integration as integrations
from ckworkflow.client import Run
from ckworkflow.definition import Step, Workflow
from ckworkflow.drawing import words
from ckworkflow.duration import parse_span
from ckworkflow.engine import installation, liveness
from ckworkflow.engine.detector import Dead
from ckworkflow.engine.identity import Identity
from ckworkflow.engine.installation import Installation
from ckworkflow.engine.start import start_run
from ckworkflow.errors import NotAWorkflowError, RunFailedError
from ckworkflow.model import NodeKind, NodeStatus, RunId, StepInfo
from ckworkflow.store import runs
from ckworkflow.testing.clock import TestClock
from ckworkflow.testing.crashes import Crash, CrashableDatabase, CrashPoint
from ckworkflow.testing.process import FAR, Process, ProcessEngine, never
from ckworkflow.worker import settings as app_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from ckworkflow.engine.core import Publish
    from ckworkflow.engine.installation import EmbeddedWorker
    from ckworkflow.engine.settings import Settings
    from ckworkflow.inspection import RunDetails
    from ckworkflow.integration import Integration

__all__ = ["Environment", "NotSettledError", "RunWaitsError", "environment"]

P = ParamSpec("P")

SETTLE_SECONDS = 30.0
"""How long steps may run, in real time, until the test is told which."""
MOST_CRASHES = 10_000


class RunWaitsError(AssertionError):
    """A run cannot go on by itself: it waits for time, or for something that the test must do.

    Attributes:
        run_id: The run.
    """

    def __init__(self, run_id: str, what: str) -> None:
        super().__init__(f"run {run_id} {what}")
        self.run_id = run_id


class NotSettledError(AssertionError):
    """Steps still run after `SETTLE_SECONDS`; names them."""

    def __init__(self, seconds: float, steps: Sequence[str]) -> None:
        super().__init__(
            f"after {seconds:g} s these steps still run: {', '.join(steps)}. What a step waits for is real time here; "
            f"one that is to wait for ever is replaced by env.never"
        )


def environment(*, always_replay: bool = False, now: datetime | None = None) -> Environment:
    """Give workflows a place to run in a test, and time in the hand of the test.

        async with environment() as env:
            run = await start(onboarding, "42")
            await env.advance("7 days")
            assert await run.return_value() == "followed up"

    Inside, `start`, `get_run` and what they return work on a database of this environment, in a temporary folder. Steps run in
    this process and on this loop; no worker, no broker and no bot is needed. The app's settings hold, as far as
    they are about workflows and not about where and by whom they are run.

    Args:
        always_replay: Whether each continuation replays its body from the first line, as after a restart. It finds bodies that
            are not repeatable.
        now: The time at first, with a time zone; by default the present.

    Raises:
        CkWorkflowError: A setting of the app cannot be used.
    """
    return Environment(always_replay=always_replay, now=now)


class Environment:
    """See `environment`, which makes it."""

    never = staticmethod(never)
    """What replaces a step that is to wait until it is cancelled: `env.replaced(ask_the_bank, env.never)`."""

    def __init__(self, *, always_replay: bool = False, now: datetime | None = None) -> None:
        if now is not None and now.utcoffset() is None:
            raise ValueError(
                "environment(now=...) needs a time with a time zone: datetime(..., tzinfo=UTC)"
            )
        self._always_replay = always_replay
        self._clock = TestClock(datetime.now(UTC) if now is None else now)
        self._stand_ins: dict[str, Callable[..., Any]] = {}
        self._opened: list[Integration] = []
        self._is_open = False
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: Process | None = None
        self._folder: Path | None = None
        self._before: Installation | None = None

    # -- its life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._close()
        finally:
            self._leave()

    def __enter__(self) -> Self:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            raise TypeError("in async code it is `async with environment() as env:`")
        self._enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.run_until_complete(self._close())
        finally:
            self._leave()

    def _enter(self) -> None:
        if self._folder is not None:
            raise RuntimeError("this environment is in use already: make another one")
        before = installation.current()
        settings = app_settings.read(before.app)
        self._folder = Path(tempfile.mkdtemp(prefix="ckworkflow-environment-"))
        own = replace(
            settings, database_url=f"sqlite:///{self._folder / 'runs.sqlite3'}",
            bodies_kept=0 if self._always_replay else settings.bodies_kept,
            # No message carries a sleep, is late or gets lost, and no lease runs out.
            horizon=timedelta(), redispatch_after=FAR, look_again_after=FAR, lease=FAR,
        )  # fmt: skip
        installation.install(
            Installation(
                before.app, settings=lambda: own, publish=self._touch, start_embedded=_refuse_worker,
                is_embedded=lambda: False, make_engine=self._make_engine,
            )
        )  # fmt: skip
        self._before = before
        try:
            self._begin_process()
        except BaseException:
            self._leave()
            raise

    async def _close(self) -> None:
        if self._process is not None:
            await self._process.end()
            self._process = None
        for integration in reversed(self._opened):
            await integration.close()
        self._opened.clear()

    def _leave(self) -> None:
        if self._process is not None:
            self._process.forget()
        self._process = None
        if self._before is not None:
            installation.install(self._before)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None

    @property
    def _running(self) -> Process:
        if self._process is None:
            raise RuntimeError(
                "this environment has ended, or has not begun: `async with environment() as env:`"
            )
        return self._process

    def _begin_process(self) -> None:
        found = installation.current()
        engine = found.engine
        assert isinstance(engine, ProcessEngine)
        self._process = Process(
            engine, self._clock, stand_ins=self._stand_ins, opened=self._opened, app=lambda: found.app,
            settle=self._settle_for, loop=self._loop,
        )  # fmt: skip
        engine.ensure_schema()

    def _make_engine(self, settings: Settings, publish: Publish) -> ProcessEngine:
        name = f"process-{next(self._numbers)}"
        database = CrashableDatabase(settings.database_url, clock=self._clock, is_lasting=False)
        return ProcessEngine(name, settings, publish, database)

    def _touch(self, run_id: RunId, _pieces: object) -> bool:
        self._running.touch(run_id)
        return True

    # -- what a test does with it -------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The time in the environment, UTC."""
        return self._clock.now

    async def settle(self) -> None:
        """Let every run go on until each has ended or waits for time, for a run, or for a step that never ends.

        Raises:
            NotSettledError: Steps still run after half a minute of real time.
        """
        loop = await self._open()
        process = self._running
        until = loop.time() + SETTLE_SECONDS
        while True:
            process.begin_ready()
            if not (busy := process.busy):
                return
            try:
                async with asyncio.timeout_at(until):
                    await process.until_changed()
            except TimeoutError:
                names = [f"{step.row.name} ({step.row.node_id})" for step in busy]
                raise NotSettledError(SETTLE_SECONDS, names) from None

    async def advance(self, duration: str | float | timedelta) -> None:
        """Let time pass: from one thing that comes due to the next, and everything settles in between.

        Args:
            duration: How long, as for `sleep`: `"7 days"`, seconds, or a `timedelta`.

        Raises:
            InvalidDurationError: It is no duration.
            NotSettledError: As `settle`.
        """
        span = parse_span(duration)
        await self.settle()
        until = self._clock.now + span
        while (due := self._next_due()) is not None and self._clock.is_due(due, until):
            self._clock.pass_until_due(due)
            await self.settle()
        self._clock.pass_until(until)
        await self.settle()

    async def wait_for_sleep(self, run: Run[Any]) -> datetime:
        """Settle, and return when the first of the sleeps of a run ends, UTC.

        Raises:
            RunWaitsError: It waits for something else.
            AssertionError: It has ended.
        """
        await self.settle()
        details = self._details(run.run_id)
        asleep = [info.due_at for info in _sleeps(details) if info.due_at is not None]
        if details.summary.status.is_final:
            raise AssertionError(f"run {run.run_id} does not sleep: it has {details.summary.status}")
        if not asleep:
            raise RunWaitsError(run.run_id, _what_it_waits_for(details))
        return min(asleep)

    @contextmanager
    def replaced(self, step: Step[..., Any], function: Callable[..., Any]) -> Iterator[None]:
        """Call another function in place of a step's, inside: `with env.replaced(send, lambda *_: None):`.

        What it returns is the step's result, what it raises is judged as the step's error, and the step keeps its options.

        Args:
            step: What `@step` made.
            function: Called with the step's arguments; `env.never` waits until it is cancelled. In place of an async step what it
                returns may be awaitable.

        Raises:
            TypeError: `step` is none, or it is not async and the function is.
        """
        given: object = step
        if not isinstance(given, Step):
            raise TypeError(
                f"env.replaced() replaces a step, and {given!r} is none: decorate it with @step"
            )
        if not step.is_async and inspect.iscoroutinefunction(function) and function is not never:
            raise TypeError(f"step {step.name} is not async: replace it by a plain function")
        before = self._stand_ins.get(step.name)
        self._stand_ins[step.name] = _stand_in(step, function)
        try:
            yield
        finally:
            if before is None:
                del self._stand_ins[step.name]
            else:
                self._stand_ins[step.name] = before

    async def crash_everywhere(
        self, workflow: Workflow[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> int:
        """Run a workflow to its end, then again with a crash before and after each of its writes; each must end alike.

        A crash is that of the worker: what it knew is gone, what it ran is run again by another one. Time passes as it is needed.

        Args:
            workflow: What `@workflow` made. What it returns must not differ from run to run: no time, no random value.
            *args: Its arguments.
            **kwargs: As `args`.

        Returns:
            How many crashes there were.

        Raises:
            AssertionError: A run ended otherwise; says where it crashed.
            RunWaitsError: A run waits for something that never comes.
        """
        if not isinstance(workflow, Workflow):
            raise NotAWorkflowError(workflow)
        expected = await self._outcome(workflow, args, kwargs, None)
        for crashes in range(MOST_CRASHES):
            point = CrashPoint(crashes // 2 + 1, is_committed=bool(crashes % 2))
            try:
                found = await self._outcome(workflow, args, kwargs, point)
            except BaseException as error:
                error.add_note(f"the worker crashed {point}")
                raise
            if found is None:
                return crashes
            if found != expected:
                raise AssertionError(
                    f"{workflow.name} ended with {found.text}, and without a crash with {_Outcome.text_of(expected)}. "
                    f"The worker crashed {point}"
                )
        raise AssertionError(f"{workflow.name} writes without end")

    # -- how ----------------------------------------------------------------------------------------------

    async def _open(self) -> asyncio.AbstractEventLoop:
        """Open the integrations, on the loop of the test, before the first step runs."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            if not self._loop.is_closed():
                raise RuntimeError("an environment belongs to one event loop, and another one runs here")
            # `asyncio.run` again, in one test: what ran on the loop before has ended with it.
            self._loop, self._is_open = loop, False
            self._opened.clear()
            self._running.forget()
            self._replace_process()
        self._loop = loop
        if self._is_open:
            return loop
        self._is_open = True
        integrations.load_providers()
        for integration in integrations.installed():
            await integration.open()
            self._opened.append(integration)
        return loop

    async def _settle_for(self, run_id: RunId) -> None:
        """Settle for a caller that waits for the end of a run.

        Raises:
            RunWaitsError: It will not come.
        """
        await self.settle()
        details = self._details(run_id)
        if not details.summary.status.is_final:
            raise RunWaitsError(run_id, _what_it_waits_for(details))

    def _details(self, run_id: str) -> RunDetails:
        return inspection.read_details(self._running.engine, RunId(run_id), queue_of=lambda _: None)

    def _next_due(self) -> datetime | None:
        """When something comes due next; `None`: nothing ever does."""
        engine = self._running.engine
        now, due = engine.database.read(lambda tx: runs.next_wake_at(tx, engine.database))
        return None if due is None or due > now + FAR / 2 else due

    async def _outcome(
        self, workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
        point: CrashPoint | None,
    ) -> _Outcome | None:  # fmt: skip
        """Run a workflow to its end; `None`: it did not come to the write at which it was to crash."""
        await self.settle()
        began_at = self._clock()
        engine = self._running.engine
        database = engine.database
        assert isinstance(database, CrashableDatabase)
        database.crash_at(point)
        try:
            try:
                run_id = start_run(engine, workflow, args, kwargs)
            except Crash:
                await self._crash()
                found = self._running.engine.database.read(lambda tx: runs.list_runs(tx, limit=1))
                if (
                    not found or found[0].created_at < began_at
                ):  # nothing was started, and nobody was told so
                    run_id = start_run(self._running.engine, workflow, args, kwargs)
                else:
                    run_id = found[0].run_id
            while (outcome := await self._ended(run_id)) is None:
                pass
        finally:
            database.crash_at(None)
        return None if point is not None and not database.is_dead else outcome

    async def _ended(self, run_id: RunId) -> _Outcome | None:
        """Let a run go on until its next wait, and let that pass; return how it has ended."""
        try:
            await self.settle()
            details = self._details(run_id)
            if details.summary.status.is_final:
                return await _Outcome.of(run_id)
            due = self._next_due()
            if due is None:
                raise RunWaitsError(run_id, _what_it_waits_for(details))
            self._clock.pass_until_due(due)
        except Crash:
            await self._crash()
        return None

    async def _crash(self) -> None:
        """Go on in another process, which knows nothing but what is in the database."""
        await self._running.end()
        self._replace_process()

    def _replace_process(self) -> None:
        name = self._running.engine.owner
        installation.current().forget_engine()
        self._begin_process()
        liveness.reap(self._running.engine, Dead(Identity(name, "", "", 0, ""), "its test ended it"))


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a run has ended: with a value, or with an error of a class, that says something."""

    value: object
    error: str | None

    @classmethod
    async def of(cls, run_id: RunId) -> _Outcome:
        try:
            return cls(await Run[Any](run_id).return_value(), None)
        except RunFailedError as error:
            return cls(None, error.error)

    @property
    def text(self) -> str:
        return repr(self.value) if self.error is None else f"the error {self.error}"

    @staticmethod
    def text_of(outcome: _Outcome | None) -> str:
        return "nothing" if outcome is None else outcome.text


def _stand_in(step: Step[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    if function is never:
        return function
    if not step.is_async:
        return function

    @functools.wraps(step.function)
    async def call(*args: object, **kwargs: object) -> object:
        value = function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return call


def _refuse_worker(_loop: object) -> EmbeddedWorker:
    raise RuntimeError(
        "environment() runs the steps itself: leave the worker, or the bot extension, out of this test"
    )


def _sleeps(details: RunDetails) -> list[StepInfo]:
    infos = [step.info for step in details.steps]
    return [info for info in infos if info.kind is NodeKind.SLEEP and info.status is NodeStatus.RUNNING]


def _what_it_waits_for(details: RunDetails) -> str:
    """Say what a live run waits for, and what the test can do."""
    now, summary = details.read_at, details.summary
    if summary.held_body is not None:
        return f"is held: {summary.held_body.reason}"
    if summary.held_steps:
        held = summary.held_steps[0]
        return f"is held, since step {held.step} cannot run: {held.reason}"
    waits: list[tuple[datetime, str]] = [
        (info.due_at, f"sleeps ({info.node_id}) until {words.moment(info.due_at)}")
        for info in _sleeps(details)
        if info.due_at is not None
    ]
    for step in details.steps:
        info = step.info
        if info.kind is NodeKind.STEP and info.status is NodeStatus.PLANNED and info.due_at is not None:
            waits.append((info.due_at, f"waits to try {info.name} ({info.node_id}) again: {info.error}"))
    if waits:
        due, what = min(waits)
        return f'{what}. Let time pass: await env.advance("{_roughly(due - now)}")'
    running = [
        f"{step.info.name} ({step.info.node_id})"
        for step in details.steps
        if step.info.kind is NodeKind.STEP and step.info.status is NodeStatus.RUNNING
    ]
    if running:
        return f"waits for {', '.join(running)}, which waits itself"
    return "waits for nothing that could come"


def _roughly(span: timedelta) -> str:
    """Say a span to be waited for, in whole seconds, none too few."""
    seconds = -(-max(span, timedelta()) // timedelta(seconds=1))
    return words.span(timedelta(seconds=seconds))
