"""`runs list` and `runs show`: what the database says of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from ckworkflow import codec
from ckworkflow.cli import words
from ckworkflow.cli.home import Home, pass_home
from ckworkflow.cli.lookup import full_name
from ckworkflow.engine import failures, spinning
from ckworkflow.model import NodeKind, NodeStatus, RunId, RunStatus
from ckworkflow.store import nodes as node_store
from ckworkflow.store import processes
from ckworkflow.store import runs as run_store

if TYPE_CHECKING:
    from ckworkflow.store.nodes import NodeRow
    from ckworkflow.store.runs import RunRecord
    from ckworkflow.store.transaction import Transaction

__all__ = ["runs"]

_ERROR_WIDTH: Final = 80


@click.group("runs")
def runs() -> None:
    """Look at runs."""


@dataclass(frozen=True, slots=True)
class _Listed:
    """A run with its finer state."""

    record: RunRecord
    sleeping_until: datetime | None

    @property
    def hold(self) -> spinning.Hold | None:
        return None if self.record.status.is_final else spinning.read(self.record.held)

    @property
    def status(self) -> str:
        if self.hold is not None:
            return f"{self.record.status.value}, held until {words.moment(self.hold.until)}"
        if self.sleeping_until is None:
            return self.record.status.value
        return f"{self.record.status.value}, sleeping until {words.moment(self.sleeping_until)}"


@runs.command("list")
@click.option("--status", type=click.Choice([status.value for status in RunStatus]), help="Only these.")
@click.option(
    "--workflow", metavar="NAME", help="Only those of one workflow: full name, or the last part."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, at most."
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
        return [_Listed(record, _sleeping_until(tx, record, now)) for record in records]

    listed = engine.database.read(read)
    if as_json:
        click.echo(words.to_json([_summary(one) for one in listed]))
    elif listed:
        rows = [
            (one.record.run_id, one.record.workflow, one.status, words.moment(one.record.created_at))
            for one in listed
        ]
        click.echo("\n".join(words.table(("RUN", "WORKFLOW", "STATUS", "CREATED"), rows)))
    else:
        only = " like that" if status or workflow else ""
        click.echo(f"There are no runs{only} in {engine.database.url}.")


@runs.command("show")
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="Print it for programs.")
@pass_home
def show(home: Home, run_id: str, as_json: bool) -> None:
    """Show one run: how it stands, what it got and gave, and its steps, those to come included."""
    engine = home.engine

    def read(tx: Transaction) -> _Shown:
        now = engine.database.now(tx)
        record = run_store.read_run(tx, RunId(run_id))
        return _Shown(
            _Listed(record, _sleeping_until(tx, record, now)),
            node_store.load_nodes(tx, record.run_id),
            now,
            is_worker_alive=processes.has_live_worker(tx, now=now),
        )

    shown = engine.database.read(read)
    click.echo(words.to_json(_details(shown)) if as_json else "\n".join(_text(shown)))


@dataclass(frozen=True, slots=True)
class _Shown:
    """What `runs show` has read."""

    listed: _Listed
    nodes: list[NodeRow]
    now: datetime
    is_worker_alive: bool


def _sleeping_until(tx: Transaction, record: RunRecord, now: datetime) -> datetime | None:
    """Return when the first of a run's sleeps ends, if it does nothing but sleep."""
    if record.status is not RunStatus.RUNNING:
        return None
    ends = []
    for row in node_store.load_nodes(tx, record.run_id, statuses=node_store.LIVE):
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
    if shown.listed.hold is not None:
        header.append(("held", shown.listed.hold.reason))
    if record.status is RunStatus.COMPLETED:
        header.append(("output", words.value(codec.loads(record.output or "null"))))
    error = _failure(record)
    if error is not None:
        header += [("error", _one_line(error)), *(("caused by", _one_line(e)) for e in _causes(error))]
    yield from (f"{name.ljust(9)}  {value}" for name, value in header)
    if not record.status.is_final and not shown.is_worker_alive:
        yield "No worker is alive: start the bot, or run `celery -A ckworkflow worker`."
    yield ""
    yield from _node_text(shown.nodes)
    if error is not None:
        yield from _traceback_text(error, shown.nodes)


def _node_text(rows: Sequence[NodeRow]) -> Iterator[str]:
    if not rows:
        yield "No steps."
        return
    yield from words.table(
        ("NODE", "STEP", "STATUS", "ATTEMPTS", "DUE", "ERROR"),
        [
            (
                row.node_id,
                words.last_part(row.name),
                row.status.value,
                str(row.attempt) if row.kind is NodeKind.STEP else "-",
                # Of a node that is recorded it is history.
                "-" if row.status.is_recorded else words.moment(row.due_at),
                words.shorten(failures.one_line(row.error) or "-", _ERROR_WIDTH),
            )
            for row in rows
        ],
    )


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
    record, hold = listed.record, listed.hold
    return {
        "run_id": record.run_id,
        "workflow": record.workflow,
        "status": record.status.value,
        "sleeping_until": listed.sleeping_until,
        "held_until": None if hold is None else hold.until,
        "held": None if hold is None else hold.reason,
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
            }
            for row in shown.nodes
        ],
    }
