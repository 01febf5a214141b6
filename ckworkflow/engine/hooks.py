"""Hooks of a body: writing what it has done with them, in the transaction of its continuation.

Not here: sending (`ckworkflow.engine.resume`), and the rows (`ckworkflow.store.hooks`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ckworkflow.store import hooks, plans

if TYPE_CHECKING:
    from ckworkflow.store.runs import RunRow
    from ckworkflow.store.transaction import Transaction
    from ckworkflow.tracing import Trace

__all__ = ["write_hooks"]


def write_hooks(
    tx: Transaction, run: RunRow, trace: Trace, values: dict[str, Any], *, told: int
) -> RunRow:
    """Write what a body has done with its hooks; return the run with it.

    Args:
        tx: A transaction that has locked the run, and of it alone if hooks are made or closed.
        run: The run.
        trace: What the body came to.
        values: Columns of the run that are to be written.
        told: How many events the body has got.

    Raises:
        TokenTakenError: A hook cannot be made. Commit nothing.
    """
    found = trace.hooks
    if found.changes:
        hooks.change(tx, run, found.changes, positions={run.life: plans.first_position(run.epoch, told)})
    if found.taken:
        hooks.take(tx, run.run_id, found.taken)
    if found.secret is not None:
        values["secret"] = found.secret
    if found.makes_hooks and not run.has_hooks:
        values["untold_payloads"] = 0
        return run._replace(untold_payloads=0)
    return run
