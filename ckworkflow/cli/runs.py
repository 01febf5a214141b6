"""`runs list` and `runs show`: what the database says of runs, as text and JSON.

Not here: reading it (`ckworkflow.inspection`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from ckworkflow import canvas, inspection
from ckworkflow.cli.folding import fold
from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.lookup import full_name
from ckworkflow.cli.printing import say, table, to_json
from ckworkflow.definition import registry
from ckworkflow.drawing import words
from ckworkflow.engine import queues
from ckworkflow.model import NodeKind, NodeStatus, RunId, RunStatus

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.inspection import RunDetails, RunSummary, StepDetails

__all__ = ["runs"]

_RESULT_WIDTH: Final = 80
_SHOWN_IDS: Final = 5
_ID_LENGTH: Final = 32
MOST: Final = 1_000_000


@click.group("runs")
def runs() -> None:
    """Look at runs."""


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
    if run.held_until is not None:
        return f"{run.status.value}, held until {words.moment(run.held_until)}"
    if run.sleeping_until is None:
        return run.status.value
    return f"{run.status.value}, sleeping until {words.moment(run.sleeping_until)}"


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
        yield "No worker is alive: start the bot, or run `celery -A ckworkflow worker`."
    elif not run.status.is_final:
        yield from (f"{queues.advice(*waiting)}." for waiting in shown.unconsumed_queues.items())
    yield ""
    yield from _step_text(shown.steps, is_whole=is_whole)
    traceback = shown.traceback
    if traceback is not None:
        yield ""
        yield from traceback.rstrip().splitlines()


def _header(shown: RunDetails) -> Iterator[tuple[str, str]]:
    run = shown.summary
    yield "run", run.run_id
    yield "workflow", run.workflow
    yield "status", _status(run)
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
    if run.status is RunStatus.COMPLETED:
        yield "output", words.value(shown.return_value)
    if run.failure is not None:
        yield "error", run.failure.line
        yield from (("caused by", cause.line) for cause in run.failure.causes)


def _step_text(steps: Sequence[StepDetails], *, is_whole: bool) -> Iterator[str]:
    if not steps:
        yield "No steps."
        return
    header, *lines = table(
        ("NODE", "STEP", "STATUS", "ATTEMPTS", "STARTED", "TOOK", "DUE", "RESULT"),
        [_cells(step) for step in steps],
    )
    yield header
    yield from lines if is_whole else fold(lines, [step.info for step in steps])


def _cells(step: StepDetails) -> tuple[str, ...]:
    info = step.info
    return (
        info.node_id,
        words.last_part(info.name),
        info.status.value,
        str(info.attempt) if info.kind is NodeKind.STEP else "-",
        words.moment(info.started_at),
        "-" if step.took is None else words.short_span(step.took),
        # Of a node that is recorded it is history.
        "-" if info.status.is_recorded else words.moment(info.due_at),
        words.shorten(_result(step), _RESULT_WIDTH),
    )


def _result(step: StepDetails) -> str:
    """What a step returned, or the last error that it raised."""
    if step.info.status is NodeStatus.COMPLETED and step.info.kind is NodeKind.STEP:
        return words.value(step.result)
    return step.info.error or "-"


# -- JSON ---------------------------------------------------------------------------------------------


def _summary(run: RunSummary) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "workflow": run.workflow,
        "status": run.status.value,
        "sleeping_until": run.sleeping_until,
        "held_until": run.held_until,
        "held": _held(run),
        "error": None if run.failure is None else run.failure.line,
        "wake_at": run.wake_at,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
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
        "result": step.result,
    }
