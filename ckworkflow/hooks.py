"""Hooks: what a running step may ask of its surroundings, and a body of its run.

Not here: how they find it (`ckworkflow.context`).
"""

from ckworkflow.context import (
    CommandKit,
    RunContext,
    StepContext,
    use_client,
    use_commandkit,
    use_run,
    use_step,
)

__all__ = [
    "CommandKit",
    "RunContext",
    "StepContext",
    "use_client",
    "use_commandkit",
    "use_run",
    "use_step",
]
