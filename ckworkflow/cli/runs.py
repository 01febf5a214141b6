"""`runs list` and `runs show`: what the database says of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from ckworkflow import canvas, codec
from ckworkflow.cli.folding import fold
from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.lookup import full_name
from ckworkflow.cli.printing import say, table, to_json
from ckworkflow.definition import registry
from ckworkflow.drawing import words
from ckworkflow.engine import failures, holding, queues
from ckworkflow.model import NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.store import nodes as node_store
from ckworkflow.store import processes
from ckworkflow.store import runs as run_store

if TYPE_CHECKING:
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRecord
    from ckworkflow.store.transaction import Transaction

__all__ = ["runs"]

_RESULT_WIDTH: Final = 80
_SHOWN_IDS: Final = 5
_ID_LENGTH: Final = 32
MOST: Final = 1_000_000


@click.group("runs")
def runs() -> None:
    """Look at runs."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """A run with its finer state."""

    record: RunRecord
    sleeping_until: datetime | None
    held_steps: Sequence[holding.StepHold] = ()

    @property
    def held_until(self) -> datetime | None:
        """When the first of what is held of the run is tried again."""
        body = self._held_body
        times = [step.until for step in self.held_steps] + ([] if body is None else [body.until])
        return min(times, default=None)

    @property
    def held(self) -> str | None:
        """Why the run is held."""
        body = self._held_body
        said = [] if body is None else [body.reason]
        if self.held_steps:
            first, *others = self.held_steps
            also = f" {len(others)} more steps are held." if others else ""
            said.append(
                f"Step {words.last_part(first.step)} ({first.node_id}) cannot run: {first.reason}{also}"
            )
        return " ".join(said) or None

    @property
    def _held_body(self) -> holding.Hold | None:
        return None if self.record.status.is_final else holding.read(self.record.held)

    @property
    def status(self) -> str:
        if self.held_until is not None:
            return f"{self.record.status.value}, held until {words.moment(self.held_until)}"
        if self.sleeping_until is None:
            return self.record.status.value
        return f"{self.record.status.value}, sleeping until {words.moment(self.sleeping_until)}"


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

    def read(tx: Transaction) -> list[_Listed]:
        now = engine.database.now(tx)
        records = run_store.list_runs(
            tx, status=None if status is None else RunStatus(status), workflow=name, limit=limit
        )
        return [_listed(tx, record, now) for record in records]

    listed = engine.database.read(read)
    if as_json:
        say(to_json([_summary(one) for one in listed]))
    elif listed:
        rows = [
            (one.record.run_id, one.record.workflow, one.status, words.moment(one.record.created_at))
            for one in listed
        ]
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

    def read(tx: Transaction) -> _Shown:
        now = engine.database.now(tx)
        record = run_store.read_run(tx, _whole_id(tx, run_id))
        rows = node_store.load_nodes(tx, record.run_id).get()
        return _Shown(
            _listed(tx, record, now),
            rows,
            now,
            is_worker_alive=processes.has_live_worker(tx, now=now),
            unconsumed=queues.unconsumed(engine, tx, _waiting(rows, now), queue_of),
            is_whole=is_whole,
        )

    shown = engine.database.read(read)
    say(to_json(_details(shown)) if as_json else "\n".join(_text(shown)))


@dataclass(frozen=True, slots=True)
class _Shown:
    """What `runs show` has read."""

    listed: _Listed
    nodes: list[NodeRow]
    now: datetime
    is_worker_alive: bool
    is_whole: bool
    unconsumed: Mapping[str, Sequence[str]]
    """Queues that no live worker consumes, with the steps that wait in them."""


def _waiting(rows: Iterable[NodeRow], now: datetime) -> list[str]:
    """The steps that somebody could run now."""
    return [
        row.name
        for row in rows
        if row.kind is NodeKind.STEP
        and row.status is NodeStatus.PLANNED
        and not row.unmet
        and (row.due_at is None or row.due_at <= now)
    ]


def _whole_id(tx: Transaction, given: str) -> RunId:
    """Return the only run id that begins like this; what was given, where none does.

    Raises:
        click.ClickException: Several do.
    """
    is_short = given.isalnum() and len(given) < _ID_LENGTH
    found = run_store.find_run_ids(tx, given, limit=_SHOWN_IDS + 1) if is_short else []
    if given in found or not found:
        return RunId(given)
    if len(found) == 1:
        return found[0]
    many = f"more than {_SHOWN_IDS}" if len(found) > _SHOWN_IDS else str(len(found))
    raise click.ClickException(
        f"The ids of {many} runs begin with {given!r}: {', '.join(found[:_SHOWN_IDS])}. Give more of the id."
    )


def _listed(tx: Transaction, record: RunRecord, now: datetime) -> _Listed:
    if record.status.is_final:
        return _Listed(record, None)
    rows = node_store.load_nodes(tx, record.run_id, statuses=node_store.LIVE).get()
    is_running = record.status is RunStatus.RUNNING
    sleeping_until = _sleeping_until(rows, now) if is_running else None
    return _Listed(record, sleeping_until, holding.held_steps(rows))


def _sleeping_until(rows: Iterable[NodeRow], now: datetime) -> datetime | None:
    """Return when the first of a run's sleeps ends, if it does nothing but sleep."""
    ends = []
    for row in rows:
        if row.kind is NodeKind.SLEEP:
            if row.status is NodeStatus.RUNNING and row.due_at is not None and row.due_at > now:
                ends.append(row.due_at)
        elif row.status is NodeStatus.RUNNING or not row.unmet:
            return None
    return min(ends, default=None)


