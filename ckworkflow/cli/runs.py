"""`runs list` and `runs show`: what the database says of runs, as text and JSON. `runs cancel` ends them.

Not here: reading it (`ckworkflow.inspection`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from ckworkflow import canvas, inspection
from ckworkflow.cli.folding import fold
from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.lookup import full_name, unknown_workflow
from ckworkflow.cli.printing import say, table, to_json
from ckworkflow.client import cancel_runs_sync, get_run_sync
from ckworkflow.definition import registry
from ckworkflow.drawing import words
from ckworkflow.duration import parse_span
from ckworkflow.engine import queues
from ckworkflow.engine.wording import counted
from ckworkflow.errors import CkWorkflowError, InvalidDurationError, WorkflowNotRegisteredError
from ckworkflow.model import NodeKind, NodeStatus, RunId, RunStatus, hook_in_words

if TYPE_CHECKING:
    from datetime import timedelta

    from ckworkflow.engine.core import Engine
    from ckworkflow.inspection import OpenHook, RunDetails, RunSummary, StepDetails
    from ckworkflow.model import StepInfo

__all__ = ["runs"]

_RESULT_WIDTH: Final = 80
_SHOWN_IDS: Final = 5
_ID_LENGTH: Final = 32
MOST: Final = 1_000_000
_NO_WORKER: Final = "No worker is alive: start the bot, or run `celery -A ckworkflow worker`."


@click.group("runs")
def runs() -> None:
    """Look at runs, and end them."""


@runs.command("list")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only these.")
@click.option(
    "--workflow", metavar="NAME", help="Only those of one workflow: full name, or the last part."
)
@click.option(
    "--limit", type=click.IntRange(1, MOST), default=50, show_default=True, help="How many, at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print them for programs.")
@pass_home
def list_(home: Home, status: str | None, workflow: str | None, limit: int, as_json: bool) -> None:
    """List runs, the newest first."""
    engine = home.engine
    name = None if workflow is None else full_name(home, workflow)
    listed = inspection.read_summaries(
        engine, status=None if status is None else RunStatus(status), workflow=name, limit=limit
    )
    if as_json:
        say(to_json([_summary(run) for run in listed]))
    elif listed:
        rows = [(run.run_id, run.workflow, _status(run), words.moment(run.created_at)) for run in listed]
        say("\n".join(table(("RUN", "WORKFLOW", "STATUS", "CREATED"), rows)))
    else:
        only = " like that" if status or workflow else ""
        say(f"There are no runs{only} in {engine.database.url}.")


@runs.command("show")
@click.argument("run_id")
@click.option("--all", "is_whole", is_flag=True, help="Every step of a long run, none folded.")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@pass_home
def show(home: Home, run_id: str, is_whole: bool, as_json: bool) -> None:
    """Show one run: how it stands, what it got and gave, and its steps, those to come included.

    RUN_ID may be cut short, as long as only one run begins like that.
    """
    engine = home.engine
    home.load_workflows()  # for the queues that steps name

    def queue_of(name: str) -> str | None:
        return canvas.queue_of(home.app, name) if name in registry.steps else None

    shown = inspection.read_details(engine, _whole_id(engine, run_id), queue_of=queue_of)
    say(to_json(_details(shown)) if as_json else "\n".join(_text(shown, is_whole=is_whole)))


@runs.command("cancel")
@click.argument("run_ids", metavar="[RUN_ID]...", nargs=-1)
@click.option("--workflow", metavar="NAME", help="All live runs of one workflow, in place of RUN_ID.")
@click.option("--reason", metavar="TEXT", help="Why: runs show it, and their bodies are told.")
@click.option("--grace", metavar="SPAN", help="Terminate what has not ended by then: '1 minute'.")
@click.option("--terminate", "is_now", is_flag=True, help="End it now, without its clean-up.")
@pass_home
def cancel(
    home: Home, run_ids: tuple[str, ...], workflow: str | None, reason: str | None, grace: str | None, is_now: bool
) -> None:  # fmt: skip
    """Ask runs to end. Their bodies clean up first; what was planned before does not begin any more.

    RUN_ID may be cut short, as long as only one run begins like that.
    """
    if bool(run_ids) == (workflow is not None):
        raise click.UsageError("Give the ids of runs, or --workflow.")
    if is_now and workflow is not None:
        raise click.UsageError(
            "--terminate goes with RUN_ID; a short --grace does the same for all runs."
        )
    if is_now and grace is not None:
        raise click.UsageError("--terminate ends a run now, and --grace later: give one of them.")
    span = _span(grace)
    home.load_workflows()  # whose bodies are told here, at once
    if workflow is not None:
        name = full_name(home, workflow)
        try:
            say(f"{counted(cancel_runs_sync(name, reason=reason, grace=span), 'run')} asked to end.")
        except WorkflowNotRegisteredError:
            raise unknown_workflow(home, workflow) from None
        return
    unknown = []
    for given in run_ids:
        try:
            say(_end(home, given, reason=reason, grace=span, is_now=is_now))
        except CkWorkflowError as error:
            unknown.append(str(error))
    if unknown:
        raise click.ClickException("\n".join(unknown))


def _end(
    home: Home, given: str, *, reason: str | None, grace: timedelta | None, is_now: bool
) -> str:  # fmt: skip
    """Ask a run to end, or end it, and say what has come of it."""
    run = get_run_sync(_whole_id(home.engine, given))
    before = inspection.read_details(home.engine, run.run_id, queue_of=lambda _: None).summary
    if not (run.terminate(reason=reason) if is_now else run.cancel(reason=reason, grace=grace)):
        return f"Run {run.run_id} had ended already: {run.status()}."
    status = run.status()
    if status is RunStatus.CANCELLED:
        return f"Run {run.run_id} is cancelled."
    if status.is_final:
        return f"Run {run.run_id} was asked to end, and its body has chosen how: {status}."
    asked = "was asked to end" if before.cancel_requested_at is None else "had been asked to end already"
    alive = "" if queues.is_worker_alive(home.engine) else f" {_NO_WORKER}"
    return f"Run {run.run_id} {asked}, and cleans up. `ckworkflow runs show {run.run_id}` says how far it is.{alive}"


def _span(text: str | None) -> timedelta | None:
    try:
        return None if text is None else parse_span(text)
    except InvalidDurationError as error:
        msg = f"{text!r} is no time span: {error.reason}. Write '30s' or '1 minute'."
        raise click.BadParameter(msg, param_hint="--grace") from None


def _whole_id(engine: Engine, given: str) -> RunId:
    """Return the only run id that begins like this; what was given, where none does.

    Raises:
        click.ClickException: Several do.
    """
    is_short = given.isalnum() and len(given) < _ID_LENGTH
    found = inspection.find_run_ids(engine, given, limit=_SHOWN_IDS + 1) if is_short else []
    if given in found or not found:
        return RunId(given)
    if len(found) == 1:
        return found[0]
    many = f"more than {_SHOWN_IDS}" if len(found) > _SHOWN_IDS else str(len(found))
    raise click.ClickException(
        f"The ids of {many} runs begin with {given!r}: {', '.join(found[:_SHOWN_IDS])}. Give more of the id."
    )


# -- text ---------------------------------------------------------------------------------------------


def _status(run: RunSummary) -> str:
    if run.cancel_requested_at is not None and not run.status.is_final:
        return f"{run.status.value}, to be cancelled"
    if run.held_until is not None:
        return f"{run.status.value}, held until {words.moment(run.held_until)}"
    if run.is_idle and run.open_hooks:
        until = run.sleeping_until
        ends = "" if until is None else f" until {words.moment(until)}"
        return f"{run.status.value}, waiting for {_hook_names(run)}{ends}"
    if run.sleeping_until is None:
        return run.status.value
    return f"{run.status.value}, sleeping until {words.moment(run.sleeping_until)}"


def _hook_names(run: RunSummary) -> str:
    return ", ".join(dict.fromkeys(hook_in_words(hook.name) for hook in run.open_hooks))


def _held(run: RunSummary) -> str | None:
    """Say why a run is held."""
    said = [] if run.held_body is None else [run.held_body.reason]
    if run.held_steps:
        first, *others = run.held_steps
        also = f" {len(others)} more steps are held." if others else ""
        said.append(
            f"Step {words.last_part(first.step)} ({first.node_id}) cannot run: {first.reason}{also}"
        )
    return " ".join(said) or None


def _text(shown: RunDetails, *, is_whole: bool) -> Iterator[str]:
    run = shown.summary
    yield from (f"{name.ljust(9)}  {value}" for name, value in _header(shown))
    if not run.status.is_final and not shown.is_worker_alive:
        yield _NO_WORKER
    elif not run.status.is_final:
        yield from (f"{queues.advice(*waiting)}." for waiting in shown.unconsumed_queues.items())
    yield ""
    open_hooks = {hook.node_id for hook in shown.summary.open_hooks}
    yield from _step_text(shown.steps, open_hooks, is_whole=is_whole)
    traceback = shown.traceback
    if traceback is not None and not _is_as_asked(run):
        yield ""
        yield from traceback.rstrip().splitlines()


def _is_as_asked(run: RunSummary) -> bool:
    """Whether a run has ended with the cancellation that somebody has asked for, and with nothing to be told beside that."""
    is_cancelled = run.status is RunStatus.CANCELLED and run.cancel_requested_at is not None
    kind = "" if run.failure is None else str(run.failure.data.get("type"))
    return is_cancelled and kind.rpartition(":")[2] == "CancelledError"


def _header(shown: RunDetails) -> Iterator[tuple[str, str]]:
    run = shown.summary
    yield "run", run.run_id
    yield "workflow", run.workflow
    yield "status", _status(run)
    if run.life:
        yield "life", f"{run.life}, of which this is the input and these are the steps"
    yield "input", words.call(run.workflow, shown.input)
    yield "created", words.moment(run.created_at)
    yield "started", words.moment(run.started_at)
    if run.finished_at is not None:
        yield "finished", words.moment(run.finished_at)
    if run.wake_at is not None:
        relative = words.relative(run.wake_at, shown.read_at)
        yield "next wake", f"{words.moment(run.wake_at)} ({relative})"
    held = _held(run)
    if held is not None:
        yield "held", held
    if run.cancel_requested_at is not None:
        reason = "" if run.cancel_reason is None else f": {' '.join(run.cancel_reason.split())}"
        yield "cancel", f"asked at {words.moment(run.cancel_requested_at)}{reason}"
    if run.terminate_at is not None and not run.status.is_final:
        relative = words.relative(run.terminate_at, shown.read_at)
        yield "terminate", f"{words.moment(run.terminate_at)} ({relative})"
    if run.status is RunStatus.COMPLETED:
        yield "output", words.value(shown.return_value)
    if run.failure is not None and not _is_as_asked(run):
        yield "error", run.failure.line
        yield from (("caused by", cause.line) for cause in run.failure.causes)


def _step_text(
    steps: Sequence[StepDetails], open_hooks: Container[str], *, is_whole: bool
) -> Iterator[str]:
    if not steps:
        yield "No steps."
        return
    header, *lines = table(
        ("NODE", "STEP", "STATUS", "ATTEMPTS", "STARTED", "TOOK", "DUE", "RESULT"),
        [_cells(step, open_hooks) for step in steps],
    )
    yield header
    yield from lines if is_whole else fold(lines, [step.info for step in steps])


def _cells(step: StepDetails, open_hooks: Container[str]) -> tuple[str, ...]:
    info = step.info
    return (
        info.node_id,
        ("cancel " if info.kind is NodeKind.CANCEL else "") + words.last_part(info.name),
        _step_status(info, is_open=info.node_id in open_hooks),
        str(info.attempt) if info.kind is NodeKind.STEP else "-",
        words.moment(info.started_at),
        "-" if step.took is None else words.short_span(step.took),
        # Of a node that is recorded, or let go of, it is history.
        words.moment(info.due_at)
        if info.status in (NodeStatus.PLANNED, NodeStatus.RUNNING) or info.node_id in open_hooks
        else "-",
        words.shorten(_result(step), _RESULT_WIDTH),
    )


def _step_status(info: StepInfo, *, is_open: bool) -> str:
    """The state of a node; of a step that was told to stop, whether it has, and of a hook, whether it is open."""
    if info.kind is NodeKind.HOOK and info.status is NodeStatus.COMPLETED:
        return "open" if is_open else "closed"
    if info.cancelled_at is None:
        return info.status.value
    return "stopping" if info.finished_at is None else "stopped"


def _result(step: StepDetails) -> str:
    """What a step returned, or the last error that it raised."""
    is_returned = step.info.finished_at is not None and step.info.error is None
    if is_returned and step.info.kind in (NodeKind.STEP, NodeKind.CHILD):
        return words.value(step.result)
    if step.info.child_run_id is not None and step.info.error is None:
        return f"run {step.info.child_run_id}"
    return step.info.error or "-"


# -- JSON ---------------------------------------------------------------------------------------------


def _summary(run: RunSummary) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "workflow": run.workflow,
        "status": run.status.value,
        "sleeping_until": run.sleeping_until,
        "open_hooks": [_hook(hook) for hook in run.open_hooks],
        "held_until": run.held_until,
        "held": _held(run),
        "error": None if run.failure is None else run.failure.line,
        "cancel_requested_at": run.cancel_requested_at,
        "cancel_reason": run.cancel_reason,
        "terminate_at": run.terminate_at,
        "life": run.life,
        "wake_at": run.wake_at,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
    }


def _hook(hook: OpenHook) -> dict[str, Any]:
    return {
        "node_id": hook.node_id,
        "name": hook.name,
        "metadata": hook.metadata,
        "created_at": hook.created_at,
        "expires_at": hook.expires_at,
    }


def _details(shown: RunDetails) -> dict[str, Any]:
    failure = shown.summary.failure
    return {
        **_summary(shown.summary),
        "input": shown.input,
        "return_value": shown.return_value,
        "failure": None if failure is None else failure.data,
        "unconsumed_queues": shown.unconsumed_queues,
        "steps": [_step(step) for step in shown.steps],
    }


def _step(step: StepDetails) -> dict[str, Any]:
    info = step.info
    return {
        "node_id": info.node_id,
        "kind": info.kind.value,
        "name": info.name,
        "status": info.status.value,
        "attempt": info.attempt,
        "due_at": info.due_at,
        "started_at": info.started_at,
        "finished_at": info.finished_at,
        "error": info.error,
        "cancelled_at": info.cancelled_at,
        "child_run_id": info.child_run_id,
        "result": step.result,
    }
