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
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self

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
from ckworkflow.errors import FatalError, NotAWorkflowError, RunCancelledError, RunFailedError
from ckworkflow.model import NodeKind, NodeStatus, RunId, StepInfo, hook_in_words
from ckworkflow.store import runs, schema
from ckworkflow.testing.clock import TestClock
from ckworkflow.testing.crashes import Crash, CrashableDatabase, CrashPoint
from ckworkflow.testing.process import FAR, Process, ProcessEngine, is_in_step, never
from ckworkflow.worker import settings as app_settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence
    from types import TracebackType

    from ckworkflow.engine.core import Publish
    from ckworkflow.engine.installation import EmbeddedWorker
    from ckworkflow.engine.settings import Settings
    from ckworkflow.inspection import OpenHook, RunDetails
    from ckworkflow.integration import Integration

__all__ = ["Environment", "NotSettledError", "RunWaitsError", "environment"]

P = ParamSpec("P")

_ADDRESS: Final = "CKWORKFLOW_DISCORD_API_BASE"
"""Set where Discord is a `FakeDiscord`; without it a token in a developer's shell would reach the real one."""
LATEST_YEAR = 5999
SETTLE_SECONDS = 30.0
"""How long steps may run, in real time, until the test is told which."""
MOST_CRASHES = 10_000
MOST_RUNS = 1_000
"""That a workflow may have started before its own start is known."""


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
        if now is not None and (now.utcoffset() is None or now.year > LATEST_YEAR):
            raise ValueError(
                f"environment(now=...) needs a time with a time zone, in the year {LATEST_YEAR} at the latest: "
                f"datetime(..., tzinfo=UTC)"
            )
        self._always_replay = always_replay
        self._clock = TestClock(datetime.now(UTC) if now is None else now)
        self._stand_ins: dict[str, list[Callable[..., Any]]] = {}
        """By the name of the step; the last one counts."""
        self._opened: list[Integration] = []
        self._is_open = False
        self._at_end: AsyncGenerator[None, None] | None = None
        self._opening = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process: Process | None = None
        self._folder: Path | None = None
        self._installation: Installation | None = None

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
        if self._installation is not None:
            raise RuntimeError("this environment is or was in use: make another one")
        before = installation.current()
        settings = app_settings.read(before.app)
        self._folder = Path(tempfile.mkdtemp(prefix="ckworkflow-environment-"))
        own = replace(
            settings, database_url=f"sqlite:///{self._folder / 'runs.sqlite3'}",
            bodies_kept=0 if self._always_replay else settings.bodies_kept,
            # No message carries a sleep, is late or gets lost, and no lease runs out.
            horizon=timedelta(), redispatch_after=FAR, look_again_after=FAR, lease=FAR,
        )  # fmt: skip
        (self._folder / "runs.sqlite3").write_bytes(_empty_database())
        self._installation = Installation(
            before.app, settings=lambda: own, publish=self._touch, start_embedded=_refuse_worker,
            is_embedded=lambda: False, make_engine=self._make_engine,
        )  # fmt: skip
        _entered.append(_Entry(self, before))
        installation.install(self._installation)
        try:
            self._begin_process()
        except BaseException:
            self._leave()
            raise

    async def _close(self) -> None:
        if self._process is not None:
            await self._process.end()
            self._process = None
        if self._at_end is not None:
            await self._at_end.aclose()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        """Close what is open when the loop of the test ends, as `asyncio.run` does it, before the environment."""
        try:
            yield
        finally:
            await self._close_integrations()

    async def _close_integrations(self) -> None:
        opened, self._opened[:] = list(self._opened), []
        for integration in reversed(opened):
            await integration.close()

    def _leave(self) -> None:
        if self._process is not None:
            self._process.forget()
        self._process = None
        _leave(self)
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
        found = self._installation
        assert found is not None
        engine = found.engine
        assert isinstance(engine, ProcessEngine)
        self._process = Process(
            engine, self._clock, stand_in=self._stand_in, opened=self._opened, app=lambda: found.app,
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
            InvalidTokenError: The `FakeDiscord` refuses the token.
            RuntimeError: A step calls it, which is one of those to be waited for.
        """
        if is_in_step():
            raise RuntimeError("a step runs here: only a test lets an environment settle, and time pass")
        until = asyncio.get_running_loop().time() + SETTLE_SECONDS
        try:
            async with asyncio.timeout_at(until):
                await self._open()
        except TimeoutError:
            names = [integration.name for integration in integrations.installed()]
            raise AssertionError(
                f"{', '.join(names)} did not open within {SETTLE_SECONDS:g} s"
            ) from None
        process = self._running
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
            raise RunWaitsError(run.run_id, self._what_it_waits_for(details))
        return min(asleep)

    async def wait_for_hook(self, run: Run[Any]) -> OpenHook:
        """Settle, and return the first of the hooks of a run that take payloads.

        Raises:
            RunWaitsError: It has none.
            AssertionError: It has ended.
        """
        await self.settle()
        details = self._details(run.run_id)
        if details.summary.status.is_final:
            raise AssertionError(f"run {run.run_id} has no hook: it has {details.summary.status}")
        if not details.summary.open_hooks:
            raise RunWaitsError(run.run_id, self._what_it_waits_for(details))
        return details.summary.open_hooks[0]

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
        if not callable(function):
            raise TypeError(
                f"env.replaced() needs a function to call in place of {given!r}, and got {function!r}"
            )
        if not isinstance(given, Step):
            raise TypeError(
                f"env.replaced() replaces a step, and {given!r} is none: decorate it with @step"
            )
        if not step.is_async and inspect.iscoroutinefunction(function) and function is not never:
            raise TypeError(f"step {step.name} is not async: replace it by a plain function")
        stand_ins = self._stand_ins.setdefault(step.name, [])
        stand_ins.append(stand_in := _stand_in(step, function))
        try:
            yield
        finally:
            stand_ins.remove(stand_in)

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

    async def _open(self) -> None:
        """Open the integrations, on the loop of the test, before the first step runs."""
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            if not self._loop.is_closed():
                raise RuntimeError("an environment belongs to one event loop, and another one runs here")
            # `asyncio.run` again, in one test: what ran on the loop before has ended with it.
            self._loop, self._is_open, self._opening = loop, False, asyncio.Lock()
            self._opened.clear()
            self._running.forget()
            self._replace_process()
        self._loop = loop
        async with self._opening:
            if self._is_open:
                return
            self._at_end = self._until_the_loop_ends()
            await anext(self._at_end)
            integrations.load_providers()
            for integration in integrations.installed():
                if integration.name != "discord" or os.environ.get(_ADDRESS):
                    await integration.open()
                    self._opened.append(integration)
            self._is_open = True

    def _stand_in(self, name: str) -> Callable[..., Any] | None:
        return next(reversed(self._stand_ins.get(name, [])), None)

    async def _settle_for(self, run_id: RunId) -> None:
        """Settle for a caller that waits for the end of a run.

        Raises:
            RunWaitsError: It will not come.
        """
        await self.settle()
        details = self._details(run_id)
        if not details.summary.status.is_final:
            raise RunWaitsError(run_id, self._what_it_waits_for(details))

    def _details(self, run_id: str) -> RunDetails:
        return inspection.read_details(self._running.engine, RunId(run_id), queue_of=lambda _: None)

    def _next_due(self) -> datetime | None:
        """When something comes due next; `None`: nothing ever does."""
        engine = self._running.engine
        now, due = engine.database.read(lambda tx: runs.next_wake_at(tx, engine.database))
        times = [at for at in (due, self._running.next_timeout) if at is not None]
        return min((at for at in times if at <= now + FAR / 2), default=None)

    async def _outcome(
        self, workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
        point: CrashPoint | None,
    ) -> _Outcome | None:  # fmt: skip
        """Run a workflow to its end, with a database of its own; `None`: it did not come to the write at which it was to crash."""
        await self._open()
        inner = Environment(always_replay=self._always_replay, now=self.now)
        inner._stand_ins, inner._opened, inner._is_open = self._stand_ins, list(self._opened), True
        async with inner:
            try:
                return await inner._run_to_the_end(workflow, args, kwargs, point)
            finally:
                inner._opened.clear()  # they stay open

    async def _run_to_the_end(
        self, workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any],
        point: CrashPoint | None,
    ) -> _Outcome | None:  # fmt: skip
        database = self._running.engine.database
        assert isinstance(database, CrashableDatabase)
        database.crash_at(point)
        try:
            run_id = start_run(self._running.engine, workflow, args, kwargs)
        except Crash:
            await self._crash()
            begun = self._running.engine.database.read(lambda tx: runs.list_runs(tx, limit=MOST_RUNS))
            # If nothing was started, nobody was told so.
            run_id = (
                begun[-1].run_id if begun else start_run(self._running.engine, workflow, args, kwargs)
            )
        while (outcome := await self._ended(run_id)) is None:
            pass
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
                raise RunWaitsError(run_id, self._what_it_waits_for(details))
            self._clock.pass_until_due(due)
        except Crash:
            await self._crash()
        return None

    async def _crash(self) -> None:
        """Go on in another process, which knows nothing but what is in the database."""
        await self._running.end()
        self._replace_process()

    def _replace_process(self) -> None:
        assert self._installation is not None
        name = self._running.engine.owner
        self._installation.forget_engine()
        self._begin_process()
        liveness.reap(self._running.engine, Dead(Identity(name, "", "", 0, ""), "its test ended it"))

    def _what_it_waits_for(self, details: RunDetails) -> str:
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
        running = []
        for info in (step.info for step in details.steps if step.info.kind is NodeKind.STEP):
            name = f"{info.name} ({info.node_id})"
            if info.status is NodeStatus.PLANNED and info.due_at is not None:
                waits.append((info.due_at, f"waits to try {name} again: {info.error}"))
            elif info.status is NodeStatus.RUNNING:
                running.append(name)
                until = self._running.timeout_of(summary.run_id, info.node_id)
                if until is not None:
                    waits.append(
                        (until, f"waits for {name}, whose timeout passes at {words.moment(until)}")
                    )
        if not waits and running and (due := self._next_due()) is not None:
            waits.append((due, f"waits for {', '.join(running)}, which waits for another run"))
        hooks = [f"{hook_in_words(hook.name)} ({hook.node_id})" for hook in summary.open_hooks]
        sending = f"waits for what is sent to {' or '.join(hooks)}: resume it"
        if waits and hooks:
            due, what = min(waits)
            return f'{sending}; or {what}: await env.advance("{_roughly(due - now)}")'
        if hooks and not running:
            return sending
        if waits:
            due, what = min(waits)
            return f'{what}. Let time pass: await env.advance("{_roughly(due - now)}")'
        if running:
            return f"waits for {', '.join(running)}, which never ends by itself"
        return "waits for nothing that could come"


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
        except RunCancelledError as error:
            return cls(None, f"RunCancelledError: {error.reason}")

    @property
    def text(self) -> str:
        return repr(self.value) if self.error is None else f"the error {self.error}"

    @staticmethod
    def text_of(outcome: _Outcome | None) -> str:
        return "nothing" if outcome is None else outcome.text


def _stand_in(step: Step[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    if function is never:
        return function

    def call_plainly(*args: object, **kwargs: object) -> object:
        value = function(*args, **kwargs)
        if inspect.iscoroutine(value):
            value.close()
            raise FatalError(f"step {step.name} is not async, and what replaces it returned a coroutine")
        return value

    async def call(*args: object, **kwargs: object) -> object:
        value = function(*args, **kwargs)
        return await value if inspect.isawaitable(value) else value

    return functools.wraps(step.function)(call if step.is_async else call_plainly)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An environment that is in use, and what was installed before it."""

    environment: Environment
    before: Installation


_entered: Final[list[_Entry]] = []


def _leave(environment: Environment) -> None:
    """Install what was installed before an environment; of those that were entered since, the last one stays."""
    for place, entry in enumerate(_entered):
        if entry.environment is environment:
            del _entered[place]
            if place == len(_entered):
                installation.install(entry.before)
            else:
                _entered[place] = replace(_entered[place], before=entry.before)


@functools.cache
def _empty_database() -> bytes:
    """A file with our tables, and nothing in them: to make them anew for each environment takes longer than most tests."""
    with tempfile.TemporaryDirectory(prefix="ckworkflow-environment-") as folder:
        file = Path(folder) / "runs.sqlite3"
        database = CrashableDatabase(f"sqlite:///{file}", is_lasting=False)
        try:
            schema.ensure(database)
        finally:
            database.dispose()
        return file.read_bytes()


def _refuse_worker(_loop: object) -> EmbeddedWorker:
    raise RuntimeError(
        "environment() runs the steps itself: leave the worker, or the bot extension, out of this test"
    )


def _sleeps(details: RunDetails) -> list[StepInfo]:
    infos = [step.info for step in details.steps]
    return [info for info in infos if info.kind is NodeKind.SLEEP and info.status is NodeStatus.RUNNING]


def _roughly(span: timedelta) -> str:
    """Say a span to be waited for, in whole seconds, none too few."""
    seconds = -(-max(span, timedelta()) // timedelta(seconds=1))
    return words.span(timedelta(seconds=seconds))
