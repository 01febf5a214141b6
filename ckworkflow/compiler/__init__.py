"""The compiler: source of a workflow's body to a body that can be traced (section 3 of the design)."""

from ckworkflow.compiler.body import compile_body
from ckworkflow.compiler.sites import AwaitSite, Callee, Classify, CompiledBody, FenceSite
from ckworkflow.compiler.source import BodySource, capture_source

__all__ = [
    "AwaitSite",
    "BodySource",
    "Callee",
    "Classify",
    "CompiledBody",
    "FenceSite",
    "capture_source",
    "compile_body",
]
