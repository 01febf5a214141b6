"""Every exception that a user of ckworkflow can meet.

All descend from `CkWorkflowError`; each builds its own text (what happened, why, what to do) and
keeps the values as attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckworkflow.foreign import show, type_name

if TYPE_CHECKING:
    from datetime import datetime, timedelta

__all__ = [
    "ArgumentsChangedError",
    "BodyAwaitError",
    "BodyStuckError",
    "BodyTimeoutError",
    "CkWorkflowError",
    "ContinueAsNewError",
    "DatabaseUnavailableError",
    "DiscordLibraryError",
    "DiscordLoginError",
    "FatalError",
    "HistoryTooLongError",
    "HookClosedError",
    "HookConflictError",
    "HookContextError",
    "HookExpiredError",
    "HookFullError",
    "HookNotFoundError",
    "HookPayloadError",
    "InvalidDurationError",
    "InvalidSettingError",
    "InvalidTokenError",
    "MainModuleError",
    "MissingTokenError",
    "NotAWorkflowError",
    "NotAwaitedError",
    "RefusedValueError",
    "ReplayDivergenceError",
    "RetryableError",
    "ReturnValueTimeoutError",
    "RunCancelledError",
    "RunExistsError",
    "RunFailedError",
    "RunNotFoundError",
    "RunTerminatedError",
    "SchemaVersionError",
    "StepCancelledError",
    "StepTimeLimitError",
    "StepTimeoutError",
    "UnreadableValueError",
    "UnserializableValueError",
    "UnsupportedBrokerError",
    "UnsupportedPoolError",
    "WorkflowCallError",
    "WorkflowModuleError",
    "WorkflowNotRegisteredError",
]


class CkWorkflowError(Exception):
    """The root of every error of this package."""


class FatalError(CkWorkflowError):
    """Raise it in a step: the step has failed for good, and no attempt is left to it.

    The body sees it at its `await`, also when an ordinary error has used up its attempts; then
    `__cause__` is the original, rebuilt from its record.

    Args:
        message: What went wrong, for a person.
        code: A code of the outside world (a Discord error code, say).
        kind: A word to branch on; those of the Discord policy are listed in `docs/discord.md`.
        status: An HTTP status.
        details: More, JSON only.
    """

    def __init__(
        self,
        message: str = "",
        *,
        code: int | str | None = None,
        kind: str | None = None,
        status: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.kind, self.status = code, kind, status
        self.details = dict(details or {})


class RetryableError(CkWorkflowError):
    """Raise it in a step: try again, not before `retry_after`.

    Args:
        message: What went wrong, for a person.
        retry_after: A time span as `sleep` takes it (`"1 minute"`, seconds, `timedelta`) or an aware
            `datetime`. At least one second is waited; `None` means one second.
        code: A code of the outside world.
        kind: A word to branch on.
        status: An HTTP status.

    The wait uses one of the step's attempts.
    """

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: str | float | timedelta | datetime | None = None,
        code: int | str | None = None,
        kind: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.code, self.kind, self.status = code, kind, status


class StepTimeoutError(CkWorkflowError):
    """An attempt of a step took longer than its `timeout`."""

    def __init__(self, step: str, seconds: float) -> None:
        super().__init__(
            f"Step {step!r} took longer than its timeout of {seconds:g} s and this attempt was given "
            f"up. Raise `timeout=`, or make the step do less."
        )
        self.step, self.seconds = step, seconds


class StepCancelledError(CkWorkflowError):
    """An attempt of a step was told to stop: its await was cancelled, or its run has ended. No further attempt follows.

    It is what `steps()` shows of such an attempt. The body gets `asyncio.CancelledError`, as from any await that is cancelled.
    """

    def __init__(self, step: str) -> None:
        super().__init__(
            f"Step {step!r} was told to stop: what awaits it was cancelled (a timeout, a sibling that failed, the run), or its "
            f"run has ended. A step that must not be stopped says so: @step(on_cancel='leave')."
        )
        self.step = step


class StepTimeLimitError(CkWorkflowError):
    """An attempt of a step outlasted one of Celery's time limits (`task_soft_time_limit`, `task_time_limit`).

    Attributes:
        step: The name of the step.
        seconds: The limit, in seconds; `None` where it is not known.
        is_hard: Whether the pool process was ended with it.
    """

    def __init__(self, step: str, seconds: float | None, *, is_hard: bool) -> None:
        limit = "" if seconds is None else f" of {seconds:g} s"
        kind, what = (
            ("hard", "its pool process was ended") if is_hard else ("soft", "it was interrupted")
        )
        super().__init__(
            f"Step {step!r} outlasted Celery's {kind} time limit{limit}, so {what}. Raise the limit, or make "
            f"the step do less."
        )
        self.step, self.seconds, self.is_hard = step, seconds, is_hard


class InvalidDurationError(CkWorkflowError, ValueError):
    """A time span that cannot be understood. See `ckworkflow.sleep` for the forms."""

    def __init__(self, value: object, reason: str) -> None:
        super().__init__(
            f"{show(value)} is not a time span: {reason}. Give text such as '5 seconds', '7 days' or "
            f"'1h 30m', a number of seconds, a timedelta, or a datetime with a time zone."
        )
        self.value, self.reason = value, reason


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"


class UnserializableValueError(CkWorkflowError, TypeError):
    """A value that cannot be written to the database.

    Attributes:
        path: Where it stands, as Python would reach it (`args[0].name`, `result['rows'][3]`).
    """

    def __init__(self, path: str, value: object, hint: str = "") -> None:
        kind = type_name(value)
        super().__init__(
            f"{path} is {_a(kind)}, which cannot be stored. "
            + (
                hint
                or "Pass JSON values, datetimes, enums, dataclasses or an id instead; register_type() stores any class."
            )
        )
        self.path, self.type_name = path, kind


class RefusedValueError(UnserializableValueError):
    """A value that the database refuses, whenever it is tried: it is too large, say, or an id with a NUL character.

    Attributes:
        reason: What the database said.
    """

    def __init__(self, reason: str, advice: str | None = None) -> None:
        # Not that of the parent: which of the values it is, the database does not say.
        advice = advice or "Store it elsewhere, and pass its address or id instead"
        CkWorkflowError.__init__(self, f"The database refuses a value: {reason}. {advice}.")
        self.path, self.type_name, self.reason = "value", "value", reason


class UnreadableValueError(CkWorkflowError):
    """A stored value that this process cannot rebuild: its class is gone, or another than it was."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(
            f"A stored {kind} cannot be rebuilt: {reason}. The code has changed since it was stored, or "
            f"this worker runs another deploy: bring back what the value needs, then retry."
        )
        self.kind, self.reason = kind, reason


