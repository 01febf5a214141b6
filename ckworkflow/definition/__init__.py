"""Definitions: `@workflow`, `@step`, the registry that knows them by name, and how they are found.

Not here: what a body may call besides (`ckworkflow.body`), and how it is rewritten (`ckworkflow.compiler`).
"""

from ckworkflow.definition.callables import Step, SyncStep, Workflow, classify, step, workflow
from ckworkflow.definition.discovery import discover
from ckworkflow.definition.options import StepKeywords, StepOptions
from ckworkflow.definition.registration import Registry, check_main, registry

__all__ = [
    "Registry",
    "Step",
    "StepKeywords",
    "StepOptions",
    "SyncStep",
    "Workflow",
    "check_main",
    "classify",
    "discover",
    "registry",
    "step",
    "workflow",
]
