"""Notes: a run tells its parent that it has ended, its children that they are to be cancelled, and asks those of earlier lives for their end.

Whoever commits a note delivers it at once, in a transaction of the receiver alone; then it is crossed out, in one of the sender.

Crash windows: before the commit there is no note; after it the sender has a `wake_at`, also if it has ended, and a clock delivers. Delivered and not
crossed out: it is delivered again, which does nothing, since the node has its end, or the run its request. A receiver that is gone, or has
ended, is told nothing.

Not here: the rows (`ckworkflow.store.notes`), and when a note is left (`ckworkflow.engine.children`, `Engine.finish`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ckworkflow.engine import attempts, cancellation, failures, outcomes
from ckworkflow.engine.advance import advance, go_on_here
from ckworkflow.engine.answer import Answer
from ckworkflow.errors import DatabaseUnavailableError, RunNotFoundError
from ckworkflow.model import Ending, RunStatus
from ckworkflow.store import notes, records, runs
from ckworkflow.store.notes import Note, NoteKind
from ckworkflow.store.records import Followup

if TYPE_CHECKING:
    from ckworkflow.engine.core import Engine
    from ckworkflow.model import NodeId, RunId
    from ckworkflow.store.transaction import Transaction

__all__ = ["begin", "deliver"]

logger = logging.getLogger(__name__)


def begin(engine: Engine, children: Sequence[RunId]) -> None:
    """Begin runs of which nothing is known yet: the clock of this process does it, or, where it has none, this thread."""
    if children and engine.has_clock:
        engine.wake_at(engine.database.about_now())
        return
    for run_id in children:
        try:
            advance(engine, run_id)
        except (RunNotFoundError, DatabaseUnavailableError):  # a clock of another process does it
            return


def deliver(engine: Engine, run_id: RunId) -> None:
    """Deliver what a run has to tell; what cannot be delivered now, a clock delivers."""
    try:
        for note in engine.database.read(lambda tx: notes.notes_of(tx, run_id)):
            _deliver(engine, run_id, note)
            engine.database.transact_run(run_id, partial(_cross_out, engine, run_id=run_id, note=note))
    except RunNotFoundError:  # deleted meanwhile: so it was delivered
        return
    except DatabaseUnavailableError as error:
        logger.warning(
            "run %s: what it has to tell is told later: %s", run_id, error, extra={"run_id": run_id}
        )
    except Exception:  # the others that are looked at are not to blame; a clock tries again
        logger.exception("run %s: what it has to tell cannot be told", run_id, extra={"run_id": run_id})


def _deliver(engine: Engine, sender: RunId, note: Note) -> None:
    try:
        if note.kind is NoteKind.CANCEL:
            cancellation.cancel(engine, note.receiver, reason=note.reason, grace=note.grace)
        elif note.kind is NoteKind.AWAIT:
            _tell_end(engine, note.receiver, sender, note.node_id)
        else:
            _tell_end(engine, sender, note.receiver, note.node_id)
    except RunNotFoundError:  # nobody is there to be told
        return


def _tell_end(engine: Engine, child: RunId, parent: RunId, place: NodeId) -> None:
    """Record at a place in a run that another has ended, if it has, and let that run go on.

    Who asks for an end needs no note of the child's: one that has not ended by now finds who waits for it when it ends, since that is committed.
    """
    found = _ending_of(engine, child)
    if found is None:
        return
    ending, error = found
    text = None if error is None else failures.dumps(error)

    def work(tx: Transaction) -> tuple[Answer, str]:
        run = runs.lock_run(tx, parent, engine.database).get()
        followup = Followup()
        if run.status.is_final or not records.finish_child(tx, run, place, ending, text, followup):
            return Answer(), run.workflow
        return attempts.finish_record(engine, tx, run, followup), run.workflow

    answer, workflow = engine.database.transact_run(parent, work)
    go_on_here(engine, parent, workflow, answer)


def _ending_of(engine: Engine, child: RunId) -> tuple[Ending, Exception | None] | None:
    """How a run has ended, and what is raised where its result is awaited; `None` while it has not."""
    try:
        found = engine.database.read(lambda tx: runs.read_ending(tx, child))
    except RunNotFoundError as gone:  # retention has deleted it, after its end
        return Ending(RunStatus.FAILED), gone
    if not found.status.is_final:
        return None
    return Ending(found.status, found.output, found.error), outcomes.error_of(found)


def _cross_out(engine: Engine, tx: Transaction, *, run_id: RunId, note: Note) -> None:
    notes.cross_out(tx, runs.lock_run(tx, run_id, engine.database).get(), note)
