"""Tracing: the deterministic loop, deferred values and replay (pure)."""

from ckworkflow.tracing import ops
from ckworkflow.tracing.calls import Call, GatherCall, NodeCall, WorkflowCall
from ckworkflow.tracing.deferred import Deferred, UnresolvableError, holds_part, project, reference
from ckworkflow.tracing.nodes import End, Known, Outcome, Trace, TracedNode, Wait
from ckworkflow.tracing.ops import current, recognise
from ckworkflow.tracing.tracer import ReplayNeededError, Tracer

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