class ArgumentsChangedError(CkWorkflowError, TypeError):
    """A workflow or step takes other arguments now than those that a run has stored for it."""

    def __init__(self, kind: str, name: str, reason: str) -> None:
        super().__init__(
            f"{kind.capitalize()} {name!r} no longer takes the arguments that this run has stored for it: {reason}. Its "
            f"signature was changed while the run was under way: give a new parameter a default, and keep "
            f"the old ones."
        )
        self.kind, self.name, self.reason = kind, name, reason


class NotAWorkflowError(CkWorkflowError, TypeError):
    """`start` was given something that is not a workflow."""

    def __init__(self, value: object) -> None:
        name = getattr(value, "__qualname__", None) or repr(value)
        what = f"a {type(value).__name__}. Write @workflow over its `async def`, and pass the function itself: start({name}, ...)"
        if getattr(value, "kind", None) == "step":
            what = f"a step. Await it in the body of a workflow and start that; to run it here and now, call it: {name}(...)"
        super().__init__(f"start() takes a workflow, and {name} is {what}.")
        self.value = value


class WorkflowCallError(CkWorkflowError, TypeError):
    """A workflow was called where none can run."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Workflow {name!r} was called like a function. Only the body of another workflow may call "
            f"it; anywhere else start a run: `run = await start({name.rpartition('.')[2]}, ...)`."
        )
        self.name = name


class HookContextError(CkWorkflowError, RuntimeError):
    """`use_client()` and its like were called where they have no meaning."""

    def __init__(self, hook: str, reason: str) -> None:
        super().__init__(f"{hook}() cannot be used here: {reason}")
        self.hook, self.reason = hook, reason


class HookConflictError(CkWorkflowError):
    """A hook cannot be made, since another open hook has its token.

    Attributes:
        run_id: The run that has it, which may be the same one.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"The token of this hook is taken by an open hook of run {run_id}. Choose another token, leave it out, or wait until "
            f"that one is closed."
        )
        self.run_id = run_id


class HookNotFoundError(CkWorkflowError, LookupError):
    """No hook takes payloads under a token: none was made, or it was closed, has expired, or its run has ended."""

    def __init__(self) -> None:
        super().__init__(
            "No open hook has this token: it was never made, is closed or expired, or its run has ended. A token is compared "
            "letter by letter."
        )