# -- text ---------------------------------------------------------------------------------------------


def _text(shown: _Shown) -> Iterator[str]:
    record = shown.listed.record
    header = [("run", record.run_id), ("workflow", record.workflow), ("status", shown.listed.status)]
    header += [
        ("input", words.call(record.workflow, codec.loads(record.input))),
        ("created", words.moment(record.created_at)),
        ("started", words.moment(record.started_at)),
    ]
    if record.finished_at is not None:
        header.append(("finished", words.moment(record.finished_at)))
    if record.wake_at is not None:
        header.append(
            (
                "next wake",
                f"{words.moment(record.wake_at)} ({words.relative(record.wake_at, shown.now)})",
            )
        )
    if shown.listed.held is not None:
        header.append(("held", shown.listed.held))
    if record.status is RunStatus.COMPLETED:
        header.append(("output", words.value(codec.loads(record.output or "null"))))
    error = _failure(record)
    if error is not None:
        header += [("error", _one_line(error)), *(("caused by", _one_line(e)) for e in _causes(error))]
    yield from (f"{name.ljust(9)}  {value}" for name, value in header)
    if not record.status.is_final and not shown.is_worker_alive:
        yield "No worker is alive: start the bot, or run `celery -A ckworkflow worker`."
    elif not record.status.is_final:
        yield from (f"{queues.advice(queue, steps)}." for queue, steps in shown.unconsumed.items())
    yield ""
    yield from _node_text(shown.nodes, is_whole=shown.is_whole)
    if error is not None:
        yield from _traceback_text(error, shown.nodes)


def _node_text(rows: Sequence[NodeRow], *, is_whole: bool) -> Iterator[str]:
    if not rows:
        yield "No steps."
        return
    header, *lines = table(
        ("NODE", "STEP", "STATUS", "ATTEMPTS", "STARTED", "TOOK", "DUE", "RESULT"),
        [
            (
                row.node_id,
                words.last_part(row.name),
                row.status.value,
                str(row.attempt) if row.kind is NodeKind.STEP else "-",
                words.moment(row.started_at),
                _took(row),
                # Of a node that is recorded it is history.
                "-" if row.status.is_recorded else words.moment(row.due_at),
                words.shorten(_result(row), _RESULT_WIDTH),
            )
            for row in rows
        ],
    )
    yield header
    yield from lines if is_whole else fold(lines, rows)


def _took(row: NodeRow) -> str:
    """How long the last attempt took, or the sleep."""
    if row.started_at is None or row.finished_at is None:
        return "-"
    return words.short_span(row.finished_at - row.started_at)


def _result(row: NodeRow) -> str:
    """What a step returned, or the last error that it raised."""
    if row.status is NodeStatus.COMPLETED and row.kind is NodeKind.STEP:
        return words.value(codec.loads(row.output or "null"))
    return failures.one_line(row.error) or "-"


def _failure(record: RunRecord) -> Mapping[str, Any] | None:
    if record.error is None:
        return None
    data = codec.loads(record.error)
    return data if isinstance(data, Mapping) else {"message": str(data)}


def _causes(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    cause = error.get("cause")
    while isinstance(cause, Mapping):
        yield cause
        cause = cause.get("cause")


def _one_line(error: Mapping[str, Any]) -> str:
    return failures.one_line(codec.dumps(error)) or ""


def _traceback_text(error: Mapping[str, Any], rows: Iterable[NodeRow]) -> Iterator[str]:
    """Give the traceback nearest to the code that failed: that of the innermost cause.

    An error that the body got from a step was rebuilt without frames; the step's own record has them.
    """
    same = [
        codec.loads(row.error)
        for row in rows
        if row.error and failures.one_line(row.error) == _one_line(error)
    ]
    chain = [
        found
        for first in (error, *same)
        if isinstance(first, Mapping)
        for found in (first, *_causes(first))
    ]
    for found in reversed(chain):
        text = found.get("traceback")
        if isinstance(text, str) and "\n  File " in text:
            yield ""
            yield from text.rstrip().splitlines()
            return


# -- JSON ---------------------------------------------------------------------------------------------


def _summary(listed: _Listed) -> dict[str, Any]:
    record = listed.record
    return {
        "run_id": record.run_id,
        "workflow": record.workflow,
        "status": record.status.value,
        "sleeping_until": listed.sleeping_until,
        "held_until": listed.held_until,
        "held": listed.held,
        "error": failures.one_line(record.error),
        "wake_at": record.wake_at,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def _details(shown: _Shown) -> dict[str, Any]:
    record = shown.listed.record
    return {
        **_summary(shown.listed),
        "input": codec.loads(record.input),
        "return_value": None if record.output is None else codec.loads(record.output),
        "failure": _failure(record),
        "unconsumed_queues": {} if record.status.is_final else dict(shown.unconsumed),
        "steps": [
            {
                "node_id": row.node_id,
                "kind": row.kind.value,
                "name": row.name,
                "status": row.status.value,
                "attempt": row.attempt,
                "due_at": row.due_at,
                "started_at": row.started_at,
                "finished_at": row.finished_at,
                "error": failures.one_line(row.error),
                "result": None if row.output is None else codec.loads(row.output),
            }
            for row in shown.nodes
        ],
    }
