"""Answers: what follows from the commit of a transaction about one run, and the one place where it is carried out.

Every transaction that starts, records, continues or recovers a run returns an `Answer`. Nothing in it is lost if the process
dies before it is carried out: SQL says the same, and the clock of some worker finds it.

Not here: letting the body go on (`ckworkflow.engine.advance`), and running a step (the caller's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from ckworkflow.engine.claims import begun

if TYPE_CHECKING:
    from ckworkflow.engine.bodies import Body
    from ckworkflow.engine.claims import Claimed
    from ckworkflow.engine.core import Engine
    from ckworkflow.model import RunId
    from ckworkflow.plan import Piece
    from ckworkflow.store.nodes import NodeRow

__all__ = ["Answer", "MayRun", "carry_out"]

MayRun = Callable[[str], bool]
"""Whether this process runs a step of that name at once, without a message; asked inside a transaction."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows from a commit; by default nothing.

    Attributes:
        pieces: What to publish.
        has_ended: The run has.
        must_advance: The body must go on.
        here: A step that was claimed with the transaction: this process runs it now.
        taken: The same, while its arguments are not decoded yet.
        body: How the run stands with its body, which is kept for the next continuation.
        keeps_chain: Of a record: Celery's own continuation (the rest of the chain, the chord's body) is what comes next.
        is_refused: Of a record: nothing was written, or the node feeds nothing any more. The body is not to hear of it.
        retry_in: Of a record: when the attempt is to be repeated by a message; `None`: not by one.
        stops: Steps that run are to stop.
        children: Runs that the body has started, and of which nothing is known yet.
        must_terminate: The run is to be terminated, in a transaction of its own.
        unclaimed: Of a recovery: the names of steps that were published before, and are again.
    """

    pieces: Sequence[Piece] = ()
    has_ended: bool = False
    must_advance: bool = False
    here: Claimed | None = None
    taken: NodeRow | None = None
    body: Body | None = None
    keeps_chain: bool = False
    is_refused: bool = False
    retry_in: timedelta | None = None
    stops: bool = False
    children: Sequence[RunId] = ()
    must_terminate: bool = False
    unclaimed: Sequence[str] = ()

    def decoded(self, engine: Engine, run_id: RunId, workflow: str) -> Answer:
        """Decode the arguments of the step that was taken: after the commit, since that may run code of the user's.

        However long that takes, the step counts as one that this process runs, or its heartbeat would free it.
        """
        if self.taken is None:
            return self
        node = run_id, self.taken.node_id
        engine.active.add(node)
        try:
            return replace(self, here=begun(run_id, workflow, self.taken), taken=None)
        except BaseException:
            engine.active.discard(node)
            raise

    @property
    def is_only_here(self) -> bool:
        """Whether to run `here` is all that there is to do."""
        return self.here is not None and not (
            self.pieces or self.must_advance or self.has_ended or self.stops or self.children
        )


def carry_out(engine: Engine, run_id: RunId, answer: Answer) -> None:
    """Do what follows from a commit, except to run a step and to let the body go on.

    However long a broker or another run's transaction takes, a step that was taken counts as one that this process runs: its heartbeat would
    free it, and another process run it as well.
    """
    if answer.taken is None:
        _carry_out(engine, run_id, answer)
        return
    node = run_id, answer.taken.node_id
    engine.active.add(node)
    try:
        _carry_out(engine, run_id, answer)
    except BaseException:
        engine.active.discard(node)
        raise


def _carry_out(engine: Engine, run_id: RunId, answer: Answer) -> None:
    if answer.body is not None:
        engine.bodies.keep(run_id, answer.body)
    if answer.has_ended:
        engine.notify(run_id)
    if answer.children or engine.takes_notes(run_id):
        from ckworkflow.engine import notes  # what follows is told by answers again: a circle

        notes.begin(engine, answer.children)
        notes.deliver(engine, run_id)
    engine.publish(run_id, answer.pieces)
    if answer.stops or (answer.has_ended and any(own == run_id for own, _ in engine.active.copy())):
        engine.host.tell_to_stop()
    if answer.unclaimed:
        engine.queue_watch.look(engine, run_id, answer.unclaimed)