class HookExpiredError(CkWorkflowError):
    """A hook has expired, and nothing that was sent before is left in it.

    Attributes:
        name: What the hook is called.
        expires_at: When it expired, UTC.
    """

    def __init__(self, name: str, expires_at: datetime | None) -> None:
        super().__init__(
            f"Hook {name!r} expired at {expires_at:%Y-%m-%d %H:%M:%S} UTC, and nothing that was sent before is left in it."
        )
        self.name, self.expires_at = name, expires_at


class HookClosedError(CkWorkflowError):
    """A body waits at a hook that it has closed, and nothing is left in that.

    Attributes:
        name: What the hook is called.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Hook {name!r} was closed by this body (`close()`, or the end of its `async with`), and nothing is left in it. "
            f"Make another hook to wait again."
        )
        self.name = name


class HookPayloadError(CkWorkflowError, ValueError):
    """A payload does not fit the type that its hook was defined with.

    Attributes:
        name: What the hook is called.
        reason: What is wrong with the payload.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The payload does not fit hook {name!r}: {reason}")
        self.name, self.reason = name, reason


class HookFullError(CkWorkflowError):
    """A run has too much in its hooks that its body has not taken. Nothing was sent.

    Attributes:
        run_id: The run.
    """

    def __init__(self, run_id: str, limit: str) -> None:
        super().__init__(
            f"The hooks of run {run_id} are full: its body has left more than {limit} untaken. Nothing was sent; send it again "
            f"when the run has gone on."
        )
        self.run_id = run_id


class RunNotFoundError(CkWorkflowError, LookupError):
    """No run has this id."""

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"No run has the id {run_id!r} in this database. `ckworkflow runs list` shows those that "
            f"exist; check that bot and worker share one workflow_database_url."
        )
        self.run_id = run_id


class RunExistsError(CkWorkflowError):
    """A run that is to be started has the id of another one, of another workflow or with other arguments.

    An attempt of a step that is repeated starts the same runs in the same order: its n-th `start` is the same run.

    Attributes:
        run_id: The run that has the id.
    """

    def __init__(self, run_id: str, workflow: str) -> None:
        super().__init__(
            f"An earlier attempt of this step has started run {run_id} of {workflow} in this place, with other arguments or of another "
            f"workflow. Start the same runs in each attempt, in one order: pass what changes (the time, what is random) to the step as an "
            f"argument."
        )
        self.run_id, self.workflow = run_id, workflow


class RunFailedError(CkWorkflowError):
    """The run has failed; `__cause__` is the error that its body raised, rebuilt from its record."""

    def __init__(self, run_id: str, workflow: str, error: str) -> None:
        super().__init__(
            f"Run {run_id} of {workflow} failed: {error.removesuffix('.')}. `ckworkflow runs show {run_id}` shows its steps."
        )
        self.run_id, self.workflow, self.error = run_id, workflow, error


class RunCancelledError(CkWorkflowError):
    """The run was cancelled, or its body has raised `asyncio.CancelledError`.

    `__cause__` is what its body raised, rebuilt from its record, or a `RunTerminatedError`; there is none if nothing of the run had begun.

    Attributes:
        run_id: The run.
        reason: What `cancel(reason=...)` was given, or what the body's `CancelledError` says; `None` if neither says anything.
        is_terminated: Whether it was ended without its body, so that its clean-up has not run, or not to its end.
    """

    def __init__(
        self, run_id: str, workflow: str, reason: str | None, *, is_terminated: bool = False
    ) -> None:
        how = "terminated" if is_terminated else "cancelled"
        why = "" if reason is None else f": {reason.removesuffix('.')}"
        super().__init__(
            f"Run {run_id} of {workflow} was {how}{why}. `ckworkflow runs show {run_id}` shows its steps."
        )
        self.run_id, self.workflow, self.reason = run_id, workflow, reason
        self.is_terminated = is_terminated


