"""Tracing: the deterministic loop, deferred values and replay (pure)."""

from ckworkflow.tracing import ops
from ckworkflow.tracing.calls import Call, GatherCall, NodeCall, WorkflowCall
from ckworkflow.tracing.children import Child
from ckworkflow.tracing.deferred import Deferred, UnresolvableError, holds_part, project, reference
from ckworkflow.tracing.hooks import Hook, Webhook
from ckworkflow.tracing.nodes import (
    AwaitedChild,
    CancelledChild,
    ClosedHook,
    End,
    HookChange,
    HookChanges,
    Known,
    MadeHook,
    Outcome,
    Payload,
    Trace,
    TracedNode,
    Wait,
)
from ckworkflow.tracing.ops import current, recognise
from ckworkflow.tracing.tracer import ReplayNeededError, Tracer

__all__ = [
    "AwaitedChild",
    "Call",
    "CancelledChild",
    "Child",
    "ClosedHook",
    "Deferred",
    "End",
    "GatherCall",
    "Hook",
    "HookChange",
    "HookChanges",
    "Known",
    "MadeHook",
    "NodeCall",
    "Outcome",
    "Payload",
    "ReplayNeededError",
    "Trace",
    "TracedNode",
    "Tracer",
    "UnresolvableError",
    "Wait",
    "Webhook",
    "WorkflowCall",
    "current",
    "holds_part",
    "ops",
    "project",
    "recognise",
    "reference",
]
