"""Tracing: the deterministic loop, deferred values and replay (pure)."""

from ckworkflow.tracing import ops
from ckworkflow.tracing.calls import Call, GatherCall, NodeCall, WorkflowCall
from ckworkflow.tracing.deferred import Deferred, UnresolvableError, project, reference
from ckworkflow.tracing.nodes import End, Known, Outcome, Trace, TracedNode, Wait
from ckworkflow.tracing.ops import current, recognise
from ckworkflow.tracing.tracer import ReplayNeededError, Tracer, holds_part

__all__ = [
    "Call",
    "Deferred",
    "End",
    "GatherCall",
    "Known",
    "NodeCall",
    "Outcome",
    "ReplayNeededError",
    "Trace",
    "TracedNode",
    "Tracer",
    "UnresolvableError",
    "Wait",
    "WorkflowCall",
    "current",
    "holds_part",
    "ops",
    "project",
    "recognise",
    "reference",
]
