"""The step of a node: as it is registered here, with the options of the call that planned it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from ckworkflow import codec
from ckworkflow.definition import Step, registry
from ckworkflow.model import CALL_OPTIONS

if TYPE_CHECKING:
    from ckworkflow.store.nodes import NodeRow

__all__ = ["find_step", "step_of", "with_options_of"]

_MARK: Final = f'"{CALL_OPTIONS}":'


def step_of(row: NodeRow) -> Step[..., Any]:
    """Return the step of a node.

    Raises:
        WorkflowNotRegisteredError: This process knows none of that name.
    """
    return with_options_of(registry.require_step(row.name), row.args)


def find_step(row: NodeRow) -> Step[..., Any] | None:
    """Return the step of a node; `None` if this process knows none of that name."""
    step = registry.steps.get(row.name)
    return None if step is None else with_options_of(step, row.args)


def with_options_of(step: Step[..., Any], args: str | None) -> Step[..., Any]:
    """Return a step with the options that a call of it has stored with its arguments, if any."""
    if args is None or _MARK not in args:
        return step
    tree = codec.loads(args)
    options = tree.get(CALL_OPTIONS) if isinstance(tree, dict) else None
    return step if options is None else _with_options(step, codec.dumps(options))


@functools.lru_cache(maxsize=256)  # each attempt asks several times
def _with_options(step: Step[..., Any], options: str) -> Step[..., Any]:
    return step.with_options(**codec.decode(codec.loads(options)))