class RunTerminatedError(CkWorkflowError):
    """A run was ended without its body: by `terminate`, or since its clean-up had not ended when its `grace` was over.

    It is never raised: it is the `__cause__` of a `RunCancelledError`, and what `runs show` says of such a run.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(
            f"Run {run_id} was terminated: what its body had still to do, its clean-up too, was not done."
        )
        self.run_id = run_id


class ReturnValueTimeoutError(CkWorkflowError, TimeoutError):
    """The run was still going when the `timeout` of `return_value` passed. The run goes on.

    Attributes:
        run_id: The run.
        seconds: The timeout.
        is_worker_alive: Whether any worker is; `None`: the database has not said so in time.
        held: Why the run is held, if it is.
        has_begun: Whether any of its steps has begun, or the run sleeps.
    """

    def __init__(
        self, run_id: str, seconds: float, *, is_worker_alive: bool | None, held: str | None = None,
        has_begun: bool = True,
    ) -> None:  # fmt: skip
        if is_worker_alive is None:
            why = "The workflow database has not answered in that time."
        elif not is_worker_alive:
            why = "No worker is alive: run `celery -A ckworkflow worker`, or load the bot extension."
        elif held is not None:
            why = f"It is held: {held}"
        else:
            why = "It is still going" if has_begun else "No worker has begun it yet"
            why += f": `ckworkflow runs show {run_id}` says what it waits for."
        super().__init__(f"Run {run_id} has not ended within {seconds:g} s. {why}")
        self.run_id, self.seconds, self.is_worker_alive = run_id, seconds, is_worker_alive
        self.held, self.has_begun = held, has_begun


class ReplayDivergenceError(CkWorkflowError):
    """The body took another path than the one that this run has recorded."""

    def __init__(self, run_id: str, node_id: str, *, recorded: str, traced: str, why: str) -> None:
        super().__init__(
            f"Run {run_id} diverged at node {node_id}: it recorded {recorded}, and the body now calls "
            f"{traced}. {why} Nothing that was recorded is lost."
        )
        self.run_id, self.node_id, self.recorded, self.traced = run_id, node_id, recorded, traced


class BodyAwaitError(CkWorkflowError, RuntimeError):
    """The body of a workflow awaited (or called on its loop) something that is not durable."""

    def __init__(self, what: str, instead: str = "Move it into a @step and await that.") -> None:
        super().__init__(
            f"The body of a workflow may await steps, sleep(), asyncio.gather() and other workflows, and "
            f"this one used {what}. {instead}"
        )
        self.what = what


class BodyStuckError(CkWorkflowError, RuntimeError):
    """The body of a workflow waits for what nothing can bring, or never waits for anything.

    Attributes:
        tasks: Where each of its tasks stands, and what it waits for.
    """

    def __init__(self, what: str, tasks: Sequence[str] = ()) -> None:
        where = f": {'; '.join(tasks)}" if tasks else ""
        super().__init__(
            f"The body of a workflow {what}{where}. It goes on when a step, a sleep or a timer ends, or when it sets or fills itself "
            f"what it waits for."
        )
        self.tasks = tuple(tasks)


class ContinueAsNewError(CkWorkflowError, RuntimeError):
    """`continue_as_new()` was called, and the body did not return what it gives.

    Attributes:
        line: Line of the call in the body's file.
    """

    def __init__(self, line: int) -> None:
        super().__init__(
            f"continue_as_new() (line {line}) does nothing by itself: the body of the workflow must return what it gives. Write "
            f"`return continue_as_new(...)` in the body of the run itself, and in no workflow or task that it awaits."
        )
        self.line = line


class HistoryTooLongError(CkWorkflowError, RuntimeError):
    """A run has had so many events in its present life that its body is not replayed any more.

    Attributes:
        run_id: The run.
        events: How many events it has had.
        limit: How many are allowed: the setting `workflow_history_limit`.
    """

    def __init__(self, run_id: str, events: int, limit: int) -> None:
        super().__init__(
            f"Run {run_id} has had {events:,} events, and is not replayed with more than {limit:,} (workflow_history_limit). Let the body "
            f"return continue_as_new(...) now and then: the run goes on, and its history begins anew."
        )
        self.run_id, self.events, self.limit = run_id, events, limit


class BodyTimeoutError(CkWorkflowError, RuntimeError):
    """The body of a workflow computed or blocked for too long without awaiting anything."""

    def __init__(self, run_id: str, workflow: str, what: str) -> None:
        super().__init__(
            f"The body of run {run_id} ({workflow}) {what}. A body only decides what comes next: move long "
            f"computations and blocking calls into a @step and await that."
        )
        self.run_id, self.workflow, self.what = run_id, workflow, what


class NotAwaitedError(CkWorkflowError, RuntimeError):
    """The body of a workflow called a step, a workflow or `sleep`, and did not await it.

    Attributes:
        what: What was called.
        line: The line of the call in its file.
    """

    def __init__(self, what: str, line: int) -> None:
        super().__init__(
            f"{what} (line {line}) was called but not awaited, so it would never run. Write `await {what}(...)`, "
            f"or give it to asyncio.gather() or asyncio.create_task() and await that."
        )
        self.what, self.line = what, line


class MainModuleError(CkWorkflowError):
    """A workflow or step lives in `__main__`, where no worker can find it."""

    def __init__(self, name: str, file: str | None) -> None:
        super().__init__(
            f"{name!r} is defined in __main__ ({file or 'interactive'}), the script that was started: a "
            f"worker knows that module by another name. Move it to a module of its own (workflows/…), "
            f"name that in `workflow_packages`, and import it from the script."
        )
        self.name, self.file = name, file


class WorkflowModuleError(CkWorkflowError):
    """A module of `workflow_packages` cannot be imported. The others are loaded all the same."""

    def __init__(self, module: str, path: str | None, line: int | None, error: str) -> None:
        where = f"{path}:{line}" if path and line else (path or "no file")
        super().__init__(f"Module {module} ({where}) cannot be imported: {error}")
        self.module, self.path, self.line, self.error = module, path, line, error


class WorkflowNotRegisteredError(CkWorkflowError, LookupError):
    """This process knows no workflow or step of that name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"This process knows no {kind} named {name!r}. If it was renamed or moved, keep its old name: "
            f"@{kind}(name={name!r}). Else check `workflow_packages` in celeryconfig.py, and that this worker runs the "
            f"deploy that has it."
        )
        self.kind, self.name = kind, name


