"""Inspection: what a run looks like to somebody who asks, whoever that is: the bot's code, the command line.

Reads and changes nothing. What is read is frozen, and no text for a terminal.

Not here: how it is printed (`ckworkflow.cli.runs`), and waiting for the end of a run (`ckworkflow.engine.outcomes`).
"""

from ckworkflow.inspection.failure import Failure
from ckworkflow.inspection.reading import (
    find_run_ids,
    read_details,
    read_status,
    read_steps,
    read_summaries,
)
from ckworkflow.inspection.run import OpenHook, RunDetails, RunSummary, StepDetails

__all__ = [
    "Failure",
    "OpenHook",
    "RunDetails",
    "RunSummary",
    "StepDetails",
    "find_run_ids",
    "read_details",
    "read_status",
    "read_steps",
    "read_summaries",
]
