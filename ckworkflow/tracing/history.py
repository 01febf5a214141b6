"""History: what the database holds of a body's nodes, and whether a replay meets them as they were.

A node that has been claimed or delivered can no longer change its shape. A replay that comes to another one in its place has diverged: the body or
something that it calls was edited, or it is not repeatable. So has one that ends without coming to a node of which the body was told; what has begun and
has not been told may go unmet.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ckworkflow import codec
from ckworkflow.errors import ReplayDivergenceError, UnreadableValueError
from ckworkflow.tracing.deferred import UnresolvableError, project
from ckworkflow.tracing.nodes import Known, Outcome, Payload

if TYPE_CHECKING:
    from ckworkflow.model import Json, NodeId, NodeKind, RunId

logger = logging.getLogger(__name__)


class History:
    """See the module.

    Args:
        run_id: The run, for messages.
        known: The nodes of which a replay must meet those that were delivered.
        is_same_source: Whether the body is the one that recorded them.

    Attributes:
        unmet: Those that the body has not come to.
    """

    def __init__(self, run_id: RunId, known: Mapping[NodeId, Known], *, is_same_source: bool) -> None:
        self._run_id, self._is_same_source = run_id, is_same_source
        self.unmet = dict(known)
        self._outcomes: dict[NodeId, Outcome] = {}

    def note(self, outcomes: Iterable[Outcome | Payload]) -> None:
        """Note what the replay is told: arguments may refer to it."""
        self._outcomes = {each.node_id: each for each in outcomes if isinstance(each, Outcome)}

    def meet(self, node_id: NodeId, kind: NodeKind, name: str, args: Json) -> Known | None:
        """Compare what a body does with the node that is recorded in its place, and return that; `None`: none is.

        Raises:
            ReplayDivergenceError: It is another one, or has other arguments though the source is the same.
            UnreadableValueError: Its arguments cannot be rebuilt here, and the source is the same.
        """
        known = self.unmet.pop(node_id, None)
        if known is None:
            return None
        if (known.kind, known.name) != (kind, name):
            raise self._divergence(node_id, known, name)
        if known.args == args:
            return known
        try:
            if self._plain(known.args) == self._plain(args):
                return known
        except UnresolvableError:
            pass  # a part that a result no longer has: other arguments
        except UnreadableValueError:
            if self._is_same_source:
                raise
        if self._is_same_source:
            raise self._divergence(node_id, known, f"{name} with other arguments")
        logger.warning(
            "run %s: the replayed step %s (%s) has other arguments; its recorded result counts",
            self._run_id, name, node_id,
            extra={"run_id": self._run_id, "node_id": node_id, "step": name},
        )  # fmt: skip
        return known

    def check_met(self, early: Collection[NodeId], *, has_ended: bool) -> None:
        """Check the nodes whose outcome came before the body had come to them: one that was delivered it has met before.

        Args:
            early: Those nodes.
            has_ended: Whether the body has come to its end.

        Raises:
            ReplayDivergenceError: It has not come to one.
        """
        if self.unmet:
            for node_id in early:
                known = self.unmet.get(node_id)
                if known is not None and known.is_delivered:
                    raise self._divergence(node_id, known, "its end" if has_ended else "nothing there")
        else:
            self._outcomes.clear()  # they served to compare arguments with recorded ones

    def _divergence(self, node_id: NodeId, known: Known, traced: str) -> ReplayDivergenceError:
        why = (
            "The workflow was edited while the run was under way. Restore the old order of steps. To change it, add the edited "
            "workflow as a new function with a name= of its own, and keep the old one until its runs have ended."
        )
        if self._is_same_source:
            why = (
                "The workflow's own source is unchanged: a workflow or function that it calls was edited, or the body "
                "is not repeatable (use now(), random() and uuid4() of ckworkflow, and sort what has no order)."
            )
        return ReplayDivergenceError(self._run_id, node_id, recorded=known.name, traced=traced, why=why)

    def _plain(self, args: Json) -> Json:
        """Arguments with every known reference replaced by what it stands for."""

        def known_value(ref: Any) -> object:
            node_id, path = ref
            outcome = self._outcomes.get(node_id)
            if outcome is None:
                return ("unknown", node_id, str(path))
            return project(codec.decode(outcome.output), tuple((kind, key) for kind, key in path))

        return codec.encode(codec.decode(args, ref=known_value), path="args")