class DatabaseUnavailableError(CkWorkflowError):
    """The workflow database cannot be reached, or cannot do its work at present."""

    def __init__(self, url: str, reason: str, advice: str | None = None) -> None:
        if advice is None:
            problem = "cannot be reached"
            advice = "Check workflow_database_url in celeryconfig.py and that the server runs"
        else:
            problem = "cannot be used"
        super().__init__(f"The workflow database {url} {problem}: {reason}. {advice}.")
        self.url, self.reason, self.advice = url, reason, advice


class SchemaVersionError(CkWorkflowError):
    """The database's schema and this version of ckworkflow do not go together."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"The schema of {url} does not fit this ckworkflow: {reason}")
        self.url, self.reason = url, reason


class MissingTokenError(CkWorkflowError):
    """A step asked for Discord and this worker has no token."""

    def __init__(self) -> None:
        super().__init__(
            "There is no Discord client: set DISCORD_TOKEN in the worker's environment (the token of the "
            "bot, from the Developer Portal) and start the worker again."
        )


class InvalidTokenError(CkWorkflowError):
    """Discord has refused the token."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"Discord refused DISCORD_TOKEN ({reason}). The worker stops before it takes any work; no "
            f"attempt of any step was used. Reset the token in the Developer Portal and start again."
        )
        self.reason = reason


class UnsupportedPoolError(CkWorkflowError):
    """The worker was started with a pool that cannot run workflows."""

    def __init__(self, pool: str) -> None:
        super().__init__(
            f"ckworkflow cannot run on the {pool} pool: its patched sockets and asyncio do not mix. Use "
            f"worker_pool = 'threads' (the default), 'prefork' or 'solo'."
        )
        self.pool = pool


class UnsupportedBrokerError(CkWorkflowError):
    """The configured broker loses messages or cannot carry ours."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"ckworkflow does not run on {url}: {reason}. Leave broker_url out for the embedded default, "
            f"or use redis:// or amqp://."
        )
        self.url, self.reason = url, reason


class InvalidSettingError(CkWorkflowError, ValueError):
    """A setting or an environment variable has a value that cannot be used."""

    def __init__(self, name: str, value: object, reason: str) -> None:
        super().__init__(f"{name} = {show(value)} cannot be used: {reason}.")
        self.name, self.value, self.reason = name, value, reason


class DiscordLibraryError(CkWorkflowError, ImportError):
    """The package `discord` is not a discord.py that ckworkflow can work with."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"ckworkflow needs discord.py 2.5 or newer, and `import discord` gave {found}. Forks install a "
            f"package of the same name: uninstall it (pip uninstall py-cord nextcord), then pip install "
            f'"ckworkflow[discord]".'
        )
        self.found = found


class DiscordLoginError(CkWorkflowError):
    """Discord, or what stands in its place, does not let the worker log in, and not because of the token."""

    def __init__(self, base: str, reason: str) -> None:
        super().__init__(
            f"{base} did not let the worker log in: {reason}. If CKWORKFLOW_DISCORD_API_BASE is set, check that "
            f"it ends in /api/v10 and that the proxy behind it runs."
        )
        self.base, self.reason = base, reason
